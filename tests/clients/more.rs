//! Agents for a terminal, unmodified, under the real names of their APIs: in an empty home, with the
//! environment that `cloakroom env` prints, and with the lines of their provider and of their client
//! alone.
//!
//! Each prints the model's answer, which is streamed to those that ask for that.

use std::{
    collections::BTreeSet,
    process::Output,
    time::{Duration, Instant},
};

use lab::{
    World,
    audit::Record,
    client::{python, succeed},
    gateway::{OPENAI_SECRET, program},
    net::{AGENT, INTERNET, Ns},
    origin::Received,
    sandbox::sandboxed_for,
    tools, wait,
};
use policy_builder::Table;

use super::by_name;

/// An agent, as its user calls it: a line of a shell, in an empty folder and with an empty home.
struct Agent {
    client: &'static str,
    providers: &'static [&'static str],
    line: &'static str,
    /// The request that brings the model's answer, and the field that has the key; nothing for an
    /// agent that asks its user first.
    asks: Option<(&'static str, &'static str)>,
    /// A text that it prints where all is well.
    shows: &'static str,
    /// Whether `cloakroom env` is asked for placeholders that look like keys.
    shaped: bool,
}

const LLM: Agent = Agent {
    client: "llm",
    providers: &["openai"],
    line: "$MORE/llm/bin/llm -m gpt-4o Hello",
    asks: Some(("api.openai.com/v1/chat/completions", "authorization")),
    shows: ANSWER,
    shaped: false,
};

const OPENCODE: Agent = Agent {
    client: "opencode",
    providers: &["openai"],
    line: "$(ls $MORE/node_modules/opencode-linux-*/bin/opencode | head -n 1) \
           run -m openai/gpt-4o Hello",
    asks: Some(("api.openai.com/v1/responses", "authorization")),
    shows: ANSWER,
    shaped: false,
};

const GEMINI_CLI: Agent = Agent {
    client: "gemini-cli",
    providers: &["gemini"],
    line: "node $MORE/node_modules/@google/gemini-cli/bundle/gemini.js -m gemini-2.5-flash -p Hello",
    asks: Some(("generativelanguage.googleapis.com/v1beta/models/", "x-goog-api-key")),
    shows: ANSWER,
    shaped: false,
};

const QWEN_CODE: Agent = Agent {
    client: "qwen-code",
    providers: &["openai"],
    line: "node $MORE/node_modules/@qwen-code/qwen-code/cli-entry.js --auth-type openai \
           -m gpt-4o -p Hello",
    asks: Some(("api.openai.com/v1/chat/completions", "authorization")),
    shows: ANSWER,
    shaped: false,
};

const AIDER: Agent = Agent {
    client: "aider",
    providers: &["openai"],
    line: "$MORE/aider/bin/aider --model gpt-4o --no-git --message Hello",
    asks: Some(("api.openai.com/v1/chat/completions", "authorization")),
    shows: ANSWER,
    shaped: false,
};

const LITELLM: Agent = Agent {
    client: "litellm",
    providers: &["openai"],
    line: "$MORE/aider/bin/python -c 'import litellm; print(litellm.completion(\
           model=\"gpt-4o\", messages=[{\"role\": \"user\", \"content\": \"Hello\"}]\
           ).choices[0].message.content)'",
    asks: Some(("api.openai.com/v1/chat/completions", "authorization")),
    shows: ANSWER,
    shaped: false,
};

const COPILOT: Agent = Agent {
    client: "copilot",
    providers: &["github", "github-copilot"],
    line: "$(ls $MORE/node_modules/@github/copilot-linux-*/copilot | head -n 1) -p Hello",
    asks: Some(("api.githubcopilot.com/chat/completions", "authorization")),
    shows: ANSWER,
    shaped: false,
};

/// It passes over this variable where the value does not look like one of GitHub's tokens.
const COPILOT_WITH_A_SHAPE: Agent = Agent {
    line: "export COPILOT_GITHUB_TOKEN=$GITHUB_TOKEN && unset GITHUB_TOKEN GH_TOKEN && \
           $(ls $MORE/node_modules/@github/copilot-linux-*/copilot | head -n 1) -p Hello",
    shaped: true,
    ..COPILOT
};

