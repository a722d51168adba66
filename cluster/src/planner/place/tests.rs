//! Which node is taken, and what is said of the others.

use std::time::Instant;

use proptest::prelude::*;

use super::*;
use crate::ids::DeploymentId;

const GIB: u64 = 1 << 30;

fn docker() -> Vec<Runtime> {
    vec![Runtime { name: "docker".to_owned(), engines: vec!["vllm".to_owned(), "sim".to_owned()] }]
}

fn gpu(index: u32) -> Gpu {
    Gpu { index, total: 80 * GIB, free: Some(80 * GIB), ..Gpu::default() }
}

fn claim(number: u64, gpus: &[u32], hundredths: u32) -> Claim<'_> {
    let placement = PlacementId { deployment: DeploymentId(number), ordinal: 0 };
    Claim { placement, gpus, share: Share(hundredths * 10_000), evictable: false, awake: true }
}

/// What a node is made of.
struct Machine {
    runtimes: Vec<Runtime>,
    gpus: Vec<Gpu>,
    name: String,
}

impl Machine {
    fn new(gpus: u32) -> Self {
        Self { runtimes: docker(), gpus: (0..gpus).map(gpu).collect(), name: "gpu".to_owned() }
    }

    fn node(&self, id: u64) -> Node<'_> {
        Node {
            id: NodeId(id),
            name: &self.name,
            alive: true,
            cordoned: false,
            warm: false,
            runtimes: &self.runtimes,
            runtime: None,
            gpus: &self.gpus,
            claims: &[],
            has_model: false,
            has_image: false,
            siblings: 0,
            ports: &[],
        }
    }
}

const ONE: Wanted = Wanted::Count(1);

fn request() -> Request<'static> {
    Request {
        placement: None,
        engine: "vllm",
        share: Share(500_000),
        gpus: &ONE,
        may_sleep: true,
        runtime: None,
        port: None,
        exclude: &[],
    }
}

