//! Which fields of each kind of object are read. All others are dropped while an answer arrives, and `lookup` can't use
//! them.
//!
//! An event of a watch is compared with the one before by a fingerprint of the same fields. So a field that `lookup`
//! does not read makes no change. Only names and versions of an event are held: a tenant can make the other fields as
//! large as it likes.

use crate::kubernetes::Keep;
use crate::kubernetes::Keep::{All, Fields, Items, Print};

const NAME: (&str, Keep) = ("name", All);
const NAMESPACE: (&str, Keep) = ("namespace", All);
const UID: (&str, Keep) = ("uid", All);
const VERSION: (&str, Keep) = ("resourceVersion", All);
const LABELS: (&str, Keep) = ("labels", All);
/// A field that is only compared: it becomes part of the fingerprint.
const PRINT: Keep = Print(&All);
const UID_PRINT: (&str, Keep) = ("uid", PRINT);
const LABELS_PRINT: (&str, Keep) = ("labels", PRINT);
/// An event may carry the API server's refusal instead of an object.
const CODE: (&str, Keep) = ("code", All);
const MESSAGE: (&str, Keep) = ("message", All);

/// The fields of a list itself.
pub(super) static LIST: Keep = Fields(&[("metadata", All)]);

/// The names of the listed objects.
pub(super) static NAMES: Keep =
    Fields(&[("metadata", All), ("items", Items(&Fields(&[("metadata", Fields(&[NAME, NAMESPACE]))])))]);

/// Pods.
pub(super) static PODS: Keep = Fields(&[("metadata", All), ("items", Items(&POD))]);
const POD: Keep = Fields(&[
    (
        "metadata",
        Fields(&[
            NAME,
            NAMESPACE,
            UID,
            VERSION,
            LABELS,
            ("creationTimestamp", All),
            ("deletionTimestamp", All),
            ("ownerReferences", All),
        ]),
    ),
    ("spec", POD_SPEC),
    ("status", POD_STATUS),
]);
const POD_SPEC: Keep = Fields(&[("nodeName", All)]);
const POD_STATUS: Keep = Fields(&[("phase", All), ("hostIP", All), ("hostIPs", All)]);
pub(super) static POD_EVENT: Keep = Fields(&[
    ("type", All),
    (
        "object",
        Fields(&[
            (
                "metadata",
                Fields(&[
                    NAME,
                    NAMESPACE,
                    UID_PRINT,
                    VERSION,
                    LABELS_PRINT,
                    ("creationTimestamp", PRINT),
                    ("deletionTimestamp", PRINT),
                    ("ownerReferences", PRINT),
                ]),
            ),
            ("spec", Print(&POD_SPEC)),
            ("status", Print(&POD_STATUS)),
            CODE,
            MESSAGE,
        ]),
    ),
]);

/// Services.
pub(super) static SERVICES: Keep = Fields(&[("metadata", All), ("items", Items(&SERVICE))]);
const SERVICE: Keep =
    Fields(&[("metadata", Fields(&[NAME, NAMESPACE, UID, VERSION, LABELS])), ("spec", SERVICE_SPEC)]);
const SERVICE_SPEC: Keep = Fields(&[("selector", All)]);
pub(super) static SERVICE_EVENT: Keep = Fields(&[
    ("type", All),
    (
        "object",
        Fields(&[
            ("metadata", Fields(&[NAME, NAMESPACE, UID_PRINT, VERSION, LABELS_PRINT])),
            ("spec", Print(&SERVICE_SPEC)),
            CODE,
            MESSAGE,
        ]),
    ),
]);

