//! Putting the name that the client asked for back into an answer that carries the provider's.

use bytes::{Bytes, BytesMut};
use memchr::memchr_iter;

use super::scan::Scanner;

/// A longer value is no name; it is left as it is.
const NAME_LIMIT: usize = 4096;

/// A longer line of an event stream passes as it is.
const LINE_LIMIT: usize = 1024 * 1024;

/// Replaces the name in an answer, piece by piece.
#[derive(Debug)]
pub(super) enum Rewriter {
    /// One JSON object.
    Object(Object),
    /// Server-sent events, each a JSON object.
    Events(Events),
}

impl Rewriter {
    /// What can be passed on after this piece. It may be empty.
    pub fn push(&mut self, piece: Bytes) -> Bytes {
        match self {
            Self::Object(object) => object.push(piece),
            Self::Events(events) => events.push(&piece),
        }
    }

    /// What is left when the answer has ended.
    pub fn finish(&mut self) -> Bytes {
        match self {
            Self::Object(object) => object.held.split().freeze(),
            Self::Events(events) => {
                let mut out = BytesMut::new();
                rename(&events.line, &events.name, &mut out);
                events.line.clear();
                out.freeze()
            }
        }
    }
}

/// Replaces the name in one JSON object.
#[derive(Debug)]
pub(super) struct Object {
    name: Bytes,
    scanner: Scanner,
    /// What has been read and not passed on: the beginning of the name.
    held: BytesMut,
    /// How many bytes have been passed on or replaced.
    passed: usize,
    done: bool,
}

impl Object {
    /// `name` is a JSON string, with its quotes.
    pub fn new(name: Bytes) -> Self {
        Self { name, scanner: Scanner::default(), held: BytesMut::new(), passed: 0, done: false }
    }

    fn push(&mut self, piece: Bytes) -> Bytes {
        if self.done {
            return piece;
        }
        // Whatever is no object is not ours to change.
        let malformed = self.scanner.feed(&piece).is_err();
        let piece = if self.held.is_empty() {
            piece
        } else {
            self.held.extend_from_slice(&piece);
            self.held.split().freeze()
        };
        if let Some(span) = self.scanner.found().filter(|_| !malformed) {
            self.done = true;
            if !span.is_string {
                return piece;
            }
            let (start, end) = (span.start - self.passed, span.end - self.passed);
            return spliced(&piece, start, end, &self.name);
        }
        let keep = self.scanner.open().filter(|_| !malformed).map_or(piece.len(), |start| start - self.passed);
        if malformed || piece.len() - keep > NAME_LIMIT {
            self.done = true;
            return piece;
        }
        self.passed += keep;
        self.held.extend_from_slice(&piece[keep..]);
        piece.slice(..keep)
    }
}

fn spliced(text: &[u8], start: usize, end: usize, name: &[u8]) -> Bytes {
    let mut whole = BytesMut::with_capacity(text.len() - (end - start) + name.len());
    whole.extend_from_slice(&text[..start]);
    whole.extend_from_slice(name);
    whole.extend_from_slice(&text[end..]);
    whole.freeze()
}

/// Replaces the name in every event of a stream.
#[derive(Debug)]
pub(super) struct Events {
    name: Bytes,
    /// The beginning of a line whose end has not come.
    line: BytesMut,
    /// Within a line that is too long to be looked at.
    long: bool,
}

impl Events {
    /// `name` is a JSON string, with its quotes.
    pub fn new(name: Bytes) -> Self {
        Self { name, line: BytesMut::new(), long: false }
    }

    fn push(&mut self, piece: &[u8]) -> Bytes {
        let mut out = BytesMut::with_capacity(self.line.len() + piece.len() + 64);
        let mut from = 0;
        for end in memchr_iter(b'\n', piece) {
            let rest = &piece[from..=end];
            from = end + 1;
            if self.long {
                self.long = false;
                out.extend_from_slice(rest);
            } else if self.line.is_empty() {
                rename(rest, &self.name, &mut out);
            } else {
                self.line.extend_from_slice(rest);
                rename(&self.line, &self.name, &mut out);
                self.line.clear();
            }
        }
        let rest = &piece[from..];
        if self.long {
            out.extend_from_slice(rest);
        } else if self.line.len() + rest.len() > LINE_LIMIT {
            self.long = true;
            out.extend_from_slice(&self.line);
            self.line.clear();
            out.extend_from_slice(rest);
        } else {
            self.line.extend_from_slice(rest);
        }
        out.freeze()
    }
}

