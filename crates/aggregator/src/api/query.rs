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
/// How much of a given value is repeated in a problem, in characters.
const MAX_REPEATED: usize = 200;

/// What is said where a namespace is expected.
pub(super) const EXPECTED_LABEL: &str =
    "a namespace's name: 1 to 63 of a-z, 0-9 and -, with no - at either end";
/// What is said where any text is expected.
pub(super) const EXPECTED_TEXT: &str = "a text of 1 character or more";
/// What is said where a time is expected.
pub(super) use crate::config::values::A_TIME as TIME;
/// What is said where a number of entries is expected.
pub(super) const EXPECTED_LIMIT: &str = "a whole number from 1 to 1000";
/// What is said where a cursor is expected.
pub(super) const EXPECTED_CURSOR: &str = "the next of an answer";

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
            Some((parameter, value)) => {
                let parameter = repeated(parameter);
                let detail = format!("there is no parameter {parameter:?} here");
                Err(refused(&parameter, value, "no parameters", detail))
            }
        }
    }
}

/// Reads `value` into `place`. `allowed` says what `read` takes.
pub(super) fn set<T>(
    place: &mut Option<T>,
    parameter: &str,
    value: &str,
    allowed: &str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<(), Problem> {
    if place.is_some() {
        return Err(refused(parameter, value, allowed, format!("{parameter} is given more than once")));
    }
    *place = read(value);
    if place.is_none() {
        let detail = format!("{parameter}: {:?} is not {allowed}", repeated(value));
        return Err(refused(parameter, value, allowed, detail));
    }
    Ok(())
}

/// Reads one of `words`, in upper or lower case.
pub(super) fn set_word(
    place: &mut Option<&'static str>,
    parameter: &str,
    value: &str,
    words: &'static [&'static str],
) -> Result<(), Problem> {
    set(place, parameter, value, &format!("one of {}", words.join(", ")), |said| {
        wire_names::as_spelt_here(words, said)
    })
}

/// The refusal of a parameter that `allowed` does not list.
pub(super) fn unknown(parameter: &str, value: &str, allowed: &str) -> Problem {
    let parameter = repeated(parameter);
    let detail = format!("there is no parameter {parameter:?}; there are {allowed}");
    refused(&parameter, value, allowed, detail)
}

/// The refusal of a mistake at a place in a request: a parameter or a member of its body. It names the value there and
/// what is allowed.
pub(super) fn refused(place: &str, value: &str, allowed: &str, detail: String) -> Problem {
    let more = json!({"parameter": place, "value": repeated(value), "allowed": allowed});
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

/// `text`, cut after [`MAX_REPEATED`] characters.
pub(super) fn repeated(text: &str) -> String {
    text.chars().take(MAX_REPEATED).collect()
}
