use std::sync::Arc;

use hickory_resolver::proto::op::{MessageType, Query};
use policy_builder::{Config, group, splice};
use proptest::prelude::*;

use super::*;
use crate::config;

fn policy() -> Policy {
    let file = Config::of_rules()
        .with(group("red", "a0", &["192.0.2.0/25"]))
        .with(group("blue", "b0", &["192.0.2.128/25"]))
        .with(splice("pypi", &["red"], &["pypi.example", "*.cdn.example"]));
    config::testing::policy(&file)
}

fn asked_by(group: &str, query: &[u8], datagram: bool) -> QueryVerdict {
    let policy = policy();
    let group = policy.groups.iter().find(|one| one.name.as_str() == group).unwrap();
    answer(Asker { policy: &policy, group, ipv6: true, datagram }, query)
}

fn ask(query: &[u8]) -> QueryVerdict {
    asked_by("red", query, true)
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0xbeef, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn with_edns(mut message: Message, payload: u16) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload);
    message.set_edns(edns);
    message
}

fn bytes(name: &str, kind: RecordType) -> Vec<u8> {
    query(name, kind).to_vec().unwrap()
}

fn at_once(verdict: QueryVerdict) -> (Message, Option<RefusedQuery>) {
    match verdict {
        QueryVerdict::Answered(reply) => (Message::from_vec(&reply.bytes).unwrap(), reply.refused),
        other => panic!("{other:?}"),
    }
}

fn to_resolve(verdict: QueryVerdict) -> DnsQuestion {
    match verdict {
        QueryVerdict::Resolve(question) => *question,
        other => panic!("{other:?}"),
    }
}

fn code(query: &[u8]) -> ResponseCode {
    at_once(ask(query)).0.metadata.response_code
}

fn found(addresses: &[&str], seconds: u64) -> (Result<Resolved, Unresolved>, Instant) {
    let now = Instant::now();
    let addresses: Arc<[IpAddr]> = addresses.iter().map(|text| text.parse().unwrap()).collect();
    (Ok(Resolved { addresses, until: now + Duration::from_secs(seconds) }), now)
}

#[test]
fn a_listed_name_is_resolved_for_its_group() {
    for name in ["pypi.example.", "PyPI.Example.", "a.b.cdn.example."] {
        let question = to_resolve(ask(&bytes(name, RecordType::A)));
        assert_eq!(question.host().as_str(), name.trim_end_matches('.').to_lowercase());
    }
    let (answer, _) = at_once(asked_by("blue", &bytes("pypi.example.", RecordType::A), true));
    assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
}

#[test]
fn every_other_name_does_not_exist_and_says_blocked() {
    let odd = r"a\.pypi.example.";
    for name in ["evil.example.", "cdn.example.", "xpypi.example.", ".", odd, "pypi.example.evil."]
    {
        for kind in [RecordType::A, RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB] {
            let plain = query(name, kind);
            let (answer, refused) = at_once(ask(&plain.to_vec().unwrap()));
            assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain, "{name} {kind}");
            assert!(answer.edns.is_none() && answer.answers.is_empty());
            assert_eq!(refused.unwrap().reason, Reason::DnsDenied);
            let (answer, _) = at_once(ask(&with_edns(plain, 1232).to_vec().unwrap()));
            let edns = answer.edns.unwrap();
            let error = edns.option(EXTENDED_ERROR.into());
            assert_eq!(error, Some(&EdnsOption::Unknown(15, b"\0\x0fdns_denied".to_vec())));
        }
    }
}

#[test]
fn only_addresses_are_told() {
    use RecordType as R;
    for kind in [R::ANY, R::AXFR, R::IXFR, R::TXT, R::NULL, R::MX, R::NS, R::CNAME, R::PTR, R::SRV]
    {
        for name in ["pypi.example.", "evil.example."] {
            assert_eq!(code(&bytes(name, kind)), ResponseCode::Refused, "{name} {kind}");
        }
    }
    for kind in [R::HTTPS, R::SVCB] {
        let (answer, refused) = at_once(ask(&bytes("pypi.example.", kind)));
        assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
        assert!(answer.answers.is_empty() && refused.is_none());
    }
    let mut chaos = query("pypi.example.", R::A);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(code(&chaos.to_vec().unwrap()), ResponseCode::Refused);
}

