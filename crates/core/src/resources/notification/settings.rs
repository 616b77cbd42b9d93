//! `notification` in the configuration: what tenants and administrators read.

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use super::PLACEHOLDERS;
use crate::resources::template::Template;

/// What tenants and administrators read: the section `notification` of the configuration.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Texts {
    /// The namespace of the administrators' summary.
    pub summary_namespace: String,
    /// The contact that texts name as `{contact}`.
    pub contact: String,
    /// The place for appeals that texts name as `{appeal}`.
    pub appeal: String,
    /// The most Apps whose tenants one round notifies for the first time. Without it: half of the requests that
    /// `kubernetes.requests_per_second` allows in one round. The other half can look up accused Pods.
    pub max_per_round: Option<usize>,
    /// The texts to the tenant of a blocked App. They have no `{until}`, because a block has no known end.
    #[serde(deserialize_with = "blocked")]
    pub blocked: Message,
    /// The texts to the tenant of an App in grace.
    #[serde(deserialize_with = "grace")]
    pub grace: Message,
}

/// A message in both languages.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Message {
    /// The title in English.
    #[schemars(with = "String")]
    pub title: Template,
    /// The text in English.
    #[schemars(with = "String")]
    pub message: Template,
    /// The title in Chinese.
    #[schemars(with = "String")]
    pub title_zh: Template,
    /// The text in Chinese.
    #[schemars(with = "String")]
    pub message_zh: Template,
}

impl Default for Texts {
    fn default() -> Self {
        Self {
            summary_namespace: "default".to_owned(),
            contact: "the platform's support".to_owned(),
            appeal: "the platform's support".to_owned(),
            max_per_round: None,
            blocked: Message::blocked(),
            grace: Message::grace(),
        }
    }
}

impl Message {
    /// The default texts to the tenant of a blocked App.
    fn blocked() -> Self {
        Self::of([
            "Application {app} has been blocked",
            "A forbidden process ({processes}) was found in your application {app}. Its access through the gateway is closed. \
             Stop the process: the access opens again by itself once it has been gone for a while. \
             Questions: {contact}. Appeals: {appeal}.",
            "应用 {app} 已被封禁",
            "在您的应用 {app} 中检测到违规进程（{processes}），其网关访问已被关闭。请停止该进程：进程消失一段时间后访问会自动恢复。\
             咨询：{contact}。申诉：{appeal}。",
        ])
    }

    /// The default texts to the tenant of an App in grace.
    fn grace() -> Self {
        Self::of([
            "Application {app} will be blocked",
            "A forbidden process ({processes}) was found in your application {app}. Unless it is stopped, its access through \
             the gateway will be closed at {until}. Questions: {contact}. Appeals: {appeal}.",
            "应用 {app} 即将被封禁",
            "在您的应用 {app} 中检测到违规进程（{processes}）。如不停止，其网关访问将于 {until} 被关闭。\
             咨询：{contact}。申诉：{appeal}。",
        ])
    }

    fn of(texts: [&str; 4]) -> Self {
        #[allow(clippy::expect_used, reason = "constants that the tests parse")]
        let [title, message, title_zh, message_zh] =
            texts.map(|text| Template::parse(text, PLACEHOLDERS).expect("a valid template"));
        Self { title, message, title_zh, message_zh }
    }

    /// The message that the configuration gives: a text that is not given keeps its default.
    fn given<'de, D: Deserializer<'de>>(self, deserializer: D) -> Result<Self, D::Error> {
        let Given { title, message, title_zh, message_zh } = Given::deserialize(deserializer)?;
        Ok(Self {
            title: title.unwrap_or(self.title),
            message: message.unwrap_or(self.message),
            title_zh: title_zh.unwrap_or(self.title_zh),
            message_zh: message_zh.unwrap_or(self.message_zh),
        })
    }
}

/// The texts of a message that the configuration gives.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Given {
    #[serde(deserialize_with = "template")]
    title: Option<Template>,
    #[serde(deserialize_with = "template")]
    message: Option<Template>,
    #[serde(deserialize_with = "template")]
    title_zh: Option<Template>,
    #[serde(deserialize_with = "template")]
    message_zh: Option<Template>,
}

fn blocked<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Message, D::Error> {
    Message::blocked().given(deserializer)
}

fn grace<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Message, D::Error> {
    Message::grace().given(deserializer)
}

fn template<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Template>, D::Error> {
    let text = String::deserialize(deserializer)?;
    Template::parse(&text, PLACEHOLDERS).map(Some).map_err(serde::de::Error::custom)
}
