//! `/ws`: what has changed, for those who keep a picture of the fleet (seed 004). From any node, in one order: whoever has heard
//! something on one node goes on after it on another.

mod news;
mod nodes;
mod socket;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::response::Response;
use http::HeaderValue;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::auth::Listener;
use crate::error::{ApiError, ErrorBody};
use crate::request::number;
use crate::server::{Afterwards, Leaving};
use crate::state::ApiState;
use news::Event;
use socket::{Feed, Rules};

/// How many sockets a node has open at once.
pub(crate) const SOCKETS: usize = 1000;

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
struct ListenQuery {
    /// Goes on after this `seq`, heard on whichever node, or after the `x-muster-applied-index` of a read. Left out: from now on.
    #[param(value_type = Option<u64>)]
    from: Option<String>,
}

/// What changes, as it changes: a WebSocket, with one object in each text message. What a client sends is ignored; a message of
/// more than 4 KiB closes the socket, and so does a client that answers no ping. 1012 says that another process takes the place
/// of this one, 1001 that the node stops: a client goes on there or on another node with `?from=`.
#[utoipa::path(get, path = "/ws", tag = "events", params(ListenQuery),
    responses((status = 101, description = "The socket is open; `x-muster-applied-index` says after which entry it begins",
            body = Event),
        (status = 400, body = ErrorBody), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody),
        (status = 422, body = ErrorBody), (status = 503, body = ErrorBody)))]
async fn listen(
    State(state): State<ApiState>,
    Extension(listener): Extension<Listener>,
    mut request: Request,
) -> Result<Response, ApiError> {
    let query = Query::<ListenQuery>::try_from_uri(request.uri());
    let query = query.map_err(|error| ApiError::Senseless(error.body_text()))?;
    let from = query.0.from.as_deref().map(|from| number("from", from)).transpose()?;
    let mut response = create_response_with_body(&request, Body::empty)
        .map_err(|error| ApiError::Senseless(format!("this is a WebSocket: {error}")))?;
    let member = state.member()?;
    let place = Arc::clone(&state.sockets).try_acquire_owned();
    let place = place.map_err(|_| ApiError::Overloaded(format!("{SOCKETS} sockets are open; try another node")))?;
    let feed = Feed::new(member.replica.published, member.replica.gossip.follow(), from, listener);
    response.headers_mut().insert("x-muster-applied-index", HeaderValue::from(feed.begins_after()));
    let upgrade = hyper::upgrade::on(&mut request);
    let afterwards = Afterwards::new(move |leaving: Leaving| async move {
        let _place = place;
        match upgrade.await {
            Ok(upgraded) => socket::serve(TokioIo::new(upgraded), feed, leaving, Rules::default()).await,
            Err(error) => tracing::debug!(%error, "a socket was not opened"),
        }
    });
    response.extensions_mut().insert(afterwards);
    Ok(response)
}

/// The route, which needs a viewer.
pub(crate) fn router() -> OpenApiRouter<ApiState> {
    OpenApiRouter::new().routes(routes!(listen))
}
