//! What a container is created with.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use bollard::models::{
    ContainerCreateBody, DeviceRequest, HostConfig, HostConfigLogConfig, Mount, MountType, PortBinding, RestartPolicy,
    RestartPolicyNameEnum,
};

use super::flavour::Flavour;
use super::labels;
use super::place::{INSIDE, Listen, PORT};
use crate::runtime::{Launch, Owner};

/// Shared memory of a container: so much, and so much more for each rank. vLLM's ranks pass tensors through it, and with
/// Docker's default they do not start.
const SHARED_MEMORY: i64 = 1 << 30;

/// More ranks than a machine has GPUs are a mistake, and not one to multiply by.
const MOST_RANKS: u32 = 1024;

/// How much of an engine's output the daemon keeps. What matters is followed and kept by the node.
const LOG_SIZE: &str = "16m";
const LOG_FILES: &str = "2";

/// What is decided outside of the launch.
pub(super) struct Surroundings<'a> {
    pub(super) owner: &'a Owner,
    pub(super) flavour: Flavour,
    pub(super) listen: Listen,
    /// The directory of the socket, on the machine.
    pub(super) directory: PathBuf,
    /// The image, as the daemon has it.
    pub(super) image: String,
    pub(super) network: String,
    pub(super) devices: Option<Vec<DeviceRequest>>,
}

/// The container of a unit.
///
/// # Errors
/// In words, when the launch holds what no container can have. No value of the environment is named.
pub(super) fn body(launch: &Launch, surroundings: Surroundings<'_>) -> Result<ContainerCreateBody, String> {
    let mut mounts = Vec::with_capacity(launch.mounts.len() + 1);
    if surroundings.listen == Listen::Socket {
        mounts.push(bind(&surroundings.directory, &PathBuf::from(INSIDE), false)?);
    }
    for mount in &launch.mounts {
        mounts.push(bind(&mount.outside, &mount.inside, mount.read_only)?);
    }
    let published = (surroundings.listen == Listen::Loopback).then(|| {
        let on_loopback = PortBinding { host_ip: Some(Ipv4Addr::LOCALHOST.to_string()), host_port: None };
        HashMap::from([(format!("{PORT}/tcp"), Some(vec![on_loopback]))])
    });
    let ranks = i64::from(launch.ranks.clamp(1, MOST_RANKS));
    let host = HostConfig {
        init: Some(true),
        network_mode: Some(surroundings.network),
        port_bindings: published,
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: None }),
        ipc_mode: Some("private".to_owned()),
        shm_size: Some(SHARED_MEMORY * (1 + ranks)),
        mounts: Some(mounts),
        device_requests: surroundings.devices,
        log_config: Some(log(surroundings.flavour)),
        ..Default::default()
    };
    Ok(ContainerCreateBody {
        image: Some(surroundings.image),
        cmd: Some(launch.arguments.clone()),
        env: Some(environment(launch)?),
        labels: Some(labels::written(surroundings.owner, launch)),
        exposed_ports: (surroundings.listen == Listen::Loopback).then(|| vec![format!("{PORT}/tcp")]),
        // Whatever the image's makers chose: an engine drains on this one.
        stop_signal: Some("SIGTERM".to_owned()),
        tty: Some(false),
        host_config: Some(host),
        ..Default::default()
    })
}

/// What a daemon says of a container, without what is in its environment.
pub(super) fn without_secrets(message: &str, launch: &Launch) -> String {
    let mut message = message.to_owned();
    for (_, value) in &launch.environment {
        if !value.reveal().is_empty() {
            message = message.replace(value.reveal(), "(secret)");
        }
    }
    message
}

fn environment(launch: &Launch) -> Result<Vec<String>, String> {
    launch
        .environment
        .iter()
        .map(|(name, value)| {
            let fits = !name.is_empty() && !name.contains(['=', '\0']) && !value.reveal().contains('\0');
            fits.then(|| format!("{name}={}", value.reveal()))
                .ok_or_else(|| format!("the environment variable {name:?} can not be set in a container"))
        })
        .collect()
}

fn bind(outside: &PathBuf, inside: &PathBuf, read_only: bool) -> Result<Mount, String> {
    let text = |path: &PathBuf| path.to_str().filter(|_| path.is_absolute()).map(str::to_owned);
    match (text(outside), text(inside)) {
        (Some(source), Some(target)) => Ok(Mount {
            source: Some(source),
            target: Some(target),
            typ: Some(MountType::BIND),
            read_only: Some(read_only),
            ..Default::default()
        }),
        _ => Err(format!("{} can not be mounted at {}", outside.display(), inside.display())),
    }
}

