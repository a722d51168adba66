//! What operators see of containers and images on a node, and do about them, through whichever node they ask.

use muster_tests::containers::{DOCKER, Daemon};
use muster_tests::groups::Need;
use serde_json::{Value, json};

use super::{VERSION, Yard, running};

fn entries(list: Value) -> Vec<Value> {
    let Value::Array(entries) = list else { panic!("no list: {list}") };
    entries
}

/// E-038 E-123 E-124
#[test]
fn containers_of_a_node_are_listed_and_those_that_nobody_needs_can_be_ended() {
    if !Need::Docker.is_met("docker") {
        return;
    }
    let repository = format!("containers-{}/vllm", std::process::id());
    let yard = Yard::on(Daemon::named_by(DOCKER), 2, &[("MUSTER_VLLM_IMAGE", &repository)]);
    let image = format!("{repository}:v{VERSION}");
    let id = running(&yard.admin(), &json!({"node_id": 1}));
    let ours = yard.container();
    let by_hand = yard.daemon.run(&format!("by-hand-{}", std::process::id()), &image);

    // Asked through the other node.
    let other = yard.at(1);
    let list = entries(other.get("/api/nodes/1/containers").expect(200).body);
    let find = |id: &str| list.iter().find(|one| one["id"] == id[..12]).unwrap_or_else(|| panic!("{id} in {list:?}"));
    let tracked = find(&ours.id);
    assert_eq!((&tracked["managed"], &tracked["tracked"]), (&json!(true), &json!(true)), "{tracked}");
    assert_eq!((&tracked["status"], &tracked["runtime"]), (&json!("running"), &json!("docker")));
    let port = yard.admin().get(&format!("/api/deployments/{id}")).expect(200).body["port"].clone();
    assert_eq!((&tracked["key"], &tracked["deployment_id"]), (&json!(format!("org/m:{port}")), &json!(id)));
    let stray = find(&by_hand);
    assert_eq!((&stray["managed"], &stray["tracked"], &stray["key"]), (&json!(false), &json!(false), &Value::Null));
    assert_eq!(stray["image"], json!(image), "{stray}");

    let stop = |container: &str| other.post(&format!("/api/nodes/1/containers/{container}/stop"), &Value::Null);
    stop(&ours.id).is_error(409, "CONFLICT");
    assert_eq!(yard.container().details["State"]["Running"], true);
    let removed = stop(&by_hand[..12]).expect(200).body;
    assert_eq!(removed, json!({"status": "removed", "id": &by_hand[..12]}));
    assert_eq!(yard.daemon.container(&by_hand), None);
    stop(&by_hand).is_error(404, "NOT_FOUND");
    stop("x").is_error(404, "NOT_FOUND");
    other.get("/api/nodes/9/containers").is_error(404, "NOT_FOUND");

    // A record that is deleted leaves its container, which is nobody's then.
    let _ = yard.admin().delete(&format!("/api/deployments/{id}")).expect(200);
    let left = entries(other.get("/api/nodes/1/containers").expect(200).body);
    let left = left.iter().find(|one| one["id"] == ours.id[..12]).expect("it is still there");
    assert_eq!(left["status"], "running", "{left}");
    assert_eq!(
        (&left["managed"], &left["tracked"], &left["key"]),
        (&json!(true), &json!(false), &Value::Null),
        "{left}"
    );
    let _ = stop(&ours.id).expect(200);
    assert_eq!(yard.containers(), []);
    let (viewer, path) = (yard.fleet.caller("viewer"), "/api/nodes/1/images/prune");
    viewer.post(path, &Value::Null).is_error(403, "FORBIDDEN");
    assert_eq!(viewer.get("/api/nodes/1/containers").expect(200).body, json!([]));
}

/// E-127 E-128 E-129
#[test]
fn images_of_engines_are_listed_deleted_and_pruned_but_never_from_under_a_container() {
    if !Need::Docker.is_met("docker") {
        return;
    }
    let repository = format!("images-{}/vllm", std::process::id());
    let yard = Yard::on(Daemon::named_by(DOCKER), 2, &[("MUSTER_VLLM_IMAGE", &repository)]);
    let used = format!("{repository}:v{VERSION}");
    let (unused, third) = (format!("{repository}:v0.1.0"), format!("{repository}:v0.2.0"));
    let foreign = format!("foreign-{}/other:v1", std::process::id());
    for name in [&unused, &third, &foreign] {
        yard.daemon.make_image(name, name);
    }
    // With another name, the daemon would take either away from under a container.
    yard.daemon.tag(&used, &repository, "also");
    running(&yard.admin(), &json!({}));
    let other = yard.at(1);
    let list = entries(other.get("/api/nodes/1/images").expect(200).body);
    let find =
        |tag: &str| list.iter().find(|one| one["tags"].as_array().is_some_and(|tags| tags.contains(&json!(tag))));
    let id_of = |tag: &str| find(tag).and_then(|one| one["id"].as_str()).unwrap_or_else(|| panic!("{tag} in {list:?}"));
    assert_eq!(list.len(), 3, "{list:?}");
    assert_eq!(find(&foreign), None);
    let one = find(&used).expect("the image in use");
    assert_eq!(
        (&one["runtime"], &one["runtimes"], &one["in_use"]),
        (&json!("docker"), &json!(["docker"]), &json!(true))
    );
    assert!(id_of(&used).starts_with("sha256:") && one["size_mb"].as_f64().is_some_and(|size| size > 1.0), "{one}");

    let delete = |id: &str| other.delete(&format!("/api/nodes/1/images/{id}"));
    delete(id_of(&used)).is_error(409, "CONFLICT");
    assert!(yard.daemon.has_image(&used) && yard.daemon.has_image(&format!("{repository}:also")));
    let deleted = delete(id_of(&unused)).expect(200).body;
    assert_eq!(deleted, json!({"status": "deleted", "id": id_of(&unused), "runtimes": ["docker"]}));
    assert!(!yard.daemon.has_image(&unused) && yard.daemon.has_image(&used));
    delete(id_of(&unused)).is_error(404, "NOT_FOUND");

    let pruned = other.post("/api/nodes/1/images/prune", &Value::Null).expect(200).body;
    assert_eq!((&pruned["removed"], &pruned["skipped"]), (&json!([id_of(&third)]), &json!([])), "{pruned}");
    assert!(pruned["freed_mb"].as_f64().is_some_and(|freed| freed > 1.0), "{pruned}");
    assert!(!yard.daemon.has_image(&third) && yard.daemon.has_image(&used) && yard.daemon.has_image(&foreign));
    for name in [&foreign, &format!("{repository}:also")] {
        yard.daemon.forget_image(name);
    }
}
