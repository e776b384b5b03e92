//! The compiled set of forms, and the search for them.
//!
//! A packed search for the first six bytes of every form finds the places worth a look; only
//! there is a form held against the text. So the common case, no secret anywhere, runs at the
//! speed of that search, and overlapping occurrences are each found by their own beginning.

use std::{collections::BTreeMap, ops::Range};

use aho_corasick::{AhoCorasick, Input, MatchKind};

use super::form::{FINGERPRINT_BYTES, Form, Seen};
use crate::secrets::SecretValue;

/// Every form of a set of secrets. Immutable; shared through an `Arc`.
///
/// The forms are zeroised when it is dropped. The fingerprints inside the search (six bytes of
/// a form each) are not.
pub struct Masks {
    pub(super) values: Scanner,
    pub(super) names: Scanner,
}

impl Masks {
    /// Compiles the forms of `values`; all versions of a secret that may come back belong in.
    pub fn new<'a>(values: impl IntoIterator<Item = &'a SecretValue>) -> Self {
        let mut values: Vec<&[u8]> = values.into_iter().map(SecretValue::expose).collect();
        values.sort_unstable();
        values.dedup();
        Self {
            values: Scanner::new(values.iter().flat_map(|value| Form::all(value)).collect()),
            names: Scanner::new(
                values.iter().flat_map(|value| Form::all_lower_case(value)).collect(),
            ),
        }
    }

    /// Whether there is nothing to mask.
    pub fn is_empty(&self) -> bool {
        self.values.forms.is_empty()
    }

    /// Bytes of the longest occurrence there can be; a stream holds back fewer.
    pub fn longest(&self) -> usize {
        self.values.forms.iter().map(Form::longest).max().unwrap_or(0)
    }
}

/// A search for a set of forms.
pub(super) struct Scanner {
    forms: Vec<Form>,
    /// The forms that begin with the fingerprint of the same number in `search`.
    suspects: Vec<Vec<usize>>,
    /// The bytes that a form can begin with, and the forms that do.
    beginnings: BTreeMap<u8, Vec<usize>>,
    /// `None` only where there is nothing to find, or where the search cannot be built: then
    /// every place is looked at.
    search: Option<AhoCorasick>,
}

/// What a scan found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Scan {
    /// The bytes that belong to an occurrence, in order and apart from each other. The last
    /// range may reach beyond `settled`, never beyond the text.
    pub(super) covered: Vec<Range<usize>>,
    /// Everything before this is final; from here on an occurrence may have begun.
    pub(super) settled: usize,
}

impl Scanner {
    fn new(forms: Vec<Form>) -> Self {
        let mut by_fingerprint: BTreeMap<[u8; FINGERPRINT_BYTES], Vec<usize>> = BTreeMap::new();
        let mut beginnings: BTreeMap<u8, Vec<usize>> = BTreeMap::new();
        for (number, form) in forms.iter().enumerate() {
            for fingerprint in form.fingerprints() {
                let [first, ..] = fingerprint;
                add_once(by_fingerprint.entry(fingerprint).or_default(), number);
                add_once(beginnings.entry(first).or_default(), number);
            }
        }
        // Leftmost semantics are what a packed search is built for. All fingerprints have one
        // length and differ, so no more than one of them begins at a place.
        let search = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostFirst)
            .build(by_fingerprint.keys())
            .ok()
            .filter(|_| !forms.is_empty());
        Self { forms, suspects: by_fingerprint.into_values().collect(), beginnings, search }
    }

    /// Looks through `text`, of which the first `known` bytes are covered already. Unless this is
    /// the `end`, the scan stops where an occurrence may continue beyond the text.
    pub(super) fn scan(&self, text: &[u8], known: usize, end: bool) -> Scan {
        let mut covered = Vec::new();
        cover(&mut covered, 0..known.min(text.len()));
        let mut at = 0;
        while let Some((place, suspects)) = self.next_place(text, at) {
            let seen = self.look(text.get(place..).unwrap_or_default(), suspects);
            if seen.partial && !end {
                return Scan { covered, settled: place };
            }
            cover(&mut covered, place..place + seen.matched);
            at = place + 1;
        }
        Scan { covered, settled: text.len() }
    }

    /// The next place that an occurrence may begin at, and the forms that it may be of.
    fn next_place(&self, text: &[u8], at: usize) -> Option<(usize, &[usize])> {
        let Some(search) = &self.search else { return self.next_beginning(text, at) };
        if at >= text.len() {
            return None;
        }
        if let Some(found) = search.find(Input::new(text).range(at..)) {
            return Some((found.start(), self.suspects.get(found.pattern().as_usize())?));
        }
        // The last few bytes are too few for a fingerprint, but not for the beginning of one.
        let searched = (text.len() + 1).saturating_sub(FINGERPRINT_BYTES);
        self.next_beginning(text, at.max(searched))
    }

    fn next_beginning(&self, text: &[u8], at: usize) -> Option<(usize, &[usize])> {
        let mut places = text.get(at..)?.iter().zip(at..);
        places.find_map(|(byte, place)| Some((place, self.beginnings.get(byte)?.as_slice())))
    }

    fn look(&self, text: &[u8], suspects: &[usize]) -> Seen {
        let mut seen = Seen::default();
        for form in suspects.iter().filter_map(|&number| self.forms.get(number)) {
            let this = form.look(text);
            seen.matched = seen.matched.max(this.matched);
            seen.partial |= this.partial;
        }
        seen
    }
}

/// Adds a number to a list that ends in it or in a smaller one.
fn add_once(numbers: &mut Vec<usize>, number: usize) {
    if numbers.last() != Some(&number) {
        numbers.push(number);
    }
}

/// Adds a range that begins no earlier than every one before it.
fn cover(covered: &mut Vec<Range<usize>>, range: Range<usize>) {
    match covered.last_mut() {
        _ if range.is_empty() => (),
        Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
        _ => covered.push(range),
    }
}

/// Overwrites the covered bytes from `begin` of a text of which `text` is what follows `begin`.
/// Returns how many there were.
pub(super) fn overwrite(text: &mut [u8], begin: usize, covered: &[Range<usize>]) -> u64 {
    let mut masked = 0;
    for range in covered {
        let from = range.start.saturating_sub(begin).min(text.len());
        let to = range.end.saturating_sub(begin).min(text.len());
        if let Some(secret) = text.get_mut(from..to) {
            secret.fill(MASK);
            masked += secret.len() as u64;
        }
    }
    masked
}

/// What stands in the place of every byte of a secret.
pub(super) const MASK: u8 = b'*';
