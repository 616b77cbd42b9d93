//! Reads a body within its limits, and decompresses it within the same.

use std::io::Read;
use std::sync::Arc;

use procscan_core::report::{Failure, FailureReason};
use tokio::io::AsyncRead;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::PROBATION_SHARE;
use super::http::{HttpError, Incoming};

/// What every body may take without asking for its share: enough for an ordinary answer, so that a hostile node which has
/// taken the whole budget does not hold up the others. Bounded by `collector.concurrency`.
const FREE: usize = 16 << 10;
/// The unit of the budget; a semaphore counts no further than 2^32.
const UNIT: usize = 1 << 10;
/// How much is decompressed at a time.
const CHUNK: usize = 32 << 10;
/// The largest window of a zstd frame, as a power of two: the decoder allocates what the frame asks for.
const ZSTD_WINDOW_LOG: u32 = 20;

/// The bytes that all bodies in flight may take together.
///
/// In two parts: targets whose last answer failed have a small one of their own. Nodes that hold their bodies open for as
/// long as they may, to leave nothing for the others, soon hold up each other only.
#[derive(Clone, Debug)]
pub(super) struct Budget {
    standing: Arc<Semaphore>,
    probation: Arc<Semaphore>,
}

impl Budget {
    pub(super) fn new(bytes: usize) -> Self {
        let part = |bytes: usize| Arc::new(Semaphore::new(bytes / UNIT));
        let probation = bytes / PROBATION_SHARE;
        Self { standing: part(bytes - probation), probation: part(probation) }
    }

    /// How many bytes are left, for those whose last answer was whole.
    #[cfg(test)]
    pub(super) fn left(&self) -> usize {
        self.standing.available_permits() * UNIT
    }

    /// A share that has taken nothing yet.
    pub(super) fn lease(&self, is_on_probation: bool) -> Lease {
        let budget = if is_on_probation { &self.probation } else { &self.standing };
        Lease { budget: budget.clone(), held: None, bytes: 0 }
    }
}

/// One body's share of the budget; given back when dropped.
pub(super) struct Lease {
    budget: Arc<Semaphore>,
    held: Option<OwnedSemaphorePermit>,
    bytes: usize,
}

impl Lease {
    /// Waits until the body may take `more` bytes. The wait ends with the request's own timeout.
    async fn grow(&mut self, more: usize) -> Result<(), Failure> {
        self.bytes += more;
        let needed = self.bytes.saturating_sub(FREE).div_ceil(UNIT);
        let held = self.held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let Some(missing) = needed.checked_sub(held).filter(|missing| *missing > 0) else {
            return Ok(());
        };
        let closed = || Failure {
            reason: FailureReason::TooLarge,
            detail: "larger than the whole byte budget".into(),
        };
        let units = u32::try_from(missing).map_err(|_| closed())?;
        let permit = self.budget.clone().acquire_many_owned(units).await.map_err(|_| closed())?;
        match &mut self.held {
            Some(held) => held.merge(permit),
            None => self.held = Some(permit),
        }
        Ok(())
    }
}

/// What a report holds of the byte budget; given back when dropped. Kept until its records are taken in, so that many large answers
/// at once wait on their nodes, and not here.
#[derive(Debug, Default)]
pub struct Share {
    _held: Option<OwnedSemaphorePermit>,
}

impl From<Lease> for Share {
    fn from(lease: Lease) -> Self {
        Self { _held: lease.held }
    }
}

/// How a body is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Encoding {
    Identity,
    Gzip,
    Zstd,
}

impl Encoding {
    /// Those that are asked for.
    pub(super) fn named(name: &str) -> Option<Self> {
        let known = [("identity", Self::Identity), ("gzip", Self::Gzip), ("zstd", Self::Zstd)];
        known.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, encoding)| encoding)
    }
}

/// A body as far as it could be read. What has been read before the trouble is there, too.
pub(super) struct Body {
    pub(super) bytes: Vec<u8>,
    pub(super) trouble: Option<Failure>,
    /// Kept until what was in it is gone.
    pub(super) share: Share,
}

/// Reads and decompresses at most `limit` bytes, counted on both sides of the decompression.
pub(super) async fn read(
    incoming: &mut Incoming<impl AsyncRead + Unpin>,
    encoding: Encoding,
    limit: usize,
    mut lease: Lease,
) -> Body {
    let mut received = Vec::new();
    let trouble = receive(incoming, &mut received, limit, &mut lease).await.err();
    if encoding == Encoding::Identity {
        return Body { bytes: received, trouble, share: lease.into() };
    }
    let mut bytes = Vec::new();
    let decoded = decode(&received, encoding, &mut bytes, limit, &mut lease).await.err();
    // What broke off on the way is why it does not decode: the first trouble is the cause.
    Body { bytes, trouble: trouble.or(decoded), share: lease.into() }
}

async fn receive(
    incoming: &mut Incoming<impl AsyncRead + Unpin>,
    received: &mut Vec<u8>,
    limit: usize,
    lease: &mut Lease,
) -> Result<(), Failure> {
    loop {
        let piece = match incoming.next().await {
            Ok(Some(piece)) => piece,
            Ok(None) => return Ok(()),
            Err(HttpError::BrokeOff(e)) => {
                let detail = format!("the answer broke off after {} bytes: {e}", received.len());
                return Err(Failure { reason: FailureReason::CutOff, detail });
            }
            Err(error @ HttpError::NotHttp(_)) => {
                return Err(Failure { reason: FailureReason::Protocol, detail: error.to_string() });
            }
        };
        let room = limit - received.len();
        let part = piece.get(..room).unwrap_or(piece);
        lease.grow(part.len()).await?;
        received.extend_from_slice(part);
        if piece.len() > room {
            return Err(too_large(limit));
        }
    }
}

async fn decode(
    mut compressed: &[u8],
    encoding: Encoding,
    bytes: &mut Vec<u8>,
    limit: usize,
    lease: &mut Lease,
) -> Result<(), Failure> {
    let broken = |e: std::io::Error| Failure {
        reason: FailureReason::Encoding,
        detail: format!(
            "the {} body does not decode: {e}",
            if encoding == Encoding::Zstd { "zstd" } else { "gzip" }
        ),
    };
    let mut decoder: Box<dyn Read + Send> = match encoding {
        Encoding::Identity => Box::new(&mut compressed),
        Encoding::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(compressed)),
        Encoding::Zstd => {
            lease.grow(1 << ZSTD_WINDOW_LOG).await?;
            let mut decoder = zstd::stream::read::Decoder::with_buffer(compressed).map_err(broken)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG).map_err(broken)?;
            Box::new(decoder)
        }
    };
    let mut chunk = vec![0; CHUNK];
    loop {
        let n = decoder.read(&mut chunk).map_err(broken)?;
        if n == 0 {
            return Ok(());
        }
        let room = limit - bytes.len();
        let part = chunk.get(..n.min(room)).unwrap_or_default();
        lease.grow(part.len()).await?;
        bytes.extend_from_slice(part);
        if n > room {
            return Err(too_large(limit));
        }
    }
}

fn too_large(limit: usize) -> Failure {
    let limit = bytesize::ByteSize(limit as u64).display().iec().to_string();
    Failure {
        reason: FailureReason::TooLarge,
        detail: format!("the body is larger than {limit} (collector.max_body)"),
    }
}
