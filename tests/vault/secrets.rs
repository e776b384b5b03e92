//! The source of the keys, and its failure: 503, and nothing is forwarded.

use std::{
    thread,
    time::{Duration, Instant},
};

use lab::{
    Lab,
    audit::Record,
    client::Response,
    dns::Dns,
    gateway::{self, GIT_SECRET, Gateway, OPENAI_SECRET, OPS_SECRET},
    net::{AGENT, AGENT2, INTERNET, Ns, OPENAI},
    origin::Origin,
    sandboxed,
    vault::{self, Vault},
    wait,
};
use policy_builder::{Config, Table};
use serde_json::Value;

use crate::world::{TICKET, World, get};

/// A world whose secrets come from a real Vault.
pub struct WithVault {
    pub world: World,
    pub vault: Vault,
}

impl WithVault {
    pub fn start() -> Self {
        Self::prepared(|_, _| {})
    }

    fn prepared(prepare: impl FnOnce(&Lab, &mut Vault)) -> Self {
        Self::configured(|lab, vault| {
            prepare(lab, vault);
            vault.config()
        })
    }

    /// Starts one with another configuration, after changes to Vault.
    pub fn configured(configure: impl FnOnce(&Lab, &mut Vault) -> Config) -> Self {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let dns = Dns::start();
        let mut vault = Vault::start(&lab);
        let config = configure(&lab, &mut vault);
        let gateway = Gateway::start(&lab, &config);
        Self { world: World { lab, origin, dns, gateway }, vault }
    }

    /// Returns the status of the first agent's answer from the OpenAI host.
    pub fn status(&self) -> u16 {
        self.world.ask(&get(&[TICKET])).status.as_u16()
    }

    /// Waits until that is the status.
    #[track_caller]
    pub fn becomes(&self, status: u16) {
        wait::expect(&format!("{status}"), || self.status() == status);
    }
}

#[test]
fn a_key_from_a_real_vault_reaches_the_api() {
    sandboxed(|| {
        let it = WithVault::start();
        assert_eq!(it.status(), 200);
        let request = &it.world.origin.log().wait_requests(1)[0];
        assert_eq!(request.header("authorization"), [format!("Bearer {OPENAI_SECRET}")]);
        it.world.assert_secrets_untold();
    });
}

#[test]
fn an_unusable_value_is_said_and_not_called_available() {
    sandboxed(|| {
        let it = WithVault::configured(|_, vault| {
            let user = |it: Table| it.set("places", ["basic user"]).without("basic_user");
            vault.config().binding("GIT_TOKEN", user)
        });
        let missing = |name: &str| {
            let missing =
                crate::lifecycle::control::status(&it.world)["secrets"]["missing"].clone();
            missing.as_array().map_or(0, |all| {
                let of_key = |one: &&Value| one.to_string().contains(&format!("agents/{name}"));
                all.iter().filter(of_key).filter(|one| one["cause"] == "value_invalid").count()
            })
        };
        for (name, never, good, says) in [
            ("openai", "8-bytes!", OPENAI_SECRET, "the value is shorter than a binding takes it"),
            (
                "git",
                "user:and-its-password",
                GIT_SECRET,
                "the value has a ':', and the user of Basic",
            ),
        ] {
            assert_eq!(missing(name), 0);
            it.vault.put(name, never);
            wait::expect(says, || it.world.gateway.stderr().contains(says));
            assert_eq!(missing(name), 1);
            it.vault.put(name, good);
            wait::expect("it is available", || missing(name) == 0);
        }
        assert_eq!(it.status(), 200);
    });
}

