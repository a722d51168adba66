//! Which replica gets a request: power of two choices.

/// A replica that could take a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Its load: usually the requests in flight there.
    pub load: u64,
    /// Whether it is left alone for now, because it has failed.
    pub ejected: bool,
}

/// Draws two different candidates and returns the position of the one with less load, or `None` if all are ejected.
///
/// The two numbers are the caller's randomness, each from the whole range. Of equals the one drawn first is taken, so that idle
/// replicas get alike, and the same numbers give the same answer.
#[must_use]
pub fn pick(candidates: &[Candidate], random: [u64; 2]) -> Option<usize> {
    let usable = candidates.iter().filter(|candidate| !candidate.ejected).count();
    let one = draw(usable, random[0])?;
    let Some(other) = draw(usable - 1, random[1]) else { return nth(candidates, one) };
    let other = if other >= one { other + 1 } else { other };
    let (one, other) = (nth(candidates, one)?, nth(candidates, other)?);
    Some(if candidates[other].load < candidates[one].load { other } else { one })
}

/// A number below `count`, or `None` if there is none.
fn draw(count: usize, random: u64) -> Option<usize> {
    let count = u128::try_from(count).ok().filter(|&count| count > 0)?;
    usize::try_from((u128::from(random) * count) >> u64::BITS).ok()
}

/// The position of the nth candidate that is not ejected.
fn nth(candidates: &[Candidate], nth: usize) -> Option<usize> {
    candidates.iter().enumerate().filter(|(_, candidate)| !candidate.ejected).nth(nth).map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn loads(loads: &[u64]) -> Vec<Candidate> {
        loads.iter().map(|&load| Candidate { load, ejected: false }).collect()
    }

    /// A number that draws this one of so many.
    fn drawing(at: u64, of: u64) -> u64 {
        u64::MAX / of * at + u64::MAX / of / 2
    }

    #[test]
    fn the_less_loaded_of_two_is_taken_whichever_is_drawn_first() {
        let two = loads(&[5, 2]);
        assert_eq!(pick(&two, [drawing(0, 2), 0]), Some(1));
        assert_eq!(pick(&two, [drawing(1, 2), 0]), Some(1));
        let three = loads(&[0, 7, 3]);
        assert_eq!(pick(&three, [drawing(1, 3), drawing(1, 2)]), Some(2), "the idle one was not drawn");
    }

    #[test]
    fn ejected_replicas_are_skipped_and_the_last_one_left_is_taken() {
        let mut candidates = loads(&[0, 0, 9]);
        candidates[0].ejected = true;
        for random in [[0, 0], [u64::MAX, u64::MAX], [0, u64::MAX]] {
            assert_eq!(pick(&candidates, random), Some(1));
        }
        candidates[1].ejected = true;
        assert_eq!(pick(&candidates, [0, 0]), Some(2));
        candidates[2].ejected = true;
        assert_eq!(pick(&candidates, [0, 0]), None);
        assert_eq!(pick(&[], [1, 2]), None);
    }

    #[test]
    fn of_equals_the_first_drawn_is_taken_so_that_all_get_alike() {
        let three = loads(&[4, 4, 4]);
        assert_eq!(pick(&three, [drawing(2, 3), drawing(0, 2)]), Some(2));
        assert_eq!(pick(&three, [drawing(0, 3), drawing(1, 2)]), Some(0));
        let mut taken = [0; 3];
        for (one, other) in (0..30).flat_map(|one| (0..30).map(move |other| (one, other))) {
            taken[pick(&three, [drawing(one, 30), drawing(other, 30)]).expect("one")] += 1;
        }
        assert_eq!(taken, [300; 3]);
    }

    proptest! {
        #[test]
        fn never_the_most_loaded_unless_it_is_alone_or_has_an_equal(
            drawn in prop::collection::vec((0..5_u64, any::<bool>()), 0..8), random in any::<[u64; 2]>(),
        ) {
            let candidates: Vec<_> =
                drawn.into_iter().map(|(load, ejected)| Candidate { load, ejected }).collect();
            let usable = || candidates.iter().filter(|candidate| !candidate.ejected);
            match pick(&candidates, random) {
                None => prop_assert_eq!(usable().count(), 0),
                Some(at) => {
                    prop_assert!(!candidates[at].ejected);
                    let as_bad = usable().filter(|other| other.load >= candidates[at].load).count();
                    prop_assert!(as_bad > 1 || usable().count() == 1);
                }
            }
        }
    }
}
