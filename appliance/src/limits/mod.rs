//! The bounds on what each agent and each group may hold at once and do in a second.

mod agent_table;
mod capacity;
mod coded;
mod fair_semaphore;
mod rate_limiter;

pub use self::{
    agent_table::{AgentTable, MAX_AGENTS},
    capacity::{
        AgentShare, Capacity, ConnectionSlot, H2Windows, HeldBytes, LargeDecoder, OverRate,
        PipeSlot, Rated, RequestSlot, Taken, Way, held,
    },
    coded::{Coded, CodedAnswers, CodedPlace},
    fair_semaphore::{FairSemaphore, FairSlot},
    rate_limiter::RateLimiter,
};
