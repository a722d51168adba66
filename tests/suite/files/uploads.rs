//! Uploads file by file.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;

use muster_tests::api::send;
use muster_tests::fleet::PATIENCE;
use muster_tests::process::wait_for;
use serde_json::{Value, json};

use super::{SOON, Site, content, files, status};

/// E-135, E-136, E-138, E-139, E-140, E-141
#[test]
fn a_model_that_is_uploaded_through_any_node_is_seen_once_it_is_finished() {
    let site = Site::new();
    let sent = BTreeMap::from([
        ("config.json".to_owned(), b"{}".to_vec()),
        ("model.safetensors".to_owned(), content(3 << 20, 1)),
        ("sub/more/a b.bin".to_owned(), content(70_000, 2)),
        ("empty".to_owned(), Vec::new()),
    ]);
    for (number, (through, caller)) in site.callers().into_iter().enumerate() {
        let name = format!("up-{number}");
        let total: usize = sent.values().map(Vec::len).sum();
        let asked = json!({"name": name, "total_bytes": total, "file_count": sent.len()});
        let begun = caller.post("local-models/upload/begin", &asked).expect(200).body;
        let session = begun["session_id"].as_str().expect("an id");
        for (path, content) in &sent {
            let written = caller.write(session, &path.replace(' ', "%20"), content.clone()).expect(200).body;
            assert_eq!(written, json!({"status": "ok", "received_bytes": content.len(), "length": content.len()}));
        }
        let transfers = caller.get("local-models/transfers").expect(200).body;
        let under_way = |transfer: &&Value| transfer["id"].as_str() == Some(session);
        let transfer = transfers.as_array().expect("a list").iter().find(under_way).expect("it is told of");
        assert_eq!(
            *transfer,
            json!({"id": session, "kind": "upload", "name": name, "status": "downloading", "total_bytes": total,
                "received_bytes": total, "error": null, "path": null})
        );
        assert!(!caller.local().contains_key(&name), "half of it is seen through {through}");
        let arrived = caller.finish(session).expect(200).body;
        let place = site.models().join(&name);
        let size_mb = (total as f64 / 1_048_576.0 * 100.0).round() / 100.0;
        assert_eq!(
            arrived,
            json!({"name": name, "path": place, "size_mb": size_mb, "size_bytes": total, "warnings": []})
        );
        assert_eq!(files(&place), sent, "through {through}");
        let listed = caller.local()[&name].clone();
        for (field, value) in [
            ("path", json!(place)),
            ("source", json!("managed")),
            ("size_mb", json!(size_mb)),
            ("in_use", json!(false)),
            ("deletable", json!(true)),
        ] {
            assert_eq!(listed[field], value, "{field}");
        }
        assert!(listed["last_modified_at"].as_f64().is_some_and(|at| at > 1.7e9), "{listed}");
        caller.finish(session).is_error(404, "NOT_FOUND");
    }
    let (itself, another) = (site.caller(), site.other());
    another.post("local-models/upload/begin", &json!({"name": "up-0"})).is_error(409, "CONFLICT");
    for (caller, name) in [(&another, "up-0"), (&itself, "up-1")] {
        let deleted = caller.delete(&format!("local-models/{name}")).expect(200).body;
        assert_eq!(deleted, json!({"status": "deleted", "name": name}));
        caller.delete(&format!("local-models/{name}")).is_error(404, "NOT_FOUND");
    }
    assert!(itself.local().is_empty());
    site.is_clean();
}

