//! A model of the registry as the gateway calls it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Uri, header};
use muster_cluster::ids::{DeploymentId, ModelId, NodeId, PlacementEpoch, PlacementId};
use muster_cluster::rows::Model;
use rustls::ClientConfig;
use url::{Host, Url};

use super::origin::{Address, Origin};
use super::tally::ModelTally;

/// Marks what this fleet has sent to a provider: who gets it back is a provider whose address leads here.
pub(super) const HOP: &str = "muster-hop";

/// Names the model in what one gateway asks another.
pub(super) const MODEL: &str = "muster-model";

/// Names the replica in what one gateway asks another: `deployment/ordinal@epoch`.
pub(super) const PLACEMENT: &str = "muster-placement";

/// Says that the gateway that was asked does not serve the replica that it was asked for: another one may be asked.
pub(super) const NOT_SERVED: &str = "muster-not-served";

/// Says how new the copy of the state must be of the gateway that is asked.
pub(super) const INDEX: &str = "muster-index";

const USER_AGENT: HeaderValue = HeaderValue::from_static(concat!("muster/", env!("CARGO_PKG_VERSION")));

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// Providers that speak OpenAI's language at a known address.
const KNOWN: [(&str, &str); 6] = [
    ("openai", "https://api.openai.com/v1"),
    ("openrouter", "https://openrouter.ai/api/v1"),
    ("deepseek", "https://api.deepseek.com/v1"),
    ("mistral", "https://api.mistral.ai/v1"),
    ("grok", "https://api.x.ai/v1"),
    ("xai", "https://api.x.ai/v1"),
];

/// Providers that do not speak it, whatever their address.
const FOREIGN: [&str; 9] = [
    "anthropic",
    "google",
    "gemini",
    "claude-code",
    "gemini-cli",
    "codex-cli",
    "claude-agent-sdk",
    "cursor-agent-sdk",
    "openai-agent-sdk",
];

/// What a client can ask of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `POST /chat/completions`
    Chat,
    /// `POST /completions`
    Completions,
    /// `POST /embeddings`
    Embeddings,
}

impl Endpoint {
    const ALL: [Self; 3] = [Self::Chat, Self::Completions, Self::Embeddings];

    /// The path, without `/v1`.
    pub fn path(self) -> &'static str {
        match self {
            Self::Chat => "/chat/completions",
            Self::Completions => "/completions",
            Self::Embeddings => "/embeddings",
        }
    }
}

/// What a request to a model needs, worked out once for each version of the model.
#[derive(Debug)]
pub(super) struct Target {
    /// The model's name.
    pub name: String,
    /// The connections to its provider.
    pub origin: Arc<Origin>,
    paths: [Uri; 3],
    /// The headers of every request to it, its key among them.
    pub headers: HeaderMap,
    /// What the provider calls it.
    pub model_id: String,
    /// The same as a JSON string.
    pub written_id: Bytes,
    /// Whether another gateway is asked, which answers errors in our form already.
    pub is_node: bool,
    /// The deployment that it is a replica of.
    pub deployment: Option<DeploymentId>,
    /// Its counts.
    pub tally: ModelTally,
    /// What is under way to it from this thread.
    pub load: Load,
}

/// How many requests are under way.
#[derive(Debug, Default)]
pub(super) struct Load(Arc<AtomicU64>);

impl Load {
    /// So many.
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// One more, until it is dropped.
    pub fn departs(&self) -> Loaded {
        self.0.fetch_add(1, Ordering::Relaxed);
        Loaded(Arc::clone(&self.0))
    }
}

/// A request that is under way.
#[derive(Debug)]
pub(super) struct Loaded(Arc<AtomicU64>);

