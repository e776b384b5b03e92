//! The ways in which a flow ends.

/// One of the two ends of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The side that connected to the gateway.
    Agent,
    /// The server that the gateway connected to.
    Upstream,
}

/// The way in which a flow ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SpliceEnd {
    /// Both sides sent their end, and all that came before it was delivered.
    BothClosed,
    /// This side reset its connection, or could not be written to any more.
    Reset(Side),
    /// This side no longer answers: keepalive or the user timeout ran out.
    TimedOut(Side),
    /// Nothing moved for the idle time.
    Idle,
    /// One side had ended, and nothing moved for [`HALF_OPEN_TIME`](super::HALF_OPEN_TIME).
    HalfOpen,
}

impl SpliceEnd {
    /// Returns the word that the audit uses.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BothClosed => "closed",
            Self::Reset(Side::Agent) => "reset_by_agent",
            Self::Reset(Side::Upstream) => "reset_by_upstream",
            Self::TimedOut(Side::Agent) => "agent_timed_out",
            Self::TimedOut(Side::Upstream) => "upstream_timed_out",
            Self::Idle => "idle",
            Self::HalfOpen => "half_open",
        }
    }
}
