//! The warm cache: which models of a node are put to sleep so that another one has room on its GPUs.
//!
//! The owning node carries out what [`plan`] says, and `/plan` shows it. A model that sleeps has its weights in the machine's
//! memory and almost nothing on its GPUs. Among the models that stand in the way, the one unused for longest goes first. Only
//! shares of resident models count, and whether the memory is really there: claims of models that sleep may exceed the GPU.

mod blocked;

#[cfg(test)]
mod laws;
#[cfg(test)]
mod tests;

pub use blocked::{Blocked, CacheFull, Cause, Lack, Retry, ShortGpu, Stay, Stays};

use super::gpu::{Gpu, Share};
use crate::ids::PlacementId;

/// As many models as are looked for in one plan. One that still needs more after the last fails.
const ROUNDS: usize = 64;

/// By how much the shares on a GPU may exceed it: fractions that were rounded.
const TOLERANCE: Share = Share(1);

/// A node, as far as the plan needs to know it.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// Its GPUs. None at all: nothing is in anybody's way.
    pub gpus: &'a [Gpu],
    /// The models on it, awake and asleep.
    pub residents: &'a [Resident],
    /// The bytes of the machine's memory that sleeping models may take. `None`: all.
    pub ram_limit: Option<u64>,
    /// The bytes that they take.
    pub ram_used: u64,
    /// How long a model is left alone after its last request, in milliseconds.
    pub busy_guard_ms: u64,
    /// How long a model is left alone once it is awake, in milliseconds: two that do not fit together do not chase each other
    /// off with every request.
    pub min_residency_ms: u64,
    /// The time, by the clock that has stamped the residents.
    pub now_ms: u64,
}

/// How far a model on a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Residency {
    /// Its container or process has been started.
    Starting,
    /// Its weights are being loaded.
    Loading,
    /// It answers.
    Running,
    /// Its weights are on the way back to the GPUs.
    Waking,
    /// It is being put to sleep or stopped, and still there.
    Leaving,
    /// It sleeps.
    Asleep,
}

impl Residency {
    /// Whether its share is taken.
    fn is_awake(self) -> bool {
        self != Self::Asleep
    }

    /// Whether it will use more memory than it does now.
    fn grows(self) -> bool {
        matches!(self, Self::Starting | Self::Loading | Self::Waking)
    }
}

/// A GPU that a model is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub gpu: u32,
    /// The bytes that it uses there, if they have been measured. Otherwise its share is taken for them.
    pub measured: Option<u64>,
}

/// A model that is on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resident {
    /// Its placement.
    pub placement: PlacementId,
    /// What an operator knows it by.
    pub name: String,
    /// Its GPUs.
    pub gpus: Vec<Held>,
    /// Its share of each of them.
    pub share: Share,
    /// How far it is.
    pub state: Residency,
    /// Whether it was started so that it can sleep.
    pub warm_capable: bool,
    /// Whether it is protected.
    pub pinned: bool,
    /// The requests that it works on, and those held for it while it sleeps.
    pub in_flight: u32,
    /// When it was last used, in milliseconds.
    pub last_active_ms: u64,
    /// Since when it has been awake, in milliseconds.
    pub resident_since_ms: u64,
    /// The bytes of the machine's memory that it takes, or would take, asleep.
    pub ram_estimate: u64,
}

impl Resident {
    fn on(&self, gpu: u32) -> bool {
        self.gpus.iter().any(|held| held.gpu == gpu)
    }

    /// The bytes that it uses on a GPU now, and those that it will use if it stays.
    fn memory(&self, gpu: &Gpu) -> (u64, u64) {
        let Some(held) = self.gpus.iter().find(|held| held.gpu == gpu.index) else { return (0, 0) };
        let share = gpu.bytes_of(self.share);
        match held.measured {
            Some(measured) if self.state.grows() => (measured, measured.max(share)),
            Some(measured) => (measured, measured),
            None if self.state.is_awake() => (share, share),
            None => (0, 0),
        }
    }
}

/// The model that needs room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requester {
    /// Its placement, if it has one already. Nothing of it stands in its own way.
    pub placement: Option<PlacementId>,
    /// The GPUs that it goes on. Whoever leaves them out has them chosen first, as the start does ([`super::claim::choose`]).
    pub gpus: Vec<u32>,
    /// Its share of each of them.
    pub share: Share,
    /// Whether it sleeps now, so that waking gives its memory back.
    pub asleep: bool,
    /// The bytes of the machine's memory that it takes, or would take, asleep. 0 if it can not sleep.
    pub ram_estimate: u64,
}

