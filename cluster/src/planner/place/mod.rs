//! The scheduler: which node runs a placement whose caller named none, and why not another.
//!
//! Nodes that can not are refused, each with all its reasons. Of the others, those that run fewest placements of the same
//! deployment come first, then those with most points, then those that run fewest placements at all, then the lowest number.

mod verdict;

#[cfg(test)]
mod tests;

use std::cmp::Reverse;

pub use verdict::{Choice, Considered, Explained, Refusal, Score, Verdict};

use super::claim::{self, Ask, Claim, Wanted};
use super::gpu::{Gpu, Share};
use crate::ids::{NodeId, PlacementId};

/// Points for chosen GPUs of which nobody uses anything.
const FREE_POINTS: u32 = 100;

/// Points for a node that has the model's files: fetching them takes longer than everything else.
const MODEL_POINTS: u32 = 60;

/// Points for a node on whose GPUs nothing is claimed.
const SPREAD_POINTS: u32 = 40;

/// Points for a node that has the engine's image.
const IMAGE_POINTS: u32 = 20;

/// Something that a node starts engines with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Its name, as configurations spell it.
    pub name: String,
    /// The names of the engines that it can start there.
    pub engines: Vec<String>,
}

/// A node that may be chosen.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Its number.
    pub id: NodeId,
    /// What an operator knows it by.
    pub name: &'a str,
    /// Whether it answers.
    pub alive: bool,
    /// Whether all of it is kept from new work. Single GPUs say so themselves.
    pub cordoned: bool,
    /// Whether models that it starts can be put to sleep.
    pub warm: bool,
    /// Its runtimes, the best first.
    pub runtimes: &'a [Runtime],
    /// The one that an operator has set for it.
    pub runtime: Option<&'a str>,
    /// Its GPUs.
    pub gpus: &'a [Gpu],
    /// The claims of the placements there, also of those that need no GPU.
    pub claims: &'a [Claim<'a>],
    /// Whether the model's files are there.
    pub has_model: bool,
    /// Whether the engine's image is there.
    pub has_image: bool,
    /// How many placements of the same deployment are there.
    pub siblings: u32,
    /// The ports that are taken.
    pub ports: &'a [u16],
}

/// What is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// The placement, if it has claims already, which it gives up.
    pub placement: Option<PlacementId>,
    /// The engine's name.
    pub engine: &'a str,
    /// The share of each GPU.
    pub share: Share,
    /// Which GPUs, or how many.
    pub gpus: &'a Wanted,
    /// Whether it may be put to sleep where the node can do that: it is not pinned, and its sleep is not switched off.
    pub may_sleep: bool,
    /// The runtime that is taken where it can be.
    pub runtime: Option<&'a str>,
    /// The port that it must have. `None`: the node picks one.
    pub port: Option<u16>,
    /// Nodes that are not to be taken.
    pub exclude: &'a [NodeId],
}

/// Chooses a node for one placement. The order of the nodes changes nothing. For several replicas it is asked once for each,
/// with the claims and siblings that the last answer has made.
#[must_use]
pub fn place(nodes: &[Node<'_>], request: &Request<'_>) -> Explained {
    let mut best: Option<(Rank, usize, Choice)> = None;
    let mut considered = Vec::with_capacity(nodes.len());
    for node in nodes {
        let verdict = match consider(node, request) {
            Ok((score, choice)) => {
                let rank = (node.siblings, Reverse(score.points()), node.claims.len(), node.id);
                if best.as_ref().is_none_or(|(best, ..)| rank < *best) {
                    best = Some((rank, considered.len(), choice));
                }
                Verdict::Possible(score)
            }
            Err(reasons) => Verdict::Refused(reasons),
        };
        considered.push(Considered { node: node.id, name: node.name.to_owned(), verdict });
    }
    let chosen = best.map(|(_, at, choice)| {
        let verdict: &mut Verdict = &mut considered[at].verdict;
        if let Verdict::Possible(score) = *verdict {
            *verdict = Verdict::Chosen(score);
        }
        choice
    });
    considered.sort_by_key(|node| node.node);
    Explained { chosen, nodes: considered }
}

/// The least is the best.
type Rank = (u32, Reverse<u32>, usize, NodeId);

fn consider(node: &Node<'_>, request: &Request<'_>) -> Result<(Score, Choice), Vec<Refusal>> {
    if request.exclude.contains(&node.id) {
        return Err(vec![Refusal::Excluded]);
    }
    if !node.alive {
        // Whatever else is known of it may be out of date.
        return Err(vec![Refusal::Dead]);
    }
    let mut refusals = Vec::new();
    if node.cordoned {
        refusals.push(Refusal::Cordoned);
    }
    let runtime = runtime(node, request).map_err(|refusal| refusals.push(refusal));
    if let Some(port) = request.port.filter(|port| node.ports.contains(port)) {
        refusals.push(Refusal::PortTaken(port));
    }
    let ask = Ask {
        placement: request.placement,
        wanted: request.gpus,
        share: request.share,
        evictable: request.may_sleep && node.warm,
    };
    let gpus = claim::choose(node.gpus, node.claims, &ask).map_err(|refusal| refusals.push(Refusal::NoGpus(refusal)));
    match (runtime, gpus) {
        (Ok(runtime), Ok(gpus)) if refusals.is_empty() => {
            let score = score(node, request, &gpus);
            Ok((score, Choice { node: node.id, gpus, runtime: runtime.to_owned() }))
        }
        _ => Err(refusals),
    }
}

/// The runtime: what is set for the node, else what is preferred, else the first, of those that can start the engine.
fn runtime<'a>(node: &Node<'a>, request: &Request<'_>) -> Result<&'a str, Refusal> {
    let able = || {
        let able = |runtime: &&Runtime| runtime.engines.iter().any(|engine| engine == request.engine);
        node.runtimes.iter().filter(able).map(|runtime| runtime.name.as_str())
    };
    let named = |name: Option<&str>| able().find(|runtime| Some(*runtime) == name);
    named(node.runtime).or_else(|| named(request.runtime)).or_else(|| able().next()).ok_or_else(|| Refusal::NoRuntime {
        engine: request.engine.to_owned(),
        runtimes: node.runtimes.iter().map(|runtime| runtime.name.clone()).collect(),
    })
}

fn score(node: &Node<'_>, request: &Request<'_>, gpus: &[u32]) -> Score {
    let claimed = |gpu: &Gpu| claim::claimed(gpu.index, node.claims, request.placement);
    let chosen = node.gpus.iter().filter(|gpu| gpus.contains(&gpu.index));
    let free = mean(chosen.map(|gpu| Share::WHOLE.minus(gpu.used_share().unwrap_or_else(|| claimed(gpu)))));
    let unclaimed = mean(node.gpus.iter().map(|gpu| Share::WHOLE.minus(claimed(gpu))));
    Score {
        siblings: node.siblings,
        free: points(FREE_POINTS, free),
        model: if node.has_model { MODEL_POINTS } else { 0 },
        spread: points(SPREAD_POINTS, unclaimed),
        image: if node.has_image { IMAGE_POINTS } else { 0 },
    }
}

/// The mean of shares; one GPU if there are none.
fn mean(shares: impl Iterator<Item = Share>) -> Share {
    let (sum, count) = shares.fold((Share::default(), 0), |(sum, count), share| (sum.plus(share), count + 1));
    sum.0.checked_div(count).map_or(Share::WHOLE, Share)
}

/// So much of all points, rounded down.
fn points(all: u32, share: Share) -> u32 {
    u32::try_from(u64::from(all) * u64::from(share.0) / u64::from(Share::WHOLE.0)).unwrap_or(all)
}
