//! Watches that report the end of an error.

use std::fmt::Debug;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream, Stream};
use kube::runtime::utils::Backoff;
use kube::runtime::watcher as watch_objects;
use kube::runtime::watcher::{self, DefaultBackoff, Event};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use super::{Ask, Refusal};

/// Lists the objects, then reports each change.
///
/// After an error the objects are listed anew, after a pause that grows with the number of errors in a row. A watch
/// that is resumed where it broke off reports nothing until an object changes. So a receiver of the error would not
/// be notified of its end.
pub(crate) fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    again_after_errors(move || watch_objects(api.clone(), config.clone()).boxed())
}

struct Watch<K> {
    events: BoxStream<'static, watcher::Result<Event<K>>>,
    backoff: DefaultBackoff,
    /// The pause before the watch begins again, after an error.
    pause: Option<Duration>,
}

fn again_after_errors<K: Send + 'static>(
    begin: impl Fn() -> BoxStream<'static, watcher::Result<Event<K>>> + Send,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send {
    let first = Watch { events: begin(), backoff: DefaultBackoff::default(), pause: None };
    stream::unfold((first, begin), async |(mut watch, begin)| {
        if let Some(pause) = watch.pause.take() {
            tokio::time::sleep(pause).await;
            watch.events = begin();
        }
        let event = watch.events.next().await?;
        match &event {
            // Comes before any request is sent.
            Ok(Event::Init) => {}
            Ok(_) => watch.backoff.reset(),
            Err(_) => watch.pause = watch.backoff.next(),
        }
        Some((event, (watch, begin)))
    })
}

impl Refusal {
    /// The refusal that the loss of a watch of `resource` means.
    pub(crate) fn of_watch(resource: &str, namespace: Option<&str>, error: &watcher::Error) -> Self {
        let ask = |verb| Ask { verb, resource, namespace, name: None };
        match error {
            watcher::Error::InitialListFailed(e) => Self::new(&ask("list"), e),
            watcher::Error::WatchStartFailed(e) | watcher::Error::WatchFailed(e) => {
                Self::new(&ask("watch"), e)
            }
            watcher::Error::WatchError(status) => Self::new(&ask("watch"), &kube::Error::Api(status.clone())),
            watcher::Error::NoResourceVersion => {
                let status =
                    kube::core::Status { message: error.to_string(), ..kube::core::Status::default() };
                Self::new(&ask("watch"), &kube::Error::Api(Box::new(status)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::Instant;

    use super::*;

    type Script = Vec<watcher::Result<Event<()>>>;

    /// Plays each script in turn and then nothing, like a watch of objects that do not change.
    fn played(scripts: Vec<fn() -> Script>) -> impl Stream<Item = watcher::Result<Event<()>>> + Send {
        let times = AtomicUsize::new(0);
        again_after_errors(move || {
            let script =
                scripts.get(times.fetch_add(1, Ordering::Relaxed)).map_or_else(Vec::new, |make| make());
            stream::iter(script).chain(stream::pending()).boxed()
        })
    }

    fn lost() -> watcher::Result<Event<()>> {
        Err(watcher::Error::NoResourceVersion)
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_an_error_is_reported_although_nothing_changes() {
        let listed = || vec![Ok(Event::Init), Ok(Event::InitDone)];
        let mut events =
            Box::pin(played(vec![|| vec![Ok(Event::Init), Ok(Event::InitDone), lost()], listed]));
        let mut next = async || events.next().await.unwrap();
        assert!(matches!(next().await, Ok(Event::Init)));
        assert!(matches!(next().await, Ok(Event::InitDone)));
        assert!(next().await.is_err());
        assert!(matches!(next().await, Ok(Event::Init)));
        assert!(matches!(next().await, Ok(Event::InitDone)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_pause_grows_with_each_error_in_a_row() {
        let refused: fn() -> Script = || vec![Ok(Event::Init), lost()];
        let mut events = Box::pin(played(vec![refused; 10]));
        let start = Instant::now();
        for _ in 0..20 {
            drop(events.next().await);
        }
        // 0.8 s, doubled each time up to 30 s, and lengthened at random; without doubling it would be 15 s at most.
        assert!(start.elapsed() > Duration::from_secs(30), "{:?}", start.elapsed());
    }
}
