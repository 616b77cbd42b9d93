//! `notification`: the validation of what tenants and administrators read, and how many tenants one round notifies.

use std::time::Duration;

use procscan_core::names::{LABEL, is_dns_label};
use procscan_core::resources::notification::Texts;

use super::Checks;

pub(super) fn check(texts: &Texts, checks: &mut Checks) {
    checks.text("notification.summary_namespace", Some(&texts.summary_namespace), LABEL, is_dns_label);
    let max = texts.max_per_round.unwrap_or(1);
    checks.require(max >= 1, "notification.max_per_round", max, "1 or more");
    for (path, template) in [
        ("notification.blocked.title", &texts.blocked.title),
        ("notification.blocked.message", &texts.blocked.message),
        ("notification.blocked.title_zh", &texts.blocked.title_zh),
        ("notification.blocked.message_zh", &texts.blocked.message_zh),
    ] {
        if template.uses("until") {
            checks.refuse(path, "{until}", "the other placeholders: a block has no end that is known");
        }
    }
}

/// The most tenants that one round notifies for the first time, at least one. Each costs one paced request to read the
/// object that is there. By default half of a round's requests are for that, so that the other half can look up accused
/// Pods.
pub(super) fn per_round(texts: &Texts, requests_per_second: u32, round: Duration) -> usize {
    texts.max_per_round.unwrap_or_else(|| {
        let half = round.saturating_mul(requests_per_second).as_secs() / 2;
        usize::try_from(half).unwrap_or(usize::MAX).max(1)
    })
}
