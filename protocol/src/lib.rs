//! What the parties of docaxis say, seal and prove: identifiers, envelopes, statements, evidence, link frames, the
//! evidence log's proofs, and the evidence bundle.
//!
//! This crate is pure. It has no socket, file, clock or source of randomness: time and random bytes come in as
//! arguments. What was signed is kept as the bytes that were signed and is never serialised again.

pub mod about;
pub mod bundle;
pub mod chain;
pub mod codec;
pub mod digest;
pub mod directory;
pub mod envelope;
pub mod evidence;
pub mod frame;
pub mod id;
pub mod json;
pub mod key;
pub mod limits;
pub mod partial;
pub mod reason;
pub mod seal_keys;
pub mod search;
pub mod space;
pub mod statement;
pub mod succession;
pub mod time;
pub mod tlog;

pub use about::{About, StatusCode};
pub use digest::Digest;
pub use envelope::{Envelope, Kind, Part, PartRole, SealedEnvelope};
pub use evidence::{Event, Evidence, SignedEvidence};
pub use id::{AgencyCode, DispatchId, EvidenceId, NodeId, Origin};
pub use reason::{Reason, ReasonCode};
pub use statement::{SealedStatement, Statement};
pub use time::Timestamp;