fn chosen(nodes: &[Node<'_>]) -> Option<u64> {
    place(nodes, &request()).chosen.map(|choice| choice.node.0)
}

#[test]
fn of_equal_nodes_the_first_is_taken_in_whatever_order_they_come() {
    let machine = Machine::new(1);
    let nodes = [3, 1, 2].map(|id| machine.node(id));
    let explained = place(&nodes, &request());
    assert_eq!(explained.chosen, Some(Choice { node: NodeId(1), gpus: vec![0], runtime: "docker".to_owned() }));
    let ids: Vec<u64> = explained.nodes.iter().map(|node| node.node.0).collect();
    assert_eq!(ids, [1, 2, 3]);
    let score = Score { free: 100, spread: 40, ..Score::default() };
    assert_eq!(explained.nodes[0].verdict, Verdict::Chosen(score));
    assert_eq!(explained.nodes[1].verdict, Verdict::Possible(score));
    assert_eq!(
        explained.to_string(),
        "gpu is chosen with 140 points: free memory 100, model file 0, spread 40, image 0"
    );
}

#[test]
fn free_memory_model_file_image_and_spread_count() {
    let (empty, mut half) = (Machine::new(2), Machine::new(2));
    half.gpus.iter_mut().for_each(|gpu| gpu.free = Some(60 * GIB));
    assert_eq!(chosen(&[half.node(1), empty.node(2)]), Some(2), "free memory");
    let with_model = Node { has_model: true, ..half.node(1) };
    assert_eq!(chosen(&[with_model, empty.node(2)]), Some(1), "a file that is there outweighs a quarter of the memory");
    assert_eq!(chosen(&[empty.node(1), Node { has_image: true, ..empty.node(2) }]), Some(2), "image");
    let claims = [claim(9, &[1], 50)];
    let claimed = Node { claims: &claims, ..empty.node(1) };
    assert_eq!(chosen(&[claimed, empty.node(2)]), Some(2), "spread");
    let explained = place(&[with_model, claimed], &request());
    let Verdict::Chosen(score) = explained.nodes[0].verdict else { panic!("{explained}") };
    assert_eq!(score, Score { siblings: 0, free: 75, model: 60, spread: 40, image: 0 });
}

#[test]
fn without_a_measurement_claims_say_what_is_free() {
    let mut machine = Machine::new(1);
    machine.gpus[0].free = None;
    let claims = [claim(9, &[0], 30)];
    let nodes = [Node { claims: &claims, ..machine.node(1) }];
    let Verdict::Chosen(score) = place(&nodes, &request()).nodes[0].verdict else { panic!("refused") };
    assert_eq!((score.free, score.spread), (70, 28));
}

#[test]
fn replicas_go_to_different_nodes_first_and_share_one_if_they_must() {
    let (good, poor) = (Machine::new(2), Machine::new(1));
    let mut placed: Vec<(u64, Vec<u32>)> = Vec::new();
    for ordinal in 0..3 {
        let claims = |node: u64| {
            let there = placed.iter().enumerate().filter(move |(_, (on, _))| *on == node);
            there.map(|(number, (_, gpus))| claim(number as u64, gpus, 90)).collect::<Vec<_>>()
        };
        let (on_good, on_poor) = (claims(1), claims(2));
        let siblings = |claims: &[Claim<'_>]| u32::try_from(claims.len()).expect("few");
        let nodes = [
            Node { claims: &on_good, siblings: siblings(&on_good), has_model: true, ..good.node(1) },
            Node { claims: &on_poor, siblings: siblings(&on_poor), ..poor.node(2) },
        ];
        let choice = place(&nodes, &request()).chosen.unwrap_or_else(|| panic!("replica {ordinal} has room"));
        placed.push((choice.node.0, choice.gpus));
    }
    assert_eq!(placed, [(1, vec![0]), (2, vec![0]), (1, vec![1])]);
}

#[test]
fn models_without_gpus_are_spread_too() {
    let machine = Machine::new(0);
    let none = Wanted::Count(0);
    let request = Request { gpus: &none, engine: "sim", ..request() };
    let claims = [claim(9, &[], 100)];
    let nodes = [Node { claims: &claims, ..machine.node(1) }, machine.node(2)];
    let choice = place(&nodes, &request).chosen.expect("no GPU is needed");
    assert_eq!((choice.node, choice.gpus), (NodeId(2), vec![]));
}

#[test]
fn every_node_that_cannot_says_why() {
    let (machine, bare) = (Machine::new(1), Machine::new(0));
    let process = vec![Runtime { name: "process".to_owned(), engines: vec!["sim".to_owned()] }];
    let nodes = [
        Node { alive: false, ..machine.node(1) },
        Node { cordoned: true, ports: &[8000, 8001], ..machine.node(2) },
        Node { runtimes: &process, ..machine.node(3) },
        Node { runtimes: &[], ..bare.node(4) },
        machine.node(5),
    ];
    let explained = place(&nodes, &Request { port: Some(8001), exclude: &[NodeId(5)], ..request() });
    assert_eq!(explained.chosen, None);
    let words: Vec<String> = explained.nodes.iter().map(|node| node.verdict.to_string()).collect();
    assert_eq!(
        words,
        [
            "refused: it does not answer",
            "refused: it is in maintenance; port 8001 is taken there",
            "refused: what it has (process) cannot start the engine vllm",
            "refused: it has no container runtime; 1 GPU is wanted and it has none",
            "refused: it is left out by the request",
        ]
    );
}

#[test]
fn when_nothing_can_take_it_nodes_with_one_reason_are_counted_and_a_single_one_is_explained() {
    let machines: Vec<Machine> = (1..=6).map(|id| Machine { name: format!("gpu-{id}"), ..Machine::new(1) }).collect();
    let claims = [claim(9, &[0], 60)];
    let nodes: Vec<Node<'_>> = (1..)
        .zip(&machines)
        .map(|(id, machine)| match id {
            1..=4 => Node { claims: &claims, ..machine.node(id) },
            5 => Node { alive: false, ..machine.node(id) },
            _ => Node { ports: &[1], ..machine.node(id) },
        })
        .collect();
    let request = Request { port: Some(1), ..request() };
    assert_eq!(
        place(&nodes, &request).to_string(),
        "no node can take it: 4 nodes have no room on their GPUs (gpu-1, gpu-2, gpu-3, ...); gpu-5: it does not answer; \
         gpu-6: port 1 is taken there"
    );
    assert_eq!(place(&[], &request).to_string(), "there is no node");
}

#[test]
fn the_runtime_is_what_the_node_has_set_then_what_is_preferred_then_the_first() {
    let runtime = |name: &str| Runtime { name: name.to_owned(), ..docker().remove(0) };
    let sim_only = Runtime { name: "process".to_owned(), engines: vec!["sim".to_owned()] };
    let pick = |available: &[Runtime], set: Option<&str>, preferred: Option<&str>| {
        let machine = Machine { runtimes: available.to_vec(), ..Machine::new(1) };
        let node = Node { runtime: set, ..machine.node(1) };
        place(&[node], &Request { runtime: preferred, ..request() }).chosen.map(|choice| choice.runtime)
    };
    let both = [runtime("docker"), runtime("podman")];
    assert_eq!(pick(&both, Some("podman"), Some("docker")).as_deref(), Some("podman"));
    assert_eq!(pick(&both[..1], Some("podman"), None).as_deref(), Some("docker"));
    assert_eq!(pick(&both[1..], None, Some("docker")).as_deref(), Some("podman"));
    assert_eq!(pick(&both, None, Some("podman")).as_deref(), Some("podman"));
    assert_eq!(pick(&[], None, Some("docker")), None);
    let with_process = [sim_only, runtime("podman")];
    assert_eq!(pick(&with_process, Some("process"), None).as_deref(), Some("podman"), "it can not start this engine");
}

#[test]
fn a_warm_node_takes_what_gives_way_and_a_cold_one_does_not() {
    let mut machine = Machine::new(1);
    machine.gpus[0].free = Some(8 * GIB);
    let sleepy = [Claim { evictable: true, ..claim(9, &[0], 90) }];
    let cold = Node { claims: &sleepy, ..machine.node(1) };
    assert_eq!(chosen(&[cold]), None, "the new one would never give way to the other");
    let warm = Node { warm: true, ..cold };
    assert_eq!(chosen(&[warm]), Some(1));
    assert_eq!(place(&[warm], &Request { may_sleep: false, ..request() }).chosen, None);
}

#[test]
fn a_thousand_nodes_with_eight_gpus_are_planned() {
    let gpus = [[0], [1], [2], [3], [4], [5], [6], [7]];
    let machine = Machine::new(8);
    let claims: Vec<Claim<'_>> = (0..).zip(&gpus).map(|(number, gpu)| claim(number, gpu, 40)).collect();
    let full: Vec<Claim<'_>> = (0..).zip(&gpus).map(|(number, gpu)| claim(number, gpu, 90)).collect();
    for (what, claims, expected) in [("possible", &claims, Some(NodeId(700))), ("full", &full, None)] {
        let nodes: Vec<Node<'_>> =
            (1..=1000).map(|id| Node { claims, has_model: id == 700, ..machine.node(id) }).collect();
        let begun = Instant::now();
        let explained = place(&nodes, &request());
        eprintln!("1,000 nodes with 8 GPUs, all {what}: {:?}", begun.elapsed());
        assert_eq!(explained.chosen.map(|choice| choice.node), expected);
        assert_eq!(explained.nodes.len(), 1000);
    }
}

/// A node's GPUs as (free, cordoned, claimed in hundredths), whether it is alive, siblings, has the model.
type Drawn = (Vec<(u64, bool, u32)>, bool, u32, bool);

fn any_node() -> impl Strategy<Value = Drawn> {
    let gpu = (0..=80_u64, prop::bool::weighted(0.2), 0..=100_u32);
    (prop::collection::vec(gpu, 0..4), prop::bool::weighted(0.8), 0..3_u32, any::<bool>())
}

proptest! {
    #[test]
    fn the_best_possible_node_is_chosen_whatever_the_order(
        drawn in prop::collection::vec(any_node(), 0..6), share in 1..=100_u32, wanted in 0..3_u32, turn in 0..6_usize,
    ) {
        let machines: Vec<Machine> = drawn
            .iter()
            .map(|(gpus, ..)| {
                let gpu = |(at, &(free, cordoned, _))| Gpu { free: Some(free * GIB), cordoned, ..gpu(at) };
                Machine { gpus: (0..).zip(gpus).map(gpu).collect(), ..Machine::new(0) }
            })
            .collect();
        let indices = [[0], [1], [2], [3]];
        let claims: Vec<Vec<Claim<'_>>> = drawn
            .iter()
            .map(|(gpus, ..)| {
                let there = (0..).zip(indices.iter().zip(gpus));
                there.map(|(number, (at, gpu))| claim(number, at, gpu.2)).collect()
            })
            .collect();
        let mut nodes: Vec<Node<'_>> = (1..)
            .zip(machines.iter().zip(&claims).zip(&drawn))
            .map(|(id, ((machine, claims), &(_, alive, siblings, has_model)))| Node {
                alive,
                claims,
                siblings,
                has_model,
                ..machine.node(id)
            })
            .collect();
        let gpus = Wanted::Count(wanted);
        let request = Request { gpus: &gpus, share: Share(share * 10_000), ..request() };
        let explained = place(&nodes, &request);
        let by = turn.min(nodes.len());
        nodes.rotate_left(by);
        prop_assert_eq!(&place(&nodes, &request), &explained);
        let scores = explained.nodes.iter().filter_map(|node| match &node.verdict {
            Verdict::Chosen(score) | Verdict::Possible(score) => Some((score.siblings, Reverse(score.points()))),
            Verdict::Refused(_) => None,
        });
        let best = scores.min();
        let chosen = explained.nodes.iter().filter_map(|node| match &node.verdict {
            Verdict::Chosen(score) => Some((node.node, score)),
            _ => None,
        });
        let chosen: Vec<_> = chosen.collect();
        prop_assert_eq!(chosen.len(), usize::from(best.is_some()));
        if let (Some(choice), Some(best)) = (&explained.chosen, best) {
            prop_assert_eq!(choice.node, chosen[0].0);
            prop_assert_eq!((chosen[0].1.siblings, Reverse(chosen[0].1.points())), best);
            prop_assert_eq!(choice.gpus.len(), wanted as usize);
        }
        for node in &explained.nodes {
            if let Verdict::Refused(reasons) = &node.verdict {
                prop_assert!(!reasons.is_empty());
            }
        }
    }
}