const CLAUDE_CODE: Agent = Agent {
    client: "claude-code",
    providers: &["anthropic"],
    line: "node $AGENTS/@anthropic-ai/claude-code/cli-wrapper.cjs -p Hello",
    asks: Some(("api.anthropic.com/v1/messages", "x-api-key")),
    shows: ANSWER,
    shaped: false,
};

/// It asks two hosts, without a credential, whether they are there, and then its user how it should
/// look.
const CLAUDE_CODE_IN_A_TERMINAL: Agent = Agent {
    line: "LAB_HOME=$HOME LAB_NODE=$(command -v node) LAB_AGENTS=$AGENTS \
           $PYTHON $SCRIPTS/agents.py claude",
    asks: None,
    shows: "Choose the text style",
    ..CLAUDE_CODE
};

/// It tries a WebSocket first, and asks over HTTP where that is refused.
const CODEX: Agent = Agent {
    client: "codex",
    providers: &["openai"],
    line: "node $AGENTS/@openai/codex/bin/codex.js exec --skip-git-repo-check Hello",
    asks: Some(("api.openai.com/v1/responses", "authorization")),
    shows: ANSWER,
    shaped: false,
};

/// The model's answer.
const ANSWER: &str = "Hello from the lab";

/// How often a run is timed with the gateway and without: a busy machine makes one of them slow.
const TIMED: usize = 3;

/// The longest time of a test.
const LIMIT: Duration = Duration::from_secs(600);

/// The names of the APIs, each of which has an address of the lab.
const NAMES: [&str; 6] = [
    "api.openai.com",
    "api.anthropic.com",
    "platform.claude.com",
    "generativelanguage.googleapis.com",
    "api.github.com",
    "api.githubcopilot.com",
];

/// Returns a world of the agent's APIs, whose group has this client. `change` narrows each API.
fn world(agent: &Agent, change: impl Fn(Table) -> Table) -> World {
    let apis = agent.providers.iter().map(|provider| change(by_name::api(provider)));
    by_name::world(&NAMES, &[agent.client], apis)
}

/// Runs an agent, and returns its output and its time.
fn run(world: &World, agent: &Agent, from: Ns) -> (Output, Duration) {
    let mut command = by_name::command(world, from, agent.shaped, agent.line);
    command.env("AGENTS", tools::cache().join("agents/node_modules"));
    command.env("MORE", more()).env("PYTHON", python());
    let begun = Instant::now();
    let output = command.output().expect("timeout starts");
    (output, begun.elapsed())
}

fn more() -> std::path::PathBuf {
    let more = tools::cache().join("more");
    assert!(more.join("made-of").is_file(), "{} is missing: run make test-clients", more.display());
    more
}

