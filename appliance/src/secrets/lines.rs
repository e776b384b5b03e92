//! The lines of a file of secrets, and the reasons why such a file is not used. Pure.

use std::collections::HashSet;

use super::PrivateFileError;

/// The reasons why a file of secrets is not used. Carries no part of its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub enum FileError {
    /// The file cannot be read, or others can read it.
    #[error(transparent)]
    File(PrivateFileError),
    /// The file of its key cannot be read, or others can read it.
    #[error("its key_file: {0}")]
    Key(PrivateFileError),
    /// The file of its key holds no key.
    NoKey,
    /// It has a key and is not encrypted.
    Plain,
    /// It is encrypted and has no key.
    Sealed,
    /// It was encrypted with another key, or altered, or cut.
    NotOpened,
    /// A line is not `name = value`. Counted from 1.
    #[error("line {0}: {1}")]
    Line(usize, &'static str),
}

impl FileError {
    /// Returns the fault, without the path and the line.
    pub const fn text(self) -> &'static str {
        match self {
            Self::File(error) => error.text(),
            Self::Key(_) => "its key_file cannot be used",
            Self::NoKey => "its key_file holds no key; `cloakroom secret init` makes one",
            Self::Plain => "it is not encrypted, and key_file says that it is",
            Self::Sealed => "it is encrypted; name the file of its key in key_file",
            Self::NotOpened => "it was encrypted with another key, or altered",
            Self::Line(_, what) => what,
        }
    }
}

/// A name and its value.
pub(super) type SecretLine<'a> = (&'a [u8], &'a [u8]);

/// The number of a line, counted from 1, and its fault.
pub(super) type WrongLine = (usize, &'static str);

/// The content of a file's lines.
pub(super) struct Lines<'a> {
    pub(super) entries: Vec<SecretLine<'a>>,
    pub(super) wrong: Vec<WrongLine>,
}

/// Returns the entries of a whole file without a fault.
pub(super) fn parse(content: &[u8]) -> Result<Vec<SecretLine<'_>>, FileError> {
    let Lines { entries, wrong } = read_lines(content);
    wrong.first().map_or(Ok(entries), |(line, what)| Err(FileError::Line(*line, what)))
}

/// Reads all lines of a file.
pub(super) fn read_lines(content: &[u8]) -> Lines<'_> {
    let content = content.strip_prefix(BYTE_ORDER_MARK).unwrap_or(content);
    let (mut entries, mut wrong): (Vec<SecretLine<'_>>, Vec<WrongLine>) = Default::default();
    let (mut names, mut twice): (HashSet<&[u8]>, HashSet<&[u8]>) = Default::default();
    for (index, line) in content.split(|byte| *byte == b'\n').enumerate() {
        let line = line.strip_suffix(b"\r").unwrap_or(line).trim_ascii();
        if line.is_empty() || line.starts_with(b"#") {
            continue;
        }
        match parse_line(line) {
            Err(what) => wrong.push((index + 1, what)),
            Ok((name, _)) if !names.insert(name) => {
                twice.insert(name);
                wrong.push((index + 1, "this name stands on an earlier line too: keep one"));
            }
            Ok(_) if entries.len() == MAX_ENTRIES => {
                wrong.push((index + 1, "more than 10000 secrets"));
            }
            Ok(entry) => entries.push(entry),
        }
    }
    // Nothing says which of two values is meant.
    entries.retain(|(name, _)| !twice.contains(name));
    Lines { entries, wrong }
}

/// Reads the entry of one line, without the space around it.
pub(super) fn parse_line(line: &[u8]) -> Result<SecretLine<'_>, &'static str> {
    let at = line.iter().position(|byte| *byte == b'=').ok_or("expected NAME = VALUE")?;
    let (name, rest) = line.split_at(at);
    let name = name.trim_ascii();
    if name.strip_prefix(b"export").is_some_and(|rest| rest.starts_with(b" ")) {
        return Err("this is a line of a shell: write NAME = VALUE, without `export`");
    }
    let value = rest.strip_prefix(b"=").unwrap_or(rest).trim_ascii();
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.iter().all(is_name_byte) {
        return Err("the name is not 1 to 64 bytes of A-Z, a-z, 0-9, '_', '.' and '-'");
    }
    if value.is_empty() {
        return Err("the value is empty");
    }
    match value {
        [first @ (b'"' | b'\''), .., last] if first == last => {
            Err("the value is in quotes; write it without them")
        }
        _ => Ok((name, value)),
    }
}

fn is_name_byte(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-')
}

/// Most bytes of all lines.
pub(super) const MAX_BYTES: usize = 1024 * 1024;

/// The bytes that some editors write before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

const MAX_NAME_BYTES: usize = 64;

const MAX_ENTRIES: usize = 10_000;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> Result<Vec<(String, String)>, FileError> {
        let text_of = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        parse(text.as_bytes())
            .map(|all| all.iter().map(|(name, value)| (text_of(name), text_of(value))).collect())
    }

    fn line_of(text: &str) -> Option<usize> {
        match parsed(text) {
            Err(FileError::Line(line, _)) => Some(line),
            _ => None,
        }
    }

    #[test]
    fn a_line_is_a_name_equals_sign_and_value() {
        let text = "# keys\n\nopenai = sk-a=b#c==\r\n  git.hub-1=\tghp_x  \n#end";
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let wanted = vec![pair("openai", "sk-a=b#c=="), pair("git.hub-1", "ghp_x")];
        assert_eq!(parsed(text), Ok(wanted));
        assert_eq!(parsed(""), Ok(vec![]));
    }

    #[test]
    fn an_editor_is_told_the_first_wrong_line() {
        assert_eq!(line_of("a = 1\nsk-live-0123456789\n"), Some(2));
        assert_eq!(line_of("a = 1\n\na = 2"), Some(3));
        assert_eq!(line_of("a b = 1"), Some(1));
        assert_eq!(line_of("= 1"), Some(1));
        assert_eq!(line_of("a ="), Some(1));
        assert_eq!(line_of("a = \"quoted\""), Some(1));
        assert_eq!(line_of(&format!("{} = 1", "a".repeat(65))), Some(1));
    }

    #[test]
    fn a_wrong_line_is_named_and_hides_no_other() {
        let text =
            "\u{feff}first = 1\nexport second = 2\nthird 3\nfourth = 4\nfifth = 5\nfifth = 6\n";
        let Lines { entries, wrong } = read_lines(text.as_bytes());
        let names: Vec<_> = entries.iter().map(|(name, _)| str::from_utf8(name).unwrap()).collect();
        assert_eq!(names, ["first", "fourth"]);
        let lines: Vec<_> = wrong.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 3, 6]);
        assert!(wrong[0].1.contains("without `export`"), "{wrong:?}");
    }

    #[test]
    fn an_error_never_repeats_what_the_file_says() {
        for text in
            ["sk-live-0123456789", "sk live = sk-live-1", "a = 'sk-live-1'", "sk-live=1\nsk-live=2"]
        {
            let error = parsed(text).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("live"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_to_clean_entries_or_to_an_error(bytes: Vec<u8>) {
            for (name, value) in parse(&bytes).unwrap_or_default() {
                prop_assert!(!name.is_empty() && name.iter().all(is_name_byte));
                prop_assert!(!value.is_empty() && value.trim_ascii() == value);
            }
        }
    }
}
