//! Who asks, and which model is meant: answered from this node's copy of the state, without waiting for anything.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, header};
use muster_agent::runtime::Endpoint;
use muster_cluster::ids::{CredentialId, ModelId, NodeId, PlacementEpoch, PlacementId};
use muster_cluster::membership::Liveness;
use muster_cluster::planner::balance::Candidate;
use muster_cluster::rows::Model;
use muster_cluster::state::{Stored, View, api_key_name, key_hash, scope};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::Environment;
use super::deployments::{self, Access, Meant, Own};
use super::door::Seat;
use super::error::GatewayError;
use super::origin::{Address, Origin, Way};
use super::tally::Tally;
use super::target::{Common, HOP, Reach, ReplicaOf, Target, Trust, reach, target, through};
use super::uses::{LastUse, Uses};
use crate::state::Replica;

/// How many keys and names a thread remembers. They are the fleet's own, so that only a very large fleet has more.
const REMEMBERED: usize = 100_000;

/// How long a node that has failed is asked last.
const EJECTED: Duration = Duration::from_secs(3);

/// How many replicas a thread remembers how to call.
const REPLICAS: usize = 10_000;

/// How often connections that nobody uses are looked for.
const SWEEP: Duration = Duration::from_secs(5);

/// What a thread has read of the state, each with the index at which it was seen to hold.
///
/// Nothing here is older than the state: an entry that was seen at another index is read again.
#[derive(Debug, Default)]
pub(super) struct Resolver {
    settings: Option<(u64, GatewaySettings)>,
    keys: HashMap<[u8; 32], (u64, Key)>,
    models: HashMap<String, (u64, Known)>,
    list: Option<(u64, Bytes)>,
    deployments: HashMap<String, (u64, Arc<Meant>)>,
    own: HashMap<Seat, (u64, Arc<Own>)>,
    replicas: HashMap<ReplicaKey, Arc<Target>>,
    /// Nodes that have just failed, and until when others are asked first.
    ejected: HashMap<NodeId, Instant>,
    common: Option<Arc<Common>>,
    origins: HashMap<Address, Arc<Origin>>,
    swept: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct GatewaySettings {
    enabled: bool,
    /// How long an answer may take, and how long a stream may pause.
    pub timeout: Duration,
}

#[derive(Clone, Debug)]
struct Key {
    id: CredentialId,
    expires_ms: Option<u64>,
    access: Access,
    last: Arc<LastUse>,
}

/// A replica, and what its engine calls what is meant.
type ReplicaKey = (PlacementId, PlacementEpoch, String);

/// What a caller means.
pub(super) enum Aim {
    /// A model of the registry.
    Model(Arc<Target>),
    /// A deployment.
    Deployment(Arc<Meant>),
}

#[derive(Clone, Debug)]
struct Known {
    id: ModelId,
    mod_index: u64,
    target: Arc<Target>,
}

/// What a thread shares with the others.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub tally: Arc<Tally>,
    pub trust: Trust,
    pub environment: Environment,
    pub uses: Arc<Uses>,
}

/// The key of `Authorization: Bearer`, or of `x-api-key`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let (scheme, key) = value.to_str().ok()?.split_once(' ')?;
        return Some(key.trim()).filter(|key| scheme.eq_ignore_ascii_case("bearer") && !key.is_empty());
    }
    headers.get("x-api-key")?.to_str().ok().map(str::trim).filter(|key| !key.is_empty())
}

impl Resolver {
    /// Lets in who has a key of the gateway, and says what the key may use.
    pub fn admit(
        &mut self,
        replica: &Replica,
        headers: &HeaderMap,
        shared: &Shared,
    ) -> Result<(GatewaySettings, Access), GatewayError> {
        let published = &replica.published;
        let settings = published.with(|view| self.settings(view))?;
        if !settings.enabled {
            return Err(GatewayError::Disabled);
        }
        if headers.get(HOP).is_some_and(|hop| *hop == self.common(replica).hop) {
            return Err(GatewayError::Loop);
        }
        let key = bearer(headers).ok_or(GatewayError::InvalidKey("send a key as Authorization: Bearer"))?;
        const UNKNOWN: GatewayError = GatewayError::InvalidKey("this key is unknown, expired or revoked");
        let key = published.with(|view| self.key(view, key, &shared.uses))?.ok_or(UNKNOWN)?;
        let now = published.time()?.0;
        if key.expires_ms.is_some_and(|expires| expires <= now) {
            return Err(UNKNOWN);
        }
        key.last.at(now);
        Ok((settings, key.access))
    }

