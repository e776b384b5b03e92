//! Zstandard streams: any number of frames, some of which may be skippable.

use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

use super::codec::{Codec, CodecStep, Mark, Undecodable, WINDOW_BITS};

/// A body of zstd frames.
pub(super) struct Zstd {
    /// The library's state; `None` where there was no memory for it.
    context: Option<DCtx<'static>>,
    frame: FrameReader,
    /// Bytes of text since the last end of a block.
    block: usize,
}

impl Zstd {
    pub(super) fn new() -> Self {
        let context = DCtx::try_create().and_then(|mut context| {
            context.set_parameter(DParameter::WindowLogMax(WINDOW_BITS)).ok().map(|_| context)
        });
        Self { context, frame: FrameReader::default(), block: 0 }
    }
}

impl Codec for Zstd {
    fn stretch(&mut self, input: &[u8], _: bool) -> usize {
        self.frame.stretch(input)
    }

    fn decode(&mut self, input: &[u8], out: &mut [u8]) -> Result<CodecStep, Undecodable> {
        if self.frame.at == ZstdState::Wrong {
            return Err(Undecodable::Malformed);
        }
        let context = self.context.as_mut().ok_or(Undecodable::Window)?;
        let (mut from, mut to) = (InBuffer::around(input), OutBuffer::around(out));
        if let Err(code) = context.decompress_stream(&mut to, &mut from) {
            let window = zstd_safe::get_error_name(code).contains("too much memory");
            return Err(if window { Undecodable::Window } else { Undecodable::Malformed });
        }
        let step = CodecStep { read: from.pos(), written: to.pos(), turns: false };
        self.block += step.written;
        Ok(step)
    }

    /// A compressor that flushes ends a block. A compressor that divides a long text by itself does
    /// so at multiples of [`DIVISION`], and the place may depend on the text.
    fn mark(&mut self) -> Mark {
        match self.frame.at {
            ZstdState::Block | ZstdState::Frame if self.frame.count == 0 => {
                let block = std::mem::take(&mut self.block);
                let divided = self.frame.at == ZstdState::Block
                    && block > 0
                    && block.is_multiple_of(DIVISION);
                if divided { Mark::Block } else { Mark::Flush }
            }
            _ => Mark::None,
        }
    }

    fn is_whole(&self) -> bool {
        self.frame.at == ZstdState::Frame && self.frame.count == 0 && self.frame.any
    }
}

/// Follows the frames, to know where blocks end (RFC 8878, section 3.1.1). The decoder finds other
/// faults in them.
#[derive(Default)]
struct FrameReader {
    at: ZstdState,
    /// The bytes of the head of a frame or block that were read.
    count: usize,
    head: [u8; 8],
    has_sum: bool,
    /// Whether there has been a frame.
    any: bool,
}

/// The part of a stream that the next byte belongs to.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum ZstdState {
    /// The beginning of a frame's head, which tells how long the head is.
    #[default]
    Frame,
    /// The rest of a frame's head: so many bytes.
    FrameHead(usize),
    /// The head of a block.
    Block,
    /// A block: so many bytes, and whether it is the last one.
    Body(usize, bool),
    /// The sum, or a frame that is skipped: so many bytes.
    Tail(usize),
    /// No frame that may stand here.
    Wrong,
}

impl FrameReader {
    /// Goes to the next change, and returns how many bytes away it is.
    fn stretch(&mut self, input: &[u8]) -> usize {
        match self.at {
            ZstdState::Frame | ZstdState::Block => {
                let Some(&byte) = input.first() else { return 0 };
                self.take(byte);
                1
            }
            ZstdState::FrameHead(left) => {
                self.pass(left, input, ZstdState::FrameHead, ZstdState::Block)
            }
            ZstdState::Body(left, false) => {
                self.pass(left, input, |it| ZstdState::Body(it, false), ZstdState::Block)
            }
            ZstdState::Body(left, true) => {
                let then = self.behind_last();
                self.pass(left, input, |it| ZstdState::Body(it, true), then)
            }
            ZstdState::Tail(left) => self.pass(left, input, ZstdState::Tail, ZstdState::Frame),
            ZstdState::Wrong => input.len(),
        }
    }

    fn pass(
        &mut self,
        left: usize,
        input: &[u8],
        rest: fn(usize) -> ZstdState,
        then: ZstdState,
    ) -> usize {
        let passed = left.min(input.len());
        self.at = if passed == left { then } else { rest(left - passed) };
        passed
    }

    fn take(&mut self, byte: u8) {
        if let Some(place) = self.head.get_mut(self.count) {
            *place = byte;
        }
        self.count += 1;
        let next = if self.at == ZstdState::Block { self.block() } else { self.frame() };
        if let Some(at) = next {
            (self.at, self.count) = (at, 0);
        }
    }

    fn frame(&mut self) -> Option<ZstdState> {
        let [a, b, c, d, e, f, g, h] = self.head;
        self.any = true;
        match (self.count, u32::from_le_bytes([a, b, c, d])) {
            (0..5, _) => None,
            (5, MAGIC) => {
                self.has_sum = e & 4 != 0;
                let (single, has_dictionary) = (e & 0x20 != 0, e & 3 != 0);
                let size = match e >> 6 {
                    0 => usize::from(single),
                    power => 1 << power,
                };
                // No dictionary was agreed on (RFC 9842 would do so).
                Some(match has_dictionary {
                    false => ZstdState::FrameHead(usize::from(!single) + size),
                    true => ZstdState::Wrong,
                })
            }
            (count, SKIPPED..=SKIPPED_END) if count < 8 => None,
            (_, SKIPPED..=SKIPPED_END) => {
                let length = u32::from_le_bytes([e, f, g, h]);
                Some(if length == 0 { ZstdState::Frame } else { ZstdState::Tail(length as usize) })
            }
            _ => Some(ZstdState::Wrong),
        }
    }

    fn block(&mut self) -> Option<ZstdState> {
        let [a, b, c, ..] = self.head;
        if self.count < 3 {
            return None;
        }
        let head = u32::from_le_bytes([a, b, c, 0]);
        let (is_last, size) = (head & 1 != 0, (head >> 3) as usize);
        Some(match (head >> 1 & 3, size) {
            (RESERVED, _) => ZstdState::Wrong,
            (RUN, _) => ZstdState::Body(1, is_last),
            (_, 0) if is_last => self.behind_last(),
            (_, 0) => ZstdState::Block,
            _ => ZstdState::Body(size, is_last),
        })
    }

    fn behind_last(&self) -> ZstdState {
        if self.has_sum { ZstdState::Tail(SUM) } else { ZstdState::Frame }
    }
}

const MAGIC: u32 = 0xfd2f_b528;
const SKIPPED: u32 = 0x184d_2a50;
const SKIPPED_END: u32 = 0x184d_2a5f;
/// Kinds of blocks: one byte many times, and a kind that is reserved.
const RUN: u32 = 1;
const RESERVED: u32 = 3;
/// Bytes of the sum behind a frame.
const SUM: usize = 4;
/// A compressor that searches for places to divide a block takes multiples of this many bytes, as
/// it does where a block is full.
const DIVISION: usize = 8 * 1024;
