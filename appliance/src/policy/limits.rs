//! The limits of agents, and their division among groups.
//!
//! The common limits are divided into equal parts, one for each group, and an agent has no more
//! than half of its group's: an agent that uses all of its part uses nothing of another's.
//! [`crate::accept`] counts, and leaves something for the next agent where several use all they
//! can.

use std::time::Duration;

/// Bounds, each for one agent unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once, of all agents together.
    pub connections: usize,
    /// Connections at once, of one agent.
    pub agent_connections: usize,
    /// New connections a second, of one agent; twice as many may come at once.
    pub agent_new_connections: u32,
    /// Requests a second, of one agent on all its connections; twice as many may come at once.
    pub agent_new_requests: u32,
    /// Requests under way at once, of all agents together. Each group has an equal part.
    pub requests: usize,
    /// The same, of one agent on all its connections; no more than half of its group's part.
    pub agent_requests: usize,
    /// Bytes of all agents' requests that may wait in the gateway, and as many of their answers.
    /// Each group has an equal part.
    pub buffers: usize,
    /// The same, of one agent; no more than half of its group's part.
    pub agent_buffers: usize,
    /// Bytes that the undecided connections of all agents may hold beyond the first 4 KiB of each.
    /// Each group has an equal part.
    pub peeks: usize,
    /// Bytes that one agent's undecided connections may hold beyond the first 4 KiB of each.
    pub agent_peeks: usize,
    /// Leaves made in a second for one agent; twice as many may be made at once.
    pub agent_leaves: u32,
    /// Bytes that are read before a decision.
    pub peek_bytes: usize,
    /// Time for those bytes to arrive.
    pub peek_time: Duration,
    /// Time to resolve, connect and verify an upstream.
    pub dial_time: Duration,
    /// Time for an HTTP head to arrive.
    pub head_time: Duration,
    /// Bytes of an HTTP head.
    pub head_bytes: usize,
    /// Fields of an HTTP head.
    pub head_fields: usize,
    /// Time without a byte in either direction after which a flow is cut.
    pub idle_time: Duration,
    /// Streams at once on one HTTP/2 connection.
    pub h2_streams: u32,
    /// DNS queries a second, of one agent; twice as many may come at once. All agents of a group
    /// may send [`Quota::GROUP_RATE`] times as many.
    pub dns_rate: u32,
    /// Time that flows get to finish at shutdown before they are cut.
    pub drain_time: Duration,
}

impl Limits {
    /// The highest value of `connections`: the audit's queue has room for so many beside the
    /// requests.
    pub const MAX_CONNECTIONS: usize = 40_960;
    /// The highest value of `requests`, for the same reason.
    pub const MAX_REQUESTS: usize = 16_384;
    /// HTTP/2 connections of all agents with large windows.
    pub const LARGE_WINDOWS: usize = 48;
    /// The same, of one agent.
    pub const AGENT_LARGE_WINDOWS: usize = 16;
    /// Decoders with a window of up to 8 MiB, for the answers to all agents.
    pub const LARGE_DECODERS: usize = 16;
    /// Pipes that move the bytes of all agents' flows, with up to 1 MiB in each.
    pub const PIPES: usize = 128;
    /// Requests under way that every group may have, however many groups there are.
    pub const LEAST_REQUESTS: usize = 32;
    /// Bytes of bodies each way that every group may hold, however many groups there are.
    pub const LEAST_BODIES: usize = 1024 * 1024;
}

/// With these limits an agent may open 200 connections a second, each to a name that it looks up in
/// both families.
impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 16_384,
            agent_connections: 1_024,
            agent_new_connections: 250,
            agent_new_requests: 2_000,
            requests: 4_096,
            agent_requests: 1_024,
            buffers: 96 * 1024 * 1024,
            agent_buffers: 32 * 1024 * 1024,
            peeks: 16 * 1024 * 1024,
            agent_peeks: 4 * 1024 * 1024,
            agent_leaves: 20,
            peek_bytes: 64 * 1024,
            peek_time: Duration::from_secs(10),
            dial_time: Duration::from_secs(15),
            head_time: Duration::from_secs(15),
            head_bytes: 64 * 1024,
            head_fields: 100,
            idle_time: Duration::from_secs(900),
            h2_streams: 100,
            dns_rate: 600,
            drain_time: Duration::from_secs(20),
        }
    }
}

