//! What the exchange needs from durable storage, in the domain's own words: accept a submission, record an event,
//! say who waits for what, find evidence.
//!
//! Every method that changes something answers only when the change is durable (after fdatasync), or refuses it. An
//! engine decides duplicates and conflicts itself, in the order in which it commits, so that two simultaneous
//! submissions of one id get one receipt. A failed sync poisons the store: every later change is refused with
//! [`StoreError::Poisoned`], and nothing further is acknowledged.

#[cfg(test)]
pub(crate) mod claims;
pub mod embedded;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use docaxis_protocol::codec::blob;
use docaxis_protocol::envelope::Chain;
use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::{
    AgencyCode, Digest, DispatchId, Event, NodeId, ReasonCode, SealedEnvelope, SealedStatement, SignedEvidence,
    Timestamp,
};
use serde::{Deserialize, Serialize};

/// A future that an engine returns; boxed so that the exchange can hold any engine. A change is prepared, and queued
/// where there is room, in the thread that calls; whoever drops the future does not take it back.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// A dispatch's place in the exchange: the leaf index of its SubmissionAcceptance. Grows in the order of acceptance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Seq(pub u64);

#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("the store stopped acknowledging after a failed write: {0}")]
    Poisoned(String),
    #[error("the store is closed")]
    Closed,
    #[error("another process has {} open and holds its lock", .0.display())]
    Locked(PathBuf),
    /// Nothing new is recorded until the log is whole again.
    #[error("{0}")]
    Frozen(String),
    #[error("the disk is full: {0}")]
    DiskFull(String),
    #[error("the store is behind: {0}")]
    Behind(String),
    #[error("stored data is damaged: {0}")]
    Damaged(String),
    #[error("{operation} failed: {found}")]
    Io { operation: &'static str, found: String },
}

impl StoreError {
    /// The reason that a peer is given.
    pub fn reason(&self) -> ReasonCode {
        match self {
            Self::DiskFull(_) => ReasonCode::DiskFull,
            _ => ReasonCode::Busy,
        }
    }
}

/// Everything that a SubmissionAcceptance rests on. Bodies over 64 KiB are durable in the blob store before this.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Acceptance {
    pub sender: AgencyCode,
    pub id: DispatchId,
    pub node: NodeId,
    pub accepted: Timestamp,
    pub expires: Timestamp,
    pub priority: u8,
    pub envelope_sha256: Digest,
    pub envelope: SealedEnvelope,
    pub parts: Vec<PartDigest>,
    /// Its small bodies (at most 64 KiB), each once. None of them may be absent from a new submission.
    pub bodies: Vec<Body>,
    pub evidence: SignedEvidence,
    /// Every recipient, in the envelope's order, and for one that is refused at once its ContentHandoverFailure.
    pub recipients: Vec<(AgencyCode, Option<SignedEvidence>)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    pub sha256: Digest,
    #[serde(with = "blob")]
    pub bytes: Vec<u8>,
}

/// What became of a submission.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Accepted {
    /// Committed now, at this place.
    New(Seq),
    /// The same bytes were accepted or rejected before: the evidence of then.
    Already(Seq, SignedEvidence),
    /// The same sender used this id for other bytes.
    Conflict { envelope_sha256: Digest },
}

/// What became of a rejection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rejected {
    /// Committed now, as this leaf.
    New(u64),
    /// The same bytes were rejected or accepted before: the evidence of then.
    Already(Seq, SignedEvidence),
}

/// A submission refused at intake. It stands alone: its id stays free for other envelopes, and there is no delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rejection {
    /// As the connection and the seal say, not as the message claims.
    pub sender: AgencyCode,
    pub id: DispatchId,
    pub envelope: SealedEnvelope,
    pub evidence: SignedEvidence,
}

/// One event in the life of one delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    pub seq: u64,
    pub recipient: AgencyCode,
    pub event: Event,
    pub time: Timestamp,
    /// SHA-256 of the evidence that this one follows: the engine refuses the record if the chain has moved on.
    pub previous: Digest,
    pub evidence: SignedEvidence,
    /// The recipient's statement that the evidence rests on, with its certificates.
    pub statement: Option<SealedStatement>,
    /// The delivery afterwards.
    pub state: DeliveryState,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recorded {
    /// Committed now, with this leaf index.
    New(u64),
    /// The chain's head was another one: decide again from the delivery as it is.
    Stale(Delivery),
}

/// A leaf that was signed before the store was put back from an older copy.
#[derive(Debug, Clone)]
pub enum Earlier {
    /// Its bodies are absent until its sender has brought them once more.
    Accepted(Box<Acceptance>),
    Rejected(Box<Rejection>),
    Event(Box<Record>),
    /// A leaf that nobody holds and no checkpoint covers: its place is taken by this entry.
    Lost(Digest),
}

