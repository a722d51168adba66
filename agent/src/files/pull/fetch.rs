//! One file from the web, with as many attempts as it takes while there is progress.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use http_body_util::BodyDataStream;
use url::Url;

use super::client::{Answer, Client, Resume, Trouble};
use crate::files::archive::ArchiveKind;
use crate::files::error::FilesError;
use crate::files::names::RelativePath;
use crate::files::pipe::{copy, feed};
use crate::files::room::{LOOK_EVERY, Promise};
use crate::files::shelf::Shelf;
use crate::files::transfers::TransferHandle;
use crate::files::uploads::ARCHIVE_FACTOR;

/// How many attempts in a row may bring nothing.
const ATTEMPTS: u32 = 5;

/// A file that has come whole.
#[derive(Debug)]
pub(super) struct Fetched {
    /// What it calls itself.
    pub(super) file_name: Option<RelativePath>,
    /// Whether and how it is packed.
    pub(super) kind: Option<ArchiveKind>,
    /// Room for what comes out of it.
    pub(super) promise: Promise,
}

/// What is known of a file of which a part has come.
#[derive(Debug)]
struct Known {
    validator: Option<String>,
    total: Option<u64>,
    fetched: Fetched,
}

/// Fetches a file to a path. Breaks are mended from where they happened, if the server can tell that the file is still the same.
pub(super) async fn fetch(
    client: &Client,
    url: &Url,
    to: &Path,
    shelf: &Shelf,
    transfer: &TransferHandle,
) -> Result<Fetched, FilesError> {
    let mut known: Option<Known> = None;
    let mut have = 0_u64;
    let mut in_vain = 0_u32;
    loop {
        let before = have;
        let outcome = attempt(client, url, to, shelf, transfer, &mut known, &mut have).await;
        transfer.set_received(have);
        let why = match outcome {
            Ok(()) => {
                let known = known.ok_or(FilesError::GivenUp)?;
                return Ok(known.fetched);
            }
            Err(Trouble::Final(error)) => return Err(error),
            Err(Trouble::Again(why)) => why,
        };
        in_vain = if have > before { 1 } else { in_vain + 1 };
        if in_vain >= ATTEMPTS {
            return Err(FilesError::Upstream(why));
        }
        tracing::debug!(%why, have, "a pull broke off and is tried again");
        let pause = shelf.limits.pull_pause.saturating_mul(1 << in_vain.min(5));
        tokio::time::sleep(pause.min(Duration::from_secs(30))).await;
    }
}

async fn attempt(
    client: &Client,
    url: &Url,
    to: &Path,
    shelf: &Shelf,
    transfer: &TransferHandle,
    known: &mut Option<Known>,
    have: &mut u64,
) -> Result<(), Trouble> {
    let validator = known.as_ref().and_then(|known| known.validator.clone());
    let resume = validator.filter(|_| *have > 0).map(|validator| Resume { from: *have, validator });
    let answer = client.get(url, resume.as_ref()).await?;
    let status = answer.response.status();
    let total = match (status, known.as_ref()) {
        (StatusCode::OK, _) => {
            // Another file, or a server that does not go on: from the start.
            *have = 0;
            // Room that was promised to the old one is free before the new one asks.
            drop(known.take());
            let fresh = describe(url, &answer, shelf)?;
            transfer.set_total(fresh.total);
            known.insert(fresh).total
        }
        (StatusCode::PARTIAL_CONTENT, Some(there)) if resume.is_some() => {
            let agrees =
                answer.range().is_some_and(|(from, total)| from == *have && (total.is_none() || total == there.total));
            if !agrees {
                *known = None;
                return Err(Trouble::Again("the server answered with another part than was asked for".to_owned()));
            }
            there.total
        }
        (StatusCode::RANGE_NOT_SATISFIABLE, Some(_)) => {
            *known = None;
            return Err(Trouble::Again("the file has changed on the server".to_owned()));
        }
        _ => return Err(refusal(status)),
    };
    transfer.set_received(*have);
    receive(answer, to, shelf, transfer, known.as_ref(), have).await?;
    match total {
        Some(total) if *have < total => Err(Trouble::Again("the server broke off".to_owned())),
        Some(total) if *have > total => {
            *known = None;
            Err(Trouble::Again("the server sent more than it said".to_owned()))
        }
        _ => Ok(()),
    }
}

