//! The modules have an order, that of `lib.rs`: a module uses only modules that stand below it.
//! Inside a folder no order is written down, but its files form no circle.
//!
//! Both are checked in the sources: `use` lines, and paths in code that begin with `crate`, `super`
//! or a child module. Code for tests may use any module.
//!
//! The floor plan in `ARCHITECTURE.md` has a row for each module, in that order, and its glossary is
//! short.
//!
//! The name of a test, anywhere in the repository, is a sentence of at most ten words.

#![allow(clippy::expect_used, clippy::panic)]

mod floor_plan {
    pub(crate) mod crate_map;
    pub(crate) mod graph;
    pub(crate) mod paths;
}

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use floor_plan::{crate_map::CrateMap, graph};

#[test]
fn a_module_takes_only_from_modules_below_it() {
    assert_eq!(upward(&CrateMap::read(&sources())), BTreeSet::new());
}

#[test]
fn the_files_of_a_folder_form_no_circle() {
    assert_eq!(circles(&CrateMap::read(&sources())), BTreeSet::new());
}

#[test]
fn an_edge_upwards_is_seen_however_it_is_written() {
    for planted in [
        "use crate::top::Thing;",
        "use crate::{bottom, top};",
        "use crate::{top::{self as up, Thing}, bottom::*};",
        "pub(crate) use super::super::top::Thing;",
        "fn f() { let _ = crate::top::thing(); }",
        "fn f() { vec![1, super::super::top::ONE]; }",
        "mod inner { fn f(_: super::super::super::top::Thing) {} }",
        "#[cfg(not(test))] use crate::top::Thing;",
    ] {
        let map = CrateMap::read(&house(planted));
        let expected = BTreeSet::from([edge("bottom/left.rs", "top")]);
        assert_eq!(upward(&map), expected, "{planted}");
    }
}

#[test]
fn a_path_that_is_no_edge_upwards_is_none() {
    for planted in [
        "use std::top::Thing;",
        "// use crate::top::Thing;",
        "const TEXT: &str = \"use crate::top::Thing;\";",
        "use crate::bottom::right::Thing;",
        "#[cfg(test)] use crate::top::Thing;",
        "#[cfg(test)] mod tests { use crate::top::Thing; }",
        "#[cfg(test)] fn f() -> crate::top::Thing { crate::top::thing() } fn g() {}",
    ] {
        let map = CrateMap::read(&house(planted));
        assert_eq!(upward(&map), BTreeSet::new(), "{planted}");
    }
}

#[test]
fn a_circle_of_files_is_seen_however_it_is_written() {
    for (planted, files) in [
        ("use super::right::Right;", ["left", "right"]),
        ("use crate::bottom::right;", ["left", "right"]),
        ("use super::Right;", ["left", "right"]),
        ("use crate::bottom::Right as Other;", ["left", "right"]),
        ("fn f() { super::right::right(); }", ["left", "right"]),
        ("use super::floor;", ["left", "mod"]),
    ] {
        let map = CrateMap::read(&house(planted));
        let found = circles(&map);
        let files: BTreeSet<String> = files.map(str::to_owned).into();
        let seen = |line: &String| files.iter().all(|file| line.contains(file.as_str()));
        assert!(found.len() == 1 && found.iter().all(seen), "{planted}: {found:?}");
    }
    assert_eq!(circles(&CrateMap::read(&house(""))), BTreeSet::new());
}

#[test]
fn the_floor_plan_has_the_modules_in_their_order() {
    let rooms = first_cells("## The floor plan");
    let rooms: Vec<&str> = rooms
        .iter()
        .map(|cell| cell.trim_matches('`').trim_end_matches('/').trim_end_matches(".rs"))
        .collect();
    let map = CrateMap::read(&sources());
    let modules: Vec<&String> = map.order().iter().filter(|module| *module != OF_TESTS).collect();
    assert_eq!(rooms, modules);
}

#[test]
fn the_glossary_has_at_most_forty_terms() {
    let terms = first_cells("## Glossary");
    assert!((20..=MOST_TERMS).contains(&terms.len()), "{} terms: {terms:?}", terms.len());
}

/// Returns the first cell of each row of the table below this heading of `ARCHITECTURE.md`.
fn first_cells(heading: &str) -> Vec<String> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ARCHITECTURE.md");
    let text = fs::read_to_string(page).expect("a page");
    let (_, below) = text.split_once(&format!("\n{heading}\n")).expect("the heading");
    let section = below.split("\n## ").next().unwrap_or_default();
    let cells = section.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    cells.skip(1).map(str::to_owned).collect()
}

#[test]
fn no_two_modules_have_a_type_of_one_name() {
    let mut twice = types_of_one_name(&sources());
    for (name, why) in SHARED_NAMES {
        assert!(twice.remove(name).is_some(), "{name} is in one module alone: {why}");
    }
    assert!(twice.is_empty(), "{twice:#?}");
}

#[test]
fn a_type_of_one_name_is_seen_outside_tests() {
    let house = |left: &str| {
        [("left.rs", left), ("right.rs", "pub struct Thing;"), ("left/tests.rs", "enum Thing {}")]
            .map(|(file, text)| (PathBuf::from(file), text.to_owned()))
            .into()
    };
    for planted in ["struct Thing;", "pub(in crate::top) enum Thing {", "type Thing<'a> = &'a str;"]
    {
        let found = types_of_one_name(&house(planted));
        assert_eq!(found.into_keys().collect::<Vec<_>>(), ["Thing"], "{planted}");
    }
    for planted in ["    type Thing = u8;", "#[cfg(test)]\nmod tests {\nstruct Thing;", ""] {
        assert!(types_of_one_name(&house(planted)).is_empty(), "{planted}");
    }
}

