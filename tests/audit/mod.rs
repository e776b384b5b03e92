//! What the gateway says of itself, completely and without a secret: the audit, metrics and memory.

mod forged_records;
mod memory;
mod metrics;
mod records;
mod undisclosed;