    /// How long an answer may take.
    pub fn timeout(&mut self, replica: &Replica) -> Result<Duration, GatewayError> {
        replica.published.with(|view| self.settings(view)).map(|settings| settings.timeout)
    }

    fn settings(&mut self, view: &View) -> Result<GatewaySettings, GatewayError> {
        let index = view.index();
        match self.settings {
            Some((seen, settings)) if seen == index => Ok(settings),
            _ => {
                let (settings, _) = view.settings()?;
                let timeout = Duration::from_secs(settings.gateway_timeout_seconds.unwrap_or(600));
                let settings = GatewaySettings { enabled: settings.gateway_enabled.unwrap_or(true), timeout };
                self.settings = Some((index, settings));
                Ok(settings)
            }
        }
    }

    fn key(&mut self, view: &View, key: &str, uses: &Uses) -> Result<Option<Key>, GatewayError> {
        let (hash, index) = (key_hash(key), view.index());
        if let Some((seen, key)) = self.keys.get(&hash)
            && *seen == index
        {
            return Ok(Some(key.clone()));
        }
        let known = self.keys.get(&hash).map(|(_, key)| (key.id, Arc::clone(&key.last)));
        let found = view.credential_by_hash(&hash)?.and_then(|(id, credential)| {
            let access = match scope(&credential)? {
                None => Access::Everything,
                Some(scope) => Access::Deployments(scope.deployments.as_slice().into()),
            };
            // Found again without the lock that all threads share: the state moves on with every write.
            let last = known.filter(|(known, _)| *known == id).map_or_else(|| uses.of(id), |(_, last)| last);
            Some(Key { id, expires_ms: credential.expires_ms, access, last })
        });
        match &found {
            Some(key) => {
                if self.keys.len() >= REMEMBERED {
                    self.keys.clear();
                }
                self.keys.insert(hash, (index, key.clone()));
            }
            None => drop(self.keys.remove(&hash)),
        }
        Ok(found)
    }

    /// The model that another gateway asks for. Its address must be one of this node's own.
    pub fn own_model(&mut self, replica: &Replica, id: ModelId, shared: &Shared) -> Result<Arc<Target>, GatewayError> {
        let name = replica.published.with(|view| -> Result<_, GatewayError> {
            let stored = view.model(id)?;
            let own = stored.filter(|model| matches!(reach(&model.row, replica.identity.node), Ok(Reach::Here(_))));
            Ok(own.and_then(|model| model.row.fields?.name))
        })?;
        let name = name.ok_or_else(|| GatewayError::ModelNotFound(id.to_string()))?;
        self.model(replica, &name, shared)
    }

    /// The model that has this name, or this name at the proxy.
    pub fn model(&mut self, replica: &Replica, name: &str, shared: &Shared) -> Result<Arc<Target>, GatewayError> {
        self.sweep();
        replica.published.with(|view| {
            let index = view.index();
            let known = self.models.get_mut(name);
            let before = match known {
                Some((seen, known)) if *seen == index => return Ok(Arc::clone(&known.target)),
                Some((_, known)) => Some(known.clone()),
                None => None,
            };
            let found = find(view, name)?.filter(|(_, model)| is_served(&model.row));
            let Some((id, Stored { row, mod_index })) = found else {
                self.models.remove(name);
                return Err(GatewayError::ModelNotFound(name.chars().take(200).collect()));
            };
            let target = match before {
                Some(before) if before.id == id && before.mod_index == mod_index => before.target,
                _ => Arc::new(self.make(replica, view, id, &row, shared)?),
            };
            if self.models.len() >= REMEMBERED {
                self.models.clear();
            }
            self.models.insert(name.to_owned(), (index, Known { id, mod_index, target: Arc::clone(&target) }));
            Ok(target)
        })
    }

