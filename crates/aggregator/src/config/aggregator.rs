//! `aggregator`: the service itself.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Checks;
use super::values::{self, A_PORT, DurationText};

/// The service itself.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Aggregator {
    /// The aggregator asks every agent once in this time.
    #[serde(with = "DurationText")]
    pub(crate) scan_interval: Duration,
    /// The address on which the HTTP API listens.
    pub(crate) address: IpAddr,
    /// The port on which the HTTP API listens.
    #[serde(deserialize_with = "values::port")]
    pub port: u16,
}

impl Default for Aggregator {
    fn default() -> Self {
        Self { scan_interval: Duration::from_mins(1), address: Ipv4Addr::UNSPECIFIED.into(), port: 8090 }
    }
}

impl Aggregator {
    pub(super) fn check(&self, checks: &mut Checks) {
        let allowed = Duration::from_secs(1)..=Duration::from_hours(1);
        checks.duration("aggregator.scan_interval", self.scan_interval, allowed);
        checks.takes("aggregator.port", A_PORT);
    }
}
