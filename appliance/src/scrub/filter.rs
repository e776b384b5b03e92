//! A filter of hashes.

/// Tells of most hashes that they are not in a table, at the price of reading one word of memory.
#[derive(Default)]
pub(super) struct Filter {
    /// A bit for each hash, by its highest bits and its lowest.
    words: Vec<u64>,
    /// Another bit for each hash, by the bits in its middle. Only hashes that pass the first are
    /// checked against it.
    others: Vec<u64>,
    /// The shift that leaves the number of a word from a hash.
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

    /// Returns the words and the shift. The highest bits of a hash, after the shift, select a word;
    /// if the filter holds the hash, that word has the bit of the hash's lowest bits.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn parts(&self) -> (&[u64], u32) {
        (&self.words, self.shift)
    }
}

/// Returns the same hash with its middle at both ends.
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

/// With half a hash to a whole one in each word of the filter, one window in 64 to 128 passes it by
/// chance.
const HASHES_A_WORD: usize = 1;
/// Words of the smallest filter: hardly a window passes that of one secret by chance, and those of
/// all widths together leave room for the text in a processor's nearest cache.
const LEAST_WORDS: usize = 256;
