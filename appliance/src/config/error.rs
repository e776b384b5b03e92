//! The mistakes of a file: all of them at once, each with its line.

use std::{cell::RefCell, ops::Range};

use thiserror::Error;

/// All mistakes of one file, in the order of its lines. Never empty. As text: one mistake a line,
/// then their number.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", self.text())]
pub struct Errors {
    file: String,
    mistakes: Vec<Mistake>,
}

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mistake {
    /// Line, from 1; 0 where the mistake is about the file as a whole.
    pub line: usize,
    /// Column in characters, from 1; 0 where the mistake is about the file as a whole.
    pub column: usize,
    /// The mistake and its remedy. Holds no secret.
    pub text: String,
}

impl Errors {
    /// Creates the errors of a file that cannot be read at all, which are one mistake.
    pub(super) fn whole_file(file: &str, text: String) -> Self {
        Self { file: file.into(), mistakes: vec![Mistake { line: 0, column: 0, text }] }
    }

    /// Returns the mistakes, in the order of their lines.
    pub fn mistakes(&self) -> &[Mistake] {
        &self.mistakes
    }

    fn text(&self) -> String {
        let line_of = |Mistake { line, column, text }: &Mistake| match line {
            0 => format!("{}: {text}\n", self.file),
            _ => format!("{}:{line}:{column}: {text}\n", self.file),
        };
        let lines: String = self.mistakes.iter().map(line_of).collect();
        match self.mistakes.len() {
            1 => format!("{lines}{}: 1 error", self.file),
            count => format!("{lines}{}: {count} errors", self.file),
        }
    }
}

/// The place of bytes in the file.
pub(super) type Span = Range<usize>;

/// Collects mistakes while a file is read.
pub(super) struct Report<'a> {
    text: &'a str,
    /// Where each line except the first begins.
    line_starts: Vec<usize>,
    mistakes: RefCell<Vec<Mistake>>,
}

impl<'a> Report<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        let line_starts = text.match_indices('\n').map(|(at, _)| at + 1).collect();
        Self { text, line_starts, mistakes: RefCell::default() }
    }

    /// Notes a mistake at the bytes `span`.
    pub(super) fn add(&self, span: &Span, text: impl Into<String>) {
        let (line, column) = self.position(span.start);
        self.mistakes.borrow_mut().push(Mistake { line, column, text: text.into() });
    }

    /// Returns the line, from 1, on which `span` begins.
    pub(super) fn line(&self, span: &Span) -> usize {
        self.position(span.start).0
    }

    /// Returns the mistakes, if there are any.
    pub(super) fn into_errors(self, file: &str) -> Option<Errors> {
        let mut mistakes = self.mistakes.into_inner();
        mistakes.sort();
        mistakes.dedup();
        (!mistakes.is_empty()).then(|| Errors { file: file.into(), mistakes })
    }

    fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let ended = self.line_starts.partition_point(|start| *start <= before.len());
        let above = ended.checked_sub(1).and_then(|last| self.line_starts.get(last));
        let own = before.get(above.copied().unwrap_or_default()..).unwrap_or_default();
        (ended + 1, own.chars().count() + 1)
    }
}

/// Formats offending text for an error: quoted, escaped, and cut where it is long.
pub(super) fn quote(text: &str) -> String {
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((end, _)) => format!("{:?}...", text.get(..end).unwrap_or_default()),
        None => format!("{text:?}"),
    }
}

/// Returns the word of `known` that `word` was probably meant to be.
pub(crate) fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    let bound = (word.chars().count() / 2).clamp(1, 3);
    let distances = known.into_iter().map(|other| (distance(word, other), other));
    distances.filter(|&(distance, _)| distance <= bound).min().map(|(_, other)| other)
}

/// Returns how many letters must be inserted, removed or replaced; two swapped neighbours count as
/// two.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (above, from) in a.chars().enumerate() {
        let mut next = vec![above + 1];
        let mut left = above + 1;
        for ((diagonal, up), to) in row.iter().zip(row.iter().skip(1)).zip(&b) {
            left = (diagonal + usize::from(from != *to)).min(up + 1).min(left + 1);
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

const MAX_QUOTED_CHARS: usize = 80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_counts_lines_and_characters() {
        let report = Report::new("a\n\u{e9}b\r\nc");
        assert_eq!(report.position(0), (1, 1));
        assert_eq!(report.position(2), (2, 1));
        assert_eq!(report.position(4), (2, 2));
        assert_eq!(report.position(7), (3, 1));
        assert_eq!(report.position(99), (3, 2));
    }

    #[test]
    fn the_nearest_word_is_near() {
        assert_eq!(nearest("placeholdr", ["places", "placeholder"]), Some("placeholder"));
        assert_eq!(nearest("prot", ["port", "name"]), Some("port"));
        assert_eq!(nearest("zzz", ["port"]), None);
    }

    #[test]
    fn long_text_is_cut_between_characters() {
        let cut = quote(&"\u{e9}".repeat(500));
        assert!(cut.ends_with("...") && cut.chars().count() < 100, "{cut}");
    }
}
