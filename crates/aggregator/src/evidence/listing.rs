//! Lists what one namespace holds: in small pages, trimmed while they are read, and never more than a bound.
//!
//! A tenant makes as many objects as it likes, and puts up to 1.5 MB of its own into each. Of an answer only the fields that matter are
//! held, so the size of the rest costs no memory. What is beyond a bound is not guessed: the whole look fails with
//! [`RefusalKind::TooMuch`] and a text that names the bound.

use kube::api::ListParams;
use kube::core::{ListMeta, Request};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::kubernetes::{Ask, Cluster, Keep, Limit, Refusal, RefusalKind};

/// How many objects of one kind are looked at in one namespace.
pub(super) const MAX_OBJECTS: usize = 5000;
/// How many objects one page may hold, while it is not known how large they are.
pub(super) const FIRST_PAGE: u32 = 100;
/// The same where they are of a usual size.
pub(super) const PAGE: u32 = 500;
/// Up to so many bytes an object is of a usual size: 500 of them are an answer of 20 MB, which the API server holds whole.
pub(super) const USUAL: usize = 40 << 10;
/// How many bytes of one kind are read in one namespace, however few of them are wanted: 2,000 Services of 250 KiB.
const MAX_READ: usize = 512 << 20;
/// How many bytes of one kind are held in one namespace: 5,000 Pods with labels of the usual kind take 5 MB.
const MAX_KEPT: usize = 8 << 20;
/// The same for one page.
pub(super) const MAX_PAGE: usize = 2 << 20;
/// From so many bytes on a namespace is large, and only one such namespace is held at a time.
const LARGE: usize = 1 << 20;

/// One look at one namespace.
pub(super) struct Look<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) namespace: &'a str,
    /// Has one permit, for all looks together: who has it may hold a large namespace.
    large: &'a Semaphore,
    permit: Option<SemaphorePermit<'a>>,
    /// How many bytes are held.
    kept: usize,
}

/// A page of a list. An answer without `items` is none.
#[derive(Deserialize)]
#[serde(bound = "K: DeserializeOwned")]
pub(super) struct Page<K> {
    #[serde(default)]
    pub(super) metadata: ListMeta,
    #[serde(deserialize_with = "items")]
    pub(super) items: Vec<K>,
}

/// An empty list may be written as `null`.
fn items<'de, D: Deserializer<'de>, K: DeserializeOwned>(deserializer: D) -> Result<Vec<K>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl<'a> Look<'a> {
    pub(super) fn new(cluster: &'a Cluster, namespace: &'a str, large: &'a Semaphore) -> Self {
        Self { cluster, namespace, large, permit: None, kept: 0 }
    }

    pub(super) fn ask(&self, verb: &'static str, resource: &'a str) -> Ask<'a> {
        Ask { verb, resource, namespace: Some(self.namespace) }
    }

    /// All objects of a kind, page by page, as of one moment.
    pub(super) async fn list<K: Resource + DeserializeOwned>(
        &mut self,
        api: &Api<K>,
        resource: &'a str,
        keep: &'static Keep,
        mut take_in: impl FnMut(K),
    ) -> Result<(), Refusal> {
        let request = Request::new(api.resource_url());
        let mut params = ListParams::default().limit(FIRST_PAGE);
        let (mut objects, mut read, mut kept) = (0_usize, 0_usize, 0_usize);
        loop {
            let limit = Limit { read: MAX_READ - read, kept: MAX_PAGE.min(MAX_KEPT - kept) };
            let ask = self.ask("list", resource);
            let answer = self.cluster.read_in_turn(ask, request.list(&params), keep, limit).await?;
            let Page { metadata, items }: Page<K> = answer.value;
            let more = usize::try_from(metadata.remaining_item_count.unwrap_or(0)).unwrap_or(0);
            objects += items.len();
            if objects.saturating_add(more) > MAX_OBJECTS {
                return Err(self.too_much(resource, &format!("there are more than {MAX_OBJECTS}")));
            }
            let is_usual = answer.read / USUAL <= items.len();
            (read, kept) = (read + answer.read, kept + answer.kept);
            items.into_iter().for_each(&mut take_in);
            self.hold(answer.kept).await;
            let Some(token) = metadata.continue_.filter(|token| !token.is_empty()) else { return Ok(()) };
            params = params.continue_token(&token).limit(if is_usual { PAGE } else { FIRST_PAGE });
        }
    }

    /// So many bytes more are held. Waits where another namespace is large, too.
    async fn hold(&mut self, bytes: usize) {
        self.kept += bytes;
        if self.kept > LARGE && self.permit.is_none() {
            // It is never closed.
            self.permit = self.large.acquire().await.ok();
        }
    }

    fn too_much(&self, resource: &'a str, what: &str) -> Refusal {
        let ask = self.ask("list", resource);
        Refusal {
            kind: RefusalKind::TooMuch,
            subject: ask.subject(),
            text: format!("{ask}: {what}, which is more than is looked at in one namespace"),
        }
    }
}
