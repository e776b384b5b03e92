//! Properties of plans, from the text of a configuration.

use std::{io, path::Path};

use policy_builder::{Config as File, Table, api, binding, group};

use super::*;
use crate::config::{Config, parse};

/// Two groups that ask one API, the second with a secret from here.
fn both(secret: &str) -> File {
    let login =
        Table::section("approle").set("role_id", ROLE_ID).set("secret_id_file", "it's $(here)");
    let key = |group: &str, secret: &str| {
        binding(group, "OPENAI_API_KEY", &["header authorization bearer"], secret)
    };
    let openai = api("openai", &["api.openai.com"])
        .with(key("research", FIRST))
        .with(key("operations", secret));
    File::of_rules()
        .without("secrets")
        .vault("address", "https://vault.example:8200")
        .vault("ca_file", "ca.pem")
        .login(login)
        .with(group("research", "agents0", &["192.0.2.0/28"]))
        .with(group("operations", "agents1", &["192.0.2.16/28"]))
        .with(openai)
}

const ROLE_ID: &str = "7b1c2f60-93d4-4e0a-b5c8-6a1f0e2d3c49";
/// The first group's secret.
const FIRST: &str = "vault:kv/agents/openai?version=3#api_key";

fn config(file: &File) -> Config {
    let key = rcgen::KeyPair::generate().unwrap();
    let ca = rcgen::CertificateParams::default().self_signed(&key).unwrap().pem();
    let only_the_ca = |path: &Path| match path.ends_with("ca.pem") {
        true => Ok(ca.clone()),
        false => Err(io::Error::from(io::ErrorKind::NotFound)),
    };
    parse(&file.to_string(), Some(Path::new("/etc/cloakroom")), "test.toml", &only_the_ca)
        .unwrap_or_else(|errors| panic!("{errors}"))
}

fn plan_of(file: &File) -> Result<VaultPlan, PlanError> {
    let Config { settings, policy } = config(file);
    VaultPlan::new(&settings, &policy, vec!["192.0.2.1/32".parse().unwrap()])
}

/// The plan where the second group's secret is this.
fn plan(secret: &str) -> VaultPlan {
    plan_of(&both(secret)).unwrap_or_else(|error| panic!("{error}"))
}

fn paths(policy: &str) -> Vec<&str> {
    policy.lines().filter_map(|line| line.strip_prefix("path \"")?.strip_suffix("\" {")).collect()
}

const OWN: [&str; 3] =
    ["auth/token/lookup-self", "auth/token/renew-self", "auth/token/revoke-self"];

#[test]
fn a_group_reads_its_own_paths_and_the_gateway_none() {
    let plan = plan("vault:kv/agents/ops#api_key");
    let gateway = plan.policy(GATEWAY).unwrap();
    assert!(!gateway.contains("kv/") && !gateway.contains("sys/leases"), "{gateway}");
    let creates = ["operations", "research"].map(|group| format!("create/cloakroom-{group}"));
    assert!(creates.iter().all(|create| gateway.contains(create)), "{gateway}");
    for (group, secret) in [("research", "openai"), ("operations", "ops")] {
        let policy = plan.policy(&format!("cloakroom-{group}")).unwrap();
        let own = format!("kv/data/agents/{secret}");
        let expected = [&OWN[..], &[&own, "sys/capabilities-self", OWN_RULES]].concat();
        assert_eq!(paths(&policy), expected);
    }
    assert!(matches!(plan.policy("other"), Err(PlanError::NoPolicy(_))));
}

#[test]
fn what_is_leased_brings_the_questions_about_leases() {
    let plan = plan("vault-read:database/creds/ops#password");
    let policy = plan.policy("cloakroom-operations").unwrap();
    for (path, more) in [("lookup", ""), ("renew", "    \"increment\" = []\n"), ("revoke", "")] {
        let expected = format!(
            r#"path "sys/leases/{path}" {{
  capabilities = ["update"]
  required_parameters = ["lease_id"]
  allowed_parameters = {{
{more}    "lease_id" = ["database/creds/ops/*"]
  }}
  denied_parameters = {{
    "lease_id" = ["", []]
  }}
}}
"#
        );
        assert!(policy.contains(&expected), "{policy}");
    }
    assert!(policy.contains("path \"database/creds/ops\" {\n  capabilities = [\"read\"]\n}"));
    assert!(!plan.policy("cloakroom-research").unwrap().contains("sys/leases"));
}

