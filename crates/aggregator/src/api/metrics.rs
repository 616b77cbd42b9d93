//! `/metrics`.

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};

use super::Api;
use super::auth::Right;
use super::parameters::NoParameters;
use super::problem::Problem;
use crate::metrics::Format;

/// The path of the metrics, and of the right to them.
pub(super) const PATH: &str = "/metrics";

pub(super) async fn metrics(
    State(api): State<Api>,
    headers: HeaderMap,
    _: NoParameters,
) -> Result<Response, Problem> {
    let auth = &api.operators.auth;
    let caller = auth.authenticate(&headers).await?;
    auth.authorize(&caller, &Right::Path(PATH)).await?;
    api.find_room()?;
    let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    let format = Format::accepted(accept);
    let text = api.operators.metrics.write(format, auth.trouble().await).await;
    let media_type = HeaderValue::from_static(format.media_type());
    Ok(([(header::CONTENT_TYPE, media_type)], text).into_response())
}
