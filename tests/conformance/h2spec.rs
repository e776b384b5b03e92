//! h2spec, which sends a server requests that RFC 9113 and RFC 7541 forbid and checks its answers:
//! an API's own server, and the gateway in front of it.

use std::process::Command;

use lab::{
    gateway::{BEARER, PUBLIC_CA, usual_config},
    net::{AGENT, INTERNET, Ns, OTHER},
    sandbox::sandboxed_for,
};
use policy_builder::{Table, api, binding};

use super::{Meant, Outcomes, compare, suite};
use crate::attack::Scene;

/// Returns an API without a credential, because h2spec sends none.
fn measured() -> Table {
    api("measured", &[OTHER.name])
        .set("methods", ["GET", "HEAD", "OPTIONS", "POST"])
        .set("paths", ["/v1/measured"])
        .set("anonymous", true)
        .set("upstream_ca", PUBLIC_CA)
        .with(binding("research", "MEASURED_API_KEY", &[BEARER], "file:openai"))
}

/// No case is meant to differ.
const MEANT: [Meant; 0] = [];

/// The number of h2spec's cases, including those that it calls strict.
const CASES: usize = 146;

/// Returns the outcome of each case, by its section and number.
fn run(scene: &Scene, from: Ns) -> Outcomes {
    let report = scene.lab.dir.join("h2spec.xml");
    let _ = std::fs::remove_file(&report);
    let mut h2spec: Command = from.command(suite("h2spec"));
    h2spec.args(["--tls", "--host", OTHER.name, "--port", "443", "--path", "/v1/measured"]);
    h2spec.args(["--strict", "--timeout", "8", "--junit-report"]).arg(&report);
    h2spec.env("SSL_CERT_FILE", scene.lab.dir.join("agents.pem"));
    let said = super::output(&mut h2spec);
    let xml = std::fs::read_to_string(&report).unwrap_or_else(|_| panic!("no report: {said}"));
    outcomes(&xml)
}

/// Reads the report: JUnit's XML, in which an outcome is the element within a case.
fn outcomes(xml: &str) -> Outcomes {
    let mut outcomes = Outcomes::new();
    for case in xml.split("<testcase ").skip(1) {
        let case = case.split("</testcase>").next().unwrap_or_default();
        let of = |name: &str| {
            let (_, behind) = case.split_once(&format!("{name}=\"")).expect("an attribute");
            behind.split('"').next().unwrap_or_default().to_owned()
        };
        let package = of("package");
        let inside = ["failure", "skipped", "error"];
        let outcome = inside.into_iter().find(|it| case.contains(&format!("<{it}>")));
        let nth = (1..).find(|nth| !outcomes.contains_key(&format!("{package}/{nth}")));
        let name = format!("{package}/{}", nth.expect("a number"));
        outcomes.insert(name, outcome.unwrap_or("passed").to_owned());
    }
    outcomes
}

#[test]
fn the_gateway_passes_what_the_server_behind_it_passes() {
    sandboxed_for(super::LIMIT, || {
        let scene = Scene::with(&usual_config().with(measured()));
        let without = run(&scene, INTERNET);
        let before = scene.before();
        let through = run(&scene, AGENT);
        assert!(!scene.connections_since(before).is_empty(), "it went somewhere else");
        assert!(without.len() >= CASES, "{} cases", without.len());
        compare(&without, &through, &MEANT);
        scene.ends_well();
    });
}
