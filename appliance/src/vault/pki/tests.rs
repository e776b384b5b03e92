use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant, SystemTime},
};

use super::super::fake::{Fake, FakeReply, LOGIN, LOOKUP, REVOKE, TOKEN, grant, refused};
use crate::{
    ca::{
        Engine, EngineChange, LeafError, Rotation, RuleCa, Signed,
        testing::{api, policy},
    },
    policy::{Host, Policy, RuleName},
    reason::SecretCause,
};

const SIGN: &str = "/v1/pki/root/sign-intermediate";

/// A Vault that lets the gateway log in, and whose answers to requests to sign come from `sign`.
async fn vault(sign: impl Fn(&str) -> FakeReply + Send + Sync + 'static) -> Fake {
    Fake::start(move |request| match request.target.as_str() {
        LOGIN => grant(TOKEN, 3600),
        SIGN => sign(&request.body),
        LOOKUP | REVOKE => FakeReply::Json(200, "{}".to_owned()),
        other => panic!("unexpected {other}"),
    })
    .await
}

fn answer(signed: &Signed) -> FakeReply {
    let data = serde_json::json!({"certificate": signed.certificate, "ca_chain": signed.chain});
    FakeReply::Json(200, serde_json::json!({ "data": data }).to_string())
}

fn one_api(hosts: &[&str]) -> Policy {
    policy(vec![api("api", hosts)])
}

/// A rotation that has asked once for every CA of the policy.
async fn started(fake: &Fake, engine: &Engine, policy: &Policy) -> (Rotation, Arc<RuleCa>) {
    let rotation = Rotation::new(fake.source().session(), &engine.settings()).unwrap();
    let ca = tended(&rotation, policy).await;
    (rotation, ca)
}

async fn tended(rotation: &Rotation, policy: &Policy) -> Arc<RuleCa> {
    let cas = rotation.cas(policy).unwrap();
    rotation.tend(&cas);
    rotation.first_round(Instant::now() + Duration::from_secs(10)).await;
    Arc::clone(&cas[&RuleName("api".into())])
}

fn shown(ca: &RuleCa, host: &str) -> Result<usize, LeafError> {
    let host = Host::parse(host).unwrap();
    ca.leaf(&host, SystemTime::now()).map(|leaf| leaf.cert.len())
}

#[tokio::test]
async fn a_rule_opens_with_the_ca_that_vault_signs() {
    let engine = Arc::new(Engine::new());
    let signer = Arc::clone(&engine);
    let fake = vault(move |body| answer(&signer.sign(body, &|_| {}))).await;
    let (_rotation, ca) = started(&fake, &engine, &one_api(&["a.test"])).await;
    assert_eq!(shown(&ca, "a.test").unwrap(), 2);
    assert!(matches!(shown(&ca, "b.test"), Err(LeafError::Ca(_))));
    let asked = fake.received.lock().unwrap();
    let asked: Vec<_> = asked.iter().filter(|one| one.target == SIGN).collect();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].token.as_deref(), Some(TOKEN));
    assert!(!asked[0].body.contains("PRIVATE"), "the key stays");
    assert!(ca.missing(SystemTime::now()).is_none());
}

#[tokio::test]
async fn changed_names_get_a_ca_and_others_keep_theirs() {
    let engine = Arc::new(Engine::new());
    let signer = Arc::clone(&engine);
    let fake = vault(move |body| answer(&signer.sign(body, &|_| {}))).await;
    let (rotation, first) = started(&fake, &engine, &one_api(&["a.test"])).await;
    let same = tended(&rotation, &one_api(&["a.test"])).await;
    assert!(Arc::ptr_eq(&first, &same));
    assert_eq!(fake.count(SIGN), 1);
    let other = tended(&rotation, &one_api(&["a.test", "b.test"])).await;
    assert_eq!(fake.count(SIGN), 2);
    assert!(shown(&other, "b.test").is_ok() && shown(&first, "b.test").is_err());
}

