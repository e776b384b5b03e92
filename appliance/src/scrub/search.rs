//! A search whose work does not tell how far a text agrees with a form.
//!
//! Each form has a region of some consecutive bytes near its end, and every window of `WIDTH`
//! bytes inside it is in a table. A window is what twelve bytes of a value take in the form, so
//! that nobody learns of fewer: of hexadecimal 24, of base64 16. The text is looked at in windows
//! of that width at each multiple of a stride. The region is longer than a window by the stride
//! less one, so that one of the windows that are looked at lies inside it wherever the form stands.
//! A window is hashed under a random key and held against a filter: the same work for each,
//! whatever it holds, unless all its bytes agree. Only then is the form itself compared. So whoever
//! learns of a form by the time that a search takes has had a whole window of it before; and such a
//! place that turns out not to be an occurrence is reported as a near miss.
//!
//! Where the text holds escapes, it is searched in the same way once more around them, decoded
//! ([`super::decode`]).
//!
//! The table holds hashes and no bytes of a form.

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
    ops::Range,
};

use zeroize::Zeroizing;

use super::{
    decode::DecodedPart,
    form::{BASE64, Form, HEX, LONG, SHORT},
};

/// What is told of every window that may be one of a form.
pub(super) type OnWindow<'a> = dyn FnMut(usize, &[Suspect]) + 'a;

/// A search for windows of some width.
pub(super) trait WindowSearch: Send + Sync {
    /// Bytes of a window.
    fn width(&self) -> usize;

    /// Bytes of a region: enough for one of the windows that are looked at, wherever it stands.
    fn region_bytes(&self) -> usize;

