//! What fits, what gives way, and what is said when neither helps (test vectors B4 to B6).

use super::*;
use crate::ids::DeploymentId;
use crate::planner::gpu::ShortOfMemory;

const MB: u64 = 1 << 20;
const GPU_BYTES: u64 = 80_000 * MB;

pub(super) fn id(deployment: u64) -> PlacementId {
    PlacementId { deployment: DeploymentId(deployment), ordinal: 0 }
}

pub(super) fn share(fraction: f64) -> Share {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "fractions of tests")]
    Share((fraction * 1e6).round() as u32)
}

/// A model that runs on GPU 0 and may be put to sleep.
fn running(number: u64, fraction: f64) -> Resident {
    let gpus = vec![Held { gpu: 0, measured: None }];
    let share = share(fraction);
    let ram_estimate = gpu(0).bytes_of(share);
    Resident {
        placement: id(number),
        name: format!("model-{number}"),
        gpus,
        share,
        state: Residency::Running,
        warm_capable: true,
        pinned: false,
        in_flight: 0,
        last_active_ms: number,
        resident_since_ms: 0,
        ram_estimate,
    }
}

fn asleep(number: u64, ram_mb: u64) -> Resident {
    Resident { state: Residency::Asleep, ram_estimate: ram_mb * MB, ..running(number, 0.5) }
}

fn gpu(index: u32) -> Gpu {
    Gpu { index, total: GPU_BYTES, ..Gpu::default() }
}

fn asks(fraction: f64) -> Requester {
    let ram_estimate = gpu(0).bytes_of(share(fraction));
    Requester { placement: None, gpus: vec![0], share: share(fraction), asleep: false, ram_estimate }
}

const NOW: u64 = 1_000_000;

fn node<'a>(gpus: &'a [Gpu], residents: &'a [Resident]) -> Node<'a> {
    let ram_used = residents.iter().filter(|resident| resident.state == Residency::Asleep);
    let ram_used = ram_used.map(|resident| resident.ram_estimate).sum();
    Node { gpus, residents, ram_limit: None, ram_used, busy_guard_ms: 0, min_residency_ms: 0, now_ms: NOW }
}

/// The plan for one GPU, without a limit.
fn plan_for(residents: &[Resident], fraction: f64) -> Result<Plan, Blocked> {
    plan(&node(&[gpu(0)], residents), &asks(fraction))
}

fn offload(numbers: &[u64]) -> Result<Plan, Blocked> {
    Ok(Plan { offload: numbers.iter().copied().map(id).collect(), stop: vec![] })
}

#[test]
fn b4_least_recently_used_models_give_way_until_it_fits() {
    assert_eq!(plan_for(&[running(1, 0.2)], 0.5), offload(&[]));
    assert_eq!(plan_for(&[running(1, 0.9)], 0.5), offload(&[1]));
    assert_eq!(plan_for(&[running(2, 0.6), running(1, 0.6)], 0.5), offload(&[1, 2]));
    assert_eq!(plan_for(&[running(1, 0.5)], 0.5), offload(&[]), "an exact fit");
    let non_warm = Resident { warm_capable: false, ..running(1, 0.5) };
    assert_eq!(plan_for(&[non_warm, running(2, 0.5)], 0.5), offload(&[2]));
}

#[test]
fn b4_a_pinned_model_is_the_reason_and_waiting_does_not_help() {
    let blocked = plan_for(&[Resident { pinned: true, ..running(1, 0.9) }], 0.5).expect_err("pinned");
    assert_eq!(blocked.retry, Retry::Never);
    assert_eq!(
        blocked.to_string(),
        "there is no room: GPU 0: 0.9 taken + 0.5 requested = 1.4 of 1; model-1 (deployment 1) stays: it is pinned"
    );
}

#[test]
fn b4_a_busy_model_is_the_reason_and_waiting_may_help() {
    let blocked = plan_for(&[Resident { in_flight: 3, ..running(1, 0.5) }], 0.6).expect_err("busy");
    assert_eq!(blocked.retry, Retry::Later { after_ms: None });
    assert_eq!(
        blocked.to_string(),
        "there is no room: GPU 0: 0.5 taken + 0.6 requested = 1.1 of 1; model-1 (deployment 1) stays: it is busy with \
         3 requests; try again when they are done"
    );
}

