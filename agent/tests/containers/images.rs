//! Images on real daemons.

use std::path::PathBuf;
use std::time::Duration;

use bollard::query_parameters::{RemoveImageOptions, TagImageOptions};
use muster_agent::runtime::container::{Family, Listen, merge};
use muster_agent::runtime::{Runtime, RuntimeError};

use crate::daemons::{Bench, answers, benches, both, build, started, unit};

/// An image that only this run of a test has.
async fn own_image(bench: &Bench, name: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let simulator = std::env::var_os("MUSTER_TEST_SIM").map(PathBuf::from).expect("it was there before");
    let copy = directory.path().join("muster-sim");
    std::fs::copy(simulator, &copy).expect("copied");
    // What is appended to a program does not change what it does.
    let mut bytes = std::fs::OpenOptions::new().append(true).open(&copy).expect("opened");
    std::io::Write::write_all(&mut bytes, name.as_bytes()).expect("written");
    build(&bench.docker, name, copy).await;
}

#[tokio::test]
async fn an_image_that_only_the_other_runtime_has_is_copied_and_is_the_same_one() {
    let Some((docker, podman)) = both().await else { return };
    for (from, to) in [(&docker, &podman), (&podman, &docker)] {
        let name = format!("copied/{}:v1", from.owner.fleet);
        let family = Family::new([name.trim_end_matches(":v1")]);
        own_image(from, &name).await;
        let runtime = to.runtime_of(to.owner, Listen::Socket, Some(from));
        let mut launch = to.launch(unit(1, 7), &[]);
        launch.image = Some(name);
        let launched = started(&runtime, launch).await.expect("launched");
        answers(&launched.endpoint).await;
        let held = vec![
            (from.flavour, from.runtime.images(&family).await.expect("images")),
            (to.flavour, to.runtime.images(&family).await.expect("images")),
        ];
        let merged = merge(held);
        assert_eq!(merged.len(), 1, "{merged:?}");
        assert_eq!(merged[0].copies.len(), 2, "{merged:?}");
        to.clean().await;
        for bench in [from, to] {
            let deleted = bench.runtime.delete_image(&family, &merged[0].layers).await.expect("deleted");
            assert_eq!((deleted.removed.len(), deleted.failed.len()), (1, 0), "{deleted:?}");
            assert_eq!(bench.runtime.images(&family).await.expect("images"), []);
        }
    }
}

#[tokio::test]
async fn images_are_pruned_but_neither_used_ones_nor_names_of_others() {
    for bench in benches().await {
        let [used, unused, shared] =
            ["used", "unused", "shared"].map(|name| format!("{name}/{}:v1", bench.owner.fleet));
        for name in [&used, &unused, &shared] {
            own_image(&bench, name).await;
        }
        let mine = TagImageOptions { repo: Some("mine".to_owned()), tag: Some("1".to_owned()) };
        bench.docker.tag_image(&shared, Some(mine)).await.expect("tagged");
        let mut launch = bench.launch(unit(1, 7), &["--fail-start"]);
        launch.image = Some(used.clone());
        started(&bench.runtime, launch).await.expect("launched");
        bench.runtime.ended(unit(1, 7)).await.expect("an end");

        let family = Family::new([used.as_str(), &unused, &shared]);
        let pruned = bench.runtime.prune_images(&family).await.expect("pruned");
        assert_eq!((pruned.removed.len(), pruned.untagged.len()), (1, 1), "{} {pruned:?}", bench.flavour);
        assert!(pruned.failed.is_empty() && pruned.freed > 0, "{pruned:?}");
        let exists = async |name: &str| bench.docker.inspect_image(name).await.is_ok();
        assert!(exists(&used).await && exists("mine:1").await);
        assert!(!exists(&unused).await && !exists(&shared).await);

        // While a container is made from it, an image can not be deleted, and the answer says so.
        let held = bench.runtime.images(&family).await.expect("images");
        let in_use = held.iter().find(|image| image.containers == 1).expect("the used one");
        let refused = bench.runtime.delete_image(&family, &in_use.layers).await.expect("an answer");
        assert_eq!((refused.removed.len(), refused.failed.len()), (0, 1), "{refused:?}");
        bench.clean().await;
        let last = bench.runtime.prune_images(&family).await.expect("pruned");
        assert_eq!(last.removed.len(), 1, "{last:?}");
        bench.docker.remove_image("mine:1", None::<RemoveImageOptions>, None).await.expect("removed");
    }
}

#[tokio::test]
async fn an_engine_that_was_started_by_hand_is_named_and_can_be_ended() {
    for bench in benches().await {
        let name = format!("by-hand-{}", bench.owner.fleet);
        let body = bollard::models::ContainerCreateBody { image: Some(bench.image.clone()), ..Default::default() };
        let options =
            bollard::query_parameters::CreateContainerOptions { name: Some(name.clone()), platform: String::new() };
        bench.docker.create_container(Some(options), body).await.expect("created");
        bench.docker.start_container(&name, None).await.expect("started");
        let family = Family::new(["vllm/vllm-openai"]);
        let strays = bench.runtime.strays(&Default::default(), &family).await.expect("strays");
        let stray = strays.iter().find(|stray| stray.name == name).expect("it is named");
        assert_eq!((stray.state.as_str(), stray.unit), ("running", None), "{}", bench.flavour);
        bench.runtime.remove_stray(stray, Duration::from_secs(5)).await.expect("ended");
        let strays = bench.runtime.strays(&Default::default(), &family).await.expect("strays");
        assert!(strays.iter().all(|stray| stray.name != name));
    }
}

#[tokio::test]
async fn an_image_that_is_nowhere_is_an_error_about_the_image() {
    for bench in benches().await {
        let mut launch = bench.launch(unit(1, 7), &[]);
        launch.image = Some("127.0.0.1:9/no/such-image:v1".to_owned());
        let error = started(&bench.runtime, launch).await.expect_err("no image");
        assert!(matches!(error, RuntimeError::Image { .. }), "{}: {error}", bench.flavour);
        assert_eq!(bench.runtime.units().await.expect("units"), []);
        bench.clean().await;
    }
}
