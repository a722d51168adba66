//! Nodes over real data directories: founded, started, stopped, and with parts of them missing.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prost::Message;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::{
    Founding, FoundingError, FoundingOptions, Identity, IdentityError, MeshSockets, Node, NodeOptions, Stage,
    StartError, found,
};
use crate::clock::{Clock, SystemClock};
use crate::clocks::Rules;
use crate::consensus::Timing;
use crate::ids::{ModelId, NodeId, Office};
use crate::leader::{Duty, Retention};
use crate::membership::Profile;
use crate::rows::credential_fields::Kind;
use crate::rows::{
    Answer, Command, ConsoleKey, CreateCredential, CreateModel, CredentialFields, GatewayKey, ModelFields, NodeFacts,
    Origin, Role, Secret, Settings, UpdateSettings, answer::Outcome, command::Body,
};
use crate::sealing::{HolderKey, SecretText};
use crate::state::{RECOVERY, View, api_key_name, key_hash, litellm_base, name_key};
use crate::storage::testing::options as storage_options;
use crate::storage::{NodeStorage, OpenError, Unusable};

const PATIENCE: Duration = Duration::from_secs(30);
const CANARY: &str = "canary-key-of-a-provider";
const MODEL: &str = "model beside the canary";

fn options(directory: &Path) -> NodeOptions {
    let retention: Arc<dyn Duty> = Arc::new(Retention { period: Duration::from_millis(20) });
    NodeOptions {
        directory: directory.to_owned(),
        facts: NodeFacts { name: "a node".to_owned(), ..NodeFacts::default() },
        timing: Timing::Lan,
        step: None,
        gossip: Profile::default(),
        clock: Arc::new(SystemClock),
        clocks: Rules::default(),
        duties: vec![retention],
        services: crate::transport::Services::default(),
        runtime: Handle::current(),
    }
}

fn listener() -> MeshSockets {
    MeshSockets::bind(([127, 0, 0, 1], 0).into()).expect("a port")
}

async fn founded(directory: &Path) -> Founding {
    found(options(directory), FoundingOptions::default()).await.expect("is founded")
}

/// Waits until the state shows something.
async fn shown<T>(node: &Node, what: &str, mut look: impl FnMut(&View) -> Option<T>) -> T {
    let published = node.consensus().published();
    let waiting = async {
        loop {
            let view = published.view();
            if let Some(found) = look(&view) {
                return found;
            }
            published.reached(view.index() + 1).await;
        }
    };
    timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("{what} does not come"))
}

/// Starts the node and waits until it has taken an office later than this one.
async fn lead(options: NodeOptions, after: Office) -> (Node, Office) {
    let node = Node::start(options, listener()).await.expect("starts");
    let office = shown(&node, "the office", |view| {
        let (office, holder) = view.office().expect("readable")?;
        assert_eq!(holder, NodeId(1));
        (office > after).then_some(office)
    });
    let office = office.await;
    (node, office)
}

async fn failing(options: NodeOptions) -> StartError {
    match Node::start(options, listener()).await {
        Ok(_) => panic!("starts"),
        Err(error) => error,
    }
}

async fn propose(node: &Node, body: Body) -> Answer {
    let origin = Origin { principal: "tester".to_owned(), ..Origin::default() };
    let answer = node.consensus().propose(origin, body).await.expect("is answered");
    assert!(!matches!(answer.outcome, Some(Outcome::Refusal(_))), "{answer:?}");
    answer
}

fn set_port(port: u64) -> Body {
    let changes = Some(Settings { default_port: Some(port), ..Settings::default() });
    Body::UpdateSettings(UpdateSettings { changes, ..UpdateSettings::default() })
}

/// A model whose API key is the canary.
fn sealed_model(node: &Node, id: ModelId) -> Body {
    let sealed = node.keyring().seal(&api_key_name(id), &SecretText::new(CANARY.to_owned())).expect("seals");
    let fields = ModelFields { name: Some(MODEL.to_owned()), ..ModelFields::default() };
    Body::CreateModel(CreateModel {
        id: id.as_bytes().to_vec().into(),
        fields: Some(fields),
        name_key: name_key(MODEL),
        litellm_base: litellm_base("openai", MODEL),
        api_key: Some(sealed),
    })
}

