//! Files that are not what was written: cut off, or with something else in the middle.

use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use muster_tests::fleet::PATIENCE;
use muster_tests::mesh::Mesh;
use muster_tests::process::{number, run, wait_for};
use muster_tests::registers::Registers;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::{go_on, is_whole, set_aside};

/// What is damaged, and how.
#[derive(Clone, Copy, Debug)]
enum Damage {
    /// It ends somewhere in the middle.
    Torn,
    /// A block somewhere in it is another one.
    Overwritten,
}

/// A file in a node's directory, and what is done to it.
type Where = (&'static str, Damage);

/// What a start over it led to.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The node said why, and ended.
    Refused,
    /// It began, and the rest of the state was set aside or the damage did no harm.
    Began,
}

/// The newest snapshot of a node.
fn newest(directory: &Path) -> PathBuf {
    let files = fs::read_dir(directory).expect("lists").map(|entry| entry.expect("an entry").path());
    files.filter(|path| path.extension().is_some_and(|end| end == "snap")).max().expect("a snapshot")
}

/// Does it, somewhere in the part that is in use, but in neither the first nor the last tenth of that, and says what was
/// done: databases take room in advance.
fn damage(path: &Path, how: Damage, random: &mut StdRng) -> io::Result<String> {
    let content = fs::read(path)?;
    let length = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last as u64 + 1);
    let file = fs::File::options().write(true).open(path)?;
    let place = random.random_range(length / 10..length - length / 10);
    match how {
        Damage::Torn => file.set_len(place)?,
        Damage::Overwritten => {
            let before = content[place as usize..length as usize].iter().take(4096);
            file.write_all_at(&before.map(|byte| byte ^ 0xa5).collect::<Vec<_>>(), place)?;
        }
    }
    Ok(format!("{length} bytes in use, {how:?} at {place}"))
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    let output = run(std::process::Command::new("cp").arg("-a").args([from, to]));
    assert!(output.status.success(), "{output:?}");
}

/// Stops a node, damages a file in its directory, or the newest in a directory there, and starts it again.
fn start_over(mesh: &mut Mesh, node: usize, file: &str, how: Damage, random: &mut StdRng) -> (Outcome, String) {
    mesh.machines[node].stop();
    let (data, before) = (mesh.machines[node].home.data(), mesh.machines[node].home.path().join("before"));
    copy(&data, &before);
    let path = data.join(file);
    let path = if path.is_dir() { newest(&path) } else { path };
    let done = damage(&path, how, random).expect("damages");
    let log = mesh.machines[node].home.log().len();
    match mesh.try_restart(node) {
        Ok(()) => {
            let said = mesh.machines[node].home.log()[log..].to_owned();
            println!("{file}: {done}: began");
            (Outcome::Began, said)
        }
        Err((status, said)) => {
            assert_eq!(status.code(), Some(1), "{done}: {said}");
            let why = said.lines().last().unwrap_or_default().to_owned();
            println!("{file}: {done}: {why}");
            (Outcome::Refused, why)
        }
    }
}

/// Puts back what a refused node had: it has promised nothing since.
fn put_back(mesh: &mut Mesh, node: usize) {
    let (data, before) = (mesh.machines[node].home.data(), mesh.machines[node].home.path().join("before"));
    copy(&before, &data);
    mesh.restart(node);
    mesh.ready();
}

/// A damaged log is refused and left where it is, or was not harmed where it matters.
fn log(mesh: &mut Mesh, registers: &Registers, (file, how): Where, random: &mut StdRng) -> bool {
    let node = random.random_range(0..3);
    let aside = set_aside(&mesh.machines[node]);
    let (outcome, said) = start_over(mesh, node, file, how, random);
    assert_eq!(set_aside(&mesh.machines[node]), aside, "the log is not for the node to give up");
    let others: Vec<_> = (0..3).filter(|other| *other != node).collect();
    go_on(registers, &others);
    if outcome == Outcome::Refused {
        assert!(said.contains("is unusable: the Raft log"), "{said}");
        put_back(mesh, node);
    }
    go_on(registers, &[0, 1, 2]);
    outcome == Outcome::Refused
}