#[test]
fn a_mistyped_field_degrades_the_gateway_and_status_says_which() {
    sandboxed(|| {
        let mistyped = "vault:kv/agents/openai#api_kye";
        let it = WithVault::configured(|_, vault| {
            vault.config().binding("OPENAI_API_KEY", |it| it.set("secret", mistyped))
        });
        let status = crate::lifecycle::control::status(&it.world);
        assert_eq!(status["health"]["state"], "degraded", "{status}");
        let texts = crate::lifecycle::control::causes(&it.world, "secret_unavailable");
        let [text] = texts.as_slice() else { panic!("{texts:?}") };
        assert!(text.contains("agents/openai#api_kye") && text.contains("openai"), "{text}");
        assert!(text.contains("field"), "it says what is wrong: {text}");
        assert_eq!(it.status(), 503);

        gateway::install(&it.world.lab, &it.vault.config());
        crate::lifecycle::control::tell(&it.world, &["reload"], 0);
        it.becomes(200);
        assert_eq!(crate::lifecycle::control::status(&it.world)["health"]["state"], "healthy");
    });
}

#[test]
fn a_quota_of_vaults_is_named_and_waited_for() {
    sandboxed(|| {
        let it = WithVault::start();
        assert_eq!(it.status(), 200);
        it.vault.cli(&["write", "sys/quotas/rate-limit/lab", "path=kv", "rate=1", "interval=12s"]);
        it.becomes(503);
        let said = it.world.gateway.stderr();
        assert!(said.contains("a quota of Vault's is used up"), "{said}");
        assert!(!said.contains("vault_sealed"), "{said}");
        let record = it.world.gateway.audit.wait_reason("secret_unavailable");
        assert_eq!(record["cause"], "vault_quota", "{record}");
        it.vault.cli(&["delete", "sys/quotas/rate-limit/lab"]);
        it.becomes(200);
    });
}

#[test]
fn a_deleted_key_is_dropped_at_once() {
    sandboxed(|| {
        // An outage would be bridged for longer than this test waits.
        let it = WithVault::configured(|_, vault| vault.config().vault("max_stale", "5m"));
        assert_eq!(it.status(), 200);
        it.vault.cli(&["kv", "metadata", "delete", "-mount=kv", "agents/openai"]);
        it.becomes(503);
        let record = it.world.gateway.audit.wait_reason("secret_unavailable");
        assert_eq!(record["cause"], "vault_denied", "{record}");
    });
}

/// Returns a world, with its key at `reference`, that reads its values again only where Vault
/// itself says when.
fn read_when_vault_says(reference: &str, prepare: impl FnOnce(&Vault)) -> WithVault {
    WithVault::configured(|_, vault| {
        prepare(vault);
        let config = vault.config().vault("refresh", "1h").vault("max_stale", "2h");
        config.binding("OPENAI_API_KEY", |it| it.set("secret", reference))
    })
}

#[test]
fn a_version_ended_in_vault_is_used_no_longer() {
    sandboxed(|| {
        let lives = Duration::from_secs(5);
        let written = Instant::now();
        let it = read_when_vault_says("vault:kv/agents/brief#api_key", |vault| {
            let life = format!("-delete-version-after={}s", lives.as_secs());
            vault.cli(&["kv", "metadata", "put", "-mount=kv", &life, "agents/brief"]);
            vault.put("brief", OPENAI_SECRET);
        });
        let asked = it.status();
        assert!(asked == 200 || written.elapsed() > lives, "{asked}");
        it.becomes(503);
        assert!(written.elapsed() > lives, "it ended early: {:?}", written.elapsed());
        let record = it.world.gateway.audit.wait_reason("secret_unavailable");
        let causes = ["lease_ended", "vault_denied"];
        assert!(causes.contains(&record["cause"].as_str().unwrap_or_default()), "{record}");
    });
}

