//! Each way in which the gateway proves its identity to a real Vault.

use std::{
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use lab::{
    Lab,
    gateway::Gateway,
    pki::Authority,
    sandboxed,
    vault::{self, Vault},
    wait,
};
use policy_builder::Table;
use serde_json::Value;

use crate::{vault::secrets::WithVault, world::World};

#[test]
fn a_wrapped_secret_id_opens_once_and_reuse_is_said() {
    sandboxed(|| {
        let mut it = WithVault::configured(|lab, vault| {
            wrap(lab, vault, &["-f", &format!("{}/secret-id", vault::ROLE)]);
            vault.config().login_key("wrapped", true)
        });
        assert_eq!(it.status(), 200);
        let file = it.world.lab.dir.join("vault/secret-id");
        let token = std::fs::read_to_string(&file).expect("the wrapping token");
        assert!(!it.vault.try_cli(&["unwrap", &token], "").status.success(), "it was opened");
        // The SecretID is in memory, so the operator may revoke the token, and the file may go.
        std::fs::remove_file(&file).expect("removed");
        it.vault.revoke_gateway();
        wait::expect("a new login", || it.world.gateway.stderr().matches("logged in").count() == 2);
        it.becomes(200);
        it.world.gateway.terminate(Duration::from_secs(12));
        assert_untold(&it.world, &[&token]);

        it.world.lab.write("vault/secret-id", &token);
        let config = it.world.lab.dir.join("cloakroom.toml");
        let gateway = Gateway::run(&it.world.lab, &config).expect("it starts, closed");
        let it = WithVault { world: World { gateway, ..it.world }, vault: it.vault };
        assert_eq!(it.status(), 503);
        let said = "somebody else may hold the SecretID";
        assert!(it.world.gateway.stderr().contains(said), "{}", it.world.gateway.stderr());
        // A token that wraps something else was put there by an attacker, and is not opened.
        wrap(&it.world.lab, &it.vault, &["sys/wrapping/wrap", "secret_id=of-somebody-else"]);
        let swapped = "swapped";
        wait::expect(swapped, || it.world.gateway.stderr().contains(swapped));
        assert_eq!(it.status(), 503);
        let swap = std::fs::read_to_string(&file).expect("the wrapping token");
        wrap(&it.world.lab, &it.vault, &["-f", &format!("{}/secret-id", vault::ROLE)]);
        let good = std::fs::read_to_string(&file).expect("the wrapping token");
        it.becomes(200);
        assert_untold(&it.world, &[&token, &swap, &good, "of-somebody-else"]);
    });
}

#[test]
fn a_client_certificate_logs_in() {
    sandboxed(|| {
        let it = WithVault::configured(|lab, vault| {
            let authority = Authority::new("Gateways");
            let identity = authority.issue_client("gateway.example");
            lab.write("vault/client.pem", identity.certificate_pem());
            lab.write("vault/client.key", identity.key_pem());
            let ca = lab.write("vault/client-ca.pem", authority.pem()).display().to_string();
            vault.cli(&["auth", "enable", "cert"]);
            vault.cli(&[
                "write",
                "auth/cert/certs/gateway",
                &format!("certificate=@{ca}"),
                "token_policies=gateway",
                "token_ttl=6s",
                "allowed_dns_sans=gateway.example",
            ]);
            vault.config().login(certificate())
        });
        assert_eq!(it.status(), 200);
        // Vault renews such a token only for the same certificate.
        std::thread::sleep(Duration::from_secs(8));
        assert_eq!(it.status(), 200);
        assert_eq!(it.world.gateway.stderr().matches("logged in").count(), 1);
        it.vault.revoke_gateway();
        wait::expect("a new login", || it.world.gateway.stderr().matches("logged in").count() == 2);
        assert_eq!(it.status(), 200);
        assert_untold(&it.world, &["PRIVATE KEY"]);
    });
}

#[test]
fn a_signed_token_is_read_again_for_each_login() {
    sandboxed(|| {
        let lab_token = |lab: &Lab, subject: &str| lab.write("jwt", signed(lab, subject));
        let it = WithVault::configured(|lab, vault| {
            lab_token(lab, "cloakroom");
            let key = lab.dir.join("jwt-public.pem").display().to_string();
            vault.cli(&["auth", "enable", "jwt"]);
            vault.cli(&["write", "auth/jwt/config", &format!("jwt_validation_pubkeys=@{key}")]);
            vault.cli(&[
                "write",
                "auth/jwt/role/gateway",
                "role_type=jwt",
                "bound_audiences=vault",
                "bound_subject=cloakroom",
                "user_claim=sub",
                "token_policies=gateway",
            ]);
            vault.config().login(signed_token())
        });
        assert_eq!(it.status(), 200);
        let read = |file: &Path| std::fs::read_to_string(file).expect("the token");
        let first = read(&it.world.lab.dir.join("jwt"));
        let other = read(&lab_token(&it.world.lab, "somebody-else"));
        it.vault.revoke_gateway();
        it.becomes(503);
        let last = read(&lab_token(&it.world.lab, "cloakroom"));
        it.becomes(200);
        let parts = [&first, &other, &last].map(|token| token.rsplit('.').next());
        let signatures: Vec<&str> = parts.into_iter().flatten().collect();
        assert_untold(&it.world, &signatures);
    });
}

/// Asserts that no token of Vault's, no value and none of these is in the log or in the audit.
#[track_caller]
fn assert_untold(world: &World, secrets: &[&str]) {
    let told = world.gateway.stderr() + &world.gateway.audit.text();
    for secret in secrets.iter().chain(&["hvs.", "hvb."]) {
        let line = told.lines().find(|line| line.contains(secret.trim()));
        assert!(line.is_none(), "{secret} was told: {line:?}");
    }
    world.assert_secrets_untold();
}

/// Puts a token that wraps the answer to this write where the gateway looks for it.
fn wrap(lab: &Lab, vault: &Vault, write: &[&str]) {
    let args = [&["write", "-wrap-ttl=5m"], write].concat();
    let wrapped: Value = serde_json::from_str(&vault.cli(&args)).expect("JSON");
    lab.write("vault/secret-id", wrapped["wrap_info"]["token"].as_str().expect("a token"));
}

/// Returns a signed token for Vault, good for an hour; the key to check it with is beside it.
pub fn signed(lab: &Lab, subject: &str) -> String {
    use aws_lc_rs::{
        rand::SystemRandom,
        signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
    };
    let key = lab.dir.join("jwt-key.der");
    if !key.exists() {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        lab.write("jwt-key.der", pair.to_pkcs8v1().expect("a key in DER").as_ref());
    }
    let pair = std::fs::read(&key).expect("the key");
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &pair).expect("the key");
    // RFC 5480: the header of a P-256 key, then the point.
    let header = "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE";
    let header = STANDARD.decode(header).expect("base64");
    let public = STANDARD.encode([&header, &pair.public_key().as_ref()[1..]].concat());
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{public}\n-----END PUBLIC KEY-----\n");
    lab.write("jwt-public.pem", pem);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
    let claims = format!(
        r#"{{"iss":"lab","aud":"vault","sub":"{subject}","iat":{now},"exp":{}}}"#,
        now + 3600
    );
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let text = format!("{}.{}", part(r#"{"alg":"ES256","typ":"JWT"}"#), part(&claims));
    let signature = pair.sign(&SystemRandom::new(), text.as_bytes()).expect("a signature");
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature.as_ref()))
}

/// Returns the login by a certificate in the lab's folder.
pub(super) fn certificate() -> Table {
    Table::section("cert")
        .set("role", "gateway")
        .set("certificate_file", "{dir}/vault/client.pem")
        .set("key_file", "{dir}/vault/client.key")
}

/// Returns the login by a signed token in the lab's folder.
pub(super) fn signed_token() -> Table {
    Table::section("jwt").set("role", "gateway").set("token_file", "{dir}/jwt")
}
