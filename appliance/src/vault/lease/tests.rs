//! Leases against a fake Vault: the requests, their bodies, and the meaning of faults.

use std::{sync::Arc, time::Duration};

use super::super::{fake::*, *};
use crate::policy::PickPart;

const RENEW_LEASE: &str = "/v1/sys/leases/renew";
const LOOKUP_LEASE: &str = "/v1/sys/leases/lookup";
const REVOKE_LEASE: &str = "/v1/sys/leases/revoke";
const CAPABILITIES: &str = "/v1/sys/capabilities-self";
const CREDS: &str = "/v1/database/creds/reader";

fn creds() -> Location {
    Location::Vault(VaultLocation::Read { path: "database/creds/reader".into() })
}

fn lease() -> Lease {
    let id = Arc::new("database/creds/reader/abc".to_owned().into());
    Lease { id, life: Duration::from_secs(30), renewable: true, generation: 1 }
}

fn json(status: u16, body: &str) -> FakeReply {
    FakeReply::Json(status, body.to_owned())
}

/// Returns the body of the last request to `target`.
fn body(fake: &Fake, target: &str) -> String {
    let received = fake.received.lock().unwrap();
    let asked = received.iter().rfind(|one| one.target == target);
    asked.unwrap_or_else(|| panic!("nobody asked {target}")).body.clone()
}

