//! A filter of hashes.

/// Says of most hashes that they are not in a table, at the price of one word of memory.
#[derive(Default)]
pub(super) struct Filter {
    words: Vec<u64>,
    /// How far to shift a hash so that the number of a word is left.
    shift: u32,
}

impl Filter {
    pub(super) fn of(hashes: impl ExactSizeIterator<Item = u64>) -> Self {
        let words = hashes.len().div_ceil(HASHES_A_WORD).max(LEAST_WORDS).next_power_of_two();
        let mut filter = Self { words: vec![0; words], shift: u64::BITS - words.ilog2() };
        for hash in hashes {
            let place = filter.place(hash);
            if let Some(word) = filter.words.get_mut(place) {
                *word |= 1 << (hash & 63);
            }
        }
        filter
    }

    #[inline]
    pub(super) fn may_hold(&self, hash: u64) -> bool {
        self.words.get(self.place(hash)).is_some_and(|word| word >> (hash & 63) & 1 != 0)
    }

    /// The words, and how far to shift a hash so that the number of one is left. Its lowest bits
    /// are that of a bit in it.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn parts(&self) -> (&[u64], u32) {
        (&self.words, self.shift)
    }

    #[inline]
    fn place(&self, hash: u64) -> usize {
        hash.wrapping_shr(self.shift) as usize
    }
}

/// With half a hash to one in a word of the filter, one window in 64 to 128 passes it by chance.
const HASHES_A_WORD: usize = 1;
/// Words of the smallest filter: hardly a window passes that of one secret by chance, and those of
/// all widths together leave the text its room in a processor's nearest cache.
const LEAST_WORDS: usize = 256;
