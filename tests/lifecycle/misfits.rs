//! A machine that does not fit its configuration reports it, with a remedy.

use lab::{
    Lab,
    dns::Dns,
    gateway::{self, Gateway, usual_config},
    net::{AGENT, GATEWAY, OPENAI},
    origin::Origin,
    sandboxed,
};

use crate::dns::client::{addresses, anywhere, ask};

#[test]
fn ipv6_that_is_off_in_the_kernel_is_said_plainly() {
    sandboxed(|| {
        let lab = Lab::new();
        let _origin = Origin::start(&lab);
        let _dns = Dns::start();
        GATEWAY.shell("sysctl -qw net.ipv6.conf.all.disable_ipv6=1");
        let failed = Gateway::try_start(&lab, &usual_config()).map(drop).expect_err("no IPv6");
        assert_eq!(failed.code(), Some(1), "{}", failed.stderr);
        for said in ["IPv6 is off on lo", "net.ipv6.conf.lo.disable_ipv6=0", "`ipv6 = false`"] {
            assert!(failed.stderr.contains(said), "{}", failed.stderr);
        }
        // The remedy works.
        let _gateway = Gateway::start(&lab, &usual_config().gateway("ipv6", false));
        let told = addresses(&ask(anywhere(), OPENAI.name, hickory_proto::rr::RecordType::A));
        assert_eq!(told, [std::net::IpAddr::from(OPENAI.v4())]);
        AGENT.connect(OPENAI.port(443)).expect("over IPv4");
    });
}

#[test]
fn ipv6_that_is_off_and_stolen_prefixes_are_reported() {
    sandboxed(|| {
        let lab = Lab::new();
        let _dns = Dns::start();
        let wans = usual_config()
            .group("research", |it| it.set("prefixes", ["203.0.113.128/25", "2001:db8:a::/64"]));
        GATEWAY.shell("sysctl -qw net.ipv6.conf.agents0.disable_ipv6=1");
        let gateway = Gateway::start(&lab, &wans);
        let config = lab.dir.join("cloakroom.toml");
        let checked = gateway::program().arg("check").arg(&config).output().expect("it starts");
        let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
        let log = gateway.stderr();
        for said in [
            "agents on agents0 have addresses in 203.0.113.128/25, and 203.0.113.0/24 is the network of wan0",
            "IPv6 is off on agents0",
        ] {
            assert!(log.contains(said), "the log: {log}");
            assert!(checked.contains(said), "check: {checked}");
        }
        // There is no such report where all is well.
        GATEWAY.shell("sysctl -qw net.ipv6.conf.agents0.disable_ipv6=0");
        gateway::install(&lab, &usual_config());
        let checked = gateway::program().arg("check").arg(&config).output().expect("it starts");
        let checked = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(
            checked.contains("The gateway") && !checked.contains("On this machine"),
            "{checked}"
        );
    });
}
