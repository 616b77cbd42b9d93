//! Parameters of queries. Each endpoint has a table of those that it takes: requests are read by it, and the `OpenAPI` document is
//! made from it.
//!
//! A parameter that is unknown or given twice is refused: with a misspelt filter the answer would show everything.

use std::convert::Infallible;

use axum::extract::{FromRequestParts, Query};
use axum::http::Uri;
use axum::http::request::Parts;
use jiff::Timestamp;
use procscan_core::names::is_dns_label;
use regex::{Regex, RegexBuilder};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value as Json, json};

use super::cursor;
use super::problem::Problem;
use super::refusal::{invalid, repeated, unknown};
use crate::time_argument;
use crate::wire_names;

/// How many entries one page shows at most.
pub(super) const MAX_LIMIT: usize = 1000;
/// The longest text to look for, in bytes. Names of Pods and of nodes have 253 at most.
const MAX_SOUGHT: usize = 256;

/// What a problem expects where a namespace belongs.
pub(super) const EXPECTED_LABEL: &str =
    "a namespace's name: 1 to 63 of a-z, 0-9 and -, with no - at either end";
/// What a problem expects where any text belongs.
pub(super) const EXPECTED_TEXT: &str = "a text of 1 character or more";
/// What a problem expects where a time belongs.
const EXPECTED_TIME: &str =
    "a duration back from now, such as 24h, or a date and time with its zone, such as 2027-01-01T00:00:00Z";
/// What a problem expects where a number of entries belongs.
const EXPECTED_LIMIT: &str = "a whole number from 1 to 1000";
/// What a problem expects where a cursor belongs.
const EXPECTED_CURSOR: &str = "the `next` of a page with the same `sort`";
/// What a problem expects where a text to look for belongs.
const EXPECTED_SOUGHT: &str = "a text of 1 to 256 bytes";

/// A parameter of a query.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parameter {
    /// Its name.
    pub(super) name: &'static str,
    /// What it takes.
    pub(super) takes: Takes,
    /// What it is for: a sentence for the `OpenAPI` document.
    pub(super) about: &'static str,
}

/// What a parameter takes.
#[derive(Clone, Copy, Debug)]
pub(super) enum Takes {
    Namespace,
    Text,
    /// One of these names, in upper or lower case.
    Name(&'static [&'static str]),
    /// One of these names, with `-` in front for the reverse order.
    Order(&'static [&'static str]),
    /// A text to look for.
    Sought,
    Time,
    Limit,
    Cursor,
}

/// The namespace that an answer is about. A caller with a right in one namespace has to name it.
pub(super) const NAMESPACE: Parameter =
    Parameter { name: "namespace", takes: Takes::Namespace, about: "Only what belongs to this namespace." };
/// How many entries a page has.
pub(super) const LIMIT: Parameter =
    Parameter { name: "limit", takes: Takes::Limit, about: "How many entries the page has at most." };
/// Where a page begins.
pub(super) const CURSOR: Parameter =
    Parameter { name: "cursor", takes: Takes::Cursor, about: "The `next` of the page before." };

/// A parameter that takes any text.
pub(super) const fn text(name: &'static str, about: &'static str) -> Parameter {
    Parameter { name, takes: Takes::Text, about }
}

/// A parameter that takes one of `names`.
pub(super) const fn name(
    name: &'static str,
    names: &'static [&'static str],
    about: &'static str,
) -> Parameter {
    Parameter { name, takes: Takes::Name(names), about }
}

/// A parameter that takes a point in time.
pub(super) const fn time(name: &'static str, about: &'static str) -> Parameter {
    Parameter { name, takes: Takes::Time, about }
}

/// The parameter `q`.
pub(super) const fn sought(about: &'static str) -> Parameter {
    Parameter { name: "q", takes: Takes::Sought, about }
}

/// The parameter `sort`: one of `orders`. Without it, an endpoint has an order of its own.
pub(super) const fn sort(orders: &'static [&'static str]) -> Parameter {
    Parameter {
        name: "sort",
        takes: Takes::Order(orders),
        about: "The order of the entries; with `-` in front, the reverse order.",
    }
}

/// A value that a request has given.
#[derive(Clone, Debug)]
enum Value {
    Text(String),
    Name(&'static str),
    Order(Order),
    Time(Timestamp),
    Number(usize),
}

/// The order of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Order {
    /// By which value.
    pub(super) by: &'static str,
    /// The largest value first.
    pub(super) is_descending: bool,
}

impl Order {
    /// From the form that requests have: `opened` or `-opened`.
    pub(super) const fn of(by: &'static str, is_descending: bool) -> Self {
        Self { by, is_descending }
    }
}

impl Parameter {
    /// What a problem expects.
    fn expected(&self) -> String {
        match self.takes {
            Takes::Namespace => EXPECTED_LABEL.to_owned(),
            Takes::Text => EXPECTED_TEXT.to_owned(),
            Takes::Name(names) => format!("one of {}", names.join(", ")),
            Takes::Order(orders) => format!("one of {}, maybe with - in front", orders.join(", ")),
            Takes::Sought => EXPECTED_SOUGHT.to_owned(),
            Takes::Time => EXPECTED_TIME.to_owned(),
            Takes::Limit => EXPECTED_LIMIT.to_owned(),
            Takes::Cursor => EXPECTED_CURSOR.to_owned(),
        }
    }

