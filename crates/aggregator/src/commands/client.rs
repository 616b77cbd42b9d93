//! A client of the HTTP API of a replica, with errors for the operator who has typed the command.
//!
//! Redirects are not followed and proxies are not used, because the token is only for the service that was named.

mod access;
mod pages;
mod tls;

use std::fmt::{Display, Write};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use procscan_core::names::{SUBDOMAIN, is_dns_subdomain};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

pub(super) use self::access::has_cluster;
use self::access::{Place, TOKEN_VARIABLE};
use self::tls::Tls;
use super::CommandError;
use super::printed::{escaped, harmless};
use crate::args::operators::{Format, Service};

/// How long an exchange may take. The API itself waits for 10 s until a command was carried out.
const TIMEOUT: Duration = Duration::from_secs(15);
/// The largest answer, all its pages together: a list of all incidents may be long.
const MAX_BODY: usize = 64 << 20;
/// The longest head of an answer.
const MAX_HEAD: usize = 64 << 10;
/// How much of a wrong name is shown, in characters.
const MAX_NAME: usize = 120;
/// How much of the text of a problem is shown, in characters.
const MAX_DETAIL: usize = 1000;

/// Why there is no answer to show.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    /// The URL, the token or a name is invalid.
    #[error("{place}: {problem}")]
    Usage { place: String, problem: String },
    /// The service does not answer.
    #[error("{url}: {why}")]
    Unreachable { url: String, why: String },
    /// The service refuses the request.
    #[error("{status}: {detail}{}", advice.as_ref().map(|advice| format!("; {advice}")).unwrap_or_default())]
    Refused { status: StatusCode, detail: String, advice: Option<String> },
    /// The answer is not one of the API.
    #[error("{url}: {what}; is the API of procscan-aggregator there, and of this version?")]
    Foreign { url: String, what: String },
}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Usage { .. } => Self::Usage(error.to_string()),
            other => Self::Other(other.into()),
        }
    }
}

impl ClientError {
    /// Adds advice to the refusal with the status `of`.
    pub(super) fn advise(mut self, of: StatusCode, what: &str) -> Self {
        if let Self::Refused { status, advice, .. } = &mut self
            && *status == of
        {
            *advice = Some(what.to_owned());
        }
        self
    }

    /// Adds that the command may have been carried out, where that is not known.
    fn doubted(mut self) -> Self {
        if let Self::Unreachable { why: text, .. } | Self::Foreign { what: text, .. } = &mut self {
            text.push_str("; the command may have been carried out all the same");
        }
        self
    }
}

/// Refuses a name that no object of Kubernetes has: a proxy takes `..` in a path for another path. `place` is the argument.
pub(super) fn check_name(place: &str, name: &str) -> Result<(), ClientError> {
    if is_dns_subdomain(name) {
        return Ok(());
    }
    let shown: String = name.chars().take(MAX_NAME).collect();
    let problem = format!("invalid value {}: expected {SUBDOMAIN}", escaped(&shown));
    Err(ClientError::Usage { place: place.to_owned(), problem })
}

/// A path of the API with its query.
#[derive(Clone)]
pub(super) struct Endpoint(String);

impl Endpoint {
    /// What is at `steps` below `/api/v1`.
    pub(super) fn at(steps: &[&str]) -> Self {
        let mut path = "/api/v1".to_owned();
        for step in steps {
            path.push('/');
            encode(step, &mut path);
        }
        Self(path)
    }

    /// Adds a filter, if there is one.
    pub(super) fn with(mut self, name: &str, value: Option<impl Display>) -> Self {
        if let Some(value) = value {
            self.0.push(if self.0.contains('?') { '&' } else { '?' });
            self.0.push_str(name);
            self.0.push('=');
            encode(&value.to_string(), &mut self.0);
        }
        self
    }
}

/// Adds to the error of a command that it may have been carried out.
fn doubt(method: &Method) -> fn(ClientError) -> ClientError {
    if method == Method::GET { |error| error } else { ClientError::doubted }
}

/// Everything but the unreserved characters of RFC 3986 as `%XX`.
fn encode(text: &str, to: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            to.push(char::from(byte));
        } else {
            let _ = write!(to, "%{byte:02X}");
        }
    }
}

/// What has come of an operator command.
pub(super) enum Outcome<T> {
    /// It was carried out, with this answer.
    Done(T),
    /// It is persisted and will be carried out. The text says when.
    Pending(String),
}

