//! The parts of a text that hold escapes, decoded.
//!
//! An escape matters only where a form may stand around it. So this module reads the run of bytes
//! around it that a form may hold, and no more than a margin from the nearest escape. Prose has
//! short runs, and binary data has next to none.
//!
//! The bytes that are read, and the cost, depend on the text alone.

use super::{
    block::BLOCK,
    escape::{Families, MOST_NULS, Meaning, escape_at, is_plain, no_form_holds},
    marks::next_marked,
    vector::Vectors,
};

/// Decoded bytes of a part of a text.
pub(super) struct DecodedPart<'a> {
    text: &'a [u8],
    options: DecodeOptions,
    /// The decoded bytes, and room for more.
    buffer: Vec<u8>,
    length: usize,
    joints: Vec<Joint>,
    /// The beginning of the part.
    begin: usize,
}

/// An escape that was read, and the decoded byte behind it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Joint {
    /// The beginning of the escape in the text.
    pub(super) begin: usize,
    /// The end of the escape.
    pub(super) end: usize,
    /// The number of the decoded byte behind it.
    pub(super) next: usize,
}

/// The positions of a part's decoded bytes in the text.
pub(super) struct DecodedPositions<'a> {
    text: &'a [u8],
    families: Families,
    /// The number of a decoded byte, and its position.
    decoded: usize,
    at: usize,
}

/// The options for decoding a text.
#[derive(Debug, Clone, Copy)]
pub(super) struct DecodeOptions {
    /// The families to decode. Escapes of others are read as they stand.
    pub(super) families: Families,
    /// No byte before this may begin an escape.
    pub(super) marks: usize,
    /// The fewest decoded bytes of a part; shorter parts are left out.
    pub(super) least: usize,
    /// The bytes on either side of an escape that may matter.
    pub(super) margin: usize,
    /// Whether the ends of escapes are wanted, too.
    pub(super) joints: bool,
    /// The vector instructions that may be used.
    pub(super) vectors: Option<Vectors>,
}

/// Gives `search` every part of `text` that holds an escape, in order. Returns the families of the
/// escapes that were read.
pub(super) fn parts(
    text: &[u8],
    options: DecodeOptions,
    mut search: impl FnMut(&DecodedPart),
) -> Families {
    let mut part = DecodedPart::of(text, options);
    let mut present = Families::NONE;
    // No escape ends after `floor` and before `at`.
    let (mut floor, mut at) = (0, 0);
    let Some(mut marks) = Marks::of(text, options) else { return present };
    while let Some(place) = marks.next_from(at) {
        if escape_at(text, place, options.families).is_none() {
            at = place + 1;
            if let Some(last) = last_of_many_nuls(text, place) {
                (floor, at) = (last, last);
            }
            continue;
        }
        let read = part.read(run_begin(text, floor, place, options));
        present = present.and(read.families);
        (floor, at) = (read.last_escape, read.end.max(place + 1));
        if part.length >= options.least {
            search(&part);
        }
    }
    present
}

/// The extent of a part that was read.
struct ReadExtent {
    families: Families,
    /// The end of its last escape.
    last_escape: usize,
    end: usize,
}

impl<'a> DecodedPart<'a> {
    fn of(text: &'a [u8], options: DecodeOptions) -> Self {
        let (buffer, joints) = (Vec::new(), Vec::new());
        Self { text, options, buffer, length: 0, joints, begin: 0 }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.buffer.get(..self.length).unwrap_or_default()
    }

    pub(super) fn text(&self) -> &[u8] {
        self.text
    }

    pub(super) fn joints(&self) -> &[Joint] {
        &self.joints
    }

    /// Returns the byte that an escape at a place of the text stands for, and the length of the
    /// escape.
    pub(super) fn byte_at(&self, at: usize) -> Option<(u8, usize)> {
        let escape = escape_at(self.text, at, self.options.families)?;
        match escape.meaning {
            Meaning::Byte(byte) => Some((byte, escape.length())),
            Meaning::Nothing => None,
        }
    }

    /// Returns the positions of the decoded bytes in the text.
    pub(super) fn places(&self) -> DecodedPositions<'a> {
        let Self { text, options, begin, .. } = *self;
        DecodedPositions { text, families: options.families, decoded: 0, at: begin }
    }

    /// Reads from `begin` to the end of the run, or to where no escape is near any more.
    #[inline(never)]
    fn read(&mut self, begin: usize) -> ReadExtent {
        let enough = 2 * self.options.margin;
        let mut read = ReadExtent { families: Families::NONE, last_escape: begin, end: begin };
        let (mut length, mut plain_from) = (0, 0);
        self.joints.clear();
        while length - plain_from < enough {
            let Some(room) = room(&mut self.buffer, length) else { break };
            let rest = self.text.get(read.end..).unwrap_or_default();
            let plain = copy_plain(rest, room);
            (read.end, length) = (read.end + plain, length + plain);
            let Some(rest) = rest.get(plain..).filter(|_| plain < STRETCH) else { continue };
            let byte = match (escape_at(rest, 0, self.options.families), rest.first()) {
                (Some(escape), _) => {
                    read.families = read.families.and(escape.family);
                    let begin = read.end;
                    read.end += escape.length();
                    read.last_escape = read.end;
                    plain_from = length + usize::from(escape.meaning != Meaning::Nothing);
                    if self.options.joints {
                        self.joints.push(Joint { begin, end: read.end, next: plain_from });
                    }
                    escape.meaning
                }
                (None, Some(&byte)) if byte != 0 && !no_form_holds(byte) => {
                    read.end += 1;
                    Meaning::Byte(byte)
                }
                _ => break,
            };
            if let (Meaning::Byte(byte), Some(to)) = (byte, room.get_mut(plain)) {
                *to = byte;
                length += 1;
            }
        }
        (self.begin, self.length) = (begin, length.min(plain_from + self.options.margin));
        read
    }
}

