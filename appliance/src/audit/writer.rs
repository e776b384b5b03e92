//! One thread that appends lines to a file, and the bounded queue before it.
//!
//! A line that cannot be written is kept and tried again. Meanwhile every new flow and request is
//! refused, so the queue holds only lines of flows that were already under way, and nothing is
//! lost. While writing fails, the thread still takes the order to reopen the file, and reopens it
//! by itself where another file has the name: removing the file, freeing space and mounting a disk
//! are remedies without a restart.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt as _,
    sync::Arc,
    thread,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::{
    runtime::Builder,
    sync::{
        mpsc::{self, OwnedPermit, Receiver, Sender},
        oneshot, watch,
    },
    time::{sleep, timeout},
};

use super::{output::Output, start::StartLine, trouble::Trouble};
use crate::{
    config::AuditTarget,
    metrics::{Metrics, Stage},
    policy::Limits,
};

/// A handle from which flows and requests get slots. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Sink {
    queue: Sender<Vec<u8>>,
    asks: Sender<ReopenRequest>,
    trouble: watch::Receiver<Option<Trouble>>,
    metrics: Arc<Metrics>,
}

/// A record that can be written, and that knows how it is counted.
pub(super) trait AuditEntry: Serialize {
    /// Counts the record.
    fn count(&self, metrics: &Metrics);
}

/// The error where the audit takes no record now: nothing may be done that would need one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable;

/// A reserved place in the queue: writing to it cannot fail or wait.
#[derive(Debug)]
pub struct RecordSlot {
    place: OwnedPermit<Vec<u8>>,
    metrics: Arc<Metrics>,
}

/// The writer's thread. It ends when every [`Sink`] and [`RecordSlot`] is gone.
#[derive(Debug)]
pub struct Writer(JoinHandle<()>);

/// The sender for the result that somebody waits for after asking to reopen the file.
type ReopenRequest = oneshot::Sender<Result<(), Trouble>>;

impl Sink {
    /// Opens the target, writes the record of this start into it and starts the writer.
    ///
    /// # Errors
    ///
    /// The target cannot be opened, has no room, or takes no record. Without the first record, such
    /// a fault would show only once a connection had been carried.
    pub fn open(target: &AuditTarget) -> io::Result<(Self, Writer)> {
        make_folder(target)?;
        let mut output = Output::open(target)?;
        output.tend().or_else(|trouble| match trouble.closes() {
            true => Err(io::Error::other(trouble.to_string())),
            false => Ok(()),
        })?;
        output.write(&line(&StartLine::now()), &mut 0)?;
        Self::start(output)
    }

    fn start(output: Output) -> io::Result<(Self, Writer)> {
        let runtime = Builder::new_current_thread().enable_time().build()?;
        let (queue, lines) = mpsc::channel(QUEUE_LINES);
        let (asks, asked) = mpsc::channel(MAX_ASKS);
        let (told, trouble) = watch::channel(None);
        let appender =
            Appender { output, batch: Vec::new(), from: 0, lines, asks: asked, trouble: told };
        let thread = thread::Builder::new()
            .name("audit".into())
            .spawn(move || runtime.block_on(appender.run()))?;
        let metrics = Arc::default();
        Ok((Self { queue, asks, trouble, metrics }, Writer(thread)))
    }

    /// Reserves a place for one record.
    pub fn reserve(&self) -> Result<RecordSlot, Unavailable> {
        if self.trouble.borrow().as_ref().is_some_and(Trouble::closes) {
            return Err(Unavailable);
        }
        let place = self.queue.clone().try_reserve_owned().map_err(|_| Unavailable)?;
        Ok(RecordSlot { place, metrics: Arc::clone(&self.metrics) })
    }

    /// Returns the counters of the records so far.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Returns the present fault of the audit, if there is one.
    pub fn trouble(&self) -> Option<Trouble> {
        if self.queue.is_closed() {
            return Some(Trouble::Ended);
        }
        let told = self.trouble.borrow().clone();
        told.or_else(|| (self.queue.capacity() == 0).then_some(Trouble::Behind))
    }

    /// Returns a watch that changes whenever [`trouble`](Self::trouble) begins, ends or becomes
    /// another one. A full queue does not change it.
    pub fn watch(&self) -> watch::Receiver<Option<Trouble>> {
        self.trouble.clone()
    }

    /// Reopens the file, after another program has moved or removed it. Once this returns, nothing
    /// more is written to the old one.
    ///
    /// # Errors
    ///
    /// The file could not be opened, or the audit has another fault.
    pub async fn reopen(&self) -> Result<(), Trouble> {
        let (ask, answer) = oneshot::channel();
        let asked = async {
            self.asks.send(ask).await.map_err(|_| Trouble::Ended)?;
            answer.await.map_err(|_| Trouble::Ended)?
        };
        timeout(TIMEOUT, asked).await.unwrap_or(Err(Trouble::Behind))
    }
}

