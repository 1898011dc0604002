//! x
pub mod gateway;
