//! The rights that every process of ours gives up to protect its memory, and those that the daemon
//! gives up beside that.

mod confinement;

pub use confinement::{Confinement, Enforced, FileReach};

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

/// Turns off core dumps and tracing by other processes (prctl(2), `PR_SET_DUMPABLE`).
///
/// # Errors
///
/// The system refuses. The caller should then read nothing secret.
pub fn process() -> Result<(), String> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| format!("cannot turn core dumps off: {error}"))?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|error| format!("cannot set the limit on core dumps to 0: {error}"))
}
