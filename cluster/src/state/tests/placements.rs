//! Deployments that are started and ended, and what they hold meanwhile.

use super::*;
use crate::ids::{DeploymentId, PlacementId};
use crate::rows::report_placement::Event;
use crate::rows::start_deployment::What;
use crate::rows::{
    CreateDeployment, DeleteDeployment, Deployment, DeploymentSpec, DeploymentStatus as Status, ExpireDeployment,
    ExtendDeployment, Failure, GpuFact, PinDeployment, PlaceReplica, Placement, PlacementEnded, PlacementFailed,
    PlacementLoading, PlacementRunning, ReportPlacement, Reservation, RestartDeployment, Seat, ServedName,
    StartDeployment, StopDeployment, Wish,
};

const HOUR_S: u64 = 3600;

/// A fleet whose two nodes have two GPUs each.
pub(super) fn fleet() -> Replica {
    let mut replica = Replica::founded();
    for id in [1, 2] {
        if id != 1 {
            let node = rows::Node { id, ..rows::Node::default() };
            replica.tables.put(rows::Node::TABLE, id.to_be_bytes().to_vec(), node.encode_to_vec(), replica.index);
        }
        let gpus = (0..2).map(|index| GpuFact { index, ..GpuFact::default() }).collect();
        replica.run(Body::ReportNode(ReportNode { id, facts: Some(NodeFacts { gpus, ..NodeFacts::default() }) }));
    }
    replica
}

fn served(names: &[&str]) -> Vec<ServedName> {
    names.iter().map(|name| ServedName { name: (*name).to_owned(), key: name_key(name) }).collect()
}

pub(super) fn described(names: &[&str], share: u32) -> CreateDeployment {
    let spec = DeploymentSpec { model_name: "org/m".to_owned(), gpu_share_ppm: share, ..DeploymentSpec::default() };
    CreateDeployment { spec: Some(spec), owner: "team".to_owned(), names: served(names), ..CreateDeployment::default() }
}

pub(super) fn seat(node_id: u64, gpu_ids: &[u32], port: u32) -> Seat {
    Seat { node_id, gpu_ids: gpu_ids.to_vec(), port, runtime: "process".to_owned(), warm: false }
}

pub(super) fn start(mut create: CreateDeployment, seat: Seat) -> Body {
    create.wish.get_or_insert(wish(Some(seat.node_id), 1));
    Body::StartDeployment(StartDeployment { what: Some(What::Create(create)), seats: vec![seat] })
}

pub(super) fn restart(id: u64, seat: Seat) -> Body {
    let restart = RestartDeployment { id, owner: "others".to_owned(), duration_s: None, precondition: None };
    Body::StartDeployment(StartDeployment { what: Some(What::Restart(restart)), seats: vec![seat] })
}

fn wish(node_id: Option<u64>, replicas: u32) -> Wish {
    Wish { node_id, replicas, ..Wish::default() }
}

/// Starts what the leader finds places for.
fn start_anywhere(names: &[&str], share: u32, replicas: u32) -> Body {
    let create = CreateDeployment { wish: Some(wish(None, replicas)), ..described(names, share) };
    Body::StartDeployment(StartDeployment { what: Some(What::Create(create)), seats: Vec::new() })
}

pub(super) fn stop(id: u64) -> Body {
    Body::StopDeployment(StopDeployment { id, precondition: None })
}

fn failure(code: &str) -> Option<Failure> {
    Some(Failure { code: code.to_owned(), message: format!("it is {code}") })
}

fn loading() -> Event {
    Event::Loading(PlacementLoading { image_digest: "sha256:1".to_owned() })
}

pub(super) fn running() -> Event {
    Event::Running(PlacementRunning {})
}

fn failed() -> Event {
    Event::Failed(PlacementFailed { failure: failure("gpu_oom") })
}

pub(super) fn ended(why: Option<Failure>) -> Event {
    Event::Ended(PlacementEnded { failure: why })
}

