//! Which image an engine's version is in.

/// An image, as a registry names it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Image {
    /// `vllm/vllm-openai`.
    pub repository: String,
    /// `v0.8.5`.
    pub tag: String,
    /// Whether the tag leads elsewhere tomorrow, so that the registry has to be asked each time.
    pub moves: bool,
}

impl Image {
    /// `vllm/vllm-openai:v0.8.5`.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }
}

/// The image for a wanted version, as vLLM names its images: a release, `nightly`, a commit, or a tag as it stands. Nothing
/// wanted is the latest release, or the tag `latest` where that is not known.
#[must_use]
pub fn resolve(version: Option<&str>, latest: Option<&str>, repository: &str) -> Image {
    let given = |text: Option<&str>| text.map(str::trim).filter(|text| !text.is_empty()).map(str::to_owned);
    let tag = match (given(version), given(latest)) {
        (None, None) => "latest".to_owned(),
        (None, Some(latest)) => format!("v{}", latest.strip_prefix('v').unwrap_or(&latest)),
        (Some(version), _) if is_commit(&version) => format!("nightly-{version}"),
        (Some(version), _) if is_release(&version) => format!("v{version}"),
        (Some(tag), _) => tag,
    };
    Image { repository: repository.to_owned(), moves: moves(&tag), tag }
}

fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// `0.8.5`, `0.8.5.post1`, `0.9.0rc1`.
fn is_release(text: &str) -> bool {
    let mut parts = text.split('.');
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let leads = parts.next().is_some_and(number);
    let mut rest = parts.peekable();
    leads
        && rest.peek().is_some_and(|part| part.starts_with(|first: char| first.is_ascii_digit()))
        && rest.all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

/// `nightly`, `latest`, and their builds for one platform (`nightly-aarch64`); not the nightly build of one commit.
pub(crate) fn moves(tag: &str) -> bool {
    let mut words = tag.split('-');
    words.any(|word| matches!(word, "nightly" | "latest")) && !tag.split('-').any(is_commit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn tag(version: &str, latest: Option<&str>) -> (String, bool) {
        let image = resolve(Some(version), latest, "vllm/vllm-openai");
        (image.tag, image.moves)
    }

    #[test]
    fn versions_become_the_tags_that_vllm_gives_its_images() {
        for (version, expected) in [
            ("0.8.5", "v0.8.5"),
            ("0.8.5.post1", "v0.8.5.post1"),
            ("0.9.0rc1", "v0.9.0rc1"),
            ("v0.8.5", "v0.8.5"),
            ("cu128-x", "cu128-x"),
            (" 0.8.5 ", "v0.8.5"),
            ("8", "8"),
            ("0.", "0."),
            ("0.8-x", "0.8-x"),
        ] {
            assert_eq!(tag(version, Some("0.11.0")), (expected.to_owned(), false), "{version}");
        }
        assert_eq!(tag(COMMIT, None), (format!("nightly-{COMMIT}"), false));
    }

    #[test]
    fn nothing_wanted_is_the_latest_release_or_else_latest() {
        assert_eq!(tag("", Some("0.11.0")), ("v0.11.0".to_owned(), false));
        assert_eq!(tag("  ", Some("v0.11.0")), ("v0.11.0".to_owned(), false));
        assert_eq!(tag("", Some("")), ("latest".to_owned(), true));
        let nothing = resolve(None, None, "registry.example:5000/vllm");
        assert_eq!((nothing.reference().as_str(), nothing.moves), ("registry.example:5000/vllm:latest", true));
    }

    #[test]
    fn tags_that_move_are_told_from_those_that_do_not() {
        for (version, expected) in [
            ("nightly", true),
            ("latest", true),
            ("nightly-aarch64", true),
            ("cu130-nightly", true),
            ("nightlyish", false),
            ("v0.11.0", false),
        ] {
            assert_eq!(tag(version, None), (version.to_owned(), expected));
        }
        assert!(!tag(&format!("nightly-{COMMIT}-aarch64"), None).1);
    }
}
