//! The fleet's machine, one command after the other, as every replica runs it.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use uuid::Uuid;

use super::{
    ApplyError, CLIENT_RETENTION_MS, CLIENT_WINDOW, Damaged, Fleet, KEY_RETENTION_MS, Machine, Row, Tables, View,
    api_key_name, key_digest, litellm_base, name_key, scope,
};
use crate::ids::{CredentialId, LogTime, ModelId, NodeId, Office};
use crate::rows::answer::Outcome;
use crate::rows::command::Body;
use crate::rows::credential_fields::Kind;
use crate::rows::once::Who;
use crate::rows::{
    self, Answer, Bootstrap, ClientSeq, Command, ConsoleKey, CreateConfig, CreateCredential, CreateModel,
    CredentialFields, DeleteConfig, DeleteCredential, DeleteModel, DeploymentScope, GatewayKey, KeyUse, Model,
    ModelField, ModelFields, NodeFacts, Once, Origin, Precondition, RecordUse, RefusalKind, ReportNode, Role,
    ScopeChange, Sealed, Settings, Sweep, TakeOffice, TemporaryKey, UpdateCredential, UpdateModel, UpdateSettings,
};
use crate::storage::{Applied, LogId};

mod node_admin;
mod placements;
mod purge;

const START_MS: u64 = 1_000_000;
const MINUTE_MS: u64 = 60_000;

/// One replica. Every command gets the next index, and the time that the test has set.
#[derive(Clone, Default)]
struct Replica {
    tables: Tables,
    index: u64,
    now: u64,
}

impl Replica {
    fn empty() -> Self {
        Self { now: START_MS, ..Self::default() }
    }

    fn founded() -> Self {
        let mut replica = Self::empty();
        let answer = replica.run(bootstrap(1, &[]));
        assert_eq!(answer.outcome, Some(Outcome::Nothing(rows::Nothing {})));
        replica
    }

    fn apply(&mut self, bytes: &[u8]) -> Result<Answer, ApplyError> {
        self.index += 1;
        let at = LogId { term: 1, node: NodeId(1), index: self.index };
        let answer = Fleet.apply(&mut self.tables, at, bytes)?;
        Ok(Answer::decode(answer).expect("an answer"))
    }

    fn run_once(&mut self, once: Option<Once>, body: Body) -> Answer {
        let origin = Origin {
            principal: "tester".to_owned(),
            source: "192.0.2.1".to_owned(),
            request_id: format!("request {}", self.index + 1),
            once,
        };
        let command = Command { time_ms: self.now, origin: Some(origin), body: Some(body) };
        self.apply(&command.encode_to_vec()).expect("applies")
    }

    fn run(&mut self, body: Body) -> Answer {
        self.run_once(None, body)
    }

    /// Runs what must be refused, and sees to it that nothing but the clock shows it.
    fn refused_once(&mut self, once: Option<Once>, body: Body) -> RefusalKind {
        // The stamp is the one before, so that not even the clock moves.
        assert_eq!(self.view().time().expect("readable"), LogTime(self.now), "the test moved the time in between");
        let before = (self.tables.fingerprint(), self.tables.changes().to_vec(), self.tables.aside_len());
        let answer = self.run_once(once, body);
        let after = (self.tables.fingerprint(), self.tables.changes().to_vec(), self.tables.aside_len());
        assert_eq!(after, before, "a refused command left something");
        assert_eq!((answer.index, answer.replayed), (self.index, false));
        refusal(&answer).unwrap_or_else(|| panic!("not refused: {answer:?}"))
    }

    fn refused(&mut self, body: Body) -> RefusalKind {
        self.refused_once(None, body)
    }

    fn model(&mut self, body: Body) -> Model {
        let answer = self.run(body);
        let Some(Outcome::Model(rows::ModelAnswer { model: Some(model), .. })) = answer.outcome else {
            panic!("no model: {answer:?}");
        };
        model
    }

    fn credential(&mut self, body: Body) -> (u64, rows::Credential) {
        let answer = self.run(body);
        let Some(Outcome::Credential(rows::CredentialAnswer { id, credential: Some(credential), .. })) = answer.outcome
        else {
            panic!("no credential: {answer:?}");
        };
        (id, credential)
    }

    /// The last write comes later than what had to be done before.
    fn at(&mut self, now: u64) {
        self.now = now;
        self.run(Body::TakeOffice(TakeOffice { node: 1 }));
    }

    fn view(&self) -> View {
        View::new(&self.tables, &Applied::default())
    }

    fn named(&self, reference: &str) -> Option<ModelId> {
        let found = self.view().find_model(reference).expect("readable")?;
        ModelId::from_slice(&found.row.id)
    }

    /// What comes out of a snapshot: the records and the history, and nothing else.
    fn restored(&self) -> Self {
        let records = self.tables.iter().map(|(key, record)| (key.clone(), record.clone()));
        Self { tables: Tables::restored(records, self.tables.fingerprint().history), ..*self }
    }

    fn count<R: Row>(&self) -> usize {
        self.tables.range(R::TABLE, &[]).count()
    }
}

fn refusal(answer: &Answer) -> Option<RefusalKind> {
    match &answer.outcome {
        Some(Outcome::Refusal(refusal)) => Some(refusal.kind()),
        _ => None,
    }
}

fn bootstrap(feature_level: u32, credentials: &[CredentialFields]) -> Body {
    let node = rows::Node { id: 1, ..rows::Node::default() };
    let fleet_id = vec![7; 16].into();
    let credentials = credentials.to_vec();
    Body::Bootstrap(Bootstrap { fleet_id, feature_level, node: Some(node), credentials, ..Bootstrap::default() })
}

fn id(number: u8) -> ModelId {
    ModelId(Uuid::from_bytes([number; 16]))
}

fn row_id(number: u8) -> Bytes {
    vec![number; 16].into()
}

fn sealed(text: &str) -> Sealed {
    Sealed { key_version: 1, nonce: vec![0; 24].into(), ciphertext: text.as_bytes().to_vec().into() }
}

fn new_model(number: u8, name: &str) -> CreateModel {
    let fields = ModelFields {
        name: Some(name.to_owned()),
        provider: Some("openai".to_owned()),
        priority: Some(i64::from(number)),
        ..ModelFields::default()
    };
    CreateModel {
        id: row_id(number),
        fields: Some(fields),
        name_key: name_key(name),
        litellm_base: litellm_base("openai", name),
        api_key: None,
    }
}

fn create(number: u8, name: &str) -> Body {
    Body::CreateModel(new_model(number, name))
}

