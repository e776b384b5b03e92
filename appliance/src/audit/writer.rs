//! One thread that appends lines to a file, and the bounded queue before it.
//!
//! A line that cannot be written is kept and tried again; meanwhile every new flow and request
//! is refused, so the queue holds what was already under way and nothing is lost.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::sync::mpsc::{self, OwnedPermit, Receiver, Sender};

use super::record::StartLine;
use crate::{config::AuditTarget, policy::Limits};

/// Where flows and requests ask for a slot. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sink {
    queue: Sender<Message>,
    failing: Arc<AtomicBool>,
}

/// The audit cannot take a record now: nothing may be done that would need one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable;

/// A reserved place in the queue: writing to it cannot fail or wait.
#[derive(Debug)]
pub struct Slot(OwnedPermit<Message>);

/// The writer's thread. Ends when every [`Sink`] and [`Slot`] is gone.
#[derive(Debug)]
pub struct Writer(JoinHandle<()>);

enum Message {
    Line(Vec<u8>),
    Reopen,
}

impl Sink {
    /// Opens the target, writes the record of this start into it and starts the writer.
    ///
    /// # Errors
    ///
    /// Where the target cannot be opened, or takes no record: that it would not is otherwise known
    /// only once a connection has been carried.
    pub fn open(target: &AuditTarget) -> io::Result<(Self, Writer)> {
        make_folder(target)?;
        let mut output = Output::open(target)?;
        output.write(&line(&StartLine::now()), &mut 0)?;
        Self::start(output)
    }

    fn start(output: Output) -> io::Result<(Self, Writer)> {
        let (queue, lines) = mpsc::channel(QUEUE_LINES);
        let failing = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&failing);
        let thread = thread::Builder::new()
            .name("audit".into())
            .spawn(move || write_lines(output, lines, &flag))?;
        Ok((Self { queue, failing }, Writer(thread)))
    }

    /// Reserves a place for one record.
    pub fn reserve(&self) -> Result<Slot, Unavailable> {
        if self.failing.load(Ordering::Relaxed) {
            return Err(Unavailable);
        }
        self.queue.clone().try_reserve_owned().map(Slot).map_err(|_| Unavailable)
    }

    /// Opens the file anew, after something else has moved it away.
    pub async fn reopen(&self) {
        // A closed queue means that the writer is gone, which every reserve reports.
        let _ = self.queue.send(Message::Reopen).await;
    }
}

impl Slot {
    pub(super) fn write(self, record: &impl Serialize) {
        self.0.send(Message::Line(line(record)));
    }
}

impl Writer {
    /// Waits for the last line, at most `patience`.
    pub async fn finish(self, patience: Duration) {
        let joined = tokio::task::spawn_blocking(move || {
            // A writer that panicked has already been reported by its failing sinks.
            let _ = self.0.join();
        });
        let _ = tokio::time::timeout(patience, joined).await;
    }
}

enum Output {
    Stdout(io::Stdout),
    File { file: File, path: Box<Path> },
}

impl Output {
    fn open(target: &AuditTarget) -> io::Result<Self> {
        match target {
            AuditTarget::Stdout => Ok(Self::Stdout(io::stdout())),
            AuditTarget::File(path) => {
                Ok(Self::File { file: append_to(path)?, path: path.as_path().into() })
            }
        }
    }

    fn reopen(&mut self) -> io::Result<()> {
        if let Self::File { file, path } = self {
            *file = append_to(path)?;
        }
        Ok(())
    }

