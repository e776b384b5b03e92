//! Vault's leases: any engine by its path, one read for all fields of an answer, and owner
//! restrictions.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lab::{
    Lab,
    audit::Record,
    dns::Dns,
    gateway::{self, GIT_SECRET, Gateway, OPENAI_SECRET},
    net::{AGENT2, ANTHROPIC, GIT, Host, INTERNET, OPENAI, OTHER},
    origin::Origin,
    sandboxed,
    vault::Vault,
    wait,
};
use policy_builder::{Config, Table};
use serde_json::Value;

use crate::{
    lifecycle::control::{status, tell},
    world::{TICKET, World, get, get_path},
};

/// A world whose secrets come from a real Vault, some of them from unusual places.
struct Lent {
    world: World,
    vault: Vault,
    config: Config,
}

impl Lent {
    /// Starts one after changes to Vault, and to its part of the configuration.
    fn start(prepare: impl FnOnce(&Vault), change: impl FnOnce(Config) -> Config) -> Self {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let dns = Dns::start();
        let vault = Vault::start(&lab);
        prepare(&vault);
        let config = change(vault.config());
        let gateway = Gateway::start(&lab, &config);
        Self { world: World { lab, origin, dns, gateway }, vault, config }
    }

    fn usual() -> Self {
        Self::start(|_| {}, |config| config)
    }

    /// Starts one where the first group is leased a password. Neither the group nor the gateway may
    /// revoke leases: they end with the token.
    fn with_a_password() -> Self {
        let prepare = |vault: &Vault| {
            vault.cli(&["secrets", "enable", "ssh"]);
            let role = ["key_type=otp", "default_user=agent", "cidr_list=192.0.2.0/24"];
            vault.cli(&[&["write", "ssh/roles/otp"][..], &role].concat());
            grant(vault, &[("ssh/creds/otp", "update")]);
        };
        let password = "vault-write:ssh/creds/otp?ip=192.0.2.1#key";
        Self::start(prepare, |config| {
            config.binding("ANTHROPIC_API_KEY", |it| it.set("secret", password))
        })
    }

    fn answer(&self, request: &str) -> (u16, Option<String>) {
        let answer = self.world.ask(request);
        (answer.status.as_u16(), answer.reason())
    }

    #[track_caller]
    fn becomes(&self, what: &str, request: &str, status: u16, reason: Option<&str>) {
        wait::expect(what, || self.answer(request) == (status, reason.map(str::to_owned)));
    }

    /// Sets the owner restrictions of the OpenAI key, in place of the earlier ones.
    fn owner_says(&self, metadata: &[&str]) {
        self.owner_of("agents/openai", metadata);
    }

    fn owner_of(&self, path: &str, metadata: &[&str]) {
        let mut args = vec!["kv", "metadata", "put", "-mount=kv"];
        let metadata: Vec<String> =
            metadata.iter().map(|pair| format!("-custom-metadata={pair}")).collect();
        args.extend(metadata.iter().map(String::as_str));
        args.push(path);
        self.vault.cli(&args);
    }

    /// Returns the accessors of Vault's tokens for this group.
    fn tokens_of(&self, group: &str) -> Vec<String> {
        let of_group = |accessor: &String| {
            let args = ["token", "lookup", "-accessor", accessor];
            let found = self.vault.try_cli(&args, self.vault.root_token());
            let found: Value = serde_json::from_slice(&found.stdout).unwrap_or_default();
            found["data"]["meta"]["cloakroom_group"] == group
        };
        self.vault.accessors().into_iter().filter(of_group).collect()
    }

    fn leases(&self, prefix: &str) -> usize {
        let path = format!("sys/leases/lookup/{prefix}");
        let listed = self.vault.try_cli(&["list", &path], self.vault.root_token());
        let listed: Value = serde_json::from_slice(&listed.stdout).unwrap_or_default();
        listed.as_array().map_or(0, Vec::len)
    }
}

fn basic(pair: &str) -> String {
    format!("Authorization: Basic {}", STANDARD.encode(pair))
}

/// Lets the first group read these further paths.
fn grant(vault: &Vault, paths: &[(&str, &str)]) {
    let usual = [("kv/data/agents/*", "read")];
    let rules: String = usual
        .iter()
        .chain(paths)
        .map(|(path, may)| format!("path \"{path}\" {{ capabilities = [\"{may}\"] }}\n"))
        .collect();
    vault.policy(READER, &rules);
}

/// The policy of the first group.
const READER: &str = "agents-research";

