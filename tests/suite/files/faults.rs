//! What goes wrong with nodes and disks, who may do what, and what it costs.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

use muster_tests::api::{Api, send};
use muster_tests::fleet::Node;
use muster_tests::groups::Need;
use muster_tests::mesh::{Machine, Mesh};
use muster_tests::small_disk::SmallDisk;
use serde_json::{Value, json};

use super::{Caller, Site, content, files, status};

/// Every call, with a body that makes sense.
fn calls() -> Vec<(&'static str, &'static str, Option<Value>)> {
    let session = "67e55044-10b1-426f-9247-bb680e5fe0c8";
    let upload = |rest: &str| &*Box::leak(format!("local-models/upload/{session}/{rest}").into_boxed_str());
    vec![
        ("GET", "models/cache", None),
        ("DELETE", "models/cache/org/m", None),
        ("GET", "local-models", None),
        ("DELETE", "local-models/m", None),
        ("POST", "local-models/pull", Some(json!({"url": "http://192.0.2.1/m"}))),
        ("GET", "local-models/transfers", None),
        ("DELETE", "local-models/transfers/67e55044-10b1-426f-9247-bb680e5fe0c8", None),
        ("POST", "local-models/upload/begin", Some(json!({"name": "m"}))),
        ("PUT", upload("file?path=f"), Some(json!("content"))),
        ("GET", upload("file?path=f"), None),
        ("POST", upload("finish"), Some(json!({}))),
        ("POST", upload("abort"), None),
        ("POST", "local-models/archive?name=m&filename=m.tar", Some(json!("content"))),
        ("GET", "packages", None),
        ("DELETE", "packages/0123456789abcdef", None),
    ]
}

fn call(
    api: &Api,
    node: &str,
    (method, path, body): &(&'static str, &'static str, Option<Value>),
) -> muster_tests::api::Answer {
    let request = api.request(method, &format!("/api/nodes/{node}/{path}"));
    send(match body {
        Some(body) => request.json(body),
        None => request,
    })
}

#[test]
fn a_node_that_is_unknown_or_silent_is_said_to_be_so() {
    let mut site = Site::new();
    let api = site.mesh.api(0);
    for each in &calls() {
        call(&api, "9", each).is_error(404, "NOT_FOUND");
        call(&api, "x", each).is_error(422, "UNPROCESSABLE_ENTITY");
    }
    // Both vote: without the second nobody leads, and files need nobody to.
    site.mesh.machines[1].kill();
    for each in &calls() {
        let answer = call(&api, "2", each);
        answer.is_error(502, "NODE_UNREACHABLE");
        assert!(answer.body["detail"].as_str().is_some_and(|detail| detail.contains("node 2")), "{answer}");
    }
    assert_eq!(site.caller().get("local-models").expect(200).body, json!([]));
}

#[test]
fn viewers_look_and_operators_work_with_files() {
    let site = Site::new();
    let admin = site.mesh.api(0);
    let with_role = |role: &str| {
        let made = admin.post("/api/credentials", &json!({"kind": "console", "label": role, "role": role})).expect(201);
        site.mesh.api(1).with_key(made.body["key"].as_str().expect("a key"))
    };
    let (operator, viewer) = (with_role("operator"), with_role("viewer"));
    for each in &calls() {
        let stranger = call(&viewer.with_key("wrong"), "1", each);
        stranger.is_error(401, "UNAUTHORIZED");
        let looked = call(&viewer, "1", each);
        assert_eq!(looked.status == 403, each.0 != "GET", "{each:?}: {looked}");
        assert!(!matches!(call(&operator, "1", each).status, 401 | 403), "{each:?}");
    }
}

