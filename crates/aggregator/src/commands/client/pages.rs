//! Lists come in pages: requests one after the other and joins them.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde_json::{Map, Value};

use super::{Client, ClientError, Endpoint, MAX_BODY};

impl Client {
    /// Reads the list `name` at `endpoint` as a whole, or its first `most` entries. Members beside the lists are those of the
    /// last page.
    pub(in crate::commands) async fn list(
        &self,
        endpoint: &Endpoint,
        name: &str,
        most: Option<usize>,
    ) -> Result<Bytes, ClientError> {
        let mut body = self.get(&endpoint.clone().with("limit", most)).await?;
        // If this is no page, the caller fails to parse it.
        let Ok(mut whole) = serde_json::from_slice::<Map<String, Value>>(&body) else { return Ok(body) };
        let Some(mut next) = next(&mut whole) else { return Ok(body) };
        let (mut size, mut seen) = (body.len(), BTreeSet::new());
        loop {
            let count = whole.get(name).and_then(Value::as_array).map_or(0, Vec::len);
            let left = most.map(|most| most.saturating_sub(count));
            if left == Some(0) {
                break;
            }
            body = self.get(&endpoint.clone().with("limit", left).with("cursor", Some(&next))).await?;
            size += body.len();
            if size > MAX_BODY {
                return Err(self.too_large());
            }
            let mut page: Map<String, Value> = self.read(&body)?;
            let following = self::next(&mut page);
            merge(&mut whole, page);
            if !seen.insert(next) {
                return Err(self.not_understood("its pages have no end"));
            }
            match following {
                Some(following) => next = following,
                None => break,
            }
        }
        let whole = serde_json::to_vec(&whole).map_err(|e| self.not_understood(e))?;
        Ok(whole.into())
    }
}

/// Takes the cursor of the next page out of a page.
fn next(page: &mut Map<String, Value>) -> Option<String> {
    page.remove("next")?.as_str().map(str::to_owned)
}

fn merge(whole: &mut Map<String, Value>, page: Map<String, Value>) {
    for (name, value) in page {
        match (whole.get_mut(&name), value) {
            (Some(Value::Array(before)), Value::Array(more)) => before.extend(more),
            (_, value) => _ = whole.insert(name, value),
        }
    }
}
