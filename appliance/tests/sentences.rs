//! The sentences of documents, comments, help and messages are understood at first reading: each
//! has a subject, and some quaint phrases stand in none. Sources, scripts, units and configuration
//! are all read; generated inputs are not.

#![allow(clippy::expect_used, clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Words that begin no sentence. Headings are no sentences.
const NO_SUBJECTS: [&str; 3] = ["What ", "Who ", "Whose "];

const QUAINT: [&str; 3] = ["anew", "but for", "of so many"];

/// The folders that are read, below the repository's.
const FOLDERS: [&str; 7] = [".ci", "appliance", "benches", "docs", "image", "nft", "tests"];

const FILES: [&str; 7] = [
    "ARCHITECTURE.md",
    "Cargo.toml",
    "Makefile",
    "README.md",
    "Vagrantfile",
    "clippy.toml",
    "deny.toml",
];

/// This file names the phrases.
const OWN: &str = "appliance/tests/sentences.rs";

#[test]
fn each_sentence_has_a_subject_and_plain_words() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut files: Vec<PathBuf> = FILES.iter().map(|file| root.join(file)).collect();
    FOLDERS.iter().for_each(|folder| add(&root.join(folder), &mut files));
    let mut read = 0;
    let mut found = Vec::new();
    for file in files {
        let path = file.strip_prefix(&root).expect("below it").display().to_string();
        // A file that is no text has no sentences.
        let Ok(text) = fs::read_to_string(&file) else { continue };
        let of_file = prose(&path, &text);
        read += of_file.len();
        let bad = of_file.into_iter().filter(|(_, line)| is_quaint(line));
        found.extend(bad.map(|(number, line)| format!("{path}:{number}: {line}")));
    }
    assert!(read > 10_000, "{read} lines of prose were read");
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_sentence_to_be_mended_is_seen_everywhere() {
    for (path, line) in [
        ("docs/a.md", "It waits. What comes late is cut."),
        ("docs/a.md", "- Who asks: Whose name it is"),
        ("docs/a.md", "What comes late is cut."),
        ("docs/a.md", "All pass but for one."),
        ("a.rs", "    /// Who asks"),
        ("a.rs", "let a = 1; // It is made anew."),
        ("a.rs", "//! One of so many."),
        ("appliance/src/cli/a.rs", "after_help = \"Example\\n\\nWhat is printed\""),
        ("appliance/src/catalogue/clients/a.toml", "What is installed"),
        ("image/a.toml", "# What it is"),
        ("image/a.service", "Description=What is kept"),
        ("image/a", "    echo \"What is kept: $1\" >&2"),
        ("tests/a.py", "    \"\"\"What is sent.\"\"\""),
        ("appliance/src/vault/plan/a.rs", "text = \"# Whose tokens these are\";"),
        ("appliance/src/vault/plan/a.rs", "    # What is trusted, here:\\n\\"),
    ] {
        assert!(prose(path, line).iter().any(|(_, line)| is_quaint(line)), "{path}: {line}");
    }
}

#[test]
fn a_plain_sentence_or_a_heading_passes() {
    for (path, line) in [
        ("docs/a.md", "## What is supported"),
        ("docs/a.md", "It says what is cut, and who asks."),
        ("docs/a.md", "Of what comes, nothing but forms pass."),
        ("a.rs", "enum Who { What }"),
        ("a.rs", "let anew = \"anew\";"),
        ("image/a.toml", "anew = \"x\""),
        ("image/a", "what=\"$1\""),
        ("appliance/src/a.rs", "assert!(text.contains(\"## What is supported\"));"),
    ] {
        assert!(!prose(path, line).iter().any(|(_, line)| is_quaint(line)), "{path}: {line}");
    }
}

/// Returns the lines of prose with their numbers: all of a document and of the catalogue's notes,
/// and of everything else the comments and the texts in quotes. Of tests in Rust only the comments
/// are read, because the texts there are data.
fn prose<'a>(path: &str, text: &'a str) -> Vec<(usize, &'a str)> {
    let of_line: fn(&'a str) -> Vec<&'a str> = match path {
        _ if path.ends_with(".md") || path.contains("src/catalogue/") => |line| vec![line],
        _ if !path.ends_with(".rs") => |line| {
            let value = line.split_once('=').map(|(_, value)| value);
            comment(line, "#").into_iter().chain(value).chain(quoted(line)).collect()
        },
        _ if path.starts_with("appliance/src/") => {
            |line| comment(line, "//").into_iter().chain(quoted(line)).collect()
        }
        _ => |line| comment(line, "//").into_iter().collect(),
    };
    let numbered = text
        .lines()
        .enumerate()
        .flat_map(|(at, line)| of_line(line).into_iter().map(move |part| (at + 1, part.trim())));
    numbered.collect()
}

/// Returns the comment that a line ends with.
fn comment<'a>(line: &'a str, mark: &str) -> Option<&'a str> {
    line.split_once(mark).map(|(_, text)| text.trim_start_matches(['/', '!']))
}

/// Returns the pieces of a line between quotes and line ends. The first piece is code, or the rest
/// of a text that began on an earlier line.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    let is_code = |at: usize, piece: &str| at == 0 && piece.contains(['=', '(', '{', '[', ';']);
    let pieces = line.split(['"', '\'']).flat_map(|piece| piece.split("\\n")).enumerate();
    let texts =
        pieces.filter(move |(at, piece)| !is_code(*at, piece)).map(|(_, piece)| piece.trim());
    let sentences = texts.filter(|text| !text.starts_with("##"));
    sentences.map(|text| text.trim_start_matches("# "))
}

fn is_quaint(line: &str) -> bool {
    let line = line.trim_start_matches("- ");
    let begins = NO_SUBJECTS.iter().any(|word| {
        line.starts_with(word)
            || [". ", ": ", "; "].iter().any(|end| line.contains(&format!("{end}{word}")))
    });
    begins || QUAINT.iter().any(|phrase| has_words(line, phrase))
}

/// Returns whether the line holds these words whole.
fn has_words(line: &str, phrase: &str) -> bool {
    let is_edge = |byte: Option<u8>| !byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    line.match_indices(phrase).any(|(at, _)| {
        let bytes = line.as_bytes();
        let before = at.checked_sub(1).and_then(|at| bytes.get(at).copied());
        is_edge(before) && is_edge(bytes.get(at + phrase.len()).copied())
    })
}

/// Adds the documents and sources below a folder.
fn add(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        let (path, name) = (entry.path(), entry.file_name());
        let is_made = name == "target" || name == "node_modules" || name == "corpora";
        if entry.file_type().expect("a type").is_dir() {
            if !is_made {
                add(&path, files);
            }
        } else if !path.ends_with(OWN) {
            files.push(path);
        }
    }
}
