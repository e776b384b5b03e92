//! A search whose work does not tell how far a text agrees with a form.
//!
//! Each form has a region of some consecutive bytes near its end, and every window of `WIDTH`
//! bytes inside it is in a table. The text is looked at in windows of that width at each multiple
//! of a stride. The region is longer than a window by at least the stride less one, so that one of
//! the windows that are looked at lies inside it wherever the form stands. A window is hashed under
//! a random key and held against a filter: the same work for each, whatever it holds, unless all
//! its bytes agree. Only then is the form itself compared. So whoever learns of a form by the time
//! that a search takes has had a whole window of it before; and such a place that turns out not to
//! be an occurrence is reported as a near miss.
//!
//! Where the text holds escapes, it is searched in the same way once more around them, decoded: for
//! each family of escapes by itself, and for all together.
//!
//! The table holds hashes and no bytes of a form.

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
    ops::Range,
};

use super::{
    escape::{Escape, Families, MOST_NULS, Meaning, escape, is_wide},
    form::Form,
};

/// Every window of the regions of some forms.
pub(super) struct Search<const WIDTH: usize> {
    key: Key,
    filter: Filter,
    suspects: HashMap<u64, Vec<Suspect>, BuildHasherDefault<AsItIs>>,
    stride: usize,
}

/// A place in a form that a window of the text may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suspect {
    /// The number of the form.
    pub(super) form: usize,
    /// The first byte of the window in it.
    pub(super) offset: usize,
}

/// An escape that stands at a place of the text.
struct Standing {
    at: usize,
    escape: Escape,
}

impl<const WIDTH: usize> Search<WIDTH> {
    /// A search for those of `forms` whose region has room for `WIDTH` and less than `below`.
    /// `None` where there are none.
    pub(super) fn new(forms: &[Form], below: usize) -> Option<Self> {
        let mut search = Self {
            key: Key::random(),
            filter: Filter::default(),
            suspects: HashMap::default(),
            stride: MAX_STRIDE,
        };
        for (number, form) in forms.iter().enumerate() {
            let run = searchable(form);
            if (WIDTH..below).contains(&run.len()) {
                search.add(number, form, run);
            }
        }
        search.filter = Filter::of(search.suspects.keys().copied());
        (!search.suspects.is_empty()).then_some(search)
    }

    /// Calls `found` with the place of every window of `text` that may be one of a form: where it
    /// begins, and which forms it may be of.
    pub(super) fn windows(&self, text: &[u8], found: &mut impl FnMut(usize, &[Suspect])) {
        for (number, window) in text.windows(WIDTH).step_by(self.stride).enumerate() {
            if let Some(suspects) = self.suspects(self.key.hash(words::<WIDTH>(window))) {
                found(number * self.stride, suspects);
            }
        }
        let escapes = escapes(text);
        let present = escapes.iter().fold(Families::NONE, |all, it| all.and(it.escape.family));
        let alone = Families::EACH.into_iter().filter(|family| present.has(*family));
        for families in alone.chain(present.is_mixed().then_some(Families::ALL)) {
            decoded(text, &escapes, families, |part| self.in_part(part, found));
        }
    }

    fn in_part(&self, part: &Part, found: &mut impl FnMut(usize, &[Suspect])) {
        for (number, window) in part.bytes.windows(WIDTH).step_by(self.stride).enumerate() {
            if let Some(suspects) = self.suspects(self.key.hash(words::<WIDTH>(window))) {
                found(part.begin_of(number * self.stride), suspects);
            }
        }
    }

    fn suspects(&self, hash: u64) -> Option<&[Suspect]> {
        if !self.filter.may_hold(hash) {
            return None;
        }
        self.suspects.get(&hash).map(Vec::as_slice)
    }

    fn add(&mut self, number: usize, form: &Form, run: Range<usize>) {
        let region = self.region(form, run);
        let windows = region.len() + 1 - WIDTH;
        self.stride = self.stride.min(1 << windows.ilog2());
        for offset in region.start..region.start + windows {
            for hash in self.hashes(form, offset) {
                let suspects = self.suspects.entry(hash).or_default();
                suspects.push(Suspect { form: number, offset });
            }
        }
    }

