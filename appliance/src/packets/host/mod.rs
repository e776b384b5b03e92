//! The conditions of the rules outside nf_tables: the kernel's settings, routes, bridges and links.

pub(crate) mod bridge;
pub(crate) mod misfit;
pub(crate) mod route;
pub(crate) mod sysctl;

pub use misfit::misfits;
pub use sysctl::check_sysctls;
pub(crate) use sysctl::is_there;
