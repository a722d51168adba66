//! Prompts, reduced to what an answer needs while they are read: a request never holds its text, however long.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::words::Digest;

/// Prompts, choices or inputs that one request may have.
pub const MOST: usize = 256;

/// The messages of a chat, one after the other.
#[derive(Clone, Copy, Debug, Default)]
pub struct Messages {
    /// All their texts.
    pub digest: Digest,
    /// Whether one of them holds something else than text.
    pub media: bool,
    /// How many there are.
    pub count: usize,
}

impl<'de> Deserialize<'de> for Messages {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Messages;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of messages")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Messages, A::Error> {
                let mut messages = Messages::default();
                while let Some(Message(content)) = seq.next_element()? {
                    messages.digest = messages.digest.then(content.digest);
                    messages.media |= content.media;
                    messages.count += 1;
                }
                Ok(messages)
            }
        }
        deserializer.deserialize_seq(Reader)
    }
}

struct Message(Content);

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Message;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a message")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Message, A::Error> {
                let mut content = Content::default();
                while let Some(key) = map.next_key::<Key>()? {
                    match key {
                        Key::Content => content = map.next_value()?,
                        Key::Other => _ = map.next_value::<IgnoredAny>()?,
                    }
                }
                Ok(Message(content))
            }
        }
        deserializer.deserialize_map(Reader)
    }
}

#[derive(serde::Deserialize)]
#[serde(field_identifier, rename_all = "lowercase")]
enum Key {
    Content,
    #[serde(other)]
    Other,
}

/// A message's content: a text, nothing, or a list of parts.
#[derive(Clone, Copy, Debug, Default)]
struct Content {
    digest: Digest,
    media: bool,
}

/// One part. The types that hold no text are those that need another kind of model.
#[derive(serde::Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: Option<String>,
    text: Option<Text>,
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Content;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of parts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content { digest: Digest::of(text), media: false })
            }

            fn visit_unit<E: Error>(self) -> Result<Content, E> {
                Ok(Content::default())
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Content, A::Error> {
                let mut content = Content::default();
                while let Some(part) = seq.next_element::<Part>()? {
                    content.digest = content.digest.then(part.text.unwrap_or_default().0);
                    let kind = part.kind.as_deref().unwrap_or("text");
                    content.media |= ["image", "audio", "video"].iter().any(|media| kind.contains(media));
                }
                Ok(content)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// One text.
#[derive(Clone, Copy, Debug, Default)]
struct Text(Digest);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Text;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Text, E> {
                Ok(Text(Digest::of(text)))
            }
        }
        deserializer.deserialize_str(Reader)
    }
}

/// The prompts of a completion, or the inputs of embeddings: a text, a list of texts, one list of token ids or several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prompts(
    /// At most [`MOST`].
    pub Vec<Digest>,
);

enum Element {
    Whole(Digest),
    Id(Digest),
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Element;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a token id or a list of token ids")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Element, E> {
                Ok(Element::Whole(Digest::of(text)))
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<Element, E> {
                Ok(Element::Id(Digest::of_id(id)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Element, A::Error> {
                let mut digest = Digest::default();
                while let Some(id) = seq.next_element::<u64>()? {
                    digest = digest.then(Digest::of_id(id));
                }
                Ok(Element::Whole(digest))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Prompts;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts(vec![Digest::of(text)]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Prompts, A::Error> {
                let mut prompts = Vec::new();
                let mut ids: Option<Digest> = None;
                while let Some(element) = seq.next_element()? {
                    match element {
                        Element::Id(id) if prompts.is_empty() => ids = Some(ids.unwrap_or_default().then(id)),
                        Element::Whole(_) if prompts.len() == MOST => {
                            return Err(A::Error::custom(format!("more than {MOST} prompts")));
                        }
                        Element::Whole(prompt) if ids.is_none() => prompts.push(prompt),
                        _ => return Err(A::Error::custom("token ids and prompts in one list")),
                    }
                }
                prompts.extend(ids);
                Ok(Prompts(prompts))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(json: &str) -> Result<Vec<u64>, serde_json::Error> {
        serde_json::from_str::<Prompts>(json).map(|prompts| prompts.0.iter().map(|prompt| prompt.tokens()).collect())
    }

    #[test]
    fn all_forms_of_prompts_are_counted() {
        assert_eq!(tokens(r#""a b c""#).unwrap(), [3]);
        assert_eq!(tokens(r#"["a b", "c"]"#).unwrap(), [2, 1]);
        assert_eq!(tokens("[5, 6, 7, 8]").unwrap(), [4]);
        assert_eq!(tokens("[[5, 6], [7]]").unwrap(), [2, 1]);
        for wrong in ["[1, \"a\"]", "[\"a\", 1]", "[-1]", "{}", "[[[1]]]", "null"] {
            assert!(tokens(wrong).is_err(), "{wrong}");
        }
        assert!(tokens(&format!("[{}\"\"]", "\"\",".repeat(MOST))).is_err());
    }

    #[test]
    fn messages_are_counted_whatever_else_they_say() {
        let json =
            r#"[{"role":"odd","content":"a b","x":[1]},{"content":[{"type":"text","text":"c"}]},{"content":null}]"#;
        let messages: Messages = serde_json::from_str(json).unwrap();
        assert_eq!((messages.digest.tokens(), messages.media, messages.count), (3, false, 3));
        let image = r#"[{"content":[{"type":"image_url","image_url":{"url":"data:,"}}]}]"#;
        assert!(serde_json::from_str::<Messages>(image).unwrap().media);
        assert!(serde_json::from_str::<Messages>(r#"[{"content":7}]"#).is_err());
    }
}