    fn make(
        &mut self,
        replica: &Replica,
        view: &View,
        id: ModelId,
        row: &Model,
        shared: &Shared,
    ) -> Result<Target, GatewayError> {
        let name = row.fields.as_ref().map_or("", |fields| fields.name());
        let unsupported = |why| GatewayError::Unsupported { model: name.to_owned(), why };
        let tally = shared.tally.of(name);
        let url = match reach(row, replica.identity.node).map_err(unsupported)? {
            Reach::Here(url) => url,
            Reach::Through(node) => {
                let address = Address::Node(node);
                let make = || Arc::new(Origin::new(address.clone(), Way::Mesh(Arc::clone(&replica.channels))));
                let origin = Arc::clone(self.origins.entry(address.clone()).or_insert_with(make));
                return through(row, id, view.index(), origin, tally).map_err(unsupported);
            }
        };
        let key = if row.has_api_key {
            let secret = api_key_name(id);
            let sealed = view.secret(&secret)?.ok_or_else(|| unsupported("its key is missing"))?;
            let opened = replica.keyring.open(&secret, &sealed);
            Some(opened.map_err(|_| unsupported("this node can not open its key yet"))?)
        } else if let Some(reference) = row.fields.as_ref().and_then(|fields| fields.api_key_ref.as_deref()) {
            let variable = reference.strip_prefix("env:");
            let variable = variable.ok_or_else(|| unsupported("its apiKeyRef names no key that this node knows"))?;
            let value = shared.environment.get(variable);
            Some(value.ok_or_else(|| unsupported("the variable of its apiKeyRef is not set on this node"))?)
        } else {
            None
        };
        let common = self.common(replica);
        let origins = &mut self.origins;
        let origin = |address: Address| {
            let way = match &address {
                Address::Provider { tls: true, .. } => shared.trust.config().map_or(Way::None, Way::Tls),
                _ => Way::Plain,
            };
            Arc::clone(origins.entry(address.clone()).or_insert_with(|| Arc::new(Origin::new(address, way))))
        };
        let key = key.as_ref().map(|key| key.reveal());
        target(row, url, key, &common, origin, tally).map_err(unsupported)
    }

    fn common(&mut self, replica: &Replica) -> Arc<Common> {
        let make = || {
            let digest = Sha256::digest([b"muster hop ", replica.identity.fleet.as_bytes().as_slice()].concat());
            let hop = data_encoding::HEXLOWER.encode(&digest[..8]);
            // Hexadecimal digits are a header's value.
            Arc::new(Common { hop: HeaderValue::try_from(hop).unwrap_or_else(|_| HeaderValue::from_static("muster")) })
        };
        Arc::clone(self.common.get_or_insert_with(make))
    }

    /// Closes what nobody has used for a while, and forgets providers that nobody asks any more.
    fn sweep(&mut self) {
        if self.swept.is_some_and(|swept| swept.elapsed() < SWEEP) {
            return;
        }
        self.swept = Some(Instant::now());
        self.origins.retain(|_, origin| {
            origin.sweep();
            Arc::strong_count(origin) > 1 || !origin.is_idle()
        });
    }

