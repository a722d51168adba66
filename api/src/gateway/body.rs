//! Bodies: a request's as it is collected and sent on, an answer's as it is relayed.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Frame, SizeHint};

use super::error::GatewayError;
use super::relay::Relay;
use super::scan::{Malformed, Scanner, Span};
use crate::server::{BodyTimedOut, RequestBody};

/// Pieces below this size are copied together: a client that sends single bytes must not cost a hundred each.
const SMALL: usize = 2048;

/// How many bytes of requests the gateway of a node holds at once.
const HELD_LIMIT: usize = 512 * 1024 * 1024;

/// What all requests of a node hold together.
#[derive(Debug, Default)]
pub(super) struct Held(AtomicUsize);

/// The part of one request. It is given back when it is dropped.
#[derive(Debug)]
pub(super) struct Share {
    held: Arc<Held>,
    bytes: usize,
}

impl Share {
    fn take(&mut self, bytes: usize) -> Result<(), GatewayError> {
        let before = self.held.0.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        if before.saturating_add(bytes) > HELD_LIMIT { Err(GatewayError::Overloaded) } else { Ok(()) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.held.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Checks that a text that comes in pieces is UTF-8.
#[derive(Debug, Default)]
struct Utf8 {
    /// The beginning of a character that goes on in the next piece.
    begun: [u8; 4],
    length: usize,
}

impl Utf8 {
    /// Whether it still is, with this piece.
    fn feed(&mut self, mut piece: &[u8]) -> bool {
        while self.length > 0 {
            let Some((first, rest)) = piece.split_first() else { return true };
            piece = rest;
            self.begun[self.length] = *first;
            self.length += 1;
            match std::str::from_utf8(&self.begun[..self.length]) {
                Ok(_) => self.length = 0,
                Err(error) if error.error_len().is_some() || self.length == self.begun.len() => return false,
                Err(_) => {}
            }
        }
        match std::str::from_utf8(piece) {
            Ok(_) => true,
            Err(error) if error.error_len().is_none() => {
                let rest = &piece[error.valid_up_to()..];
                self.begun[..rest.len()].copy_from_slice(rest);
                self.length = rest.len();
                true
            }
            Err(_) => false,
        }
    }

    fn is_whole(&self) -> bool {
        self.length == 0
    }
}

/// A body on its way in.
struct Reading {
    form: Form,
    scanner: Scanner,
    text: Utf8,
    /// Whether it may still be a JSON object.
    is_json: bool,
}

impl Reading {
    fn feed(&mut self, data: &[u8]) -> Result<(), GatewayError> {
        if !self.is_json {
            return Ok(());
        }
        let fed = match self.scanner.feed(data) {
            Ok(()) if self.text.feed(data) => Ok(()),
            Ok(()) => Err("it is not UTF-8"),
            Err(Malformed(why)) => Err(why),
        };
        self.judge(fed)
    }

    /// Whether it was a JSON object, and where it names the model.
    fn finish(mut self) -> Result<(bool, Option<Span>), GatewayError> {
        let whole = if self.text.is_whole() { Ok(()) } else { Err("it is not UTF-8") };
        let scanner = std::mem::take(&mut self.scanner);
        let mut model = None;
        if self.is_json {
            let finished = whole.and_then(|()| scanner.finish().map_err(|Malformed(why)| why));
            self.judge(finished.map(|found| model = found))?;
        }
        Ok((self.is_json, model))
    }

    fn judge(&mut self, read: Result<(), &'static str>) -> Result<(), GatewayError> {
        match (read, self.form) {
            (Ok(()), _) => Ok(()),
            (Err(why), Form::Json) => Err(GatewayError::InvalidJson(why)),
            (Err(_), Form::Any) => {
                self.is_json = false;
                Ok(())
            }
        }
    }
}

/// What a body is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// A JSON object; anything else is an error.
    Json,
    /// Anything; the model is looked for as long as it may be a JSON object.
    Any,
}

/// A whole request body, and where it names the model.
#[derive(Debug)]
pub(super) struct Collected {
    pieces: Vec<Bytes>,
    model: Option<Span>,
    /// Whether it is a JSON object, as far as one can see without reading all of it.
    pub is_json: bool,
    _share: Share,
}

impl Collected {
    /// Takes the body in as it comes.
    pub async fn read(mut body: RequestBody, limit: usize, held: &Arc<Held>, form: Form) -> Result<Self, GatewayError> {
        let mut share = Share { held: Arc::clone(held), bytes: 0 };
        let expected = body.size_hint().lower();
        if expected > limit as u64 {
            return Err(GatewayError::TooLarge(limit));
        }
        let (mut pieces, mut tail, mut length) = (Vec::new(), BytesMut::new(), 0_usize);
        let mut reading = Reading { form, scanner: Scanner::default(), text: Utf8::default(), is_json: true };
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| failed(error.as_ref()))?;
            let Ok(data) = frame.into_data() else { continue };
            length = length.saturating_add(data.len());
            if length > limit {
                return Err(GatewayError::TooLarge(limit));
            }
            share.take(data.len())?;
            reading.feed(&data)?;
            if pieces.is_empty() && tail.is_empty() || data.len() >= SMALL {
                if !tail.is_empty() {
                    pieces.push(tail.split().freeze());
                }
                pieces.push(data);
            } else {
                tail.extend_from_slice(&data);
            }
        }
        if !tail.is_empty() {
            pieces.push(tail.freeze());
        }
        let (is_json, model) = reading.finish()?;
        Ok(Self { pieces, model, is_json, _share: share })
    }

