//! One file per group of properties; each test runs in namespaces of its own.
//!
//! They are one program, so that the lab is linked once.

mod agent_services;
mod answers;
mod attack;
mod authority;
mod bound_agents;
mod clear_text;
mod clients;
mod connections;
mod control;
mod credentials;
mod dialled;
mod dns;
mod dns_over_tls;
mod documented;
mod faults;
mod forged_records;
mod framing;
mod h2_frames;
mod hello;
mod kernel_settings;
mod leased_users;
mod leases;
mod methods_and_paths;
mod nameless;
mod neighbours;
mod packets;
mod pki;
mod quarantine;
mod refused_packets;
mod relay;
mod responses;
mod restart;
mod rotation;
mod secret_store;
mod start;
mod stray_packets;
mod streaming;
mod substitution;
mod the_lab_itself;
mod two_agents;
mod upgrades;
mod vault_and_secrets;
mod vault_logins;
mod world;
