//! Reads large answers: trims them while they arrive, and fails beyond a limit.

use std::sync::atomic::{AtomicUsize, Ordering};

use http_body_util::BodyExt;
use hyper::{Request, Response};
use kube::client::Body;
use serde::de::DeserializeOwned;

use super::trim::{Keep, Size, Trim};
use super::{Ask, Cluster, Refusal, RefusalKind};

/// How many bytes of a refusal are read. The API server's refusals are shorter.
const MAX_STATUS_BYTES: usize = 64 << 10;

/// How large an answer may be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limit {
    /// How many bytes may arrive.
    pub(crate) read: usize,
    /// How many bytes of the wanted fields may be held.
    pub(crate) wanted: usize,
}

/// An answer and its size.
#[derive(Debug)]
pub(crate) struct Answer<T> {
    /// The wanted fields.
    pub(crate) value: T,
    /// How many bytes arrived.
    pub(crate) read: usize,
    /// How many bytes the wanted fields had.
    pub(crate) wanted: usize,
    /// The size of each item of the answer's list, in their order.
    pub(crate) items: Vec<Size>,
}

impl Cluster {
    /// Sends `request` at the pace, and reads the fields in `keep` of the answer. Fails with [`RefusalKind::TooMuch`]
    /// beyond the limit.
    pub(crate) async fn read_in_turn<T: DeserializeOwned>(
        &self,
        ask: Ask<'_>,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
        keep: &'static Keep,
        limit: Limit,
    ) -> Result<Answer<T>, Refusal> {
        self.read_counted(ask, request, keep, limit, &AtomicUsize::new(0)).await
    }

    /// The same, and adds to `count` how many bytes arrived, whether or not they became an answer.
    pub(crate) async fn read_counted<T: DeserializeOwned>(
        &self,
        ask: Ask<'_>,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
        keep: &'static Keep,
        limit: Limit,
        count: &AtomicUsize,
    ) -> Result<Answer<T>, Refusal> {
        let too_much = ask.clone();
        let read = async {
            let request = request.map_err(kube::Error::BuildRequest)?;
            let response = self.client.send(request.map(Body::from)).await?;
            read(response, keep, limit, count).await
        };
        let answer = self.ask_in_turn(ask, read).await?;
        answer.ok_or_else(|| Refusal {
            kind: RefusalKind::TooMuch,
            subject: too_much.subject(),
            text: format!(
                "{too_much}: the answer is larger than the limit ({} bytes, {} of them in wanted fields)",
                limit.read, limit.wanted
            ),
        })
    }
}

impl Cluster {
    /// Opens a watch, whose events follow in the body. `None` if its first version is too old (410).
    pub(crate) async fn open(
        &self,
        ask: Ask<'_>,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<Option<Body>, Refusal> {
        let open = async {
            let request = request.map_err(kube::Error::BuildRequest)?;
            match accepted(self.client.send(request.map(Body::from)).await?).await {
                Err(kube::Error::Api(status)) if status.code == 410 => Ok(None),
                body => body.map(Some),
            }
        };
        self.ask(ask, open).await
    }
}

/// `None` if the answer exceeds the limit.
async fn read<T: DeserializeOwned>(
    response: Response<Body>,
    keep: &'static Keep,
    limit: Limit,
    count: &AtomicUsize,
) -> kube::Result<Option<Answer<T>>> {
    let mut body = accepted(response).await?;
    let mut trim = Trim::new(keep);
    let mut read = 0_usize;
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame?.into_data() else { continue };
        read = read.saturating_add(piece.len());
        count.fetch_add(piece.len(), Ordering::Relaxed);
        if read > limit.read {
            return Ok(None);
        }
        trim.take_in(&piece);
        if trim.held() > limit.wanted {
            return Ok(None);
        }
    }
    let (wanted, items) = (trim.held(), trim.items().to_vec());
    let value = serde_json::from_slice(&trim.into_wanted()).map_err(kube::Error::SerdeError)?;
    Ok(Some(Answer { value, read, wanted, items }))
}

/// The body of an answer, unless it is a refusal.
async fn accepted(response: Response<Body>) -> kube::Result<Body> {
    let status = response.status();
    let mut body = response.into_body();
    if status.is_success() {
        return Ok(body);
    }
    let mut text = Vec::new();
    while let Some(frame) = body.frame().await {
        if let Ok(piece) = frame?.into_data() {
            text.extend(piece.iter().take(MAX_STATUS_BYTES.saturating_sub(text.len())));
        }
    }
    Err(kube::Error::Api(Box::new(refusal(status.as_u16(), &text))))
}

/// The API server's refusal, or that of a proxy.
fn refusal(code: u16, text: &[u8]) -> kube::core::Status {
    serde_json::from_slice(text).unwrap_or_else(|_| {
        let text = String::from_utf8_lossy(text);
        kube::core::Status::failure(text.trim(), "Failed to parse error data").with_code(code)
    })
}
