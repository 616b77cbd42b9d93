//! One candidate: reads the Lease, takes it when its holder is gone, renews it, and gives it back.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::{Election, LEASES, Leadership, lease};
use crate::clock::Clock;
use crate::kubernetes::WritePermit;
use crate::kubernetes::{Ask, Cluster, Refusal, RefusalKind};

/// How long giving the Lease back may take. Shutdown has more to do, and other replicas can wait until the Lease has
/// run out.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// How often giving it back is tried, because an earlier renewal that is still under way may come in between.
const MAX_RELEASE_TRIES: usize = 3;

pub(super) struct Candidate {
    cluster: Cluster,
    api: Api<Lease>,
    election: Election,
    clock: Clock,
    leadership: watch::Sender<Leadership>,
    error: watch::Sender<Option<String>>,
    /// The Lease as it was read last, and since when it has been unchanged.
    seen: Option<(Option<Lease>, Instant)>,
    /// Whether a Lease has existed. Replicas give it back and never remove it. If another program has removed it, its
    /// holder may not know that yet.
    was_there: bool,
    /// How often the holder had changed when the Lease was read last.
    transitions: i32,
    /// Whether the Lease may name this process, even if no answer has confirmed that.
    may_be_ours: bool,
}

impl Candidate {
    pub(super) fn new(
        election: Election,
        leadership: watch::Sender<Leadership>,
        error: watch::Sender<Option<String>>,
    ) -> Self {
        let cluster = election.cluster.with_timeout(election.lease.request_timeout);
        let api = Api::namespaced(cluster.client(), &election.namespace);
        Self {
            cluster,
            api,
            election,
            clock: Clock::start(),
            leadership,
            error,
            seen: None,
            was_there: false,
            transitions: 0,
            may_be_ours: false,
        }
    }

    /// Follows and leads, in turn, for ever.
    pub(super) async fn stand(&mut self) {
        loop {
            let (permit, lease) = self.follow().await;
            let (term, identity) = (permit.term(), permit.identity());
            tracing::info!(term, identity, "leading");
            self.leadership.send_replace(Leadership::Leading(permit.clone()));
            let why = self.lead(&permit, lease).await;
            self.step_down(&why);
        }
    }

    /// Ends the term if this process leads, and gives the Lease back if it may name this process.
    pub(super) async fn retire(&mut self) {
        self.step_down("stopped");
        if self.may_be_ours && timeout(RELEASE_TIMEOUT, self.release()).await.is_err() {
            tracing::warn!(
                "the Lease could not be given back in time; other replicas wait until it has run out"
            );
        }
    }

    /// Ends the permit first, because a task that is notified of the end must not find a permit that still holds.
    fn step_down(&mut self, why: &str) {
        let Some(permit) = self.leadership.borrow().permit().cloned() else { return };
        permit.end();
        self.leadership.send_replace(Leadership::Following { leader: None });
        tracing::info!(term = permit.term(), why, "no longer leading");
    }

    /// Reads the Lease until this process has taken it.
    async fn follow(&mut self) -> (WritePermit, Lease) {
        // A read from the time when this process led does not show how long another holder has been silent.
        self.seen = None;
        loop {
            let retry = Instant::now() + self.election.lease.retry;
            let won = match self.observe().await {
                Ok((_, free)) if Instant::now() < free => {
                    self.note_success();
                    sleep_until(free.min(retry)).await;
                    continue;
                }
                Ok((lease, _)) => self.take(lease).await,
                Err(refusal) => Err(refusal),
            };
            match won {
                Ok(won) => return won,
                // Another replica was faster. The next read shows which one.
                Err(refusal) if refusal.kind == RefusalKind::Conflict => {}
                Err(refusal) => self.note_error(&refusal),
            }
            sleep_until(retry).await;
        }
    }

    /// Reads the Lease. Returns it with the time from which this process may take it.
    async fn observe(&mut self) -> Result<(Option<Lease>, Instant), Refusal> {
        let lease = self.read().await?;
        // The time after the answer, because the holder may have renewed the Lease while the request was under way.
        let now = Instant::now();
        let since = match &self.seen {
            Some((seen, since)) if *seen == lease => *since,
            _ => now,
        };
        self.seen = Some((lease.clone(), since));
        let timing = self.election.lease;
        let free = match &lease {
            Some(lease) => {
                self.transitions = lease::transitions(lease);
                let holder = lease::holder(lease);
                // Our own name is from a term that has ended, or from a request whose answer never came. No other
                // replica holds the Lease.
                self.may_be_ours = holder == Some(&self.election.identity);
                self.was_there = true;
                let other = holder.filter(|_| !self.may_be_ours);
                self.note_leader(other);
                let lasts = lease::duration(lease).unwrap_or(timing.lease_duration);
                other.map_or(now, |_| since + lasts)
            }
            None if self.was_there => since + timing.lease_duration,
            None => now,
        };
        Ok((lease, free))
    }

