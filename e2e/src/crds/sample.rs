//! One plan with every field that the aggregator can write.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use procscan_core::decision::Mode;
use procscan_core::names::{App, Key, NodeName};
use procscan_core::plan::{Accusation, Block, Exposure, Notice, NoticePhase, OtherApps, Plan};
use procscan_core::resources::template::Template;
use procscan_core::resources::wasm_plugin::{Gateway, existing_shards};
use procscan_core::resources::{Existing, KINDS, Object, Settings, notification, render};

/// All objects of the plan, in both forms of the list of Services.
pub(super) fn objects() -> anyhow::Result<Vec<Object>> {
    let now = Timestamp::UNIX_EPOCH;
    let app = App::new("ns-a", "app", "web");
    let key = Key::new("ns-a", "web-0", "xmrig");
    let mut exposure = Exposure::plain(["web.ns-a.svc".into()]);
    exposure.ingresses.push("ns-a/web".into());
    let mut plan = Plan::empty(Mode::Enforce, now);
    plan.summary.blocked = 1;
    plan.summary.held = 1;
    plan.blocks.push(Arc::new(Block {
        app: app.clone(),
        since: now,
        grounds: [Accusation {
            key,
            rule: "^xmrig$".into(),
            by_keyword: false,
            node: NodeName::new("sim-0000"),
        }]
        .into(),
        left: Box::default(),
        exposure: Arc::new(exposure),
        reason: "a sample".into(),
    }));
    let until = now + Duration::from_mins(30);
    for phase in [NoticePhase::Blocked, NoticePhase::Grace { until }, NoticePhase::Recovered] {
        let processes = vec!["xmrig".into()];
        let others = OtherApps { named: vec![App::new("ns-a", "app", "shop")], more: 1 };
        let notice = Notice {
            app: app.clone(),
            sent_at: now,
            inherited: false,
            phase,
            processes: processes.into(),
            others: others.non_empty(),
        };
        plan.notices.push(Arc::new(notice));
    }
    let mut settings = settings()?;
    let shard = |has_long_list| existing_shards(1, has_long_list, &settings.gateway);
    let forms = [true, false].map(shard);
    let long = shard(true);
    let mut objects = Vec::new();
    for existing in forms {
        objects.extend(render(&plan, &settings, existing));
    }
    // With more Services than `max_service_entries`, the WasmPlugin names Ingresses too.
    let limit = std::mem::replace(&mut settings.gateway.max_service_entries, 0);
    objects.extend(render(&plan, &settings, long));
    settings.gateway.max_service_entries = limit;
    // A list of violations that was shortened has a field of its own.
    settings.max_bytes = 1;
    objects.extend(render(&plan, &settings, Existing::default()));
    Ok(objects)
}

fn settings() -> anyhow::Result<Settings> {
    let template = |text| Template::parse(text, notification::PLACEHOLDERS).context("the sample's text");
    let message = || -> anyhow::Result<_> {
        Ok(notification::Message {
            title: template("{app}")?,
            message: template("{processes}")?,
            title_zh: template("{app}")?,
            message_zh: template("{processes}")?,
        })
    };
    Ok(Settings {
        kinds: KINDS,
        gateway: Gateway {
            url: "oci://example.invalid/request-block:2.0.0".to_owned(),
            sha256: Some("0".repeat(64)),
            image_pull_secret: Some("pull".to_owned()),
            message: "blocked".to_owned(),
            ..Gateway::default()
        },
        notification: notification::Texts {
            summary_namespace: "default".to_owned(),
            contact: "ops".to_owned(),
            appeal: "ops".to_owned(),
            blocked: message()?,
            grace: message()?,
            ..notification::Texts::default()
        },
        max_bytes: 512 * 1024,
    })
}
