//! What a container says: the daemon's stream of frames, made into lines with their times.

use std::pin::pin;
use std::time::{Duration, SystemTime};

use bollard::container::LogOutput;
use bollard::query_parameters::LogsOptions;
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::call::CallError;
use super::daemon::Client;
use crate::runtime::Line;

/// How long a daemon may wait with the start of its answer: some wait for the first line.
const FIRST_LINE: Duration = Duration::from_secs(600);

/// The longest line that is passed on, in bytes. The rest of it is left out.
const LINE_LIMIT: usize = 64 << 10;

/// Sends what a container says from a time on, until it ends or nobody listens.
pub(super) async fn follow(
    client: &Client,
    id: &str,
    since: Option<SystemTime>,
    lines: &mpsc::Sender<Line>,
) -> Result<(), CallError> {
    let mut newest = since;
    loop {
        match stream(client, id, &mut newest, lines).await {
            // Nothing was said in all that time.
            Err(error) if error.is_silence() => {}
            outcome => return outcome,
        }
    }
}

async fn stream(
    client: &Client,
    id: &str,
    newest: &mut Option<SystemTime>,
    lines: &mpsc::Sender<Line>,
) -> Result<(), CallError> {
    let since = newest.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()).map_or(0, |at| at.as_secs());
    let options = LogsOptions {
        follow: true,
        stdout: true,
        stderr: true,
        timestamps: true,
        since: i32::try_from(since).unwrap_or(i32::MAX),
        until: 0,
        tail: "all".to_owned(),
    };
    let docker = client.patient(FIRST_LINE);
    let mut frames = pin!(docker.logs(id, Some(options)));
    // The daemon knows whole seconds: what of this second was known before comes again.
    let known = *newest;
    let (mut out, mut err) = (Assembler::default(), Assembler::default());
    loop {
        let frame = tokio::select! {
            () = lines.closed() => return Ok(()),
            frame = frames.next() => frame,
        };
        let over = frame.is_none();
        let finished = match frame.transpose()? {
            None => [out.rest(), err.rest()].into_iter().flatten().collect(),
            Some(LogOutput::StdErr { message }) => err.take(&message),
            Some(LogOutput::StdOut { message } | LogOutput::Console { message }) => out.take(&message),
            Some(LogOutput::StdIn { .. }) => Vec::new(),
        };
        for line in finished {
            if known.is_some_and(|known| line.at <= known) {
                continue;
            }
            *newest = Some(newest.map_or(line.at, |newest| newest.max(line.at)));
            if lines.send(line).await.is_err() {
                return Ok(());
            }
        }
        if over {
            return Ok(());
        }
    }
}

/// Makes lines of the frames of one output. A long line comes in several frames, each with a time of its own.
#[derive(Debug, Default)]
struct Assembler {
    begun: Option<(SystemTime, Vec<u8>)>,
}

impl Assembler {
    /// Takes in a frame, and returns the lines that it completes.
    fn take(&mut self, frame: &[u8]) -> Vec<Line> {
        let mut lines = Vec::new();
        for part in frame.split_inclusive(|byte| *byte == b'\n') {
            let (text, complete) = match part.strip_suffix(b"\n") {
                Some(text) => (text, true),
                None => (part, false),
            };
            let (at, text) = timed(text);
            let (_, begun) = self.begun.get_or_insert_with(|| (at.unwrap_or_else(SystemTime::now), Vec::new()));
            let room = LINE_LIMIT.saturating_sub(begun.len());
            begun.extend_from_slice(&text[..text.len().min(room)]);
            if complete {
                lines.extend(self.rest());
            }
        }
        lines
    }

    /// The line that has begun.
    fn rest(&mut self) -> Option<Line> {
        let (at, text) = self.begun.take()?;
        let text = text.strip_suffix(b"\r").unwrap_or(&text);
        Some(Line { at, text: String::from_utf8_lossy(text).into_owned() })
    }
}

/// The time before a piece of output, and the output.
fn timed(piece: &[u8]) -> (Option<SystemTime>, &[u8]) {
    let Some(end) = piece.iter().take(64).position(|byte| *byte == b' ') else {
        return match time(piece) {
            Some(at) => (Some(at), &[]),
            None => (None, piece),
        };
    };
    match time(&piece[..end]) {
        Some(at) => (Some(at), &piece[end + 1..]),
        None => (None, piece),
    }
}

fn time(text: &[u8]) -> Option<SystemTime> {
    let at: jiff::Timestamp = std::str::from_utf8(text).ok()?.parse().ok()?;
    Some(SystemTime::from(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(lines: Vec<Line>) -> Vec<String> {
        lines.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn a_line_has_the_time_that_the_daemon_gave_it() {
        let mut assembler = Assembler::default();
        let lines = assembler.take(b"1970-01-01T00:00:05.000000007Z hello there\n");
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].text, "hello there");
        assert_eq!(lines[0].at, SystemTime::UNIX_EPOCH + Duration::new(5, 7));
    }

    #[test]
    fn a_line_that_comes_in_several_frames_is_one_line() {
        let mut assembler = Assembler::default();
        assert!(assembler.take(b"1970-01-01T00:00:05Z one ").is_empty());
        let lines = assembler.take(b"1970-01-01T00:00:06Z and two\n1970-01-01T00:00:07+01:00 next\n");
        assert_eq!(texts(lines), ["one and two", "next"]);
    }

    #[test]
    fn what_is_said_without_an_end_of_line_is_told_at_the_end() {
        let mut assembler = Assembler::default();
        assert!(assembler.take(b"1970-01-01T00:00:05Z last words").is_empty());
        assert_eq!(assembler.rest().map(|line| line.text).as_deref(), Some("last words"));
        assert_eq!(assembler.rest(), None);
    }

    #[test]
    fn a_line_without_end_takes_no_more_memory_than_a_line_may() {
        let mut assembler = Assembler::default();
        for _ in 0..20 {
            assert!(assembler.take(&[b'x'; 8192]).is_empty());
        }
        assert_eq!(assembler.rest().map(|line| line.text.len()), Some(LINE_LIMIT));
    }

    #[test]
    fn empty_lines_odd_bytes_and_missing_times_are_no_trouble() {
        let mut assembler = Assembler::default();
        let lines = assembler.take(b"1970-01-01T00:00:05Z\n1970-01-01T00:00:05Z \n\xff no time\r\n");
        assert_eq!(texts(lines), ["", "", "\u{fffd} no time"]);
    }
}