#[test]
fn b5_without_memory_to_sleep_in_nothing_is_done() {
    let residents = [running(1, 0.95)];
    let gpus = [gpu(0)];
    let limited = |limit: u64| Node { ram_limit: Some(limit * MB), ..node(&gpus, &residents) };
    let blocked = plan(&limited(20_000), &asks(0.1)).expect_err("full");
    let full = CacheFull { limit: 20_000 * MB, needed: 84_000 * MB, least: 84_000 * MB };
    assert_eq!(blocked, Blocked { cause: Cause::CacheFull(full), retry: Retry::Never });
    assert!(blocked.to_string().contains("GPU + RAM cache is full"), "{blocked}");
    assert!(plan(&limited(83_999), &asks(0.1)).is_err());
    assert_eq!(plan(&limited(84_000), &asks(0.1)), offload(&[1]));
}

#[test]
fn b6_a_model_on_two_gpus_frees_both() {
    let on_both = vec![Held { gpu: 0, measured: None }, Held { gpu: 1, measured: None }];
    let residents = [Resident { gpus: on_both, ..running(1, 0.6) }];
    let gpus = [gpu(0), gpu(1)];
    assert_eq!(plan(&node(&gpus, &residents), &asks(0.5)), offload(&[1]));
    let both = Requester { gpus: vec![0, 1], ..asks(0.5) };
    assert_eq!(plan(&node(&gpus, &residents), &both), offload(&[1]));
}

#[test]
fn models_elsewhere_are_left_alone_and_equals_go_by_number() {
    let elsewhere = Resident { gpus: vec![Held { gpu: 1, measured: None }], ..running(1, 0.9) };
    let equal = |number| Resident { last_active_ms: 7, ..running(number, 0.5) };
    let residents = [elsewhere, equal(4), equal(3)];
    assert_eq!(plan(&node(&[gpu(0), gpu(1)], &residents), &asks(0.5)), offload(&[3]));
}

#[test]
fn sleepers_take_no_share_and_whoever_starts_does() {
    assert_eq!(plan_for(&[asleep(1, 1000)], 1.0), offload(&[]));
    for state in [Residency::Starting, Residency::Loading, Residency::Waking, Residency::Leaving] {
        let blocked = plan_for(&[Resident { state, ..running(1, 0.5) }], 0.6).expect_err("taken");
        assert_eq!(blocked.retry, Retry::Later { after_ms: None }, "{state:?}");
    }
}

#[test]
fn the_oldest_sleepers_are_stopped_when_memory_runs_out() {
    let residents = [asleep(2, 30_000), running(5, 0.5), asleep(1, 30_000), asleep(3, 30_000)];
    let gpus = [gpu(0)];
    // 90,000 asleep, 40,000 more, and 48,000 for the new one some day.
    let limited = |limit: u64| Node { ram_limit: Some(limit * MB), ..node(&gpus, &residents) };
    let stopped = |limit| plan(&limited(limit), &asks(0.6)).map(|plan| plan.stop);
    assert_eq!(stopped(178_000), Ok(vec![]));
    assert_eq!(stopped(177_999), Ok(vec![id(1)]));
    assert_eq!(stopped(118_000), Ok(vec![id(1), id(2)]));
    assert_eq!(stopped(88_000), Ok(vec![id(1), id(2), id(3)]));
    assert!(stopped(87_999).is_err(), "stopping all of them is not enough");
}

#[test]
fn a_limit_that_is_exceeded_already_holds_up_only_those_for_whom_somebody_must_sleep() {
    let residents = [asleep(1, 30_000), running(2, 0.5)];
    let gpus = [gpu(0)];
    let limited = Node { ram_limit: Some(MB), ..node(&gpus, &residents) };
    assert_eq!(plan(&limited, &asks(0.5)), offload(&[]));
    assert!(plan(&limited, &asks(0.6)).is_err());
}

#[test]
fn fractions_that_were_rounded_fit_and_nothing_more() {
    let asks_for = |share| Requester { share: Share(share), ..asks(0.5) };
    let measured = [Gpu { free: Some(40_000 * MB), ..gpu(0) }];
    let residents = [running(1, 0.5)];
    for gpus in [[gpu(0)], measured] {
        assert_eq!(plan(&node(&gpus, &residents), &asks_for(500_001)), offload(&[]));
        assert_eq!(plan(&node(&gpus, &residents), &asks_for(500_002)), offload(&[1]));
    }
}

