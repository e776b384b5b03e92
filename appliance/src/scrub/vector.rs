//! Faster versions of some functions, by the vector instructions of x86-64, for a processor that
//! has them. On others, [`super::search`] and [`super::block`] do the same without, and find the
//! same.
//!
//! A value of [`Vectors`] is the proof that the processor has the instructions; nothing in here can
//! be called without one. Functions in here take no closures: the compiler does not inline a
//! function that uses the instructions into one that does not, and would call each.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_aesenc_si128, _mm_and_si128, _mm_cmpgt_epi8, _mm_cvtsi128_si64,
    _mm_loadu_si128, _mm_movemask_epi8, _mm_or_si128, _mm_set_epi64x, _mm_set1_epi8, _mm_setr_epi8,
    _mm_xor_si128, _mm256_and_si256, _mm256_broadcastsi128_si256, _mm256_cmpeq_epi8,
    _mm256_cmpgt_epi8, _mm256_loadu_si256, _mm256_movemask_epi8, _mm256_or_si256, _mm256_set1_epi8,
    _mm256_shuffle_epi8, _mm256_testz_si256,
};

use super::{
    block::{self, BLOCK, Block, BlockWalk, filled},
    filter::Filter,
    form::BASE64,
};

/// The proof that the processor has AVX2, AES-NI and BMI.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vectors(());

#[allow(unsafe_code)]
impl Vectors {
    /// Asks the processor.
    pub(super) fn detected() -> Option<Self> {
        let detected = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2");
        detected.then_some(Self(()))
    }

    /// As [`Block::of`].
    #[cfg(test)]
    pub(super) fn block(self, bytes: &[u8; BLOCK]) -> Block {
        // SAFETY: a value of this type is made only where the processor has the features.
        unsafe { block_of(bytes) }
    }

    /// As [`block::next_marked`].
    pub(super) fn next_marked(self, text: &[u8], at: usize, least: usize) -> Option<(usize, u64)> {
        // SAFETY: a value of this type is made only where the processor has the features.
        unsafe { next_marked(text, at, least) }
    }

    /// Returns how many bytes of the blocks, from the last one backwards, end no run.
    pub(super) fn held_at_end(self, blocks: &[[u8; BLOCK]]) -> usize {
        // SAFETY: a value of this type is made only where the processor has the features.
        unsafe { held_at_end(blocks) }
    }

    /// Appends to `text` the beginning of `from`, up to the first pair of blocks with a byte that
    /// an escape may begin with. Returns how many bytes.
    pub(super) fn append_unmarked(self, text: &mut Vec<u8>, from: &[u8]) -> usize {
        // SAFETY: a value of this type is made only where the processor has the features.
        unsafe { append_unmarked(text, from) }
    }

    /// Returns the hash of a window, in which the case of letters makes no difference.
    pub(super) fn hash<const WIDTH: usize>(
        self,
        keys: &[[u8; 16]; 2],
        window: &[u8; WIDTH],
    ) -> u64 {
        // SAFETY: a value of this type is made only where the processor has the features.
        unsafe { hash_one(keys, window) }
    }

    /// Returns how many windows, of those that begin at multiples of `stride`, can be passed over
    /// before one comes that the filter may hold; there may be more.
    pub(super) fn barren<const WIDTH: usize>(
        self,
        keys: &[[u8; 16]; 2],
        filter: &Filter,
        stride: usize,
        text: &[u8],
    ) -> usize {
        // SAFETY: a value of this type is made only where the processor has the features.
        unsafe { barren::<WIDTH>(keys, filter, stride, text) }
    }
}

#[inline]
#[target_feature(enable = "avx2")]
fn block_of(bytes: &[u8; BLOCK]) -> Block {
    let [low, high] = halves(bytes);
    Block {
        marks: bits([marks_in(low), marks_in(high)]),
        ends: !bits([held_in(low), held_in(high)]),
    }
}

#[inline(never)]
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn next_marked(text: &[u8], at: usize, least: usize) -> Option<(usize, u64)> {
    block::next_marked!(text, at, least, block_at, next_mark)
}