#[test]
fn any_engine_is_read_and_its_leases_given_back() {
    sandboxed(|| {
        let prepare = |vault: &Vault| {
            vault.cli(&["secrets", "enable", "-path=kv1", "-version=1", "kv"]);
            vault.cli(&["kv", "put", "-mount=kv1", "openai", "user=agent-7", "key=kv1-secret-01"]);
            vault.cli(&["secrets", "enable", "ssh"]);
            let role = ["key_type=otp", "default_user=agent", "cidr_list=192.0.2.0/24"];
            vault.cli(&[&["write", "ssh/roles/otp"][..], &role].concat());
            vault.put("git", "glpat-lab-another-version-2");
            vault.cli(&["secrets", "enable", "pki"]);
            let root = ["common_name=Data", "ttl=2h"];
            vault.cli(&[&["write", "pki/root/generate/internal"][..], &root].concat());
            let role = ["allowed_domains=agents.example", "allow_subdomains=true"];
            let lent = ["generate_lease=true", "max_ttl=1h"];
            vault.cli(&[&["write", "pki/roles/agents"][..], &role, &lent].concat());
            let issue = "path \"pki/issue/agents\" { capabilities = [\"update\"] }\n";
            vault.policy("agents-operations", issue);
            let paths = [
                ("kv1/openai", "read"),
                ("ssh/creds/otp", "update"),
                ("sys/leases/revoke", "update"),
            ];
            grant(vault, &paths);
        };
        let other = "vault-write:pki/issue/agents?common_name=ops.agents.example#serial_number";
        let moved = [
            ("OPENAI_API_KEY", "vault-read:kv1/openai#{user}:{key}"),
            ("ANTHROPIC_API_KEY", "vault-write:ssh/creds/otp?ip=192.0.2.1#key"),
            ("GIT_TOKEN", "vault:kv/agents/git?version=1#api_key"),
            ("OPS_OPENAI_KEY", other),
        ];
        let mut it = Lent::start(prepare, |config| {
            moved.into_iter().fold(config, |config, (placeholder, secret)| {
                config.binding(placeholder, |it| it.set("secret", secret))
            })
        });
        let world = &it.world;
        assert_eq!(it.answer(&get(&[TICKET])), (200, None));
        let mut anthropic = world.h1(ANTHROPIC).unwrap();
        let ask = format!(
            "GET /v1/models HTTP/1.1\r\nHost: {}\r\nx-api-key: ANTHROPIC_API_KEY\r\n\r\n",
            ANTHROPIC.name
        );
        assert_eq!(anthropic.ask(&ask).unwrap().status, 200);
        std::thread::sleep(Duration::from_secs(3));
        assert_eq!(anthropic.ask(&ask).unwrap().status, 200);
        let requests = world.origin.log().wait_requests(3);
        assert_eq!(requests[0].header("authorization"), ["Bearer agent-7:kv1-secret-01"]);
        let password = requests[1].header("x-api-key");
        assert_eq!(requests[2].header("x-api-key"), password, "it is not issued each refresh");
        let otp = format!("otp={}", password[0]);
        assert_eq!(it.leases("ssh/creds/otp"), 1);
        let verified = it.vault.cli(&["write", "ssh/verify", &otp]);
        assert!(verified.contains("192.0.2.1"), "{verified}");
        let mut git = it.world.h1(GIT).unwrap();
        let ask = basic("agent:GIT_TOKEN");
        git.ask(format!("GET /v1/models HTTP/1.1\r\nHost: {}\r\n{ask}\r\n\r\n", GIT.name)).unwrap();
        let request = &it.world.origin.log().wait_requests(4)[3];
        let pinned = basic(&format!("agent:{GIT_SECRET}"));
        assert_eq!(pinned, format!("Authorization: {}", request.header("authorization")[0]));
        let mut operations =
            it.world.h1_from(AGENT2, OPENAI.port(443), OPENAI.name).expect("a handshake");
        let ask = get(&["Authorization: Bearer OPS_OPENAI_KEY"]);
        assert_eq!(operations.ask(ask).expect("an answer").status, 200);
        let request = &it.world.origin.log().wait_requests(5)[4];
        let sent = request.header("authorization")[0].to_owned();
        let serial = sent.strip_prefix("Bearer ").expect("a serial number");
        assert!(it.vault.cli(&["read", &format!("pki/cert/{serial}")]).contains("CERTIFICATE"));
        assert_eq!(it.leases("pki/issue/agents"), 1);
        it.world.gateway.terminate(wait::SOON);
        wait::expect("the lease is given back", || it.leases("ssh/creds/otp") == 0);
        wait::expect("so is the certificate", || it.leases("pki/issue/agents") == 0);
        it.world.assert_secrets_untold();
    });
}

