//! A plain HTTP client for a server on this machine: one connection for each request.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, anyhow};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Twice as long as the API waits until a command is carried out.
const LIMIT: Duration = Duration::from_secs(20);

/// More than the largest answer about the largest fleet.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// An answer of the server.
#[derive(Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body, whole.
    pub body: String,
}

impl Answer {
    /// The body as JSON, or as a string if it is not JSON.
    pub fn json(&self) -> Value {
        json_or_text(&self.body)
    }
}

pub(super) fn json_or_text(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()))
}

/// One request to a server on this machine.
pub async fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> anyhow::Result<Answer> {
    let mut request = hyper::Request::builder().method(method).uri(path).header("host", address.to_string());
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = request.body(Full::new(Bytes::from(body)))?;
    let answer = async {
        let stream = TcpStream::connect(address).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // It ends with the sender; its errors are the request's.
        tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = Limited::new(body, MOST_BYTES).collect().await.map_err(|error| anyhow!(error))?;
        let header = |(name, value): (&hyper::header::HeaderName, &hyper::header::HeaderValue)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Ok(Answer {
            status: head.status.as_u16(),
            headers: head.headers.iter().map(header).collect(),
            body: String::from_utf8_lossy(&body.to_bytes()).into_owned(),
        })
    };
    let answer: anyhow::Result<Answer> =
        timeout(LIMIT, answer).await.with_context(|| format!("no answer in {LIMIT:?}")).and_then(|done| done);
    answer.with_context(|| format!("{method} http://{address}{path}"))
}
