//! Parameters of queries. A parameter that is unknown or given twice is refused: with a misspelt filter the answer would
//! show everything.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, Query};
use axum::http::StatusCode;
use axum::http::request::Parts;
use jiff::Timestamp;
use procscan_core::names::is_dns_label;
use serde_json::json;

use super::problem::Problem;
use crate::wire_names;

/// How many entries one page shows at most.
pub(super) const MAX_LIMIT: usize = 1000;
/// How much of a given value a problem shows, in characters.
const MAX_SHOWN: usize = 200;

/// What a problem expects where a namespace belongs.
pub(super) const EXPECTED_LABEL: &str =
    "a namespace's name: 1 to 63 of a-z, 0-9 and -, with no - at either end";
/// What a problem expects where any text belongs.
pub(super) const EXPECTED_TEXT: &str = "a text of 1 character or more";
/// What a problem expects where a time belongs.
pub(super) use crate::config::values::A_TIME as TIME;
/// What a problem expects where a number of entries belongs.
pub(super) const EXPECTED_LIMIT: &str = "a whole number from 1 to 1000";
/// What a problem expects where a cursor belongs.
pub(super) const EXPECTED_CURSOR: &str = "the `next` of a page";

/// The parameters of a query, in their order, decoded.
pub(super) struct Parameters(pub(super) Vec<(String, String)>);

impl<S: Sync> FromRequestParts<S> for Parameters {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        // Any query string can be read as a list of names and values.
        Ok(Self(Query::try_from_uri(&parts.uri).map(|Query(query)| query).unwrap_or_default()))
    }
}

/// A query without parameters, for endpoints that take none.
pub(super) struct NoParameters;

impl<S: Sync> FromRequestParts<S> for NoParameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let Ok(Parameters(given)) = Parameters::from_request_parts(parts, state).await;
        match given.first() {
            None => Ok(Self),
            Some((parameter, value)) => Err(unknown(parameter, value, "no parameters")),
        }
    }
}

/// Reads `value` into `place`. `expected` says what `read` takes.
pub(super) fn set<T>(
    place: &mut Option<T>,
    parameter: &str,
    value: &str,
    expected: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<(), Problem> {
    if place.is_some() {
        let detail = format!("{parameter}: given more than once: expected {expected}, once");
        return Err(refused(parameter, value, expected, detail));
    }
    *place = read(value);
    if place.is_none() {
        return Err(invalid(parameter, value, expected));
    }
    Ok(())
}

/// Reads one of `names`, in upper or lower case.
pub(super) fn set_name(
    place: &mut Option<&'static str>,
    parameter: &str,
    value: &str,
    names: &'static [&'static str],
) -> Result<(), Problem> {
    set(place, parameter, value, &format!("one of {}", names.join(", ")), |given| {
        wire_names::as_written_here(names, given)
    })
}

/// The refusal of a parameter that is not one of `expected`.
pub(super) fn unknown(parameter: &str, value: &str, expected: &str) -> Problem {
    let parameter = shortened(parameter);
    let detail = format!("unknown parameter {parameter:?}: expected {expected}");
    refused(&parameter, value, expected, detail)
}

/// The refusal of a text at a place in a request: a parameter, a header, or a member of its body.
pub(super) fn invalid(place: &str, value: &str, expected: &str) -> Problem {
    let detail = format!("{place}: invalid value {:?}: expected {expected}", shortened(value));
    refused(place, value, expected, detail)
}

/// The refusal of a mistake at a place in a request. It names the place, the value there and what is expected.
pub(super) fn refused(place: &str, value: &str, expected: &str, detail: String) -> Problem {
    let more = json!({"parameter": place, "value": shortened(value), "expected": expected});
    Problem::new(StatusCode::BAD_REQUEST, detail).with(&more)
}

pub(super) fn label(value: &str) -> Option<String> {
    is_dns_label(value).then(|| value.to_owned())
}

pub(super) fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

pub(super) fn time(value: &str) -> Option<Timestamp> {
    value.parse().ok()
}

pub(super) fn limit(value: &str) -> Option<usize> {
    value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit))
}

/// `text`, cut after [`MAX_SHOWN`] characters.
pub(super) fn shortened(text: &str) -> String {
    text.chars().take(MAX_SHOWN).collect()
}
