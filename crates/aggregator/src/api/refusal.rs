//! Refusals of requests with a mistake. Each names the place of the mistake, the value there, and what is expected.

use axum::http::StatusCode;
use serde_json::json;

use super::problem::Problem;

/// How much of a given value a problem shows, in characters.
const MAX_SHOWN: usize = 200;

/// The refusal of a parameter that is not one of `expected`.
pub(super) fn unknown(parameter: &str, value: &str, expected: &str) -> Problem {
    let parameter = shortened(parameter);
    let detail = format!("unknown parameter {parameter:?}: expected {expected}");
    refused(&parameter, value, expected, detail)
}

/// The refusal of a text at a place in a request: a parameter, a header, a part of the path, or a member of its body.
pub(super) fn invalid(place: &str, value: &str, expected: &str) -> Problem {
    let detail = format!("{place}: invalid value {:?}: expected {expected}", shortened(value));
    refused(place, value, expected, detail)
}

/// The refusal of a parameter that is given a second time.
pub(super) fn repeated(parameter: &str, value: &str, expected: &str) -> Problem {
    let detail = format!("{parameter}: given more than once: expected {expected}, once");
    refused(parameter, value, expected, detail)
}

/// The refusal of a mistake at a place in a request. It names the place, the value there and what is expected.
pub(super) fn refused(place: &str, value: &str, expected: &str, detail: String) -> Problem {
    let more = json!({"parameter": place, "value": shortened(value), "expected": expected});
    Problem::new(StatusCode::BAD_REQUEST, detail).with(&more)
}

/// `text`, cut after [`MAX_SHOWN`] characters.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}
