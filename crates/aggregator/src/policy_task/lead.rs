//! One term of leading: from what was kept to decisions that are kept.

mod keeping;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use procscan_core::Moment;
use procscan_core::policy::{
    Alert, Book, Decision, DecisionKind, Facts, Inherited, Mode, Policy, Questions, remembered,
};
use procscan_core::snapshot::Snapshot;
use procscan_core::state::exemption::readable;
use procscan_core::state::{Incident, IncidentState};
use tokio::sync::oneshot;
use tokio::time::Instant;

use self::keeping::Obeyed;
use super::journal;
use super::{Decided, PolicyTask, TakeOver, rest};
use crate::leader::Pen;
use crate::ledger_task::{Memory, Published};
use crate::state::{Changed, Kept, Loaded, Outline, Unreadable};

/// The pause after which what can't be kept is tried again; doubles up to [`MAX_PAUSE`].
const MIN_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(15);
const UNREADABLE: &str = "what is kept can't be read; nothing is decided until it is";
/// After how many rounds without news, and after how long at the most, everything is looked at again all the same.
const QUIET_ROUNDS: u64 = 5;
const QUIET: Duration = Duration::from_mins(5);
/// How far this replica's clock may differ from the API server's before the API server's time is used.
const SKEW: SignedDuration = SignedDuration::from_secs(30);

/// How a term ends.
pub(super) enum End {
    /// Another replica leads, or nobody does.
    Lost,
    /// Nobody publishes snapshots any more.
    Over,
}

/// One term.
pub(super) struct Lead<'a> {
    task: &'a mut PolicyTask,
    pen: Pen,
    book: Book,
    /// Everything that is kept was read when this was the mode: dry-run decides on a copy that is never kept.
    is_copy: bool,
    /// Told once they are kept.
    decisions: Vec<Decision>,
    /// The incidents that could not be kept, by name: what is decided of them has no effect.
    failing: BTreeSet<String>,
    /// When they are tried again, and the pause after that.
    again: Option<(Instant, Duration)>,
    has_waited: bool,
    swept: Option<Instant>,
    /// The incidents that can't be read, by name: nothing is decided about their Apps.
    unreadable: BTreeMap<String, Unreadable>,
    /// The incidents whose objects differ from what we wrote last.
    changed: Vec<Changed>,
    /// What operators wanted, and which incidents existed, when what is kept was last looked at.
    heard: Outline,
    /// This replica's clock differs from the API server's.
    is_clock_wrong: bool,
    /// When the term began, with a wall time that had certainly passed by then.
    began: (Moment, Timestamp),
    /// What has been decided on.
    decided: Option<Seen>,
    /// When time alone may change a decision.
    deadline: Option<Instant>,
}

/// Which snapshot it was.
#[derive(Clone, Copy)]
struct Seen {
    news: u64,
    rounds: u64,
    at: Moment,
}

impl Seen {
    fn of(snapshot: &Snapshot) -> Self {
        Self { news: snapshot.news, rounds: snapshot.rounds, at: snapshot.at }
    }

    fn of_published(published: &Published) -> Self {
        Self { news: published.news, rounds: published.rounds, at: published.at }
    }

    /// Whether there is nothing in `now` that has to be decided on; some things are after every round.
    fn is_as_good_as(self, now: Seen, is_waiting: bool) -> bool {
        let rounds = if is_waiting { 1 } else { QUIET_ROUNDS };
        // Nothing is written before the first round is done.
        let is_first = self.rounds == 0;
        !is_first
            && self.news == now.news
            && now.rounds < self.rounds + rounds
            && now.at.since(self.at) < QUIET
    }
}

/// What one evaluation has come to.
enum Step {
    /// The plan is published.
    Done,
    /// What is known is not what is kept.
    Outdated,
    Lost,
}

impl<'a> Lead<'a> {
    pub(super) fn new(task: &'a mut PolicyTask, pen: Pen) -> Self {
        let now = task.clock.now();
        let began = (now, now.wall());
        Self {
            task,
            pen,
            book: Book::default(),
            is_copy: false,
            decisions: Vec::new(),
            failing: BTreeSet::new(),
            again: None,
            has_waited: false,
            swept: None,
            unreadable: BTreeMap::new(),
            changed: Vec::new(),
            heard: Outline::default(),
            is_clock_wrong: false,
            began,
            decided: None,
            deadline: None,
        }
    }