    /// The last part of `run` whose windows few other forms share. What many values have in common,
    /// such as a suffix, would make each place that looks like it expensive.
    fn region(&self, form: &Form, run: Range<usize>) -> Range<usize> {
        let length = run.len().min(WIDTH - 1 + MAX_STRIDE);
        let crowd = |begin: usize| {
            let offsets = begin..begin + length + 1 - WIDTH;
            let others = offsets.flat_map(|offset| self.hashes(form, offset));
            others.filter_map(|hash| self.suspects.get(&hash)).map(Vec::len).max().unwrap_or(0)
        };
        let begins = || (run.start..=run.end - length).rev().step_by(REGION_STEP);
        let alone = begins().find(|&begin| crowd(begin) < CROWD);
        let begin = alone.or_else(|| begins().min_by_key(|&begin| crowd(begin)));
        let begin = begin.unwrap_or(run.start);
        begin..begin + length
    }

    /// The hashes of the window at `offset`, in each alphabet that others may write it in. No
    /// encoder changes from one to the other within a text.
    fn hashes(&self, form: &Form, offset: usize) -> impl Iterator<Item = u64> + use<WIDTH> {
        let window = form.text().get(offset..offset + WIDTH).unwrap_or_default();
        let other = |&byte: &u8| form.twins(byte).last().unwrap_or(byte);
        let other: zeroize::Zeroizing<Vec<u8>> =
            window.iter().map(other).collect::<Vec<_>>().into();
        let [one, two] = [window, &other].map(|window| self.key.hash(words::<WIDTH>(window)));
        std::iter::once(one).chain((one != two).then_some(two))
    }
}

/// The part of a form that a search may look for: what is stable, or, where next to nothing is,
/// all of it. Such a value is found as it is, and wholly escaped.
fn searchable(form: &Form) -> Range<usize> {
    let stable = form.stable();
    if stable.len() >= SHORT { stable } else { 0..form.text().len() }
}

/// Every escape that stands in `text`, also inside another, in order.
fn escapes(text: &[u8]) -> Vec<Standing> {
    let marks =
        memchr::memchr3_iter(b'%', b'\\', b'&', text).chain(memchr::memchr_iter(b'=', text));
    let mut found: Vec<_> =
        marks.chain(Nuls::of(text)).filter_map(|at| standing(text, at)).collect();
    // Each of the three is in order; a stable sort merges them in one pass.
    found.sort_by_key(|standing| standing.at);
    found
}

fn standing(text: &[u8], at: usize) -> Option<Standing> {
    Some(Standing { at, escape: escape(text.get(at..)?)? })
}

/// The NULs of a text that UTF-16 and UTF-32 write before or behind a character of ASCII.
struct Nuls<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Nuls<'a> {
    fn of(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }
}

impl Iterator for Nuls<'_> {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        loop {
            self.at += memchr::memchr(0, self.text.get(self.at..)?)?;
            let rest = self.text.get(self.at..)?;
            let run = rest.iter().position(|&byte| byte != 0).unwrap_or(rest.len());
            // Of a longer run only the last can belong to the character behind it.
            let skipped = run.saturating_sub(MOST_NULS);
            self.at += skipped;
            if is_wide(self.text, self.at) {
                self.at += 1;
                return Some(self.at - 1);
            }
            self.at += run - skipped;
        }
    }
}

/// Decodes the parts of `text` that an occurrence with an escape of `families` inside its region
/// may reach into, and gives each to `search`.
fn decoded(text: &[u8], escapes: &[Standing], families: Families, mut search: impl FnMut(&Part)) {
    let mut part = Part { bytes: Vec::with_capacity(text.len()), ..Part::default() };
    let mut at = 0;
    for standing in escapes.iter().filter(|standing| families.has(standing.escape.family)) {
        // What begins inside another escape was read with that one.
        if standing.at < at {
            continue;
        }
        if standing.at - at > 2 * MARGIN && !part.bytes.is_empty() {
            part.add_plain(text, at, at + MARGIN);
            search(&part);
            part.clear();
        }
        let begin =
            if part.bytes.is_empty() { standing.at.saturating_sub(MARGIN).max(at) } else { at };
        part.add_plain(text, begin, standing.at);
        part.add_escape(standing);
        at = standing.at + standing.escape.length;
    }
    part.add_plain(text, at, at + MARGIN);
    search(&part);
}