/// Makes room behind the first `length` bytes of a buffer, for a stretch and one byte.
#[inline]
fn room(buffer: &mut Vec<u8>, length: usize) -> Option<&mut [u8]> {
    let end = length + STRETCH + 1;
    if buffer.len() < end {
        buffer.resize(2 * end, 0);
    }
    buffer.get_mut(length..end)
}

/// Copies bytes that stand for themselves from the beginning of `text`, at most [`STRETCH`], and
/// returns how many. The first few are examined one by one, since escapes may stand close together.
#[inline]
fn copy_plain(text: &[u8], room: &mut [u8]) -> usize {
    let mut copied = 0;
    for (to, &byte) in room.iter_mut().zip(text).take(WORD) {
        if !is_plain(byte) {
            return copied;
        }
        *to = byte;
        copied += 1;
    }
    while copied < STRETCH
        && let Some(word) = text.get(copied..).and_then(<[u8]>::first_chunk::<WORD>)
        && let Some(to) = room.get_mut(copied..copied + WORD)
    {
        to.copy_from_slice(word);
        let special = special(u64::from_le_bytes(*word));
        copied += special.trailing_zeros() as usize / 8;
        if special != 0 {
            break;
        }
    }
    copied
}

impl DecodedPositions<'_> {
    /// Returns where in the text the decoded byte of this number begins. Numbers must come in
    /// order, so that a part is read no more than once more.
    pub(super) fn of(&mut self, number: usize) -> usize {
        loop {
            match escape_at(self.text, self.at, self.families) {
                Some(found) if found.meaning == Meaning::Nothing => self.at += found.length(),
                _ if self.decoded >= number => return self.at,
                found => {
                    self.decoded += 1;
                    self.at += found.map_or(1, |escape| escape.length());
                }
            }
        }
    }
}

/// Returns the beginning of the run that reaches to `place`, no earlier than `least`.
fn run_begin(text: &[u8], least: usize, place: usize, options: DecodeOptions) -> usize {
    let least = least.max(place.saturating_sub(options.margin));
    let before = text.get(least..place).unwrap_or_default();
    let breaks =
        |byte: &u8| no_form_holds(*byte) || *byte == 0 && !options.families.has(Families::WIDE);
    before.iter().rposition(breaks).map_or(least, |at| least + at + 1)
}

/// Returns, where more NULs stand from `at` on than a character has, the beginning of the last ones
/// that may belong to a character.
#[inline]
fn last_of_many_nuls(text: &[u8], at: usize) -> Option<usize> {
    let rest = text.get(at..).filter(|rest| matches!(rest, [0, 0, 0, 0, ..]))?;
    let blocks = rest.chunks_exact(NULS.len()).take_while(|block| *block == NULS).count();
    let rest = rest.get(blocks * NULS.len()..).unwrap_or_default();
    let nuls = rest.iter().take_while(|byte| **byte == 0).count();
    Some(at + blocks * NULS.len() + nuls - MOST_NULS)
}

/// The bytes of a text that an escape may begin with, in runs that may be long enough.
struct Marks<'a> {
    text: &'a [u8],
    options: DecodeOptions,
    /// The beginning of the block that was examined last.
    begin: usize,
    /// The marks of that block, a bit for each byte.
    block: u64,
}

impl<'a> Marks<'a> {
    /// Returns `None` where the text has no such byte.
    fn of(text: &'a [u8], options: DecodeOptions) -> Option<Self> {
        let mut marks = Self { text, options, begin: 0, block: 0 };
        marks.go_to(options.marks)?;
        Some(marks)
    }

    /// Returns the first mark from `at` on. Places must come in order.
    #[inline]
    fn next_from(&mut self, at: usize) -> Option<usize> {
        let passed = at.saturating_sub(self.begin);
        let mut marks = if passed < BLOCK { self.block >> passed << passed } else { 0 };
        if marks == 0 {
            self.go_to(at.max(self.begin + BLOCK))?;
            marks = self.block;
        }
        Some(self.begin + marks.trailing_zeros() as usize)
    }

    fn go_to(&mut self, at: usize) -> Option<()> {
        let DecodeOptions { least, vectors, .. } = self.options;
        (self.begin, self.block) = next_marked(self.text, at, least, vectors)?;
        Some(())
    }
}

/// Sets the high bit of the first byte of a word that does not stand for itself: an escape may
/// begin with it, or no form holds it. Sets none before that byte.
fn special(word: u64) -> u64 {
    let below = |word: u64, least: u8| word.wrapping_sub(EACH * u64::from(least)) & !word;
    let is = |byte: u8| below(word ^ (EACH * u64::from(byte)), 1);
    let high = word | (word & !HIGH).wrapping_add(EACH);
    let low = below(word, b'!');
    (high | low | is(b'%') | is(b'&') | is(b'=') | is(b'\\')) & HIGH
}

/// Bytes that are copied as one word.
const WORD: usize = 8;
/// The most bytes that are copied without an escape before the function checks whether they are
/// enough.
const STRETCH: usize = 32;
static NULS: [u8; 32] = [0; 32];
/// One in each byte of a word; and its high bit.
const EACH: u64 = 0x0101_0101_0101_0101;
const HIGH: u64 = 0x8080_8080_8080_8080;
