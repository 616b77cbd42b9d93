//! Looks up many namespaces together: lists each kind of object of the whole cluster, page by page, and keeps those of
//! the requested namespaces.
//!
//! Its facts are as true as those of a look-up: all reads are consistent, and begin after the moment that the facts carry.
//! But it proves no absence: a Pod or a namespace that is not listed needs a look-up of its own, which asks for it
//! directly.
//!
//! Its memory is bounded: one page, the relevant fields of each object (`fields`), [`MAX_HELD`] in all, and
//! [`MAX_SHARE`] of one namespace. A namespace is *heavy* if it exceeds its share or has an object larger than a page.
//! It is heavy, too, if its large objects take more than [`MAX_SHARE_READ`]. A heavy namespace gets look-ups of its own
//! with their own limits. Each object counts for its own namespace, so one tenant's objects make no other heavy. The
//! bytes that are read per minute are bounded too (`budget`); pages beyond that wait.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicUsize;
use std::sync::{Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::networking::v1::Ingress;
use kube::api::ListParams;
use kube::core::{DynamicObject, GroupVersionKind, ObjectMeta, Request};
use kube::discovery::ApiResource;
use kube::{Resource, ResourceExt};
use procscan_core::names::Text;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::budget::Budget;
use super::fields::{HTTP_ROUTES, INGRESSES, NAMES, NAMESPACES, PODS, SERVICES};
use super::listing::{FIRST_PAGE, MAX_PAGE, PAGE, Page, USUAL_PAGE_BYTES};
use super::lookup::{NamespaceContents, Pod, PodObject, Routes, service_of};
use crate::clock::Clock;
use crate::kubernetes::{Answer, Ask, Cluster, Keep, Limit, Refusal, RefusalKind, Size};

/// How many bytes are held in all: enough for about 20,000 Pods with usual labels.
const MAX_HELD: usize = 16 << 20;
/// How many bytes are held of one namespace.
const MAX_SHARE: usize = 1 << 20;
/// How many bytes of large objects are read of one namespace.
const MAX_SHARE_READ: usize = 16 << 20;
/// How many bytes one page may have.
const MAX_PAGE_READ: usize = 64 << 20;

/// The task of a sweep.
#[derive(Clone, Debug, Default)]
pub(super) struct Plan {
    /// The namespaces.
    pub(super) namespaces: BTreeSet<Text>,
    /// The heaviest namespaces, which are not listed.
    pub(super) without: BTreeSet<Text>,
    /// Whether routes are looked up, too.
    pub(super) with_routes: bool,
    /// How many requests it may take before it is given up.
    pub(super) most: usize,
    /// How many bytes it may read now.
    pub(super) budget: Budget,
}

/// The result: the contents of each namespace that was seen completely.
#[derive(Debug)]
pub(super) struct Swept {
    pub(super) seen: BTreeMap<Text, NamespaceContents>,
    pub(super) ended: Ended,
}

/// How a sweep ended.
#[derive(Debug)]
pub(super) struct Ended {
    /// How many requests it took, or would have taken.
    pub(super) requests: usize,
    /// The namespaces that were found to be heavy, with the bytes that were read of their large objects.
    pub(super) heavy: BTreeMap<Text, usize>,
    /// Why nothing was seen.
    pub(super) result: Result<(), Stop>,
}

/// Why a sweep was given up.
#[derive(Clone, Debug)]
pub(super) enum Stop {
    /// It would take too many requests.
    Costly,
    /// The namespaces together hold more than the limit.
    Full,
    /// The API server refuses it.
    Refused(Refusal),
}

struct Sweep<'a> {
    plan: &'a Plan,
    cluster: &'a Cluster,
    clock: Clock,
    /// Shared by the lists of all kinds, which are read at the same time. Never locked while something is awaited.
    found: Mutex<Found>,
}

#[derive(Default)]
struct Found {
    seen: BTreeMap<Text, NamespaceContents>,
    /// The namespaces that exist.
    existing: BTreeSet<Text>,
    /// The bytes that were read of the large objects of each namespace, and that are held of it.
    shares: BTreeMap<Text, Size>,
    heavy: BTreeMap<Text, usize>,
    held: usize,
    requests: usize,
    /// How many more requests each kind is known to take.
    left: BTreeMap<&'static str, usize>,
}

/// A kind of object.
struct Kind {
    resource: &'static str,
    request: Request,
    keep: &'static Keep,
    /// The name of the namespace in a field selector.
    field: &'static str,
}

/// An object of any kind, of which only the name is read.
#[derive(Deserialize)]
struct Named {
    metadata: ObjectMeta,
}

