//! A filter of hashes.

/// Says of most hashes that they are not in a table, at the price of a word of memory.
#[derive(Default)]
pub(super) struct Filter {
    /// A bit for each hash, by its highest bits and its lowest.
    words: Vec<u64>,
    /// Another for each, by those in the middle. Only what passes the first is held against it.
    others: Vec<u64>,
    /// How far to shift a hash so that the number of a word is left.
    shift: u32,
}

impl Filter {
    pub(super) fn of(hashes: impl ExactSizeIterator<Item = u64>) -> Self {
        let words = hashes.len().div_ceil(HASHES_A_WORD).max(LEAST_WORDS).next_power_of_two();
        let mut filter = Self {
            words: vec![0; words],
            others: vec![0; words],
            shift: u64::BITS - words.ilog2(),
        };
        for hash in hashes {
            set(&mut filter.words, filter.shift, hash);
            set(&mut filter.others, filter.shift, other(hash));
        }
        filter
    }

    #[inline]
    pub(super) fn may_hold(&self, hash: u64) -> bool {
        is_set(&self.words, self.shift, hash) && is_set(&self.others, self.shift, other(hash))
    }

    /// Words of which the one by the highest bits of a hash has the bit by its lowest ones, if the
    /// filter holds it; and how far to shift a hash so that the number of a word is left.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn parts(&self) -> (&[u64], u32) {
        (&self.words, self.shift)
    }
}

/// The same hash with its middle at both ends.
#[inline]
fn other(hash: u64) -> u64 {
    hash.rotate_left(u64::BITS / 2)
}

#[inline]
fn is_set(words: &[u64], shift: u32, hash: u64) -> bool {
    words.get(hash.wrapping_shr(shift) as usize).is_some_and(|word| word >> (hash & 63) & 1 != 0)
}

fn set(words: &mut [u64], shift: u32, hash: u64) {
    if let Some(word) = words.get_mut(hash.wrapping_shr(shift) as usize) {
        *word |= 1 << (hash & 63);
    }
}

/// With half a hash to one in a word of the filter, one window in 64 to 128 passes it by chance.
const HASHES_A_WORD: usize = 1;
/// Words of the smallest filter: hardly a window passes that of one secret by chance, and those of
/// all widths together leave the text its room in a processor's nearest cache.
const LEAST_WORDS: usize = 256;
