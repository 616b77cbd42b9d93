//! Finds writes of a replica that did not lead, from the API server's own records.
//!
//! Clocks and the order of lines in the audit log show the order of writes only roughly. The stored objects show it exactly: each
//! write has a resourceVersion, which is etcd's revision and so counts the writes to all objects.

use anyhow::Context;
use serde_json::Value;

/// Resources that are read by `create`, which stores nothing.
const REVIEWS: [&str; 2] = ["tokenreviews", "subjectaccessreviews"];
const LEASES: &str = "leases";

/// A write of the aggregator that was stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The object's resourceVersion after it.
    pub version: u64,
    /// The UID of the Pod that wrote.
    pub replica: String,
    /// `create`, `update`, `patch` or `delete`.
    pub verb: String,
    /// The resource's plural, with the subresource if there is one.
    pub resource: String,
    /// Namespace and name of the object.
    pub object: String,
    /// For a Lease: its holder after the write.
    pub holder: Option<String>,
}

/// The stored writes, in their order.
///
/// # Errors
/// When the log has no bodies for them, see [`crate::cluster::Options::audit_bodies`].
pub fn writes(events: &[Value]) -> anyhow::Result<Vec<Write>> {
    let mut all = Vec::new();
    for event in events {
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let verb = text("/verb");
        let code = event.pointer("/responseStatus/code").and_then(Value::as_i64).unwrap_or_default();
        let is_write = matches!(verb, "create" | "update" | "patch" | "delete" | "deletecollection");
        if !is_write || !(200..300).contains(&code) || is_review(event) {
            continue;
        }
        let resource = text("/objectRef/resource");
        let version = text("/responseObject/metadata/resourceVersion");
        let version = version.parse().with_context(|| format!("no resourceVersion was audited: {event}"))?;
        let part = |name: &str| text(&format!("/responseObject/metadata/{name}")).to_owned();
        let holder = text("/responseObject/spec/holderIdentity");
        let subresource = text("/objectRef/subresource");
        let resource = [resource, subresource].join("/");
        let write = Write {
            version,
            replica: text("/user/uid").to_owned(),
            verb: verb.to_owned(),
            resource: resource.trim_end_matches('/').to_owned(),
            object: [part("namespace"), part("name")].join("/"),
            holder: Some(holder.to_owned()).filter(|holder| !holder.is_empty()),
        };
        all.push((text("/requestReceivedTimestamp").to_owned(), write));
    }
    // A request that changed nothing is answered with the version of the write before it: that is the first of this version.
    all.sort_by(|(a_at, a), (b_at, b)| (a.version, a_at).cmp(&(b.version, b_at)));
    let mut writes: Vec<Write> = all.into_iter().map(|(_, write)| write).collect();
    writes.dedup_by_key(|write| write.version);
    Ok(writes)
}

/// Whether the request reviews a token or a right.
pub(crate) fn is_review(event: &Value) -> bool {
    let resource = event.pointer("/objectRef/resource").and_then(Value::as_str);
    resource.is_some_and(|resource| REVIEWS.contains(&resource))
}

/// The writes to objects other than the Lease by a replica that did not hold the Lease.
pub fn without_lease<'a>(writes: &'a [Write], lease: &str) -> Vec<&'a Write> {
    let (mut holder, mut leader) = (None, None);
    let mut wrong = Vec::new();
    for write in writes {
        if write.resource == LEASES && write.object == lease {
            if write.holder != holder {
                leader = write.holder.as_ref().map(|_| &write.replica);
            }
            holder.clone_from(&write.holder);
        } else if leader != Some(&write.replica) {
            wrong.push(write);
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LEASE: &str = "own/it";

    fn event(version: u64, replica: &str, resource: &str, holder: Option<&str>) -> Value {
        json!({
            "verb": "patch", "user": {"uid": replica}, "requestReceivedTimestamp": "2026-01-01T00:00:00Z",
            "objectRef": {"resource": resource}, "responseStatus": {"code": 200},
            "responseObject": {
                "metadata": {"namespace": "own", "name": "it", "resourceVersion": version.to_string()},
                "spec": {"holderIdentity": holder},
            },
        })
    }

    fn wrong(events: &[Value]) -> Vec<u64> {
        let writes = writes(events).unwrap();
        without_lease(&writes, LEASE).iter().map(|write| write.version).collect()
    }

    #[test]
    fn a_write_counts_by_when_it_was_stored() {
        let events = [
            event(1, "a", LEASES, Some("x")),
            event(4, "b", LEASES, Some("y")),
            event(2, "a", "things", None),
            // Requested later than the other replica took the Lease, and the reverse.
            event(5, "a", "things", None),
            event(6, "b", "things", None),
            event(3, "a", LEASES, Some("x")),
        ];
        assert_eq!(wrong(&events), [5]);
    }

    #[test]
    fn no_replica_leads_before_the_first_lease_and_after_a_lease_was_given_back() {
        let before = event(1, "a", "things", None);
        let events = [
            before,
            event(2, "a", LEASES, Some("x")),
            event(3, "a", LEASES, None),
            event(4, "a", "things", None),
        ];
        assert_eq!(wrong(&events), [1, 4]);
    }

    #[test]
    fn what_was_refused_or_changed_nothing_is_no_write() {
        let mut refused = event(9, "b", "things", None);
        refused["responseStatus"]["code"] = 409.into();
        let mut same = event(2, "b", "things", None);
        same["requestReceivedTimestamp"] = "2026-01-01T00:00:01Z".into();
        let events = [event(1, "a", LEASES, Some("x")), same, event(2, "a", "things", None), refused];
        assert!(wrong(&events).is_empty());
        let mut blind = event(3, "b", "things", None);
        blind["responseObject"] = Value::Null;
        writes(&[blind]).unwrap_err();
    }
}
