//! The central broker of docaxis: takes sealed dispatches, keeps what is undelivered, hands it over, and returns signed
//! evidence of each step.
//!
//! [`Broker::start`] is the only entry, for the program and for tests. What is absent: quinn outside `link`, sled
//! outside `store`, axum outside `control` and `console`; the issuing keys, which only the authority holds.

pub mod admission;
pub mod answer;
pub mod backup;
pub mod bells;
pub mod blobs;
mod bundle;
pub mod config;
mod console;
pub mod continuity;
mod control;
pub mod delivery;
pub mod directory;
pub mod disk;
pub mod dispatch;
pub mod env;
pub mod evidence;
pub mod link;
mod loops;
pub mod quota;
pub mod relation;
pub mod schedule;
pub mod seals;
pub mod space;
mod start;
pub mod store;
pub mod turns;
pub mod work;

pub use config::BrokerConfig;
pub use start::{Broker, Simulated, StartError, check, control_socket, rebuild};
