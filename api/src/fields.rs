//! Taking a request's body apart field by field, so that the answer can name every field that is wrong.

use serde_json::{Map, Value};

use crate::error::{ApiError, FieldError};

/// The largest integer that every JSON reader keeps exactly.
pub const MAX_INTEGER: u64 = (1 << 53) - 1;

/// What a caller said of a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Given<T> {
    /// Nothing.
    Absent,
    /// `null`.
    Null,
    /// A value.
    Value(T),
}

impl<T> Given<T> {
    /// The value, if there is one.
    pub fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Absent | Self::Null => None,
        }
    }

    /// Whether it is `null`.
    pub fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }

    /// Turns the value into another.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Given<U> {
        match self {
            Self::Absent => Given::Absent,
            Self::Null => Given::Null,
            Self::Value(value) => Given::Value(f(value)),
        }
    }
}

/// The fields of a request's body that have not been looked at yet, and what was wrong with those that have.
#[derive(Debug)]
pub struct Fields {
    map: Map<String, Value>,
    errors: Vec<FieldError>,
    given: usize,
}

impl Fields {
    /// Reads a body that must be a JSON object.
    ///
    /// # Errors
    /// [`ApiError::NotJson`] or, for JSON of another type, [`ApiError::Invalid`].
    pub fn parse(body: &[u8]) -> Result<Self, ApiError> {
        let value = serde_json::from_slice(body).map_err(|error| ApiError::NotJson(error.to_string()))?;
        match value {
            Value::Object(map) => Ok(Self { given: map.len(), map, errors: Vec::new() }),
            _ => Err(ApiError::field("(body)", "must be an object")),
        }
    }