#[test]
fn a_kv_1_value_is_read_when_vault_says() {
    sandboxed(|| {
        let life = "ttl=5s";
        let it = read_when_vault_says("vault-read:kv1/openai#api_key", |vault| {
            vault.cli(&["secrets", "enable", "-path=kv1", "-version=1", "kv"]);
            vault.cli(&["write", "kv1/openai", &format!("api_key={OPENAI_SECRET}"), life]);
            let read = "path \"kv/data/agents/*\" { capabilities = [\"read\"] }\n\
                        path \"kv1/openai\" { capabilities = [\"read\"] }\n";
            vault.policy("agents-research", read);
        });
        assert_eq!(it.status(), 200);
        let other = "sk-lab-of-kv-version-1";
        it.vault.cli(&["write", "kv1/openai", &format!("api_key={other}"), life]);
        let written = Instant::now();
        wait::expect("the new one is in use", || {
            it.status() == 200 && it.world.origin.log().holds(other)
        });
        assert!(written.elapsed() < Duration::from_secs(8), "{:?}", written.elapsed());
    });
}

/// Returns the answer of the OpenAI host to a bearer of `placeholder` in `ns`.
fn ask_from(it: &WithVault, ns: Ns, placeholder: &str) -> Response {
    let mut tls = it.world.h1_from(ns, OPENAI.port(443), OPENAI.name).expect("a handshake");
    let ticket = format!("Authorization: Bearer {placeholder}");
    tls.ask(get(&[&ticket])).expect("an answer")
}

/// Returns a world where both groups use OPENAI_API_KEY, and Vault has a value of it for each.
fn one_placeholder_two_values() -> WithVault {
    WithVault::configured(|_, vault| {
        vault.config().binding("OPS_OPENAI_KEY", |it| it.set("placeholder", "OPENAI_API_KEY"))
    })
}

#[test]
fn two_groups_with_one_placeholder_get_their_own_values() {
    sandboxed(|| {
        let it = one_placeholder_two_values();
        for (ns, secret) in [(AGENT, OPENAI_SECRET), (AGENT2, OPS_SECRET)] {
            it.world.origin.log().clear();
            assert_eq!(ask_from(&it, ns, "OPENAI_API_KEY").status, 200);
            let request = &it.world.origin.log().wait_requests(1)[0];
            assert_eq!(request.header("authorization"), [format!("Bearer {secret}")]);
        }
        it.world.assert_secrets_untold();
    });
}

#[test]
fn a_vault_policy_takes_effect_within_a_refresh() {
    sandboxed(|| {
        let it = one_placeholder_two_values();
        let status = |ns| ask_from(&it, ns, "OPENAI_API_KEY").status.as_u16();
        assert_eq!((status(AGENT), status(AGENT2)), (200, 200));
        for _ in 0..2 {
            let refused = || -> Vec<Record> {
                let records = it.world.requests().into_iter();
                records.filter(|record| record["reason"] == "secret_unavailable").collect()
            };
            let before = refused().len();
            it.vault.forbid_group("operations");
            let begun = Instant::now();
            wait::expect("503", || status(AGENT2) == 503);
            assert!(begun.elapsed() < SOON_AFTER_REFRESH, "taken: {:?}", begun.elapsed());
            let answer = ask_from(&it, AGENT2, "OPENAI_API_KEY");
            assert_eq!(answer.reason().as_deref(), Some("secret_unavailable"), "{}", answer.text());
            assert!(!answer.text().contains("vault"), "the cause is for the operator alone");
            wait::expect("a record of each", || refused().len() >= before + 2);
            for record in &refused()[before..] {
                assert_eq!(record["cause"], "vault_denied", "{record}");
                assert_eq!(record["group"], "operations", "{record}");
            }
            assert_eq!(status(AGENT), 200, "the other group goes on");
            it.vault.allow_group("operations");
            let begun = Instant::now();
            wait::expect("200", || status(AGENT2) == 200);
            assert!(begun.elapsed() < SOON_AFTER_REFRESH, "given: {:?}", begun.elapsed());
        }
    });
}

