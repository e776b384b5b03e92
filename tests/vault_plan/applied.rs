//! The plan at work in a real Vault: what it gives out is of no use elsewhere or for anything else,
//! and a lease is prolonged and given back with it.

use std::{fs, process::Output};

use lab::{
    gateway::{self, OPENAI_SECRET},
    net::{AGENT, GATEWAY, INTERNET, Ns},
    postgres::Postgres,
    sandboxed,
    vault::{self, Vault},
    wait,
};
use serde_json::Value;

use super::{Planned, status};
use crate::{control::tell, vault_and_secrets::assert_makes_its_groups_tokens_alone};

impl Planned {
    /// A login as the gateway does it, at the command line in this place.
    fn login(&self, ns: Ns) -> Output {
        let secret_id = fs::read_to_string(self.lab.dir.join("vault/secret-id"));
        let secret_id = format!("secret_id={}", secret_id.expect("the SecretID").trim());
        let role_id = "role_id=the-lab's-gateway";
        self.vault.try_cli_from(ns, &["write", "auth/approle/login", role_id, &secret_id], "")
    }
}

#[test]
fn what_the_plan_gives_out_is_good_at_the_gateways_address_alone() {
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
fn with_the_plans_policies_the_gateways_own_token_reads_nothing_either() {
    sandboxed(|| {
        let it = Planned::apply(false);
        let own = vault::token(&allowed(&it.login(GATEWAY)));
        assert_makes_its_groups_tokens_alone(&it.vault, GATEWAY, &own, "cloakroom");
    });
}

#[test]
fn a_lease_under_the_plan_is_prolonged_and_given_back_by_itself() {
    sandboxed(|| {
        let key = "vault:kv/agents/openai#api_key";
        let user = "vault-read:database/creds/postgres#{username}:{password}";
        let it = Planned::apply_changed(false, (key, user));
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

        // The group stays, and with it its token: the lease has to be given back by itself.
        let config = fs::read_to_string(world.lab.dir.join("cloakroom.toml"));
        let config = config.expect("the configuration").replace(user, key);
        gateway::install(&world.lab, &config);
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

fn of_bearer(field: &str) -> (&str, &str) {
    let pair = field.strip_prefix("Bearer ").and_then(|pair| pair.split_once(':'));
    pair.expect("a user and a password")
}

/// Vault's own records of what it did at this path.
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
