use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tempfile::TempDir;

use super::file::SECTOR;
use super::*;
use crate::storage::sled_store::SledStore;
use crate::storage::testing::Fault;

const A: Tree = Tree("a");
const B: Tree = Tree("b");
const META: Tree = Tree("meta");
const TREES: [Tree; 3] = [A, B, META];

const FILE_BYTES: usize = 2 * 1024 * 1024;

fn note() -> Note {
    Note { tree: META, key: b"journal", first: Batch::default() }
}

fn sled(directory: &TempDir) -> Arc<dyn Store> {
    Arc::new(SledStore::open(&directory.path().join("db"), &TREES).expect("the database opens"))
}

fn try_open(directory: &TempDir) -> Result<Journaled, StoreError> {
    Journaled::open(&directory.path().join("db"), sled(directory), &TREES, note(), FILE_BYTES)
}

fn open(directory: &TempDir) -> Journaled {
    try_open(directory).expect("opens")
}

fn directory() -> TempDir {
    tempfile::tempdir().expect("a directory")
}

fn put(store: &dyn Store, key: &str, value: &[u8]) {
    let mut batch = Batch::default();
    batch.put(A, key, value);
    store.write(batch).expect("writes");
}

fn put_durably(store: &dyn Store, key: &str, value: &[u8]) {
    put(store, key, value);
    store.sync().and_then(|()| store.tidy()).expect("syncs");
}

fn get(store: &dyn Store, key: &str) -> Option<Vec<u8>> {
    store.get(A, key.as_bytes()).expect("reads")
}

fn all(store: &dyn Store, tree: Tree, from: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut found = Vec::new();
    store
        .scan(tree, from, &mut |key, value| {
            found.push((key.to_vec(), value.to_vec()));
            Ok(ControlFlow::Continue(()))
        })
        .expect("scans");
    found
}

/// The file with this number, to do harm to.
fn raw(directory: &TempDir, number: usize) -> File {
    File::options().read(true).write(true).open(path(&directory.path().join("db"), number)).expect("is there")
}

fn why(outcome: Result<Journaled, StoreError>) -> String {
    match outcome {
        Err(error) if error.is_damage() => error.to_string(),
        Err(error) => panic!("not taken for damage: {error}"),
        Ok(_) => panic!("it opened"),
    }
}

#[test]
fn it_is_a_map_whatever_is_written_and_however_often_it_is_opened() {
    let directory = directory();
    let mut random = StdRng::seed_from_u64(7);
    let mut model: BTreeMap<Tree, BTreeMap<Vec<u8>, Vec<u8>>> =
        BTreeMap::from([(A, BTreeMap::new()), (B, BTreeMap::new())]);
    let mut store = open(&directory);
    let mut turns = 0;
    for round in 0..1_500 {
        let mut batch = Batch::default();
        for _ in 0..random.random_range(1..6) {
            let tree = if random.random_bool(0.7) { A } else { B };
            let key = random.random_range(0..400_u16).to_be_bytes().to_vec();
            if random.random_bool(0.3) {
                batch.remove(tree, key.clone());
                model.get_mut(&tree).expect("a tree").remove(&key);
            } else {
                let value = vec![round as u8; random.random_range(0..8_000)];
                batch.put(tree, key.clone(), value.clone());
                model.get_mut(&tree).expect("a tree").insert(key, value);
            }
        }
        let epoch = store.journal().epoch.number;
        store.write(batch).expect("writes");
        store.sync().expect("syncs");
        if random.random_bool(0.8) {
            store.tidy().expect("tidies");
        }
        turns += u64::from(store.journal().epoch.number > epoch);
        if random.random_bool(0.02) {
            drop(store);
            store = open(&directory);
        }
        if round % 50 == 0 {
            let from = random.random_range(0..400_u16).to_be_bytes();
            for tree in [A, B] {
                let expected: Vec<_> =
                    model[&tree].range(from.to_vec()..).map(|(key, value)| (key.clone(), value.clone())).collect();
                assert_eq!(all(&store, tree, &from), expected, "round {round}");
                for key in 0..400_u16 {
                    let key = key.to_be_bytes();
                    assert_eq!(store.get(tree, &key).expect("reads").as_ref(), model[&tree].get(key.as_slice()));
                }
            }
        }
    }
    assert!(turns > 5, "only {turns} epochs");
}

