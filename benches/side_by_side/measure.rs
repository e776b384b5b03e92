//! The cost of a process: CPU time of all its threads and children, and resident memory.
//!
//! CPU time is read from `schedstat`, which counts nanoseconds; the ticks of `stat` are 10 ms.

use std::{fs, time::Duration};

use rustix::thread::{CpuSet, Pid, sched_setaffinity};

/// A process with its children.
#[derive(Clone, Copy)]
pub struct Meter {
    pid: u32,
}

impl Meter {
    /// Creates a meter of the process `pid`.
    pub fn new(pid: u32) -> Self {
        Self { pid }
    }

    /// Returns the process itself.
    pub fn pid(self) -> u32 {
        self.pid
    }

    /// Returns the CPU time so far, user and system, of every thread of the process and its
    /// children.
    pub fn cpu(self) -> Duration {
        let nanoseconds = self.processes().into_iter().flat_map(threads).map(run_time).sum();
        Duration::from_nanos(nanoseconds)
    }

    /// Returns the resident memory in KiB of the process and its children.
    pub fn resident_kib(self) -> u64 {
        self.processes().into_iter().map(resident).sum()
    }

    /// Keeps every thread of the process and its children on one CPU.
    pub fn pin(self, cpu: usize) {
        self.processes().into_iter().flat_map(threads).for_each(|(_, thread)| pin(thread, cpu));
    }

    fn processes(self) -> Vec<u32> {
        let mut found = vec![self.pid];
        let mut next = 0;
        while let Some(&pid) = found.get(next) {
            let children = format!("/proc/{pid}/task/{pid}/children");
            let children = fs::read_to_string(children).unwrap_or_default();
            found.extend(children.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
            next += 1;
        }
        found
    }
}

/// Keeps the calling thread, and the threads that it starts, on one CPU.
pub fn pin_this(cpu: usize) {
    pin(0, cpu);
}

fn pin(thread: u32, cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu);
    let pid = i32::try_from(thread).ok().and_then(Pid::from_raw);
    // A thread may have ended since it was listed.
    let _ = sched_setaffinity(pid, &set);
}

fn threads(pid: u32) -> Vec<(u32, u32)> {
    let Ok(listed) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let name = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    listed.filter_map(|entry| name(entry.ok()?)).map(|thread| (pid, thread)).collect()
}

fn run_time((pid, thread): (u32, u32)) -> u64 {
    let path = format!("/proc/{pid}/task/{thread}/schedstat");
    let text = fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().next().and_then(|field| field.parse().ok()).unwrap_or(0)
}

fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}
