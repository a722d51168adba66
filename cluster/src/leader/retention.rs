//! The duty that keeps the state from growing for ever.

use std::time::Duration;

use futures_util::future::BoxFuture;

use super::{Duty, Leader, Withheld};
use crate::ids::{CredentialId, LogTime};
use crate::rows::{Sweep, answer::Outcome, command::Body};
use crate::state::{Damaged, SWEEP_LIMIT, View, has_expired};

/// The audit trail in the state: so many entries, and so long.
const AUDIT_ENTRIES: usize = 10_000;
const AUDIT_AGE_MS: u64 = 7 * 24 * 3600 * 1000;

/// A command has 16 KiB: markers' keys take up to 33 bytes each.
const MARKERS_AT_ONCE: usize = SWEEP_LIMIT;

/// Removes remembered answers, expired credentials and old entries of the audit trail.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// How often it looks.
    pub period: Duration,
}

impl Default for Retention {
    fn default() -> Self {
        Self { period: Duration::from_secs(30) }
    }
}

impl Duty for Retention {
    fn name(&self) -> &'static str {
        "retention"
    }

    fn run(&self, leader: Leader) -> BoxFuture<'static, ()> {
        let period = self.period;
        Box::pin(async move {
            let mut withheld = None;
            loop {
                let outcome = match time(&leader) {
                    Ok(now) => {
                        withheld = None;
                        pass(&leader, now).await
                    }
                    Err(Wait::Withheld(why)) => {
                        if withheld.replace(why) != Some(why) {
                            say(why);
                        }
                        Ok(false)
                    }
                    Err(Wait::Damaged(damaged)) => Err(damaged.to_string()),
                };
                match outcome {
                    // There may be more: what is due goes in one pass after the other, each a short command.
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(error) => tracing::warn!(error, "the sweep waits"),
                }
                tokio::time::sleep(period).await;
            }
        })
    }
}

pub(super) fn say(why: Withheld) {
    match why {
        // Every start of a fleet of one.
        Withheld::TooRecent => tracing::info!(%why, "nothing expires for now"),
        Withheld::ClockOff | Withheld::NoSecondVoter => tracing::warn!(%why, "nothing expires for now"),
    }
}

/// Why there is no sweep.
pub(super) enum Wait {
    Withheld(Withheld),
    Damaged(Damaged),
}

/// The time of the log, if something may expire by it.
pub(super) fn time(leader: &Leader) -> Result<LogTime, Wait> {
    let now = leader.consensus().published().time().map_err(Wait::Damaged)?;
    leader.may_expire(now).map_err(Wait::Withheld)?;
    Ok(now)
}

/// Proposes one sweep if anything was due at this time, and says whether something was.
async fn pass(leader: &Leader, now: LogTime) -> Result<bool, String> {
    let view = leader.consensus().published().view();
    // It looks at every remembered answer, which must not delay a sign of life.
    let looked = tokio::task::spawn_blocking(move || due(&view, now)).await;
    let sweep = looked.map_err(|error| error.to_string())?.map_err(|damaged| damaged.to_string())?;
    if sweep == Sweep::default() {
        return Ok(false);
    }
    let body = Body::Sweep(Sweep { office: leader.office().0, ..sweep });
    let answer = leader.propose("retention", body).await.map_err(|error| error.to_string())?;
    match answer.outcome {
        Some(Outcome::Refusal(refusal)) => Err(refusal.message),
        _ => Ok(true),
    }
}

/// What has been kept long enough at this time, as far as one command can carry it.
fn due(view: &View, now: LogTime) -> Result<Sweep, Damaged> {
    let (markers, surplus) = view.markers_over(now, MARKERS_AT_ONCE)?;
    let mut credentials = Vec::new();
    for row in view.credentials(CredentialId(0)) {
        let (id, credential) = row?;
        if has_expired(&credential.row, now) && credentials.len() < SWEEP_LIMIT {
            credentials.push(id.0);
        }
    }
    Ok(Sweep { office: 0, markers, credentials, audit_before: audit_before(view, now)?, surplus })
}

/// Entries before this index are too many or too old; 0 if there are none.
fn audit_before(view: &View, now: LogTime) -> Result<u64, Damaged> {
    let entries: Vec<_> = view.audit(0).collect::<Result<_, _>>()?;
    let surplus = entries.len().saturating_sub(AUDIT_ENTRIES);
    let old = entries.partition_point(|(_, entry)| entry.time_ms.saturating_add(AUDIT_AGE_MS) <= now.0);
    let remove = surplus.max(old);
    Ok(match remove.checked_sub(1).and_then(|last| entries.get(last)) {
        Some((index, _)) => index + 1,
        None => 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{AuditEntry, Credential, Marker};
    use crate::state::{Row, Tables};
    use crate::storage::Applied;

    fn view(fill: impl FnOnce(&mut Tables)) -> View {
        let mut tables = Tables::default();
        fill(&mut tables);
        View::new(&tables, &Applied::default())
    }

    fn put<R: Row>(tables: &mut Tables, key: &[u8], row: &R, index: u64) {
        tables.put(R::TABLE, key.to_vec(), row.encode_to_vec(), index);
    }

    #[test]
    fn only_what_is_old_or_too_much_goes() {
        let day = 24 * 3600 * 1000;
        let view = view(|tables| {
            for index in 1..=5_u64 {
                let entry = AuditEntry { time_ms: index * 2 * day, ..AuditEntry::default() };
                put(tables, &index.to_be_bytes(), &entry, index);
                let expires_ms = (index > 1).then_some(index * 2 * day);
                put(tables, &index.to_be_bytes(), &Credential { expires_ms, ..Credential::default() }, index);
            }
            for (key, days) in [("k-old", 8), ("k-new", 10), ("cA12345678", 9), ("cB12345678", 10)] {
                put(tables, key.as_bytes(), &Marker { time_ms: days * day, ..Marker::default() }, 6);
            }
        });
        let sweep = due(&view, LogTime(10 * day + 1)).expect("readable");
        assert_eq!(sweep.markers, ["cA12345678", "k-old"]);
        assert_eq!(sweep.credentials, [2, 3, 4, 5], "the first never expires");
        assert_eq!(sweep.audit_before, 2, "only the entry of the second day is older than seven");
        assert_eq!(due(&view, LogTime(0)).expect("readable"), Sweep::default());
    }

    #[test]
    fn the_audit_trail_is_bounded_by_number() {
        let surplus = 7;
        let view = view(|tables| {
            for index in 1..=(AUDIT_ENTRIES as u64 + surplus) {
                put(tables, &index.to_be_bytes(), &AuditEntry { time_ms: 1, ..AuditEntry::default() }, index);
            }
        });
        assert_eq!(due(&view, LogTime(1)).expect("readable").audit_before, surplus + 1);
    }
}
