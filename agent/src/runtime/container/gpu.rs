//! How a container is given GPUs, and what has to be true for it.

use std::path::{Path, PathBuf};

use bollard::models::DeviceRequest;

use super::flavour::{Facts, Flavour, Version};
use crate::runtime::GpuRef;

/// The oldest Podman whose Docker-compatible socket passes GPUs on.
const PODMAN_WITH_GPUS: Version = Version { major: 5, minor: 4 };

/// What NVIDIA's GPUs are called in specifications of CDI.
const CDI_KIND: &str = "nvidia.com/gpu";

/// Where specifications of CDI are.
pub const CDI_DIRECTORIES: [&str; 2] = ["/etc/cdi", "/var/run/cdi"];

/// How much of a specification is read.
const CDI_LIMIT: u64 = 4 << 20;

/// What a container is given, so that it sees these GPUs and no others. No GPUs: nothing, and nothing has to be true.
///
/// # Errors
/// In words, with the remedy, when this daemon can not do it.
pub(super) async fn requests(
    facts: &Facts,
    gpus: &[GpuRef],
    cdi_directories: &[PathBuf],
) -> Result<Option<Vec<DeviceRequest>>, String> {
    if gpus.is_empty() {
        return Ok(None);
    }
    let request = match facts.flavour {
        Flavour::Podman => {
            if facts.version < PODMAN_WITH_GPUS {
                return Err(format!(
                    "Podman {} does not give GPUs to containers through its Docker-compatible socket: install Podman \
                     {PODMAN_WITH_GPUS} or newer, or use Docker on this node",
                    facts.version
                ));
            }
            let named = cdi_names(cdi_directories).await;
            if !named.contains(CDI_KIND) {
                return Err(format!(
                    "no CDI specification in {} names {CDI_KIND}: install the NVIDIA container toolkit and run \
                     `nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml`",
                    cdi_directories.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
                ));
            }
            by_cdi(
                gpus.iter().map(|gpu| if named.contains(&gpu.uuid) { gpu.uuid.clone() } else { gpu.index.to_string() }),
            )
        }
        Flavour::Docker => {
            let by_uuid = |gpu: &GpuRef| facts.cdi_devices.contains(&format!("{CDI_KIND}={}", gpu.uuid));
            if gpus.iter().all(by_uuid) {
                by_cdi(gpus.iter().map(|gpu| gpu.uuid.clone()))
            } else {
                DeviceRequest {
                    device_ids: Some(gpus.iter().map(|gpu| gpu.uuid.clone()).collect()),
                    capabilities: Some(vec![vec!["gpu".to_owned()]]),
                    ..Default::default()
                }
            }
        }
    };
    Ok(Some(vec![request]))
}

/// Whether a daemon's refusal says that it has no way to give GPUs, and what helps.
pub(super) fn refusal(message: &str) -> Option<String> {
    let lower = message.to_lowercase();
    let about_gpus = ["could not select device driver", "nvidia", "unresolvable cdi devices", "cdi device injection"]
        .iter()
        .any(|words| lower.contains(words));
    about_gpus.then(|| {
        format!(
            "the daemon can not give this container GPUs ({message}): install the NVIDIA container toolkit, run \
             `nvidia-ctk runtime configure`, and restart the daemon"
        )
    })
}

fn by_cdi(names: impl Iterator<Item = String>) -> DeviceRequest {
    DeviceRequest {
        driver: Some("cdi".to_owned()),
        device_ids: Some(names.map(|name| format!("{CDI_KIND}={name}")).collect()),
        ..Default::default()
    }
}

/// All that the specifications in these directories say. It is searched, not understood: they are YAML or JSON.
async fn cdi_names(directories: &[PathBuf]) -> String {
    let mut all = String::new();
    for directory in directories {
        let Ok(mut entries) = tokio::fs::read_dir(directory).await else { continue };
        while let Ok(Some(entry)) = entries.next_entry().await {
            if let Some(text) = small_text(&entry.path()).await {
                all.push_str(&text);
            }
        }
    }
    all
}

