//! Messages to tenants. The output writes each when it reports a change, and compares it again in turn.

use std::collections::BTreeSet;

use kube::ResourceExt;
use kube::api::{Patch, PatchParams};
use procscan_core::names::Text;
use procscan_core::plan::Notice;
use procscan_core::resources::{Kind, MessageKind, Object, Settings, WritePolicy};
use serde_json::{Value, json};

use super::deferred::{self, Unanswered};
use super::live::{Key, Live, has_same_text, hash, hash_of, is_read, key, with_labels_of};
use super::{ClusterOutput, FIELD_MANAGER};
use crate::kubernetes::{Refusal, RefusalKind};
use crate::output::Outcome;

/// How many messages that were written before are compared again in one pass: drift in them is no emergency.
const COMPARED_AGAIN: usize = 20;

#[derive(Clone, Copy, Debug)]
pub(super) struct SentMessage {
    /// Of the object as it was wanted.
    hash: u64,
    /// Of the time of the change that it reports.
    change: u64,
    /// It is there as we wrote it, so drift is put right.
    is_ours: bool,
}

impl SentMessage {
    /// As we are about to write it.
    fn of(object: &Object) -> Self {
        Self { hash: hash(object), change: hash_of(change_time(object).unwrap_or_default()), is_ours: true }
    }
}

/// How much of the plan is blocked in the cluster.
pub(super) struct Closed {
    /// Every object is as planned.
    pub(super) all: bool,
    /// The namespaces with an App that is perhaps not blocked as planned; `None` if that is not known.
    pub(super) open_namespaces: Option<BTreeSet<Text>>,
}

impl Closed {
    /// Whether a message may be sent. A tenant is notified of a block after all objects that block its Apps are written, and
    /// the summary counts all blocks.
    fn allows(&self, message: &Object) -> bool {
        match message.write_policy {
            WritePolicy::SendOnce { of_block: true } => {
                let open = self.open_namespaces.as_ref();
                open.is_some_and(|open| !open.contains(&*message.metadata.namespace))
            }
            WritePolicy::UpdateText => self.all,
            _ => true,
        }
    }
}

impl ClusterOutput {
    /// Whether a notice has been written as a message of one of the kinds, or its namespace is gone.
    pub(crate) fn has_sent(&self, notice: &Notice, settings: &Settings) -> bool {
        let is_sent = |(kind, message): (Kind, &dyn MessageKind)| {
            let key = (kind.name(), notice.app.namespace.to_string(), message.message_name(&notice.app));
            self.sent.get(&key).is_some_and(|sent| sent.change == hash_of(&notice.sent_at.to_string()))
        };
        settings.kinds.iter().filter_map(|kind| Some((*kind, kind.message()?))).any(is_sent)
    }

    /// Sends the messages that report a change and that `closed` allows. Returns whether it has tried all of them.
    pub(super) async fn send_all(
        &mut self,
        messages: &[&Object],
        closed: &Closed,
        outcome: &mut Outcome,
        go_on: impl Fn() -> bool,
    ) -> bool {
        let wanted: BTreeSet<Key> = messages.iter().map(|object| key(object)).collect();
        self.sent.retain(|key, _| wanted.contains(key));
        self.deferred.retain(&wanted);
        let mut unanswered = Unanswered::default();
        let mut unserved: BTreeSet<&str> = BTreeSet::new();
        for object in messages {
            let key = key(object);
            if !closed.allows(object) || unserved.contains(key.0) {
                continue;
            }
            if self.sent.get(&key).is_some_and(|sent| sent.hash == hash(object))
                || self.deferred.waits(&key)
                || unanswered.has(&key.1)
            {
                continue;
            }
            match self.send(object).await {
                Ok(written) => {
                    outcome.written += usize::from(written);
                    self.deferred.forget(&key);
                    // A message that its tenant may have deleted is not read, so it proves no answer.
                    if object.write_policy != WritePolicy::AlreadySent {
                        unanswered.note_answer();
                    }
                    if !go_on() {
                        // Something else has been decided meanwhile: the gateway goes before the other messages.
                        outcome.is_unfinished = true;
                        return false;
                    }
                }
                Err(refusal) if refusal.kind == RefusalKind::NotLeading => return false,
                Err(refusal) if refusal.kind == RefusalKind::NotServed => {
                    // Without the CRD no message of this kind can be written.
                    outcome.problems.push(refusal.text);
                    unserved.insert(key.0);
                }
                Err(refusal) if deferred::is_no_answer(&refusal) => {
                    let text = refusal.text.clone();
                    if unanswered.put(key, refusal, &mut self.deferred) {
                        outcome.problems.push(text);
                        return false;
                    }
                }
                Err(refusal) => {
                    unanswered.note_answer();
                    self.deferred.put(key, refusal);
                }
            }
        }
        true
    }

