//! The masks of one exchange, which go with the values as they change.

use std::sync::Arc;

use super::connection::Connection;
use crate::{decide::Route, policy::Api, scrub::Masks, secrets::SecretSnapshot};

/// Masks, and the generation of the values that they were made for.
pub(super) struct Masking {
    pub(super) masks: Arc<Masks>,
    generation: u64,
}

impl Masking {
    /// Masks for the values of an API in a snapshot.
    pub(super) fn of(connection: &Connection, api: &Api, snapshot: &SecretSnapshot) -> Self {
        let masks = connection.masks.of(&connection.group.name, api, snapshot);
        Self { masks, generation: snapshot.generation() }
    }

    /// Masks nothing.
    pub(super) fn none(connection: &Connection) -> Self {
        Self { masks: connection.masks.none(), generation: 0 }
    }

    /// Others, where values have changed since these were made. Cheap where they have not.
    pub(super) fn newer(&self, connection: &Connection) -> Option<Self> {
        let Route::Intercept(api) = &connection.route else { return None };
        let changed = connection.secrets.generation() != self.generation;
        changed.then(|| Self::of(connection, api, &connection.secrets.snapshot()))
    }
}
