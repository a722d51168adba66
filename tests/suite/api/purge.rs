//! Records that are deleted by category (seed 004).

use muster_tests::api::Api;
use muster_tests::fleet::Fleet;
use serde_json::{Value, json};

fn deployment() -> Value {
    json!({"model_name": "org/m", "gpu_memory_fraction": 0.5})
}

fn fill(admin: &Api, count: usize) {
    for number in 0..count {
        let _ = admin.post("/api/deployments", &deployment()).expect(201);
        let config = json!({"name": format!("config {number}"), "payload": {}});
        let _ = admin.post("/api/configs", &config).expect(201);
    }
}

/// How many deployments and configurations there are.
fn left(admin: &Api) -> (usize, usize) {
    let count = |path: &str| admin.get(path).expect(200).body.as_array().expect("a list").len();
    (count("/api/deployments"), count("/api/configs"))
}

fn purge(admin: &Api, body: &Value) -> Value {
    admin.post("/api/admin/purge", body).expect(200).body
}

/// E-265 E-267
#[test]
fn records_are_purged_by_category() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    fill(&admin, 2);
    let configs = purge(&admin, &json!({"targets": ["configs"]}));
    assert_eq!(configs, json!({"purged": {"deployment_configs": 2}}));
    assert_eq!(left(&admin), (2, 0));
    let deployments = purge(&admin, &json!({"targets": ["deployments", "deployments"]}));
    assert_eq!(deployments, json!({"purged": {"deployments": 2}}));
    assert_eq!(left(&admin), (0, 0));
    assert_eq!(purge(&admin, &json!({"targets": ["metrics"]})), json!({"purged": {"node_metrics": 0}}));
    let trail = admin.get("/api/audit").expect(200).to_string();
    assert!(trail.contains("fleet.purge") && trail.contains("2 deployments, 0 configurations, 0 nodes"), "{trail}");
    // A number is never given twice, and a name is free again.
    assert_eq!(admin.post("/api/deployments", &deployment()).expect(201).body["id"], json!(3));
    let _ = admin.post("/api/configs", &json!({"name": "config 0", "payload": {}})).expect(201);
}

/// E-270
#[test]
fn without_targets_all_is_purged_but_keys_and_settings() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    fill(&admin, 1);
    let _ = admin.put("/api/settings", &json!({"expiry_warning_minutes": 7})).expect(200);
    let _ = admin.post("/api/api-keys", &json!({"label": "stays"})).expect(201);
    let kept = || ["/api/api-keys", "/api/settings", "/api/credentials"].map(|path| admin.get(path).expect(200).body);
    let before = kept();
    let all = json!({"purged": {"deployments": 1, "node_metrics": 0, "nodes": 0, "deployment_configs": 1}});
    assert_eq!(purge(&admin, &json!({})), all);
    assert_eq!((left(&admin), kept()), ((0, 0), before));
    let nothing = json!({"purged": {"deployments": 0, "node_metrics": 0, "nodes": 0, "deployment_configs": 0}});
    assert_eq!(purge(&admin, &json!({"targets": []})), nothing);
    assert_eq!(purge(&admin, &json!({"targets": null})), nothing);
}

/// E-268
#[test]
fn purged_nodes_stay_in_the_fleet_and_go_on() {
    let fleet = Fleet::start_nodes(3, &[]);
    let admin = fleet.admin();
    fill(&admin, 1);
    let _ = admin.post("/api/nodes/2/prefer-voter", &json!({})).expect(200);
    let nodes = || {
        let listed = admin.get("/api/nodes").expect(200).body;
        let seen = |node: &Value| (node["id"].clone(), node["hostname"].clone(), node["created_at"].clone());
        listed.as_array().expect("a list").iter().map(seen).collect::<Vec<_>>()
    };
    let before = nodes();
    let purged = purge(&admin, &json!({"targets": ["nodes"]}));
    assert_eq!(purged, json!({"purged": {"deployments": 1, "node_metrics": 0, "nodes": 1}}));
    assert_eq!((nodes(), left(&admin)), (before, (0, 1)));
    for node in fleet.nodes() {
        let _ = admin.at(&node.api).post("/api/deployments", &deployment()).expect(201);
    }
    let voters = admin.get("/api/cluster").expect(200).body["voters"].as_array().map(Vec::len);
    assert_eq!(voters, Some(3));
}

/// E-271
#[test]
fn what_can_not_be_purged_is_refused_and_nothing_is_deleted() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    fill(&admin, 1);
    let purge = |body: Value| admin.post("/api/admin/purge", &body);
    purge(json!({"targets": ["configs", "everything"]})).is_error(400, "BAD_REQUEST");
    purge(json!({"targets": ["keys"]})).is_error(400, "BAD_REQUEST");
    purge(json!({"targets": "configs"})).names(&["targets"]);
    purge(json!({"targets": ["configs", 7]})).names(&["targets[1]"]);
    purge(json!({"target": ["configs"]})).names(&["target"]);
    for role in ["viewer", "operator"] {
        fleet.caller(role).post("/api/admin/purge", &json!({})).is_error(403, "FORBIDDEN");
    }
    fleet.user().post("/api/admin/purge", &json!({})).is_error(403, "FORBIDDEN");
    assert_eq!(left(&admin), (1, 1));
}

#[test]
fn many_records_are_purged_at_once_and_a_repetition_deletes_nothing_more() {
    let fleet = Fleet::start();
    let admin = fleet.admin();
    fill(&admin, 70);
    let first =
        admin.post_once("/api/admin/purge", &json!({"targets": ["deployments", "configs"]}), "once").expect(200);
    assert_eq!(first.body, json!({"purged": {"deployments": 70, "deployment_configs": 70}}));
    assert_eq!(left(&admin), (0, 0));
    fill(&admin, 1);
    let again =
        admin.post_once("/api/admin/purge", &json!({"targets": ["deployments", "configs"]}), "once").expect(200);
    assert_eq!((again.body, left(&admin)), (first.body, (1, 1)));
    let other = admin.post_once("/api/admin/purge", &json!({}), "once");
    other.is_error(422, "IDEMPOTENCY_KEY_REUSED");
}
