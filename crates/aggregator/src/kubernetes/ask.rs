//! How a request is described, and why it failed.

use std::error::Error;
use std::fmt;

use procscan_core::names::{self, is_dns_label, is_dns_subdomain};
use tower::BoxError;

/// How many characters of an invalid name are shown.
const MAX_SHOWN_CHARS: usize = 120;

/// Describes a request in the terms of an RBAC rule.
#[derive(Clone, Debug)]
pub(crate) struct Ask<'a> {
    /// `get`, `list`, `patch`, ….
    pub(crate) verb: &'static str,
    /// The resource's plural, with its group: `wasmplugins.extensions.higress.io`.
    pub(crate) resource: &'a str,
    /// The namespace; `None` for all of them, or for a resource without one.
    pub(crate) namespace: Option<&'a str>,
    /// The object's name; `None` for requests that name none in their path, such as `list` and `create`.
    pub(crate) name: Option<&'a str>,
}

impl<'a> Ask<'a> {
    /// The same request about the object `name`.
    #[must_use]
    pub(crate) fn of(self, name: &'a str) -> Self {
        Self { name: Some(name), ..self }
    }

    /// The verb and the resource, without the namespace.
    pub(crate) fn subject(&self) -> String {
        format!("{} {}", self.verb, self.resource)
    }

    /// Refuses names that Kubernetes does not allow. A name becomes a part of the request's path as it is. So `..`,
    /// `/`, `?` or `#` in it would make the request one for another resource.
    pub(super) fn check(&self) -> Result<(), Refusal> {
        let invalid = |what: &str, given: &str, expected: &str| {
            let given: String = given.chars().take(MAX_SHOWN_CHARS).collect();
            let (kind, subject) = (RefusalKind::Invalid, self.subject());
            let text = format!("{subject}: invalid {what} {given:?}: expected {expected}");
            Err(Refusal { kind, subject, text })
        };
        match (self.namespace, self.name) {
            (Some(namespace), _) if !is_dns_label(namespace) => invalid("namespace", namespace, names::LABEL),
            (_, Some(name)) if !is_dns_subdomain(name) => invalid("name", name, names::SUBDOMAIN),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Ask<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        match self.namespace {
            Some(namespace) => write!(f, " in namespace {namespace}"),
            None => f.write_str(" in all namespaces"),
        }
    }
}

/// Why a request failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The kind of the failure.
    pub(crate) kind: RefusalKind,
    /// The verb and the resource without the namespace, as an RBAC rule has to allow them.
    pub(crate) subject: String,
    /// The request and the reason, for people.
    pub(crate) text: String,
}

/// The kinds of failures of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RefusalKind {
    /// There is no such object.
    NotFound,
    /// The API server does not know the kind, because its CRD is not installed.
    NotServed,
    /// The namespace does not exist, or is being deleted.
    NoNamespace,
    /// RBAC, an admission rule or a quota forbids the request.
    Forbidden,
    /// The API server does not accept our token at the moment. The token has expired, and the client has not read the
    /// new one yet. The client reads the ServiceAccount's token file when its copy is 50 s old. This kind proves
    /// nothing about the requested object.
    Unauthenticated,
    /// Another program has changed the object meanwhile.
    Conflict,
    /// The answer, or the whole list, is larger than the limit.
    TooMuch,
    /// The request itself is invalid.
    Invalid,
    /// The API server can't be reached, or has an error of its own.
    Unavailable,
    /// This replica does not hold the write permit.
    NotLeading,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Error for Refusal {}

impl Refusal {
    /// The refusal of a request, because the term of this replica has ended.
    pub(crate) fn not_leading(ask: &Ask<'_>) -> Self {
        let text = format!("{ask}: this replica has no right to write any more");
        Self { kind: RefusalKind::NotLeading, subject: ask.subject(), text }
    }

