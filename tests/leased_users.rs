//! Users that Vault makes in a database for a while: a real InfluxDB and a real PostgreSQL say who
//! they let in.

use std::time::{Duration, Instant};

use lab::{
    Lab, client,
    dns::Dns,
    gateway::{self, Gateway},
    influx::Influx,
    net::{AGENT, INFLUX},
    postgres::Postgres,
    sandboxed,
    vault::Vault,
    wait,
};
use serde_json::Value;

#[test]
fn the_lab_s_vault_leases_users_that_end_with_their_lease() {
    sandboxed(|| {
        let lab = Lab::new();
        let vault = Vault::start(&lab);
        let influx = Influx::start(&lab);
        let postgres = Postgres::start(&lab);
        influx.leased_by(&vault, "30s", "60s");
        postgres.leased_by(&vault, "30s");
        let lease = |path: &str| -> (String, String, String) {
            let answer: Value = serde_json::from_str(&vault.cli(&["read", path])).expect("JSON");
            let text = |at: &Value| at.as_str().unwrap_or_default().to_owned();
            (
                text(&answer["lease_id"]),
                text(&answer["data"]["username"]),
                text(&answer["data"]["password"]),
            )
        };
        let (influx_lease, user, password) = lease("database/creds/influx");
        assert_eq!(influx.status(&user, &password), "200");
        assert_eq!(influx.status(&user, "wrong"), "401");
        let (postgres_lease, name, word) = lease("database/creds/postgres");
        assert!(postgres.admits(&name, &word));
        vault.cli(&["lease", "revoke", "-sync", &influx_lease]);
        vault.cli(&["lease", "revoke", "-sync", &postgres_lease]);
        wait::expect("401", || influx.status(&user, &password) == "401");
        assert!(!postgres.admits(&name, &word));
    });
}

#[test]
fn an_agent_works_with_users_that_come_and_go_and_notices_nothing() {
    sandboxed(|| {
        let lab = Lab::new();
        let _dns = Dns::start();
        let vault = Vault::start(&lab);
        let influx = Influx::start(&lab);
        influx.leased_by(&vault, "6s", "15s");
        vault.policy("agents-research", POLICY);
        let config = gateway::vault_config(&vault.config()) + API;
        let config = config.replace("ports = [443, 80]", "ports = [443, 80, 8086]");
        let mut gateway = Gateway::start(&lab, &config);
        let lent = || influx.users().matches("\"v_").count();
        let url = format!("https://{}:{}/query?db=lab", INFLUX.name, Influx::PORT);
        let status = || {
            let mut curl = client::agent(&lab, AGENT, "curl");
            curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}"]);
            curl.args(["-u", "INFLUX_USER:INFLUX_PASSWORD", "--data-urlencode"]);
            client::succeed(curl.args(["q=SHOW MEASUREMENTS", &url]))
        };
        let begun = Instant::now();
        let mut seen = 0;
        while begun.elapsed() < Duration::from_secs(40) {
            assert_eq!(status(), "200", "after {:?}", begun.elapsed());
            seen = seen.max(lent());
            std::thread::sleep(Duration::from_millis(300));
        }
        assert!((1..=4).contains(&seen), "{seen} users at once");
        assert!(gateway.stderr().contains("a secret has a new value"), "{}", gateway.stderr());

        let socket = lab.dir.join("control/control.sock");
        let tell = |word: &str| {
            let mut command = gateway::program();
            client::succeed(command.args([word, "research", "--control"]).arg(&socket));
        };
        tell("quarantine");
        wait::expect("its users are gone", || lent() == 0);
        tell("release");
        wait::expect("it works again", || status() == "200");
        assert_eq!(lent(), 1);
        gateway.terminate(wait::SOON);
        wait::expect("nothing is left at the end", || lent() == 0);
    });
}

const POLICY: &str = r#"
path "kv/data/agents/*" { capabilities = ["read"] }
path "database/creds/influx" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }
"#;

const API: &str = r#"
[[api]]
name = "influx"
hosts = ["influx.example"]
port = 8086
upstream_ca = "{dir}/public-ca.pem"

[[api.binding]]
groups = ["research"]
placeholder = "INFLUX_USER"
places = ["basic user"]
secret = "vault-read:database/creds/influx#username"

[[api.binding]]
groups = ["research"]
placeholder = "INFLUX_PASSWORD"
places = ["basic password"]
secret = "vault-read:database/creds/influx#password"
"#;
