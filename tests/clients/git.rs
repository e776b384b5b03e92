//! `git clone` and `git push` over HTTPS: a first request without a credential, a 401, then Basic.

use std::fs;

use lab::{client::succeed, gateway::GIT_SECRET, net::GIT, sandboxed};

use super::{Family, Scene, Swap};

const CLONE: &str = "/run/lab/clone";

/// Clones with the user's name in the URL; the placeholder comes from the environment, as in a CI
/// job.
fn clone(family: Family) {
    let scene = Scene::new(family);
    scene.world.origin.repository("coat", "the coat behind the counter");
    let script = format!("exec git clone -q https://agent:$GIT_TOKEN@git.example/coat.git {CLONE}");
    succeed(scene.agent("sh").args(["-c", &script]));
    let readme = fs::read_to_string(format!("{CLONE}/README")).expect("it was cloned");
    assert_eq!(readme, "the coat behind the counter");

    let log = scene.world.origin.log();
    log.wait_all_closed();
    let requests = log.requests();
    let (first, others) = requests.split_first().expect("requests");
    assert!(first.header("authorization").is_empty(), "git asks without a credential first");
    assert!(others.len() >= 2, "{requests:#?}");
    let swap = Swap::basic(GIT, "GIT_TOKEN", GIT_SECRET, "agent");
    for request in others {
        swap.assert_in(request);
    }

    let (connections, records) = scene.records(log.connections().len(), requests.len());
    for record in &connections {
        assert_eq!((&record["decision"], &record["sni"]), (&"intercept".into(), &GIT.name.into()));
        scene.assert_family(record, GIT);
    }
    let statuses: Vec<_> =
        records.iter().map(|record| record["upstream_status"].as_u64()).collect();
    assert_eq!(statuses.iter().filter(|status| **status == Some(401)).count(), 1, "{records:?}");
    for record in &records {
        let anonymous = record["upstream_status"] == 401;
        assert_eq!(!record.has("placeholders"), anonymous, "{record}");
        if !anonymous {
            swap.assert_told(record);
        }
    }
    // git keeps the placeholder.
    let config = fs::read_to_string(format!("{CLONE}/.git/config")).expect("a clone");
    assert!(config.contains("GIT_TOKEN") && !config.contains(GIT_SECRET), "{config}");
    // git's own form of it is base64, with a user in front.
    let basic = super::base64("agent:GIT_TOKEN");
    let sessions = scene.wire.sessions();
    assert!(sessions.iter().any(|session| session.sends(&basic)), "the search is broken");
    scene.wire.assert_never(&[GIT_SECRET, &super::base64(&format!("agent:{GIT_SECRET}"))]);
    scene.world.assert_secrets_untold();
}

#[test]
fn clones_over_ipv4() {
    sandboxed(|| clone(Family::V4));
}

#[test]
fn clones_over_ipv6() {
    sandboxed(|| clone(Family::V6));
}

/// A push of 3 MB: git probes with a small request and then sends a body of unknown length. In
/// HTTP/1.1, because libcurl 7.88 sends 64 KiB of an HTTP/2 upload twice when its socket is full.
#[test]
fn pushes_more_than_one_request_of_known_length_holds() {
    sandboxed(|| {
        let scene = Scene::new(Family::V4);
        scene.world.origin.repository("coat", "the coat behind the counter");
        let url = "https://agent:$GIT_TOKEN@git.example/coat.git";
        let script = format!(
            "set -e; git -C /run/lab/git/coat.git config http.receivepack true; \
             git clone -q {url} {CLONE}; cd {CLONE}; head -c 3000000 /dev/urandom > blob; \
             git add blob; git -c user.name=a -c user.email=a@example.com commit -q -m two; \
             git -c http.version=HTTP/1.1 push -q origin main; \
             git rev-parse HEAD; git -C /run/lab/git/coat.git rev-parse main"
        );
        let seen = succeed(scene.agent("sh").args(["-c", &script]));
        let heads: Vec<_> = seen.lines().collect();
        assert!(heads.len() == 2 && heads[0] == heads[1], "the push arrived: {seen}");
        let requests = scene.world.origin.log().requests();
        let pack = requests.iter().max_by_key(|request| request.body.len()).expect("requests");
        assert!(pack.body.len() > 2_900_000, "{} bytes", pack.body.len());
        assert!(pack.header("content-length").is_empty(), "{:?}", pack.headers);
        let swap = Swap::basic(GIT, "GIT_TOKEN", GIT_SECRET, "agent");
        assert_eq!(pack.header("authorization"), [swap.value]);
        scene.wire.assert_never(&[GIT_SECRET, &super::base64(&format!("agent:{GIT_SECRET}"))]);
    });
}