    /// Writes a message if it reports a change. Returns whether it was written.
    async fn send(&mut self, object: &Object) -> Result<bool, Refusal> {
        let Some(message) = object.kind.message() else { return Ok(false) };
        let sent = SentMessage::of(object);
        let is_change = self.sent.get(&key(object)).is_none_or(|before| before.change != sent.change);
        if object.write_policy == WritePolicy::AlreadySent {
            // Its reader may have deleted it since, and then it stays deleted.
            self.sent.insert(key(object), SentMessage { is_ours: false, ..sent });
            return Ok(false);
        }
        let live = match self.read(object).await {
            // A namespace that is being deleted takes no message, and its tenant reads none.
            Err(refusal) if refusal.kind == RefusalKind::NoNamespace => {
                self.sent.insert(key(object), SentMessage { is_ours: false, ..sent });
                return Ok(false);
            }
            live => live?,
        };
        let (written, is_ours) = match (object.write_policy, live) {
            (WritePolicy::MarkRead, None) => (Ok(false), false),
            // It stays, so its text has to say that nothing is blocked any more.
            (WritePolicy::MarkRead, Some(live))
                if message.stays(&object.metadata.name) && !has_same_text(message, object, &live) =>
            {
                (self.apply(object, live.metadata.resource_version).await.map(|_| true), false)
            }
            (WritePolicy::MarkRead, Some(live)) => (self.mark_read(message, object, &live).await, false),
            (WritePolicy::UpdateText, Some(live)) if has_same_text(message, object, &live) => {
                (Ok(false), false)
            }
            // Sent before the start, or by another replica. Its text may have changed since, but it reports the same change.
            (WritePolicy::SendOnce { .. }, Some(live)) if is_change && is_sent(object, &live) => {
                let is_same = object.kind.content(&live.data) == Some(&object.spec);
                let same = with_labels_of(&live, object);
                let version = live.metadata.resource_version;
                (if is_same { Ok(false) } else { self.apply(&same, version).await.map(|_| true) }, true)
            }
            // Its reader has deleted it, and nothing new has happened.
            (_, None) if !is_change => (Ok(false), false),
            (_, Some(live)) if !is_change => (
                self.apply(&with_labels_of(&live, object), live.metadata.resource_version)
                    .await
                    .map(|_| true),
                true,
            ),
            (_, None) => (self.create(object).await.map(|_| true), true),
            (_, Some(live)) => (self.apply(object, live.metadata.resource_version).await.map(|_| true), true),
        };
        match written {
            Ok(written) => {
                self.sent.insert(key(object), SentMessage { is_ours, ..sent });
                Ok(written)
            }
            Err(refusal) if refusal.kind == RefusalKind::NoNamespace => {
                self.sent.insert(key(object), SentMessage { is_ours: false, ..sent });
                Ok(false)
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Marks a message as read whose cause is over.
    async fn mark_read(
        &self,
        message: &dyn MessageKind,
        object: &Object,
        live: &Live,
    ) -> Result<bool, Refusal> {
        if is_read(message, live) {
            return Ok(false);
        }
        let read = json!({
            "metadata": {"labels": {message.read_label(): "true"}, "resourceVersion": live.metadata.resource_version},
        });
        let by_us = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        match self.patch(object, &by_us, &Patch::Merge(&read)).await {
            // Deleted meanwhile: that is as good.
            Err(refusal) if refusal.kind == RefusalKind::NotFound => Ok(false),
            patched => patched.map(|_| true),
        }
    }

    /// Compares a few of the messages that were written before, in turn, and puts their texts right.
    pub(super) async fn compare_again(&mut self, messages: &[&Object], outcome: &mut Outcome) {
        // A message whose content has changed since it was sent is not compared, because it still waits to be sent.
        let is_as_sent = |sent: &SentMessage, object: &Object| sent.is_ours && sent.hash == hash(object);
        let mut ours: Vec<&&Object> = messages
            .iter()
            .filter(|object| self.sent.get(&key(object)).is_some_and(|sent| is_as_sent(sent, object)))
            .collect();
        ours.sort_by_key(|object| key(object));
        let start =
            ours.partition_point(|object| self.compared.as_ref().is_some_and(|last| key(object) <= *last));
        let turn: Vec<&&Object> =
            ours.iter().cycle().skip(start).take(COMPARED_AGAIN.min(ours.len())).copied().collect();
        for object in turn {
            self.compared = Some(key(object));
            if self.deferred.waits(&key(object)) {
                continue;
            }
            match self.compare(object).await {
                Ok(written) => {
                    outcome.written += usize::from(written);
                    self.deferred.forget(&key(object));
                }
                // Without the CRD, `send_all` has reported it, or does so when it next sends a message of this kind.
                Err(refusal) if refusal.kind == RefusalKind::NotServed => return,
                Err(refusal)
                    if refusal.kind == RefusalKind::NotLeading || deferred::is_no_answer(&refusal) =>
                {
                    outcome.problems.push(refusal.text);
                    return;
                }
                Err(refusal) => self.deferred.put(key(object), refusal),
            }
        }
    }

    /// Restores what a message says if it was changed. Returns whether something was written.
    async fn compare(&mut self, object: &Object) -> Result<bool, Refusal> {
        let Some(live) = self.read(object).await? else {
            // Its tenant has deleted it.
            self.sent.insert(key(object), SentMessage { is_ours: false, ..SentMessage::of(object) });
            return Ok(false);
        };
        if object.kind.content(&live.data) == Some(&object.spec) {
            return Ok(false);
        }
        self.apply(&with_labels_of(&live, object), live.metadata.resource_version.clone()).await?;
        Ok(true)
    }
}

/// Whether the message that is there reports the same change.
fn is_sent(object: &Object, live: &Live) -> bool {
    let annotation = object.kind.message().map(MessageKind::change_annotation);
    let sent = annotation.and_then(|annotation| live.annotations().get(annotation));
    let change = change_time(object);
    change.is_some() && sent.map(String::as_str) == change
}

/// The time of the change that a message reports.
fn change_time(object: &Object) -> Option<&str> {
    let annotation = object.kind.message()?.change_annotation();
    object.metadata.annotations.get(annotation).and_then(Value::as_str)
}