    /// The refusal that `error` means.
    pub(crate) fn new(ask: &Ask<'_>, error: &kube::Error) -> Self {
        let kube::Error::Api(status) = error else {
            let unanswered = match error {
                kube::Error::Service(error) => error.downcast_ref::<Unanswered>(),
                _ => None,
            };
            let text = match unanswered {
                Some(error) => {
                    format!("{ask}: the API server can't be reached at {}: {error}", error.address)
                }
                None => format!("{ask}: the API server can't be reached: {}", chain(error)),
            };
            return Self { kind: RefusalKind::Unavailable, subject: ask.subject(), text };
        };
        let message = status.message.split_whitespace().collect::<Vec<_>>().join(" ");
        let is_not_found = status.reason == "NotFound";
        let kind = match status.code {
            // Webhooks choose their own codes.
            _ if message.starts_with("admission webhook ") && message.contains(" denied the request") => {
                RefusalKind::Forbidden
            }
            // etcd refuses this object, but the API server reports that as an error of its own.
            500 if message.contains("request is too large")
                || message.contains("message larger than max") =>
            {
                RefusalKind::Invalid
            }
            403 if message.contains("because it is being terminated") => RefusalKind::NoNamespace,
            404 if message.starts_with("namespaces \"") && is_not_found => RefusalKind::NoNamespace,
            404 if message.contains("could not find the requested resource")
                || message.contains("page not found") =>
            {
                RefusalKind::NotServed
            }
            404 if is_not_found => RefusalKind::NotFound,
            401 => RefusalKind::Unauthenticated,
            403 => RefusalKind::Forbidden,
            409 => RefusalKind::Conflict,
            400 | 405 | 413 | 415 | 422 => RefusalKind::Invalid,
            // Includes a 404 of a proxy, because only the API server itself can prove that an object does not exist.
            _ => RefusalKind::Unavailable,
        };
        let text = match kind {
            RefusalKind::NotServed => {
                format!("{ask}: the API server does not know {}: is its CRD installed?", ask.resource)
            }
            RefusalKind::Unauthenticated => {
                format!(
                    "{ask}: the API server does not accept this service's token at the moment: {message} (401)"
                )
            }
            _ => format!("{ask}: {} ({})", message, status.code),
        };
        Self { kind, subject: ask.subject(), text }
    }
}

/// A request that was not answered.
#[derive(Debug)]
pub(super) struct Unanswered {
    pub(super) address: Box<str>,
    pub(super) source: BoxError,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&chain(&*self.source))
    }
}

impl Error for Unanswered {}

/// The error and its causes on one line.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Libraries repeat their cause's text in their own.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(code: u16, message: &str) -> Refusal {
        let ask = Ask {
            verb: "patch",
            resource: "wasmplugins.extensions.higress.io",
            namespace: Some("gw"),
            name: None,
        };
        let reason = if code == 404 { "NotFound" } else { "" }.to_owned();
        let status =
            kube::core::Status { code, reason, message: message.to_owned(), ..kube::core::Status::default() };
        Refusal::new(&ask, &kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn refusals_name_the_request_and_what_is_missing() {
        let missing = refusal(404, "the server could not find the requested resource");
        assert_eq!(missing.kind, RefusalKind::NotServed);
        assert_eq!(
            missing.text,
            "patch wasmplugins.extensions.higress.io in namespace gw: the API server does not know \
             wasmplugins.extensions.higress.io: is its CRD installed?"
        );
        assert_eq!(
            refusal(404, "wasmplugins.extensions.higress.io \"x\" not found").kind,
            RefusalKind::NotFound
        );
        assert_eq!(refusal(404, "namespaces \"gw\" not found").kind, RefusalKind::NoNamespace);
        // A proxy's 404 page proves no absence.
        let page = kube::core::Status {
            code: 404,
            reason: "Failed to parse error data".to_owned(),
            message: "<html>404 Not Found</html>".to_owned(),
            ..kube::core::Status::default()
        };
        let ask = Ask { verb: "get", resource: "pods", namespace: Some("ns-a"), name: None };
        let refused = Refusal::new(&ask, &kube::Error::Api(Box::new(page)));
        assert_eq!(refused.kind, RefusalKind::Unavailable);
        let ending = "unable to create new content in namespace gw because it is being terminated";
        assert_eq!(refusal(403, ending).kind, RefusalKind::NoNamespace);
        // A namespace that is forbidden may exist.
        let hidden = "namespaces \"gw\" is forbidden: User \"x\" cannot get resource \"namespaces\"";
        assert_eq!(refusal(403, hidden).kind, RefusalKind::Forbidden);
        // These refusals concern one object only, whatever their codes.
        for (code, message, kind) in [
            (500, "etcdserver: request is too large", RefusalKind::Invalid),
            (
                500,
                "rpc error: code = ResourceExhausted desc = trying to send message larger than max (2 vs. 1)",
                RefusalKind::Invalid,
            ),
            (404, "admission webhook \"x.y\" denied the request: not here", RefusalKind::Forbidden),
            (500, "admission webhook \"x.y\" denied the request: not here", RefusalKind::Forbidden),
            (500, "etcdserver: leader changed", RefusalKind::Unavailable),
            (
                500,
                "Internal error occurred: failed calling webhook \"x.y\": timed out",
                RefusalKind::Unavailable,
            ),
        ] {
            assert_eq!(refusal(code, message).kind, kind, "{message}");
        }
        assert_eq!(refusal(401, "Unauthorized").kind, RefusalKind::Unauthenticated);
        assert_eq!(refusal(503, "shutting down").kind, RefusalKind::Unavailable);
    }
}