fn knows(view: &View, key: &SecretText) -> Option<Kind> {
    let found = view.credential_by_hash(&key_hash(key.reveal())).expect("readable");
    found.and_then(|(_, credential)| credential.fields).and_then(|fields| fields.kind)
}

/// Every file below a directory.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            files.extend(self::files(&path));
        } else {
            let content = fs::read(&path).expect("a file");
            files.insert(path, content);
        }
    }
    files
}

/// The files in which a text stands in clear.
fn files_with(directory: &Path, text: &str) -> Vec<PathBuf> {
    let holds = |content: &[u8]| content.windows(text.len()).any(|window| window == text.as_bytes());
    files(directory).into_iter().filter(|(_, content)| holds(content)).map(|(path, _)| path).collect()
}

fn set_aside(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.to_string_lossy().contains("quarantine-")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_founded_node_leads_writes_reads_and_is_the_same_after_a_restart() {
    let directory = tempfile::tempdir().expect("a directory");
    let founding = founded(directory.path()).await;
    assert!(founding.admin_token_generated);
    let check = |view: &View| {
        assert_eq!(view.fleet_id(), Ok(Some(founding.fleet)));
        assert_eq!(knows(view, &founding.admin_token), Some(Kind::Console(ConsoleKey { role: Role::Admin.into() })));
        assert_eq!(knows(view, &founding.gateway_key), Some(Kind::Gateway(GatewayKey::default())));
        assert_eq!(knows(view, &founding.recovery_key), None);
    };
    let (node, first) = lead(options(directory.path()), Office(0)).await;
    check(&node.consensus().local());
    let answer = propose(&node, set_port(8001)).await;
    let view = node.consensus().linearizable().await.expect("a read");
    assert!(view.index() >= answer.index);
    let (settings, index) = view.settings().expect("readable");
    assert_eq!((settings.default_port, index), (Some(8001), answer.index));
    node.shutdown().await.expect("stops");

    let facts = NodeFacts { name: "renamed".to_owned(), ..NodeFacts::default() };
    let renamed = NodeOptions { facts: facts.clone(), ..options(directory.path()) };
    let (node, second) = lead(renamed, first).await;
    assert!(second.0 > answer.index);
    let view = node.consensus().linearizable().await.expect("a read");
    check(&view);
    assert_eq!(view.settings(), Ok((settings, index)));
    // It tells the fleet that it has another name now.
    shown(&node, "the report", |view| {
        let known = view.node(NodeId(1)).expect("readable").expect("is there").row;
        (known.facts.as_ref() == Some(&facts)).then_some(())
    })
    .await;
    propose(&node, set_port(8002)).await;
    // What changes while it runs is told as well.
    let runtimes = vec!["docker".to_owned()];
    node.told().send_modify(|told| told.runtimes.clone_from(&runtimes));
    shown(&node, "another report", |view| {
        let known = view.node(NodeId(1)).expect("readable").expect("is there").row;
        known.facts.is_some_and(|facts| facts.runtimes == runtimes && facts.name == "renamed").then_some(())
    })
    .await;
    node.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_is_not_founded_over_another() {
    let directory = tempfile::tempdir().expect("a directory");
    let founding = founded(directory.path()).await;
    let before = files(directory.path());
    match found(options(directory.path()), FoundingOptions::default()).await {
        Err(FoundingError::Exists { fleet, .. }) => assert_eq!(fleet, founding.fleet),
        other => panic!("{other:?}"),
    }
    assert!(files(directory.path()) == before, "something was changed");
    // Without the file that says whose it is, it is left alone as well.
    fs::remove_file(directory.path().join("node.json")).expect("is there");
    let before = files(directory.path());
    let outcome = found(options(directory.path()), FoundingOptions::default()).await;
    assert!(matches!(outcome, Err(FoundingError::Foreign(_))), "{outcome:?}");
    assert!(files(directory.path()) == before, "something was changed");
    assert!(matches!(failing(options(directory.path())).await, StartError::NoFleet(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_founding_is_set_aside_and_begins_anew() {
    let directory = tempfile::tempdir().expect("a directory");
    let interrupted = founded(directory.path()).await;
    let identity = Identity::load(directory.path()).expect("readable").expect("is there");
    Identity { stage: Stage::Founding, ..identity.clone() }.save(directory.path()).expect("saves");
    assert!(matches!(failing(options(directory.path())).await, StartError::NoFleet(_)));
    assert!(set_aside(directory.path()).is_empty(), "starting sets nothing aside");

    let founding = founded(directory.path()).await;
    assert_ne!(founding.fleet, interrupted.fleet);
    let aside = set_aside(directory.path());
    assert_eq!(aside.len(), 1);
    for part in ["REASON", "raft", "state", "snap", "floor"] {
        assert!(aside[0].join(part).exists(), "{part}");
    }
    let (node, _) = lead(options(directory.path()), Office(0)).await;
    assert_ne!(node.identity().store, identity.store);
    let view = node.consensus().local();
    assert_eq!(view.fleet_id(), Ok(Some(founding.fleet)));
    assert!(knows(&view, &founding.admin_token).is_some());
    assert_eq!(knows(&view, &interrupted.admin_token), None);
    node.shutdown().await.expect("stops");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_weak_token_is_refused_and_leaves_nothing() {
    let parent = tempfile::tempdir().expect("a directory");
    let directory = parent.path().join("data");
    let founding = |token: &str| {
        let admin_token = Some(SecretText::new(token.to_owned()));
        found(options(&directory), FoundingOptions { admin_token })
    };
    // Characters count, not bytes.
    let outcome = founding(&"\u{e4}".repeat(19)).await;
    assert!(matches!(outcome, Err(FoundingError::WeakToken(19))), "{outcome:?}");
    assert!(!directory.exists());
    let done = founding(&"a".repeat(20)).await.expect("is founded");
    assert!(!done.admin_token_generated && done.admin_token.reveal().len() == 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_its_data_does_not_start() {
    let directory = tempfile::tempdir().expect("a directory");
    founded(directory.path()).await;
    let identity = Identity::load(directory.path()).expect("readable").expect("is there");
    fs::remove_dir_all(directory.path().join("raft")).expect("is there");
    let error = failing(options(directory.path())).await;
    assert!(matches!(error, StartError::Open(OpenError::Unusable { why: Unusable::LogMissing { .. }, .. })), "{error}");
    for part in ["state", "snap"] {
        fs::remove_dir_all(directory.path().join(part)).expect("is there");
    }
    fs::remove_file(directory.path().join("floor")).expect("is there");
    // The second time, what the first one made is no more its own.
    for _ in 0..2 {
        match failing(options(directory.path())).await {
            StartError::OtherStore { expected, found, .. } => {
                assert_eq!(expected, identity.store);
                assert_ne!(found, identity.store);
            }
            error => panic!("{error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_private_key_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    founded(directory.path()).await;
    let path = directory.path().join("node.key");
    fs::remove_file(&path).expect("is there");
    let error = failing(options(directory.path())).await;
    assert!(matches!(error, StartError::Identity(IdentityError::KeyMissing(_))), "{error}");
    let text = error.to_string();
    assert!(text.contains("node.key is missing") && text.contains("private key"), "{text}");
    assert!(!path.exists(), "no other key takes its place");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_opens_after_a_restart_and_stands_nowhere_in_clear() {
    let directory = tempfile::tempdir().expect("a directory");
    let founding = founded(directory.path()).await;
    let (node, first) = lead(options(directory.path()), Office(0)).await;
    let id = ModelId::random();
    let body = sealed_model(&node, id);
    let answer = propose(&node, body.clone()).await;
    let view = node.consensus().local();
    let model = view.model(id).expect("readable").expect("is there");
    let secret = Secret { sealed: view.secret(&api_key_name(id)).expect("readable") };
    assert!(model.row.has_api_key && secret.sealed.is_some());
    let command = Command { time_ms: 1, origin: None, body: Some(body) };
    let printed = format!("{command:?} {answer:?} {model:?} {secret:?} {view:?} {:?} {founding:?}", node.keyring());
    for text in [CANARY, &format!("{:?}", CANARY.as_bytes()), founding.admin_token.reveal()] {
        assert!(!printed.contains(text), "it is printed");
    }
    assert!(printed.contains(MODEL), "the row is printed");
    let encoded = [command.encode_to_vec(), answer.encode_to_vec(), model.row.encode_to_vec()].concat();
    assert!(!String::from_utf8_lossy(&encoded).contains(CANARY));
    node.shutdown().await.expect("stops");

    // A snapshot beside log and state, so that all three are looked at.
    let opened = NodeStorage::open(directory.path(), &storage_options()).expect("opens");
    opened.snapshots.build(&opened.tables, &opened.applied).expect("builds");
    opened.close().await.expect("closes");
    let beside = files_with(directory.path(), MODEL);
    for part in ["raft", "state", "snap"] {
        assert!(beside.iter().any(|path| path.starts_with(directory.path().join(part))), "{part} is not looked at");
    }
    let secrets = [&founding.admin_token, &founding.gateway_key, &founding.recovery_key].map(SecretText::reveal);
    for text in secrets.into_iter().chain([CANARY]) {
        assert_eq!(files_with(directory.path(), text), Vec::<PathBuf>::new());
    }

    let (node, _) = lead(options(directory.path()), first).await;
    let view = node.consensus().local();
    let sealed = view.secret(&api_key_name(id)).expect("readable").expect("is there");
    assert_eq!(node.keyring().open(&api_key_name(id), &sealed).expect("opens").reveal(), CANARY);
    // The founder's recovery key opens it as well.
    let recovery = HolderKey::from_recovery_text(founding.recovery_key.reveal()).expect("a key");
    let keyring = crate::sealing::Keyring::new(founding.fleet, []);
    keyring.refresh(&view, RECOVERY, &recovery).expect("unwraps");
    assert_eq!(keyring.open(&api_key_name(id), &sealed).expect("opens").reveal(), CANARY);
    node.shutdown().await.expect("stops");
}

/// A clock that the test moves.
#[derive(Default)]
struct SetClock(AtomicU64);

impl Clock for SetClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_removes_a_credential_once_it_has_expired() {
    const HOUR_MS: u64 = 3_600_000;
    let directory = tempfile::tempdir().expect("a directory");
    let clock = Arc::new(SetClock(AtomicU64::new(HOUR_MS)));
    let clocks = Rules { patience_alone: Duration::from_millis(50), ..Rules::default() };
    let options = NodeOptions { clock: Arc::clone(&clock) as Arc<dyn Clock>, clocks, ..options(directory.path()) };
    found(options.clone(), FoundingOptions::default()).await.expect("is founded");
    let (node, _) = lead(options, Office(0)).await;
    let create = |hash: u8, hours: u64| {
        let (sha256, ttl_ms) = (vec![hash; 32].into(), Some(hours * HOUR_MS));
        let kind = Some(Kind::Gateway(GatewayKey::default()));
        let fields = CredentialFields { sha256, ttl_ms, kind, ..CredentialFields::default() };
        Body::CreateCredential(CreateCredential { fields: Some(fields) })
    };
    propose(&node, create(1, 1)).await;
    propose(&node, create(2, 3)).await;
    let there = |view: &View, hash: u8| view.credential_by_hash(&[hash; 32]).expect("readable").is_some();
    let view = node.consensus().local();
    assert!(there(&view, 1) && there(&view, 2));
    clock.0.fetch_add(2 * HOUR_MS, Ordering::SeqCst);
    // The log's time moves with the next entry.
    propose(&node, set_port(8001)).await;
    let removed = shown(&node, "the sweep", |view| (!there(view, 1)).then(|| view.clone())).await;
    assert!(there(&removed, 2), "it has an hour left");
    assert_eq!(removed.credentials(crate::ids::CredentialId(0)).count(), 3, "two of the founding and the second");
    node.shutdown().await.expect("stops");
}
