//! The objects against the real CRDs, under strict validation.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use common::crd::{contracts, problems};
use procscan_aggregator::config::Config;
use procscan_core::decision::Mode;
use procscan_core::names::{App, Key};
use procscan_core::plan::{Block, Exposure, Notice, NoticePhase, Plan};
use procscan_core::resources::{self, wasm_plugin::existing_shards};
use serde_json::{Value, json};
use std::sync::Arc;

#[test]
fn objects_of_every_configuration_and_plan_are_valid() {
    let Some(crds) = contracts() else { return };
    let now = jiff::Timestamp::UNIX_EPOCH;
    let mut plan = Plan::empty(Mode::Enforce, now);
    for name in ["web", "A b\u{202e}", ""] {
        let app = App::new("ns-a", "app", name);
        plan.blocks.push(Arc::new(Block {
            app: app.clone(),
            since: now,
            grounds: Box::default(),
            left: [Key::new("ns-a", "p", name)].into(),
            exposure: Arc::new(Exposure::plain(["web.ns-a.svc".into()])),
            reason: "".into(),
        }));
        plan.notices.push(Arc::new(Notice {
            app: app.clone(),
            sent_at: now,
            inherited: false,
            phase: NoticePhase::Blocked,
            processes: ["xmrig".into()].into(),
            others: None,
        }));
        let app = App::new("ns-b", "devbox", name);
        plan.notices.push(Arc::new(Notice {
            app,
            sent_at: now,
            inherited: false,
            phase: NoticePhase::Grace { until: now },
            processes: [].into(),
            others: None,
        }));
    }
    plan.summary.blocked = 3;
    plan.summary.held = 1;
    let all = "gateway: {sha256: '0000000000000000000000000000000000000000000000000000000000000000', \
               image_pull_secret: s, image_pull_policy: Always, phase: UNSPECIFIED_PHASE, priority: -1}\n";
    let phases = ["AUTHN", "AUTHZ", "STATS"].map(|phase| format!("gateway: {{phase: {phase}}}\n"));
    for text in phases.iter().map(String::as_str).chain(["", all]) {
        let config = Config::parse(text, "config", [], jiff::Timestamp::UNIX_EPOCH).unwrap();
        let settings = config.settings();
        let objects = resources::render(&plan, &settings, existing_shards(3, false, &settings.gateway));
        assert_eq!(objects.len(), 3 + 6 + 1);
        for object in objects {
            let object: Value = serde_json::to_value(&object).unwrap();
            assert_eq!(problems(&crds, &object), Vec::<String>::new(), "{object:#}");
        }
    }
}

/// The validator refuses objects as the seed describes them, for the same reasons as a real API server. A validator without
/// refusals would prove nothing.
#[test]
fn the_validator_refuses_what_the_real_api_server_refuses() {
    let Some(crds) = contracts() else { return };
    let plugin = json!({
        "apiVersion": "extensions.higress.io/v1alpha1", "kind": "WasmPlugin",
        "metadata": {"name": "procscan-violations", "namespace": "default"},
        "spec": {"violations": [{"pod": "p"}], "phase": "FIRST", "priority": "1"},
    });
    assert_eq!(
        problems(&crds, &plugin),
        [
            "spec.phase: \"FIRST\" is not one of [String(\"UNSPECIFIED_PHASE\"), String(\"AUTHN\"), String(\"AUTHZ\"), String(\"STATS\")]",
            "spec.priority: \"1\" is not of type \"integer\"",
            "spec.violations: unknown field",
        ]
    );
    let notification = json!({
        "apiVersion": "notification.sealos.io/v1", "kind": "Notification",
        "metadata": {"name": "A", "namespace": "default"},
        "spec": {"message": "m", "violations": [], "i18ns": {"zh": {"title": 1}}},
    });
    assert_eq!(
        problems(&crds, &notification),
        [
            "metadata.name: \"A\"",
            "spec: \"timestamp\" is missing",
            "spec: \"title\" is missing",
            "spec.i18ns.zh: \"message\" is missing",
            "spec.i18ns.zh.title: 1 is not of type \"string\"",
            "spec.violations: unknown field",
        ]
    );
}