/// A Vault that answers everything except `target` as it should.
async fn but_for(target: &'static str, reply: fn() -> FakeReply) -> Fake {
    Fake::start(move |request| match request.target.as_str() {
        LOGIN => grant(TOKEN, 3600),
        CHILD => child(CHILD_TOKEN, 3600),
        other if other == target => reply(),
        CAPABILITIES => json(200, r#"{"capabilities":["read"],"data":{}}"#),
        RENEW_LEASE => json(200, r#"{"lease_id":"x","lease_duration":20,"renewable":true}"#),
        LOOKUP_LEASE => json(200, r#"{"data":{"ttl":10}}"#),
        _ => json(200, r#"{"data":{}}"#),
    })
    .await
}

#[tokio::test]
async fn fields_of_one_location_are_one_read() {
    let fake = but_for(CREDS, || {
        let lent = r#""lease_id":"database/creds/reader/abc","lease_duration":30,"renewable":true"#;
        json(200, &format!(r#"{{{lent},"data":{{"username":"u","password":"p"}}}}"#))
    })
    .await;
    let picks = ["username", "password"].map(|name| Pick([PickPart::Field(name.into())].into()));
    let answer = fake.source().fetch(&agents(), &creds(), &picks).await.unwrap();
    let values: Vec<_> =
        answer.values.into_iter().map(|value| value.ok().unwrap().whole.to_vec()).collect();
    assert_eq!(values, [b"u", b"p"]);
    assert_eq!(answer.lease.unwrap().life, Duration::from_secs(30));
    assert_eq!(fake.count(CREDS), 1);
}

#[tokio::test]
async fn what_issues_on_a_write_gets_its_parameters() {
    let fake = but_for("/v1/ssh/creds/otp", || json(200, r#"{"data":{"key":"one-time"}}"#)).await;
    let parameters = [("ip".into(), "192.0.2.1".into()), ("username".into(), "a b".into())];
    let location =
        VaultLocation::Write { path: "ssh/creds/otp".into(), parameters: parameters.into() };
    let picks = [Pick([PickPart::Field("key".into())].into())];
    let answer = fake.source().fetch(&agents(), &Location::Vault(location), &picks).await.unwrap();
    assert!(answer.lease.is_none());
    assert_eq!(body(&fake, "/v1/ssh/creds/otp"), r#"{"ip":"192.0.2.1","username":"a b"}"#);
}

#[tokio::test]
async fn a_pinned_version_is_asked_for() {
    let fake = but_for("/v1/kv/data/a?version=3", value).await;
    let location = VaultLocation::Kv2 { mount: "kv".into(), path: "a".into(), version: Some(3) };
    let picks = [Pick([PickPart::Field("key".into())].into())];
    let answer = fake.source().fetch(&agents(), &Location::Vault(location), &picks).await.unwrap();
    assert!(answer.values[0].is_ok());
}

#[tokio::test]
async fn a_renewal_asks_for_a_full_life_and_reports_it() {
    let fake = but_for("", || json(500, "{}")).await;
    let got = fake.source().renew(&agents(), &lease()).await;
    assert_eq!(got, Ok(Prolonged { life: Duration::from_secs(20), renewable: true }));
    assert_eq!(
        body(&fake, RENEW_LEASE),
        r#"{"lease_id":"database/creds/reader/abc","increment":30}"#
    );
}

#[tokio::test]
async fn a_refused_renewal_is_final_and_a_lost_one_not() {
    for (reply, gone) in [
        ((|| json(400, r#"{"errors":["lease not found"]}"#)) as fn() -> FakeReply, true),
        (refused, true),
        (|| json(404, "{}"), true),
        (|| json(500, "{}"), false),
        (|| json(503, "{}"), false),
        (|| json(200, "{}"), false),
        (|| FakeReply::Cut, false),
    ] {
        let fake = but_for(RENEW_LEASE, reply).await;
        let error = fake.source().renew(&agents(), &lease()).await.unwrap_err();
        assert_eq!(matches!(error, FetchError::Gone(..)), gone, "{error:?}");
    }
}

#[tokio::test]
async fn only_a_clear_word_ends_a_lease() {
    type Case = (&'static str, fn() -> FakeReply, Option<Standing>);
    let good = Some(Standing::Good);
    let cases: [Case; 8] = [
        ("", || json(500, "{}"), good),
        (LOOKUP_LEASE, || json(400, r#"{"errors":["invalid lease"]}"#), Some(Standing::Ended)),
        (LOOKUP_LEASE, refused, good),
        (CAPABILITIES, refused, Some(Standing::Doubtful)),
        (CAPABILITIES, || json(200, "{}"), good),
        (CAPABILITIES, || json(200, r#"{"capabilities":"read"}"#), good),
        (LOOKUP_LEASE, || json(500, "{}"), None),
        (CAPABILITIES, || json(200, r#"{"capabilities":["deny"]}"#), None),
    ];
    for (index, (target, reply, standing)) in cases.into_iter().enumerate() {
        let fake = but_for(target, reply).await;
        let told = fake.source().check(&agents(), &creds(), &lease()).await;
        assert_eq!(told.ok(), standing, "case {index}");
    }
}

#[tokio::test]
async fn an_ended_lease_is_seen_without_rights_told() {
    let fake = Fake::start(|request| match request.target.as_str() {
        LOGIN => grant(TOKEN, 3600),
        CHILD => child(CHILD_TOKEN, 3600),
        LOOKUP_LEASE => json(400, r#"{"errors":["invalid lease"]}"#),
        _ => refused(),
    })
    .await;
    let told = fake.source().check(&agents(), &creds(), &lease()).await;
    assert_eq!(told, Ok(Standing::Ended));
}

/// Where a policy was taken away whole, the read that follows is refused.
#[tokio::test]
async fn a_token_without_rights_told_leaves_a_doubt_alone() {
    let fake = Fake::start(|request| match request.target.as_str() {
        LOGIN => grant(TOKEN, 3600),
        CHILD => child(CHILD_TOKEN, 3600),
        CAPABILITIES | LOOKUP_LEASE => refused(),
        other => panic!("unexpected {other}"),
    })
    .await;
    let source = fake.source();
    for _ in 0..3 {
        let told = source.check(&agents(), &creds(), &lease()).await;
        assert_eq!(told, Ok(Standing::Doubtful));
    }
    assert_eq!(fake.count(CHILD), 1);
}

#[tokio::test]
async fn a_lease_that_is_unknown_has_been_given_back() {
    for (reply, settled) in [
        ((|| json(204, "")) as fn() -> FakeReply, true),
        (|| json(400, r#"{"errors":["invalid lease"]}"#), true),
        (refused, false),
        (|| json(500, "{}"), false),
    ] {
        let fake = but_for(REVOKE_LEASE, reply).await;
        let told = fake.source().revoke(&agents(), &lease()).await;
        assert_eq!(told.is_ok(), settled, "{told:?}");
        assert_eq!(body(&fake, REVOKE_LEASE), r#"{"lease_id":"database/creds/reader/abc"}"#);
    }
}

#[tokio::test]
async fn a_tokenless_groups_lease_ends_with_its_token() {
    let fake = but_for(REVOKE_LEASE, || json(403, "{}")).await;
    let source = fake.source();
    source.session().set_groups(&[], &[]);
    assert_eq!(source.revoke(&agents(), &lease()).await, Ok(()));
    assert_eq!(fake.targets(), [""; 0], "and nobody is asked");
}
