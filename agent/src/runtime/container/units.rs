//! The containers that are units of this fleet and node: found, described, waited for, ended.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use bollard::query_parameters::{RemoveContainerOptions, StopContainerOptions, WaitContainerOptions};
use futures_util::StreamExt;
use tracing::warn;

use super::ask::{self, Details, State, inspect};
use super::call::{CallError, within};
use super::daemon::{Client, SHORT};
use super::images;
use super::labels;
use super::outlived;
use super::place::{PORT, Places};
use crate::runtime::{Endpoint, Exit, Found, Owner, UnitId, UnitState};

/// How long one question may wait for a container's end before it is asked again.
const WAIT: Duration = Duration::from_secs(600);

/// The pause before a daemon that contradicts itself is asked again.
const AGAIN: Duration = Duration::from_millis(100);

/// How long a daemon may take to end a container beyond the grace that it is given.
const STOP: Duration = Duration::from_secs(60);

/// How long a container may stay in the way while the daemon removes it.
const REMOVAL: Duration = Duration::from_secs(30);

/// All containers of this fleet and node, running or not.
pub(super) async fn list(client: &Client, owner: &Owner, places: &Places) -> Result<Vec<Found>, CallError> {
    let containers = ask::list(client, &labels::units_of(owner)).await?;
    let mut digests: HashMap<String, Option<String>> = HashMap::new();
    let mut units = Vec::with_capacity(containers.len());
    for container in containers {
        let id = container.id;
        let Some(marks) = labels::read(owner, &container.labels.unwrap_or_default()) else {
            warn!(container = id, "a container has labels of this node that can not be read, and is left alone");
            continue;
        };
        // It may go between the list and the question.
        let Some(details) = inspect(client, &id).await? else { continue };
        let image = details.image.clone().unwrap_or_default();
        if !digests.contains_key(&image) {
            let asked_as = details.config.as_ref().and_then(|config| config.image.as_deref());
            let digest = digest(client, &image, asked_as).await?;
            digests.insert(image.clone(), digest);
        }
        units.push(Found {
            unit: marks.unit,
            generation: marks.generation,
            spec_hash: marks.spec_hash,
            engine: marks.engine,
            state: state(&details, places, marks.unit),
            image_digest: digests.get(&image).cloned().flatten(),
        });
    }
    Ok(units)
}

/// The containers of one unit. There is one at most, unless somebody copied its labels.
pub(super) async fn of_unit(client: &Client, owner: &Owner, unit: UnitId) -> Result<Vec<String>, CallError> {
    let containers = ask::list(client, &labels::unit_of(owner, unit)).await?;
    let ours = containers.into_iter().filter(|container| {
        let marks = container.labels.as_ref().and_then(|labels| labels::read(owner, labels));
        marks.is_some_and(|marks| marks.unit == unit)
    });
    Ok(ours.map(|container| container.id).collect())
}

/// Whether a container runs, and where its engine listens or how it ended.
pub(super) fn state(details: &Details, places: &Places, unit: UnitId) -> UnitState {
    let state = details.state.as_ref();
    if state.is_some_and(runs) {
        return UnitState::Running(endpoint(details).unwrap_or_else(|| Endpoint::Unix(places.socket(unit))));
    }
    UnitState::Ended(state.map_or(UNSEEN, exit))
}

