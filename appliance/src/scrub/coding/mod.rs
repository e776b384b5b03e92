//! A compressed body is decoded before it is searched, and goes on as plain text.
//!
//! It goes on plain, and is not compressed again: a text that the gateway compressed, with or
//! without a masked secret in it, would have a length for agents to measure, and the network
//! between agents and their gateway is a fast one.
//!
//! A length is dangerous. Where an origin compresses an agent's text and a secret together, the
//! compressed text is shorter the more the two agree. So nothing that an agent receives is cut
//! where compressed bytes were cut: [`Decoder`] gives decoded text in pieces of [`PIECE`] bytes,
//! and where the origin flushed its compressor, which it does where a message of its protocol ends.
//! Sizes are a function of the text and of these places. Times are another matter: see
//! [`crate::limits`].
//!
//! These libraries decode, for these reasons:
//!
//! - gzip and deflate: `flate2` over `miniz_oxide`, the Rust project's own and without `unsafe` in
//!   the decoder. The gzip frame is read here, byte by byte, because flate2 reads it only from a
//!   reader.
//! - br: `brotli-decompressor`, which forbids `unsafe`, and whose state tells where meta-blocks
//!   end.
//! - zstd: `zstd-safe`, which is libzstd, fuzzed without pause, with a bound for its window. The
//!   decoder in Rust (`ruzstd`) gives a byte only after a window of others has followed it, so that
//!   an event stream would never arrive.
//!
//! A stream that is cut, damaged or followed by something else is an error, never an end.

mod brotli;
mod codec;
mod deflate;
mod gzip;
mod head;
mod zstd;

use bytes::{Buf as _, Bytes};
pub use codec::Undecodable;
use codec::{Codec, CodecStep, Mark};

pub(super) use head::accept;
pub use head::{Accepted, asked_codings, content_coding, decoded_head};

/// The coding of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// `gzip`, RFC 1952.
    Gzip,
    /// `deflate`: RFC 1950, and RFC 1951 without the frame that it should have.
    Deflate,
    /// `br`, RFC 7932.
    Brotli,
    /// `zstd`, RFC 8878.
    Zstd,
}

/// The progress of a decoder.
#[derive(Debug, PartialEq, Eq)]
pub enum DecoderProgress {
    /// The next piece of the text.
    Piece(Bytes),
    /// Much was read and no text came of it yet. There is more to be read.
    Busy,
    /// All input was read.
    Hungry,
}

/// Decodes one body.
pub struct Decoder {
    codec: Box<dyn Codec>,
    input: Bytes,
    stretch: Stretch,
    /// Room for a piece, and how much of it is filled. A piece is given as a copy, so that a few
    /// bytes do not keep a whole piece in memory.
    room: Vec<u8>,
    filled: usize,
    cuts: u64,
    read: u64,
    written: u64,
    rests: bool,
    broken: Option<Undecodable>,
}

/// A part of the input that is decoded before the decoder is asked whether the stream was flushed.
#[derive(Debug, Clone, Copy, Default)]
struct Stretch {
    left: usize,
    /// Whether all of it was read and some of its text may still be in the decoder, because the
    /// last call wrote something.
    ends: bool,
}

impl Decoder {
    /// Makes a decoder at the beginning of a body.
    pub fn new(coding: Coding) -> Self {
        let codec: Box<dyn Codec> = match coding {
            Coding::Gzip => Box::new(gzip::Gzip::new()),
            Coding::Deflate => Box::new(deflate::Deflate::new()),
            Coding::Brotli => Box::new(brotli::Brotli::new()),
            Coding::Zstd => Box::new(zstd::Zstd::new()),
        };
        Self {
            codec,
            input: Bytes::new(),
            stretch: Stretch::default(),
            room: Vec::new(),
            filled: 0,
            cuts: 0,
            read: 0,
            written: 0,
            rests: true,
            broken: None,
        }
    }

    /// Takes more input. If input is left from before, both are joined.
    pub fn push(&mut self, input: Bytes) {
        self.input =
            if self.input.is_empty() { input } else { [&*self.input, &*input].concat().into() };
    }

    /// Goes on decoding, for a bounded time.
    ///
    /// # Errors
    ///
    /// The body cannot be decoded. Every later call fails too.
    pub fn advance(&mut self) -> Result<DecoderProgress, Undecodable> {
        match self.broken {
            Some(why) => Err(why),
            None => self.steps().inspect_err(|&why| self.broken = Some(why)),
        }
    }