    /// Whether the caller gave no field at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.given == 0
    }

    /// Notes that a field is wrong.
    pub fn wrong(&mut self, field: &str, why: impl Into<String>) {
        self.errors.push(FieldError { field: field.to_owned(), why: why.into() });
    }

    /// Notes that a field is missing, unless something is wrong with it already.
    pub fn required(&mut self, field: &str) {
        if !self.errors.iter().any(|error| error.field == field) {
            self.wrong(field, "is required");
        }
    }

    /// The value of a field that has no state without one.
    pub fn not_null<T>(&mut self, field: &str, given: Given<T>) -> Option<T> {
        if given.is_null() {
            self.wrong(field, "must not be null");
        }
        given.value()
    }

    fn take<T>(&mut self, field: &str, why: &str, read: impl FnOnce(Value) -> Option<T>) -> Given<T> {
        match self.map.remove(field) {
            None => Given::Absent,
            Some(Value::Null) => Given::Null,
            Some(value) => match read(value) {
                Some(value) => Given::Value(value),
                None => {
                    self.wrong(field, why);
                    Given::Absent
                }
            },
        }
    }

    /// A text, without the blanks around it.
    pub fn text(&mut self, field: &str) -> Given<String> {
        let read = |value: Value| match value {
            Value::String(text) => Some(text.trim().to_owned()),
            _ => None,
        };
        self.take(field, "must be a string", read)
    }

    /// A truth value.
    pub fn boolean(&mut self, field: &str) -> Given<bool> {
        self.take(field, "must be true or false", |value| value.as_bool())
    }

    /// An integer within these bounds.
    pub fn integer(&mut self, field: &str, min: u64, max: u64) -> Given<u64> {
        let why = format!("must be an integer from {min} to {max}");
        self.take(field, &why, |value| value.as_u64().filter(|number| (min..=max).contains(number)))
    }

    /// An integer that may be negative, within these bounds.
    pub fn signed(&mut self, field: &str, min: i64, max: i64) -> Given<i64> {
        let why = format!("must be an integer from {min} to {max}");
        self.take(field, &why, |value| value.as_i64().filter(|number| (min..=max).contains(number)))
    }

    /// A list of so many integers at most, each within these bounds.
    pub fn numbers(&mut self, field: &str, min: u64, max: u64, limit: usize) -> Given<Vec<u64>> {
        let why = format!("must be a list of at most {limit} integers from {min} to {max}");
        let read = |value: Value| match value {
            Value::Array(items) if items.len() <= limit => {
                items.iter().map(|item| item.as_u64().filter(|number| (min..=max).contains(number))).collect()
            }
            _ => None,
        };
        self.take(field, &why, read)
    }

    /// A number within these bounds.
    pub fn number(&mut self, field: &str, min: f64, max: f64) -> Given<f64> {
        let why = format!("must be a number from {min} to {max}");
        self.take(field, &why, |value| value.as_f64().filter(|number| (min..=max).contains(number)))
    }

    /// An object.
    pub fn object(&mut self, field: &str) -> Given<Map<String, Value>> {
        let read = |value| match value {
            Value::Object(map) => Some(map),
            _ => None,
        };
        self.take(field, "must be an object", read)
    }

    /// A list, item by item. What is wrong with one is said of `field[number]`.
    pub fn list<T>(
        &mut self,
        field: &str,
        limit: usize,
        mut read: impl FnMut(Value) -> Result<T, String>,
    ) -> Given<Vec<T>> {
        let given = self.take(field, "must be an array", |value| match value {
            Value::Array(items) => Some(items),
            _ => None,
        });
        given.map(|items| {
            if items.len() > limit {
                self.wrong(field, format!("must have at most {limit} items"));
                return Vec::new();
            }
            let mut read_items = Vec::with_capacity(items.len());
            for (number, item) in items.into_iter().enumerate() {
                match read(item) {
                    Ok(item) => read_items.push(item),
                    Err(why) => self.wrong(&format!("{field}[{number}]"), why),
                }
            }
            read_items
        })
    }

    /// One of these words.
    pub fn word(&mut self, field: &str, words: &[&'static str]) -> Given<&'static str> {
        let why = format!("must be one of {}", words.join(", "));
        let read = |value: Value| {
            let text = value.as_str()?.trim();
            words.iter().find(|word| **word == text).copied()
        };
        self.take(field, &why, read)
    }

    /// One thing that has two names. Both may be given if they say the same.
    pub fn synonym<T: PartialEq>(
        &mut self,
        (first, second): (&str, &str),
        mut read: impl FnMut(&mut Self, &str) -> Given<T>,
    ) -> Result<Given<T>, ApiError> {
        let (one, other) = (read(self, first), read(self, second));
        if one.is_absent() {
            return Ok(other);
        }
        if other.is_absent() || one == other {
            return Ok(one);
        }
        let why = format!("{first} and {second} are two names of one thing and say different things");
        Err(ApiError::Senseless(why))
    }

    /// Looks away from fields that only this side sets: a caller may send back what it got.
    pub fn ignore(&mut self, fields: &[&str]) {
        for field in fields {
            self.map.remove(*field);
        }
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// [`ApiError::Invalid`] with everything that was wrong, fields that nobody has asked for included.
    pub fn finish(mut self) -> Result<(), ApiError> {
        let unknown: Vec<_> = self.map.keys().cloned().collect();
        for field in unknown {
            self.wrong(&field, "there is no such field");
        }
        if self.errors.is_empty() { Ok(()) } else { Err(ApiError::Invalid(self.errors)) }
    }
}

/// The fields of a body that are wrong, for tests of those who read one.
#[cfg(test)]
pub(crate) fn wrong_fields<T>(body: &Value, read: impl FnOnce(&mut Fields) -> T) -> Vec<String> {
    let mut fields = Fields::parse(body.to_string().as_bytes()).expect("an object");
    let _ = read(&mut fields);
    match fields.finish() {
        Ok(()) => Vec::new(),
        Err(ApiError::Invalid(errors)) => errors.into_iter().map(|error| error.field).collect(),
        Err(other) => panic!("{other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Fields {
        Fields::parse(text.as_bytes()).expect("an object")
    }

    #[test]
    fn every_wrong_field_is_named() {
        let mut fields = parse(r#"{"a": 5, "b": "x", "c": 7.5, "d": true, "e": [], "f": "no", "g": 1, "ok": " t "}"#);
        assert_eq!(fields.text("a"), Given::Absent);
        assert_eq!(fields.integer("b", 0, 9), Given::Absent);
        assert_eq!(fields.integer("c", 0, 9), Given::Absent);
        assert_eq!(fields.number("d", 0.0, 1.0), Given::Absent);
        assert_eq!(fields.object("e"), Given::Absent);
        assert_eq!(fields.word("f", &["yes"]), Given::Absent);
        assert_eq!(fields.text("ok"), Given::Value("t".to_owned()));
        assert_eq!(fields.text("nothing"), Given::Absent);
        let Err(ApiError::Invalid(errors)) = fields.finish() else { panic!("it is invalid") };
        let named: Vec<_> = errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(named, ["a", "b", "c", "d", "e", "f", "g"]);
    }

    #[test]
    fn two_names_may_not_contradict_each_other() {
        let read = |text| parse(text).synonym(("a", "b"), |fields, field| fields.text(field)).map_err(|_| ());
        assert_eq!(read(r#"{"a": "x"}"#), Ok(Given::Value("x".to_owned())));
        assert_eq!(read(r#"{"b": "x"}"#), Ok(Given::Value("x".to_owned())));
        assert_eq!(read(r#"{"a": "x", "b": "x "}"#), Ok(Given::Value("x".to_owned())));
        assert_eq!(read(r#"{"a": "x", "b": "y"}"#), Err(()));
        assert_eq!(read(r#"{"a": null, "b": "y"}"#), Err(()));
        assert_eq!(read("{}"), Ok(Given::Absent));
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(matches!(Fields::parse(b"{\"name\":"), Err(ApiError::NotJson(_))));
        assert!(matches!(Fields::parse(b""), Err(ApiError::NotJson(_))));
        assert!(matches!(Fields::parse(b"\"\xff\""), Err(ApiError::NotJson(_))));
        assert!(matches!(Fields::parse(b"[]"), Err(ApiError::Invalid(_))));
        let deep = "[".repeat(100_000);
        assert!(matches!(Fields::parse(deep.as_bytes()), Err(ApiError::NotJson(_))));
    }
}
