//! A body in chunks, masked as it passes.
//!
//! Whatever the chunks, the output is what masking the whole body at once would give. Held back
//! is a suffix that may yet become a form of a secret and nothing else, fewer bytes than
//! [`Masks::longest`]; a chunk without one, or without a secret, passes without being copied.
//!
//! A body may take newer masks between two chunks. What was held back is looked at with those, and
//! what was found before stays found.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use zeroize::Zeroizing;

use super::masks::{Masks, overwrite};

/// The masking of one body.
pub struct MaskStream {
    masks: Arc<Masks>,
    /// The live partial match at the end of what was pushed.
    held: Zeroizing<Vec<u8>>,
    /// How many of the held bytes belong to an occurrence that began before them.
    known: usize,
    /// How many of the held bytes are with the receiver already.
    released: usize,
    masked: u64,
}

impl MaskStream {
    /// A stream at its beginning.
    pub fn new(masks: Arc<Masks>) -> Self {
        let held = Zeroizing::new(Vec::new());
        Self { masks, held, known: 0, released: 0, masked: 0 }
    }

    /// Takes other masks for everything that was not given out yet.
    pub fn renew(&mut self, masks: Arc<Masks>) {
        self.masks = masks;
    }

    /// Takes a chunk and gives what is ready to be sent; that may be nothing.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        if self.masks.is_empty() && self.held.is_empty() {
            return chunk;
        }
        let text = if self.held.is_empty() {
            chunk
        } else {
            [self.held.as_slice(), &chunk].concat().into()
        };
        self.pass(text, false)
    }

    /// Ends the stream and gives what was held back.
    pub fn finish(&mut self) -> Bytes {
        let text = Bytes::copy_from_slice(&self.held);
        self.pass(text, true)
    }

    /// Whether bytes are held back that [`Self::release`] would give.
    pub fn can_release(&self) -> bool {
        self.released < self.held.len() && self.held.len() <= RELEASE_BYTES
    }

    /// Gives what is held back before it is clear what it is, for a receiver that has waited.
    ///
    /// A message of a two-way protocol may end with a byte that a secret begins with, and both
    /// sides would wait for each other. Only [`RELEASE_BYTES`] are ever given away so: should a
    /// secret follow, all of it but these is masked, however slowly it comes.
    pub fn release(&mut self) -> Bytes {
        if !self.can_release() {
            return Bytes::new();
        }
        let mut ready = BytesMut::from(self.held.get(self.released..).unwrap_or_default());
        let known = 0..self.known;
        self.masked += overwrite(&mut ready, self.released, &[known]);
        self.released = self.held.len();
        ready.freeze()
    }

    /// Bytes that were masked so far.
    pub fn masked(&self) -> u64 {
        self.masked
    }

    fn pass(&mut self, mut text: Bytes, end: bool) -> Bytes {
        let scan = self.masks.values.scan(&text, self.known, end);
        let held = text.split_off(scan.settled);
        let begin = self.released.min(text.len());
        let ready = text.split_off(begin);

        let covered_to = scan.covered.last().map_or(0, |range| range.end);
        self.known = covered_to.saturating_sub(scan.settled);
        self.released = self.released.saturating_sub(scan.settled);
        self.held = Zeroizing::new(held.to_vec());

        if scan.covered.iter().all(|range| range.end <= begin || range.start >= scan.settled) {
            return ready;
        }
        let mut ready = BytesMut::from(ready);
        self.masked += overwrite(&mut ready, begin, &scan.covered);
        ready.freeze()
    }
}

/// Most bytes of a live partial match that are given away early.
const RELEASE_BYTES: usize = 4;
