//! Answers that a real Vault does not give on demand, from the fake.

use std::future::pending;

use policy_builder::{Table, api, binding, group};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::{super::fake::*, *};
use crate::config::{self, Config};

/// Returns the findings about a fake that answers so.
async fn found(
    respond: impl Fn(&Received) -> FakeReply + Send + Sync + 'static,
) -> (DoctorReport, Fake) {
    let fake = Fake::start(respond).await;
    (examined(&fake, pending()).await.unwrap(), fake)
}

async fn examined(
    fake: &Fake,
    interrupted: impl Future<Output = ()>,
) -> Result<DoctorReport, DoctorError> {
    fake.folder.write("cloakroom.toml", file(fake).to_string().as_bytes(), 0o600);
    let loaded = config::load(&fake.folder.0.join("cloakroom.toml"));
    let Config { settings, policy } = loaded.unwrap_or_else(|errors| panic!("{errors}"));
    let bound = ["192.0.2.1/32", "2001:db8::/64"].map(|own| own.parse().unwrap());
    examine(&settings, &policy, (&bound, &resolver()), false, interrupted).await
}

fn bound(cidrs: &str, ttl: u64) -> FakeReply {
    looked(&format!(r#""bound_cidrs":{cidrs},"ttl":{ttl},"policies":["default"]"#))
}

fn looked(rest: &str) -> FakeReply {
    FakeReply::Json(200, format!(r#"{{"data":{{"id":"{TOKEN}",{rest}}}}}"#))
}

/// Returns each path that is needed, and the capability that it needs.
fn rights(token: Option<&str>) -> BTreeMap<&'static str, &'static str> {
    let own = [
        ("auth/token/lookup-self", "read"),
        ("auth/token/renew-self", "update"),
        ("auth/token/revoke-self", "update"),
        ("sys/capabilities-self", "update"),
        ("sys/internal/ui/resultant-acl", "read"),
    ];
    let gateways = [
        ("auth/token/create/cloakroom-agents", "update"),
        ("auth/token/revoke-accessor", "update"),
        ("auth/approle/role/cloakroom-gateway/secret-id/lookup", "update"),
    ];
    let groups = [("kv/data/team/openai", "read")];
    let more = if token == Some(CHILD_TOKEN) { &groups[..] } else { &gateways };
    own.iter().chain(more).copied().collect()
}

/// Gives each path that is needed its capability, and no other path any.
fn capabilities(request: &Received) -> FakeReply {
    let asked: serde_json::Value = serde_json::from_str(&request.body).unwrap();
    let rights = rights(request.token.as_deref());
    let may = |path: &str| rights.get(path).copied().unwrap_or("deny");
    let paths = asked["paths"].as_array().unwrap().iter().filter_map(|path| path.as_str());
    let data: BTreeMap<&str, [&str; 1]> = paths.map(|path| (path, [may(path)])).collect();
    FakeReply::Json(200, serde_json::json!({ "data": data }).to_string())
}

/// Returns a rule for each right of the token, and these rules beside them.
fn rules(token: Option<&str>, exact: Value, globs: Value) -> FakeReply {
    let rule = |may: &str| json!({ "capabilities": [may] });
    let own = rights(token).into_iter().map(|(path, may)| (path.to_owned(), rule(may)));
    let more = exact.as_object().unwrap().clone();
    let exact: serde_json::Map<_, _> = own.chain(more).collect();
    let data = json!({ "root": false, "exact_paths": exact, "glob_paths": globs });
    FakeReply::Json(200, json!({ "data": data }).to_string())
}

fn healthy(request: &Received) -> FakeReply {
    match request.target.as_str() {
        LOGIN => grant(TOKEN, 3600),
        CHILD if request.body.contains("policies") => FakeReply::Json(400, "{}".to_owned()),
        CHILD => child(CHILD_TOKEN, 3600),
        LOOKUP => bound(r#"["192.0.2.1"]"#, 3600),
        CAPABILITIES => capabilities(request),
        RULES => rules(request.token.as_deref(), json!({}), json!({})),
        REVOKE => FakeReply::Json(204, String::new()),
        MOUNT => mount("true"),
        SECRET_ID_LOOKUP => secret_id(0, 0),
        other => panic!("unexpected {other}"),
    }
}

fn mount(lockout_disable: &str) -> FakeReply {
    let config =
        format!(r#"{{"user_lockout_config":{{"user_lockout_disable":{lockout_disable}}}}}"#);
    FakeReply::Json(200, format!(r#"{{"data":{{"type":"approle","config":{config}}}}}"#))
}

fn secret_id(uses: u64, ttl: u64) -> FakeReply {
    let data = format!(r#"{{"secret_id_num_uses":{uses},"secret_id_ttl":{ttl}}}"#);
    FakeReply::Json(200, format!(r#"{{"data":{data}}}"#))
}

/// Returns the one finding where the fake answers `target` so.
async fn finding(
    target: &'static str,
    reply: impl Fn() -> FakeReply + Send + Sync + 'static,
) -> String {
    let (health, _fake) = found(move |request| match request.target == target {
        true => reply(),
        false => healthy(request),
    })
    .await;
    assert!(!health.is_good());
    let report = health.to_string();
    assert!(![TOKEN, CHILD_TOKEN, SECRET_ID].iter().any(|secret| report.contains(secret)));
    report.lines().filter(|line| !line.starts_with("ok ")).collect::<Vec<_>>().join("\n")
}

#[tokio::test]
async fn a_healthy_vault_shows_no_secret_and_regains_its_tokens() {
    let (health, fake) = found(healthy).await;
    assert!(health.is_good(), "{health}");
    let report = health.to_string();
    assert!(report.contains("group agents can read:\n  kv/data/team/openai\n"), "{report}");
    assert_eq!(fake.count(READ), 0);
    assert_eq!(fake.targets().last().map(String::as_str), Some(REVOKE));
}

#[tokio::test]
async fn an_examination_that_is_interrupted_gives_its_tokens_back_too() {
    let asked = Arc::new(Notify::new());
    let told = Arc::clone(&asked);
    let fake = Fake::start(move |request| match request.target.as_str() {
        CAPABILITIES => {
            told.notify_one();
            FakeReply::Hang
        }
        _ => healthy(request),
    })
    .await;
    let ended = examined(&fake, asked.notified()).await;
    assert!(matches!(ended, Err(DoctorError::Interrupted)));
    assert_eq!(fake.targets().last().map(String::as_str), Some(REVOKE));
}

#[tokio::test]
async fn a_root_token_is_too_wide_whoever_has_it() {
    let root = || granted(TOKEN, 0, r#""policies":["root"]"#);
    let said = finding(LOGIN, root).await;
    assert!(said.contains("too wide  gateway: Vault gave the gateway a root token"), "{said}");
    let root = || granted(CHILD_TOKEN, 0, r#""policies":["root"],"orphan":false"#);
    let said = finding(CHILD, root).await;
    assert!(said.contains("too wide  group agents: Vault gave the group a root token"), "{said}");
}

#[tokio::test]
async fn a_token_good_forever_or_everywhere_is_too_wide() {
    for cidrs in ["null", "[]", r#"["192.0.2.1","0.0.0.0/0"]"#, r#"["::/0"]"#] {
        let said = finding(LOOKUP, move || bound(cidrs, 3600)).await;
        assert!(said.contains("too wide  gateway: its token is good from everywhere"), "{said}");
    }
    let said = finding(LOOKUP, || bound(r#"["192.0.2.1"]"#, 0)).await;
    assert!(said.contains("too wide  group agents: its token never ends"), "{said}");
}

#[tokio::test]
async fn a_token_good_at_other_addresses_is_too_wide() {
    for good in [r#"["192.0.2.1"]"#, r#"["192.0.2.1/32","2001:db8::7"]"#, r#"["2001:db8::/80"]"#] {
        let (health, _fake) = found(move |request| match request.target.as_str() {
            LOOKUP => bound(good, 3600),
            _ => healthy(request),
        })
        .await;
        assert!(health.is_good(), "{good}: {health}");
    }
    for (cidrs, wide) in [
        (r#"["192.0.2.1","192.0.2.2"]"#, "192.0.2.2"),
        (r#"["192.0.2.0/31"]"#, "192.0.2.0/31"),
        (r#"["2001:db8::/63"]"#, "2001:db8::/63"),
        (r#"["::ffff:192.0.2.1"]"#, "::ffff:192.0.2.1"),
        (r#"["gateway"]"#, "gateway"),
    ] {
        let said = finding(LOOKUP, move || bound(cidrs, 3600)).await;
        let wanted = format!("its token is good at {wide}, and needs 192.0.2.1/32, 2001:db8::/64");
        assert!(said.contains(&format!("too wide  gateway: {wanted}")), "{said}");
        assert!(said.contains(&format!("too wide  group agents: {wanted}")), "{said}");
    }
}

#[tokio::test]
async fn a_rule_beside_the_plans_is_too_wide_anywhere() {
    let read = || json!({ "capabilities": ["list", "read"] });
    let denied = || json!({ "capabilities": ["deny"] });
    let (health, _fake) = found(move |request| match request.target.as_str() {
        RULES if request.token.as_deref() == Some(CHILD_TOKEN) => rules(
            request.token.as_deref(),
            json!({ "finance/data/a": read(), "finance/data/b": denied() }),
            json!({ "billing/": read(), "other/": denied(), "x/+/y": read(), "cubbyhole/": read() }),
        ),
        _ => healthy(request),
    })
    .await;
    let report = health.to_string();
    let says = "too wide  group agents: its policies have more rules: list+read billing/*, \
                list+read finance/data/a, list+read x/+/y\n";
    assert!(report.contains(says), "{report}");
    assert!(report.contains("\n  billing/*\n  finance/data/a\n  kv/data/team/openai\n  x/+/y\n"));
    assert_eq!(report.matches("too wide ").count(), 1, "{report}");
}

#[tokio::test]
async fn a_token_with_another_policy_is_too_wide() {
    let own = r#"["default","cloakroom-gateway","cloakroom-agents"]"#;
    for (policies, identity) in
        [(r#"["cloakroom-agents","finance"]"#, "[]"), (own, r#"["default","finance"]"#)]
    {
        let said = finding(LOOKUP, move || {
            looked(&format!(
                r#""bound_cidrs":["192.0.2.1"],"ttl":3600,"policies":{policies},
                "identity_policies":{identity}"#
            ))
        })
        .await;
        assert!(said.contains("too wide  group agents: its token has the policies "), "{said}");
        assert!(said.contains("finance, and needs cloakroom-agents alone"), "{said}");
    }
}

#[tokio::test]
async fn a_role_handing_on_any_policy_is_too_wide() {
    let (health, fake) = found(|request| match request.target.as_str() {
        CHILD if request.body.contains("policies") => child("hvs.wide-0123456789", 3600),
        _ => healthy(request),
    })
    .await;
    assert!(health.to_string().contains("its role hands on any policy"), "{health}");
    let received = fake.received.lock().unwrap();
    let given_back = received.iter().filter(|one| one.target == REVOKE);
    assert!(given_back.filter_map(|one| one.token.as_deref()).any(|it| it.contains("wide")));
}

#[tokio::test]
async fn what_vault_does_not_answer_is_a_finding() {
    let broken = || FakeReply::Json(500, "{}".to_owned());
    for (target, says) in [
        (LOGIN, "unknown   gateway: "),
        (CHILD, "unknown   group agents: "),
        (LOOKUP, "unknown   gateway: Vault does not say how"),
        (CAPABILITIES, "unknown   group agents: Vault does not say what"),
        (RULES, "unknown   group agents: Vault does not list"),
    ] {
        let said = finding(target, broken).await;
        assert!(said.contains(says), "{target}: {said}");
    }
    let silent = || looked(r#""bound_cidrs":["192.0.2.1"],"ttl":3600"#);
    let said = finding(LOOKUP, silent).await;
    assert!(said.contains("unknown   group agents: Vault does not say how"), "{said}");
    for answer in ["{}", r#"{"data":{}}"#, r#"{"data":{"kv/data/team/openai":"read"}}"#] {
        let said = finding(CAPABILITIES, move || FakeReply::Json(200, answer.to_owned())).await;
        assert!(said.contains("unknown   gateway: Vault does not say what"), "{said}");
    }
    for answer in ["{}", r#"{"data":{"root":true}}"#, r#"{"data":{"exact_paths":{}}}"#] {
        let said = finding(RULES, move || FakeReply::Json(200, answer.to_owned())).await;
        assert!(said.contains("unknown   gateway: Vault does not list"), "{answer}: {said}");
    }
    let said = finding(LOGIN, || FakeReply::Json(400, "{}".to_owned())).await;
    assert!(said.contains("missing   gateway: Vault refused the login"), "{said}");
}

#[tokio::test]
async fn anything_that_prevents_the_next_login_is_a_finding() {
    for lockable in ["false", "null", "\"true\""] {
        let said = finding(MOUNT, move || mount(lockable)).await;
        assert!(said.contains("too wide  gateway: whoever knows its role_id can lock"), "{said}");
    }
    let said = finding(SECRET_ID_LOOKUP, || secret_id(3, 0)).await;
    assert!(said.contains("missing   gateway: its SecretID is good for a few more"), "{said}");
    let said = finding(SECRET_ID_LOOKUP, || secret_id(0, 60)).await;
    assert!(said.contains("missing   gateway: its SecretID ends at a time"), "{said}");
    let said = finding(SECRET_ID_LOOKUP, || FakeReply::Json(204, String::new())).await;
    assert!(said.contains("missing   gateway: its SecretID was good for this login"), "{said}");
    for target in [MOUNT, SECRET_ID_LOOKUP] {
        let said = finding(target, || FakeReply::Json(403, "{}".to_owned())).await;
        assert!(said.contains("unknown   gateway: Vault does not say"), "{said}");
    }
    let said = finding(LOGIN, || FakeReply::Json(403, "{}".to_owned())).await;
    assert!(said.contains("missing   gateway: locked out"), "{said}");
}

const MOUNT: &str = "/v1/sys/internal/ui/mounts/auth/approle";
const SECRET_ID_LOOKUP: &str = "/v1/auth/approle/role/cloakroom-gateway/secret-id/lookup";
const CAPABILITIES: &str = "/v1/sys/capabilities-self";
const RULES: &str = "/v1/sys/internal/ui/resultant-acl";

/// A configuration of one group, whose key is in this Vault.
fn file(fake: &Fake) -> policy_builder::Config {
    let folder = fake.folder.0.display();
    let login = Table::section("approle")
        .set("role_id", "7b1c2f60-93d4-4e0a-b5c8-6a1f0e2d3c49")
        .set("secret_id_file", format!("{folder}/secret-id"));
    let place = "header authorization bearer";
    let key = binding("agents", "OPENAI_API_KEY", &[place], "vault:kv/team/openai#key");
    policy_builder::Config::of_rules()
        .without("secrets")
        .vault("address", &fake.address)
        .vault("ca_file", format!("{folder}/ca.pem"))
        .login(login)
        .with(group("agents", "agents0", &["192.0.2.0/28"]))
        .with(api("openai", &["api.openai.com"]).with(key))
}
