//! What the process gives up so that its memory stays its own.

use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit,
};

/// Turns core dumps and tracing by other processes off (prctl(2), `PR_SET_DUMPABLE`), and raises
/// the number of descriptors to what the system allows.
pub(super) fn process() -> Result<(), String> {
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|error| format!("cannot turn core dumps off: {error}"))?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(|error| format!("cannot set the limit on core dumps to 0: {error}"))?;
    let files = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum })
        .map_err(|error| format!("cannot raise the limit on open files: {error}"))
}
