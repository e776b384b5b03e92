//! One file per group of properties; each test runs in namespaces of its own.
//!
//! They are one program, so that the lab is linked once.

mod connections;
mod packets;
mod relay;
mod requests;
mod responses;
mod start;
mod substitution;
mod the_lab_itself;
mod the_path;
mod vault_and_secrets;
mod world;
