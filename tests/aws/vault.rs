//! Keys from a real Vault: a pair in two fields of KV, and a leased one.

use lab::{
    Lab,
    dns::Dns,
    gateway::Gateway,
    net::OPENAI,
    origin::{Origin, Received},
    postgres::Postgres,
    sandboxed, wait,
};

use super::{KEY, amazon, assert_signed, key_of, signed};
use crate::{vault::leased_users::Lender, world::World};

/// Returns a gateway that signs with the keys at this reference, and Vault.
fn world(reference: &str, prepare: impl FnOnce(&Lab, &Lender)) -> (World, Lender) {
    let lab = Lab::new();
    let (origin, dns) = (Origin::start(&lab), Dns::start());
    let lender = Lender::start(&lab);
    prepare(&lab, &lender);
    let amazon = amazon(&[OPENAI.name], &["s3"]).with(key_of("research", KEY, reference));
    let config = lender.vault.config().without("api").with(amazon);
    let gateway = Gateway::start(&lab, &config);
    (World { lab, origin, dns, gateway }, lender)
}

/// Sends a request and returns it as it arrived.
#[track_caller]
fn ask(world: &World) -> Received {
    let ask =
        signed("/coats/a", "eu-central-1/s3").field("x-amz-content-sha256", "UNSIGNED-PAYLOAD");
    let mut tls = world.h1(OPENAI).expect("a connection");
    let answer = tls.ask(ask.h1()).expect("an answer");
    assert_eq!(answer.reason(), None, "{}", answer.text());
    world.origin.log().requests().pop().expect("it arrived")
}

fn is_signed_by(request: &Received, id: &str) -> bool {
    request.header("authorization").iter().any(|own| own.contains(&format!("Credential={id}/")))
}

#[test]
fn a_pair_in_two_fields_signs_in_each_version() {
    sandboxed(|| {
        let pairs = [
            ("AKIALABLABLABLAB2M5X", "lab/K3y+one7Wq9Zx2Vb4Nm6Lp8Ks0Jd1Hf3Gt5R"),
            ("AKIALABLABLABLAB9T3C", "lab/K3y+two2Rt4Yu6Io8Pa0Sd1Fg3Hj5Kl7Zx9"),
        ];
        let put = |lender: &Lender, (id, secret): (&str, &str)| {
            let fields = [format!("access_key={id}"), format!("secret_key={secret}")];
            lender.vault.cli(&["kv", "put", "-mount=kv", "agents/aws", &fields[0], &fields[1]]);
        };
        let (world, lender) =
            world("vault:kv/agents/aws#{access_key}:{secret_key}", |_, it| put(it, pairs[0]));
        for pair @ (id, secret) in pairs {
            put(&lender, pair);
            wait::expect("the pair signs", || is_signed_by(&ask(&world), id));
            assert_signed(id, &ask(&world), (id, secret, None));
        }
        let told = world.gateway.stderr() + &world.gateway.audit.text();
        for part in pairs.into_iter().flat_map(|(id, secret)| [id, secret]) {
            assert!(!told.contains(part), "{part} was told:\n{told}");
        }
    });
}

/// The database engine leases in the same way as the engine for AWS, which needs AWS behind it: two
/// fields, one lease.
#[test]
fn a_lent_pair_signs_and_is_given_back() {
    sandboxed(|| {
        let path = "database/creds/postgres";
        let (mut world, lender) =
            world(&format!("vault-read:{path}#{{username}}:{{password}}"), |lab, lender| {
                Postgres::start(lab).leased_by(&lender.vault, "30s");
            });
        let request = ask(&world);
        let [(id, secret)] = &lender.lent(path)[..] else { panic!("one user is lent") };
        assert!(is_signed_by(&request, id), "{request:?}");
        assert_signed("a lent pair", &request, (id, secret, None));
        assert_eq!(lender.leases("postgres"), 1);
        world.gateway.terminate(wait::SOON);
        wait::expect("Vault has no lease at the end", || lender.leases("postgres") == 0);
        lender.assert_untold(&world.gateway, path);
    });
}
