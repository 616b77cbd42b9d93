//! What the policy task and the output exchange: the decisions, the take-over at the beginning of a term, and the notices that have
//! been written.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use procscan_core::Moment;
use procscan_core::names::{App, Text};
use procscan_core::plan::{Dispute, HeldApp, Plan};
use procscan_core::policy::{InheritedBlock, Withheld};
use procscan_core::state::incident::MAX_SERVICES;
use procscan_core::state::{Incident, IncidentState, IncidentStatus};
use procscan_core::time::CompactTimestamp;
use tokio::sync::oneshot;

use crate::kubernetes::WritePermit;

/// The decisions as of the last snapshot.
#[derive(Clone, Debug)]
pub struct Decided {
    /// The desired blocks and notices.
    pub plan: Plan,
    /// The Apps that brakes hold.
    pub(crate) held: Vec<HeldApp>,
    /// The exemptions that have no effect because they would open too many tenants. Only the leader knows them.
    pub(crate) withheld: Vec<Withheld>,
    /// Evidence that is not believed, because its node accuses a Pod that does not run on it.
    pub(crate) disputes: Vec<Dispute>,
    /// Evidence that can't be judged, because its Pod could not be read.
    pub(crate) unverified: usize,
    /// Whether the cluster facts answer all look-up requests. Always `false` without a cluster.
    pub(crate) is_answered: bool,
    /// The Apps that the policy has blocked in this term without a grace, each with the time of the evidence that led to it.
    pub(crate) accused_since: Arc<BTreeMap<App, Moment>>,
    /// How many rounds were done when the decisions were made. A plan from before the first one is not written,
    /// because it knows too little.
    pub rounds: u64,
    /// The permit to write the plan; `None` on a replica that shows the decisions of another one.
    pub(crate) permit: Option<WritePermit>,
}

impl Decided {
    /// No decisions yet.
    pub(crate) fn nothing(plan: Plan) -> Self {
        Self {
            plan,
            held: Vec::new(),
            withheld: Vec::new(),
            disputes: Vec::new(),
            unverified: 0,
            is_answered: false,
            accused_since: Arc::default(),
            rounds: 0,
            permit: None,
        }
    }
}

/// The request of a new leader for the blocks in the objects. With it, the output takes the objects over for this
/// leader.
#[derive(Debug)]
pub(crate) struct TakeOver {
    /// The permit of the new leader.
    pub(crate) permit: WritePermit,
    /// Whether the output may write to the objects: not in dry-run.
    pub(crate) may_touch: bool,
    /// The blocks of the persisted Incidents, if there are any and all of them can be read. They stand for the
    /// content of a damaged object.
    pub(crate) persisted: Option<PersistedBlocks>,
    /// Receives the Apps that the objects block.
    pub(crate) blocked: oneshot::Sender<Vec<InheritedBlock>>,
}

/// The notices that have been written, by App, with the time at which each was decided.
pub(crate) type WrittenNotifications = BTreeMap<App, CompactTimestamp>;

/// The Apps with persisted Incidents, and the Services that the Incidents name.
#[derive(Clone, Debug)]
pub(crate) struct PersistedBlocks {
    pub(crate) apps: BTreeSet<App>,
    /// As `service.namespace.svc`: the Services that are closed, were closed once, or are left open.
    pub(crate) services: BTreeSet<Text>,
    /// The namespaces of Apps with more Services than an Incident names.
    pub(crate) many: BTreeSet<Text>,
}

impl PersistedBlocks {
    /// The Apps and Services of `incidents` at `now`; `None` without incidents, because the state may be lost.
    ///
    /// An Incident that ended more than `same_incident` ago does not count: if its App is blocked, a later Incident is lost. An
    /// Incident with an operator's release always counts.
    pub(crate) fn of(incidents: &[Incident], same_incident: Duration, now: Timestamp) -> Option<Self> {
        let has_passed =
            |since: Timestamp| now.duration_since(since).unsigned_abs() > same_incident && now > since;
        let counts = |incident: &&Incident| {
            let IncidentStatus { state, since, releases, .. } = &incident.status;
            *state != IncidentState::Ended || !releases.is_empty() || !since.is_some_and(has_passed)
        };
        let known = || incidents.iter().filter(counts);
        let exposures = || known().map(|incident| &incident.status.exposure);
        let services =
            exposures().flat_map(|it| it.services.iter().chain(&it.once_closed).chain(&it.left_open));
        let many = known().filter(|it| it.status.exposure.services.len() >= MAX_SERVICES);
        (!incidents.is_empty()).then(|| Self {
            apps: known().map(|incident| App::from(&incident.spec.app)).collect(),
            services: services.cloned().collect(),
            many: many.map(|incident| incident.spec.app.namespace.clone()).collect(),
        })
    }
}