#[test]
fn a_write_may_say_what_is_configured_and_nothing_else() {
    let one = plan("vault-write:pki/issue/web?common_name=a.example&Ttl=1h#certificate");
    let policy = one.policy("cloakroom-operations").unwrap();
    let expected = r#"path "pki/issue/web" {
  capabilities = ["update"]
  required_parameters = ["common_name", "ttl"]
  allowed_parameters = {
    "common_name" = ["a.example"]
    "ttl" = ["1h"]
  }
  denied_parameters = {
    "common_name" = ["", []]
    "ttl" = ["", []]
  }
}
"#;
    assert!(policy.contains(expected), "{policy}");
    let none = plan("vault-write:ssh/creds/ops#key").policy("cloakroom-operations").unwrap();
    assert!(none.contains("denied_parameters = {\n    \"*\" = []\n  }"), "{none}");
}

/// The parameters that a live Vault allows are checked against the plan.
#[test]
fn a_live_right_beyond_the_plan_is_seen() {
    let plan = plan("vault-write:ssh/creds/ops?ip=192.0.2.9&user=a#key");
    let role = plan.rights.roles.iter().find(|role| &*role.role == "cloakroom-operations");
    let limits = |path: &str, live: serde_json::Value| {
        let grant = role.unwrap().grants.iter().find(|grant| grant.path == path);
        grant.unwrap().limits(&serde_json::from_value::<WritableParameters>(live).unwrap())
    };
    let good = || {
        serde_json::json!({
            "allowed_parameters": { "ip": ["192.0.2.9"], "user": ["a"] },
            "denied_parameters": { "ip": ["", []], "user": [] },
            "required_parameters": ["IP", "user", "other"],
        })
    };
    assert!(limits("ssh/creds/ops", good()));
    for (key, value) in [
        ("allowed_parameters", serde_json::json!(null)),
        ("allowed_parameters", serde_json::json!({})),
        ("allowed_parameters", serde_json::json!({ "*": [], "ip": ["192.0.2.9"] })),
        ("allowed_parameters", serde_json::json!({ "ip": [], "user": ["a"] })),
        ("allowed_parameters", serde_json::json!({ "ip": ["192.0.2.*"], "user": ["a"] })),
        ("allowed_parameters", serde_json::json!({ "ip": ["192.0.2.9"], "ttl": ["1h"] })),
        ("allowed_parameters", serde_json::json!({ "ip": [["192.0.2.9"]] })),
        ("denied_parameters", serde_json::json!({ "ip": ["", []] })),
        ("denied_parameters", serde_json::json!({ "ip": [""], "user": [] })),
        ("required_parameters", serde_json::json!(["ip"])),
    ] {
        let mut live = good();
        live[key] = value;
        assert!(!limits("ssh/creds/ops", live.clone()), "{live}");
    }
    let lease = |ids: serde_json::Value| {
        serde_json::json!({
            "allowed_parameters": { "lease_id": ids, "increment": null },
            "denied_parameters": { "lease_id": ["", []] },
            "required_parameters": ["lease_id"],
        })
    };
    assert!(limits("sys/leases/renew", lease(serde_json::json!(["ssh/creds/ops/*"]))));
    assert!(!limits("sys/leases/renew", lease(serde_json::json!(["ssh/creds/*"]))));
    assert!(
        limits("auth/token/renew-self", serde_json::json!({})),
        "the plan limits nothing there"
    );
    let none = self::plan("vault-write:ssh/creds/ops#key").policy("cloakroom-operations").unwrap();
    assert!(none.contains("\"*\" = []"), "{none}");
}

