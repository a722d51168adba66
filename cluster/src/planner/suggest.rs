//! Whether a served name is free, and a similar one if it is not.

/// How many names are tried.
const ATTEMPTS: u32 = 1000;

/// What became of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checked {
    /// It is free, or blank: then the model's own name is served.
    Available,
    /// Somebody has it.
    Taken {
        /// One that is free; `None` if the first thousand like it are taken.
        suggestion: Option<String>,
    },
}

/// Checks a name, without the blanks around it. It reserves nothing.
pub fn check(name: &str, mut taken: impl FnMut(&str) -> bool) -> Checked {
    let name = name.trim();
    if name.is_empty() || !taken(name) {
        return Checked::Available;
    }
    let suggestion = (2..=ATTEMPTS).map(|number| format!("{name}-{number}")).find(|name| !taken(name));
    Checked::Taken { suggestion }
}

/// The name without the blanks around it if it is free, else the first free one of `name-2`, `name-3`, ...; `None` if it
/// is blank or the first thousand are taken.
pub fn suggest(name: &str, taken: impl FnMut(&str) -> bool) -> Option<String> {
    let name = name.trim();
    match check(name, taken) {
        Checked::Available => (!name.is_empty()).then(|| name.to_owned()),
        Checked::Taken { suggestion } => suggestion,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn suggested(name: &str, taken: &[&str]) -> Option<String> {
        suggest(name, |name| taken.contains(&name))
    }

    #[test]
    fn the_first_free_number_is_suggested() {
        assert_eq!(suggested("m", &[]).as_deref(), Some("m"));
        assert_eq!(suggested("m", &["m"]).as_deref(), Some("m-2"));
        assert_eq!(suggested(" m ", &["m", "m-2"]).as_deref(), Some("m-3"));
        assert_eq!(suggested("m", &["m", "m-3"]).as_deref(), Some("m-2"));
        let taken = Checked::Taken { suggestion: Some("m-2".to_owned()) };
        assert_eq!(check("m", |name| name == "m"), taken);
    }

    #[test]
    fn a_blank_name_is_available() {
        assert_eq!(check(" ", |_| true), Checked::Available);
        assert_eq!(suggested(" ", &[]), None);
    }

    #[test]
    fn the_search_ends() {
        let mut asked = 0;
        let all_taken = check("m", |_| {
            asked += 1;
            true
        });
        assert_eq!((all_taken, asked), (Checked::Taken { suggestion: None }, ATTEMPTS));
    }
}