#[test]
fn pinned_sleepers_and_those_with_requests_waiting_are_not_stopped() {
    let pinned = Resident { pinned: true, ..asleep(1, 30_000) };
    let awaited = Resident { in_flight: 1, ..asleep(2, 30_000) };
    let gpus = [gpu(0)];
    let limited = |residents| Node { ram_limit: Some(110_000 * MB), ..node(&gpus, residents) };
    let residents = [pinned.clone(), awaited, asleep(3, 30_000), running(5, 0.5)];
    // 90,000 + 40,000 + 40,000 are too much by two sleepers.
    let blocked = plan(&limited(&residents), &Requester { share: share(0.6), ..asks(0.5) }).expect_err("full");
    let full = CacheFull { limit: 110_000 * MB, needed: 170_000 * MB, least: 140_000 * MB };
    assert_eq!(blocked, Blocked { cause: Cause::CacheFull(full), retry: Retry::Later { after_ms: None } });
    let residents = [pinned, asleep(2, 30_000), asleep(3, 30_000), running(5, 0.5)];
    let plan = plan(&limited(&residents), &Requester { share: share(0.6), ..asks(0.5) });
    assert_eq!(plan.map(|plan| plan.stop), Ok(vec![id(2), id(3)]));
}

#[test]
fn a_model_that_wakes_gives_its_memory_back_and_is_not_stopped_for_itself() {
    let residents = [asleep(1, 40_000), running(2, 0.5)];
    let gpus = [gpu(0)];
    let wakes = Requester { placement: Some(id(1)), asleep: true, ram_estimate: 40_000 * MB, ..asks(0.6) };
    let limited = |limit: u64| Node { ram_limit: Some(limit * MB), ..node(&gpus, &residents) };
    assert_eq!(plan(&limited(40_000), &wakes), offload(&[2]), "they change places");
    assert!(plan(&limited(39_999), &wakes).is_err());
}

#[test]
fn a_model_is_left_alone_after_use_and_after_waking() {
    let residents = [Resident { last_active_ms: NOW - 12_000, resident_since_ms: NOW - 50_000, ..running(1, 0.9) }];
    let gpus = [gpu(0)];
    let guarded = |busy_guard_ms, min_residency_ms| Node { busy_guard_ms, min_residency_ms, ..node(&gpus, &residents) };
    let because = |node: &Node<'_>| match plan(node, &asks(0.5)).expect_err("kept") {
        Blocked { cause: Cause::NoRoom { models, .. }, retry: Retry::Later { after_ms } } => (models[0].why, after_ms),
        other => panic!("{other}"),
    };
    let used = Stays::JustUsed { ago_ms: 12_000, left_ms: 18_000 };
    assert_eq!(because(&guarded(30_000, 60_000)), (used, Some(18_000)), "the longer one counts");
    let woken = Stays::JustAwake { for_ms: 50_000, left_ms: 10_000 };
    assert_eq!(because(&guarded(15_000, 60_000)), (woken, Some(10_000)));
    assert_eq!(plan(&guarded(12_000, 50_000), &asks(0.5)), offload(&[1]), "both are over");
    let words = plan(&guarded(30_000, 0), &asks(0.5)).expect_err("kept").to_string();
    assert!(words.ends_with("it is busy, used 12 s ago and kept for 18 s more; try again in 18 s"), "{words}");
}

#[test]
fn waiting_for_one_model_helps_nothing_if_another_never_goes() {
    let residents = [Resident { in_flight: 1, ..running(1, 0.3) }, Resident { pinned: true, ..running(2, 0.6) }];
    assert_eq!(plan_for(&residents, 0.5).expect_err("pinned").retry, Retry::Never);
    assert_eq!(plan_for(&residents, 0.4).expect_err("busy").retry, Retry::Later { after_ms: None });
    assert_eq!(plan_for(&[], 1.1).expect_err("more than a GPU").retry, Retry::Never);
}