/// Decoded bytes, and where in the text they stand.
#[derive(Default)]
struct Part {
    bytes: Vec<u8>,
    /// For each stretch without an escape and for each escape: the number of its first decoded byte
    /// and its place in the text.
    stretches: Vec<(usize, usize)>,
}

impl Part {
    fn add_plain(&mut self, text: &[u8], begin: usize, end: usize) {
        let plain = text.get(begin..end.min(text.len())).unwrap_or_default();
        if plain.is_empty() {
            return;
        }
        self.stretches.push((self.bytes.len(), begin));
        self.bytes.extend_from_slice(plain);
    }

    fn add_escape(&mut self, standing: &Standing) {
        if let Meaning::Byte(byte) = standing.escape.meaning {
            self.stretches.push((self.bytes.len(), standing.at));
            self.bytes.push(byte);
        }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.stretches.clear();
    }

    /// Where in the text the decoded byte of this number begins.
    fn begin_of(&self, number: usize) -> usize {
        let after = self.stretches.partition_point(|(first, _)| *first <= number);
        let stretch = after.checked_sub(1).and_then(|last| self.stretches.get(last));
        stretch.map_or(0, |(first, begin)| begin + number - first)
    }
}

/// A window as two numbers, with letters in lower case: hexadecimal digits count in either.
fn words<const WIDTH: usize>(window: &[u8]) -> (u64, u64) {
    let first = window.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    let second = match WIDTH {
        LONG => window.last_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes)),
        _ => 0,
    };
    (first | FOLD, u64::from(second | FOLD as u32))
}

/// A hash whose collisions nobody without the key can look for: both halves of a product.
struct Key(u64, u64);

impl Key {
    fn random() -> Self {
        let [one, two] = [RandomState::new(), RandomState::new()].map(|state| state.hash_one(0));
        Self(one, two | 1)
    }

    fn hash(&self, (first, second): (u64, u64)) -> u64 {
        let product = u128::from(first ^ self.0) * u128::from(second ^ self.1);
        (product >> 64) as u64 ^ product as u64
    }
}

/// Says of most hashes that they are not in the table, at the price of one word of memory.
#[derive(Default)]
struct Filter {
    words: Vec<u64>,
}

impl Filter {
    fn of(hashes: impl ExactSizeIterator<Item = u64>) -> Self {
        let words = (hashes.len() / HASHES_A_WORD).max(LEAST_WORDS).next_power_of_two();
        let mut filter = Self { words: vec![0; words] };
        for hash in hashes {
            let place = filter.place(hash);
            if let Some(word) = filter.words.get_mut(place) {
                *word |= bits(hash);
            }
        }
        filter
    }

    fn may_hold(&self, hash: u64) -> bool {
        let bits = bits(hash);
        self.words.get(self.place(hash)).is_some_and(|word| word & bits == bits)
    }

    fn place(&self, hash: u64) -> usize {
        (hash >> 12) as usize & (self.words.len().wrapping_sub(1))
    }
}

fn bits(hash: u64) -> u64 {
    1 << (hash & 63) | 1 << (hash >> 6 & 63)
}

/// Takes a hash for itself.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0 << 8 | u64::from(byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Bytes of a window, and of one of a form that has no room for such.
pub(super) const LONG: usize = 12;
pub(super) const SHORT: usize = 8;
/// The most bytes from one window of the text that is looked at to the next.
const MAX_STRIDE: usize = 32;
/// Bytes from one part of a form that is tried for a region to the next.
const REGION_STEP: usize = 4;
/// Forms that may share a window before another region is looked for.
const CROWD: usize = 4;
/// With two hashes in a word of the filter, one window in some 250 passes it by chance.
const HASHES_A_WORD: usize = 2;
/// Words of the smallest filter.
const LEAST_WORDS: usize = 64;
/// Bytes of a region, at most; and of what is decoded on either side of an escape.
const MARGIN: usize = LONG - 1 + MAX_STRIDE;
/// Sets the bit in which the cases of a letter differ.
const FOLD: u64 = 0x2020_2020_2020_2020;
