//! Reads the body of an answer, decompresses it and decodes it, within limits.
//!
//! Nearly every answer is small: it is decoded when all of it has arrived. A large one is decoded while it arrives, so that only
//! its records are held, on another thread than the one that asks all agents.

use std::sync::Arc;
use std::time::Duration;

use procscan_core::report::{self, Answer, DecodeError, Decoder, Failure, FailureReason, Limits};
use tokio::io::AsyncRead;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::budget::{Lease, Share};
use super::http::{HttpError, Incoming};
use super::reading::{Read, Reading};
use super::unpack::{BYTES_PER_STEP, Encoding, Unpacker};
use crate::worker::Worker;

/// How many bytes of a large answer are received before they are decoded.
const DECODE_BATCH_BYTES: usize = 64 << 10;
/// How many bytes are decoded at a time. Short, so that large answers take turns.
const BYTES_PER_TURN: usize = 256 << 10;

/// How bodies are read. Clones share their limits for all answers together.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    limits: Limits,
    /// The most bytes, on either side of decompression, of an answer that is decoded in the task that waits for it.
    small: usize,
    reading: Arc<Reading>,
    healthy: Decoding,
    probation: Decoding,
}

/// Where large answers are decoded, one at a time. Targets on probation have a `Decoding` of their own.
#[derive(Clone, Debug)]
struct Decoding {
    permits: Arc<Semaphore>,
    worker: Arc<Worker>,
}

impl Decoding {
    fn new(thread: &'static str) -> Self {
        Self { permits: Arc::new(Semaphore::new(1)), worker: Arc::new(Worker::new(thread)) }
    }

    /// Decodes a part of an answer on the worker's thread. Returns the answer, how the turn ended, and how long it took.
    async fn decode(
        &self,
        mut intake: Box<Intake>,
        most: usize,
        permit: OwnedSemaphorePermit,
    ) -> (Box<Intake>, Result<Turn, Failure>, Duration) {
        // The work holds the permit until it ends, even if its request ends before.
        let work = self.worker.run(move || {
            let begun = std::time::Instant::now();
            let result = intake.turn(most);
            drop(permit);
            (intake, result, begun.elapsed())
        });
        work.await.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// A body as far as it could be read.
pub(super) struct Body {
    pub(super) answer: Answer,
    /// Why it is not whole.
    pub(super) failure: Option<Failure>,
    /// Held until the records are taken in.
    pub(super) share: Share,
}

impl Reader {
    /// `max_read` is the most that is read of one answer, in bytes, and `timeout` how long it may take.
    pub(super) fn new(limits: Limits, small: usize, max_read: usize, timeout: Duration) -> Self {
        Self {
            limits,
            small,
            reading: Arc::new(Reading::new(max_read, timeout)),
            healthy: Decoding::new("decode-standing"),
            probation: Decoding::new("decode-failing"),
        }
    }

    /// Begins a round: reserves for targets with large answers how much of each is read. For the address of a target, `asked` returns
    /// `None` if the round does not ask it, and otherwise whether it is on probation.
    pub(super) fn begin_round(&self, asked: impl Fn(&str) -> Option<bool>) {
        self.reading.begin_round(asked);
    }

    /// The state of large answers.
    #[cfg(test)]
    pub(super) fn reading(&self) -> &Reading {
        &self.reading
    }

    /// Reads a body to its end, or as far as its limits and the deadline allow.
    pub(super) async fn read(
        &self,
        incoming: &mut Incoming<impl AsyncRead + Unpin>,
        encoding: Encoding,
        context: RequestContext<'_>,
        mut lease: Lease,
    ) -> Body {
        let RequestContext { address, is_on_probation, mut deadline } = context;
        let mut read = self.reading.begin(address, is_on_probation);
        let mut received = Vec::new();
        let mut end = Ok(End::More);
        while let Ok(End::More) = end
            && received.len() <= self.small
        {
            let next = lease.receive(receive(incoming, &mut received, &mut read));
            let next = deadline.limit(next).await.flatten();
            end = next.map_err(|failure| deadline.blame(failure, &read, &lease));
            if let Err(failure) = deadline.limit(lease.cover(received.len())).await {
                end = Err(read.defer_if_stalled(failure));
            }
            deadline.is_no_later_than(lease.ends_at());
        }
        let small = match end {
            Ok(End::More) => None,
            _ => self.unpack_small(&received, encoding),
        };
        let (answer, failure) = if let Some((bytes, broken)) = small {
            if matches!(end, Ok(End::Reached)) {
                read.end();
            }
            let (answer, result) = report::decode(bytes.as_ref().unwrap_or(&received), &self.limits);
            (answer, end.err().or(broken).or_else(|| result.err().as_ref().map(malformed)))
        } else {
            let large = Large { reader: self, is_on_probation, encoding, deadline, read, lease: &mut lease };
            // Boxed, because few answers are large, and the others would each take 1.2 KB more.
            Box::pin(large.read(incoming, received, end)).await
        };
        Body { answer, failure, share: lease.into() }
    }

    /// Decompresses a small body. Returns its bytes, unless it is not compressed, and why it does not decompress further. `None`
    /// if the body is not small.
    fn unpack_small(
        &self,
        received: &[u8],
        encoding: Encoding,
    ) -> Option<(Option<Vec<u8>>, Option<Failure>)> {
        if encoding == Encoding::Identity {
            return Some((None, None));
        }
        let mut bytes = Vec::new();
        let result = Unpacker::new(encoding).and_then(|mut unpacker| {
            let mut rest = received;
            while !rest.is_empty() && bytes.len() <= self.small {
                let taken = unpacker.step(rest, &mut bytes)?;
                rest = rest.get(taken..).unwrap_or_default();
            }
            if rest.is_empty() { unpacker.finish(&mut bytes) } else { Ok(()) }
        });
        (bytes.len() <= self.small).then(|| (Some(bytes), result.err()))
    }
}

/// The request to which an answer belongs.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestContext<'a> {
    /// The target's address.
    pub(super) address: &'a str,
    /// The target's last answer failed. One that was deferred does not count.
    pub(super) is_on_probation: bool,
    /// By when its answer must be whole.
    pub(super) deadline: Deadline,
}

/// By when an answer must be whole. The records that are decoded by then are used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deadline {
    at: Instant,
    /// The time for the whole request.
    limit: Duration,
    /// The body exceeds its pool of the byte budget, so it must end before the agent's time is over.
    is_ours: bool,
}

