//! Events become signed evidence here, and signed evidence becomes leaves of the log.

pub mod issuer;
pub mod log;
mod tiles;

pub use issuer::Issuer;
pub use log::{LogKeeper, LogReader};
