//! Signatures of AWS: their owners, their scopes, and the signatures that replace them.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use http::{Method, request::Parts};
use proptest::prelude::*;
use zeroize::Zeroizing;

use super::{Denial, Signing, Substitution, SubstitutionRules, examine, testing::*};
use crate::{
    policy::{AwsName, AwsScope, Place},
    reason::{Reason, SecretCause},
    secrets::SecretValue,
};

const KEY: &str = "AWS_ACCESS_KEY_ID";
const ID: &str = "AKIDEXAMPLEAKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";
const TOKEN: &str = "FwoGZXIvYXdzEBYaDH+/token==";
const HEX: &str = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7";
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const HOST: (&str, &str) = ("host", "first.example");

/// Rules by which one group's requests to S3 and DynamoDB in one region may be signed.
fn signing_rules() -> SubstitutionRules {
    rules_with(|api| {
        let names = |names: &[&str]| names.iter().map(|it| AwsName::parse(it).unwrap()).collect();
        let scope =
            AwsScope { services: names(&["s3", "dynamodb"]), regions: names(&["eu-west-1"]) };
        api.aws = Some(Arc::new(scope));
        let mut own = (*api.bindings[0]).clone();
        (own.places, own.placeholder) = (vec![Place::Aws], placeholder(KEY));
        let mut other = (*api.bindings.last().unwrap().clone()).clone();
        (other.places, other.placeholder) = (vec![Place::Aws], placeholder("OTHERS_AWS_KEY"));
        api.bindings.extend([Arc::new(own), Arc::new(other)]);
    })
}

fn placeholder(text: &str) -> crate::policy::Placeholder {
    crate::policy::Placeholder(text.into())
}

fn field(key: &str, scope: &str) -> String {
    format!(
        "AWS4-HMAC-SHA256 Credential={key}/20150830/{scope}/aws4_request, \
         SignedHeaders=host;x-amz-date, Signature={HEX}"
    )
}

fn good() -> String {
    field(KEY, "eu-west-1/s3")
}

fn link(key: &str) -> String {
    format!(
        "/coats/a?versionId=1&X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={key}%2F20150830%2F\
         eu-west-1%2Fs3%2Faws4_request&X-Amz-Date=20150830T123600Z&X-Amz-Expires=604800&\
         X-Amz-SignedHeaders=host&X-Amz-Signature={HEX}&partNumber=2"
    )
}

fn asked(fields: &[(&str, &str)]) -> Parts {
    asked_at("/coats/a", fields)
}

/// Makes a head; a signature in the head has its date beside it.
fn asked_at(target: &str, fields: &[(&str, &str)]) -> Parts {
    let has = |name: &str| fields.iter().any(|(own, _)| *own == name);
    let date = has("authorization") && !has("x-amz-date");
    let date: &[_] = if date { &[("x-amz-date", "20150830T123600Z")] } else { &[] };
    head_to(Method::GET, target, &[&[HOST], date, fields].concat())
}

fn examined(parts: &Parts) -> Result<Substitution, Denial> {
    examine(&signing_rules(), parts)
}

fn no(parts: Parts) -> Reason {
    examined(&parts).expect_err("refused").reason
}

fn value(text: &str) -> Arc<SecretValue> {
    Arc::new(SecretValue::load(Zeroizing::new(text.as_bytes().to_vec()), 8).unwrap())
}

fn signing(parts: &Parts, keys: &str) -> Signing {
    let substitution = examined(parts).unwrap();
    substitution.signing(|_| Ok(value(keys))).unwrap().expect("it is signed")
}

/// Returns the head as it is sent, signed at a fixed time.
fn sent(mut parts: Parts, keys: &str) -> Parts {
    signing(&parts, keys).sign(&mut parts, now()).unwrap();
    let signature = signature_of(&parts);
    assert!(signature.len() == 64 && signature != HEX, "{signature}");
    parts
}

fn signature_of(parts: &Parts) -> String {
    let own = parts.headers.get("authorization").map_or("", |own| own.to_str().unwrap());
    let all = format!("{own}{}", parts.uri.query().unwrap_or_default());
    let signature = all.rsplit_once("Signature=").unwrap().1;
    signature.split('&').next().unwrap().to_owned()
}

