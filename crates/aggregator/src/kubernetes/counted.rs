//! Counts the requests to the API server, by verb, resource and status: in one place, below all clients.

use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::{Method, Request, Response, Uri};
use kube::client::Body;
use tower::{BoxError, Layer, Service};

use crate::counters::Counters;

/// Counts each request that passes through.
#[derive(Clone, Debug)]
pub(super) struct CountRequests(pub(super) Counters);

/// The service that [`CountRequests`] makes as a layer.
#[derive(Clone, Debug)]
pub(super) struct Counting<S> {
    inner: S,
    counters: Counters,
}

impl<S> Layer<S> for CountRequests {
    type Service = Counting<S>;

    fn layer(&self, inner: S) -> Counting<S> {
        Counting { inner, counters: self.0.clone() }
    }
}

impl<S, B> Service<Request<Body>> for Counting<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (verb, resource) = described(request.method(), request.uri());
        let counters = self.counters.clone();
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            let code = answer
                .as_ref()
                .map_or_else(|_| "none".to_owned(), |answer| answer.status().as_str().to_owned());
            let labels = vec![("verb", verb.to_owned()), ("resource", resource), ("code", code)];
            counters.api_server_requests.get_or_create(&labels).inc();
            answer
        })
    }
}

/// The verb and the resource of a request, as RBAC rules have them. What names objects and namespaces is left out.
fn described(method: &Method, uri: &Uri) -> (&'static str, String) {
    let mut parts = uri.path().split('/').filter(|part| !part.is_empty());
    let group = match parts.next() {
        Some("api") => parts.next().and(Some("")),
        Some("apis") => parts.next().and_then(|group| parts.next().map(|_| group)),
        _ => None,
    };
    let Some(group) = group else { return ("get", "none".to_owned()) };
    let mut rest: Vec<&str> = parts.collect();
    // `namespaces/NAME` is a namespace, and `namespaces/NAME/pods` what is in it.
    if rest.first() == Some(&"namespaces") && rest.len() > 2 {
        rest.drain(..2);
    }
    let (plural, name, subresource) = (rest.first(), rest.get(1), rest.get(2));
    let query = uri.query().unwrap_or_default();
    let verb = match *method {
        Method::GET if query.contains("watch=") => "watch",
        Method::GET if name.is_none() => "list",
        Method::GET => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "other",
    };
    let Some(plural) = plural else { return (verb, "none".to_owned()) };
    let mut resource = (*plural).to_owned();
    if !group.is_empty() {
        resource = format!("{resource}.{group}");
    }
    if let Some(subresource) = subresource {
        resource = format!("{resource}/{subresource}");
    }
    (verb, resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_described_as_rbac_rules_have_them() {
        for (method, uri, verb, resource) in [
            (Method::GET, "/api/v1/pods?limit=500", "list", "pods"),
            (Method::GET, "/api/v1/namespaces/ns-a/pods?watch=true&x=1", "watch", "pods"),
            (Method::GET, "/api/v1/namespaces/ns-a/pods/web-0", "get", "pods"),
            (Method::GET, "/api/v1/namespaces/ns-a", "get", "namespaces"),
            (Method::GET, "/api/v1/namespaces", "list", "namespaces"),
            (Method::GET, "/version", "get", "none"),
            (Method::GET, "/apis/apps/v1", "list", "none"),
            (
                Method::PATCH,
                "/apis/extensions.higress.io/v1alpha1/namespaces/higress-system/wasmplugins/procscan-violations?force=true",
                "patch",
                "wasmplugins.extensions.higress.io",
            ),
            (
                Method::PUT,
                "/apis/procscan.sealos.io/v1alpha1/namespaces/kube-system/incidents/a/status",
                "update",
                "incidents.procscan.sealos.io/status",
            ),
            (
                Method::POST,
                "/apis/authentication.k8s.io/v1/tokenreviews",
                "create",
                "tokenreviews.authentication.k8s.io",
            ),
            (
                Method::DELETE,
                "/apis/procscan.sealos.io/v1alpha1/namespaces/a/exemptions/b",
                "delete",
                "exemptions.procscan.sealos.io",
            ),
        ] {
            let uri: Uri = uri.parse().unwrap();
            assert_eq!(described(&method, &uri), (verb, resource.to_owned()), "{uri}");
        }
    }
}