    pub(super) async fn run(mut self) -> End {
        loop {
            if let Err(end) = self.take_over().await {
                return end;
            }
            if let Err(end) = self.decide().await {
                return end;
            }
        }
    }

    /// Begins with what is kept and what is blocked. Again and again, until it is known.
    async fn take_over(&mut self) -> Result<(), End> {
        let mut pause = MIN_PAUSE;
        self.hear_operators().await?;
        // Before the incidents are read, so that a deletion from then on is noticed.
        self.heard = self.task.channels.kept.borrow_and_update().outline();
        self.is_copy = self.policy().mode == Mode::DryRun;
        let Loaded { incidents: kept, unreadable } = loop {
            let seen = self.task.channels.kept.borrow().clone();
            match self.task.store.load(&self.pen, &seen).await {
                Ok(loaded) => break loaded,
                Err(error) if error.is_lost() => return Err(End::Lost),
                Err(error) => {
                    self.trouble(&error, true, UNREADABLE);
                }
            }
            self.pause(pause).await?;
            pause = (pause * 2).min(MAX_PAUSE);
        };
        if self.is_copy {
            // Nothing of a copy is ever kept, which would say that the trouble is over.
            self.relieve();
        }
        self.set_aside(unreadable);
        let blocked = self.blocked().await?;
        self.remind(&kept).await?;
        let now = self.now();
        let snapshot = self.task.channels.ledger.fresh().await;
        let policy = self.policy();
        let written = kept.iter().filter_map(|incident| incident.status.written).max();
        self.began = (now, written.map_or(now.wall(), |written| written.min(now.wall())));
        self.changed.clear();
        self.book = Book::restore(&kept, &snapshot, now);
        self.book.set_aside(self.unreadable.values().filter_map(|unreadable| unreadable.app.clone()));
        (self.decisions, self.failing, self.again) = (Vec::new(), BTreeSet::new(), None);
        let open = kept.iter().filter(|incident| incident.status.state != IncidentState::Ended).count();
        let inherited = self.book.inherit(blocked, &policy, now);
        if open + inherited.len() > 0 {
            tracing::info!(incidents = open, inherited = inherited.len(), "taken over from before");
        }
        if !inherited.is_empty() && !self.is_copy {
            tracing::warn!(
                alert = "state",
                apps = inherited.len(),
                "found blocked, and nothing is kept of it: an earlier version blocked it, or what was kept is lost, and \
                 operators' releases, exemptions and pauses with it"
            );
        }
        self.decisions.extend(inherited);
        Ok(())
    }

    /// Logs once for each incident that can't be read what follows from that.
    fn set_aside(&mut self, unreadable: BTreeMap<String, Unreadable>) {
        for (incident, now) in &unreadable {
            if self.unreadable.get(incident) == Some(now) {
                continue;
            }
            let Unreadable { app, error } = now;
            if let Some(app) = app {
                tracing::error!(
                    alert = "state",
                    incident,
                    %app,
                    error,
                    "an incident can't be read: its App is neither blocked nor released nor told, and what is closed of it \
                     stays closed, until it is mended or deleted"
                );
            } else {
                tracing::error!(
                    alert = "state",
                    incident,
                    error,
                    "an incident can't be read, nor which App it is of: nothing new is blocked until it is mended or deleted"
                );
            }
        }
        self.unreadable = unreadable;
    }

    /// The policy with operators' exemptions and mode.
    fn policy_now(&self, kept: &Kept) -> Policy {
        let mut policy = self.task.policy_now(kept);
        if self.unreadable.values().any(|unreadable| unreadable.app.is_none()) {
            // The incident may be of any App, and may contain a release.
            policy.unread_exemptions.push(readable(&serde_json::Value::Null));
        }
        policy
    }

