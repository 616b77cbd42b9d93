//! The WasmPlugin that closes the gateway to blocked Apps.
//!
//! Shaped by what Higress 2.2 really does (`alibaba/higress`): only `matchRules` of a plugin in the controller's own namespace
//! have any effect; a rule that matches nothing makes the whole plugin be rejected, so a sentinel that no request can
//! match is always there; adding or removing a plugin drains the gateway's connections, so the object is permanent;
//! `defaultConfigDisable` keeps `defaultConfig` in the object and away from the gateway, which makes it the place for the
//! list of violations that people want to read there.
//!
//! An object over [`Settings::max_bytes`] continues in `…-1`, `…-2`: an App stays in its shard (a very large one in
//! several), and a shard once made stays, even if it is empty. `form` decides how Services are listed, `read` reads the
//! objects back, `kind` says how they are written.

mod form;
mod kind;
mod read;
mod settings;

use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::Serialize;
use serde_json::json;

use self::form::{Form, Part};
pub use self::form::{Surplus, surplus};
pub use self::kind::{KIND, existing_shards};
pub use self::read::{Shards, blocked, existing, has_long_list, shard_index};
pub(crate) use self::read::{is_whole, namespaces};
pub use self::settings::{Gateway, PluginPhase, PullPolicy};
use super::{Draft, Drafts, Metadata, Object, Settings, WritePolicy, shards};
use crate::hash::shard_of;
use crate::names::{AppParts, Text};
use crate::plan::{Block, Exposure, Plan};

/// Always in the rule, so that it always is valid. `.invalid` is reserved (RFC 2606): no Service can have this name.
pub const SENTINEL: &str = "procscan-sentinel.invalid";

/// The most shards. 20,000 Apps with the longest names take a few dozen.
const MAX_SHARDS: usize = 1024;
/// How many parts of the largest size have room in one shard.
const PARTS_PER_SHARD: usize = 16;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec<'a> {
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_pull_secret: Option<&'a str>,
    image_pull_policy: PullPolicy,
    phase: PluginPhase,
    priority: i32,
    fail_strategy: &'static str,
    default_config: DefaultConfig<'a>,
    default_config_disable: bool,
    match_rules: &'a [MatchRule<'a>],
}

#[derive(Serialize)]
struct DefaultConfig<'a> {
    violations: Vec<InertViolation<'a>>,
    /// How many more there are than fit.
    #[serde(skip_serializing_if = "is_zero")]
    omitted: usize,
}

/// One entry of the list that people read in the object.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct InertViolation<'a> {
    pod: &'a str,
    namespace: &'a str,
    process: &'a str,
    #[serde(rename = "type")]
    kind: &'a str,
    name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct MatchRule<'a> {
    config: RequestBlock<'a>,
    config_disable: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ingress: Vec<&'a str>,
    service: Vec<String>,
}

/// The configuration of Higress's `request-block`.
#[derive(Serialize)]
struct RequestBlock<'a> {
    /// Substrings of the path: `/` is in every one.
    block_urls: [&'static str; 1],
    blocked_code: u16,
    blocked_message: &'a str,
    case_sensitive: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// Drafts the `WasmPlugins`: at least one, and at least as many as there are.
fn draft<'a>(plan: &'a Plan, settings: &'a Settings, existing: Shards) -> Drafts<'a> {
    let gateway = &settings.gateway;
    let form = Form::of(plan, gateway, existing);
    let max_bytes = settings.max_bytes;
    let room = max_bytes.saturating_sub(size(&object(0, &[], form, gateway, max_bytes)));
    let parts: Vec<Part> = form
        .blocks(plan, gateway)
        .iter()
        .flat_map(|block| Part::of(block, form, gateway, room / PARTS_PER_SHARD))
        .collect();
    let needs: Vec<(u64, usize)> =
        parts.iter().map(|part| (part.hash, form.bytes(&part.block, gateway))).collect();
    let count = shards::count(&needs, room, existing.count.max(1), MAX_SHARDS);
    let mut shards: Vec<Vec<Arc<Block>>> = vec![Vec::new(); count];
    for part in parts {
        if let Some(shard) = shards.get_mut(shard_of(part.hash, count)) {
            shard.push(part.block);
        }
    }
    let draft = move |(index, blocks)| {
        let make = move |shard: &Shard| object(index, &shard.blocks, form, gateway, max_bytes);
        let shard = Shard { blocks, form };
        Draft::new(KIND, &gateway.namespace, shard_name(index, gateway), WritePolicy::Reconcile, shard, make)
    };
    Box::new(shards.into_iter().enumerate().map(draft))
}

/// What one object is made from.
struct Shard {
    blocks: Vec<Arc<Block>>,
    form: Form,
}

impl Hash for Shard {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.form.hash(hasher);
        for block in &self.blocks {
            // When and why it was blocked is not in the object.
            (&block.app, &block.exposure, block.accused().count()).hash(hasher);
            block.accused().for_each(|key| key.hash(hasher));
        }
    }
}

