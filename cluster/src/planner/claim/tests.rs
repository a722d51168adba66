//! Claims that fit beside each other, and GPUs chosen for them.

use proptest::prelude::*;

use super::*;
use crate::ids::DeploymentId;
use crate::planner::gpu::Gpu;

const GIB: u64 = 1 << 30;

fn id(deployment: u64) -> PlacementId {
    PlacementId { deployment: DeploymentId(deployment), ordinal: 0 }
}

/// A claim, in hundredths of a GPU, that never gives way.
fn fixed(number: u64, gpus: &[u32], hundredths: u32) -> Claim<'_> {
    Claim { placement: id(number), gpus, share: Share(hundredths * 10_000), evictable: false, awake: true }
}

fn warm(number: u64, gpus: &[u32], hundredths: u32) -> Claim<'_> {
    Claim { evictable: true, ..fixed(number, gpus, hundredths) }
}

fn gpu(index: u32) -> Gpu {
    Gpu { index, total: 80 * GIB, ..Gpu::default() }
}

#[test]
fn claims_that_take_turns_may_exceed_a_gpu_and_others_may_not() {
    let zero = &[0];
    assert_eq!(check(&[warm(1, zero, 90), warm(2, zero, 100)], &warm(3, zero, 95)), Ok(()));
    assert_eq!(check(&[fixed(1, zero, 50)], &fixed(2, zero, 50)), Ok(()), "an exact fit");
    let over = check(&[fixed(1, zero, 50)], &fixed(2, zero, 51)).expect_err("too much");
    assert_eq!(
        over.to_string(),
        "GPU 0: 1.01 of 1 claimed by models that never sleep (deployment 1; this one), 0.01 too much"
    );
    assert_eq!(over.gpus[0].over_by(), Share(10_000));
    let by_one = Claim { share: Share(500_001), ..fixed(2, zero, 0) };
    assert!(check(&[fixed(1, zero, 50)], &by_one).is_err(), "a millionth is too much: nobody rounds here");
}

#[test]
fn the_largest_that_takes_turns_must_fit_beside_those_that_do_not() {
    let zero = &[0];
    let others = [fixed(1, zero, 40), warm(2, zero, 60), warm(3, zero, 60)];
    assert_eq!(check(&others, &warm(4, zero, 60)), Ok(()));
    let over = check(&others, &warm(4, zero, 70)).expect_err("the new one does not fit");
    assert_eq!(
        over.to_string(),
        "GPU 0: 0.4 claimed by models that never sleep (deployment 1) + 0.7 for the largest of the others (this one) = \
         1.1 of 1, 0.1 too much"
    );
    let over = check(&others, &fixed(4, zero, 10)).expect_err("an older one would not fit any more");
    assert_eq!(over.gpus[0].largest, Some((Claimant::Other(id(2)), Share(600_000))), "the first of equals");
    let alone = check(&[], &warm(4, zero, 120)).expect_err("more than a GPU");
    assert_eq!(alone.to_string(), "GPU 0: 1.2 of 1 for this one, 0.2 too much");
}

#[test]
fn a_pin_is_checked_like_a_claim_and_replaces_the_one_that_stands() {
    let zero = &[0];
    let claims = [warm(1, zero, 60), warm(2, zero, 60)];
    assert!(check(&claims, &fixed(2, zero, 60)).is_err(), "pinned, it leaves no room for the other");
    assert_eq!(check(&claims[1..], &fixed(2, zero, 60)), Ok(()));
    assert_eq!(check(&[fixed(2, zero, 90)], &fixed(2, zero, 95)), Ok(()));
}