#[test]
fn an_optional_limit_or_an_added_parameter_is_too_much() {
    let holds = |live: serde_json::Value| {
        serde_json::from_value::<WritableParameters>(live).unwrap().holds_to(&["csr", "ttl"])
    };
    let good = || {
        serde_json::json!({
            "allowed_parameters": { "csr": [], "ttl": ["20s"] },
            "required_parameters": ["ttl", "csr"],
        })
    };
    assert!(holds(good()));
    for (key, value) in [
        ("required_parameters", serde_json::json!(null)),
        ("required_parameters", serde_json::json!(["csr"])),
        ("allowed_parameters", serde_json::json!(null)),
        ("allowed_parameters", serde_json::json!({})),
        ("allowed_parameters", serde_json::json!({ "*": [] })),
        ("allowed_parameters", serde_json::json!({ "csr": [], "ttl": [], "issuer_ref": [] })),
    ] {
        let mut live = good();
        live[key] = value;
        assert!(!holds(live.clone()), "{live}");
    }
}

#[test]
fn a_path_is_never_a_pattern() {
    for path in ["kv/+/a", "kv/a*", "kv/{{x}}", "kv/a\"b", "kv/a\\b", "kv/a\nb", "kv//a", "+"] {
        let refused = check_path("path", path);
        assert!(matches!(refused, Err(PlanError::Pattern { .. })), "{path}");
    }
    assert!(check_path("path", "kv/data/a+b@c.d/e").is_ok());
    for secret in [
        "vault-write:a/b?k=%2A#k",
        "vault-write:a/b?k=x%22#k",
        "vault-write:a/b?k=%7B%7Bx%7D%7D#k",
        "vault-write:a/b?k=%24%7Bx%7D#k",
        "vault-write:a/b?k=%0A#k",
    ] {
        let refused = plan_of(&both(secret));
        assert!(matches!(refused, Err(PlanError::Pattern { .. })), "{secret}");
    }
}

#[test]
fn a_token_role_is_one_groups_or_reads_the_same() {
    let rights = |role: &str, other: &str, secret: &str| {
        let file = both(secret)
            .group("research", |it| it.set("vault_role", role))
            .group("operations", |it| it.set("vault_role", other));
        let Config { settings, policy } = config(&file);
        Rights::new(&settings, &policy)
    };
    assert_eq!(rights("team", "team", FIRST).unwrap().roles[0].groups.len(), 2);
    let other = "vault:kv/agents/ops#api_key";
    assert!(matches!(rights("team", "team", other), Err(PlanError::SharedRole(..))));
    assert!(matches!(rights("team", "Team", FIRST), Err(PlanError::SharedRole(..))));
    for reserved in ["root", "Default", GATEWAY] {
        assert!(
            matches!(rights(reserved, "team", FIRST), Err(PlanError::Reserved(..))),
            "{reserved}"
        );
    }
}

#[test]
fn tokens_are_bound_or_there_is_no_plan() {
    let Config { settings, policy } = config(&both("vault:kv/a#k"));
    assert!(matches!(VaultPlan::new(&settings, &policy, vec![]), Err(PlanError::Unbound)));
    let shell = plan("vault:kv/a#k").shell();
    assert_eq!(shell.matches("token_bound_cidrs='192.0.2.1/32'").count(), 3, "{shell}");
    assert!(shell.contains(" secret_id_bound_cidrs='192.0.2.1/32'"), "{shell}");
    let terraform = plan("vault:kv/a#k").terraform();
    let bound = terraform.lines().filter(|line| line.trim().starts_with("token_bound_cidrs "));
    assert!(bound.clone().all(|line| line.ends_with("= [\"192.0.2.1/32\"]")), "{terraform}");
    assert_eq!(bound.count(), 3);
}

#[test]
fn a_shell_reads_what_the_configuration_says_as_text() {
    let shell = plan("vault:kv/a#k").shell();
    let plan = plan_of(&both("vault:kv/a#k").login_key("mount", "team/gateways"));
    let shell_of_mount = plan.unwrap_or_else(|error| panic!("{error}")).shell();
    let tuned = "-user-lockout-disable=true 'team/gateways'";
    assert!(shell_of_mount.contains(tuned), "{shell_of_mount}");
    assert!(shell.contains(r"secret-id '/etc/cloakroom/it'\''s $(here)'"), "{shell}");
    let newline = plan_of(&both("vault:kv/a#k").login_key("secret_id_file", "it's \nreboot"));
    assert!(matches!(newline, Err(PlanError::Pattern { what: "file", .. })));
}

