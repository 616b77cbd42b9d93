//! `notification`: what tenants and administrators are told.

use std::time::Duration;

use procscan_core::names::is_dns_label;
use procscan_core::resources::notification::{Message, PLACEHOLDERS, Texts};
use procscan_core::resources::template::Template;
use serde::{Deserialize, Deserializer};

use super::Problems;

/// What tenants and administrators are told.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Notification {
    /// The namespace of the administrators' summary.
    pub summary_namespace: String,
    /// How many tenants are newly told per round; see `per_round` for the default.
    pub max_per_round: Option<usize>,
    /// Whom to ask, for `{contact}`.
    pub contact: String,
    /// Where to appeal, for `{appeal}`.
    pub appeal: String,
    /// To the tenant of a blocked App.
    pub blocked: MessageTexts,
    /// To the tenant of an App that will be blocked.
    pub grace: MessageTexts,
}

impl Default for Notification {
    fn default() -> Self {
        Self {
            summary_namespace: "default".to_owned(),
            max_per_round: None,
            contact: "the platform's support".to_owned(),
            appeal: "the platform's support".to_owned(),
            blocked: MessageTexts::default(),
            grace: MessageTexts::default(),
        }
    }
}

/// A text with placeholders.
#[derive(Clone, Debug)]
pub struct Text(Template);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Template::parse(&text, PLACEHOLDERS).map(Self).map_err(serde::de::Error::custom)
    }
}

/// A message in both languages. What is not given keeps its default.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MessageTexts {
    /// English.
    pub title: Option<Text>,
    /// English.
    pub message: Option<Text>,
    /// Chinese.
    pub title_zh: Option<Text>,
    /// Chinese.
    pub message_zh: Option<Text>,
}

/// The default texts: title, message, and both in Chinese.
type Defaults = [&'static str; 4];

const BLOCKED: Defaults = [
    "Application {app} has been blocked",
    "A forbidden process ({processes}) was found in your application {app}. Its access through the gateway is closed. \
     Stop the process: the access opens again by itself once it has been gone for a while. \
     Questions: {contact}. Appeals: {appeal}.",
    "应用 {app} 已被封禁",
    "在您的应用 {app} 中检测到违规进程（{processes}），其网关访问已被关闭。请停止该进程：进程消失一段时间后访问会自动恢复。\
     咨询：{contact}。申诉：{appeal}。",
];

const GRACE: Defaults = [
    "Application {app} will be blocked",
    "A forbidden process ({processes}) was found in your application {app}. Unless it is stopped, its access through \
     the gateway will be closed at {until}. Questions: {contact}. Appeals: {appeal}.",
    "应用 {app} 即将被封禁",
    "在您的应用 {app} 中检测到违规进程（{processes}）。如不停止，其网关访问将于 {until} 被关闭。\
     咨询：{contact}。申诉：{appeal}。",
];

impl MessageTexts {
    fn or(&self, [title, message, title_zh, message_zh]: Defaults) -> Message {
        #[allow(clippy::expect_used, reason = "constants that the tests parse")]
        let or = |given: &Option<Text>, default| match given {
            Some(Text(template)) => template.clone(),
            None => Template::parse(default, PLACEHOLDERS).expect("a valid template"),
        };
        Message {
            title: or(&self.title, title),
            message: or(&self.message, message),
            title_zh: or(&self.title_zh, title_zh),
            message_zh: or(&self.message_zh, message_zh),
        }
    }
}

impl Notification {
    pub(super) fn check(&self, problems: &mut Problems) {
        problems.require(
            is_dns_label(&self.summary_namespace),
            "notification.summary_namespace",
            format!("{:?}", self.summary_namespace),
            "a Kubernetes name: a-z, 0-9 and -, 63 characters at most",
        );
        for (path, text) in [
            ("notification.blocked.title", &self.blocked.title),
            ("notification.blocked.message", &self.blocked.message),
            ("notification.blocked.title_zh", &self.blocked.title_zh),
            ("notification.blocked.message_zh", &self.blocked.message_zh),
        ] {
            let has_no_end = text.as_ref().is_none_or(|Text(template)| !template.uses("until"));
            problems.require(
                has_no_end,
                path,
                "{until}",
                "the other placeholders: a block has no end that is known",
            );
        }
        if let Some(max) = self.max_per_round {
            problems.require(max >= 1, "notification.max_per_round", max, "1 or more");
        }
    }

    /// How many tenants are newly told per round, at least one. Each costs one paced request to read the object that is
    /// there. By default half of a round's requests are for that, so that the other half is left to look up accused
    /// Pods.
    pub(super) fn per_round(&self, requests_per_second: u32, round: Duration) -> usize {
        self.max_per_round.unwrap_or_else(|| {
            let half = round.saturating_mul(requests_per_second).as_secs() / 2;
            usize::try_from(half).unwrap_or(usize::MAX).max(1)
        })
    }

    pub(super) fn settings(&self) -> Texts {
        Texts {
            summary_namespace: self.summary_namespace.clone(),
            contact: self.contact.clone(),
            appeal: self.appeal.clone(),
            blocked: self.blocked.or(BLOCKED),
            grace: self.grace.or(GRACE),
        }
    }
}
