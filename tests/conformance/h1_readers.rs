//! Requests that servers are known to read in two ways. Each is tried as the first on a connection
//! and behind a good one, with a marked request behind it, all in one write. Whatever becomes of
//! the case, the marked request arrives only as itself: with an answer and a record of its own.
//!
//! Texts stand for bytes one by one: `\u{ff}` is the byte 0xff.

mod cases;
mod strict;

use std::{
    collections::BTreeSet,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use lab::{
    client::Tls,
    gateway::OPENAI_SECRET,
    net::{AGENT, OPENAI},
    sandbox::sandboxed_for,
};
use serde_json::Value;

use self::cases::{Case, Fate};
use crate::attack::{Before, Scene, local};

/// The request before a case, and the one behind it.
const FIRST: &str = "/v1/first";
const MARKED: &str = "/v1/marked";

/// Time for which an incomplete request must get no answer.
const SILENCE: Duration = Duration::from_millis(200);

/// Longest time of a group of cases on a busy machine.
const LIMIT: Duration = Duration::from_secs(300);

/// The request that an answer belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    First,
    Case,
    Marked,
    Refusal(u16, String),
}

impl Fate {
    /// Returns the answers that the agent gets, in order.
    fn answers(self) -> Vec<Answer> {
        let refusal = |status, reason: &str| Answer::Refusal(status, reason.to_owned());
        match self {
            Self::Refused(status, reason) => vec![refusal(status, reason)],
            Self::RefusedAlone(status, reason) => vec![refusal(status, reason), Answer::Marked],
            Self::Served => vec![Answer::Case, Answer::Marked],
            Self::Last => vec![Answer::Case],
            Self::RestRefused(status, reason) => vec![Answer::Case, refusal(status, reason)],
            Self::Cut(status, reason) => vec![refusal(status, reason)],
            Self::Waits => vec![],
        }
    }

    /// Returns the reason in the record of a request without an answer.
    fn unanswered(self) -> Option<&'static str> {
        (self == Self::Waits).then_some("http_malformed")
    }
}

fn request(path: &str, fields: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer OPENAI_API_KEY\r\n{fields}\r\n",
        OPENAI.name
    )
    .into_bytes()
}

/// Reads until the gateway ends the connection, or, where it waits, for a while after the expected
/// answers.
fn hear(tls: &mut Tls, fate: Fate, behind: bool) -> Vec<u8> {
    let mut heard = vec![];
    if fate == Fate::Waits {
        let first = format!("\"path\":\"{FIRST}\"}}");
        while behind && !String::from_utf8_lossy(&heard).ends_with(&first) {
            let more = tls.read_some(4096).expect("the first answer");
            assert!(!more.is_empty(), "ended after {}", heard.escape_ascii());
            heard.extend(more);
        }
        tls.socket().set_read_timeout(Some(SILENCE)).expect("a socket");
    }
    heard.extend(tls.read_to_end());
    heard
}

/// Returns the answers in `bytes`, without interim ones.
#[track_caller]
fn answers(what: &str, mut bytes: &[u8]) -> Vec<Answer> {
    let mut answers = vec![];
    while !bytes.is_empty() {
        let mut fields = [httparse::EMPTY_HEADER; 64];
        let mut head = httparse::Response::new(&mut fields);
        let text = String::from_utf8_lossy(bytes).into_owned();
        let Ok(httparse::Status::Complete(end)) = head.parse(bytes) else {
            panic!("{what}: no answer: {text}")
        };
        let status = head.code.expect("it is complete");
        bytes = &bytes[end..];
        if status < 200 {
            continue;
        }
        let length = head.headers.iter().find(|it| it.name.eq_ignore_ascii_case("content-length"));
        let length = length.and_then(|it| std::str::from_utf8(it.value).ok()?.parse().ok());
        let (body, rest) = bytes.split_at(length.unwrap_or_else(|| panic!("{what}: {text}")));
        bytes = rest;
        let said: Value = serde_json::from_slice(body).unwrap_or_else(|_| panic!("{what}: {text}"));
        answers.push(match (said["reason"].as_str(), said["path"].as_str()) {
            (Some(reason), _) => Answer::Refusal(status, reason.to_owned()),
            (None, Some(FIRST)) => Answer::First,
            (None, Some(MARKED)) => Answer::Marked,
            (None, Some(_)) => Answer::Case,
            (None, None) => panic!("{what}: neither echo nor refusal: {text}"),
        });
    }
    answers
}

