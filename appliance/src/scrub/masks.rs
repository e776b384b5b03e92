//! The compiled set of forms, and the mask that covers an occurrence of one.

use std::{ops::Range, sync::Arc};

use super::{
    decode::{DecodeOptions, parts},
    escape::Families,
    form::{Form, HEX},
    search::{OnWindow, Suspect, WindowSearch, searches},
    vector::Vectors,
};
use crate::secrets::SecretValue;

/// Every form of some sets of secrets. Immutable; shared through an `Arc`.
///
/// The forms are zeroised when the set is dropped. The search holds only hashes of them.
pub struct Masks {
    /// The forms of secrets that an operator has bound.
    bound: Vec<Arc<MaskSet>>,
    /// The forms of credentials that an API minted. An agent may have chosen any of them.
    minted: Vec<Arc<MaskSet>>,
    reach: usize,
    /// The vector instructions that the search uses.
    vectors: Option<Vectors>,
}

/// The forms of one set.
struct MaskSet {
    values: Scanner,
    names: Scanner,
}

impl Masks {
    /// Compiles the forms of `values`, which must include all versions of a secret that may come
    /// back.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a SecretValue>) -> Self {
        Self::compiled(values, Vectors::detected())
    }

    /// As [`Self::new`], for a processor with these instructions.
    pub(super) fn compiled<'a>(
        values: impl IntoIterator<Item = &'a SecretValue>,
        vectors: Option<Vectors>,
    ) -> Self {
        let mut values: Vec<&[u8]> = values.into_iter().map(SecretValue::expose).collect();
        values.sort_unstable();
        values.dedup();
        let longest = values.iter().map(|value| value.len()).max().unwrap_or(0);
        if values.is_empty() {
            return Self { bound: vec![], minted: vec![], reach: reach(longest), vectors };
        }
        let set = MaskSet {
            values: Scanner::new(values.iter().flat_map(|value| Form::all(value)), vectors),
            names: Scanner::new(
                values.iter().flat_map(|value| Form::all_lower_case(value)),
                vectors,
            ),
        };
        Self { bound: vec![Arc::new(set)], minted: vec![], reach: reach(longest), vectors }
    }

    /// Joins the forms of all of these, of secrets that are bound and of credentials that were
    /// minted. Sets that were compiled separately are searched for separately, so that a further
    /// secret does not cost the compilation of all others.
    pub fn joined<'a>(
        bound: impl IntoIterator<Item = &'a Self>,
        minted: impl IntoIterator<Item = &'a Self>,
    ) -> Self {
        let mut joined = Self { bound: vec![], minted: vec![], reach: reach(0), vectors: None };
        for masks in bound {
            joined.bound.extend(masks.bound.iter().map(Arc::clone));
            joined.take_from(masks);
        }
        for masks in minted {
            joined.minted.extend(masks.bound.iter().map(Arc::clone));
            joined.take_from(masks);
        }
        joined
    }

    fn take_from(&mut self, other: &Self) {
        self.reach = self.reach.max(other.reach);
        self.vectors = self.vectors.or(other.vectors);
    }

    /// Whether there is nothing to mask.
    pub fn is_empty(&self) -> bool {
        self.bound.is_empty() && self.minted.is_empty()
    }

    /// Returns the vector instructions that the search uses.
    pub(super) fn vectors(&self) -> Option<Vectors> {
        self.vectors
    }

    /// Returns how many bytes a stream keeps, at most, to see an occurrence whole. The number is
    /// one of [`REACHES`], so that it does not tell how long a secret is.
    pub fn reach(&self) -> usize {
        self.reach
    }

    /// Finds every occurrence in `text`, of which the first `bound_before` bytes are known to
    /// belong to one of a bound secret. Near misses from `counted_to` on are not counted: where the
    /// text goes on, an occurrence may have begun there.
    ///
    /// Where an occurrence of a minted credential touches one of a bound secret and does not hold
    /// all of it, only the bound one is found. Otherwise an agent that chose the credential would
    /// learn from the mask whether the two agree where they meet, byte by byte. For the same reason
    /// no near miss is counted there.
    pub(super) fn scan(
        &self,
        text: Text<'_>,
        counted_to: usize,
        bound_before: usize,
    ) -> ScanResult {
        let Some((bound, minted)) = self.search(|set| &set.values, text, bound_before) else {
            // An agent whose own secrets are in here could hold up everybody: nothing of such a
            // text passes, and it counts as guessing.
            return ScanResult::exhausted(text.bytes.len());
        };
        let mut covered = bound.covered.clone();
        covered.extend(minted.covered);
        let covered = union(covered);
        // A guess by one set's search may be an occurrence of another set.
        let is_own_guess = |at: usize| !holds(&bound.covered, at);
        let is_guess =
            |at: usize| !holds(&covered, at) && !touches(&bound.covered, at..at + LONGEST_WINDOW);
        let count = |near: &[usize], is_guess: &dyn Fn(usize) -> bool| {
            near.iter().filter(|&&at| at < counted_to && is_guess(at)).count() as u64
        };
        let near_misses = count(&bound.near, &is_own_guess) + count(&minted.near, &is_guess);
        ScanResult { covered, bound: bound.covered, near_misses }
    }

    /// Returns the occurrences of bound secrets, in order, and separately those of minted
    /// credentials, by the searches that `of` picks. `None` where the comparisons exceed the bound
    /// for a text.
    fn search(
        &self,
        of: impl Fn(&MaskSet) -> &Scanner,
        text: Text<'_>,
        bound_before: usize,
    ) -> Option<(Found, Found)> {
        let (mut bound, mut minted) = (Found::default(), Found::default());
        if bound_before > 0 {
            bound.covered.push(0..bound_before.min(text.bytes.len()));
        }
        for set in &self.bound {
            bound.extend(of(set).scan(text, (&[], 0))?);
        }
        bound.covered = union(bound.covered);
        for set in &self.minted {
            minted.extend(of(set).scan(text, (&bound.covered, bound_before))?);
        }
        Some((bound, minted))
    }

    /// Whether any part of a value would be masked.
    pub fn hides(&self, value: &SecretValue) -> bool {
        !self.scan(value.expose().into(), usize::MAX, 0).covered.is_empty()
    }

    /// Whether the name of a field holds a secret.
    pub(super) fn is_in_name(&self, name: &[u8]) -> bool {
        self.search(|set| &set.names, name.into(), 0)
            .is_none_or(|(bound, minted)| !bound.covered.is_empty() || !minted.covered.is_empty())
    }
}

