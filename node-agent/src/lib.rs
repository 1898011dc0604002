//! The agent: one node's mailbox and link. [`Agent::start`] opens the data folder, keeps the link to the broker, sends
//! what its agencies queue, takes what they are sent, and answers on a control socket.
//!
//! It promises: what was queued is sent until signed evidence says what became of it; what it signed for is durable and
//! verified; nothing is shown before the exchange has recorded it.

mod acting;
mod agent;
pub mod backup;
mod bodies;
pub mod compose;
pub mod config;
mod desk;
pub mod env;
pub mod gateway;
pub mod identity;
pub mod inbox;
pub mod link;
pub mod mailbox;
pub mod officer;
pub mod order;
pub mod outbox;
pub mod parts;
pub mod query;
pub mod related;
mod space;
mod transfers;
pub mod uplink;

pub use agent::{Agent, AgentError, AgentHandle, Alarm};
pub use compose::{Draft, DraftPart, Refused, Source};
pub use config::AgentConfig;
pub use env::{Env, Simulated};
pub use identity::Identity;
pub use link::LinkError;
pub use query::{BundleMaterial, DispatchView, StatusView};
pub use transfers::TransferView;