impl RecordSlot {
    /// Writes the record, and counts it.
    pub(super) fn write(self, record: &impl AuditEntry) {
        record.count(&self.metrics);
        self.place.send(line(record));
    }

    /// Notes how long a stage of the flow or request took.
    pub(super) fn took(&self, stage: Stage, time: Duration) {
        self.metrics.took(stage, time);
    }
}

impl Writer {
    /// Waits until the last line is written, at most `time_limit`.
    pub async fn finish(self, time_limit: Duration) {
        let joined = tokio::task::spawn_blocking(move || {
            // A writer that panicked has already been reported by its failing sinks.
            let _ = self.0.join();
        });
        let _ = timeout(time_limit, joined).await;
    }
}

/// The state of the writer's thread. The thread may block on the file: nothing else runs there.
struct Appender {
    output: Output,
    /// Whole lines.
    batch: Vec<u8>,
    /// Bytes of the batch that are written.
    from: usize,
    lines: Receiver<Vec<u8>>,
    asks: Receiver<ReopenRequest>,
    trouble: watch::Sender<Option<Trouble>>,
}

impl Appender {
    async fn run(mut self) {
        let mut written = None;
        loop {
            let pause = self.pause();
            tokio::select! {
                Some(ask) = self.asks.recv() => self.reopen(ask),
                first = self.lines.recv() => {
                    let Some(first) = first else { return };
                    // A waiting thread is woken for each record. One that sleeps for a moment finds
                    // many records at once.
                    if written.is_some_and(|at: Instant| at.elapsed() < BUSY) {
                        sleep(GATHERING).await;
                    }
                    self.gather(first);
                    self.write_whole().await;
                    written = Some(Instant::now());
                }
                () = sleep(pause) => self.look(),
            }
        }
    }

    /// Takes the waiting lines, so that one write serves many records under load.
    fn gather(&mut self, first: Vec<u8>) {
        let mut next = Some(first);
        while let Some(line) = next {
            self.batch.extend_from_slice(&line);
            next =
                (self.batch.len() < MAX_BATCH_BYTES).then(|| self.lines.try_recv().ok()).flatten();
        }
    }

    /// Writes the whole batch, however long that takes.
    async fn write_whole(&mut self) {
        while let Err(trouble) = self.attempt() {
            self.report(Some(trouble));
            tokio::select! {
                Some(ask) = self.asks.recv() => self.reopen(ask),
                () = sleep(RETRY) => self.follow(),
            }
        }
    }

    /// Writes the rest of the batch to the file at the path, after reopening and rotating it where
    /// that is due.
    fn attempt(&mut self) -> Result<(), Trouble> {
        if self.output.is_removed() {
            self.output.reopen(&self.batch, &mut self.from).map_err(|e| Trouble::unopened(&e))?;
        }
        let written = self.output.write(&self.batch, &mut self.from);
        written.map_err(|error| Trouble::unwritten(&error))?;
        self.batch.clear();
        self.from = 0;
        let trouble = self.output.tend().err();
        self.report(trouble);
        Ok(())
    }

    /// Reopens the file as somebody asked, and answers with the audit's state after that.
    fn reopen(&mut self, ask: ReopenRequest) {
        let opened = self.output.reopen(&self.batch, &mut self.from);
        if let Err(error) = &opened {
            tracing::error!(%error, "the audit file cannot be reopened; keeping the old one");
        }
        self.look();
        let trouble = opened.err().map(|error| Trouble::unopened(&error));
        let trouble = trouble.or_else(|| self.trouble.borrow().clone());
        // The one who asked may be gone.
        let _ = ask.send(trouble.map_or(Ok(()), Err));
    }

    /// Checks the file while nothing is to be written, or when a write may work again.
    fn look(&mut self) {
        if let Err(trouble) = self.attempt() {
            self.report(Some(trouble));
        }
    }

    /// Reopens the file where the path names another file by now, or none.
    fn follow(&mut self) {
        if !self.output.has_its_name() {
            // The attempt that follows reports the fault.
            let _ = self.output.reopen(&self.batch, &mut self.from);
        }
    }

    fn pause(&self) -> Duration {
        if self.trouble.borrow().is_some() { RETRY } else { LOOK }
    }

    fn report(&self, trouble: Option<Trouble>) {
        let word = |trouble: &Option<Trouble>| trouble.as_ref().map(Trouble::as_str);
        self.trouble.send_if_modified(|told| {
            let changed = word(told) != word(&trouble);
            if changed {
                tell(trouble.as_ref());
                *told = trouble;
            }
            changed
        });
    }
}