/// Returns the block at `at`, filled up with spaces behind the text; `None` at the text's end.
#[inline]
#[target_feature(enable = "avx2")]
fn block_at(text: &[u8], at: usize) -> Option<Block> {
    let rest = text.get(at..)?;
    match rest.first_chunk() {
        Some(bytes) => Some(block_of(bytes)),
        None if rest.is_empty() => None,
        None => Some(block_of(&filled(rest))),
    }
}

/// Returns the earliest place from `at` on where the next byte that an escape may begin with can
/// be.
#[inline]
#[target_feature(enable = "avx2")]
fn next_mark(text: &[u8], at: usize) -> Option<usize> {
    let (pairs, _) = text.get(at..)?.as_chunks();
    Some(at + without_marks(pairs) * PAIR)
}

/// Returns how many of the pairs of blocks stand before the first with a byte that may begin an
/// escape.
#[inline]
#[target_feature(enable = "avx2")]
fn without_marks(pairs: &[[u8; PAIR]]) -> usize {
    for (number, bytes) in pairs.iter().enumerate() {
        if has_marks(bytes) {
            return number;
        }
    }
    pairs.len()
}

#[target_feature(enable = "avx2")]
fn held_at_end(blocks: &[[u8; BLOCK]]) -> usize {
    for (number, bytes) in blocks.iter().rev().enumerate() {
        let [low, high] = halves(bytes);
        let held = _mm256_and_si256(held_in(low), held_in(high));
        if _mm256_movemask_epi8(held) != -1 {
            return number;
        }
    }
    blocks.len()
}

#[target_feature(enable = "avx2")]
fn append_unmarked(text: &mut Vec<u8>, from: &[u8]) -> usize {
    // Stores that cross a line of the cache cost more than loads that do. `align_offset` may return
    // that it does not know.
    let to_line = text.spare_capacity_mut().as_ptr().align_offset(BLOCK);
    let to_line = if to_line < BLOCK { to_line } else { 0 };
    let (head, rest) = from.split_at(to_line.min(from.len()));
    if has_marks(&filled(head)) {
        return 0;
    }
    text.extend_from_slice(head);
    let (pairs, tail) = rest.as_chunks();
    for (number, bytes) in pairs.iter().enumerate() {
        if has_marks(bytes) {
            return head.len() + number * PAIR;
        }
        text.extend_from_slice(bytes);
    }
    if has_marks(&filled(tail)) {
        return from.len() - tail.len();
    }
    text.extend_from_slice(tail);
    from.len()
}

/// Whether an escape may begin in these blocks.
#[inline]
#[target_feature(enable = "avx2")]
fn has_marks(bytes: &[u8; PAIR]) -> bool {
    let [one, two, three, four] = quarters(bytes);
    let first = _mm256_or_si256(marks_in(one), marks_in(two));
    let last = _mm256_or_si256(marks_in(three), marks_in(four));
    let any = _mm256_or_si256(first, last);
    _mm256_testz_si256(any, any) == 0
}

/// Returns the positions of bytes that an escape may begin with.
#[inline]
#[target_feature(enable = "avx2")]
fn marks_in(bytes: __m256i) -> __m256i {
    // Each mark stands at the index of its lower four bits, which all differ; other indices hold a
    // byte with other lower bits.
    let (percent, and, backslash, equals) = (0x25, 0x26, 0x5c, 0x3d);
    let marks = _mm_setr_epi8(0, 0, 0, 0, 0, percent, and, 0, 0, 0, 0, 0, backslash, equals, 0, 0);
    is_one_of(bytes, marks)
}

/// Returns the positions of bytes that end no run.
#[inline]
#[target_feature(enable = "avx2")]
fn held_in(bytes: __m256i) -> __m256i {
    let (line_feed, carriage_return) = (0x0a, 0x0d);
    let lines = _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, line_feed, 0, 0, carriage_return, 0, 0);
    let above = _mm256_cmpgt_epi8(bytes, _mm256_set1_epi8(0x20));
    let below = _mm256_cmpgt_epi8(_mm256_set1_epi8(0x7f), bytes);
    _mm256_or_si256(is_one_of(bytes, lines), _mm256_and_si256(above, below))
}

/// Returns the positions of bytes that the table holds at the index of their lower four bits. NUL
/// is always among them.
#[inline]
#[target_feature(enable = "avx2")]
fn is_one_of(bytes: __m256i, table: __m128i) -> __m256i {
    let found = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), bytes);
    _mm256_cmpeq_epi8(found, bytes)
}

