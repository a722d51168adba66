//! Models that come as one archive.

use std::collections::BTreeMap;
use std::io::{Cursor, Read, Write};

use flate2::Compression;
use flate2::write::GzEncoder;
use muster_tests::process::wait_for;
use serde_json::json;
use tar::{EntryType, Header};
use zip::write::SimpleFileOptions;

use super::{SOON, Site, content, files};

fn member(builder: &mut tar::Builder<Vec<u8>>, name: &str, kind: EntryType, link: &str, content: &[u8]) {
    let mut header = Header::new_gnu();
    // As no honest program would write them.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(0o644);
    header.set_size(content.len() as u64);
    header.set_cksum();
    builder.append(&header, content).expect("appends");
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        member(&mut builder, name, EntryType::Regular, "", content);
    }
    builder.into_inner().expect("a tar")
}

fn special(name: &str, kind: EntryType, link: &str) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    member(&mut builder, "config.json", EntryType::Regular, "", b"{}");
    member(&mut builder, name, kind, link, b"");
    builder.into_inner().expect("a tar")
}

fn gzip(mut content: impl Read) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    std::io::copy(&mut content, &mut encoder).expect("packs");
    encoder.finish().expect("packed")
}

fn zip(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        writer.start_file(*name, SimpleFileOptions::default()).expect("a member");
        writer.write_all(content).expect("its content");
    }
    writer.finish().expect("a zip").into_inner()
}

/// A tar.gz of one file of zeros, made without them.
fn bomb(zeros: u64) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_path("zeros.safetensors").expect("a name");
    header.set_mode(0o644);
    header.set_size(zeros);
    header.set_cksum();
    gzip((&header.as_bytes()[..]).chain(std::io::repeat(0).take(zeros + 1024)))
}

/// E-143
#[test]
fn an_archive_becomes_a_model_through_any_node() {
    let site = Site::new();
    let weights = content(2 << 20, 5);
    let members: [(&str, &[u8]); 3] =
        [("m-1.0/config.json", b"{}"), ("m-1.0/model.safetensors", &weights), ("m-1.0/sub/deep/x", b"x")];
    let expected: BTreeMap<_, _> = members
        .iter()
        .map(|(name, content)| (name.strip_prefix("m-1.0/").expect("below").to_owned(), content.to_vec()))
        .collect();
    let plain = tar(&members);
    for (number, (through, caller)) in site.callers().into_iter().enumerate() {
        for (kind, file_name, archive) in [
            ("tar", "m.tar", plain.clone()),
            ("targz", "m.tar.gz", gzip(&plain[..])),
            ("tgz", "M.TGZ", gzip(&plain[..])),
            ("zip", "m.zip", zip(&members)),
        ] {
            let name = format!("{kind}-{number}");
            let arrived = caller.archive(&name, file_name, &archive).expect(200).body;
            let place = site.models().join(&name);
            assert_eq!((&arrived["name"], &arrived["path"]), (&json!(name), &json!(place)));
            assert_eq!(arrived["warnings"], json!([]));
            assert!(files(&place) == expected, "{kind} through {through}: other content");
            assert!(caller.local().contains_key(&name));
            caller.archive(&name, file_name, &archive).is_error(409, "CONFLICT");
        }
        let transfers = caller.get("local-models/transfers").expect(200).body;
        let archives = transfers.as_array().expect("a list").iter().filter(|transfer| transfer["kind"] == "archive");
        assert!(archives.clone().count() >= 4 && archives.clone().all(|transfer| transfer["status"] == "done"));
        let odd = caller.archive(&format!("odd-{number}"), "odd.zip", &zip(&[("readme", b"x")])).expect(200).body;
        assert_eq!(odd["warnings"].as_array().map(Vec::len), Some(2), "{odd}");
    }
    site.is_clean();
}

