//! Packages.

use std::fs;

use muster_tests::api::{Answer, send};
use serde_json::{Value, json};

use super::{Caller, Site, content};

const BOUNDARY: &str = "----boundary-of-a-test";

/// A form with these fields: name, file's name if it is a file, content.
fn form(fields: &[(&str, Option<&str>, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, file_name, content) in fields {
        let file_name = file_name.map_or_else(String::new, |file_name| format!("; filename=\"{file_name}\""));
        let head = format!("--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"{name}\"{file_name}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

fn upload(caller: &Caller, body: Vec<u8>) -> Answer {
    let request = caller.0.request("POST", &caller.path("packages/upload"));
    send(request.header("content-type", format!("multipart/form-data; boundary={BOUNDARY}")).body(body))
}

/// A zip without members is enough of a wheel to be kept.
fn wheel(comment: &[u8]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    archive.start_file("x/__init__.py", zip::write::SimpleFileOptions::default()).expect("a member");
    std::io::Write::write_all(&mut archive, comment).expect("its content");
    archive.finish().expect("a zip").into_inner()
}

/// E-144, E-145
#[test]
fn packages_are_uploaded_listed_and_deleted_through_any_node() {
    let site = Site::new();
    for (number, (through, caller)) in site.callers().into_iter().enumerate() {
        assert_eq!(caller.get("packages").expect(200).body, json!([]));
        // Larger than one piece on the way, with what looks like the form's own marks in it.
        let mut content = content(700_000, number as u64);
        content.extend_from_slice(b"\r\n--\r\n------boundary\r\n");
        let wheel_file = wheel(&content);
        let file_name = "x-1.0-py3-none-any.whl";
        let sent = form(&[("note", None, b"not the file"), ("file", Some(file_name), &wheel_file)]);
        let uploaded = upload(&caller, sent.clone()).expect(200).body;
        let id = uploaded["package_id"].as_str().expect("an id").to_owned();
        let place = site.packages().join(&id).join(file_name);
        let package = json!({"package_id": id, "filename": file_name, "install_path": place, "type": "package"});
        let expected: Value = package.as_object().expect("fields").clone().into();
        assert_eq!(uploaded["status"], "ok");
        for (field, value) in expected.as_object().expect("fields") {
            assert_eq!(uploaded[field], *value, "{field} through {through}");
        }
        assert_eq!(id.len(), 16);
        assert!(fs::read(&place).expect("the wheel") == wheel_file, "other bytes");
        assert_eq!(upload(&caller, sent).expect(200).body["package_id"], id.as_str(), "the same again");
        let plugin = upload(&caller, form(&[("file", Some("p.py"), b"import vllm")])).expect(200).body;
        assert_eq!(plugin["type"], "plugin");
        let listed = caller.get("packages").expect(200).body;
        let listed = listed.as_array().expect("a list");
        assert!(listed.len() == 2 && listed.contains(&package), "{listed:?}");
        for package in listed {
            let path = format!("packages/{}", package["package_id"].as_str().expect("an id"));
            let _ = caller.delete(&path).expect(200);
            caller.delete(&path).is_error(404, "NOT_FOUND");
        }
    }
    site.is_clean();
}

/// E-144
#[test]
fn what_is_no_package_is_refused_and_nothing_is_kept() {
    let site = Site::new();
    for (_, caller) in site.callers() {
        for (file_name, content) in [
            ("x.exe", &b"MZ"[..]),
            ("x-1.0-py3-none-any.whl", b"no wheel"),
            ("../x.py", b"x"),
            ("", b"x"),
            ("x.zip", b"no zip"),
        ] {
            upload(&caller, form(&[("file", Some(file_name), content)])).is_error(400, "BAD_REQUEST");
        }
        upload(&caller, form(&[("other", Some("x.py"), b"x")])).names(&["file"]);
        upload(&caller, form(&[])).names(&["file"]);
        caller.send("POST", "packages/upload", "x").names(&["file"]);
        // Nobody keeps what comes before the file in memory.
        upload(&caller, form(&[("note", None, &content(2 << 20, 1))])).is_error(400, "BAD_REQUEST");
        upload(&caller, b"no form at all".to_vec()).is_error(400, "BAD_REQUEST");
        let whole = form(&[("file", Some("x.py"), &content(500_000, 1))]);
        upload(&caller, whole[..400_000].to_vec()).is_error(400, "BAD_REQUEST");
        let headers =
            format!("content-type: multipart/form-data; boundary={BOUNDARY}\r\ncontent-length: {}\r\n", whole.len());
        drop(caller.begin_request("POST", "packages/upload", &headers, &whole[..400_000]));
        site.is_clean();
        assert_eq!(caller.get("packages").expect(200).body, json!([]));
    }
}