impl Replica {
    pub(super) fn deployment(&mut self, body: Body) -> Deployment {
        let answer = self.run(body);
        let Some(Outcome::Deployment(rows::DeploymentAnswer { deployment: Some(row), .. })) = answer.outcome else {
            panic!("no deployment: {answer:?}");
        };
        row
    }

    pub(super) fn row(&self, id: u64) -> Deployment {
        self.view().deployment(DeploymentId(id)).expect("readable").expect("there").row
    }

    pub(super) fn placement(&self, id: u64) -> Placement {
        let id = PlacementId { deployment: DeploymentId(id), ordinal: 0 };
        self.view().placement(id).expect("readable").expect("there").row
    }

    fn report_of(&self, id: u64, event: Event) -> Body {
        let epoch = self.placement(id).epoch;
        Body::ReportPlacement(ReportPlacement { deployment: id, ordinal: 0, epoch, event: Some(event) })
    }

    pub(super) fn report(&mut self, id: u64, event: Event) {
        let body = self.report_of(id, event);
        let answer = self.run(body);
        assert_eq!(refusal(&answer), None, "{answer:?}");
    }

    pub(super) fn holds_nothing(&self) -> bool {
        let counts = (self.count::<Reservation>(), self.count::<rows::NameClaim>(), self.count::<rows::ModelAlias>());
        counts == (0, 0, 0)
    }
}

#[test]
fn a_deployment_holds_what_it_needs_until_its_node_says_that_nothing_is_left() {
    let mut replica = fleet();
    let row = replica.deployment(start(described(&["x"], 500_000), seat(1, &[0], 8001)));
    assert_eq!((row.status(), replica.placement(1).status()), (Status::Starting, Status::Starting));
    assert_eq!(replica.placement(1).epoch, replica.index);
    let held = replica.view().held_on(NodeId(1)).expect("readable");
    assert_eq!((held.len(), held[0].reservation.port, held[0].reservation.gpu_share_ppm), (1, 8001, 500_000));
    assert_eq!(replica.view().held_on(NodeId(2)).expect("readable"), []);
    assert_eq!(replica.view().aliased("org/m").expect("readable"), [DeploymentId(1)]);
    assert_eq!(replica.view().aliased("org/").expect("readable"), []);
    replica.report(1, loading());
    assert_eq!((replica.row(1).status(), replica.placement(1).image_digest.as_str()), (Status::Loading, "sha256:1"));
    replica.report(1, running());
    assert_eq!(replica.row(1).status(), Status::Running);
    assert_eq!(replica.deployment(stop(1)).status(), Status::Stopping);
    assert!(!replica.holds_nothing(), "it may still be there");
    replica.report(1, ended(None));
    assert_eq!((replica.row(1).status(), replica.placement(1).status()), (Status::Stopped, Status::Stopped));
    assert!(replica.holds_nothing());
    let before = replica.row(1);
    assert_eq!(replica.deployment(stop(1)), before, "it has been stopped");
}

