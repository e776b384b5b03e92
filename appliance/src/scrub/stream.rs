//! A body in chunks, masked as it passes.
//!
//! Whatever the chunks, the output is what masking the whole body at once would give. Kept back is
//! the run of bytes at the end that an occurrence of a form could hold, at most
//! [`Masks::reach`] of them. Which bytes those are depends on the body and its chunks and on
//! nothing else: a run begins after each space, control character and byte above 0x7E, which no
//! form holds, and after each message of gRPC and Connect. So the sizes and the times of what is
//! given out say nothing of what the secrets are. A run is not broken by what stands inside forms:
//! a NUL (UTF-16) and a line end after `=` (quoted-printable).
//!
//! A body may take newer masks between two chunks. What was kept back is looked at with those, and
//! what was found before stays found.

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use zeroize::Zeroizing;

use super::{
    block::{BLOCK, Block},
    envelope::Envelopes,
    escape::no_form_holds,
    masks::{Masks, ScanResult, overwrite, union},
    vector::Vectors,
};

/// The masking of one body.
pub struct MaskStream {
    masks: Arc<Masks>,
    envelopes: Option<Envelopes>,
    /// The run at the end of what was pushed.
    run: Zeroizing<Vec<u8>>,
    /// How many bytes of the run belong to an occurrence that began before them.
    known: usize,
    /// The same, of a bound secret.
    known_bound: usize,
    /// How many bytes of the run are with the receiver already.
    released: usize,
    masked: u64,
    near_misses: u64,
}

impl MaskStream {
    /// A stream at its beginning. Where `in_envelopes`, the body is a sequence of messages, each
    /// behind a byte of flags and its length in four bytes, as gRPC and Connect send them.
    pub fn new(masks: Arc<Masks>, in_envelopes: bool) -> Self {
        Self {
            masks,
            envelopes: in_envelopes.then(Envelopes::default),
            run: Zeroizing::new(Vec::new()),
            known: 0,
            known_bound: 0,
            released: 0,
            masked: 0,
            near_misses: 0,
        }
    }

    /// Takes other masks for everything that was not given out yet.
    pub fn renew(&mut self, masks: Arc<Masks>) {
        self.masks = masks;
    }

    /// Takes a chunk and gives what is ready to be sent; that may be nothing.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        let message_end = self.envelopes.as_mut().and_then(|it| it.advance(&chunk));
        if self.masks.is_empty() && self.run.is_empty() {
            return chunk;
        }
        let before = self.run.len();
        let text = if before == 0 { chunk } else { concatenated(&self.run, &chunk) };
        let message_end = message_end.map_or(0, |end| before + end);
        let least = text.len().saturating_sub(self.masks.reach());
        let run = run_begin(&text, least, self.masks.vectors());
        self.pass(text, run, run.max(message_end))
    }

    /// Ends the stream and gives what was kept back.
    pub fn finish(&mut self) -> Bytes {
        let text = Bytes::copy_from_slice(&self.run);
        let end = text.len();
        self.pass(text, end, end)
    }

    /// Whether bytes are kept back that [`Self::release`] would give.
    pub fn can_release(&self) -> bool {
        self.released < self.run.len()
    }

    /// Gives all that is kept back, for a receiver that has waited: a message of a protocol that
    /// the gateway does not know may have ended here, and both sides would wait for each other.
    ///
    /// Should a secret have begun in it, its rest is masked when it comes.
    pub fn release(&mut self) -> Bytes {
        if !self.can_release() {
            return Bytes::new();
        }
        let text = Bytes::copy_from_slice(&self.run);
        let end = text.len();
        self.pass(text, 0, end)
    }

    /// Bytes that were masked so far.
    pub fn masked(&self) -> u64 {
        self.masked
    }

    /// Places so far that look as if somebody were guessing: twelve bytes of a form, eight of a
    /// short one, and not the form.
    pub fn near_misses(&self) -> u64 {
        self.near_misses
    }

    /// Of a text that begins with the run of before, keeps what begins at `run` and gives what ends
    /// at `ready` and was not given yet. Gives a chunk without a secret as it is, uncopied.
    fn pass(&mut self, mut text: Bytes, run: usize, ready: usize) -> Bytes {
        let scan = self.masks.scan(&text, run, self.known_bound);
        let ScanResult { mut covered, bound, near_misses } = scan;
        self.near_misses += near_misses;
        if self.known > 0 {
            covered.push(0..self.known.min(text.len()));
            covered = union(covered);
        }
        self.known = past(&covered, run, self.known);
        self.known_bound = past(&bound, run, self.known_bound);
        let begin = self.released.min(ready);
        self.released = self.released.max(ready) - run;
        self.keep(text.get(run..).unwrap_or_default());

        let held = text.len();
        text.truncate(ready);
        let given = text.split_off(begin);
        // A few bytes must not keep all of a run in memory.
        let given = if given.len() < held / 2 { Bytes::copy_from_slice(&given) } else { given };
        if covered.iter().all(|range| range.end <= begin || range.start >= ready) {
            return given;
        }
        let mut given = BytesMut::from(given);
        self.masked += overwrite(&mut given, begin, &covered);
        given.freeze()
    }

    /// Keeps these bytes in place of those that were kept.
    fn keep(&mut self, run: &[u8]) {
        if self.run.capacity() < run.len() {
            // A vector that grows would leave its old place as it is; dropped, it is wiped.
            self.run = Zeroizing::new(Vec::with_capacity(run.len().next_power_of_two()));
        }
        // What stands behind them in the buffer is wiped with the rest when the stream ends.
        self.run.clear();
        self.run.extend_from_slice(run);
    }
}