/// 2015-08-30, 12:36 UTC.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160)
}

fn all_of(parts: &Parts) -> String {
    let fields = parts.headers.iter();
    let fields: Vec<_> = fields.map(|(n, v)| format!("{n}: {}", v.to_str().unwrap())).collect();
    format!("{} {}\n{}", parts.method, parts.uri, fields.join("\n"))
}

#[test]
fn nothing_of_an_old_signature_in_the_head_is_left() {
    let fields = [
        ("authorization", &*good()),
        ("x-amz-date", "20150830T122800Z"),
        ("x-amz-security-token", KEY),
        ("x-amz-content-sha256", EMPTY),
        ("x-amz-meta-who", "me"),
        ("content-type", "text/plain"),
        ("user-agent", "boto"),
    ];
    let parts = sent(asked(&fields), &format!("{ID}:{SECRET}:{TOKEN}"));
    let text = all_of(&parts);
    assert!(!text.contains(KEY) && !text.contains(SECRET) && !text.contains(HEX), "{text}");
    assert_eq!(parts.headers["x-amz-date"], "20150830T123600Z");
    assert_eq!(parts.headers["x-amz-security-token"], TOKEN);
    assert!(parts.headers["x-amz-security-token"].is_sensitive());
    let own = parts.headers["authorization"].to_str().unwrap();
    assert!(own.contains(&format!("Credential={ID}/20150830/eu-west-1/s3/aws4_request")), "{own}");
    let signed = "SignedHeaders=content-type;host;x-amz-content-sha256;x-amz-date;x-amz-meta-who;\
                  x-amz-security-token,";
    assert!(own.contains(signed), "{own}");
}

#[test]
fn a_link_is_signed_again_and_ends_soon() {
    let parts = sent(asked_at(&link(KEY), &[]), &format!("{ID}:{SECRET}:{TOKEN}"));
    let query = parts.uri.query().unwrap();
    assert!(query.starts_with("versionId=1&partNumber=2&X-Amz-"), "{query}");
    assert!(query.contains(&format!("X-Amz-Credential={ID}%2F20150830%2F")), "{query}");
    assert!(query.contains("X-Amz-Expires=300&"), "{query}");
    assert!(query.contains("X-Amz-Security-Token=FwoGZXIvYXdzEBYaDH%2B%2Ftoken%3D%3D"), "{query}");
    assert!(!query.contains(KEY) && !query.contains(HEX), "{query}");
    assert_eq!(parts.headers.len(), 1, "{:?}", parts.headers);
}

