//! Which fields of each kind of object are read. All others are dropped while an answer arrives, and `lookup` can't use
//! them.
//!
//! An event of a watch is compared with the one before by the same fields, so that what `lookup` does not read is no change.

use crate::kubernetes::Keep;
use crate::kubernetes::Keep::{All, Fields, Items};

const NAME: (&str, Keep) = ("name", All);
const NAMESPACE: (&str, Keep) = ("namespace", All);
const UID: (&str, Keep) = ("uid", All);
const VERSION: (&str, Keep) = ("resourceVersion", All);
const LABELS: (&str, Keep) = ("labels", All);
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
pub(super) static POD_EVENT: Keep = Fields(&[("type", All), ("object", POD)]);
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
    ("spec", Fields(&[("nodeName", All)])),
    ("status", Fields(&[("phase", All), ("hostIP", All), ("hostIPs", All)])),
    CODE,
    MESSAGE,
]);

/// Services.
pub(super) static SERVICES: Keep = Fields(&[("metadata", All), ("items", Items(&SERVICE))]);
pub(super) static SERVICE_EVENT: Keep = Fields(&[("type", All), ("object", SERVICE)]);
const SERVICE: Keep = Fields(&[
    ("metadata", Fields(&[NAME, NAMESPACE, UID, VERSION, LABELS])),
    ("spec", Fields(&[("selector", All)])),
    CODE,
    MESSAGE,
]);

/// Ingresses.
pub(super) static INGRESSES: Keep = Fields(&[("metadata", All), ("items", Items(&INGRESS))]);
pub(super) static INGRESS_EVENT: Keep = Fields(&[("type", All), ("object", INGRESS)]);
const INGRESS: Keep = Fields(&[
    (
        "metadata",
        Fields(&[NAME, NAMESPACE, UID, VERSION, ("annotations", Fields(&[("higress.io/destination", All)]))]),
    ),
    (
        "spec",
        Fields(&[
            ("defaultBackend", All),
            ("rules", Items(&Fields(&[("http", Fields(&[("paths", Items(&PATH))]))]))),
        ]),
    ),
    CODE,
    MESSAGE,
]);
const PATH: Keep = Fields(&[("path", All), ("pathType", All), ("backend", All)]);

/// Routes of the Gateway API.
pub(super) static HTTP_ROUTES: Keep = Fields(&[("metadata", All), ("items", Items(&HTTP_ROUTE))]);
pub(super) static HTTP_ROUTE_EVENT: Keep = Fields(&[("type", All), ("object", HTTP_ROUTE)]);
const HTTP_ROUTE: Keep = Fields(&[
    ("metadata", Fields(&[NAME, NAMESPACE, UID, VERSION])),
    ("spec", Fields(&[("rules", Items(&Fields(&[("backendRefs", Items(&BACKEND))])))])),
    CODE,
    MESSAGE,
]);
const BACKEND: Keep = Fields(&[NAME, NAMESPACE]);

/// Namespaces.
pub(super) static NAMESPACES: Keep = Fields(&[("metadata", All), ("items", Items(&NAMESPACE_OBJECT))]);
const NAMESPACE_OBJECT: Keep = Fields(&[("metadata", Fields(&[NAME, ("deletionTimestamp", All)]))]);
/// Namespaces: whether they are there, or being deleted.
pub(super) static NAMESPACE_EVENT: Keep = Fields(&[
    ("type", All),
    (
        "object",
        Fields(&[("metadata", Fields(&[NAME, UID, VERSION, ("deletionTimestamp", All)])), CODE, MESSAGE]),
    ),
]);