impl Drop for Loaded {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Target {
    /// The address to ask.
    pub fn uri(&self, endpoint: Endpoint) -> Uri {
        let [chat, completions, embeddings] = &self.paths;
        let uri = match endpoint {
            Endpoint::Chat => chat,
            Endpoint::Completions => completions,
            Endpoint::Embeddings => embeddings,
        };
        uri.clone()
    }
}

/// How a model is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach<'a> {
    /// From here, at this address.
    Here(&'a str),
    /// By the gateway of this node: the address means something there only.
    Through(NodeId),
}

/// Whether a model can be called at all, and how, or why not.
pub(super) fn reach(model: &Model, own: NodeId) -> Result<Reach<'_>, &'static str> {
    let Some(fields) = &model.fields else { return Err("it has no fields") };
    if FOREIGN.contains(&fields.provider()) {
        return Err("its provider does not speak OpenAI's language, and this version translates none");
    }
    let known = || KNOWN.into_iter().find(|(provider, _)| *provider == fields.provider()).map(|(_, url)| url);
    let url = fields.base_url.as_deref().or_else(known).ok_or("it has no baseUrl")?;
    match fields.node_id.map(NodeId) {
        Some(node) if node != own => Ok(Reach::Through(node)),
        _ => Ok(Reach::Here(url)),
    }
}

/// What all targets of a node share.
#[derive(Debug)]
pub(super) struct Common {
    /// The value of the header [`HOP`].
    pub hop: HeaderValue,
}

/// Works out a target.
///
/// # Errors
/// Says what is wrong with the model.
pub(super) fn target(
    model: &Model,
    url: &str,
    key: Option<&str>,
    common: &Common,
    origin: impl FnOnce(Address) -> Arc<Origin>,
    tally: ModelTally,
) -> Result<Target, &'static str> {
    let url = Url::parse(url).map_err(|_| "its baseUrl is none")?;
    let (host, authority) = match (url.host(), url.port()) {
        (Some(host), port) => {
            let bare = match &host {
                Host::Domain(name) => (*name).to_owned(),
                Host::Ipv4(address) => address.to_string(),
                Host::Ipv6(address) => address.to_string(),
            };
            (bare, port.map_or_else(|| host.to_string(), |port| format!("{host}:{port}")))
        }
        (None, _) => return Err("its baseUrl has no host"),
    };
    let port = url.port_or_known_default().ok_or("its baseUrl has no port")?;
    let base = url.path().trim_end_matches('/');
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    let path = |endpoint: Endpoint| {
        PathAndQuery::try_from(format!("{base}{}{query}", endpoint.path()))
            .map(Uri::from)
            .map_err(|_| "its path is none")
    };
    let [chat, completions, embeddings] = Endpoint::ALL.map(path);
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(header::HOST, HeaderValue::try_from(authority).map_err(|_| "its host can not be sent")?);
    headers.insert(header::CONTENT_TYPE, JSON);
    headers.insert(header::USER_AGENT, USER_AGENT);
    headers.insert(HOP, common.hop.clone());
    if let Some(key) = key {
        let mut value = HeaderValue::try_from(format!("Bearer {key}")).map_err(|_| "its key can not be sent")?;
        value.set_sensitive(true);
        headers.insert(header::AUTHORIZATION, value);
    }
    let fields = model.fields.clone().unwrap_or_default();
    let model_id = fields.model_id.unwrap_or_default();
    let written_id = serde_json::to_vec(&model_id).map_err(|_| "its modelId can not be sent")?;
    Ok(Target {
        name: fields.name.unwrap_or_default(),
        origin: origin(Address::Provider { tls: url.scheme() == "https", host, port }),
        paths: [chat?, completions?, embeddings?],
        headers,
        model_id,
        written_id: written_id.into(),
        is_node: false,
        deployment: None,
        tally,
        load: Load::default(),
    })
}

