//! Deflate streams: raw, and in the frame of zlib.

use flate2::{Decompress, FlushDecompress, Status};
use memchr::memmem;

use super::codec::{Codec, CodecStep, Mark, Undecodable};

/// One deflate stream.
pub(super) struct Inflate {
    stream: Decompress,
    ended: bool,
    /// The last bytes that were read, with the newest in the lowest place.
    last: u32,
}

impl Inflate {
    /// Makes a stream without a frame.
    pub(super) fn raw() -> Self {
        Self::new(false)
    }

    fn new(zlib: bool) -> Self {
        Self { stream: Decompress::new(zlib), ended: false, last: 1 }
    }

    /// Begins another stream without a frame.
    pub(super) fn reset(&mut self) {
        self.stream.reset(false);
        (self.ended, self.last) = (false, 1);
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Returns the distance to the next flush, which a compressor marks by an empty stored block
    /// (RFC 1951, section 3.2.4). Other bytes look like it once in four billion.
    pub(super) fn stretch(&self, input: &[u8]) -> usize {
        let last = self.last.to_be_bytes();
        let begun = (1..FLUSHED.len()).rev().find(|&begun| {
            let (before, after) = FLUSHED.split_at(begun);
            last.ends_with(before) && input.starts_with(after)
        });
        let within = || memmem::find(input, &FLUSHED).map(|at| at + FLUSHED.len());
        begun.map(|begun| FLUSHED.len() - begun).or_else(within).unwrap_or(input.len())
    }

    pub(super) fn decode(
        &mut self,
        input: &[u8],
        out: &mut [u8],
    ) -> Result<CodecStep, Undecodable> {
        if self.ended {
            return Ok(CodecStep::default());
        }
        let (read, written) = (self.stream.total_in(), self.stream.total_out());
        let status = self.stream.decompress(input, out, FlushDecompress::None);
        self.ended = match status {
            Ok(Status::StreamEnd) => true,
            Ok(Status::Ok | Status::BufError) => false,
            Err(_) => return Err(Undecodable::Malformed),
        };
        let read = usize::try_from(self.stream.total_in() - read).unwrap_or(input.len());
        let written = usize::try_from(self.stream.total_out() - written).unwrap_or(out.len());
        for &byte in input.get(read.saturating_sub(FLUSHED.len())..read).unwrap_or_default() {
            self.last = self.last << 8 | u32::from(byte);
        }
        Ok(CodecStep { read, written, turns: self.ended })
    }

    pub(super) fn mark(&self) -> Mark {
        if self.ended || self.last.to_be_bytes() == FLUSHED { Mark::Flush } else { Mark::None }
    }
}

/// A body of the coding `deflate`. It should have zlib's frame, and often has not.
pub(super) struct Deflate {
    inflate: Option<Inflate>,
    first: Option<u8>,
}

impl Deflate {
    pub(super) fn new() -> Self {
        Self { inflate: None, first: None }
    }

    /// Takes the first two bytes, which tell whether there is a frame (RFC 1950, section 2.2).
    fn begin(&mut self, byte: u8, out: &mut [u8]) -> Result<CodecStep, Undecodable> {
        let Some(first) = self.first else {
            self.first = Some(byte);
            return Ok(CodecStep { read: 1, ..CodecStep::default() });
        };
        let is_zlib = first & 0x0f == 8
            && first >> 4 <= 7
            && (u16::from(first) << 8 | u16::from(byte)) % 31 == 0;
        let inflate = self.inflate.insert(Inflate::new(is_zlib));
        let step = inflate.decode(&[first, byte], out)?;
        // No stream ends within its first byte.
        if step.read == 2 { Ok(CodecStep { read: 1, ..step }) } else { Err(Undecodable::Malformed) }
    }
}

impl Codec for Deflate {
    fn stretch(&mut self, input: &[u8], _: bool) -> usize {
        self.inflate.as_ref().map_or(1, |inflate| inflate.stretch(input))
    }

    fn decode(&mut self, input: &[u8], out: &mut [u8]) -> Result<CodecStep, Undecodable> {
        match (&mut self.inflate, input.first()) {
            (Some(inflate), Some(_)) if inflate.ended => Err(Undecodable::Malformed),
            (Some(inflate), _) => inflate.decode(input, out),
            (None, Some(&byte)) => self.begin(byte, out),
            (None, None) => Ok(CodecStep::default()),
        }
    }

    fn mark(&mut self) -> Mark {
        self.inflate.as_ref().map_or(Mark::None, Inflate::mark)
    }

    fn is_whole(&self) -> bool {
        self.inflate.as_ref().is_some_and(Inflate::has_ended)
    }
}

/// The length of an empty stored block, and its complement.
const FLUSHED: [u8; 4] = [0, 0, 0xff, 0xff];
