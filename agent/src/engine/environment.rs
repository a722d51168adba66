//! The environment of an engine, as its owner wrote it down.

use muster_cluster::sealing::SecretText;

/// What a name contains if its value is masked.
const SECRET_WORDS: [&str; 4] = ["TOKEN", "SECRET", "KEY", "PASSWORD"];

/// The shortest value of which something is shown.
const SHOWN_FROM: usize = 9;

/// The variables that an engine gets: values in matching quotes lose them, everything else stays as it is. Pairs without a
/// name are left out.
#[must_use]
pub fn read(pairs: Vec<(String, SecretText)>) -> Vec<(String, SecretText)> {
    let named = pairs.into_iter().filter(|(name, _)| !name.is_empty());
    named
        .map(|(name, value)| match unquoted(value.reveal()) {
            Some(inner) => (name, SecretText::new(inner.to_owned())),
            None => (name, value),
        })
        .collect()
}

/// What a value in quotes has between them.
fn unquoted(value: &str) -> Option<&str> {
    let within = |quote: char| value.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote));
    within('"').or_else(|| within('\''))
}

/// A value as it may be shown to whoever set it. One whose name looks like a secret is masked, which still shows eight characters
/// of a longer one: this is not for logs that others read.
#[must_use]
pub fn masked(name: &str, value: &SecretText) -> String {
    let (name, value) = (name.to_ascii_uppercase(), value.reveal());
    if !SECRET_WORDS.iter().any(|word| name.contains(word)) {
        return value.to_owned();
    }
    let characters: Vec<char> = value.chars().collect();
    if characters.len() < SHOWN_FROM {
        return "********".to_owned();
    }
    let (head, tail) = (&characters[..4], &characters[characters.len() - 4..]);
    head.iter().chain(&['.'; 3]).chain(tail).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value_of(value: &str) -> String {
        let read = read(vec![("KEY".to_owned(), SecretText::new(value.to_owned()))]);
        read[0].1.reveal().to_owned()
    }

    #[test]
    fn values_in_matching_quotes_lose_them() {
        assert_eq!(value_of("\"abc\""), "abc");
        assert_eq!(value_of("'x'"), "x");
        assert_eq!(value_of("\"\""), "");
        assert_eq!(value_of("'\"a\"'"), "\"a\"");
        for verbatim in [" y ", "\"abc'", "\"", "'", "", "a\"b\"", "\"abc", " \"abc\""] {
            assert_eq!(value_of(verbatim), verbatim);
        }
    }

    #[test]
    fn pairs_without_a_name_are_left_out() {
        let pair = |name: &str, value: &str| (name.to_owned(), SecretText::new(value.to_owned()));
        let read = read(vec![pair("", "x"), pair("A", "1")]);
        assert_eq!(read.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["A"]);
    }

    #[test]
    fn what_looks_like_a_secret_is_masked() {
        let masked = |name, value: &str| masked(name, &SecretText::new(value.to_owned()));
        assert_eq!(masked("HF_TOKEN", "hf_abcdefgh"), "hf_a...efgh");
        assert_eq!(masked("HF_TOKEN", "12345678"), "********");
        assert_eq!(masked("HF_TOKEN", "123456789"), "1234...6789");
        assert_eq!(masked("HF_TOKEN", "äöüäöüäöü"), "äöüä...üäöü");
        assert_eq!(masked("HF_TOKEN", ""), "********");
        assert_eq!(masked("db_password", "short"), "********");
        assert_eq!(masked("MY_SECRET_THING", "0123456789"), "0123...6789");
        assert_eq!(masked("API_KEY", "x"), "********");
        assert_eq!(masked("HF_HUB_OFFLINE", "1"), "1");
    }
}