#[test]
fn the_id_of_the_role_is_one_that_nobody_guesses() {
    let named = plan_of(&both("vault:kv/a#k").login_key("role_id", "gateway"));
    assert!(matches!(named, Err(PlanError::Guessable(_))));
}

#[test]
fn an_approle_login_does_not_end_or_lock_out() {
    let plan = plan("vault:kv/a#k");
    let (shell, terraform) = (plan.shell(), plan.terraform());
    for zero in ["secret_id_num_uses", "secret_id_ttl", "token_max_ttl", "token_num_uses"] {
        assert!(shell.contains(&format!(" {zero}=0 ")), "{zero}: {shell}");
        let line = terraform.lines().find(|line| line.trim().starts_with(&format!("{zero} ")));
        assert!(line.is_some_and(|line| line.ends_with("= 0")), "{zero}: {terraform}");
    }
    assert!(shell.contains("vault auth tune -user-lockout-disable=true 'approle'\n"), "{shell}");
    assert!(terraform.contains(r#"lockout_disable\":true"#), "{terraform}");
}

#[test]
fn a_namespace_is_where_everything_is_made() {
    let file = both("vault:kv/a#k").vault("namespace", "team/a");
    let plan = plan_of(&file).unwrap_or_else(|error| panic!("{error}"));
    let shell = plan.shell();
    let (before, after) = shell.split_once("export VAULT_NAMESPACE='team/a'\n").unwrap();
    assert!(!before.contains("\nvault ") && after.contains("\nvault "), "{shell}");
    let terraform = plan.terraform();
    let resources = terraform.lines().filter(|line| line.starts_with("resource "));
    let within = terraform.lines().filter(|line| {
        line.trim()
            .split_once('=')
            .is_some_and(|(key, value)| (key.trim(), value.trim()) == ("namespace", "\"team/a\""))
    });
    assert_eq!(resources.count(), within.count(), "{terraform}");
}

#[test]
fn terraform_reads_no_template() {
    assert_eq!(terraform::text("a${b}%{c}\"\\"), "\"a$${b}%%{c}\\\"\\\\\"");
    assert_ne!(terraform::label("a_b"), terraform::label("a-b"));
    assert_ne!(terraform::label("a.b"), terraform::label("a@b"));
}

#[test]
fn a_configuration_without_vault_has_no_plan() {
    let file = both("file:a")
        .without("vault")
        .secrets("file", "s")
        .api("openai", |it| it.below("binding", |it| it.set("secret", "file:b")));
    let Config { settings, policy } = config(&file);
    assert!(matches!(Rights::new(&settings, &policy), Err(PlanError::NoVault)));
}

#[test]
fn every_other_login_is_bound_too() {
    let cert = Table::section("cert").set("role", "gw").set("certificate_file", "c.pem");
    let jwt = Table::section("jwt").set("role", "gw").set("token_file", "t");
    for (login, says) in [
        (
            cert.set("key_file", "k.pem"),
            "vault write 'auth/cert/certs/gw' certificate=@'/etc/cloakroom/c.pem'",
        ),
        (
            jwt.clone(),
            "vault write 'auth/jwt/role/gw' role_type=jwt user_claim=sub bound_subject=\"${SUBJECT:?",
        ),
        (
            jwt.set("mount", "kubernetes"),
            "vault write 'auth/kubernetes/role/gw' bound_service_account_names=\"${SERVICE_ACCOUNT:?",
        ),
    ] {
        let file = both("file:a").secrets("file", "s").login(login);
        let Config { settings, policy } = config(&file);
        let plan =
            VaultPlan::new(&settings, &policy, vec!["2001:db8::/64".parse().unwrap()]).unwrap();
        let shell = plan.shell();
        assert!(shell.contains(says), "{shell}");
        assert_eq!(shell.matches("token_bound_cidrs='2001:db8::/64'").count(), 2, "{shell}");
        let nothing = !shell.contains("cloakroom-operations");
        assert!(nothing, "a group with nothing from Vault: {shell}");
        let terraform = plan.terraform();
        assert!(terraform.contains("token_bound_cidrs") && !terraform.contains("approle"));
    }
}
