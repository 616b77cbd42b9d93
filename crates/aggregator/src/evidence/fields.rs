//! Which fields of each kind of object are read: what is not named here is dropped while it is read, and unknown to `lookup`.

use crate::kubernetes::Keep;
use crate::kubernetes::Keep::{All, Fields, Items};

/// Pods.
pub(super) static PODS: Keep = Fields(&[("metadata", All), ("items", Items(&POD))]);
static POD: Keep = Fields(&[
    (
        "metadata",
        Fields(&[
            ("name", All),
            ("uid", All),
            ("labels", All),
            ("creationTimestamp", All),
            ("deletionTimestamp", All),
            ("ownerReferences", All),
        ]),
    ),
    ("spec", Fields(&[("nodeName", All)])),
    ("status", Fields(&[("phase", All), ("hostIP", All), ("hostIPs", All)])),
]);

/// Services.
pub(super) static SERVICES: Keep = Fields(&[("metadata", All), ("items", Items(&SERVICE))]);
static SERVICE: Keep = Fields(&[
    ("metadata", Fields(&[("name", All), ("labels", All)])),
    ("spec", Fields(&[("selector", All)])),
]);

/// Ingresses.
pub(super) static INGRESSES: Keep = Fields(&[("metadata", All), ("items", Items(&INGRESS))]);
static INGRESS: Keep = Fields(&[
    ("metadata", Fields(&[("name", All), ("annotations", Fields(&[("higress.io/destination", All)]))])),
    (
        "spec",
        Fields(&[
            ("defaultBackend", All),
            ("rules", Items(&Fields(&[("http", Fields(&[("paths", Items(&PATH))]))]))),
        ]),
    ),
]);
static PATH: Keep = Fields(&[("path", All), ("pathType", All), ("backend", All)]);

/// Routes of the Gateway API.
pub(super) static HTTP_ROUTES: Keep = Fields(&[("metadata", All), ("items", Items(&HTTP_ROUTE))]);
static HTTP_ROUTE: Keep = Fields(&[
    ("metadata", Fields(&[("name", All)])),
    ("spec", Fields(&[("rules", Items(&Fields(&[("backendRefs", Items(&BACKEND))])))])),
]);
static BACKEND: Keep = Fields(&[("name", All), ("namespace", All)]);
