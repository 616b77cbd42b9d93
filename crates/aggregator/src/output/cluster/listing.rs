//! The objects that block, as they are in the cluster.

use kube::Api;
use kube::ResourceExt;
use kube::api::ListParams;
use procscan_core::policy::InheritedBlock;
use procscan_core::resources::{
    BlockingKind, Existing, FoundObject, Home, Kind, MANAGED_BY, Object, Settings, union,
};

use super::live::{Live, as_found, place, resource};
use super::{ClusterOutput, WRITER};
use crate::kubernetes::{Ask, Refusal, RefusalKind};

/// How many objects one answer lists, where there may be one for each tenant.
const PAGE: u32 = 500;

/// The objects of one kind that block, and whose names may be ours.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) kind: Kind,
    pub(super) blocking: &'static dyn BlockingKind,
    /// An object that is not among them does not exist.
    pub(super) is_whole: bool,
    /// Ordered by namespace and name.
    objects: Vec<Live>,
}

impl Listed {
    /// All of them, whichever program wrote them.
    pub(super) fn all(&self) -> &[Live] {
        &self.objects
    }

    /// Those that we have written.
    pub(super) fn ours(&self) -> impl Iterator<Item = &Live> {
        self.objects.iter().filter(|live| self.kind.is_ours(&as_found(live)))
    }

    /// The one in the place of `object`.
    pub(super) fn get(&self, object: &Object) -> Option<&Live> {
        let wanted = (&object.metadata.namespace, &object.metadata.name);
        let is_before = |live: &Live| {
            let (namespace, name) = place(live);
            (&namespace, &name) < wanted
        };
        let at = self.objects.partition_point(is_before);
        self.objects.get(at).filter(|live| {
            let (namespace, name) = place(live);
            (&namespace, &name) == wanted
        })
    }

    /// All of them.
    pub(super) fn into_objects(self) -> Vec<Live> {
        self.objects
    }

    fn found(&self) -> Vec<FoundObject<'_>> {
        self.ours().map(as_found).collect()
    }
}

/// The kinds that are served. A leader inherits no block of another kind. If that kind is served again, the term ends: see
/// [`TakenOver::has_missed`](super::prune::TakenOver::has_missed). Any other refusal is an error, because it is not known what is blocked.
pub(super) fn served(all: Vec<Result<Listed, Refusal>>) -> Result<Vec<Listed>, Refusal> {
    let is_served = |listed: &Result<Listed, Refusal>| !matches!(listed, Err(refusal) if refusal.kind == RefusalKind::NotServed);
    all.into_iter().filter(is_served).collect()
}

/// What our objects block.
pub(super) fn blocked(listed: &[Listed], settings: &Settings) -> Vec<InheritedBlock> {
    union(listed.iter().flat_map(|listed| listed.blocking.blocked(&listed.found(), settings)))
}

/// What must not be given up.
pub(super) fn existing(listed: &[Listed]) -> Existing {
    let mut existing = Existing::default();
    for listed in listed.iter().filter(|listed| listed.blocking.is_permanent()) {
        for live in listed.ours() {
            let note = listed.blocking.note(listed.kind.content(&live.data));
            existing.add(listed.kind, live.name_any(), note);
        }
    }
    existing
}

/// The marks of the leaders that wrote our objects, where no tenant can write them.
pub(super) fn marks<'a>(listed: &'a [Listed], settings: &Settings) -> Vec<&'a str> {
    let of_operators =
        listed.iter().filter(|listed| matches!(listed.kind.home(settings), Home::Namespace(_)));
    let ours = of_operators.flat_map(Listed::ours);
    ours.filter_map(|live| live.annotations().get(WRITER).map(String::as_str)).collect()
}

impl ClusterOutput {
    /// The objects of each kind that blocks.
    pub(super) async fn list_all(&self, settings: &Settings) -> Vec<Result<Listed, Refusal>> {
        let mut all = Vec::new();
        for kind in settings.kinds {
            if let Some(blocking) = kind.blocking() {
                all.push(self.list(*kind, blocking, settings).await);
            }
        }
        all
    }

    pub(super) async fn list(
        &self,
        kind: Kind,
        blocking: &'static dyn BlockingKind,
        settings: &Settings,
    ) -> Result<Listed, Refusal> {
        let (label, value) = MANAGED_BY;
        let (objects, is_whole) = match kind.home(settings) {
            Home::Namespace(namespace) => (self.objects(kind, Some(namespace), None).await?, true),
            Home::Tenants => (self.objects(kind, None, Some(&format!("{label}={value}"))).await?, false),
        };
        let is_our_name = |live: &Live| {
            let (namespace, name) = place(live);
            kind.is_our_name(&namespace, &name, settings)
        };
        let mut objects: Vec<Live> = objects.into_iter().filter(is_our_name).collect();
        objects.sort_by_cached_key(place);
        Ok(Listed { kind, blocking, is_whole, objects })
    }

    /// The objects of a kind in `namespace`, or in all of them, that match the `selector`.
    pub(super) async fn objects(
        &self,
        kind: Kind,
        namespace: Option<&str>,
        selector: Option<&str>,
    ) -> Result<Vec<Live>, Refusal> {
        let resource = resource(kind);
        let (api, mut page): (Api<Live>, _) = match namespace {
            Some(namespace) => {
                (Api::namespaced_with(self.cluster.client(), namespace, &resource), ListParams::default())
            }
            None => (Api::all_with(self.cluster.client(), &resource), ListParams::default().limit(PAGE)),
        };
        if let Some(selector) = selector {
            page = page.labels(selector);
        }
        let plural = kind.resource();
        let mut all = Vec::new();
        loop {
            let ask = Ask { verb: "list", resource: &plural, namespace, name: None };
            let found = self.cluster.ask(ask, api.list(&page)).await?;
            all.extend(found.items);
            match found.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(all),
            }
        }
    }
}
