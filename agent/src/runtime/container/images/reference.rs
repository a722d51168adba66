//! The names of images.

use std::fmt;

/// The name of an image that can be asked of a daemon: a repository with a tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    repository: String,
    version: Version,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Version {
    Tag(String),
    Digest(String),
}

/// The tag of a name that has none.
const DEFAULT_TAG: &str = "latest";

/// The registry that a name without one is looked for in.
const DEFAULT_REGISTRY: &str = "docker.io/";

impl Reference {
    /// Reads a name. It becomes part of the daemon's URLs: only what a name may hold is let through.
    ///
    /// # Errors
    /// In words.
    pub fn parse(text: &str) -> Result<Self, String> {
        let refused = |why: &str| Err(format!("{text:?} is not the name of an image: {why}"));
        let (repository, version) = match text.split_once('@') {
            Some((name, digest)) => (untagged(name), Version::Digest(digest.to_owned())),
            None => match split_tag(text) {
                (repository, Some(tag)) => (repository, Version::Tag(tag.to_owned())),
                (repository, None) => (repository, Version::Tag(DEFAULT_TAG.to_owned())),
            },
        };
        if repository.len() > 255 || !without_port(repository).split('/').all(is_part) {
            return refused("a repository is lower-case letters, digits, and . _ - between slashes");
        }
        match &version {
            Version::Tag(tag) if !is_tag(tag) => return refused("a tag is up to 128 letters, digits, and . _ -"),
            Version::Digest(digest) if !is_digest(digest) => return refused("a digest is sha256: and 64 digits"),
            _ => {}
        }
        Ok(Self { repository: repository.to_owned(), version })
    }

    /// The repository, with its registry where the name has one.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if it is not a digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(tag) => Some(tag),
            Version::Digest(_) => None,
        }
    }

    /// Whether another image may have that name tomorrow, as the makers of vLLM name theirs.
    #[must_use]
    pub fn moves(&self) -> bool {
        self.tag().is_some_and(crate::engine::image::moves)
    }

    /// What `create` calls the tag: a digest goes there too.
    pub(super) fn tag_or_digest(&self) -> &str {
        match &self.version {
            Version::Tag(text) | Version::Digest(text) => text,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}:{tag}", self.repository),
            Version::Digest(digest) => write!(f, "{}@{digest}", self.repository),
        }
    }
}

/// The repository of a name as a daemon has it, without the registry that is meant when none is named.
pub(super) fn plain_repository(name: &str) -> &str {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let repository = untagged(name);
    let repository = repository.strip_prefix(DEFAULT_REGISTRY).unwrap_or(repository);
    let repository = repository.strip_prefix("library/").unwrap_or(repository);
    repository.strip_prefix("localhost/").unwrap_or(repository)
}

fn untagged(name: &str) -> &str {
    split_tag(name).0
}

/// A colon before the last slash belongs to the registry's port.
fn split_tag(name: &str) -> (&str, Option<&str>) {
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (name, None),
    }
}

fn is_part(part: &str) -> bool {
    let mut characters = part.chars();
    let first = characters.next().is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    first
        && !part.contains("..")
        && characters.all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-'))
}

/// A repository without the port of its registry.
fn without_port(repository: &str) -> String {
    let Some((registry, path)) = repository.split_once('/') else { return repository.to_owned() };
    match registry.split_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => format!("{host}/{path}"),
        _ => repository.to_owned(),
    }
}

fn is_tag(tag: &str) -> bool {
    let first = tag.chars().next().is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
    first && tag.len() <= 128 && tag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}

fn is_digest(digest: &str) -> bool {
    digest.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.chars().all(|c| c.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_a_repository_with_a_tag_or_a_digest() {
        let plain = Reference::parse("vllm/vllm-openai:v0.8.5").expect("a name");
        assert_eq!((plain.repository(), plain.tag()), ("vllm/vllm-openai", Some("v0.8.5")));
        let with_port = Reference::parse("registry.example:5000/team/engine").expect("a name");
        assert_eq!(with_port.to_string(), "registry.example:5000/team/engine:latest");
        let digest = format!("sha256:{}", "a".repeat(64));
        let exact = Reference::parse(&format!("vllm/vllm-openai:v1@{digest}")).expect("a name");
        assert_eq!(exact.to_string(), format!("vllm/vllm-openai@{digest}"));
    }

    #[test]
    fn what_would_change_a_url_is_not_a_name() {
        for text in [
            "",
            "a b",
            "x?force=1",
            "x#y",
            "../x",
            "a/../b",
            "/x",
            "x/",
            "X",
            "x:",
            "x:a/b",
            "x@sha256:12",
            "%41",
            "x\n",
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn only_latest_and_nightly_move() {
        let moves = |name: &str| Reference::parse(name).expect("a name").moves();
        assert!(moves("x") && moves("x:latest") && moves("x:nightly") && moves("x:nightly-aarch64"));
        assert!(!moves("x:v1") && !moves(&format!("x:nightly-{}", "a".repeat(40))));
        assert!(!moves(&format!("x@sha256:{}", "a".repeat(64))));
    }

    #[test]
    fn the_registry_that_is_meant_when_none_is_named_makes_no_difference() {
        assert_eq!(plain_repository("docker.io/vllm/vllm-openai:v1"), "vllm/vllm-openai");
        assert_eq!(plain_repository("vllm/vllm-openai@sha256:00"), "vllm/vllm-openai");
        assert_eq!(plain_repository("localhost/muster/local:v1-00"), "muster/local");
        assert_eq!(plain_repository("registry.example/vllm/vllm-openai:v1"), "registry.example/vllm/vllm-openai");
    }
}
