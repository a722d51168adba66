//! Full disks, on a small file system of the test's own.

use std::process::Stdio;

use muster_tests::groups::Need;
use muster_tests::process::Process;
use muster_tests::small_disk::SmallDisk;
use muster_tests::workload::{History, PATIENCE, worker};

#[test]
fn a_full_disk_stops_the_store_cleanly_and_it_goes_on_when_there_is_room() {
    if !Need::Mounts.is_met("tmpfs") {
        return;
    }
    // From too small for the databases to be made, to full in the middle of work.
    for megabytes in [1, 3, 5, 7, 9, 12] {
        let disk = SmallDisk::new(megabytes);
        let elsewhere = tempfile::tempdir().expect("a directory");
        let (data, acks) = (disk.path().join("data"), elsewhere.path().join("lines.acks"));
        let status = Process::start(worker(&data, &acks, 1, 1_000_000).stderr(Stdio::null())).wait(PATIENCE);
        assert_eq!(status.code(), Some(70), "{megabytes} MiB: the worker ended with {status}");
        disk.grow(megabytes + 100);
        let history = History::read(&acks).expect("every promise held while it ran");
        history.check(&data).unwrap_or_else(|why| panic!("{megabytes} MiB: {why}"));
        let status = Process::start(&mut worker(&data, &acks, 2, 200)).wait(PATIENCE);
        assert!(status.success(), "{megabytes} MiB: with room again, the worker ended with {status}");
        let after = History::read(&acks).expect("every promise holds");
        assert!(after.acknowledgements() > history.acknowledgements());
        println!("{megabytes} MiB: {} operations acknowledged before the disk was full", history.acknowledgements());
    }
}