#[test]
fn a_torn_last_frame_ends_it_and_the_next_one_takes_its_place() {
    let directory = directory();
    let store = open(&directory);
    put_durably(&store, "first", b"1");
    put_durably(&store, "second", &[2; 2000]);
    let at = store.journal().at;
    let number = store.journal().epoch.file();
    drop(store);
    // The last sector of the second frame did not reach the disk.
    raw(&directory, number).write_all_at(&[0; SECTOR], (at - SECTOR) as u64).expect("is torn");
    let store = open(&directory);
    assert_eq!(get(&store, "first").as_deref(), Some(&b"1"[..]));
    assert_eq!(get(&store, "second"), None);
    put_durably(&store, "third", b"3");
    drop(store);
    let store = open(&directory);
    assert_eq!(all(&store, A, b"").len(), 2);
}

#[test]
fn a_frame_that_was_whole_once_is_missed() {
    let directory = directory();
    let store = open(&directory);
    for number in 0..5_u8 {
        put_durably(&store, "key", &[number; 700]);
    }
    let number = store.journal().epoch.file();
    drop(store);
    let mut byte = [0];
    // In the third of frames of two sectors.
    let at = (FRAMES + 4 * SECTOR + 300) as u64;
    let file = raw(&directory, number);
    file.read_exact_at(&mut byte, at).expect("reads");
    file.write_all_at(&[byte[0] ^ 1], at).expect("a flipped bit");
    let why = why(try_open(&directory));
    assert!(why.contains("frame 2 is broken, and frame 3 is not"), "{why}");
}

#[test]
fn a_damaged_head_a_short_file_and_a_missing_one_are_refused() {
    let directory = directory();
    let store = open(&directory);
    put_durably(&store, "key", b"value");
    let number = store.journal().epoch.file();
    drop(store);
    let file = raw(&directory, number);
    let mut heads = [0; FRAMES];
    file.read_exact_at(&mut heads, 0).expect("reads");
    let mut broken = heads;
    let at = heads.iter().position(|byte| *byte != 0).expect("a head");
    broken[at + 20] ^= 4;
    file.write_all_at(&broken, 0).expect("a flipped bit");
    assert!(why(try_open(&directory)).contains("its head does not fit its checksum"));
    file.write_all_at(&heads, 0).expect("as it was");
    file.set_len(FILE_BYTES as u64 - 1).expect("is shorter");
    assert!(why(try_open(&directory)).contains("its length is 2097151 bytes"));
    file.set_len(FILE_BYTES as u64 * 2).expect("is longer");
    assert!(why(try_open(&directory)).contains("its files have ["));
    file.set_len(FILE_BYTES as u64).expect("as it was");
    assert_eq!(get(&open(&directory), "key").as_deref(), Some(&b"value"[..]));
    fs::remove_file(path(&directory.path().join("db"), number)).expect("goes");
    assert!(why(try_open(&directory)).contains("it is missing"));
}

#[test]
fn what_was_synced_survives_a_database_that_got_nothing_of_it_yet() {
    let directory = directory();
    let store = open(&directory);
    put_durably(&store, "moved", b"with the first epoch");
    put_durably(&store, "key", b"value");
    assert_eq!(store.inner.get(A, b"key").expect("reads"), None, "it has not been moved");
    assert_eq!(get(&store, "key").as_deref(), Some(&b"value"[..]));
    put(&store, "not", b"synced");
    assert_eq!(get(&store, "not").as_deref(), Some(&b"synced"[..]), "it can be read at once");
    drop(store);
    let store = open(&directory);
    assert_eq!(get(&store, "key").as_deref(), Some(&b"value"[..]));
    assert_eq!(get(&store, "not"), None);
}

#[test]
fn an_older_database_under_its_journal_is_noticed() {
    let directory = directory();
    let store = open(&directory);
    put_durably(&store, "key", b"value");
    drop(store);
    let db = directory.path().join("db").join("db");
    let older = fs::read(&db).expect("reads");
    let store = open(&directory);
    while store.journal().epoch.number < 5 {
        put_durably(&store, "key", &[1; 16_000]);
    }
    drop(store);
    for entry in fs::read_dir(directory.path().join("db")).expect("a directory").flatten() {
        if entry.file_name().to_string_lossy().starts_with("snap.") {
            fs::remove_file(entry.path()).expect("goes");
        }
    }
    fs::write(&db, older).expect("is replaced");
    let why = why(try_open(&directory));
    assert!(why.contains("the database is older than its journal"), "{why}");
}

