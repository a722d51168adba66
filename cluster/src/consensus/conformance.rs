//! openraft's own suite for log and state machine, over the real store, and with the disk failing under it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::type_config::TypeConfigExt;
use tempfile::TempDir;

use super::{LogStore, StateMachine, TypeConfig};
use crate::state::{ApplyError, Machine, Tables};
use crate::storage::testing::{Fault, options};
use crate::storage::{LogId, NodeStorage};

/// The suite's entries carry no commands.
struct NoCommands;

impl Machine for NoCommands {
    fn apply(&mut self, _: &mut Tables, at: LogId, _: &[u8]) -> Result<Bytes, ApplyError> {
        Err(ApplyError { index: at.index, why: "the suite proposes nothing".to_owned() })
    }
}

type Sm = StateMachine<NoCommands>;
type OnDisk = Suite<TypeConfig, LogStore, Sm, Builder, TempDir>;

struct Builder;

fn build(fault: &Arc<Fault>) -> (TempDir, LogStore, Sm) {
    let directory = tempfile::tempdir().expect("a directory");
    let opened = NodeStorage::open_with(directory.path(), &options(), &fault.opener()).expect("opens");
    let (log, state, snapshots) = (Arc::new(opened.log), Arc::new(opened.state), Arc::new(opened.snapshots));
    let log_store = LogStore::new(log, Arc::clone(&state));
    (directory, log_store, StateMachine::new(NoCommands, opened.tables, opened.applied, state, snapshots))
}

impl StoreBuilder<TypeConfig, LogStore, Sm, TempDir> for Builder {
    async fn build(&self) -> Result<(TempDir, LogStore, Sm), StorageError<TypeConfig>> {
        Ok(build(&Fault::never()))
    }
}

#[test]
fn the_store_passes_openrafts_suite() {
    TypeConfig::run(async {
        Suite::test_all(Builder).await.expect("the suite passes");
    });
}

/// The outcome of one case of the suite, and how many writes and syncs it took.
async fn with_fault<F, Fut>(case: &F, nth: Option<u64>) -> (Result<(), String>, Arc<Fault>, u64)
where
    F: Fn(LogStore, Sm) -> Fut,
    Fut: Future<Output = Result<(), io::Error>> + Send + 'static,
{
    let fault = Fault::never();
    let (_directory, log, sm) = build(&fault);
    let before = fault.done();
    if let Some(nth) = nth {
        fault.fail_at(nth);
    }
    // In a task of its own, so that an assertion of the suite that fails is an outcome to look at.
    let task = tokio::spawn(case(log, sm));
    let outcome = match tokio::time::timeout(Duration::from_secs(60), task).await {
        Ok(Ok(outcome)) => outcome.map_err(|error| error.to_string()),
        Ok(Err(panic)) => panic!("the suite saw a wrong answer instead of an error: {panic}"),
        Err(_) => panic!("a failing disk must not let a caller wait for ever"),
    };
    let steps = fault.done() - before;
    (outcome, fault, steps)
}

/// Lets the n-th write or sync of a case fail, for every n up to the number it takes (a sample of them if they are many).
async fn fails_cleanly<F, Fut>(name: &str, case: F)
where
    F: Fn(LogStore, Sm) -> Fut,
    Fut: Future<Output = Result<(), io::Error>> + Send + 'static,
{
    let (outcome, _, steps) = with_fault(&case, None).await;
    outcome.expect(name);
    let stride = steps.div_ceil(8).max(1);
    for nth in (1..=steps).step_by(usize::try_from(stride).expect("small")) {
        let (outcome, fault, _) = with_fault(&case, Some(nth)).await;
        // A write that nobody waits for may fail after the case has ended, or not come to be made by then; otherwise somebody
        // must have been told.
        if let Ok(()) = outcome {
            let made = fault.struck();
            assert!(
                nth + 3 > steps,
                "{name}: write {nth} of {steps} was made: {made}, and nobody noticed that it failed"
            );
        }
    }
}

macro_rules! every_case_fails_cleanly {
    ($($case:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $case() {
                fails_cleanly(stringify!($case), |log, sm| async move { OnDisk::$case(log, sm).await }).await;
            }
        )*
    };
}

mod a_failing_write_is_an_error_in {
    use super::*;

    every_case_fails_cleanly!(
        last_membership_in_log,
        get_membership_from_log_gt_sm_last_applied_2,
        get_initial_state_with_state,
        get_initial_state_last_log_lt_sm,
        get_initial_state_log_ids,
        get_initial_state_re_apply_committed,
        save_vote,
        leader_bounded_stream,
        get_log_state,
        last_id_in_log,
        last_applied_state,
        purge_logs_upto_5,
        purge_logs_upto_20,
        delete_logs_after_11,
        delete_logs_after_5,
        delete_logs_after_none,
        append_to_log,
        snapshot_meta,
        apply_single,
        apply_multiple,
    );
}
