//! How long is waited for the next piece of something that comes in pieces.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// The longest pause between two pieces, and the present one.
#[derive(Debug)]
pub(crate) struct Patience {
    pause: Duration,
    /// When it was begun to wait for the piece that is waited for now.
    waiting: Option<Instant>,
    /// Made by the first wait: most bodies have arrived by the time they are read, and never need it.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Patience {
    pub fn new(pause: Duration) -> Self {
        Self { pause, waiting: None, timer: None }
    }

    /// The longest pause.
    pub fn pause(&self) -> Duration {
        self.pause
    }

    /// A piece has come.
    pub fn arrived(&mut self) {
        self.waiting = None;
    }

    /// Ready when the present pause has lasted too long.
    ///
    /// The timer is set anew only when it fires, not at each piece: it may fire early for the present wait, never late.
    pub fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let since = *self.waiting.get_or_insert_with(Instant::now);
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(self.pause)));
        loop {
            ready!(timer.as_mut().poll(cx));
            let left = self.pause.saturating_sub(since.elapsed());
            if left.is_zero() {
                return Poll::Ready(());
            }
            timer.set(sleep(left));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn each_piece_begins_a_new_pause() {
        const PAUSE: Duration = Duration::from_millis(200);
        let mut patience = Patience::new(PAUSE);
        let begun = Instant::now();
        for _ in 0..3 {
            let over = timeout(PAUSE / 2, poll_fn(|cx| patience.poll_over(cx))).await;
            assert!(over.is_err(), "half of the pause only");
            patience.arrived();
        }
        let last = Instant::now();
        timeout(20 * PAUSE, poll_fn(|cx| patience.poll_over(cx))).await.expect("is over");
        assert!(last.elapsed() >= PAUSE, "never early: {:?} of {:?}", last.elapsed(), begun.elapsed());
    }
}