/// A driver whose log can be read back whatever the daemon's default is.
fn log(flavour: Flavour) -> HostConfigLogConfig {
    let mut options = HashMap::from([("max-size".to_owned(), LOG_SIZE.to_owned())]);
    if flavour == Flavour::Docker {
        options.insert("max-file".to_owned(), LOG_FILES.to_owned());
    }
    HostConfigLogConfig { typ: Some("json-file".to_owned()), config: Some(options) }
}

#[cfg(test)]
mod tests {
    use muster_cluster::sealing::SecretText;

    use super::super::testing;
    use super::*;
    use crate::runtime::Mount as Wanted;

    fn made(launch: &Launch, listen: Listen) -> Result<ContainerCreateBody, String> {
        let owner = testing::owner(7);
        let surroundings = Surroundings {
            owner: &owner,
            flavour: Flavour::Docker,
            listen,
            directory: "/data/units/1-0-5".into(),
            image: "sha256:1".to_owned(),
            network: "net".to_owned(),
            devices: None,
        };
        body(launch, surroundings)
    }

    #[test]
    fn a_container_has_its_own_ipc_with_memory_for_each_rank_and_no_restart_policy() {
        let mut launch = testing::launch(testing::unit(1, 0, 5), "x");
        launch.ranks = 4;
        let host = made(&launch, Listen::Socket).expect("a body").host_config.expect("a host part");
        assert_eq!((host.ipc_mode.as_deref(), host.shm_size), (Some("private"), Some(5 << 30)));
        assert_eq!(host.restart_policy.and_then(|policy| policy.name), Some(RestartPolicyNameEnum::NO));
        assert_eq!((host.init, host.network_mode.as_deref()), (Some(true), Some("net")));
        assert_eq!((host.memory, host.pids_limit, host.privileged), (None, None, None));
    }

    #[test]
    fn arguments_go_behind_the_images_own_entrypoint() {
        let body = made(&testing::launch(testing::unit(1, 0, 5), "x"), Listen::Socket).expect("a body");
        assert_eq!(body.cmd.as_deref(), Some(["--model".to_owned(), "org/m".to_owned()].as_slice()));
        assert_eq!((body.entrypoint, body.stop_signal.as_deref()), (None, Some("SIGTERM")));
    }

    #[test]
    fn a_container_sees_its_socket_and_what_it_was_given() {
        let mut launch = testing::launch(testing::unit(1, 0, 5), "x");
        launch.mounts.push(Wanted { outside: "/models".into(), inside: "/models".into(), read_only: true });
        let host = made(&launch, Listen::Socket).expect("a body").host_config.expect("a host part");
        let mounts = host.mounts.expect("mounts");
        let seen: Vec<_> = mounts.iter().map(|mount| (mount.target.as_deref(), mount.read_only)).collect();
        assert_eq!(seen, [(Some("/run/muster"), Some(false)), (Some("/models"), Some(true))]);
        assert_eq!(host.port_bindings, None);
    }

    #[test]
    fn a_published_port_is_on_loopback_only() {
        let body = made(&testing::launch(testing::unit(1, 0, 5), "x"), Listen::Loopback).expect("a body");
        let ports = body.host_config.and_then(|host| host.port_bindings).expect("ports");
        let binding = ports["8000/tcp"].as_ref().expect("bindings");
        assert_eq!(binding.iter().map(|b| b.host_ip.as_deref()).collect::<Vec<_>>(), [Some("127.0.0.1")]);
    }

    #[test]
    fn the_environment_is_in_the_environment_and_nowhere_else() {
        let mut body = made(&testing::launch(testing::unit(1, 0, 5), "x"), Listen::Socket).expect("a body");
        assert_eq!(body.env.take(), Some(vec![format!("HF_TOKEN={}", testing::SECRET)]));
        assert!(!format!("{body:?}").contains(testing::SECRET));
    }

    #[test]
    fn names_that_no_environment_can_have_are_refused_without_their_values() {
        for name in ["", "A=B", "A\0"] {
            let mut launch = testing::launch(testing::unit(1, 0, 5), "x");
            launch.environment = vec![(name.to_owned(), SecretText::new(testing::SECRET.to_owned()))];
            let why = made(&launch, Listen::Socket).expect_err("refused");
            assert!(!why.contains(testing::SECRET), "{why}");
        }
    }

    #[test]
    fn a_message_of_the_daemon_is_passed_on_without_values_of_the_environment() {
        let launch = testing::launch(testing::unit(1, 0, 5), "x");
        let said = format!("invalid value HF_TOKEN={} given", testing::SECRET);
        assert_eq!(without_secrets(&said, &launch), "invalid value HF_TOKEN=(secret) given");
    }

    #[test]
    fn a_relative_path_is_not_mounted() {
        let mut launch = testing::launch(testing::unit(1, 0, 5), "x");
        launch.mounts.push(Wanted { outside: "models".into(), inside: "/models".into(), read_only: true });
        assert!(made(&launch, Listen::Socket).is_err());
    }
}
