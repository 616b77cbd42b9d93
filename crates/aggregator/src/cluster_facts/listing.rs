//! Lists the objects of one namespace: in small pages, trimmed while they arrive, and up to a limit.
//!
//! A tenant makes as many objects as it likes, and can put up to 1.5 MB of its own data into each. Only the requested
//! fields are held, so the rest costs no memory. Nothing is guessed beyond a limit: the whole look-up fails with
//! [`RefusalKind::TooMuch`], and its text names the limit.

use kube::api::ListParams;
use kube::core::{ListMeta, Request};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::kubernetes::{Ask, Cluster, Keep, Limit, Refusal, RefusalKind};

/// How many objects of one kind are read in one namespace.
pub(super) const MAX_OBJECTS: usize = 5000;
/// The size of a page in objects while their size is not known, or is large.
pub(super) const FIRST_PAGE: u32 = 100;
/// The size of a page in objects of a usual size.
pub(super) const PAGE: u32 = 500;
/// The largest usual size of an object in bytes: 500 of them make an answer of 20 MB, all of which the API server
/// holds.
pub(super) const USUAL_PAGE_BYTES: usize = 40 << 10;
/// How many bytes of one kind are read in one namespace, wanted or not: enough for 2,000 Services of 250 KiB.
const MAX_READ: usize = 512 << 20;
/// How many bytes of wanted fields of one kind are held in one namespace: 5,000 Pods with usual labels take 5 MB.
const MAX_WANTED: usize = 8 << 20;
/// How many bytes of wanted fields one page may have.
pub(super) const MAX_PAGE: usize = 2 << 20;
/// From this many bytes on a namespace is large; only one large namespace is held at a time.
const LARGE_PAGE_BYTES: usize = 1 << 20;

/// One look-up of one namespace.
pub(super) struct NamespaceReader<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) namespace: &'a str,
    /// Its only permit is shared by all look-ups: the look-up with the permit may hold a large namespace.
    large: &'a Semaphore,
    permit: Option<SemaphorePermit<'a>>,
    /// How many bytes this look-up holds.
    held: usize,
}

/// A page of a list. An answer without `items` is an error.
#[derive(Deserialize)]
#[serde(bound = "K: DeserializeOwned")]
pub(super) struct Page<K> {
    #[serde(default)]
    pub(super) metadata: ListMeta,
    #[serde(deserialize_with = "items")]
    pub(super) items: Vec<K>,
}

/// Servers may write an empty list as `null`.
fn items<'de, D: Deserializer<'de>, K: DeserializeOwned>(deserializer: D) -> Result<Vec<K>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl<'a> NamespaceReader<'a> {
    pub(super) fn new(cluster: &'a Cluster, namespace: &'a str, large: &'a Semaphore) -> Self {
        Self { cluster, namespace, large, permit: None, held: 0 }
    }

    pub(super) fn ask(&self, verb: &'static str, resource: &'a str) -> Ask<'a> {
        Ask { verb, resource, namespace: Some(self.namespace), name: None }
    }

    /// Lists all objects of a kind, page by page, as of one moment.
    pub(super) async fn list<K: Resource + DeserializeOwned>(
        &mut self,
        api: &Api<K>,
        resource: &'a str,
        keep: &'static Keep,
        mut take_in: impl FnMut(K),
    ) -> Result<(), Refusal> {
        let request = Request::new(api.resource_url());
        let mut params = ListParams::default().limit(FIRST_PAGE);
        let (mut objects, mut read, mut wanted) = (0_usize, 0_usize, 0_usize);
        loop {
            let limit = Limit { read: MAX_READ - read, wanted: MAX_PAGE.min(MAX_WANTED - wanted) };
            let ask = self.ask("list", resource);
            let answer = self.cluster.read_in_turn(ask, request.list(&params), keep, limit).await?;
            let Page { metadata, items }: Page<K> = answer.value;
            let more = usize::try_from(metadata.remaining_item_count.unwrap_or(0)).unwrap_or(0);
            objects += items.len();
            if objects.saturating_add(more) > MAX_OBJECTS {
                return Err(self.too_much(resource, &format!("there are more than {MAX_OBJECTS}")));
            }
            let is_usual = answer.read / USUAL_PAGE_BYTES <= items.len();
            (read, wanted) = (read + answer.read, wanted + answer.wanted);
            items.into_iter().for_each(&mut take_in);
            self.hold(answer.wanted).await;
            let Some(token) = metadata.continue_.filter(|token| !token.is_empty()) else { return Ok(()) };
            params = params.continue_token(&token).limit(if is_usual { PAGE } else { FIRST_PAGE });
        }
    }

    /// Counts `bytes` more as held. Waits while another large namespace is held.
    async fn hold(&mut self, bytes: usize) {
        self.held += bytes;
        if self.held > LARGE_PAGE_BYTES && self.permit.is_none() {
            // The semaphore is never closed.
            self.permit = self.large.acquire().await.ok();
        }
    }

    fn too_much(&self, resource: &'a str, what: &str) -> Refusal {
        let ask = self.ask("list", resource);
        Refusal {
            kind: RefusalKind::TooMuch,
            subject: ask.subject(),
            text: format!("{ask}: {what}, the limit for one namespace"),
        }
    }
}
