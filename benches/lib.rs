//! The shared parts of the benches.