    /// Requests the Lease. It is granted only if it is unchanged since it was read.
    async fn take(&mut self, lease: Option<Lease>) -> Result<(WritePermit, Lease), Refusal> {
        let Election { name, identity, lease: timing, .. } = &self.election;
        let is_new = lease.is_none();
        let lease = lease.unwrap_or_else(|| lease::new(name));
        let wall = self.clock.now().wall();
        let wanted = lease::taken(&lease, identity, timing.lease_duration, self.transitions, wall);
        self.may_be_ours = true;
        let asked = Instant::now();
        let by_us = PostParams::default();
        let lease = if is_new {
            self.cluster.ask(self.ask("create"), self.api.create(&by_us, &wanted)).await?
        } else {
            self.cluster.ask(self.ask("update").of(name), self.api.replace(name, &by_us, &wanted)).await?
        };
        self.note_success();
        self.was_there = true;
        let term = u64::try_from(lease::transitions(&lease)).unwrap_or_default();
        Ok((WritePermit::begin(term, identity, asked, timing.term()), lease))
    }

    /// Renews the Lease as long as that succeeds in time. Returns the reason why it no longer does.
    async fn lead(&self, permit: &WritePermit, mut lease: Lease) -> String {
        const ENDED: &str = "the Lease was not renewed in time, or this replica gave up its term";
        let timing = self.election.lease;
        let mut next = Instant::now() + timing.renew;
        loop {
            if permit.while_held(sleep_until(next)).await.is_none() {
                return ENDED.to_owned();
            }
            let asked = Instant::now();
            let renewed = lease::renewed(&lease, timing.lease_duration, self.clock.now().wall());
            let by_us = PostParams::default();
            let request = self.api.replace(&self.election.name, &by_us, &renewed);
            next = asked + timing.renew;
            match self.cluster.write(permit, self.ask("update").of(&self.election.name), request).await {
                Ok(renewed) => {
                    lease = renewed;
                    if !permit.extend(asked, timing.term()) {
                        return ENDED.to_owned();
                    }
                    self.note_success();
                    continue;
                }
                Err(refusal) if refusal.kind == RefusalKind::NotLeading => return ENDED.to_owned(),
                Err(refusal) if matches!(refusal.kind, RefusalKind::Conflict | RefusalKind::NotFound) => {
                    match permit.while_held(self.read()).await {
                        None => return ENDED.to_owned(),
                        Some(Ok(Some(now))) if is_same_term(&now, &lease) => lease = now,
                        Some(Ok(now)) => {
                            let holder = now.as_ref().and_then(lease::holder);
                            return format!("the Lease is held by {}", holder.unwrap_or("no replica"));
                        }
                        Some(Err(refusal)) => self.note_error(&refusal),
                    }
                }
                Err(refusal) => self.note_error(&refusal),
            }
            next = asked + timing.retry;
        }
    }

    /// Removes this process's name from the Lease, so that another replica can take it at once.
    async fn release(&self) {
        for _ in 0..MAX_RELEASE_TRIES {
            // The Lease may have been renewed since it was read last.
            let lease = match self.read().await {
                Ok(Some(lease)) if lease::holder(&lease) == Some(&self.election.identity) => lease,
                Ok(_) => return,
                Err(refusal) => return self.note_error(&refusal),
            };
            let by_us = PostParams::default();
            let released = lease::released(&lease);
            let request = self.api.replace(&self.election.name, &by_us, &released);
            match self.cluster.ask(self.ask("update").of(&self.election.name), request).await {
                Ok(_) => return,
                Err(refusal) if refusal.kind == RefusalKind::Conflict => {}
                Err(refusal) => return self.note_error(&refusal),
            }
        }
    }

    async fn read(&self) -> Result<Option<Lease>, Refusal> {
        let name = &self.election.name;
        match self.cluster.ask(self.ask("get").of(name), self.api.get(name)).await {
            Ok(lease) => Ok(Some(lease)),
            Err(refusal) if refusal.kind == RefusalKind::NotFound => Ok(None),
            Err(refusal) => Err(refusal),
        }
    }

    fn ask(&self, verb: &'static str) -> Ask<'_> {
        Ask { verb, resource: LEASES, namespace: Some(&self.election.namespace), name: None }
    }

    fn note_leader(&self, other: Option<&str>) {
        self.leadership.send_if_modified(|leadership| {
            let is_changed = match leadership {
                Leadership::Following { leader } => leader.as_deref() != other,
                Leadership::Leading(_) => false,
            };
            if is_changed {
                if let Some(leader) = other {
                    tracing::info!(leader, "following");
                }
                *leadership = Leadership::Following { leader: other.map(str::to_owned) };
            }
            is_changed
        });
    }

    fn note_error(&self, refusal: &Refusal) {
        let error = &refusal.text;
        if self.error.borrow().is_none() {
            tracing::warn!(alert = "leader", error, "the Lease can't be read or written; trying again");
        }
        self.error.send_if_modified(|before| {
            let is_changed = before.as_ref() != Some(error);
            if is_changed {
                *before = Some(error.clone());
            }
            is_changed
        });
    }

    fn note_success(&self) {
        if self.error.borrow().is_some() {
            tracing::info!("the Lease can be read and written again");
            self.error.send_replace(None);
        }
    }
}

fn is_same_term(now: &Lease, before: &Lease) -> bool {
    lease::holder(now) == lease::holder(before) && lease::transitions(now) == lease::transitions(before)
}