/// The target for a model that another node calls.
///
/// # Errors
/// Says what is wrong with the model.
pub(super) fn through(
    model: &Model,
    id: ModelId,
    index: u64,
    origin: Arc<Origin>,
    tally: ModelTally,
) -> Result<Target, &'static str> {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(header::HOST, HeaderValue::from_static("node.muster"));
    headers.insert(header::CONTENT_TYPE, JSON);
    headers.insert(MODEL, HeaderValue::try_from(id.to_string()).map_err(|_| "its id can not be sent")?);
    headers.insert(INDEX, HeaderValue::from(index));
    let fields = model.fields.clone().unwrap_or_default();
    let model_id = fields.model_id.unwrap_or_default();
    let written_id = serde_json::to_vec(&model_id).map_err(|_| "its modelId can not be sent")?;
    Ok(Target {
        name: fields.name.unwrap_or_default(),
        origin,
        paths: Endpoint::ALL.map(|endpoint| Uri::from_static(endpoint.path())),
        headers,
        model_id,
        written_id: written_id.into(),
        is_node: true,
        deployment: None,
        tally,
        load: Load::default(),
    })
}

/// What is known of a replica that is called.
pub(super) struct ReplicaOf<'a> {
    pub placement: PlacementId,
    pub epoch: PlacementEpoch,
    /// What clients call the deployment.
    pub name: &'a str,
    /// What its engine calls what is meant.
    pub model_id: &'a str,
}

impl ReplicaOf<'_> {
    fn target(
        &self,
        origin: Arc<Origin>,
        headers: HeaderMap,
        tally: ModelTally,
        below: &str,
        is_node: bool,
    ) -> Option<Target> {
        let path = |endpoint: Endpoint| Uri::try_from(format!("{below}{}", endpoint.path())).ok();
        let [chat, completions, embeddings] = Endpoint::ALL.map(path);
        Some(Target {
            name: self.name.to_owned(),
            origin,
            paths: [chat?, completions?, embeddings?],
            headers,
            model_id: self.model_id.to_owned(),
            written_id: serde_json::to_vec(self.model_id).ok()?.into(),
            is_node,
            deployment: Some(self.placement.deployment),
            tally,
            load: Load::default(),
        })
    }

    /// The target for a replica of this machine.
    pub fn here(&self, origin: Arc<Origin>, tally: ModelTally) -> Option<Target> {
        let mut headers = HeaderMap::with_capacity(6);
        headers.insert(header::HOST, HeaderValue::from_static("engine.muster"));
        headers.insert(header::CONTENT_TYPE, JSON);
        headers.insert(header::USER_AGENT, USER_AGENT);
        self.target(origin, headers, tally, "/v1", false)
    }

    /// The target for a replica of another node, whose gateway is asked.
    pub fn there(&self, index: u64, origin: Arc<Origin>, tally: ModelTally) -> Option<Target> {
        let mut headers = HeaderMap::with_capacity(6);
        headers.insert(header::HOST, HeaderValue::from_static("node.muster"));
        headers.insert(header::CONTENT_TYPE, JSON);
        headers.insert(PLACEMENT, HeaderValue::try_from(format!("{}@{}", self.placement, self.epoch)).ok()?);
        headers.insert(INDEX, HeaderValue::from(index));
        self.target(origin, headers, tally, "", true)
    }
}

/// Reads what [`PLACEMENT`] says.
pub(super) fn placement(text: &str) -> Option<(PlacementId, PlacementEpoch)> {
    let (placement, epoch) = text.split_once('@')?;
    let (deployment, ordinal) = placement.split_once('/')?;
    let deployment = DeploymentId(deployment.parse().ok()?);
    Some((PlacementId { deployment, ordinal: ordinal.parse().ok()? }, PlacementEpoch(epoch.parse().ok()?)))
}

/// What providers are trusted by, made when the first one with TLS is called: the certificates of the machine.
#[derive(Debug, Default)]
pub(super) struct Trust(OnceLock<Option<Arc<ClientConfig>>>);

impl Trust {
    /// The configuration of TLS to providers.
    pub fn config(&self) -> Option<Arc<ClientConfig>> {
        self.0.get_or_init(load_trust).clone()
    }
}

