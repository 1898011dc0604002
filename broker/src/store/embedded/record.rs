//! The records of journal and evidence: their own types, apart from the trait's, so that the disk's format changes
//! only when somebody means to change it.
//!
//! [`Prepared`] is a record with everything that follows from it alone (its encoding, its log entries): made in the
//! caller's thread for a new record, and from the bytes when one is read back, so that both take the same way.

use docaxis_protocol::codec::{self, blob, words};
use docaxis_protocol::digest::Hasher;
use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::{
    AgencyCode, Digest, DispatchId, Event, NodeId, SealedEnvelope, SealedStatement, SignedEvidence, Timestamp,
};
use serde::{Deserialize, Serialize};

use super::layout::{FRAME_HEADER_BYTES, FrameHeader, NO_LEAF};
use crate::store::{Acceptance, Body, DeliveryState, Earlier, Record, Rejection, StoreError};

/// The largest encoded record: 4,096 refusals at once, an envelope and its certificates stay below.
pub const MAX_META_BYTES: usize = 12 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RecordV1 {
    Accepted(Box<AcceptedV1>),
    Rejected(Box<RejectedV1>),
    Event(Box<EventV1>),
    Notices(Vec<NoticeV1>),
    /// Bodies copied forward out of an old segment, or brought once more by their sender.
    Bodies(Vec<BodiesV1>),
    /// Dispatches whose retention has passed: they name their bodies no longer.
    Pruned(Vec<PrunedV1>),
    /// In evidence only: everything of this journal segment stands before.
    Settled(u64),
    /// Entries of leaves that nobody held when the log was made whole after a restore.
    Lost(Vec<[u8; 32]>),
}

/// The tags of some records, as they stand in the first four bytes of the encoding.
pub const ACCEPTED_TAG: u32 = 0;
pub const NOTICES_TAG: u32 = 3;
pub const BODIES_TAG: u32 = 4;
pub const SETTLED_TAG: u32 = 6;

/// What a record of bodies says of each dispatch, and of each body: an upper bound in bytes.
pub const NAMED_BYTES: usize = 40;

