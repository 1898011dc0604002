//! The central broker of docaxis.

pub mod blobs;
pub mod disk;
pub mod store;