/// A search for a set of forms.
struct Scanner {
    forms: Vec<Form>,
    searches: Vec<Box<dyn WindowSearch>>,
    /// Whether some form that is searched for has no stable part.
    has_unstable: bool,
    vectors: Option<Vectors>,
}

/// A text to search, and a fact about it.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub(super) bytes: &'a [u8],
    /// The place before which no escape begins.
    pub(super) marks: usize,
}

impl<'a> From<&'a [u8]> for Text<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self { bytes, marks: 0 }
    }
}

/// Bytes of forms that may be compared for each byte of a text, and for any text.
const COMPARED: usize = 64;
const COMPARED_AT_LEAST: usize = 1 << 20;

/// The result of a scan.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ScanResult {
    /// The bytes that belong to an occurrence, in order and apart from each other.
    pub(super) covered: Vec<Range<usize>>,
    /// Those of them that belong to an occurrence of a bound secret.
    pub(super) bound: Vec<Range<usize>>,
    /// The number of places where a window of a form stands, but not the form.
    pub(super) near_misses: u64,
}

impl ScanResult {
    fn exhausted(length: usize) -> Self {
        let covered: Vec<_> = std::iter::once(0..length).collect();
        Self { bound: covered.clone(), covered, near_misses: u64::from(u32::MAX) }
    }
}

/// The result of the scan for one set, in no order.
#[derive(Default)]
struct Found {
    covered: Vec<Range<usize>>,
    /// The places where a window of a form stands, but not the form.
    near: Vec<usize>,
}

impl Found {
    fn extend(&mut self, other: Self) {
        self.covered.extend(other.covered);
        self.near.extend(other.near);
    }
}

impl Scanner {
    fn new(forms: impl Iterator<Item = Form>, vectors: Option<Vectors>) -> Self {
        let forms: Vec<Form> = forms.collect();
        let searches = searches(&forms, vectors);
        let has_unstable = forms.iter().any(|form| !form.is_stable());
        Self { forms, searches, has_unstable, vectors }
    }

    /// Finds every occurrence in `text` that does not meet one of `others` in part. `None` where
    /// the comparisons exceed the bound for the text.
    fn scan(&self, text: Text<'_>, others: Others<'_>) -> Option<Found> {
        let bytes = text.bytes;
        let mut scan = Found::default();
        let mut left = COMPARED_AT_LEAST.saturating_add(bytes.len().saturating_mul(COMPARED));
        let mut found = |at: usize, suspects: &[Suspect]| {
            let before = scan.covered.len();
            let suspected = |suspect: &Suspect| {
                let form = self.forms.get(suspect.form)?;
                left = left.saturating_sub(form.text().len());
                let found = (left > 0).then(|| form.around(bytes, at, suspect.offset)).flatten()?;
                found.longest(|range| !meets_in_part(others, range))
            };
            scan.covered.extend(suspects.iter().filter_map(suspected));
            if scan.covered.len() == before {
                scan.near.push(at);
            }
        };
        // This search comes first, while the bytes just copied are in the processor's nearest
        // cache.
        self.decoded(text, &mut found);
        for search in &self.searches {
            search.in_text(bytes, &mut found);
        }
        (left > 0).then_some(scan)
    }

