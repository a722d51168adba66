use std::io::{Cursor, Read};
use std::path::PathBuf;

use tar::EntryType;
use tempfile::TempDir;

use super::super::error::ErrorKind;
use super::super::measure::{Measure, measure};
use super::samples::{gzip, member, renamed, tar, tar_with, zip};
use super::*;

/// A directory to unpack into, inside another one in which nothing may appear.
struct Scene {
    home: TempDir,
    into: PathBuf,
}

impl Scene {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let into = home.path().join("a/b/into");
        fs::create_dir_all(&into).unwrap();
        Self { home, into }
    }

    fn bounds(&self, limits: ArchiveLimits) -> Bounds {
        Bounds { limits, packed: None, room: Room::new(self.home.path(), 0), cancel: CancellationToken::new() }
    }

    fn unpack(&self, archive: &[u8], kind: ArchiveKind, limits: ArchiveLimits) -> Result<(), FilesError> {
        let bounds = self.bounds(limits);
        match kind {
            ArchiveKind::Zip => {
                let file = tempfile::NamedTempFile::new().unwrap();
                fs::write(file.path(), archive).unwrap();
                unpack_file(file.path(), kind, &self.into, &bounds)
            }
            _ => unpack_tar(Cursor::new(archive), kind == ArchiveKind::TarGz, &self.into, &bounds),
        }
    }

    fn refuse(archive: &[u8], kind: ArchiveKind) -> String {
        let scene = Self::new();
        let error = scene.unpack(archive, kind, ArchiveLimits::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        let outside = walkdir::WalkDir::new(scene.home.path()).into_iter().filter_map(Result::ok);
        let outside = outside.filter(|entry| !entry.path().starts_with(&scene.into)).count();
        assert_eq!(outside, 3, "something was made outside");
        error.to_string()
    }
}

#[test]
fn the_end_of_a_name_says_how_an_archive_is_packed() {
    for (name, kind) in [
        ("m.tar", Some(ArchiveKind::Tar)),
        ("m.tar.gz", Some(ArchiveKind::TarGz)),
        ("M.TGZ", Some(ArchiveKind::TarGz)),
        ("x.zip", Some(ArchiveKind::Zip)),
        ("m.gz", None),
        ("tar", None),
        ("m.gguf", None),
        ("ü.rar", None),
    ] {
        assert_eq!(ArchiveKind::of(name), kind, "{name}");
    }
}

#[test]
fn honest_archives_of_each_kind_come_out_whole() {
    let files: [(&str, &[u8]); 3] = [("m/config.json", b"{}"), ("m/sub/w.bin", &[7; 300_000]), ("m/empty", b"")];
    let plain = tar(&files);
    let zipped = zip(&[
        ("m/", 0o755, b""),
        ("m/config.json", 0o644, b"{}"),
        ("m/sub/w.bin", 0o644, &[7; 300_000]),
        ("m/empty", 0, b""),
    ]);
    for (archive, kind) in
        [(gzip(&plain[..]), ArchiveKind::TarGz), (plain, ArchiveKind::Tar), (zipped, ArchiveKind::Zip)]
    {
        let scene = Scene::new();
        scene.unpack(&archive, kind, ArchiveLimits::default()).unwrap();
        let root = without_single_root(&scene.into).unwrap();
        assert_eq!(root, scene.into.join("m"));
        assert_eq!(fs::read(root.join("config.json")).unwrap(), b"{}");
        assert_eq!(fs::read(root.join("sub/w.bin")).unwrap(), [7; 300_000]);
        assert_eq!(measure(&scene.into), Measure { bytes: 300_002, files: 3 });
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(root.join("empty")).unwrap().permissions());
        assert_eq!(mode & 0o7111, 0, "modes of an archive are not taken over");
    }
}

#[test]
fn an_archive_of_the_current_directory_and_one_by_git_are_honest() {
    let archive = tar_with(|builder| {
        member(builder, "pax_global_header", EntryType::XGlobalHeader, "", b"18 comment=abcdef\n");
        member(builder, "./", EntryType::Directory, "", b"");
        member(builder, "./config.json", EntryType::Regular, "", b"{}");
        member(builder, "./sub/", EntryType::Directory, "", b"");
        member(builder, "./sub/x", EntryType::Regular, "", b"x");
    });
    let scene = Scene::new();
    scene.unpack(&archive, ArchiveKind::Tar, ArchiveLimits::default()).unwrap();
    assert_eq!(without_single_root(&scene.into).unwrap(), scene.into);
    assert_eq!(fs::read(scene.into.join("sub/x")).unwrap(), b"x");
}

