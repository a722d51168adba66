use std::convert::Infallible;
use std::fs;
use std::path::Path;

use bytes::Bytes;
use futures_util::stream;

use super::testing::Running;
use super::*;

fn config(home: &Path) -> FilesConfig {
    FilesConfig {
        hf_home: home.join("hf"),
        models: home.join("models"),
        model_directories: vec![home.join("shared")],
        packages: home.join("packages"),
        pulls: PullPolicy::default(),
        limits: Limits { keep_free: 0, ..Limits::default() },
    }
}

async fn open(home: &Path, in_use: Running) -> Files {
    Files::open(config(home), Arc::new(in_use)).await.unwrap()
}

#[tokio::test]
async fn an_uploaded_model_is_listed_checked_and_deleted() {
    let home = tempfile::tempdir().unwrap();
    let files = open(home.path(), Running::default()).await;
    let id = files.uploads.begin("up", 4, 1).await.unwrap();
    let content = || stream::iter([Ok::<_, Infallible>(Bytes::from_static(b"gguf"))]);
    files.uploads.write(id, "m.gguf", None, content()).await.unwrap();
    assert!(files.local.list().await.unwrap().models.is_empty());
    assert_eq!((files.transfers()[0].id, files.transfers()[0].state.name()), (id, "downloading"));
    let arrived = files.uploads.finish(id, false).await.unwrap();
    let listing = files.local.list().await.unwrap();
    assert_eq!((listing.models[0].path.clone(), listing.models[0].bytes), (arrived.path.clone(), 4));
    assert_eq!(
        files.local.check(arrived.path).await.unwrap(),
        fs::canonicalize(home.path().join("models/up/m.gguf")).unwrap()
    );
    assert_eq!(files.disk_usage().await.unwrap().hf_cache, 0);
    files.local.delete(arrived.name).await.unwrap();
    assert!(files.local.list().await.unwrap().models.is_empty());
}

#[tokio::test]
async fn opening_again_sweeps_leftovers_and_keeps_models() {
    let home = tempfile::tempdir().unwrap();
    for leftover in ["models/.tmp/archive-1", "packages/.tmp/package-1", "hf/hub/.muster-deleted-1", "models/m"] {
        fs::create_dir_all(home.path().join(leftover)).unwrap();
    }
    let files = open(home.path(), Running::default()).await;
    for staging in ["models/.tmp", "packages/.tmp", "hf/hub"] {
        assert_eq!(fs::read_dir(home.path().join(staging)).unwrap().count(), 0, "{staging}");
    }
    assert_eq!(files.local.list().await.unwrap().models.len(), 1);
}

/// Holding a file of 256 MiB in memory would show in the peak of this process, which runs nothing else.
#[tokio::test]
async fn a_large_upload_does_not_go_through_memory() {
    fn peak_kib() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
    let home = tempfile::tempdir().unwrap();
    let files = open(home.path(), Running::default()).await;
    let id = files.uploads.begin("up", 256 << 20, 1).await.unwrap();
    let before = peak_kib();
    let content = stream::unfold(0, |sent| async move {
        (sent < 256).then(|| (Ok::<_, Infallible>(Bytes::from(vec![sent as u8; 1 << 20])), sent + 1))
    });
    let received = files.uploads.write(id, "w.bin", None, content).await.unwrap();
    assert_eq!(received.length, 256 << 20);
    assert!(peak_kib() - before < 64 << 10, "it took {} KiB", peak_kib() - before);
    files.uploads.abort(id).await.unwrap();
}