/// Ingresses.
pub(super) static INGRESSES: Keep = Fields(&[("metadata", All), ("items", Items(&INGRESS))]);
const INGRESS: Keep = Fields(&[
    ("metadata", Fields(&[NAME, NAMESPACE, UID, VERSION, ("annotations", INGRESS_ANNOTATIONS)])),
    ("spec", INGRESS_SPEC),
]);
const INGRESS_ANNOTATIONS: Keep = Fields(&[("higress.io/destination", All)]);
const INGRESS_SPEC: Keep = Fields(&[
    ("defaultBackend", All),
    ("rules", Items(&Fields(&[("http", Fields(&[("paths", Items(&PATH))]))]))),
]);
const PATH: Keep = Fields(&[("path", All), ("pathType", All), ("backend", All)]);
pub(super) static INGRESS_EVENT: Keep = Fields(&[
    ("type", All),
    (
        "object",
        Fields(&[
            (
                "metadata",
                Fields(&[NAME, NAMESPACE, UID_PRINT, VERSION, ("annotations", Print(&INGRESS_ANNOTATIONS))]),
            ),
            ("spec", Print(&INGRESS_SPEC)),
            CODE,
            MESSAGE,
        ]),
    ),
]);

/// Routes of the Gateway API.
pub(super) static HTTP_ROUTES: Keep = Fields(&[("metadata", All), ("items", Items(&HTTP_ROUTE))]);
const HTTP_ROUTE: Keep =
    Fields(&[("metadata", Fields(&[NAME, NAMESPACE, UID, VERSION])), ("spec", HTTP_ROUTE_SPEC)]);
const HTTP_ROUTE_SPEC: Keep =
    Fields(&[("rules", Items(&Fields(&[("backendRefs", Items(&Fields(&[NAME, NAMESPACE])))])))]);
pub(super) static HTTP_ROUTE_EVENT: Keep = Fields(&[
    ("type", All),
    (
        "object",
        Fields(&[
            ("metadata", Fields(&[NAME, NAMESPACE, UID_PRINT, VERSION])),
            ("spec", Print(&HTTP_ROUTE_SPEC)),
            CODE,
            MESSAGE,
        ]),
    ),
]);

/// Namespaces.
pub(super) static NAMESPACES: Keep = Fields(&[("metadata", All), ("items", Items(&NAMESPACE_OBJECT))]);
const NAMESPACE_OBJECT: Keep = Fields(&[("metadata", Fields(&[NAME, ("deletionTimestamp", All)]))]);
/// Namespaces: whether they are there, or being deleted.
pub(super) static NAMESPACE_EVENT: Keep = Fields(&[
    ("type", All),
    (
        "object",
        Fields(&[
            ("metadata", Fields(&[NAME, UID_PRINT, VERSION, ("deletionTimestamp", PRINT)])),
            CODE,
            MESSAGE,
        ]),
    ),
]);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The paths of the fields; items of lists have the paths of their lists.
    fn paths(keep: &Keep, path: &str, all: &mut BTreeSet<String>) {
        match keep {
            All => drop(all.insert(path.to_owned())),
            Items(keep) | Print(keep) => paths(keep, path, all),
            Fields(fields) => {
                fields.iter().for_each(|(name, keep)| paths(keep, &format!("{path}.{name}"), all));
            }
        }
    }

    #[test]
    fn an_event_is_compared_by_all_fields_that_a_lookup_reads() {
        for (list, event) in [
            (&PODS, &POD_EVENT),
            (&SERVICES, &SERVICE_EVENT),
            (&INGRESSES, &INGRESS_EVENT),
            (&HTTP_ROUTES, &HTTP_ROUTE_EVENT),
            (&NAMESPACES, &NAMESPACE_EVENT),
        ] {
            let (mut read, mut compared) = (BTreeSet::new(), BTreeSet::new());
            paths(list, "", &mut read);
            paths(event, "", &mut compared);
            read.remove(".metadata");
            let read = read.iter().map(|path| path.replace(".items.", ".object."));
            let missing: Vec<String> = read.filter(|path| !compared.contains(path)).collect();
            assert!(missing.is_empty(), "{missing:?}");
        }
    }
}
