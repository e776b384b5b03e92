//! The compiled set of forms, and what an occurrence of one is covered with.

use std::{ops::Range, sync::Arc};

use super::{
    decode::{DecodeOptions, parts},
    escape::Families,
    form::Form,
    search::{OnWindow, Suspect, WindowSearch, searches},
    vector::Vectors,
};
use crate::secrets::SecretValue;

/// Every form of some sets of secrets. Immutable; shared through an `Arc`.
///
/// The forms are zeroised when it is dropped. The search holds hashes of them alone.
pub struct Masks {
    sets: Vec<Arc<MaskSet>>,
    reach: usize,
    /// What the search uses of the processor.
    vectors: Option<Vectors>,
}

/// The forms of one set.
struct MaskSet {
    values: Scanner,
    names: Scanner,
}

impl Masks {
    /// Compiles the forms of `values`; all versions of a secret that may come back belong in.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a SecretValue>) -> Self {
        Self::compiled(values, Vectors::detected())
    }

    /// As [`Self::new`], for a processor that has these instructions.
    pub(super) fn compiled<'a>(
        values: impl IntoIterator<Item = &'a SecretValue>,
        vectors: Option<Vectors>,
    ) -> Self {
        let mut values: Vec<&[u8]> = values.into_iter().map(SecretValue::expose).collect();
        values.sort_unstable();
        values.dedup();
        let longest = values.iter().map(|value| value.len()).max().unwrap_or(0);
        if values.is_empty() {
            return Self { sets: vec![], reach: reach(longest), vectors };
        }
        let set = MaskSet {
            values: Scanner::new(values.iter().flat_map(|value| Form::all(value)), vectors),
            names: Scanner::new(
                values.iter().flat_map(|value| Form::all_lower_case(value)),
                vectors,
            ),
        };
        Self { sets: vec![Arc::new(set)], reach: reach(longest), vectors }
    }

    /// The forms of all of these. Each that was compiled by itself is looked for by itself, so that
    /// a further secret does not cost the compilation of all others.
    pub fn joined<'a>(all: impl IntoIterator<Item = &'a Self>) -> Self {
        let mut joined = Self { sets: vec![], reach: reach(0), vectors: None };
        for masks in all {
            joined.sets.extend(masks.sets.iter().map(Arc::clone));
            joined.reach = joined.reach.max(masks.reach);
            joined.vectors = joined.vectors.or(masks.vectors);
        }
        joined
    }

    /// Whether there is nothing to mask.
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// What the search uses of the processor.
    pub(super) fn vectors(&self) -> Option<Vectors> {
        self.vectors
    }

    /// Bytes that a stream keeps, at most, to see an occurrence whole. It is one of
    /// [`REACHES`], so that it does not tell how long a secret is.
    pub fn reach(&self) -> usize {
        self.reach
    }

    /// Finds every occurrence in `text`. Near misses from `counted_to` on are not counted: where
    /// the text goes on, an occurrence may have begun there.
    pub(super) fn scan(&self, text: &[u8], counted_to: usize) -> ScanResult {
        let (mut covered, mut near) = (vec![], vec![]);
        for set in &self.sets {
            match set.values.scan(text) {
                Some(found) => {
                    covered.extend(found.covered);
                    near.extend(found.near);
                }
                // Whoever has a secret of his own making in here could hold up everybody: nothing
                // of such a text passes, and it counts as guessing.
                None => return ScanResult::exhausted(text.len()),
            }
        }
        let covered = union(covered);
        // What one set takes for a guess may be an occurrence of another.
        let is_guess = |at: &&usize| {
            let after = covered.partition_point(|range| range.end <= **at);
            **at < counted_to && covered.get(after).is_none_or(|range| range.start > **at)
        };
        let near_misses = near.iter().filter(is_guess).count() as u64;
        ScanResult { covered, near_misses }
    }

    /// Whether something of a value would be masked.
    pub fn hides(&self, value: &SecretValue) -> bool {
        !self.scan(value.expose(), usize::MAX).covered.is_empty()
    }

    /// Whether the name of a field holds a secret.
    pub(super) fn is_in_name(&self, name: &[u8]) -> bool {
        self.sets.iter().any(|set| set.names.scan(name).is_none_or(|it| !it.covered.is_empty()))
    }
}

