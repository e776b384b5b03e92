//! The gateway's reports about itself are complete and hold no secret: the audit, metrics and
//! memory.

mod forged_records;
mod memory;
mod metrics;
mod records;
mod undisclosed;