#[test]
fn a_placement_goes_no_way_but_its_own() {
    type Told = fn() -> Event;
    type Way = (Option<Told>, Told, Option<Status>);
    let (loading, running, failed): (Told, Told, Told) = (loading, running, failed);
    let broken: fn() -> Event = || ended(failure("bad_args"));
    let away: fn() -> Event = || ended(None);
    let ways: [Way; 14] = [
        (None, running, Some(Status::Running)),
        (None, failed, Some(Status::Starting)),
        (None, broken, Some(Status::Error)),
        (None, away, Some(Status::Stopped)),
        (Some(loading), loading, Some(Status::Loading)),
        (Some(loading), failed, Some(Status::Starting)),
        (Some(loading), broken, Some(Status::Error)),
        (Some(running), running, Some(Status::Running)),
        (Some(running), loading, Some(Status::Loading)),
        (Some(running), failed, Some(Status::Starting)),
        (Some(running), broken, Some(Status::Error)),
        (Some(broken), running, None),
        (Some(away), away, None),
        (Some(broken), failed, None),
    ];
    for (number, (before, event, becomes)) in ways.into_iter().enumerate() {
        let mut replica = fleet();
        replica.deployment(start(described(&["x"], 500_000), seat(1, &[0], 8001)));
        before.into_iter().for_each(|event| replica.report(1, event()));
        match becomes {
            Some(status) => {
                replica.report(1, event());
                assert_eq!((replica.placement(1).status(), replica.row(1).status()), (status, status), "{number}");
            }
            None => {
                let body = replica.report_of(1, event());
                assert_eq!(replica.refused(body), RefusalKind::Conflict, "{number}");
            }
        }
    }
    for (event, allowed) in [(loading, false), (running, false), (failed, false), (broken, true), (away, true)] {
        let mut replica = fleet();
        replica.deployment(start(described(&["x"], 500_000), seat(1, &[0], 8001)));
        replica.run(stop(1));
        let body = replica.report_of(1, event());
        match allowed {
            true => {
                replica.report(1, event());
                assert_eq!(replica.placement(1).status(), Status::Stopped, "it was told to stop, however it ended");
            }
            false => assert_eq!(replica.refused(body), RefusalKind::Conflict),
        }
    }
}

#[test]
fn why_it_failed_is_told_until_it_runs_or_is_started_anew() {
    let mut replica = fleet();
    replica.deployment(start(described(&["x"], 500_000), seat(1, &[0], 8001)));
    replica.report(1, failed());
    replica.report(1, loading());
    assert_eq!((replica.row(1).failure, replica.placement(1).failure), (failure("gpu_oom"), failure("gpu_oom")));
    replica.report(1, running());
    assert_eq!((replica.row(1).failure, replica.placement(1).failure), (None, None));
    replica.report(1, ended(failure("bad_args")));
    assert_eq!((replica.row(1).status(), replica.row(1).failure), (Status::Error, failure("bad_args")));
    assert!(replica.holds_nothing());
    let again = replica.deployment(restart(1, seat(1, &[0], 8001)));
    assert_eq!((again.status(), again.failure, again.owner.as_str()), (Status::Starting, None, "others"));
}

#[test]
fn a_port_a_name_and_a_gpu_are_given_once() {
    let mut replica = fleet();
    replica.run(start(described(&["x", "lora"], 600_000), seat(1, &[0], 8001)));
    let start = |names: &[&str], share, seat| start(described(names, share), seat);
    assert_eq!(replica.refused(start(&["y"], 100_000, seat(1, &[1], 8001))), RefusalKind::Conflict);
    assert_eq!(replica.refused(start(&["X"], 100_000, seat(2, &[0], 8001))), RefusalKind::Conflict);
    assert_eq!(replica.refused(start(&["lora"], 100_000, seat(2, &[0], 8001))), RefusalKind::Conflict);
    assert_eq!(replica.refused(start(&["y", "x"], 100_000, seat(2, &[0], 8001))), RefusalKind::Conflict);
    assert_eq!(replica.refused(start(&["y"], 400_001, seat(1, &[0], 8002))), RefusalKind::Conflict);
    assert_eq!(replica.refused(start(&["y"], 400_001, seat(1, &[1, 0], 8002))), RefusalKind::Conflict);
    assert_eq!(replica.refused(start(&["y"], 100_000, seat(1, &[2], 8002))), RefusalKind::Invalid);
    assert_eq!(replica.refused(start(&["y"], 100_000, seat(3, &[0], 8002))), RefusalKind::NotFound);
    replica.run(create(1, "of the registry"));
    assert_eq!(replica.refused(start(&["Of the registry"], 1, seat(2, &[0], 8001))), RefusalKind::Conflict);
    assert_eq!(replica.deployment(start(&["y"], 400_000, seat(1, &[0], 8002))).id, 2);
    assert_eq!(replica.deployment(start(&["z"], 600_000, seat(2, &[0], 8001))).id, 3);
    assert_eq!(replica.view().aliased("org/m").expect("readable").len(), 3, "a model's name is nobody's own");
    let taken = replica.refused(create(2, "LORA"));
    assert_eq!(taken, RefusalKind::Conflict, "the registry shares the names");
}

