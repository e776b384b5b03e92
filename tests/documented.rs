//! What the documentation says about the tests is true of them.

use std::{fs, path::Path};

use lab::tools;

#[test]
fn every_test_that_the_readme_names_exists() {
    let tests = tools::repository().join("tests");
    let readme = fs::read_to_string(tests.join("README.md")).expect("tests/README.md");
    let is_name = |text: &&str| {
        let lower = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b':' | b'*');
        text.contains("::") && text.bytes().all(lower)
    };
    let named = readme.split('`').skip(1).step_by(2).filter(is_name);
    let missing: Vec<&str> = named.filter(|name| !exists(&tests, name)).collect();
    assert!(missing.is_empty(), "tests/README.md names what does not exist: {missing:?}");
}

/// Whether `module::...::name` is a test function, or `module::...::*` a module with some.
fn exists(tests: &Path, name: &str) -> bool {
    let mut parts: Vec<&str> = name.split("::").collect();
    let Some(function) = parts.pop() else { return false };
    let mut file = tests.to_owned();
    file.extend(&parts);
    let sources = [file.with_extension("rs"), file.join("mod.rs")];
    let wanted = match function {
        "*" => "#[test]".to_owned(),
        _ => format!("\nfn {function}()"),
    };
    let holds = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.contains(&wanted));
    sources.iter().any(|path| holds(path)) || (function == "*" && file.is_dir())
}