/// The specification's own example ("get-vanilla" of the test suite of AWS), except for the
/// service.
#[test]
fn the_signature_is_the_one_of_the_specification() {
    let mut parts = head_to(Method::GET, "/", &[("host", "example.amazonaws.com")]);
    let signing = Signing {
        form: super::signing::SignatureForm::Head,
        service: AwsName::parse("service").unwrap(),
        region: AwsName::parse("us-east-1").unwrap(),
        payload: super::signing::Payload::Whole,
        times: super::signing::Times { from: now(), until: now() },
        keys: value("AKIDEXAMPLE:wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
        binding: None,
    };
    signing.sign(&mut parts, now()).unwrap();
    let expected = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";
    assert_eq!(signature_of(&parts), expected);
}

#[test]
fn a_key_that_is_no_placeholder_is_refused() {
    for scope in ["eu-west-1/s3", "us-east-1/sts"] {
        let reason = |key: &str| no(asked(&[("authorization", &field(key, scope))]));
        for foreign in [ID, "AWS_ACCESS_KEY_I", "xAWS_ACCESS_KEY_ID", "OTHERS_AWS_KEY"] {
            assert_eq!(reason(foreign), Reason::ForeignCredential, "{foreign}");
        }
        assert_eq!(reason(OTHER_HOST), Reason::PlaceholderWrongHost);
        assert_eq!(reason(BEARER), Reason::PlaceholderWrongPlace);
    }
    assert_eq!(no(asked_at(&link(ID), &[])), Reason::ForeignCredential);
    // Where nothing may be signed, a signature is a credential like any other.
    assert_eq!(refused(&rules(), asked(&[("authorization", &good())])), Reason::ForeignCredential);
    assert_eq!(refused(&rules(), asked_at(&link(KEY), &[])), Reason::DuplicateCredential);
    let bearer = format!("Bearer {KEY}");
    assert_eq!(no(asked(&[("authorization", &bearer)])), Reason::PlaceholderWrongPlace);
}

#[test]
fn nothing_is_signed_for_what_is_not_listed() {
    for scope in ["eu-west-1/sts", "us-east-1/s3", "EU-WEST-1/s3", "/s3", "eu-west-1/"] {
        let denial = examined(&asked(&[("authorization", &field(KEY, scope))])).unwrap_err();
        assert_eq!(denial.reason, Reason::ScopeDenied, "{scope}");
        assert_eq!(denial.placeholder, Some(placeholder(KEY)));
        assert_eq!(denial.credential.as_deref(), Some("header authorization"));
    }
}

#[test]
fn a_second_credential_beside_a_signature_is_refused() {
    let good = good();
    let own = ("authorization", &*good);
    for (target, fields) in [
        ("/a", &[own, ("x-amz-security-token", TOKEN)][..]),
        ("/a", &[own, ("x-api-key", "mine")]),
        ("/a", &[own, ("x-amz-s3session-token", TOKEN)]),
        ("/a", &[own, ("x_amz_security_token", KEY)]),
        ("/a", &[own, own]),
        ("/a", &[own, ("authorization", "Bearer mine")]),
        ("/a?X-Amz-Signature=00", &[own]),
        ("/a?x-amz-signature=00", &[own]),
        ("/a?X-Amz-Algorithm=AWS4-HMAC-SHA256", &[own]),
        ("/a?AWSAccessKeyId=mine&Signature=x", &[own]),
        (&link(KEY), &[own]),
        (&link(KEY), &[("authorization", "Bearer OPENAI_API_KEY")]),
        (&link(KEY), &[("x-amz-security-token", KEY)]),
        (&format!("{}&X-Amz-Security-Token=mine", link(KEY)), &[]),
        (&format!("{}&Signature=mine", link(KEY)), &[]),
    ] {
        let reason = examined(&asked_at(target, fields)).map(|_| ()).map_err(|it| it.reason);
        assert_eq!(reason, Err(Reason::DuplicateCredential), "{target} {fields:?}");
    }
}

#[test]
fn a_signature_with_two_readings_is_refused() {
    let good = good();
    let with = |old: &str, new: &str| asked(&[("authorization", &good.replacen(old, new, 1))]);
    for (old, new) in [
        ("Signature=", "Signature=00, Signature="),
        ("SignedHeaders=host;x-amz-date, ", ""),
        ("SignedHeaders=host;x-amz-date", "SignedHeaders="),
        ("Credential=", "credential="),
        ("Credential=", "Credential=x/20150830/eu-west-1/s3/aws4_request,Credential="),
        (", Signature", ", Extra=1, Signature"),
        (HEX, ""),
        (HEX, "no hex"),
        ("/aws4_request", ""),
        ("/aws4_request", "/aws5_request"),
        ("/20150830", "/2015083"),
        ("/20150830", ""),
        ("/20150830", "/20150831"),
        ("Credential=AWS_ACCESS_KEY_ID", "Credential="),
        ("AWS4-HMAC-SHA256 ", "AWS4-HMAC-SHA256"),
    ] {
        assert_eq!(no(with(old, new)), Reason::CredentialMalformed, "{old} {new}");
    }
    let with = |old: &str, new: &str| asked_at(&link(KEY).replacen(old, new, 1), &[]);
    for (old, new) in [
        ("X-Amz-Signature", "x-amz-signature"),
        ("X-Amz-Signature", "X-Amz-Sign%61ture"),
        ("&X-Amz-Signature", ";X-Amz-Signature"),
        ("&partNumber", "&X-Amz-Signature=00&partNumber"),
        ("&partNumber", "&X-Amz-Credential[]=x&partNumber"),
        ("&partNumber", ";X-Amz-Date=x&partNumber"),
        ("&X-Amz-Date=20150830T123600Z", ""),
        ("X-Amz-Date=20150830T123600Z", "X-Amz-Date=now"),
        ("X-Amz-Date=20150830T123600Z", "X-Amz-Date=20150832T123600Z"),
        ("X-Amz-Date=20150830T", "X-Amz-Date=20150831T"),
        ("X-Amz-Expires=604800", "X-Amz-Expires=-1"),
        ("X-Amz-Expires=604800", "X-Amz-Expires=%2B1"),
        ("X-Amz-Expires=604800", "X-Amz-Expires=0"),
        ("X-Amz-Expires=604800", "X-Amz-Expires=604801"),
        ("X-Amz-Expires=604800", "X-Amz-Expires=99999999999999999999999"),
        ("&X-Amz-SignedHeaders=host", ""),
        ("X-Amz-Algorithm=AWS4-HMAC-SHA256", "X-Amz-Algorithm"),
    ] {
        let reason = no(with(old, new));
        let known = [Reason::CredentialMalformed, Reason::DuplicateCredential];
        assert!(known.contains(&reason), "{old} {new}: {reason}");
    }
    let twice =
        [("authorization", &*good), ("x-amz-security-token", KEY), ("x-amz-security-token", KEY)];
    assert_eq!(no(asked(&twice)), Reason::CredentialMalformed);
    for date in ["", "now", "20150830T126000Z", "20150830", "2015083XT123600Z"] {
        let dated = [("authorization", &*good), ("x-amz-date", date)];
        assert_eq!(no(asked(&dated)), Reason::CredentialMalformed, "{date}");
    }
    let twice = [("x-amz-date", "20150830T123600Z"); 2];
    assert_eq!(
        no(asked(&[&[("authorization", &*good)], &twice[..]].concat())),
        Reason::CredentialMalformed
    );
    let undated = head_to(Method::GET, "/a", &[HOST, ("authorization", &good)]);
    assert_eq!(no(undated), Reason::CredentialMalformed);
    let twice =
        [("authorization", &*good), ("x-amz-content-sha256", EMPTY), ("x-amz-content-sha256", HEX)];
    assert_eq!(no(asked(&twice)), Reason::CredentialMalformed);
}

#[test]
fn other_kinds_of_signature_are_refused() {
    for payload in [
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD",
        "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER",
        "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD",
        "STREAMING-AWS4-HMAC-SHA256-EVENTS",
        "unsigned-payload",
        "",
        &HEX.to_uppercase(),
        &HEX[1..],
    ] {
        let fields = [("authorization", &*good()), ("x-amz-content-sha256", payload)];
        assert_eq!(no(asked(&fields)), Reason::SignatureDenied, "{payload}");
    }
    let ecdsa = good().replace("HMAC-SHA256", "ECDSA-P256-SHA256").replace("eu-west-1/", "");
    assert_eq!(no(asked(&[("authorization", &ecdsa)])), Reason::SignatureDenied);
    let foreign = ecdsa.replace(KEY, ID);
    assert_eq!(no(asked(&[("authorization", &foreign)])), Reason::ForeignCredential);
    // A signature of the second version is a credential like any other.
    assert_eq!(no(asked(&[("authorization", "AWS AKID:c2ln")])), Reason::ForeignCredential);
}

/// A signature is good for as long as AWS would accept it, and not a second longer.
#[test]
fn an_old_or_future_signature_is_refused() {
    let at = |seconds: i64| match u64::try_from(seconds) {
        Ok(seconds) => now() + Duration::from_secs(seconds),
        Err(_) => now() - Duration::from_secs(seconds.unsigned_abs()),
    };
    let keys = format!("{ID}:{SECRET}");
    let head = asked(&[("authorization", &good())]);
    let long = asked_at(&link(KEY), &[]);
    let short = asked_at(&link(KEY).replace("=604800", "=60"), &[]);
    for (parts, first, last) in [(head, -900, 900), (long, -900, 604_800), (short, -900, 60)] {
        let signing = signing(&parts, &keys);
        for good in [first, 0, last] {
            assert_eq!(signing.check_time(at(good)), Ok(()), "{} {good}", parts.uri);
        }
        for bad in [first - 1, last + 1] {
            let expired = Err(Reason::SignatureExpired);
            assert_eq!(signing.check_time(at(bad)), expired, "{} {bad}", parts.uri);
        }
    }
}

#[test]
fn a_body_is_needed_only_where_nobody_says_its_hash() {
    let needs = |scope: &str, payload: &str| {
        let own = field(KEY, scope);
        let fields = [("authorization", &*own), ("x-amz-content-sha256", payload)];
        let fields = if payload.is_empty() { &fields[..1] } else { &fields };
        signing(&asked(fields), &format!("{ID}:{SECRET}")).needs_body()
    };
    assert!(needs("eu-west-1/dynamodb", "") && needs("eu-west-1/s3", ""));
    for payload in [HEX, "UNSIGNED-PAYLOAD", "STREAMING-UNSIGNED-PAYLOAD-TRAILER"] {
        assert!(!needs("eu-west-1/dynamodb", payload) && !needs("eu-west-1/s3", payload));
    }
    assert!(!signing(&asked_at(&link(KEY), &[]), &format!("{ID}:{SECRET}")).needs_body());
}

#[test]
fn a_value_that_is_no_pair_of_keys_signs_nothing() {
    let substitution = examined(&asked(&[("authorization", &good())])).unwrap();
    for keys in [SECRET, "AKIDEXAMPLE:short", ":::::::::::::::"] {
        let signing = substitution.signing(|_| Ok(value(keys)));
        assert_eq!(signing.err(), Some(SecretCause::ValueInvalid), "{keys}");
    }
    let gone = substitution.signing(|_| Err(SecretCause::VaultSealed));
    assert_eq!(gone.err(), Some(SecretCause::VaultSealed));
}

#[test]
fn keys_are_those_that_are_good_when_signed() {
    let mut signing = signing(&asked(&[("authorization", &good())]), &format!("{ID}:{SECRET}"));
    let newer = format!("AKIDNEWERAKIDNEWER:{SECRET}");
    assert_eq!(signing.renew(|_| Ok(value(&newer))), Ok(()));
    assert_eq!(signing.keys.expose(), newer.as_bytes());
    assert_eq!(signing.renew(|_| Ok(value(SECRET))), Err(SecretCause::ValueInvalid));
    assert_eq!(signing.renew(|_| Err(SecretCause::VaultDenied)), Err(SecretCause::VaultDenied));
}

#[test]
fn a_field_that_cannot_be_signed_is_refused() {
    let mut parts = asked(&[("authorization", &good())]);
    parts.headers.insert("x-amz-meta-who", http::HeaderValue::from_bytes(b"\xff").unwrap());
    let signed = signing(&parts, &format!("{ID}:{SECRET}")).sign(&mut parts, now());
    assert_eq!(signed.err(), Some(Reason::HttpMalformed));
}

#[test]
fn a_plus_in_a_path_is_not_signed_for_s3() {
    let keys = format!("{ID}:{SECRET}");
    let (s3, other) = (good(), field(KEY, "eu-west-1/dynamodb"));
    for (target, own, expected) in [
        ("/a+b", &s3, Err(Reason::HttpMalformed)),
        ("/a%2Bb?c=d+e", &s3, Ok(())),
        ("/a+b", &other, Ok(())),
    ] {
        let mut parts = asked_at(target, &[("authorization", own)]);
        let signed = signing(&parts, &keys).sign(&mut parts, now());
        assert_eq!(signed, expected, "{target}");
    }
}

#[test]
fn a_head_too_long_to_be_signed_is_refused() {
    let keys = format!("{ID}:{SECRET}:{TOKEN}");
    let signed = |mut parts: Parts| signing(&parts, &keys).sign(&mut parts, now());
    let good = good();
    let own = [("authorization", &*good)];
    let mut limited = 0;
    for fill in ["+", "&", "a&", "+&", "a=", "%FF", "*", "\u{e9}"] {
        for bytes in (500..65_000).step_by(7_000) {
            let fill = fill.repeat(bytes / fill.len());
            for parts in [
                asked_at(&format!("/a?{fill}"), &own),
                asked_at(&format!("/a{}?a", "*".repeat(bytes)), &own),
                asked_at(&format!("{}&{fill}", link(KEY)), &[]),
            ] {
                let signed = signed(parts);
                limited += usize::from(signed == Err(Reason::HeaderLimit));
                assert!(bytes > 10_000 || signed == Ok(()), "{fill} {bytes}: {signed:?}");
            }
        }
    }
    assert!(limited > 0);
    let mut parts = asked_at(&link(KEY), &[]);
    for number in 0..300 {
        let name = format!("x-amz-{number}{}", "!*+".repeat(50));
        parts.headers.insert(name.parse::<http::HeaderName>().unwrap(), "a".parse().unwrap());
    }
    assert_eq!(signed(parts), Err(Reason::HeaderLimit));
}

proptest! {
    /// However a signature is changed, only the whole placeholder signs anything.
    #[test]
    fn no_part_of_a_signature_is_taken_for_the_whole(
        cut in 0..300_usize, put in "[ -~]{0,3}", skip in 0..3_usize,
    ) {
        for (target, own) in [("/coats/a".to_owned(), Some(good())), (link(KEY), None)] {
            let whole = own.clone().unwrap_or_else(|| target.clone());
            let at = cut.min(whole.len());
            let rest = &whole[(at + skip).min(whole.len())..];
            let changed = format!("{}{put}{rest}", &whole[..at]);
            let fields = own.as_ref().map(|_| ("authorization", &*changed));
            let target = if own.is_some() { &target } else { &changed };
            let Ok(request) = http::Request::builder().uri(target.as_str()).body(()) else { continue };
            let mut parts = asked(fields.as_slice());
            parts.uri = request.into_parts().0.uri;
            let Ok(substitution) = examined(&parts) else { continue };
            let placeholders: Vec<_> = substitution.placeholders().map(|it| it.as_str()).collect();
            prop_assert_eq!(placeholders, [KEY]);
            let key = own.map_or(format!("={KEY}%2F"), |_| format!("={KEY}/"));
            let (changed, key) = (changed.to_lowercase(), key.to_lowercase());
            prop_assert!(changed.contains(&key), "{}", changed);
            // The changed request is signed, with one signature, or its path has two readings.
            let is_ambiguous = parts.uri.path().contains('+');
            let signed = signing(&parts, &format!("{ID}:{SECRET}")).sign(&mut parts, now());
            if is_ambiguous {
                prop_assert_eq!(signed, Err(Reason::HttpMalformed));
                continue;
            }
            prop_assert_eq!(signed, Ok(()));
            prop_assert!(!all_of(&parts).contains(KEY), "{}", all_of(&parts));
        }
    }

    /// The rest of the query, which does not belong to the signature, stays as it was.
    #[test]
    fn the_rest_of_a_query_is_the_same(before in "([a-w=&%20+;]{0,20}&)?", after in "(&[a-w=&+;]{0,20})?") {
        let target = link(KEY).replace("versionId=1&", &before).replace("&partNumber=2", &after);
        let parts = asked_at(&target, &[]);
        let Ok(substitution) = examined(&parts) else { return Ok(()) };
        prop_assert_eq!(substitution.bindings().count(), 1);
        let query = sent(parts, &format!("{ID}:{SECRET}")).uri.query().unwrap().to_owned();
        let rest = query.split('&').filter(|part| !part.starts_with("X-Amz-"));
        let own = match after.strip_prefix('&') {
            Some(after) => format!("{before}{after}"),
            None => before.strip_suffix('&').unwrap_or(&before).to_owned(),
        };
        prop_assert_eq!(rest.collect::<Vec<_>>().join("&"), own);
    }
}