    /// Waits until it is known what operators want: without their exemptions and their mode, anybody could be blocked.
    async fn hear_operators(&mut self) -> Result<(), End> {
        let mut pause = MIN_PAUSE;
        while let Err(error) = self.task.store.hear().await {
            self.trouble(&error, true, UNREADABLE);
            self.pause(pause).await?;
            pause = (pause * 2).min(MAX_PAUSE);
        }
        let mut kept = self.task.channels.kept.clone();
        tokio::select! {
            heard = kept.wait_for(|kept| kept.is_complete) => heard.map(drop).map_err(|_| End::Over),
            end = self.is_over() => Err(end),
        }
    }

    /// What the objects block.
    async fn blocked(&mut self) -> Result<Vec<Inherited>, End> {
        let (tell, blocked) = oneshot::channel();
        let question = TakeOver { pen: self.pen.clone(), may_touch: !self.is_copy, blocked: tell };
        if self.task.channels.take_over.send(question).await.is_err() {
            return Err(End::Over);
        }
        let holds = self.pen.clone();
        tokio::select! {
            // Without an answer the output has ended, or the right to write has.
            answer = blocked => answer.map_err(|_| if holds.holds() { End::Over } else { End::Lost }),
            end = self.is_over() => Err(end),
        }
    }

    async fn remind(&mut self, kept: &[Incident]) -> Result<(), End> {
        let (done, is_done) = oneshot::channel();
        let memory = Memory { evidence: remembered(kept), done };
        if self.task.channels.memory.send(memory).await.is_err() || is_done.await.is_err() {
            return Err(End::Over);
        }
        Ok(())
    }

