//! Identities of docaxis: the authority, enrolment, renewal, revocation, and TLS configurations for every role.
//!
//! No runtime, no QUIC, no store: requests and answers are bytes that somebody else carries, time is an argument, and
//! records are plain files that appear whole or not at all.

pub mod authority;
mod chain;
pub mod crl;
pub mod encoding;
pub mod entries;
pub mod files;
pub mod identity;
pub mod join;
pub mod keys;
pub mod layout;
pub mod name;
mod pair;
pub mod profile;
pub mod refusal;
pub mod seal;
pub mod tls;
pub mod verifier;

pub use authority::{Authority, AuthorityConfig};
pub use chain::ChainError;
pub use identity::{AuthorityLink, BrokerIdentity, NodeIdentity};
pub use join::{JoinAnswer, JoinRequest, PendingJoin, PendingRenewal, Token};
pub use refusal::{HandshakeRefusal, Refusal};
pub use verifier::{Identity, Peer, Trust};

#[cfg(test)]
mod tests;