#[test]
fn without_ipv6_no_name_has_an_ipv6_address() {
    let policy = policy();
    let asker = Asker { policy: &policy, group: &policy.groups[0], ipv6: false, datagram: true };
    let (message, refused) = at_once(answer(asker, &bytes("pypi.example.", RecordType::AAAA)));
    assert_eq!(message.metadata.response_code, ResponseCode::NoError);
    assert!(message.answers.is_empty() && refused.is_none());
}

#[test]
fn an_answer_echoes_the_case_and_clamps_the_time() {
    for (seconds, ttl) in [(0, 1), (1, 1), (77, 77), (300, 300), (86_400, 300)] {
        let question = to_resolve(ask(&bytes("pYpI.eXaMpLe.", RecordType::A)));
        let (outcome, now) = found(&["198.51.100.30", "2001:db8::30"], seconds);
        let reply = question.reply(&outcome, now, |_| true);
        let answer = Message::from_vec(&reply.bytes).unwrap();
        assert_eq!(answer.metadata.id, 0xbeef);
        assert!(answer.metadata.recursion_available && answer.metadata.recursion_desired);
        assert_eq!(answer.queries[0].name().to_ascii(), "pYpI.eXaMpLe.");
        assert_eq!(answer.answers.len(), 1);
        assert_eq!(answer.answers[0].ttl, ttl);
        assert_eq!(reply.given, ["198.51.100.30".parse::<IpAddr>().unwrap()]);
    }
}

#[test]
fn what_may_not_be_dialled_is_not_told() {
    let question = to_resolve(ask(&bytes("pypi.example.", RecordType::A)));
    let (outcome, now) = found(&["10.0.0.1", "198.51.100.30", "127.0.0.1"], 60);
    let public = |address: IpAddr| address.to_string().starts_with("198.");
    let reply = question.reply(&outcome, now, public);
    assert_eq!(reply.given.len(), 1);
    let (outcome, now) = found(&["10.0.0.1", "2001:db8::30"], 60);
    let reply = question.reply(&outcome, now, public);
    assert_eq!(reply.refused.unwrap().reason, Reason::PrivateAddress);
    let answer = Message::from_vec(&reply.bytes).unwrap();
    assert!(answer.answers.is_empty());
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
}

#[test]
fn what_did_not_resolve_is_told_apart() {
    let question = to_resolve(ask(&bytes("pypi.example.", RecordType::A)));
    for (outcome, code) in [
        (Unresolved::NoName, ResponseCode::NXDomain),
        (Unresolved::NoAddress, ResponseCode::NoError),
        (Unresolved::Failed, ResponseCode::ServFail),
    ] {
        let reply = question.reply(&Err(outcome), Instant::now(), |_| true);
        let answer = Message::from_vec(&reply.bytes).unwrap();
        assert_eq!(answer.metadata.response_code, code);
    }
}

