//! A search whose work does not tell how far a text agrees with a form.
//!
//! Each form has a region of some consecutive bytes near its end, and every window of `WIDTH` bytes
//! inside it is in a table. A window has the bytes that twelve of a value take in the form, so that
//! nobody learns of fewer: of hexadecimal 24, of base64 16. The text is examined in windows of that
//! width at each multiple of a stride. The region is longer than a window by the stride less one,
//! so that one of the examined windows lies inside it wherever the form stands. A window is hashed
//! under a random key and looked up in a filter: the same work for each, whatever it holds, unless
//! all its bytes agree. Only then is the form itself compared. So an agent that learns of a form by
//! the time of a search has guessed a whole window of it before; and such a place that turns out
//! not to be an occurrence is reported as a near miss.
//!
//! Where the text holds escapes, the parts around them are decoded and searched once more in the
//! same way ([`super::decode`]).
//!
//! Where the processor has the instructions, a window is hashed by two rounds of AES, otherwise by
//! a product. The table holds hashes and no bytes of a form. Windows of base64 and hexadecimal
//! forms are passed over without a hash where they hold a byte that no such form has.

use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, Hasher, RandomState},
    ops::Range,
};

use zeroize::Zeroizing;

use super::{
    decode::DecodedPart,
    filter::Filter,
    form::{BASE64, Form, HEX, LONG, SHORT},
    vector::Vectors,
};

/// The callback for every window that may be one of a form.
pub(super) type OnWindow<'a> = dyn FnMut(usize, &[Suspect]) + 'a;

/// A search for windows of some width.
pub(super) trait WindowSearch: Send + Sync {
    /// Returns the bytes of a window.
    fn width(&self) -> usize;

    /// Returns the bytes of a region: enough for one of the examined windows, wherever it stands.
    fn region_bytes(&self) -> usize;