fn change(number: u8, changes: ModelFields) -> UpdateModel {
    UpdateModel { id: row_id(number), changes: Some(changes), ..UpdateModel::default() }
}

fn rename(number: u8, name: &str) -> Body {
    let changes = ModelFields { name: Some(name.to_owned()), ..ModelFields::default() };
    Body::UpdateModel(UpdateModel { name_key: name_key(name), ..change(number, changes) })
}

fn describe(number: u8, description: &str) -> Body {
    let changes = ModelFields { description: Some(description.to_owned()), ..ModelFields::default() };
    Body::UpdateModel(change(number, changes))
}

fn delete(number: u8) -> Body {
    Body::DeleteModel(DeleteModel { id: row_id(number), precondition: None })
}

fn key_fields(hash: u8, kind: Kind, ttl_ms: Option<u64>) -> CredentialFields {
    let label = format!("key {hash}");
    CredentialFields { label, sha256: vec![hash; 32].into(), prefix: String::new(), ttl_ms, kind: Some(kind) }
}

fn viewer() -> Kind {
    Kind::Console(ConsoleKey { role: Role::Viewer.into() })
}

fn new_key(hash: u8, kind: Kind, ttl_ms: Option<u64>) -> Body {
    Body::CreateCredential(CreateCredential { fields: Some(key_fields(hash, kind, ttl_ms)) })
}

fn write(client: u8, seq: u64, body: &str) -> Once {
    let who = Who::Client(ClientSeq { client: vec![client; 16].into(), seq });
    Once { who: Some(who), body_hash: body.as_bytes().to_vec().into(), answer: None, repeated: false }
}

fn keyed(key: &str, body: &str) -> Once {
    let digest = key_digest("tester", "POST", "/api/models", key);
    Once {
        who: Some(Who::Key(digest.to_vec().into())),
        body_hash: body.as_bytes().to_vec().into(),
        answer: None,
        repeated: false,
    }
}

fn seen(mod_index: &[u64]) -> Option<Precondition> {
    Some(Precondition { mod_index: mod_index.to_vec() })
}

#[test]
fn before_there_is_a_fleet_only_its_founding_and_the_office_are_admitted() {
    let mut replica = Replica::empty();
    replica.run(Body::TakeOffice(TakeOffice { node: 1 }));
    assert_eq!(replica.view().office(), Ok(Some((Office(1), NodeId(1)))));
    for body in [
        Body::Sweep(Sweep { office: 1, ..Sweep::default() }),
        Body::ReportNode(ReportNode { id: 1, facts: None }),
        Body::UpdateSettings(UpdateSettings::default()),
        create(1, "a"),
        rename(1, "a"),
        delete(1),
        new_key(1, viewer(), None),
        Body::UpdateCredential(UpdateCredential::default()),
        Body::DeleteCredential(DeleteCredential::default()),
        save("a", "{}"),
        unsave(1),
    ] {
        assert_eq!(replica.refused(body), RefusalKind::Conflict);
    }
    assert_eq!(refusal(&replica.run(bootstrap(1, &[]))), None);
    assert_eq!(refusal(&replica.run(create(1, "a"))), None);
}

#[test]
fn a_fleet_is_founded_once_and_whole() {
    let mut replica = Replica::empty();
    replica.at(START_MS);
    let twice = [key_fields(1, viewer(), None), key_fields(1, Kind::Gateway(GatewayKey::default()), None)];
    assert_eq!(replica.refused(bootstrap(1, &twice)), RefusalKind::Conflict);
    assert_eq!(replica.view().fleet(), Ok(None));
    let two = [key_fields(1, viewer(), None), key_fields(2, Kind::Gateway(GatewayKey::default()), None)];
    assert_eq!(refusal(&replica.run(bootstrap(1, &two))), None);
    assert_eq!(replica.refused(bootstrap(1, &[])), RefusalKind::Conflict);
    let view = replica.view();
    let fleet = view.fleet().expect("readable").expect("there is one");
    assert_eq!((fleet.next_node, fleet.next_credential, fleet.created_ms), (2, 3, START_MS));
    assert_eq!(view.nodes().expect("readable").len(), 1);
    let found = view.credential_by_hash(&[2; 32]).expect("readable").expect("is there");
    assert_eq!(found.0, CredentialId(2));
}

#[test]
fn a_refused_command_leaves_no_trace_but_the_clock() {
    let mut replica = Replica::founded();
    replica.run(create(1, "a"));
    replica.tables.take_changes();
    let rows = replica.tables.len();
    replica.now += 5;
    // The second model claims its name in the proxy's namespace before its own turns out to be taken, and its key.
    let command = CreateModel { api_key: Some(sealed("x")), ..new_model(1, "b") };
    assert_eq!(refusal(&replica.run(Body::CreateModel(command))), Some(RefusalKind::Conflict));
    let changed: Vec<_> = replica.tables.changes().iter().map(|change| change.key.table).collect();
    assert_eq!(changed, [<rows::Clock as Row>::TABLE]);
    assert_eq!(replica.tables.len(), rows);
    let mut twin = Replica::founded();
    twin.run(create(1, "a"));
    let clock = rows::Clock { time_ms: replica.now }.encode_to_vec();
    twin.tables.put(<rows::Clock as Row>::TABLE, Bytes::new(), clock, replica.index);
    assert_eq!(replica.tables.fingerprint(), twin.tables.fingerprint());
    // What fails late is undone as well: the sealed key is written before the row turns out to be too long.
    let long = ModelFields { description: Some("x".repeat(17_000)), ..ModelFields::default() };
    let command = UpdateModel { api_key: Some(sealed("x")), ..change(1, long) };
    assert_eq!(replica.refused(Body::UpdateModel(command)), RefusalKind::TooLarge);
}

#[test]
fn the_logs_time_never_goes_back() {
    let mut replica = Replica::founded();
    replica.now = START_MS - 500;
    let answer = replica.run(new_key(1, viewer(), Some(100)));
    assert_eq!(refusal(&answer), None);
    assert_eq!(replica.view().time(), Ok(LogTime(START_MS)));
    let (_, credential) = replica.view().credential_by_hash(&[1; 32]).expect("readable").expect("is there");
    assert_eq!((credential.created_ms, credential.expires_ms), (START_MS, Some(START_MS + 100)));
    replica.at(START_MS + 1);
    assert_eq!(replica.view().time(), Ok(LogTime(START_MS + 1)));
}

