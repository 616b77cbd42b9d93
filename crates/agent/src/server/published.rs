//! One scan's list, encoded once for all who ask.

use std::{
    hash::{DefaultHasher, Hasher},
    io::Write,
};

use axum::{
    body::Bytes,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
};
use flate2::{Compression, write::GzEncoder};

use crate::record::{Record, encode};

/// Below this, compression saves no packet.
const WORTH_COMPRESSING: usize = 1024;

#[derive(Debug)]
pub(super) struct Published {
    /// Weak, because the same list travels both plain and compressed.
    etag: String,
    plain: Bytes,
    gzip: Option<Bytes>,
}

impl Published {
    pub(super) fn new(records: &[Record]) -> Self {
        let plain = encode(records);
        let mut hash = DefaultHasher::new();
        hash.write(&plain);
        let gzip = (plain.len() > WORTH_COMPRESSING).then(|| compress(&plain)).flatten();
        Self {
            etag: format!("W/\"{:016x}\"", hash.finish()),
            plain: plain.into(),
            gzip: gzip.map(Bytes::from),
        }
    }

    /// Answers a request with these headers: in full, compressed, or that nothing changed.
    pub(super) fn answer(&self, asked: &HeaderMap) -> Response {
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
        Self::new(&[])
    }
}

/// `None` would only mean that memory refused to be written to; the plain form is then served alone.
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
