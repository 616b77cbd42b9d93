//! Refuses requests that do not say for which host they are (RFC 9112, section 3.2): a proxy in between may have understood such
//! a request in another way.

use std::convert::Infallible;
use std::future::{Ready, ready};

use axum::Router;
use axum::http::{Request, StatusCode, Version, header};
use axum::response::{IntoResponse, Response};
use axum::routing::future::RouteFuture;
use futures_util::future::Either;
use hyper::body::Incoming;
use hyper::service::Service;

use crate::api::problem::Problem;

/// A router that is asked only what has one host.
#[derive(Clone, Debug)]
pub(super) struct Checked(pub(super) Router);

impl Service<Request<Incoming>> for Checked {
    type Response = Response;
    type Error = Infallible;
    type Future = Either<Ready<Result<Response, Infallible>>, RouteFuture<Infallible>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        match mistake(&request) {
            Some(problem) => Either::Left(ready(Ok(problem.into_response()))),
            None => Either::Right(tower::Service::call(&mut self.0.clone(), request)),
        }
    }
}

fn mistake<B>(request: &Request<B>) -> Option<Problem> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let detail = match (hosts.next(), hosts.next()) {
        (Some(_), None) => return None,
        // It was not asked for yet.
        (None, _) if request.version() < Version::HTTP_11 => return None,
        (None, _) => "the header `Host` is missing: HTTP/1.1 needs one",
        (Some(_), Some(_)) => "there is more than one header `Host`",
    };
    Some(Problem::new(StatusCode::BAD_REQUEST, detail))
}