/// Asks one replica. No `Debug`: it would show the token.
pub(super) struct Client {
    /// The given URL, without a slash at its end.
    url: String,
    authority: String,
    /// The path that the API is below, behind a proxy.
    prefix: String,
    token: Option<HeaderValue>,
    /// With a URL of `https`.
    tls: Option<Tls>,
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Client {
    /// For the service that the arguments name, or the environment.
    pub(super) async fn new(service: &Service) -> Result<Self, ClientError> {
        let Place { authority, prefix, is_https } = access::place(service)?;
        let token = access::token(service).await?;
        let host = authority.rsplit_once(':').map_or(&*authority, |(host, _)| host);
        let tls = is_https.then(|| Tls::new(host, service.ca.as_deref())).transpose()?;
        let scheme = if is_https { "https" } else { "http" };
        Ok(Self { url: format!("{scheme}://{authority}{prefix}"), authority, prefix, token, tls })
    }

    /// Reads what is at `endpoint`.
    pub(super) async fn get(&self, endpoint: &Endpoint) -> Result<Bytes, ClientError> {
        Ok(self.ask(Method::GET, endpoint, None).await?.body)
    }

    /// Reads `/readyz`, whether the service is ready or not.
    pub(super) async fn readiness(&self) -> Result<Bytes, ClientError> {
        let answer = self.fetch(Method::GET, &Endpoint("/readyz".to_owned()), None).await?;
        let is_known = answer.status.is_success() || answer.status == StatusCode::SERVICE_UNAVAILABLE;
        if is_known && has_member(&answer.body, "status") {
            return Ok(answer.body);
        }
        Err(self.problem(&answer))
    }

    /// Sends an operator command.
    pub(super) async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        endpoint: &Endpoint,
        request: Option<&(impl Serialize + Sync)>,
    ) -> Result<Outcome<T>, ClientError> {
        let request = request.map(serde_json::to_vec).transpose();
        let request = request.map_err(|e| self.unreachable(format!("the request can't be made: {e}")))?;
        let answer = self.ask(method, endpoint, request).await?;
        if answer.status == StatusCode::ACCEPTED {
            return Ok(Outcome::Pending(text_of(&answer.body, "detail").unwrap_or_default()));
        }
        let body: &[u8] = if answer.body.is_empty() { b"null" } else { &answer.body };
        self.read(body).map(Outcome::Done).map_err(ClientError::doubted)
    }