    fn read(&self, given: &str) -> Option<Value> {
        match self.takes {
            Takes::Namespace => is_dns_label(given).then(|| Value::Text(given.to_owned())),
            Takes::Text | Takes::Cursor => (!given.is_empty()).then(|| Value::Text(given.to_owned())),
            Takes::Sought => (1..=MAX_SOUGHT).contains(&given.len()).then(|| Value::Text(given.to_owned())),
            Takes::Name(names) => wire_names::as_written_here(names, given).map(Value::Name),
            Takes::Order(orders) => {
                let (by, is_descending) = given.strip_prefix('-').map_or((given, false), |by| (by, true));
                let by = wire_names::as_written_here(orders, by)?;
                Some(Value::Order(Order { by, is_descending }))
            }
            Takes::Time => time_argument::since(given).ok()?.before(Timestamp::now()).ok().map(Value::Time),
            Takes::Limit => {
                let limit = given.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
                // `+5` is read as a number, and `+` stands for a space in queries.
                limit.filter(|_| given.bytes().all(|byte| byte.is_ascii_digit())).map(Value::Number)
            }
        }
    }

    /// The schema of its values.
    pub(super) fn schema(&self) -> Json {
        match self.takes {
            Takes::Namespace => {
                json!({"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"})
            }
            Takes::Text | Takes::Cursor => json!({"type": "string", "minLength": 1}),
            Takes::Name(names) => json!({"type": "string", "enum": names}),
            Takes::Order(orders) => {
                let both = orders.iter().flat_map(|order| [(*order).to_owned(), format!("-{order}")]);
                json!({"type": "string", "enum": both.collect::<Vec<_>>()})
            }
            Takes::Sought => json!({"type": "string", "minLength": 1, "maxLength": MAX_SOUGHT / 4}),
            Takes::Time => json!({
                "anyOf": [{"type": "string", "format": "date-time"}, {"type": "string", "pattern": "^[1-9][0-9]{0,3}[smhd]$"}],
            }),
            Takes::Limit => json!({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT}),
        }
    }
}

/// The names and values of a query, in their order, decoded.
pub(super) struct Pairs(pub(super) Vec<(String, String)>);

impl Pairs {
    pub(super) fn of(uri: &Uri) -> Self {
        // Any query string can be read as a list of names and values.
        Self(Query::try_from_uri(uri).map(|Query(query)| query).unwrap_or_default())
    }
}

impl<S: Sync> FromRequestParts<S> for Pairs {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Self::of(&parts.uri))
    }
}

/// A query without parameters, for endpoints that take none.
pub(super) struct NoParameters;

impl<S: Sync> FromRequestParts<S> for NoParameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Given::of(Pairs::of(&parts.uri), &[]).map(|_| Self)
    }
}

/// What a request has given for the parameters of its endpoint.
#[derive(Clone, Debug, Default)]
pub(super) struct Given(Vec<(&'static str, Value)>);

impl Given {
    /// Reads a query by the `table` of its endpoint.
    pub(super) fn of(Pairs(query): Pairs, table: &'static [Parameter]) -> Result<Self, Problem> {
        let mut given = Self::default();
        for (name, value) in query {
            let Some(parameter) = table.iter().find(|parameter| parameter.name == name) else {
                let names: Vec<&str> = table.iter().map(|parameter| parameter.name).collect();
                let expected = if names.is_empty() { "no parameters".to_owned() } else { names.join(", ") };
                return Err(unknown(&name, &value, &expected));
            };
            if given.value(parameter.name).is_some() {
                return Err(repeated(&name, &value, &parameter.expected()));
            }
            let read = parameter.read(&value).ok_or_else(|| invalid(&name, &value, &parameter.expected()))?;
            given.0.push((parameter.name, read));
        }
        Ok(given)
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// The text that was given for `name`.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        match self.value(name)? {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    /// The name that was given for `name`, as the table has it.
    pub(super) fn name(&self, name: &str) -> Option<&'static str> {
        match self.value(name)? {
            Value::Name(name) => Some(name),
            _ => None,
        }
    }

    /// The time that was given for `name`.
    pub(super) fn time(&self, name: &str) -> Option<Timestamp> {
        match self.value(name)? {
            Value::Time(time) => Some(*time),
            _ => None,
        }
    }

    /// The text to look for, as a regex: it compares without regard to case in time that grows with the text only, whatever is
    /// sought in it.
    pub(super) fn sought(&self) -> Option<Regex> {
        let text = self.text("q")?;
        RegexBuilder::new(&regex::escape(&text)).case_insensitive(true).build().ok()
    }

    /// The order of the list; `default` without a `sort`.
    pub(super) fn order(&self, default: Order) -> Order {
        match self.value("sort") {
            Some(Value::Order(order)) => *order,
            _ => default,
        }
    }

    /// How many entries a page has at most; `default` without a `limit`.
    pub(super) fn limit(&self, default: usize) -> usize {
        match self.value("limit") {
            Some(Value::Number(limit)) => *limit,
            _ => default,
        }
    }

    /// The place of the last entry of the page before, if `is_one` holds for it.
    pub(super) fn cursor<C: Serialize + DeserializeOwned>(
        &self,
        is_one: impl Fn(&C) -> bool,
    ) -> Result<Option<C>, Problem> {
        let Some(given) = self.text("cursor") else { return Ok(None) };
        let place = cursor::read(&given).filter(is_one);
        place.map(Some).ok_or_else(|| invalid("cursor", &given, EXPECTED_CURSOR))
    }
}
