//! Names of models and paths inside them: what is accepted, decided once.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};

use percent_encoding::percent_decode_str;

use super::error::FilesError;

/// The longest name of a local model, in characters.
const LONGEST_NAME: usize = 64;

/// The longest relative path, in characters.
const LONGEST_PATH: usize = 1024;

/// The most parts of a relative path.
pub(super) const MOST_PARTS: usize = 32;

/// The longest name of a model of the hub, in characters.
const LONGEST_REPO: usize = 256;

/// The name of a local model: starts with a letter or a digit, then up to 63 letters, digits, `.`, `_` and `-`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelName(String);

impl ModelName {
    /// Reads a name.
    ///
    /// # Errors
    /// `Invalid` when it is not one.
    pub fn parse(text: &str) -> Result<Self, FilesError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        let starts_well = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
        if starts_well && text.len() <= LONGEST_NAME && text.chars().all(allowed) {
            return Ok(Self(text.to_owned()));
        }
        Err(FilesError::Invalid(
            "the name must start with a letter or a digit and have at most 64 letters, digits, '.', '_' and '-'"
                .to_owned(),
        ))
    }

    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A path inside a model: it leads nowhere else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelativePath(String);

impl RelativePath {
    /// Reads a path. Its parts are separated by `/`; nothing in it is normalised away.
    ///
    /// # Errors
    /// `Invalid` when it is empty, longer than 1024 characters, has more than 32 parts, is absolute, has an empty part or one
    /// that is `.` or `..`, or contains a colon, a backslash or a control character.
    pub fn parse(text: &str) -> Result<Self, FilesError> {
        let refuse = |why: &str| Err(FilesError::Invalid(format!("the path {why}")));
        if text.is_empty() {
            return refuse("must not be empty");
        }
        if text.chars().count() > LONGEST_PATH {
            return refuse("must have at most 1024 characters");
        }
        if text.chars().any(char::is_control) {
            return refuse("must not contain control characters");
        }
        if text.contains([':', '\\']) {
            return refuse("must not contain ':' or a backslash");
        }
        if text.starts_with('/') {
            return refuse("must not be absolute");
        }
        if text.split('/').count() > MOST_PARTS {
            return refuse("must have at most 32 parts");
        }
        if text.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return refuse("must not have empty parts, '.' or '..'");
        }
        Ok(Self(text.to_owned()))
    }

    /// Reads the name of one file, without a directory.
    ///
    /// # Errors
    /// `Invalid` as for a path, and when it has more than one part.
    pub fn parse_file_name(text: &str) -> Result<Self, FilesError> {
        if text.contains('/') {
            return Err(FilesError::Invalid("the file name must not contain '/'".to_owned()));
        }
        Self::parse(text)
    }

    /// As it was given.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its parts, from the outermost.
    pub(super) fn parts(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }

    /// Where it leads below a directory.
    pub(super) fn below(&self, root: &Path) -> PathBuf {
        root.join(&self.0)
    }
}

impl fmt::Display for RelativePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a model of the hub: `org/model`, or `model` alone.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepoName(String);

impl RepoName {
    /// Reads a name as it stands in a URL: with its slashes raw or percent-encoded.
    ///
    /// # Errors
    /// `Invalid` when it could lead anywhere but to one directory of the hub's cache.
    pub fn parse(text: &str) -> Result<Self, FilesError> {
        let decoded = percent_decode_str(text).decode_utf8().map_err(|_| Self::refusal())?;
        Self::plain(&decoded)
    }

    /// Reads a name in which nothing is encoded.
    ///
    /// # Errors
    /// As for [`Self::parse`].
    pub fn plain(name: &str) -> Result<Self, FilesError> {
        Self::checked(name).ok_or_else(Self::refusal)
    }

    fn refusal() -> FilesError {
        FilesError::Invalid("this is not the name of a cached model, like org/model".to_owned())
    }

    /// Reads the name of a directory of the cache. `None`: it is not a model's.
    pub(super) fn from_directory(name: &OsStr) -> Option<Self> {
        let name = Self::checked(&name.to_str()?.strip_prefix("models--")?.replace("--", "/"))?;
        // Whatever is listed can be deleted under that name.
        Some(name)
    }

    fn checked(name: &str) -> Option<Self> {
        let good = name.len() <= LONGEST_REPO
            && !name.chars().any(|c| c.is_control() || matches!(c, '\\' | ':' | '%'))
            && name.split('/').all(|part| !matches!(part, "" | "." | ".."));
        good.then(|| Self(name.to_owned()))
    }

    /// The name of its directory in the cache.
    pub(super) fn directory(&self) -> String {
        format!("models--{}", self.0.replace('/', "--"))
    }

    /// As the hub spells it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::ErrorKind;
    use super::*;

    #[test]
    fn names_of_models_are_those_of_the_rule() {
        for good in ["my.model-1", "a", "7B", &"x".repeat(64), "A_b-c.d"] {
            assert_eq!(ModelName::parse(good).unwrap().as_str(), good);
        }
        for bad in ["", "-x", "a/b", "..", ".", &"x".repeat(65), ".tmp", "_x", "a b", "ä", "a\n", "a\0", "a:b", "a\\b"]
        {
            assert_eq!(ModelName::parse(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn relative_paths_lead_nowhere_else() {
        let parts_32 = ["p"; 32].join("/");
        for good in
            ["sub/w.bin", "w", "...", "a b", "ü/x", &"x".repeat(1024), &"ü".repeat(1024), &parts_32, "-x", ".hidden"]
        {
            assert_eq!(RelativePath::parse(good).unwrap().as_str(), good);
        }
        let parts_33 = ["p"; 33].join("/");
        let bad = [
            "",
            "/abs",
            "../x",
            "x/..",
            "a/../b",
            "a/./b",
            "./a",
            ".",
            "..",
            "c:x",
            "a\\b",
            "a//b",
            "a/",
            "/",
            "a\nb",
            "a\0b",
            "a\u{7f}",
            "a\u{85}b",
            &parts_33,
            &"x".repeat(1025),
        ];
        for bad in bad {
            assert_eq!(RelativePath::parse(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
        assert!(RelativePath::parse_file_name("a/b").is_err());
        assert!(RelativePath::parse_file_name("a.whl").is_ok());
    }

    #[test]
    fn names_of_the_hub_come_raw_and_encoded() {
        for text in ["org/model", "org%2Fmodel", "org%2fmodel"] {
            let name = RepoName::parse(text).unwrap();
            assert_eq!((name.as_str(), name.directory().as_str()), ("org/model", "models--org--model"));
        }
        assert_eq!(RepoName::parse("gpt2").unwrap().directory(), "models--gpt2");
        for bad in [
            "",
            "..",
            "../x",
            "a/../b",
            "%2e%2e/x",
            "a%2F..%2Fb",
            "/a",
            "a/",
            "a%00",
            "a%ff",
            "a\\b",
            "a%252Fb",
            "a//b",
        ] {
            assert_eq!(RepoName::parse(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn directories_of_the_hub_give_names_that_lead_back() {
        for directory in ["models--org--model", "models--gpt2", "models--a--b---c"] {
            assert_eq!(RepoName::from_directory(OsStr::new(directory)).unwrap().directory(), directory);
        }
        for other in ["models--", "models----x", "datasets--a--b", ".locks", "version.txt", "models--..--x"] {
            assert!(RepoName::from_directory(OsStr::new(other)).is_none(), "{other}");
        }
    }
}
