//! System tests.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

mod audit_verify;
mod changes;
mod circular;
mod cli;
mod complaints;
mod damage;
mod enrol;
mod exchange;
#[cfg(debug_assertions)]
mod failpoints;
mod forwarder;
mod kill;
mod layout;
mod link;
mod load;
mod memory;
mod net;
mod order;
mod partial;
mod proof;
#[cfg(debug_assertions)]
mod quota;
mod raw;
mod ready;
mod recall;
mod refusals;
mod resident;
mod restore;
mod resume;
mod sim;
mod succession;
mod testnet;
