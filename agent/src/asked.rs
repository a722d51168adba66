//! Asking something that may block for ever, such as a driver or a file system over the network, without being held up by it.
//!
//! The source is read on one thread of its own, so there is never more than one call to it. It is not a task of the runtime's
//! blocking pool: the end of a runtime waits for those, and a call that hangs would hang the end of the program with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::watch;

/// A source that is read on a thread of its own when somebody asks. The thread ends when this and all its clones are gone,
/// or, if a call hangs then, once that call returns.
#[derive(Clone, Debug)]
pub struct Asked<T> {
    wake: SyncSender<()>,
    number: Arc<AtomicU64>,
    told: watch::Receiver<Told<T>>,
    patience: Duration,
    started: Instant,
}

/// What an asker gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer<T> {
    /// What was read after the question was put.
    Fresh(T),
    /// The source did not answer in time: what it said last.
    Stale {
        /// What it said.
        value: T,
        /// How long ago that was.
        age: Duration,
    },
    /// The source has never answered.
    Missing {
        /// Since when it could have.
        waited: Duration,
    },
}

/// The side of the thread: the questions that it is to answer.
#[derive(Debug)]
pub struct Questions<T> {
    wake: Receiver<()>,
    number: Arc<AtomicU64>,
    told: watch::Sender<Told<T>>,
    covers: u64,
}

#[derive(Debug)]
struct Told<T> {
    /// The number of the last question that `last` is an answer to.
    covers: u64,
    last: Option<(T, Instant)>,
    /// Since when the thread has been in a call.
    busy: Option<Instant>,
}

impl<T: Clone + Send + Sync + 'static> Asked<T> {
    /// Starts the thread. `work` is given the questions, and may read before the first one comes. An asker waits as long as
    /// `patience` says.
    pub fn start(name: &str, patience: Duration, work: impl FnOnce(Questions<T>) + Send + 'static) -> Self {
        let started = Instant::now();
        let (wake, woken) = sync_channel(1);
        let (tell, told) = watch::channel(Told { covers: 0, last: None, busy: Some(started) });
        let number = Arc::new(AtomicU64::new(0));
        let questions = Questions { wake: woken, number: number.clone(), told: tell, covers: 0 };
        // Without a thread the source is one that never answers.
        if let Err(error) = thread::Builder::new().name(name.to_owned()).spawn(move || work(questions)) {
            tracing::error!(thread = name, %error, "a thread could not be started");
        }
        Self { wake, number, told, patience, started }
    }

    /// Asks, and waits for an answer that is younger than the question. If a call has been hanging for longer than anybody's
    /// patience, what is known is answered at once.
    pub async fn ask(&self) -> Answer<T> {
        let number = self.number.fetch_add(1, Ordering::SeqCst) + 1;
        // If the channel is full, the thread has not yet taken the wake-up in it, and sees this number when it does.
        let _ = self.wake.try_send(());
        let mut told = self.told.clone();
        let deadline = Instant::now() + self.patience;
        loop {
            let until = told.borrow().busy.map_or(deadline, |since| deadline.min(since + self.patience));
            match tokio::time::timeout_at(until.into(), told.wait_for(|told| told.covers >= number)).await {
                Ok(Ok(told)) => {
                    if let Some((value, _)) = &told.last {
                        return Answer::Fresh(value.clone());
                    }
                    break;
                }
                Ok(Err(_ended)) => break,
                Err(_elapsed) => {}
            }
            let now = Instant::now();
            let hangs = told.borrow().busy.is_some_and(|since| since + self.patience <= now);
            if hangs || now >= deadline {
                break;
            }
        }
        match self.last() {
            Some((value, age)) => Answer::Stale { value, age },
            None => Answer::Missing { waited: self.started.elapsed() },
        }
    }

    /// What was read last, and how long ago. It asks nobody.
    #[must_use]
    pub fn last(&self) -> Option<(T, Duration)> {
        self.told.borrow().last.as_ref().map(|(value, at)| (value.clone(), at.elapsed()))
    }
}

impl<T> Questions<T> {
    /// Waits for the next question. Questions that came while the thread was busy are one. `None`: nobody can ask any more.
    pub fn wait(&mut self) -> Option<()> {
        self.wake.recv().ok()?;
        self.covers = self.number.load(Ordering::SeqCst);
        self.told.send_if_modified(|told| {
            told.busy = Some(Instant::now());
            false
        });
        Some(())
    }