/// Looks up the namespaces of `plan`.
pub(super) async fn sweep(plan: &Plan, cluster: &Cluster, clock: Clock) -> Swept {
    let sweep = Sweep { plan, cluster, clock, found: Mutex::default() };
    // Boxed, because the future is large and there is rarely one.
    let result = Box::pin(sweep.read()).await;
    let Found { mut seen, existing, heavy, requests, left, .. } =
        sweep.found.into_inner().unwrap_or_else(PoisonError::into_inner);
    seen.retain(|namespace, _| {
        result.is_ok() && existing.contains(namespace) && !heavy.contains_key(namespace)
    });
    Swept { seen, ended: Ended { requests: requests + left.values().sum::<usize>(), heavy, result } }
}

impl Sweep<'_> {
    fn found(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self) -> Result<(), Stop> {
        let routes = async {
            if self.plan.with_routes {
                tokio::try_join!(self.ingresses(), self.http_routes())?;
            }
            Ok(())
        };
        tokio::try_join!(self.namespaces(), self.pods(), self.services(), routes)?;
        if self.plan.with_routes {
            for seen in self.found().seen.values_mut() {
                seen.routes.get_or_insert_default();
            }
        }
        Ok(())
    }

    async fn namespaces(&self) -> Result<(), Stop> {
        let kind = Kind {
            resource: "namespaces",
            request: Request::new(core::Namespace::url_path(&(), None)),
            keep: &NAMESPACES,
            field: "metadata.name",
        };
        let of = |metadata: &ObjectMeta| metadata.name.clone();
        self.list(kind, of, |found, name, namespace: core::Namespace| {
            found.existing.insert(name.clone());
            found.of(name).is_terminating = namespace.metadata.deletion_timestamp.is_some();
        })
        .await
    }

    async fn pods(&self) -> Result<(), Stop> {
        let kind = Kind::new("pods", core::Pod::url_path(&(), None), &PODS);
        self.list(kind, namespace_of, |found, namespace, pod: PodObject| {
            let name = pod.name_any().into();
            let pod = Pod::read(namespace, pod, |at| self.cluster.moment_of(at, self.clock.now()));
            found.of(namespace).pods.insert(name, pod);
        })
        .await
    }

    async fn services(&self) -> Result<(), Stop> {
        let kind = Kind::new("services", core::Service::url_path(&(), None), &SERVICES);
        self.list(kind, namespace_of, |found, namespace, service: core::Service| {
            found.of(namespace).services.push(service_of(service));
        })
        .await
    }

    async fn ingresses(&self) -> Result<(), Stop> {
        let kind = Kind::new("ingresses.networking.k8s.io", Ingress::url_path(&(), None), &INGRESSES);
        self.list(kind, namespace_of, |found, namespace, ingress: Ingress| {
            found.routes(namespace).take_in(ingress, namespace);
        })
        .await
    }

    async fn http_routes(&self) -> Result<(), Stop> {
        let kind = GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute");
        let path = DynamicObject::url_path(&ApiResource::from_gvk(&kind), None);
        let kind = Kind::new("httproutes.gateway.networking.k8s.io", path, &HTTP_ROUTES);
        let listed = self.list(kind, namespace_of, |found, namespace, route: DynamicObject| {
            found.routes(namespace).take_in_route(&route, namespace);
        });
        match listed.await {
            // Most clusters have no Gateway API: then nothing is routed by it.
            Err(Stop::Refused(refusal)) if refusal.kind == RefusalKind::NotServed => Ok(()),
            listed => listed,
        }
    }

    /// Lists all objects of a kind, page by page, as of one moment. `of` returns an object's namespace; objects in the
    /// namespaces of the plan are taken in.
    async fn list<K: Resource + DeserializeOwned>(
        &self,
        kind: Kind,
        of: impl Fn(&ObjectMeta) -> Option<String>,
        take_in: impl Fn(&mut Found, &Text, K),
    ) -> Result<(), Stop> {
        let without: Vec<String> =
            self.plan.without.iter().map(|namespace| format!("{}!={namespace}", kind.field)).collect();
        let mut params = ListParams::default().limit(FIRST_PAGE);
        if !without.is_empty() {
            params = params.fields(&without.join(","));
        }
        let mut size = FIRST_PAGE;
        loop {
            params.limit = Some(size);
            let answer = match self.page(&kind, &params, kind.keep).await {
                // The objects are large here.
                Err(Stop::Refused(refusal)) if refusal.kind == RefusalKind::TooMuch && size > 1 => {
                    size = (size / 4).max(1);
                    continue;
                }
                // Its one object is too large to be held.
                Err(Stop::Refused(refusal)) if refusal.kind == RefusalKind::TooMuch => {
                    let Some(token) = self.pass_over(&kind, &params, &of).await? else {
                        self.found().left.remove(kind.resource);
                        return Ok(());
                    };
                    params = params.continue_token(&token);
                    continue;
                }
                answer => answer?,
            };
            let Page { metadata, items }: Page<K> = answer.value;
            let is_usual = answer.read / USUAL_PAGE_BYTES <= items.len();
            let mut sizes = answer.items.into_iter();
            let mut found = self.found();
            for item in items {
                let size = sizes.next().unwrap_or_default();
                let Some(namespace) = of(item.meta()).map(Text::from) else { continue };
                if found.weigh(&namespace, size, self.plan)? {
                    take_in(&mut found, &namespace, item);
                }
            }
            let Some(token) = metadata.continue_.filter(|token| !token.is_empty()) else {
                found.left.remove(kind.resource);
                return Ok(());
            };
            let left = usize::try_from(metadata.remaining_item_count.unwrap_or(0)).unwrap_or(0);
            found.left.insert(kind.resource, left.div_ceil(PAGE as usize));
            drop(found);
            params = params.continue_token(&token);
            size = if is_usual { (size * 5).min(PAGE) } else { size.min(FIRST_PAGE) };
        }
    }

    /// Reads one page, when the budget allows it.
    async fn page<T: DeserializeOwned>(
        &self,
        kind: &Kind,
        params: &ListParams,
        keep: &'static Keep,
    ) -> Result<Answer<T>, Stop> {
        self.found().begin_request(kind.resource, self.plan.most)?;
        let budget = &self.plan.budget;
        loop {
            let wait = budget.wait(self.clock.now());
            if wait.is_zero() {
                break;
            }
            tokio::time::sleep(wait).await;
        }
        let ask = Ask { verb: "list", resource: kind.resource, namespace: None, name: None };
        let limit = Limit { read: MAX_PAGE_READ, wanted: MAX_PAGE };
        let count = AtomicUsize::new(0);
        let answer = self.cluster.read_counted(ask, kind.request.list(params), keep, limit, &count).await;
        budget.spend(count.into_inner(), self.clock.now());
        answer.map_err(Stop::Refused)
    }

    /// Reads only the name of the one object that `params` ask for, and makes its namespace heavy. Returns the token
    /// with which the list goes on; `None` at its end.
    async fn pass_over(
        &self,
        kind: &Kind,
        params: &ListParams,
        of: &impl Fn(&ObjectMeta) -> Option<String>,
    ) -> Result<Option<String>, Stop> {
        let answer: Answer<Page<Named>> = self.page(kind, params, &NAMES).await?;
        let Page { metadata, items } = answer.value;
        let mut found = self.found();
        for namespace in items.iter().filter_map(|item| of(&item.metadata)) {
            found.leave_out(&namespace.into(), answer.read);
        }
        Ok(metadata.continue_.filter(|token| !token.is_empty()))
    }
}