#[test]
fn a_secrets_owner_only_narrows_what_policy_grants() {
    sandboxed(|| {
        let it = Lent::usual();
        let (read, other) = (get(&[TICKET]), get_path("/v1/other", &[TICKET]));
        let post =
            read.replacen("GET", "POST", 1).replace("\r\n\r\n", "\r\nContent-Length: 0\r\n\r\n");
        for request in [&read, &post, &other] {
            assert_eq!(it.answer(request), (200, None), "{request}");
        }
        it.owner_says(&["methods=GET,HEAD", "owner=team-7"]);
        it.becomes("only reads", &post, 403, Some("method_denied"));
        assert_eq!(it.answer(&read), (200, None));
        let hidden = get(&[TICKET, "X-HTTP-Method-Override: POST"]);
        assert_eq!(it.answer(&hidden), (403, Some("method_denied".to_owned())));

        it.owner_says(&["paths=/v1/models, /admin/*"]);
        it.becomes("one path", &other, 403, Some("path_denied"));
        assert_eq!(it.answer(&read), (200, None));
        assert_eq!(it.answer(&post), (200, None));
        let wide = get_path("/admin/users", &[TICKET]);
        assert_eq!(it.answer(&wide), (403, Some("path_denied".to_owned())));

        it.owner_says(&["expires=2030-01-01T00:00:00Z", &format!("hosts={}", OPENAI.name)]);
        it.becomes("all of it", &other, 200, None);
        for (metadata, cause) in [
            ("expires=2020-01-01T00:00:00Z", "lease_ended"),
            ("hosts=api.other.example", "value_invalid"),
            ("hosts=*.example", "value_invalid"),
            ("places=header x-api-key raw", "value_invalid"),
            ("methods=DELETE", "value_invalid"),
            ("paths=admin", "value_invalid"),
        ] {
            it.owner_says(&[metadata]);
            it.becomes(metadata, &read, 503, Some("secret_unavailable"));
            it.world
                .gateway
                .audit
                .wait_for(|record| record.is("request") && record["cause"] == cause);
            it.owner_says(&["owner=team-7"]);
            it.becomes("open again", &read, 200, None);
        }
        let bearer = format!("Bearer {OPENAI_SECRET}");
        let requests = it.world.origin.log().requests();
        assert!(requests.iter().all(|request| request.header("authorization") == [&*bearer]));
        it.world.assert_secrets_untold();
    });
}

#[test]
fn an_owner_narrows_hosts_and_places_and_sets_an_end() {
    sandboxed(|| {
        let wider = |it: Table| it.more("hosts", &["other.example"]);
        let it = Lent::start(|_| {}, |config| config.api("anthropic", wider));
        let answer = |host: Host, credential: &str| {
            let request =
                format!("GET /v1/models HTTP/1.1\r\nHost: {}\r\n{credential}\r\n\r\n", host.name);
            let answer = it.world.h1(host).and_then(|mut tls| tls.ask(request));
            let answer = answer.expect("an answer");
            (answer.status.as_u16(), answer.reason())
        };
        let (raw, bearer) =
            ("x-api-key: ANTHROPIC_API_KEY", "Authorization: Bearer ANTHROPIC_API_KEY");
        let ways = [(ANTHROPIC, raw), (ANTHROPIC, bearer), (OTHER, raw), (OTHER, bearer)];
        let open = || ways.map(|(host, credential)| answer(host, credential).0);
        assert_eq!(open(), [200; 4]);
        let refused = |reason: &str| (403, Some(reason.to_owned()));

        it.owner_of("agents/anthropic", &["places=header x-api-key raw"]);
        wait::expect("one place", || open() == [200, 403, 200, 403]);
        assert_eq!(answer(ANTHROPIC, bearer), refused("placeholder_wrong_place"));
        it.owner_of("agents/anthropic", &["hosts=api.anthropic.example"]);
        wait::expect("one host", || open() == [200, 200, 403, 403]);
        assert_eq!(answer(OTHER, raw), refused("placeholder_wrong_host"));
        // The operator has not granted the rights that the owner adds.
        let wide = ["hosts=api.anthropic.example,api.openai.example", "methods=GET,DELETE"];
        it.owner_of("agents/anthropic", &wide);
        std::thread::sleep(Duration::from_secs(2));
        let delete = "DELETE /v1/models HTTP/1.1\r\nHost: api.anthropic.example\r\n\
                      x-api-key: ANTHROPIC_API_KEY\r\n\r\n";
        let deleted = it.world.h1(ANTHROPIC).and_then(|mut tls| tls.ask(delete));
        assert_eq!(deleted.expect("an answer").reason().as_deref(), Some("method_denied"));
        assert_eq!(answer(OPENAI, raw).0, 403);

        let end = SystemTime::now() + Duration::from_secs(10);
        let seconds = end.duration_since(UNIX_EPOCH).expect("after 1970").as_secs();
        let date = INTERNET.shell(&format!("date -u -d @{seconds} +expires=%Y-%m-%dT%H:%M:%SZ"));
        it.owner_of("agents/anthropic", &[date.trim()]);
        wait::expect("all of it", || open() == [200; 4]);
        assert!(SystemTime::now() < end, "the machine is too slow for this");
        wait::expect("the end", || answer(ANTHROPIC, raw).0 == 503);
        let late = SystemTime::now().duration_since(end).unwrap_or_default();
        assert!(late < Duration::from_secs(4), "{late:?}");
        let of = |record: &Record| record.is("request") && record["cause"] == "lease_ended";
        it.world.gateway.audit.wait_for(of);
        it.world.assert_secrets_untold();
    });
}