/// Returns the types that files of the product define under one name, with the files. An associated
/// type is indented, and its trait names it.
fn types_of_one_name(sources: &BTreeMap<PathBuf, String>) -> BTreeMap<String, BTreeSet<String>> {
    let of_tests = |path: &Path| {
        path.iter().any(|part| ["tests", "tests.rs", "kernel_tests"].iter().any(|it| part == *it))
    };
    let mut defined: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in sources.iter().filter(|(path, _)| !of_tests(path)) {
        let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for name in product.lines().filter_map(type_of) {
            defined.entry(name).or_default().insert(path.display().to_string());
        }
    }
    defined.retain(|_, files| files.len() > 1);
    defined
}

/// Returns the name of the type that this line begins to define.
fn type_of(line: &str) -> Option<String> {
    let mut words =
        line.split(' ').skip_while(|word| word.starts_with("pub") || word.ends_with(')'));
    let kind = words.next()?;
    ["struct", "enum", "trait", "type", "union"].contains(&kind).then_some(())?;
    let name = words.next()?.split(|letter: char| !letter.is_alphanumeric()).next()?;
    Some(name.to_owned())
}

#[test]
fn a_tests_name_has_at_most_ten_words() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let folders = ["appliance", "tests", "benches"].map(|folder| read(&root.join(folder)));
    let tests: Vec<String> =
        folders.iter().flat_map(BTreeMap::values).flat_map(|it| tests(it)).collect();
    assert!(tests.len() > 1_000, "{} tests were found", tests.len());
    let long: Vec<_> = tests.iter().filter(|name| words(name) > MOST_WORDS).collect();
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn a_test_is_found_however_it_is_written() {
    for planted in [
        "#[test]\nfn it_works() {",
        "    #[test]\n    #[ignore]\n    pub fn it_works() {",
        "#[tokio::test(start_paused = true)]\nasync fn it_works() {",
    ] {
        assert_eq!(tests(planted), ["it_works"], "{planted}");
    }
    assert_eq!(tests("fn it_works() {"), [""; 0]);
}

/// Names of several types, each with the reason.
const SHARED_NAMES: [(&str, &str); 3] = [
    ("Asked", "what a WebSocket's handshake asks, and what a command line asks: no file has both"),
    ("Inner", "the private state behind a handle, each in the file of its handle"),
    ("Vectors", "one type, of machines with vector instructions and of those without"),
];

const MOST_WORDS: usize = 10;

const MOST_TERMS: usize = 40;

/// The module of `lib.rs` that is no room: it holds tests alone.
const OF_TESTS: &str = "documented";

fn words(name: &str) -> usize {
    name.split('_').count()
}

/// Returns the names of the tests in a source.
fn tests(source: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut lines = source.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            let name = |line: &str| Some(line.split_once("fn ")?.1.split_once('(')?.0.to_owned());
            names.extend(lines.by_ref().find(|line| !line.starts_with("#[")).and_then(name));
        }
    }
    names
}

/// Returns a crate of two modules. `bottom/right.rs` uses `bottom/left.rs`, which begins as `left`.
fn house(left: &str) -> BTreeMap<PathBuf, String> {
    [
        ("lib.rs", "pub mod top; pub mod bottom;"),
        ("top.rs", "use crate::bottom::Left;"),
        (
            "bottom/mod.rs",
            "mod left; mod right; pub use {left::Left, right::Right}; fn floor() { left::go(); }",
        ),
        ("bottom/left.rs", left),
        ("bottom/right.rs", "use super::left::Left;"),
    ]
    .map(|(file, text)| (PathBuf::from(file), text.to_owned()))
    .into()
}

/// Returns every file that uses a module above its own, with that module.
fn upward(map: &CrateMap) -> BTreeSet<String> {
    let floor = |module: &str| map.order().iter().position(|listed| listed == module);
    let above = |(file, own, taken): (String, String, String)| {
        (floor(&taken) < floor(&own)).then(|| edge(&file, &taken))
    };
    map.top_edges().into_iter().filter_map(above).collect()
}

/// Returns every set of files of one folder that use each other in a circle.
fn circles(map: &CrateMap) -> BTreeSet<String> {
    let of_folder = |(folder, edges): (String, graph::Edges)| {
        graph::circles(&edges).into_iter().map(move |files| {
            circle(&folder, &files.iter().map(String::as_str).collect::<Vec<_>>())
        })
    };
    map.folder_edges().into_iter().flat_map(of_folder).collect()
}

fn edge(file: &str, module: &str) -> String {
    format!("{file} takes from {module}")
}

fn circle(folder: &str, files: &[&str]) -> String {
    format!("{folder}: {}", files.join(" "))
}

/// Returns the sources of the crate, by their path below `src`.
fn sources() -> BTreeMap<PathBuf, String> {
    read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"))
}

/// Returns the sources of a folder, by their path below it.
fn read(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut sources = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of sources") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source");
                sources.insert(path.strip_prefix(root).expect("below it").into(), text);
            }
        }
    }
    sources
}