    /// A body that has come.
    #[cfg(test)]
    pub fn of(text: &'static str) -> Self {
        let share = Share { held: Arc::default(), bytes: 0 };
        Self { pieces: vec![Bytes::from_static(text.as_bytes())], model: None, is_json: true, _share: share }
    }

    /// The model's name as it is written, quotes and escapes included, and as it is meant.
    pub fn model(&self) -> Result<(Bytes, String), GatewayError> {
        let span = self.model.filter(|span| span.is_string).ok_or(GatewayError::MissingModel)?;
        let written = self.bytes(span.start, span.end);
        let name = serde_json::from_slice(&written).map_err(|_| GatewayError::InvalidJson("`model` is no text"))?;
        Ok((written, name))
    }

    fn bytes(&self, start: usize, end: usize) -> Bytes {
        let mut parts = slices(&self.pieces, start, end);
        match (parts.next(), parts.next()) {
            (None, _) => Bytes::new(),
            (Some(only), None) => only,
            (Some(first), Some(second)) => {
                let mut whole = BytesMut::from(&first[..]);
                whole.extend_from_slice(&second);
                parts.for_each(|part| whole.extend_from_slice(&part));
                whole.freeze()
            }
        }
    }

    /// The body to send on, with another name in the place of the model's if one is given. Nothing else moves.
    pub fn pieces(&self, model: Option<&Bytes>) -> Pieces {
        let (Some(model), Some(span)) = (model, self.model) else { return Pieces::of(self.pieces.iter().cloned()) };
        let head = slices(&self.pieces, 0, span.start);
        let tail = slices(&self.pieces, span.end, usize::MAX);
        Pieces::of(head.chain([model.clone()]).chain(tail))
    }
}

/// The parts of the pieces that stand between two places.
fn slices(pieces: &[Bytes], start: usize, end: usize) -> impl Iterator<Item = Bytes> + '_ {
    let mut at = 0;
    pieces.iter().filter_map(move |piece| {
        let (from, to) = (start.saturating_sub(at).min(piece.len()), end.saturating_sub(at).min(piece.len()));
        at += piece.len();
        (from < to).then(|| piece.slice(from..to))
    })
}

/// A body that did not come whole.
fn failed(error: &(dyn Error + 'static)) -> GatewayError {
    let stalled = std::iter::successors(Some(error), |error| (*error).source()).any(|error| error.is::<BodyTimedOut>());
    let why = if stalled { "the request body did not arrive in time" } else { "the request body did not arrive whole" };
    GatewayError::BadBody(why)
}

/// A body of known length that is sent to a provider.
#[derive(Clone, Debug, Default)]
pub(super) struct Pieces {
    pieces: VecDeque<Bytes>,
    length: usize,
}

impl Pieces {
    fn of(pieces: impl Iterator<Item = Bytes>) -> Self {
        let pieces: VecDeque<_> = pieces.filter(|piece| !piece.is_empty()).collect();
        let length = pieces.iter().map(Bytes::len).sum();
        Self { pieces, length }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        let piece = this.pieces.pop_front();
        this.length -= piece.as_ref().map_or(0, Bytes::len);
        Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length as u64)
    }
}

/// The body of an answer of the gateway.
#[derive(Debug)]
pub struct GatewayBody(Kind);

#[derive(Debug)]
enum Kind {
    Full(Option<Bytes>),
    Relay(Box<Relay>),
}

impl GatewayBody {
    pub(super) fn full(bytes: Bytes) -> Self {
        Self(Kind::Full(Some(bytes).filter(|bytes| !bytes.is_empty())))
    }

    pub(super) fn relay(relay: Relay) -> Self {
        Self(Kind::Relay(Box::new(relay)))
    }
}

