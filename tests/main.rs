//! One folder for each subject, one file for each group of properties; each test runs in namespaces
//! of its own.
//!
//! All tests are one program, so that the lab is linked once. Tests begin in the order of their
//! names, and tests that take minutes are named so that none is left alone at the end.

mod attack;
mod audit;
mod aws;
mod clients;
mod conformance;
mod connections;
mod dns;
mod documented;
mod faults;
mod http;
mod lifecycle;
mod limits;
mod packets;
mod the_lab_itself;
mod tls;
mod vault;
mod world;
