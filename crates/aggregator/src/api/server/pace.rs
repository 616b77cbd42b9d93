//! Cuts off clients that do not take their answers: such a client holds a place and the bytes of an answer.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// How fast a client must take an answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How long it may take nothing.
    pub(super) stall: Duration,
    /// Bytes per second on average, once `stall` is over.
    pub(super) least: u64,
}

/// A stream whose writes fail with [`io::ErrorKind::TimedOut`] if the other side takes too little. The clock runs only while a
/// write waits, and a flush ends it: a flush means that nothing more is to be written.
#[derive(Debug)]
pub(super) struct Paced<S> {
    stream: S,
    pace: Pace,
    waiting: Option<Waiting>,
    /// Made by the first write that waits, and used again by later ones.
    timer: Option<Pin<Box<Sleep>>>,
}

/// An answer of which a write has had to wait.
#[derive(Debug)]
struct Waiting {
    since: Instant,
    /// When the last write that waited found that bytes had been taken meanwhile.
    moved: Instant,
    has_moved: bool,
    /// Bytes taken since then.
    taken: u64,
}

impl Waiting {
    fn since(now: Instant) -> Self {
        Self { since: now, moved: now, has_moved: false, taken: 0 }
    }

    fn deadline(&self, pace: Pace) -> Instant {
        let earned = Duration::from_millis(self.taken.saturating_mul(1000) / pace.least.max(1));
        (self.moved + pace.stall).min(self.since + pace.stall + earned)
    }
}

impl<S> Paced<S> {
    pub(super) fn new(stream: S, pace: Pace) -> Self {
        Self { stream, pace, waiting: None, timer: None }
    }

    fn watch(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(count)) => {
                if let Some(waiting) = &mut self.waiting {
                    waiting.taken = waiting.taken.saturating_add(count as u64);
                    waiting.has_moved = true;
                }
                Poll::Ready(Ok(count))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                ready!(self.poll_late(context));
                let problem = "the client does not take the answer";
                Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, problem)))
            }
        }
    }

    /// Ready once a write has waited too long.
    fn poll_late(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let now = Instant::now();
        let waiting = self.waiting.get_or_insert_with(|| Waiting::since(now));
        if std::mem::take(&mut waiting.has_moved) {
            waiting.moved = now;
        }
        let deadline = waiting.deadline(self.pace);
        if deadline <= now {
            return Poll::Ready(());
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        // Deadlines only move away, so a timer that is set is never too late. To set it at each write would cost more than the
        // write itself.
        while timer.as_mut().poll(context).is_ready() {
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.watch(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.watch(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.waiting = None;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    const PACE: Pace = Pace { stall: Duration::from_secs(10), least: 100 };

    /// Writes 10,000 bytes to a client of which at most 100 are under way.
    fn answer() -> (tokio::task::JoinHandle<io::Result<()>>, DuplexStream) {
        let (ours, theirs) = duplex(100);
        let write = async {
            let mut paced = Paced::new(ours, PACE);
            paced.write_all(&[7; 10_000]).await?;
            paced.flush().await
        };
        (tokio::spawn(write), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_cut_off() {
        let begun = Instant::now();
        let (writing, _client) = answer();
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), PACE.stall);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stops_is_cut_off_however_fast_it_was() {
        let (writing, mut client) = answer();
        client.read_exact(&mut [0; 9_000]).await.unwrap();
        let stopped = Instant::now();
        assert_eq!(writing.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(stopped.elapsed(), PACE.stall);
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_gets_all_and_one_that_is_slower_than_the_least_rate_is_cut_off() {
        for (every, gets_all) in [(Duration::from_millis(990), true), (Duration::from_millis(1500), false)] {
            let begun = Instant::now();
            let (writing, mut client) = answer();
            while !writing.is_finished() {
                tokio::time::sleep(every).await;
                let _ = client.read(&mut [0; 100]).await;
            }
            let written = writing.await.unwrap();
            assert_eq!(written.is_ok(), gets_all, "{every:?}: {written:?}");
            // 30 s: 10 s, and one for each of the 20 times that it has read.
            assert!(gets_all || begun.elapsed() <= Duration::from_secs(33), "{:?}", begun.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn each_answer_has_a_clock_of_its_own_and_none_runs_between_them() {
        let (ours, mut client) = duplex(100);
        let mut paced = Paced::new(ours, PACE);
        for _ in 0..3 {
            let take = async {
                tokio::time::sleep(Duration::from_secs(9)).await;
                client.read_exact(&mut [0; 200]).await.unwrap();
            };
            let write = async {
                paced.write_all(&[7; 200]).await?;
                paced.flush().await
            };
            let (written, ()) = tokio::join!(write, take);
            written.unwrap();
            tokio::time::sleep(Duration::from_mins(1)).await;
        }
    }
}
