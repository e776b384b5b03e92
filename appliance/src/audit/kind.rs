//! The kinds of records: one closed list of words. A reader of the audit looks at a line's kind
//! first. A new kind does not compile until `cloakroom watch` can show it.

use serde::{Deserialize, Serialize};

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident,)+) => {
        /// The kind of a record, its field `record`.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum RecordKind { $($(#[$doc])* $variant,)+ }

        impl RecordKind {
            /// All kinds, in the order of this file.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
        }
    };
}

kinds! {
    /// The daemon started; the first line of each run.
    #[default]
    Start,
    /// One connection.
    Connection,
    /// A sum of connections beyond an agent's rate.
    Connections,
    /// One request on an intercepted or inspected connection.
    Request,
    /// A sum of requests beyond an agent's rate.
    Requests,
    /// A DNS query that was refused.
    Dns,
    /// A sum of DNS queries.
    DnsSummary,
    /// A sum of packets that the kernel refused.
    Packets,
    /// Packets that the kernel refused and only counted.
    PacketsUnseen,
    /// A group was cut off.
    Quarantine,
    /// The group's quarantine was lifted.
    Release,
    /// New connections are reset, because a condition that the packet rules need is not met.
    Close,
    /// Every condition is met again.
    Open,
    /// Somebody changed the packet rules, and they were installed again.
    Repair,
}