fn shard_name(index: usize, gateway: &Gateway) -> String {
    if index == 0 { gateway.name.clone() } else { format!("{}-{index}", gateway.name) }
}

/// The rules that block `blocks`.
fn match_rules<'a>(blocks: &'a [Arc<Block>], form: Form, gateway: &'a Gateway) -> Vec<MatchRule<'a>> {
    let hosts = |of: fn(&Exposure) -> &[Text]| -> BTreeSet<String> {
        let services = blocks.iter().flat_map(|block| of(&block.exposure));
        services.map(|service| format!("{service}.{}", gateway.cluster_domain)).collect()
    };
    let ingresses: BTreeSet<&str> = blocks
        .iter()
        .flat_map(|block| block.exposure.ingresses.iter().map(AsRef::as_ref))
        .filter(|_| form == Form::IngressesAndServices)
        .collect();
    let (plain, services) = match form {
        Form::Services => (hosts(|exposure| &exposure.services), BTreeSet::new()),
        Form::IngressesAndServices => {
            (hosts(|exposure| &exposure.otherwise), hosts(|exposure| &exposure.services))
        }
    };
    let rule = |ingress, service| MatchRule {
        config: RequestBlock {
            block_urls: ["/"],
            blocked_code: gateway.status_code,
            blocked_message: &gateway.message,
            case_sensitive: true,
        },
        config_disable: false,
        ingress,
        service,
    };
    let mut rules = vec![rule(Vec::new(), std::iter::once(SENTINEL.to_owned()).chain(plain).collect())];
    // Both lists or no rule: a rule with one of them would match what it should not, one with none stops the whole plugin.
    if !ingresses.is_empty() && !services.is_empty() {
        rules.push(rule(ingresses.into_iter().collect(), services.into_iter().collect()));
    }
    rules
}

/// The entries of the list that people read, in order.
fn violations(blocks: &[Arc<Block>]) -> BTreeSet<InertViolation<'_>> {
    blocks
        .iter()
        .flat_map(|block| {
            let AppParts { namespace, kind, name } = &*block.app;
            // An App of which only the Services are known is in the list too: what is read back has to be whole.
            let nothing = block.accused().next().is_none().then_some(("", ""));
            let accused = block.accused().map(|key| (&*key.pod, &*key.process)).chain(nothing);
            accused.map(move |(pod, process)| InertViolation { pod, namespace, process, kind, name })
        })
        .collect()
}

fn object(index: usize, blocks: &[Arc<Block>], form: Form, gateway: &Gateway, max_bytes: usize) -> Object {
    let match_rules = match_rules(blocks, form, gateway);
    let violations = violations(blocks);
    let name = shard_name(index, gateway);
    let make = |violations: Vec<InertViolation<'_>>, omitted| Object {
        kind: KIND,
        metadata: Metadata::new(name.clone(), gateway.namespace.clone()),
        spec: json!(Spec {
            url: &gateway.url,
            sha256: gateway.sha256.as_deref(),
            image_pull_secret: gateway.image_pull_secret.as_deref(),
            image_pull_policy: gateway.image_pull_policy,
            phase: gateway.phase,
            priority: gateway.priority,
            fail_strategy: "FAIL_OPEN",
            default_config: DefaultConfig { violations, omitted },
            default_config_disable: true,
            match_rules: &match_rules,
        }),
        write_policy: WritePolicy::Reconcile,
    };
    // The list is for people: it gives way to what blocks.
    let all = violations.len();
    let mut room = max_bytes.saturating_sub(size(&make(Vec::new(), all)));
    let fits: Vec<_> = violations
        .into_iter()
        .take_while(|violation| {
            let needed = serde_json::to_string(violation).map_or(usize::MAX, |text| text.len() + 1);
            let fits = needed <= room;
            room = room.saturating_sub(needed);
            fits
        })
        .collect();
    let omitted = all - fits.len();
    make(fits, omitted)
}

/// The object's size as the API server gets it.
fn size(object: &Object) -> usize {
    serde_json::to_vec(object).map_or(usize::MAX, |json| json.len())
}