/// Returns everything that an agent printed, without what is for the terminal.
fn shown(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// The agent prints the model's answer, its key arrives at the API, nothing is refused to it but
/// what the catalogue says that it does without, and the gateway costs its start little.
#[track_caller]
fn works(agent: &Agent) {
    works_where(agent, |api| api);
}

/// The same where `change` narrows each API. Returns what the world's audit has of requests.
#[track_caller]
fn works_where(agent: &Agent, change: impl Fn(Table) -> Table) -> Vec<Record> {
    let world = world(agent, change);
    let (mut with, mut without) = (by_name::LONGEST, by_name::LONGEST);
    for _ in 0..TIMED {
        without = without.min(answers(&world, agent, INTERNET));
        let direct = world.origin.log().requests().len();
        with = with.min(answers(&world, agent, AGENT));
        let requests = world.origin.log().requests();
        assert_key_arrived(agent, requests.get(direct..).unwrap_or_default());
        assert_refused_is_noise(&world, agent);
        if with < without * 3 / 2 {
            break;
        }
    }
    eprintln!("{}: {with:?} with the gateway, {without:?} without", agent.client);
    assert!(with < without * 3 / 2, "{with:?} with the gateway, {without:?} without");
    world.assert_secrets_untold();
    world.requests()
}

#[track_caller]
fn answers(world: &World, agent: &Agent, from: Ns) -> Duration {
    let (output, time) = run(world, agent, from);
    let (shown, audit) = (shown(&output), world.gateway.audit.text());
    let answers = output.status.success() && shown.contains(agent.shows);
    assert!(answers, "{} {from:?} ({}):\n{shown}\n{audit}", agent.client, output.status);
    time
}

#[track_caller]
fn assert_key_arrived(agent: &Agent, requests: &[Received]) {
    let Some((url, field)) = agent.asks else { return };
    let asked = |it: &&Received| format!("{}{}", it.authority(), it.uri.path()).starts_with(url);
    let sent = requests.iter().find(asked);
    let sent = sent.unwrap_or_else(|| panic!("no {url}: {requests:#?}")).header(field);
    let sent: Vec<&str> = sent.iter().map(|it| it.strip_prefix("Bearer ").unwrap_or(it)).collect();
    assert_eq!(sent, [OPENAI_SECRET], "{url}");
}

/// Returns what `cloakroom clients` prints of an agent.
fn told(agent: &Agent) -> String {
    succeed(program().args(["clients", agent.client]))
}

#[track_caller]
fn assert_refused_is_noise(world: &World, agent: &Agent) {
    let told = told(agent);
    let quiet = told.lines().find_map(|line| {
        line.strip_prefix("# It asks for these and does without: ")?.strip_suffix('.')
    });
    let quiet: BTreeSet<&str> = quiet.into_iter().flat_map(|names| names.split(", ")).collect();
    std::thread::sleep(wait::QUIET);
    let is_loud = |record: &Record| {
        let field = |name| record.has(name).then(|| record[name].as_str()).flatten();
        // The kernel tells its neighbours which groups of multicast it is in.
        let is_refused =
            field("decision") == Some("refuse") && field("reason") != Some("multicast_denied");
        let host = ["name", "host", "sni"].into_iter().find_map(field).unwrap_or_default();
        let is_named = field("path").is_some_and(|path| told.contains(path));
        is_refused && !is_named && !quiet.contains(host.trim_end_matches('.'))
    };
    let records = world.gateway.audit.records();
    let loud: Vec<Record> = records.into_iter().filter(is_loud).collect();
    assert!(loud.is_empty(), "{}: {loud:#?}", agent.client);
}

/// Where the API's rule lacks the path, the agent's user sees why, or the catalogue says that the
/// agent hides it.
#[track_caller]
fn tells_the_reason(agent: &Agent) {
    let world = world(agent, |api| api.set("paths", ["/elsewhere"]));
    let (output, _) = run(&world, agent, AGENT);
    let shown = shown(&output);
    let is_its = |it: &Record| it.has("reason") && it["reason"] == "path_denied";
    let audit = world.gateway.audit.text();
    assert!(world.requests().iter().any(is_its), "{shown}\n{audit}");
    assert!(!shown.contains(agent.shows), "{shown}");
    let hides = told(agent).contains("look the reason up in the audit");
    assert_eq!(shown.contains("path_denied"), !hides, "{}:\n{shown}\n{audit}", agent.client);
}

#[test]
#[ignore = "make test-clients"]
fn llm_answers_as_a_groups_client() {
    sandboxed_for(LIMIT, || works(&LLM));
}

#[test]
#[ignore = "make test-clients"]
fn llm_shows_the_reason_or_is_listed() {
    sandboxed_for(LIMIT, || tells_the_reason(&LLM));
}

#[test]
#[ignore = "make test-clients"]
fn opencode_answers_as_a_groups_client() {
    sandboxed_for(LIMIT, || works(&OPENCODE));
}

#[test]
#[ignore = "make test-clients"]
fn opencode_shows_the_reason_or_is_listed() {
    sandboxed_for(LIMIT, || tells_the_reason(&OPENCODE));
}

#[test]
#[ignore = "make test-clients"]
fn gemini_cli_answers_as_a_groups_client() {
    sandboxed_for(LIMIT, || works(&GEMINI_CLI));
}

#[test]
#[ignore = "make test-clients"]
fn gemini_cli_shows_the_reason_or_is_listed() {
    sandboxed_for(LIMIT, || tells_the_reason(&GEMINI_CLI));
}

#[test]
#[ignore = "make test-clients"]
fn qwen_code_answers_as_a_groups_client() {
    sandboxed_for(LIMIT, || works(&QWEN_CODE));
}

#[test]
#[ignore = "make test-clients"]
fn qwen_code_shows_the_reason_or_is_listed() {
    sandboxed_for(LIMIT, || tells_the_reason(&QWEN_CODE));
}

#[test]
#[ignore = "make test-clients"]
fn aider_answers_as_a_groups_client() {
    sandboxed_for(LIMIT, || works(&AIDER));
}

#[test]
#[ignore = "make test-clients"]
fn aider_shows_the_reason_or_is_listed() {
    sandboxed_for(LIMIT, || tells_the_reason(&AIDER));
}

#[test]
#[ignore = "make test-clients"]
fn litellm_answers_as_a_groups_client() {
    sandboxed_for(LIMIT, || works(&LITELLM));
}

#[test]
#[ignore = "make test-clients"]
fn litellm_shows_the_reason_or_is_listed() {
    sandboxed_for(LIMIT, || tells_the_reason(&LITELLM));
}

#[test]
#[ignore = "make test-clients"]
fn copilot_answers_as_a_groups_client() {
    sandboxed_for(LIMIT, || works(&COPILOT));
}

#[test]
#[ignore = "make test-clients"]
fn copilot_shows_the_reason_or_is_listed() {
    sandboxed_for(LIMIT, || tells_the_reason(&COPILOT));
}

#[test]
#[ignore = "make test-clients"]
fn copilot_takes_a_token_in_githubs_shape() {
    sandboxed_for(LIMIT, || works(&COPILOT_WITH_A_SHAPE));
}

#[test]
#[ignore = "make test-clients"]
fn claude_code_answers_as_a_groups_client() {
    sandboxed_for(LIMIT, || works(&CLAUDE_CODE));
}

#[test]
#[ignore = "make test-clients"]
fn claude_code_starts_in_a_terminal_with_one_line() {
    sandboxed_for(LIMIT, || {
        let requests = works_where(&CLAUDE_CODE_IN_A_TERMINAL, |api| api);
        for path in ["/api/hello", "/v1/oauth/hello"] {
            let is_passed =
                |it: &Record| it.has("path") && it["path"] == path && it["decision"] != "refuse";
            assert!(requests.iter().any(is_passed), "{path}: {requests:#?}");
        }
    });
}

#[test]
#[ignore = "make test-clients"]
fn claude_code_shows_the_reason_or_is_listed() {
    sandboxed_for(LIMIT, || tells_the_reason(&CLAUDE_CODE));
}

/// Returns whether the record is of an answer over a WebSocket.
fn is_switched(record: &Record) -> bool {
    record.has("upstream_status") && record["upstream_status"] == 101
}

#[test]
#[ignore = "make test-clients"]
fn codex_answers_over_a_websocket_as_a_groups_client() {
    sandboxed_for(LIMIT, || {
        let requests = works_where(&CODEX, |api| api);
        assert!(requests.iter().any(is_switched), "{requests:#?}");
    });
}

#[test]
#[ignore = "make test-clients"]
fn codex_answers_over_http_where_websockets_are_off() {
    sandboxed_for(LIMIT, || {
        let requests = works_where(&CODEX, |api| api.set("websocket", false));
        assert!(!requests.iter().any(is_switched), "{requests:#?}");
    });
}

#[test]
#[ignore = "make test-clients"]
fn codex_shows_the_reason_or_is_listed() {
    sandboxed_for(LIMIT, || tells_the_reason(&CODEX));
}
