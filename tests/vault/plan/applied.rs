//! The plan at work in a real Vault: its tokens are of no use elsewhere or for anything else, and a
//! lease is renewed and given back with them.

use std::{
    fs,
    process::Output,
    time::{Duration, Instant},
};

use lab::{
    audit::Record,
    gateway::{self, OPENAI_SECRET},
    net::{AGENT, GATEWAY, INTERNET, Ns},
    postgres::Postgres,
    sandboxed,
    vault::{self, Vault},
    wait,
};
use policy_builder::Config;
use serde_json::Value;

use super::{Planned, status};
use crate::{lifecycle::control::tell, vault::secrets::assert_makes_its_groups_tokens_alone};

impl Planned {
    /// Logs in as the gateway does, at the command line in this place.
    fn login(&self, ns: Ns) -> Output {
        let secret_id = fs::read_to_string(self.lab.dir.join("vault/secret-id"));
        let secret_id = format!("secret_id={}", secret_id.expect("the SecretID").trim());
        let role_id = format!("role_id={}", super::ROLE_ID);
        self.vault.try_cli_from(ns, &["write", "auth/approle/login", &role_id, &secret_id], "")
    }
}

#[test]
fn the_plans_tokens_are_good_at_the_gateway_alone() {
    sandboxed(|| {
        let it = Planned::apply(false);
        let said = refused(&it.login(INTERNET));
        assert!(said.contains("CIDR"), "{said}");
        let own = vault::token(&allowed(&it.login(GATEWAY)));
        let create = ["token", "create", "-role=cloakroom-research"];
        let group = vault::token(&allowed(&it.vault.try_cli_from(GATEWAY, &create, &own)));
        for (token, asked) in
            [(&own, &create[..]), (&group, &["read", "kv/data/agents/openai"][..])]
        {
            let said = refused(&it.vault.try_cli_from(INTERNET, asked, token));
            assert!(said.contains("permission denied"), "{asked:?}: {said}");
            allowed(&it.vault.try_cli_from(GATEWAY, asked, token));
        }
    });
}

#[test]
fn with_the_plan_the_gateways_own_token_reads_nothing() {
    sandboxed(|| {
        let it = Planned::apply(false);
        let own = vault::token(&allowed(&it.login(GATEWAY)));
        assert_makes_its_groups_tokens_alone(&it.vault, GATEWAY, &own, "cloakroom");
    });
}

/// Makes the first group's key a PostgreSQL user that Vault leases.
fn lending(config: Config) -> Config {
    config.binding("OPENAI_API_KEY", |it| {
        it.set("secret", "vault-read:database/creds/postgres#{username}:{password}")
    })
}

#[test]
fn a_planned_lease_is_renewed_and_given_back() {
    sandboxed(|| {
        let it = Planned::apply_with(false, lending);
        let without = it
            .policy
            .clone()
            .binding("OPENAI_API_KEY", |it| it.set("secret", "vault:kv/agents/openai#api_key"));
        let postgres = Postgres::start(&it.lab);
        postgres.leased_by(&it.vault, "6s");
        it.assert_healthy();
        let (world, vault) = it.run(false);
        let sent = || -> String {
            world.origin.log().clear();
            assert_eq!(status(&world, AGENT, "OPENAI_API_KEY"), 200);
            let request = &world.origin.log().wait_requests(1)[0];
            request.header("authorization")[0].to_owned()
        };
        let first = sent();
        let (name, password) = of_bearer(&first);
        wait::expect("renewed twice", || done(&vault, "sys/leases/renew").len() >= 2);
        assert_eq!(sent(), first, "it is the same user");
        assert!(postgres.admits(name, password) && first.len() > OPENAI_SECRET.len());

        // The group stays, and with it its token, so the lease itself has to be given back.
        gateway::install(&world.lab, &without);
        tell(&world, &["reload"], 0);
        wait::expect("given back", || done(&vault, "sys/leases/revoke").len() == 1);
        wait::expect("PostgreSQL lets it in no more", || !postgres.admits(name, password));
        for path in ["sys/leases/renew", "sys/leases/revoke"] {
            for asked in done(&vault, path) {
                let policies = asked["auth"]["policies"].to_string();
                assert_eq!(policies, "[\"cloakroom-research\"]", "{asked:#}");
            }
        }
        let said = world.gateway.stderr();
        assert!(!said.contains("policies let neither"), "{said}");
    });
}