/// Where one delivery stands, as far as it is durable. That it was offered is known only to the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum DeliveryState {
    Waiting,
    HandedOver,
    /// The recipient's node, or the exchange, refused it.
    Failed,
    Expired,
    Withdrawn,
    /// Status 03, after a handover.
    Registered,
    /// Status 02, after a handover.
    Refused,
    /// Neither 03 nor 02 within the time to answer; either may still come.
    NoAnswer,
}

impl DeliveryState {
    /// Whether a handover is still to come.
    pub const fn is_waiting(self) -> bool {
        matches!(self, Self::Waiting)
    }
}

/// One dispatch to one recipient.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    pub recipient: AgencyCode,
    pub state: DeliveryState,
    /// SHA-256 and time of the newest evidence in this recipient's chain.
    pub head: Digest,
    pub head_time: Timestamp,
}

/// A dispatch as accepted, without its bodies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispatch {
    pub seq: Seq,
    pub sender: AgencyCode,
    pub id: DispatchId,
    pub accepted: Timestamp,
    pub expires: Timestamp,
    pub priority: u8,
    pub envelope_sha256: Digest,
    pub envelope: SealedEnvelope,
    pub parts: Vec<PartDigest>,
    /// The SubmissionAcceptance.
    pub evidence: SignedEvidence,
}

/// A part of a recipient's queue, of one priority and some senders. What one agency sends another stands in one lane, so that
/// whoever serves all lanes in turn lets nobody wait behind all that another sender has there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    pub priority: u8,
    /// Below [`Lane::OF_A_PRIORITY`].
    pub senders: u8,
}

impl Lane {
    pub const OF_A_PRIORITY: u8 = 64;

    /// Where what this agency sends stands.
    pub fn of(sender: &AgencyCode, priority: u8) -> Self {
        let digest = Digest::of(sender.as_str().as_bytes());
        Self { priority, senders: digest.0[0] % Self::OF_A_PRIORITY }
    }
}

/// One undelivered dispatch in a recipient's queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    pub recipient: AgencyCode,
    pub priority: u8,
    pub seq: Seq,
}

/// A piece of evidence as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvidence {
    /// Index in the evidence log.
    pub leaf: u64,
    /// The dispatch that it belongs to; a rejection has its own.
    pub seq: Seq,
    pub event: Event,
    pub recipient: Option<AgencyCode>,
    pub evidence: SignedEvidence,
    /// Certificates of the recipient's seal, where there is a statement.
    pub statement_chain: Option<Chain>,
}

/// A body's bytes, or the file that holds them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodySource {
    Inline(Vec<u8>),
    File(PathBuf),
}

/// Counts for `status` and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counts {
    pub leaves: u64,
    pub dispatches: u64,
    /// Deliveries (dispatch x recipient) that wait.
    pub waiting: u64,
}

/// How far the journal goes: what another reader of the files must arrive at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct JournalPlace {
    /// The last segment whose records stand in evidence.
    pub settled: u64,
    /// Where the newest group is.
    pub segment: u64,
    /// Sequence of the newest group that is durable.
    pub sequence: u64,
}

pub trait Store: Send + Sync {
    fn accept(&self, acceptance: Acceptance) -> Answer<'static, Accepted>;
    /// Accepts a recall, and with it, all or nothing, records these withdrawals: of deliveries whose chains have moved on
    /// meanwhile none. Where the recall is not new, nothing else happens either.
    fn recall(&self, recall: Acceptance, withdrawals: Vec<Record>) -> Answer<'static, Accepted>;
    /// One envelope is answered once: its sender may ask again at any time, and gets no evidence that contradicts the first.
    fn reject(&self, rejection: Rejection) -> Answer<'static, Rejected>;
    fn record(&self, record: Record) -> Answer<'static, Recorded>;
    /// Keeps the directory entries and revocation lists that the authority signed, as opaque bytes by key; newer ones
    /// under the same key replace older ones. Keys are short ASCII (`agency/H37`, `crl/nodes`).
    fn put_notices(&self, notices: Vec<(String, Vec<u8>)>) -> Answer<'static, ()>;

    /// Takes up leaves that were signed before, from `leaf` on, each at its own place. Stops before the first that does
    /// not follow what stands before it; returns how many were taken.
    fn import(&self, leaf: u64, earlier: Vec<Earlier>) -> Answer<'static, u64>;
    /// From now on submissions, rejections and events are refused with these words; `None` ends that.
    fn freeze(&self, why: Option<String>);