#[test]
fn memory_that_other_processes_use_blocks_although_the_shares_fit() {
    let foreign = [Gpu { free: Some(30_000 * MB), ..gpu(0) }];
    let blocked = plan(&node(&foreign, &[]), &asks(0.5)).expect_err("foreign");
    let short = ShortOfMemory { needed: 40_000 * MB, room: 30_000 * MB, foreign: 50_000 * MB };
    let gpus = vec![ShortGpu { gpu: 0, lacks: vec![Lack::Memory(short)] }];
    assert_eq!(blocked.cause, Cause::NoRoom { gpus, moved: vec![], models: vec![] });
    assert_eq!(blocked.retry, Retry::Never);
    assert_eq!(
        blocked.to_string(),
        "there is no room: GPU 0: 39.0 GiB of memory needed, 29.2 GiB can be had, 9.7 GiB too little (other processes \
         use 48.8 GiB); no model there could be put to sleep"
    );
}

#[test]
fn models_give_way_to_make_up_for_memory_that_others_use() {
    let gpus = [Gpu { free: Some(20_000 * MB), ..gpu(0) }];
    let measured = |bytes: u64| vec![Held { gpu: 0, measured: Some(bytes * MB) }];
    let small = Resident { gpus: measured(20_000), ..running(1, 0.4) };
    assert_eq!(plan(&node(&gpus, std::slice::from_ref(&small)), &asks(0.5)), offload(&[1]));
    let too_small = Resident { gpus: measured(19_000), ..small };
    let blocked = plan(&node(&gpus, &[too_small]), &asks(0.5)).expect_err("too little is freed");
    assert!(blocked.to_string().starts_with("there is no room even with model-1 asleep: GPU 0: "), "{blocked}");
}

#[test]
fn memory_that_a_loading_model_will_take_is_not_free() {
    let loading = |measured| Resident {
        state: Residency::Loading,
        gpus: vec![Held { gpu: 0, measured: Some(measured * MB) }],
        ..running(1, 0.5)
    };
    let gpus = [Gpu { free: Some(60_000 * MB), ..gpu(0) }];
    assert_eq!(plan(&node(&gpus, &[loading(20_000)]), &asks(0.5)), offload(&[]));
    let blocked = plan(&node(&gpus, &[loading(19_000)]), &asks(0.5)).expect_err("a foreign process uses 1,000 MB");
    assert_eq!(blocked.retry, Retry::Later { after_ms: None });
}

#[test]
fn gpus_with_the_memory_of_the_machine_are_not_planned() {
    let unified = [Gpu { unified: true, free: Some(0), ..gpu(0) }, gpu(1)];
    assert_eq!(plan(&node(&unified, &[running(1, 0.9)]), &asks(0.5)), offload(&[]));
    let gpus = [0, 1].map(|gpu| Held { gpu, measured: None }).to_vec();
    let residents = [Resident { gpus, ..running(1, 0.9) }];
    let second = Requester { gpus: vec![1], ..asks(0.5) };
    let blocked = plan(&node(&unified, &residents), &second).expect_err("its sleep would free nothing");
    assert_eq!(blocked.retry, Retry::Never);
}

#[test]
fn a_gpu_that_is_lost_or_unknown_has_no_room_and_none_at_all_is_in_nobodys_way() {
    let gpus = [Gpu { lost: true, ..gpu(0) }, gpu(1)];
    let wants = Requester { gpus: vec![0, 1, 7], ..asks(0.5) };
    let blocked = plan(&node(&gpus, &[]), &wants).expect_err("lost");
    assert_eq!(
        blocked.to_string(),
        "there is no room: GPU 0: the driver has lost it; GPU 7: this node has no such GPU"
    );
    assert_eq!(blocked.retry, Retry::Never);
    assert_eq!(plan(&node(&[], &[running(1, 0.9)]), &asks(0.5)), offload(&[]));
}

#[test]
fn one_plan_moves_at_most_sixty_three_models() {
    let many = |count: u64| (1..=count).map(|number| running(number, 0.01)).collect::<Vec<_>>();
    assert_eq!(plan_for(&many(63), 1.0).map(|plan| plan.offload.len()), Ok(63));
    let blocked = plan_for(&many(64), 1.0).expect_err("too many");
    assert_eq!(blocked, Blocked { cause: Cause::TooMany, retry: Retry::Never });
}