/// The port on loopback that a container's engine is published at, if it is.
pub(super) fn endpoint(details: &Details) -> Option<Endpoint> {
    let ports = details.network_settings.as_ref()?.ports.as_ref()?;
    let bindings = ports.get(&format!("{PORT}/tcp"))?.as_ref()?;
    let port = bindings.iter().find_map(|binding| binding.host_port.as_ref()?.parse().ok())?;
    Some(Endpoint::Tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
}

const UNSEEN: Exit = Exit { code: None, signal: None, out_of_memory: false };

fn runs(state: &State) -> bool {
    state.running || state.paused || state.restarting
}

/// How a container ended. One that was created and never started has ended, and nobody knows how.
fn exit(state: &State) -> Exit {
    let started = state.started_at.as_deref().is_some_and(|at| !at.is_empty() && !at.starts_with("0001-"));
    let code = state.exit_code.and_then(|code| i32::try_from(code).ok()).filter(|_| started);
    Exit { code, signal: code.and_then(signal), out_of_memory: state.oom_killed }
}

/// The signal that the first process of a container reports as its exit code when it, or what it looks after, was ended by one.
fn signal(code: i32) -> Option<i32> {
    (129..=159).contains(&code).then(|| code - 128)
}

/// Waits until a container has ended.
pub(super) async fn ended(client: &Client, id: &str) -> Result<Exit, CallError> {
    let mut seen = UNSEEN;
    loop {
        match inspect(client, id).await? {
            None => return Ok(seen),
            Some(details) => match details.state.as_ref() {
                Some(state) if runs(state) => {}
                Some(state) => return Ok(exit(state)),
                None => return Ok(UNSEEN),
            },
        }
        // What ended may be removed before it can be asked how.
        if let Some(code) = wait(client, id, WAIT).await? {
            seen = Exit { code: Some(code), signal: signal(code), out_of_memory: false };
            // A daemon may tell of an end before its own record says so. It is not asked as fast as it can answer.
            if inspect(client, id).await?.is_some_and(|details| details.state.as_ref().is_some_and(runs)) {
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// The exit code of a container, once it has ended. `None`: it is not there, or it has not in this time.
async fn wait(client: &Client, id: &str, limit: Duration) -> Result<Option<i32>, CallError> {
    let docker = client.patient(limit + SHORT);
    let options = WaitContainerOptions { condition: "not-running".to_owned() };
    let mut answers = pin!(docker.wait_container(id, Some(options)));
    let code = match within(limit, async { Ok(answers.next().await) }).await {
        Ok(Some(Ok(answer))) => answer.status_code,
        // That is how a code other than 0 is told.
        Ok(Some(Err(bollard::errors::Error::DockerContainerWaitError { code, .. }))) => code,
        Ok(Some(Err(error))) => match CallError::from(error) {
            error if error.is_missing() => return Ok(None),
            error => return Err(error),
        },
        Ok(None) => return Err(CallError::Unreachable("it stopped telling when a container ends".to_owned())),
        Err(_) => return Ok(None),
    };
    Ok(i32::try_from(code).ok())
}

/// Ends a container with all its processes, and removes it.
pub(super) async fn stop(client: &Client, id: &str, grace: Duration) -> Result<(), CallError> {
    let Some(details) = inspect(client, id).await? else { return Ok(()) };
    let state = details.state.unwrap_or_default();
    // A daemon of a virtual machine has other numbers. Only what is in the container's own control group is believed.
    let root = i32::try_from(state.pid).ok().filter(|pid| *pid > 1);
    let in_group = outlived::of_container(id).await;
    let mut processes = match root {
        Some(root) if in_group.iter().any(|process| process.pid == root) => outlived::tree(root).await,
        _ => Default::default(),
    };
    processes.extend(in_group);
    if runs(&state) {
        let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let options = StopContainerOptions { signal: None, t: Some(i32::try_from(seconds).unwrap_or(i32::MAX)) };
        let limit = Duration::from_secs(seconds) + STOP;
        match within(limit, client.patient(limit).stop_container(id, Some(options))).await {
            Ok(()) => {}
            Err(error) if error.is_missing() => {}
            // The daemon could not end it, or gave up. What is forced below ends it.
            Err(error @ CallError::Refused { .. }) => warn!(container = id, %error, "a container was not stopped"),
            Err(error) => return Err(error),
        }
    }
    remove(client, id).await?;
    processes.extend(outlived::of_container(id).await);
    let left = outlived::end(processes).await;
    if !left.is_empty() {
        let numbers: Vec<_> = left.iter().map(|process| process.pid.to_string()).collect();
        return Err(CallError::Odd(format!("processes outlive their container: {}", numbers.join(", "))));
    }
    Ok(())
}

/// Removes a container with its anonymous volumes, running or not.
pub(super) async fn remove(client: &Client, id: &str) -> Result<(), CallError> {
    let options = RemoveContainerOptions { v: true, force: true, link: false };
    match within(STOP, client.patient(STOP).remove_container(id, Some(options))).await {
        Ok(()) => Ok(()),
        Err(error) if error.is_missing() => Ok(()),
        // Somebody else removes it.
        Err(error) if error.is_conflict() => removed(client, id, error).await,
        Err(error) => Err(error),
    }
}

async fn removed(client: &Client, id: &str, error: CallError) -> Result<(), CallError> {
    let deadline = tokio::time::Instant::now() + REMOVAL;
    while tokio::time::Instant::now() < deadline {
        if inspect(client, id).await?.is_none() {
            return Ok(());
        }
        tokio::time::sleep(AGAIN).await;
    }
    Err(error)
}

async fn digest(client: &Client, image: &str, asked_as: Option<&str>) -> Result<Option<String>, CallError> {
    let details = if image.is_empty() { None } else { images::inspect(client, image).await? };
    let digest = details.and_then(|details| images::digest(&details, asked_as));
    // The image may have been deleted from under a container by force.
    Ok(digest.or_else(|| (!image.is_empty()).then(|| images::identity(image))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended_with(code: i64, out_of_memory: bool) -> State {
        State {
            exit_code: Some(code),
            oom_killed: out_of_memory,
            started_at: Some("2026-01-01T00:00:00Z".to_owned()),
            ..Default::default()
        }
    }

    #[test]
    fn an_end_says_its_code_the_signal_behind_it_and_whether_memory_ran_out() {
        assert_eq!(exit(&ended_with(1, false)), Exit { code: Some(1), signal: None, out_of_memory: false });
        assert_eq!(exit(&ended_with(137, true)), Exit { code: Some(137), signal: Some(9), out_of_memory: true });
    }

    #[test]
    fn a_container_that_never_started_has_no_code() {
        let state = State { started_at: Some("0001-01-01T00:00:00Z".to_owned()), ..ended_with(0, false) };
        assert_eq!(exit(&state), UNSEEN);
    }
}