#[test]
fn what_this_version_does_not_know_stops_it() {
    let mut replica = Replica::founded();
    let before = replica.tables.fingerprint();
    let frame = Command { time_ms: START_MS + 9, origin: Some(Origin::default()), body: None }.encode_to_vec();
    // Field 99 with a message of no bytes: a body of a later version.
    let unknown = [frame.as_slice(), &[0x9a, 0x06, 0x00]].concat();
    let misshapen = Body::DeleteModel(DeleteModel { id: vec![1; 3].into(), precondition: None });
    let misshapen = Command { time_ms: START_MS, origin: None, body: Some(misshapen) }.encode_to_vec();
    for bytes in [unknown, frame, vec![], vec![0xff; 8], misshapen] {
        let error = replica.apply(&bytes).expect_err("can not be applied");
        assert_eq!(error.index, replica.index, "{error}");
        assert_eq!(replica.tables.fingerprint(), before, "{error}");
    }
}

#[test]
fn a_damaged_row_stops_the_replica() {
    let mut replica = Replica::founded();
    replica.tables.put(<Model as Row>::TABLE, row_id(1), vec![0xff; 8], 2);
    let command = Command { time_ms: START_MS, origin: None, body: Some(describe(1, "x")) };
    let error = replica.apply(&command.encode_to_vec()).expect_err("can not be applied");
    assert!(error.why.contains("table 9 is damaged"), "{error}");
    assert!(matches!(replica.view().model(id(1)), Err(Damaged { table: 9, .. })));
}

#[test]
fn what_not_every_node_understands_is_refused() {
    let mut replica = Replica::empty();
    replica.run(bootstrap(0, &[]));
    assert_eq!(replica.refused(create(1, "a")), RefusalKind::FeatureLevel);
}

#[test]
fn a_name_is_claimed_without_regard_to_case() {
    let mut replica = Replica::founded();
    replica.run(create(1, "Llama 3"));
    assert_eq!(replica.refused(create(2, "LLAMA 3")), RefusalKind::Conflict);
    // The proxy's names are in the same namespace.
    assert_eq!(replica.refused(create(2, "openai/llama-3")), RefusalKind::Conflict);
    assert_eq!(replica.refused(create(1, "another name, the same id")), RefusalKind::Conflict);
    replica.run(create(2, "other"));
    assert_eq!(replica.refused(rename(2, "llama 3")), RefusalKind::Conflict);
    // One's own name in another spelling is no conflict.
    assert_eq!(replica.model(rename(1, "LLaMA 3")).fields.expect("fields").name(), "LLaMA 3");
    assert_eq!((replica.named("LLaMA 3"), replica.named("Llama 3")), (Some(id(1)), None));
}

#[test]
fn a_rename_frees_the_old_name_and_keeps_the_proxys() {
    let mut replica = Replica::founded();
    replica.run(create(1, "first"));
    assert_eq!(replica.model(rename(1, "second")).litellm_name, "openai/first");
    assert_eq!((replica.named("first"), replica.named("second")), (None, Some(id(1))));
    let taken = replica.model(create(2, "first"));
    assert_eq!((replica.named("first"), taken.litellm_name.as_str()), (Some(id(2)), "openai/first-2"));
}

#[test]
fn the_proxys_name_stays_claimed_when_the_model_has_borne_it_as_its_own() {
    let mut replica = Replica::founded();
    replica.run(create(1, "first"));
    replica.run(rename(1, "openai/first"));
    replica.run(rename(1, "second"));
    assert_eq!(replica.refused(create(2, "openai/first")), RefusalKind::Conflict);
    assert_eq!(replica.model(create(2, "first")).litellm_name, "openai/first-2");
}

#[test]
fn a_slug_that_is_taken_gets_a_number() {
    let mut replica = Replica::founded();
    let slugs = ["a b", "a-b", "a_b"].map(|name| {
        let number = u8::try_from(replica.index).expect("small");
        replica.model(create(number, name)).litellm_name
    });
    assert_eq!(slugs, ["openai/a-b", "openai/a-b-2", "openai/a-b-3"]);
}

#[test]
fn a_deleted_model_leaves_neither_names_nor_key() {
    let mut replica = Replica::founded();
    let rows = replica.tables.len();
    replica.run(Body::CreateModel(CreateModel { api_key: Some(sealed("x")), ..new_model(1, "a") }));
    let last = replica.index;
    let answer = replica.run(delete(1));
    let Some(Outcome::Model(gone)) = answer.outcome else { panic!("no model: {answer:?}") };
    assert_eq!(gone.mod_index, last, "as it was");
    assert_eq!(replica.count::<rows::NameClaim>() + replica.count::<rows::Secret>() + replica.count::<Model>(), 0);
    assert_eq!(replica.tables.len(), rows + 2, "two entries of the audit trail");
    assert_eq!(replica.model(create(2, "a")).litellm_name, "openai/a");
}

#[test]
fn an_update_changes_what_is_given_keeps_what_is_not_and_clears_what_is_named() {
    let mut replica = Replica::founded();
    replica.run(create(1, "a"));
    let created = replica.index;
    replica.run(describe(1, "first"));
    replica.now += 10;
    let changes = ModelFields { priority: Some(0), price_input: Some(0.5), ..ModelFields::default() };
    let model = replica.model(Body::UpdateModel(change(1, changes)));
    let fields = model.fields.expect("fields");
    assert_eq!((fields.description(), fields.priority, fields.price_input), ("first", Some(0), Some(0.5)));
    assert_eq!((fields.name(), fields.provider()), ("a", "openai"));
    assert_eq!((model.created_index, model.created_ms, model.updated_ms), (created, START_MS, START_MS + 10));
    assert_eq!(model.created_by, "tester");
    let clear = vec![ModelField::Description.into(), ModelField::PriceInput.into()];
    let model = replica.model(Body::UpdateModel(UpdateModel { clear, ..change(1, ModelFields::default()) }));
    let fields = model.fields.expect("fields");
    assert_eq!((fields.description, fields.price_input, fields.priority), (None, None, Some(0)));
    assert_eq!(replica.view().model(id(1)).expect("readable").expect("is there").mod_index, replica.index);
}

