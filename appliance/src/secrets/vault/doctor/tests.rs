//! What a real Vault does not say on demand, against the fake.

use super::{super::fake::*, *};
use crate::config::{self, Config};

/// What is found in a fake that answers so.
async fn found(respond: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> (Health, Fake) {
    let fake = Fake::start(respond).await;
    let folder = fake.folder.0.display().to_string();
    let text = CONFIG.replace("ADDRESS", &fake.address).replace("FOLDER", &folder);
    fake.folder.write("cloakroom.toml", text.as_bytes(), 0o600);
    let loaded = config::load(&fake.folder.0.join("cloakroom.toml"));
    let Config { settings, policy } = loaded.unwrap_or_else(|errors| panic!("{errors}"));
    let bound = ["192.0.2.1/32", "2001:db8::/64"].map(|own| own.parse().unwrap());
    (examine(&settings, &policy, &bound).await.unwrap(), fake)
}

fn bound(cidrs: &str, ttl: u64) -> Reply {
    looked(&format!(r#""bound_cidrs":{cidrs},"ttl":{ttl},"policies":["default"]"#))
}

fn looked(rest: &str) -> Reply {
    Reply::Json(200, format!(r#"{{"data":{{"id":"{TOKEN}",{rest}}}}}"#))
}

/// Each path that is needed has what it needs, and no other has anything.
fn capabilities(request: &Received) -> Reply {
    let asked: serde_json::Value = serde_json::from_str(&request.body).unwrap();
    let of_child = request.token.as_deref() == Some(CHILD_TOKEN);
    let may = |path: &str| match path {
        "auth/token/lookup-self" => "read",
        "kv/data/team/openai" if of_child => "read",
        "auth/token/create/cloakroom-agents" | "auth/token/revoke-accessor" if !of_child => {
            "update"
        }
        "auth/token/renew-self" | "auth/token/revoke-self" | "sys/capabilities-self" => "update",
        _ => "deny",
    };
    let paths = asked["paths"].as_array().unwrap().iter().filter_map(|path| path.as_str());
    let data: BTreeMap<&str, [&str; 1]> = paths.map(|path| (path, [may(path)])).collect();
    Reply::Json(200, serde_json::json!({ "data": data }).to_string())
}

fn healthy(request: &Received) -> Reply {
    match request.target.as_str() {
        LOGIN => grant(TOKEN, 3600),
        CHILD if request.body.contains("policies") => Reply::Json(400, "{}".to_owned()),
        CHILD => child(CHILD_TOKEN, 3600),
        LOOKUP => bound(r#"["192.0.2.1"]"#, 3600),
        CAPABILITIES => capabilities(request),
        REVOKE => Reply::Json(204, String::new()),
        other => panic!("unexpected {other}"),
    }
}

/// The one finding where the fake answers `target` so.
async fn finding(
    target: &'static str,
    reply: impl Fn() -> Reply + Send + Sync + 'static,
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
async fn a_healthy_vault_is_asked_for_no_secret_and_gets_its_tokens_back() {
    let (health, fake) = found(healthy).await;
    assert!(health.is_good(), "{health}");
    let report = health.to_string();
    assert!(report.contains("group agents can read:\n  kv/data/team/openai\n"), "{report}");
    assert_eq!(fake.count(READ), 0);
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
async fn a_token_that_is_good_for_ever_or_everywhere_is_too_wide() {
    for cidrs in ["null", "[]", r#"["192.0.2.1","0.0.0.0/0"]"#, r#"["::/0"]"#] {
        let said = finding(LOOKUP, move || bound(cidrs, 3600)).await;
        assert!(said.contains("too wide  gateway: its token is good from everywhere"), "{said}");
    }
    let said = finding(LOOKUP, || bound(r#"["192.0.2.1"]"#, 0)).await;
    assert!(said.contains("too wide  group agents: its token never ends"), "{said}");
}

#[tokio::test]
async fn a_token_with_another_policy_is_too_wide_wherever_that_comes_from() {
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
async fn a_role_that_hands_on_any_policy_is_too_wide_and_what_it_made_is_given_back() {
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
    let broken = || Reply::Json(500, "{}".to_owned());
    for (target, says) in [
        (LOGIN, "unknown   gateway: "),
        (CHILD, "unknown   group agents: "),
        (LOOKUP, "unknown   gateway: Vault does not say how"),
        (CAPABILITIES, "unknown   group agents: Vault does not say what"),
    ] {
        let said = finding(target, broken).await;
        assert!(said.contains(says), "{target}: {said}");
    }
    let silent = || looked(r#""bound_cidrs":["192.0.2.1"],"ttl":3600"#);
    let said = finding(LOOKUP, silent).await;
    assert!(said.contains("unknown   group agents: Vault does not say how"), "{said}");
    for answer in ["{}", r#"{"data":{}}"#, r#"{"data":{"kv/data/team/openai":"read"}}"#] {
        let said = finding(CAPABILITIES, move || Reply::Json(200, answer.to_owned())).await;
        assert!(said.contains("unknown   gateway: Vault does not say what"), "{said}");
    }
    let said = finding(LOGIN, || Reply::Json(400, "{}".to_owned())).await;
    assert!(said.contains("missing   gateway: Vault refused the login"), "{said}");
}

const CAPABILITIES: &str = "/v1/sys/capabilities-self";

const CONFIG: &str = r#"
[gateway]
resolvers = ["192.0.2.53"]
[vault]
address = "ADDRESS"
ca_file = "FOLDER/ca.pem"
[vault.approle]
role_id = "role-1"
secret_id_file = "FOLDER/secret-id"
[[group]]
name = "agents"
interface = "agents0"
prefixes = ["192.0.2.0/28"]
[[api]]
name = "openai"
hosts = ["api.openai.com"]
[[api.binding]]
groups = ["agents"]
placeholder = "OPENAI_API_KEY"
places = ["header authorization bearer"]
secret = "vault:kv/team/openai#key"
"#;
