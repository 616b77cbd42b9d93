//! Decides which Apps are blocked and which tenants are notified. A wrong block is worse than a late one.
//!
//! [`Incidents::evaluate`] is a pure function of a snapshot, the rules ([`Policy`]), the cluster facts
//! ([`ClusterFacts`]) and the incidents. It returns a [`Plan`] and the decisions that explain each difference to the
//! plan before.
//!
//! An accusation becomes a block only if all of this holds:
//!
//! 1. Its evidence is fresh (see [`crate::ledger`]) and no older than [`Policy::max_age`]. The accused Pod runs on
//!    the accusing node and is older than the record.
//! 2. Its namespace is a tenant's, not protected and not terminating.
//! 3. No exemption and no operator's release covers it.
//! 4. The tenant's grace is over.
//! 5. No brake holds it. A held App is blocked by an operator's approval only, never by time.

mod alert;
mod believed_time;
mod brake;
mod cluster_facts;
mod dates;
mod evaluation;
mod incident;
mod incidents;
mod leader_clock;
mod lookup_requests;
mod namespace_refusals;
mod simulate;
mod window;

use std::time::Duration;

use regex::Regex;

pub use self::alert::Alert;
pub use self::brake::{Brake, BrakeRules};
pub use self::cluster_facts::{AGE_TOLERANCE, AppFact, ClusterFacts, Lineage, PodFact, PodState};
pub use self::evaluation::{Decided, Evaluation};
pub use self::incident::{Incident, Phase};
pub use self::incidents::Incidents;
pub use self::incidents::admissions::Withheld;
pub use self::incidents::commands::{IncidentCommand, IncidentCommandError, IssuedBy};
pub use self::incidents::inherited::{InheritedBlock, OnIngresses};
pub use self::incidents::persist::remembered;
pub use self::lookup_requests::{AccusedPod, AccusingNodes, LookupRequests, PodIdentity};
pub use self::simulate::{SimulatedOutcome, simulate, withheld_at_start};

use crate::decision::Mode;
use crate::exemption::Exemption;
#[cfg(doc)]
use crate::plan::Plan;
use crate::plan::SharedServices;

/// The rules of enforcement.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Whether decisions take effect.
    pub mode: Mode,
    /// Which namespaces are tenants'.
    pub namespaces: Regex,
    /// Namespaces that are never touched: exact names, or prefixes that end in `*`.
    pub protected: Vec<String>,
    /// Whether an accused Pod must be known to run on the accusing node.
    pub verify_pods: bool,
    /// What happens to Services that expose other Apps as well as the one to be blocked.
    pub shared_services: SharedServices,
    /// Whether the gateway closes Services to which no Ingress leads (`gateway.max_service_entries` is not 0).
    pub has_plain_list: bool,
    /// How much time a tenant has between the warning and the block.
    pub grace: Duration,
    /// How much may happen at once.
    pub brake: BrakeRules,
    /// Accusations that are not enforced.
    pub exemptions: Vec<Exemption>,
    /// Exemptions that can't be read completely, with their readable parts. An App that one of them may cover is not
    /// newly blocked.
    pub unread_exemptions: Vec<Exemption>,
    /// Offending again within this time continues the same incident.
    pub same_incident: Duration,
    /// The greatest age of evidence that may lead to a new block. It is the record's age by its agent's own clock
    /// when the agent reported it, plus the time since by our clock.
    pub max_age: Duration,
    /// How long to wait for a node that never returns.
    pub unreachable_limit: Duration,
    /// How many tenants are newly notified per round.
    pub max_notices_per_round: usize,
}

impl Policy {
    /// Why Apps of `namespace` may not be blocked, if so.
    pub fn refuses(&self, namespace: &str) -> Option<&'static str> {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(prefix) => namespace.starts_with(prefix),
            None => namespace == pattern,
        };
        if self.protected.iter().any(matches) {
            Some("the namespace is protected (enforcement.protected_namespaces)")
        } else if !self.namespaces.is_match(namespace) {
            Some("the namespace is not a tenant's (enforcement.namespaces)")
        } else {
            None
        }
    }
}