#[test]
fn each_gpu_is_judged_by_itself() {
    let others = [fixed(1, &[0], 50), fixed(2, &[1, 2], 80), fixed(3, &[3], 100)];
    let over = check(&others, &fixed(4, &[0, 1, 2], 50)).expect_err("two are too full");
    assert_eq!(over.gpus.iter().map(|full| full.gpu).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(check(&others, &fixed(4, &[], 50)), Ok(()), "it needs none");
}

fn chosen(gpus: &[Gpu], claims: &[Claim<'_>], wanted: Wanted, hundredths: u32) -> Result<Vec<u32>, String> {
    let ask = Ask { placement: None, wanted: &wanted, share: Share(hundredths * 10_000), evictable: true };
    choose(gpus, claims, &ask).map_err(|why| why.to_string())
}

#[test]
fn the_least_used_gpus_are_chosen_then_the_first() {
    let gpus = [2, 0, 1, 3].map(gpu);
    assert_eq!(chosen(&gpus, &[], Wanted::Count(1), 50), Ok(vec![0]));
    let claims = [warm(1, &[0, 3], 30), warm(2, &[1], 20)];
    assert_eq!(chosen(&gpus, &claims, Wanted::Count(1), 50), Ok(vec![2]));
    assert_eq!(chosen(&gpus, &claims, Wanted::Count(2), 50), Ok(vec![1, 2]));
    assert_eq!(chosen(&gpus, &claims, Wanted::Count(3), 50), Ok(vec![0, 1, 2]));
    let mut measured = gpus;
    measured[0].free = Some(60 * GIB);
    assert_eq!(chosen(&measured, &claims, Wanted::Count(1), 50), Ok(vec![1]), "a quarter of GPU 2 is in use");
    assert_eq!(chosen(&gpus, &claims, Wanted::Count(0), 50), Ok(vec![]));
}

#[test]
fn cordoned_lost_and_full_gpus_are_not_chosen_and_each_reason_is_said() {
    let cordoned = Gpu { cordoned: true, ..gpu(0) };
    let lost = Gpu { lost: true, ..gpu(1) };
    let foreign = Gpu { free: Some(30 * GIB), ..gpu(3) };
    let claims = [fixed(7, &[2], 60)];
    assert_eq!(
        chosen(&[cordoned, lost, gpu(2), foreign, gpu(4)], &claims, Wanted::Count(2), 50),
        Err("2 GPUs are wanted and only 1 can be had; GPU 0: it is in maintenance; GPU 1: the driver has lost it; GPU 2: \
             0.6 claimed by models that never sleep (deployment 7) + 0.5 for the largest of the others (this one) = \
             1.1 of 1, 0.1 too much; GPU 3: 40.0 GiB of memory needed, 30.0 GiB can be had, 10.0 GiB too little (other \
             processes use 50.0 GiB)"
            .to_owned())
    );
    assert_eq!(chosen(&[gpu(0)], &[], Wanted::Count(2), 50), Err("2 GPUs are wanted and it has 1".to_owned()));
    assert_eq!(chosen(&[], &[], Wanted::Count(1), 50), Err("1 GPU is wanted and it has none".to_owned()));
}

#[test]
fn named_gpus_must_exist_once_and_have_room() {
    let gpus = [gpu(0), gpu(1), Gpu { cordoned: true, ..gpu(2) }];
    assert_eq!(chosen(&gpus, &[], Wanted::These(vec![1, 0]), 100), Ok(vec![0, 1]));
    assert_eq!(
        chosen(&gpus, &[], Wanted::These(vec![0, 0, 2, 99]), 50),
        Err("4 GPUs are wanted and it has 3; GPU 0: it is named more than once; GPU 2: it is in maintenance; GPU 99: \
             there is no such GPU"
            .to_owned())
    );
}

#[test]
fn memory_of_models_that_can_sleep_is_room_and_that_of_others_is_not() {
    let full = [Gpu { free: Some(8 * GIB), ..gpu(0) }];
    let any = || Wanted::Count(1);
    assert_eq!(chosen(&full, &[warm(1, &[0], 90)], any(), 90), Ok(vec![0]), "it would be put to sleep");
    let asleep = Claim { awake: false, ..warm(1, &[0], 90) };
    assert!(chosen(&full, &[asleep], any(), 90).is_err(), "somebody else uses the memory");
    assert!(chosen(&full, &[fixed(1, &[0], 90)], any(), 20).is_err());
    let starting = Claim { awake: false, ..fixed(1, &[0], 40) };
    let half_used = [Gpu { free: Some(40 * GIB), ..gpu(0) }];
    assert!(chosen(&half_used, &[starting], any(), 20).is_err(), "what starts there will need the rest");
    let unified = [Gpu { unified: true, ..full[0] }];
    assert_eq!(chosen(&unified, &[], any(), 90), Ok(vec![0]), "its free memory is the machine's");
    assert!(chosen(&unified, &[fixed(1, &[0], 60)], any(), 50).is_err());
    let turns = [warm(1, &[0], 40), warm(2, &[0], 40)];
    assert!(chosen(&unified, &turns, any(), 30).is_err(), "nobody takes turns there");
    assert_eq!(chosen(&[gpu(0)], &turns, any(), 30), Ok(vec![0]));
}

#[test]
fn a_placement_that_is_placed_anew_is_not_in_its_own_way() {
    let claims = [fixed(1, &[0], 90)];
    let gpus = [Gpu { free: Some(8 * GIB), ..gpu(0) }];
    let ask = Ask { placement: Some(id(1)), wanted: &Wanted::Count(1), share: Share(900_000), evictable: false };
    assert_eq!(choose(&gpus, &claims, &ask), Ok(vec![0]));
    assert!(choose(&gpus, &claims, &Ask { placement: None, ..ask }).is_err());
}

proptest! {
    #[test]
    fn what_is_chosen_passes_the_check(
        drawn in prop::collection::vec((prop::sample::subsequence(vec![0, 1, 2, 3], 0..=4), 1..=1_000_000_u32, any::<bool>()), 0..8),
        (share, evictable, count) in (1..=1_000_000_u32, any::<bool>(), 0..=4_u32),
    ) {
        let mut claims: Vec<Claim<'_>> = Vec::new();
        for (number, (gpus, share, evictable)) in (1..).zip(&drawn) {
            let claim = Claim { placement: id(number), gpus, share: Share(*share), evictable: *evictable, awake: true };
            if check(&claims, &claim).is_ok() {
                claims.push(claim);
            }
        }
        let wanted = Wanted::Count(count);
        let ask = Ask { placement: None, wanted: &wanted, share: Share(share), evictable };
        let fits = |gpus: &[u32]| {
            let claim = Claim { placement: id(0), gpus, share: Share(share), evictable, awake: false };
            check(&claims, &claim).is_ok()
        };
        match choose(&[0, 1, 2, 3].map(gpu), &claims, &ask) {
            Ok(gpus) => {
                prop_assert_eq!(gpus.len(), count as usize);
                prop_assert!(gpus.is_sorted_by(|one, next| one < next));
                prop_assert!(fits(&gpus));
            }
            Err(NoGpus { fit, .. }) => {
                prop_assert_eq!((0..4).filter(|&gpu| fits(&[gpu])).count(), fit);
            }
        }
    }
}