    /// Parses an answer.
    pub(super) fn read<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        // The JSON parser does not check the bytes of texts that it skips.
        let text = std::str::from_utf8(body).map_err(|e| self.not_understood(e))?;
        serde_json::from_str(text).map_err(|e| self.not_understood(e))
    }

    /// An answer as the document that `--output` asks for; `None` for a table.
    pub(super) fn document(&self, body: &[u8], format: Format) -> Result<Option<String>, ClientError> {
        match format {
            Format::Table => Ok(None),
            Format::Json => {
                self.read::<IgnoredAny>(body)?;
                Ok(Some(harmless(&String::from_utf8_lossy(body))))
            }
            Format::Yaml => {
                let document: serde_json::Value = self.read(body)?;
                serde_saphyr::to_string(&document).map(Some).map_err(|e| self.not_understood(e))
            }
        }
    }

    /// The error for an answer that can't be parsed.
    pub(super) fn not_understood(&self, error: impl Display) -> ClientError {
        self.foreign(format!("the answer is not what was asked for ({})", escaped(&error.to_string())))
    }

    fn too_large(&self) -> ClientError {
        let limit = bytesize::ByteSize(MAX_BODY as u64).display().iec();
        self.foreign(format!("the answer is larger than {limit}"))
    }

    fn foreign(&self, what: String) -> ClientError {
        ClientError::Foreign { url: self.url.clone(), what }
    }

    fn unreachable(&self, why: String) -> ClientError {
        ClientError::Unreachable { url: self.url.clone(), why }
    }

    /// One exchange, up to a good answer.
    async fn ask(
        &self,
        method: Method,
        endpoint: &Endpoint,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, ClientError> {
        let doubt = doubt(&method);
        let answer = self.fetch(method, endpoint, body).await?;
        match answer.status {
            status if status.is_success() => Ok(answer),
            // It may be the answer of a proxy that has passed the command on.
            status if status.is_server_error() => Err(doubt(self.problem(&answer))),
            _ => Err(self.problem(&answer)),
        }
    }

    /// One exchange, whatever its status.
    async fn fetch(
        &self,
        method: Method,
        endpoint: &Endpoint,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, ClientError> {
        let doubt = doubt(&method);
        let exchange = async {
            let stream = self.connect().await?;
            match &self.tls {
                None => self.exchange(stream, method, endpoint, body).await.map_err(doubt),
                Some(tls) => {
                    let stream = tls.connect(stream).await.map_err(|why| self.unreachable(why))?;
                    self.exchange(stream, method, endpoint, body).await.map_err(doubt)
                }
            }
        };
        tokio::time::timeout(TIMEOUT, exchange).await.unwrap_or_else(|_| {
            let limit = humantime::format_duration(TIMEOUT);
            Err(doubt(self.unreachable(format!("no whole answer within {limit}"))))
        })
    }

    async fn connect(&self) -> Result<TcpStream, ClientError> {
        let advice = if has_cluster() {
            "does the service run there? In a cluster: \
             kubectl port-forward -n kube-system service/procscan-aggregator 8090"
        } else {
            "does the service run there?"
        };
        let failed = |what: &str, e: std::io::Error| self.unreachable(format!("{what}: {e}; {advice}"));
        let addresses = tokio::net::lookup_host(&self.authority).await;
        let mut last = None;
        for address in addresses.map_err(|e| failed("the host has no address", e))? {
            match TcpStream::connect(address).await {
                Ok(stream) => return Ok(stream),
                Err(e) => last = Some(e),
            }
        }
        Err(match last {
            Some(e) => failed("no connection", e),
            None => self.unreachable("the host has no address".to_owned()),
        })
    }

    async fn exchange(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        method: Method,
        endpoint: &Endpoint,
        body: Option<Vec<u8>>,
    ) -> Result<Answer, ClientError> {
        let broken = |e: hyper::Error| {
            let cause = std::error::Error::source(&e).map(|cause| format!(" ({cause})")).unwrap_or_default();
            if e.is_parse() {
                self.foreign(format!("the answer is not HTTP: {e}{cause}"))
            } else {
                self.unreachable(format!("the connection broke off: {e}{cause}"))
            }
        };
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MAX_HEAD)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{}{}", self.prefix, endpoint.0))
            .header(header::HOST, &self.authority)
            .header(header::ACCEPT, "application/json")
            .header(header::CONNECTION, "close")
            .header(header::USER_AGENT, concat!("procscan-aggregator/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token);
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|e| self.unreachable(format!("the request can't be made: {e}")))?;
        let (head, incoming) = sender.send_request(request).await.map_err(broken)?.into_parts();
        let body = Limited::new(incoming, MAX_BODY).collect().await.map_err(|e| {
            if e.is::<LengthLimitError>() {
                self.too_large()
            } else {
                self.unreachable(format!("the answer broke off: {e}"))
            }
        })?;
        Ok(Answer { status: head.status, headers: head.headers, body: body.to_bytes() })
    }

    /// The error for an answer without success.
    fn problem(&self, answer: &Answer) -> ClientError {
        let Answer { status, headers, body } = answer;
        let kind = headers.get(header::CONTENT_TYPE).map(HeaderValue::as_bytes);
        let is_problem = kind.is_some_and(|kind| kind.starts_with(b"application/problem+json"));
        let detail = text_of(body, "detail").or_else(|| text_of(body, "title")).filter(|_| is_problem);
        let Some(detail) = detail else {
            return self.foreign(format!("{status} without a reason"));
        };
        let wait = headers.get(header::RETRY_AFTER).and_then(|wait| wait.to_str().ok()?.parse::<u32>().ok());
        let advice = match *status {
            StatusCode::UNAUTHORIZED => Some(format!("give a token by --token-file or {TOKEN_VARIABLE}")),
            // Only where the cluster's RBAC decides, another account may have the right.
            StatusCode::FORBIDDEN if has_member(body, "rule") => Some(
                "ask for that right, or use the token of an account that has it: \
                 kubectl create token NAME -n kube-system"
                    .to_owned(),
            ),
            StatusCode::SERVICE_UNAVAILABLE => Some(match wait {
                Some(wait) => format!("try again in {wait} s; {}/readyz says what is wrong", self.url),
                None => format!("{}/readyz says what is wrong", self.url),
            }),
            _ => None,
        };
        ClientError::Refused { status: *status, detail, advice }
    }
}

/// Whether a JSON body is an object with this member.
fn has_member(body: &[u8], member: &str) -> bool {
    serde_json::from_slice::<serde_json::Value>(body).is_ok_and(|document| document.get(member).is_some())
}

/// One text of a document, on one line, and cut if it is long.
fn text_of(body: &[u8], member: &str) -> Option<String> {
    let document: serde_json::Value = serde_json::from_slice(body).ok()?;
    let text = document.get(member)?.as_str()?;
    let mut shown = escaped(&text.chars().take(MAX_DETAIL).collect::<String>());
    if text.chars().nth(MAX_DETAIL).is_some() {
        shown.push('…');
    }
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_hold_any_text() {
        let endpoint = Endpoint::at(&["incidents", "a/b?c", "approve"])
            .with("namespace", Some("ns-a"))
            .with("name", None::<&str>)
            .with("actor", Some("a&b=日 +"));
        assert_eq!(
            endpoint.0,
            "/api/v1/incidents/a%2Fb%3Fc/approve?namespace=ns-a&actor=a%26b%3D%E6%97%A5%20%2B"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_waited_for_15_s_and_a_command_without_one_may_have_been_carried_out() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let service = Service { url: Some(url.clone()), token_file: None, ca: None };
        let client = Client::new(&service).await.unwrap();
        let start = tokio::time::Instant::now();
        let error = client.get(&Endpoint::at(&["decisions"])).await.unwrap_err();
        assert_eq!(error.to_string(), format!("{url}: no whole answer within 15s"));
        assert_eq!(start.elapsed().as_secs(), 15);
        let outcome = client.send::<()>(Method::PUT, &Endpoint::at(&["enforcement"]), Some(&())).await;
        let error = outcome.err().unwrap().to_string();
        assert_eq!(
            error,
            format!("{url}: no whole answer within 15s; the command may have been carried out all the same")
        );
    }
}