#[test]
fn a_change_needs_the_row_to_be_at_one_of_the_indexes_given() {
    let mut replica = Replica::founded();
    replica.run(create(1, "a"));
    let at = replica.index;
    let with = |precondition| UpdateModel { precondition, ..change(1, ModelFields::default()) };
    for precondition in [seen(&[]), seen(&[0]), seen(&[at - 1, at + 1])] {
        let kind = replica.refused(Body::UpdateModel(with(precondition.clone())));
        assert_eq!(kind, RefusalKind::PreconditionFailed);
        let deletion = Body::DeleteModel(DeleteModel { id: row_id(1), precondition });
        assert_eq!(replica.refused(deletion), RefusalKind::PreconditionFailed);
    }
    replica.model(Body::UpdateModel(with(seen(&[at - 1, at]))));
    assert_eq!(replica.refused(Body::UpdateModel(with(seen(&[at])))), RefusalKind::PreconditionFailed);
    let precondition = seen(&[replica.view().model(id(1)).expect("readable").expect("is there").mod_index]);
    replica.model(Body::DeleteModel(DeleteModel { id: row_id(1), precondition }));
}

#[test]
fn what_is_not_there_is_neither_changed_nor_deleted() {
    let mut replica = Replica::founded();
    for body in [
        describe(1, "x"),
        delete(1),
        Body::UpdateCredential(UpdateCredential { id: 1, ..UpdateCredential::default() }),
        Body::DeleteCredential(DeleteCredential { id: 1, precondition: None }),
        Body::ReportNode(ReportNode { id: 2, facts: None }),
    ] {
        assert_eq!(replica.refused(body), RefusalKind::NotFound);
    }
}

#[test]
fn an_api_key_is_kept_replaced_and_cleared() {
    let mut replica = Replica::founded();
    let secret = |replica: &Replica| replica.view().secret(&api_key_name(id(1))).expect("readable");
    replica.run(create(1, "a"));
    assert_eq!(secret(&replica), None);
    let keep = change(1, ModelFields::default());
    let set = |text| Body::UpdateModel(UpdateModel { api_key: Some(sealed(text)), ..keep.clone() });
    assert!(replica.model(set("one")).has_api_key);
    assert!(replica.model(Body::UpdateModel(keep.clone())).has_api_key);
    assert_eq!(secret(&replica), Some(sealed("one")));
    assert!(replica.model(set("two")).has_api_key);
    assert_eq!(secret(&replica), Some(sealed("two")));
    let clear = Body::UpdateModel(UpdateModel { clear_api_key: true, ..keep.clone() });
    assert!(!replica.model(clear).has_api_key);
    assert_eq!(secret(&replica), None);
}

#[test]
fn a_model_is_found_by_id_and_by_its_exact_name() {
    let mut replica = Replica::founded();
    replica.run(create(1, "Llama 3"));
    for reference in ["Llama 3", &id(1).to_string(), &id(1).to_string().to_uppercase()] {
        assert_eq!(replica.named(reference), Some(id(1)), "{reference}");
    }
    for reference in ["llama 3", "LLAMA 3", "openai/llama-3", "Llama", "", &id(2).to_string()] {
        assert_eq!(replica.named(reference), None, "{reference}");
    }
}

#[test]
fn a_row_that_grows_beyond_the_limit_is_refused_and_nothing_stays() {
    let mut replica = Replica::founded();
    replica.run(create(1, "a"));
    assert_eq!(refusal(&replica.run(describe(1, &"d".repeat(8 * 1024)))), None);
    let metadata = Some(format!("{{\"a\":\"{}\"}}", "m".repeat(10 * 1024)));
    let changes = ModelFields { metadata, name: Some("b".to_owned()), ..ModelFields::default() };
    let command = UpdateModel { name_key: "b".to_owned(), ..change(1, changes) };
    assert_eq!(replica.refused(Body::UpdateModel(command)), RefusalKind::TooLarge);
    assert_eq!((replica.named("a"), replica.named("b")), (Some(id(1)), None));
    // A name is a key, which has a limit of its own.
    assert_eq!(replica.refused(create(2, &"n".repeat(1001))), RefusalKind::TooLarge);
}

#[test]
fn a_repeated_write_returns_the_first_answer_and_changes_nothing() {
    let mut replica = Replica::founded();
    for once in [write(1, 0, "body"), keyed("key", "body")] {
        let body = new_key(replica.index.to_be_bytes()[7], viewer(), None);
        let first = replica.run_once(Some(once.clone()), body.clone());
        replica.run(delete(1));
        let before = (replica.tables.fingerprint(), replica.tables.changes().len());
        // The restored replica has forgotten nothing: what a write is remembered by is state.
        for mut replica in [replica.clone(), replica.restored()] {
            let again = replica.run_once(Some(once.clone()), body.clone());
            assert_eq!(again, Answer { replayed: true, ..first.clone() });
            assert_eq!(replica.tables.fingerprint(), before.0);
        }
        let other = Once { body_hash: b"other".to_vec().into(), ..once };
        assert_eq!(replica.refused_once(Some(other), body), RefusalKind::KeyReused);
    }
    // Another client with the same number, and another key, are other writes.
    let rows = replica.count::<rows::Credential>();
    replica.run_once(Some(write(2, 0, "body")), new_key(101, viewer(), None));
    replica.run_once(Some(keyed("another", "body")), new_key(102, viewer(), None));
    assert_eq!(replica.count::<rows::Credential>(), rows + 2);
}

#[test]
fn a_write_older_than_what_is_remembered_is_never_done_again() {
    let mut replica = Replica::founded();
    // Number 1 is late: it has not come yet when the others have.
    for seq in (0..CLIENT_WINDOW).filter(|seq| *seq != 1) {
        replica.run_once(Some(write(1, seq, "b")), Body::UpdateSettings(UpdateSettings::default()));
    }
    assert!(replica.run_once(Some(write(1, 0, "b")), create(1, "a")).replayed, "just within the window");
    replica.run_once(Some(write(1, CLIENT_WINDOW, "b")), create(1, "a"));
    assert_eq!(replica.refused_once(Some(write(1, 0, "b")), delete(1)), RefusalKind::AnswerGone);
    assert_eq!(refusal(&replica.run_once(Some(write(1, 1, "b")), describe(1, "late"))), None, "within the window");
    replica.run_once(Some(write(1, CLIENT_WINDOW + 1, "b")), describe(1, "newer"));
    assert_eq!(replica.refused_once(Some(write(1, 1, "b")), delete(1)), RefusalKind::AnswerGone);
    assert_eq!(replica.count::<rows::Marker>() as u64, CLIENT_WINDOW);
    // The neighbours of a client in the order of keys say nothing about it.
    for client in [0, 2] {
        let answer = replica.run_once(Some(write(client, 0, "b")), describe(1, "theirs"));
        assert_eq!((refusal(&answer), answer.replayed), (None, false));
    }
}

