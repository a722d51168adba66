//! What the outside world talks to: REST, the OpenAI-compatible gateway, the agents' and dashboards' WebSockets. It reaches
//! another node's machine only through the agent's RPC client.
