//! Hosts whose answers a test has written as files: one folder of [`ROOT`] for each host.
//!
//! | file | meaning |
//! |---|---|
//! | `PATH`, or `PATH/index.*` where that is a folder | the body |
//! | the same with `.head` behind it | fields of its head, and its status |
//! | `.unauthorized` of a host | the challenge for requests without a bearer token |
//!
//! Of github.com git itself answers what is no file.

use std::{
    fs,
    path::{Component, Path, PathBuf},
};

use http::{HeaderName, HeaderValue, StatusCode, header};

use super::{
    answer::{Answer, text, whole},
    git,
    record::Received,
};

/// The folder of all sites.
const ROOT: &str = "/run/lab/www";

/// Returns the answer, if the host is one of these.
pub(super) fn answer(request: &Received) -> Option<Answer> {
    let authority = request.authority();
    let host = authority.split(':').next().filter(|host| is_plain(host))?;
    let site = Path::new(ROOT).join(host);
    if !site.is_dir() {
        return None;
    }
    let has_token =
        || request.header("authorization").iter().any(|value| value.starts_with("Bearer "));
    if let Ok(challenge) = fs::read_to_string(site.join(".unauthorized"))
        && !has_token()
    {
        let mut answer = with_status(StatusCode::UNAUTHORIZED);
        set(&mut answer, header::WWW_AUTHENTICATE, &challenge);
        return Some(answer);
    }
    let path = request.uri.path();
    let found = file(&site, path).and_then(|file| Some((fs::read(&file).ok()?, file)));
    let Some((body, file)) = found else {
        let is_git = host == "github.com" && path.contains(".git/");
        return Some(
            is_git
                .then(|| git::backend(request).ok())
                .flatten()
                .unwrap_or_else(|| with_status(StatusCode::NOT_FOUND)),
        );
    };
    let mut answer = whole("application/octet-stream", body);
    let head = fs::read_to_string(beside(&file)).unwrap_or_default();
    for (name, value) in head.lines().filter_map(|line| line.split_once(": ")) {
        match name.parse::<HeaderName>() {
            Ok(name) if name == "status" => {
                *answer.status_mut() = value.parse().expect("a status");
            }
            name => set(&mut answer, name.expect("a field's name"), value),
        }
    }
    Some(answer)
}

/// Returns the file of a path below the site, if there is one.
fn file(site: &Path, path: &str) -> Option<PathBuf> {
    let below = Path::new(path.trim_start_matches('/'));
    if !below.components().all(|part| matches!(part, Component::Normal(_))) {
        return None;
    }
    let file = site.join(below);
    let indexes = ["index.html", "index.json"].map(|index| file.join(index));
    [file.clone()].into_iter().chain(indexes).find(|file| file.is_file())
}

fn beside(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".head");
    name.into()
}

fn is_plain(host: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    host.starts_with(|first: char| first.is_ascii_alphanumeric()) && host.bytes().all(plain)
}

fn with_status(status: StatusCode) -> Answer {
    let mut answer = text(status.as_str().to_owned());
    *answer.status_mut() = status;
    answer
}

fn set(answer: &mut Answer, name: HeaderName, value: &str) {
    answer.headers_mut().insert(name, HeaderValue::from_str(value).expect("a field's value"));
}