#[test]
fn a_refused_write_is_not_remembered_and_is_judged_anew() {
    let mut replica = Replica::founded();
    replica.run(create(1, "a"));
    for once in [write(1, 5, "body"), keyed("key", "body")] {
        assert_eq!(replica.refused_once(Some(once.clone()), create(2, "a")), RefusalKind::Conflict);
        replica.run(rename(1, "b"));
        let answer = replica.run_once(Some(once), create(2, "a"));
        assert_eq!((refusal(&answer), answer.replayed), (None, false));
        replica.run(delete(2));
        replica.run(rename(1, "a"));
    }
}

#[test]
fn a_secret_answer_can_be_had_again_for_ten_minutes_where_it_is_still_kept() {
    let mut replica = Replica::founded();
    let once = Once { answer: Some(sealed("secret")), ..keyed("key", "body") };
    let body = new_key(1, viewer(), None);
    let first = replica.run_once(Some(once.clone()), body.clone());
    replica.at(START_MS + 10 * MINUTE_MS - 1);
    // Whoever repeats seals another copy, which is not the answer.
    let repeated = Once { answer: Some(sealed("other")), ..once.clone() };
    assert!(replica.run_once(Some(repeated.clone()), body.clone()).replayed);
    assert_eq!(replica.view().secret_answer(&repeated), Some(sealed("secret")));
    // It was done and is not done again, also where the secret went with a restart.
    let mut restored = replica.restored();
    assert_eq!(restored.refused_once(Some(once.clone()), body.clone()), RefusalKind::AnswerGone);
    assert_eq!(restored.view().secret_answer(&once), None);
    assert_eq!(restored.tables.fingerprint(), replica.tables.fingerprint(), "what lies aside is in no hash");
    replica.at(START_MS + 10 * MINUTE_MS);
    assert_eq!(replica.refused_once(Some(once.clone()), body), RefusalKind::AnswerGone);
    assert_eq!(replica.view().secret_answer(&once), None);
    assert_eq!((replica.count::<rows::Credential>(), refusal(&first)), (1, None));
}

#[test]
fn a_refused_write_leaves_no_secret_answer() {
    let mut replica = Replica::founded();
    replica.run(create(1, "a"));
    // The row fits, but not what would be remembered of it.
    let once = Once { answer: Some(sealed("secret")), ..keyed("key", "body") };
    let long = describe(1, &"d".repeat(16 * 1024 - 83));
    assert_eq!(replica.refused_once(Some(once.clone()), long.clone()), RefusalKind::TooLarge);
    assert_eq!(replica.view().secret_answer(&once), None);
    assert_eq!(refusal(&replica.run(long)), None, "the row itself fits");
}

#[test]
fn a_credential_is_made_found_changed_and_deleted() {
    let mut replica = Replica::founded();
    let (number, credential) = replica.credential(new_key(1, viewer(), None));
    assert_eq!((number, credential.expires_ms, credential.created_by.as_str()), (1, None, "tester"));
    let at = replica.index;
    assert_eq!(replica.refused(new_key(1, Kind::Gateway(GatewayKey::default()), None)), RefusalKind::Conflict);
    let update = UpdateCredential { id: 1, role: Some(Role::Operator.into()), ..UpdateCredential::default() };
    let stale = UpdateCredential { precondition: seen(&[at - 1]), ..update.clone() };
    assert_eq!(replica.refused(Body::UpdateCredential(stale)), RefusalKind::PreconditionFailed);
    let (_, changed) = replica.credential(Body::UpdateCredential(update));
    let fields = changed.fields.expect("fields");
    assert_eq!(fields.kind, Some(Kind::Console(ConsoleKey { role: Role::Operator.into() })));
    assert_eq!(fields.label, "key 1", "what is not given stays");
    let stale = DeleteCredential { id: 1, precondition: seen(&[at]) };
    assert_eq!(replica.refused(Body::DeleteCredential(stale)), RefusalKind::PreconditionFailed);
    replica.credential(Body::DeleteCredential(DeleteCredential { id: 1, precondition: None }));
    assert_eq!(replica.view().credential_by_hash(&[1; 32]), Ok(None));
    assert_eq!(replica.count::<rows::CredentialRef>(), 0);
    // Its hash is free, its number is never given again.
    assert_eq!(replica.credential(new_key(1, viewer(), None)).0, 2);
}

#[test]
fn a_key_of_the_gateway_has_a_label_and_no_role() {
    let mut replica = Replica::founded();
    replica.run(new_key(1, Kind::Gateway(GatewayKey::default()), None));
    let label = Some("new".to_owned());
    let update = UpdateCredential { id: 1, label, ..UpdateCredential::default() };
    let with_role = UpdateCredential { role: Some(Role::Admin.into()), ..update.clone() };
    assert_eq!(replica.refused(Body::UpdateCredential(with_role)), RefusalKind::Conflict);
    let (_, changed) = replica.credential(Body::UpdateCredential(update));
    assert_eq!(changed.fields.expect("fields").label, "new");
}

fn only(deployments: &[u64]) -> Option<DeploymentScope> {
    Some(DeploymentScope { deployments: deployments.to_vec() })
}

#[test]
fn the_scope_of_a_key_changes_when_it_is_named_and_not_otherwise() {
    let mut replica = Replica::founded();
    let (_, made) = replica.credential(new_key(1, Kind::Gateway(GatewayKey { scope: only(&[7, 9]) }), None));
    assert_eq!(scope(&made), Some(only(&[7, 9]).as_ref()));
    let update = UpdateCredential { id: 1, ..UpdateCredential::default() };
    let label = UpdateCredential { label: Some("new".to_owned()), ..update.clone() };
    let (_, changed) = replica.credential(Body::UpdateCredential(label));
    assert_eq!(scope(&changed), Some(only(&[7, 9]).as_ref()), "the label alone");
    for to in [only(&[]), only(&[8]), None] {
        let change = UpdateCredential { scope: Some(ScopeChange { to: to.clone() }), ..update.clone() };
        let (_, changed) = replica.credential(Body::UpdateCredential(change));
        assert_eq!(scope(&changed), Some(to.as_ref()));
        assert_eq!(changed.fields.expect("fields").label, "new");
    }
    let (number, made) = replica.credential(new_key(2, viewer(), None));
    assert_eq!(scope(&made), None, "it calls no model");
    let change = UpdateCredential { id: number, scope: Some(ScopeChange { to: None }), ..UpdateCredential::default() };
    assert_eq!(replica.refused(Body::UpdateCredential(change)), RefusalKind::Conflict);
}