#[test]
fn a_group_without_its_token_role_is_refused_alone() {
    sandboxed(|| {
        let it = WithVault::prepared(|_, vault| {
            vault.cli(&["delete", "auth/token/roles/cloakroom-operations"]);
        });
        assert_eq!(it.status(), 200);
        assert_eq!(ask_from(&it, AGENT2, "OPS_OPENAI_KEY").status, 503);
        let record = it.world.gateway.audit.wait_reason("secret_unavailable");
        assert_eq!(record["cause"], "vault_denied", "{record}");
        // A role without policies passes on the gateway's rights, and counts as missing.
        it.vault.token_role("cloakroom-operations", "", false);
        let says = "allowed_policies";
        wait::expect(says, || it.world.gateway.stderr().contains(says));
        assert_eq!(ask_from(&it, AGENT2, "OPS_OPENAI_KEY").status, 503);
        let good = "agents-operations";
        it.vault.token_role("cloakroom-operations", good, true);
        let says = "orphan=false";
        wait::expect(says, || it.world.gateway.stderr().contains(says));
        it.vault.token_role("cloakroom-operations", good, false);
        wait::expect("200", || ask_from(&it, AGENT2, "OPS_OPENAI_KEY").status == 200);
    });
}

#[test]
fn vaults_audit_shows_reads_under_group_tokens_alone() {
    sandboxed(|| {
        let it = WithVault::start();
        assert_eq!(it.status(), 200);
        assert_eq!(ask_from(&it, AGENT2, "OPS_OPENAI_KEY").status, 200);
        let is_read = |record: &&Value| {
            let path = record["request"]["path"].as_str().unwrap_or_default();
            record["type"] == "response"
                && record["request"]["operation"] == "read"
                && path.starts_with("kv/data/")
        };
        let audit = it.vault.audit();
        let reads: Vec<&Value> = audit.iter().filter(is_read).collect();
        assert!(reads.len() >= 2, "{audit:#?}");
        for read in &reads {
            let group = read["auth"]["metadata"]["cloakroom_group"].as_str().unwrap_or_default();
            let path = read["request"]["path"].as_str().unwrap_or_default();
            let expected = if path == "kv/data/agents/ops" { "operations" } else { "research" };
            assert_eq!(group, expected, "{read:#}");
            let policies = read["auth"]["policies"].to_string();
            assert!(policies.contains(&format!("agents-{expected}")), "{read:#}");
            assert!(!policies.contains("gateway"), "{read:#}");
        }
        for group in ["research", "operations"] {
            let of = |read: &&&Value| read["auth"]["metadata"]["cloakroom_group"] == *group;
            assert!(reads.iter().any(|read| of(&read)), "{group}: {reads:#?}");
        }
    });
}

#[test]
fn the_gateways_own_token_makes_its_groups_tokens_alone() {
    sandboxed(|| {
        let lab = Lab::new();
        let vault = Vault::start(&lab);
        assert_makes_its_groups_tokens_alone(&vault, INTERNET, &vault.gateway_token(), "agents");
    });
}

/// Requires that the gateway's own token, used in `ns`, makes tokens through the roles of its
/// groups, whose policies are called `PREFIX-GROUP`, and that Vault refuses it everything else.
#[track_caller]
pub fn assert_makes_its_groups_tokens_alone(vault: &Vault, ns: Ns, token: &str, prefix: &str) {
    let refusal = |args: &[&str]| -> Option<String> {
        let output = vault.try_cli_from(ns, args, token);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (!output.status.success()).then_some(said)
    };
    for group in ["research", "operations"] {
        let role = format!("-role=cloakroom-{group}");
        assert_eq!(refusal(&["token", "create", &role]), None, "it is the gateway's token");
    }
    vault.policy("agents-finance", "path \"kv/data/agents/*\" { capabilities = [\"read\"] }\n");
    vault.token_role("cloakroom-finance", "agents-finance", false);
    let of = |group: &str| format!("{prefix}-{group}");
    for refused in [
        &["token", "create", "-role=cloakroom-finance"][..],
        &["token", "create", &format!("-policy={}", of("research"))],
        &["token", "create", "-policy=root"],
        &["token", "create", "-orphan"],
        &["token", "create"],
        &["read", "kv/data/agents/openai"],
        &["read", "kv/data/agents/ops"],
        &["list", "kv/metadata/agents"],
        &["write", "kv/data/agents/ops", "api_key=of-the-thief"],
        &["read", "auth/token/roles/cloakroom-research"],
        &["write", "auth/token/roles/cloakroom-research", "allowed_policies=root"],
        &["read", &format!("sys/policies/acl/{}", of("research"))],
        &["write", &format!("sys/policies/acl/{}", of("research")), "policy="],
        &["list", "auth/token/accessors"],
        &["read", "sys/mounts"],
    ] {
        let said = refusal(refused).unwrap_or_else(|| panic!("{refused:?} is allowed"));
        assert!(said.contains("permission denied"), "{refused:?}: {said}");
    }
    // Through a role of its own it may ask, but the role limits the policies.
    let other = format!("-policy={}", of("operations"));
    let said = refusal(&["token", "create", "-role=cloakroom-research", &other]);
    let said = said.expect("another group's policy");
    assert!(said.contains("must be subset of the role's allowed policies"), "{said}");
}