impl Deadline {
    /// A little before `limit` has passed, so that there is time to decode the bytes that have arrived.
    pub(super) fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit - limit / 20, limit, is_ours: false }
    }

    /// Makes it sooner if the body exceeds its pool of the byte budget until `end`.
    fn is_no_later_than(&mut self, end: Option<Instant>) {
        if let Some(end) = end.filter(|end| *end < self.at) {
            (self.at, self.is_ours) = (end, true);
        }
    }

    /// Returns the failure to report if `failure` came while the answer was received. If the answer had to end early, the agent did
    /// not cause `failure`, unless the collector had to wait for the agent.
    fn blame(self, failure: Failure, read: &Read, lease: &Lease) -> Failure {
        if self.is_ours && !lease.is_ended() { read.defer_if_stalled(failure) } else { failure }
    }

    /// The time between the deadline and the limit is for decoding the bytes that have arrived.
    fn has_passed(self) -> bool {
        Instant::now() >= self.at
    }

    /// The result of `work`, if it is ready in time. Work without waits is done even after the deadline.
    async fn limit<T>(self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::time::timeout_at(self.at, work).await.map_err(|_| self.failure(FailureReason::Stalled))
    }

    /// The failure if there is no whole answer in time.
    pub(super) fn failure(self, reason: FailureReason) -> Failure {
        let limit = humantime::format_duration(self.limit);
        Failure { reason, detail: format!("no whole answer within {limit} (collector.timeout)") }
    }
}

