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
pub(super) const TOGETHER: usize = 64;

/// After so many bytes of commands no more are taken along.
pub(super) const BYTES_TOGETHER: usize = 256 * 1024;

/// How many groups are under way at once. With one the disk would rest while answers travel; with more the groups would be
/// smaller, and each costs the same.
const GROUPS: usize = 2;

/// A group that takes longer does not count: the way is long, or it is stuck, and others need not be.
const USUAL: Duration = Duration::from_millis(25);

/// How many groups may take longer.
const SLOW_GROUPS: usize = 64;

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
    pub async fn carry(self, submissions: mpsc::Receiver<Submission>) {
        in_groups(submissions, |group| self.take(group)).await;
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
            biased;
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
        if group.is_empty() {
            return;
        }
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
        let answering = async {
            for answer in answers {
                let outcome = match outcomes.next().await {
                    Some(Ok(Ok(done))) => Ok(done.response.0),
                    Some(Ok(Err(error))) => Err(refused(error)),
                    Some(Err(fatal)) => Err(ProposeError::Stopped(fatal.to_string())),
                    None => Err(ProposeError::Stopped("it has ended".to_owned())),
                };
                let _ = answer.send(outcome);
            }
        };
        tokio::select! {
            biased;
            () = answering => {}
            // Raft answers what it has appended once its place in the log is decided here, which may be never.
            () = self.follows_another_than(self.node) => {}
        }
    }
}

/// Has what comes taken in groups until nobody can send any more.
async fn in_groups<F: Future<Output = ()>>(
    mut submissions: mpsc::Receiver<Submission>,
    take: impl Fn(Vec<Submission>) -> F,
) {
    let (mut under_way, mut slow) = (FuturesUnordered::new(), FuturesUnordered::new());
    loop {
        tokio::select! {
            Some(taking) = under_way.next() => slow.extend(taking),
            Some(()) = slow.next() => {}
            first = submissions.recv(), if under_way.len() < GROUPS && slow.len() < SLOW_GROUPS => {
                let Some(first) = first else { return };
                let mut taking = Box::pin(take(gather(first, &mut submissions)));
                under_way.push(async {
                    tokio::time::timeout(USUAL, &mut taking).await.is_err().then_some(taking)
                });
            }
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
            assert!(queue.try_send(submission).is_ok(), "there is room");
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

    #[tokio::test]
    async fn groups_that_are_stuck_hold_up_nobody() {
        let (queue, waiting) = mpsc::channel(QUEUE);
        let (taken, mut groups) = mpsc::unbounded_channel();
        let carrying = tokio::spawn(in_groups(waiting, move |group| {
            let taken = taken.clone();
            async move {
                let _ = taken.send(group);
                std::future::pending().await
            }
        }));
        let mut callers = Vec::new();
        for _ in 0..3 * GROUPS {
            let (submission, answered) = submission(1);
            callers.push(answered);
            assert!(queue.try_send(submission).is_ok(), "there is room");
            // None of those before has an end.
            let group = tokio::time::timeout(Duration::from_secs(30), groups.recv()).await.expect("is taken");
            assert_eq!(group.expect("goes on").len(), 1);
        }
        carrying.abort();
    }
}
