//! The marks and the ends of runs in 64 bytes of a text, one bit for each byte.

/// Bytes that may begin an escape, and bytes that end a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Block {
    /// A bit for each byte that an escape may begin with.
    pub(super) marks: u64,
    /// A bit for each byte that no form holds, except for line ends, which may belong to an escape.
    pub(super) ends: u64,
}

impl Block {
    /// Written so that the compiler uses instructions that take many bytes at once.
    #[inline(never)]
    pub(super) fn of(bytes: &[u8; BLOCK]) -> Self {
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

    /// Returns how many bytes at its end belong to a run.
    #[inline(always)]
    pub(super) fn held_at_end(self) -> u32 {
        self.ends.leading_zeros()
    }

    /// Returns the marks in runs of eight bytes, or of twelve where `least` is twelve or more.
    /// `before` and `after` are the numbers of a run's bytes right before the block and right
    /// behind it.
    #[inline(always)]
    fn in_long_runs(self, before: u32, after: u32, least: usize) -> u64 {
        let shorter = |begins: u64, by: u32| begins & begins >> by;
        let longer = |run: u64, by: u32| run | run << by;
        let held = !self.ends;
        let eight = shorter(shorter(shorter(held, 1), 2), 4);
        let begins = if least < 12 { eight } else { shorter(eight, 4) };
        let run = longer(longer(longer(begins, 1), 2), 4);
        let run = if least < 12 { run } else { longer(run, 4) };
        let least = if least < 12 { 8 } else { 12 };
        // A run that reaches to one end of the block, or to both.
        let (first, last) = (held.trailing_ones(), held.leading_ones());
        let at_begin = if before + first >= least { held & !held.wrapping_add(1) } else { 0 };
        let bits_at_end = !u64::MAX.checked_shr(last).unwrap_or(0);
        let at_end = if last + after >= least { bits_at_end } else { 0 };
        self.marks & (run | at_begin | at_end)
    }
}

/// Returns the next block, of those at multiples of [`BLOCK`], with a mark from `at` on in a run
/// that may be long: its beginning, and these marks. `block_at` reads a block, and `next_mark`
/// returns the earliest place where the next mark can be.
///
/// This is a macro, because a function does not take on the vector instructions of the function
/// that it is inlined in.
macro_rules! next_marked {
    ($text:expr, $at:expr, $least:expr, $block_at:path, $next_mark:path) => {{
        let begin = $at / BLOCK * BLOCK;
        let held_before = |begin: usize| {
            let before = begin.checked_sub(BLOCK).and_then(|at| $block_at($text, at));
            before.map_or(0, Block::held_at_end)
        };
        let mut walk = BlockWalk::new(begin, held_before(begin), $block_at($text, begin)?);
        walk.leave_out_before($at);
        loop {
            let next = $block_at($text, walk.begin + BLOCK);
            let marks = walk.long_marks(next, $least);
            if marks != 0 {
                return Some((walk.begin, marks));
            }
            walk.advance(next?);
            if walk.is_quiet() {
                let begin = $next_mark($text, walk.begin)? / BLOCK * BLOCK;
                walk = BlockWalk::new(begin, held_before(begin), $block_at($text, begin)?);
            }
        }
    }};
}
pub(super) use next_marked;

/// The position of a walk through blocks.
pub(super) struct BlockWalk {
    /// The beginning of the block.
    pub(super) begin: usize,
    block: Block,
    /// The bytes of a run that stand right before the block.
    before: u32,
    /// The blocks without a mark that were passed last.
    quiet: usize,
}

impl BlockWalk {
    #[inline(always)]
    pub(super) fn new(begin: usize, before: u32, block: Block) -> Self {
        Self { begin, block, before, quiet: 0 }
    }

    /// Drops the marks of the block that stand before `at`.
    #[inline(always)]
    pub(super) fn leave_out_before(&mut self, at: usize) {
        self.block.marks &= u64::MAX << (at - self.begin);
    }

    #[inline(always)]
    pub(super) fn long_marks(&self, next: Option<Block>, least: usize) -> u64 {
        let after = next.map_or(0, |block| block.ends.trailing_zeros());
        self.block.in_long_runs(self.before, after, least)
    }

    #[inline(always)]
    pub(super) fn advance(&mut self, next: Block) {
        self.quiet = if self.block.marks == 0 { self.quiet + 1 } else { 0 };
        self.before = self.block.held_at_end();
        self.begin += BLOCK;
        self.block = next;
    }

    /// Whether no mark is expected soon.
    #[inline(always)]
    pub(super) fn is_quiet(&self) -> bool {
        self.quiet == QUIET
    }
}

/// Returns a block of the rest of a text, filled up with spaces.
#[inline]
pub(super) fn filled<const BYTES: usize>(rest: &[u8]) -> [u8; BYTES] {
    let mut block = [b' '; BYTES];
    if let Some((to, _)) = block.split_at_mut_checked(rest.len()) {
        to.copy_from_slice(rest);
    }
    block
}

/// Returns a bit for each of the flags; the first flag is the lowest bit.
#[inline]
fn bits(flags: &[u8; BLOCK]) -> u64 {
    let (words, _) = flags.as_chunks::<8>();
    words.iter().rev().fold(0, |bits, flags| {
        // The highest byte of the product has the flag of each byte in one of its bits.
        let gathered = u64::from_le_bytes(*flags).wrapping_mul(0x0102_0408_1020_4080) >> 56;
        bits << 8 | gathered
    })
}

/// Bytes that are examined together.
pub(super) const BLOCK: usize = 64;
/// The number of blocks without a mark after which none is expected soon.
const QUIET: usize = 3;
