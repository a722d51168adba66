//! Every write at most once: what is remembered of a write so that its repetition returns the first answer.
//!
//! The marker is part of the replicated state. A write of a node's own carries that process and a count; only so many of the
//! last are remembered, and an older one that comes back is refused, because nobody knows any more whether it was applied.
//! A write with a caller's `Idempotency-Key` is remembered by time.

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};

use super::step::{Damaged, Row, Step, Stop, read, refused};
use super::tables::Tables;
use super::view::View;
use crate::ids::LogTime;
use crate::rows::answer::Outcome;
use crate::rows::{self, Marker, Once, RefusalKind, Sealed, once::Who};

/// How many writes of one process are remembered; a node has fewer than this many in flight.
pub const CLIENT_WINDOW: u64 = 256;

/// How long a caller's key is remembered, in milliseconds of the log's time.
pub const KEY_RETENTION_MS: u64 = 24 * 3600 * 1000;

/// How long the writes of a process are remembered after it has written its last.
pub const CLIENT_RETENTION_MS: u64 = 3600 * 1000;

/// How long the secret part of an answer can be had again.
const SECRET_RETENTION_MS: u64 = 10 * 60 * 1000;

/// How many secret answers are kept at once.
const SECRET_LIMIT: usize = 1000;

const CLIENT: u8 = b'c';
const KEYED: u8 = b'k';

/// What a caller's key is remembered by.
#[must_use]
pub fn key_digest(principal: &str, method: &str, path: &str, key: &str) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for part in [principal, method, path, key] {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    hasher.finalize().into()
}

fn client_key(client: &[u8], seq: u64) -> Vec<u8> {
    let mut key = vec![CLIENT];
    key.extend(client);
    key.extend(seq.to_be_bytes());
    key
}

/// The key of the marker of such a write.
fn marker_key(once: &Once) -> Option<Vec<u8>> {
    match once.who.as_ref()? {
        Who::Client(client) => Some(client_key(&client.client, client.seq)),
        Who::Key(key) => Some([&[KEYED], key.as_ref()].concat()),
    }
}

/// The first answer, if this write is a repetition.
pub(super) fn recall(step: &Step<'_>) -> Result<Option<rows::Answer>, Stop> {
    let Some(once) = &step.origin.once else { return Ok(None) };
    match look_up(step.tables, once)? {
        None => beyond_the_window(step, once).map(|()| None),
        first => Ok(first),
    }
}

fn look_up(tables: &Tables, once: &Once) -> Result<Option<rows::Answer>, Stop> {
    let Some(key) = marker_key(once) else { return Ok(None) };
    let Some(marker) = read::<Marker>(tables, &key)? else { return Ok(None) };
    if marker.row.body_hash != once.body_hash {
        let why = "this Idempotency-Key was used with another body";
        return Err(refused(RefusalKind::KeyReused, why));
    }
    if marker.row.secret && tables.aside(&key).is_none() {
        let why = "it was done, and its secret answer is no longer kept";
        return Err(refused(RefusalKind::AnswerGone, why));
    }
    let answer = rows::Answer::decode(marker.row.answer.clone());
    let answer = answer.map_err(|error| Damaged { table: Marker::TABLE.0, why: error.to_string() })?;
    Ok(Some(rows::Answer { replayed: true, ..answer }))
}

/// Refuses a write of a process that is older than what is remembered of it.
fn beyond_the_window(step: &Step<'_>, once: &Once) -> Result<(), Stop> {
    let Some(Who::Client(client)) = &once.who else { return Ok(()) };
    let newer = client_key(&client.client, client.seq.saturating_add(CLIENT_WINDOW));
    let next = step.tables.range(Marker::TABLE, &newer).next();
    match next {
        Some((key, _)) if key.starts_with(&client_key(&client.client, 0)[..1 + client.client.len()]) => {
            let why = "it is too old to know whether it was done";
            Err(refused(RefusalKind::AnswerGone, why))
        }
        _ => Ok(()),
    }
}

/// Remembers what was done.
pub(super) fn remember(step: &mut Step<'_>, outcome: &Outcome) -> Result<(), Stop> {
    let Some(once) = &step.origin.once else { return Ok(()) };
    let Some(key) = marker_key(once) else { return Ok(()) };
    let answer = rows::Answer { index: step.index, replayed: false, outcome: Some(outcome.clone()) };
    let marker = Marker {
        index: step.index,
        time_ms: step.now.0,
        body_hash: once.body_hash.clone(),
        answer: answer.encode_to_vec().into(),
        secret: once.answer.is_some(),
    };
    if let Some(sealed) = &once.answer {
        keep_secret(step, &key, sealed);
    }
    step.put(key, &marker)?;
    if let Some(Who::Client(client)) = &once.who
        && let Some(old) = client.seq.checked_sub(CLIENT_WINDOW)
    {
        step.remove::<Marker>(client_key(&client.client, old));
    }
    Ok(())
}

fn keep_secret(step: &mut Step<'_>, key: &[u8], sealed: &Sealed) {
    let (now, index) = (step.now.0, step.index);
    // The index of a value that lies aside is the time until which it is kept.
    step.tables.retain_aside(|record| record.mod_index > now);
    if step.tables.aside_len() < SECRET_LIMIT {
        tracing::debug!(index, "a secret answer is kept for a repetition");
        step.tables.keep_aside(
            Bytes::copy_from_slice(key),
            sealed.encode_to_vec().into(),
            now.saturating_add(SECRET_RETENTION_MS),
        );
    }
}

/// Whether a marker has been kept long enough.
#[must_use]
pub fn is_over(key: &[u8], marker: &Marker, now: LogTime) -> bool {
    let retention = if key.first() == Some(&CLIENT) { CLIENT_RETENTION_MS } else { KEY_RETENTION_MS };
    marker.time_ms.saturating_add(retention) <= now.0
}

impl View {
    /// The answer of a write that has been done already, or the refusal that its repetition meets; `None` if it has not been
    /// done.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn first_answer(&self, once: &Once) -> Result<Option<rows::Answer>, Damaged> {
        match look_up(self.tables(), once) {
            Ok(answer) => Ok(answer),
            Err(Stop::Damaged(damaged)) => Err(damaged),
            Err(Stop::Refused(refusal)) => {
                Ok(Some(rows::Answer { index: 0, replayed: true, outcome: Some(Outcome::Refusal(refusal)) }))
            }
        }
    }

    /// The secret part of the answer to a write that is being repeated, if it is still there.
    #[must_use]
    pub fn secret_answer(&self, once: &Once) -> Option<Sealed> {
        let record = self.tables().aside(&marker_key(once)?)?;
        Sealed::decode(record.value.clone()).ok()
    }

    /// The markers that have been kept long enough, at most so many.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn markers_over(&self, now: LogTime, limit: usize) -> Result<Vec<Bytes>, Damaged> {
        let mut over = Vec::new();
        for row in self.rows::<Marker>(&[]) {
            let (key, marker) = row?;
            if is_over(key, &marker.row, now) {
                over.push(Bytes::copy_from_slice(key));
                if over.len() == limit {
                    break;
                }
            }
        }
        Ok(over)
    }
}
