//! Writes on their way into the log. Those that come while others are under way go on together: in one message to the
//! leader, and in one append there.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::Raft;
use openraft::alias::WatchReceiverOf;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader};
use prost::Message;
use tokio::sync::{mpsc, oneshot};

use super::forward::Forward;
use super::raft::{MAX_COMMAND, Machine, WRITE_LIMIT};
use super::{Proposal, ProposeError, TypeConfig};
use crate::clock::Clock;
use crate::ids::NodeId;
use crate::rows::Command;

/// How many writes may wait to be taken along.
pub(super) const QUEUE: usize = 1024;

/// How many writes go together at most.
const TOGETHER: usize = 64;

/// After so many bytes of commands no more are taken along.
pub(super) const BYTES_TOGETHER: usize = 256 * 1024;

/// How many groups are under way at once. With one the disk would rest while answers travel; with more the groups would be
/// smaller, and each costs the same.
const GROUPS: usize = 2;

/// Who wants a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum From {
    /// A caller of this node.
    Here,
    /// Another node, which takes this one for the leader. It goes no further.
    AnotherNode,
}

/// A write, and who waits for its encoded answer.
pub(super) struct Submission {
    pub command: Command,
    pub from: From,
    pub answer: oneshot::Sender<Result<Bytes, ProposeError>>,
}

/// Carries writes to the leader, which may be this node.
pub(super) struct Carrier {
    raft: Raft<TypeConfig, Machine>,
    seen: WatchReceiverOf<TypeConfig, openraft::metrics::RaftServerMetrics<TypeConfig>>,
    node: NodeId,
    clock: Arc<dyn Clock>,
    forward: Option<Arc<Forward>>,
}

impl Carrier {
    pub fn new(
        raft: Raft<TypeConfig, Machine>,
        node: NodeId,
        clock: Arc<dyn Clock>,
        forward: Option<Arc<Forward>>,
    ) -> Self {
        Self { seen: raft.server_metrics(), raft, node, clock, forward }
    }

    /// Carries what comes until nobody can send any more.
    pub async fn carry(self, mut submissions: mpsc::Receiver<Submission>) {
        let mut under_way = FuturesUnordered::new();
        loop {
            tokio::select! {
                Some(()) = under_way.next() => {}
                first = submissions.recv(), if under_way.len() < GROUPS => {
                    let Some(first) = first else { return };
                    under_way.push(self.take(gather(first, &mut submissions)));
                }
            }
        }
    }

    /// Who still waits when the time is up learns nothing.
    async fn take(&self, group: Vec<Submission>) {
        let leader = self.seen.borrow_watched().current_leader.filter(|leader| *leader != self.node);
        let taking = async {
            match (leader, &self.forward) {
                (Some(leader), Some(forward)) => self.forward(leader, forward, group).await,
                _ => self.append(group).await,
            }
        };
        let _ = tokio::time::timeout(WRITE_LIMIT, taking).await;
    }

    async fn forward(&self, leader: NodeId, forward: &Forward, group: Vec<Submission>) {
        let (mut commands, mut answers) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
        for Submission { command, from, answer } in group {
            match from {
                From::Here => {
                    commands.push(command.encode_to_vec().into());
                    answers.push(answer);
                }
                From::AnotherNode => drop(answer.send(Err(ProposeError::NotLeader(leader)))),
            }
        }
        if commands.is_empty() {
            return;
        }
        let outcomes = tokio::select! {
            outcomes = forward.propose(leader, commands) => outcomes,
            // It may be frozen. Who waits asks again, and then the one that leads by now.
            () = self.follows_another_than(leader) => return,
        };
        for (answer, outcome) in answers.into_iter().zip(outcomes) {
            // Gone if it gave up.
            let _ = answer.send(outcome);
        }
    }

    async fn follows_another_than(&self, leader: NodeId) {
        let mut seen = self.seen.clone();
        while seen.borrow_watched().current_leader.is_none_or(|now| now == leader) {
            if seen.changed().await.is_err() {
                return;
            }
        }
    }

