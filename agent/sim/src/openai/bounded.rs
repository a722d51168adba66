//! Values of which a body could hold too many, or too much: they are bounded while they are read, not after.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// A list of at most `MOST` values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Short<T, const MOST: usize>(
    /// The values.
    pub Vec<T>,
);

struct ShortReader<T, const MOST: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MOST: usize> Visitor<'de> for ShortReader<T, MOST> {
    type Value = Short<T, MOST>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MOST} values")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = seq.next_element()? {
            if values.len() == MOST {
                return Err(A::Error::invalid_length(MOST + 1, &self));
            }
            values.push(value);
        }
        Ok(Short(values))
    }
}

impl<'de, T: Deserialize<'de>, const MOST: usize> Deserialize<'de> for Short<T, MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShortReader(PhantomData))
    }
}

/// One stop string or a list of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stops(
    /// At most [`STOPS`].
    pub Vec<String>,
);

/// The longest list of stop strings.
const STOPS: usize = 64;

impl<'de> Deserialize<'de> for Stops {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Stops;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a text or a list of texts")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Stops, E> {
                Ok(Stops(vec![text.to_owned()]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Stops, A::Error> {
                ShortReader::<String, STOPS>(PhantomData).visit_seq(seq).map(|stops| Stops(stops.0))
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

/// Which tool is to be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// None of them.
    None,
    /// Whichever the model likes, or one at least.
    Any,
    /// This one.
    Named,
}

impl<'de> Deserialize<'de> for ToolChoice {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = ToolChoice;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a word or an object")
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<ToolChoice, E> {
                Ok(if text == "none" { ToolChoice::None } else { ToolChoice::Any })
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<ToolChoice, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(ToolChoice::Named)
            }
        }
        deserializer.deserialize_any(Reader)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reads<'a, T: Deserialize<'a>>(json: &'a str) -> bool {
        serde_json::from_str::<T>(json).is_ok()
    }

    #[test]
    fn lists_are_bounded_while_they_are_read() {
        assert!(reads::<Short<u64, 2>>("[1,2]") && !reads::<Short<u64, 2>>("[1,2,3]"));
        assert!(reads::<Stops>(&format!("[{}\"a\"]", "\"a\",".repeat(STOPS - 1))));
        assert!(!reads::<Stops>(&format!("[{}\"a\"]", "\"a\",".repeat(STOPS))));
        assert!(reads::<Stops>("\"a\"") && !reads::<Stops>("7"));
    }

    #[test]
    fn a_tool_is_chosen_by_a_word_or_an_object() {
        let choice = |json| serde_json::from_str::<ToolChoice>(json).unwrap();
        assert_eq!((choice("\"none\""), choice("\"auto\"")), (ToolChoice::None, ToolChoice::Any));
        assert_eq!(choice(r#"{"type":"function","function":{"name":"f"}}"#), ToolChoice::Named);
        assert!(!reads::<ToolChoice>("[[]]"));
    }
}
