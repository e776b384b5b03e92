//! Where the keys come from, and what happens when they do not: 503, and nothing is forwarded.

use lab::{
    Lab,
    dns::Dns,
    gateway::{self, Gateway, OPENAI_SECRET},
    net::OPENAI,
    origin::Origin,
    pki::Authority,
    sandboxed,
    vault::Vault,
    wait,
};

use crate::world::{TICKET, World, get};

/// A world whose secrets come from a real Vault.
struct WithVault {
    world: World,
    vault: Vault,
}

impl WithVault {
    fn start() -> Self {
        Self::prepared(|_, _| {})
    }

    fn prepared(prepare: impl FnOnce(&Lab, &mut Vault)) -> Self {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let dns = Dns::start();
        let mut vault = Vault::start(&lab);
        prepare(&lab, &mut vault);
        let gateway = Gateway::start(&lab, &gateway::vault_config(&vault.config()));
        Self { world: World { lab, origin, dns, gateway }, vault }
    }

    fn status(&self) -> u16 {
        self.world.ask(&get(&[TICKET])).status.as_u16()
    }

    #[track_caller]
    fn becomes(&self, status: u16) {
        wait::expect(&format!("{status}"), || self.status() == status);
    }

    #[track_caller]
    fn assert_unavailable(&self, cause: &str) {
        let answer = self.world.ask(&get(&[TICKET]));
        assert_eq!(answer.status, 503);
        assert_eq!(answer.reason().as_deref(), Some("secret_unavailable"));
        assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
        assert!(!answer.text().contains(cause), "the cause is for operators: {}", answer.text());
        self.world.gateway.audit.wait_for(|record| record["cause"] == cause);
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
fn a_rotated_key_is_used_soon() {
    sandboxed(|| {
        let it = WithVault::start();
        assert_eq!(it.status(), 200);
        it.vault.put("openai", "sk-lab-rotated-0123456789");
        wait::expect("the new key arrives", || {
            it.status() == 200 && it.world.origin.log().holds("sk-lab-rotated-0123456789")
        });
    });
}

#[test]
fn a_vault_that_is_down_at_start_means_503_and_later_200() {
    sandboxed(|| {
        let mut it = WithVault::prepared(|_, vault| vault.stop());
        it.assert_unavailable("vault_unreachable");
        it.world.assert_nothing_forwarded();
        it.vault.resume();
        it.becomes(200);
    });
}

#[test]
fn a_vault_that_goes_down_later_leaves_the_key_for_a_while_only() {
    sandboxed(|| {
        let mut it = WithVault::start();
        assert_eq!(it.status(), 200);
        it.vault.stop();
        assert_eq!(it.status(), 200, "max_stale has not passed");
        it.becomes(503);
        it.vault.resume();
        it.becomes(200);
    });
}

#[test]
fn a_sealed_vault_gives_nothing_new() {
    sandboxed(|| {
        let it = WithVault::prepared(|_, vault| vault.seal());
        it.assert_unavailable("vault_sealed");
        it.world.assert_nothing_forwarded();
        it.vault.unseal();
        it.becomes(200);
    });
}

#[test]
fn a_forbidden_key_is_dropped_at_once() {
    sandboxed(|| {
        let it = WithVault::start();
        assert_eq!(it.status(), 200);
        it.vault.forbid();
        it.becomes(503);
        it.assert_unavailable("vault_denied");
        it.vault.allow();
        it.becomes(200);
    });
}

#[test]
fn a_deleted_key_is_dropped_at_once() {
    sandboxed(|| {
        let it = WithVault::start();
        assert_eq!(it.status(), 200);
        it.vault.cli(&["kv", "metadata", "delete", "-mount=kv", "agents/openai"]);
        it.becomes(503);
    });
}

#[test]
fn a_vault_behind_another_ca_is_not_believed() {
    sandboxed(|| {
        let it = WithVault::prepared(|lab, _| {
            lab.write("vault/ca.pem", Authority::new("Somebody else").pem());
        });
        it.assert_unavailable("vault_unreachable");
        it.world.assert_nothing_forwarded();
    });
}

#[test]
fn a_secret_that_is_missing_from_the_file_is_503_and_nothing_is_forwarded() {
    sandboxed(|| {
        let config = gateway::usual_config().replace("file:openai", "file:nothing-of-this-name");
        let world = World::with(&config);
        let answer = world.ask(&get(&[TICKET]));
        assert_eq!(answer.status, 503);
        assert_eq!(answer.reason().as_deref(), Some("secret_unavailable"));
        world.gateway.audit.wait_for(|record| record["cause"] == "not_in_file");
        world.assert_nothing_forwarded();
        assert!(!world.origin.log().holds("OPENAI_API_KEY"), "the placeholder was forwarded");
        assert_eq!(world.origin.log().requests().len(), 0, "at {}", OPENAI.name);
    });
}
