//! The WasmPlugin that closes the gateway to blocked Apps.
//!
//! Shaped by what Higress 2.2 really does (`alibaba/higress`): only `matchRules` of a plugin in the controller's own namespace
//! have any effect; a rule that matches nothing makes the whole plugin be rejected, so a sentinel that no request can
//! match is always there; adding or removing a plugin drains the gateway's connections, so the object is permanent;
//! `defaultConfigDisable` keeps `defaultConfig` in the object and away from the gateway, which makes it the place for the
//! list of violations that people want to read there.
//!
//! An object over [`Gateway::max_bytes`] continues in `…-1`, `…-2`: an App stays in its shard, and a shard once made stays, empty if
//! need be.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::json;

use super::hash::{shard_of, stable_hash};
use super::{Existing, Metadata, Object, Settings};
use crate::plan::{Block, Plan};

/// Always in the rule, so that it always is valid. `.invalid` is reserved (RFC 2606): no Service can have this name.
pub const SENTINEL: &str = "procscan-sentinel.invalid";

/// What the WasmPlugin looks like, apart from whom it blocks.
#[derive(Clone, Debug)]
pub struct Gateway {
    /// The namespace of the Higress controller; plugins elsewhere are ignored.
    pub namespace: String,
    /// The object's name; further shards get `-1`, `-2`, ….
    pub name: String,
    /// Where the gateway gets Higress's `request-block` from, 2.0.0 or later.
    pub url: String,
    /// Its checksum, if it is to be verified.
    pub sha256: Option<String>,
    /// The Secret to pull it with.
    pub image_pull_secret: Option<String>,
    /// `IfNotPresent` or `Always`.
    pub image_pull_policy: String,
    /// Where in the filter chain: `AUTHN`, `AUTHZ`, `STATS` or `UNSPECIFIED_PHASE`.
    pub phase: String,
    /// The order within the phase; higher comes first.
    pub priority: i32,
    /// The HTTP status that callers of a blocked App get.
    pub status_code: u16,
    /// The body that they get. Sent without a charset, so best ASCII.
    pub message: String,
    /// The cluster's domain, `cluster.local` in most.
    pub cluster_domain: String,
    /// The size of one object, in bytes of JSON, above which another one is made.
    pub max_bytes: usize,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec<'a> {
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image_pull_secret: Option<&'a str>,
    image_pull_policy: &'a str,
    phase: &'a str,
    priority: i32,
    fail_strategy: &'static str,
    default_config: DefaultConfig<'a>,
    default_config_disable: bool,
    match_rules: [MatchRule<'a>; 1],
}

#[derive(Serialize)]
struct DefaultConfig<'a> {
    violations: Vec<InertViolation<'a>>,
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

/// Makes the `WasmPlugins`: at least one, and at least as many as there are.
pub fn render(plan: &Plan, settings: &Settings, existing: Existing) -> Vec<Object> {
    let gateway = &settings.gateway;
    let mut count = existing.wasm_plugins.max(1);
    loop {
        let mut shards: Vec<Vec<&Block>> = vec![Vec::new(); count];
        for block in &plan.blocks {
            let hash = stable_hash(&[&block.app.namespace, &block.app.kind, &block.app.name]);
            if let Some(shard) = shards.get_mut(shard_of(hash, count)) {
                shard.push(block);
            }
        }
        let objects: Vec<Object> =
            shards.iter().enumerate().map(|(index, blocks)| object(index, blocks, gateway)).collect();
        // One App per shard is as small as it gets, whatever the limit says.
        if count > plan.blocks.len() || objects.iter().all(|object| size(object) <= gateway.max_bytes) {
            return objects;
        }
        count += 1;
    }
}

fn object(index: usize, blocks: &[&Block], gateway: &Gateway) -> Object {
    let services: BTreeSet<String> = blocks
        .iter()
        .flat_map(|block| &block.services)
        .map(|service| format!("{service}.{}", gateway.cluster_domain))
        .collect();
    let violations: BTreeSet<InertViolation<'_>> = blocks
        .iter()
        .flat_map(|block| {
            block.accused.iter().map(|key| InertViolation {
                pod: &key.pod,
                namespace: &key.namespace,
                process: &key.process,
                kind: &block.app.kind,
                name: &block.app.name,
            })
        })
        .collect();
    let name = if index == 0 { gateway.name.clone() } else { format!("{}-{index}", gateway.name) };
    let make = |violations: Vec<InertViolation<'_>>| Object {
        api_version: "extensions.higress.io/v1alpha1",
        kind: "WasmPlugin",
        metadata: Metadata::new(name.clone(), gateway.namespace.clone()),
        spec: json!(Spec {
            url: &gateway.url,
            sha256: gateway.sha256.as_deref(),
            image_pull_secret: gateway.image_pull_secret.as_deref(),
            image_pull_policy: &gateway.image_pull_policy,
            phase: &gateway.phase,
            priority: gateway.priority,
            fail_strategy: "FAIL_OPEN",
            default_config: DefaultConfig { violations },
            default_config_disable: true,
            match_rules: [MatchRule {
                config: RequestBlock {
                    block_urls: ["/"],
                    blocked_code: gateway.status_code,
                    blocked_message: &gateway.message,
                    case_sensitive: true,
                },
                config_disable: false,
                service: std::iter::once(SENTINEL.to_owned()).chain(services.iter().cloned()).collect(),
            }],
        }),
    };
    // The list is for people: it gives way to what blocks.
    let mut room = gateway.max_bytes.saturating_sub(size(&make(Vec::new())));
    let fits = violations.into_iter().take_while(|violation| {
        let needed = serde_json::to_string(violation).map_or(usize::MAX, |text| text.len() + 1);
        let fits = needed <= room;
        room = room.saturating_sub(needed);
        fits
    });
    make(fits.collect())
}

/// The object's size as the API server gets it.
fn size(object: &Object) -> usize {
    serde_json::to_vec(object).map_or(usize::MAX, |json| json.len())
}
