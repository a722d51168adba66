//! Every write at most once: what is remembered of a write so that its repetition returns the first answer.
//!
//! The marker is part of the replicated state. A write of a node's own carries that process and a count; only so many of the
//! last are remembered, and an older one that comes back is refused, because nobody knows any more whether it was applied.
//! A write with a caller's `Idempotency-Key` is remembered by time.

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};

use super::step::{Damaged, Row, Step, Stop, decode, read, refused};
use super::tables::{Record, Tables};
use super::view::View;
use crate::ids::LogTime;
use crate::rows::answer::Outcome;
use crate::rows::{self, Marker, Once, RefusalKind, Sealed, once::Who};

/// How many writes of one process are remembered; a node has fewer than this many in flight.
pub const CLIENT_WINDOW: u64 = 256;

/// How long a caller's key is remembered, in milliseconds of the log's time.
pub const KEY_RETENTION_MS: u64 = 2 * 3600 * 1000;

/// How many callers' keys are remembered. The oldest go first, but none before this many milliseconds have passed.
const KEYED_LIMIT: usize = 100_000;
const SURPLUS_RETENTION_MS: u64 = 60 * 1000;

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
    match look_up(step.tables, once, step.now)? {
        None => beyond_the_window(step, once).map(|()| None),
        first => Ok(first),
    }
}

fn look_up(tables: &Tables, once: &Once, now: LogTime) -> Result<Option<rows::Answer>, Stop> {
    let Some(key) = marker_key(once) else { return Ok(None) };
    let Some(marker) = read::<Marker>(tables, &key)? else { return Ok(None) };
    if marker.row.body_hash != once.body_hash {
        let why = "this Idempotency-Key was used with another body";
        return Err(refused(RefusalKind::KeyReused, why));
    }
    if marker.row.secret && kept_secret(tables, &key, now).is_none() {
        let why = "it was done, and its secret answer is no longer kept";
        return Err(refused(RefusalKind::AnswerGone, why));
    }
    let answer = rows::Answer::decode(marker.row.answer.clone());
    let answer = answer.map_err(|error| Damaged { table: Marker::TABLE.0, why: error.to_string() })?;
    Ok(Some(rows::Answer { replayed: true, ..answer }))
}

/// Refuses a write of a process of which nobody knows any more whether it was done.
fn beyond_the_window(step: &Step<'_>, once: &Once) -> Result<(), Stop> {
    let Some(Who::Client(client)) = &once.who else { return Ok(()) };
    let gone = || Err(refused(RefusalKind::AnswerGone, "it is too old to know whether it was done"));
    match newest(step.tables, &client.client)? {
        Some((seq, _)) if seq >= client.seq.saturating_add(CLIENT_WINDOW) => gone(),
        // What is remembered of the process is being forgotten, or has been: the write may have been done before.
        Some((_, marker)) if once.repeated && is_past(&marker, CLIENT_RETENTION_MS, step.now) => gone(),
        // Nobody has been given that count yet.
        Some((seq, _)) if once.repeated && client.seq > seq.saturating_add(CLIENT_WINDOW) => gone(),
        None if once.repeated => gone(),
        _ => Ok(()),
    }
}

/// The newest write that is remembered of a process, and its count.
fn newest(tables: &Tables, client: &[u8]) -> Result<Option<(u64, Marker)>, Damaged> {
    let last = tables.last(Marker::TABLE, &client_key(client, 0), &client_key(client, u64::MAX));
    let Some((key, record)) = last else { return Ok(None) };
    let seq = key.last_chunk::<8>().copied().map_or(0, u64::from_be_bytes);
    Ok(Some((seq, decode::<Marker>(record)?.row)))
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

/// A secret answer, as long as it may still be handed out: it is cleared away only when the next one comes.
fn kept_secret<'a>(tables: &'a Tables, key: &[u8], now: LogTime) -> Option<&'a Record> {
    tables.aside(key).filter(|record| record.mod_index > now.0)
}

fn is_past(marker: &Marker, retention_ms: u64, now: LogTime) -> bool {
    marker.time_ms.saturating_add(retention_ms) <= now.0
}

/// Whether a marker has been kept long enough. Those of a process go all together, when its newest has. A caller's key may
/// be forgotten earlier when there are too many.
pub(super) fn is_over(
    tables: &Tables,
    key: &[u8],
    marker: &Marker,
    now: LogTime,
    surplus: bool,
) -> Result<bool, Damaged> {
    match key.split_first() {
        Some((&CLIENT, rest)) => {
            let client = &rest[..rest.len().saturating_sub(size_of::<u64>())];
            Ok(newest(tables, client)?.is_none_or(|(_, newest)| is_past(&newest, CLIENT_RETENTION_MS, now)))
        }
        _ if surplus => Ok(is_past(marker, SURPLUS_RETENTION_MS, now)),
        _ => Ok(is_past(marker, KEY_RETENTION_MS, now)),
    }
}

impl View {
    /// The answer of a write that has been done already, or the refusal that its repetition meets; `None` if it has not been
    /// done.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn first_answer(&self, once: &Once) -> Result<Option<rows::Answer>, Damaged> {
        match look_up(self.tables(), once, self.time()?) {
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
        let record = kept_secret(self.tables(), &marker_key(once)?, self.time().ok()?)?;
        Sealed::decode(record.value.clone()).ok()
    }

    /// The markers that have been kept long enough, at most so many, and whether callers' keys among them are only too many.
    ///
    /// # Errors
    /// When a row is damaged.
    pub fn markers_over(&self, now: LogTime, limit: usize) -> Result<(Vec<Bytes>, bool), Damaged> {
        let mut over = Vec::new();
        let mut keyed = Vec::new();
        for row in self.rows::<Marker>(&[]) {
            let (key, marker) = row?;
            if over.len() < limit && is_over(self.tables(), key, &marker.row, now, false)? {
                over.push(Bytes::copy_from_slice(key));
            }
            if key.first() == Some(&KEYED) {
                keyed.push((marker.row.index, Bytes::copy_from_slice(key)));
            }
        }
        let surplus = keyed.len().saturating_sub(KEYED_LIMIT);
        if !over.is_empty() || surplus == 0 {
            return Ok((over, false));
        }
        keyed.sort_unstable();
        Ok((keyed.into_iter().map(|(_, key)| key).take(surplus.min(limit)).collect(), true))
    }
}
