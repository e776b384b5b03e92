//! Vault locks a role out after a few wrong SecretIDs, whoever tried them: neither others nor the
//! gateway itself cause that.

use std::{fs, process::Output, time::Duration};

use lab::{
    gateway,
    net::INTERNET,
    sandboxed,
    vault::{self, Vault},
    wait,
};
use serde_json::Value;

use crate::{
    lifecycle::control::tell,
    vault::{
        plan::{Planned, ROLE_ID},
        secrets::WithVault,
    },
    world::World,
};

#[test]
fn after_the_plan_wrong_secret_ids_lock_nobody_out() {
    sandboxed(|| {
        let (world, vault) = Planned::apply(false).run(false);
        let it = WithVault { world, vault };
        assert_eq!(it.status(), 200);
        try_wrong_ones(&it.vault, ROLE_ID);
        let own = |accessor: &String| {
            let looked = ["token", "lookup", "-accessor", accessor];
            let looked = it.vault.try_cli(&looked, it.vault.root_token()).stdout;
            String::from_utf8_lossy(&looked).contains("\"cloakroom-gateway\"")
        };
        for accessor in it.vault.accessors().iter().filter(|accessor| own(accessor)) {
            it.vault.cli(&["token", "revoke", "-accessor", accessor]);
        }
        wait::expect("a new login", || logins(&it.world) == 2);
        it.becomes(200);
    });
}

#[test]
fn a_wrong_secret_id_is_tried_once_only() {
    sandboxed(|| {
        let it = WithVault::start();
        assert_eq!(it.status(), 200);
        let file = it.world.lab.dir.join("vault/secret-id");
        let right = fs::read(&file).expect("the SecretID");
        it.world.lab.write("vault/secret-id", WRONG);
        it.vault.revoke_gateway();
        it.becomes(503);
        // Several rounds of the lab's refresh.
        std::thread::sleep(Duration::from_secs(5));
        assert_eq!(refused(&it.vault), 1);
        let said = it.world.gateway.stderr();
        assert!(said.contains("Vault does not take the SecretID"), "{said}");
        // A reload is an order of the operator's.
        tell(&it.world, &["reload"], 0);
        wait::expect("tried again", || refused(&it.vault) == 2);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(refused(&it.vault), 2);
        it.world.lab.write("vault/secret-id", right);
        let put = std::time::Instant::now();
        it.becomes(200);
        assert!(put.elapsed() < Duration::from_secs(4), "{:?}", put.elapsed());
        assert_eq!(refused(&it.vault), 2);
        assert!(!it.world.gateway.stderr().contains(WRONG));
    });
}

#[test]
fn a_locked_out_role_is_named_and_logs_in_later() {
    sandboxed(|| {
        let it = WithVault::start();
        assert_eq!(it.status(), 200);
        let role_id =
            it.vault.cli(&["read", "-field=role_id", &format!("{}/role-id", vault::ROLE)]);
        let role_id: String = serde_json::from_str(&role_id).expect("JSON");
        try_wrong_ones(&it.vault, &role_id);
        assert_eq!(it.status(), 200, "its token is good");
        it.vault.revoke_gateway();
        it.becomes(503);
        let said = it.world.gateway.stderr();
        assert!(said.contains("locked out: Vault does not look at the SecretID"), "{said}");
        let config = it.world.lab.dir.join("cloakroom.toml");
        let doctor = gateway::program().args(["vault", "doctor"]).arg(&config).output();
        let report = String::from_utf8_lossy(&doctor.expect("it starts").stdout).into_owned();
        assert!(report.contains("missing   gateway: locked out"), "{report}");
        // The state that the text describes.
        let locked: Value =
            serde_json::from_str(&it.vault.cli(&["read", "sys/locked-users"])).expect("JSON");
        let by_mount = &locked["data"]["by_namespace"][0]["mount_accessors"][0];
        let accessor = by_mount["mount_accessor"].as_str().expect("an accessor");
        assert_eq!(by_mount["alias_identifiers"][0], role_id.as_str());
        it.vault.cli(&["write", "-f", &format!("sys/locked-users/{accessor}/unlock/{role_id}")]);
        it.becomes(200);
    });
}

/// Tries one more wrong SecretID, from anywhere, than Vault accepts before it locks a role out.
fn try_wrong_ones(vault: &Vault, role_id: &str) {
    let role_id = format!("role_id={role_id}");
    let secret_id = format!("secret_id={WRONG}");
    for _ in 0..6 {
        let login = ["write", "auth/approle/login", &role_id, &secret_id];
        let Output { status, .. } = vault.try_cli_from(INTERNET, &login, "");
        assert!(!status.success());
    }
}

/// Returns the number of logins that Vault refused, by its own audit.
fn refused(vault: &Vault) -> usize {
    let is_refused = |record: &&Value| {
        record["type"] == "response"
            && record["request"]["path"] == "auth/approle/login"
            && record["auth"]["accessor"].is_null()
    };
    vault.audit().iter().filter(is_refused).count()
}

fn logins(world: &World) -> usize {
    world.gateway.stderr().matches("logged in to Vault").count()
}

const WRONG: &str = "9f3c1d52-0000-4000-8000-1a2b3c4d5e6f";
