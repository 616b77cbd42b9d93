//! The list of one scan, encoded once for all requests.

use std::{
    hash::{DefaultHasher, Hasher},
    io::Write,
};

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use flate2::{Compression, write::GzEncoder};

use crate::{
    proc::LeftOut,
    record::{Record, encode},
};

/// The header that counts omitted processes, as three numbers. Without it, the list is complete.
const LEFT_OUT: HeaderName = HeaderName::from_static("procscan-left-out");
/// The header with the namespaces of omitted processes. There a missing record proves no absence.
const LEFT_OUT_NAMESPACES: HeaderName = HeaderName::from_static("procscan-left-out-namespaces");
/// Below this, compression saves no packet.
const WORTH_COMPRESSING: usize = 1024;

#[derive(Debug)]
pub(super) struct Published {
    /// A weak `ETag`, because the same list is sent plain and compressed.
    etag: String,
    plain: Bytes,
    gzip: Option<Bytes>,
    /// The values of the two headers, if the list is not complete.
    left_out: Option<(HeaderValue, HeaderValue)>,
}

impl Published {
    pub(super) fn new(records: &[Record], left_out: &LeftOut) -> Self {
        let plain = encode(records);
        let mut hash = DefaultHasher::new();
        hash.write(&plain);
        // The same records with other omitted processes are another answer.
        let (counts, namespaces) = (left_out.total().to_string(), left_out.namespaces());
        if !left_out.is_empty() {
            hash.write(counts.as_bytes());
            hash.write(namespaces.as_bytes());
        }
        let gzip = (plain.len() > WORTH_COMPRESSING).then(|| compress(&plain)).flatten();
        Self {
            etag: format!("W/\"{:016x}\"", hash.finish()),
            plain: plain.into(),
            gzip: gzip.map(Bytes::from),
            left_out: (!left_out.is_empty())
                .then(|| {
                    Some((HeaderValue::from_str(&counts).ok()?, HeaderValue::from_str(&namespaces).ok()?))
                })
                .flatten(),
        }
    }

    /// Answers a request with these headers: plain, compressed, or with 304.
    pub(super) fn answer(&self, asked: &HeaderMap) -> Response {
        let mut response = self.answer_with_list(asked);
        if let Some((left_out, namespaces)) = &self.left_out {
            response.headers_mut().insert(LEFT_OUT, left_out.clone());
            response.headers_mut().insert(LEFT_OUT_NAMESPACES, namespaces.clone());
        }
        response
    }

    fn answer_with_list(&self, asked: &HeaderMap) -> Response {
        let common = [(header::ETAG, self.etag.as_str()), (header::VARY, "Accept-Encoding")];
        let opaque = self.etag.trim_start_matches("W/");
        if items(asked, header::IF_NONE_MATCH).any(|tag| tag == "*" || tag.trim_start_matches("W/") == opaque)
        {
            return (StatusCode::NOT_MODIFIED, common).into_response();
        }
        let json = [(header::CONTENT_TYPE, "application/json")];
        match &self.gzip {
            Some(gzip) if accepts_gzip(asked) => {
                (common, json, [(header::CONTENT_ENCODING, "gzip")], gzip.clone()).into_response()
            }
            _ => (common, json, self.plain.clone()).into_response(),
        }
    }
}

impl Default for Published {
    fn default() -> Self {
        Self::new(&[], &LeftOut::default())
    }
}

/// `None` if compression fails. Then only the plain form is served. Compression into memory does not fail.
fn compress(plain: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(plain).ok()?;
    encoder.finish().ok()
}

fn accepts_gzip(asked: &HeaderMap) -> bool {
    items(asked, header::ACCEPT_ENCODING).any(|item| {
        let (coding, weight) = item.split_once(';').unwrap_or((item, ""));
        let refused = weight.trim().strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0_f32));
        coding.trim().eq_ignore_ascii_case("gzip") && !refused
    })
}

fn items(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|v| v.split(','))
        .map(str::trim)
}