/// A search for a set of forms.
struct Scanner {
    forms: Vec<Form>,
    searches: Vec<Box<dyn WindowSearch>>,
    /// Whether some form is looked for that has no stable part.
    has_unstable: bool,
    vectors: Option<Vectors>,
}

/// Bytes of forms that may be compared for each byte of a text, and for any text.
const COMPARED: usize = 64;
const COMPARED_AT_LEAST: usize = 1 << 20;

/// What a scan found.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct ScanResult {
    /// The bytes that belong to an occurrence, in order and apart from each other.
    pub(super) covered: Vec<Range<usize>>,
    /// Places where a window of a form stands, and not the form.
    pub(super) near_misses: u64,
}

impl ScanResult {
    fn exhausted(length: usize) -> Self {
        let covered = std::iter::once(0..length).collect();
        Self { covered, near_misses: u64::from(u32::MAX) }
    }
}

/// What the scan for one set found, in no order.
#[derive(Default)]
struct Found {
    covered: Vec<Range<usize>>,
    /// Where a window of a form stands, and not the form.
    near: Vec<usize>,
}

impl Scanner {
    fn new(forms: impl Iterator<Item = Form>, vectors: Option<Vectors>) -> Self {
        let forms: Vec<Form> = forms.collect();
        let searches = searches(&forms, vectors);
        let has_unstable = forms.iter().any(|form| !form.is_stable());
        Self { forms, searches, has_unstable, vectors }
    }

    /// Finds every occurrence in `text`. `None` where that takes more comparing than is done for
    /// it.
    fn scan(&self, text: &[u8]) -> Option<Found> {
        let mut scan = Found::default();
        let mut left = COMPARED_AT_LEAST.saturating_add(text.len().saturating_mul(COMPARED));
        let mut found = |at: usize, suspects: &[Suspect]| {
            let before = scan.covered.len();
            let suspected = |suspect: &Suspect| {
                let form = self.forms.get(suspect.form)?;
                left = left.saturating_sub(form.text().len());
                (left > 0).then(|| form.around(text, at, suspect.offset)).flatten()
            };
            scan.covered.extend(suspects.iter().filter_map(suspected));
            if scan.covered.len() == before {
                scan.near.push(at);
            }
        };
        // First, while what was just copied is in the processor's nearest cache.
        self.decoded(text, &mut found);
        for search in &self.searches {
            search.in_text(text, &mut found);
        }
        (left > 0).then_some(scan)
    }

    /// Searches what the escapes of `text` stand for. Forms with a stable part are found where all
    /// escapes are read. One without may itself read as escapes of another kind than the writer's.
    fn decoded(&self, text: &[u8], found: &mut OnWindow<'_>) {
        let present = self.in_parts(text, Families::ALL, found);
        if self.has_unstable && present.is_mixed() {
            for family in Families::EACH.into_iter().filter(|family| present.has(*family)) {
                self.in_parts(text, family, found);
            }
        }
    }

    fn in_parts(&self, text: &[u8], families: Families, found: &mut OnWindow<'_>) -> Families {
        let options = DecodeOptions {
            families,
            least: self.searches.iter().map(|search| search.width()).min().unwrap_or(usize::MAX),
            margin: self.searches.iter().map(|search| search.region_bytes()).max().unwrap_or(0),
            joints: self.has_unstable,
            vectors: self.vectors,
        };
        parts(text, options, |part| {
            for search in &self.searches {
                search.in_part(part, found);
            }
        })
    }
}

/// The same bytes in ranges that are in order and apart from each other.
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

/// Overwrites the covered bytes from `begin` of a text of which `text` is what follows `begin`.
/// Returns how many there were. NULs stay, so that UTF-16 stays UTF-16.
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

/// What stands in the place of every byte of a secret.
pub(super) const MASK: u8 = b'*';
/// Bytes that one byte of a value takes, at most, in a form that comes back whole however slowly
/// it comes: `&#x0041;`.
const LONGEST_SPELLING: usize = 8;
/// Bytes that a stream may keep: for values of at most 256, 1,024 and 8,192 bytes.
const REACHES: [usize; 3] = [2 << 10, 8 << 10, 64 << 10];