async fn small_text(path: &Path) -> Option<String> {
    let metadata = tokio::fs::metadata(path).await.ok()?;
    if !metadata.is_file() || metadata.len() > CDI_LIMIT {
        return None;
    }
    tokio::fs::read_to_string(path).await.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(flavour: Flavour, major: u32, minor: u32) -> Facts {
        let api = Version { major: 1, minor: 41 };
        Facts { flavour, version: Version { major, minor }, api, cdi_devices: Vec::new(), nvidia_runtime: false }
    }

    fn gpu(index: u32, uuid: &str) -> GpuRef {
        GpuRef { index, uuid: uuid.to_owned() }
    }

    async fn ids(
        facts: &Facts,
        gpus: &[GpuRef],
        directories: &[PathBuf],
    ) -> Result<(Option<String>, Vec<String>), String> {
        let mut requests = requests(facts, gpus, directories).await?.expect("a request");
        let request = requests.pop().expect("one");
        Ok((request.driver, request.device_ids.expect("devices")))
    }

    #[tokio::test]
    async fn a_container_without_gpus_asks_for_nothing_anywhere() {
        assert_eq!(requests(&facts(Flavour::Podman, 4, 3), &[], &[]).await, Ok(None));
        assert_eq!(requests(&facts(Flavour::Docker, 20, 10), &[], &[]).await, Ok(None));
    }

    #[tokio::test]
    async fn an_old_podman_is_refused_with_the_remedy() {
        let why = ids(&facts(Flavour::Podman, 5, 3), &[gpu(0, "GPU-a")], &[]).await.expect_err("too old");
        assert!(why.contains("5.3") && why.contains("5.4 or newer"), "{why}");
    }

    #[tokio::test]
    async fn podman_without_a_specification_is_refused_with_the_remedy() {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("other.yaml"), "kind: example.com/nic").expect("a file");
        let why = ids(&facts(Flavour::Podman, 5, 4), &[gpu(0, "GPU-a")], &[directory.path().to_owned()]).await;
        assert!(why.expect_err("no GPUs").contains("nvidia-ctk cdi generate"));
    }

    #[tokio::test]
    async fn podman_gets_the_names_that_the_specification_has() {
        let directory = tempfile::tempdir().expect("a directory");
        let text = "kind: nvidia.com/gpu\ndevices:\n- name: \"0\"\n- name: GPU-a\n- name: \"1\"\n";
        std::fs::write(directory.path().join("nvidia.yaml"), text).expect("a file");
        let directories = [PathBuf::from("/nonexistent"), directory.path().to_owned()];
        let asked = ids(&facts(Flavour::Podman, 5, 4), &[gpu(0, "GPU-a"), gpu(1, "GPU-b")], &directories).await;
        let expected = vec!["nvidia.com/gpu=GPU-a".to_owned(), "nvidia.com/gpu=1".to_owned()];
        assert_eq!(asked, Ok((Some("cdi".to_owned()), expected)));
    }

    #[tokio::test]
    async fn docker_gets_uuids_by_cdi_where_it_knows_them_and_else_as_device_requests() {
        let mut docker = facts(Flavour::Docker, 29, 1);
        docker.cdi_devices = vec!["nvidia.com/gpu=GPU-a".to_owned(), "nvidia.com/gpu=0".to_owned()];
        let by_cdi = ids(&docker, &[gpu(0, "GPU-a")], &[]).await;
        assert_eq!(by_cdi, Ok((Some("cdi".to_owned()), vec!["nvidia.com/gpu=GPU-a".to_owned()])));
        let by_request = ids(&docker, &[gpu(0, "GPU-a"), gpu(1, "GPU-b")], &[]).await;
        assert_eq!(by_request, Ok((None, vec!["GPU-a".to_owned(), "GPU-b".to_owned()])));
    }

    #[test]
    fn a_refusal_about_gpus_is_told_from_others() {
        let refused = r#"could not select device driver "" with capabilities: [[gpu]]"#;
        assert!(refusal(refused).is_some_and(|why| why.contains("nvidia-ctk")));
        assert_eq!(refusal("No such image: vllm/vllm-openai:v1"), None);
        assert_eq!(refusal("port is already allocated"), None);
    }
}