/// The slots and bytes that one group, or one agent, may hold at once, and the rate of its
/// requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// Connections.
    pub connections: usize,
    /// Requests under way.
    pub requests: usize,
    /// Bytes of bodies that wait in the gateway, each way.
    pub bodies: usize,
    /// Bytes of undecided connections beyond the first 4 KiB of each.
    pub peeks: usize,
    /// HTTP/2 connections with large windows.
    pub large_windows: usize,
    /// Decoders with large windows.
    pub large_decoders: usize,
    /// Pipes with bytes in them.
    pub pipes: usize,
    /// Requests a second.
    pub new_requests: u32,
}

impl Quota {
    /// The rate of requests, and of DNS queries, of all agents of a group together, as a multiple
    /// of one agent's: one thread has to write the records of all groups.
    pub const GROUP_RATE: u32 = 8;

    /// Returns the equal part of one group among this many. The part is enough to work with for any
    /// number of groups.
    pub fn of_group(limits: &Limits, groups: usize) -> Self {
        let groups = groups.max(1);
        Self {
            connections: (limits.connections / groups).max(1),
            bodies: (limits.buffers / groups).max(Limits::LEAST_BODIES),
            peeks: (limits.peeks / groups).max(limits.peek_bytes),
            requests: (limits.requests / groups).max(Limits::LEAST_REQUESTS),
            large_windows: (Limits::LARGE_WINDOWS / groups).max(1),
            large_decoders: (Limits::LARGE_DECODERS / groups).max(1),
            pipes: (Limits::PIPES / groups).max(1),
            new_requests: limits.agent_new_requests.saturating_mul(Self::GROUP_RATE),
        }
    }

    /// Returns the part of one of its agents: no more than half, so that another agent can have as
    /// much, where half is anything at all.
    pub fn of_agent(self, limits: &Limits) -> Self {
        let half = |of_group: usize| (of_group / 2).max(1);
        Self {
            connections: limits.agent_connections.min(half(self.connections)),
            bodies: limits.agent_buffers.min(half(self.bodies)),
            peeks: limits.agent_peeks.min(half(self.peeks).max(limits.peek_bytes)),
            requests: limits.agent_requests.min(half(self.requests)),
            large_windows: Limits::AGENT_LARGE_WINDOWS.min(half(self.large_windows)),
            large_decoders: half(self.large_decoders),
            pipes: half(self.pipes),
            new_requests: limits.agent_new_requests,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_groups_leave_the_last_one_its_own() {
        let limits = Limits::default();
        for groups in 1..=48 {
            let part = Quota::of_group(&limits, groups);
            assert!(part.connections * groups <= limits.connections, "{groups}");
            assert!(part.bodies * groups <= limits.buffers, "{groups}");
            assert!(part.peeks * groups <= limits.peeks, "{groups}");
            assert!(part.requests * groups <= limits.requests, "{groups}");
            assert!(part.large_windows * groups <= Limits::LARGE_WINDOWS, "{groups}");
            let own = part.of_agent(&limits);
            assert!(
                2 * own.bodies <= part.bodies && own.bodies <= limits.agent_buffers,
                "{groups}"
            );
            assert!(2 * own.connections <= part.connections, "{groups}");
            assert!(2 * own.requests <= part.requests, "{groups}");
            assert!(2 * own.large_windows <= part.large_windows.max(2), "{groups}");
            assert!(2 * own.large_decoders <= part.large_decoders.max(2), "{groups}");
            assert!(2 * own.pipes <= part.pipes.max(2), "{groups}");
            assert!(2 * own.peeks <= part.peeks && own.peeks >= limits.peek_bytes, "{groups}");
        }
        let many = Quota::of_group(&limits, 10_000);
        assert!(many.connections > 0 && many.requests > 0 && many.bodies > 0);
        assert!(many.peeks >= limits.peek_bytes && many.large_windows > 0);
    }

    #[test]
    fn large_pieces_wait_within_the_promised_memory() {
        let (limits, mib) = (Limits::default(), 1024 * 1024);
        let large_windows = Limits::LARGE_WINDOWS * 2 * mib;
        let decoders = Limits::LARGE_DECODERS * 8 * mib;
        let together = 2 * limits.buffers + limits.peeks + large_windows + decoders;
        assert_eq!(together, 432 * mib);
        assert!(together < 512 * mib);
    }
}
