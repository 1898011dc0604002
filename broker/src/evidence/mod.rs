//! Events become signed evidence here, and signed evidence becomes leaves of the log.

pub mod issuer;

pub use issuer::Issuer;