    /// Waits, but not beyond the term.
    async fn pause(&mut self, pause: Duration) -> Result<(), End> {
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            end = self.is_over() => Err(end),
        }
    }

    /// Waits until the term is over.
    async fn is_over(&mut self) -> End {
        let channels = &mut self.task.channels;
        loop {
            tokio::select! {
                // Whoever is alone leads for ever, and nobody says so again.
                Ok(()) = channels.leadership.changed() => if !self.pen.holds() { return End::Lost },
                changed = channels.snapshots.changed() => if changed.is_err() { return End::Over },
            }
        }
    }

    /// Decides on all news, until the term is over, or what is kept has to be read again.
    ///
    /// What is no news by itself (evidence is renewed, clearing clocks go on) is looked at with the next news, and after
    /// [`QUIET_ROUNDS`] at the latest.
    async fn decide(&mut self) -> Result<(), End> {
        let mut is_live = true;
        let mut is_verified = true;
        let mut is_kept = true;
        let mut is_told = true;
        self.task.channels.snapshots.mark_changed();
        self.decided = None;
        let mut rested = Instant::now();
        while is_live {
            let again = self.again.map(|(at, _)| at);
            let look = self.task.store.next_look();
            let channels = &mut self.task.channels;
            let due = again.into_iter().chain(self.deadline).chain(look).min();
            tokio::select! {
                changed = async {
                    tokio::time::sleep_until(rested).await;
                    channels.snapshots.changed().await
                } => {
                    is_live = changed.is_ok();
                    let now = Seen::of_published(&channels.snapshots.borrow_and_update());
                    if is_live && self.decided.is_some_and(|seen| seen.is_as_good_as(now, self.is_waiting())) {
                        continue;
                    }
                }
                Ok(()) = channels.progress.changed() => {
                    let rounds = channels.progress.borrow_and_update().rounds;
                    let at = self.task.clock.now();
                    if let Some(seen) = self.decided
                        && !seen.is_as_good_as(Seen { rounds, at, ..seen }, self.is_waiting())
                    {
                        self.task.channels.ledger.ask();
                    }
                    continue;
                }
                changed = channels.facts.changed(), if is_verified => is_verified = changed.is_ok(),
                changed = channels.kept.changed(), if is_kept => {
                    is_kept = changed.is_ok();
                    let kept = channels.kept.borrow_and_update().clone();
                    // The watch reports no error of an incident without a status: it looks like one of which nothing
                    // was decided yet.
                    let has_no_status = |name: &str| kept.incidents.get(name).is_some_and(|it| it.brief().is_none());
                    let is_unread = |name: &String| {
                        kept.unread.incidents.contains_key(&**name) || has_no_status(name)
                    };
                    if !self.unreadable.keys().all(is_unread) {
                        // One of them has been mended or deleted.
                        return Ok(());
                    }
                    let now = kept.outline();
                    if !self.is_copy {
                        self.changed = self.task.store.changed(&kept);
                    }
                    drop(kept);
                    // What we have written ourselves is no news: in a storm it comes back thousands of times.
                    let gone = now.lacks(&self.heard);
                    let wants_the_same = now.wants_the_same(&self.heard);
                    self.heard = now;
                    if wants_the_same && gone.is_empty() && self.changed.is_empty() {
                        continue;
                    }
                    // Somebody has deleted them. What they say is still true.
                    self.book.forget_saved(|name| gone.contains(name));
                }
                changed = channels.delivered.changed(), if is_told => {
                    is_told = changed.is_ok();
                    if self.decided.is_some() && !self.hear_of_deliveries() {
                        match self.keep_deliveries().await {
                            Step::Done => continue,
                            Step::Lost => return Err(End::Lost),
                            Step::Outdated => return Ok(()),
                        }
                    }
                }
                Ok(()) = channels.leadership.changed() => {}
                () = async { tokio::time::sleep_until(due.unwrap_or_else(Instant::now)).await }, if due.is_some() => {}
            }
            if !self.pen.holds() {
                return Err(End::Lost);
            }
            let started = std::time::Instant::now();
            let step = self.step().await;
            rested = rest(started.elapsed());
            match step {
                Step::Done => {}
                Step::Lost => return Err(End::Lost),
                Step::Outdated => return Ok(()),
            }
        }
        Err(End::Over)
    }

    /// Whether something waits for the end of a round, or for the answers of all nodes.
    fn is_waiting(&self) -> bool {
        self.has_waited || self.book.waits_for_rounds()
    }

    fn policy(&self) -> Policy {
        let kept = self.task.channels.kept.borrow().clone();
        self.policy_now(&kept)
    }

    async fn step(&mut self) -> Step {
        let channels = &mut self.task.channels;
        let published = channels.snapshots.borrow_and_update().snapshot.clone();
        let snapshot = match published {
            Some(snapshot) => snapshot,
            // It was no news for anybody, and has been given up.
            None => channels.ledger.fresh().await,
        };
        let now = self.now();
        self.compare_clocks(now);
        let channels = &mut self.task.channels;
        // The change stays unseen, so that the main loop compares it with what was there before.
        let kept = channels.kept.borrow().clone();
        let facts = channels.facts.borrow_and_update().clone();
        let is_of_this_term = facts.epoch == channels.questions.borrow().epoch;
        let facts = if is_of_this_term { facts } else { Arc::default() };
        let policy = self.policy_now(&kept);
        let is_copy = policy.mode == Mode::DryRun;
        if self.is_copy && !is_copy {
            // What dry-run has decided on its copy had no effect.
            return Step::Outdated;
        }
        if is_copy && !self.is_copy {
            // From here on nothing is kept.
            self.is_copy = true;
        }
        self.hear_of_deliveries();
        if !self.is_copy {
            self.put_right(&kept);
        }
        let Obeyed { done, history } = self.obey(&kept, &policy);
        // What is kept next takes its place; both at once would be much.
        drop(kept);
        let decided = self.book.decide(&snapshot, &policy, &facts, now);
        self.decided = Some(Seen::of(&snapshot));
        self.decisions.extend(decided.decisions);
        // Before anything is kept: whoever is killed in between finds what is held, and takes its alert for raised.
        self.raise(&decided.alerts);
        let is_answered = self.ask(&snapshot, &policy, &facts);
        let rounds = snapshot.rounds;
        // The next one may be made while this is being kept; both at once would be much.
        drop(snapshot);
        if !is_copy && let Err(error) = self.keep(history).await {
            if error.is_lost() {
                return Step::Lost;
            }
            tracing::warn!(%error, "what is kept is read again");
            return Step::Outdated;
        }
        self.tell();
        let deadline = self.book.next_deadline(&policy, now);
        self.deadline = deadline.map(|at| Instant::now() + at.since(now));
        let plan = self.book.plan(&policy, &facts, now);
        let (held, withheld) = (self.book.held(&policy), self.book.withheld());
        let (disputes, unverified) = (decided.disputes, decided.unverified);
        let pen = Some(self.pen.clone());
        self.publish(Decided { plan, held, withheld, disputes, unverified, is_answered, rounds, pen });
        let kept = self.task.channels.kept.borrow().clone();
        if !is_copy && let Err(error) = self.tidy(&kept, &done).await {
            if error.is_lost() {
                return Step::Lost;
            }
            tracing::warn!(%error, "what is done or over can't be cleared away yet");
        }
        Step::Done
    }

    /// Asks the cluster what has to be known. Whether it has said all of it; never, where there is nobody to ask.
    fn ask(&mut self, snapshot: &Snapshot, policy: &Policy, facts: &Facts) -> bool {
        let questions = &self.task.channels.questions;
        if questions.is_closed() {
            return false;
        }
        let epoch = questions.borrow().epoch;
        let asked = Questions { epoch, ..self.book.questions(snapshot, policy) };
        let is_answered = asked.are_answered_by(facts);
        questions.send_if_modified(|before| {
            let is_news = **before != asked;
            if is_news {
                *before = Arc::new(asked);
            }
            is_news
        });
        is_answered
    }

    /// The time. If this replica's clock differs from the API server's, the wall time is the API server's, so that
    /// operators and all replicas mean the same by a date.
    fn now(&self) -> Moment {
        let now = self.task.clock.now();
        let server = self.task.store.server_time();
        let differs = |server: &Timestamp| server.duration_since(now.wall()).abs() > SKEW;
        server.filter(differs).map_or(now, |server| Moment::new(now.uptime(), server))
    }

    /// Logs once that this replica's clock differs from the API server's.
    fn compare_clocks(&mut self, now: Moment) {
        let own = self.task.clock.now().wall();
        let differs = own.duration_since(now.wall()).abs() > SKEW;
        if differs && !self.is_clock_wrong {
            let (own, server) = (own.to_string(), now.wall().to_string());
            tracing::error!(
                alert = "clock",
                own,
                server,
                "the clock of this replica differs from the API server's; decisions use the API server's time"
            );
        } else if !differs && self.is_clock_wrong {
            tracing::info!("the clock of this replica agrees with the API server's again");
        }
        self.is_clock_wrong = differs;
    }

    /// Notes what has been told. Whether something may be decided because of it.
    fn hear_of_deliveries(&mut self) -> bool {
        let now = self.now();
        let delivered = self.task.channels.delivered.borrow_and_update().clone();
        delivered.iter().fold(false, |is_news, (app, at)| self.book.delivered(app, *at, now) || is_news)
    }

    /// Tells what has been kept.
    fn tell(&mut self) {
        let decisions = std::mem::take(&mut self.decisions);
        for decision in &decisions {
            self.task.journal.tell(decision);
        }
        if !self.is_copy {
            let named = decisions.into_iter().filter(|decision| decision.kind != DecisionKind::Disputed);
            let named: Vec<(String, Decision)> =
                named.filter_map(|decision| Some((self.book.name_of(&decision.app)?, decision))).collect();
            self.task.store.announce(&self.pen, &named);
        }
    }

    fn raise(&mut self, alerts: &[Alert]) {
        let is_waiting = alerts.iter().any(|alert| matches!(alert, Alert::Notices { .. }));
        // As long as tenants wait, each evaluation says so: once is enough for people.
        let is_news = |alert: &&Alert| !(self.has_waited && matches!(alert, Alert::Notices { .. }));
        alerts.iter().filter(is_news).for_each(journal::raise);
        if self.has_waited && !is_waiting {
            tracing::info!("every tenant has been told");
        }
        self.has_waited = is_waiting;
    }

    fn publish(&mut self, now: Decided) {
        self.task.channels.decided.send_if_modified(|before| {
            let term = |decided: &Decided| decided.pen.as_ref().map(Pen::term);
            let is_news = before.plan != now.plan
                || before.held != now.held
                || before.withheld != now.withheld
                || before.disputes != now.disputes
                || before.unverified != now.unverified
                || before.is_answered != now.is_answered
                || term(before) != term(&now)
                // Only the first round makes a difference to anybody.
                || (before.rounds == 0) != (now.rounds == 0);
            if is_news {
                *before = Arc::new(now);
            }
            is_news
        });
    }
}
