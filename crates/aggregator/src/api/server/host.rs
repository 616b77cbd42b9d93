//! Refuses requests whose URI is too long, and requests without exactly one `Host` (RFC 9112, section 3.2): a proxy may have
//! understood such a request in another way.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Router;
use axum::http::{Request, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use axum::routing::future::RouteFuture;
use futures_util::FutureExt;
use futures_util::future::Either;
use hyper::body::Incoming;
use hyper::service::Service;

use super::{MAX_URI, Place, URI_TOO_LONG};
use crate::api::problem::Problem;
use crate::counters::Counters;

/// A router that is asked only what has one host. Counts the answers.
#[derive(Clone, Debug)]
pub(super) struct Checked {
    pub(super) router: Router,
    pub(super) counters: Counters,
    /// The place of the connection, for requests that give it back.
    pub(super) place: Option<Arc<Place>>,
}

impl Service<Request<Incoming>> for Checked {
    type Response = Response;
    type Error = Infallible;
    type Future = Counted;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        if let Some(place) = &self.place {
            request.extensions_mut().insert(place.clone());
        }
        let answer = match mistake(&request) {
            Some(problem) => Either::Left(ready(Ok(problem.into_response()))),
            None => Either::Right(tower::Service::call(&mut self.router.clone(), request)),
        };
        Counted { answer, counters: self.counters.clone() }
    }
}

/// An answer that is counted by its status.
pub(super) struct Counted {
    answer: Either<Ready<Result<Response, Infallible>>, RouteFuture<Infallible>>,
    counters: Counters,
}

impl Future for Counted {
    type Output = Result<Response, Infallible>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = ready!(self.answer.poll_unpin(context));
        // It does not fail.
        if let Ok(response) = &answer {
            let status = u64::from(response.status().as_u16());
            self.counters.http_answers.get_or_create(&[("code", status)]).inc();
        }
        Poll::Ready(answer)
    }
}

fn mistake<B>(request: &Request<B>) -> Option<Problem> {
    if request.uri().path_and_query().is_some_and(|uri| uri.as_str().len() > MAX_URI) {
        return Some(Problem::new(StatusCode::URI_TOO_LONG, URI_TOO_LONG));
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let detail = match (hosts.next(), hosts.next()) {
        (Some(_), None) => return None,
        // HTTP/1.0 needs no `Host`.
        (None, _) if request.version() < Version::HTTP_11 => return None,
        (None, _) => "the header `Host` is missing: HTTP/1.1 needs one",
        (Some(_), Some(_)) => "there is more than one header `Host`",
    };
    Some(Problem::new(StatusCode::BAD_REQUEST, detail))
}
