//! The handshake on either side: hellos, clients that read certificates in their own way, and
//! upstreams that do not prove their identity.

mod browser;
mod hello;
mod stacks;
mod upstreams;
