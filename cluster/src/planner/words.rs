//! How reasons are written.

use std::fmt;

use crate::ids::PlacementId;

/// As many things as one sentence lists.
const LISTED: usize = 8;

/// A placement, by what an operator knows it as.
pub(super) struct Named(pub PlacementId);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.ordinal {
            0 => write!(f, "deployment {}", self.0.deployment),
            ordinal => write!(f, "deployment {}, replica {ordinal}", self.0.deployment),
        }
    }
}

/// Things one after the other, and how many more there are if they are too many.
pub(super) struct Listed<'a, T>(pub &'a [T], pub &'static str);

impl<T: fmt::Display> fmt::Display for Listed<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(things, between) = self;
        for (at, thing) in things.iter().take(LISTED).enumerate() {
            write!(f, "{}{thing}", if at == 0 { "" } else { between })?;
        }
        match things.len().saturating_sub(LISTED) {
            0 => Ok(()),
            more => write!(f, "{between}and {more} more"),
        }
    }
}

/// Milliseconds in words, rounded up to seconds.
pub(super) struct Seconds(pub u64);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} s", self.0.div_ceil(1000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_list_says_how_much_it_leaves_out() {
        let numbers: Vec<u32> = (1..=10).collect();
        assert_eq!(Listed(&numbers[..2], ", ").to_string(), "1, 2");
        assert_eq!(Listed(&numbers, "; ").to_string(), "1; 2; 3; 4; 5; 6; 7; 8; and 2 more");
        assert_eq!(Listed::<u32>(&[], ", ").to_string(), "");
    }
}
