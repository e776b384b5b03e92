//! One file per group of properties; each test runs in namespaces of its own.
//!
//! They are one program, so that the lab is linked once. Tests begin in the order of their names, and
//! those that take minutes are named so that none is left alone at the end.

mod agent_services;
mod agents_in_a_flood;
mod answers;
mod attack;
mod authority;
mod bound_agents;
mod browser;
mod clear_text;
mod clients;
mod commands;
mod connections;
mod control;
mod credentials;
mod dialled;
mod dns;
mod dns_over_tls;
mod documented;
mod every_port;
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
mod reloads;
mod responses;
mod restart;
mod rotation;
mod secret_store;
mod service;
mod start;
mod stray_packets;
mod streaming;
mod substitution;
mod the_lab_itself;
mod tls_stacks;
mod unanswered;
mod upgrades;
mod vault_and_secrets;
mod vault_logins;
mod vault_plan;
mod world;