#[test]
fn an_answer_that_does_not_fit_is_cut_for_tcp() {
    let many: Vec<String> = (0..80).map(|last| format!("2001:db8::{last:x}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let plain = query("pypi.example.", RecordType::AAAA);
    for (message, datagram, most) in [
        (plain.clone(), true, 512),
        (with_edns(plain.clone(), 100), true, 512),
        (with_edns(plain.clone(), 900), true, 900),
        (with_edns(plain.clone(), 65_535), true, 1_232),
        (plain, false, 65_535),
    ] {
        let question = to_resolve(asked_by("red", &message.to_vec().unwrap(), datagram));
        for count in [10, 40, 80] {
            let (outcome, now) = found(&many[..count], 60);
            let bytes = question.reply(&outcome, now, |_| true).bytes;
            assert!(bytes.len() <= most, "{} of {most}", bytes.len());
            let answer = Message::from_vec(&bytes).unwrap();
            let cut = answer.metadata.truncation;
            assert_eq!(answer.answers.len(), if cut { 0 } else { count });
            assert!(datagram || !cut);
            assert!(count != 80 || !datagram || cut);
        }
    }
}

#[test]
fn an_answer_is_never_answered() {
    let good = bytes("pypi.example.", RecordType::A);
    for third in 0x80..=0xff {
        let mut bytes = good.clone();
        bytes[2] = third;
        assert!(matches!(ask(&bytes), QueryVerdict::Silence));
    }
    for length in 0..HEADER_BYTES {
        assert!(matches!(ask(&good[..length]), QueryVerdict::Silence));
    }
}

#[test]
fn what_is_malformed_is_told_so_under_its_own_number() {
    let good = bytes("pypi.example.", RecordType::A);
    for length in HEADER_BYTES..good.len() {
        assert_eq!(code(&good[..length]), ResponseCode::FormErr, "{length}");
        assert_eq!(at_once(ask(&good[..length])).0.metadata.id, 0xbeef);
    }
    assert_eq!(code(&[good.clone(), vec![0]].concat()), ResponseCode::FormErr, "more");
    for (at, value) in [(5, 0), (5, 2), (4, 1), (7, 1), (9, 1), (11, 1), (10, 255)] {
        let mut bytes = good.clone();
        bytes[at] = value;
        assert_eq!(code(&bytes), ResponseCode::FormErr, "byte {at}");
    }
    let mut looping = good.clone();
    looping.splice(HEADER_BYTES..HEADER_BYTES + 2, [0xc0, HEADER_BYTES as u8]);
    assert_eq!(code(&looping), ResponseCode::FormErr);
    for opcode in 1..16 {
        let mut bytes = good.clone();
        bytes[2] = opcode << 3;
        assert_eq!(code(&bytes), ResponseCode::NotImp);
    }
    let twice = with_edns(query("pypi.example.", RecordType::A), 512).to_vec().unwrap();
    let option = &twice[good.len()..];
    let mut twice = [&twice, option].concat();
    twice[11] = 2;
    assert_eq!(code(&twice), ResponseCode::FormErr, "two EDNS records");
}

#[test]
fn a_later_edns_is_told_which_one_there_is() {
    let mut message = with_edns(query("pypi.example.", RecordType::A), 512);
    message.edns.as_mut().unwrap().set_version(1);
    let (answer, _) = at_once(ask(&message.to_vec().unwrap()));
    // BADVERS and BADSIG are one number (RFC 6895, section 2.3), which hickory reads as the latter.
    assert_eq!(u16::from(answer.metadata.response_code), u16::from(ResponseCode::BADVERS));
    assert_eq!(answer.edns.unwrap().version(), 0);
}

/// Checks that the answer to any bytes is one that a client can read.
fn check(query: &[u8]) {
    match ask(query) {
        QueryVerdict::Silence => {}
        QueryVerdict::Answered(reply) => check_reply(query, &reply),
        QueryVerdict::Resolve(question) => {
            let (outcome, now) = found(&["198.51.100.30", "2001:db8::30"], 60);
            check_reply(query, &question.reply(&outcome, now, |_| true));
        }
    }
}

fn check_reply(query: &[u8], reply: &DnsReply) {
    let message = Message::from_vec(&reply.bytes).unwrap();
    assert_eq!(message.metadata.message_type, MessageType::Response);
    assert_eq!(reply.bytes[..2], query[..2]);
    assert!(reply.bytes.len() <= 1_232);
}

proptest! {
    #[test]
    fn no_bytes_make_it_fail(query in prop::collection::vec(any::<u8>(), 0..600)) {
        check(&query);
    }

    #[test]
    fn no_bytes_behind_a_good_header_make_it_fail(
        additional in 0u8..5,
        rest in prop::collection::vec(any::<u8>(), 0..600),
    ) {
        check(&[&[1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, additional], &rest[..]].concat());
    }

    #[test]
    fn no_change_of_a_good_query_makes_it_fail(
        at in 0usize..60, value: u8, second in 0usize..60, other: u8,
    ) {
        let good = with_edns(query("pypi.example.", RecordType::A), 1232);
        let mut bytes = good.to_vec().unwrap();
        let length = bytes.len();
        bytes[at % length] = value;
        bytes[second % length] = other;
        check(&bytes);
    }
}
