//! Reads the body of an answer, decompresses it and decodes it, within limits.
//!
//! Nearly every answer is small: it is decoded when all of it has arrived. A large one is decoded while it arrives, so that only
//! its records are held, on another thread than the one that asks all agents.

use std::sync::Arc;

use procscan_core::report::{self, Answer, DecodeError, Decoder, Failure, FailureReason, Limits};
use tokio::io::AsyncRead;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::PROBATION_SHARE;
use super::http::{HttpError, Incoming};
use super::reading::{Read, Reading};
use super::unpack::{Encoding, STEP, Unpacker};

/// What every body may take without asking for its share: enough for an ordinary answer, so that a hostile node which has
/// taken the whole budget does not hold up the others. Bounded by `collector.concurrency`.
const FREE: usize = 16 << 10;
/// The unit of the budget; a semaphore counts no further than 2^32.
const UNIT: usize = 1 << 10;
/// How many bytes of a large answer are decoded at a time.
const BATCH: usize = 64 << 10;

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

    /// Waits until the body may take `bytes` in all.
    async fn cover(&mut self, bytes: usize) -> Result<(), Failure> {
        self.grow(bytes.saturating_sub(self.bytes)).await
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

/// How bodies are read. Clones share their limits for all answers together.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    limits: Limits,
    /// The most bytes, on either side of decompression, of an answer that is decoded where it is waited for.
    small: usize,
    reading: Arc<Reading>,
    /// Of the targets whose last answer was whole, one large answer is decoded at a time, and of the others too.
    standing: Arc<Semaphore>,
    probation: Arc<Semaphore>,
}

/// A body as far as it could be read.
pub(super) struct Body {
    pub(super) answer: Answer,
    /// Why that is not all of it.
    pub(super) trouble: Option<Failure>,
    /// Kept until the records are taken in.
    pub(super) share: Share,
}

impl Reader {
    /// `max_read` is the most that is read of one answer, in bytes.
    pub(super) fn new(limits: Limits, small: usize, max_read: usize) -> Self {
        let place = || Arc::new(Semaphore::new(1));
        Self {
            limits,
            small,
            reading: Arc::new(Reading::new(max_read)),
            standing: place(),
            probation: place(),
        }
    }

    /// Shares out what large answers may have read in the round that begins.
    pub(super) fn begin_round(&self) {
        self.reading.begin_round();
    }

    /// Reads a body to its end, or as far as its limits allow.
    pub(super) async fn read(
        &self,
        incoming: &mut Incoming<impl AsyncRead + Unpin>,
        encoding: Encoding,
        is_on_probation: bool,
        mut lease: Lease,
    ) -> Body {
        let mut read = self.reading.begin(is_on_probation);
        let mut received = Vec::new();
        let mut end = Ok(End::More);
        while let Ok(End::More) = end
            && received.len() <= self.small
        {
            let before = received.len();
            end = receive(incoming, &mut received, &mut read).await;
            if let Err(failure) = lease.grow(received.len() - before).await {
                end = Err(failure);
            }
        }
        let is_all = !matches!(end, Ok(End::More));
        let (answer, trouble) = match self.unpack_small(received, encoding, is_all) {
            Unpacked::Small(bytes, broken) => {
                let (answer, decoded) = report::decode(&bytes, &self.limits);
                (answer, end.err().or(broken).or_else(|| decoded.err().map(malformed)))
            }
            Unpacked::Large(intake, rest) => {
                let large = Large { reader: self, is_on_probation, encoding, read, lease: &mut lease };
                large.read(incoming, intake, rest, end).await
            }
        };
        Body { answer, trouble, share: lease.into() }
    }

    /// Decompresses a small body; or begins to decode it in pieces, because it is not small, or because it `is_all` that has
    /// arrived is not so.
    fn unpack_small(&self, received: Vec<u8>, encoding: Encoding, is_all: bool) -> Unpacked {
        if encoding == Encoding::Identity && is_all {
            return Unpacked::Small(received, None);
        }
        let mut unpacker = match Unpacker::new(encoding) {
            Ok(unpacker) => unpacker,
            Err(failure) => return Unpacked::Small(Vec::new(), Some(failure)),
        };
        let (mut bytes, mut taken) = (Vec::new(), 0);
        while is_all && bytes.len() <= self.small {
            let rest = received.get(taken..).unwrap_or_default();
            if rest.is_empty() {
                let broken = unpacker.finish(&mut bytes).err();
                return Unpacked::Small(bytes, broken);
            }
            match unpacker.step(rest, &mut bytes) {
                Ok(more) => taken += more,
                Err(failure) => return Unpacked::Small(bytes, Some(failure)),
            }
        }
        let decoder = Decoder::new(&self.limits);
        let intake = Intake { unpacker, decoder, unpacked: bytes.len(), bytes };
        Unpacked::Large(Box::new(intake), received.get(taken..).unwrap_or_default().to_vec())
    }

