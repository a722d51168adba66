//! Finding one field of a JSON object without reading the rest of it.

use memchr::memchr2;

/// The field that is looked for.
const FIELD: &[u8] = b"model";

/// A longer key can not be [`FIELD`], however it is escaped.
const KEY_LIMIT: usize = 6 * FIELD.len();

/// What is no JSON object, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub &'static str);

/// Where a value stands, in bytes from the start of the text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub start: usize,
    pub end: usize,
    /// Whether it is a string; the quotes are within the span then.
    pub is_string: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    /// Before the object.
    Start,
    /// After `{`: a key or the end.
    FirstKey,
    /// After a comma: a key.
    NextKey,
    /// In a key of the object.
    Key { escaped: bool },
    /// After a key: the colon.
    Colon,
    /// After the colon: a value.
    Value,
    /// In a string that is a value of the object.
    Text { escaped: bool },
    /// In a number or a word that is a value of the object.
    Word,
    /// In an array or an object within the object.
    Nested,
    /// In a string in there.
    NestedText { escaped: bool },
    /// After a value: a comma or the end.
    After,
    /// After the object.
    End,
}

/// Reads a JSON object piece by piece, as far as it must to know where the value of `model` stands at its first level. What
/// stands in strings and deeper is skipped; whoever gets the text in the end judges whether it is well formed there.
#[derive(Debug)]
pub(super) struct Scanner {
    at: At,
    /// How many arrays and objects are open within the object.
    depth: usize,
    /// How many bytes have been read.
    position: usize,
    /// The key as it is written, as far as it can matter.
    key: [u8; KEY_LIMIT],
    key_length: usize,
    /// Whether the value that comes, or is being read, is the one that is looked for.
    wanted: bool,
    start: Option<(usize, bool)>,
    found: Option<Span>,
    twice: bool,
}

impl Default for Scanner {
    fn default() -> Self {
        Self {
            at: At::Start,
            depth: 0,
            position: 0,
            key: [0; KEY_LIMIT],
            key_length: 0,
            wanted: false,
            start: None,
            found: None,
            twice: false,
        }
    }
}

fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Skips the inside of a string. Returns where it goes on, and whether it stopped at the end of the string.
fn skip_text(bytes: &[u8], mut index: usize, escaped: &mut bool) -> (usize, bool) {
    while index < bytes.len() {
        if *escaped {
            *escaped = false;
            index += 1;
            continue;
        }
        match memchr2(b'"', b'\\', &bytes[index..]) {
            None => return (bytes.len(), false),
            Some(offset) if bytes[index + offset] == b'"' => return (index + offset + 1, true),
            Some(offset) => {
                *escaped = true;
                index += offset + 1;
            }
        }
    }
    (index, false)
}