/// Two parts of what a stream gave as one. Copies nothing where one of them is empty.
pub fn joined(one: Bytes, two: Bytes) -> Bytes {
    match (one.is_empty(), two.is_empty()) {
        (true, _) => two,
        (_, true) => one,
        _ => [one, two].concat().into(),
    }
}

/// Where the run at the end of `text` begins, no earlier than at `least`.
fn run_begin(text: &[u8], least: usize, vectors: Option<Vectors>) -> usize {
    let held = held_at_end(text.get(least..).unwrap_or_default(), vectors);
    let mut run = text.get(least..text.len() - held).unwrap_or_default();
    while let Some(at) = run.iter().rposition(|&byte| no_form_holds(byte)) {
        if breaks_run(text, least + at) {
            return least + at + 1;
        }
        run = run.get(..at).unwrap_or_default();
    }
    least
}

/// How many bytes at the end of `text`, in whole blocks, end neither a run nor a line.
fn held_at_end(text: &[u8], vectors: Option<Vectors>) -> usize {
    let line = memchr::memrchr2(b'\n', b'\r', text).map_or(0, |at| at + 1);
    let (_, blocks) = text.get(line..).unwrap_or_default().as_rchunks();
    let is_held = |bytes: &&_| Block::of(bytes, vectors).ends == 0;
    blocks.iter().rev().take_while(is_held).count() * BLOCK
}

/// How many bytes from `run` on belong to an occurrence that began before. There were `before` such
/// bytes from the beginning on.
fn past(covered: &[Range<usize>], run: usize, before: usize) -> usize {
    match covered.iter().find(|range| range.start < run && range.end > run) {
        Some(range) => range.end - run,
        None if run == 0 => before,
        None => 0,
    }
}

/// Two texts as one. In pieces so small that the copy stays in the processor's nearest cache: of
/// one long copy it need not, and the search reads it next.
fn concatenated(one: &[u8], two: &[u8]) -> Bytes {
    let mut text = Vec::with_capacity(one.len() + two.len());
    let pieces = one.chunks(COPIED_AT_ONCE).chain(two.chunks(COPIED_AT_ONCE));
    pieces.for_each(|piece| text.extend_from_slice(piece));
    text.into()
}

/// Whether no form holds the byte at `at`, which is no character that a value may have.
fn breaks_run(text: &[u8], at: usize) -> bool {
    let before = text.get(..at).unwrap_or_default();
    match text.get(at) {
        Some(b'\n') => !(before.ends_with(b"=") || before.ends_with(b"=\r")),
        Some(b'\r') => !before.ends_with(b"="),
        _ => true,
    }
}

/// Bytes that are copied at once: below the least from which the C library takes another way.
const COPIED_AT_ONCE: usize = 1024;