#[inline]
#[target_feature(enable = "avx2")]
fn bits([low, high]: [__m256i; 2]) -> u64 {
    let (low, high) = (_mm256_movemask_epi8(low) as u32, _mm256_movemask_epi8(high) as u32);
    u64::from(high) << 32 | u64::from(low)
}

#[inline]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
fn halves(bytes: &[u8; BLOCK]) -> [__m256i; 2] {
    let bytes: *const __m256i = bytes.as_ptr().cast();
    // SAFETY: a block has 64 bytes, which two such loads of 32 take, and they need no alignment.
    unsafe { [_mm256_loadu_si256(bytes), _mm256_loadu_si256(bytes.add(1))] }
}

#[inline]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
fn quarters(bytes: &[u8; PAIR]) -> [__m256i; 4] {
    let bytes: *const __m256i = bytes.as_ptr().cast();
    // SAFETY: as above, with 128 bytes and four loads.
    unsafe {
        [
            _mm256_loadu_si256(bytes),
            _mm256_loadu_si256(bytes.add(1)),
            _mm256_loadu_si256(bytes.add(2)),
            _mm256_loadu_si256(bytes.add(3)),
        ]
    }
}

#[inline(never)]
#[target_feature(enable = "avx2,aes,bmi1,bmi2")]
#[allow(unsafe_code)]
fn barren<const WIDTH: usize>(
    keys: &[[u8; 16]; 2],
    filter: &Filter,
    stride: usize,
    text: &[u8],
) -> usize {
    let keys = [load(&keys[0]), load(&keys[1])];
    let mut number = barren_groups::<WIDTH>(keys, filter, stride, text);
    while let Some(rest) = text.get(number * stride..).filter(|it| it.len() >= read_bytes(WIDTH)) {
        // SAFETY: so many bytes are there.
        let hash = unsafe { hash::<WIDTH>(keys, rest.as_ptr()) };
        if filter.may_hold(hash) {
            break;
        }
        number += 1;
    }
    number
}

/// Examines four windows at a time, so that they are on the way at once and share a jump. Most of
/// the cost of masking is in here. Returns how many windows stand before a group of which one may
/// be held.
#[inline]
#[target_feature(enable = "avx2,aes,bmi1,bmi2")]
#[allow(unsafe_code)]
fn barren_groups<const WIDTH: usize>(
    keys: [__m128i; 2],
    filter: &Filter,
    stride: usize,
    text: &[u8],
) -> usize {
    let (two, three, group) = (2 * stride, 3 * stride, GROUP * stride);
    let room = text.len().checked_sub(three + read_bytes(WIDTH));
    let groups = room.map_or(0, |room| room / group + 1);
    let mut begin = text.as_ptr();
    for number in 0..groups {
        let places =
            [begin, begin.wrapping_add(stride), begin.wrapping_add(two), begin.wrapping_add(three)];
        // SAFETY: `groups` counts only groups whose last window can be read.
        let may_be_held = unsafe {
            !all_foreign::<WIDTH>(places)
                && any_passes::<WIDTH>(keys, filter, places)
                && any_held::<WIDTH>(keys, filter, places)
        };
        if may_be_held {
            return number.wrapping_mul(GROUP);
        }
        begin = begin.wrapping_add(group);
    }
    groups * GROUP
}

/// Whether the filter may hold one of the windows that begin at these places.
///
/// # Safety
///
/// [`read_bytes`] can be read from each of them.
#[cold]
#[target_feature(enable = "avx2,aes,bmi1,bmi2")]
#[allow(unsafe_code)]
unsafe fn any_held<const WIDTH: usize>(
    keys: [__m128i; 2],
    filter: &Filter,
    places: [*const u8; GROUP],
) -> bool {
    let mut held = false;
    for place in places {
        // SAFETY: so many bytes can be read.
        held |= filter.may_hold(unsafe { hash::<WIDTH>(keys, place) });
    }
    held
}

