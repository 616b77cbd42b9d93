//! What the caller of a request may read.
//!
//! A right in one namespace shows that namespace only, and nothing of what happens elsewhere: no counts, no times, no names. So
//! a request names its namespace, and every list is filtered by it.

use std::sync::Arc;

use axum::http::{HeaderMap, header};

use super::Api;
use super::auth::{Caller, Right};
use super::parameters::{Given, NAMESPACE, Pairs, Parameter};
use super::problem::Problem;

/// A caller that may read.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    caller: Arc<Caller>,
    /// The one namespace that the answer is about; `None` for all.
    namespace: Option<String>,
}

impl Reader {
    /// The one namespace that the answer is about; `None` for all.
    pub(super) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    /// Whether the answer may have what belongs to `namespace`.
    pub(super) fn sees(&self, namespace: &str) -> bool {
        self.namespace().is_none_or(|own| own == namespace)
    }
}

/// How a caller reads: the verb of its right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// A list.
    List,
    /// One object, or what is true of the whole service.
    Get,
}

impl Api {
    /// Authenticates and authorizes a request that reads, and reads its query by the `table` of its endpoint. An endpoint
    /// that takes no namespace answers about all of them.
    pub(super) async fn reader(
        &self,
        headers: &HeaderMap,
        reading: Reading,
        pairs: Pairs,
        table: &'static [Parameter],
    ) -> Result<(Reader, Given), Problem> {
        let caller = self.operators.auth.authenticate(headers).await?;
        let given = Given::of(pairs, table)?;
        let namespace = given.text(NAMESPACE.name);
        let verb = match reading {
            Reading::List => "list",
            Reading::Get => "get",
        };
        self.operators.auth.authorize(&caller, &Right::to_read(verb, namespace.as_deref())).await?;
        Ok((Reader { caller, namespace }, given))
    }

    /// The same for a request without a token where none is needed.
    pub(super) fn anonymous_reader(
        pairs: Pairs,
        table: &'static [Parameter],
    ) -> Result<(Reader, Given), Problem> {
        let given = Given::of(pairs, table)?;
        let namespace = given.text(NAMESPACE.name);
        Ok((Reader { caller: Arc::new(Caller::anonymous()), namespace }, given))
    }

    /// Whether the reader may see whole command lines. While that is not known, it may not.
    pub(super) async fn shows_cmdlines(&self, reader: &Reader) -> bool {
        let right = Right::to_cmdlines(reader.namespace());
        self.operators.auth.may(&reader.caller, &right).await.unwrap_or(false)
    }

    /// Whether the caller may read what is true of all namespaces. A caller that has not authenticated, or can't be at the
    /// moment, may not.
    pub(super) async fn may_read_all(&self, headers: &HeaderMap) -> bool {
        let auth = &self.operators.auth;
        if auth.needs_token() && !headers.contains_key(header::AUTHORIZATION) {
            return false;
        }
        let Ok(caller) = auth.authenticate(headers).await else { return false };
        auth.may(&caller, &Right::to_read("get", None)).await.unwrap_or(false)
    }
}