/// E-143
#[test]
fn a_wicked_archive_is_refused_and_nothing_of_it_is_left() {
    let site = Site::new();
    let slip = {
        let mut archive = zip(&[("config.json", b"{}"), ("QQQQ/evil", b"x")]);
        while let Some(at) = archive.windows(4).position(|window| window == b"QQQQ") {
            archive[at..at + 4].copy_from_slice(b"../.");
        }
        archive
    };
    let cases: [(&str, &str, Vec<u8>, u16); 13] = [
        ("a name that leads up", "e.tar", tar(&[("config.json", b"{}"), ("../evil", b"x")]), 400),
        ("a name that leads up, packed", "e.tgz", gzip(&tar(&[("a/../../evil", b"x")])[..]), 400),
        ("an absolute name", "e.tar", tar(&[("/tmp/muster-evil", b"x")]), 400),
        ("a symbolic link", "e.tar", special("evil", EntryType::Symlink, "/etc/passwd"), 400),
        ("a hard link", "e.tar", special("evil", EntryType::Link, "/etc/passwd"), 400),
        ("a device", "e.tar", special("evil", EntryType::Char, ""), 400),
        ("a pipe", "e.tar", special("evil", EntryType::Fifo, ""), 400),
        ("a name twice", "e.tar", tar(&[("a", b"x"), ("a", b"y")]), 400),
        ("a zip that leads up", "e.zip", slip, 400),
        ("no archive", "e.tar.gz", content(10_000, 1), 400),
        ("half an archive", "e.zip", zip(&[("a", &content(10_000, 2))])[..5000].to_vec(), 400),
        ("no name of an archive", "e.rar", tar(&[("a", b"x")]), 400),
        ("300 MiB of zeros", "e.tar.gz", bomb(300 << 20), 413),
    ];
    for (what, file_name, archive, expected) in &cases {
        for (through, caller) in site.callers() {
            let answer = caller.archive("evil", file_name, archive);
            assert_eq!(answer.status, *expected, "{what} through {through}: {answer}");
            assert!(caller.local().is_empty(), "{what} through {through}");
        }
        site.is_clean();
    }
    for bad in ["name=..&filename=e.tar", "name=a%2Fb&filename=e.tar"] {
        site.other().send("POST", &format!("local-models/archive?{bad}"), "x").is_error(400, "BAD_REQUEST");
    }
    site.other().send("POST", "local-models/archive?name=m", "x").names(&["filename"]);
    site.other().send("POST", "local-models/archive", "x").names(&["name"]);
    assert!(!site.models().join("evil").exists() && !std::path::Path::new("/tmp/muster-evil").exists());
}

#[test]
fn an_archive_that_is_cut_leaves_nothing() {
    let site = Site::new();
    let weights = content(4 << 20, 5);
    let (plain, packed) = (tar(&[("config.json", b"{}"), ("w", &weights)]), zip(&[("w", &weights)]));
    for (through, caller) in site.callers() {
        for (file_name, archive) in [("m.tar", &plain), ("m.zip", &packed)] {
            let half = archive.len() / 2;
            let path = format!("local-models/archive?name=cut&filename={file_name}");
            let headers = format!("content-length: {}\r\n", archive.len());
            let cut = caller.begin_request("POST", &path, &headers, &archive[..half]);
            wait_for(SOON, "half of it to come", || {
                let transfers = caller.get("local-models/transfers").expect(200).body;
                let last = transfers.as_array()?.iter().rfind(|transfer| transfer["name"] == "cut")?.clone();
                (last["status"] == "downloading" && last["received_bytes"] == json!(half)).then_some(())
            });
            drop(cut);
            wait_for(SOON, "the transfer to fail", || {
                let transfers = caller.get("local-models/transfers").expect(200).body;
                let own = transfers.as_array()?.iter().rfind(|transfer| transfer["name"] == "cut")?.clone();
                (own["status"] == "error").then_some(())
            });
            site.is_clean();
            assert!(caller.local().is_empty(), "{file_name} through {through}");
        }
    }
}
