//! Independent tests of protocols, run through the gateway: every known way to make two readers of
//! HTTP/1 see two messages in one, and the suites by which servers are measured.

mod autobahn;
mod h1_readers;
mod h2spec;

use std::{collections::BTreeMap, path::PathBuf, process::Command, time::Duration};

use lab::tools;

/// The outcome of each case, by its name.
type Outcomes = BTreeMap<String, String>;

/// A case that has another outcome through the gateway than without it, and the reason: its name,
/// or the beginning of it before a `*`, and the outcomes without the gateway and through it.
struct Meant {
    case: &'static str,
    without: &'static str,
    through: &'static str,
    why: &'static str,
}

impl Meant {
    fn is(&self, case: &str) -> bool {
        match self.case.strip_suffix('*') {
            Some(begin) => case.starts_with(begin),
            None => case == self.case,
        }
    }
}

/// Longest time of one suite, which runs twice.
const LIMIT: Duration = Duration::from_secs(900);

/// Returns a program that tests/conformance/get has made.
fn suite(program: &str) -> PathBuf {
    let path = tools::cache().join("conformance").join(program);
    assert!(path.is_file(), "{} is missing: run tests/conformance/get", path.display());
    path
}

/// Returns whether to run all cases, as `make test-conformance` does, or those of a minute.
fn whole() -> bool {
    std::env::var_os("CLOAKROOM_CONFORMANCE").is_some_and(|it| it == "whole")
}

/// Returns a suite's output, whatever its verdict.
#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command.output().expect("the suite starts");
    let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!stdout.is_empty(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    stdout
}

/// Checks that every case has the same outcome through the gateway as without it, except for those
/// that are meant to differ, each of which does.
#[track_caller]
fn compare(without: &Outcomes, through: &Outcomes, meant: &[Meant]) {
    assert!(without.keys().eq(through.keys()), "{without:#?} {through:#?}");
    let mut wrong = vec![];
    let mut differ = vec![];
    for (case, before) in without {
        let after = &through[case];
        let found = meant.iter().position(|it| it.is(case));
        let expected = found.map(|at| &meant[at]);
        let fits = match expected {
            Some(it) if after != before => {
                differ.push(found);
                before == it.without && after == it.through
            }
            // One name may cover many cases, some of which do not differ.
            Some(it) => it.case.ends_with('*'),
            None => after == before,
        };
        if !fits {
            wrong.push(format!("{case}: {before} without, {after} through the gateway"));
        }
    }
    for (at, it) in meant.iter().enumerate() {
        let tried = without.keys().any(|case| it.is(case));
        if tried && !differ.contains(&Some(at)) {
            wrong.push(format!("{} does not differ: {}", it.case, it.why));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
