//! Notifications: to the tenants, in their own namespaces, and a summary to the administrators.
//!
//! Shaped by what the Sealos desktop really does (`labring/sealos`): it lists Notifications of the user's current namespace only,
//! shows `title` and `message` (English by convention) or `i18ns.zh`, sorts by `timestamp` (seconds), and marks one as read by
//! *replacing all labels*. So ours are recognised by name and annotations, and their content depends on the incident only,
//! never on the round: writing one again would mark it unread.

mod kind;
mod settings;

use serde::Serialize;
use serde_json::{Value, json};

pub use self::kind::KIND;
pub use self::settings::{Message, Texts};
use super::template::Template;
use super::{Draft, Drafts, Metadata, Object, Settings, WritePolicy};
use crate::hash::stable_hash;
use crate::names::{App, readable};
use crate::plan::{Notice, NoticePhase, OtherApps, Plan, Summary};

/// The sender. The desktop gives `Debt-System` and `Desktop-Alert` special meanings, and ours none.
const FROM: &str = "ProcScan";

/// The name of the administrators' summary.
pub const SUMMARY_NAME: &str = "procscan-notification";

/// The annotation with the time of the change that the message reports, in RFC 3339.
pub const CHANGE_ANNOTATION: &str = "procscan-aggregator/incident";

/// The annotation that says which App it is about.
pub(crate) const APP: &str = "procscan-aggregator/app";

/// The label by which the desktop knows what has been read.
pub(crate) const IS_READ: &str = "isRead";

/// The placeholders of texts to tenants.
///
/// `also_closes` is a whole sentence, in the language of the text, that names the other Apps which are closed with this
/// one. It is empty if there are none, and is appended to a message without a place for it.
pub const PLACEHOLDERS: &[&str] =
    &["app", "kind", "namespace", "processes", "contact", "appeal", "until", ALSO_CLOSES];

const ALSO_CLOSES: &str = "also_closes";

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    title: String,
    message: String,
    /// Seconds since the epoch.
    timestamp: i64,
    from: &'static str,
    importance: &'static str,
    desktop_popup: bool,
    i18ns: I18ns,
}

#[derive(Serialize)]
struct I18ns {
    #[serde(skip_serializing_if = "Option::is_none")]
    en: Option<Translation>,
    zh: Translation,
}

#[derive(Serialize)]
struct Translation {
    title: String,
    message: String,
    from: &'static str,
}

/// Drafts the tenants' Notifications: one for each notice.
fn draft<'a>(plan: &'a Plan, settings: &'a Settings) -> Drafts<'a> {
    let draft = move |notice: &'a Notice| {
        let upkeep = match notice.phase {
            NoticePhase::Recovered => WritePolicy::MarkRead,
            _ if notice.inherited => WritePolicy::AlreadySent,
            phase => WritePolicy::SendOnce { of_block: phase == NoticePhase::Blocked },
        };
        let make = move |notice: &&Notice| object(notice, &settings.notification, upkeep);
        Draft::new(KIND, &*notice.app.namespace, name(&notice.app), upkeep, notice, make)
    };
    Box::new(plan.notices.iter().map(AsRef::as_ref).map(draft))
}

fn object(notice: &Notice, texts: &Texts, upkeep: WritePolicy) -> Object {
    let processes: Vec<String> = notice.processes.iter().map(|process| printable(process, 64)).collect();
    let processes = processes.join(", ");
    let (message, until) = match notice.phase {
        NoticePhase::Grace { until } => (&texts.grace, until.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()),
        NoticePhase::Blocked | NoticePhase::Recovered => (&texts.blocked, String::new()),
    };
    let app = printable(&notice.app.name, 128);
    let kind = printable(&notice.app.kind, 32);
    let [also_en, also_zh] = also_closes(notice.others.as_deref());
    let (namespace, until) = (&*notice.app.namespace, until.as_str());
    let fill = |template: &Template, also: &str| {
        template.fill(|placeholder| match placeholder {
            "app" => &app,
            "kind" => &kind,
            "namespace" => namespace,
            "processes" => &processes,
            "contact" => &texts.contact,
            "appeal" => &texts.appeal,
            "until" => until,
            ALSO_CLOSES => also,
            _ => "",
        })
    };
    let whole = |template: &Template, also: &str| {
        let text = fill(template, also);
        if template.uses(ALSO_CLOSES) { text } else { text + also }
    };
    let mut metadata = Metadata::new(name(&notice.app), &*notice.app.namespace);
    metadata.labels.insert(IS_READ.to_owned(), (notice.phase == NoticePhase::Recovered).to_string().into());
    metadata.annotations.insert(APP.to_owned(), format!("{kind}/{app}").into());
    metadata.annotations.insert(CHANGE_ANNOTATION.to_owned(), notice.sent_at.to_string().into());
    Object {
        kind: KIND,
        metadata,
        spec: json!(Spec {
            title: fill(&message.title, &also_en),
            message: whole(&message.message, &also_en),
            timestamp: notice.sent_at.as_second(),
            from: FROM,
            importance: "High",
            desktop_popup: true,
            i18ns: I18ns {
                en: None,
                zh: Translation {
                    title: fill(&message.title_zh, &also_zh),
                    message: whole(&message.message_zh, &also_zh),
                    from: FROM
                }
            },
        }),
        write_policy: upkeep,
    }
}

