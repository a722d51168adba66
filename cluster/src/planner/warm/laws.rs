//! What holds for every plan.

use proptest::prelude::*;

use super::tests::id;
use super::*;

const GIB: u64 = 1 << 30;
const NOW: u64 = 1_000;

#[derive(Clone, Debug)]
struct Scene {
    gpus: Vec<Gpu>,
    residents: Vec<Resident>,
    requester: Requester,
    ram_limit: Option<u64>,
    busy_guard_ms: u64,
    min_residency_ms: u64,
}

impl Scene {
    fn node(&self) -> Node<'_> {
        let asleep = self.residents.iter().filter(|resident| resident.state == Residency::Asleep);
        Node {
            gpus: &self.gpus,
            residents: &self.residents,
            ram_limit: self.ram_limit,
            ram_used: asleep.map(|resident| resident.ram_estimate).sum(),
            busy_guard_ms: self.busy_guard_ms,
            min_residency_ms: self.min_residency_ms,
            now_ms: NOW,
        }
    }

    fn plan(&self) -> Result<Plan, Blocked> {
        plan(&self.node(), &self.requester)
    }

    fn resident(&self, placement: PlacementId) -> &Resident {
        self.residents.iter().find(|resident| resident.placement == placement).expect("a resident")
    }

    /// As it is once the plan has been carried out.
    fn after(&self, plan: &Plan) -> Self {
        let mut after = self.clone();
        after.residents.retain(|resident| !plan.stop.contains(&resident.placement));
        for resident in after.residents.iter_mut().filter(|resident| plan.offload.contains(&resident.placement)) {
            for gpu in &mut after.gpus {
                let freed = resident.memory(gpu).0;
                gpu.free = gpu.free.map(|free| (free + freed).min(gpu.total));
            }
            resident.state = Residency::Asleep;
            resident.gpus.iter_mut().for_each(|held| held.measured = None);
        }
        after
    }

    /// The shares on a GPU, the requester's among them.
    fn taken(&self, gpu: u32) -> u32 {
        let own = |resident: &&Resident| Some(resident.placement) == self.requester.placement;
        let awake = self.residents.iter().filter(|resident| resident.state != Residency::Asleep && !own(resident));
        awake.filter(|resident| resident.on(gpu)).map(|resident| resident.share.0).sum::<u32>() + self.requester.share.0
    }
}

fn any_gpus() -> impl Strategy<Value = Vec<u32>> {
    prop::sample::subsequence(vec![0, 1, 2], 1..=3)
}

fn any_share() -> impl Strategy<Value = Share> {
    prop_oneof![1..=1_000_000_u32, Just(500_000), Just(333_333), Just(333_334), Just(250_000)].prop_map(Share)
}

fn any_state() -> impl Strategy<Value = Residency> {
    prop_oneof![
        8 => Just(Residency::Running),
        3 => Just(Residency::Asleep),
        1 => Just(Residency::Loading),
        1 => Just(Residency::Waking),
        1 => Just(Residency::Leaving),
    ]
}

fn any_resident() -> impl Strategy<Value = Resident> {
    let rare = || prop::bool::weighted(0.15);
    let measured = prop::option::of((0..60_u64).prop_map(|gib| gib * GIB));
    let times = (0..NOW, 0..NOW);
    let kind = (any_state(), prop::bool::weighted(0.85), rare(), prop_oneof![4 => Just(0_u32), 1 => 1..4_u32]);
    (any_gpus(), any_share(), measured, kind, times, 0..40_u64).prop_map(
        |(gpus, share, measured, (state, warm_capable, pinned, in_flight), times, ram)| Resident {
            placement: id(0),
            name: String::new(),
            gpus: gpus.into_iter().map(|gpu| Held { gpu, measured }).collect(),
            share,
            state,
            warm_capable,
            pinned,
            in_flight,
            last_active_ms: times.0,
            resident_since_ms: times.1,
            ram_estimate: ram * GIB,
        },
    )
}

