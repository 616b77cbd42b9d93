//! The two endpoints of the first README, in exactly its shapes.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Api;
use super::list::Current;
use super::negotiation::{Accepted, Encoding, has};
use super::page::MAX_WAIT_FOR_PAGE;
use super::problem::Problem;
use super::query::invalid;

/// Below this, compression saves no packet.
const WORTH_COMPRESSING: usize = 1024;

pub(super) async fn violations(State(api): State<Api>, request: Request) -> Response {
    let (request, _) = request.into_parts();
    let Current { list, headers: coverage, .. } = api.lists.current(&*api.snapshot().await);
    let Some(plain) = list.plain().await else {
        return Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the list can't be serialised")
            .into_response();
    };
    let accepted = Accepted::of(&request.headers);
    let Some(best) = accepted.best(plain.len() < WORTH_COMPRESSING) else {
        return not_acceptable(&request.headers);
    };
    // Room for all, so that it need not grow.
    let mut headers = HeaderMap::with_capacity(12);
    headers.extend(coverage);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));

    // The client may have the list in another form than it would get now. That form counts only if the client still accepts
    // it, because a cache may ask for clients that do not.
    let mut forms = std::iter::once(best).chain(Encoding::ALL).filter(|form| accepted.takes(*form));
    if let Some(known) = forms.find(|form| has(&request.headers, list.etag(*form))) {
        headers.insert(header::ETAG, list.etag(known).clone());
        let mut response = answer(headers, Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        return response;
    }
    let body = match list.made(best) {
        // A waiting request has its list in memory even when the list has been replaced. So it waits for
        // [`MAX_WAIT_FOR_PAGE`] at most, and then gets the form without a Content-Encoding.
        None if api.find_room().is_ok() => {
            tokio::time::timeout(MAX_WAIT_FOR_PAGE, list.body(best)).await.ok().flatten()
        }
        made => made,
    };
    let (encoding, body) =
        body.map_or_else(|| (Encoding::Identity, plain.body()), |body| (best, body.into()));
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ETAG, list.etag(encoding).clone());
    if let Some(encoding) = encoding.header() {
        headers.insert(header::CONTENT_ENCODING, encoding);
    }
    answer(headers, body)
}

/// Takes the headers as they are: as a part of a tuple they would be put into another map one by one.
fn answer(headers: HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    response
}

fn not_acceptable(request: &HeaderMap) -> Response {
    let asked = request.get_all(header::ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    let asked: String = asked.collect::<Vec<_>>().join(", ");
    let expected = format!("one of {}", Encoding::ALL.map(Encoding::as_str).join(", "));
    invalid("Accept-Encoding", &asked, &expected)
        .with_status(StatusCode::NOT_ACCEPTABLE)
        .with_header(header::VARY, HeaderValue::from_static("Accept-Encoding"))
        .into_response()
}

pub(super) async fn health() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#)
}
