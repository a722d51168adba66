//! The text: what a prompt counts, and which words answer it.
//!
//! A token is a word. A prompt has as many as it has words between white space, one where it has none; a token id
//! counts as one. The answer's words are taken from a list by a hash of the prompt, the choice and the position, so the
//! same request always gets the same answer.

/// The words of every answer.
pub const WORDS: [&str; 64] = [
    "amber", "anchor", "apple", "autumn", "basin", "beacon", "birch", "bridge", "candle", "canyon", "cedar", "cinder",
    "clover", "copper", "coral", "creek", "delta", "dune", "ember", "falcon", "fern", "field", "flint", "forest",
    "garnet", "glacier", "grain", "granite", "harbor", "hazel", "heron", "hollow", "indigo", "island", "ivory",
    "jasper", "juniper", "lagoon", "lantern", "larch", "lichen", "maple", "marble", "meadow", "mesa", "mist", "moss",
    "north", "oak", "ocean", "opal", "orchard", "pebble", "pine", "quartz", "raven", "reed", "ridge", "river",
    "saffron", "slate", "sparrow", "timber", "willow",
];

/// How many ids [`id`] gives to words that are not in the list.
const OTHER_IDS: u64 = 1 << 20;

/// A prompt, reduced to what an answer depends on. Prompts are never kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digest {
    words: u64,
    hash: u64,
}

impl Digest {
    /// That of a text.
    #[must_use]
    pub fn of(text: &str) -> Self {
        let words = text.split_whitespace().count() as u64;
        Self { words, hash: hash(text.as_bytes()) }
    }

    /// That of one token id.
    #[must_use]
    pub fn of_id(id: u64) -> Self {
        Self { words: 1, hash: mix(id) }
    }

    /// That of both, one after the other.
    #[must_use]
    pub fn then(self, next: Self) -> Self {
        Self { words: self.words.saturating_add(next.words), hash: mix(self.hash).wrapping_add(next.hash) }
    }

    /// How many tokens the prompt has, at least one.
    #[must_use]
    pub fn tokens(self) -> u64 {
        self.words.max(1)
    }

    /// The text of one token of one of the answers.
    #[must_use]
    pub fn answer(self, choice: u32, position: u32) -> &'static str {
        WORDS[(self.number(choice, position) % WORDS.len() as u64) as usize]
    }

    /// One coordinate of the prompt's embedding, between -1 and 1.
    #[must_use]
    pub fn coordinate(self, position: u32) -> f32 {
        let thousandths = u16::try_from(self.number(0, position) % 2001).unwrap_or_default();
        (f32::from(thousandths) - 1000.0) / 1000.0
    }

    fn number(self, choice: u32, position: u32) -> u64 {
        mix(self.hash ^ mix((u64::from(choice) << 32) | u64::from(position)))
    }
}

/// A word's token id. Only those of [`WORDS`] can be turned back.
#[must_use]
pub fn id(word: &str) -> u64 {
    let known = WORDS.iter().position(|known| *known == word);
    known.map_or_else(|| WORDS.len() as u64 + hash(word.as_bytes()) % OTHER_IDS, |at| at as u64)
}

/// The word of a token id.
#[must_use]
pub fn word(id: u64) -> &'static str {
    usize::try_from(id).ok().and_then(|at| WORDS.get(at)).copied().unwrap_or("<unknown>")
}

/// FNV-1a, with its bits spread.
fn hash(bytes: &[u8]) -> u64 {
    let fnv = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, fnv))
}

/// The finalizer of splitmix64.
fn mix(number: u64) -> u64 {
    let z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_a_word() {
        assert_eq!(Digest::of(" one  two\nthree ").tokens(), 3);
        assert_eq!(Digest::of("").tokens(), 1);
        assert_eq!(Digest::of("a b").then(Digest::of_id(7)).tokens(), 3);
    }

    #[test]
    fn the_answer_follows_from_the_prompt() {
        let words = |text: &str, choice| (0..32).map(|at| Digest::of(text).answer(choice, at)).collect::<Vec<_>>();
        assert_eq!(words("hello", 0), words("hello", 0));
        assert_ne!(words("hello", 0), words("hello", 1));
        assert_ne!(words("hello", 0), words("hullo", 0));
        assert_ne!(Digest::of("a").then(Digest::of("b")), Digest::of("b").then(Digest::of("a")));
        // Every build, on every machine.
        assert_eq!(words("hello", 0)[..3], ["candle", "pebble", "garnet"]);
    }

    #[test]
    fn ids_of_the_list_turn_back() {
        for known in WORDS {
            assert_eq!(word(id(known)), known);
        }
        assert!(id("zebra") >= 64 && word(id("zebra")) == "<unknown>");
        assert_eq!(word(u64::MAX), "<unknown>");
    }

    #[test]
    fn coordinates_stay_in_their_range() {
        assert!((0..1000).all(|at| (-1.0..=1.0).contains(&Digest::of("x").coordinate(at))));
    }
}
