//! Bodies of requests: JSON that is read after its sender was authorized, so that no other client can make the service wait
//! for one. The refusal of a mistake names its place, as for a query.

use std::convert::Infallible;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderValue, StatusCode, header};
use procscan_core::state::{ExemptionError, ExemptionSpec};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use serde_json::{Value, json};

use super::parameters::{EXPECTED_LABEL, EXPECTED_TEXT};
use super::problem::Problem;
use super::refusal::{invalid, refused};
use super::types;
use crate::config::values;
use crate::reason;

/// The largest body of a request, in bytes: approvals, releases and exemptions are short.
pub(super) const MAX_BODY: usize = 64 << 10;
/// How long a body may take to arrive. An authorized client must not hold its place for ever either.
const READ_TIMEOUT: Duration = Duration::from_secs(10);
/// The place of a mistake in the body as a whole.
const WHOLE_BODY: &str = "body";
/// The expected form of a request's body, for errors.
const EXPECTED_BODY: &str = "an object with its members";
/// The members that are parts of an exemption.
const PARTS: [&str; 4] = ["namespace", "app", "process", "rule"];
/// The expected form of a part of an exemption, for errors.
const EXPECTED_PART: &str = r#"an object: {"exact": TEXT} or {"regex": REGEX}"#;

/// A body of which nothing has been read yet.
pub(super) struct Body(Request);

impl<S: Send + Sync> FromRequest<S> for Body {
    type Rejection = Infallible;

    async fn from_request(request: Request, _: &S) -> Result<Self, Infallible> {
        Ok(Self(request))
    }
}

impl Body {
    /// Reads and parses it. The error names the place of the mistake, the value there and what is expected.
    pub(super) async fn read<T: DeserializeOwned>(self) -> Result<T, Problem> {
        let kind = self.0.headers().get(header::CONTENT_TYPE);
        let kind = kind.map_or("", |kind| kind.to_str().unwrap_or("?"));
        if !is_json(kind) {
            let refusal = invalid("Content-Type", kind, "application/json");
            return Err(refusal.with_status(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let bytes = self.bytes().await?;
        if let Some(refusal) = misplaced_list(&bytes) {
            return Err(refusal);
        }
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
            let expected = format!("a whole body within {}", humantime::format_duration(READ_TIMEOUT));
            let detail = format!("{WHOLE_BODY}: not complete in time: expected {expected}");
            refused(WHOLE_BODY, "", &expected, detail)
                .with_status(StatusCode::REQUEST_TIMEOUT)
                .with_header(header::CONNECTION, HeaderValue::from_static("close"))
        })?;
        read.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let expected = format!("up to {} KiB", MAX_BODY >> 10);
                let detail = format!("{WHOLE_BODY}: too large: expected {expected}");
                refused(WHOLE_BODY, "", &expected, detail).with_status(StatusCode::PAYLOAD_TOO_LARGE)
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

/// The error for a list in the place of an object, because serde would read its items as the values of the members. Besides
/// a body as a whole, the parts of an exemption are objects.
fn misplaced_list(body: &[u8]) -> Option<Problem> {
    let tree: Value = serde_json::from_slice(body).ok()?;
    let (place, list, expected) = match &tree {
        Value::Object(members) => {
            let mut parts = PARTS.iter().filter_map(|name| Some((*name, members.get(*name)?)));
            let (name, list) = parts.find(|(_, value)| value.is_array())?;
            (name, list, EXPECTED_PART)
        }
        Value::Array(_) => (WHOLE_BODY, &tree, EXPECTED_BODY),
        _ => return None,
    };
    let detail = format!("{place}: invalid value {}: expected {expected}", values::shown(list));
    Some(refused(place, &list.to_string(), expected, detail))
}

/// The refusal of a mistake at `path`, which is empty for the whole body.
fn mistake(path: &str, error: &serde_json::Error, body: &[u8]) -> Problem {
    if error.classify() != Category::Data {
        let (line, column, expected) = (error.line(), error.column(), "a JSON object");
        let detail =
            format!("{WHOLE_BODY}: not valid JSON at line {line}, column {column}: expected {expected}");
        return refused(WHOLE_BODY, &String::from_utf8_lossy(body), expected, detail);
    }
    let text = error.to_string();
    let text = text.rsplit_once(" at line ").map_or(&*text, |(text, _)| text);
    let member = |name: &str| match (path, name.trim_matches('`')) {
        ("", name) => name.to_owned(),
        (path, name) => format!("{path}.{name}"),
    };
    if let Some(name) = text.strip_prefix("missing field ") {
        let place = member(name);
        return refused(&place, "", "a value", format!("{place}: missing: expected a value"));
    }
    if let Some(name) = text.strip_prefix("duplicate field ") {
        let place = member(name);
        let detail = format!("{place}: given more than once: expected each member once");
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
        let expected = known.join(", ");
        return refused(place, &given, &expected, format!("unknown member {place:?}: expected {expected}"));
    }
    let expected = match expected {
        "string or map" => "a text",
        "struct Part" => EXPECTED_PART,
        other if other.starts_with("struct ") => EXPECTED_BODY,
        other => values::plain_type(other),
    };
    let shown = value.map_or("nothing".to_owned(), values::shown);
    refused(place, &given, expected, format!("{place}: invalid value {shown}: expected {expected}"))
}

/// The refusal of an exemption that is well-formed and not valid.
pub(super) fn exemption_mistake(error: &ExemptionError, spec: &ExemptionSpec) -> Problem {
    let (place, expected) = match error {
        ExemptionError::Empty => (WHOLE_BODY.to_owned(), "at least one of namespace, app, process and rule"),
        ExemptionError::Either(part) => ((*part).to_owned(), "either exact or regex"),
        ExemptionError::Regex(part, _) => (format!("{part}.regex"), "a regular expression"),
        ExemptionError::Blank(part) => ((*part).to_owned(), EXPECTED_TEXT),
        ExemptionError::Namespace(_) => ("namespace".to_owned(), EXPECTED_LABEL),
        ExemptionError::NoReason => ("reason".to_owned(), reason::ALLOWED),
        ExemptionError::TooFar(_) => ("until".to_owned(), "a time up to ten years ahead, or none for ever"),
    };
    let note = match error {
        ExemptionError::Regex(_, why) => format!(" ({why})"),
        ExemptionError::Namespace(_) => " (a regular expression belongs in `regex`)".to_owned(),
        _ => String::new(),
    };
    let spec = json!(types::ExemptionSpec::from(spec));
    let value = values::at(&spec, &place).unwrap_or(&spec);
    let given = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let detail = format!("{place}: invalid value {}: expected {expected}{note}", values::shown(value));
    refused(&place, &given, expected, detail)
}