/// A large answer while it is decoded.
struct Intake {
    unpacker: Unpacker,
    decoder: Decoder,
    /// The bytes that have arrived; those before `taken` are decompressed.
    batch: Vec<u8>,
    taken: usize,
    /// How many bytes it has been decompressed to so far.
    unpacked: usize,
    /// Decompressed bytes that are not decoded yet.
    bytes: Vec<u8>,
    /// No further bytes are used, because some before them are lost.
    is_over: bool,
}

/// How a turn of decoding has ended.
enum Turn {
    /// All of the batch is decoded, or nothing of the answer will be.
    Done,
    /// There is more of the batch.
    More,
    /// More than the answer's share has been decompressed; the bytes beyond it are lost.
    Cut,
}

impl Intake {
    fn new(unpacker: Unpacker, decoder: Decoder, batch: Vec<u8>) -> Self {
        Self { unpacker, decoder, batch, taken: 0, unpacked: 0, bytes: Vec::new(), is_over: false }
    }

    /// Decodes some of the batch, until more than `most` bytes of the answer have been decompressed.
    fn turn(&mut self, most: usize) -> Result<Turn, Failure> {
        let end = self.unpacked.saturating_add(BYTES_PER_TURN);
        loop {
            let is_list = self.decoder.push(&self.bytes);
            self.bytes.clear();
            if self.unpacked > most {
                self.is_over = true;
                return Ok(Turn::Cut);
            }
            let rest = self.batch.get(self.taken..).unwrap_or_default();
            if rest.is_empty() || !is_list {
                return Ok(Turn::Done);
            }
            if self.unpacked >= end {
                return Ok(Turn::More);
            }
            let step = self.unpacker.step(rest, &mut self.bytes);
            self.unpacked += self.bytes.len();
            // The bytes that are used must not depend on how the answer has arrived.
            self.bytes.truncate(self.bytes.len().saturating_sub(self.unpacked.saturating_sub(most)));
            match step {
                Ok(taken) => self.taken += taken,
                Err(failure) => {
                    self.decoder.push(&self.bytes);
                    self.is_over = true;
                    return Err(failure);
                }
            }
        }
    }

    /// Ends the decoding: at the end of the answer, or early because of `failure`.
    fn finish(mut self, failure: Option<Failure>) -> (Answer, Option<Failure>) {
        let mut broken = None;
        if !self.is_over && !self.decoder.is_broken() {
            broken = self.unpacker.finish(&mut self.bytes).err();
            self.decoder.push(&self.bytes);
        }
        let is_no_list = self.decoder.is_broken();
        let (answer, decoded) = self.decoder.finish();
        let malformed = decoded.err().as_ref().map(malformed);
        // A broken list stays broken, whatever bytes follow. So this failure comes first: it does not depend on how the
        // answer arrives. If the list is only not complete, the first failure is the reason.
        let failure = if is_no_list { malformed } else { failure.or(broken).or(malformed) };
        (answer, failure)
    }
}

/// A large answer with its deadline, its limits and its memory.
struct Large<'a> {
    reader: &'a Reader,
    is_on_probation: bool,
    encoding: Encoding,
    deadline: Deadline,
    read: Read,
    lease: &'a mut Lease,
}