    /// All notices, in key order: read once at start.
    fn notices(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError>;
    /// The dispatch that this sender sent under this id, if it is known.
    fn lookup(&self, sender: &AgencyCode, id: DispatchId) -> Result<Option<Seq>, StoreError>;
    /// Dispatches of any sender under this id (one, unless two senders drew the same id), rejections included: the newest
    /// thousand of each, in order.
    fn find(&self, id: DispatchId) -> Result<Vec<Seq>, StoreError>;
    fn dispatch(&self, seq: Seq) -> Result<Option<Dispatch>, StoreError>;
    /// What was accepted or rejected with exactly this envelope, however long ago.
    fn answered(&self, id: DispatchId, envelope_sha256: Digest) -> Result<Option<Dispatch>, StoreError>;
    /// Who sent an accepted dispatch: a small read, where [`Store::dispatch`] reads the whole envelope.
    fn sender(&self, seq: Seq) -> Result<Option<AgencyCode>, StoreError>;
    fn delivery(&self, seq: Seq, recipient: &AgencyCode) -> Result<Option<Delivery>, StoreError>;
    /// All deliveries of a dispatch, in order of the recipients' codes.
    fn deliveries(&self, seq: Seq) -> Result<Vec<Delivery>, StoreError>;
    /// The lanes of a recipient's queue in which something of this priority or a higher one waits, urgent first.
    fn lanes(&self, recipient: &AgencyCode, least: u8) -> Result<Vec<Lane>, StoreError>;
    /// The next waiting deliveries of one recipient in one lane, in order of acceptance; those after `after`.
    fn waiting(
        &self,
        recipient: &AgencyCode,
        lane: Lane,
        after: Option<Seq>,
        limit: usize,
    ) -> Result<Vec<Waiting>, StoreError>;
    /// Waiting deliveries whose dispatch expired at or before `now`, oldest first.
    fn expired(&self, now: Timestamp, limit: usize) -> Result<Vec<Waiting>, StoreError>;
    /// Evidence of a dispatch in order of leaf index.
    fn evidence(&self, seq: Seq) -> Result<Vec<StoredEvidence>, StoreError>;
    /// Evidence about one delivery, oldest first, without the acceptance that its chain begins with.
    fn chain(&self, seq: Seq, recipient: &AgencyCode) -> Result<Vec<StoredEvidence>, StoreError>;
    /// Evidence about dispatches that `sender` sent, with a leaf index of at least `from`, in that order.
    fn evidence_for_sender(
        &self,
        sender: &AgencyCode,
        from: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvidence>, StoreError>;
    /// Handovers among the next `limit` leaves from `from` on, and the leaf to go on from: `from` itself if there is none.
    fn handovers(&self, from: u64, limit: usize) -> Result<(u64, Vec<StoredEvidence>), StoreError>;
    /// Log entries (SHA-256 over evidence and signature) from leaf `from` on, in order: only committed ones.
    fn log_entries(&self, from: u64, limit: usize) -> Result<Vec<Digest>, StoreError>;
    /// Whether this agency itself uploaded this body before and it is still stored, as far as can be told without reading
    /// it. Never for a small one: those come with each dispatch. Tells nothing about others' bodies.
    fn holds(&self, agency: &AgencyCode, part: &PartDigest) -> Result<bool, StoreError>;
    /// Where a body of a dispatch is; none if it is not stored, or is damaged: then a copy is set aside. The caller has
    /// established that the asker may have it, and checks the digest of what a file gives.
    fn body(&self, seq: Seq, part: &PartDigest) -> Result<Option<BodySource>, StoreError>;
    /// Sets aside a large body whose file gave other bytes. One that is whole after all stays.
    fn set_aside(&self, part: &PartDigest) -> Result<(), StoreError>;
    /// Stores small bodies anew that this dispatch names and that were lost; nothing if it names none any longer. Large
    /// ones come back through the blob store.
    fn restore(&self, seq: Seq, bodies: Vec<Body>) -> Answer<'static, ()>;
    /// Bytes of the bodies of what this agency sent and what waits for at least one recipient, each dispatch once.
    fn unfinished_bytes(&self, sender: &AgencyCode) -> Result<u64, StoreError>;
    fn counts(&self) -> Counts;
    fn journal(&self) -> JournalPlace;
    /// Changes to the new size of the log after each committed group.
    fn committed(&self) -> tokio::sync::watch::Receiver<u64>;
    /// Waits for what is under way, writes the durable position, closes the index. Nothing is accepted afterwards.
    fn close(&self) -> Answer<'_, ()>;
}
