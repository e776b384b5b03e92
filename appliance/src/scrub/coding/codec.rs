//! The interface between a decoder and each kind of stream.

use thiserror::Error;

/// The reason why a body cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Undecodable {
    /// The body is no such stream, it is damaged, or something follows it.
    #[error("the body is not what its coding says")]
    Malformed,
    /// The stream ended in the middle.
    #[error("the compressed body ended in the middle")]
    Cut,
    /// The stream wants more memory than a decoder may have.
    #[error("the compressed body wants too much memory")]
    Window,
    /// The text is too much longer than the stream.
    #[error("the compressed body grows too much")]
    Ratio,
}

/// The result of one call of a codec.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CodecStep {
    pub(super) read: usize,
    pub(super) written: usize,
    /// Whether the stretch ends here because another part of the stream begins.
    pub(super) turns: bool,
}

/// A place in a stream, by whether its text may be cut there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// No place to cut: the stretch ends in the middle of something.
    None,
    /// The end of a block. The compressor may have been given more text by then, or not.
    Block,
    /// The compressor was told to give all that it had.
    Flush,
}

/// One kind of stream.
pub(super) trait Codec: Send {
    /// Returns how many bytes of `input`, at least one and no more than there are, to decode before
    /// the call of [`Self::mark`]. `is_all` where more has not come yet.
    fn stretch(&mut self, input: &[u8], is_all: bool) -> usize;

    /// Decodes input to `out`.
    fn decode(&mut self, input: &[u8], out: &mut [u8]) -> Result<CodecStep, Undecodable>;

    /// Returns the mark at the end of a stretch, once all its text was given.
    fn mark(&mut self) -> Mark;

    /// Whether the input may end here.
    fn is_whole(&self) -> bool;
}

/// The largest window: 8 MiB, the most that RFC 9659 allows zstd in HTTP, and half of brotli's
/// largest.
pub(super) const WINDOW_BITS: u32 = 23;
