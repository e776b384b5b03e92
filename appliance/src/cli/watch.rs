//! `cloakroom watch`: audit records as they are written, a line for each.
//!
//! It only reads. The file may be rotated, cut short or not there yet. What agents filled in is
//! escaped, so that a record cannot write to the terminal; a line that is no record is passed over.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use clap::Args;
use serde_json::Value;

use crate::config::{AuditTarget, Settings};

/// Which records to show.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  cloakroom watch --refused\n  \
    cloakroom watch --group research --all /etc/cloakroom/cloakroom.toml\n  \
    journalctl --follow --output cat --unit cloakroom | cloakroom watch -\n\n\
    Follows the file that `audit` in the configuration names, also when it is rotated. A line is\n\
    the time, the group, the agent, what was decided, and about what. Ends with Ctrl-C.")]
pub struct WatchArgs {
    /// The configuration, or "-" for audit records on standard input
    #[arg(value_name = "FILE", default_value = "/etc/cloakroom/cloakroom.toml")]
    pub file: PathBuf,
    /// Only records of this agent group
    #[arg(long, value_name = "GROUP")]
    group: Option<String>,
    /// Only what was refused
    #[arg(long)]
    refused: bool,
    /// Begin with what the file holds already
    #[arg(long)]
    all: bool,
}