/// A damaged state is an older one, or is set aside; either way the log makes it what it was.
fn state(mesh: &mut Mesh, registers: &Registers, (file, how): Where, random: &mut StdRng) -> bool {
    let node = random.random_range(0..3);
    let aside = set_aside(&mesh.machines[node]);
    let (outcome, said) = start_over(mesh, node, file, how, random);
    assert_eq!(outcome, Outcome::Began, "{said}");
    go_on(registers, &[0, 1, 2]);
    let rebuilt = said.contains("rebuilding it from snapshot and log");
    assert_eq!(set_aside(&mesh.machines[node]), aside + usize::from(rebuilt), "{said}");
    rebuilt
}

/// A damaged snapshot no longer counts.
fn snapshot(mesh: &mut Mesh, registers: &Registers, how: Damage, random: &mut StdRng) {
    let node = random.random_range(0..3);
    let _ = mesh.api(node).get("/api/cluster/snapshot").expect(200);
    let (outcome, said) = start_over(mesh, node, "snap", how, random);
    assert_eq!(outcome, Outcome::Began, "{said}");
    assert!(said.contains("setting a damaged snapshot aside"), "{said}");
    go_on(registers, &[0, 1, 2]);
}

#[test]
fn a_damaged_log_is_refused_and_a_damaged_state_or_snapshot_is_made_again_while_the_fleet_goes_on() {
    let mut mesh = Mesh::of_three();
    let (mut refused, mut rebuilt) = (0, 0);
    for run in 0..number("RUNS_FILES", 1) {
        let seed = number("SEED_FILES", 1) + run;
        let mut random = StdRng::seed_from_u64(seed);
        let registers = Registers::new(mesh.apis(), &format!("register-{seed}"), 5);
        registers.used_while(seed, || {
            // Of what databases keep beside their data one is damaged in every run. What was written last is in the journal:
            // damage to the database of the log may do no harm.
            let (log_file, state_file) =
                if seed % 2 == 1 { ("raft/db", "state/conf") } else { ("raft/conf", "state/db") };
            let journal = if seed % 2 == 1 { Damage::Overwritten } else { Damage::Torn };
            for files in [
                [("raft/journal-1", journal), ("state/db", Damage::Torn)],
                [(log_file, Damage::Overwritten), (state_file, Damage::Overwritten)],
            ] {
                refused += usize::from(log(&mut mesh, &registers, files[0], &mut random));
                rebuilt += usize::from(state(&mut mesh, &registers, files[1], &mut random));
                snapshot(&mut mesh, &registers, files[0].1, &mut random);
            }
        });
        println!("seed {seed}: {:?}, refused {refused}, rebuilt {rebuilt}", is_whole(&mut mesh, &registers));
    }
    assert!(refused > 0 && rebuilt > 0, "{refused} logs refused, {rebuilt} states rebuilt");
}

#[test]
fn a_machine_whose_log_is_lost_joins_again_with_an_empty_directory() {
    let mut mesh = Mesh::of_three();
    let mut random = StdRng::seed_from_u64(1);
    let registers = Registers::new(mesh.apis(), "register", 5);
    registers.used_while(1, || {
        go_on(&registers, &[0, 1, 2]);
        let lost = (mesh.leader() + 1) % 3;
        let through = (lost + 1) % 3;
        let (outcome, why) = start_over(&mut mesh, lost, "raft/journal-1", Damage::Torn, &mut random);
        assert_eq!(outcome, Outcome::Refused, "{why}");
        // What the README says. The old name belongs to the one that is lost as long as that is a node of the fleet.
        fs::remove_dir_all(mesh.machines[lost].home.data()).expect("removes");
        let (status, said) = mesh.try_join(lost, through).expect_err("two nodes with one name");
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains("choose another --name"), "{said}");
        "again".clone_into(&mut mesh.machines[lost].name);
        mesh.join(lost, through);
        mesh.ready();
        go_on(&registers, &[0, 1, 2]);
        // It has the place of the lost one once the fleet is told that that does not return, or after a minute.
        let number = (lost + 1).to_string();
        let _ = mesh.machines[through].home.muster(&["operator", "raft", "remove-peer", &number]).ended_with(0);
        wait_for(PATIENCE, "three voters", || {
            let cluster = mesh.cluster(through)?;
            let voters = cluster["voters"].as_array()?;
            (voters.len() == 3 && voters.iter().any(|voter| voter["id"] == 4)).then_some(())
        });
        go_on(&registers, &[0, 1, 2]);
    });
    println!("{:?}", is_whole(&mut mesh, &registers));
}
