//! `aggregator`: the service itself.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use serde::Deserialize;

use super::{Problems, values};

/// The service itself.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Aggregator {
    /// How often every agent is asked.
    #[serde(deserialize_with = "values::duration")]
    pub scan_interval: Duration,
    /// The address that the HTTP API listens on.
    pub address: IpAddr,
    /// The port of the HTTP API.
    #[serde(deserialize_with = "values::port")]
    pub port: u16,
}

impl Default for Aggregator {
    fn default() -> Self {
        Self { scan_interval: Duration::from_mins(1), address: Ipv4Addr::UNSPECIFIED.into(), port: 8090 }
    }
}

impl Aggregator {
    pub(super) fn check(&self, problems: &mut Problems) {
        let (least, most) = (Duration::from_secs(1), Duration::from_hours(1));
        problems.require(
            (least..=most).contains(&self.scan_interval),
            "aggregator.scan_interval",
            humantime::format_duration(self.scan_interval),
            "1s to 1h",
        );
    }
}