#[test]
fn a_temporary_key_is_never_changed_and_goes_with_its_time() {
    let mut replica = Replica::founded();
    let kind = Kind::Temporary(TemporaryKey { scope: only(&[7]) });
    let (number, made) = replica.credential(new_key(1, kind, Some(500)));
    assert_eq!((scope(&made), made.expires_ms), (Some(only(&[7]).as_ref()), Some(START_MS + 500)));
    let update = UpdateCredential { id: number, ..UpdateCredential::default() };
    for change in [
        UpdateCredential { label: Some("new".to_owned()), ..update.clone() },
        UpdateCredential { scope: Some(ScopeChange { to: only(&[7, 8]) }), ..update.clone() },
        UpdateCredential { scope: Some(ScopeChange { to: None }), ..update.clone() },
        UpdateCredential { role: Some(Role::Admin.into()), ..update },
    ] {
        assert_eq!(replica.refused(Body::UpdateCredential(change)), RefusalKind::Conflict);
    }
    for (now, left) in [(START_MS + 499, 1), (START_MS + 500, 0)] {
        replica.at(now);
        let sweep = Sweep { office: replica.index, credentials: vec![number], ..Sweep::default() };
        replica.run(Body::Sweep(sweep));
        assert_eq!((replica.count::<rows::Credential>(), replica.count::<rows::CredentialRef>()), (left, left));
    }
    // One without a scope is never made; if there were one, it would open nothing.
    let (_, made) = replica.credential(new_key(2, Kind::Temporary(TemporaryKey { scope: None }), Some(500)));
    assert_eq!(scope(&made), Some(only(&[]).as_ref()));
}

#[test]
fn the_last_use_of_a_key_is_the_newest_that_a_node_has_told() {
    let mut replica = Replica::founded();
    replica.run(new_key(1, Kind::Gateway(GatewayKey::default()), None));
    let at = replica.index;
    let last = |replica: &Replica| replica.view().last_use(CredentialId(1)).expect("readable");
    assert_eq!(last(&replica), None);
    for (told, expected) in [(500, 500), (900, 900), (700, 900), (START_MS + 5, START_MS)] {
        replica.run(record_use(1, told));
        assert_eq!(last(&replica), Some(expected), "never later than now, and never back");
    }
    let stored = replica.view().credential(CredentialId(1)).expect("readable").expect("is there");
    assert_eq!(stored.mod_index, at, "it is the same version");
    replica.run(record_use(9, 500));
    assert_eq!(replica.count::<rows::CredentialUse>(), 1, "of a key that is gone nothing is kept");
    replica.run(Body::DeleteCredential(DeleteCredential { id: 1, precondition: None }));
    assert_eq!(replica.count::<rows::CredentialUse>(), 0);
}

fn record_use(credential: u64, used_ms: u64) -> Body {
    Body::RecordUse(RecordUse { uses: vec![KeyUse { credential, used_ms }] })
}

fn save(name: &str, payload: &str) -> Body {
    let (name_key, name, payload) = (name_key(name), name.to_owned(), payload.to_owned());
    Body::CreateConfig(CreateConfig { name, name_key, payload })
}

fn unsave(id: u64) -> Body {
    Body::DeleteConfig(DeleteConfig { id, precondition: None })
}

#[test]
fn a_configuration_is_saved_under_a_name_of_its_own_and_removed() {
    let mut replica = Replica::founded();
    // A name of a model is another matter.
    replica.run(create(1, "Small"));
    let answer = replica.run(save("Small", "{\"port\":8001}"));
    let Some(Outcome::Config(made)) = answer.outcome else { panic!("no configuration: {answer:?}") };
    let (at, config) = (replica.index, made.config.expect("it is shown"));
    assert_eq!((config.id, config.name.as_str(), config.payload.as_str()), (1, "Small", "{\"port\":8001}"));
    assert_eq!((config.created_index, config.created_ms, config.created_by.as_str()), (at, START_MS, "tester"));
    assert_eq!(replica.refused(save("SMALL", "{}")), RefusalKind::Conflict);
    assert_eq!(replica.refused(save("large", &format!("{{\"a\":\"{}\"}}", "x".repeat(17_000)))), RefusalKind::TooLarge);
    // The longest name that the API lets through is longer than a key of a table.
    assert_eq!(refusal(&replica.run(save(&"\u{1f600}".repeat(255), "{}"))), None);
    assert_eq!(replica.view().configs().expect("readable").len(), 2);
    let stale = DeleteConfig { id: 1, precondition: seen(&[at + 1]) };
    assert_eq!(replica.refused(Body::DeleteConfig(stale)), RefusalKind::PreconditionFailed);
    assert_eq!(replica.refused(unsave(3)), RefusalKind::NotFound, "what was refused has taken no number");
    replica.run(Body::DeleteConfig(DeleteConfig { id: 1, precondition: seen(&[at]) }));
    assert_eq!(replica.refused(unsave(1)), RefusalKind::NotFound);
    assert_eq!((replica.count::<rows::Config>(), replica.count::<rows::ConfigRef>()), (1, 1));
    let answer = replica.run(save("small", "{}"));
    let Some(Outcome::Config(again)) = answer.outcome else { panic!("no configuration: {answer:?}") };
    assert_eq!(again.config.expect("it is shown").id, 3, "the name is free, the number is not");
}

#[test]
fn settings_are_merged_checked_and_reset() {
    let mut replica = Replica::founded();
    let set = |changes: Settings| UpdateSettings { changes: Some(changes), ..UpdateSettings::default() };
    let first = Settings {
        default_port: Some(8001),
        default_max_failed_restarts: Some(3),
        gateway_enabled: Some(false),
        ..Settings::default()
    };
    replica.run(Body::UpdateSettings(UpdateSettings { precondition: seen(&[0]), ..set(first.clone()) }));
    let at = replica.index;
    assert_eq!(replica.view().settings(), Ok((first.clone(), at)));
    let second = set(Settings { default_port: Some(8002), ..Settings::default() });
    let stale = UpdateSettings { precondition: seen(&[0]), ..second.clone() };
    assert_eq!(replica.refused(Body::UpdateSettings(stale)), RefusalKind::PreconditionFailed);
    let answer = replica.run(Body::UpdateSettings(UpdateSettings { precondition: seen(&[at]), ..second }));
    let expected = Settings { default_port: Some(8002), ..first };
    let shown = rows::SettingsAnswer { mod_index: replica.index, settings: Some(expected.clone()) };
    assert_eq!(answer.outcome, Some(Outcome::Settings(shown)));
    let reset = vec!["default_max_failed_restarts".to_owned()];
    replica.run(Body::UpdateSettings(UpdateSettings { reset, ..UpdateSettings::default() }));
    let expected = Settings { default_max_failed_restarts: None, ..expected };
    assert_eq!(replica.view().settings(), Ok((expected, replica.index)));
}