#[test]
fn names_longer_than_a_header_come_out_whole() {
    let name = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let archive = tar_with(|builder| {
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_entry_type(EntryType::Regular);
        builder.append_data(&mut header, &name, &b"x"[..]).unwrap();
    });
    let scene = Scene::new();
    scene.unpack(&archive, ArchiveKind::Tar, ArchiveLimits::default()).unwrap();
    assert_eq!(fs::read(scene.into.join(name)).unwrap(), b"x");
}

#[test]
fn names_that_lead_outside_are_refused() {
    for name in ["../x", "/x", "a/../../x", "a/../b", "c:x", "a\\b", "..", "a/./b", "a//b", "x\u{1}", "./../x"] {
        Scene::refuse(&tar(&[("good", b"x"), (name, b"evil")]), ArchiveKind::Tar);
        Scene::refuse(&gzip(&tar(&[(name, b"evil")])[..]), ArchiveKind::TarGz);
        let placeholder = "Q".repeat(name.len());
        let zipped = zip(&[("good", 0o644, b"x"), (&placeholder, 0o644, b"evil")]);
        Scene::refuse(&renamed(zipped, &placeholder, name), ArchiveKind::Zip);
    }
    let deep = ["d"; 33].join("/");
    Scene::refuse(&tar(&[(&deep, b"x")]), ArchiveKind::Tar);
    let said = Scene::refuse(&tar(&[("../x", b"evil")]), ArchiveKind::Tar);
    assert!(said.contains("\"../x\""), "{said}");
}

#[test]
fn links_and_devices_are_refused_and_nothing_goes_through_them() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    for (kind, link) in [
        (EntryType::Symlink, target),
        (EntryType::Symlink, "../../.."),
        (EntryType::Symlink, "inside"),
        (EntryType::Link, "/etc/passwd"),
        (EntryType::Link, "inside"),
        (EntryType::Char, ""),
        (EntryType::Block, ""),
        (EntryType::Fifo, ""),
        (EntryType::new(b'V'), ""),
    ] {
        let archive = tar_with(|builder| {
            member(builder, "inside", EntryType::Regular, "", b"x");
            member(builder, "way", kind, link, b"");
            member(builder, "way/evil", EntryType::Regular, "", b"evil");
        });
        Scene::refuse(&archive, ArchiveKind::Tar);
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }
    let link = zip(&[("way", 0o120_777, target.as_bytes()), ("way/evil", 0o644, b"evil")]);
    assert!(Scene::refuse(&link, ArchiveKind::Zip).contains("link"));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}

#[test]
fn a_name_that_comes_twice_or_leads_through_a_file_is_refused() {
    Scene::refuse(&tar(&[("a", b"1"), ("a", b"2")]), ArchiveKind::Tar);
    Scene::refuse(&tar(&[("a", b"1"), ("./a", b"2")]), ArchiveKind::Tar);
    Scene::refuse(&tar(&[("a", b"1"), ("a/b", b"2")]), ArchiveKind::Tar);
    Scene::refuse(&tar(&[("a/b", b"1"), ("a", b"2")]), ArchiveKind::Tar);
    let twice = zip(&[("aa", 0o644, b"1"), ("bb", 0o644, b"2")]);
    Scene::refuse(&renamed(twice, "bb", "aa"), ArchiveKind::Zip);
}

#[test]
fn what_is_no_archive_or_an_empty_one_is_refused() {
    for kind in [ArchiveKind::Tar, ArchiveKind::TarGz, ArchiveKind::Zip] {
        Scene::refuse(&[b'x'; 2000], kind);
        Scene::refuse(b"", kind);
    }
    Scene::refuse(&tar(&[]), ArchiveKind::Tar);
    Scene::refuse(&zip(&[("m/", 0o755, b"")]), ArchiveKind::Zip);
    let whole = tar(&[("a", &[1; 10_000])]);
    Scene::refuse(&whole[..5000], ArchiveKind::Tar);
    let packed = gzip(&whole[..]);
    Scene::refuse(&packed[..packed.len() - 4], ArchiveKind::TarGz);
    let mut spoiled = packed;
    let checksum = spoiled.len() - 6;
    spoiled[checksum] ^= 1;
    Scene::refuse(&spoiled, ArchiveKind::TarGz);
}

