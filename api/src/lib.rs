//! What the outside world talks to: REST, the OpenAI-compatible gateway, the agents' and dashboards' WebSockets. It reaches
//! another node's machine only through the agent's RPC client.
//!
//! Open first: `rest` for the routes, `error` for what an error becomes, `request` for what handlers take from a request.

mod auth;
mod context;
pub mod docs;
mod error;
mod events;
mod fields;
mod gateway;
mod metrics;
mod request;
mod rest;
pub mod server;
mod state;
mod upstream;

pub use gateway::{
    AtDoor, Environment, ForNodes, Front, Gateway, GatewayBody, GatewayOptions, Proxy, Worker, is_gateway_path,
};
pub use rest::{openapi, service};
pub use state::{ApiOptions, ApiState, AuthMode, Member, Phase, Replica, UNCONFIGURED};
