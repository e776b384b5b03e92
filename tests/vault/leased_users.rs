//! Users that Vault makes in a database for a while: a real InfluxDB and a real PostgreSQL report
//! which users they admit.

use std::{
    collections::HashSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use lab::{
    Lab, client,
    dns::Dns,
    gateway::{self, Gateway, PUBLIC_CA},
    influx::Influx,
    net::{AGENT, INFLUX, OPENAI},
    origin::Origin,
    postgres::Postgres,
    sandboxed,
    vault::{self, Vault},
    wait,
};
use policy_builder::{Config, api, binding};
use serde_json::Value;

#[test]
fn the_labs_vault_leases_users_that_end() {
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
fn agents_do_not_notice_users_that_come_and_go() {
    sandboxed(|| {
        let lab = Lab::new();
        let _dns = Dns::start();
        let lender = Lender::start(&lab);
        let influx = Influx::start(&lab);
        influx.leased_by(&lender.vault, "6s", "15s");
        let config = with_influx(lender.vault.config(), "creds");
        let mut gateway = Gateway::start(&lab, &config);
        let lent = || influx.users().matches("\"v_").count();
        let admitted = |(user, password): &(String, String)| influx.status(user, password);
        let status = || ask_influx(&lab);
        let mut python = client::agent(&lab, AGENT, client::python().to_str().expect("UTF-8"));
        python.args(["-c", PYTHON, INFLUX.name]);
        let (begun, mut seen) = (Instant::now(), 0);
        let asked = std::thread::scope(|scope| {
            let python = scope.spawn(|| client::succeed(&mut python));
            while !python.is_finished() {
                assert_eq!(status(), "200", "after {:?}", begun.elapsed());
                seen = seen.max(lent());
                std::thread::sleep(Duration::from_millis(300));
            }
            python.join().expect("no panic")
        });
        println!("Python's client asked {asked}");
        let asked: u32 = asked.trim().parse().expect("a number");
        assert!(asked > 30, "{asked} rounds in 40 s are no work");
        assert!((1..=4).contains(&seen), "{seen} users at once");
        assert!(gateway.stderr().contains("a secret has a new value"), "{}", gateway.stderr());
        // Each is renewed until it cannot be, and one read makes both fields.
        let lives = lender.lent("database/creds/influx");
        assert!((3..=8).contains(&lives.len()), "{} users in {:?}", lives.len(), begun.elapsed());
        let renewed = lender.answers("sys/leases/renew").len();
        assert!(renewed >= lives.len(), "{renewed} renewals");

        let of_now = lives.last().expect("a user");
        assert_eq!((admitted(of_now), lender.leases("influx") > 0), ("200".to_owned(), true));
        tell(&lab, "quarantine");
        wait::expect("Vault has no lease", || lender.leases("influx") == 0);
        wait::expect("its users are gone", || lent() == 0);
        for user in &lender.lent("database/creds/influx") {
            assert_eq!(admitted(user), "401", "InfluxDB says so by itself");
        }
        tell(&lab, "release");
        wait::expect("it works again", || status() == "200");
        let of_now = lender.lent("database/creds/influx").pop().expect("a user");
        assert_eq!((lent(), lender.leases("influx"), admitted(&of_now).as_str()), (1, 1, "200"));
        gateway.terminate(wait::SOON);
        wait::expect("Vault has no lease at the end", || lender.leases("influx") == 0);
        wait::expect("nothing is left at the end", || lent() == 0);
        assert_eq!(admitted(&of_now), "401");
        lender.assert_untold(&gateway, "database/creds/influx");
    });
}

/// The groups' tokens and all leases end with the gateway's token, and InfluxDB drops the user at
/// once.
#[test]
fn a_new_login_brings_another_user_without_a_gap() {
    sandboxed(|| {
        let lab = Lab::new();
        let _dns = Dns::start();
        let lender = Lender::start(&lab);
        let influx = Influx::start(&lab);
        influx.leased_by(&lender.vault, "30s", "10m");
        let config = with_influx(lender.vault.config(), "creds");
        let gateway = Gateway::start(&lab, &config);
        assert_eq!(ask_influx(&lab), "200");
        let users = || lender.lent("database/creds/influx");
        let before = users();
        // Two leases of one path are always at least five seconds apart.
        std::thread::sleep(Duration::from_secs(5));
        lender.vault.revoke_gateway();
        let begun = Instant::now();
        let (mut failed, mut last) = (0, None);
        // Checked until it works, and for some time after that.
        wait::expect("another user", || {
            if ask_influx(&lab) != "200" {
                (failed, last) = (failed + 1, Some(begun.elapsed()));
            }
            let quiet = begun.elapsed() - last.unwrap_or_default();
            users().len() > before.len() && quiet > Duration::from_secs(3)
        });
        println!("{failed} failed, the last after {last:?}");
        // The next check, one in each refresh of a second, notices what Vault has ended.
        assert!(last.is_none_or(|last| last < Duration::from_secs(3)), "{last:?}");
        let (now, ended) = (users().pop().expect("a user"), &before[0]);
        assert_eq!(influx.status(&now.0, &now.1), "200");
        assert_eq!(influx.status(&ended.0, &ended.1), "401");
        assert_eq!(lender.leases("influx"), 1);
        assert_eq!(gateway.stderr().matches("logged in to Vault").count(), 2);
        lender.assert_untold(&gateway, "database/creds/influx");
    });
}

/// Before a token of the gateway's reaches its longest life, another replaces it, and new leases
/// replace its leases.
#[test]
fn a_planned_login_costs_no_request_with_lent_users() {
    sandboxed(|| {
        let lab = Lab::new();
        let _dns = Dns::start();
        let lender = Lender::start(&lab);
        let short = ["token_policies=gateway", "token_ttl=12s", "token_max_ttl=18s"];
        lender.vault.cli(&[&["write", vault::ROLE], &short[..]].concat());
        let influx = Influx::start(&lab);
        influx.leased_by(&lender.vault, "30s", "10m");
        let config = with_influx(lender.vault.config(), "creds");
        let gateway = Gateway::start(&lab, &config);
        let logins = || gateway.stderr().matches("logged in to Vault").count();
        let begun = Instant::now();
        let mut asked = 0;
        // This takes until the second token has ended, too, which is 18 s after its login.
        while logins() < 4 {
            assert!(begun.elapsed() < Duration::from_secs(75), "{} logins", logins());
            assert_eq!(ask_influx(&lab), "200", "request {asked}, after {:?}", begun.elapsed());
            asked += 1;
        }
        println!("{asked} requests in {:?}", begun.elapsed());
        assert!(asked > 100, "{asked} requests are no work");
        let users = lender.lent("database/creds/influx");
        assert!((3..=5).contains(&users.len()), "one for each login: {}", users.len());
        let first = &users[0];
        assert_eq!(influx.status(&first.0, &first.1), "401", "it went with its token");
        lender.assert_untold(&gateway, "database/creds/influx");
    });
}

#[test]
fn a_lent_postgresql_user_ends_with_its_group() {
    sandboxed(|| {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let lender = Lender::start(&lab);
        let postgres = Postgres::start(&lab);
        postgres.leased_by(&lender.vault, "30s");
        let config = lender.vault.config().binding("OPENAI_API_KEY", |it| {
            it.set("secret", "vault-read:database/creds/postgres#{username}:{password}")
        });
        let mut gateway = Gateway::start(&lab, &config);
        let url = format!("https://{}/v1/models", OPENAI.name);
        let ask = || {
            let mut curl = client::agent(&lab, AGENT, "curl");
            curl.args(["-sS", "--fail", "-H", "Authorization: Bearer OPENAI_API_KEY", &url]);
            curl.output().expect("curl starts").status.success()
        };
        assert!(ask());
        let lent = || lender.lent("database/creds/postgres").pop().expect("a user");
        let user = lent();
        let (name, password) = &user;
        let request = &origin.log().wait_requests(1)[0];
        assert_eq!(request.header("authorization"), [format!("Bearer {name}:{password}")]);
        assert!(postgres.admits(name, password));
        assert_eq!(lender.leases("postgres"), 1);
        tell(&lab, "quarantine");
        wait::expect("Vault has no lease", || lender.leases("postgres") == 0);
        wait::expect("PostgreSQL lets it in no more", || !postgres.admits(name, password));
        tell(&lab, "release");
        wait::expect("it works again", ask);
        let (name, password) = lent();
        assert!(user.0 != name && postgres.admits(&name, &password));
        gateway.terminate(wait::SOON);
        wait::expect("Vault has no lease at the end", || lender.leases("postgres") == 0);
        wait::expect("nor PostgreSQL its user", || !postgres.admits(&name, &password));
        lender.assert_untold(&gateway, "database/creds/postgres");
    });
}

/// A value that Vault rotates has no lease. With the longest refresh, only Vault's own time of the
/// next rotation, and InfluxDB's refusal, bring the new password in time.
#[test]
fn a_password_vault_rotates_is_used_when_it_changes() {
    sandboxed(|| {
        let lab = Lab::new();
        let _dns = Dns::start();
        let lender = Lender::start(&lab);
        let influx = Influx::start(&lab);
        influx.rotated_by(&lender.vault, "10s");
        let config = with_influx(lender.vault.config(), "static-creds")
            .vault("refresh", "1h")
            .vault("max_stale", "2h");
        let gateway = Gateway::start(&lab, &config);
        let rotations = || {
            let rotated = lender.lent("database/static-creds/influx");
            rotated.into_iter().map(|(_, password)| password).collect::<HashSet<_>>().len()
        };
        // A rotation shows in the refusals before the read that finds it.
        let (begun, mut asked, mut refused) = (Instant::now(), 0, [0; 4]);
        while let of @ ..4 = rotations() {
            assert!(begun.elapsed() < Duration::from_secs(60), "{of} passwords");
            asked += 1;
            refused[of] += usize::from(ask_influx(&lab) != "200");
            std::thread::sleep(Duration::from_millis(100));
        }
        let took = begun.elapsed();
        println!("{refused:?} of {asked} refused in {took:?}");
        assert!(asked > 40, "{asked} in {took:?} are no work");
        let most = refused.iter().max().expect("four");
        assert!(*most <= MOST_REFUSED, "{refused:?} of {asked} refused in {took:?}");
        let reads = lender.answers("database/static-creds/influx").len();
        assert!(reads < took.as_secs() as usize, "{reads} reads in {took:?}");
        lender.assert_untold(&gateway, "database/static-creds/influx");
    });
}

/// A Vault that logs all leases and their users in the clear, for the test only.
pub(crate) struct Lender {
    pub(crate) vault: Vault,
    raw: PathBuf,
}

impl Lender {
    pub(crate) fn start(lab: &Lab) -> Self {
        let (vault, raw) = (Vault::start(lab), lab.dir.join("vault/raw.log"));
        let path = format!("file_path={}", raw.display());
        vault.cli(&["audit", "enable", "-path=raw", "file", &path, "log_raw=true"]);
        vault.policy("agents-research", POLICY);
        Self { vault, raw }
    }

    /// Returns Vault's answers without an error to requests at `path`.
    fn answers(&self, path: &str) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.raw).expect("Vault writes its audit");
        let records = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let of_path = records.filter(|record| {
            record["type"] == "response"
                && record["request"]["path"] == path
                && record["error"].is_null()
        });
        of_path.collect()
    }

    /// Returns every leased name and password so far.
    pub(crate) fn lent(&self, path: &str) -> Vec<(String, String)> {
        let text = |at: &Value| at.as_str().expect("a text").to_owned();
        let user = |record: &Value| {
            let data = &record["response"]["data"];
            (text(&data["username"]), text(&data["password"]))
        };
        self.answers(path).iter().map(user).collect()
    }

    /// Returns how many leases there are for this role of the database engine.
    pub(crate) fn leases(&self, role: &str) -> usize {
        let path = format!("sys/leases/lookup/database/creds/{role}");
        let listed = self.vault.try_cli(&["list", &path], self.vault.root_token());
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
        listed.as_array().map_or(0, Vec::len)
    }

    #[track_caller]
    pub(crate) fn assert_untold(&self, gateway: &Gateway, path: &str) {
        let told = gateway.stderr() + &gateway.audit.text();
        for (name, password) in self.lent(path) {
            assert!(!told.contains(&name) && !told.contains(&password), "{name} was told:\n{told}");
        }
    }
}

