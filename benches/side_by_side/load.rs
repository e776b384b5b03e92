//! An open loop: requests begin when their time has come, whether or not earlier ones are done.
//!
//! Every gateway gets the same arrivals at the same rate, so that CPU per request is compared at
//! equal offered load. At saturation a faster gateway would find shorter queues, batch less and
//! look worse than it is. Arrivals are Poisson, from a fixed seed; latency counts from the moment
//! at which a request was due, so a stall is not hidden by a generator that waits for it.

use std::{
    os::fd::OwnedFd,
    time::{Duration, Instant},
};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::{io::unix::AsyncFd, task::JoinSet};

use crate::measure::Meter;

/// The offered load, and its time.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// Units of work per second.
    pub rate: f64,
    /// Time before the measurement begins.
    pub warm: Duration,
    /// Time that is measured.
    pub span: Duration,
}

/// The result within the measured time.
#[derive(Debug, Default, Clone)]
pub struct Outcome {
    /// Units of work done.
    pub done: f64,
    /// CPU time of the gateway.
    pub cpu: Duration,
    /// Requests that failed.
    pub failed: u64,
    /// The part of the offered load that was done.
    pub kept_up: f64,
    /// The longest time for which the generator itself was delayed.
    pub lag: Duration,
    /// Latencies, sorted, in microseconds.
    pub latencies: Vec<f64>,
}

/// The result of a unit of work.
pub type Done = Result<(), String>;

/// Starts `work` at the load's pace and measures the cost that `meter` counts meanwhile.
pub async fn open_loop<F>(
    load: Load,
    meter: Option<Meter>,
    mut work: impl FnMut(usize) -> F,
) -> Outcome
where
    F: Future<Output = Done> + Send + 'static,
{
    let cpu = || meter.map_or(Duration::ZERO, Meter::cpu);
    let timer = Timer::new();
    let mut arrivals = Arrivals::new(load.rate);
    let mut running: JoinSet<(Instant, Instant, Done)> = JoinSet::new();
    let start = Instant::now();
    let (from, until) = (start + load.warm, start + load.warm + load.span);
    let mut due = start;
    let mut number = 0;
    let mut cpu_from = None;
    let mut offered = 0_u64;
    let mut outcome = Outcome::default();
    loop {
        let now = Instant::now();
        if now >= from && cpu_from.is_none() {
            cpu_from = Some(cpu());
        }
        if now >= until {
            break;
        }
        while due <= now {
            let begun = due;
            if due >= from {
                offered += 1;
                outcome.lag = outcome.lag.max(now - due);
            }
            let future = work(number);
            running.spawn(async move {
                let done = future.await;
                (begun, Instant::now(), done)
            });
            number += 1;
            due += arrivals.next();
        }
        timer.set(due.saturating_duration_since(Instant::now()));
        tokio::select! {
            biased;
            () = timer.rings() => {}
            Some(ended) = running.join_next() => outcome.count(ended.ok(), from),
        }
        while let Some(ended) = running.try_join_next() {
            outcome.count(ended.ok(), from);
        }
    }
    outcome.cpu = cpu().saturating_sub(cpu_from.unwrap_or_default());
    outcome.kept_up = outcome.done / offered.max(1) as f64;
    // Requests under way are finished, so that the next measurement begins without them.
    let rest = async { while running.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(Duration::from_secs(5), rest).await;
    outcome.latencies.sort_by(f64::total_cmp);
    outcome
}

impl Outcome {
    /// Returns the CPU time in microseconds per unit of work.
    pub fn cost(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.done.max(1e-9)
    }

    /// Returns whether the offered load was done. If not, the machine was needed elsewhere or the
    /// gateway was saturated, and the figure says nothing about equal load.
    pub fn is_good(&self) -> bool {
        self.failed == 0 && (0.97..1.03).contains(&self.kept_up) && self.lag < MAX_LAG
    }

    /// Returns the latency that this share of requests did not exceed, in microseconds.
    pub fn percentile(&self, share: f64) -> f64 {
        let index = (self.latencies.len() as f64 * share) as usize;
        self.latencies.get(index).or(self.latencies.last()).copied().unwrap_or(f64::NAN)
    }

    fn count(&mut self, ended: Option<(Instant, Instant, Done)>, from: Instant) {
        match ended {
            Some((begun, ended, Ok(()))) if ended >= from => {
                self.done += 1.0;
                self.latencies.push((ended - begun).as_secs_f64() * 1e6);
            }
            Some((_, _, Ok(()))) => {}
            Some((_, _, Err(error))) => {
                if self.failed == 0 {
                    eprintln!("    a request failed: {error}");
                }
                self.failed += 1;
            }
            None => self.failed += 1,
        }
    }
}

/// Longest delay of the generator. One that was delayed for longer has offered bursts.
const MAX_LAG: Duration = Duration::from_millis(40);

/// Exponential gaps from a fixed seed: every gateway gets the same arrivals.
struct Arrivals {
    mean: f64,
    state: u64,
}

impl Arrivals {
    fn new(rate: f64) -> Self {
        Self { mean: 1.0 / rate, state: 0x9e37_79b9_7f4a_7c15 }
    }

    fn next(&mut self) -> Duration {
        // xorshift64
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        let uniform = (self.state >> 11) as f64 / (1_u64 << 53) as f64;
        Duration::from_secs_f64(-self.mean * (1.0 - uniform).ln())
    }
}

/// A timer of its own, because the runtime's counts milliseconds, in which several requests would
/// begin at once.
struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    fn new() -> Self {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).expect("a timer");
        #[expect(deprecated, reason = "its successor is unsafe; this descriptor is plainly owned")]
        Self(AsyncFd::new(timer).expect("a runtime"))
    }

    fn set(&self, after: Duration) {
        let after = after.max(Duration::from_nanos(1));
        let value =
            Timespec { tv_sec: after.as_secs() as i64, tv_nsec: i64::from(after.subsec_nanos()) };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        timerfd_settime(self.0.get_ref(), TimerfdTimerFlags::empty(), &once).expect("a timer");
    }

    async fn rings(&self) {
        let mut count = [0; 8];
        loop {
            let mut ready = self.0.readable().await.expect("a timer");
            if rustix::io::read(self.0.get_ref(), &mut count).is_ok() {
                return;
            }
            ready.clear_ready();
        }
    }
}