#[tokio::test]
async fn what_is_wider_than_the_question_keeps_the_host_closed() {
    let changes: [fn() -> EngineChange<'static>; 3] = [
        || &|p| p.name_constraints = None,
        || &|p| p.name_constraints.as_mut().unwrap().excluded_subtrees.clear(),
        || &|p| p.not_after = p.not_before,
    ];
    for change in changes {
        let engine = Arc::new(Engine::new());
        let signer = Arc::clone(&engine);
        let fake = vault(move |body| answer(&signer.sign(body, change()))).await;
        let (_rotation, ca) = started(&fake, &engine, &one_api(&["a.test"])).await;
        assert!(matches!(shown(&ca, "a.test"), Err(LeafError::NoCa(SecretCause::ValueInvalid))));
        assert!(ca.missing(SystemTime::now()).is_some());
    }
}

#[tokio::test]
async fn an_invalid_answer_keeps_the_host_closed_with_its_cause() {
    use SecretCause::{ValueInvalid, VaultDenied, VaultSealed, VaultUnreachable};
    let json = |status, text: &str| FakeReply::Json(status, text.to_owned());
    let answers: [(&dyn Fn() -> FakeReply, SecretCause); 9] = [
        (&|| json(200, "garbage"), ValueInvalid),
        (&|| json(200, r#"{"data":{"certificate":7}}"#), ValueInvalid),
        (&|| json(200, r#"{"data":{"certificate":"x","ca_chain":[]}}"#), ValueInvalid),
        (&|| FakeReply::Bytes(2 << 20), VaultUnreachable),
        (&|| FakeReply::Cut, VaultUnreachable),
        (&|| FakeReply::Redirect("https://127.0.0.1:1/".into()), VaultUnreachable),
        (&refused, VaultDenied),
        (&|| json(400, r#"{"errors":["unable to fetch the CA"]}"#), VaultDenied),
        (&|| json(503, r#"{"errors":["Vault is sealed"]}"#), VaultSealed),
    ];
    for (number, (reply, cause)) in answers.into_iter().enumerate() {
        let engine = Engine::new();
        let prepared = std::sync::Mutex::new((0..9).map(|_| reply()).collect::<Vec<_>>());
        let fake = vault(move |_| prepared.lock().unwrap().pop().unwrap()).await;
        let (_rotation, ca) = started(&fake, &engine, &one_api(&["a.test"])).await;
        let shown = shown(&ca, "a.test");
        assert!(
            matches!(shown, Err(LeafError::NoCa(found)) if found == cause),
            "{number}: {shown:?}"
        );
    }
}

#[tokio::test]
async fn an_absent_vault_is_asked_until_it_signs() {
    let engine = Arc::new(Engine::new());
    let (signer, asked) = (Arc::clone(&engine), AtomicUsize::new(0));
    let fake = vault(move |body| match asked.fetch_add(1, SeqCst) {
        0 => FakeReply::Cut,
        _ => answer(&signer.sign(body, &|_| {})),
    })
    .await;
    let (rotation, ca) = started(&fake, &engine, &one_api(&["a.test"])).await;
    assert!(shown(&ca, "a.test").is_err());
    for _ in 0..100 {
        tokio::time::sleep(Duration::from_millis(50)).await;
        if shown(&ca, "a.test").is_ok() {
            drop(rotation);
            return;
        }
    }
    panic!("closed for ever");
}

#[tokio::test]
async fn an_ended_ca_is_not_shown_and_dropped_rotations_stop() {
    let engine = Arc::new(Engine::new());
    let signer = Arc::clone(&engine);
    let fake = vault(move |body| answer(&signer.sign(body, &|_| {}))).await;
    let (rotation, ca) = started(&fake, &engine, &one_api(&["a.test"])).await;
    drop(rotation);
    let host = Host::parse("a.test").unwrap();
    let at_end = ca.ends().unwrap();
    assert!(ca.leaf(&host, at_end - Duration::from_secs(5)).is_ok());
    for late in [0, 1, 1_000_000] {
        let shown = ca.leaf(&host, at_end + Duration::from_secs(late));
        assert!(matches!(shown, Err(LeafError::NoCa(SecretCause::LeaseEnded))), "{late}");
    }
    assert_eq!(fake.count(SIGN), 1);
}
