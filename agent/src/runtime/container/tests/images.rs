//! Images, against recorded answers.

use super::super::images::ensure;
use super::*;

#[tokio::test]
async fn an_image_that_is_not_here_is_pulled_and_its_bytes_are_told() {
    let said = concat!(
        r#"{"status":"Pulling from vllm/vllm-openai","id":"v1"}"#,
        "\n",
        r#"{"status":"Downloading","progressDetail":{"current":10,"total":100},"id":"a"}"#,
        "\n",
        r#"{"status":"Downloading","progressDetail":{"current":20,"total":100},"id":"b"}"#,
        "\n",
        r#"{"status":"Download complete","progressDetail":{},"id":"a"}"#,
        "\n",
        r#"{"status":"Download complete","progressDetail":{},"id":"b"}"#,
        "\n",
        r#"{"status":"Status: Downloaded newer image for vllm/vllm-openai:v1"}"#,
        "\n",
    );
    let recorded = Recorded::new(&[
        ("GET /version", 200, DOCKER_20),
        ("GET /images/vllm/vllm-openai:v1/json", 404, r#"{"message":"No such image"}"#),
        HAS_IMAGE,
        ("POST /images/create", 200, said),
    ]);
    let runtime = runtime(Flavour::Docker, &recorded);
    let client = runtime.daemon.client().await.expect("a client");
    let sender = watch::Sender::new(Progress::default());
    let mut receiver = sender.subscribe();
    let reference = Reference::parse(IMAGE).expect("a name");
    let ensured = ensure(&client, None, &reference, &sender).await.expect("an image");
    assert_eq!(ensured.note, None);
    assert_eq!(*receiver.borrow_and_update(), Progress { phase: "extracting image", pulled: Some((200, 200)) });
    let line = &recorded.asked("POST /images/create")[0].line;
    assert!(line.contains("tag=v1") && line.contains("fromImage=vllm"), "{line}");
}

#[tokio::test]
async fn a_moving_name_is_pulled_each_time_and_an_older_image_does_where_no_registry_answers() {
    let image = HAS_IMAGE.2;
    let offline =
        r#"{"message":"Get \"https://registry.example/v2/\": dial tcp: lookup registry.example: no such host"}"#;
    let recorded = Recorded::new(&[
        ("GET /version", 200, DOCKER_20),
        ("GET /images/vllm/vllm-openai:nightly/json", 200, image),
        ("POST /images/create", 500, offline),
    ]);
    let runtime = runtime(Flavour::Docker, &recorded);
    let client = runtime.daemon.client().await.expect("a client");
    let reference = Reference::parse("vllm/vllm-openai:nightly").expect("a name");
    let sender = watch::Sender::new(Progress::default());
    let ensured = ensure(&client, None, &reference, &sender).await.expect("the older one");
    assert!(ensured.note.expect("a note").contains("no such host"));
    assert_eq!(recorded.asked("POST /images/create").len(), 1);
}

#[tokio::test]
async fn an_image_that_no_registry_has_is_not_worth_another_try() {
    let missing = ("GET /images/vllm/vllm-openai:v1/json", 404, r#"{"message":"No such image"}"#);
    for (status, said, final_word) in [
        (404, r#"{"message":"manifest for vllm/vllm-openai:v1 not found: manifest unknown"}"#, true),
        (500, r#"{"message":"toomanyrequests: rate limit"}"#, false),
        (200, "{\"errorDetail\":{\"message\":\"unexpected EOF\"},\"error\":\"unexpected EOF\"}\n", false),
    ] {
        let recorded =
            Recorded::new(&[("GET /version", 200, DOCKER_20), missing, ("POST /images/create", status, said)]);
        let runtime = runtime(Flavour::Docker, &recorded);
        let client = runtime.daemon.client().await.expect("a client");
        let reference = Reference::parse(IMAGE).expect("a name");
        let sender = watch::Sender::new(Progress::default());
        let error = ensure(&client, None, &reference, &sender).await.expect_err("no image");
        assert_eq!(matches!(error, RuntimeError::NoImage { .. }), final_word, "{error}");
        assert_eq!(matches!(error, RuntimeError::Image { .. }), !final_word, "{error}");
    }
}

/// B22, through the API.
#[tokio::test]
async fn deleting_an_image_leaves_the_tags_of_others() {
    let layers = r#"{"Id":"sha256:11","RootFS":{"Type":"layers","Layers":["sha256:33"]}}"#;
    let in_docker = r#"[{"Id":"sha256:11","ParentId":"","RepoTags":["vllm/vllm-openai:v1","mine:1"],"RepoDigests":null,"Created":1,"Size":10,"SharedSize":-1,"Labels":null,"Containers":-1}]"#;
    let docker = Recorded::new(&[
        ("GET /version", 200, DOCKER_20),
        NO_CONTAINERS,
        ("GET /images/json", 200, in_docker),
        ("GET /images/sha256:11/json", 200, layers),
        ("DELETE /images/vllm/vllm-openai:v1", 200, r#"[{"Untagged":"vllm/vllm-openai:v1"}]"#),
    ]);
    let in_podman = r#"[{"Id":"sha256:44","ParentId":"","RepoTags":["docker.io/vllm/vllm-openai:v1"],"RepoDigests":[],"Created":1,"Size":12,"SharedSize":0,"Labels":{},"Containers":0}]"#;
    let podman = Recorded::new(&[
        ("GET /version", 200, PODMAN_4),
        NO_CONTAINERS,
        ("GET /images/json", 200, in_podman),
        ("GET /images/sha256:44/json", 200, layers),
        ("DELETE /images/sha256:44", 200, r#"[{"Deleted":"sha256:44"}]"#),
    ]);
    let family = Family::new(["vllm/vllm-openai"]);
    let (of_docker, of_podman) = (runtime(Flavour::Docker, &docker), runtime(Flavour::Podman, &podman));
    let held = vec![
        (Flavour::Docker, of_docker.images(&family).await.expect("images")),
        (Flavour::Podman, of_podman.images(&family).await.expect("images")),
    ];
    let merged = merge(held);
    assert_eq!((merged.len(), merged[0].copies.len(), merged[0].size), (1, 2, 12));
    let untagged = of_docker.delete_image(&family, &merged[0].layers).await.expect("deleted");
    assert_eq!((untagged.untagged, untagged.removed), (vec![IMAGE.to_owned()], Vec::<String>::new()));
    let removed = of_podman.delete_image(&family, &merged[0].layers).await.expect("deleted");
    assert_eq!((removed.removed, removed.freed), (vec!["sha256:44".to_owned()], 12));
    assert_eq!(docker.asked("DELETE /images/mine:1").len(), 0);
}

#[tokio::test]
async fn an_image_with_packages_is_built_once_for_each_base() {
    let name = "muster/local:v1-0011223344556677";
    let path = format!("GET /images/{name}/json");
    let built = r#"{"Id":"sha256:77","Config":{"Labels":{"muster.derived":"true","muster.base":"sha256:11"}}}"#;
    let stale = built.replace("sha256:11", "sha256:00");
    let recorded = Recorded::new(&[
        ("GET /version", 200, DOCKER_20),
        HAS_IMAGE,
        (&path, 404, "{}"),
        (&path, 200, built),
        (&path, 200, built),
        (&path, 200, &stale),
        (&path, 200, built),
        ("POST /build", 200, "{\"stream\":\"Successfully built 77\"}\n"),
    ]);
    let runtime = runtime(Flavour::Docker, &recorded);
    let (name, base) = (Reference::parse(name).expect("a name"), Reference::parse(IMAGE).expect("a name"));
    let packages = [Package::Named("einops".to_owned())];
    let mut builds = Vec::new();
    for _ in 0..3 {
        let progress = watch::Sender::new(Progress::default());
        runtime.build_image(&name, &base, &packages, progress).await.expect("built");
        builds.push(recorded.asked("POST /build").len());
    }
    // The second time it is there; the third time the base has moved.
    assert_eq!(builds, [1, 1, 2]);
    let asked = &recorded.asked("POST /build")[0];
    assert!(String::from_utf8_lossy(&asked.body).contains("FROM vllm/vllm-openai:v1\nRUN [\"python3\""));
}
