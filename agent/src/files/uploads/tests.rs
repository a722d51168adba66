use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::{StreamExt, stream};
use tempfile::TempDir;

use super::*;
use crate::files::archive::ArchiveLimits;
use crate::files::archive::samples::{gzip, member, tar, tar_with, zip};
use crate::files::error::ErrorKind;
use crate::files::room::Room;
use crate::files::shelf::Limits;
use crate::files::transfers::{TransferState, Transfers};

fn limits() -> Limits {
    Limits { keep_free: 0, ..Limits::default() }
}

fn open(home: &TempDir, limits: Limits) -> Uploads {
    let room = Room::new(home.path(), limits.keep_free);
    let transfers = Transfers::new(limits.transfers_kept);
    Uploads::open(Shelf { models: home.path().to_owned(), room, limits, transfers }).unwrap()
}

fn scene() -> (TempDir, Uploads) {
    let home = tempfile::tempdir().unwrap();
    let uploads = open(&home, limits());
    (home, uploads)
}

fn whole(content: &[u8]) -> impl Stream<Item = Result<Bytes, Infallible>> + Send + use<> {
    let pieces: Vec<_> = content.chunks(1000).map(|piece| Ok(Bytes::copy_from_slice(piece))).collect();
    stream::iter(pieces)
}

fn cut(content: &[u8]) -> impl Stream<Item = Result<Bytes, io::Error>> + Send + use<> {
    stream::iter([Ok(Bytes::copy_from_slice(content)), Err(io::Error::other("the client is gone"))])
}

/// What lies in the staging directory.
fn staged(uploads: &Uploads) -> usize {
    fs::read_dir(uploads.models().join(STAGING)).unwrap().count()
}

/// What a user would find.
fn visible(uploads: &Uploads) -> Vec<String> {
    let entries =
        fs::read_dir(uploads.models()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries.filter(|name| name != STAGING).collect()
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(10), async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|n| (n % 251) as u8).collect()
}

#[tokio::test]
async fn files_that_are_uploaded_one_by_one_become_a_model() {
    let (home, uploads) = scene();
    let id = uploads.begin("up", 10, 2).await.unwrap();
    let content = bytes(2_500_000);
    let received = uploads.write(id, "m/sub/w.safetensors", None, whole(&content)).await.unwrap();
    assert_eq!(received, Received { bytes: 2_500_000, length: 2_500_000 });
    uploads.write(id, "m/config.json", None, whole(b"{}")).await.unwrap();
    assert!(visible(&uploads).is_empty(), "half an upload is never listed");
    assert_eq!(uploads.shelf.transfers.list()[0].received_bytes, 2_500_002);
    let arrived = uploads.finish(id, true).await.unwrap();
    assert_eq!((arrived.path.clone(), arrived.bytes), (home.path().join("up"), 2_500_002));
    assert_eq!(arrived.warnings, ["there are no weights at its root"]);
    assert_eq!(fs::read(home.path().join("up/sub/w.safetensors")).unwrap(), content);
    assert_eq!(staged(&uploads), 0);
    assert_eq!(uploads.shelf.transfers.list()[0].state, TransferState::Done(arrived.path));
    assert_eq!(uploads.finish(id, true).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn without_flattening_the_single_directory_stays() {
    let (home, uploads) = scene();
    let id = uploads.begin("up", 0, 0).await.unwrap();
    uploads.write(id, "m/x.gguf", None, whole(b"gguf")).await.unwrap();
    uploads.finish(id, false).await.unwrap();
    assert!(home.path().join("up/m/x.gguf").exists());
}

#[tokio::test]
async fn a_cut_upload_goes_on_where_it_was_cut_and_is_identical() {
    let (home, uploads) = scene();
    let content = bytes(3_000_000);
    let id = uploads.begin("up", content.len() as u64, 1).await.unwrap();
    let error = uploads.write(id, "w.bin", None, cut(&content[..1_300_000])).await.unwrap_err();
    assert!(matches!(error, FilesError::BrokenOff));
    let error = uploads.finish(id, false).await.unwrap_err();
    assert!(error.kind() == ErrorKind::Conflict && error.to_string().contains("w.bin"), "{error}");
    let length = uploads.length(id, "w.bin").await.unwrap();
    assert_eq!(length, 1_300_000);
    let gap = uploads.write(id, "w.bin", Some(length + 1), whole(b"x")).await.unwrap_err();
    assert_eq!(gap.kind(), ErrorKind::Conflict);
    // It may go back a little.
    let from = 1_000_000;
    let received = uploads.write(id, "w.bin", Some(from), whole(&content[1_000_000..])).await.unwrap();
    assert_eq!(received, Received { bytes: 2_000_000, length: 3_000_000 });
    assert_eq!(uploads.shelf.transfers.list()[0].received_bytes, 3_000_000);
    assert_eq!(uploads.length(id, "w.bin").await.unwrap(), 3_000_000);
    assert_eq!(uploads.length(id, "other").await.unwrap(), 0);
    uploads.finish(id, false).await.unwrap();
    assert_eq!(fs::read(home.path().join("up/w.bin")).unwrap(), content);
}

#[tokio::test]
async fn a_request_that_is_dropped_leaves_a_file_that_can_go_on() {
    let (_home, uploads) = scene();
    let id = uploads.begin("up", 0, 0).await.unwrap();
    let never_ending = stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"abc"))]).chain(stream::pending());
    let writing = tokio::spawn({
        let uploads = uploads.clone();
        async move { uploads.write(id, "w", None, never_ending).await }
    });
    until("three bytes have come", || uploads.shelf.transfers.list()[0].received_bytes == 3).await;
    writing.abort();
    // The next request waits until the first has let go.
    let received = uploads.write(id, "w", Some(3), whole(b"def")).await.unwrap();
    assert_eq!(received.length, 6);
    uploads.finish(id, false).await.unwrap();
    assert_eq!(fs::read(uploads.models().join("up/w")).unwrap(), b"abcdef");
}

