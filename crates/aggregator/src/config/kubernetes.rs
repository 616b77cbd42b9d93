//! `kubernetes`: how the cluster is reached, where it is needed.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{Problems, values};
use crate::plain_file;

/// How the cluster is reached.
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Kubernetes {
    /// A kubeconfig file. Without one: `KUBECONFIG`, `~/.kube/config`, or the Pod's own ServiceAccount, whichever is there first.
    pub kubeconfig: Option<PathBuf>,
    /// A context of the kubeconfig, instead of its current one.
    pub context: Option<String>,
    /// How long one request may take.
    #[serde(deserialize_with = "values::duration")]
    pub request_timeout: Duration,
    /// How many requests per second may be made to look up Pods, Services and Notifications.
    pub requests_per_second: u32,
}

impl Default for Kubernetes {
    fn default() -> Self {
        Self {
            kubeconfig: None,
            context: None,
            request_timeout: Duration::from_secs(15),
            requests_per_second: 20,
        }
    }
}

impl Kubernetes {
    pub(super) fn check(&self, problems: &mut Problems) {
        if let Some(file) = &self.kubeconfig
            && let Err(e) = plain_file::read_text(file, plain_file::MAX_TEXT)
        {
            let allowed = format!("a kubeconfig file that can be read ({e})");
            problems.refuse("kubernetes.kubeconfig", file.display(), allowed);
        }
        problems.require(
            (Duration::from_secs(1)..=Duration::from_mins(2)).contains(&self.request_timeout),
            "kubernetes.request_timeout",
            humantime::format_duration(self.request_timeout),
            "1s to 2m",
        );
        problems.require(
            (1..=10_000).contains(&self.requests_per_second),
            "kubernetes.requests_per_second",
            self.requests_per_second,
            "1 to 10000",
        );
    }
}