    /// Writes if this node leads: stamps the commands with the time and has them committed.
    async fn append(&self, group: Vec<Submission>) {
        let time_ms = self.clock.now_ms();
        let (mut proposals, mut answers) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
        for Submission { command, answer, .. } in group {
            let command = Command { time_ms, ..command }.encode_to_vec();
            if command.len() > MAX_COMMAND {
                let error = ProposeError::TooLarge { bytes: command.len(), limit: MAX_COMMAND };
                drop(answer.send(Err(error)));
                continue;
            }
            proposals.push(Proposal(command.into()));
            answers.push(answer);
        }
        let mut outcomes = match self.raft.client_write_many(proposals).await {
            Ok(outcomes) => outcomes,
            Err(fatal) => {
                let stopped = ProposeError::Stopped(fatal.to_string());
                return answers.into_iter().for_each(|answer| drop(answer.send(Err(stopped.clone()))));
            }
        };
        for answer in answers {
            let outcome = match outcomes.next().await {
                Some(Ok(Ok(done))) => Ok(done.response.0),
                Some(Ok(Err(error))) => Err(refused(error)),
                Some(Err(fatal)) => Err(ProposeError::Stopped(fatal.to_string())),
                None => Err(ProposeError::Stopped("it has ended".to_owned())),
            };
            let _ = answer.send(outcome);
        }
    }
}

/// What waits, up to a limit. Whoever has given up is left out.
fn gather(first: Submission, waiting: &mut mpsc::Receiver<Submission>) -> Vec<Submission> {
    let mut group = Vec::new();
    let mut bytes = 0;
    let mut next = Some(first);
    while let Some(submission) = next {
        if !submission.answer.is_closed() {
            bytes += submission.command.encoded_len();
            group.push(submission);
        }
        let more = group.len() < TOGETHER && bytes < BYTES_TOGETHER;
        next = if more { waiting.try_recv().ok() } else { None };
    }
    group
}

fn refused(error: ClientWriteError<TypeConfig>) -> ProposeError {
    match error {
        ClientWriteError::ForwardToLeader(ForwardToLeader { leader_id, .. }) => {
            leader_id.map_or(ProposeError::NoLeader, ProposeError::NotLeader)
        }
        _ => ProposeError::Unknown { waited: Duration::ZERO, retry_key: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submission(bytes: usize) -> (Submission, oneshot::Receiver<Result<Bytes, ProposeError>>) {
        let origin = crate::rows::Origin { principal: "x".repeat(bytes), ..crate::rows::Origin::default() };
        let (answer, answered) = oneshot::channel();
        let command = Command { origin: Some(origin), ..Command::default() };
        (Submission { command, from: From::Here, answer }, answered)
    }

    #[test]
    fn what_waits_goes_together_up_to_a_number_and_a_length() {
        let (queue, mut waiting) = mpsc::channel(QUEUE);
        let mut callers = Vec::new();
        for bytes in [1; 100].into_iter().chain([MAX_COMMAND; 40]) {
            let (submission, answered) = submission(bytes);
            queue.try_send(submission).expect("there is room");
            callers.push(answered);
        }
        // One in three gives up.
        for caller in callers.iter_mut().step_by(3) {
            caller.close();
        }
        let mut groups = Vec::new();
        while let Ok(first) = waiting.try_recv() {
            groups.push(gather(first, &mut waiting));
        }
        let bytes = |group: &Vec<Submission>| group.iter().map(|one| one.command.encoded_len()).sum::<usize>();
        assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), 140 - 47);
        assert_eq!(groups[0].len(), TOGETHER);
        assert!(groups.iter().all(|group| group.len() <= TOGETHER && bytes(group) <= BYTES_TOGETHER + 2 * MAX_COMMAND));
        assert!(groups.len() >= 3, "they are too long for one");
    }
}
