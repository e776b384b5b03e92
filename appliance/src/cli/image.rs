//! The report of the router image about itself, which `cloakroom status` adds to the daemon's.

use std::{fmt::Write as _, fs, io, path::Path};

use serde::{Deserialize, Serialize};

/// The file that the image's `usr/lib/cloakroom/console` writes. Other machines have none.
pub(super) const REPORT: &str = "/run/cloakroom-image.json";

/// The versions on the disk, and the root of the agents' CA. There is no secret in it.
#[derive(Debug, Deserialize, Serialize)]
pub struct ImageStatus {
    /// The version that runs.
    version: String,
    /// The slot that it runs from: `A` or `B`.
    slot: String,
    /// Versions on the disk that do not run.
    others: Vec<OtherVersion>,
    /// `encrypted` or `not encrypted`.
    state_partition: String,
    /// The fingerprint (SHA-256) of the root that the image has made; none where Vault signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agents_ca: Option<String>,
}

#[derive(Debug, Deserialize, Serialize)]
struct OtherVersion {
    version: String,
    state: OtherState,
}

/// The state of a version that does not run.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum OtherState {
    /// It was started before, and can be started again.
    Kept,
    /// It is written, and the next start is its first.
    Next,
    /// No try of it is left.
    Failed,
}

impl OtherState {
    fn words(self) -> &'static str {
        match self {
            Self::Kept => "is kept beside it",
            Self::Next => "is written, and starts next",
            Self::Failed => "FAILED to start, and is not tried again",
        }
    }
}

impl ImageStatus {
    /// Returns the report at this path; `None` on a machine that does not run the image.
    ///
    /// # Errors
    /// When the file cannot be read, or is none of the image's.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        match fs::read(path) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns a line for each version and one for the CA, in the columns of the daemon's status.
    pub fn words(&self) -> String {
        let Self { version, slot, others, state_partition, agents_ca } = self;
        let mut text = format!(
            "image         version {version} in slot {slot}; the state partition is {state_partition}\n"
        );
        // Writing to a string cannot fail.
        for OtherVersion { version, state } in others {
            let _ = writeln!(text, "              version {version} {}", state.words());
        }
        if let Some(fingerprint) = agents_ca {
            let _ = writeln!(text, "agents' CA    {fingerprint} (SHA-256)");
        }
        text
    }
}

#[cfg(test)]
mod tests;
