//! Adapters as `--lora-modules` names them.

use std::str::FromStr;

use serde::Deserialize;

/// One adapter.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Adapter {
    /// The name that requests use.
    pub name: String,
    /// Where its files would lie.
    pub path: String,
}

/// The text is neither `NAME=PATH` nor a JSON object with `name` and `path`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAnAdapter;

impl std::fmt::Display for NotAnAdapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("neither NAME=PATH nor a JSON object with `name` and `path`")
    }
}

impl std::error::Error for NotAnAdapter {}

impl FromStr for Adapter {
    type Err = NotAnAdapter;

    fn from_str(text: &str) -> Result<Self, NotAnAdapter> {
        if text.starts_with('{') {
            return serde_json::from_str(text).map_err(|_| NotAnAdapter);
        }
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() => Ok(Self { name: name.to_owned(), path: path.to_owned() }),
            _ => Err(NotAnAdapter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_spellings_are_read() {
        let sql = Adapter { name: "sql".to_owned(), path: "/a=b".to_owned() };
        assert_eq!("sql=/a=b".parse(), Ok(sql.clone()));
        assert_eq!(r#"{"name":"sql","path":"/a=b","base_model_name":"x"}"#.parse(), Ok(sql));
        for text in ["sql", "=/a", "{", r#"{"name":"sql"}"#] {
            assert_eq!(text.parse::<Adapter>(), Err(NotAnAdapter), "{text}");
        }
    }
}
