//! What stands in 64 bytes of a text, a bit for each of them.

use super::vector::Vectors;

/// Bytes that may begin an escape, and bytes that end a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Block {
    /// An escape may begin with it.
    pub(super) marks: u64,
    /// No form holds it, and it is no line end, which may belong to an escape.
    pub(super) ends: u64,
}

impl Block {
    #[inline]
    pub(super) fn of(bytes: &[u8; BLOCK], vectors: Option<Vectors>) -> Self {
        let Some(vectors) = vectors else { return Self::portable(bytes) };
        let (marks, ends) = vectors.marks_and_ends(bytes);
        Self { marks, ends }
    }

    /// What stands at `at`, and spaces behind the text. `None` where nothing does.
    #[inline]
    pub(super) fn at(text: &[u8], at: usize, vectors: Option<Vectors>) -> Option<Self> {
        let rest = text.get(at..).filter(|rest| !rest.is_empty())?;
        let of = |bytes: &_| Self::of(bytes, vectors);
        Some(rest.first_chunk().map_or_else(|| of(&filled(rest)), of))
    }

    /// Written so that it is compiled to instructions that take many bytes at once.
    #[inline(never)]
    fn portable(bytes: &[u8; BLOCK]) -> Self {
        let (mut marks, mut ends) = ([0; BLOCK], [0; BLOCK]);
        for ((mark, end), &byte) in marks.iter_mut().zip(&mut ends).zip(bytes) {
            let is_mark =
                (byte == 0) | (byte == b'%') | (byte == b'&') | (byte == b'=') | (byte == b'\\');
            let is_line_end = (byte == b'\n') | (byte == b'\r');
            *mark = u8::from(is_mark);
            *end = u8::from(!(0x21..0x7f).contains(&byte) & !is_mark & !is_line_end);
        }
        Self { marks: bits(&marks), ends: bits(&ends) }
    }

    /// Only the marks in runs of so many bytes (eight, or twelve where it is more), as far as the
    /// block shows: a run that reaches to its beginning or its end may go on there.
    #[inline]
    pub(super) fn in_long_runs(self, least: usize) -> Self {
        // Where so many held bytes begin; what is behind the block counts as such.
        let shorter = |begins: u64, by: u32| begins & !(!begins >> by);
        let longer = |run: u64, by: u32| run | run << by;
        let held = !self.ends;
        let eight = shorter(shorter(shorter(held, 1), 2), 4);
        let begins = if least < 12 { eight } else { shorter(eight, 4) };
        let run = longer(longer(longer(begins, 1), 2), 4);
        let run = if least < 12 { run } else { longer(run, 4) };
        let from_before = held & !held.wrapping_add(1);
        Self { marks: self.marks & (run | from_before), ..self }
    }
}

/// A block that ends in spaces where the text does.
fn filled(rest: &[u8]) -> [u8; BLOCK] {
    let mut block = [b' '; BLOCK];
    if let Some((to, _)) = block.split_at_mut_checked(rest.len()) {
        to.copy_from_slice(rest);
    }
    block
}

/// A bit for each of the flags, the first of them the lowest.
#[inline]
fn bits(flags: &[u8; BLOCK]) -> u64 {
    let (words, _) = flags.as_chunks::<8>();
    words.iter().rev().fold(0, |bits, flags| {
        // The product has the flag of each byte in a bit of its highest byte.
        let gathered = u64::from_le_bytes(*flags).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        bits << 8 | gathered
    })
}

/// Bytes that are looked at as one.
pub(super) const BLOCK: usize = 64;

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
            let found = Block::of(bytes, None);
            prop_assert_eq!(Block::of(bytes, Vectors::detected()), found);
            for (at, &byte) in bytes.iter().enumerate() {
                let mark = b"\0%&=\\".contains(&byte);
                let held = mark || b"\r\n".contains(&byte) || byte.is_ascii_graphic();
                prop_assert_eq!((found.marks >> at & 1 == 1, found.ends >> at & 1 == 0), (mark, held));
            }
            if let Some(vectors) = Vectors::detected() {
                prop_assert_eq!(vectors.without_marks(&[*bytes]), usize::from(found.marks == 0));
            }
        }

        #[test]
        fn marks_in_short_runs_alone_are_left_out(bytes in bytes(), least in 8usize..14) {
            let block = Block::of(bytes.first_chunk().unwrap(), None);
            let long = block.in_long_runs(least);
            let ends: Vec<_> = (0..BLOCK).filter(|at| block.ends >> at & 1 == 1).collect();
            for at in (0..BLOCK).filter(|at| block.marks >> at & 1 == 1) {
                let begin = ends.iter().rev().find(|&&end| end < at);
                let end = ends.iter().find(|&&end| end > at);
                let length = begin.zip(end).map_or(usize::MAX, |(begin, end)| end - begin - 1);
                let expected = length >= if least < 12 { 8 } else { 12 };
                prop_assert_eq!(long.marks >> at & 1 == 1, expected, "at {}", at);
            }
        }
    }
}
