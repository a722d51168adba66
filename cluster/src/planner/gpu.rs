//! A GPU as the planners see it, and shares of one.

use std::fmt;
use std::iter::Sum;

/// A share of a GPU's memory in millionths. Sums of shares may be above one GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(pub u32);

impl Share {
    /// One GPU.
    pub const WHOLE: Self = Self(1_000_000);

    /// Both together. It ends at more than four thousand GPUs.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }

    /// What is left without the other one.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }
}

impl Sum for Share {
    fn sum<I: Iterator<Item = Self>>(shares: I) -> Self {
        shares.fold(Self(0), Self::plus)
    }
}

/// As a fraction: `0.25`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / Self::WHOLE.0, self.0 % Self::WHOLE.0);
        if rest == 0 {
            return write!(f, "{whole}");
        }
        write!(f, "{whole}.{}", format!("{rest:06}").trim_end_matches('0'))
    }
}

/// A GPU of a node, as its node last measured it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gpu {
    /// The driver's number.
    pub index: u32,
    /// Its memory in bytes. 0: the driver does not say.
    pub total: u64,
    /// The bytes that nobody uses, as measured. `None`: not measured; then only shares are compared.
    pub free: Option<u64>,
    /// Whether it shares the machine's memory, so that a model that sleeps frees nothing.
    pub unified: bool,
    /// Whether the driver has lost it.
    pub lost: bool,
    /// Whether it is kept from new work.
    pub cordoned: bool,
}

impl Gpu {
    /// The bytes that a share of it comes to.
    #[must_use]
    pub fn bytes_of(&self, share: Share) -> u64 {
        let bytes = u128::from(self.total) * u128::from(share.0) / u128::from(Share::WHOLE.0);
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// The bytes in use, as measured.
    pub(super) fn used(&self) -> Option<u64> {
        self.free.map(|free| self.total.saturating_sub(free))
    }

    /// The share in use, as measured.
    pub(super) fn used_share(&self) -> Option<Share> {
        let used = self.used().filter(|_| self.total > 0)?;
        let millionths = u128::from(used) * u128::from(Share::WHOLE.0) / u128::from(self.total);
        u32::try_from(millionths).ok().map(Share)
    }

    /// Compares measured memory with what is asked for. `held` are the bytes that the fleet's own models use now, `kept`
    /// those that the models which stay will use. `None`: there is enough, or it can not be said.
    pub(super) fn short_of_memory(&self, share: Share, held: u64, kept: u64) -> Option<ShortOfMemory> {
        if self.unified {
            return None;
        }
        let foreign = self.used()?.saturating_sub(held);
        let room = self.total.saturating_sub(foreign).saturating_sub(kept);
        let needed = self.bytes_of(share);
        // What shares may exceed one GPU by, and one byte of rounding.
        let tolerance = self.bytes_of(Share(1)) + 1;
        (needed > room.saturating_add(tolerance)).then_some(ShortOfMemory { needed, room, foreign })
    }
}

/// How far measured memory falls short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShortOfMemory {
    /// The bytes that are asked for.
    pub needed: u64,
    /// The bytes that are free or would become free.
    pub room: u64,
    /// The bytes that others than the fleet's own models use.
    pub foreign: u64,
}

impl fmt::Display for ShortOfMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { needed, room, foreign } = *self;
        let missing = needed.saturating_sub(room);
        write!(f, "{} of memory needed, {} can be had, {} too little", Bytes(needed), Bytes(room), Bytes(missing))?;
        if foreign > 0 {
            write!(f, " (other processes use {})", Bytes(foreign))?;
        }
        Ok(())
    }
}

/// Bytes in words: `512 MiB`, `79.5 GiB`.
pub(super) struct Bytes(pub u64);

impl Bytes {
    const MIB: u64 = 1 << 20;
    const GIB: u64 = 1 << 30;
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= Self::GIB {
            let tenths = u128::from(self.0) * 10 / u128::from(Self::GIB);
            write!(f, "{}.{} GiB", tenths / 10, tenths % 10)
        } else if self.0 >= Self::MIB {
            write!(f, "{} MiB", self.0 / Self::MIB)
        } else {
            write!(f, "{} bytes", self.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = Bytes::GIB;

    #[test]
    fn shares_and_bytes_read_like_an_operator_writes_them() {
        let words = |share| Share(share).to_string();
        assert_eq!((words(0), words(950_000), words(1)), ("0".to_owned(), "0.95".to_owned(), "0.000001".to_owned()));
        assert_eq!((words(1_000_000), words(1_400_000)), ("1".to_owned(), "1.4".to_owned()));
        assert_eq!(Bytes(79 * GIB + GIB / 2).to_string(), "79.5 GiB");
        assert_eq!(Bytes(512 << 20).to_string(), "512 MiB");
        assert_eq!(Bytes(u64::MAX).to_string(), "17179869183.9 GiB");
    }

    #[test]
    fn memory_that_others_use_is_not_there_and_that_of_own_models_is_counted_once() {
        let gpu = Gpu { total: 80 * GIB, free: Some(20 * GIB), ..Gpu::default() };
        let half = Share(500_000);
        let short = ShortOfMemory { needed: 40 * GIB, room: 20 * GIB, foreign: 60 * GIB };
        assert_eq!(gpu.short_of_memory(half, 0, 0), Some(short), "all of it is foreign");
        assert_eq!(gpu.short_of_memory(half, 40 * GIB, 0), None, "an own model that gives way");
        let short = ShortOfMemory { room: 20 * GIB, foreign: 20 * GIB, ..short };
        assert_eq!(gpu.short_of_memory(half, 40 * GIB, 40 * GIB), Some(short), "an own model that stays");
        assert_eq!(Gpu { free: None, ..gpu }.short_of_memory(half, 0, 0), None);
        assert_eq!(Gpu { unified: true, ..gpu }.short_of_memory(half, 0, 0), None);
        assert_eq!(
            short.to_string(),
            "40.0 GiB of memory needed, 20.0 GiB can be had, 20.0 GiB too little (other processes use 20.0 GiB)"
        );
    }
}
