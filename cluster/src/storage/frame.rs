//! The frame around every stored value: a version and a checksum of our own.
//!
//! The checksum covers the value's place (tree and key) as well as its bytes, so that a value that turns up under another
//! key is noticed as surely as a flipped bit.

const VERSION: u8 = 1;

/// What the frame adds to a value, in bytes.
pub(super) const OVERHEAD: usize = 5;

/// Puts `payload` into a frame for this place.
pub(super) fn seal(tree: &str, key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut framed = Vec::with_capacity(OVERHEAD + payload.len());
    framed.push(VERSION);
    framed.extend_from_slice(&checksum(tree, key, payload).to_le_bytes());
    framed.extend_from_slice(payload);
    framed
}

/// The payload of a frame from this place, or what is wrong with it.
pub(super) fn open<'a>(tree: &str, key: &[u8], framed: &'a [u8]) -> Result<&'a [u8], String> {
    let Some((head, payload)) = framed.split_at_checked(OVERHEAD) else {
        return Err(format!("{} bytes are too few for a value", framed.len()));
    };
    if head[0] != VERSION {
        return Err(format!("its version is {}, not {VERSION}", head[0]));
    }
    let computed = checksum(tree, key, payload).to_le_bytes();
    if head[1..] != computed {
        return Err("its checksum does not fit".to_owned());
    }
    Ok(payload)
}

fn checksum(tree: &str, key: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&[VERSION, tree.len() as u8, key.len() as u8]);
    hasher.update(tree.as_bytes());
    hasher.update(key);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flipped_bit_anywhere_is_noticed() {
        let framed = seal("log", b"key", b"some value");
        assert_eq!(open("log", b"key", &framed), Ok(&b"some value"[..]));
        for position in 0..framed.len() * 8 {
            let mut damaged = framed.clone();
            damaged[position / 8] ^= 1 << (position % 8);
            assert!(open("log", b"key", &damaged).is_err(), "bit {position}");
        }
    }

    #[test]
    fn a_value_under_another_key_or_in_another_tree_is_noticed() {
        let framed = seal("log", b"key", b"some value");
        assert!(open("log", b"kez", &framed).is_err());
        assert!(open("lo", b"gkey", &framed).is_err());
        assert!(open("meta", b"key", &framed).is_err());
    }

    #[test]
    fn a_truncated_value_is_noticed() {
        let framed = seal("log", b"key", b"some value");
        for len in 0..framed.len() {
            assert!(open("log", b"key", &framed[..len]).is_err(), "{len} bytes");
        }
    }
}