#[test]
fn a_scan_misses_nothing_that_moves_to_the_database_meanwhile() {
    let directory = directory();
    let store = open(&directory);
    for number in 0..2_000_u32 {
        put(&store, &format!("fixed-{number:05}"), &[3; 40]);
    }
    store.sync().expect("syncs");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while store.journal().epoch.number < 8 {
                put_durably(&store, "other", &[1; 16_000]);
            }
            done.store(true, Ordering::SeqCst);
        });
        while !done.load(Ordering::SeqCst) {
            let found = all(&store, A, b"fixed").into_iter().filter(|(key, _)| key.starts_with(b"fixed")).count();
            assert_eq!(found, 2_000);
        }
    });
}

#[test]
fn an_error_of_the_database_is_final_and_loses_nothing() {
    let directory = directory();
    let fault = Fault::never();
    let inner = fault.over(sled(&directory));
    let store = Journaled::open(&directory.path().join("db"), inner, &TREES, note(), FILE_BYTES).expect("opens");
    put_durably(&store, "first", b"1");
    fault.fail_at(1);
    let mut written = 0_u32;
    let error = loop {
        put(&store, &format!("{written}"), &[1; 16_000]);
        match store.sync().and_then(|()| store.tidy()) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("injected"), "{error}");
    assert!(matches!(store.sync(), Err(StoreError::Failed(_))));
    assert!(matches!(store.get(A, b"first"), Err(StoreError::Failed(_))));
    drop(store);
    let store = open(&directory);
    assert!(written > 50);
    assert_eq!(get(&store, "first").as_deref(), Some(&b"1"[..]));
    assert!((0..written).all(|number| get(&store, &number.to_string()).is_some()));
}

/// Fills epochs until this one has begun, and the one before is not in the database yet.
fn fill(directory: &TempDir, epoch: u64) {
    let store = open(directory);
    while store.journal().epoch.number < epoch {
        put(&store, "key", &[1; 16_000]);
        store.sync().expect("syncs");
    }
    assert_eq!(store.journal().older, Some(epoch - 1));
}

#[test]
fn the_end_of_an_epoch_is_missed_once_the_next_one_has_begun() {
    let directory = directory();
    fill(&directory, 4);
    let file = raw(&directory, 1);
    let mut content = vec![0; FILE_BYTES];
    file.read_exact_at(&mut content, 0).expect("reads");
    let last = (FRAMES..FILE_BYTES).step_by(SECTOR).rfind(|at| content[*at..].starts_with(b"MJF1")).expect("a frame");
    file.write_all_at(&[0; SECTOR], last as u64).expect("is gone");
    let why = why(try_open(&directory));
    assert!(why.contains("epoch 3 has") && why.contains("frames of"), "{why}");
}

#[test]
fn a_journal_that_lost_what_the_database_counts_on_is_refused() {
    let directory = directory();
    fill(&directory, 4);
    let store = open(&directory);
    while store.journal().older.is_some() {
        put_durably(&store, "key", &[1; 16_000]);
    }
    assert_eq!(store.journal().epoch.number, 4);
    drop(store);
    // The head of the newest epoch, and with it every frame of it.
    raw(&directory, 0).write_all_at(&[0; FRAMES], 0).expect("is gone");
    assert!(why(try_open(&directory)).contains("newer than its journal"));
}

#[test]
fn a_journal_of_which_the_database_knows_nothing_is_refused() {
    let directory = directory();
    fill(&directory, 2);
    let plain = sled(&directory);
    let mut batch = Batch::default();
    batch.remove(META, *b"journal");
    plain.write(batch).and_then(|()| plain.sync()).expect("forgets");
    drop(plain);
    assert!(why(try_open(&directory)).contains("knows nothing of it"));
}

#[test]
fn what_is_removed_before_its_epoch_has_its_turn_never_reaches_the_database() {
    let directory = directory();
    let store = open(&directory);
    let mut number = 0_u32;
    while store.journal().epoch.number < 6 {
        let mut batch = Batch::default();
        batch.put(A, number.to_be_bytes(), vec![1; 4_000]);
        if let Some(old) = number.checked_sub(200) {
            batch.remove(A, old.to_be_bytes());
        }
        store.write(batch).and_then(|()| store.sync()).and_then(|()| store.tidy()).expect("writes");
        if number.is_multiple_of(50) {
            // The first frame of all is among what is older once.
            assert!(all(&*store.inner, A, b"").len() <= 1, "at {number}");
        }
        number += 1;
    }
    assert!(number > 2_000);
    assert_eq!(all(&store, A, b"").len(), 200);
    drop(store);
    assert_eq!(all(&open(&directory), A, b"").len(), 200);
}

