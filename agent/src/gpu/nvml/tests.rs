//! The library is a stand-in that is compiled here and loaded as the real one is.

use std::fs;
use std::process::Command;
use std::time::Instant;

use tempfile::TempDir;

use super::super::{Gpu, GpuMemory, GpuProcess, GpuProvider, GpuSource, Health, Origin, Xids};
use super::*;
use crate::machine::Memory;

const GIB: u64 = 1 << 30;

struct StandIn {
    directory: TempDir,
}

impl StandIn {
    /// `None`, with a line that says so, on a machine without a C compiler.
    fn compile(flags: &[&str], steering: &str) -> Option<Self> {
        let stand_in = Self { directory: tempfile::tempdir().unwrap() };
        let source = stand_in.directory.path().join("stand_in.c");
        fs::write(&source, include_str!("../testing/stand_in.c")).unwrap();
        let define = format!("-DSTEERING=\"{}\"", stand_in.directory.path().join("steering").display());
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", &define])
            .args(flags)
            .arg("-o")
            .args([&stand_in.library(), &source])
            .status();
        match compiled {
            Ok(status) => assert!(status.success(), "the stand-in does not compile"),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                println!("skipped: there is no C compiler (cc) for the stand-in library");
                return None;
            }
            Err(error) => panic!("cc: {error}"),
        }
        stand_in.steer(steering);
        Some(stand_in)
    }

    fn library(&self) -> PathBuf {
        self.directory.path().join("libnvidia-ml.so.1")
    }

    fn steer(&self, steering: &str) {
        let (new, path) = (self.directory.path().join("new"), self.directory.path().join("steering"));
        fs::write(&new, steering).unwrap();
        fs::rename(new, path).unwrap();
    }

    fn open(&self) -> GpuProvider {
        self.open_with(Duration::from_secs(20))
    }

    fn open_with(&self, patience: Duration) -> GpuProvider {
        let options = NvmlOptions { library: Some(self.library()), patience, retry: Duration::ZERO };
        GpuProvider::open(&GpuSource::Auto, options)
    }
}

impl Drop for StandIn {
    /// No thread is left in a call that hangs.
    fn drop(&mut self) {
        self.steer("");
    }
}

fn fresh(reading: &Reading) -> &[GpuSample] {
    let Reading::Fresh(gpus) = reading else { panic!("not fresh: {reading:?}") };
    gpus
}

fn no_driver(reading: &Reading) -> &str {
    let Reading::Nothing(NoGpus::NoDriver(why)) = reading else { panic!("there is a driver: {reading:?}") };
    why
}

#[tokio::test]
async fn two_good_gpus_are_told_with_all_their_figures() {
    let Some(stand_in) = StandIn::compile(&[], "") else { return };
    let gpus = stand_in.open();
    let reading = gpus.read().await;
    let [first, second] = fresh(&reading) else { panic!("{reading:?}") };
    let facts = Gpu {
        index: 0,
        uuid: Some("GPU-00000000-0000-0000-0000-000000000000".to_owned()),
        name: "NVIDIA Stand-In 80GB".to_owned(),
        memory_total: Some(80 * GIB),
        origin: Origin::Nvml,
    };
    assert_eq!(*first.gpu, facts);
    assert_eq!(first.xids, Some(Xids::default()));
    let figures = first.figures().unwrap();
    assert_eq!(figures.memory, Some(GpuMemory { total: 80 * GIB, used: 10 * GIB, free: 69 * GIB }));
    assert_eq!((figures.utilization, figures.temperature, figures.power), (Some(42), Some(55), Some(350_500)));
    assert_eq!((figures.ecc_corrected, figures.ecc_uncorrected), (Some(3), Some(1)));
    let engine = GpuProcess { pid: 100, memory: Some(9 * GIB), name: Some("VLLM::EngineCore".to_owned()) };
    let nameless = GpuProcess { pid: 101, memory: None, name: None };
    assert_eq!(figures.processes, Some(vec![engine, nameless]));
    assert_eq!(second.gpu.index, 1);
    assert_eq!(second.figures().unwrap().processes, Some(vec![]));
    assert_eq!(gpus.inventory().await.unwrap(), [first.gpu.clone(), second.gpu.clone()]);
}

