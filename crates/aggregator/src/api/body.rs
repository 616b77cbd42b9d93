//! Bodies of requests: JSON that is read after its sender has been admitted, so that no other client can make us wait for one. The
//! refusal of a mistake names its place, as for a query.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header};
use jiff::Timestamp;
use procscan_core::state::{ExemptionError, ExemptionSpec, Match};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error as _, Unexpected};
use serde_json::error::Category;
use serde_json::{Value, json};

use super::problem::Problem;
use super::query::{EXPECTED_LABEL, EXPECTED_TEXT, refused, repeated};
use crate::config::values;
use crate::reason;

/// The largest body of a request, in bytes: approvals, releases and exemptions are short.
pub(super) const MAX_BODY: usize = 64 << 10;
/// How long a body may take to come. A client that was admitted must not keep its place for ever either.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// The place that is named for a mistake of the body as a whole.
const WHOLE_BODY: &str = "body";

/// A body of which nothing has been read yet.
pub(super) struct Body(Request);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Infallible;

    async fn from_request(request: Request, _: &S) -> Result<Self, Infallible> {
        Ok(Self(request))
    }
}

impl Body {
    /// Reads and parses it. The error names the place of the mistake, the value there and what is allowed.
    pub(super) async fn read<T: DeserializeOwned>(self) -> Result<T, Problem> {
        let kind = self.0.headers().get(header::CONTENT_TYPE);
        let kind = kind.map_or("", |kind| kind.to_str().unwrap_or("?"));
        if !is_json(kind) {
            let allowed = "application/json";
            let detail = format!("Content-Type: {:?} is not {allowed}", repeated(kind));
            return Err(refused("Content-Type", kind, allowed, detail)
                .with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let bytes = self.bytes().await?;
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let read = serde_path_to_error::deserialize(&mut json);
        let read = read.map_err(|error| {
            let path = error.path().to_string();
            mistake(if path == "." { "" } else { &path }, &error.into_inner(), &bytes)
        })?;
        json.end().map_err(|error| mistake("", &error, &bytes))?;
        Ok(read)
    }

    async fn bytes(self) -> Result<Bytes, Problem> {
        let read = Bytes::from_request(self.0, &());
        let read = tokio::time::timeout(READ_TIMEOUT, read).await.map_err(|_| {
            let limit = humantime::format_duration(READ_TIMEOUT);
            let allowed = format!("a whole body within {limit}");
            refused(
                WHOLE_BODY,
                "",
                &allowed,
                format!("{WHOLE_BODY}: it has not come as a whole within {limit}"),
            )
            .with_status(StatusCode::REQUEST_TIMEOUT)
            .with_header(header::CONNECTION, HeaderValue::from_static("close"))
        })?;
        read.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let allowed = format!("up to {} KiB", MAX_BODY >> 10);
                refused(
                    WHOLE_BODY,
                    "",
                    &allowed,
                    format!("{WHOLE_BODY}: it is too large; allowed is {allowed}"),
                )
                .with_status(StatusCode::PAYLOAD_TOO_LARGE)
            }
            status => Problem::new(status, format!("{WHOLE_BODY}: the connection broke off before its end")),
        })
    }
}

/// Whether a media type is `application/json` or ends with `+json`.
fn is_json(kind: &str) -> bool {
    let kind = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let kind = kind.strip_prefix("application/");
    kind.is_some_and(|kind| kind == "json" || kind.ends_with("+json"))
}