impl Scanner {
    /// Reads the next piece.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Malformed> {
        let mut index = 0;
        while index < bytes.len() {
            let byte = bytes[index];
            match self.at {
                At::Start | At::FirstKey | At::NextKey | At::Colon | At::Value | At::After | At::End => {
                    if !is_space(byte) {
                        self.between(byte, self.position + index)?;
                    }
                    index += 1;
                }
                At::Key { mut escaped } => {
                    let (next, ended) = skip_text(bytes, index, &mut escaped);
                    self.keep_key(&bytes[index..next - usize::from(ended)]);
                    if ended {
                        self.wanted = self.is_wanted();
                        self.at = At::Colon;
                    } else {
                        self.at = At::Key { escaped };
                    }
                    index = next;
                }
                At::Text { mut escaped } => {
                    let (next, ended) = skip_text(bytes, index, &mut escaped);
                    self.at = if ended { At::After } else { At::Text { escaped } };
                    if ended {
                        self.end_of_value(self.position + next);
                    }
                    index = next;
                }
                At::NestedText { mut escaped } => {
                    let (next, ended) = skip_text(bytes, index, &mut escaped);
                    self.at = if ended { At::Nested } else { At::NestedText { escaped } };
                    index = next;
                }
                At::Word => {
                    if is_space(byte) || matches!(byte, b',' | b'}') {
                        self.end_of_value(self.position + index);
                        self.at = At::After;
                    } else {
                        index += 1;
                    }
                }
                At::Nested => {
                    match byte {
                        b'"' => self.at = At::NestedText { escaped: false },
                        b'{' | b'[' => self.depth += 1,
                        b'}' | b']' => {
                            self.depth -= 1;
                            if self.depth == 0 {
                                self.end_of_value(self.position + index + 1);
                                self.at = At::After;
                            }
                        }
                        _ => {}
                    }
                    index += 1;
                }
            }
        }
        self.position += bytes.len();
        Ok(())
    }

    /// A byte that is neither space nor within a key or a value.
    fn between(&mut self, byte: u8, position: usize) -> Result<(), Malformed> {
        self.at = match (self.at, byte) {
            (At::Start, b'{') => At::FirstKey,
            (At::Start, _) => return Err(Malformed("it is not an object")),
            (At::FirstKey | At::NextKey, b'"') => {
                self.key_length = 0;
                At::Key { escaped: false }
            }
            (At::FirstKey | At::After, b'}') => At::End,
            (At::FirstKey | At::NextKey, _) => return Err(Malformed("a key must be a string")),
            (At::Colon, b':') => At::Value,
            (At::Colon, _) => return Err(Malformed("a colon is missing after a key")),
            (At::Value, b',' | b'}' | b']' | b':') => return Err(Malformed("a value is missing")),
            (At::Value, _) => {
                if self.wanted {
                    self.twice |= self.found.is_some();
                    self.start = Some((position, byte == b'"'));
                }
                match byte {
                    b'"' => At::Text { escaped: false },
                    b'{' | b'[' => {
                        self.depth = 1;
                        At::Nested
                    }
                    _ => At::Word,
                }
            }
            (At::After, b',') => At::NextKey,
            (At::After, _) => return Err(Malformed("a comma is missing after a value")),
            (At::End, _) => return Err(Malformed("something follows the object")),
            // Not reached: the others are not between things.
            (at, _) => at,
        };
        Ok(())
    }

    fn keep_key(&mut self, piece: &[u8]) {
        let room = &mut self.key[self.key_length.min(KEY_LIMIT)..];
        let taken = room.len().min(piece.len());
        room[..taken].copy_from_slice(&piece[..taken]);
        // Beyond the limit only that it is too long.
        self.key_length = self.key_length.saturating_add(piece.len());
    }

    fn is_wanted(&self) -> bool {
        let Some(key) = self.key.get(..self.key_length) else { return false };
        if !key.contains(&b'\\') {
            return key == FIELD;
        }
        let mut quoted = Vec::with_capacity(key.len() + 2);
        quoted.push(b'"');
        quoted.extend_from_slice(key);
        quoted.push(b'"');
        serde_json::from_slice::<String>(&quoted).is_ok_and(|key| key.as_bytes() == FIELD)
    }

    fn end_of_value(&mut self, end: usize) {
        if let Some((start, is_string)) = self.start.take() {
            self.found = self.found.or(Some(Span { start, end, is_string }));
        }
    }

    /// Where the value stands, once its end has been read.
    pub fn found(&self) -> Option<Span> {
        self.found
    }

    /// Where the value begins that is being read.
    pub fn open(&self) -> Option<usize> {
        self.start.map(|(start, _)| start)
    }

    /// Where the value stands in the text that has been read to its end.
    pub fn finish(&self) -> Result<Option<Span>, Malformed> {
        match self.at {
            At::End if self.twice => Err(Malformed("it has two fields `model`")),
            At::End => Ok(self.found),
            At::Start => Err(Malformed("it is empty")),
            _ => Err(Malformed("it ends too early")),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(text: &[u8], cut: usize) -> Result<Option<Span>, Malformed> {
        let mut scanner = Scanner::default();
        for piece in text.chunks(cut.max(1)) {
            scanner.feed(piece)?;
        }
        scanner.finish()
    }

    fn value(text: &str) -> Option<&str> {
        let found = scan(text.as_bytes(), 1).expect("well formed");
        for cut in [2, 3, 7, text.len()] {
            assert_eq!(scan(text.as_bytes(), cut), Ok(found), "{text} in pieces of {cut}");
        }
        found.map(|span| &text[span.start..span.end])
    }

    #[test]
    fn the_field_is_found_at_the_first_level_only() {
        for (text, expected) in [
            (r#"{"model":"a"}"#, Some(r#""a""#)),
            (r#" { "x" : [ {"model":"no"} ] , "model" : "a" } "#, Some(r#""a""#)),
            (r#"{"x":"\"model\":\"no\"","model":"b\"c\\"}"#, Some(r#""b\"c\\""#)),
            (r#"{"mod\u0065l":"a"}"#, Some(r#""a""#)),
            (r#"{"\u006d\u006f\u0064\u0065\u006c":"a"}"#, Some(r#""a""#)),
            (r#"{"models":"a","Model":"b","mode\"l":1,"":0}"#, None),
            (r#"{"model":12,"x":1}"#, Some("12")),
            (r#"{"model":{"model":"no"}}"#, Some(r#"{"model":"no"}"#)),
            (r#"{"x":{"y":["}","]",{}]},"model":null}"#, Some("null")),
            ("{}", None),
        ] {
            assert_eq!(value(text), expected, "{text}");
        }
    }

    #[test]
    fn it_is_found_behind_much_else() {
        let text = format!(r#"{{"messages":[{{"content":"{}"}}],"model":"a"}}"#, "\\\"x".repeat(64 * 1024));
        assert_eq!(value(&text), Some(r#""a""#));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        for text in [
            "",
            " ",
            "[]",
            "12",
            "{",
            "{\"a\"",
            "{\"a\":",
            "{\"a\":1",
            "{\"a\":1,",
            "{\"a\":1,}",
            "{a:1}",
            "{\"a\" 1}",
            "{\"a\":}",
            "{\"a\":1 \"b\":2}",
            "{} x",
            "{}{}",
            "{\"a\":\"b}",
            "{\"a\":[1}",
            "\u{feff}{}",
            "{,}",
            "{\"model\":\"a\",\"model\":\"b\"}",
            "{\"model\":\"a\",\"mod\\u0065l\":\"b\"}",
            "{\"a\":\"\\\"}",
        ] {
            for cut in [1, 2, 100] {
                let found = scan(text.as_bytes(), cut);
                // Brackets of the wrong kind are left to whoever gets the text.
                assert!(found.is_err() || text == "{\"a\":[1}", "{text}: {found:?}");
            }
        }
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            "[a-z\"\\\\{}\\[\\],: \u{e9}\n]{0,12}".prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::btree_map("[a-c\"\\\\]{0,2}|model", inner, 0..4)
                    .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_real_parser(value in json(), pretty: bool, cut in 1usize..40) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.expect("it has a form");
            let found = scan(text.as_bytes(), cut);
            match &value {
                serde_json::Value::Object(map) => {
                    let found = found.expect("an object").map(|span| (&text[span.start..span.end], span.is_string));
                    let parsed = found.map(|(text, _)| serde_json::from_str::<serde_json::Value>(text).expect("a value"));
                    prop_assert_eq!(parsed.as_ref(), map.get("model"));
                    prop_assert_eq!(found.is_some_and(|(_, is)| is), map.get("model").is_some_and(|m| m.is_string()));
                }
                _ => prop_assert!(found.is_err()),
            }
        }

        #[test]
        fn nothing_makes_it_panic(bytes in prop::collection::vec(prop::sample::select(b"{}[]\",:\\model 1".to_vec()), 0..60), cut in 1usize..9) {
            let whole = scan(&bytes, bytes.len());
            prop_assert_eq!(scan(&bytes, cut), whole);
        }
    }
}