#[test]
fn a_departed_group_keeps_no_token_or_lease() {
    sandboxed(|| {
        let it = Lent::with_a_password();
        assert_eq!(it.answer(&get(&[TICKET])), (200, None));
        wait::expect("a lease", || it.leases("ssh/creds/otp") == 1);
        let others = it.tokens_of("operations");
        assert_eq!((it.tokens_of("research").len(), others.len()), (1, 1));
        gateway::install(&it.world.lab, &it.config.clone().rename_group("research", "renamed"));
        tell(&it.world, &["reload"], 0);
        wait::expect("no token of the group's", || it.tokens_of("research").is_empty());
        wait::expect("no lease of the group's", || it.leases("ssh/creds/otp") == 0);
        assert_eq!(it.tokens_of("operations"), others, "the other group keeps its own");
        let told = it.world.gateway.stderr();
        assert!(!told.contains("left to end by itself"), "{told}");
        it.world.assert_secrets_untold();
    });
}

#[test]
fn a_quarantine_takes_token_and_leases_until_its_release() {
    sandboxed(|| {
        let mut it = Lent::with_a_password();
        let bearer = get(&[TICKET]);
        assert_eq!(it.answer(&bearer), (200, None));
        wait::expect("a lease", || it.leases("ssh/creds/otp") == 1);
        let (before, others) = (it.tokens_of("research"), it.tokens_of("operations"));
        assert_eq!((before.len(), others.len()), (1, 1));

        let begun = std::time::Instant::now();
        tell(&it.world, &["quarantine", "research"], 0);
        wait::expect("no token of the group's", || it.tokens_of("research").is_empty());
        wait::expect("no lease of the group's", || it.leases("ssh/creds/otp") == 0);
        println!("in Vault after {:?}", begun.elapsed());
        assert_eq!(it.tokens_of("operations"), others, "the other group keeps its own");
        let told = it.world.gateway.stderr();
        assert!(!told.contains("left to end by itself"), "{told}");

        // A reload or a crash brings nothing back.
        tell(&it.world, &["reload"], 0);
        it.world.gateway.kill();
        let config = it.world.lab.dir.join("cloakroom.toml");
        it.world.gateway = Gateway::run(&it.world.lab, &config).expect("it starts again");
        let available = |status: Value| status["secrets"]["available"].to_string();
        wait::expect("the other group's", || available(status(&it.world)).contains("agents/ops"));
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(it.tokens_of("research"), [""; 0]);
        assert_eq!(it.leases("ssh/creds/otp"), 0);

        tell(&it.world, &["release", "research"], 0);
        it.becomes("open again", &bearer, 200, None);
        wait::expect("another lease", || it.leases("ssh/creds/otp") == 1);
        let after = it.tokens_of("research");
        assert!(after.len() == 1 && after != before, "{before:?} {after:?}");
        it.world.assert_secrets_untold();
    });
}

#[test]
fn a_quarantine_under_a_sealed_vault_is_caught_up() {
    sandboxed(|| {
        let it = Lent::usual();
        assert_eq!(it.answer(&get(&[TICKET])), (200, None));
        assert_eq!(it.tokens_of("research").len(), 1);
        it.vault.seal();
        let begun = std::time::Instant::now();
        tell(&it.world, &["quarantine", "research"], 0);
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        it.world.h1(OPENAI).map(drop).expect_err("cut off whatever Vault does");
        std::thread::sleep(Duration::from_secs(2));
        it.vault.unseal();
        wait::expect("no token of the group's", || it.tokens_of("research").is_empty());
        assert_eq!(it.tokens_of("operations").len(), 1);
    });
}
