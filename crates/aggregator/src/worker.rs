//! A thread for computations that would delay other tasks.
//!
//! Tokio starts one more thread for blocking work whenever all its threads are busy, and the allocator holds memory
//! for each thread. In a measurement, two dozen such threads held 30 MB, although few of them were busy at the same
//! time. So frequent work that only computes has one thread here.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use tokio::sync::oneshot;

type Work = Box<dyn FnOnce() + Send>;

/// A thread that does one piece of work at a time, in the order of the calls. It starts with the first call of
/// [`Self::run`]. After this value is dropped, the thread does the queued work and ends.
#[derive(Debug)]
pub(crate) struct Worker {
    name: &'static str,
    /// `None` if the thread can't be started.
    queue: OnceLock<Option<Sender<Work>>>,
}

impl Worker {
    /// A worker whose thread will have this name.
    pub(crate) const fn new(name: &'static str) -> Self {
        Self { name, queue: OnceLock::new() }
    }

    /// Queues `work` for the thread. The future returns the result of `work`, which is done even if the future is
    /// dropped. If the thread can't be started, the work is done before this returns.
    ///
    /// # Errors
    /// The payload of the panic if `work` panics.
    pub(crate) fn run<T, W>(
        &self,
        work: W,
    ) -> impl Future<Output = Result<T, Box<dyn Any + Send>>> + use<T, W>
    where
        T: Send + 'static,
        W: FnOnce() -> T + Send + 'static,
    {
        let (done, is_done) = oneshot::channel();
        let work = || {
            // A panic must not end the thread, because other tasks need it.
            let result = catch_unwind(AssertUnwindSafe(work));
            let _ = done.send(result);
        };
        match self.queue.get_or_init(|| start(self.name)) {
            // The thread receives until the queue is dropped, so sending does not fail.
            Some(queue) => drop(queue.send(Box::new(work))),
            // This delays the tasks of the caller's thread, but the work is done.
            None => work(),
        }
        async { is_done.await.unwrap_or_else(|closed| Err(Box::new(closed))) }
    }
}

fn start(name: &'static str) -> Option<Sender<Work>> {
    let (queue, queued) = channel::<Work>();
    let thread = std::thread::Builder::new().name(name.to_owned());
    match thread.spawn(move || queued.into_iter().for_each(|work| work())) {
        Ok(_) => Some(queue),
        Err(error) => {
            tracing::warn!(
                thread = name, %error,
                "a thread can't be started: its work is done on the threads of other tasks and delays them"
            );
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[tokio::test]
    async fn all_work_is_done_in_order_on_one_thread_of_the_given_name() {
        let (worker, (sender, numbers)) = (Worker::new("a-worker"), channel());
        let runs = (0..10).map(|number| {
            let sender = sender.clone();
            worker.run(move || {
                sender.send(number).unwrap();
                thread::current().name().map(str::to_owned)
            })
        });
        for name in futures_util::future::join_all(runs).await {
            assert_eq!(name.unwrap().as_deref(), Some("a-worker"));
        }
        assert_eq!(numbers.try_iter().collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn work_that_panics_is_an_error_and_the_next_work_is_still_done() {
        let worker = Worker::new("a-worker");
        let panic = worker.run(|| panic!("of the test")).await.unwrap_err();
        assert_eq!(panic.downcast_ref(), Some(&"of the test"));
        assert_eq!(worker.run(|| 1).await.unwrap(), 1);
    }

    #[test]
    fn work_is_done_even_if_its_result_is_not_awaited() {
        let (worker, (sender, threads)) = (Worker::new("a-worker"), channel());
        drop(worker.run(move || sender.send(thread::current().id()).unwrap()));
        drop(worker);
        assert_ne!(threads.recv().unwrap(), thread::current().id());
    }
}
