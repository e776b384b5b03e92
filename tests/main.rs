//! One file per group of properties; each test runs in namespaces of its own.
//!
//! They are one program, so that the lab is linked once.

mod attack;

mod authority;
mod credentials;
mod framing;
mod methods_and_paths;
mod the_lab_itself;
mod the_path;
mod upgrades;
