//! x
pub mod gateway;
pub mod link;