#[test]
fn what_is_removed_and_not_yet_durably_so_reaches_the_database_with_its_epoch() {
    let directory = directory();
    let store = open(&directory);
    put_durably(&store, "first", b"value");
    put_durably(&store, "kept", b"value");
    while store.journal().epoch.number < 2 || store.journal().at < FILE_BYTES / 2 {
        put_durably(&store, "key", &[1; 16_000]);
    }
    assert!(store.journal().older.is_some());
    while store.journal().at < FILE_BYTES / 4 * 3 {
        put(&store, "key", &[1; 16_000]);
        store.sync().expect("syncs");
    }
    let mut removal = Batch::default();
    removal.remove(A, *b"kept");
    store.write(removal).expect("is written, and not synced");
    while store.journal().older.is_some() {
        store.tidy().expect("tidies");
    }
    drop(store);
    assert_eq!(get(&open(&directory), "kept").as_deref(), Some(&b"value"[..]));
}

#[test]
fn what_the_frame_removes_for_which_the_file_is_full_is_there_until_the_frame_is() {
    let directory = directory();
    let store = open(&directory);
    put_durably(&store, "first", b"value");
    put_durably(&store, "kept", b"value");
    while store.journal().epoch.number < 2 || store.journal().at < FILE_BYTES - 20_000 {
        put(&store, "key", &[1; 16_000]);
        store.sync().expect("syncs");
    }
    assert!(store.journal().older.is_some());
    let mut removal = Batch::default();
    removal.remove(A, *b"kept");
    store.write(removal).expect("is written, and not synced");
    store.turn(&mut store.journal()).expect("the next epoch begins");
    assert_eq!(store.journal().epoch.number, 3);
    drop(store);
    assert_eq!(get(&open(&directory), "kept").as_deref(), Some(&b"value"[..]));
}

#[test]
fn the_last_frame_is_written_again_as_it_was() {
    let directory = directory();
    for frames in 1..4 {
        let file = make_file(&directory.path().join("file"), FILE_BYTES).expect("is made");
        let epoch = Epoch { number: 7, salt: 11 };
        epoch.begin(&file, 5).expect("begins");
        let mut at = FRAMES;
        for sequence in 0..frames {
            let mut frame = vec![0; FRAME_HEAD];
            frame.extend_from_slice(&[sequence as u8; 700]);
            epoch.complete(sequence, &mut frame);
            file.write_all_at(&frame, at as u64).expect("is written");
            at += frame.len();
        }
        let found = file::read(&file, 6).expect("is read").expect("an epoch");
        // What the disk never got.
        file.write_all_at(&vec![0; room(700 + FRAME_HEAD)], (at - room(700 + FRAME_HEAD)) as u64).expect("is gone");
        if frames == 1 {
            file.write_all_at(&[0; FRAMES], 0).expect("is gone");
        }
        found.repeat_last(&file).expect("is written");
        let again = file::read(&file, 6).expect("is read").expect("an epoch");
        assert_eq!((again.epoch, again.before, again.end), (found.epoch, 5, at));
        assert_eq!(again.frames, found.frames);
    }
}

#[test]
fn a_batch_for_an_unknown_tree_is_refused_whole() {
    let directory = directory();
    let store = open(&directory);
    let mut batch = Batch::default();
    batch.put(A, *b"known", *b"tree");
    batch.put(Tree("other"), *b"unknown", *b"tree");
    assert!(matches!(store.write(batch), Err(StoreError::OutOfOrder { .. })));
    put_durably(&store, "next", b"one");
    drop(store);
    let found = all(&open(&directory), A, b"");
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn what_is_too_long_is_refused_alone() {
    let directory = directory();
    let store = open(&directory);
    put(&store, "small", b"1");
    let mut batch = Batch::default();
    for number in 0..200_u8 {
        batch.put(A, [number], vec![0; 16_000]);
    }
    assert!(matches!(store.write(batch), Err(StoreError::TooLarge { .. })));
    store.sync().expect("goes on");
    drop(store);
    assert_eq!(all(&open(&directory), A, b"").len(), 1);
}