#[test]
fn a_groups_token_ends_no_other_groups_lease() {
    sandboxed(|| {
        let lent =
            |role: &str| format!("vault-read:database/creds/{role}#{{username}}:{{password}}");
        let it = Planned::apply_with(false, |config| {
            config
                .binding("OPENAI_API_KEY", |it| it.set("secret", lent("postgres")))
                .binding("OPS_OPENAI_KEY", |it| it.set("secret", lent("other")))
        });
        let postgres = Postgres::start(&it.lab);
        postgres.leased_by(&it.vault, "10m");
        postgres.lends_as(&it.vault, "other", "10m");
        it.assert_healthy();
        let own = vault::token(&allowed(&it.login(GATEWAY)));
        let token = |group: &str| {
            let create = ["token", "create", &format!("-role=cloakroom-{group}")];
            vault::token(&allowed(&it.vault.try_cli_from(GATEWAY, &create, &own)))
        };
        let (research, operations) = (token("research"), token("operations"));
        let lease = |role: &str, token: &str| -> (String, String, String) {
            let read = ["read", &format!("database/creds/{role}")];
            let answer = allowed(&it.vault.try_cli_from(GATEWAY, &read, token));
            let answer: Value = serde_json::from_str(&answer).expect("JSON");
            let text = |at: &Value| at.as_str().expect("a text").to_owned();
            let data = &answer["data"];
            (text(&answer["lease_id"]), text(&data["username"]), text(&data["password"]))
        };
        let (mine, theirs) = (lease("postgres", &research), lease("other", &operations));
        let ask = |way: &str, id: &str| {
            let (path, id) = (format!("sys/leases/{way}"), format!("lease_id={id}"));
            it.vault.try_cli_from(GATEWAY, &["write", &path, &id], &research)
        };
        // The engine takes a list for one id, which nobody has.
        let both = format!("{},{}", mine.0, theirs.0);
        for way in ["lookup", "renew", "revoke"] {
            for other in [&theirs.0, "", "auth/token/create/x", "database/creds/*"] {
                let said = refused(&ask(way, other));
                assert!(said.contains("permission denied"), "{way} {other}: {said}");
            }
            let _ = ask(way, &both);
            let in_the_path = ["write", "-f", &format!("sys/leases/{way}/{}", theirs.0)];
            refused(&it.vault.try_cli_from(GATEWAY, &in_the_path, &research));
            assert!(postgres.admits(&theirs.1, &theirs.2), "{way}");
            allowed(&ask(way, &mine.0));
        }
        wait::expect("its own is ended", || !postgres.admits(&mine.1, &mine.2));
        assert!(postgres.admits(&theirs.1, &theirs.2));
    });
}

fn of_bearer(field: &str) -> (&str, &str) {
    let pair = field.strip_prefix("Bearer ").and_then(|pair| pair.split_once(':'));
    pair.expect("a user and a password")
}

#[test]
fn a_lent_user_ends_within_a_refresh_of_its_right() {
    sandboxed(|| {
        let it = Planned::apply_with(false, lending);
        let postgres = Postgres::start(&it.lab);
        // So long that only the withdrawal ends it.
        postgres.leased_by(&it.vault, "50m");
        it.assert_healthy();
        let (plan, policy) = (it.plan(&[]), it.policy(RESEARCH));
        let (before, after) = policy.split_once("path \"database/").expect("a stanza");
        let (_, after) = after.split_once("}\n").expect("its end");
        let without = format!("{before}{after}");
        let (world, vault) = it.run(false);
        let lent = || -> String {
            world.origin.log().clear();
            wait::expect("200", || status(&world, AGENT, "OPENAI_API_KEY") == 200);
            world.origin.log().wait_requests(1)[0].header("authorization")[0].to_owned()
        };
        let taken = |take: &dyn Fn()| {
            let denied = || {
                let is_denied = |record: &&Record| record["cause"] == "vault_denied";
                world.requests().iter().filter(is_denied).count()
            };
            let before = denied();
            take();
            let begun = Instant::now();
            wait::expect("503", || status(&world, AGENT, "OPENAI_API_KEY") == 503);
            let took = begun.elapsed();
            assert!(took < REFRESH + Duration::from_secs(1), "{took:?}");
            wait::expect("the audit says why", || denied() > before);
        };
        let first = lent();
        taken(&|| vault.policy(RESEARCH, &without));
        let (name, password) = of_bearer(&first);
        wait::expect("PostgreSQL lets it in no more", || !postgres.admits(name, password));

        let delete = || drop(vault.cli(&["policy", "delete", RESEARCH]));
        vault.script(&plan);
        let second = lent();
        taken(&delete);
        let deleted = Instant::now();
        // The same while the group's token is a new one.
        vault.script(&plan);
        let third = lent();
        assert!(deleted.elapsed() < Duration::from_secs(28), "the machine is too slow for this");
        taken(&delete);
        assert!(first != second && second != third);
        // Nobody may end that lease by itself, so it ends with the group's old token.
        let (name, password) = of_bearer(&second);
        let ended = || (!postgres.admits(name, password)).then_some(());
        wait::until(Duration::from_secs(75), ended).expect("PostgreSQL lets it in no more");
        println!("ended {:?} after the policy was deleted", deleted.elapsed());
    });
}

/// Returns Vault's own records of its actions at this path.
fn done(vault: &Vault, path: &str) -> Vec<Value> {
    let of_path = |record: &Value| {
        record["type"] == "response"
            && record["request"]["path"] == path
            && record["error"].is_null()
    };
    vault.audit().into_iter().filter(of_path).collect()
}

#[track_caller]
fn allowed(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[track_caller]
fn refused(output: &Output) -> String {
    assert!(!output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The policy of the first group.
const RESEARCH: &str = "cloakroom-research";

/// The lab's `refresh`.
const REFRESH: Duration = Duration::from_secs(1);