/// Returns the status that the agent's curl gets with both placeholders.
fn ask_influx(lab: &Lab) -> String {
    let url = format!("https://{}:{}/query?db=lab", INFLUX.name, Influx::PORT);
    let mut curl = client::agent(lab, AGENT, "curl");
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}"]);
    curl.args(["-u", "INFLUX_USER:INFLUX_PASSWORD", "--data-urlencode"]);
    client::succeed(curl.args(["q=SHOW MEASUREMENTS", &url]))
}

/// Orders the gateway to cut off the first group, or to release it.
#[track_caller]
fn tell(lab: &Lab, word: &str) {
    let mut command = gateway::program();
    let socket = lab.dir.join("control/control.sock");
    client::succeed(command.args([word, "research", "--control"]).arg(socket));
}

/// Writes and reads for 40 seconds with one client, which raises any error.
const PYTHON: &str = r#"
import sys, time
from influxdb import InfluxDBClient
client = InfluxDBClient(host=sys.argv[1], port=8086, ssl=True, verify_ssl=True, retries=1,
    username="INFLUX_USER", password="INFLUX_PASSWORD", database="lab")
asked, end = 0, time.monotonic() + 40
while time.monotonic() < end:
    client.write_points([{"measurement": "load", "fields": {"value": asked}}])
    asked += 1
    count = list(client.query("SELECT count(value) FROM load").get_points())[0]["count"]
    assert 1 <= count <= asked, (count, asked)
    time.sleep(0.2)
print(asked)
"#;

/// Refused requests of one client, one after the other, at one rotation: the one that reveals it,
/// and those that are sent before Vault's answer is here.
const MOST_REFUSED: usize = 3;

const POLICY: &str = r#"
path "kv/data/agents/*" { capabilities = ["read"] }
path "database/creds/+" { capabilities = ["read"] }
path "database/static-creds/+" { capabilities = ["read"] }
path "sys/leases/revoke" { capabilities = ["update"] }
"#;

/// Adds InfluxDB to the usual APIs; its user comes from this part of the database engine.
fn with_influx(config: Config, part: &str) -> Config {
    let half = |placeholder: &str, place: &str, field: &str| {
        let secret = format!("vault-read:database/{part}/influx#{field}");
        binding("research", placeholder, &[place], &secret)
    };
    let influx = api("influx", &[INFLUX.name])
        .set("port", 8086)
        .set("upstream_ca", PUBLIC_CA)
        .with(half("INFLUX_USER", "basic user", "username"))
        .with(half("INFLUX_PASSWORD", "basic password", "password"));
    config.gateway("ports", [443, 80, 8086]).with(influx)
}