    /// Searches the decoded escapes of `text`. Forms with a stable part are found where all escapes
    /// are decoded. A form without one may itself read as escapes of another kind than the
    /// writer's.
    fn decoded(&self, text: Text<'_>, found: &mut OnWindow<'_>) {
        let present = self.in_parts(text, Families::ALL, found);
        if self.has_unstable && present.is_mixed() {
            for family in Families::EACH.into_iter().filter(|family| present.has(*family)) {
                self.in_parts(text, family, found);
            }
        }
    }

    fn in_parts(&self, text: Text<'_>, families: Families, found: &mut OnWindow<'_>) -> Families {
        let options = DecodeOptions {
            families,
            marks: text.marks,
            least: self.searches.iter().map(|search| search.width()).min().unwrap_or(usize::MAX),
            margin: self.searches.iter().map(|search| search.region_bytes()).max().unwrap_or(0),
            joints: self.has_unstable,
            vectors: self.vectors,
        };
        parts(text.bytes, options, |part| {
            for search in &self.searches {
                search.in_part(part, found);
            }
        })
    }
}

/// Returns the same bytes in ranges that are in order and apart from each other.
pub(super) fn union(mut ranges: Vec<Range<usize>>) -> Vec<Range<usize>> {
    ranges.sort_unstable_by_key(|range| range.start);
    let mut joined: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            _ if range.is_empty() => (),
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => joined.push(range),
        }
    }
    joined
}

/// Ranges that are in order and apart from each other, and the number of bytes known from before:
/// where it is not 0, the range at the beginning is the rest of an occurrence that began earlier.
type Others<'a> = (&'a [Range<usize>], usize);

/// Whether the range touches one of the others without holding it.
fn meets_in_part((others, before): Others<'_>, range: &Range<usize>) -> bool {
    let next = others.partition_point(|it| it.end < range.start);
    let touched = others.get(next..).unwrap_or_default().iter();
    touched
        .take_while(|it| it.start <= range.end)
        .any(|it| it.start < range.start.max(before) || it.end > range.end)
}

/// Whether the byte at `at` is in one of `ranges`, which are in order and apart from each other.
fn holds(ranges: &[Range<usize>], at: usize) -> bool {
    let next = ranges.partition_point(|it| it.end <= at);
    ranges.get(next).is_some_and(|it| it.start <= at)
}

/// Whether the range shares a byte with one of `ranges`, which are in order and apart from each
/// other, or stands next to it.
fn touches(ranges: &[Range<usize>], range: Range<usize>) -> bool {
    let next = ranges.partition_point(|it| it.end < range.start);
    ranges.get(next).is_some_and(|it| it.start <= range.end)
}

/// Overwrites the covered bytes of a text from `begin` on; `text` is the part from there. Returns
/// how many there were. NULs stay, so that UTF-16 stays UTF-16.
pub(super) fn overwrite(text: &mut [u8], begin: usize, covered: &[Range<usize>]) -> u64 {
    let mut masked = 0;
    for range in covered {
        let from = range.start.saturating_sub(begin).min(text.len());
        let to = range.end.saturating_sub(begin).min(text.len());
        let secret = text.get_mut(from..to).unwrap_or_default();
        secret.iter_mut().filter(|byte| **byte != 0).for_each(|byte| *byte = MASK);
        masked += secret.len() as u64;
    }
    masked
}

fn reach(longest_value: usize) -> usize {
    let bytes = longest_value * LONGEST_SPELLING;
    REACHES.into_iter().find(|&reach| bytes <= reach).unwrap_or(bytes)
}