#[test]
fn a_duty_of_an_older_office_is_refused() {
    let mut replica = Replica::founded();
    replica.run(Body::TakeOffice(TakeOffice { node: 1 }));
    let first = replica.index;
    let sweep = |office| Body::Sweep(Sweep { office, audit_before: 2, ..Sweep::default() });
    replica.run(Body::TakeOffice(TakeOffice { node: 2 }));
    let second = replica.index;
    assert_eq!(replica.view().office(), Ok(Some((Office(second), NodeId(2)))));
    for office in [0, first, second + 1] {
        assert_eq!(replica.refused(sweep(office)), RefusalKind::OldOffice);
    }
    assert_eq!(refusal(&replica.run(sweep(second))), None);
    assert_eq!(replica.view().audit(0).count(), 2, "the first of three entries is gone");
}

#[test]
fn a_sweep_removes_only_what_is_over_by_the_logs_time() {
    let mut replica = Replica::founded();
    replica.run(new_key(1, viewer(), Some(CLIENT_RETENTION_MS)));
    replica.run(new_key(2, viewer(), Some(KEY_RETENTION_MS)));
    replica.run(new_key(3, viewer(), None));
    let settings = || Body::UpdateSettings(UpdateSettings::default());
    replica.run_once(Some(write(1, 0, "b")), settings());
    replica.run_once(Some(keyed("key", "b")), settings());
    let left = |replica: &mut Replica, now| {
        replica.at(now);
        // The leader names everything there is, and what is not there.
        let markers = replica.tables.range(<rows::Marker as Row>::TABLE, &[]).map(|(key, _)| key.to_vec().into());
        let markers = markers.chain([Bytes::from_static(b"k none")]).collect();
        let sweep =
            Sweep { office: replica.index, markers, credentials: vec![1, 2, 3, 9], audit_before: 0, surplus: false };
        assert_eq!(refusal(&replica.run(Body::Sweep(sweep))), None);
        let credentials = replica.count::<rows::Credential>();
        assert_eq!(replica.count::<rows::CredentialRef>(), credentials);
        (credentials, replica.count::<rows::Marker>())
    };
    assert_eq!(left(&mut replica, START_MS + CLIENT_RETENTION_MS - 1), (3, 2));
    assert_eq!(left(&mut replica, START_MS + CLIENT_RETENTION_MS), (2, 1));
    assert_eq!(left(&mut replica, START_MS + KEY_RETENTION_MS - 1), (2, 1));
    assert_eq!(left(&mut replica, START_MS + KEY_RETENTION_MS), (1, 0));
    assert!(replica.view().credential_by_hash(&[3; 32]).expect("readable").is_some());
}

#[test]
fn what_people_do_leaves_an_entry_in_the_audit_trail_and_duties_leave_none() {
    let mut replica = Replica::founded();
    let facts = Some(NodeFacts { name: "a node".to_owned(), ..NodeFacts::default() });
    replica.at(START_MS);
    let office = replica.index;
    let once = write(1, 0, "b");
    replica.run_once(Some(once.clone()), create(1, "a"));
    let created = replica.index;
    assert!(replica.run_once(Some(once), create(1, "a")).replayed);
    replica.run(Body::ReportNode(ReportNode { id: 1, facts: facts.clone() }));
    replica.run(Body::Sweep(Sweep { office, ..Sweep::default() }));
    replica.run(describe(1, "x"));
    replica.run(delete(1));
    assert_eq!(replica.refused(delete(1)), RefusalKind::NotFound);
    replica.run(new_key(1, viewer(), None));
    replica.run(Body::UpdateCredential(UpdateCredential { id: 1, ..UpdateCredential::default() }));
    replica.run(Body::DeleteCredential(DeleteCredential { id: 1, precondition: None }));
    replica.run(Body::UpdateSettings(UpdateSettings::default()));
    replica.run(save("a", "{}"));
    replica.run(unsave(1));
    let view = replica.view();
    let trail: Vec<_> = view.audit(office).collect::<Result<_, _>>().expect("readable");
    let model = id(1).to_string();
    let expected = [
        ("model.create", model.as_str()),
        ("model.update", &model),
        ("model.delete", &model),
        ("credential.create", "1"),
        ("credential.update", "1"),
        ("credential.delete", "1"),
        ("settings.update", ""),
        ("config.create", "1"),
        ("config.delete", "1"),
    ];
    let shown: Vec<_> = trail.iter().map(|(_, entry)| (entry.action.as_str(), entry.object.as_str())).collect();
    assert_eq!(shown, expected);
    let (index, first) = &trail[0];
    assert_eq!((*index, first.time_ms), (created, START_MS));
    assert_eq!((first.principal.as_str(), first.source.as_str()), ("tester", "192.0.2.1"));
    assert_eq!(first.request_id, format!("request {created}"));
    assert_eq!(view.node(NodeId(1)).expect("readable").expect("is there").row.facts, facts);
}