impl Found {
    fn begin_request(&mut self, resource: &'static str, most: usize) -> Result<(), Stop> {
        if let Some(left) = self.left.get_mut(resource) {
            *left = left.saturating_sub(1);
        }
        self.requests += 1;
        if self.requests + self.left.values().sum::<usize>() > most { Err(Stop::Costly) } else { Ok(()) }
    }

    /// Counts an object. Returns whether it is to be taken in.
    fn weigh(&mut self, namespace: &Text, size: Size, plan: &Plan) -> Result<bool, Stop> {
        let is_wanted = plan.namespaces.contains(namespace);
        // Objects of a usual size make no namespace heavy, however many there are.
        let read = if size.read > USUAL_PAGE_BYTES { size.read } else { 0 };
        if let Some(all) = self.heavy.get_mut(namespace) {
            *all += read;
            return Ok(false);
        }
        if !is_wanted && read == 0 {
            return Ok(false);
        }
        let wanted = if is_wanted { size.wanted } else { 0 };
        let all = self.shares.entry(namespace.clone()).or_default();
        if all.wanted + wanted > MAX_SHARE || all.read + read > MAX_SHARE_READ {
            self.leave_out(namespace, read);
            return Ok(false);
        }
        (all.wanted, all.read) = (all.wanted + wanted, all.read + read);
        self.held += wanted;
        if self.held > MAX_HELD { Err(Stop::Full) } else { Ok(is_wanted) }
    }

    /// Marks the namespace as heavy, and drops its objects. `read` bytes more have been read of it.
    fn leave_out(&mut self, namespace: &Text, read: usize) {
        let share = self.shares.remove(namespace).unwrap_or_default();
        self.held -= share.wanted;
        self.seen.remove(namespace);
        *self.heavy.entry(namespace.clone()).or_default() += share.read + read;
    }

    fn of(&mut self, namespace: &Text) -> &mut NamespaceContents {
        self.seen.entry(namespace.clone()).or_default()
    }

    fn routes(&mut self, namespace: &Text) -> &mut Routes {
        self.of(namespace).routes.get_or_insert_default()
    }
}

impl Kind {
    fn new(resource: &'static str, path: String, keep: &'static Keep) -> Self {
        Self { resource, request: Request::new(path), keep, field: "metadata.namespace" }
    }
}

fn namespace_of(metadata: &ObjectMeta) -> Option<String> {
    metadata.namespace.clone()
}