    /// Answers all questions that had been put when the last [`Self::wait`] returned.
    pub fn answer(&mut self, value: T) {
        self.told
            .send_modify(|told| *told = Told { covers: self.covers, last: Some((value, Instant::now())), busy: None });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    /// A source that counts how often it is read and can be made to hang.
    #[derive(Default)]
    struct Source {
        reads: AtomicU64,
        hangs: Mutex<bool>,
        moved: Condvar,
    }

    impl Source {
        fn hang(&self, hangs: bool) {
            *self.hangs.lock().unwrap() = hangs;
            self.moved.notify_all();
        }

        fn read(&self) -> u64 {
            let read = self.reads.fetch_add(1, Ordering::SeqCst) + 1;
            let hangs = self.hangs.lock().unwrap();
            drop(self.moved.wait_while(hangs, |hangs| *hangs).unwrap());
            read
        }

        fn asked(self: &Arc<Self>, patience: Duration) -> Asked<u64> {
            let source = self.clone();
            Asked::start("test", patience, move |mut questions| {
                while questions.wait().is_some() {
                    let value = source.read();
                    questions.answer(value);
                }
            })
        }
    }

    const LONG: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn every_question_is_answered_by_a_later_reading() {
        let source = Arc::new(Source::default());
        let asked = source.asked(LONG);
        for expected in 1..=3 {
            assert_eq!(asked.ask().await, Answer::Fresh(expected));
        }
        assert!(matches!(asked.last(), Some((3, _))));
    }

    #[tokio::test]
    async fn a_reading_that_began_before_the_question_is_no_answer_to_it() {
        let source = Arc::new(Source::default());
        let asked = source.asked(LONG);
        source.hang(true);
        let (early, late, ()) = tokio::join!(asked.ask(), later(&source, &asked), async {
            // Both questions stand by the time that the first reading can go on.
            while asked.number.load(Ordering::SeqCst) < 2 {
                tokio::task::yield_now().await;
            }
            source.hang(false);
        });
        assert!(matches!(early, Answer::Fresh(_)), "{early:?}");
        assert_eq!(late, Answer::Fresh(2));
    }

    async fn later(source: &Source, asked: &Asked<u64>) -> Answer<u64> {
        while source.reads.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        asked.ask().await
    }

    #[tokio::test]
    async fn a_source_that_hangs_holds_nobody_up_and_is_called_once() {
        let patience = Duration::from_millis(400);
        let source = Arc::new(Source::default());
        let asked = source.asked(patience);
        source.hang(true);
        assert!(matches!(asked.ask().await, Answer::Missing { waited } if waited >= patience));
        source.hang(false);
        while asked.last().is_none() {
            tokio::task::yield_now().await;
        }
        source.hang(true);
        assert!(matches!(asked.ask().await, Answer::Stale { value: 1, age } if age >= patience));
        let since = Instant::now();
        for _ in 0..10 {
            assert!(matches!(asked.ask().await, Answer::Stale { value: 1, .. }));
        }
        assert!(since.elapsed() < patience, "askers wait for a source that is known to hang: {:?}", since.elapsed());
        assert_eq!(source.reads.load(Ordering::SeqCst), 2);
        source.hang(false);
        let mut answer = asked.ask().await;
        while !matches!(answer, Answer::Fresh(_)) {
            answer = asked.ask().await;
        }
    }

    #[tokio::test]
    async fn the_thread_ends_with_its_last_owner() {
        let source = Arc::new(Source::default());
        let asked = source.asked(LONG);
        let clone = asked.clone();
        asked.ask().await;
        drop(asked);
        assert_eq!(clone.ask().await, Answer::Fresh(2));
        drop(clone);
        let since = Instant::now();
        while Arc::strong_count(&source) > 1 {
            assert!(since.elapsed() < LONG, "the thread still runs");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_thread_that_has_ended_leaves_what_it_said_last() {
        let asked = Asked::start("test", LONG, |mut questions| {
            questions.wait();
            questions.answer(7);
        });
        assert_eq!(asked.ask().await, Answer::Fresh(7));
        assert!(matches!(asked.ask().await, Answer::Stale { value: 7, .. }));
    }
}
