//! The link to the broker over QUIC: the only place of this crate that knows quinn.

pub mod authority;
pub mod endpoint;
mod frames;
pub mod join;
pub mod registrar;

pub use frames::FramesError;
