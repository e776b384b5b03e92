//! The output of `cloakroom vault plan` is all that a real Vault has to be told, and `cloakroom
//! vault doctor` finds every difference from it.

mod applied;
mod logins;

use std::{fs, path::PathBuf, process::Command, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use lab::{
    Lab,
    client::{python, succeed},
    dns::Dns,
    gateway::{self, ANTHROPIC_SECRET, GIT_SECRET, Gateway, OPENAI_SECRET, OPS_SECRET},
    net::{AGENT, AGENT2, ANTHROPIC, GIT, Ns, OPENAI},
    origin::Origin,
    sandboxed,
    tools::on_path,
    vault::Vault,
};
use policy_builder::{Config, Table};
use serde_json::{Value, json};

use crate::world::{World, get};

/// A Vault that holds the secrets and was given the plan and nothing else.
pub(crate) struct Planned {
    lab: Lab,
    pub(crate) vault: Vault,
    pub(crate) policy: Config,
    config: PathBuf,
}

impl Planned {
    pub(crate) fn apply(pki: bool) -> Self {
        Self::apply_with(pki, |config| config)
    }

    /// Returns one with another configuration.
    pub(crate) fn apply_with(pki: bool, change: impl FnOnce(Config) -> Config) -> Self {
        let it = Self::unapplied(|_, vault| change(config(vault, pki)));
        let script = it.plan(&[]);
        it.vault.script(&script);
        it.vault.script(&by_hand(&script));
        it
    }

    /// Returns one with a Vault that has been given nothing yet.
    fn unapplied(config: impl FnOnce(&Lab, &Vault) -> Config) -> Self {
        let lab = Lab::new();
        let vault = Vault::start_for_nobody(&lab);
        let policy = config(&lab, &vault);
        let config = gateway::install(&lab, &policy);
        Self { lab, vault, policy, config }
    }

    pub(crate) fn plan(&self, arguments: &[&str]) -> String {
        succeed(gateway::program().args(["vault", "plan"]).args(arguments).arg(&self.config))
    }

    fn policy(&self, name: &str) -> String {
        self.plan(&["--policy", name])
    }

    /// Returns the doctor's exit status, standard output and standard error.
    fn doctor(&self, arguments: &[&str]) -> (Option<i32>, String, String) {
        let mut command = gateway::program();
        command.args(["vault", "doctor"]).args(arguments).arg(&self.config);
        let output = command.output().expect("the program starts");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    #[track_caller]
    pub(crate) fn assert_healthy(&self) {
        let (code, report, error) = self.doctor(&[]);
        assert_eq!(code, Some(0), "{report}{error}");
        assert!(findings(&report).is_empty() && report.contains("checks: healthy"), "{report}");
    }

    /// Requires that after `seed` the doctor reports this about `whose`, and nothing about anything
    /// else; then applies the plan again, which mends it.
    #[track_caller]
    pub(crate) fn assert_found(&self, whose: &str, says: &str, seed: impl FnOnce(&Vault)) {
        seed(&self.vault);
        let (code, report, error) = self.doctor(&[]);
        let found = findings(&report);
        println!("{found:#?}");
        assert_eq!(code, Some(1), "{report}{error}");
        assert!(found.iter().any(|line| line.contains(says)), "{says}: {found:#?}");
        let whose = format!(" {whose}: ");
        assert!(found.iter().all(|line| line.contains(&whose)), "{whose}: {found:#?}");
        self.vault.script(&self.plan(&[]));
        self.assert_healthy();
    }

    /// Requires that `terraform fmt`, if there is one, would change nothing in a plan for
    /// Terraform.
    #[track_caller]
    fn assert_formatted(&self, plan: &str) {
        let file = self.lab.write("formatted.tf", plan);
        match on_path(&["terraform"]) {
            Some(terraform) => {
                succeed(Command::new(terraform).args(["fmt", "-check", "-diff"]).arg(file));
            }
            None => println!("no terraform on PATH: how its plan is laid out was not looked at"),
        }
    }

    /// Returns everything that the plan sets.
    fn state(&self, pki: bool) -> Vec<Value> {
        let read = |words: &[&str]| -> Value {
            let answer: Value = serde_json::from_str(&self.vault.cli(words)).expect("JSON");
            answer.get("data").cloned().unwrap_or(answer)
        };
        let role = "auth/approle/role/cloakroom-gateway";
        let mut state = vec![
            read(&["list", "sys/policies/acl"]),
            read(&["list", "auth/token/roles"]),
            read(&["read", role]),
            read(&["read", &format!("{role}/role-id")]),
            read(&["read", "sys/auth"]),
            read(&["read", "sys/mounts"]),
        ];
        for name in NAMES {
            state.push(read(&["read", &format!("sys/policies/acl/{name}")]));
        }
        for name in &NAMES[1..] {
            state.push(read(&["read", &format!("auth/token/roles/{name}")]));
        }
        if pki {
            state.push(read(&["list", "pki/issuers"]));
        }
        state
    }

    pub(crate) fn run(self, pki: bool) -> (World, Vault) {
        let Self { lab, vault, policy, config } = self;
        let (origin, dns) = (Origin::start(&lab), Dns::start());
        if !pki {
            let gateway = Gateway::start(&lab, &policy);
            return (World { lab, origin, dns, gateway }, vault);
        }
        gateway::guard();
        let root = fs::read_to_string(lab.dir.join("pki-root.pem")).expect("the root");
        lab.write("agents.pem", root + "\n" + lab.public.pem());
        let gateway = Gateway::run(&lab, &config);
        let gateway = gateway.unwrap_or_else(|failed| panic!("not ready: {}", failed.stderr));
        (World { lab, origin, dns, gateway }, vault)
    }
}

fn config(vault: &Vault, pki: bool) -> Config {
    let config = vault
        .config()
        .login_key("role_id", ROLE_ID)
        .login_key("secret_id_file", "{dir}/vault/secret-id");
    if !pki {
        return config;
    }
    let pki = Table::section("pki").set("root_file", "{dir}/pki-root.pem");
    config.without_gateway("ca_dir").below_vault(pki)
}

/// Returns the commands that the plan leaves to the operator, as its comments print them.
fn by_hand(script: &str) -> String {
    let comments = script.lines().filter_map(|line| line.strip_prefix("# "));
    let commands = comments
        .filter(|line| ["(umask", "vault ", "install "].iter().any(|it| line.starts_with(it)));
    // The lab has no such user, and the daemon that reads the files has this test's user.
    let commands = commands.map(|line| line.replace(" -o cloakroom ", " ") + "\n");
    format!("set -e\ncd \"$(mktemp -d)\"\n{}", commands.collect::<String>())
}

fn findings(report: &str) -> Vec<&str> {
    let is_finding = |line: &&str| {
        ["missing ", "too wide ", "unknown "].iter().any(|word| line.starts_with(word))
    };
    report.lines().filter(is_finding).collect()
}

/// Checks that each of the four placeholders becomes its secret, in its own place and from its own
/// group.
#[track_caller]
fn each_placeholder_becomes_its_secret(world: &World) {
    let basic = |password: &str| format!("Basic {}", STANDARD.encode(format!("agent:{password}")));
    for (ns, host, field, ticket, secret) in [
        (
            AGENT,
            OPENAI,
            "authorization",
            "Bearer OPENAI_API_KEY",
            format!("Bearer {OPENAI_SECRET}"),
        ),
        (AGENT2, OPENAI, "authorization", "Bearer OPS_OPENAI_KEY", format!("Bearer {OPS_SECRET}")),
        (AGENT, ANTHROPIC, "x-api-key", "ANTHROPIC_API_KEY", ANTHROPIC_SECRET.to_owned()),
        (AGENT, GIT, "authorization", &basic("GIT_TOKEN"), basic(GIT_SECRET)),
    ] {
        world.origin.log().clear();
        let mut tls = world.h1_from(ns, host.port(443), host.name).expect("a handshake");
        let asked =
            format!("GET /v1/models HTTP/1.1\r\nHost: {}\r\n{field}: {ticket}\r\n\r\n", host.name);
        assert_eq!(tls.ask(asked).expect("an answer").status, 200, "{ticket}");
        let request = &world.origin.log().wait_requests(1)[0];
        assert_eq!(request.header(field), [secret]);
    }
}

fn status(world: &World, ns: Ns, placeholder: &str) -> u16 {
    let mut tls = world.h1_from(ns, OPENAI.port(443), OPENAI.name).expect("a handshake");
    let ticket = format!("Authorization: Bearer {placeholder}");
    tls.ask(get(&[&ticket])).expect("an answer").status.as_u16()
}

#[test]
fn the_plan_is_all_an_empty_vault_needs() {
    sandboxed(|| {
        let it = Planned::apply(false);
        it.assert_healthy();
        let before = it.state(false);
        it.vault.script(&it.plan(&[]));
        assert_eq!(before, it.state(false), "applied again it changes nothing");
        let (world, vault) = it.run(false);
        each_placeholder_becomes_its_secret(&world);
        // Each has its own token, which is bound to the gateway's address.
        for accessor in vault.accessors() {
            let looked =
                vault.try_cli(&["token", "lookup", "-accessor", &accessor], vault.root_token());
            let looked: Value = serde_json::from_slice(&looked.stdout).expect("JSON");
            let data = &looked["data"];
            if data["policies"] != json!(["root"]) {
                assert!(data["bound_cidrs"].as_array().is_some_and(|it| it.len() == 1), "{looked}");
                assert_eq!(data["policies"].as_array().map(Vec::len), Some(1), "{looked}");
            }
        }
        world.assert_secrets_untold();
    });
}

#[test]
fn the_plan_sets_up_the_signing_engine() {
    sandboxed(|| {
        let it = Planned::apply(true);
        it.assert_healthy();
        let before = it.state(true);
        it.vault.script(&it.plan(&[]));
        assert_eq!(before, it.state(true), "applied again it makes no other root");
        it.assert_found("gateway", "Vault signs a CA for no names", |vault| {
            let policy = it.policy("cloakroom-gateway");
            let (allowed, _) = policy.split_once("  denied_parameters").expect("a stanza");
            vault.policy("cloakroom-gateway", &format!("{allowed}}}\n"));
        });
        it.assert_found("gateway", "Vault signs a CA for a name outside", |vault| {
            let free = "path \"pki/root/sign-intermediate\" { capabilities = [\"update\"] }\n";
            let policy = it.policy("cloakroom-gateway");
            let (before, _) = policy.split_once("path \"pki/").expect("a stanza");
            vault.policy("cloakroom-gateway", &(before.to_owned() + free));
        });
        it.assert_found("gateway", "the CA of `git`: Vault's policies do not let", |vault| {
            let policy = it.policy("cloakroom-gateway");
            vault.policy("cloakroom-gateway", &policy.replace("git.example", "other.example"));
        });
        // Each of these is one line of the stanza that requires less than the plan's.
        let loosened = |from: &str, to: &str| {
            let policy = it.policy("cloakroom-gateway");
            let (before, stanza) = policy.split_once("path \"pki/").expect("a stanza");
            let is_meant = |line: &&str| line.starts_with(from);
            assert_eq!(stanza.lines().filter(is_meant).count(), 1, "{from}: {stanza}");
            let line = |line| if is_meant(&line) { to } else { line };
            let stanza: Vec<_> = stanza.lines().map(line).collect();
            it.vault
                .policy("cloakroom-gateway", &format!("{before}path \"pki/{}", stanza.join("\n")));
        };
        it.assert_found("gateway", "Vault signs a CA for a common name of its own", |_| {
            loosened("    \"common_name\" = [\"Cloakroom", "    \"common_name\" = []");
        });
        it.assert_found("gateway", "may leave limits out at pki/root/sign-intermediate", |_| {
            loosened("  required_parameters = [", "");
        });
        it.assert_found("gateway", "Vault signs a CA for a longer life", |_| {
            loosened("    \"ttl\" = [\"2", "    \"ttl\" = []");
        });
        for says in ["whatever its CSR says", "alternative names", "an end of its own"] {
            it.assert_found("gateway", &format!("a CA for {says}"), |_| {
                loosened("    \"csr\" = []", "    \"csr\" = []\n    \"*\" = []");
            });
        }
        let names = "    \"permitted_dns_domains\" = [\"api.anthropic.example\", \
                     \"api.openai.example\", \"git.example\"]";
        it.assert_found("gateway", "Vault signs a CA for the names of two rules at once", |_| {
            loosened("    \"permitted_dns_domains\" = [[", names);
        });
        let (world, _vault) = it.run(true);
        each_placeholder_becomes_its_secret(&world);
        world.assert_secrets_untold();
    });
}

#[test]
fn the_doctor_names_every_rule_beside_the_plans() {
    sandboxed(|| {
        let it = Planned::apply(false);
        it.vault.cli(&["secrets", "enable", "-path=finance", "-version=1", "kv"]);
        it.assert_healthy();
        let [gateway, operations, _] = NAMES;
        for (whose, name) in [("gateway", gateway), ("group operations", operations)] {
            for (path, may) in [
                ("finance/*", "read"),
                ("finance/payroll", "read"),
                ("+/payroll", "list"),
                ("kv/data/finance", "read"),
                ("nowhere/*", "sudo"),
            ] {
                let rule = format!("path \"{path}\" {{ capabilities = [\"{may}\"] }}\n");
                let says = format!("its policies have more rules: {may} {path}");
                it.assert_found(whose, &says, |vault| {
                    vault.policy(name, &(it.policy(name) + &rule));
                    let shown = format!("\n  {path}\n");
                    let is_told = it.doctor(&[]).1.contains(&shown);
                    assert_eq!(is_told, whose != "gateway" && may != "sudo", "{whose}: {path}");
                });
            }
            it.assert_found(whose, "Vault does not list its token's rules", |vault| {
                let policy =
                    it.policy(name).replace("sys/internal/ui/resultant-acl", "sys/nothing");
                vault.policy(name, &policy);
            });
        }
        // A rule that denies is none that grants.
        let deny = "path \"finance/*\" { capabilities = [\"deny\"] }\n";
        it.vault.policy(operations, &(it.policy(operations) + deny));
        it.assert_healthy();
        // Vault's own default policy allows nothing except requests about the token itself.
        it.vault.script(&it.plan(&[]));
        for role in ["auth/token/roles/cloakroom-operations", "auth/approle/role/cloakroom-gateway"]
        {
            it.vault.cli(&["write", role, "token_no_default_policy=false"]);
        }
        it.assert_healthy();
    });
}

#[test]
fn the_doctor_finds_a_token_good_at_other_addresses() {
    sandboxed(|| {
        let it = Planned::apply(false);
        it.assert_healthy();
        let wide = "token_bound_cidrs=203.0.113.2/32,203.0.113.0/29,192.0.2.0/24";
        for (whose, role) in [
            ("group operations", "auth/token/roles/cloakroom-operations"),
            ("gateway", "auth/approle/role/cloakroom-gateway"),
        ] {
            it.assert_found(whose, "good at 203.0.113.0/29, 192.0.2.0/24, and", |vault| {
                drop(vault.cli(&["write", role, wide]));
            });
        }
        // A plan for a prefix needs the same option here.
        it.vault.script(&it.plan(&["--from", "203.0.113.0/24"]));
        let (code, report, _) = it.doctor(&[]);
        assert!(code == Some(1) && report.contains("is good at 203.0.113.0/24, and"), "{report}");
        let (code, report, error) = it.doctor(&["--from", "203.0.113.0/24"]);
        assert_eq!(code, Some(0), "{report}{error}");
    });
}

#[test]
fn a_group_writes_its_configured_request_and_tends_the_lease() {
    sandboxed(|| {
        let password = "vault-write:ssh/creds/ops?ip=192.0.2.9&username=agent#key";
        let it = Planned::apply_with(false, |config| {
            config.binding("OPS_OPENAI_KEY", |it| it.set("secret", password))
        });
        it.vault.cli(&["secrets", "enable", "ssh"]);
        let role =
            ["key_type=otp", "default_user=agent", "allowed_users=root", "cidr_list=0.0.0.0/0"];
        it.vault.cli(&[&["write", "ssh/roles/ops"], &role[..]].concat());
        it.assert_healthy();
        let create = ["token", "create", "-policy=cloakroom-operations", "-no-default-policy"];
        let token = lab::vault::token(&it.vault.cli(&create));
        let write = |words: &[&str]| {
            let output = it.vault.try_cli(&[&["write", "ssh/creds/ops"], words].concat(), &token);
            assert!(
                output.status.success() || String::from_utf8_lossy(&output.stderr).contains("403")
            );
            output.status.success()
        };
        assert!(write(&["ip=192.0.2.9", "username=agent"]));
        for other in [
            &["ip=192.0.2.10", "username=agent"][..],
            &["ip=192.0.2.9", "username=root"],
            &["ip=192.0.2.9", "username="],
            &["ip=192.0.2.9"],
            &["ip=192.0.2.9", "username=agent", "more=1"],
        ] {
            assert!(!write(other), "{other:?}");
        }
        it.vault.cli(&["token", "revoke", &token]);
        for (path, from, to) in [
            ("ssh/creds/ops", "\"ip\" = [\"192.0.2.9\"]", "\"ip\" = [\"192.0.2.*\"]"),
            ("sys/leases/revoke", "ssh/creds/ops/*", "ssh/creds/*"),
        ] {
            it.assert_found("group operations", &format!("may say more to {path} than"), |vault| {
                let policy = it.policy("cloakroom-operations");
                assert!(policy.contains(from), "{policy}");
                vault.policy("cloakroom-operations", &policy.replace(from, to));
            });
        }
        let (mut world, vault) = it.run(false);
        assert_eq!(status(&world, AGENT2, "OPS_OPENAI_KEY"), 200);
        let leases =
            || vault.try_cli(&["list", "sys/leases/lookup/ssh/creds/ops"], vault.root_token());
        let leased = String::from_utf8_lossy(&leases().stdout).into_owned();
        assert!(leased.lines().count() > 2, "one is there: {leased}");
        world.gateway.terminate(Duration::from_secs(12));
        let left = String::from_utf8_lossy(&leases().stdout).into_owned();
        assert!(left.lines().count() <= 2, "given back: {left}");
        let said = world.gateway.stderr();
        assert!(!said.contains("policies let neither"), "{said}");
    });
}

#[test]
fn the_doctor_finds_each_mistake_and_names_it() {
    sandboxed(|| {
        let it = Planned::apply(false);
        it.assert_healthy();
        let [gateway, operations, research] = NAMES;
        let add = |name: &'static str, line: &'static str| {
            let text = it.policy(name) + line;
            move |vault: &Vault| vault.policy(name, &text)
        };
        let role = |change: &'static str| {
            move |vault: &Vault| {
                drop(vault.cli(&["write", "auth/token/roles/cloakroom-operations", change]))
            }
        };

        it.assert_found("group operations", "cloakroom-operations: it is not there", |vault| {
            vault.cli(&["delete", "auth/token/roles/cloakroom-operations"]);
        });
        it.assert_found("group research", "may not read kv/data/agents/git", |vault| {
            let policy = it.policy(research).replace("agents/git", "agents/gone");
            vault.policy(research, &policy);
        });
        let all = "path \"kv/data/*\" { capabilities = [\"read\"] }\n";
        it.assert_found(
            "group research",
            "more than its paths: read kv/data/<any>,",
            add(research, all),
        );
        let one = "path \"kv/data/+/ops\" { capabilities = [\"read\"] }\n";
        it.assert_found(
            "group operations",
            "more than its paths: read kv/data/<any>/ops",
            |vault| {
                let policy = it.policy(operations);
                vault.policy(
                    operations,
                    &(policy.replace("kv/data/agents/ops", "kv/data/none/ops") + one),
                );
            },
        );
        it.assert_found(
            "group research",
            "may update kv/data/agents/openai, and needs read",
            |vault| {
                let policy = it.policy(research);
                let (before, after) = policy.split_once("agents/openai\" {").expect("a stanza");
                let after = after.replacen("[\"read\"]", "[\"read\", \"update\"]", 1);
                vault.policy(research, &format!("{before}agents/openai\" {{{after}"));
            },
        );
        let read = "path \"kv/data/agents/openai\" { capabilities = [\"read\"] }\n";
        it.assert_found(
            "gateway",
            "reaches secrets, and needs none: read kv/data/agents/openai",
            add(gateway, read),
        );
        it.assert_found(
            "operations",
            "not its own: read kv/data/agents/openai",
            add(operations, read),
        );
        let create = "path \"auth/token/create\" { capabilities = [\"update\"] }\n";
        it.assert_found(
            "gateway",
            "could give itself more: update auth/token/create",
            add(gateway, create),
        );
        let policies = "path \"sys/policies/acl/*\" { capabilities = [\"update\"] }\n";
        it.assert_found("gateway", "sys/policies/acl/", add(gateway, policies));
        it.assert_found("group operations", "good from everywhere", role("token_bound_cidrs="));
        it.assert_found("group operations", "it allows root", role("allowed_policies=root"));
        let inherits = "allowed_policies=cloakroom-operations,cloakroom-gateway";
        it.assert_found("group operations", "has a policy of the gateway's", role(inherits));
        it.assert_found("group operations", "would outlive the gateway's", role("orphan=true"));
        it.assert_found("group operations", "Vault does not say what its token may do", |vault| {
            let policy = it.policy(operations).replace("sys/capabilities-self", "sys/nothing");
            vault.policy(operations, &policy);
        });
        let told = it.doctor(&[]).1;
        assert!(told.contains("\ngroup operations can read:\n  kv/data/agents/ops\n"), "{told}");
        for secret in gateway::SECRETS {
            assert!(!told.contains(secret), "{told}");
        }
        // It leaves no token behind.
        assert_eq!(it.vault.accessors().len(), 1, "Vault's own root");
    });
}

#[test]
fn the_doctor_finds_a_generous_role_and_plans_mend() {
    sandboxed(|| {
        let it = Planned::apply(false);
        it.assert_healthy();
        let role = |vault: &Vault, change: &str| {
            drop(vault.cli(&["write", "auth/token/roles/cloakroom-operations", change]));
        };
        it.vault.policy("finance", "path \"other/data/*\" { capabilities = [\"read\"] }\n");
        let more = "has the policies finance, and needs cloakroom-operations alone";
        it.assert_found("group operations", more, |vault| {
            role(vault, "allowed_policies=cloakroom-operations,finance");
        });
        it.assert_found("group operations", "its role hands on any policy", |vault| {
            role(vault, "allowed_policies_glob=*");
        });
        it.assert_found("gateway", "has the policies finance", |vault| {
            let path = "auth/approle/role/cloakroom-gateway";
            vault.cli(&["write", path, "token_policies=cloakroom-gateway,finance"]);
        });
        it.assert_found("group operations", "it is not there, or", |vault| {
            role(vault, "disallowed_policies_glob=cloakroom-*");
        });
        assert_eq!(it.vault.accessors().len(), 1, "Vault's own root");
    });
}

#[test]
fn the_doctor_finds_future_failures_with_their_remedy() {
    sandboxed(|| {
        let it = Planned::apply(false);
        it.assert_healthy();
        it.assert_found("gateway", "whoever knows its role_id can lock it out", |vault| {
            vault.cli(&["auth", "tune", "-user-lockout-disable=false", "approle"]);
        });
        it.assert_found("group operations", "set token_type=service and orphan=false", |vault| {
            let role = ["write", "auth/token/roles/cloakroom-operations", "token_type=batch"];
            let batch = ["orphan=true", "renewable=false", "token_period=0"];
            vault.cli(&[&role[..], &batch].concat());
        });
        // A SecretID keeps the settings under which it was made, so a new one has to be made after
        // each.
        for (change, says) in [
            ("secret_id_num_uses=1", "its SecretID was good for this login and is gone"),
            ("secret_id_num_uses=9", "its SecretID is good for a few more logins"),
            ("secret_id_ttl=1h", "its SecretID ends at a time"),
        ] {
            it.vault.cli(&["write", "auth/approle/role/cloakroom-gateway", change]);
            it.vault.script(&by_hand(&it.plan(&[])));
            let (code, report, _) = it.doctor(&[]);
            let found = findings(&report);
            assert!(code == Some(1) && found.len() == 1 && found[0].contains(says), "{report}");
            it.vault.script(&it.plan(&[]));
            it.vault.script(&by_hand(&it.plan(&[])));
            it.assert_healthy();
        }
        for (value, says) in [
            (
                "api_key=8-bytes!",
                "agents/ops#api_key: the value is shorter than a binding takes it",
            ),
            ("key=0123456789abcdef", "agents/ops#api_key: the secret has no such field"),
        ] {
            it.vault.cli(&["kv", "put", "-mount=kv", "agents/ops", value]);
            it.assert_healthy();
            let (code, report, _) = it.doctor(&["--values"]);
            let found = findings(&report);
            assert!(code == Some(1) && found.len() == 1 && found[0].contains(says), "{report}");
            assert!(
                report.contains("group research: could use vault:kv/agents/openai"),
                "{report}"
            );
            assert!(!report.contains(OPENAI_SECRET), "{report}");
        }
        assert_eq!(it.vault.accessors().len(), 1, "Vault's own root");
    });
}

#[test]
fn the_doctor_leaves_a_wrapped_secret_id_to_the_gateway() {
    sandboxed(|| {
        let mut it = Planned::apply(false);
        let own = it.lab.dir.join("own-secret-id");
        fs::copy(it.lab.dir.join("vault/secret-id"), &own).expect("a copy");
        it.policy = it.policy.login_key("wrapped", true);
        gateway::install(&it.lab, &it.policy);
        it.vault.script(&by_hand(&it.plan(&[])));
        let (code, _, error) = it.doctor(&[]);
        assert!(code == Some(1) && error.contains("--secret-id-file"), "{error}");
        let (code, report, error) = it.doctor(&["--secret-id-file", &own.display().to_string()]);
        assert_eq!(code, Some(0), "{report}{error}");
        it.vault.stop();
        let (code, report, _) = it.doctor(&["--secret-id-file", &own.display().to_string()]);
        assert!(code == Some(1) && report.contains("unknown   gateway: no connection"), "{report}");
        it.vault.resume();
        // The gateway can still open, once, what the plan's own command wrapped.
        let (world, _vault) = it.run(false);
        each_placeholder_becomes_its_secret(&world);
    });
}

#[test]
fn the_plan_for_terraform_says_the_same() {
    sandboxed(|| {
        let it = Planned::apply(true);
        let terraform = it.plan(&["--format", "terraform"]);
        it.assert_formatted(&terraform);
        let file = it.lab.write("plan.tf", terraform);
        let parsed = succeed(Command::new(python()).args(["-c", PARSE]).arg(file));
        let parsed: Value = serde_json::from_str(&parsed).expect("JSON");
        let by_kind = |kind: &str| parsed[kind].as_object().expect("resources").clone();
        let policies = by_kind("vault_policy");
        assert_eq!(policies.len(), NAMES.len());
        for name in NAMES {
            let policy = &policies[&format!("p-{name}")];
            assert_eq!(policy["name"], name);
            assert_eq!(policy["policy"], it.policy(name));
        }
        let roles = by_kind("vault_token_auth_backend_role");
        let read = |path: &str| -> Value {
            let answer: Value = serde_json::from_str(&it.vault.cli(&["read", path])).expect("JSON");
            answer["data"].clone()
        };
        for name in &NAMES[1..] {
            let (planned, live) =
                (&roles[&format!("p-{name}")], read(&format!("auth/token/roles/{name}")));
            assert_same(planned, &live);
            assert_eq!(live["allowed_policies"], json!([name]));
            assert_eq!(
                planned["allowed_policies"],
                json!([format!("${{vault_policy.p-{name}.name}}")])
            );
        }
        let approle = &by_kind("vault_approle_auth_backend_role")["cloakroom-login"];
        assert_same(approle, &read("auth/approle/role/cloakroom-gateway"));
        assert_eq!(approle["role_id"], ROLE_ID);
        let tuned = &by_kind("vault_generic_endpoint")["cloakroom-login"];
        it.vault.cli(&["auth", "tune", "-user-lockout-disable=false", "approle"]);
        let json = tuned["data_json"].as_str().expect("a text");
        it.vault.script(&format!("vault write {} - <<'END'\n{json}\nEND\n", tuned["path"]));
        it.assert_healthy();
        assert_eq!(by_kind("vault_mount")["cloakroom-pki"]["path"], "pki");
    });
}

/// Requires that Vault agrees with the resource in all fields that both have.
#[track_caller]
fn assert_same(planned: &Value, live: &Value) {
    let fields = [
        "orphan",
        "renewable",
        "token_type",
        "token_no_default_policy",
        "token_period",
        "token_num_uses",
        "token_explicit_max_ttl",
        "token_ttl",
        "token_max_ttl",
        "bind_secret_id",
        "secret_id_num_uses",
        "secret_id_ttl",
        "secret_id_bound_cidrs",
    ];
    let both = |field: &&&str| planned.get(**field).is_some() && live.get(**field).is_some();
    let compared: Vec<_> = fields.iter().filter(both).collect();
    assert!(compared.len() >= 4, "{planned} {live}");
    for field in compared {
        assert_eq!(planned[*field], live[*field], "{field}");
    }
    // Vault omits the length of a whole address.
    let bound = planned["token_bound_cidrs"][0].as_str().expect("an address");
    assert_eq!(live["token_bound_cidrs"], json!([bound.trim_end_matches("/32")]));
}

/// The id of the gateway's role in the lab.
pub(crate) const ROLE_ID: &str = "7b1c2f60-93d4-4e0a-b5c8-6a1f0e2d3c49";

const NAMES: [&str; 3] = ["cloakroom-gateway", "cloakroom-operations", "cloakroom-research"];

/// Prints the content of the file as `{kind: {name: fields}}`, with texts unescaped.
const PARSE: &str = r#"
import hcl2, json, re, sys

def plain(value):
    if isinstance(value, dict):
        return {plain(key): plain(it) for key, it in value.items() if key != "__is_block__"}
    if isinstance(value, list):
        return [plain(it) for it in value]
    if not isinstance(value, str) or not value.startswith('"'):
        return value
    text = value[1:-1]
    here = re.fullmatch(r"<<(\w+)\n(.*\n)\1", text, re.S)
    text = here.group(2) if here else json.loads(value)
    return text.replace("$${", "${").replace("%%{", "%{")

found = {}
for resource in plain(hcl2.load(open(sys.argv[1])))["resource"]:
    for kind, named in resource.items():
        found.setdefault(kind, {}).update(named)
print(json.dumps(found))
"#;