/// What makes room. Both lists are in the order in which they are to be carried out; the stops come first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The models to put to sleep.
    pub offload: Vec<PlacementId>,
    /// The sleepers to stop, because there is no memory for all who sleep then.
    pub stop: Vec<PlacementId>,
}

/// Finds room for a model.
///
/// # Errors
/// When no models that may be put to sleep would make enough room. Nothing is to be done then.
pub fn plan(node: &Node<'_>, requester: &Requester) -> Result<Plan, Blocked> {
    attempt(node, requester, Patience::None).map_err(|cause| {
        let later = attempt(node, requester, Patience::Endless).is_ok();
        let retry = if later { Retry::Later { after_ms: blocked::first_change(&cause) } } else { Retry::Never };
        Blocked { cause, retry }
    })
}

/// Who counts as movable.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    /// Who can be moved now.
    None,
    /// Who could be moved some time if nobody changed a thing: it shows whether waiting can help.
    Endless,
}

fn attempt(node: &Node<'_>, requester: &Requester, patience: Patience) -> Result<Plan, Cause> {
    if node.gpus.is_empty() || requester.share == Share::default() {
        return Ok(Plan::default());
    }
    let targets = targets(node, requester)?;
    let mut offload: Vec<&Resident> = Vec::new();
    for _ in 0..ROUNDS {
        let short: Vec<ShortGpu> = targets.iter().filter_map(|gpu| shortage(node, requester, &offload, gpu)).collect();
        if short.is_empty() {
            let stop = stops(node, requester, &offload, patience)?;
            return Ok(Plan { offload: offload.iter().map(|resident| resident.placement).collect(), stop });
        }
        let on_short = |resident: &&Resident| short.iter().any(|short| resident.on(short.gpu));
        let in_the_way: Vec<&Resident> = awake(node, requester, &offload).filter(on_short).collect();
        let movable = |resident: &&Resident| match stays(node, resident) {
            None => true,
            Some(why) => patience == Patience::Endless && why.passes(),
        };
        let unused_longest = |resident: &&Resident| (resident.last_active_ms, resident.placement);
        let Some(next) = in_the_way.iter().copied().filter(movable).min_by_key(unused_longest) else {
            let stay = |resident: &&Resident| {
                let why = stays(node, resident)?;
                Some(Stay { placement: resident.placement, name: resident.name.clone(), why })
            };
            let moved = offload.iter().map(|resident| resident.name.clone()).collect();
            return Err(Cause::NoRoom { gpus: short, moved, models: in_the_way.iter().filter_map(stay).collect() });
        };
        offload.push(next);
    }
    Err(Cause::TooMany)
}

/// The GPUs whose room is planned. Those with the machine's memory are not: sleep would free nothing there.
fn targets<'a>(node: &Node<'a>, requester: &Requester) -> Result<Vec<&'a Gpu>, Cause> {
    let (mut targets, mut unusable) = (Vec::new(), Vec::new());
    for &index in &requester.gpus {
        let lack = match node.gpus.iter().find(|gpu| gpu.index == index) {
            Some(gpu) if !gpu.lost => {
                targets.push(gpu);
                continue;
            }
            Some(_) => Lack::Lost,
            None => Lack::NotThere,
        };
        unusable.push(ShortGpu { gpu: index, lacks: vec![lack] });
    }
    if !unusable.is_empty() {
        return Err(Cause::NoRoom { gpus: unusable, moved: Vec::new(), models: Vec::new() });
    }
    targets.retain(|gpu| !gpu.unified);
    Ok(targets)
}

