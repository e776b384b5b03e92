//! Brotli streams.

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};

use super::codec::{Codec, CodecStep, Mark, Undecodable, WINDOW_BITS};

type State = BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>;

/// A body of one brotli stream.
pub(super) struct Brotli {
    state: Box<State>,
    began: bool,
    ended: bool,
    /// The last byte that was read.
    last: u8,
    /// Whether the stretch ends where the received input ends.
    is_all: bool,
}

impl Brotli {
    pub(super) fn new() -> Self {
        let alloc = StandardAlloc::default;
        let state = Box::new(State::new_strict(alloc(), alloc(), alloc()));
        Self { state, began: false, ended: false, last: 0xff, is_all: false }
    }
}

impl Codec for Brotli {
    /// Returns the distance to the next place that may be the end of an empty meta-block. A
    /// compressor that flushes fills its last byte with such a block (RFC 7932, section 9.2). The
    /// first byte holds the window's size.
    fn stretch(&mut self, input: &[u8], is_all: bool) -> usize {
        if !self.began {
            return 1;
        }
        let before = std::iter::once(self.last).chain(input.iter().copied());
        let mut pairs = before.zip(input.iter().copied());
        let end = pairs.position(|(before, byte)| may_end_empty_block(before, byte));
        let end = end.map_or(input.len(), |end| end + 1);
        self.is_all = is_all && end == input.len();
        end
    }

    fn decode(&mut self, input: &[u8], out: &mut [u8]) -> Result<CodecStep, Undecodable> {
        if self.ended {
            return if input.is_empty() {
                Ok(CodecStep::default())
            } else {
                Err(Undecodable::Malformed)
            };
        }
        let (mut in_left, mut read, mut out_left, mut written) = (input.len(), 0, out.len(), 0);
        let result = BrotliDecompressStream(
            &mut in_left,
            &mut read,
            input,
            &mut out_left,
            &mut written,
            out,
            &mut 0,
            &mut self.state,
        );
        self.ended = match result {
            BrotliResult::ResultSuccess => true,
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => false,
            BrotliResult::ResultFailure => return Err(Undecodable::Malformed),
        };
        if self.state.window_bits > WINDOW_BITS {
            return Err(Undecodable::Window);
        }
        self.began |= read > 0;
        self.last = read.checked_sub(1).and_then(|at| input.get(at)).copied().unwrap_or(self.last);
        Ok(CodecStep { read, written, turns: self.ended })
    }

    /// A compressor whose last byte is full needs no empty meta-block to flush. So where the input
    /// stops, the end of any other meta-block counts too if it is also the end of a byte. One in
    /// eight is so by chance.
    fn mark(&mut self) -> Mark {
        let is_empty_block = self.state.is_metadata != 0 && is_between_blocks(&self.state);
        let may_be_flushed = || self.is_all && is_between_blocks(&self.state);
        if self.ended || is_empty_block || may_be_flushed() { Mark::Flush } else { Mark::None }
    }

    fn is_whole(&self) -> bool {
        self.ended
    }
}

/// Whether all of the input is in complete bytes and complete meta-blocks: at most a part of the
/// next one's head was read.
fn is_between_blocks(state: &State) -> bool {
    state.meta_block_remaining_len == 0 && state.br.bit_pos_ == 0 && state.buffer_length == 0
}

/// Whether an empty meta-block, six bits of which are 0, 1, 1, 0, 0 and 0, may end with `byte`.
/// Such a block begins at any bit, and the rest of its last byte is 0.
fn may_end_empty_block(before: u8, byte: u8) -> bool {
    const BLOCK: u16 = 0b00_0110;
    let both = u16::from(byte) << 8 | u16::from(before);
    // The block ends in the last byte, so it begins at the fourth bit of the byte before, or later.
    (3..=10).any(|begin| both >> begin == BLOCK)
}
