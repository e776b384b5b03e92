//! The process and its operators: its start, its orders, its restart and its end.

mod bad_starts;
mod commands;
pub(crate) mod control;
pub(crate) mod dead_daemon;
mod explained;
mod misfits;
mod process;
mod quarantine;
mod reloads;
mod restart;
mod service;
mod start;
