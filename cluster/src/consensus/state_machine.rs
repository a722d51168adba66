//! The replicated tables, their durable copy and their snapshots as openraft's state machine.

use std::io;
use std::sync::Arc;

use futures_util::{Stream, TryStreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::entry::RaftEntry;
use openraft::storage::{ApplyResponder, EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};

use super::config::{
    Answer, TypeConfig, from_log_id, from_stored_membership, to_log_id, to_membership, to_stored_membership,
};
use crate::state::{Batch, Machine, Published, Tables, View};
use crate::storage::{Applied, SnapshotFile, SnapshotStore, StateStore, StoreError, StoredMembership};

/// After so many entries they are shown, answered, and handed to the disk even if more are waiting.
const AT_ONCE: usize = 128;

/// Entries that are applied, and neither shown nor answered yet.
#[derive(Default)]
struct Done {
    entries: usize,
    written: Vec<Batch>,
    answers: Vec<(ApplyResponder<TypeConfig>, Answer)>,
}

/// The replicated state of this node, as openraft sees it.
pub struct StateMachine<M> {
    machine: M,
    tables: Tables,
    applied: Applied,
    state: Arc<StateStore>,
    snapshots: Arc<SnapshotStore>,
    published: Arc<Published>,
}

impl<M: Machine> StateMachine<M> {
    /// Puts openraft's interface over an open state, which is shown through [`Self::published`].
    #[must_use]
    pub fn new(
        machine: M,
        tables: Tables,
        applied: Applied,
        state: Arc<StateStore>,
        snapshots: Arc<SnapshotStore>,
    ) -> Self {
        let published = Arc::new(Published::new(View::new(&tables, &applied)));
        Self { machine, tables, applied, state, snapshots, published }
    }

    /// Where readers see the state.
    #[must_use]
    pub fn published(&self) -> Arc<Published> {
        Arc::clone(&self.published)
    }

    async fn apply_all<Strm>(&mut self, entries: &mut Strm, done: &mut Done) -> io::Result<()>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some((entry, responder)) = entries.try_next().await? {
            let at = to_log_id(&entry.log_id());
            let written = self.tables.changes().len();
            let answer = match &entry.payload {
                EntryPayload::Blank => Answer::default(),
                EntryPayload::Membership(membership) => {
                    self.applied.membership =
                        StoredMembership { log_id: Some(at), membership: to_membership(membership) };
                    Answer::default()
                }
                EntryPayload::Normal(command) => {
                    let answer = self.machine.apply(&mut self.tables, at, &command.0);
                    Answer(answer.map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?)
                }
            };
            self.applied.log_id = Some(at);
            if let written @ [_, ..] = &self.tables.changes()[written..] {
                done.written.push(Batch { index: at.index, changes: written.into() });
            }
            done.entries += 1;
            done.answers.extend(responder.map(|responder| (responder, answer)));
            if done.entries >= AT_ONCE {
                self.show(done);
                self.hand_over().await?;
            }
        }
        Ok(())
    }

    /// Shows what was done, and then answers: whoever has an answer must find what it speaks of (INV-11). Not after each
    /// entry, because while readers may hold a view every write has to copy what it touches.
    fn show(&mut self, done: &mut Done) {
        if done.entries > 0 {
            self.published.publish(View::new(&self.tables, &self.applied), done.written.drain(..));
            done.entries = 0;
        }
        for (responder, answer) in done.answers.drain(..) {
            responder.send(answer);
        }
    }

    async fn hand_over(&mut self) -> io::Result<()> {
        self.applied.fingerprint = self.tables.fingerprint();
        Ok(self.state.record(self.tables.take_changes(), self.applied.clone()).await?)
    }
}

impl<M: Machine + Sync> RaftStateMachine<TypeConfig> for StateMachine<M> {
    type SnapshotData = Arc<SnapshotFile>;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogIdOf<TypeConfig>>, StoredMembershipOf<TypeConfig>)> {
        Ok((self.applied.log_id.map(from_log_id), from_stored_membership(&self.applied.membership)))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> io::Result<()>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        let mut done = Done::default();
        // An error stops the node. What it leaves undone is neither shown nor, with what came right before it, answered.
        self.apply_all(&mut entries, &mut done).await?;
        self.show(&mut done);
        self.hand_over().await
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Self::SnapshotBuilder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> Self::SnapshotBuilder {
        self.applied.fingerprint = self.tables.fingerprint();
        SnapshotBuilder {
            tables: self.tables.clone(),
            applied: self.applied.clone(),
            state: Arc::clone(&self.state),
            snapshots: Arc::clone(&self.snapshots),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: Self::SnapshotData,
    ) -> io::Result<()> {
        let expected = (meta.last_log_id.as_ref().map(to_log_id), to_stored_membership(&meta.last_membership));
        if (snapshot.applied.log_id, &snapshot.applied.membership) != (expected.0, &expected.1) {
            let why = format!("snapshot {} is not the one that was announced", snapshot.path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let snapshots = Arc::clone(&self.snapshots);
        let (file, tables) = tokio::task::spawn_blocking(move || {
            // Once the file is durable among our own, a crash anywhere below is repaired from it at the next start.
            let file = snapshots.adopt(&snapshot)?;
            let tables = file.load()?;
            Ok::<_, StoreError>((file, tables))
        })
        .await??;
        self.state.replace(tables.clone(), file.applied.clone()).await?;
        self.tables = tables;
        self.applied = file.applied.clone();
        self.published.replace(View::new(&self.tables, &self.applied));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<TypeConfig, Self::SnapshotData>>> {
        Ok(self.snapshots.latest().map(to_snapshot))
    }
}

/// Builds a snapshot from a view of the tables, while they go on changing.
pub struct SnapshotBuilder {
    tables: Tables,
    applied: Applied,
    state: Arc<StateStore>,
    snapshots: Arc<SnapshotStore>,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = Arc<SnapshotFile>;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, Self::SnapshotData>> {
        // The log is purged up to a snapshot, so the state must be durable up to there as well (INV-5).
        self.state.sync().await?;
        let (snapshots, tables, applied) = (Arc::clone(&self.snapshots), self.tables.clone(), self.applied.clone());
        let file = tokio::task::spawn_blocking(move || snapshots.build(&tables, &applied)).await??;
        Ok(to_snapshot(file))
    }
}

fn to_snapshot(file: Arc<SnapshotFile>) -> SnapshotOf<TypeConfig, Arc<SnapshotFile>> {
    let meta = SnapshotMetaOf::<TypeConfig> {
        last_log_id: file.applied.log_id.map(from_log_id),
        last_membership: from_stored_membership(&file.applied.membership),
    };
    SnapshotOf::<TypeConfig, _> { meta, snapshot: file }
}
