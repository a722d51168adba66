//! Choosing GPUs on one node for a claim whose caller named none, or checking those that it named.

use std::fmt;

use super::{Claim, Claimant, Full, on, overfull};
use crate::ids::PlacementId;
use crate::planner::gpu::{Gpu, Share, ShortOfMemory};
use crate::planner::words::Listed;

/// The GPUs that are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// So many, whichever they are: one for each rank of tensor parallelism.
    Count(u32),
    /// These.
    These(Vec<u32>),
}

/// What GPUs are looked for.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// For whom, if it has claims already: they are given up for this one.
    pub placement: Option<PlacementId>,
    /// Which, or how many.
    pub wanted: &'a Wanted,
    /// The share of each of them.
    pub share: Share,
    /// Whether it will be possible to put it to sleep.
    pub evictable: bool,
}

/// Chooses GPUs of one node: those with room by claims and by measured memory, the least used first, then by number. The
/// memory of models that can be put to sleep counts as room. The answer is in the order of the numbers.
///
/// # Errors
/// With what is wrong with each GPU, when there are not enough.
pub fn choose(gpus: &[Gpu], claims: &[Claim<'_>], ask: &Ask<'_>) -> Result<Vec<u32>, NoGpus> {
    let mut chosen: Vec<u32> = Vec::new();
    let mut refused = Vec::new();
    let wanted = match ask.wanted {
        Wanted::These(indices) => {
            for &index in indices {
                let unfit = match gpus.iter().find(|gpu| gpu.index == index) {
                    Some(_) if chosen.contains(&index) => Some(Unfit::Twice),
                    Some(gpu) => unfit(gpu, claims, ask),
                    None => Some(Unfit::NotThere),
                };
                match unfit {
                    Some(unfit) => refused.push((index, unfit)),
                    None => chosen.push(index),
                }
            }
            indices.len()
        }
        Wanted::Count(count) => {
            let count = usize::try_from(*count).unwrap_or(usize::MAX);
            let mut fit = Vec::with_capacity(if count == 0 { 0 } else { gpus.len() });
            for gpu in gpus.iter().filter(|_| count > 0) {
                match unfit(gpu, claims, ask) {
                    Some(unfit) => refused.push((gpu.index, unfit)),
                    None => fit.push((used(gpu, claims, ask.placement), gpu.index)),
                }
            }
            fit.sort_unstable();
            chosen.extend(fit.into_iter().map(|(_, index)| index).take(count));
            count
        }
    };
    if chosen.len() < wanted {
        refused.sort_by_key(|&(gpu, _)| gpu);
        return Err(NoGpus { wanted, there: gpus.len(), fit: chosen.len(), gpus: refused });
    }
    chosen.sort_unstable();
    Ok(chosen)
}

/// How much of a GPU is used: what is claimed or what is in use by measurement, whichever is more.
fn used(gpu: &Gpu, claims: &[Claim<'_>], own: Option<PlacementId>) -> Share {
    gpu.used_share().unwrap_or_default().max(claimed(gpu.index, claims, own))
}

/// What others than this placement claim of a GPU.
pub(in crate::planner) fn claimed(gpu: u32, claims: &[Claim<'_>], own: Option<PlacementId>) -> Share {
    on(claims, own, gpu).map(|claim| claim.share).sum()
}

fn unfit(gpu: &Gpu, claims: &[Claim<'_>], ask: &Ask<'_>) -> Option<Unfit> {
    if gpu.lost {
        return Some(Unfit::Lost);
    }
    if gpu.cordoned {
        return Some(Unfit::Cordoned);
    }
    let others = on(claims, ask.placement, gpu.index).map(Claim::held);
    // Where sleep frees nothing, nobody takes turns.
    let held = others
        .chain([(Claimant::New, ask.share, ask.evictable)])
        .map(|(whose, share, evictable)| (whose, share, evictable && !gpu.unified));
    if let Some(full) = overfull(gpu.index, held) {
        return Some(Unfit::Full(full));
    }
    let (mut held, mut kept) = (0_u64, 0_u64);
    for claim in claims.iter().filter(|claim| claim.gpus.contains(&gpu.index)) {
        let bytes = gpu.bytes_of(claim.share);
        if claim.awake {
            held = held.saturating_add(bytes);
        }
        if !claim.evictable && Some(claim.placement) != ask.placement {
            kept = kept.saturating_add(bytes);
        }
    }
    gpu.short_of_memory(ask.share, held, kept).map(Unfit::Memory)
}

/// What is wrong with a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// The node has none of this number.
    NotThere,
    /// It is named more than once.
    Twice,
    /// The driver has lost it.
    Lost,
    /// It is kept from new work.
    Cordoned,
    /// Too much of it is claimed.
    Full(Full),
    /// By what has been measured, the memory is not there.
    Memory(ShortOfMemory),
}

/// A node has not the GPUs that are wanted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct NoGpus {
    /// How many are.
    pub wanted: usize,
    /// How many the node has.
    pub there: usize,
    /// How many of them would do.
    pub fit: usize,
    /// What is wrong with the others, by number.
    pub gpus: Vec<(u32, Unfit)>,
}

impl fmt::Display for NoGpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, there, fit, gpus } = self;
        let plural = if *wanted == 1 { "GPU is" } else { "GPUs are" };
        match (there, fit) {
            (0, _) => return write!(f, "{wanted} {plural} wanted and it has none"),
            (there, _) if there < wanted => write!(f, "{wanted} {plural} wanted and it has {there}")?,
            (_, 0) => write!(f, "{wanted} {plural} wanted and none can be had")?,
            (_, fit) => write!(f, "{wanted} {plural} wanted and only {fit} can be had")?,
        }
        let refused: Vec<Refused<'_>> = gpus.iter().map(|(gpu, unfit)| Refused(*gpu, unfit)).collect();
        if refused.is_empty() { Ok(()) } else { write!(f, "; {}", Listed(&refused, "; ")) }
    }
}

struct Refused<'a>(u32, &'a Unfit);

impl fmt::Display for Refused<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(gpu, unfit) = self;
        match unfit {
            Unfit::NotThere => write!(f, "GPU {gpu}: there is no such GPU"),
            Unfit::Twice => write!(f, "GPU {gpu}: it is named more than once"),
            Unfit::Lost => write!(f, "GPU {gpu}: the driver has lost it"),
            Unfit::Cordoned => write!(f, "GPU {gpu}: it is in maintenance"),
            Unfit::Full(full) => full.fmt(f),
            Unfit::Memory(short) => write!(f, "GPU {gpu}: {short}"),
        }
    }
}
