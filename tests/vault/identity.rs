//! Tokens that a real Vault signs about each group, for clouds and other services that trust it
//! (workload identity).

use std::{
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use lab::{
    net::{AGENT, AGENT2, Ns, OPENAI},
    sandboxed,
    vault::Vault,
};
use serde_json::Value;

use crate::{
    vault::plan::Planned,
    world::{World, get},
};

/// As short as possible while Vault's keys are not rotated meanwhile.
const TTL: u64 = 12;

#[test]
fn each_group_has_its_own_identity_in_signed_tokens() {
    sandboxed(|| {
        let token = "vault-read:identity/oidc/token/cloud#token";
        let it = Planned::apply_with(false, |config| {
            config
                .binding("OPENAI_API_KEY", |it| it.set("secret", token))
                .binding("OPS_OPENAI_KEY", |it| it.set("secret", token))
        });
        it.vault.cli(&["write", "identity/oidc/key/cloud", "allowed_client_ids=*"]);
        let ttl = format!("ttl={TTL}s");
        it.vault.cli(&["write", "identity/oidc/role/cloud", "key=cloud", &ttl]);
        it.assert_healthy();
        let before = entities(&it.vault);
        it.vault.script(&it.plan(&[]));
        assert_eq!(before, entities(&it.vault), "applied again it makes no other");
        it.assert_found("group operations", "Vault makes no token by the role", |vault| {
            let role = "auth/token/roles/cloakroom-operations";
            vault.cli(&["write", role, "allowed_entity_aliases="]);
        });
        let (world, vault) = it.run(false);
        for (ns, ticket, group) in
            [(AGENT, "OPENAI_API_KEY", "research"), (AGENT2, "OPS_OPENAI_KEY", "operations")]
        {
            let claims = signed(&world, ns, ticket);
            let id = ["read", "-field=id", &format!("identity/entity/name/cloakroom-{group}")];
            let id: Value = serde_json::from_str(&vault.cli(&id)).expect("JSON");
            assert_eq!(claims["sub"], id, "{group}");
        }
        let [research, operations] = before;
        assert_ne!(research, operations);

        let (begun, mut ends) = (Instant::now(), vec![]);
        while begun.elapsed() < Duration::from_secs(2 * TTL) {
            let end = signed(&world, AGENT, "OPENAI_API_KEY")["exp"].as_u64().expect("a time");
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
            assert!(now < end, "it ended {} s ago", now - end);
            ends.push(end);
            thread::sleep(Duration::from_millis(500));
        }
        ends.dedup();
        assert!((3..=6).contains(&ends.len()), "{} tokens in {:?}", ends.len(), begun.elapsed());
        world.assert_secrets_untold();
    });
}

/// Returns the claims of the token that the OpenAI host gets in place of this placeholder.
#[track_caller]
fn signed(world: &World, ns: Ns, placeholder: &str) -> Value {
    world.origin.log().clear();
    let mut tls = world.h1_from(ns, OPENAI.port(443), OPENAI.name).expect("a handshake");
    let ticket = format!("Authorization: Bearer {placeholder}");
    assert_eq!(tls.ask(get(&[&ticket])).expect("an answer").status, 200);
    let request = &world.origin.log().wait_requests(1)[0];
    let field = request.header("authorization")[0].to_owned();
    let token = field.trim_start_matches("Bearer ");
    let claims = token.split('.').nth(1).expect("a signed token");
    let claims = URL_SAFE_NO_PAD.decode(claims).expect("base64");
    serde_json::from_slice(&claims).expect("JSON")
}

/// Returns the ids by which Vault knows each group.
fn entities(vault: &Vault) -> [Value; 2] {
    ["research", "operations"].map(|group| {
        let read = ["read", &format!("identity/entity/name/cloakroom-{group}")];
        let answer: Value = serde_json::from_str(&vault.cli(&read)).expect("JSON");
        answer["data"]["id"].clone()
    })
}