/// E-136
#[test]
fn models_of_the_machine_are_listed_and_never_deleted() {
    let site = Site::new();
    let place = site.others.path().join("theirs");
    fs::create_dir(&place).expect("a directory");
    fs::write(place.join("w.gguf"), content(1 << 20, 1)).expect("a file");
    for (_, caller) in site.callers() {
        let listed = caller.local()["theirs"].clone();
        assert_eq!(listed["source"], json!(site.others.path()));
        assert_eq!(listed["path"], json!(place.join("w.gguf")), "a single file is deployed by its path");
        assert_eq!((&listed["deletable"], &listed["size_mb"]), (&json!(false), &json!(1.0)));
        caller.delete("local-models/theirs").is_error(404, "NOT_FOUND");
        for bad in ["-x", ".tmp", "a%2Fb", "..%2F..", "%20"] {
            caller.delete(&format!("local-models/{bad}")).is_error(400, "BAD_REQUEST");
        }
    }
    assert!(place.join("w.gguf").exists());
    // Names that are also those of other routes.
    for name in ["pull", "transfers", "archive", "upload"] {
        let session = site.caller().begin(name);
        let _ = site.caller().write(&session, "f", "x").expect(200);
        let _ = site.caller().finish(&session).expect(200);
        let _ = site.other().delete(&format!("local-models/{name}")).expect(200);
    }
    assert!(!site.caller().local().keys().any(|name| name != "theirs"));
}

/// E-140
#[test]
fn an_upload_that_is_cut_in_the_middle_goes_on_where_it_stopped() {
    let site = Site::new();
    let whole = content(5 << 20, 7);
    for (number, (through, caller)) in site.callers().into_iter().enumerate() {
        let session = caller.begin(&format!("cut-{number}"));
        let path = format!("local-models/upload/{session}/file?path=w.bin");
        let half = 2 << 20;
        let cut = caller.begin_request("PUT", &path, &format!("content-length: {}\r\n", whole.len()), &whole[..half]);
        let transfers = || caller.get("local-models/transfers").expect(200).body;
        wait_for(SOON, "half of it to come", || {
            let all = transfers();
            let own = all.as_array()?.iter().find(|transfer| transfer["id"] == session.as_str())?;
            (own["received_bytes"].as_u64()? == half as u64).then_some(())
        });
        drop(cut);
        let length = caller.length(&session, "w.bin").expect(200);
        assert_eq!(length.body, json!({"path": "w.bin", "length": half}), "through {through}");
        assert_eq!(length.header("upload-offset"), half.to_string());
        let head = send(caller.0.request("HEAD", &caller.path(&path)));
        assert_eq!((head.status, head.header("upload-offset")), (200, half.to_string().as_str()));
        let refused = caller.finish(&session);
        refused.is_error(409, "CONFLICT");
        assert!(refused.body["detail"].as_str().is_some_and(|detail| detail.contains("w.bin")), "{refused}");
        // More than has come can not be skipped.
        caller.send("PUT", &format!("{path}&offset={}", half + 1), "x").is_error(409, "CONFLICT");
        let rest = match number {
            0 => caller.0.request("PUT", &caller.path(&path)).header("upload-offset", half),
            _ => {
                let range = format!("bytes {half}-{}/{}", whole.len() - 1, whole.len());
                caller.0.request("PUT", &caller.path(&path)).header("content-range", range)
            }
        };
        let written = send(rest.body(whole[half..].to_vec())).expect(200).body;
        assert_eq!(written, json!({"status": "ok", "received_bytes": whole.len() - half, "length": whole.len()}));
        let _ = caller.finish(&session).expect(200);
        let kept = fs::read(site.models().join(format!("cut-{number}/w.bin"))).expect("a file");
        assert!(kept == whole, "through {through}: other bytes");
    }
    site.is_clean();
}