/// Shows records until standard input ends or standard output is closed; of a file, for ever.
///
/// # Errors
///
/// Where the records cannot be read or written.
pub fn run(args: &WatchArgs, settings: Option<&Settings>, out: &mut impl Write) -> io::Result<()> {
    let watched = match settings.map(|settings| &settings.audit) {
        None => show(args, BufReader::new(io::stdin().lock()), out),
        Some(AuditTarget::File(path)) => follow(args, path, out),
        Some(AuditTarget::Stdout) => Err(io::Error::other(
            "the audit goes to the daemon's standard output: pipe it to `cloakroom watch -`",
        )),
    };
    match watched {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

fn show(args: &WatchArgs, mut input: impl BufRead, out: &mut impl Write) -> io::Result<()> {
    let mut line = Vec::new();
    while input.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut line)? > 0 {
        tell(args, &line, out)?;
        line.clear();
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a command of its own, no executor to block")]
fn follow(args: &WatchArgs, path: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut tail = Tail::open(path, args.all)?;
    loop {
        tail.lines(|line| tell(args, line, out))?;
        tail.turn(path)?;
        thread::sleep(POLL);
    }
}

fn tell(args: &WatchArgs, line: &[u8], out: &mut impl Write) -> io::Result<()> {
    let record = serde_json::from_slice::<Value>(line).ok();
    match record.filter(|record| args.wants(record)).as_ref().and_then(readable) {
        Some(text) => writeln!(out, "{text}").and_then(|()| out.flush()),
        None => Ok(()),
    }
}

impl WatchArgs {
    fn wants(&self, record: &Value) -> bool {
        let of_group = |group: &String| word(record, "group") == Some(group);
        self.group.as_ref().is_none_or(of_group)
            && (!self.refused || word(record, "decision") == Some("refuse"))
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

    /// Hands over every line that is whole by now.
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

    /// Goes over to the file that has the name now, where that is another one or was cut short.
    /// What the old one got since the last look is read first by the caller's next round.
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
                // The old file has more, and is read out before it is left.
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

/// One record as one line; `None` for what has no kind.
fn readable(record: &Value) -> Option<String> {
    let about = match word(record, "record")? {
        "connection" => connection(record),
        "request" => request(record),
        "connections" => over_rate(record, "new connections"),
        "requests" => over_rate(record, "requests"),
        "packets" => packets(record),
        "packets_unseen" => unseen(record),
        "quarantine" | "release" => format!(
            "{} by user {}",
            text(record, "record"),
            number(record, "uid").unwrap_or_default()
        ),
        "start" => format!("the gateway starts, version {}", text(record, "version")),
        other => other.to_owned(),
    };
    // Date, time and milliseconds; the rest of the fraction says nothing to a person.
    let time: String = text(record, "time").chars().take(23).collect();
    let who = word(record, "group").or_else(|| word(record, "interface")).unwrap_or("-");
    let agent = word(record, "agent").or_else(|| word(record, "flow")).unwrap_or("-");
    let decision = word(record, "decision").unwrap_or("-");
    let line = format!("{time}  {who:<12} {agent:<22} {decision:<9} {about}");
    Some(escaped(line.trim_end()))
}

fn connection(record: &Value) -> String {
    let named = ["sni", "host"].into_iter().find_map(|key| word(record, key));
    // Of several names that the address was given for, the first stands for all.
    let given = || record.get("answered")?.get(0)?.as_str();
    let name = named.or_else(given).unwrap_or("no name");
    let mut line = format!("{name} at {}", text(record, "dialled"));
    add(&mut line, record, &["reason", "end"]);
    let bytes = |key| number(record, key).unwrap_or_default();
    let (from, to) = (bytes("bytes_from_agent"), bytes("bytes_to_agent"));
    line + &format!("  {from} B out, {to} B in, {} ms", bytes("duration_ms"))
}

fn over_rate(record: &Value, what: &str) -> String {
    let count = number(record, "count").unwrap_or_default();
    let seconds = number(record, "seconds").unwrap_or_default();
    format!("{}  {count} {what} in {seconds} s", text(record, "reason"))
}

fn request(record: &Value) -> String {
    let mut line =
        format!("{} {}{}", text(record, "method"), text(record, "host"), text(record, "path"));
    add(&mut line, record, &["reason", "cause"]);
    if let Some(status) = number(record, "upstream_status") {
        line += &format!("  {status}");
    }
    line + &format!("  {} ms", number(record, "duration_ms").unwrap_or_default())
}

fn packets(record: &Value) -> String {
    let port = number(record, "port").map(|port| format!(" port {port}")).unwrap_or_default();
    let protocol = word(record, "protocol").unwrap_or("several protocols");
    let source = word(record, "first_source").map(|from| format!(" from {from}"));
    let to = word(record, "first_destination").map(|to| format!(" to {to}"));
    format!(
        "{}  {} packets in {} s: {protocol}{port}{}{}",
        text(record, "reason"),
        number(record, "count").unwrap_or_default(),
        number(record, "seconds").unwrap_or_default(),
        source.unwrap_or_default(),
        to.unwrap_or_default(),
    )
}

fn unseen(record: &Value) -> String {
    format!(
        "{}  {} packets in {} s that were only counted ({})",
        word(record, "reason").unwrap_or("any reason"),
        number(record, "count").unwrap_or_default(),
        number(record, "seconds").unwrap_or_default(),
        text(record, "cause"),
    )
}

fn add(line: &mut String, record: &Value, keys: &[&str]) {
    for word in keys.iter().filter_map(|key| word(record, key)) {
        line.push_str("  ");
        line.push_str(word);
    }
}

fn word<'a>(record: &'a Value, key: &str) -> Option<&'a str> {
    record.get(key)?.as_str()
}

fn text<'a>(record: &'a Value, key: &str) -> &'a str {
    word(record, key).unwrap_or("-")
}

fn number(record: &Value, key: &str) -> Option<u64> {
    record.get(key)?.as_u64()
}

/// Without anything that a terminal would obey, or show as something else.
fn escaped(line: &str) -> String {
    line.chars()
        .flat_map(|letter| {
            let plain = letter == ' ' || letter.is_ascii_graphic();
            let escape = (!plain).then(|| letter.escape_default());
            plain.then_some(letter).into_iter().chain(escape.into_iter().flatten())
        })
        .collect()
}

/// How often the file is looked at.
const POLL: Duration = Duration::from_millis(200);
/// A longer line is no record of ours.
const MAX_LINE_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    fn args(group: Option<&str>, refused: bool) -> WatchArgs {
        WatchArgs { file: "-".into(), group: group.map(str::to_owned), refused, all: false }
    }

    fn shown(args: &WatchArgs, input: &str) -> String {
        let mut out = Vec::new();
        show(args, input.as_bytes(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    const RECORDS: &str = r#"{"time":"2026-01-02T03:04:05.678901234Z","record":"start","version":"1"}
{"time":"2026-01-02T03:04:06.000Z","record":"connection","group":"research","agent":"192.0.2.10:4711","sni":"evil.example","dialled":"198.51.100.66:443","decision":"refuse","reason":"sni_denied","bytes_from_agent":517,"bytes_to_agent":7,"duration_ms":3}
{"time":"2026-01-02T03:04:07.000Z","record":"request","flow":"a1","group":"operations","decision":"intercept","method":"GET","host":"api.example","path":"/v1","upstream_status":200,"duration_ms":9}
{"time":"2026-01-02T03:04:08.000Z","record":"packets","seconds":10,"interface":"agents0","group":"research","agent":"192.0.2.10","decision":"refuse","reason":"protocol_denied","protocol":"udp","port":443,"count":7,"first_destination":"198.51.100.10"}
no record
"#;

    #[test]
    fn every_kind_of_record_is_one_line() {
        let shown = shown(&args(None, false), RECORDS);
        assert_eq!(shown.lines().count(), 4, "{shown}");
        let words = [
            "2026-01-02T03:04:05.678",
            "evil.example at 198.51.100.66:443  sni_denied",
            "GET api.example/v1  200",
            "protocol_denied  7 packets in 10 s: udp port 443 to 198.51.100.10",
        ];
        for word in words {
            assert!(shown.contains(word), "{word}\n{shown}");
        }
    }

    #[test]
    fn a_connection_that_names_no_host_has_the_name_of_its_address() {
        let record = |rest: &str| {
            let line =
                format!("{{\"record\":\"connection\",\"dialled\":\"198.51.100.7:22\"{rest}}}\n");
            shown(&args(None, false), &line)
        };
        assert!(record("").contains("no name at 198.51.100.7:22"));
        assert!(record(",\"answered\":[]").contains("no name at"));
        let refused = record(",\"answered\":[\"git.example\",\"pypi.example\"]");
        assert!(refused.contains("git.example at 198.51.100.7:22"), "{refused}");
    }

    #[test]
    fn filters_leave_out_the_rest() {
        assert_eq!(shown(&args(Some("operations"), false), RECORDS).lines().count(), 1);
        assert_eq!(shown(&args(None, true), RECORDS).lines().count(), 2);
        assert_eq!(shown(&args(Some("operations"), true), RECORDS), "");
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
