//! `cloakroom watch`: shows audit records as they are written, a line for each.
//!
//! The command only reads. The file may be rotated, cut short or still missing. An agent's text is
//! escaped, so that a record cannot write to the terminal; a line that is no record is skipped.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use clap::{Args, builder::PossibleValuesParser};
use ipnet::IpNet;

use super::{env::no_group, noise::Noise};
use crate::{
    audit::{AuditLine, RecordKind},
    config::{AuditTarget, Config, DEFAULT_CONFIG},
    policy::Policy,
    reason::Reason,
    refuse::wire,
};

/// The records to show.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cloakroom watch --refused\n  \
    cloakroom watch --group research --all /etc/cloakroom/cloakroom.toml\n  \
    cloakroom watch --agent 192.0.2.10 --reason agent_tls_failed\n  \
    cloakroom watch --all --flow 7f213fc22116f96b\n  \
    journalctl --follow --output cat --unit cloakroom | cloakroom watch -\n\n\
    Follows the file that `audit` in the configuration names, also when it is rotated. A line is\n\
    the time, the group, the agent, the flow, what was decided, and about what. A refusal tells an\n\
    agent its flow, by which it is found here. A record is shown where it is all that is asked for.\n\
    With --refused, DNS queries for names that the programs of a group (`client` in its [[group]])\n\
    do without are counted, and said once a minute: `cloakroom clients` has them, and --noise shows\n\
    them.\n\
    Ends with Ctrl-C.")]
pub struct WatchArgs {
    /// The configuration, or "-" for audit records on standard input
    #[arg(value_name = "CONFIG", default_value = DEFAULT_CONFIG)]
    pub file: PathBuf,
    /// Only records of this agent group
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Only records of this agent, by its address, or of those in this prefix
    #[arg(long, value_name = "ADDRESS", value_parser = prefix)]
    agent: Option<IpNet>,
    /// Only records of this flow: the connection, and the requests on it
    #[arg(long, value_name = "FLOW")]
    flow: Option<String>,
    /// Only records with this reason
    #[arg(long, value_name = "REASON", hide_possible_values = true, value_parser = reasons())]
    reason: Option<String>,
    /// Only what was refused
    #[arg(long)]
    refused: bool,
    /// Show also what the programs of a group ask for and do without
    #[arg(long, requires = "refused")]
    noise: bool,
    /// Begin with what the file holds already
    #[arg(long)]
    all: bool,
}

fn reasons() -> PossibleValuesParser {
    PossibleValuesParser::new(Reason::ALL.iter().map(|reason| reason.as_str()))
}

fn prefix(text: &str) -> Result<IpNet, String> {
    let address = text.parse::<IpAddr>().map(IpNet::from);
    address.or_else(|_| text.parse()).map_err(|_| {
        "an address like 192.0.2.10 or 2001:db8::10, or a prefix like 192.0.2.0/24, is asked for"
            .to_owned()
    })
}

