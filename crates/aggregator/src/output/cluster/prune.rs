//! Deletes what has left the plan.

use std::collections::BTreeSet;

use kube::Api;
use kube::ResourceExt;
use kube::api::{DeleteParams, Preconditions};
use procscan_core::resources::Object;

use super::ClusterOutput;
use super::listing::Listed;
use super::live::{Live, as_found, found, is_suspended, place, resource};
use crate::kubernetes::{Ask, Refusal, RefusalKind, WritePermit};
use crate::output::Outcome;

/// The objects of one kind that are in the plan, by namespace and name.
pub(super) struct Wanted<'a>(BTreeSet<(&'a str, &'a str)>);

impl<'a> Wanted<'a> {
    pub(super) fn of(objects: impl IntoIterator<Item = impl std::borrow::Borrow<&'a Object>>) -> Self {
        let place = |object: &'a Object| (&*object.metadata.namespace, &*object.metadata.name);
        Self(objects.into_iter().map(|object| place(object.borrow())).collect())
    }

    fn has(&self, namespace: &str, name: &str) -> bool {
        self.0.contains(&(namespace, name))
    }
}

/// The term in which the output listed our objects before the leader decided anything.
#[derive(Debug)]
pub(super) struct TakenOver {
    permit: WritePermit,
    /// The names of the kinds of which this leader has inherited all blocks.
    kinds: BTreeSet<&'static str>,
}

impl TakenOver {
    pub(super) fn new(permit: WritePermit, listed: &[Listed]) -> Self {
        Self { permit, kinds: listed.iter().map(|listed| listed.kind.name()).collect() }
    }

    /// Whether this is the term of `permit`.
    pub(super) fn is_of(&self, permit: &WritePermit) -> bool {
        self.permit.is_same_term(permit)
    }

    /// Whether our objects of this kind exist, although the API server did not serve the kind at the take-over. So this leader
    /// has not inherited what they block. A kind without such objects counts as listed from now on.
    pub(super) fn has_missed(&mut self, listed: &Listed) -> bool {
        let kind = listed.kind.name();
        if listed.ours().next().is_none() {
            self.kinds.insert(kind);
        }
        !self.kinds.contains(kind)
    }
}

/// The objects that have left the plan, each with the reason why it is not deleted, if there is one.
///
/// Our objects are recognised by label and name. Suspended objects are not returned, because an operator decides about them.
pub(super) fn surplus_objects<'a>(
    listed: &'a Listed,
    wanted: &Wanted<'_>,
) -> Vec<(&'a Live, Option<String>)> {
    let is_surplus = |live: &&Live| {
        let (namespace, name) = place(live);
        !wanted.has(&namespace, &name) && as_found(live).has_our_label() && !is_suspended(live)
    };
    let reason_to_stay = |live: &Live| {
        let content = listed.kind.content(&live.data);
        // Another program has edited it, so it may block an App that no incident explains.
        (!content.is_some_and(|content| listed.blocking.is_whole(content))).then(|| {
            "is not in the plan and is damaged, so the Apps that it blocks are not known; delete it if they may be opened"
                .to_owned()
        })
    };
    let all = if listed.blocking.is_permanent() { &[] } else { listed.all() };
    all.iter().filter(is_surplus).map(|live| (live, reason_to_stay(live))).collect()
}

impl ClusterOutput {
    /// Deletes the objects that have left the plan, if it is known what they block. An object that blocks a Service in
    /// `unclosed` stays, because no other object closes that Service.
    pub(super) async fn prune(
        &self,
        listed: &Listed,
        wanted: &Wanted<'_>,
        unclosed: &BTreeSet<String>,
        outcome: &mut Outcome,
    ) {
        for (live, reason_to_stay) in surplus_objects(listed, wanted) {
            if let Some(reason_to_stay) = reason_to_stay {
                outcome.problems.push(format!("{} {} {reason_to_stay}", listed.kind, found(live)));
                continue;
            }
            let content = listed.kind.content(&live.data);
            let closes = content.map(|content| listed.blocking.closes(content)).unwrap_or_default();
            if closes.iter().any(|it| unclosed.contains(*it)) {
                continue;
            }
            match self.delete(listed, live).await {
                Ok(deleted) => outcome.removed += usize::from(deleted),
                Err(refusal) => outcome.problems.push(refusal.text),
            }
        }
    }

    /// Deletes an object if it is still as it was read. Returns whether it was there.
    async fn delete(&self, listed: &Listed, live: &Live) -> Result<bool, Refusal> {
        let (namespace, name) = place(live);
        let api: Api<Live> = Api::namespaced_with(self.cluster.client(), &namespace, &resource(listed.kind));
        let plural = listed.kind.resource();
        let ask = Ask { verb: "delete", resource: &plural, namespace: Some(&namespace), name: Some(&name) };
        let as_read = Preconditions { uid: live.uid(), resource_version: live.resource_version() };
        let params = DeleteParams { preconditions: Some(as_read), ..DeleteParams::default() };
        match self.cluster.write(&self.permit, ask, api.delete(&name, &params)).await {
            Ok(_) => Ok(true),
            Err(refusal) if refusal.kind == RefusalKind::NotFound => Ok(false),
            Err(refusal) => {
                Err(Refusal { text: format!("{} {}: {}", listed.kind, found(live), refusal.text), ..refusal })
            }
        }
    }
}