fn any_scene() -> impl Strategy<Value = Scene> {
    let gpu = (prop::option::weighted(0.5, 0..=80_u64), prop::bool::weighted(0.1));
    let requester = (any_gpus(), any_share(), prop::option::of(0..8_u64), 0..40_u64);
    let limits = (prop::option::of(0..150_u64), 0..NOW / 2, 0..NOW / 2);
    (prop::collection::vec(gpu, 3), prop::collection::vec(any_resident(), 0..8), requester, limits).prop_map(
        |(gpus, mut residents, (targets, share, own, ram), (limit, busy_guard_ms, min_residency_ms))| {
            for (number, resident) in (0..).zip(&mut residents) {
                resident.placement = id(number);
            }
            let placement = own.map(id);
            let own = residents.iter().find(|resident| Some(resident.placement) == placement);
            let asleep = own.is_some_and(|own| own.state == Residency::Asleep);
            let ram_estimate = own.map_or(ram * GIB, |own| own.ram_estimate);
            Scene {
                gpus: (0..)
                    .zip(gpus)
                    .map(|(index, (free, unified))| {
                        let free = free.map(|gib| gib * GIB);
                        Gpu { index, total: 80 * GIB, free, unified, lost: false, cordoned: false }
                    })
                    .collect(),
                residents,
                requester: Requester { placement, gpus: targets, share, asleep, ram_estimate },
                ram_limit: limit.map(|gib| gib * GIB),
                busy_guard_ms,
                min_residency_ms,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn a_plan_touches_only_models_that_may_go_and_each_once(scene in any_scene()) {
        let Ok(plan) = scene.plan() else { return Ok(()) };
        for &placement in &plan.offload {
            let resident = scene.resident(placement);
            prop_assert!(resident.warm_capable && !resident.pinned && resident.in_flight == 0);
            prop_assert_eq!(resident.state, Residency::Running);
            prop_assert!(NOW - resident.last_active_ms >= scene.busy_guard_ms);
            prop_assert!(NOW - resident.resident_since_ms >= scene.min_residency_ms);
            prop_assert!(scene.requester.gpus.iter().any(|&gpu| resident.on(gpu)), "it is in the way");
            prop_assert!(resident.gpus.iter().all(|held| !scene.gpus[held.gpu as usize].unified));
        }
        for &placement in &plan.stop {
            let sleeper = scene.resident(placement);
            prop_assert!(sleeper.state == Residency::Asleep && !sleeper.pinned && sleeper.in_flight == 0);
        }
        let mut all = [plan.offload, plan.stop].concat();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        prop_assert_eq!(all.len(), count);
        prop_assert!(scene.requester.placement.is_none_or(|own| !all.contains(&own)));
    }

    #[test]
    fn after_a_plan_everything_fits_and_another_plan_has_nothing_to_do(scene in any_scene()) {
        let Ok(plan) = scene.plan() else { return Ok(()) };
        let after = scene.after(&plan);
        for &gpu in scene.requester.gpus.iter().filter(|&&gpu| !scene.gpus[gpu as usize].unified) {
            prop_assert!(after.taken(gpu) <= 1_000_001, "GPU {gpu}: {}", after.taken(gpu));
        }
        if let Some(limit) = scene.ram_limit.filter(|_| !plan.offload.is_empty()) {
            let used = after.node().ram_used;
            let own = scene.requester.ram_estimate;
            let used = if scene.requester.asleep { used.saturating_sub(own) } else { used + own };
            prop_assert!(used <= limit, "{used} of {limit}");
        }
        prop_assert_eq!(after.plan(), Ok(Plan::default()));
    }

    #[test]
    fn the_order_of_the_models_changes_nothing(scene in any_scene(), turn in 0..8_usize) {
        let mut turned = scene.clone();
        let by = turn.min(turned.residents.len());
        turned.residents.rotate_left(by);
        let plans = [&scene, &turned].map(|scene| scene.plan().map_err(|blocked| blocked.retry));
        prop_assert_eq!(&plans[0], &plans[1]);
    }

    #[test]
    fn no_room_is_said_only_when_everybody_who_may_go_would_not_be_enough(scene in any_scene()) {
        let Err(Blocked { cause: Cause::NoRoom { gpus, models, .. }, retry }) = scene.plan() else { return Ok(()) };
        prop_assert!(!gpus.is_empty() && gpus.iter().all(|gpu| !gpu.lacks.is_empty()));
        prop_assert!(retry == Retry::Never || models.iter().any(|stay| stay.why.passes()));
        let node = scene.node();
        let may_go = |resident: &&Resident| {
            let asleep = resident.state == Residency::Asleep;
            let own = Some(resident.placement) == scene.requester.placement;
            !asleep && !own && stays(&node, resident).is_none()
        };
        let offload = scene.residents.iter().filter(may_go).map(|resident| resident.placement).collect();
        let after = scene.after(&Plan { offload, stop: vec![] });
        prop_assert!(after.plan().is_err());
    }

    #[test]
    fn waiting_is_advised_exactly_when_it_can_help(mut scene in any_scene()) {
        // What others will use once they are up, or free once they are gone, this test does not know.
        for resident in scene.residents.iter_mut().filter(|resident| resident.state != Residency::Asleep) {
            resident.state = Residency::Running;
        }
        let Err(blocked) = scene.plan() else { return Ok(()) };
        let mut idle = scene.clone();
        (idle.busy_guard_ms, idle.min_residency_ms) = (0, 0);
        idle.residents.iter_mut().for_each(|resident| resident.in_flight = 0);
        prop_assert_eq!(blocked.retry != Retry::Never, idle.plan().is_ok());
    }
}
