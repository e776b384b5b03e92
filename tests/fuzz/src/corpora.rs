//! Runs the inputs that `make fuzz` found worth keeping, on any toolchain.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use super::{TARGETS, Target};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpora")
}

fn inputs(target: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder().join(target)).expect("each target has a corpus");
    entries.map(|entry| entry.expect("a folder that can be read").path()).collect()
}

#[test]
fn every_kept_input_keeps_every_invariant() {
    let all = TARGETS
        .iter()
        .flat_map(|(name, target)| inputs(name).into_iter().map(move |it| (it, target)));
    let breaks = |(path, target): &(PathBuf, &Target)| {
        let bytes = fs::read(path).expect("a file");
        std::panic::catch_unwind(|| target(&bytes)).is_err()
    };
    let broken: Vec<_> = all.filter(breaks).map(|(path, _)| path).collect();
    assert!(broken.is_empty(), "{broken:#?} break invariants, see above");
}

#[test]
fn every_corpus_has_a_target_and_is_small() {
    let targets: BTreeSet<_> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let folders = fs::read_dir(folder()).expect("the corpora");
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let found: BTreeSet<_> = folders.map(|entry| name(entry.expect("an entry"))).collect();
    assert_eq!(found, targets);
    for target in targets {
        let sizes =
            inputs(&target).into_iter().map(|path| fs::metadata(path).expect("a file").len());
        let sizes: Vec<_> = sizes.collect();
        assert!((1..=MOST_INPUTS).contains(&sizes.len()), "{target} has {} inputs", sizes.len());
        assert!(sizes.iter().sum::<u64>() <= MOST_BYTES, "{target} has {sizes:?} bytes");
    }
}

/// Most inputs of one target, so that running all takes seconds.
const MOST_INPUTS: usize = 100;
const MOST_BYTES: u64 = 128 * 1024;
