//! Decisions as Kubernetes Events of their Incident, for `kubectl describe` and for whoever collects Events.
//!
//! A courtesy: the decision itself is kept in the Incident. So nothing waits for an Event, and when many are decided at once,
//! or the cluster refuses them, Events are lost first.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::PostParams;
use procscan_core::decision::DecisionKind;
use procscan_core::state::{GROUP, VERSION};
use tokio::sync::mpsc;

use super::{FIELD_MANAGER, Objects};
use crate::kubernetes::{Ask, RefusalKind};
use crate::leader::WritePermit;
use crate::state::crd::Resource;

/// How many Events may wait to be written.
const MAX_QUEUED: usize = 256;
/// The longest note that the API server takes, in bytes.
const MAX_NOTE: usize = 1024;
/// The longest name of whoever reports that the API server takes.
const MAX_INSTANCE: usize = 128;

/// One Event that is to be written.
#[derive(Debug)]
pub(super) struct QueuedEvent {
    /// The Incident's name and UID.
    pub(super) incident: (String, String),
    pub(super) kind: DecisionKind,
    pub(super) at: Timestamp,
    /// Who has decided, and why.
    pub(super) note: String,
    /// Whose word it is: nobody's any more once the right to write has passed on.
    pub(super) permit: WritePermit,
}

/// Where Events go to be written.
#[derive(Clone, Debug)]
pub(super) struct Events(mpsc::Sender<QueuedEvent>);

impl Events {
    /// Starts writing. Ends when nobody has anything to tell any more.
    pub(super) fn start(objects: Objects) -> Self {
        let (news, waiting) = mpsc::channel(MAX_QUEUED);
        tokio::spawn(write(objects, waiting));
        Self(news)
    }

    /// Whether there was still room for it.
    pub(super) fn tell(&self, news: QueuedEvent) -> bool {
        self.0.try_send(news).is_ok()
    }
}

async fn write(objects: Objects, mut waiting: mpsc::Receiver<QueuedEvent>) {
    let api: Api<Event> = Api::namespaced(objects.cluster.client(), &objects.namespace);
    let mut is_refused = false;
    while let Some(news) = waiting.recv().await {
        let event = event(&objects.namespace, &news);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let ask = Ask {
            verb: "create",
            resource: "events.events.k8s.io",
            namespace: Some(&objects.namespace),
            name: None,
        };
        let written = objects.cluster.write(&news.permit, ask, api.create(&params, &event)).await;
        match &written {
            Err(refusal) if refusal.kind == RefusalKind::NotLeading => continue,
            Err(refusal) if !is_refused => {
                tracing::warn!(
                    error = refusal.text,
                    "Events of decisions can't be written; the decisions are kept all the same"
                );
            }
            Ok(_) if is_refused => tracing::info!("Events of decisions can be written again"),
            _ => {}
        }
        is_refused = written.is_err();
    }
}

fn event(namespace: &str, news: &QueuedEvent) -> Event {
    let (name, uid) = &news.incident;
    let is_loud = matches!(
        news.kind,
        DecisionKind::Blocked | DecisionKind::Held | DecisionKind::ReleaseHeld | DecisionKind::Inherited
    );
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", news.at.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        action: Some(pascal(news.kind.as_str())),
        reason: Some(pascal(news.kind.as_str())),
        note: Some(cut(&news.note, MAX_NOTE)),
        event_time: Some(MicroTime(news.at)),
        regarding: Some(ObjectReference {
            api_version: Some(format!("{GROUP}/{VERSION}")),
            kind: Some(Resource::Incident.kind().to_owned()),
            name: Some(name.clone()),
            namespace: Some(namespace.to_owned()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(format!("{GROUP}/aggregator")),
        reporting_instance: Some(cut(news.permit.identity(), MAX_INSTANCE)),
        type_: Some(if is_loud { "Warning" } else { "Normal" }.to_owned()),
        ..Event::default()
    }
}

/// `release_held` as `ReleaseHeld`.
fn pascal(snake: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters.next().map(|first| first.to_ascii_uppercase()).into_iter().chain(letters).collect::<String>()
    };
    snake.split('_').map(word).collect()
}

/// At most `max` bytes of a text.
fn cut(text: &str, max: usize) -> String {
    const MORE: &str = "…";
    if text.len() <= max {
        return text.to_owned();
    }
    let mut cut = String::new();
    for c in text.chars() {
        if cut.len() + c.len_utf8() + MORE.len() > max {
            break;
        }
        cut.push(c);
    }
    cut + MORE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_fit_whatever_their_letters_are() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcdef", 5), "ab…");
        assert!(cut(&"界".repeat(1000), MAX_NOTE).len() <= MAX_NOTE);
        assert_eq!(pascal("release_held"), "ReleaseHeld");
    }
}
