//! What a decoder asks of each kind of stream.

/// Why a body cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undecodable {
    /// It is no such stream, it is damaged, or something follows it.
    Malformed,
    /// It ended in the middle.
    Cut,
    /// It wants more memory than a decoder may have.
    Window,
    /// It grows too much.
    Ratio,
}

/// What one call of a codec did.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Step {
    pub(super) read: usize,
    pub(super) written: usize,
    /// Whether the stretch ends here, since something else begins.
    pub(super) turns: bool,
}

/// Where the text of a stream may be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mark {
    /// In the middle of something.
    None,
    /// A whole number of the compressor's blocks. What is before is all that it has been given, or
    /// not.
    Block,
    /// The compressor was told to give all that it had.
    Flush,
}

/// One kind of stream.
pub(super) trait Codec: Send {
    /// How many bytes of `input`, at least one and no more than there are, to decode before
    /// [`Self::mark`] is asked. `is_all` where more has not come yet.
    fn stretch(&mut self, input: &[u8], is_all: bool) -> usize;

    /// Decodes.
    fn decode(&mut self, input: &[u8], out: &mut [u8]) -> Result<Step, Undecodable>;

    /// What the end of a stretch is, once all that it stands for was given.
    fn mark(&mut self) -> Mark;

    /// Whether the input may end here.
    fn is_whole(&self) -> bool;
}

/// The largest window: 8 MiB, the most that RFC 9659 lets zstd have in HTTP, and half of what
/// brotli could.
pub(super) const WINDOW_BITS: u32 = 23;