    /// Calls `found` for every window of `text` that may be one of a form, with its beginning and
    /// the forms that it may belong to.
    fn in_text(&self, text: &[u8], found: &mut OnWindow<'_>);

    /// As [`Self::in_text`], for decoded bytes.
    fn in_part(&self, part: &DecodedPart, found: &mut OnWindow<'_>);
}

/// Returns the searches for all of `forms`.
pub(super) fn searches(forms: &[Form], vectors: Option<Vectors>) -> Vec<Box<dyn WindowSearch>> {
    fn boxed<const WIDTH: usize>(
        forms: &[Form],
        vectors: Option<Vectors>,
    ) -> Option<Box<dyn WindowSearch>> {
        let search = Search::<WIDTH>::new(forms, vectors)?;
        Some(Box::new(search))
    }
    let (hex, base64) = (boxed::<HEX>(forms, vectors), boxed::<BASE64>(forms, vectors));
    let (long, short) = (boxed::<LONG>(forms, vectors), boxed::<SHORT>(forms, vectors));
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
    /// Makes a search for those of `forms` that have windows of this width. `None` where there are
    /// none.
    fn new(forms: &[Form], vectors: Option<Vectors>) -> Option<Self> {
        let runs = || {
            let runs = forms.iter().enumerate().filter(|(_, form)| form.width() == WIDTH);
            runs.map(|(number, form)| (number, form, form.searchable()))
        };
        let shortest = runs().map(|(_, _, run)| run.len()).min()?;
        let mut search = Self {
            key: HashKey::random(vectors),
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
        while let Some(rest) = text.get(at..) {
            at += self.barren(rest) * self.stride;
            let Some(window) = text.get(at..).and_then(<[u8]>::first_chunk) else { return };
            if let Some(suspects) = self.suspects(window) {
                hit(at, suspects);
            }
            at += self.stride;
        }
    }

    /// Returns a number of windows at the beginning of a text that the filter does not let pass;
    /// there may be more. Most of a search's cost is in here, so the loops hold nothing else.
    fn barren(&self, text: &[u8]) -> usize {
        match &self.key {
            HashKey::Aes(vectors, keys) => {
                vectors.barren::<WIDTH>(keys, &self.filter, self.stride, text)
            }
            HashKey::Words(key) => self.barren_words(*key, text),
        }
    }

    #[inline(never)]
    fn barren_words(&self, key: [u64; 3], text: &[u8]) -> usize {
        let may_be_of_form = |part: &[u8]| {
            part.first_chunk().is_some_and(|window| {
                Self::may_be_of_form(window)
                    && self.filter.may_hold(hash_words(key, words::<WIDTH>(window)))
            })
        };
        let mut windows = text.windows(WIDTH).step_by(self.stride);
        let all = windows.len();
        windows.position(may_be_of_form).unwrap_or(all)
    }

    /// Examines windows that begin inside an escape and go on behind it: the beginning of a form
    /// that was taken for the rest of an escape before it. Only a form without a stable part needs
    /// this.
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
            // The second of two backslashes may begin an escape, whose other bytes were read as
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

    /// Whether a window may be of a form: the first bytes of a hexadecimal one must be digits,
    /// which they are in hardly any text. The answer tells of the text alone.
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
        self.key.hash(window)
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

    /// Returns the last part of `run` whose windows few other forms share. A part that many values
    /// have in common, such as a suffix, would make each place that looks like it expensive.
    fn region(&self, form: &Form, run: Range<usize>) -> Range<usize> {
        let length = self.region_bytes().min(run.len());
        let crowd = |begin: usize| {
            let offsets = begin..begin + length + 1 - WIDTH;
            let others = offsets.flat_map(|offset| self.hashes(form, offset));
            others.filter_map(|hash| self.suspects.get(&hash)).map(Vec::len).max().unwrap_or(0)
        };
        let (last, tried) = (run.end - length, run.len() - length);
        let step = REGION_STEP.max(tried.div_ceil(MOST_REGIONS));
        let mut best = (usize::MAX, run.start);
        for begin in (run.start..=last).rev().step_by(step) {
            best = best.min((crowd(begin), begin));
            if best.0 < CROWD {
                break;
            }
        }
        let (_, begin) = best;
        begin..begin + length
    }

    /// Returns the hashes of the window at `offset`, in each alphabet that others may write it in.
    /// No encoder changes from one to the other within a text.
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

/// Whether eight letters may be hexadecimal digits. A letter that is a digit has neither this bit
/// set nor the next lower one with one of the lowest three.
#[inline]
fn may_be_digits(word: u64) -> bool {
    let letters = word >> 6 & EACH;
    word & (letters << 4 | letters << 3) == 0
}

/// Returns a window as three numbers, with letters in lower case: hexadecimal digits count in
/// either case.
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

/// The key of a hash, without which nobody can search for collisions. The hash counts letters in
/// either case as the same, because hexadecimal digits may be.
enum HashKey {
    Words([u64; 3]),
    /// The keys of two rounds of AES.
    Aes(Vectors, [[u8; 16]; 2]),
}

impl HashKey {
    fn random(vectors: Option<Vectors>) -> Self {
        let mut numbers = std::iter::repeat_with(|| RandomState::new().hash_one(0));
        let mut number = || numbers.next().unwrap_or_default();
        let Some(vectors) = vectors else { return Self::Words([number(), number(), number()]) };
        let mut key = || (u128::from(number()) << 64 | u128::from(number())).to_le_bytes();
        Self::Aes(vectors, [key(), key()])
    }

    #[inline]
    fn hash<const WIDTH: usize>(&self, window: &[u8; WIDTH]) -> u64 {
        match self {
            Self::Words(key) => hash_words(*key, words(window)),
            Self::Aes(vectors, keys) => vectors.hash(keys, window),
        }
    }
}

/// Returns both halves of a product, combined.
#[inline]
fn hash_words([one, two, three]: [u64; 3], [first, second, third]: [u64; 3]) -> u64 {
    // The third number is rotated, so that it does not cancel the first.
    let first = first ^ one ^ third.wrapping_mul(three | 1).rotate_left(32);
    let product = u128::from(first) * u128::from(second ^ two);
    (product >> 64) as u64 ^ product as u64
}

/// A hasher that returns the hash it is given.
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

/// The greatest distance in bytes between two examined windows of the text.
const MAX_STRIDE: usize = 96;
/// The distance in bytes between two parts of a form that are tried for a region.
const REGION_STEP: usize = 4;
/// About the most parts of a form that are tried for a region: an agent may have chosen the form.
const MOST_REGIONS: usize = 64;
/// Forms that may share a window before another region is tried.
const CROWD: usize = 4;
/// The bit in which the cases of a letter differ, set in each byte.
const FOLD: u64 = 0x2020_2020_2020_2020;
/// One in each byte of a word.
const EACH: u64 = 0x0101_0101_0101_0101;