/// The sentence that names the other Apps which are closed with one, in English and in Chinese; empty texts if there
/// are none.
fn also_closes(others: Option<&OtherApps>) -> [String; 2] {
    let Some(others) = others else { return [String::new(), String::new()] };
    let names: Vec<String> = others.named.iter().map(|app| printable(&app.name, 128)).collect();
    let (more_en, more_zh) = match others.more {
        0 => (String::new(), String::new()),
        more => (format!(" and {more} more"), format!(" 等另外 {more} 个应用")),
    };
    [
        format!(
            " It shares a Service with other applications, which are closed with it: {}{more_en}.",
            names.join(", ")
        ),
        format!("以下应用与其共用同一个 Service，因此一并被关闭：{}{more_zh}。", names.join("、")),
    ]
}

/// The name of an App's Notification: the same for every incident of it.
///
/// An App's name may be any text where it comes from an agent; the hash keeps names apart that look alike once made valid.
pub fn name(app: &App) -> String {
    let hash = stable_hash(&[&app.kind, &app.name]);
    format!("procscan-{}{hash:016x}", readable(&app.name))
}

/// Drafts the administrators' summary.
fn draft_summary<'a>(plan: &'a Plan, settings: &'a Settings) -> Drafts<'a> {
    let upkeep = if plan.summary.apps() == 0 { WritePolicy::MarkRead } else { WritePolicy::UpdateText };
    let namespace = &settings.notification.summary_namespace;
    let make = move |of: &&Summary| summary(of, namespace, upkeep);
    Box::new(std::iter::once(Draft::new(
        KIND,
        namespace,
        SUMMARY_NAME.to_owned(),
        upkeep,
        &plan.summary,
        make,
    )))
}

fn summary(summary: &Summary, namespace: &str, upkeep: WritePolicy) -> Object {
    let n = summary.apps();
    let zh = format!("检测到 {n} 个不合规应用");
    let mut parts = vec![format!("{} blocked", summary.blocked)];
    if summary.in_grace > 0 {
        parts.push(format!("{} notified and to be blocked", summary.in_grace));
    }
    if summary.held > 0 {
        parts.push(format!("{} held by a brake until approved", summary.held));
    }
    let apps = if n == 1 { "application" } else { "applications" };
    let en = format!("{n} non-compliant {apps} detected: {}", parts.join(", "));
    let mut metadata = Metadata::new(SUMMARY_NAME, namespace);
    metadata.labels.insert(IS_READ.to_owned(), (n == 0).to_string().into());
    metadata.annotations.insert(CHANGE_ANNOTATION.to_owned(), summary.changed.to_string().into());
    Object {
        kind: KIND,
        metadata,
        spec: json!(Spec {
            title: "ProcScan".to_owned(),
            // The administrators asked for the Chinese text; `i18ns` has the English one too.
            message: zh.clone(),
            timestamp: summary.changed.as_second(),
            from: FROM,
            importance: "High",
            desktop_popup: false,
            i18ns: I18ns {
                en: Some(Translation { title: "ProcScan".to_owned(), message: en, from: FROM }),
                zh: Translation { title: "ProcScan".to_owned(), message: zh, from: FROM },
            },
        }),
        write_policy: upkeep,
    }
}

/// Whether two Notifications' `spec`s have the same text, whatever their times.
pub(crate) fn has_same_text(a: &Value, b: &Value) -> bool {
    ["title", "message", "i18ns"].iter().all(|field| a.get(field) == b.get(field))
}

/// A tenant's text for people to read: without control and formatting characters, and not too long.
fn printable(text: &str, max_chars: usize) -> String {
    let clean = |c: char| {
        if c.is_control() || is_format(c) { '\u{fffd}' } else { c }
    };
    let mut shown: String = text.chars().take(max_chars).map(clean).collect();
    if text.chars().nth(max_chars).is_some() {
        shown.push('…');
    }
    shown
}

/// Characters that change how their neighbours are shown: joiners, marks and overrides of direction.
fn is_format(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_valid_stable_and_apart() {
        for odd in ["", "-", "A b", "x\u{202e}y", "日本", "a/../b", &"x".repeat(300), "--a--"] {
            let name = name(&App::new("ns-a", "app", odd));
            assert!(crate::names::is_dns_subdomain(&name) && name.len() <= 63 + 3, "{odd:?}: {name}");
        }
        assert_ne!(name(&App::new("ns-a", "app", "a b")), name(&App::new("ns-a", "app", "a-b")));
        assert_ne!(name(&App::new("ns-a", "app", "a")), name(&App::new("ns-a", "devbox", "a")));
        assert_eq!(
            name(&App::new("ns-a", "app", "web")),
            "procscan-web-".to_owned() + &format!("{:016x}", stable_hash(&["app", "web"]))
        );
    }

    #[test]
    fn the_other_apps_that_are_closed_are_named_in_both_languages_and_escaped() {
        let app = |name: &str| App::new("ns-a", "app", name);
        assert_eq!(also_closes(None), ["", ""]);
        let others = OtherApps { named: vec![app("blog"), app("x\u{202e}y")], more: 0 };
        assert_eq!(
            also_closes(Some(&others)),
            [
                " It shares a Service with other applications, which are closed with it: blog, x\u{fffd}y.",
                "以下应用与其共用同一个 Service，因此一并被关闭：blog、x\u{fffd}y。"
            ]
        );
        let [en, zh] = also_closes(Some(&OtherApps { more: 3, ..others }));
        assert!(
            en.ends_with("x\u{fffd}y and 3 more.") && zh.ends_with("x\u{fffd}y 等另外 3 个应用。"),
            "{en} {zh}"
        );
    }

    #[test]
    fn what_tenants_read_has_no_control_characters() {
        assert_eq!(printable("a\u{1b}[2Jb\u{202e}", 10), "a\u{fffd}[2Jb\u{fffd}");
        assert_eq!(printable("abcdef", 3), "abc…");
    }
}
