//! One file per group of properties; each test runs in namespaces of its own.
//!
//! They are one program, so that the lab is linked once.

mod answers;
mod attack;
mod authority;
mod clear_text;
mod clients;
mod connections;
mod credentials;
mod dialled;
mod dns;
mod documented;
mod faults;
mod forged_records;
mod framing;
mod h2_frames;
mod hello;
mod kernel_settings;
mod methods_and_paths;
mod packets;
mod pki;
mod refused_packets;
mod relay;
mod responses;
mod start;
mod stray_packets;
mod streaming;
mod substitution;
mod the_lab_itself;
mod upgrades;
mod vault_and_secrets;
mod vault_logins;
mod world;