/// The refusal of a mistake at `path`, which is empty for the whole body.
fn mistake(path: &str, error: &serde_json::Error, body: &[u8]) -> Problem {
    if error.classify() != Category::Data {
        let (line, column) = (error.line(), error.column());
        let detail = format!("{WHOLE_BODY}: it is not valid JSON, at line {line}, column {column}");
        return refused(WHOLE_BODY, &String::from_utf8_lossy(body), "a JSON object", detail);
    }
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(&*text, |(text, _)| text);
    let member = |name: &str| match (path, name.trim_matches('`')) {
        ("", name) => name.to_owned(),
        (path, name) => format!("{path}.{name}"),
    };
    if let Some(name) = text.strip_prefix("missing field ") {
        let (place, allowed) = (member(name), "a value: it must be given");
        let detail = format!("{place} is missing, and it must be given");
        return refused(&place, "", allowed, detail);
    }
    if let Some(name) = text.strip_prefix("duplicate field ") {
        let place = member(name);
        let detail = format!("{place}: it is given more than once");
        return refused(&place, "", "each member once", detail);
    }
    let tree: Value = serde_json::from_slice(body).unwrap_or_default();
    let value = if path.is_empty() { Some(&tree) } else { values::at(&tree, path) };
    let given = value.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
    let given = given.unwrap_or_default();
    let (what, expected) = text.split_once(", expected ").unwrap_or((text, "another value"));
    let place = if path.is_empty() { WHOLE_BODY } else { path };
    if what.starts_with("unknown field ") {
        let known: Vec<&str> = expected.split('`').skip(1).step_by(2).collect();
        let allowed = known.join(", ");
        return refused(
            place,
            &given,
            &allowed,
            format!("there is no member {place:?}; there are {allowed}"),
        );
    }
    let allowed = match expected {
        "string or map" => "a text",
        "struct Part" => r#"an object: {"exact": TEXT} or {"regex": REGEX}"#,
        other if other.starts_with("struct ") => "an object with its members",
        other => values::in_words(other),
    };
    let shown = value.map_or("this".to_owned(), values::shown);
    refused(place, &given, allowed, format!("{place}: {shown} is not allowed; allowed is {allowed}"))
}

/// The refusal of an exemption that is well-formed but not valid.
pub(super) fn exemption_mistake(error: &ExemptionError, spec: &ExemptionSpec) -> Problem {
    let (place, allowed) = match error {
        ExemptionError::Empty => (WHOLE_BODY.to_owned(), "at least one of namespace, app, process and rule"),
        ExemptionError::Either(part) => ((*part).to_owned(), "either exact or regex"),
        ExemptionError::Regex(part, _) => (format!("{part}.regex"), "a regular expression"),
        ExemptionError::Blank(part) => ((*part).to_owned(), EXPECTED_TEXT),
        ExemptionError::Namespace(_) => ("namespace".to_owned(), EXPECTED_LABEL),
        ExemptionError::NoReason => ("reason".to_owned(), reason::ALLOWED),
        ExemptionError::TooFar(_) => ("until".to_owned(), "a time up to ten years ahead, or none for ever"),
    };
    let said = json!(spec);
    let value = values::at(&said, &place).unwrap_or(&said);
    let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let detail = error.to_string();
    let detail = if detail.starts_with(&place) { detail } else { format!("{place}: {detail}") };
    refused(&place, &value, allowed, detail)
}

/// A part of an exemption in a body; other members are refused.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Part {
    exact: Option<Short>,
    regex: Option<Short>,
}

impl From<Part> for Match {
    fn from(Part { exact, regex }: Part) -> Self {
        Self { exact: exact.map(String::from), regex: regex.map(String::from) }
    }
}

/// A reason in a body.
#[derive(Debug)]
pub(super) struct Reason(String);

impl From<Reason> for String {
    fn from(Reason(text): Reason) -> Self {
        text
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match reason::mistake(&text) {
            Some(what) => Err(D::Error::invalid_value(Unexpected::Other(&what), &reason::ALLOWED)),
            None => Ok(Self(text)),
        }
    }
}

/// A part of an exemption in a body: a text of up to [`MAX_SHORT`] characters.
#[derive(Debug)]
pub(super) struct Short(String);

/// The same bound as in the CRDs.
const MAX_SHORT: usize = 1024;

impl From<Short> for String {
    fn from(Short(text): Short) -> Self {
        text
    }
}

impl<'de> Deserialize<'de> for Short {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let len = text.chars().count();
        if len > MAX_SHORT {
            let allowed = format!("a text of up to {MAX_SHORT} characters");
            return Err(D::Error::invalid_length(len, &allowed.as_str()));
        }
        Ok(Self(text))
    }
}

/// A time in a body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Time(pub(super) Timestamp);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        values::a_time(deserializer).map(Self)
    }
}