#[tokio::test]
async fn a_file_that_is_being_written_is_not_written_by_another_nor_finished() {
    let home = tempfile::tempdir().unwrap();
    let uploads = open(&home, Limits { patience: Duration::ZERO, ..limits() });
    let id = uploads.begin("up", 0, 0).await.unwrap();
    let session = uploads.session(id).unwrap();
    let path = RelativePath::parse("w").unwrap();
    let held = session.claim(&path, Some(10)).await.unwrap();
    assert_eq!(session.claim(&path, Some(10)).await.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(session.close().await.unwrap_err().kind(), ErrorKind::Conflict);
    drop(held);
    let closed = session.close().await.unwrap();
    assert_eq!(session.claim(&path, Some(10)).await.unwrap_err().kind(), ErrorKind::Conflict);
    drop(closed);
    drop(session.claim(&path, Some(10)).await.unwrap());
    session.end();
    assert_eq!(session.claim(&path, Some(10)).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn of_two_uploads_of_one_name_one_wins_and_nothing_is_replaced() {
    let (home, uploads) = scene();
    let first = uploads.begin("up", 0, 0).await.unwrap();
    let second = uploads.begin("up", 0, 0).await.unwrap();
    for (id, content) in [(first, b"first_"), (second, b"second")] {
        uploads.write(id, "w", None, whole(content)).await.unwrap();
    }
    let (one, other) = tokio::join!(uploads.finish(first, false), uploads.finish(second, false));
    let (winner, loser) = if one.is_ok() { (b"first_", other) } else { (b"second", one) };
    assert_eq!(loser.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(fs::read(home.path().join("up/w")).unwrap(), winner);
    assert_eq!(uploads.begin("up", 0, 0).await.unwrap_err().kind(), ErrorKind::Conflict);
    for id in [first, second] {
        uploads.abort(id).await.unwrap();
    }
    assert_eq!((staged(&uploads), visible(&uploads).len()), (0, 1));
}

#[tokio::test]
async fn bad_names_paths_sizes_and_ids_are_refused() {
    let (home, uploads) = scene();
    for name in ["-x", "a/b", "..", ".tmp", "", &"x".repeat(65)] {
        assert_eq!(uploads.begin(name, 0, 0).await.unwrap_err().kind(), ErrorKind::Invalid);
    }
    assert_eq!(uploads.begin("up", u64::MAX, 0).await.unwrap_err().kind(), ErrorKind::NoRoom);
    assert_eq!(uploads.begin("up", 0, 1 << 40).await.unwrap_err().kind(), ErrorKind::TooLarge);
    let id = uploads.begin("up", 0, 0).await.unwrap();
    for path in ["/abs", "../x", "a/./b", "c:x", "a\\b", "", &"x/".repeat(33), &"x".repeat(1025), &"x".repeat(300)] {
        assert_eq!(uploads.write(id, path, None, whole(b"x")).await.unwrap_err().kind(), ErrorKind::Invalid, "{path}");
    }
    uploads.write(id, "a", None, whole(b"x")).await.unwrap();
    uploads.write(id, "d/b", None, whole(b"x")).await.unwrap();
    for path in ["a/b", "d"] {
        assert_eq!(uploads.write(id, path, None, whole(b"x")).await.unwrap_err().kind(), ErrorKind::Invalid, "{path}");
    }
    let unknown = Uuid::new_v4();
    assert_eq!(uploads.write(unknown, "a", None, whole(b"x")).await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(uploads.length(unknown, "a").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(uploads.finish(unknown, false).await.unwrap_err().kind(), ErrorKind::NotFound);
    uploads.abort(unknown).await.unwrap();
    uploads.finish(id, false).await.unwrap();
    assert_eq!(fs::read_dir(home.path().join("up")).unwrap().count(), 2);
}

#[tokio::test]
async fn sending_a_file_again_replaces_it_within_the_upload() {
    let (home, uploads) = scene();
    let id = uploads.begin("up", 0, 0).await.unwrap();
    uploads.write(id, "w", None, whole(b"a longer one")).await.unwrap();
    uploads.write(id, "w", None, whole(b"short")).await.unwrap();
    assert_eq!(uploads.shelf.transfers.list()[0].received_bytes, 5);
    uploads.finish(id, false).await.unwrap();
    assert_eq!(fs::read(home.path().join("up/w")).unwrap(), b"short");
}

#[tokio::test]
async fn uploads_and_their_files_are_bounded() {
    let home = tempfile::tempdir().unwrap();
    let uploads = open(&home, Limits { uploads: 1, upload_files: 2, ..limits() });
    let id = uploads.begin("up", 0, 0).await.unwrap();
    assert_eq!(uploads.begin("other", 0, 0).await.unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(staged(&uploads), 1);
    for path in ["a", "b", "a"] {
        uploads.write(id, path, None, whole(b"x")).await.unwrap();
    }
    assert_eq!(uploads.write(id, "c", None, whole(b"x")).await.unwrap_err().kind(), ErrorKind::TooLarge);
}

#[tokio::test]
async fn a_disk_that_fills_up_ends_the_file_not_the_node() {
    let home = tempfile::tempdir().unwrap();
    let mut uploads = open(&home, limits());
    let id = uploads.begin("up", 0, 0).await.unwrap();
    uploads.shelf.room = Room::new(home.path(), u64::MAX);
    let error = uploads.write(id, "w", None, whole(b"x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoom);
    assert_eq!(uploads.length(id, "w").await.unwrap(), 0);
    assert_eq!(uploads.shelf.transfers.list()[0].received_bytes, 0);
}

#[tokio::test]
async fn an_upload_goes_on_after_a_restart_and_other_leftovers_do_not() {
    let (home, uploads) = scene();
    let id = uploads.begin("up", 100, 2).await.unwrap();
    uploads.write(id, "done", None, whole(b"done")).await.unwrap();
    uploads.write(id, "w", None, cut(b"abc")).await.unwrap_err();
    drop(uploads);
    fs::create_dir_all(home.path().join(".tmp/pull-1/x")).unwrap();
    fs::create_dir_all(home.path().join(".tmp/upload-no-id")).unwrap();
    let uploads = open(&home, limits());
    assert_eq!(staged(&uploads), 1);
    let transfer = &uploads.shelf.transfers.list()[0];
    assert_eq!((transfer.id, transfer.received_bytes, transfer.total_bytes), (id, 7, Some(100)));
    assert_eq!(uploads.length(id, "w").await.unwrap(), 3);
    uploads.write(id, "w", Some(3), whole(b"def")).await.unwrap();
    uploads.finish(id, false).await.unwrap();
    assert_eq!(fs::read(home.path().join("up/w")).unwrap(), b"abcdef");
    assert_eq!(fs::read(home.path().join("up/done")).unwrap(), b"done");
}

#[tokio::test]
async fn an_upload_in_which_nothing_happens_is_given_up() {
    let home = tempfile::tempdir().unwrap();
    let mut uploads = open(&home, limits());
    let id = uploads.begin("up", 0, 0).await.unwrap();
    uploads.write(id, "w", None, whole(b"x")).await.unwrap();
    uploads.sweep().await.unwrap();
    assert_eq!(uploads.length(id, "w").await.unwrap(), 1);
    uploads.shelf.limits.upload_idle = Duration::ZERO;
    uploads.sweep().await.unwrap();
    assert_eq!(uploads.length(id, "w").await.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(staged(&uploads), 0);
    assert!(matches!(uploads.shelf.transfers.list()[0].state, TransferState::Error(_)));

    let uploads = open(&home, limits());
    uploads.begin("up", 0, 0).await.unwrap();
    drop(uploads);
    let uploads = open(&home, Limits { upload_idle: Duration::ZERO, ..limits() });
    assert_eq!((staged(&uploads), uploads.sessions().len()), (0, 0));
}

#[tokio::test]
async fn aborting_leaves_nothing() {
    let (_home, uploads) = scene();
    let id = uploads.begin("up", 0, 0).await.unwrap();
    uploads.write(id, "a/w", None, whole(b"x")).await.unwrap();
    uploads.write(id, "b", None, cut(b"x")).await.unwrap_err();
    uploads.abort(id).await.unwrap();
    uploads.abort(id).await.unwrap();
    assert_eq!((staged(&uploads), visible(&uploads).len()), (0, 0));
}

#[tokio::test]
async fn archives_of_each_kind_become_models() {
    let (home, uploads) = scene();
    let files: [(&str, &[u8]); 2] = [("m/config.json", b"{}"), ("m/w.safetensors", &[1; 5000])];
    let packed = gzip(&tar(&files)[..]);
    let zipped = zip(&[("m/config.json", 0o644, b"{}"), ("m/w.safetensors", 0o644, &[1; 5000])]);
    for (name, file_name, content) in
        [("a", "m.tar", tar(&files)), ("b", "m.tar.gz", packed.clone()), ("c", "m.tgz", packed), ("d", "m.zip", zipped)]
    {
        let declared = (name != "b").then_some(content.len() as u64);
        let arrived = uploads.archive(name, file_name, declared, whole(&content)).await.unwrap();
        assert_eq!((arrived.bytes, arrived.warnings.len()), (5002, 0));
        assert_eq!(fs::read(home.path().join(name).join("w.safetensors")).unwrap(), [1; 5000]);
    }
    assert_eq!(staged(&uploads), 0);
    assert!(uploads.shelf.transfers.list().iter().all(|transfer| matches!(transfer.state, TransferState::Done(_))));
}

#[tokio::test]
async fn an_archive_that_is_refused_leaves_nothing() {
    let home = tempfile::tempdir().unwrap();
    let archives = ArchiveLimits { ratio: 2, always: 1 << 20, entries: 10 };
    let uploads = open(&home, Limits { archives, ..limits() });
    let evil = tar_with(|builder| {
        member(builder, "good", tar::EntryType::Regular, "", b"x");
        member(builder, "way", tar::EntryType::Symlink, "/etc", b"");
        member(builder, "way/evil", tar::EntryType::Regular, "", b"x");
    });
    let bomb = gzip(&tar(&[("zeros", &[0; 3 << 20])])[..]);
    let good = tar(&[("good", b"x")]);
    let cases: [(&str, &str, &[u8], ErrorKind); 7] = [
        ("m", "m.tar", &evil, ErrorKind::Invalid),
        ("m", "m.zip", &zip(&[("/abs", 0o644, b"x")]), ErrorKind::Invalid),
        ("m", "m.tgz", &bomb, ErrorKind::TooLarge),
        ("m", "m.tar", b"no tar at all", ErrorKind::Invalid),
        ("m", "m.rar", &good, ErrorKind::Invalid),
        ("-m", "m.tar", &good, ErrorKind::Invalid),
        ("m", "m.zip", &good, ErrorKind::Invalid),
    ];
    for (name, file_name, content, kind) in cases {
        let error = uploads.archive(name, file_name, None, whole(content)).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{file_name}: {error}");
    }
    for file_name in ["m.tar", "m.zip"] {
        let error = uploads.archive("m", file_name, None, cut(&good[..700])).await.unwrap_err();
        assert!(matches!(error, FilesError::BrokenOff), "{file_name}: {error}");
    }
    let error = uploads.archive("m", "m.tar", Some(u64::MAX / 4), whole(&good)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRoom);
    fs::create_dir(home.path().join("taken")).unwrap();
    let error = uploads.archive("taken", "m.tar", None, whole(&good)).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!((staged(&uploads), visible(&uploads)), (0, vec!["taken".to_owned()]));
}

#[tokio::test]
async fn an_archive_whose_request_is_dropped_leaves_nothing() {
    let (_home, uploads) = scene();
    let good = tar(&[("good", &[1; 100_000])]);
    let asked = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&asked);
    let started = stream::iter([Ok::<_, Infallible>(Bytes::from(good[..50_000].to_vec()))]);
    let silent = stream::poll_fn(move |_| {
        seen.store(true, Ordering::Relaxed);
        std::task::Poll::<Option<Result<Bytes, Infallible>>>::Pending
    });
    let receiving = tokio::spawn({
        let uploads = uploads.clone();
        async move { uploads.archive("m", "m.tar", None, started.chain(silent)).await }
    });
    until("the stream has been read so far", || asked.load(Ordering::Relaxed) && staged(&uploads) == 1).await;
    receiving.abort();
    until("nothing is left", || staged(&uploads) == 0).await;
    assert!(visible(&uploads).is_empty());
    until("it is told of", || matches!(uploads.shelf.transfers.list()[0].state, TransferState::Error(_))).await;
}

#[tokio::test]
async fn only_so_many_archives_are_received_at_once() {
    let home = tempfile::tempdir().unwrap();
    let uploads = open(&home, Limits { archives_at_once: 0, ..limits() });
    let error = uploads.archive("m", "m.tar", None, whole(b"x")).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
}