fn refusal(status: StatusCode) -> Trouble {
    let said = format!("the server answered {status}");
    let passing = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
    if status.is_server_error() || passing.contains(&status) {
        Trouble::Again(said)
    } else {
        Trouble::Final(FilesError::Upstream(said))
    }
}

/// What the head of a complete answer says of the file. It needs room, with what comes out of it if it is an archive.
fn describe(url: &Url, answer: &Answer, shelf: &Shelf) -> Result<Known, Trouble> {
    let names = [last_segment(url), answer.file_name(), last_segment(&answer.url)];
    let mut names: Vec<RelativePath> =
        names.into_iter().flatten().filter_map(|name| RelativePath::parse_file_name(&name).ok()).collect();
    let kind = names.iter().find_map(|name| ArchiveKind::of(name.as_str()));
    // A name with an ending tells more than one without.
    names.sort_by_key(|name| !name.as_str().contains('.'));
    let total = answer.length();
    let factor = if kind.is_some() { ARCHIVE_FACTOR } else { 1 };
    let promise = shelf.room.promise(total.unwrap_or(0), factor).map_err(Trouble::Final)?;
    let fetched = Fetched { file_name: names.into_iter().next(), kind, promise };
    Ok(Known { validator: answer.validator(), total, fetched })
}

/// The last part of a URL's path, decoded. `None`: it has none.
pub(super) fn last_segment(url: &Url) -> Option<String> {
    let segment = url.path_segments()?.next_back()?;
    let decoded = percent_encoding::percent_decode_str(segment).decode_utf8().ok()?;
    (!decoded.is_empty()).then(|| decoded.into_owned())
}

/// Appends the body of an answer to the file, and counts what has come whatever happens.
async fn receive(
    answer: Answer,
    to: &Path,
    shelf: &Shelf,
    transfer: &TransferHandle,
    known: Option<&Known>,
    have: &mut u64,
) -> Result<(), Trouble> {
    let Answer { response, connection, .. } = answer;
    let from = *have;
    let (to, room) = (to.to_owned(), shelf.room.clone());
    let (count, counted) = tokio::sync::watch::channel(from);
    let work = move |mut reader| {
        let fail = |e| FilesError::io("writing a file", e);
        let mut file = File::options().create(true).write(true).truncate(false).open(to).map_err(fail)?;
        file.set_len(from).map_err(fail)?;
        file.seek(SeekFrom::Start(from)).map_err(fail)?;
        let mut unlooked = LOOK_EVERY;
        let mut length = from;
        let copied = copy(&mut reader, &mut file, |piece| {
            unlooked += piece.len() as u64;
            if unlooked >= LOOK_EVERY {
                unlooked = 0;
                room.look()?;
            }
            length += piece.len() as u64;
            count.send_replace(length);
            Ok(())
        });
        let synced = file.sync_all().map_err(fail);
        match copied.and(synced) {
            Ok(()) => Ok((length, true)),
            // What has come is kept for the next attempt.
            Err(FilesError::BrokenOff) => Ok((length, false)),
            Err(error) => Err(error),
        }
    };
    let feeding = feed(BodyDataStream::new(response.into_body()), shelf.limits.silence, work);
    let telling = async {
        let mut counted = counted;
        let mut told = from;
        while counted.changed().await.is_ok() {
            let now = *counted.borrow_and_update();
            transfer.set_received(now);
            if let Some(known) = known {
                known.fetched.promise.written(now - told);
            }
            told = now;
        }
        std::future::pending::<()>().await;
    };
    let outcome = tokio::select! {
        outcome = feeding => outcome,
        () = telling => return Err(Trouble::Final(FilesError::GivenUp)),
    };
    drop(connection);
    let (length, whole) = outcome.map_err(Trouble::Final)?;
    *have = length;
    if whole { Ok(()) } else { Err(Trouble::Again("the connection to the server broke".to_owned())) }
}
