//! The listener of one placement: its engine, for whoever has a key that may use its deployment.
//!
//! It serves that placement in that epoch and nothing else. What the engine's list of routes allows is passed on with its
//! method, query and body; every other spelling of anything is not there. Everybody here is a client: the gateways of other
//! nodes ask for a replica on the mesh port (`answer_for_replica`), so nothing here looks at first bytes or at ALPN.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderValue, Method, Request, Response, Uri, header};
use muster_agent::engine;
use muster_agent::serving::Served;
use muster_cluster::ids::{PlacementEpoch, PlacementId};
use serde_json::json;
use tower::Service;

use super::body::{Collected, Form, GatewayBody};
use super::deployments::Own;
use super::error::GatewayError;
use super::forward::{Asked, Call, Route};
use super::origin::CONNECT_LIMIT;
use super::resolve::shown;
use super::target::ReplicaOf;
use super::{Answering, Worker, json as answer_json};
use crate::context::{REQUEST_ID, TRACEPARENT};
use crate::server::RequestBody;

/// The routes that take a JSON object and nothing else. Of the others, the engine judges the body.
const JSON_ONLY: [&str; 3] = ["/v1/chat/completions", "/v1/completions", "/v1/embeddings"];

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// A placement in one of its epochs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Seat {
    pub placement: PlacementId,
    pub epoch: PlacementEpoch,
}

impl Worker {
    /// What the listener of a placement answers with, in this epoch.
    pub fn at_door(&self, placement: PlacementId, epoch: PlacementEpoch) -> AtDoor {
        AtDoor { worker: self.clone(), seat: Seat { placement, epoch } }
    }

    async fn answer_at_door(self, request: Request<RequestBody>, seat: Seat) -> Response<GatewayBody> {
        let request_id = self.request_id(&request);
        let mut model = String::new();
        let answering = AssertUnwindSafe(self.try_answer_at_door(request, seat, &request_id, &mut model));
        let panicked = |_| Err(GatewayError::Internal("a request to a placement has panicked".to_owned()));
        let answer = answering.catch_unwind().await.unwrap_or_else(panicked);
        let mut response = answer.unwrap_or_else(|error| {
            let response = error.respond();
            self.0.gateway.shared.tally.refused(&model, response.status());
            tracing::debug!(model, placement = %seat.placement, %error, ?request_id, "a request to a placement failed");
            response
        });
        response.headers_mut().insert(REQUEST_ID, request_id);
        response
    }

    async fn try_answer_at_door(
        &self,
        mut request: Request<RequestBody>,
        seat: Seat,
        request_id: &HeaderValue,
        model: &mut String,
    ) -> Result<Response<GatewayBody>, GatewayError> {
        let gateway = &self.0.gateway;
        let path = request.uri().path();
        if path == "/health" && matches!(*request.method(), Method::GET | Method::HEAD) {
            let served = self.with_replica(|_, replica| Ok(replica.serving.find(seat.placement, seat.epoch)))?;
            served.ok_or(GatewayError::NotReady("the model takes no requests yet"))?;
            return Ok(answer_json(Bytes::from_static(br#"{"status":"ok"}"#)));
        }
        let own = self.with_replica(|resolver, replica| resolver.own(replica, seat))?;
        let own = own.ok_or(GatewayError::NoRoute)?;
        if !engine::of(own.engine()).is_public(request.method(), path) {
            return Err(GatewayError::NoRoute);
        }
        let settings = self.with_replica(|resolver, replica| {
            let (settings, access) = resolver.admit(replica, request.headers(), &gateway.shared)?;
            if access.allows(own.id()) { Ok(settings) } else { Err(GatewayError::DoorDenied) }
        })?;
        own.name().clone_into(model);
        let served = self.served(seat, &own)?;
        if path == "/v1/models" {
            return Ok(answer_json(Bytes::from(json!({ "object": "list", "data": own.listed() }).to_string())));
        }
        let form = if JSON_ONLY.contains(&path) { Form::Json } else { Form::Any };
        let traceparent = request.headers_mut().remove(TRACEPARENT);
        let (head, body) = request.into_parts();
        let body = Collected::read(body, gateway.body_limit, &gateway.held, form).await?;
        let (written, name) = body.model().unwrap_or_default();
        let model_id = match own.called(&name) {
            Some(model_id) => model_id,
            None if form == Form::Json && !name.is_empty() => {
                return Err(GatewayError::UnknownName { name: shown(&name), others: own.names() });
            }
            // The engine serves one model: it needs no name, and it knows best what else it is sent.
            None => own.name(),
        };
        let busy = served.admit().ok_or_else(|| own.missing())?;
        let target = self.with_replica(|resolver, _| {
            let of = ReplicaOf { placement: seat.placement, epoch: seat.epoch, name: own.name(), model_id };
            resolver.engine(&of, served.endpoint(), &gateway.shared).ok_or_else(|| own.missing())
        })?;
        let name = if own.called(&name).is_some() { name } else { model_id.to_owned() };
        let header = |name: header::HeaderName| head.headers.get(name).cloned();
        let route = Route {
            method: head.method,
            uri: head.uri.path_and_query().cloned().map(Uri::from).ok_or(GatewayError::NoRoute)?,
            // As the gateway does: many clients do not say that what they send is JSON, or say something else.
            content_type: if body.is_json { Some(JSON) } else { header(header::CONTENT_TYPE) },
            accept: header(header::ACCEPT),
        };
        let (asked, request_id) = (Asked::Route(Box::new(route)), request_id.clone());
        let call = Call { asked, body, written, name, request_id, traceparent, timeout: settings.timeout };
        Box::pin(call.run(&target, Some(busy), CONNECT_LIMIT)).await
    }

    /// The unit, if it takes requests.
    fn served(&self, seat: Seat, own: &Own) -> Result<Arc<Served>, GatewayError> {
        let served = self.with_replica(|_, replica| Ok(replica.serving.find(seat.placement, seat.epoch)))?;
        served.ok_or_else(|| own.missing())
    }
}

/// The service of a placement's listener.
#[derive(Clone)]
pub struct AtDoor {
    worker: Worker,
    seat: Seat,
}

impl Service<Request<RequestBody>> for AtDoor {
    type Response = Response<GatewayBody>;
    type Error = Infallible;
    type Future = Answering<GatewayBody>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<RequestBody>) -> Self::Future {
        Box::pin(self.worker.clone().answer_at_door(request, self.seat).map(Ok))
    }
}
