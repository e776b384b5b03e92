//! Where the keys come from, and what happens when they do not: 503, and nothing is forwarded.

use lab::{
    Lab,
    dns::Dns,
    gateway::{self, Gateway, OPENAI_SECRET},
    origin::Origin,
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
fn a_deleted_key_is_dropped_at_once() {
    sandboxed(|| {
        let it = WithVault::start();
        assert_eq!(it.status(), 200);
        it.vault.cli(&["kv", "metadata", "delete", "-mount=kv", "agents/openai"]);
        it.becomes(503);
    });
}