#[test]
fn what_can_go_to_sleep_leaves_room_for_others_and_pinning_takes_it_back() {
    let mut replica = fleet();
    let warm = |port| Seat { warm: true, ..seat(1, &[0], port) };
    for (number, share) in [(1, 900_000), (2, 500_000), (3, 1_000_000)] {
        let name = format!("warm {number}");
        assert_eq!(replica.deployment(start(described(&[&name], share), warm(8000 + number))).id, u64::from(number));
    }
    assert_eq!(replica.refused(start(described(&["fixed"], 1), seat(1, &[0], 8004))), RefusalKind::Conflict);
    let pin = |id, pinned| Body::PinDeployment(PinDeployment { id, pinned, precondition: None });
    assert_eq!(replica.refused(pin(1, true)), RefusalKind::Conflict, "the largest would not fit beside it");
    replica.run(stop(3));
    replica.report(3, ended(None));
    assert_eq!(replica.refused(pin(1, true)), RefusalKind::Conflict);
    assert_eq!(replica.refused(pin(2, true)), RefusalKind::Conflict);
    replica.run(stop(2));
    replica.report(2, ended(None));
    assert!(replica.deployment(pin(1, true)).pinned);
    assert!(!replica.deployment(pin(1, false)).pinned);
}

#[test]
fn who_speaks_for_another_epoch_is_not_heard() {
    let mut replica = fleet();
    replica.deployment(start(described(&["x"], 500_000), seat(1, &[0], 8001)));
    let old = replica.report_of(1, running());
    replica.report(1, ended(failure("bad_args")));
    replica.run(restart(1, seat(2, &[0], 8001)));
    assert_eq!(replica.refused(old), RefusalKind::OldEpoch);
    assert_eq!(replica.view().held_on(NodeId(1)).expect("readable"), []);
    assert_eq!(replica.view().held_on(NodeId(2)).expect("readable")[0].epoch.0, replica.placement(1).epoch);
    replica.run(Body::DeleteDeployment(DeleteDeployment { id: 1, precondition: None }));
    assert!(replica.holds_nothing() && replica.count::<Placement>() == 0);
}

#[test]
fn nothing_is_started_that_is_not_over() {
    let mut replica = fleet();
    replica.deployment(start(described(&["x"], 500_000), seat(1, &[0], 8001)));
    assert_eq!(replica.refused(restart(1, seat(1, &[0], 8001))), RefusalKind::Conflict);
    replica.run(stop(1));
    assert_eq!(replica.refused(restart(1, seat(1, &[0], 8001))), RefusalKind::Conflict, "it is stopping");
    replica.report(1, ended(None));
    replica.run(restart(1, seat(1, &[0], 8001)));
    let create = CreateDeployment { wish: Some(wish(Some(1), 1)), ..described(&["y"], 1) };
    let nowhere = StartDeployment { what: Some(What::Create(create)), seats: Vec::new() };
    assert_eq!(replica.refused(Body::StartDeployment(nowhere)), RefusalKind::Conflict);
}

