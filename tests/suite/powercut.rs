//! The storage after a loss of power at any moment: nothing that was acknowledged is lost, and it always opens.
//!
//! A worker runs on a real directory while every write and barrier is recorded; it is killed and started again on the way.
//! Then the disk is rebuilt as it may have been at many moments of the recording, and opened.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use muster_tests::disk::{Disk, Event, Step, Survives, cuts, read_trace};
use muster_tests::groups::Need;
use muster_tests::process::{Process, disk_library, number};
use muster_tests::workload::{History, PATIENCE, worker};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

fn recorded_worker(directory: &Path, trace: &Path, seed: u64, operations: u64) -> Command {
    let mut command = worker(&directory.join("data"), &directory.join("lines.acks"), seed, operations);
    command.env("DISK_ROOT", directory).env("DISK_TRACE", trace).env("LD_PRELOAD", disk_library());
    command
}

/// Records two runs that kill themselves at some step and one that ends well.
fn record(directory: &Path, trace: &Path, seed: u64) {
    let mut random = SmallRng::seed_from_u64(seed);
    for turn in 0..2 {
        let mut command = recorded_worker(directory, trace, seed * 10 + turn, 1_000_000);
        command.env("DISK_KILL_AT", random.random_range(500..2500).to_string());
        let status = Process::start(&mut command).wait(PATIENCE);
        assert_eq!(status.signal(), Some(9), "the worker ended by itself: {status}");
    }
    let mut process = Process::start(&mut recorded_worker(directory, trace, seed * 10 + 2, 400));
    assert!(process.wait(PATIENCE).success(), "the last run ends well");
}

/// Moments soon after a start. What a process finds need not be safe when the one before was killed before a barrier.
fn after_starts(steps: &[Step], random: &mut SmallRng) -> Vec<usize> {
    let starts = steps.iter().enumerate().filter_map(|(at, step)| match &step.event {
        Event::Open { path, .. } if path.ends_with("data/lock") => Some(at),
        _ => None,
    });
    let starts: Vec<_> = starts.skip(1).collect();
    let moments = starts.iter().flat_map(|start| {
        let syncs = (*start..steps.len()).filter(|at| matches!(steps[*at].event, Event::Sync(..)));
        // A barrier is recorded when it has ended: right before, what it is to make safe is written, and is not.
        syncs.take(20).collect::<Vec<_>>()
    });
    let mut moments: Vec<_> = moments.collect();
    while moments.len() > 8 {
        moments.swap_remove(random.random_range(0..moments.len()));
    }
    moments
}

/// Cuts the recording at many moments and opens what is left; returns how many images there were.
fn replay(root: &Path, steps: &[Step], number: usize, seed: u64) -> usize {
    let mut random = SmallRng::seed_from_u64(seed);
    let mut disk = Disk::new(root);
    let mut history = History::default();
    let mut at = 0;
    let mut images = 0;
    let mut broken = Vec::new();
    let mut moments = cuts(steps, number, &mut random);
    moments.extend(after_starts(steps, &mut random));
    moments.sort_unstable();
    moments.dedup();
    for cut in moments {
        while at < cut {
            disk.advance(&steps[at]);
            if let Event::Ack(lines) = &steps[at].event {
                for line in lines.lines() {
                    let line = line.parse().expect("a line of the worker");
                    history.take(line).unwrap_or_else(|why| panic!("seed {seed}, step {at}: after a kill, {why}"));
                }
            }
            at += 1;
        }
        for survives in [Survives::Nothing, Survives::Prefix, Survives::RandomHalf] {
            let image_seed = random.random();
            let left = tempfile::tempdir_in(fast_place()).expect("a directory");
            disk.lose_power(survives, image_seed, left.path()).expect("the image is written");
            let data = left.path().join("data");
            images += 1;
            // Twice: what recovery has written must be as good as what it found.
            let outcome = history.check(&data).and_then(|()| history.check(&data));
            if let Err(why) = outcome {
                if let Ok(keep) = std::env::var("KEEP") {
                    // As it was before it was opened, for whoever wants to find out why.
                    let kept = Path::new(&keep).join(format!("{seed}-{cut}-{survives:?}"));
                    let _ = std::fs::remove_dir_all(&kept);
                    std::fs::create_dir_all(&kept).expect("a directory");
                    disk.lose_power(survives, image_seed, &kept).expect("the image is written");
                }
                broken.push(format!(
                    "cut at step {cut} of {}, {survives:?} survives, image {image_seed}: {why}",
                    steps.len()
                ));
            }
        }
    }
    assert!(broken.is_empty(), "seed {seed}: {} of {images} images are broken:\n{}", broken.len(), broken.join("\n"));
    assert!(history.acknowledgements() > 0, "nothing was acknowledged, so nothing was tested");
    images
}

/// Images are written once and read once: memory will do.
fn fast_place() -> &'static Path {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory } else { Path::new("/tmp") }
}

fn run(seed: u64, number: usize) {
    let directory = tempfile::tempdir().expect("a directory");
    let beside = tempfile::tempdir().expect("a directory");
    let trace = beside.path().join("trace");
    record(directory.path(), &trace, seed);
    let steps = read_trace(&trace).expect("the recording");
    drop(beside);
    let syncs = steps.iter().filter(|step| matches!(step.event, Event::Sync(..))).count();
    let writes = steps.iter().filter(|step| matches!(step.event, Event::Write { .. })).count();
    assert!(
        syncs > 100 && writes > 100,
        "{writes} writes and {syncs} barriers were recorded: too few to mean anything"
    );
    let images = replay(directory.path(), &steps, number, seed);
    println!(
        "seed {seed}: {} steps, {writes} writes, {syncs} barriers, {images} images opened and checked",
        steps.len()
    );
}

#[test]
fn nothing_acknowledged_is_lost_when_the_power_fails_at_any_moment() {
    if !Need::Compiler.is_met("powercut") {
        return;
    }
    let (seed, runs) = (number("SEED_POWER_CUT", 1), number("RUNS_POWER_CUT", 2));
    for seed in seed..seed + runs {
        run(seed, 40);
    }
}
