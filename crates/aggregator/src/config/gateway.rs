//! `gateway`: the validation of what the `WasmPlugin` looks like.

use procscan_core::names::{LABEL, is_dns_label, is_dns_subdomain};
use procscan_core::resources::wasm_plugin::Gateway;

use super::Checks;
use super::checks::Problem;

pub(super) fn check(gateway: &Gateway, checks: &mut Checks) {
    checks.text("gateway.namespace", Some(&gateway.namespace), LABEL, is_dns_label);
    let schemes = ["oci://", "https://", "http://", "file://"];
    checks.text(
        "gateway.url",
        Some(&gateway.url),
        "an oci://, https://, http:// or file:// address",
        |url| schemes.iter().any(|scheme| url.starts_with(scheme) && url.len() > scheme.len()),
    );
    checks.number("gateway.status_code", gateway.status_code, 400..=599);
    let a_domain = "a domain such as cluster.local";
    checks.text("gateway.cluster_domain", Some(&gateway.cluster_domain), a_domain, is_dns_subdomain);
    let sizes = 16 << 10..=1 << 20;
    checks.size("gateway.max_object_size", gateway.max_object_size.unwrap_or(*sizes.start()), sizes);
    checks.text("gateway.sha256", gateway.sha256.as_deref(), "64 hexadecimal digits", |sha256| {
        sha256.len() == 64 && sha256.bytes().all(|b| b.is_ascii_hexdigit())
    });
    let secret = gateway.image_pull_secret.as_deref();
    checks.text("gateway.image_pull_secret", secret, "the name of a Secret", is_dns_subdomain);
}

/// Finds settings with which a block closes nothing.
pub(super) fn warn(gateway: &Gateway, found: &mut Vec<Problem>) {
    if gateway.max_service_entries == 0 {
        let problem =
            "with 0 the gateway closes no App without an Ingress, and without a cluster none at all";
        found.push(Problem::new("gateway.max_service_entries", problem));
    }
}
