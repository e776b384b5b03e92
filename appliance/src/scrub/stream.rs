//! A body in chunks, masked as it passes.
//!
//! Whatever the chunks, the output is the same as if the whole body were masked at once. The stream
//! keeps back the run of bytes at the end that an occurrence of a form could hold, at most
//! [`Masks::reach`] of them. The kept bytes depend on the body and its chunks and on nothing else:
//! a run begins after each space, control character and byte above 0x7E, which no form holds, and
//! after each message of gRPC and Connect. So the sizes and the times of the output say nothing
//! about the secrets. Two bytes that stand inside forms do not end a run: a NUL (UTF-16) and a line
//! end after `=` (quoted-printable).
//!
//! A body may take newer masks between two chunks. The kept bytes are searched with the newer
//! masks, and earlier occurrences stay masked.

use std::{ops::Range, sync::Arc};

use bytes::{Bytes, BytesMut};
use zeroize::Zeroizing;

use super::{
    envelope::Envelopes,
    escape::no_form_holds,
    marks,
    masks::{Masks, ScanResult, Text, overwrite, union},
    vector::Vectors,
};

/// The masking of one body.
pub struct MaskStream {
    masks: Arc<Masks>,
    envelopes: Option<Envelopes>,
    /// The run at the end of the bytes that were pushed.
    run: Zeroizing<Vec<u8>>,
    /// The number of bytes of the run that belong to an occurrence which began before them.
    known: usize,
    /// The same for an occurrence of a bound secret.
    known_bound: usize,
    /// The number of bytes of the run that the receiver has already.
    released: usize,
    masked: u64,
    near_misses: u64,
}

impl MaskStream {
    /// Begins a stream. Where `in_envelopes`, the body is a sequence of messages, each behind a
    /// byte of flags and its length in four bytes, as gRPC and Connect send them.
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

    /// Takes a chunk and returns the bytes that are ready to be sent; there may be none.
    pub fn push(&mut self, chunk: Bytes) -> Bytes {
        let message_end = self.envelopes.as_mut().and_then(|it| it.advance(&chunk));
        if self.masks.is_empty() && self.run.is_empty() {
            return chunk;
        }
        let before = self.run.len();
        let vectors = self.masks.vectors();
        let (text, marks) = match before {
            0 => (chunk, 0),
            _ => concatenated(&self.run, &chunk, vectors),
        };
        let message_end = message_end.map_or(0, |end| before + end);
        let least = text.len().saturating_sub(self.masks.reach());
        let run = run_begin(&text, least, vectors);
        self.pass(text, marks, run, run.max(message_end))
    }

    /// Ends the stream and returns the bytes that were kept back.
    pub fn finish(&mut self) -> Bytes {
        let text = Bytes::copy_from_slice(&self.run);
        let end = text.len();
        self.pass(text, 0, end, end)
    }

    /// Whether bytes are kept back that [`Self::release`] would return.
    pub fn can_release(&self) -> bool {
        self.released < self.run.len()
    }

    /// Returns all bytes that are kept back, for a receiver that has waited: a message of a
    /// protocol that the gateway does not know may have ended here, and both sides would wait for
    /// each other.
    ///
    /// If a secret has begun in these bytes, its rest is masked when it comes.
    pub fn release(&mut self) -> Bytes {
        if !self.can_release() {
            return Bytes::new();
        }
        let text = Bytes::copy_from_slice(&self.run);
        let end = text.len();
        self.pass(text, 0, 0, end)
    }

    /// Returns the bytes that were masked so far.
    pub fn masked(&self) -> u64 {
        self.masked
    }

    /// Returns how many places so far look like a guess: twelve bytes of a form, or eight of a
    /// short one, without the rest of the form.
    pub fn near_misses(&self) -> u64 {
        self.near_misses
    }

    /// Takes a text that begins with the earlier run. Keeps the bytes from `run` on and returns
    /// those up to `ready` that were not returned yet. A chunk without a secret is returned as it
    /// is, uncopied.
    fn pass(&mut self, mut text: Bytes, marks: usize, run: usize, ready: usize) -> Bytes {
        let scan = self.masks.scan(Text { bytes: &text, marks }, run, self.known_bound);
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

    /// Keeps these bytes in place of those that were kept before.
    fn keep(&mut self, run: &[u8]) {
        if self.run.capacity() < run.len() {
            // A vector that grows would leave its old bytes in memory; one that is dropped is
            // wiped.
            self.run = Zeroizing::new(Vec::with_capacity(run.len().next_power_of_two()));
        }
        // Older bytes behind these in the buffer are wiped with the rest when the stream ends.
        self.run.clear();
        self.run.extend_from_slice(run);
    }
}

/// Joins two parts of a stream's output. Copies nothing where one of them is empty.
pub fn joined(one: Bytes, two: Bytes) -> Bytes {
    match (one.is_empty(), two.is_empty()) {
        (true, _) => two,
        (_, true) => one,
        _ => [one, two].concat().into(),
    }
}

/// Returns where the run at the end of `text` begins, no earlier than `least`.
fn run_begin(text: &[u8], least: usize, vectors: Option<Vectors>) -> usize {
    let end = text.get(least..).unwrap_or_default();
    let line = memchr::memrchr2(b'\n', b'\r', end).map_or(0, |at| at + 1);
    let held = marks::held_at_end(end.get(line..).unwrap_or_default(), vectors);
    let mut run = text.get(least..text.len() - held).unwrap_or_default();
    while let Some(at) = run.iter().rposition(|&byte| no_form_holds(byte)) {
        if breaks_run(text, least + at) {
            return least + at + 1;
        }
        run = run.get(..at).unwrap_or_default();
    }
    least
}

/// Returns how many bytes from `run` on belong to an occurrence that began before. At the beginning
/// of the text there were `before` such bytes.
fn past(covered: &[Range<usize>], run: usize, before: usize) -> usize {
    match covered.iter().find(|range| range.start < run && range.end > run) {
        Some(range) => range.end - run,
        None if run == 0 => before,
        None => 0,
    }
}

/// Returns two texts as one, and a place before which no escape begins in it.
fn concatenated(one: &[u8], two: &[u8], vectors: Option<Vectors>) -> (Bytes, usize) {
    let mut text = Vec::with_capacity(one.len() + two.len());
    let in_one = marks::append(&mut text, one, vectors);
    let in_two = marks::append(&mut text, two, vectors);
    let unmarked = if in_one == one.len() { in_one + in_two } else { in_one };
    (text.into(), unmarked)
}

/// Whether no form holds the byte at `at`, because no value may have this character.
fn breaks_run(text: &[u8], at: usize) -> bool {
    let before = text.get(..at).unwrap_or_default();
    match text.get(at) {
        Some(b'\n') => !(before.ends_with(b"=") || before.ends_with(b"=\r")),
        Some(b'\r') => !before.ends_with(b"="),
        _ => true,
    }
}