/// Commands from so small a world that they meet each other: few ids, names, hashes, offices and numbers of writes.
fn any_body() -> impl Strategy<Value = Body> {
    let number = || 1..4_u8;
    let name = || prop::sample::select(vec!["a", "A", "b b", "b-b", "openai/a", "openai/b-b"]);
    let precondition = || prop::option::of(prop::collection::vec(1..40_u64, 0..20).prop_map(|list| seen(&list)));
    let ttl = || prop::option::of(0..200_u64);
    prop_oneof![
        Just(bootstrap(1, &[])),
        (1..3_u64).prop_map(|node| Body::TakeOffice(TakeOffice { node })),
        (0..40_u64, 0..40_u64).prop_map(|(office, audit_before)| {
            Body::Sweep(Sweep { office, markers: vec![], credentials: (0..6).collect(), audit_before, surplus: false })
        }),
        name().prop_map(|name| {
            let facts = Some(NodeFacts { name: name.to_owned(), ..NodeFacts::default() });
            Body::ReportNode(ReportNode { id: 1, facts })
        }),
        (number(), name()).prop_map(|(number, name)| create(number, name)),
        (number(), name()).prop_map(|(number, name)| rename(number, name)),
        (number(), precondition(), any::<bool>()).prop_map(|(number, precondition, clear_api_key)| {
            let api_key = (number > 1).then(|| sealed("key"));
            let precondition = precondition.flatten();
            let update = change(number, ModelFields::default());
            Body::UpdateModel(UpdateModel { precondition, clear_api_key, api_key, ..update })
        }),
        number().prop_map(delete),
        (number(), ttl()).prop_map(|(hash, ttl)| new_key(hash, viewer(), ttl)),
        (number(), ttl()).prop_map(|(hash, ttl)| new_key(hash, Kind::Gateway(GatewayKey { scope: only(&[1]) }), ttl)),
        (0..6_u64, prop::option::of(Just(only(&[2])))).prop_map(|(id, to)| {
            let scope = Some(ScopeChange { to: to.flatten() });
            Body::UpdateCredential(UpdateCredential { id, scope, ..UpdateCredential::default() })
        }),
        (0..6_u64).prop_map(|id| Body::DeleteCredential(DeleteCredential { id, precondition: None })),
        (0..6_u64, 0..2 * START_MS).prop_map(|(id, used)| record_use(id, used)),
        name().prop_map(|name| save(name, "{}")),
        (0..6_u64).prop_map(unsave),
        (prop::option::of(0..6_u64), any::<bool>()).prop_map(|(configs_before, nodes)| {
            Body::Purge(rows::Purge { deployments_before: configs_before, configs_before, nodes, deleted: None })
        }),
        (precondition(), 0..9_u64).prop_map(|(precondition, port)| {
            let changes = Some(Settings { default_port: Some(port), ..Settings::default() });
            let precondition = precondition.flatten();
            Body::UpdateSettings(UpdateSettings { precondition, changes, reset: vec![] })
        }),
    ]
}

fn any_once() -> impl Strategy<Value = Option<Once>> {
    let once = (1..3_u8, 0..6_u64, any::<bool>()).prop_map(|(client, seq, secret)| Once {
        answer: secret.then(|| sealed("answer")),
        ..write(client, seq * CLIENT_WINDOW / 4, "b")
    });
    prop::option::of(once)
}

proptest! {
    #[test]
    fn replicas_stay_equal_whatever_comes_and_whichever_was_restored(
        commands in prop::collection::vec((any_body(), any_once(), 0..50_u64), 2..60),
    ) {
        let (mut one, mut other) = (Replica::founded(), Replica::founded());
        let half = commands.len() / 2;
        for (at, (body, once, passed)) in commands.into_iter().enumerate() {
            if at == half {
                other = other.restored();
            }
            // Some stamps are older than those before.
            one.now = START_MS + 20 * at as u64 + passed;
            other.now = one.now;
            let answers = [&mut one, &mut other].map(|replica| replica.run_once(once.clone(), body.clone()));
            // Only a secret answer may be gone from one of them, and that changes nothing.
            let gone = answers[0].replayed && refusal(&answers[1]) == Some(RefusalKind::AnswerGone);
            prop_assert!(answers[0] == answers[1] || (gone && at >= half), "{answers:?}");
            prop_assert_eq!(one.tables.fingerprint(), other.tables.fingerprint());
        }
        prop_assert_eq!(one.restored().tables.fingerprint(), one.tables.fingerprint());
    }
}

#[test]
fn a_repeated_write_of_a_process_that_is_forgotten_or_not_that_far_is_refused() {
    let mut replica = Replica::founded();
    let settings = || Body::UpdateSettings(UpdateSettings::default());
    let again = |seq| Once { repeated: true, ..write(1, seq, "b") };
    assert_eq!(replica.refused_once(Some(again(0)), settings()), RefusalKind::AnswerGone, "nobody knows this process");
    replica.run_once(Some(write(1, 5, "b")), settings());
    assert!(replica.run_once(Some(again(5)), settings()).replayed);
    // One that was lost on its way is done now, and one that was never given out is not.
    assert!(!replica.run_once(Some(again(4)), settings()).replayed);
    let far = CLIENT_WINDOW + 6;
    assert_eq!(replica.refused_once(Some(again(far)), settings()), RefusalKind::AnswerGone);
    replica.at(START_MS + CLIENT_RETENTION_MS);
    assert_eq!(replica.refused_once(Some(again(3)), settings()), RefusalKind::AnswerGone, "it is being forgotten");
    assert_eq!(refusal(&replica.run_once(Some(write(1, 6, "b")), settings())), None, "a new one is not held up");
}

#[test]
fn a_deployment_has_a_number_of_its_own_and_takes_its_secrets_with_it() {
    let mut replica = Replica::founded();
    let id = Uuid::from_u128(7);
    let environment =
        |values| rows::Environment { id: id.as_bytes().to_vec().into(), keys: vec!["K".to_owned()], values };
    let sealed = Sealed { key_version: 1, ..Sealed::default() };
    let create = rows::CreateDeployment { environment: Some(environment(Some(sealed.clone()))), ..Default::default() };
    let run = |replica: &mut Replica| {
        let answer = replica.run(Body::CreateDeployment(create.clone()));
        let Some(Outcome::Deployment(rows::DeploymentAnswer { deployment: Some(row), .. })) = answer.outcome else {
            panic!("no deployment: {answer:?}");
        };
        row
    };
    let first = run(&mut replica);
    assert_eq!((first.id, first.environment), (1, Some(environment(None))));
    let name = super::environment_name(id);
    assert_eq!(replica.view().secret(&name).expect("readable"), Some(sealed));
    let wish = rows::Wish { node_id: Some(9), ..rows::Wish::default() };
    let nowhere = rows::CreateDeployment { wish: Some(wish), ..create.clone() };
    assert_eq!(replica.refused(Body::CreateDeployment(nowhere)), RefusalKind::NotFound);
    let delete = |id, seen: &[u64]| {
        let precondition = (!seen.is_empty()).then(|| Precondition { mod_index: seen.to_vec() });
        Body::DeleteDeployment(rows::DeleteDeployment { id, precondition })
    };
    assert_eq!(replica.refused(delete(1, &[1])), RefusalKind::PreconditionFailed);
    assert_eq!(replica.refused(delete(2, &[])), RefusalKind::NotFound);
    replica.run(delete(1, &[first.created_index]));
    assert_eq!((replica.count::<rows::Deployment>(), replica.count::<rows::Secret>()), (0, 0));
    assert_eq!(run(&mut replica.restored()).id, 2, "a number is never given twice");
}