fn tell(trouble: Option<&Trouble>) {
    match trouble {
        Some(trouble) if trouble.closes() => {
            tracing::error!(
                "the audit cannot be written, refusing everything until it can: {trouble}"
            );
        }
        Some(trouble) => tracing::error!("the audit: {trouble}"),
        None => tracing::info!("the audit can be written again"),
    }
}

fn line(record: &impl Serialize) -> Vec<u8> {
    // Records are plain structs of strings and numbers, which JSON can always hold.
    let mut bytes = serde_json::to_vec(record).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

/// Creates the folder of the file where it is missing: for the daemon's user alone.
///
/// # Errors
///
/// The folder cannot be created.
pub fn make_folder(target: &AuditTarget) -> io::Result<()> {
    let AuditTarget::File(file) = target else { return Ok(()) };
    match file.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => DirBuilder::new().recursive(true).mode(0o700).create(folder),
        None => Ok(()),
    }
}

/// Lines that may wait. Each slot is one, so it also bounds the flows and requests under way.
const QUEUE_LINES: usize = 65_536;
/// Lines of the queue that no open connection and no request under way takes, whatever the limits
/// say: they are for lines that wait for the disk, and for refusals.
const FREE_LINES: usize = 8_192;
const _: () = assert!(Limits::MAX_CONNECTIONS + Limits::MAX_REQUESTS + FREE_LINES <= QUEUE_LINES);
/// Orders to reopen the file that may wait.
const MAX_ASKS: usize = 4;
/// Time for such an order to be executed.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Pause before a failed write is tried again.
const RETRY: Duration = Duration::from_millis(250);
/// Interval of the checks of the file and its disk while nothing is written.
const LOOK: Duration = Duration::from_secs(1);
/// Records that follow the last write within this time wait for others, to be written together.
const BUSY: Duration = Duration::from_millis(5);
/// Time for which they wait. A daemon that is killed loses at most this much of a busy audit.
const GATHERING: Duration = Duration::from_millis(2);
/// Bytes after which a batch is written without waiting for more.
const MAX_BATCH_BYTES: usize = 256 * 1024;

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::AuditFile;

    #[test]
    fn an_audit_that_cannot_be_written_gives_no_slots() {
        let full = AuditTarget::File(AuditFile::at("/dev/full"));
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
        let (sink, _writer) = Sink::open(&AuditTarget::File(AuditFile::at("/dev/null"))).unwrap();
        let slots: Vec<_> = (0..QUEUE_LINES).map(|_| sink.reserve().unwrap()).collect();
        assert_eq!(sink.reserve(), Err(Unavailable));
        drop(slots);
        assert!(sink.reserve().is_ok());
    }

    #[test]
    fn every_record_is_one_whole_line() {
        let folder = AuditFolder::new("lines");
        let file = folder.file();
        let (sink, writer) = Sink::open(&AuditTarget::File(file)).unwrap();
        write(&sink, 0..1000);
        end(sink, writer);
        assert_eq!(folder.numbers(), (0..1000).collect::<Vec<_>>());
        let text = std::fs::read_to_string(folder.0.join("audit.jsonl")).unwrap();
        assert!(text.lines().next().is_some_and(|line| line.contains("\"record\":\"start\"")));
    }

    /// The audit moves its file aside at a size, another program moves the file away and has it
    /// opened again, and nothing is removed: every record is there once.
    #[test]
    fn rotations_by_two_programs_lose_and_repeat_no_record() {
        let folder = AuditFolder::new("rotated");
        let file = AuditFile { rotate: Some(10_000), keep: 10_000, ..folder.file() };
        let (sink, writer) = Sink::open(&AuditTarget::File(file)).unwrap();
        let path = folder.0.join("audit.jsonl");
        for round in 0..40 {
            write(&sink, round * 500..(round + 1) * 500);
            if round % 2 == 0 {
                until(|| sink.queue.capacity() == QUEUE_LINES);
            }
            // The audit's own rotation may have moved the file a moment ago.
            if std::fs::rename(&path, folder.0.join(format!("audit.jsonl.{round}"))).is_ok() {
                assert_eq!(reopen(&sink), Ok(()));
            }
        }
        end(sink, writer);
        assert_eq!(folder.numbers(), (0..20_000).collect::<Vec<_>>());
        let (own, others): (Vec<_>, Vec<_>) =
            folder.names().into_iter().partition(|name| name.len() == "audit.jsonl.00000001".len());
        assert!(own.len() > 5 && others.len() > 5, "{own:?} {others:?}");
    }

    #[test]
    fn a_removed_file_is_opened_again_without_an_order() {
        let folder = AuditFolder::new("removed");
        let (sink, writer) = Sink::open(&AuditTarget::File(folder.file())).unwrap();
        std::fs::remove_file(folder.0.join("audit.jsonl")).unwrap();
        write(&sink, 0..10);
        end(sink, writer);
        assert_eq!(folder.numbers(), (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn below_the_reserve_no_slot_is_given_or_line_lost() {
        let folder = AuditFolder::new("reserve");
        let file = AuditFile { reserve: u64::MAX, ..folder.file() };
        let target = AuditTarget::File(file.clone());
        let refused = Sink::open(&target).unwrap_err().to_string();
        assert!(refused.contains("audit_reserve keeps"), "{refused}");

        let (sink, writer) = Sink::start(Output::open(&target).unwrap()).unwrap();
        let under_way = sink.reserve().unwrap();
        until(|| sink.reserve() == Err(Unavailable));
        assert_eq!(sink.trouble().map(|trouble| trouble.as_str()), Some("audit_reserve"));
        assert_eq!(reopen(&sink).map_err(|trouble| trouble.as_str()), Err("audit_reserve"));
        under_way.write(&7);
        until(|| folder.numbers() == [7]);
        end(sink, writer);
    }

    #[test]
    fn an_order_to_reopen_is_taken_while_the_audit_fails() {
        let folder = AuditFolder::new("failing");
        std::os::unix::fs::symlink("/dev/full", folder.0.join("audit.jsonl")).unwrap();
        let output = Output::open(&AuditTarget::File(folder.file())).unwrap();
        let (sink, writer) = Sink::start(output).unwrap();
        sink.reserve().unwrap().write(&1);
        until(|| sink.reserve() == Err(Unavailable));
        assert_eq!(reopen(&sink).map_err(|trouble| trouble.as_str()), Err("audit_full"));

        // A folder, which cannot be written to, takes its place.
        std::fs::remove_file(folder.0.join("audit.jsonl")).unwrap();
        std::fs::create_dir(folder.0.join("audit.jsonl")).unwrap();
        assert_eq!(reopen(&sink).map_err(|trouble| trouble.as_str()), Err("audit_unopened"));
        std::fs::remove_dir(folder.0.join("audit.jsonl")).unwrap();
        assert_eq!(reopen(&sink), Ok(()));
        assert!(sink.reserve().is_ok());
        end(sink, writer);
        assert_eq!(folder.numbers(), [1]);
    }

    fn write(sink: &Sink, numbers: std::ops::Range<u32>) {
        for number in numbers {
            let record = (number, "line\n".repeat(3));
            loop {
                if let Ok(slot) = sink.reserve() {
                    break slot.write(&record);
                }
            }
        }
    }

    fn reopen(sink: &Sink) -> Result<(), Trouble> {
        Builder::new_current_thread().enable_time().build().unwrap().block_on(sink.reopen())
    }

    fn end(sink: Sink, writer: Writer) {
        drop(sink);
        writer.0.join().unwrap();
    }

    #[track_caller]
    fn until(mut done: impl FnMut() -> bool) {
        let came = (0..500).any(|_| {
            #[expect(clippy::disallowed_methods, reason = "waits for a thread, not for a task")]
            thread::sleep(Duration::from_millis(10));
            done()
        });
        assert!(came);
    }

    /// Records of these tests, which no metric counts.
    macro_rules! uncounted {
        ($($record:ty),+) => {$(
            impl AuditEntry for $record {
                fn count(&self, _: &Metrics) {}
            }
        )+};
    }

    uncounted!(i32, &str, String, (u32, String));

    struct AuditFolder(PathBuf);

    impl AuditFolder {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("cloakroom-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        fn file(&self) -> AuditFile {
            AuditFile { reserve: 0, ..AuditFile::at(self.0.join("audit.jsonl")) }
        }

        fn names(&self) -> Vec<String> {
            let entries = std::fs::read_dir(&self.0).unwrap();
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
        }

        /// Returns the numbers in all files, in order, and checks that every line is whole.
        fn numbers(&self) -> Vec<u32> {
            let texts =
                self.names().into_iter().map(|name| std::fs::read_to_string(self.0.join(name)));
            let text: String = texts.map(Result::unwrap).collect();
            assert!(text.is_empty() || text.ends_with('\n'));
            let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
            let number = |value: serde_json::Value| {
                value.as_u64().or_else(|| value[0].as_u64()).and_then(|n| u32::try_from(n).ok())
            };
            let mut numbers: Vec<u32> = lines.filter_map(number).collect();
            numbers.sort_unstable();
            numbers
        }
    }

    impl Drop for AuditFolder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    impl PartialEq for RecordSlot {
        fn eq(&self, _: &Self) -> bool {
            false
        }
    }
}
