//! Who may claim which share of a node's GPUs.
//!
//! Claims are what is promised, and models that can sleep may be promised more than a GPU has: they take turns. Each must fit
//! beside everything that never gives way, so per GPU the claims that are not evictable and the largest that is must be at most one GPU.
//! [`check`] is that rule, for `apply`; [`choose`] finds GPUs for a claim whose caller named none.

mod choose;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::fmt;

pub(super) use choose::claimed;
pub use choose::{Ask, NoGpus, Unfit, Wanted, choose};

use super::gpu::Share;
use super::words::{Listed, Named};
use crate::ids::PlacementId;

/// A placement's claim on the GPUs of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim<'a> {
    /// Whose it is.
    pub placement: PlacementId,
    /// The GPUs, without repetition. None: it needs none.
    pub gpus: &'a [u32],
    /// The share of each of them.
    pub share: Share,
    /// Whether it can be put to sleep: started so that it can, not pinned, and not on a GPU with the machine's memory.
    pub evictable: bool,
    /// Whether its memory is in use now. Where that is not known: yes, so that it is not taken for somebody else's. [`check`]
    /// does not look at it.
    pub awake: bool,
}

impl Claim<'_> {
    fn held(&self) -> Held {
        (Claimant::Other(self.placement), self.share, self.evictable)
    }
}

/// Whether a claim fits beside the others of its node. One of the same placement among them is replaced by it, so the same
/// check holds for a pin.
///
/// # Errors
/// With the GPUs on which it does not fit, in their order in the claim.
pub fn check(others: &[Claim<'_>], new: &Claim<'_>) -> Result<(), Overclaimed> {
    let full = |&gpu: &u32| {
        let others = on(others, Some(new.placement), gpu);
        overfull(gpu, others.map(Claim::held).chain([(Claimant::New, new.share, new.evictable)]))
    };
    let full: Vec<Full> = new.gpus.iter().filter_map(full).collect();
    if full.is_empty() { Ok(()) } else { Err(Overclaimed { gpus: full }) }
}

/// A claim does not fit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", Listed(.gpus, "; "))]
pub struct Overclaimed {
    /// The GPUs on which it does not.
    pub gpus: Vec<Full>,
}

/// A GPU that can not keep all that is asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Full {
    /// The GPU.
    pub gpu: u32,
    /// The share that never gives way.
    pub fixed: Share,
    /// Whose that is, by number.
    pub fixed_by: Vec<Claimant>,
    /// The largest of the shares that take turns, and whose it is.
    pub largest: Option<(Claimant, Share)>,
}

impl Full {
    /// By how much it is too much.
    #[must_use]
    pub fn over_by(&self) -> Share {
        self.needed().minus(Share::WHOLE)
    }

    fn needed(&self) -> Share {
        self.fixed.plus(self.largest.map_or(Share::default(), |(_, share)| share))
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gpu, fixed, fixed_by, largest } = self;
        let fixed_by = Listed(fixed_by, "; ");
        match largest {
            None => write!(f, "GPU {gpu}: {fixed} of 1 claimed by models that never sleep ({fixed_by})")?,
            Some((whose, share)) if *fixed == Share::default() => write!(f, "GPU {gpu}: {share} of 1 for {whose}")?,
            Some((whose, share)) => write!(
                f,
                "GPU {gpu}: {fixed} claimed by models that never sleep ({fixed_by}) + {share} for the largest of the \
                 others ({whose}) = {} of 1",
                self.needed()
            )?,
        }
        write!(f, ", {} too much", self.over_by())
    }
}

/// Whose a claim is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claimant {
    /// One that stands.
    Other(PlacementId),
    /// The one that is asked for.
    New,
}

impl fmt::Display for Claimant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::New => f.write_str("this one"),
            Self::Other(placement) => Named(*placement).fmt(f),
        }
    }
}

/// The shares on a GPU: what never gives way, and the largest of what takes turns.
#[derive(Clone, Copy, Default)]
struct Shares {
    fixed: Share,
    largest: Share,
}

impl Shares {
    fn add(&mut self, share: Share, evictable: bool) {
        if evictable {
            self.largest = self.largest.max(share);
        } else {
            self.fixed = self.fixed.plus(share);
        }
    }

    fn fit(self) -> bool {
        self.fixed.plus(self.largest) <= Share::WHOLE
    }
}

/// The claims of others on a GPU.
fn on<'a>(others: &'a [Claim<'a>], own: Option<PlacementId>, gpu: u32) -> impl Iterator<Item = &'a Claim<'a>> + Clone {
    others.iter().filter(move |claim| Some(claim.placement) != own && claim.gpus.contains(&gpu))
}

/// Whose a share is, how large, and whether it takes turns with others.
type Held = (Claimant, Share, bool);

/// What is wrong with the shares on a GPU, if something is.
fn overfull(gpu: u32, held: impl Iterator<Item = Held> + Clone) -> Option<Full> {
    let mut shares = Shares::default();
    held.clone().for_each(|(_, share, evictable)| shares.add(share, evictable));
    if shares.fit() {
        return None;
    }
    let mut fixed_by: Vec<Claimant> = held.clone().filter(|(.., evictable)| !evictable).map(|held| held.0).collect();
    fixed_by.sort_unstable();
    let evictable = held.filter(|(.., evictable)| *evictable).map(|(whose, share, _)| (whose, share));
    let largest = evictable.min_by_key(|&(whose, share)| (Reverse(share), whose));
    Some(Full { gpu, fixed: shares.fixed, fixed_by, largest })
}