    /// What a caller with this access means by a name.
    pub fn permitted(
        &mut self,
        replica: &Replica,
        name: &str,
        access: &Access,
        shared: &Shared,
    ) -> Result<Aim, GatewayError> {
        let missing = match self.model(replica, name, shared) {
            Ok(target) if *access == Access::Everything => return Ok(Aim::Model(target)),
            Err(missing @ GatewayError::ModelNotFound(_)) => missing,
            // It is there, and not for this key.
            Ok(_) => return Err(GatewayError::AccessDenied(shown(name))),
            Err(_) if *access != Access::Everything => return Err(GatewayError::AccessDenied(shown(name))),
            Err(error) => return Err(error),
        };
        replica.published.with(|view| {
            let index = view.index();
            if let Some((seen, meant)) = self.deployments.get(name)
                && *seen == index
                && *access == Access::Everything
            {
                return Ok(Aim::Deployment(Arc::clone(meant)));
            }
            let found = match deployments::meant(view, name, access)? {
                Some(found) => Arc::new(found),
                None if view.has_deployments() => {
                    let others = deployments::told(view, access)?;
                    return Err(GatewayError::UnknownName { name: shown(name), others });
                }
                None => return Err(missing),
            };
            // What a key with a scope may use is not what others may.
            if *access == Access::Everything {
                if self.deployments.len() >= REMEMBERED {
                    self.deployments.clear();
                }
                self.deployments.insert(name.to_owned(), (index, Arc::clone(&found)));
            }
            Ok(Aim::Deployment(found))
        })
    }

    /// What is known of the deployment of a placement of this node, while it is in this epoch.
    pub fn own(&mut self, replica: &Replica, seat: Seat) -> Result<Option<Arc<Own>>, GatewayError> {
        replica.published.with(|view| {
            let index = view.index();
            if let Some((seen, own)) = self.own.get(&seat)
                && *seen == index
            {
                return Ok(Some(Arc::clone(own)));
            }
            let own = Own::of(view, seat)?.map(Arc::new);
            if self.own.len() >= REPLICAS {
                self.own.clear();
            }
            match &own {
                Some(own) => drop(self.own.insert(seat, (index, Arc::clone(own)))),
                None => drop(self.own.remove(&seat)),
            }
            Ok(own)
        })
    }

    /// How a replica of this machine is called whose engine listens there.
    pub fn engine(&mut self, replica: &ReplicaOf<'_>, endpoint: &Endpoint, shared: &Shared) -> Option<Arc<Target>> {
        self.sweep();
        let address = Address::Engine(endpoint.clone());
        let key = (replica.placement, replica.epoch, replica.model_id.to_owned());
        if let Some(target) = self.replicas.get(&key).filter(|target| *target.origin.address() == address) {
            return Some(Arc::clone(target));
        }
        let make = || Arc::new(Origin::new(address.clone(), Way::Plain));
        let origin = Arc::clone(self.origins.entry(address.clone()).or_insert_with(make));
        let target = Arc::new(replica.here(origin, shared.tally.of(replica.name))?);
        self.remember(key, &target);
        Some(target)
    }

    /// How a replica of another node is called.
    pub fn elsewhere(
        &mut self,
        replica: &ReplicaOf<'_>,
        node: NodeId,
        asker: &Replica,
        shared: &Shared,
    ) -> Option<Arc<Target>> {
        self.sweep();
        let address = Address::Node(node);
        let key = (replica.placement, replica.epoch, replica.model_id.to_owned());
        if let Some(target) = self.replicas.get(&key).filter(|target| *target.origin.address() == address) {
            return Some(Arc::clone(target));
        }
        let make = || Arc::new(Origin::new(address.clone(), Way::Mesh(Arc::clone(&asker.channels))));
        let origin = Arc::clone(self.origins.entry(address.clone()).or_insert_with(make));
        // The other node knows the replica from the commit of its epoch on.
        let target = Arc::new(replica.there(replica.epoch.0, origin, shared.tally.of(replica.name))?);
        self.remember(key, &target);
        Some(target)
    }

    /// How much each of these replicas has to do, as far as this thread knows, and which are better left alone.
    pub fn loads(&mut self, replica: &Replica, meant: &Meant, of: &[&deployments::Replica]) -> Vec<Candidate> {
        let now = Instant::now();
        self.ejected.retain(|_, until| *until > now);
        let roster = (of.len() > 1).then(|| replica.gossip.roster());
        let is_down = |node| {
            let heard = roster.as_ref().and_then(|roster| roster.node(node).map(|heard| heard.liveness));
            matches!(heard, Some(Liveness::Down))
        };
        let key = |one: &deployments::Replica| (one.placement, one.epoch, meant.model_id.clone());
        let candidate = |one: &&deployments::Replica| Candidate {
            load: self.replicas.get(&key(one)).map_or(0, |target| target.load.now()),
            ejected: self.ejected.contains_key(&one.node) || is_down(one.node),
        };
        let mut loads: Vec<_> = of.iter().map(candidate).collect();
        // Better one that may not answer than none.
        if loads.iter().all(|candidate| candidate.ejected) {
            loads.iter_mut().for_each(|candidate| candidate.ejected = false);
        }
        loads
    }

