//! The inputs that an agent can feed to the parsers, and the invariants that hold whatever it
//! feeds.
//!
//! Each target takes any bytes and panics where an invariant is broken: that the answer does not
//! depend on how the bytes are cut, that another reader of the same bytes understands the same as
//! ours, that nothing of a secret is revealed. The expected result is computed here a second time,
//! without the code under test. `make fuzz` looks for bytes that break an invariant, led by
//! coverage; the tests of this crate run those that it found worth keeping.

mod coded;
mod dns;
mod framing;
mod hello;
mod input;
mod minted;
mod path;
mod peek;
mod places;
mod reader;
mod scrub;
mod substitution;
mod websocket;
mod world;

/// Takes any bytes; panics where an invariant is broken.
pub type Target = fn(&[u8]);

/// All targets, each with its name, which is also that of the folder of its corpus.
pub static TARGETS: [(&str, Target); 12] = [
    ("coded", coded::any_stream),
    ("dns", dns::any_query),
    ("framing", framing::any_stream),
    ("hello", hello::any_records),
    ("hello_built", hello::built),
    ("minted", minted::any_answer),
    ("path", path::any_path),
    ("peek", peek::any_stream),
    ("places", places::any_place),
    ("scrub", scrub::any_body),
    ("substitution", substitution::any_request),
    ("websocket", websocket::any_frames),
];

#[cfg(test)]
mod corpora;