/// Everybody but the requester and those who go to sleep.
fn others<'a>(node: &Node<'a>, requester: &Requester, offload: &[&'a Resident]) -> impl Iterator<Item = &'a Resident> {
    let goes = |resident: &Resident| offload.iter().any(|other| other.placement == resident.placement);
    node.residents.iter().filter(move |resident| Some(resident.placement) != requester.placement && !goes(resident))
}

fn awake<'a>(node: &Node<'a>, requester: &Requester, offload: &[&'a Resident]) -> impl Iterator<Item = &'a Resident> {
    others(node, requester, offload).filter(|resident| resident.state.is_awake())
}

/// What a GPU lacks for the requester once the models to be put to sleep are gone, if it lacks something.
fn shortage(node: &Node<'_>, requester: &Requester, offload: &[&Resident], gpu: &Gpu) -> Option<ShortGpu> {
    let on = |resident: &&Resident| resident.on(gpu.index);
    let taken: Share = awake(node, requester, offload).filter(on).map(|resident| resident.share).sum();
    let mut lacks = Vec::new();
    if taken.plus(requester.share) > Share::WHOLE.plus(TOLERANCE) {
        lacks.push(Lack::Shares { taken, asked: requester.share });
    }
    let sum = |bytes: u64, more: u64| bytes.saturating_add(more);
    let held = node.residents.iter().map(|resident| resident.memory(gpu).0).fold(0, sum);
    let kept = others(node, requester, offload).map(|resident| resident.memory(gpu).1).fold(0, sum);
    lacks.extend(gpu.short_of_memory(requester.share, held, kept).map(Lack::Memory));
    (!lacks.is_empty()).then_some(ShortGpu { gpu: gpu.index, lacks })
}

/// Why a model that is awake is not put to sleep, if there is a reason.
fn stays(node: &Node<'_>, resident: &Resident) -> Option<Stays> {
    let unified = |held: &Held| node.gpus.iter().any(|gpu| gpu.index == held.gpu && gpu.unified);
    if resident.state == Residency::Leaving {
        return Some(Stays::Leaving);
    }
    if !resident.warm_capable {
        return Some(Stays::NotWarm);
    }
    if resident.pinned {
        return Some(Stays::Pinned);
    }
    if resident.gpus.iter().any(unified) {
        return Some(Stays::Unified);
    }
    match resident.state {
        Residency::Starting => return Some(Stays::Starting),
        Residency::Loading => return Some(Stays::Loading),
        Residency::Waking => return Some(Stays::Waking),
        Residency::Running | Residency::Leaving | Residency::Asleep => {}
    }
    if resident.in_flight > 0 {
        return Some(Stays::InFlight(resident.in_flight));
    }
    let used_ms = node.now_ms.saturating_sub(resident.last_active_ms);
    let awake_ms = node.now_ms.saturating_sub(resident.resident_since_ms);
    let guard_ms = node.busy_guard_ms.saturating_sub(used_ms);
    let residency_ms = node.min_residency_ms.saturating_sub(awake_ms);
    match guard_ms.max(residency_ms) {
        0 => None,
        left_ms if guard_ms == left_ms => Some(Stays::JustUsed { ago_ms: used_ms, left_ms }),
        left_ms => Some(Stays::JustAwake { for_ms: awake_ms, left_ms }),
    }
}

/// The sleepers to stop so that the new ones have room in the machine's memory.
fn stops(
    node: &Node<'_>,
    requester: &Requester,
    offload: &[&Resident],
    patience: Patience,
) -> Result<Vec<PlacementId>, Cause> {
    let Some(limit) = node.ram_limit.filter(|_| !offload.is_empty()) else { return Ok(Vec::new()) };
    // Whoever wakes gives its memory back; for any other one, room is kept to put it to sleep some day.
    let others = if requester.asleep {
        node.ram_used.saturating_sub(requester.ram_estimate)
    } else {
        node.ram_used.saturating_add(requester.ram_estimate)
    };
    let needed = offload.iter().fold(others, |bytes, resident| bytes.saturating_add(resident.ram_estimate));
    let may_be_stopped = |sleeper: &&Resident| {
        let idle = sleeper.in_flight == 0 || patience == Patience::Endless;
        sleeper.state == Residency::Asleep && Some(sleeper.placement) != requester.placement && !sleeper.pinned && idle
    };
    let mut sleepers: Vec<&Resident> = node.residents.iter().filter(may_be_stopped).collect();
    sleepers.sort_by_key(|sleeper| (sleeper.last_active_ms, sleeper.placement));
    let (mut left, mut stop) = (needed, Vec::new());
    for sleeper in sleepers {
        if left <= limit {
            break;
        }
        left = left.saturating_sub(sleeper.ram_estimate);
        stop.push(sleeper.placement);
    }
    if left > limit {
        return Err(Cause::CacheFull(CacheFull { limit, needed, least: left }));
    }
    Ok(stop)
}