    /// Calls `found` with the place of every window of `text` that may be one of a form: where it
    /// begins, and which forms it may be of.
    fn in_text(&self, text: &[u8], found: &mut OnWindow<'_>);

    /// As [`Self::in_text`], for what was decoded.
    fn in_part(&self, part: &DecodedPart, found: &mut OnWindow<'_>);
}

/// Searches for all of `forms`.
pub(super) fn searches(forms: &[Form]) -> Vec<Box<dyn WindowSearch>> {
    fn boxed<const WIDTH: usize>(forms: &[Form]) -> Option<Box<dyn WindowSearch>> {
        let search = Search::<WIDTH>::new(forms)?;
        Some(Box::new(search))
    }
    let (hex, base64) = (boxed::<HEX>(forms), boxed::<BASE64>(forms));
    let (long, short) = (boxed::<LONG>(forms), boxed::<SHORT>(forms));
    [hex, base64, long, short].into_iter().flatten().collect()
}

/// Every window of the regions of some forms.
struct Search<const WIDTH: usize> {
    key: HashKey,
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

impl<const WIDTH: usize> Search<WIDTH> {
    /// A search for those of `forms` that are looked for in windows of this width. `None` where
    /// there are none.
    fn new(forms: &[Form]) -> Option<Self> {
        let runs = || {
            let runs = forms.iter().enumerate().filter(|(_, form)| form.width() == WIDTH);
            runs.map(|(number, form)| (number, form, form.searchable()))
        };
        let shortest = runs().map(|(_, _, run)| run.len()).min()?;
        let mut search = Self {
            key: HashKey::random(),
            filter: Filter::default(),
            suspects: HashMap::default(),
            stride: (shortest + 1).saturating_sub(WIDTH).clamp(1, MAX_STRIDE),
        };
        for (number, form, run) in runs() {
            search.add(number, form, run);
        }
        search.filter = Filter::of(search.suspects.keys().copied());
        Some(search)
    }

    fn each_hit(&self, text: &[u8], mut hit: impl FnMut(usize, &[Suspect])) {
        let mut at = 0;
        while let Some(number) = text.get(at..).and_then(|rest| self.first_candidate(rest)) {
            at += number * self.stride;
            let window = text.get(at..).and_then(<[u8]>::first_chunk);
            if let Some(suspects) = window.and_then(|window| self.suspects(window)) {
                hit(at, suspects);
            }
            at += self.stride;
        }
    }

    /// The number of the first window that the filter lets pass. Most of what a search costs is in
    /// here, so the loop holds nothing else.
    #[inline(never)]
    fn first_candidate(&self, text: &[u8]) -> Option<usize> {
        let may_be_of_form = |part: &[u8]| {
            part.first_chunk().is_some_and(|window| {
                Self::may_be_of_form(window) && self.filter.may_hold(self.hash(window))
            })
        };
        if self.stride < WIDTH {
            return text.windows(WIDTH).step_by(self.stride).position(may_be_of_form);
        }
        let mut parts = text.chunks_exact(self.stride);
        let last = parts.remainder();
        let found = parts.position(may_be_of_form);
        found.or_else(|| may_be_of_form(last).then_some(text.len() / self.stride))
    }

    /// Looks at what begins inside an escape and goes on behind it: the beginning of a form that
    /// was taken for the rest of an escape before it. Only a form without a stable part needs it.
    fn at_joints(&self, part: &DecodedPart, found: &mut OnWindow<'_>) {
        let mut look = |begin: usize, head: &[u8], next: usize| {
            let mut window = [0; WIDTH];
            let Some((to, tail)) = window.split_at_mut_checked(head.len()) else { return };
            let Some(decoded) = part.bytes().get(next..next + tail.len()) else { return };
            to.copy_from_slice(head);
            tail.copy_from_slice(decoded);
            if let Some(suspects) = self.suspects(&window) {
                found(begin, suspects);
            }
        };
        for joint in part.joints() {
            for begin in joint.begin + 1..joint.end {
                let head = part.text().get(begin..joint.end).unwrap_or_default();
                look(begin, head, joint.next);
            }
            // Of two backslashes the second may begin an escape, whose other bytes were read as
            // they stand.
            let last = joint.end - 1;
            if let Some((byte, length)) = part.byte_at(last) {
                look(last, &[byte], joint.next + length - 1);
            }
        }
    }

    #[inline]
    fn suspects(&self, window: &[u8; WIDTH]) -> Option<&[Suspect]> {
        let hash = self.hash(window);
        if self.filter.may_hold(hash) { self.known(hash) } else { None }
    }

    /// Whether the first bytes of the window may be digits, where it may be hexadecimal: of hardly
    /// any text they are. That tells of the text alone.
    #[inline]
    fn may_be_of_form(window: &[u8; WIDTH]) -> bool {
        WIDTH != HEX
            || window.first_chunk().is_none_or(|word| may_be_digits(u64::from_le_bytes(*word)))
    }

    #[cold]
    fn known(&self, hash: u64) -> Option<&[Suspect]> {
        self.suspects.get(&hash).map(Vec::as_slice)
    }

    #[inline]
    fn hash(&self, window: &[u8; WIDTH]) -> u64 {
        self.key.hash(words(window))
    }

    fn add(&mut self, number: usize, form: &Form, run: Range<usize>) {
        let region = self.region(form, run);
        for offset in region.start..region.start + self.stride {
            for hash in self.hashes(form, offset) {
                let suspects = self.suspects.entry(hash).or_default();
                suspects.push(Suspect { form: number, offset });
            }
        }
    }

    /// The last part of `run` whose windows few other forms share. What many values have in common,
    /// such as a suffix, would make each place that looks like it expensive.
    fn region(&self, form: &Form, run: Range<usize>) -> Range<usize> {
        let length = self.region_bytes().min(run.len());
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
        let window = form.text().get(offset..).and_then(<[u8]>::first_chunk::<WIDTH>);
        let window = Zeroizing::new(window.copied().unwrap_or([0; WIDTH]));
        let other = Zeroizing::new(window.map(|byte| form.twins(byte).last().unwrap_or(byte)));
        let [one, two] = [&*window, &*other].map(|window| self.hash(window));
        std::iter::once(one).chain((one != two).then_some(two))
    }
}

impl<const WIDTH: usize> WindowSearch for Search<WIDTH> {
    fn width(&self) -> usize {
        WIDTH
    }

    fn region_bytes(&self) -> usize {
        WIDTH - 1 + self.stride
    }

    fn in_text(&self, text: &[u8], found: &mut OnWindow<'_>) {
        self.each_hit(text, |at, suspects| found(at, suspects));
    }

    fn in_part(&self, part: &DecodedPart, found: &mut OnWindow<'_>) {
        let mut places = part.places();
        self.each_hit(part.bytes(), |at, suspects| found(places.of(at), suspects));
        self.at_joints(part, found);
    }
}

/// Whether eight letters may be hexadecimal digits. Of the letters, those have neither this bit set
/// nor the next lower one with one of the lowest three.
#[inline]
fn may_be_digits(word: u64) -> bool {
    let letters = word >> 6 & EACH;
    word & (letters << 4 | letters << 3) == 0
}

/// A window as three numbers, with letters in lower case: hexadecimal digits count in either.
#[inline]
fn words<const WIDTH: usize>(window: &[u8; WIDTH]) -> [u64; 3] {
    let first = window.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let last = window.last_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    let tail = window.last_chunk().map_or(0, |bytes| u64::from(u32::from_le_bytes(*bytes)));
    let middle = || window.get(8..).and_then(<[u8]>::first_chunk);
    match WIDTH {
        SHORT => [first, 0, 0],
        LONG => [first, tail, 0],
        BASE64 => [first, last, 0],
        _ => [first, last, middle().map_or(0, |bytes| u64::from_le_bytes(*bytes))],
    }
    .map(|word| word | FOLD)
}

/// A hash whose collisions nobody without the key can look for: both halves of a product.
struct HashKey([u64; 3]);

impl HashKey {
    fn random() -> Self {
        Self(std::array::from_fn(|_| RandomState::new().hash_one(0)))
    }

    #[inline]
    fn hash(&self, [first, second, third]: [u64; 3]) -> u64 {
        let [one, two, three] = self.0;
        // Rotated, so that the third does not take away what the first one put in.
        let first = first ^ one ^ third.wrapping_mul(three | 1).rotate_left(32);
        let product = u128::from(first) * u128::from(second ^ two);
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
        let words = hashes.len().div_ceil(HASHES_A_WORD).max(LEAST_WORDS).next_power_of_two();
        let mut filter = Self { words: vec![0; words] };
        for hash in hashes {
            let place = filter.place(hash);
            if let Some(word) = filter.words.get_mut(place) {
                *word |= 1 << (hash & 63);
            }
        }
        filter
    }

    #[inline]
    fn may_hold(&self, hash: u64) -> bool {
        self.words.get(self.place(hash)).is_some_and(|word| word >> (hash & 63) & 1 != 0)
    }

    #[inline]
    fn place(&self, hash: u64) -> usize {
        (hash >> 6) as usize & (self.words.len().wrapping_sub(1))
    }
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

/// The most bytes from one window of the text that is looked at to the next.
const MAX_STRIDE: usize = 96;
/// Bytes from one part of a form that is tried for a region to the next.
const REGION_STEP: usize = 4;
/// Forms that may share a window before another region is looked for.
const CROWD: usize = 4;
/// With half a hash to one in a word of the filter, one window in 64 to 128 passes it by chance.
const HASHES_A_WORD: usize = 1;
/// Words of the smallest filter.
const LEAST_WORDS: usize = 64;
/// Sets the bit in which the cases of a letter differ.
const FOLD: u64 = 0x2020_2020_2020_2020;
/// One in each byte of a word.
const EACH: u64 = 0x0101_0101_0101_0101;
