//! Finds the bytes of a text that an escape may begin with, and the beginning of its last run, with
//! vector instructions where the processor has them.

use super::{
    block::{self, BLOCK, Block, BlockWalk, filled},
    vector::Vectors,
};

/// Returns the next block, of those at multiples of [`BLOCK`], with a mark from `at` on in a run
/// that may be long: its beginning, and these marks.
pub(super) fn next_marked(
    text: &[u8],
    at: usize,
    least: usize,
    vectors: Option<Vectors>,
) -> Option<(usize, u64)> {
    match vectors {
        Some(vectors) => vectors.next_marked(text, at, least),
        None => block::next_marked!(text, at, least, block_at, next_mark),
    }
}

/// Returns the block at `at`, filled up with spaces behind the text; `None` at the text's end.
#[inline]
fn block_at(text: &[u8], at: usize) -> Option<Block> {
    let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
    Some(rest.first_chunk().map_or_else(|| Block::of(&filled(rest)), Block::of))
}

/// Returns how many bytes at the end of `text`, in whole blocks, end no run, if line ends do not.
pub(super) fn held_at_end(text: &[u8], vectors: Option<Vectors>) -> usize {
    let (_, blocks) = text.as_rchunks();
    let held = match vectors {
        Some(vectors) => vectors.held_at_end(blocks),
        None => blocks.iter().rev().take_while(|bytes| Block::of(bytes).ends == 0).count(),
    };
    held * BLOCK
}

/// Appends `from` to `text`, which has room for it. Returns a number of appended bytes before the
/// first one that an escape may begin with; there may be more.
pub(super) fn append(text: &mut Vec<u8>, from: &[u8], vectors: Option<Vectors>) -> usize {
    let unmarked = vectors.map_or(0, |vectors| vectors.append_unmarked(text, from));
    let rest = from.get(unmarked..).unwrap_or_default();
    // The pieces are so small that the copy stays in the processor's nearest cache, where the
    // search reads it next; one long copy might not stay there.
    rest.chunks(COPIED_AT_ONCE).for_each(|piece| text.extend_from_slice(piece));
    unmarked
}

/// Returns the next byte from `at` on that an escape may begin with, where none is expected soon:
/// by a search that is expensive to begin, and cheap for each byte.
fn next_mark(text: &[u8], at: usize) -> Option<usize> {
    let rest = text.get(at..)?;
    let (mut begin, mut size) = (0, LEAST_SEARCH);
    while begin < rest.len() {
        let block = rest.get(begin..rest.len().min(begin + size))?;
        let found = memchr::memchr3(b'%', b'\\', b'&', block);
        let before = block.get(..found.unwrap_or(block.len()))?;
        if let Some(found) = memchr::memchr2(b'=', 0, before).or(found) {
            return Some(at + begin + found);
        }
        begin += block.len();
        size *= 2;
    }
    None
}

/// Bytes in which some kinds of marks are searched for before the other kinds are, at first.
const LEAST_SEARCH: usize = 256;
/// Bytes that are copied at once: fewer than those from which the C library copies in another way.
const COPIED_AT_ONCE: usize = 1024;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes of which many begin an escape or end a run.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let byte =
            prop_oneof![4 => any::<u8>(), 1 => prop::sample::select(&b"\0%&=\\\r\n \x7f"[..])];
        let held = prop::sample::select(&b"abcdefgh=\n "[..]);
        prop_oneof![prop::collection::vec(byte, BLOCK), prop::collection::vec(held, BLOCK)]
    }

    proptest! {
        #[test]
        fn a_block_is_the_same_with_vector_instructions_and_without(bytes in bytes()) {
            let bytes: &[u8; BLOCK] = bytes.first_chunk().unwrap();
            let found = Block::of(bytes);
            for (at, &byte) in bytes.iter().enumerate() {
                let mark = b"\0%&=\\".contains(&byte);
                let held = mark || b"\r\n".contains(&byte) || byte.is_ascii_graphic();
                prop_assert_eq!((found.marks >> at & 1 == 1, found.ends >> at & 1 == 0), (mark, held));
            }
            if let Some(vectors) = Vectors::detected() {
                prop_assert_eq!(vectors.block(bytes), found);
            }
        }

        #[test]
        fn marks_are_found_in_runs_of_eight_or_twelve_bytes(
            blocks in prop::collection::vec(bytes(), 1..8),
            (from, cut) in (0usize..300, 0usize..BLOCK),
            least in 8usize..14,
        ) {
            let text = blocks.concat();
            let text = &text[..text.len() - cut];
            let is_held = |at: &usize| matches!(text[*at], 0 | b'\n' | b'\r' | 0x21..0x7f);
            let is_long = |at: usize| {
                let before = (0..at).rev().take_while(is_held).count();
                before + (at..text.len()).take_while(is_held).count() >= if least < 12 { 8 } else { 12 }
            };
            let expected = (from..text.len()).filter(|at| b"\0%&=\\".contains(&text[*at]));
            let expected: Vec<_> = expected.filter(|&at| is_long(at)).collect();
            for vectors in [None, Vectors::detected()] {
                let (mut found, mut at) = (vec![], from);
                while let Some((begin, marks)) = next_marked(text, at, least, vectors) {
                    found.extend((0..BLOCK).filter(|bit| marks >> bit & 1 == 1).map(|bit| begin + bit));
                    at = begin + BLOCK;
                }
                prop_assert_eq!(&found, &expected);
            }
        }
    }
}
