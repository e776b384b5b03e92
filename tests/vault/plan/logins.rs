//! The plan for the other logins, at work in a real Vault.

use lab::{pki::Authority, sandboxed};

use super::{Planned, each_placeholder_becomes_its_secret};
use crate::vault::logins::{certificate, signed, signed_token};

#[test]
fn the_certificate_login_plan_is_all_vault_needs() {
    sandboxed(|| {
        let it = Planned::unapplied(|lab, vault| {
            let identity = Authority::new("Gateways").issue_client("gateway.example");
            lab.write("vault/client.pem", identity.certificate_pem());
            lab.write("vault/client.key", identity.key_pem());
            vault.config().login(certificate())
        });
        it.vault.script(&it.plan(&[]));
        works_and_stays_as_it_is(it, "", "auth/cert/certs/gateway");
    });
}

#[test]
fn the_signed_token_login_plan_is_all_vault_needs() {
    sandboxed(|| {
        let it = Planned::unapplied(|lab, vault| {
            lab.write("jwt", signed(lab, "cloakroom"));
            vault.config().login(signed_token())
        });
        // The values for which the plan asks the operator.
        let asked = "SUBJECT=cloakroom AUDIENCE=vault\n";
        it.vault.script(&(asked.to_owned() + &it.plan(&[])));
        let key = it.lab.dir.join("jwt-public.pem").display().to_string();
        it.vault.cli(&["write", "auth/jwt/config", &format!("jwt_validation_pubkeys=@{key}")]);
        works_and_stays_as_it_is(it, asked, "auth/jwt/role/gateway");
    });
}

/// Requires that the doctor finds nothing, that applying the plan again, with `asked` before it,
/// changes nothing at `role`, that a wider token is found, and that requests get their secrets.
#[track_caller]
fn works_and_stays_as_it_is(it: Planned, asked: &str, role: &str) {
    it.assert_healthy();
    let before = it.vault.cli(&["read", "-field=data", role]);
    it.vault.cli(&["write", role, "token_bound_cidrs=203.0.0.0/8", "role_type=jwt"]);
    let (code, report, _) = it.doctor(&[]);
    assert!(code == Some(1) && report.contains("good at 203.0.0.0/8"), "{report}");
    it.assert_formatted(&it.plan(&["--format", "terraform"]));
    it.vault.script(&(asked.to_owned() + &it.plan(&[])));
    assert_eq!(it.vault.cli(&["read", "-field=data", role]), before);
    it.assert_healthy();
    let (world, _vault) = it.run(false);
    each_placeholder_becomes_its_secret(&world);
    world.assert_secrets_untold();
}
