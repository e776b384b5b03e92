//! The masks of one exchange, which are replaced as the values change.

use std::sync::Arc;

use super::connection::Connection;
use crate::{decide::Route, policy_snapshot::Generations, scrub::Masks, secrets::SecretSnapshot};

/// Masks, and the generations of the values that they were made for.
pub(super) struct Masking {
    pub(super) masks: Arc<Masks>,
    generations: Generations,
}

impl Masking {
    /// Returns the masks for the values that a snapshot holds for the API's host.
    pub(super) fn of(connection: &Connection, snapshot: &SecretSnapshot) -> Self {
        let whose = (&connection.group.name, &connection.pinned.host);
        let values = (snapshot, &*connection.tickets);
        let (masks, generations) = connection.masks.of(whose, values);
        Self { masks, generations }
    }

    /// Returns masks that mask nothing.
    pub(super) fn none(connection: &Connection) -> Self {
        Self { masks: connection.masks.none(), generations: (0, 0) }
    }

    /// Returns other masks where values have changed since these were made. The check is cheap.
    pub(super) fn newer(&self, connection: &Connection) -> Option<Self> {
        let Route::Intercept(_) = &connection.route else { return None };
        let now = (connection.secrets.generation(), connection.tickets.generation());
        let changed = now != self.generations;
        changed.then(|| Self::of(connection, &connection.secrets.snapshot()))
    }
}
