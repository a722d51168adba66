//! What of an engine's line is kept.

/// A line has at most this many bytes, without its time.
pub(super) const LINE_LIMIT: usize = 8 << 10;

/// Stands at the end of a line that was cut.
const CUT: char = '…';

/// The paths that are asked for all the time by whoever watches over the engine.
const PROBED: [&str; 2] = ["/metrics", "/health"];

/// The line as it is kept: without colours and other orders to terminals, a progress bar in its last state, not too long.
/// `None`: nothing of it is kept.
pub(super) fn clean(text: &str) -> Option<String> {
    let text = anstream::adapter::strip_str(text).to_string();
    let last = text.split('\r').rev().find(|state| !state.trim().is_empty())?;
    let mut line: String = last.chars().filter(|char| !char.is_control() || *char == '\t').collect();
    line.truncate(line.trim_end().len());
    if line.is_empty() || tells_of_a_probe(&line) {
        return None;
    }
    if line.len() > LINE_LIMIT {
        line.truncate(line.floor_char_boundary(LINE_LIMIT - CUT.len_utf8()));
        line.push(CUT);
    }
    Some(line)
}

/// Whether it is a line of the access log for a request that only looks whether the engine lives:
/// `INFO:     127.0.0.1:4242 - "GET /health HTTP/1.1" 200 OK`.
fn tells_of_a_probe(line: &str) -> bool {
    let Some((_, request)) = line.split_once(" - \"") else { return false };
    let Some((request, status)) = request.split_once("\" ") else { return false };
    let mut words = request.split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return false;
    };
    let path = target.split_once('?').map_or(target, |(path, _)| path);
    matches!(method, "GET" | "HEAD")
        && PROBED.contains(&path.strip_suffix('/').unwrap_or(path))
        && version.starts_with("HTTP/")
        && status.starts_with(|char: char| char.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b16_probes_are_dropped_and_work_is_kept() {
        for dropped in [
            "INFO:     127.0.0.1:38188 - \"GET /metrics HTTP/1.1\" 200 OK",
            "INFO:     127.0.0.1:38188 - \"GET /metrics/ HTTP/1.1\" 200 OK",
            "INFO:     127.0.0.1:38188 - \"GET /health HTTP/1.1\" 200 OK",
            "INFO:     127.0.0.1:38188 - \"HEAD /health HTTP/1.1\" 405 Method Not Allowed",
            "INFO:     127.0.0.1:38188 - \"HEAD /metrics?x=1 HTTP/1.1\" 200 OK",
            "(APIServer pid=7) INFO:      - \"GET /health HTTP/1.1\" 503 Service Unavailable",
            "\x1b[32mINFO\x1b[0m:     127.0.0.1:1 - \"\x1b[1mGET /health HTTP/1.1\x1b[0m\" \x1b[32m200 OK\x1b[0m",
        ] {
            assert_eq!(clean(dropped), None, "{dropped}");
        }
        for kept in [
            "INFO:     127.0.0.1:38188 - \"POST /v1/chat/completions HTTP/1.1\" 200 OK",
            "INFO:     127.0.0.1:38188 - \"GET /health_generate HTTP/1.1\" 200 OK",
            "INFO:     127.0.0.1:38188 - \"POST /health HTTP/1.1\" 200 OK",
            "INFO:     127.0.0.1:38188 - \"GET /v1/models HTTP/1.1\" 200 OK",
            "INFO 01-01 00:00:00 loggers.py:111] Engine 000: Avg prompt throughput: 4.1 tokens/s, Running: 1 reqs",
            "the prompt was: GET /health HTTP/1.1",
            "INFO: Route: /metrics, Methods: GET",
        ] {
            assert_eq!(clean(kept).as_deref(), Some(kept));
        }
    }

    #[test]
    fn colours_go_and_tabs_and_letters_of_all_kinds_stay() {
        assert_eq!(
            clean("\x1b[1;31merror\x1b[0m:\tnaïve 模型\x07 \u{9b}31m").as_deref(),
            Some("error:\tnaïve 模型 31m")
        );
        assert_eq!(clean("\x1b]0;title\x07text").as_deref(), Some("text"));
    }

    #[test]
    fn nothing_is_kept_of_an_empty_line() {
        for empty in ["", "   ", "\r", "\x1b[0m", "\t\r\n", "\0\0"] {
            assert_eq!(clean(empty), None, "{empty:?}");
        }
    }

    #[test]
    fn a_progress_bar_is_kept_in_its_last_state() {
        assert_eq!(clean("load:  0%|  |\rload: 50%|█ |\rload: 100%|██|\r").as_deref(), Some("load: 100%|██|"));
        assert_eq!(clean("load: 50%\r\x1b[K\r").as_deref(), Some("load: 50%"));
        assert_eq!(clean("plain\r\n").as_deref(), Some("plain"));
    }

    #[test]
    fn a_long_line_is_cut_between_letters() {
        let at_limit = "é".repeat(LINE_LIMIT / 2);
        assert_eq!(clean(&at_limit).as_deref(), Some(at_limit.as_str()));
        let cut = clean(&format!("x{at_limit}")).unwrap();
        assert!(cut.len() <= LINE_LIMIT && cut.len() > LINE_LIMIT - 4 && cut.ends_with("é…"));
    }
}