/// The byte that stands in the place of every byte of a secret.
pub(super) const MASK: u8 = b'*';
/// The most bytes that one byte of a value takes in a form that comes back whole however slowly it
/// arrives: `&#x0041;`.
const LONGEST_SPELLING: usize = 8;
/// The most bytes of a text that one window takes, written as escapes.
const LONGEST_WINDOW: usize = HEX * 2 * LONGEST_SPELLING;
/// Bytes that a stream may keep: for values of at most 256, 1,024 and 8,192 bytes.
const REACHES: [usize; 3] = [2 << 10, 8 << 10, 64 << 10];

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{super::stream::MaskStream, *};
    use crate::scrub::oracle::masks;

    /// Returns the ways in which an API may spell a text.
    fn spellings(text: &str) -> Vec<Vec<u8>> {
        let each = |spell: fn(u8) -> String| text.bytes().map(spell).collect::<String>();
        let mut all = vec![
            text.to_owned(),
            each(|byte| format!("{byte:02x}")),
            each(|byte| format!("%{byte:02X}")),
            each(|byte| format!("\\u{byte:04x}")),
        ];
        all.extend((0..3).map(|shift| STANDARD.encode(format!("{}{text}", &"abc"[..shift]))));
        all.into_iter().map(String::into_bytes).collect()
    }

    /// Returns which bytes of a text an agent receives masked, where the text comes in two pieces,
    /// with or without a pause between them, and the counts.
    fn received(
        masks: &Arc<Masks>,
        text: &[u8],
        (cut, pause): (usize, bool),
    ) -> (Vec<Vec<bool>>, [u64; 2]) {
        let mut stream = MaskStream::new(Arc::clone(masks), false);
        let (one, two) = text.split_at(cut.min(text.len()));
        let mut all = vec![stream.push(Bytes::copy_from_slice(one))];
        if pause {
            all.push(stream.release());
        }
        all.push(stream.push(Bytes::copy_from_slice(two)));
        all.push(stream.finish());
        let masked = |given: &Bytes| given.iter().map(|&byte| byte == MASK).collect();
        (all.iter().map(masked).collect(), [stream.masked(), stream.near_misses()])
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// An agent has a text minted that is a guess at some bytes at the end or the beginning of
        /// a key, with the bytes that it knows to stand beside the key.
        #[test]
        fn a_minted_text_tells_nothing_of_an_overlapping_key(
            key in "[a-z0-9]{16,40}",
            pad in "[&a-z0-9]{16,60}",
            (guessed, wrong) in (1..12_usize).prop_flat_map(|guessed| (Just(guessed), 0..guessed)),
            (cut, pause, before) in (0..400_usize, any::<bool>(), any::<bool>()),
        ) {
            let (at, text) = match before {
                true => (wrong, format!("{pad}{}", &key[..guessed])),
                false => (key.len() - 1 - wrong, format!("{}{pad}", &key[key.len() - guessed..])),
            };
            let minted = masks(&[&text]);
            let mut other = key.clone();
            other.replace_range(at..=at, if &key[at..=at] == "z" { "y" } else { "z" });
            let of = |key: &str| {
                let all = Arc::new(Masks::joined([&*masks(&[key])], [&*minted]));
                let text = if before { format!("{pad}{key} ") } else { format!("?key={key}{pad} ") };
                // Bytes before a pause in the middle of a key were given out as they were.
                let cut = (cut, pause && !before);
                spellings(&text).iter().map(|text| received(&all, text, cut)).collect::<Vec<_>>()
            };
            let agreeing = of(&key);
            prop_assert!(agreeing.iter().all(|(_, [masked, _])| *masked > 0), "the key is masked");
            prop_assert_eq!(agreeing, of(&other));
        }

        /// A credential that holds all of a key is masked whole, also where its beginning came
        /// before.
        #[test]
        fn a_minted_credential_around_a_key_is_masked(
            (key, begin, end) in ("[a-z0-9]{16,40}", "[A-Z]{0,20}", "[A-Z]{0,20}"),
            cut in 0..80_usize,
        ) {
            let minted = format!("{begin}{key}{end}");
            let masks = Arc::new(Masks::joined([&*masks(&[&key])], [&*masks(&[&minted])]));
            for text in spellings(&format!("{minted}, and so on")).into_iter().take(4) {
                let (given, [masked, near]) = received(&masks, &text, (cut, false));
                let expected = text.len() - text.len() / (minted.len() + 11) * 11;
                let run = given.concat().iter().take_while(|it| **it).count();
                prop_assert_eq!((run, masked as usize, near), (expected, expected, 0));
            }
        }

        /// Beside a key, but not touching it, a minted credential is masked as by itself.
        #[test]
        fn a_minted_credential_beside_a_key_is_masked(
            key in "[a-z0-9]{16,40}",
            minted in "[A-Z]{16,60}",
        ) {
            let masks = Masks::joined([&*masks(&[&key])], [&*masks(&[&minted])]);
            let text = format!("{key},{minted},{minted}:{key}");
            let found = masks.scan(text.as_bytes().into(), usize::MAX, 0);
            let bytes: usize = found.covered.iter().map(Range::len).sum();
            prop_assert_eq!((bytes, found.near_misses), (text.len() - 3, 0));
        }
    }
}