#[test]
fn its_time_begins_when_it_first_runs() {
    let mut replica = fleet();
    let create = CreateDeployment { duration_s: Some(HOUR_S), ..described(&["x"], 500_000) };
    replica.deployment(start(create, seat(1, &[0], 8001)));
    assert_eq!(replica.row(1).expires_ms, None);
    let extend = |by_s| Body::ExtendDeployment(ExtendDeployment { id: 1, by_s, precondition: None });
    replica.run(extend(Some(HOUR_S)));
    assert_eq!((replica.row(1).duration_s, replica.row(1).expires_ms), (Some(2 * HOUR_S), None));
    replica.at(START_MS + MINUTE_MS);
    replica.report(1, running());
    let end = START_MS + MINUTE_MS + 2 * HOUR_S * 1000;
    assert_eq!(replica.row(1).expires_ms, Some(end));
    replica.at(START_MS + 2 * MINUTE_MS);
    replica.report(1, failed());
    replica.report(1, running());
    assert_eq!(replica.row(1).expires_ms, Some(end), "it does not begin again");
    replica.run(extend(Some(4 * HOUR_S)));
    let end = end + 4 * HOUR_S * 1000;
    assert_eq!((replica.row(1).duration_s, replica.row(1).expires_ms), (Some(6 * HOUR_S), Some(end)));
    let office = replica.view().office().expect("readable").expect("held").0.0;
    let expire = |expires_ms| Body::ExpireDeployment(ExpireDeployment { office, id: 1, expires_ms });
    assert_eq!(replica.refused(expire(end)), RefusalKind::Conflict, "not yet");
    replica.at(end);
    let office = replica.view().office().expect("readable").expect("held").0.0;
    let expire = |office, expires_ms| Body::ExpireDeployment(ExpireDeployment { office, id: 1, expires_ms });
    assert_eq!(replica.refused(expire(office, end - 1)), RefusalKind::Conflict, "another end was read");
    assert_eq!(replica.refused(expire(office - 1, end)), RefusalKind::OldOffice);
    let row = replica.deployment(expire(office, end));
    assert_eq!((row.status(), row.expires_ms), (Status::Expired, None));
    assert_eq!(replica.placement(1).status(), Status::Stopping);
    assert_eq!(replica.refused(extend(None)), RefusalKind::Conflict);
    assert_eq!(replica.refused(restart(1, seat(1, &[0], 8001))), RefusalKind::Conflict, "it is not gone yet");
    replica.report(1, ended(None));
    assert_eq!((replica.row(1).status(), replica.placement(1).status()), (Status::Expired, Status::Expired));
    assert!(replica.holds_nothing());
    replica.run(restart(1, seat(1, &[0], 8001)));
    assert_eq!(replica.row(1).duration_s, None);
    assert_eq!(replica.refused(extend(Some(1))), RefusalKind::Conflict, "what has no end has none to move");
    replica.run(extend(None));
}

#[test]
fn a_node_that_leaves_the_fleet_holds_nothing_any_more() {
    let mut replica = fleet();
    replica.deployment(start(described(&["x"], 500_000), seat(2, &[0], 8001)));
    replica.deployment(start(described(&["y"], 500_000), seat(2, &[0], 8002)));
    replica.deployment(start(described(&["z"], 500_000), seat(1, &[0], 8001)));
    replica.report(1, running());
    replica.run(stop(2));
    let remove = rows::RemoveNode { id: 2, holders: vec![1], keys: Vec::new() };
    assert_eq!(refusal(&replica.run(Body::RemoveNode(remove))), None);
    let statuses = [1, 2, 3].map(|id| replica.row(id).status());
    assert_eq!(statuses, [Status::Error, Status::Stopped, Status::Starting]);
    assert_eq!(replica.row(1).failure.map(|failure| failure.code).as_deref(), Some("node_removed"));
    assert_eq!(replica.count::<Reservation>(), 1);
    assert!(matches!(replica.view().name_holder("x"), Ok(None)));
    assert!(matches!(replica.view().name_holder("Z"), Ok(Some(rows::name_claim::Holder::Deployment(3)))));
}

impl Replica {
    fn office(&self) -> u64 {
        self.view().office().expect("readable").map_or(0, |(office, _)| office.0)
    }

    /// The scheduler's word for a replica, as it is now.
    fn place(&self, id: u64, ordinal: u32, seat: Seat) -> Body {
        let of = PlacementId { deployment: DeploymentId(id), ordinal };
        let epoch = self.view().placement(of).expect("readable").expect("there").row.epoch;
        let (office, explained, failure) = (self.office(), "because".to_owned(), None);
        let seat = Some(seat);
        Body::PlaceReplica(PlaceReplica { office, deployment: id, ordinal, epoch, seat, explained, failure })
    }
}