    /// Returns the rest of the text once there is no more input.
    ///
    /// # Errors
    ///
    /// The stream has not come to its end.
    pub fn finish(&mut self) -> Result<Bytes, Undecodable> {
        match self.broken {
            Some(why) => Err(why),
            // An empty body counts as a whole stream, as it does for other readers.
            None if self.read == 0 || self.codec.is_whole() => Ok(self.give()),
            None => Err(Undecodable::Cut),
        }
    }

    /// Whether all input was read, and ended where the compressor may have been told to give all it
    /// had. An origin that waits now may be waiting for an answer to the text so far.
    pub fn rests(&self) -> bool {
        self.rests && self.input.is_empty() && self.broken.is_none()
    }

    /// Whether it rests, and [`Self::rest`] has something to give.
    pub fn has_rest(&self) -> bool {
        self.rests() && self.filled > 0
    }

    /// Returns the text that was decoded and is in no piece yet, where the decoder
    /// [rests](Self::rests).
    pub fn rest(&mut self) -> Bytes {
        if self.rests() { self.give() } else { Bytes::new() }
    }

    fn steps(&mut self) -> Result<DecoderProgress, Undecodable> {
        let before = self.read;
        while !self.input.is_empty() || self.stretch.ends {
            if self.read - before >= BUSY as u64 {
                return Ok(DecoderProgress::Busy);
            }
            let mark = self.step()?;
            self.rests = mark != Mark::None;
            let may_cut = self.cuts < FREE_CUTS + self.written / TEXT_A_CUT;
            let is_flushed = mark == Mark::Flush && self.filled > 0 && may_cut;
            if self.filled == PIECE || is_flushed {
                self.cuts += u64::from(is_flushed);
                return Ok(DecoderProgress::Piece(self.give()));
            }
        }
        Ok(DecoderProgress::Hungry)
    }

    fn give(&mut self) -> Bytes {
        let given = Bytes::copy_from_slice(self.room.get(..self.filled).unwrap_or_default());
        self.filled = 0;
        given
    }

    fn step(&mut self) -> Result<Mark, Undecodable> {
        if self.stretch.left == 0 && !self.stretch.ends {
            let input = self.input.get(..self.input.len().min(BUSY)).unwrap_or_default();
            let is_all = input.len() == self.input.len();
            self.stretch.left = self.codec.stretch(input, is_all).clamp(1, input.len());
        }
        let input = self.input.get(..self.stretch.left).unwrap_or_default();
        self.room.resize(PIECE, 0);
        let room = self.room.get_mut(self.filled..).unwrap_or_default();
        let step = self.codec.decode(input, room)?;
        self.filled += step.written;
        self.input.advance(step.read);
        self.count(step)?;
        self.stretch.left = if step.turns { 0 } else { self.stretch.left - step.read };
        self.stretch.ends = self.stretch.left == 0 && step.written > 0;
        if self.stretch.left > 0 || self.stretch.ends {
            let stands = step.read == 0 && step.written == 0;
            return if stands { Err(Undecodable::Malformed) } else { Ok(Mark::None) };
        }
        Ok(self.codec.mark())
    }

    fn count(&mut self, step: CodecStep) -> Result<(), Undecodable> {
        self.read += step.read as u64;
        self.written += step.written as u64;
        let too_much = self.written > FREE && self.written / RATIO > self.read;
        if too_much { Err(Undecodable::Ratio) } else { Ok(()) }
    }
}

/// Bytes of text that go on together.
pub const PIECE: usize = 16 * 1024;
/// The number of flushes at which a text is cut whatever stands between them, and the bytes of text
/// for each further one: every cut costs a search of the bytes that are kept back. Text that is not
/// cut at a flush comes with the next piece, or after a pause.
const FREE_CUTS: u64 = 1024;
const TEXT_A_CUT: u64 = 64;
/// Bytes of input that are read without a pause.
const BUSY: usize = 16 * 1024;
/// How many times longer than its input the text may be, beyond the first [`FREE`] bytes: the bound
/// that web servers have by default. A text without a bound on its length costs as much as any long
/// text.
const RATIO: u64 = 200;
/// Bytes of text for which there is no bound on the ratio.
const FREE: u64 = 4 * 1024 * 1024;
#[cfg(test)]
mod tests;
