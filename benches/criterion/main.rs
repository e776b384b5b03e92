//! Criterion benches of the parts that every connection or request pays for.
//!
//! Run `cargo bench -p cloakroom-benches`, with a part's name behind `--` for that part alone.

mod decide;
mod dns;
mod leaf;
mod mask;
mod peek;
mod scaling;
mod substitute;
mod world;

criterion::criterion_main!(
    peek::benches,
    decide::benches,
    dns::benches,
    leaf::benches,
    substitute::benches,
    mask::benches,
    scaling::benches
);