/// Returns the requests that arrived since `before`, read by a reader that accepts only the forms
/// that it would write.
#[track_caller]
fn arrived(scene: &Scene, what: &str, before: Before, fate: Fate) -> Vec<Answer> {
    scene.origin.log().wait_all_closed();
    let mut arrived = vec![];
    for connection in scene.connections_since(before) {
        let requests = strict::requests(what, &connection.bytes);
        assert_eq!(requests.len(), connection.requests.len(), "{what}: {connection:#?}");
        let marked = requests.iter().filter(|it| it.target == MARKED).count();
        // Where its bytes are awaited as a body, they are one.
        let expected = if fate == Fate::Waits { connection.count(MARKED) } else { marked };
        assert_eq!(connection.count(MARKED), expected, "{what}: {connection:#?}");
        for request in requests {
            assert_eq!(request.head.matches(OPENAI_SECRET).count(), 1, "{what}: {}", request.head);
            arrived.push(match &*request.target {
                FIRST => Answer::First,
                MARKED => Answer::Marked,
                _ => Answer::Case,
            });
        }
    }
    arrived
}

#[track_caller]
fn try_one(scene: &Scene, case: &Case, behind: bool) {
    let what = format!("{:?}, {}", case.what, if behind { "behind another" } else { "alone" });
    let first = if behind { request(FIRST, "") } else { vec![] };
    let marked = request(MARKED, "Connection: close\r\n");
    let before = scene.before();
    let mut tls = scene.h1(AGENT, OPENAI.port(443), OPENAI.name);
    let me = local(&tls);
    tls.send([&first[..], &case.bytes, &marked].concat()).expect("sent");
    let heard = hear(&mut tls, case.fate, behind);
    drop(tls);
    let mut expected = case.fate.answers();
    if behind {
        expected.insert(0, Answer::First);
    }
    assert_eq!(answers(&what, &heard), expected, "{what}: {}", String::from_utf8_lossy(&heard));
    let mut reasons: Vec<_> = expected
        .iter()
        .map(|answer| match answer {
            Answer::Refusal(_, reason) => Some(&**reason),
            // The API returns the bytes that it received.
            _ => Some("response_masked"),
        })
        .collect();
    reasons.extend(case.fate.unanswered().map(Some));
    scene.recorded(&what, me, &reasons);
    expected.retain(|answer| !matches!(answer, Answer::Refusal(..)));
    assert_eq!(arrived(scene, &what, before, case.fate), expected, "{what}");
}

/// Tries each, and reports all that fail.
fn try_all(cases: Vec<Case>) {
    let scene = Scene::usual();
    let mut wrong = vec![];
    for case in &cases {
        for behind in [false, true] {
            let one = AssertUnwindSafe(|| try_one(&scene, case, behind));
            if let Err(panic) = catch_unwind(one) {
                let said = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                wrong.push(said);
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n----\n"));
    scene.ends_well();
}

#[test]
fn a_length_is_said_once_and_in_digits() {
    sandboxed_for(LIMIT, || try_all(cases::lengths()));
}

#[test]
fn a_coding_is_chunked_and_nothing_else() {
    sandboxed_for(LIMIT, || try_all(cases::codings()));
}

#[test]
fn a_chunk_has_one_reading() {
    sandboxed_for(LIMIT, || try_all(cases::chunks()));
}

#[test]
fn a_line_of_a_head_has_one_reading() {
    sandboxed_for(LIMIT, || try_all(cases::lines()));
}

#[test]
fn a_request_line_has_one_reading() {
    sandboxed_for(LIMIT, || try_all(cases::request_lines()));
}

#[test]
fn a_request_has_one_host_and_one_protocol() {
    sandboxed_for(LIMIT, || try_all(cases::hosts_and_options()));
}

#[test]
fn there_are_150_cases_and_no_two_are_alike() {
    let groups = [
        cases::lengths(),
        cases::codings(),
        cases::chunks(),
        cases::lines(),
        cases::request_lines(),
        cases::hosts_and_options(),
    ];
    let all: Vec<_> = groups.into_iter().flatten().collect();
    let mut different = BTreeSet::new();
    for case in &all {
        assert!(different.insert(&case.bytes), "twice: {:?}", case.what);
    }
    assert!(all.len() >= 150, "there are {}", all.len());
}