/// Shows records until standard input ends or standard output is closed; those of a file without
/// end.
///
/// # Errors
///
/// The records cannot be read or written.
pub fn run(args: &WatchArgs, config: Option<&Config>, out: &mut impl Write) -> io::Result<()> {
    let watched = match config.map(|config| (&config.settings.audit, &config.policy)) {
        None => show(args, BufReader::new(io::stdin().lock()), out),
        Some((AuditTarget::File(file), policy)) => follow(args, policy, &file.path, out),
        Some((AuditTarget::Stdout, _)) => Err(io::Error::other(
            "the audit goes to the daemon's standard output: pipe it to `cloakroom watch -`",
        )),
    };
    match watched {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

impl WatchArgs {
    /// Returns the error of naming the group that is asked for. There may be records all the same,
    /// from a time when the group was in the policy.
    pub fn no_such_group(&self, policy: &Policy) -> Option<String> {
        no_group(self.group.as_ref()?, policy)
    }
}

fn show(args: &WatchArgs, mut input: impl BufRead, out: &mut impl Write) -> io::Result<()> {
    let mut line = Vec::new();
    while input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? > 0 {
        tell(wanted(args, &line).as_ref(), out)?;
        line.clear();
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a command of its own, no executor to block")]
fn follow(args: &WatchArgs, policy: &Policy, path: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut noise = Noise::default();
    let mut tail = Tail::open(path, args.all)?;
    if tail.file.is_none() {
        // There is nowhere left to report to where standard error is closed.
        let _ = writeln!(io::stderr(), "{} is not there yet; waiting", path.display());
    }
    loop {
        tail.lines(|line| {
            let record = wanted(args, line);
            let quiet = record.as_ref().filter(|_| args.counts_noise());
            match quiet.is_some_and(|record| noise.takes(record, policy)) {
                true => Ok(()),
                false => tell(record.as_ref(), out),
            }
        })?;
        if let Some(sums) = noise.due(Instant::now()) {
            out.write_all(sums.as_bytes()).and_then(|()| out.flush())?;
        }
        tail.turn(path)?;
        thread::sleep(POLL);
    }
}

fn wanted(args: &WatchArgs, line: &[u8]) -> Option<AuditLine> {
    AuditLine::read(line).filter(|record| args.wants(record))
}

fn tell(record: Option<&AuditLine>, out: &mut impl Write) -> io::Result<()> {
    match record.and_then(readable) {
        Some(text) => writeln!(out, "{text}").and_then(|()| out.flush()),
        None => Ok(()),
    }
}

impl WatchArgs {
    /// Whether what programs do without is counted. Whoever asks for one flow or one reason is
    /// shown all of it.
    fn counts_noise(&self) -> bool {
        self.refused && !self.noise && self.flow.is_none() && self.reason.is_none()
    }

    fn wants(&self, record: &AuditLine) -> bool {
        let is = |own: &Option<String>, wanted: &Option<String>| wanted.is_none() || own == wanted;
        is(&record.group, &self.group)
            && is(&record.flow, &self.flow)
            && is(&record.reason, &self.reason)
            && self.agent.is_none_or(|prefix| is_of_agent(record, prefix))
            && (!self.refused || refused(record))
    }
}

/// Returns whether a record is about an agent in the prefix. A record names an agent by address and
/// port, by address alone, or, for IPv6, by the prefix in which the agent may choose addresses.
fn is_of_agent(record: &AuditLine, wanted: IpNet) -> bool {
    let Some(agent) = &record.agent else { return false };
    let address = agent.parse::<SocketAddr>().map(|address| address.ip());
    match address.or_else(|_| agent.parse::<IpAddr>()) {
        Ok(address) => wanted.contains(&address),
        Err(_) => {
            agent.parse::<IpNet>().is_ok_and(|own| wanted.contains(&own) || own.contains(&wanted))
        }
    }
}

/// Returns whether something was refused. A sum has no decision where some of its queries were
/// answered; then its reason tells, or its number of refusals, because a query beyond the rate has
/// no other record.
fn refused(record: &AuditLine) -> bool {
    match record.decision {
        Some(_) => record.is_refusal(),
        None => record.reason.is_some() || record.refused.unwrap_or_default() > 0,
    }
}

/// A file that is read to its end again and again.
struct Tail {
    file: Option<BufReader<File>>,
    partial: Vec<u8>,
}

impl Tail {
    fn open(path: &Path, from_start: bool) -> io::Result<Self> {
        let mut file = open(path)?;
        if let Some(file) = file.as_mut().filter(|_| !from_start) {
            file.seek(SeekFrom::End(0))?;
        }
        Ok(Self { file, partial: Vec::new() })
    }

    /// Passes on every line that is whole by now.
    fn lines(&mut self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Ok(()) };
        while file.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut self.partial)? > 0 {
            let whole = self.partial.ends_with(b"\n");
            if !whole && (self.partial.len() as u64) < MAX_LINE_BYTES {
                continue;
            }
            take(&self.partial)?;
            self.partial.clear();
        }
        Ok(())
    }

    /// Switches to the file at the path if it is another one or was cut short. The caller's next
    /// round first reads the last lines of the old one.
    fn turn(&mut self, path: &Path) -> io::Result<()> {
        let now = match path.metadata() {
            Ok(now) => now,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error),
        };
        if let Some(file) = &mut self.file {
            let (old, at) = (file.get_ref().metadata()?, file.stream_position()?);
            if (old.dev(), old.ino()) == (now.dev(), now.ino()) && at <= now.len() {
                return Ok(());
            }
            if at < old.len() {
                // The old file has more lines, which are read before the switch.
                return Ok(());
            }
        }
        self.partial.clear();
        self.file = open(path)?;
        Ok(())
    }
}

fn open(path: &Path) -> io::Result<Option<BufReader<File>>> {
    match File::open(path) {
        Ok(file) => Ok(Some(BufReader::new(file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(io::Error::new(error.kind(), format!("cannot read {}: {error}", path.display())))
        }
    }
}

/// Formats one record as one line; returns `None` where the record has no kind. A kind that only
/// another version knows is shown as its word alone.
fn readable(record: &AuditLine) -> Option<String> {
    let kind = record.record.clone()?;
    let about = record.kind().map_or(kind, |kind| about(kind, record));
    // Date, time and milliseconds; the rest of the fraction is of no use to a person.
    let time: String = or_dash(&record.time).chars().take(23).collect();
    let who = or_dash(if record.group.is_some() { &record.group } else { &record.interface });
    let [agent, flow, decision] = [&record.agent, &record.flow, &record.decision].map(or_dash);
    let line = format!("{time}  {who:<12} {agent:<22} {flow:<16} {decision:<9} {about}");
    Some(escaped(line.trim_end()))
}

fn about(kind: RecordKind, record: &AuditLine) -> String {
    let cause = or_dash(&record.cause);
    match kind {
        RecordKind::Start => format!("the gateway starts, version {}", or_dash(&record.version)),
        RecordKind::Connection => connection(record),
        RecordKind::Connections => over_rate(record, "new connections"),
        RecordKind::Requests => over_rate(record, "requests"),
        RecordKind::Request => request(record),
        RecordKind::Dns => query(record),
        RecordKind::DnsSummary => queries(record),
        RecordKind::Packets => packets(record),
        RecordKind::PacketsUnseen => unseen(record),
        RecordKind::Quarantine => act("quarantined", record),
        RecordKind::Release => act("released", record),
        RecordKind::Close => format!("closed to new connections: {cause}"),
        RecordKind::Open => "open again".to_owned(),
        RecordKind::Repair => format!("packet rules installed again: {cause}"),
    }
}

fn connection(record: &AuditLine) -> String {
    let named = record.sni.as_ref().or(record.host.as_ref());
    // Where the address was given for several names, the first stands for all.
    let name = named.or_else(|| record.answered_names().first());
    let name = name.map_or("no name", String::as_str);
    let mut line = format!("{name} at {}", or_dash(&record.dialled));
    add(&mut line, [&record.reason, &record.cause, &record.alert, &record.end]);
    let is_ech = record.known_reason() == Some(Reason::EchDenied);
    if is_ech {
        line += &format!("  ({})", wire(Reason::EchDenied).text);
    }
    let [from, to, millis] =
        [record.bytes_from_agent, record.bytes_to_agent, record.duration_ms].map(or_0);
    line += &format!("  {from} B out, {to} B in, {millis} ms");
    if is_ech { line + ECH_REMEDY } else { line }
}

/// A refusal before TLS is up has no room for words, so the agent cannot be told.
const ECH_REMEDY: &str = "  (the splice rule may say ech = \"allow\"; or turn it off in the browser: see docs/network.md)";

fn over_rate(record: &AuditLine, what: &str) -> String {
    let [count, seconds] = [record.count, record.seconds].map(or_0);
    format!("{}  {count} {what} in {seconds} s", or_dash(&record.reason))
}

fn request(record: &AuditLine) -> String {
    let [method, host, path] = [&record.method, &record.host, &record.path].map(or_dash);
    let mut line = format!("{method} {host}{path}");
    add(&mut line, [&record.reason, &record.cause, &record.credential]);
    if let Some(status) = record.upstream_status {
        line += &format!("  {status}");
    }
    line + &format!("  {} ms", or_0(record.duration_ms))
}

fn query(record: &AuditLine) -> String {
    let [server, transport, reason] =
        [&record.server, &record.transport, &record.reason].map(or_dash);
    format!(
        "{} {} asked of {server} over {transport}  {reason}",
        record.name.as_deref().unwrap_or("no name"),
        record.query_type.as_deref().unwrap_or("of no type"),
    )
}

fn queries(record: &AuditLine) -> String {
    let [answered, refused, limited] =
        [record.answered_count(), record.refused, record.limited].map(or_0);
    let mut line =
        format!("DNS queries: {answered} answered, {refused} refused, {limited} dropped");
    add(&mut line, [&record.reason]);
    line
}

fn act(done: &str, record: &AuditLine) -> String {
    format!("{done} by user {}", or_0(record.uid))
}

fn packets(record: &AuditLine) -> String {
    let port = record.port.map(|port| format!(" port {port}")).unwrap_or_default();
    let protocol = record.protocol.as_deref().unwrap_or("several protocols");
    let source = record.first_source.as_ref().map(|from| format!(" from {from}"));
    let to = record.first_destination.as_ref().map(|to| format!(" to {to}"));
    let [count, seconds] = [record.count, record.seconds].map(or_0);
    format!(
        "{}  {count} packets in {seconds} s: {protocol}{port}{}{}",
        or_dash(&record.reason),
        source.unwrap_or_default(),
        to.unwrap_or_default(),
    )
}

fn unseen(record: &AuditLine) -> String {
    let [count, seconds] = [record.count, record.seconds].map(or_0);
    format!(
        "{}  {count} packets in {seconds} s that were only counted ({})",
        record.reason.as_deref().unwrap_or("any reason"),
        or_dash(&record.cause),
    )
}

/// Adds the words that the record has.
fn add<const N: usize>(line: &mut String, words: [&Option<String>; N]) {
    for word in words.into_iter().flatten() {
        line.push_str("  ");
        line.push_str(word);
    }
}

fn or_dash(text: &Option<String>) -> &str {
    text.as_deref().unwrap_or("-")
}

/// Returns a number of the record, or 0 where it is missing.
fn or_0(number: Option<u64>) -> u64 {
    number.unwrap_or_default()
}

/// Escapes characters that a terminal would obey, or show as something else.
pub(super) fn escaped(line: &str) -> String {
    line.chars()
        .flat_map(|letter| {
            let plain = letter == ' ' || letter.is_ascii_graphic();
            let escape = (!plain).then(|| letter.escape_default());
            plain.then_some(letter).into_iter().chain(escape.into_iter().flatten())
        })
        .collect()
}

/// Interval at which the file is read.
const POLL: Duration = Duration::from_millis(200);
/// Most bytes of a line. No record is longer.
const MAX_LINE_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: WatchArgs,
    }

    fn asked(options: &[&str]) -> WatchArgs {
        let line = ["watch", "-"].iter().chain(options);
        Line::try_parse_from(line).unwrap().args
    }

    #[test]
    fn a_group_in_no_policy_is_said_to_be_none() {
        let text = "[gateway]\nresolvers = [\"192.0.2.53\"]\n[[group]]\nname = \"research\"\n\
                    interface = \"agents0\"\nprefixes = [\"192.0.2.0/28\"]\n";
        let none = |_: &Path| Err(io::ErrorKind::NotFound.into());
        let policy = crate::config::parse(text, None, "test", &none).unwrap().policy;
        assert_eq!(args(Some("research"), false).no_such_group(&policy), None);
        assert_eq!(args(None, false).no_such_group(&policy), None);
        let said = args(Some("reserch"), false).no_such_group(&policy);
        assert_eq!(said.unwrap(), "no group is named \"reserch\"; did you mean \"research\"?");
    }

    fn args(group: Option<&str>, refused: bool) -> WatchArgs {
        let group = group.map(|group| ["--group", group]).into_iter().flatten();
        let refused = refused.then_some("--refused");
        asked(&group.chain(refused).collect::<Vec<_>>())
    }

    fn shown(args: &WatchArgs, input: &str) -> String {
        let mut out = Vec::new();
        show(args, input.as_bytes(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// Returns a record of this kind, and the text that its line must contain.
    fn example(kind: RecordKind) -> (&'static str, &'static str) {
        match kind {
            RecordKind::Start => (
                r#""time":"2026-01-02T03:04:05.678901234Z","version":"1""#,
                "2026-01-02T03:04:05.678  -            -                      -                -         the gateway starts, version 1",
            ),
            RecordKind::Connection => (
                r#""flow":"a1","group":"research","agent":"192.0.2.10:4711","sni":"evil.example","dialled":"198.51.100.66:443","decision":"refuse","reason":"sni_denied","bytes_from_agent":517,"bytes_to_agent":7,"duration_ms":3"#,
                "192.0.2.10:4711        a1               refuse    evil.example at 198.51.100.66:443  sni_denied  517 B out, 7 B in, 3 ms",
            ),
            RecordKind::Connections => (
                r#""seconds":10,"group":"research","agent":"192.0.2.10","decision":"refuse","reason":"rate_limit","count":40"#,
                "192.0.2.10             -                refuse    rate_limit  40 new connections in 10 s",
            ),
            RecordKind::Requests => (
                r#""seconds":10,"group":"research","agent":"192.0.2.10","decision":"refuse","reason":"rate_limit","count":40"#,
                "192.0.2.10             -                refuse    rate_limit  40 requests in 10 s",
            ),
            RecordKind::Request => (
                r#""flow":"a1","group":"operations","agent":"[2001:db8:b::10]:4711","decision":"intercept","method":"GET","host":"api.example","path":"/v1","upstream_status":200,"duration_ms":9"#,
                "[2001:db8:b::10]:4711  a1               intercept GET api.example/v1  200  9 ms",
            ),
            RecordKind::Dns => (
                r#""interface":"agents0","group":"research","agent":"192.0.2.10:5353","server":"192.0.2.1","transport":"udp","name":"evil.example","type":"TXT","decision":"refuse","reason":"dns_denied""#,
                "evil.example TXT asked of 192.0.2.1 over udp  dns_denied",
            ),
            RecordKind::DnsSummary => (
                r#""group":"research","agent":"192.0.2.10","answered":5,"refused":1,"limited":70,"reason":"dns_rate""#,
                "DNS queries: 5 answered, 1 refused, 70 dropped  dns_rate",
            ),
            RecordKind::Packets => (
                r#""seconds":10,"interface":"agents0","group":"research","agent":"192.0.2.10","decision":"refuse","reason":"protocol_denied","protocol":"udp","port":443,"count":7,"first_destination":"198.51.100.10""#,
                "protocol_denied  7 packets in 10 s: udp port 443 to 198.51.100.10",
            ),
            RecordKind::PacketsUnseen => (
                r#""seconds":10,"decision":"refuse","cause":"lost","count":3"#,
                "any reason  3 packets in 10 s that were only counted (lost)",
            ),
            RecordKind::Quarantine => (r#""group":"research","uid":7"#, "quarantined by user 7"),
            RecordKind::Release => (r#""group":"research","uid":7"#, "released by user 7"),
            RecordKind::Close => (
                r#""cause":"the guard table is not loaded""#,
                "closed to new connections: the guard table is not loaded",
            ),
            RecordKind::Open => (r#""time":"t""#, "open again"),
            RecordKind::Repair => (r#""cause":"chains""#, "packet rules installed again: chains"),
        }
    }

    fn record(kind: RecordKind) -> String {
        let word = serde_json::to_string(&kind).unwrap();
        format!("{{\"record\":{word},{}}}\n", example(kind).0)
    }

    fn records() -> String {
        RecordKind::ALL.iter().map(|kind| record(*kind)).collect::<String>() + "no record\n"
    }

    #[test]
    fn every_kind_of_record_is_one_line_about_its_subject() {
        assert_eq!(shown(&args(None, false), &records()).lines().count(), RecordKind::ALL.len());
        for kind in RecordKind::ALL {
            let line = shown(&args(None, false), &record(*kind));
            assert!(line.contains(example(*kind).1), "{kind:?}\n{line}");
        }
        let hidden = record(RecordKind::Connection).replace("sni_denied", "ech_denied");
        assert!(shown(&args(None, false), &hidden).contains("may say ech = \"allow\""), "{hidden}");
        let unknown = shown(&args(None, false), "{\"record\":\"of_another_version\"}\n");
        assert!(unknown.contains("of_another_version"), "{unknown}");
    }

    #[test]
    fn refused_includes_sums_that_have_no_decision() {
        let refused = |line: &str| !shown(&args(None, true), line).is_empty();
        let kinds: Vec<_> =
            RecordKind::ALL.iter().filter(|kind| refused(&record(**kind))).collect();
        use RecordKind::{
            Connection, Connections, Dns, DnsSummary, Packets, PacketsUnseen, Requests,
        };
        let meant =
            [&Connection, &Connections, &Requests, &Dns, &DnsSummary, &Packets, &PacketsUnseen];
        assert_eq!(kinds, meant);
        let sum = |rest: &str| format!("{{\"record\":\"dns_summary\",\"answered\":5{rest}}}\n");
        assert!(refused(&sum(",\"refused\":60,\"limited\":0")), "beyond the rate of records");
        assert!(!refused(&sum(",\"refused\":0,\"limited\":0")));
        let cut = record(RecordKind::Request)
            .replace("\"flow\"", "\"reason\":\"response_masked\",\"flow\"");
        assert!(!refused(&cut), "a reason beside a decision that passes");
    }

    #[test]
    fn a_connection_without_a_host_has_its_addresss_name() {
        let of_an_address = |rest: &str| {
            let line =
                format!("{{\"record\":\"connection\",\"dialled\":\"198.51.100.7:22\"{rest}}}\n");
            shown(&args(None, false), &line)
        };
        assert!(of_an_address("").contains("no name at 198.51.100.7:22"));
        assert!(of_an_address(",\"answered\":[]").contains("no name at"));
        let refused = of_an_address(",\"answered\":[\"git.example\",\"pypi.example\"]");
        assert!(refused.contains("git.example at 198.51.100.7:22"), "{refused}");
    }

    #[test]
    fn a_hidden_name_refused_by_an_alert_has_its_remedy() {
        let line = "{\"record\":\"connection\",\"reason\":\"ech_denied\"}\n";
        assert!(shown(&args(None, false), line).contains("can allow it by ech"));
    }

    #[test]
    fn a_group_leaves_out_the_others() {
        let records = records();
        assert_eq!(shown(&args(Some("operations"), false), &records).lines().count(), 1);
        assert_eq!(shown(&args(Some("operations"), true), &records), "");
    }

    #[test]
    fn an_agent_a_flow_or_a_reason_excludes_the_others() {
        let records = records();
        let kinds = |options: &[&str]| {
            let shown = |kind: &&RecordKind| !shown(&asked(options), &record(**kind)).is_empty();
            RecordKind::ALL.iter().filter(shown).copied().collect::<Vec<_>>()
        };
        use RecordKind::{Connection, Connections, Dns, DnsSummary, Packets, Request, Requests};
        let of_research = [Connection, Connections, Requests, Dns, DnsSummary, Packets];
        for agent in ["192.0.2.10", "192.0.2.0/24"] {
            assert_eq!(kinds(&["--agent", agent]), of_research, "{agent}");
        }
        assert_eq!(kinds(&["--agent", "192.0.2.11"]), []);
        for agent in ["2001:db8:b::10", "2001:db8:b::/64", "2001:db8::/32"] {
            assert_eq!(kinds(&["--agent", agent]), [Request], "{agent}");
        }
        assert_eq!(kinds(&["--flow", "a1"]), [Connection, Request]);
        assert_eq!(kinds(&["--flow", "a"]), []);
        assert_eq!(kinds(&["--reason", "rate_limit"]), [Connections, Requests]);
        let both = ["--agent", "192.0.2.10", "--reason", "dns_rate", "--refused"];
        assert_eq!(kinds(&both), [DnsSummary]);
        let prefix = "{\"record\":\"requests\",\"agent\":\"2001:db8:b::/64\",\"count\":1}\n";
        assert!(!shown(&asked(&["--agent", "2001:db8:b::10"]), prefix).is_empty());
        assert!(shown(&asked(&["--agent", "2001:db8:c::10"]), prefix).is_empty());
        assert_eq!(shown(&asked(&[]), &records).lines().count(), RecordKind::ALL.len());
    }

    #[test]
    fn no_agent_and_no_reason_is_said_at_once() {
        for wrong in [["--agent", "research"], ["--agent", "192.0.2.300"], ["--reason", "denied"]] {
            let line = ["watch", "-"].iter().chain(&wrong);
            assert!(Line::try_parse_from(line).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_record_cannot_write_to_the_terminal() {
        let record =
            "{\"time\":\"t\",\"record\":\"request\",\"path\":\"/\\u001b]0;x\\u0007\\n\\u202e\"}\n";
        let shown = shown(&args(None, false), record);
        assert_eq!(shown.lines().count(), 1);
        assert!(shown.trim_end().bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{shown:?}");
    }

    #[test]
    fn a_file_is_followed_through_rotation_and_cutting() {
        let folder = std::env::temp_dir().join(format!("cloakroom-watch-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, rotated) = (folder.join("audit"), folder.join("audit.1"));
        std::fs::write(&path, "before\n").unwrap();
        let mut tail = Tail::open(&path, false).unwrap();
        let append = |path: &Path, text: &str| {
            let mut file =
                std::fs::OpenOptions::new().append(true).create(true).open(path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        let mut seen = Vec::new();
        let mut look = |tail: &mut Tail| {
            for _ in 0..2 {
                tail.lines(|line| {
                    seen.push(String::from_utf8_lossy(line).trim_end().to_owned());
                    Ok(())
                })
                .unwrap();
                tail.turn(&path).unwrap();
            }
        };
        append(&path, "one\ntw");
        look(&mut tail);
        append(&path, "o\n");
        look(&mut tail);
        std::fs::rename(&path, &rotated).unwrap();
        append(&rotated, "late\n");
        look(&mut tail);
        append(&path, "three\n");
        look(&mut tail);
        std::fs::write(&path, "").unwrap();
        look(&mut tail);
        append(&path, "four\n");
        look(&mut tail);
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(seen, ["one", "two", "late", "three", "four"]);
    }
}