    /// Decodes a batch on a thread for that, when it is its turn.
    async fn decode(
        &self,
        mut intake: Box<Intake>,
        batch: Vec<u8>,
        most: usize,
        is_on_probation: bool,
    ) -> (Box<Intake>, Result<(), Failure>) {
        let place = if is_on_probation { &self.probation } else { &self.standing };
        // It is never closed. The place is given back when the work is done, even if nothing waits for it any more.
        let place = place.clone().acquire_owned().await;
        let work = tokio::task::spawn_blocking(move || {
            let result = intake.take(&batch, most);
            drop(place);
            (intake, result)
        });
        match work.await.map_err(tokio::task::JoinError::try_into_panic) {
            Ok(done) => done,
            Err(Ok(panic)) => std::panic::resume_unwind(panic),
            // The runtime ends, and this task with it.
            Err(Err(_)) => std::future::pending().await,
        }
    }
}

enum Unpacked {
    /// All of it, and why it does not decode further.
    Small(Vec<u8>, Option<Failure>),
    /// Some of it, and what has arrived and is not decompressed yet.
    Large(Box<Intake>, Vec<u8>),
}

/// A large answer while it is decoded.
struct Intake {
    unpacker: Unpacker,
    decoder: Decoder,
    /// How many bytes it has been decompressed to so far.
    unpacked: usize,
    /// What has been decompressed and not been decoded yet.
    bytes: Vec<u8>,
}

impl Intake {
    /// Takes in `batch`, until more than `most` bytes of the answer have been decompressed.
    fn take(&mut self, mut batch: &[u8], most: usize) -> Result<(), Failure> {
        loop {
            let is_list = self.decoder.push(&self.bytes);
            self.bytes.clear();
            if batch.is_empty() || !is_list || self.unpacked > most {
                return Ok(());
            }
            let step = self.unpacker.step(batch, &mut self.bytes);
            self.unpacked += self.bytes.len();
            // So that what is used does not depend on how the answer has arrived.
            self.bytes.truncate(self.bytes.len().saturating_sub(self.unpacked.saturating_sub(most)));
            match step {
                Ok(taken) => batch = batch.get(taken..).unwrap_or_default(),
                Err(failure) => {
                    self.decoder.push(&self.bytes);
                    return Err(failure);
                }
            }
        }
    }

    /// The answer ends here, or is read no further because of `trouble`.
    fn finish(mut self, trouble: Option<Failure>) -> (Answer, Option<Failure>) {
        let broken = self.unpacker.finish(&mut self.bytes).err();
        self.decoder.push(&self.bytes);
        let (answer, decoded) = self.decoder.finish();
        // What broke off on the way is why it does not decode: the first trouble is the cause.
        (answer, trouble.or(broken).or_else(|| decoded.err().map(malformed)))
    }
}

/// A large answer, and what it costs.
struct Large<'a> {
    reader: &'a Reader,
    is_on_probation: bool,
    encoding: Encoding,
    read: Read,
    lease: &'a mut Lease,
}

impl Large<'_> {
    async fn read(
        mut self,
        incoming: &mut Incoming<impl AsyncRead + Unpin>,
        mut intake: Box<Intake>,
        mut batch: Vec<u8>,
        mut end: Result<End, Failure>,
    ) -> (Answer, Option<Failure>) {
        loop {
            let held = intake.decoder.held() + self.encoding.state() + 2 * (BATCH + STEP);
            if let Err(failure) = self.lease.cover(held).await {
                return intake.finish(Some(failure));
            }
            let most = self.read.most();
            let decoded = self.reader.decode(intake, batch, most, self.is_on_probation).await;
            intake = decoded.0;
            let read = decoded.1.and_then(|()| self.read.note(intake.unpacked));
            if let Err(failure) = read {
                return intake.finish(end.err().or(Some(failure)));
            }
            match end {
                Ok(End::More) if intake.decoder.is_broken() => return intake.finish(None),
                Ok(End::More) => {}
                end => return intake.finish(end.err()),
            }
            batch = Vec::new();
            while let Ok(End::More) = end
                && batch.len() < BATCH
            {
                end = receive(incoming, &mut batch, &mut self.read).await;
            }
        }
    }
}

/// Whether more of a body may follow.
#[derive(Clone, Copy)]
enum End {
    More,
    Reached,
}

/// Puts the next piece of a body behind what is in `received`.
async fn receive(
    incoming: &mut Incoming<impl AsyncRead + Unpin>,
    received: &mut Vec<u8>,
    read: &mut Read,
) -> Result<End, Failure> {
    match incoming.next().await {
        Ok(Some(piece)) => received.extend_from_slice(piece),
        Ok(None) => return Ok(End::Reached),
        Err(HttpError::BrokeOff(e)) => {
            let detail = format!("the answer broke off after {} bytes: {e}", incoming.received());
            return Err(Failure { reason: FailureReason::CutOff, detail });
        }
        Err(error @ HttpError::NotHttp(_)) => {
            return Err(Failure { reason: FailureReason::Protocol, detail: error.to_string() });
        }
    }
    read.note(incoming.received())?;
    Ok(End::More)
}

fn malformed(error: DecodeError) -> Failure {
    Failure { reason: FailureReason::Malformed, detail: error.to_string() }
}
