//! The two endpoints of the first README, in exactly its shapes.

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::Api;
use super::list::Current;
use super::negotiation::{Accepted, Encoding, has};
use super::page::MAX_WAIT_FOR_PAGE;
use super::parameters::{NAMESPACE, NoParameters, Pairs, Parameter};
use super::pieces::Cmdlines;
use super::problem::Problem;
use super::reader::Reading;
use super::refusal::invalid;

/// The parameters of the list.
pub(super) const PARAMETERS: &[Parameter] = &[NAMESPACE];
/// Below this, compression saves no packet.
pub(super) const WORTH_COMPRESSING: usize = 1024;

pub(super) async fn violations(State(api): State<Api>, request: Request) -> Result<Response, Problem> {
    let (request, _) = request.into_parts();
    let query = Pairs::of(&request.uri);
    let is_anonymous =
        api.operators.anonymous_violations && !request.headers.contains_key(header::AUTHORIZATION);
    let (reader, _) = if is_anonymous {
        Api::anonymous_reader(query, PARAMETERS)?
    } else {
        api.reader(&request.headers, Reading::List, query, PARAMETERS).await?
    };
    let is_whole = !api.operators.redacts || (!is_anonymous && api.shows_cmdlines(&reader).await);
    let cmdlines = if is_whole { Cmdlines::Whole } else { Cmdlines::Redacted };
    match reader.namespace() {
        Some(namespace) => api.list_of_namespace(&request.headers, namespace, cmdlines).await,
        None => whole(&api, &request.headers, cmdlines).await,
    }
}

/// The list of all namespaces.
async fn whole(api: &Api, request: &HeaderMap, cmdlines: Cmdlines) -> Result<Response, Problem> {
    let Current { list, headers: coverage, .. } = api.lists.of(cmdlines).current(&*api.snapshot().await);
    let plain = list.plain().await.ok_or_else(not_serialised)?;
    let accepted = Accepted::of(request);
    let best = accepted.best(plain.len() < WORTH_COMPRESSING).ok_or_else(|| not_acceptable(request))?;
    let mut headers = headers();
    headers.extend(coverage);

    // The client may have the list in another form than it would get now. That form counts only if the client still accepts
    // it, because a cache may ask for clients that do not.
    let mut forms = std::iter::once(best).chain(Encoding::ALL).filter(|form| accepted.takes(*form));
    if let Some(known) = forms.find(|form| has(request, list.etag(*form))) {
        return Ok(not_modified(headers, list.etag(known)));
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
    Ok(answer(headers, list.etag(encoding), encoding, body))
}

/// The headers of every form of the list. They have room for all others, so that they need not grow.
pub(super) fn headers() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(12);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
    headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding, Authorization"));
    headers
}

pub(super) fn not_modified(mut headers: HeaderMap, etag: &HeaderValue) -> Response {
    headers.insert(header::ETAG, etag.clone());
    let mut response = with(headers, Body::empty());
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response
}

/// The answer with the list in one form.
pub(super) fn answer(mut headers: HeaderMap, etag: &HeaderValue, encoding: Encoding, body: Body) -> Response {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::ETAG, etag.clone());
    if let Some(encoding) = encoding.header() {
        headers.insert(header::CONTENT_ENCODING, encoding);
    }
    with(headers, body)
}

/// Takes the headers as they are: as a part of a tuple they would be put into another map one by one.
fn with(headers: HeaderMap, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    response
}

pub(super) fn not_serialised() -> Problem {
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "the list can't be serialised")
}

pub(super) fn not_acceptable(request: &HeaderMap) -> Problem {
    let asked = request.get_all(header::ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    let asked: String = asked.collect::<Vec<_>>().join(", ");
    let expected = format!("one of {}", Encoding::ALL.map(Encoding::as_str).join(", "));
    invalid("Accept-Encoding", &asked, &expected)
        .with_status(StatusCode::NOT_ACCEPTABLE)
        .with_header(header::VARY, HeaderValue::from_static("Accept-Encoding, Authorization"))
}

pub(super) async fn health(_: NoParameters) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], r#"{"status":"ok"}"#)
}