/// Whether one of these windows passes the first words of the filter.
///
/// # Safety
///
/// [`read_bytes`] can be read from each of the places.
#[inline]
#[target_feature(enable = "avx2,aes,bmi1,bmi2")]
#[allow(unsafe_code)]
unsafe fn any_passes<const WIDTH: usize>(
    keys: [__m128i; 2],
    filter: &Filter,
    places: [*const u8; GROUP],
) -> bool {
    let (words, shift) = filter.parts();
    let mut hits = 0;
    for place in places {
        // SAFETY: so many bytes can be read.
        let hash = unsafe { hash::<WIDTH>(keys, place) };
        let word = words.get(hash.wrapping_shr(shift) as usize);
        let Some(word) = word else { return true };
        hits |= word.wrapping_shr(hash as u32);
    }
    hits & 1 != 0
}

/// Whether each of the windows that begin at these places holds a byte that is neither base64 nor
/// hexadecimal, where only such forms have windows of this width. This takes fewer instructions
/// than a hash, and tells of the text alone.
///
/// # Safety
///
/// Sixteen bytes can be read from each of them.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
unsafe fn all_foreign<const WIDTH: usize>(places: [*const u8; GROUP]) -> bool {
    if WIDTH < BASE64 {
        return false;
    }
    let least = _mm_set1_epi8(if WIDTH > BASE64 { b'0' } else { b'+' } as i8);
    let mut none = 0;
    for place in places {
        // SAFETY: sixteen bytes can be read.
        let bytes = unsafe { _mm_loadu_si128(place.cast()) };
        let mut foreign = _mm_cmpgt_epi8(least, bytes);
        if WIDTH > BASE64 {
            foreign = _mm_or_si128(foreign, _mm_cmpgt_epi8(bytes, _mm_set1_epi8(b'f' as i8)));
        }
        // The term is negative where the window holds no such byte.
        none |= _mm_movemask_epi8(foreign).wrapping_sub(1);
    }
    none >= 0
}

/// Returns the hash of the window that begins at `bytes`.
///
/// # Safety
///
/// [`read_bytes`] can be read from there.
#[inline]
#[target_feature(enable = "avx2,aes")]
#[allow(unsafe_code)]
unsafe fn hash<const WIDTH: usize>([one, two]: [__m128i; 2], bytes: *const u8) -> u64 {
    // The mask leaves out the bit in which the cases of a letter differ.
    let fold = i64::from_le_bytes([!0x20; 8]);
    let window = match WIDTH {
        8 => _mm_set_epi64x(0, fold),
        12 => _mm_set_epi64x(fold & 0xffff_ffff, fold),
        _ => _mm_set_epi64x(fold, fold),
    };
    // SAFETY: sixteen bytes can be read.
    let first = unsafe { _mm_loadu_si128(bytes.cast()) };
    let mut state = _mm_xor_si128(_mm_and_si128(first, window), one);
    if read_bytes(WIDTH) > 16 {
        // SAFETY: twenty-four bytes can be read.
        let last = unsafe { _mm_loadu_si128(bytes.add(8).cast()) };
        state = _mm_aesenc_si128(state, _mm_and_si128(last, window));
    }
    // Two rounds make each bit depend on each byte of their input. Their input is all of the
    // window: for a long one, an earlier round has taken in the first load, with the last load in
    // the place of its key.
    let state = _mm_aesenc_si128(_mm_aesenc_si128(state, two), two);
    _mm_cvtsi128_si64(state) as u64
}

#[target_feature(enable = "avx2,aes")]
#[allow(unsafe_code)]
fn hash_one<const WIDTH: usize>(keys: &[[u8; 16]; 2], window: &[u8; WIDTH]) -> u64 {
    let mut bytes = [0; read_bytes(usize::MAX)];
    for (to, from) in bytes.iter_mut().zip(window) {
        *to = *from;
    }
    // SAFETY: as many bytes as for any width are there.
    unsafe { hash::<WIDTH>([load(&keys[0]), load(&keys[1])], bytes.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code)]
fn load(bytes: &[u8; 16]) -> __m128i {
    // SAFETY: sixteen bytes are there, and such a load needs no alignment.
    unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) }
}

/// Returns how many bytes are read to hash a window, in one load or two.
const fn read_bytes(width: usize) -> usize {
    if width > 16 { 24 } else { 16 }
}

/// Bytes of two blocks.
const PAIR: usize = 2 * BLOCK;
/// Windows that are examined together.
const GROUP: usize = 4;
