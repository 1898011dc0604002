//! System tests.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod audit_verify;
mod enrol;
mod layout;
