//! The text in which programs tell Prometheus what they count.
//!
//! Only names and values are needed here, added up over labels. The crates that read the whole format keep every label and
//! stop at the first line that they do not like; a metric that nobody asked for must not cost the others.

use std::collections::BTreeMap;

/// The sums of those series that were asked for.
pub type Series = BTreeMap<&'static str, f64>;

/// Adds up the series of these names over their labels. Lines that make no sense, and values that are no number, are skipped; a
/// name without any is absent.
#[must_use]
pub fn series(text: &str, names: &[&'static str]) -> Series {
    let mut sums = Series::new();
    for (name, value) in text.lines().filter_map(sample) {
        if let Some(name) = names.iter().find(|wanted| **wanted == name)
            && value.is_finite()
        {
            *sums.entry(*name).or_default() += value;
        }
    }
    sums
}

/// A line's name and value. A time behind them is not looked at.
fn sample(line: &str) -> Option<(&str, f64)> {
    let line = line.trim();
    if line.starts_with('#') {
        return None;
    }
    let end = line.find(|sign: char| sign == '{' || sign.is_ascii_whitespace())?;
    let (name, rest) = line.split_at(end);
    let rest = rest.trim_start();
    let rest = if rest.starts_with('{') { behind_labels(rest)? } else { rest };
    Some((name, rest.split_ascii_whitespace().next()?.parse().ok()?))
}

/// What follows the labels. Their values may contain everything, braces and quotes too.
fn behind_labels(text: &str) -> Option<&str> {
    let (mut quoted, mut escaped) = (false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b'}' if !quoted => return text.get(at + 1..),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_are_added_up_over_their_labels() {
        let text = "# HELP a x\n# TYPE a counter\na_total{engine=\"0\"} 1.5\na_total{engine=\"1\"} 2 1700000000\n\
                    a_total_created 9\na 4\nb 7\r\n  c\t 1e3\n";
        let sums = series(text, &["a_total", "b", "c", "d"]);
        assert_eq!(sums, Series::from([("a_total", 3.5), ("b", 7.0), ("c", 1000.0)]));
    }

    #[test]
    fn labels_may_contain_everything() {
        let text = "a{model=\"x } y\",path=\"\\\"} 3\\\\\"} 5\na {b=\"{\"} 6\na{} 7\n";
        assert_eq!(series(text, &["a"]), Series::from([("a", 18.0)]));
    }

    #[test]
    fn lines_that_make_no_sense_cost_nothing_but_themselves() {
        let text = "a\na{\na{x=\"\na{x=\"1\"}\na x\na NaN\na +Inf\na -Inf\n{} 1\n}\n\u{0}\na{ü=\"ü\"} 2\n";
        assert_eq!(series(text, &["a"]), Series::from([("a", 2.0)]));
        assert_eq!(series("a NaN", &["a"]), Series::new());
    }
}