/// Writes a line, with the name replaced if it is an event with one.
fn rename(line: &[u8], name: &[u8], out: &mut BytesMut) {
    let found = line.strip_prefix(b"data:").and_then(|data| {
        let mut scanner = Scanner::default();
        scanner.feed(data).ok()?;
        let span = scanner.found().filter(|span| span.is_string)?;
        let offset = line.len() - data.len();
        Some((span.start + offset, span.end + offset))
    });
    let Some((start, end)) = found else { return out.extend_from_slice(line) };
    out.extend_from_slice(&line[..start]);
    out.extend_from_slice(name);
    out.extend_from_slice(&line[end..]);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(mut rewriter: Rewriter, text: &str, cut: usize) -> String {
        let mut out = Vec::new();
        for piece in text.as_bytes().chunks(cut) {
            out.extend_from_slice(&rewriter.push(Bytes::copy_from_slice(piece)));
        }
        out.extend_from_slice(&rewriter.finish());
        String::from_utf8(out).expect("text")
    }

    fn object(text: &str, cut: usize) -> String {
        run(Rewriter::Object(Object::new(Bytes::from_static(b"\"ours\""))), text, cut)
    }

    fn events(text: &str, cut: usize) -> String {
        run(Rewriter::Events(Events::new(Bytes::from_static(b"\"ours\""))), text, cut)
    }

    #[test]
    fn an_object_gets_its_name_back_wherever_it_is_cut() {
        let body = r#"{"choices":[{"model":"deep","text":"\"model\":\"no\""}],"model":"theirs","usage":{"x":1}}"#;
        for cut in 1..=body.len() {
            assert_eq!(object(body, cut), body.replace("\"theirs\"", "\"ours\""), "{cut}");
        }
    }

    #[test]
    fn what_has_no_name_is_left_as_it_is() {
        let long = format!(r#"{{"model":"{}"}}"#, "x".repeat(2 * NAME_LIMIT));
        for body in
            ["", "no json", "[1]", "{}", r#"{"model":null,"x":1}"#, r#"{"model":"cut"#, r#"{"a" 1,"model":"x"}"#]
        {
            for cut in [1, 3, 100] {
                assert_eq!(object(body, cut), body, "{cut}");
            }
        }
        assert_eq!(object(&long, 100), long);
    }

    #[test]
    fn every_event_gets_its_name_back_wherever_it_is_cut() {
        let stream = "data: {\"model\":\"theirs\",\"n\":1}\n\n: comment \"model\":\"theirs\"\n\
                      data:{\"x\":{\"model\":\"deep\"},\"model\":\"theirs\"}\r\n\r\nevent: x\ndata: [DONE]\n\ndata: {\"model\":\"theirs\"}";
        let expected = stream.replace("\"model\":\"theirs\"", "\"model\":\"ours\"");
        let expected = expected.replacen(": comment \"model\":\"ours\"", ": comment \"model\":\"theirs\"", 1);
        for cut in 1..=stream.len() {
            assert_eq!(events(stream, cut), expected, "{cut}");
        }
    }

    #[test]
    fn a_line_without_an_end_costs_a_bounded_amount() {
        let mut rewriter = Events::new(Bytes::from_static(b"\"ours\""));
        let piece = vec![b'x'; 256 * 1024];
        let mut out = 0;
        for _ in 0..20 {
            out += rewriter.push(&piece).len();
            assert!(rewriter.line.capacity() <= 4 * LINE_LIMIT);
        }
        assert_eq!(out, 20 * piece.len());
        let rest = rewriter.push(b"\ndata: {\"model\":\"theirs\"}\n");
        assert_eq!(&rest[..], b"\ndata: {\"model\":\"ours\"}\n");
    }
}
