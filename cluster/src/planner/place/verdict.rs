//! What the scheduler has made of each node, in words for an operator.

use std::fmt;

use crate::ids::NodeId;
use crate::planner::claim::NoGpus;
use crate::planner::words::Listed;

/// As many nodes as are named for one reason that they share.
const NAMED: usize = 3;

/// A decision of the scheduler and how it came about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// Where it goes. `None`: nowhere.
    pub chosen: Option<Choice>,
    /// Every node, by number.
    pub nodes: Vec<Considered>,
}

/// Where a placement goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The node.
    pub node: NodeId,
    /// Its GPUs, by number.
    pub gpus: Vec<u32>,
    /// The runtime there.
    pub runtime: String,
}

/// A node that was considered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Considered {
    /// The node.
    pub node: NodeId,
    /// What an operator knows it by.
    pub name: String,
    /// What became of it.
    pub verdict: Verdict,
}

/// What became of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It was taken.
    Chosen(Score),
    /// It would do, and another one is better.
    Possible(Score),
    /// It would not do: at least one reason.
    Refused(Vec<Refusal>),
}

/// How good a node is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Placements of the same deployment that are there. Fewer are better, whatever the points.
    pub siblings: u32,
    /// Points for free memory of the GPUs that it would get, 0 to 100.
    pub free: u32,
    /// Points for having the model's files, 0 or 60.
    pub model: u32,
    /// Points for GPU memory that nobody claims, 0 to 40.
    pub spread: u32,
    /// Points for having the image, 0 or 20.
    pub image: u32,
}

impl Score {
    /// All points.
    #[must_use]
    pub fn points(&self) -> u32 {
        self.free + self.model + self.spread + self.image
    }
}

/// Why a node would not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The request leaves it out.
    Excluded,
    /// It does not answer.
    Dead,
    /// All of it is kept from new work.
    Cordoned,
    /// Nothing there can start the engine.
    NoRuntime {
        /// The engine.
        engine: String,
        /// The runtimes that it has.
        runtimes: Vec<String>,
    },
    /// The port is taken.
    PortTaken(u16),
    /// Not enough GPUs have room.
    NoGpus(NoGpus),
}

impl Refusal {
    /// What nodes have in common that are refused for a reason of this kind: `5 nodes ...`.
    fn of_many(&self) -> &'static str {
        match self {
            Self::Excluded => "are left out by the request",
            Self::Dead => "do not answer",
            Self::Cordoned => "are in maintenance",
            Self::NoRuntime { .. } => "cannot start the engine",
            Self::PortTaken(_) => "have that port taken",
            Self::NoGpus(_) => "have no room on their GPUs",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Excluded => f.write_str("it is left out by the request"),
            Self::Dead => f.write_str("it does not answer"),
            Self::Cordoned => f.write_str("it is in maintenance"),
            Self::NoRuntime { runtimes, .. } if runtimes.is_empty() => f.write_str("it has no container runtime"),
            Self::NoRuntime { engine, runtimes } => {
                write!(f, "what it has ({}) cannot start the engine {engine}", Listed(runtimes, ", "))
            }
            Self::PortTaken(port) => write!(f, "port {port} is taken there"),
            Self::NoGpus(refusal) => refusal.fmt(f),
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { siblings, free, model, spread, image } = self;
        let points = self.points();
        write!(f, "{points} points: free memory {free}, model file {model}, spread {spread}, image {image}")?;
        match siblings {
            0 => Ok(()),
            1 => f.write_str("; another replica is there"),
            siblings => write!(f, "; {siblings} other replicas are there"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chosen(score) => write!(f, "chosen with {score}"),
            Self::Possible(score) => write!(f, "possible with {score}"),
            Self::Refused(reasons) => write!(f, "refused: {}", Listed(reasons, "; ")),
        }
    }
}

/// One sentence: the node that was chosen, or why none was. Nodes that are refused alike are counted.
impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(node) = self.nodes.iter().find(|node| matches!(node.verdict, Verdict::Chosen(_))) {
            return write!(f, "{} is {}", node.name, node.verdict);
        }
        if self.nodes.is_empty() {
            return f.write_str("there is no node");
        }
        f.write_str("no node can take it")?;
        let mut alike: Vec<(&'static str, &Refusal, Vec<&str>)> = Vec::new();
        for node in &self.nodes {
            let Verdict::Refused(reasons) = &node.verdict else { continue };
            // One reason is enough to be counted; the first is the one to look at first.
            let Some(reason) = reasons.first() else { continue };
            match alike.iter_mut().find(|(of_many, ..)| *of_many == reason.of_many()) {
                Some((.., names)) => names.push(&node.name),
                None => alike.push((reason.of_many(), reason, vec![&node.name])),
            }
        }
        for (at, (of_many, reason, names)) in alike.iter().enumerate() {
            f.write_str(if at == 0 { ": " } else { "; " })?;
            match names.as_slice() {
                [name] => write!(f, "{name}: {reason}")?,
                names => {
                    let more = if names.len() > NAMED { ", ..." } else { "" };
                    let shown = &names[..names.len().min(NAMED)];
                    write!(f, "{} nodes {of_many} ({}{more})", names.len(), Listed(shown, ", "))?;
                }
            }
        }
        Ok(())
    }
}