#[test]
fn an_upload_outlives_the_node_that_it_goes_to() {
    let mut site = Site::new();
    let whole = content(3 << 20, 9);
    let session = site.other().begin("again");
    let _ = site.other().write(&session, "config.json", "{}").expect(200);
    let path = format!("local-models/upload/{session}/file?path=w.bin");
    let headers = "transfer-encoding: chunked\r\n";
    let mut cut = site.other().begin_request("PUT", &path, headers, b"100000\r\n");
    cut.write_all(&whole[..1 << 20]).expect("takes it");
    let file = site.models().join(format!(".tmp/upload-{}/partial/w.bin", session.replace('-', "")));
    wait_for(SOON, "some of it on the disk", || (fs::metadata(&file).ok()?.len() == 1 << 20).then_some(()));
    site.mesh.machines[0].kill();
    assert!(matches!(status(cut), 502 | 503), "the other node says that it did not arrive");
    site.mesh.restart(0);
    site.mesh.ready();
    let length = wait_for(SOON, "the node to work with its files", || {
        let answer = site.other().length(&session, "w.bin");
        (answer.status == 200).then(|| answer.body["length"].as_u64())?
    });
    assert_eq!(length, 1 << 20);
    let _ = site.other().send("PUT", &format!("{path}&offset={length}"), &whole[1 << 20..]).expect(200);
    let _ = site.other().finish(&session).expect(200);
    let kept = files(&site.models().join("again"));
    assert!(kept["w.bin"] == whole && kept["config.json"] == b"{}", "other bytes");
}

#[test]
fn an_upload_goes_on_when_another_process_takes_its_node_over() {
    let site = Site::new();
    let whole = content(3 << 20, 17);
    let session = site.caller().begin("taken-over");
    let path = format!("local-models/upload/{session}/file?path=w.bin");
    let headers = format!("content-length: {}\r\n", whole.len());
    let cut = site.caller().begin_request("PUT", &path, &headers, &whole[..1 << 20]);
    let file = site.models().join(format!(".tmp/upload-{}/partial/w.bin", session.replace('-', "")));
    wait_for(SOON, "some of it on the disk", || (fs::metadata(&file).ok()?.len() == 1 << 20).then_some(()));
    let before = site.mesh.machines[0].home.log().len();
    let mut successor = site.mesh.machines[0].home.start(&mut site.mesh.command(0, &["--take-over"]));
    assert_eq!(status(cut), 503, "two processes must not write one file");
    wait_for(PATIENCE, "the successor to serve", || {
        assert!(successor.ended().is_none(), "it ended instead of serving");
        site.mesh.machines[0].home.log()[before..].contains("the successor serves").then_some(())
    });
    let length = wait_for(SOON, "the successor to work with the files", || {
        let answer = site.caller().length(&session, "w.bin");
        (answer.status == 200).then(|| answer.body["length"].as_u64())?
    });
    assert_eq!(length, 1 << 20);
    let _ = site.other().send("PUT", &format!("{path}&offset={length}"), &whole[1 << 20..]).expect(200);
    let _ = site.caller().finish(&session).expect(200);
    assert!(fs::read(site.models().join("taken-over/w.bin")).expect("a file") == whole, "other bytes");
    successor.terminate();
    assert!(successor.wait(PATIENCE).success());
}

/// E-142
#[test]
fn an_upload_that_is_aborted_leaves_nothing() {
    let site = Site::new();
    for (_, caller) in site.callers() {
        let session = caller.begin("never");
        let _ = caller.write(&session, "a/b", content(100_000, 1)).expect(200);
        for _ in 0..2 {
            let aborted = caller.post(&format!("local-models/upload/{session}/abort"), &json!({})).expect(200).body;
            assert_eq!(aborted, json!({"status": "aborted"}));
        }
        assert_eq!(caller.post("local-models/upload/nonsense/abort", &json!({})).status, 200);
        caller.write(&session, "a/b", "x").is_error(404, "NOT_FOUND");
        site.is_clean();
        assert!(caller.local().is_empty());
    }
}

