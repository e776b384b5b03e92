//! The rules: the daemon's tables as data, made from the capture. Pure.

pub(crate) mod capture;
mod guard;
mod ingress;
pub(crate) mod language;
pub(crate) mod log;
mod meters;
mod multicast;
mod narrow;
mod onboarding;
mod prerouting;
pub(crate) mod render;
mod table;

pub use capture::{Capture, CaptureInterface};
pub use guard::guard;
pub(crate) use render::text;

use self::language::NftTable;
use crate::policy::InterfaceName;

/// Returns the tables for a capture; a missing device has no chain.
pub(crate) fn tables(
    capture: &Capture,
    is_there: impl Fn(&InterfaceName) -> bool,
) -> Vec<NftTable> {
    [table::table(capture)].into_iter().chain(ingress::table(capture, is_there)).collect()
}