/// Ten gigabytes of zeros as a tar, without the memory for them.
fn zeros(length: u64) -> impl Read {
    let mut header = tar::Header::new_gnu();
    header.set_path("zeros").unwrap();
    header.set_entry_type(EntryType::Regular);
    header.set_size(length);
    header.set_cksum();
    Cursor::new(header.as_bytes().to_vec()).chain(std::io::repeat(0).take(length + 1024))
}

#[test]
fn ten_gigabytes_of_zeros_stop_before_anything_is_written() {
    let bomb = gzip(zeros(10 << 30).take(256 << 20));
    assert!(bomb.len() < 4 << 20);
    let scene = Scene::new();
    let bounds = Bounds { packed: Some(bomb.len() as u64), ..scene.bounds(ArchiveLimits::default()) };
    let error = unpack_tar(&bomb[..], true, &scene.into, &bounds).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert_eq!(measure(&scene.into).bytes, 0);

    // Nobody has said how large the archive is: what has come of it is what counts.
    let scene = Scene::new();
    let limits = ArchiveLimits { always: 8 << 20, ..ArchiveLimits::default() };
    let error = scene.unpack(&bomb, ArchiveKind::TarGz, limits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    assert!(measure(&scene.into).bytes <= 8 << 20);
}

#[test]
fn a_plain_archive_of_unknown_size_may_be_large() {
    let limits = ArchiveLimits { ratio: 1, always: 0, entries: 10 };
    let scene = Scene::new();
    scene.unpack(&tar(&[("w.bin", &[1; 3 << 20])]), ArchiveKind::Tar, limits).unwrap();
    assert_eq!(measure(&scene.into).bytes, 3 << 20);
}

#[test]
fn zeros_in_many_files_stop_at_the_limit() {
    let limits = ArchiveLimits { ratio: 2, always: 1 << 20, entries: 1000 };
    let part = vec![0; 300 << 10];
    let names: Vec<String> = (0..40).map(|n| format!("m/{n}")).collect();
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), &part[..])).collect();
    let zipped: Vec<(&str, u32, &[u8])> = files.iter().map(|(name, content)| (*name, 0o644, *content)).collect();
    for (archive, kind) in [(gzip(&tar(&files)[..]), ArchiveKind::TarGz), (zip(&zipped), ArchiveKind::Zip)] {
        let scene = Scene::new();
        let error = scene.unpack(&archive, kind, limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
        assert!(measure(&scene.into).bytes <= 1 << 20);
    }
}

#[test]
fn zeros_after_the_end_and_in_headers_stop_too() {
    let limits = ArchiveLimits { ratio: 2, always: 4 << 20, entries: 1000 };
    let tail = gzip(Cursor::new(tar(&[("a", b"x")])).chain(std::io::repeat(0).take(100 << 20)));
    let error = Scene::new().unpack(&tail, ArchiveKind::TarGz, limits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");

    let mut header = tar::Header::new_gnu();
    header.set_path("././@LongLink").unwrap();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(3 << 20);
    header.set_cksum();
    let name = gzip(Cursor::new(header.as_bytes().to_vec()).chain(std::io::repeat(b'x').take(3 << 20)));
    let error = Scene::new().unpack(&name, ArchiveKind::TarGz, limits).unwrap_err();
    assert!(error.to_string().contains("headers"), "{error}");
}

#[test]
fn too_many_members_are_refused_the_directories_above_them_counted() {
    let limits = ArchiveLimits { entries: 20, ..ArchiveLimits::default() };
    let deep = format!("{}/f", ["d"; 25].join("/"));
    let many: Vec<String> = (0..21).map(|n| n.to_string()).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|name| (name.as_str(), &b""[..])).collect();
    let zipped: Vec<(&str, u32, &[u8])> = many.iter().map(|(name, content)| (*name, 0o644, *content)).collect();
    for (archive, kind) in
        [(tar(&[(&deep, b"x")]), ArchiveKind::Tar), (tar(&many), ArchiveKind::Tar), (zip(&zipped), ArchiveKind::Zip)]
    {
        let error = Scene::new().unpack(&archive, kind, limits).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TooLarge, "{error}");
    }
}

#[test]
fn unpacking_ends_when_it_is_cancelled() {
    let scene = Scene::new();
    let bounds = scene.bounds(ArchiveLimits::default());
    bounds.cancel.cancel();
    let outcome = unpack_tar(Cursor::new(tar(&[("a", b"x")])), false, &scene.into, &bounds);
    assert!(matches!(outcome, Err(FilesError::Cancelled)));
}
