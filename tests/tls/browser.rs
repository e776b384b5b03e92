//! A browser, which always sends an encrypted ClientHello, most often a meaningless one (GREASE).

use std::{fs, process::Command};

use lab::{
    client::{agent, succeed},
    gateway::{self, Gateway},
    net::{AGENT, PYPI},
    sandboxed,
};

use crate::world::World;

/// Returns the page in Chromium. The CAs that it trusts are not tested here.
fn page(world: &World) -> String {
    let output = agent(&world.lab, AGENT, "chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"])
        .args(["--disable-background-networking", "--disable-component-update", "--no-first-run"])
        .args(["--user-data-dir=/run/lab/browser", "--ignore-certificate-errors", "--dump-dom"])
        .arg(format!("https://{}/a", PYPI.name))
        .env("HOME", "/run/lab/home")
        .output()
        .expect("chromium starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn chromium_reaches_spliced_hosts_where_rule_or_policy_allow() {
    sandboxed(|| {
        let mut world = World::usual();
        let arrived = |world: &World| {
            let requests = world.origin.log().requests();
            requests.iter().filter(|it| it.uri.path() == "/a").count()
        };
        page(&world);
        let record = world.gateway.audit.wait_reason("ech_denied");
        assert_eq!(record["sni"], PYPI.name, "{record}");
        assert_eq!(arrived(&world), 0);

        // This changes this sandbox's own view of the file system.
        succeed(Command::new("mount").args(["-t", "tmpfs", "tmpfs", "/etc/chromium"]));
        fs::create_dir_all("/etc/chromium/policies/managed").expect("a folder in memory");
        let off = "{\"EncryptedClientHelloEnabled\": false}";
        fs::write("/etc/chromium/policies/managed/ech.json", off).expect("a file in memory");
        page(&world);
        assert_eq!(arrived(&world), 1, "its policy: {}", world.gateway.audit.text());
        succeed(Command::new("umount").arg("/etc/chromium"));

        world.gateway.kill();
        let allowed = gateway::usual_config().splice("pypi", |it| it.set("ech", "allow"));
        world.gateway = Gateway::start(&world.lab, &allowed);
        page(&world);
        assert_eq!(arrived(&world), 2, "the rule: {}", world.gateway.audit.text());
    });
}