#[test]
fn replicas_without_a_place_wait_for_the_leader() {
    let mut replica = fleet();
    replica.at(START_MS + 1);
    let row = replica.deployment(start_anywhere(&["x"], 600_000, 2));
    assert_eq!((row.status(), replica.count::<Placement>(), replica.count::<Reservation>()), (Status::Starting, 2, 0));
    assert_eq!(replica.refused(start_anywhere(&["X"], 1, 1)), RefusalKind::Conflict, "its name is held all the same");
    let body = replica.report_of(1, running());
    assert_eq!(replica.refused(body), RefusalKind::OldEpoch, "nobody has it");
    let first = replica.place(1, 0, seat(1, &[0], 8001));
    replica.run(first.clone());
    assert_eq!(replica.placement(1).epoch, replica.index);
    assert_eq!(replica.placement(1).explained, "because");
    assert_eq!(replica.refused(first), RefusalKind::OldEpoch, "it was placed meanwhile");
    let there = replica.place(1, 1, seat(1, &[0], 8002));
    assert_eq!(replica.refused(there), RefusalKind::Conflict, "its GPU has no room for both");
    let late = match replica.place(1, 1, seat(2, &[0], 8001)) {
        Body::PlaceReplica(place) => Body::PlaceReplica(PlaceReplica { office: place.office - 1, ..place }),
        _ => panic!("another command"),
    };
    assert_eq!(replica.refused(late), RefusalKind::OldOffice);
    replica.report(1, running());
    assert_eq!(replica.row(1).status(), Status::Running, "one replica is enough");
    replica.run(stop(1));
    let view = replica.view();
    let statuses: Vec<_> = view.placements(DeploymentId(1)).expect("readable").iter().map(Placement::status).collect();
    assert_eq!(statuses, [Status::Stopping, Status::Stopped], "of one that has no place nothing is left to end");
    replica.report(1, ended(None));
    assert!(replica.holds_nothing() && replica.row(1).status() == Status::Stopped);
}

#[test]
fn a_replica_that_is_given_to_another_node_is_no_longer_the_first_ones() {
    let mut replica = fleet();
    replica.at(START_MS + 1);
    replica.run(start_anywhere(&["x"], 600_000, 1));
    let body = replica.place(1, 0, seat(1, &[0], 8001));
    replica.run(body);
    let old = replica.report_of(1, running());
    replica.report(1, running());
    let body = match replica.place(1, 0, seat(2, &[1], 8002)) {
        Body::PlaceReplica(place) => Body::PlaceReplica(PlaceReplica { failure: failure("node_lost"), ..place }),
        _ => panic!("another command"),
    };
    let row = replica.deployment(body);
    assert_eq!((row.status(), row.failure), (Status::Starting, failure("node_lost")));
    assert_eq!(replica.refused(old), RefusalKind::OldEpoch);
    assert_eq!(replica.view().held_on(NodeId(1)).expect("readable"), []);
    assert_eq!(replica.view().held_on(NodeId(2)).expect("readable").len(), 1);
    replica.report(1, running());
    assert_eq!(replica.row(1).failure, None);
    replica.run(stop(1));
    let body = replica.place(1, 0, seat(1, &[0], 8001));
    assert_eq!(replica.refused(body), RefusalKind::OldEpoch, "what is being stopped is not moved");
}

#[test]
fn what_may_move_waits_for_another_node_when_its_own_leaves_the_fleet() {
    let mut replica = fleet();
    replica.at(START_MS + 1);
    replica.run(start_anywhere(&["x"], 600_000, 1));
    let body = replica.place(1, 0, seat(2, &[0], 8001));
    replica.run(body);
    replica.report(1, running());
    replica.run(Body::RemoveNode(rows::RemoveNode { id: 2, holders: vec![1], keys: Vec::new() }));
    assert_eq!((replica.row(1).status(), replica.placement(1).seat), (Status::Starting, None));
    assert_eq!(replica.count::<Reservation>(), 0);
    let body = replica.place(1, 0, seat(1, &[0], 8001));
    replica.run(body);
    replica.report(1, running());
    assert_eq!(replica.row(1).status(), Status::Running);
}
