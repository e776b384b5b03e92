//! `docs/install.md`, followed in a Debian that is booted: its configuration is written to the
//! paths that it names, and every line with the prompt of root on the gateway, or on an agent, is
//! run there, in order.

use std::{
    fs,
    io::Write as _,
    process::{Command, Stdio},
    time::Duration,
};

use lab::{
    Lab,
    dns::Dns,
    gateway::OPENAI_SECRET,
    net::{AGENT, OTHER},
    origin::Origin,
    sandbox::sandboxed_for,
    tools, wait,
};

use crate::machine::{Machine, told};

#[test]
fn the_guides_commands_alone_make_the_first_request_succeed() {
    sandboxed_for(LIMIT, || {
        let lab = Lab::new();
        let origin = Origin::start(&lab);
        let _dns = Dns::start();
        let deb = told("CLOAKROOM_DEB");
        let name = deb.rsplit('/').next().unwrap_or_default();
        let there = format!("/root/{name}");
        let machine = Machine::with(&lab, &told("CLOAKROOM_MACHINE"), (deb.as_ref(), &there));
        the_world_trusts(&lab, &machine);
        an_agent_with_a_disk_of_its_own(&lab);

        let guide =
            fs::read_to_string(tools::repository().join("docs/install.md")).expect("a page");
        let (mut agent, mut said) = (Vec::new(), String::new());
        for step in steps(&in_the_lab(&guide)) {
            if !matches!(step, Step::Agent(_)) && !agent.is_empty() {
                let root = machine.run("cat /root/cloakroom-root.pem");
                fs::write("/root/cloakroom-root.pem", root).expect("a disk of its own");
                // One shell, as in one login: a line may set a variable that a later one uses.
                said += &AGENT.shell(&format!("{}:", agent.concat()));
                agent.clear();
            }
            match step {
                Step::File(path, text) => {
                    fs::write(lab.dir.join("etc/file"), text).expect("writable");
                    machine.run(&format!("cp /mnt/etc/file {path}"));
                }
                Step::Gateway(line) => on_the_gateway(&machine, &line),
                Step::Agent(line) => agent.push(format!("{line} || exit 1\n")),
            }
        }
        println!("{said}");
        assert_eq!(said.matches("200\n").count(), 2, "the API and the other host: {said}");

        let requests = origin.log().requests();
        let keys: Vec<_> =
            requests.iter().flat_map(|request| request.header("authorization")).collect();
        assert_eq!(keys, [format!("Bearer {OPENAI_SECRET}")]);
        let refused = requests.iter().any(|request| request.header("host") == [OTHER.name]);
        assert!(!refused, "a host that the guide says is refused was reached");
        let status = machine.run("cloakroom status");
        assert!(status.contains("healthy"), "{status}");
        wait::expect("the audit has the request", || {
            machine.run("cat /var/log/cloakroom/audit.jsonl").contains("\"upstream_status\":200")
        });
    });
}

#[derive(Debug)]
enum Step {
    File(String, String),
    Gateway(String),
    Agent(String),
}

/// Returns the steps: `toml` blocks go to the path that the paragraph before them names.
fn steps(guide: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    let mut path = "";
    let mut lines = guide.lines();
    while let Some(line) = lines.next() {
        if line == "```toml" {
            let text = lines.by_ref().take_while(|line| *line != "```");
            steps.push(Step::File(path.to_owned(), text.map(|line| format!("{line}\n")).collect()));
        } else if let Some(line) = line.strip_prefix("root@gateway# ") {
            steps.push(Step::Gateway(line.to_owned()));
        } else if let Some(line) = line.strip_prefix("root@agent# ") {
            steps.push(Step::Agent(line.to_owned()));
        } else if let Some(named) = line.strip_prefix("Write `") {
            path = named.split('`').next().unwrap_or_default();
        }
    }
    let (gateway, agent) = steps.iter().fold((0, 0), |(gateway, agent), step| match step {
        Step::Gateway(_) => (gateway + 1, agent),
        Step::Agent(_) => (gateway, agent + 1),
        Step::File(..) => (gateway, agent),
    });
    assert!(gateway > 10 && agent > 5, "the guide's prompts are other ones now: {steps:?}");
    steps
}

/// Adapts the guide: the lab's internet has other names, and Vault's part of the guide needs a
/// Vault.
fn in_the_lab(guide: &str) -> String {
    let (before, vault) = guide.split_once("### From Vault instead").expect("a part about Vault");
    let (_, after) = vault.split_once("\n## ").expect("a part after it");
    let text = format!("{before}\n## {after}");
    NAMES.iter().fold(text, |text, (theirs, ours)| text.replace(theirs, ours))
}

fn on_the_gateway(machine: &Machine, line: &str) {
    let mut command = machine.command(&format!("cd /root; {line}"));
    let shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut shell = shell.expect("a shell starts");
    let mut input = shell.stdin.take().expect("piped");
    // The input of a command that asks is the value of the secret. A command that asks nothing may
    // have ended.
    let _ = writeln!(input, "{OPENAI_SECRET}");
    drop(input);
    let output = shell.wait_with_output().expect("it ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    println!("gateway# {line}\n{said}");
    assert!(output.status.success(), "{line}: {said}{}", machine.journal());
    assert!(!said.contains(OPENAI_SECRET), "{line}: {said}");
}

/// Makes the lab's public CA trusted, as real ones are elsewhere.
fn the_world_trusts(lab: &Lab, machine: &Machine) {
    fs::copy(lab.public_ca(), lab.dir.join("etc/public.crt")).expect("writable");
    machine.run("cp /mnt/etc/public.crt /usr/local/share/ca-certificates/; update-ca-certificates");
}

/// Redirects the files that the agent installs into memory, away from this machine.
fn an_agent_with_a_disk_of_its_own(lab: &Lab) {
    for folder in ["/etc", "/usr/local", "/root"] {
        let made = Command::new("sh").args(["-ec", OVERLAY, "sh", folder]).status();
        assert!(made.is_ok_and(|status| status.success()), "no overlay over {folder}");
    }
    fs::copy(lab.public_ca(), "/usr/local/share/ca-certificates/public.crt").expect("writable");
}

const OVERLAY: &str = "over=$(mktemp -d /run/agent-XXXXXX); mkdir $over/new $over/work; \
    mount -t overlay overlay -o lowerdir=$1,upperdir=$over/new,workdir=$over/work $1";
const NAMES: [(&str, &str); 3] = [
    ("api.openai.com", "api.openai.example"),
    ("pypi.org", "pypi.example"),
    ("example.com", "other.example"),
];
/// Longest time of a boot and an installation.
const LIMIT: Duration = Duration::from_secs(180);
