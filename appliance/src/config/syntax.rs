//! Error texts for a file that is no TOML, which say where the mistake began.

use super::error::{Span, quote};

/// The parser's message for a key that is there twice.
pub(super) const DUPLICATE: &str = "duplicate key";

/// Returns the parser's message about the bytes at `span`, with the place of its other end.
pub(super) fn in_words(text: &str, span: &Span, message: &str) -> String {
    if message == DUPLICATE {
        return duplicate(text, span);
    }
    match open_at(text, span.start) {
        Some(open) => {
            let what = if text.get(open..).is_some_and(|at| at.starts_with('[')) {
                "list"
            } else {
                "table"
            };
            let line = line_of(text, open);
            format!("{message}; the {what} that begins in line {line} has no end before this")
        }
        None => message.to_owned(),
    }
}

/// Returns the message about a repeated key, with the place where the key stands first: above it,
/// at most up to the head of its table.
fn duplicate(text: &str, span: &Span) -> String {
    let key = text.get(span.clone()).unwrap_or_default();
    let start = text.get(..span.start).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
    let above = text.get(..start).unwrap_or_default().lines().map(str::trim);
    let own = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default().trim();
    let mut above = above.enumerate().collect::<Vec<_>>().into_iter().rev();
    let first = if own.starts_with('[') {
        above.find(|(_, line)| head(line) == head(own))
    } else {
        let in_table = above.take_while(|(_, line)| !line.starts_with('['));
        let is_key = |line: &str| line.split_once('=').is_some_and(|(name, _)| name.trim() == key);
        in_table.into_iter().find(|(_, line)| is_key(line))
    };
    match first {
        Some((line, _)) => format!("{} is already in line {}", quote(key), line + 1),
        None => format!("{} is there already", quote(key)),
    }
}

fn head(line: &str) -> &str {
    line.split('#').next().unwrap_or_default().trim()
}

/// Returns where the outermost list or inline table begins that is still open at `end`.
fn open_at(text: &str, end: usize) -> Option<usize> {
    let mut open = Vec::new();
    let mut rest = text.get(..end)?;
    let mut at_key = true;
    while let Some(first) = rest.chars().next() {
        let at = end - rest.len();
        let taken = match first {
            '"' | '\'' => string(rest, first),
            '#' => rest.find('\n').unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        match first {
            '\n' => at_key = open.is_empty(),
            '=' => at_key = false,
            // Before a value, brackets belong to the head of a table.
            '[' | '{' if !at_key => open.push(at),
            ']' | '}' if !at_key => drop(open.pop()),
            _ => {}
        }
        rest = rest.get(taken..).unwrap_or_default();
    }
    open.first().copied()
}

/// Returns the bytes of the string at the beginning of `text`; all bytes where the string has no
/// end.
fn string(text: &str, quote: char) -> usize {
    let triple = quote.to_string().repeat(3);
    let end = if text.starts_with(&triple) { triple.as_str() } else { &triple[..1] };
    let mut at = end.len();
    while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
        let next = rest.chars().next().map_or(1, char::len_utf8);
        let escaped = quote == '"' && rest.starts_with('\\');
        match rest {
            _ if escaped => at += 1 + rest.chars().nth(1).map_or(0, char::len_utf8),
            _ if rest.starts_with(end) => return at + end.len(),
            // A line end ends every other string, even one without its closing quote.
            _ if end.len() == 1 && rest.starts_with('\n') => return at,
            _ => at += next,
        }
    }
    text.len()
}

fn line_of(text: &str, offset: usize) -> usize {
    text.get(..offset).unwrap_or(text).bytes().filter(|&byte| byte == b'\n').count() + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_brackets_are_found_behind_strings_and_comments() {
        for (text, open) in [
            ("a = [1,\n", Some(4)),
            ("a = [1]\n", None),
            ("[[api]]\n[a.b]\n", None),
            ("a = \"[\"\nb = \'[\'\n", None),
            ("a = \"\\\"[\"\n", None),
            ("# [\na = 1\n", None),
            ("a = \"\"\"\n[\n\"\"\"\n", None),
            ("a = [ # ]\n", Some(4)),
            ("a = { b = [1, {", Some(4)),
            ("a = \"x\nb = [\n", Some(11)),
            ("\u{e9} = [", Some(5)),
        ] {
            assert_eq!(open_at(text, text.len()), open, "{text:?}");
        }
    }

    #[test]
    fn the_first_of_two_keys_is_in_the_same_table() {
        let text = "[a]\nname = 1\n[b]\nx = 1\nname = 2\nname = 3\n[a]\n";
        let at = |word: &str| {
            let start = text.rfind(word).unwrap();
            duplicate(text, &(start..start + word.trim_end_matches(" = 3").len()))
        };
        assert_eq!(at("name = 3"), "\"name\" is already in line 5");
        let start = text.rfind("a]").unwrap();
        assert_eq!(duplicate(text, &(start..start + 1)), "\"a\" is already in line 1");
        assert_eq!(duplicate("a.b = 1\na = 2\n", &(8..9)), "\"a\" is there already");
    }
}
