//! Writes decisions as Kubernetes Events of their Incident, for `kubectl describe` and for programs that collect
//! Events.
//!
//! The decision itself is persisted in the Incident, so nothing waits for an Event. If there are many decisions at
//! once, or the cluster refuses Events, Events are lost.

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
use crate::kubernetes::WritePermit;
use crate::kubernetes::{Ask, RefusalKind};
use crate::state::crd::Resource;

/// How many Events may wait to be written.
const MAX_QUEUED: usize = 256;
/// The longest note that the API server takes, in bytes.
const MAX_NOTE_BYTES: usize = 1024;
/// The longest name of a reporting program that the API server takes, in bytes.
const MAX_INSTANCE_BYTES: usize = 128;

/// An Event that is to be written.
#[derive(Debug)]
pub(super) struct QueuedEvent {
    /// The Incident's name and UID.
    pub(super) incident: (String, String),
    pub(super) kind: DecisionKind,
    pub(super) at: Timestamp,
    /// The actor and the reason of the decision.
    pub(super) note: String,
    /// The permit of the leader that has decided. Once it has ended, the Event is not written.
    pub(super) permit: WritePermit,
}

/// The queue of Events to be written.
#[derive(Clone, Debug)]
pub(super) struct Events(mpsc::Sender<QueuedEvent>);

impl Events {
    /// Starts the task that writes Events. It ends when all senders are dropped.
    pub(super) fn start(objects: Objects) -> Self {
        let (sender, queue) = mpsc::channel(MAX_QUEUED);
        tokio::spawn(write(objects, queue));
        Self(sender)
    }

    /// Queues an Event. Returns whether there was room for it.
    pub(super) fn enqueue(&self, event: QueuedEvent) -> bool {
        self.0.try_send(event).is_ok()
    }
}

async fn write(objects: Objects, mut queue: mpsc::Receiver<QueuedEvent>) {
    let api: Api<Event> = Api::namespaced(objects.cluster.client(), &objects.namespace);
    let mut is_refused = false;
    while let Some(queued) = queue.recv().await {
        let event = event(&objects.namespace, &queued);
        let params = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
        let ask = Ask {
            verb: "create",
            resource: "events.events.k8s.io",
            namespace: Some(&objects.namespace),
            name: None,
        };
        let written = objects.cluster.write(&queued.permit, ask, api.create(&params, &event)).await;
        match &written {
            Err(refusal) if refusal.kind == RefusalKind::NotLeading => continue,
            Err(refusal) if !is_refused => {
                tracing::warn!(
                    error = refusal.text,
                    "Events of decisions can't be written; the decisions are persisted nevertheless"
                );
            }
            Ok(_) if is_refused => tracing::info!("Events of decisions can be written again"),
            _ => {}
        }
        is_refused = written.is_err();
    }
}

fn event(namespace: &str, queued: &QueuedEvent) -> Event {
    let (name, uid) = &queued.incident;
    let is_warning = matches!(
        queued.kind,
        DecisionKind::Blocked | DecisionKind::Held | DecisionKind::ReleaseHeld | DecisionKind::Inherited
    );
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", queued.at.as_nanosecond())),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        action: Some(pascal(queued.kind.as_str())),
        reason: Some(pascal(queued.kind.as_str())),
        note: Some(cut(&queued.note, MAX_NOTE_BYTES)),
        event_time: Some(MicroTime(queued.at)),
        regarding: Some(ObjectReference {
            api_version: Some(format!("{GROUP}/{VERSION}")),
            kind: Some(Resource::Incident.kind().to_owned()),
            name: Some(name.clone()),
            namespace: Some(namespace.to_owned()),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        }),
        reporting_controller: Some(format!("{GROUP}/aggregator")),
        reporting_instance: Some(cut(queued.permit.identity(), MAX_INSTANCE_BYTES)),
        type_: Some(if is_warning { "Warning" } else { "Normal" }.to_owned()),
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
    fn a_text_of_any_letters_is_cut_to_the_limit() {
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcdef", 5), "ab…");
        assert!(cut(&"界".repeat(1000), MAX_NOTE_BYTES).len() <= MAX_NOTE_BYTES);
        assert_eq!(pascal("release_held"), "ReleaseHeld");
    }
}
