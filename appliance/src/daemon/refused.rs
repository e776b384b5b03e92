//! The thread that turns the kernel's refusals, and connections that are refused unread, into audit
//! records.
//!
//! It reads the kernel's reports, sums them up, and writes the sums every [`INTERVAL`] and once
//! more at the end. It carries nothing, so a flood of refused packets takes no time from agents.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use crate::{
    audit::{self, RefusedPackets, Sink},
    limits::Capacity,
    packets::{self, PacketLog},
    policy_snapshot::PolicySnapshot,
    reason::Reason,
};

/// The thread. It ends when it is told to, after a last round of records.
#[derive(Debug)]
pub(super) struct Watcher {
    thread: JoinHandle<()>,
    ending: Arc<AtomicBool>,
}

impl Watcher {
    pub(super) fn start(
        log: PacketLog,
        audit: Sink,
        policy_snapshot: watch::Receiver<Arc<PolicySnapshot>>,
        capacity: Arc<Capacity>,
        ipv6: bool,
    ) -> io::Result<Self> {
        let ending = Arc::new(AtomicBool::new(false));
        // Packets that were counted before this start cannot be recorded any more.
        let unlogged = packets::unlogged().unwrap_or_default();
        let round = Round { log, audit, policy_snapshot, capacity, ipv6, unlogged };
        let told_to_end = Arc::clone(&ending);
        let thread =
            thread::Builder::new().name("refused".into()).spawn(move || round.run(&told_to_end))?;
        Ok(Self { thread, ending })
    }

    /// Writes the remaining sums and ends. Takes up to a quarter of a second.
    pub(super) fn end(self) {
        self.ending.store(true, Relaxed);
        if self.thread.join().is_err() {
            tracing::error!("the watcher of refused packets panicked");
        }
    }
}

struct Round {
    log: PacketLog,
    audit: Sink,
    policy_snapshot: watch::Receiver<Arc<PolicySnapshot>>,
    capacity: Arc<Capacity>,
    ipv6: bool,
    /// The kernel's counters at their last reading.
    unlogged: HashMap<Reason, u64>,
}

impl Round {
    fn run(mut self, ending: &AtomicBool) {
        let mut sums = RefusedPackets::new(Instant::now(), self.ipv6);
        let mut due = Instant::now() + INTERVAL;
        let mut told = Instant::now();
        loop {
            let ends = ending.load(Relaxed);
            let until = due.min(Instant::now() + STEP);
            let policy_snapshot = Arc::clone(&self.policy_snapshot.borrow());
            match self.log.read(until, |packet| sums.count(packet, &policy_snapshot.policy)) {
                Ok(lost) => sums.lost(lost),
                Err(error) => self.pause(&error),
            }
            if ends || Instant::now() >= due {
                self.count_untold(&mut sums);
                sums.write(&self.audit, Instant::now());
                self.tell_over_rate(told);
                told = Instant::now();
                due = told + INTERVAL;
            }
            if ends {
                return;
            }
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a thread of its own, no executor to block")]
    fn pause(&self, error: &io::Error) {
        tracing::error!(%error, "the kernel does not tell what it refuses; refusing goes on");
        thread::sleep(PAUSE);
    }

    fn tell_over_rate(&self, since: Instant) {
        let now = Instant::now();
        for over_rate in self.capacity.over_rate(now) {
            match self.audit.reserve() {
                Ok(slot) => audit::over_rate(slot, &over_rate, now - since),
                Err(_) => self.capacity.not_logged(&over_rate),
            }
        }
    }

    /// Counts the packets that the kernel did not report one by one. A counter that went back was
    /// started again, because somebody removed the table.
    fn count_untold(&mut self, sums: &mut RefusedPackets) {
        let counters = match packets::unlogged() {
            Ok(counters) => counters,
            Err(error) => return tracing::error!("{error}"),
        };
        for (reason, now) in &counters {
            let before = self.unlogged.get(reason).copied().unwrap_or_default();
            sums.too_many(*reason, now.checked_sub(before).unwrap_or(*now));
        }
        self.unlogged = counters;
    }
}

/// Interval at which sums become records.
const INTERVAL: Duration = Duration::from_secs(10);
/// Most time of one read, after which the thread checks whether to end.
const STEP: Duration = Duration::from_millis(250);
/// Pause after a read that failed.
const PAUSE: Duration = Duration::from_secs(1);