#[tokio::test]
async fn a_lost_gpu_is_a_state_of_it_and_hides_no_other() {
    let Some(stand_in) = StandIn::compile(&[], "gpus 3") else { return };
    let gpus = stand_in.open();
    let known = gpus.inventory().await.unwrap();
    // Some drivers still hand out the handle of a lost GPU, and some do not.
    for handles in ["handles 0", "handles 1"] {
        stand_in.steer(&format!("gpus 3\nlost 1\nxid_gpu 1\nxids 2\nxid 79\n{handles}"));
        let reading = gpus.read().await;
        let [first, lost, last] = fresh(&reading) else { panic!("{reading:?}") };
        assert!(matches!(&lost.health, Health::Lost(why) if why.contains("fell off the bus")), "{lost:?}");
        assert_eq!(lost.xids, Some(Xids { count: 2, last: Some(79) }));
        for good in [first, last] {
            assert!(good.figures().is_some(), "{good:?}");
            assert_eq!(good.xids, Some(Xids::default()));
        }
        assert_eq!(gpus.inventory().await.unwrap(), known);
    }
    stand_in.steer("gpus 3");
    assert!(fresh(&gpus.read().await).iter().all(|gpu| gpu.figures().is_some()));
}

#[tokio::test]
async fn a_gpu_that_is_lost_from_the_start_has_no_facts_until_it_is_back() {
    let Some(stand_in) = StandIn::compile(&[], "lost 0\nhandles 0") else { return };
    let gpus = stand_in.open();
    let inventory = gpus.inventory().await.unwrap();
    assert_eq!((inventory[0].uuid.as_ref(), inventory[0].memory_total), (None, None));
    assert!(inventory[1].uuid.is_some());
    stand_in.steer("");
    assert!(fresh(&gpus.read().await)[0].gpu.uuid.is_some());
}

#[tokio::test]
async fn an_unknown_error_of_one_gpu_is_a_state_of_it() {
    let Some(stand_in) = StandIn::compile(&[], "lost 1\nloss 999") else { return };
    let reading = stand_in.open().read().await;
    let [good, bad] = fresh(&reading) else { panic!("{reading:?}") };
    assert!(good.figures().is_some());
    assert_eq!(bad.health, Health::Unknown("an internal driver error occurred".to_owned()));
}

#[tokio::test]
async fn what_a_gpu_does_not_tell_is_missing_and_it_is_well() {
    let Some(stand_in) = StandIn::compile(&["-DWITHOUT_PROCESSES"], "quiet 1") else { return };
    let reading = stand_in.open().read().await;
    let gpu = &fresh(&reading)[0];
    let figures = gpu.figures().unwrap();
    assert!(figures.memory.is_some());
    assert_eq!(figures, &super::super::Figures { memory: figures.memory, ..Default::default() });
    assert_eq!(gpu.xids, None);
}

#[tokio::test]
async fn a_gpu_without_memory_of_its_own_has_the_machines() {
    for steering in ["gpus 1\nunified 1", "gpus 1\nunified 2"] {
        let Some(stand_in) = StandIn::compile(&[], steering) else { return };
        let reading = stand_in.open().read().await;
        let [gpu] = fresh(&reading) else { panic!("{reading:?}") };
        let machine = Memory::read().unwrap();
        assert_eq!((gpu.gpu.origin, gpu.gpu.memory_total), (Origin::Unified, Some(machine.total)));
        let memory = gpu.figures().unwrap().memory.unwrap();
        assert_eq!((memory.total, memory.used + memory.free), (machine.total, machine.total));
        assert_eq!(gpu.figures().unwrap().utilization, Some(42));
    }
}

#[tokio::test]
async fn a_machine_without_the_library_has_no_gpus_and_the_reason() {
    let options = NvmlOptions { library: Some("no/such/library.so".into()), ..NvmlOptions::default() };
    let gpus = GpuProvider::open(&GpuSource::Auto, options);
    let why = no_driver(&gpus.read().await).to_owned();
    assert!(why.contains("is not on this node") && why.contains("no/such/library.so"), "{why}");
    assert_eq!(gpus.inventory().await, Err(NoGpus::NoDriver(why)));
}

#[tokio::test]
async fn a_file_that_is_no_library_is_no_library() {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "not a library").unwrap();
    let options = NvmlOptions { library: Some(file.path().to_owned()), ..NvmlOptions::default() };
    let gpus = GpuProvider::open(&GpuSource::Auto, options);
    assert!(no_driver(&gpus.read().await).contains("is not on this node"));
}

#[tokio::test]
async fn a_driver_that_is_loaded_later_is_found() {
    let Some(stand_in) = StandIn::compile(&[], "init 9") else { return };
    let gpus = stand_in.open();
    assert!(no_driver(&gpus.read().await).contains("driver is not loaded"));
    stand_in.steer("");
    assert_eq!(fresh(&gpus.read().await).len(), 2);
}