impl Body for GatewayBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        match &mut self.get_mut().0 {
            Kind::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Relay(relay) => relay.poll_piece(cx).map(|piece| piece.map(|piece| piece.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Full(bytes) => bytes.is_none(),
            Kind::Relay(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Full(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Kind::Relay(relay) => relay.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn collected(text: &str, cuts: &[usize]) -> Collected {
        let mut scanner = Scanner::default();
        let (mut pieces, mut from) = (Vec::new(), 0);
        for to in cuts.iter().copied().chain([text.len()]) {
            pieces.push(Bytes::copy_from_slice(&text.as_bytes()[from..to]));
            from = to;
        }
        pieces.iter().for_each(|piece| scanner.feed(piece).expect("well formed"));
        let share = Share { held: Arc::default(), bytes: 0 };
        Collected { pieces, model: scanner.finish().expect("whole"), is_json: true, _share: share }
    }

    fn text(pieces: Pieces) -> String {
        let length = pieces.length;
        let bytes: Vec<u8> = pieces.pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
        assert_eq!(bytes.len(), length);
        String::from_utf8(bytes).expect("text")
    }

    #[test]
    fn only_the_name_moves() {
        let body = r#"{"a": 1, "mod\u0065l" : "x\"y" , "b":[{"model":"no"}]}"#;
        for cuts in [vec![], vec![1], vec![12, 25], vec![22, 23, 24, 25, 26], vec![0, 21, 30]] {
            let collected = collected(body, &cuts);
            let (written, name) = collected.model().expect("a name");
            assert_eq!((&written[..], name.as_str()), (br#""x\"y""#.as_slice(), "x\"y"));
            assert_eq!(text(collected.pieces(None)), body);
            let replaced = text(collected.pieces(Some(&Bytes::from_static(b"\"longer-name\""))));
            assert_eq!(replaced, body.replace(r#""x\"y""#, "\"longer-name\""));
        }
    }

    #[test]
    fn characters_may_be_cut_but_not_broken() {
        let check = |bytes: &[u8], cut: usize| {
            let mut text = Utf8::default();
            bytes.chunks(cut).all(|piece| text.feed(piece)) && text.is_whole()
        };
        let good = "a\u{e9}\u{20ac}\u{1f600}z\u{1f600}".as_bytes();
        for cut in 1..=good.len() {
            assert!(check(good, cut), "{cut}");
            assert!(!check(&good[..good.len() - 1], cut), "{cut}: it ends within a character");
            for bad in [
                &b"a\xff"[..],
                b"\xc3(",
                b"\xe2\x82(",
                b"\xf0\x9f\x98(",
                b"\x80",
                b"\xed\xa0\x80",
                b"\xf8\x88\x80\x80\x80",
            ] {
                assert!(!check(bad, cut), "{bad:x?} {cut}");
            }
        }
    }

    #[test]
    fn a_model_that_is_no_text_is_missing() {
        for body in ["{}", r#"{"model":null}"#, r#"{"model":["a"]}"#, r#"{"model":3}"#] {
            assert!(matches!(collected(body, &[]).model(), Err(GatewayError::MissingModel)), "{body}");
        }
    }

    #[test]
    fn what_need_not_be_json_is_taken_as_it_is() {
        let read = |form: Form, body: &[u8]| {
            let mut reading = Reading { form, scanner: Scanner::default(), text: Utf8::default(), is_json: true };
            body.chunks(3).try_for_each(|piece| reading.feed(piece))?;
            reading.finish()
        };
        let named = br#"{"model":"x"}"#.as_slice();
        for form in [Form::Json, Form::Any] {
            assert!(matches!(read(form, named), Ok((true, Some(_)))));
        }
        for other in [&b""[..], b"--boundary\r\n", br#"{"model":"x""#, b"{\"model\":\"\xff\"}", b"{\"a\":\"\xc3"] {
            assert!(matches!(read(Form::Any, other), Ok((false, None))), "{other:?}");
            assert!(matches!(read(Form::Json, other), Err(GatewayError::InvalidJson(_))), "{other:?}");
        }
    }

    #[test]
    fn what_is_held_is_bounded_and_given_back() {
        let held = Arc::new(Held::default());
        let mut first = Share { held: Arc::clone(&held), bytes: 0 };
        first.take(HELD_LIMIT).expect("there is room");
        let mut second = Share { held: Arc::clone(&held), bytes: 0 };
        assert!(matches!(second.take(1), Err(GatewayError::Overloaded)));
        drop((first, second));
        assert_eq!(held.0.load(Ordering::Relaxed), 0);
    }
}