/// E-139, E-140
#[test]
fn what_names_something_invalid_is_refused_and_nothing_is_kept() {
    let site = Site::new();
    for (_, caller) in site.callers() {
        let begin = |body: Value| caller.post("local-models/upload/begin", &body);
        for bad in ["", "-x", "a/b", "..", ".tmp", "a b", &"x".repeat(65)] {
            begin(json!({"name": bad})).is_error(400, "BAD_REQUEST");
        }
        begin(json!({})).names(&["name"]);
        begin(json!({"name": "m", "total_bytes": -1, "file_count": "2", "x": 1})).names(&[
            "total_bytes",
            "file_count",
            "x",
        ]);
        begin(json!({"name": "m", "file_count": 20_001})).is_error(413, "CONTENT_TOO_LARGE");
        begin(json!({"name": "m", "total_bytes": 1_u64 << 52})).is_error(507, "INSUFFICIENT_STORAGE");
        let session = caller.begin("m");
        for bad in ["", "../x", "/etc/x", "a//b", "a/./b", "a:b", "a%5Cb", "a%00b", &"p/".repeat(33), &"x".repeat(1025)]
        {
            caller.write(&session, bad, "x").is_error(400, "BAD_REQUEST");
            caller.length(&session, bad).is_error(400, "BAD_REQUEST");
        }
        let file = format!("local-models/upload/{session}/file");
        caller.send("PUT", &file, "x").names(&["path"]);
        caller.send("PUT", &format!("{file}?path=f&offset=x"), "x").names(&["offset"]);
        let contradicting = caller.0.request("PUT", &caller.path(&format!("{file}?path=f&offset=1")));
        send(contradicting.header("upload-offset", "2").body("x")).is_error(400, "BAD_REQUEST");
        for unknown in ["67e55044-10b1-426f-9247-bb680e5fe0c8", "x"] {
            caller.write(unknown, "f", "x").is_error(404, "NOT_FOUND");
            caller.length(unknown, "f").is_error(404, "NOT_FOUND");
            caller.finish(unknown).is_error(404, "NOT_FOUND");
        }
        // One path is no file and directory at once.
        let _ = caller.write(&session, "a", "x").expect(200);
        caller.write(&session, "a/b", "x").is_error(400, "BAD_REQUEST");
        assert_eq!(files(&site.models().join(".tmp")).keys().filter(|path| path.contains("/content/")).count(), 1);
        let _ = caller.post(&format!("local-models/upload/{session}/abort"), &json!({})).expect(200);
    }
    site.is_clean();
}

/// E-141
#[test]
fn of_two_uploads_of_one_name_the_first_that_is_finished_is_the_model() {
    let site = Site::new();
    let sessions = [site.caller().begin("wanted"), site.other().begin("wanted")];
    for (number, session) in sessions.iter().enumerate() {
        let _ = site.caller().write(session, "root/who", format!("{number}")).expect(200);
    }
    let statuses: Vec<_> = std::thread::scope(|scope| {
        let finish = |(session, (_, caller)): (&String, (_, super::Caller))| {
            let path = format!("local-models/upload/{session}/finish");
            scope.spawn(move || caller.post(&path, &json!({"flatten": true})).status)
        };
        let finishing: Vec<_> = sessions.iter().zip(site.callers()).map(finish).collect();
        finishing.into_iter().map(|thread| thread.join().expect("ends")).collect()
    });
    let winner = statuses.iter().position(|status| *status == 200).expect("one is the model");
    assert_eq!(statuses[1 - winner], 409);
    let kept = files(&site.models().join("wanted"));
    assert_eq!(kept, BTreeMap::from([("who".to_owned(), format!("{winner}").into_bytes())]));
    // The other one is still open.
    let left = &sessions[1 - winner];
    let _ = site.other().delete("local-models/wanted").expect(200);
    let finish = format!("local-models/upload/{left}/finish");
    site.other().post(&finish, &json!({"flatten": "yes"})).names(&["flatten"]);
    let _ = site.other().post(&finish, &json!({"flatten": false})).expect(200);
    assert_eq!(files(&site.models().join("wanted")).keys().collect::<Vec<_>>(), ["root/who"]);
}