/// Which kind of record these encoded bytes are, without decoding them.
pub fn tag_of(meta: &[u8]) -> u32 {
    meta.first_chunk().map_or(u32::MAX, |tag| u32::from_le_bytes(*tag))
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptedV1 {
    pub sender: AgencyCode,
    #[serde(with = "words")]
    pub id: [u8; 16],
    pub node: NodeId,
    pub accepted_ms: i64,
    pub expires_ms: i64,
    pub priority: u8,
    #[serde(with = "words")]
    pub envelope_sha256: [u8; 32],
    pub envelope: SealedEnvelope,
    pub parts: Vec<PartV1>,
    /// The bodies in the record's tail, one behind the other.
    pub bodies: Vec<BodyV1>,
    pub evidence: SignedEvidence,
    pub recipients: Vec<(AgencyCode, Option<SignedEvidence>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartV1 {
    #[serde(with = "words")]
    pub sha256: [u8; 32],
    pub size: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BodyV1 {
    #[serde(with = "words")]
    pub sha256: [u8; 32],
    pub size: u32,
}

/// Small bodies of one dispatch; their bytes are in the record's tail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BodiesV1 {
    pub seq: u64,
    /// The segment that all bodies of the acceptance's tail were copied out of, in their order there. None: some of the
    /// dispatch's bodies by themselves, which from now on lie apart from the others.
    pub from: Option<u64>,
    pub bodies: Vec<BodyV1>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejectedV1 {
    pub sender: AgencyCode,
    #[serde(with = "words")]
    pub id: [u8; 16],
    pub envelope: SealedEnvelope,
    pub evidence: SignedEvidence,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventV1 {
    pub seq: u64,
    pub recipient: AgencyCode,
    pub event: Event,
    pub time_ms: i64,
    #[serde(with = "words")]
    pub previous: [u8; 32],
    pub evidence: SignedEvidence,
    pub statement: Option<SealedStatement>,
    pub state: DeliveryState,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticeV1 {
    pub name: String,
    #[serde(with = "blob")]
    pub bytes: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrunedV1 {
    pub seq: u64,
    pub sender: AgencyCode,
    /// When its last delivery ended.
    pub finished_ms: i64,
    /// The large bodies that it named.
    pub parts: Vec<[u8; 32]>,
    /// The segment in which its small bodies lay together, and their bytes.
    pub freed: Option<(u64, u64)>,
}

/// One entry that a record adds to the evidence log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// SHA-256 over evidence and signature.
    pub log: [u8; 32],
    /// SHA-256 of the evidence: how the chain's next piece names it.
    pub evidence: [u8; 32],
}

impl Entry {
    fn of(evidence: &SignedEvidence) -> Self {
        Self::of_bytes(&evidence.bytes, &evidence.signature.0)
    }

    /// Both begin with the same bytes, so these are hashed once.
    pub fn of_bytes(bytes: &[u8], signature: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.update(bytes);
        let evidence = hasher.clone().finish().0;
        hasher.update(signature);
        Self { log: hasher.finish().0, evidence }
    }

    /// Of a leaf that nobody held when the log was made whole.
    pub const fn lost(entry: [u8; 32]) -> Self {
        Self { log: entry, evidence: entry }
    }
}

/// A record ready to be committed or applied.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub record: RecordV1,
    /// The encoded record; empty when it was read back, as bodies are, which stay where they are.
    pub meta: Vec<u8>,
    pub meta_bytes: usize,
    pub tail: Vec<Body>,
    pub tail_bytes: u32,
    pub entries: Vec<Entry>,
}

impl Prepared {
    pub fn new(record: RecordV1, tail: Vec<Body>) -> Result<Self, StoreError> {
        let meta = codec::encode(&record, MAX_META_BYTES)
            .map_err(|e| StoreError::Io { operation: "encoding a record", found: e.to_string() })?;
        let tail_bytes = tail.iter().try_fold(0u32, |sum, body| sum.checked_add(u32::try_from(body.bytes.len()).ok()?));
        let tail_bytes = tail_bytes.ok_or_else(|| StoreError::Io {
            operation: "encoding a record",
            found: "its bodies are over 4 GiB".to_owned(),
        })?;
        let entries = entries_of(&record);
        Ok(Self { meta_bytes: meta.len(), record, meta, tail, tail_bytes, entries })
    }

    pub fn accepted(acceptance: Acceptance) -> Result<Self, StoreError> {
        let record = AcceptedV1 {
            bodies: sizes_of(&acceptance.bodies)?,
            sender: acceptance.sender,
            id: *acceptance.id.as_bytes(),
            node: acceptance.node,
            accepted_ms: acceptance.accepted.unix_ms(),
            expires_ms: acceptance.expires.unix_ms(),
            priority: acceptance.priority,
            envelope_sha256: acceptance.envelope_sha256.0,
            envelope: acceptance.envelope,
            parts: acceptance.parts.iter().map(|part| PartV1 { sha256: part.sha256.0, size: part.size }).collect(),
            evidence: acceptance.evidence,
            recipients: acceptance.recipients,
        };
        Self::new(RecordV1::Accepted(Box::new(record)), acceptance.bodies)
    }

    pub fn rejected(rejection: Rejection) -> Result<Self, StoreError> {
        let record = RejectedV1 {
            sender: rejection.sender,
            id: *rejection.id.as_bytes(),
            envelope: rejection.envelope,
            evidence: rejection.evidence,
        };
        Self::new(RecordV1::Rejected(Box::new(record)), vec![])
    }

    pub fn event(record: Record) -> Result<Self, StoreError> {
        let record = EventV1 {
            seq: record.seq,
            recipient: record.recipient,
            event: record.event,
            time_ms: record.time.unix_ms(),
            previous: record.previous.0,
            evidence: record.evidence,
            statement: record.statement,
            state: record.state,
        };
        Self::new(RecordV1::Event(Box::new(record)), vec![])
    }

    /// A leaf that was signed before.
    pub fn earlier(earlier: Earlier) -> Result<Self, StoreError> {
        match earlier {
            Earlier::Accepted(acceptance) => Self::accepted(*acceptance),
            Earlier::Rejected(rejection) => Self::rejected(*rejection),
            Earlier::Event(record) => Self::event(*record),
            Earlier::Lost(entry) => Self::new(RecordV1::Lost(vec![entry.0]), vec![]),
        }
    }

    /// Bodies apart from their acceptance: of each dispatch some, with the segment that they come from.
    pub fn bodies(of: Vec<(u64, Option<u64>, Vec<Body>)>) -> Result<Self, StoreError> {
        let list =
            of.iter().map(|(seq, from, bodies)| Ok(BodiesV1 { seq: *seq, from: *from, bodies: sizes_of(bodies)? }));
        let list = list.collect::<Result<_, StoreError>>()?;
        Self::new(RecordV1::Bodies(list), of.into_iter().flat_map(|(_, _, bodies)| bodies).collect())
    }

    /// Reads a frame's meta back.
    pub fn read(frame: &FrameHeader, meta: &[u8]) -> Result<Self, String> {
        let record: RecordV1 = codec::decode(meta, MAX_META_BYTES).map_err(|e| e.to_string())?;
        let entries = entries_of(&record);
        check_leaf(frame, &entries)?;
        let (meta_bytes, tail_bytes) = (meta.len(), frame.tail);
        Ok(Self { record, meta: vec![], meta_bytes, tail: vec![], tail_bytes, entries })
    }

    /// Length of the whole frame.
    pub fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.meta_bytes + self.tail_bytes as usize
    }

    /// Appends the frame to a group in the making.
    pub fn write_frame(&self, leaf: u64, group: &mut Vec<u8>) {
        let leaf = if self.entries.is_empty() { NO_LEAF } else { leaf };
        group.extend_from_slice(&FrameHeader::encode(&self.meta, self.tail_bytes, leaf));
        group.extend_from_slice(&self.meta);
        for body in &self.tail {
            group.extend_from_slice(&body.bytes);
        }
    }
}

/// Whether the frame says that the record brings entries.
pub fn check_leaf(frame: &FrameHeader, entries: &[Entry]) -> Result<(), String> {
    if entries.is_empty() == (frame.leaf == NO_LEAF) {
        return Ok(());
    }
    Err(format!("the record brings {} log entries and says leaf {}", entries.len(), frame.leaf))
}

fn sizes_of(bodies: &[Body]) -> Result<Vec<BodyV1>, StoreError> {
    let too_long = |_| StoreError::Io { operation: "encoding a record", found: "a body is over 4 GiB".into() };
    let size =
        |body: &Body| Ok(BodyV1 { sha256: body.sha256.0, size: u32::try_from(body.bytes.len()).map_err(too_long)? });
    bodies.iter().map(size).collect()
}

/// Bytes of bodies that lie one behind the other.
pub fn bytes_of(bodies: &[BodyV1]) -> u64 {
    bodies.iter().map(|body| u64::from(body.size)).sum()
}

fn entries_of(record: &RecordV1) -> Vec<Entry> {
    match record {
        RecordV1::Accepted(accepted) => std::iter::once(&accepted.evidence)
            .chain(accepted.recipients.iter().filter_map(|(_, refused)| refused.as_ref()))
            .map(Entry::of)
            .collect(),
        RecordV1::Rejected(rejected) => vec![Entry::of(&rejected.evidence)],
        RecordV1::Event(event) => vec![Entry::of(&event.evidence)],
        RecordV1::Lost(entries) => entries.iter().copied().map(Entry::lost).collect(),
        RecordV1::Notices(_) | RecordV1::Bodies(_) | RecordV1::Pruned(_) | RecordV1::Settled(_) => vec![],
    }
}

impl AcceptedV1 {
    pub fn expires(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.expires_ms)
    }

    pub fn part_digests(&self) -> Vec<PartDigest> {
        self.parts.iter().map(|part| PartDigest { sha256: Digest(part.sha256), size: part.size }).collect()
    }
}

/// An id as it was stored. Records are checked by CRC, so a wrong one is a defect of the writer.
pub fn id_of(bytes: [u8; 16]) -> Result<DispatchId, StoreError> {
    DispatchId::from_bytes(bytes).map_err(|e| StoreError::Damaged(format!("a stored dispatch id does not read: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_record_says_of_bodies_stays_below_what_is_reckoned_for_it() {
        let body = |n: u8| Body { sha256: Digest::of(&[n]), bytes: vec![n] };
        for bodies in [1, 2, 100] {
            let of: Vec<_> = (0..50).map(|seq| (seq, Some(seq), (0..bodies).map(body).collect())).collect();
            let reckoned = 50 * NAMED_BYTES * (usize::from(bodies) + 1);
            let length = Prepared::bodies(of).unwrap().meta.len();
            assert!(length <= reckoned && reckoned < 2 * length, "{length} bytes; reckoned were {reckoned}");
        }
    }

    #[test]
    fn a_record_is_told_by_its_first_bytes() {
        for (record, tag) in [
            (RecordV1::Notices(vec![]), NOTICES_TAG),
            (RecordV1::Bodies(vec![]), BODIES_TAG),
            (RecordV1::Settled(7), SETTLED_TAG),
        ] {
            assert_eq!(tag_of(&Prepared::new(record, vec![]).unwrap().meta), tag);
        }
    }
}