    /// Has others be asked first for a while.
    pub fn eject(&mut self, node: NodeId) {
        self.ejected.insert(node, Instant::now() + EJECTED);
    }

    fn remember(&mut self, key: ReplicaKey, target: &Arc<Target>) {
        if self.replicas.len() >= REPLICAS {
            self.replicas.clear();
        }
        self.replicas.insert(key, Arc::clone(target));
    }

    /// Refuses a model that the key may not use. What is not there is not there for anybody.
    fn check(&self, replica: &Replica, name: &str, access: &Access) -> Result<(), GatewayError> {
        if *access == Access::Everything {
            return Ok(());
        }
        let found = replica.published.with(|view| find(view, name))?.filter(|(_, model)| is_served(&model.row));
        Err(match found {
            Some(_) => GatewayError::AccessDenied(shown(name)),
            None => GatewayError::ModelNotFound(shown(name)),
        })
    }

    /// The models that can be called, as OpenAI lists them.
    pub fn list(&mut self, replica: &Replica, access: &Access) -> Result<Bytes, GatewayError> {
        if *access != Access::Everything {
            let data = replica.published.with(|view| deployments::listed(view, access))?;
            return Ok(Bytes::from(json!({ "object": "list", "data": data }).to_string()));
        }
        replica.published.with(|view| {
            let index = view.index();
            if let Some((seen, list)) = &self.list
                && *seen == index
            {
                return Ok(list.clone());
            }
            let own = replica.identity.node;
            let mut models: Vec<_> = view.models()?.into_iter().map(|stored| stored.row).collect();
            models.retain(|model| is_served(model) && reach(model, own).is_ok());
            models.sort_by(|a, b| name(a).cmp(name(b)));
            let mut data: Vec<_> = models.iter().map(entry).collect();
            data.extend(deployments::listed(view, access)?);
            let list = Bytes::from(json!({ "object": "list", "data": data }).to_string());
            self.list = Some((index, list.clone()));
            Ok(list)
        })
    }

    /// One of them.
    pub fn listed(&self, replica: &Replica, reference: &str, access: &Access) -> Result<Bytes, GatewayError> {
        if let Some(found) = replica.published.with(|view| deployments::one_listed(view, reference, access))? {
            return Ok(Bytes::from(found.to_string()));
        }
        self.check(replica, reference, access)?;
        let own = replica.identity.node;
        let found = replica.published.with(|view| find(view, reference))?;
        let found = found.filter(|(_, model)| is_served(&model.row) && reach(&model.row, own).is_ok());
        let missing = || GatewayError::ModelNotFound(shown(reference));
        Ok(Bytes::from(entry(&found.ok_or_else(missing)?.1.row).to_string()))
    }
}

/// A name as an error repeats it.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(200).collect()
}

fn name(model: &Model) -> &str {
    model.fields.as_ref().map_or("", |fields| fields.name())
}

fn is_served(model: &Model) -> bool {
    model.fields.as_ref().is_some_and(|fields| fields.active.unwrap_or(true))
}

fn find(view: &View, name: &str) -> Result<Option<(ModelId, Stored<Model>)>, GatewayError> {
    let Some(stored) = view.find_served(name)? else { return Ok(None) };
    Ok(ModelId::from_slice(&stored.row.id).map(|id| (id, stored)))
}

fn entry(model: &Model) -> serde_json::Value {
    let provider = model.fields.as_ref().map_or("", |fields| fields.provider());
    json!({ "id": name(model), "object": "model", "created": model.created_ms / 1000, "owned_by": provider })
}