#[test]
fn a_token_revoked_under_traffic_costs_no_request() {
    sandboxed(|| {
        let it = WithVault::start();
        assert_eq!(it.status(), 200);
        for round in 0..3 {
            it.vault.revoke_gateway();
            let until = Instant::now() + Duration::from_secs(3);
            let mut asked = 0;
            while Instant::now() < until {
                assert_eq!(it.status(), 200, "round {round}, after {asked} requests");
                asked += 1;
                thread::sleep(BETWEEN);
            }
        }
        assert_eq!(it.world.gateway.stderr().matches("logged in to Vault").count(), 4);
        it.vault.put("openai", "sk-lab-rotated-after-login");
        wait::expect("the new session reads", || {
            it.status() == 200 && it.world.origin.log().holds("sk-lab-rotated-after-login")
        });
    });
}

#[test]
fn a_token_at_its_end_is_replaced_without_refusals() {
    sandboxed(|| {
        let it = WithVault::prepared(|_, vault| {
            let short = ["token_policies=gateway", "token_ttl=6s", "token_max_ttl=12s"];
            vault.cli(&[&["write", vault::ROLE], &short[..]].concat());
        });
        let logins = || it.world.gateway.stderr().matches("logged in to Vault").count();
        let until = Instant::now() + Duration::from_secs(30);
        while logins() < 3 {
            assert!(Instant::now() < until, "it logs in again before the maximum");
            assert_eq!(it.status(), 200);
            thread::sleep(BETWEEN);
        }
        let audit = it.vault.audit();
        let asked = |path: &str| {
            let of = |record: &&Value| {
                let asked = record["request"]["path"].as_str().unwrap_or_default();
                record["type"] == "response" && asked.starts_with(path)
            };
            audit.iter().filter(of).collect::<Vec<_>>()
        };
        let refused = |record: &&&Value| record["error"].is_string();
        let reads = asked("kv/data/agents/openai");
        assert!(reads.len() > 10, "{}", reads.len());
        assert_eq!(reads.iter().find(refused), None, "{}", it.world.gateway.stderr());
        assert!(asked("auth/token/renew-self").len() >= 2, "it is renewed while that helps");
    });
}

#[test]
fn the_tokens_are_given_back_at_the_end() {
    sandboxed(|| {
        let mut it = WithVault::start();
        assert_eq!(it.status(), 200);
        let before = it.vault.accessors().len();
        assert!(it.world.gateway.terminate(Duration::from_secs(12)).success());
        // One token for the gateway and one for each of the two groups.
        assert_eq!(it.vault.accessors().len(), before - 3);
    });
}

/// Pause between connections: an agent may open 250 a second, and each request here is one.
const BETWEEN: Duration = Duration::from_millis(10);

/// The lab's `refresh` of a second, and as much again for the read and for a machine with other
/// work.
const SOON_AFTER_REFRESH: Duration = Duration::from_secs(2);