    /// Writes from `from` on; `from` moves with every byte that is out, so that a later try goes
    /// on where this one stopped and no line is torn.
    fn write(&mut self, lines: &[u8], from: &mut usize) -> io::Result<()> {
        while let Some(rest) = lines.get(*from..).filter(|rest| !rest.is_empty()) {
            let written = match self {
                Self::Stdout(out) => out.write(rest).and_then(|n| out.flush().map(|()| n)),
                Self::File { file, .. } => file.write(rest),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => *from += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn line(record: &impl Serialize) -> Vec<u8> {
    // Records are plain structs of strings and numbers, which JSON can always hold.
    let mut bytes = serde_json::to_vec(record).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Makes the folder of the file where there is none: for the daemon's user alone.
///
/// # Errors
///
/// It cannot be made.
pub fn make_folder(target: &AuditTarget) -> io::Result<()> {
    let AuditTarget::File(path) = target else { return Ok(()) };
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => DirBuilder::new().recursive(true).mode(0o700).create(folder),
        None => Ok(()),
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

#[expect(clippy::disallowed_methods, reason = "a thread of its own, no executor to block")]
fn write_lines(mut output: Output, mut queue: Receiver<Message>, failing: &AtomicBool) {
    let mut batch = Vec::new();
    let mut written = None;
    while let Some(first) = queue.blocking_recv() {
        // A waiting writer is woken for each record. One that is away for a moment finds many.
        if written.is_some_and(|at: Instant| at.elapsed() < BUSY) {
            thread::sleep(GATHERING);
        }
        batch.clear();
        gather(first, &mut queue, &mut batch, &mut output);
        write_whole(&mut output, &batch, failing);
        written = Some(Instant::now());
    }
}

/// Takes what is waiting, so that one write serves many records under load.
fn gather(first: Message, queue: &mut Receiver<Message>, batch: &mut Vec<u8>, output: &mut Output) {
    let mut next = Some(first);
    while let Some(message) = next {
        match message {
            Message::Line(line) => batch.extend_from_slice(&line),
            Message::Reopen => {
                if let Err(error) = output.reopen() {
                    tracing::error!(%error, "the audit file cannot be opened anew; keeping the old one");
                }
            }
        }
        if batch.len() >= MAX_BATCH_BYTES {
            return;
        }
        next = queue.try_recv().ok();
    }
}

#[expect(clippy::disallowed_methods, reason = "a thread of its own, no executor to block")]
fn write_whole(output: &mut Output, batch: &[u8], failing: &AtomicBool) {
    let mut from = 0;
    while let Err(error) = output.write(batch, &mut from) {
        if !failing.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "the audit cannot be written; refusing everything until it can");
        }
        thread::sleep(RETRY);
    }
    if failing.swap(false, Ordering::Relaxed) {
        tracing::info!("the audit can be written again");
    }
}

/// Lines that may wait. Each slot is one, so it also bounds the flows and requests under way.
const QUEUE_LINES: usize = 65_536;
/// Those of them that no open connection and no request under way has, whatever the limits say: for
/// lines that wait for the disk, and for refusals.
const FREE_LINES: usize = 8_192;
const _: () = assert!(Limits::MAX_CONNECTIONS + Limits::MAX_REQUESTS + FREE_LINES <= QUEUE_LINES);
/// Pause before a line that could not be written is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// Records that follow the last write within this time wait for others, to be written together.
const BUSY: Duration = Duration::from_millis(5);
/// How long they wait, which is how much of a busy audit is lost when the daemon is killed.
const GATHERING: Duration = Duration::from_millis(2);
/// Bytes after which a batch is written whatever else waits.
const MAX_BATCH_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_audit_that_cannot_be_written_gives_no_slots() {
        let full = AuditTarget::File("/dev/full".into());
        assert!(Sink::open(&full).is_err(), "at the start it is an error");
        let (sink, _writer) = Sink::start(Output::open(&full).unwrap()).unwrap();
        sink.reserve().unwrap().write(&"first");
        let refused = (0..200).any(|_| {
            #[expect(clippy::disallowed_methods, reason = "waits for a thread, not for a task")]
            thread::sleep(Duration::from_millis(10));
            sink.reserve() == Err(Unavailable)
        });
        assert!(refused);
    }

    #[test]
    fn a_queue_that_is_full_gives_no_slots() {
        let (sink, _writer) = Sink::open(&AuditTarget::File("/dev/null".into())).unwrap();
        let slots: Vec<_> = (0..QUEUE_LINES).map(|_| sink.reserve().unwrap()).collect();
        assert_eq!(sink.reserve(), Err(Unavailable));
        drop(slots);
        assert!(sink.reserve().is_ok());
    }

    #[test]
    fn the_folder_of_the_audit_is_made_for_the_daemon_alone_also_after_a_rotation() {
        let folder = std::env::temp_dir().join(format!("cloakroom-log-{}", std::process::id()));
        let path = folder.join("of/audit.jsonl");
        let target = AuditTarget::File(path.clone());
        let mut output = Output::open(&target).unwrap();
        let mode = std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        std::fs::remove_dir_all(&folder).unwrap();
        output.reopen().unwrap();
        output.write(b"x\n", &mut 0).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x\n");
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::write(&folder, "a file").unwrap();
        assert!(Output::open(&target).is_err());
        std::fs::remove_file(&folder).unwrap();
    }

    #[test]
    fn every_record_is_one_whole_line() {
        let path = std::env::temp_dir().join(format!("cloakroom-audit-{}", std::process::id()));
        let (sink, writer) = Sink::open(&AuditTarget::File(path.clone())).unwrap();
        for number in 0..1000 {
            sink.reserve().unwrap().write(&format!("line\n{number}"));
        }
        drop(sink);
        writer.0.join().unwrap();
        let lines = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let (start, lines) = lines.split_once('\n').unwrap();
        assert!(start.contains("\"record\":\"start\""), "{start}");
        let read: Vec<String> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let sent: Vec<_> = (0..1000).map(|number| format!("line\n{number}")).collect();
        assert_eq!(read, sent);
    }

    impl PartialEq for Slot {
        fn eq(&self, _: &Self) -> bool {
            false
        }
    }
}