/// E-139
#[test]
fn a_full_disk_ends_an_upload_cleanly_and_it_goes_on_when_there_is_room() {
    if !Need::Mounts.is_met("files") {
        return;
    }
    let disk = SmallDisk::new(24);
    let mut machines: Vec<_> = (0..2).map(|_| Machine::on_loopback()).collect();
    for machine in &mut machines {
        machine.variables.push(("MUSTER_KEEP_FREE", "1048576".into()));
    }
    let mut mesh = Mesh::of(machines);
    // From now on the first node's models lie on the small disk, which it alone sees.
    mesh.machines[0].stop();
    let models = mesh.machines[0].home.data().join("models");
    fs::remove_dir_all(&models).expect("the node's own");
    symlink(disk.inside(), &models).expect("a link");
    let mut command = disk.enter(&mesh.command(0, &[]));
    mesh.machines[0].node = Some(Node::start_command(&mesh.machines[0].home, &mut command));
    mesh.ready();
    let left = |what: &str| {
        let found: Vec<_> = files(disk.path()).into_keys().filter(|path| path.contains(what)).collect();
        found
    };
    for (through, caller) in [("itself", Caller(mesh.api(0))), ("another", Caller(mesh.api(1)))] {
        // What is said to come does not fit.
        let begin = |total: u64| caller.post("local-models/upload/begin", &json!({"name": "m", "total_bytes": total}));
        muster_tests::process::wait_for(super::SOON, "the node to work with its files", || {
            (caller.get("local-models").status == 200).then_some(())
        });
        begin(24 << 20).is_error(507, "INSUFFICIENT_STORAGE");
        caller.archive("m", "m.tar", &content(13 << 20, 1)).is_error(507, "INSUFFICIENT_STORAGE");
        assert!(left("").is_empty(), "{through}: {:?}", left(""));
        // More comes than was said.
        let begun = begin(1 << 20).expect(200).body;
        let session = begun["session_id"].as_str().expect("an id");
        let _ = caller.write(session, "config.json", "{}").expect(200);
        let answer = caller.write(session, "w.bin", content(40 << 20, 2));
        answer.is_error(507, "INSUFFICIENT_STORAGE");
        assert!(left("w.bin").is_empty(), "{through}: what did not fit is gone");
        // The node goes on, and so does the upload.
        assert_eq!(caller.length(session, "w.bin").expect(200).body["length"], 0);
        disk.grow(128);
        let _ = caller.write(session, "w.bin", content(40 << 20, 2)).expect(200);
        let _ = caller.finish(session).expect(200);
        assert_eq!(caller.delete("local-models/m").expect(200).body["status"], "deleted");
        disk.grow(24);
        assert!(left("").is_empty(), "{through}: {:?}", left(""));
    }
}

fn memory(process: u32, field: &str) -> u64 {
    let said = fs::read_to_string(format!("/proc/{process}/status")).expect("the status of a process");
    let line = said.lines().find_map(|line| line.strip_prefix(field)).expect("its memory");
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
}

/// How much an upload of 256 MiB, and an archive of it, may take of a node's memory.
const EXTRA: u64 = 64 << 20;

#[test]
fn a_large_upload_passes_through_nodes_without_filling_their_memory() {
    let site = Site::new();
    let processes: Vec<_> =
        site.mesh.machines.iter().map(|machine| machine.node.as_ref().expect("is running").id()).collect();
    let before: Vec<_> = processes.iter().map(|process| memory(*process, "VmRSS")).collect();
    let piece = content(1 << 20, 13);
    let total = 256_u64 << 20;
    let session = site.other().begin("large");
    let path = format!("local-models/upload/{session}/file?path=w.bin");
    let begun = std::time::Instant::now();
    let mut stream = site.other().begin_request("PUT", &path, &format!("content-length: {total}\r\n"), b"");
    for _ in 0..256 {
        stream.write_all(&piece).expect("takes it");
    }
    assert_eq!(status(stream), 200);
    println!("256 MiB through a node to another in {:?}", begun.elapsed());
    for (process, before) in processes.iter().zip(before) {
        let extra = memory(*process, "VmHWM").saturating_sub(before);
        println!("{} MiB more than before", extra >> 20);
        assert!(extra < EXTRA, "{extra} bytes more");
    }
    let arrived = site.other().finish(&session).expect(200).body;
    assert_eq!(arrived["size_bytes"], json!(total));
    let kept = fs::read(site.models().join("large/w.bin")).expect("a file");
    assert!(kept.chunks(piece.len()).all(|chunk| chunk == piece), "other bytes");
}

#[test]
fn who_waits_to_be_told_to_send_is_told_so_only_when_it_is_wanted() {
    let site = Site::new();
    for (through, caller) in site.callers() {
        let session = caller.begin("told");
        let path = format!("local-models/upload/{session}/file?path=f");
        let expect = "expect: 100-continue\r\ncontent-length: 5\r\n";
        let unwanted = path.replace(&session, "67e55044-10b1-426f-9247-bb680e5fe0c8");
        // Another node asks for the content before it knows whether it is wanted.
        if through == "itself" {
            assert_eq!(status(caller.begin_request("PUT", &unwanted, expect, b"")), 404);
        }
        let mut wanted = caller.begin_request("PUT", &path, expect, b"");
        let mut line = String::new();
        let mut reader = std::io::BufReader::new(wanted.try_clone().expect("a clone"));
        std::io::BufRead::read_line(&mut reader, &mut line).expect("an answer");
        assert_eq!(line, "HTTP/1.1 100 Continue\r\n");
        wanted.write_all(b"12345").expect("takes it");
        for expected in ["\r\n", "HTTP/1.1 200 OK\r\n"] {
            line.clear();
            std::io::BufRead::read_line(&mut reader, &mut line).expect("an answer");
            assert_eq!(line, expected);
        }
        assert_eq!(caller.length(&session, "f").expect(200).body["length"], 5);
        let _ = caller.post(&format!("local-models/upload/{session}/abort"), &json!({})).expect(200);
    }
    site.is_clean();
}