impl Large<'_> {
    /// Reads it, of which `received` has arrived, and perhaps its `end`.
    async fn read(
        mut self,
        incoming: &mut Incoming<impl AsyncRead + Unpin>,
        received: Vec<u8>,
        mut end: Result<End, Failure>,
    ) -> (Answer, Option<Failure>) {
        let decoder = Decoder::new(&self.reader.limits);
        if self.lease.is_ended() {
            return (decoder.finish().0, end.err());
        }
        let unpacker = match self.cover(&decoder).await.and_then(|()| Unpacker::new(self.encoding)) {
            Ok(unpacker) => unpacker,
            Err(failure) => return (decoder.finish().0, Some(self.read.defer_if_stalled(failure))),
        };
        let mut intake = Box::new(Intake::new(unpacker, decoder, received));
        loop {
            let (back, result) = self.decode(intake).await;
            intake = back;
            if let Err(failure) = result {
                return intake.finish(Some(failure));
            }
            match end {
                Ok(End::More) if intake.decoder.is_broken() => return intake.finish(None),
                Ok(End::More) => {}
                Ok(End::Reached) => {
                    self.read.end();
                    return intake.finish(None);
                }
                Err(failure) => return intake.finish(Some(failure)),
            }
            intake.taken = 0;
            intake.batch.clear();
            while let Ok(End::More) = end
                && intake.batch.len() < DECODE_BATCH_BYTES
            {
                if self.deadline.has_passed() {
                    let stalled = self.deadline.failure(FailureReason::Stalled);
                    end = Err(self.read.defer_if_stalled(stalled));
                    break;
                }
                let next = self.lease.receive(receive(incoming, &mut intake.batch, &mut self.read));
                let received = self.deadline.limit(next).await.flatten();
                end = received.map_err(|failure| self.deadline.blame(failure, &self.read, self.lease));
            }
            if self.lease.is_ended() {
                return intake.finish(end.err());
            }
        }
    }

    /// Waits until there is memory for the bytes that a turn may add.
    async fn cover(&mut self, decoder: &Decoder) -> Result<(), Failure> {
        // A record may take more than its text: its places are counted too.
        let most = decoder.held()
            + self.encoding.state()
            + 2 * (DECODE_BATCH_BYTES + BYTES_PER_STEP + BYTES_PER_TURN);
        let covered = self.deadline.limit(self.lease.cover(most)).await;
        self.deadline.is_no_later_than(self.lease.ends_at());
        covered
    }

    /// Decodes a batch, turn by turn.
    async fn decode(&mut self, mut intake: Box<Intake>) -> (Box<Intake>, Result<(), Failure>) {
        let decoding = if self.is_on_probation { &self.reader.probation } else { &self.reader.healthy };
        loop {
            if let Err(failure) = self.cover(&intake.decoder).await {
                return (intake, Err(self.read.defer_if_stalled(failure)));
            }
            let permit = self.deadline.limit(decoding.permits.clone().acquire_owned()).await;
            let permit = match permit.map(Result::ok) {
                Ok(Some(permit)) => permit,
                // It is never closed.
                Ok(None) => std::future::pending().await,
                Err(failure) => return (intake, Err(self.read.defer_if_stalled(failure))),
            };
            // How much of the answer may be read can change between two turns, but not within one.
            let most = self.read.most();
            let before = intake.unpacked;
            let (back, turn, time) = decoding.decode(intake, most, permit).await;
            intake = back;
            self.read.note_decoded(intake.unpacked - before, time);
            let noted = match turn {
                Ok(Turn::Cut) => Err(self.read.cut(most)),
                Ok(turn) => self.read.note(intake.unpacked).map(|()| turn),
                Err(failure) => Err(failure),
            };
            match noted {
                Ok(Turn::More) if self.deadline.has_passed() => {
                    let stalled = self.deadline.failure(FailureReason::Stalled);
                    return (intake, Err(self.read.defer_if_stalled(stalled)));
                }
                Ok(Turn::More) => {}
                Ok(_) => return (intake, Ok(())),
                Err(failure) => return (intake, Err(failure)),
            }
        }
    }
}

/// Whether more of a body may follow.
#[derive(Clone, Copy)]
enum End {
    More,
    Reached,
}

/// Appends the next piece of a body to `received`.
async fn receive(
    incoming: &mut Incoming<impl AsyncRead + Unpin>,
    received: &mut Vec<u8>,
    read: &mut Read,
) -> Result<End, Failure> {
    match incoming.next().await {
        Ok(Some(piece)) => received.extend_from_slice(piece),
        Ok(None) => return Ok(End::Reached),
        Err(HttpError::BrokeOff(e)) => {
            let detail = format!("the answer broke off after {} bytes: {e}", incoming.received());
            return Err(Failure { reason: FailureReason::CutOff, detail });
        }
        Err(error @ HttpError::NotHttp(_)) => {
            return Err(Failure { reason: FailureReason::Protocol, detail: error.to_string() });
        }
    }
    read.note(incoming.received())?;
    Ok(End::More)
}

fn malformed(error: &DecodeError) -> Failure {
    Failure { reason: FailureReason::Malformed, detail: error.to_string() }
}

#[cfg(test)]
mod tests;