#[tokio::test]
async fn a_driver_that_goes_away_takes_the_gpus_with_it_and_brings_them_back() {
    let Some(stand_in) = StandIn::compile(&[], "") else { return };
    let gpus = stand_in.open();
    assert_eq!(fresh(&gpus.read().await).len(), 2);
    stand_in.steer("library 18\ninit 18");
    assert!(no_driver(&gpus.read().await).contains("version mismatch"));
    stand_in.steer("gpus 1");
    assert_eq!(fresh(&gpus.read().await).len(), 1);
}

#[tokio::test]
async fn a_driver_that_failed_is_left_alone_for_a_while() {
    let Some(stand_in) = StandIn::compile(&[], "init 9") else { return };
    let hour = Duration::from_secs(3600);
    let options = NvmlOptions { library: Some(stand_in.library()), patience: Duration::from_secs(20), retry: hour };
    let gpus = GpuProvider::open(&GpuSource::Auto, options);
    no_driver(&gpus.read().await);
    stand_in.steer("");
    no_driver(&gpus.read().await);
}

#[tokio::test]
async fn a_driver_that_hangs_leaves_the_last_figures_with_their_age() {
    let Some(stand_in) = StandIn::compile(&[], "") else { return };
    let patience = Duration::from_millis(300);
    let gpus = stand_in.open_with(patience);
    let before = until_fresh(&gpus).await;
    stand_in.steer("hang 1");
    let reading = gpus.read().await;
    let Reading::Stale { gpus: stale, age } = &reading else { panic!("{reading:?}") };
    assert_eq!(stale[..], *fresh(&before));
    assert!(*age >= patience, "{age:?}");
    // It can still be said which GPUs there are, without waiting.
    let since = Instant::now();
    assert_eq!(gpus.inventory().await.unwrap().len(), 2);
    assert!(since.elapsed() < patience);
    stand_in.steer("utilization 43");
    let after = until_fresh(&gpus).await;
    assert_eq!(fresh(&after)[0].figures().unwrap().utilization, Some(43));
}

#[tokio::test]
async fn a_driver_that_has_hung_from_the_start_is_silent_and_not_absent() {
    let Some(stand_in) = StandIn::compile(&[], "hang 1") else { return };
    let gpus = stand_in.open_with(Duration::from_millis(50));
    assert!(matches!(gpus.read().await, Reading::Nothing(NoGpus::Silent(_))));
    stand_in.steer("");
    until_fresh(&gpus).await;
}

/// The test runner bounds it.
async fn until_fresh(gpus: &GpuProvider) -> Reading {
    loop {
        let reading = gpus.read().await;
        if matches!(reading, Reading::Fresh(_)) {
            return reading;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
#[ignore = "needs an NVIDIA GPU"]
async fn a_real_gpu_is_plausible() {
    let options = NvmlOptions { patience: Duration::from_secs(60), ..NvmlOptions::default() };
    let gpus = GpuProvider::open(&GpuSource::Auto, options);
    let since = Instant::now();
    let reading = gpus.read().await;
    println!("opened and read in {:?}", since.elapsed());
    println!("{:#?}", gpus.inventory().await.unwrap());
    let since = Instant::now();
    println!("{:#?}", gpus.read().await);
    println!("read again in {:?}", since.elapsed());
    assert!(!fresh(&reading).is_empty());
    for gpu in fresh(&reading) {
        assert!(gpu.gpu.uuid.as_ref().is_some_and(|uuid| uuid.starts_with("GPU-")), "{gpu:?}");
        assert!(!gpu.gpu.name.is_empty());
        let figures = gpu.figures().expect("a GPU that can be read");
        let memory = figures.memory.expect("memory");
        assert_eq!(gpu.gpu.memory_total, Some(memory.total));
        assert!(memory.total >= GIB && memory.used + memory.free <= memory.total, "{memory:?}");
        assert!(figures.utilization.is_none_or(|percent| percent <= 100), "{figures:?}");
        assert!(figures.temperature.is_none_or(|degrees| (1..120).contains(&degrees)), "{figures:?}");
        assert!(figures.power.is_none_or(|milliwatts| milliwatts < 3_000_000), "{figures:?}");
        let claimed: u64 = figures.processes.iter().flatten().filter_map(|process| process.memory).sum();
        assert!(claimed <= memory.total, "{figures:?}");
    }
}
