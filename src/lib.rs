//! The command line of docaxis: one file per noun. It reaches a running broker or agent only through its control
//! socket, and opens no data folder of theirs except to check it.

pub mod agency;
pub mod agent;
pub mod audit;
pub mod broker;
pub mod ca;
pub mod cli;
pub mod clock;
pub mod confirm;
pub mod control;
pub mod demo;
pub mod doc;
#[cfg(debug_assertions)]
mod failpoint;
pub mod out;
mod progress;
mod serve;
