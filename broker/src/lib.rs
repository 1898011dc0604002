//! The central broker of docaxis.

pub mod store;