fn load_trust() -> Option<Arc<ClientConfig>> {
    let mut roots = rustls::RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a certificate of this machine can not be read");
    }
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    tracing::debug!(added, ignored, "the certificates that providers are trusted by");
    if added == 0 {
        tracing::warn!(
            "this machine trusts no certificates (ca-certificates is missing?): no provider with https answers"
        );
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    match builder {
        Ok(builder) => {
            let mut config = builder.with_root_certificates(roots).with_no_client_auth();
            config.alpn_protocols = vec![b"http/1.1".to_vec()];
            Some(Arc::new(config))
        }
        Err(error) => {
            tracing::error!(%error, "there is no TLS to providers");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_cluster::rows::ModelFields;

    use super::super::origin::Way;
    use super::super::tally::Tally;
    use super::*;

    fn model(provider: &str, base_url: Option<&str>) -> Model {
        let fields = ModelFields {
            name: Some("a name".to_owned()),
            provider: Some(provider.to_owned()),
            model_id: Some("its \"id\"".to_owned()),
            base_url: base_url.map(ToOwned::to_owned),
            ..ModelFields::default()
        };
        Model { fields: Some(fields), ..Model::default() }
    }

    fn made(url: &str, key: Option<&str>) -> Target {
        let common = Common { hop: HeaderValue::from_static("x") };
        let origin = |address| Arc::new(Origin::new(address, Way::Plain));
        let model = model("openai-compatible", Some(url));
        target(&model, url, key, &common, origin, Tally::default().of("a name")).expect("a target")
    }

    #[test]
    fn the_base_url_is_used_as_it_is_given() {
        for (url, host, port, authority, path) in [
            ("http://ollama:11434/v1", "ollama", 11434, "ollama:11434", "/v1/chat/completions"),
            ("http://h/v1/", "h", 80, "h", "/v1/chat/completions"),
            ("http://127.0.0.1:9", "127.0.0.1", 9, "127.0.0.1:9", "/chat/completions"),
            ("https://[::1]:8443/a/b?v=1", "::1", 8443, "[::1]:8443", "/a/b/chat/completions?v=1"),
        ] {
            let target = made(url, None);
            let Address::Provider { tls, host: found, port: found_port } = target.origin.address() else {
                panic!("{url}")
            };
            assert_eq!((*tls, found.as_str(), *found_port), (url.starts_with("https"), host, port), "{url}");
            assert_eq!(target.headers[header::HOST], authority, "{url}");
            assert_eq!(target.uri(Endpoint::Chat), path, "{url}");
        }
        assert_eq!(made("http://h/v1", None).uri(Endpoint::Embeddings), "/v1/embeddings");
        assert_eq!(made("http://h/v1", None).uri(Endpoint::Completions), "/v1/completions");
    }

    #[test]
    fn the_key_is_sent_and_never_shown() {
        let target = made("http://h/v1", Some("sk-example"));
        assert_eq!(target.headers[header::AUTHORIZATION], "Bearer sk-example");
        assert!(!format!("{target:?}").contains("sk-example"));
        assert!(made("http://h/v1", None).headers.get(header::AUTHORIZATION).is_none());
        assert_eq!(&target.written_id[..], br#""its \"id\"""#);
    }

    #[test]
    fn what_can_not_be_called_says_why() {
        let one = NodeId(1);
        assert_eq!(reach(&model("openai", None), one), Ok(Reach::Here("https://api.openai.com/v1")));
        assert_eq!(reach(&model("openai", Some("http://own/v1")), one), Ok(Reach::Here("http://own/v1")));
        assert!(reach(&model("ollama", None), one).is_err());
        assert!(reach(&model("anthropic", Some("http://own/v1")), one).is_err());
        let mut elsewhere = model("vllm", Some("http://127.0.0.1/v1"));
        elsewhere.fields.as_mut().expect("fields").node_id = Some(2);
        assert_eq!(reach(&elsewhere, one), Ok(Reach::Through(NodeId(2))));
        assert_eq!(reach(&elsewhere, NodeId(2)), Ok(Reach::Here("http://127.0.0.1/v1")));
    }
}
