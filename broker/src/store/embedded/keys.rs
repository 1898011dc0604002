//! Keys and rows of the index. The first byte of a key names its table; numbers are big-endian, so that the order of
//! the keys is the order that is asked for; names end with a zero byte, which none of them contains.
//!
//! No row is over 4 KiB: large values break the index's engine, so lists are rows of their own.

use docaxis_protocol::{AgencyCode, Event, codec};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::store::{DeliveryState, StoreError};

/// The most that a row may take up.
pub const MAX_ROW_BYTES: usize = 4 << 10;

/// Where a record is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Location {
    pub area: Area,
    pub segment: u64,
    /// Of the record's frame, from the start of the file.
    pub offset: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Area {
    Journal,
    Evidence,
}

/// Up to where the journal has been applied: where its next group begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Position {
    pub segment: u64,
    pub offset: u64,
    pub sequence: u64,
}

/// The one row of table `m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Totals {
    pub applied: Position,
    pub leaves: u64,
    pub dispatches: u64,
    pub waiting: u64,
    /// The newest time in any record: the store's own notion of now, the same after a rebuild.
    pub newest_ms: i64,
    /// No remembered id expires before this: spares the look for ids to forget.
    pub forget_ms: i64,
}

/// `l` leaf: one entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafRow {
    pub entry: [u8; 32],
    pub seq: u64,
    pub event: Event,
    pub at: Location,
    /// On the acceptance's own leaf.
    pub head: Option<HeadRow>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadRow {
    pub sender: AgencyCode,
    pub priority: u8,
    pub accepted_ms: i64,
    pub expires_ms: i64,
    /// SHA-256 of the SubmissionAcceptance: where every recipient's chain begins.
    pub evidence: [u8; 32],
    /// Deliveries that wait.
    pub waiting: u32,
}

/// `i` id, 0, sender: what a retry is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedupRow {
    pub seq: u64,
    pub expires_ms: i64,
    pub envelope_sha256: [u8; 32],
}

/// `r` seq, recipient: a delivery whose chain has moved on from the acceptance. One that waits untouched has only its
/// row in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryRow {
    pub state: DeliveryState,
    pub head: [u8; 32],
    pub head_ms: i64,
}

/// `b` sha256: where a body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BodyRow {
    pub size: u64,
    pub place: BodyPlace,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum BodyPlace {
    /// The body's own bytes in a journal segment.
    Journal {
        segment: u64,
        offset: u64,
    },
    Blob,
}

/// `n` name: the notice's record and its place among the record's notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticeRow {
    pub at: Location,
    pub item: u32,
}

pub fn row<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    codec::encode(value, MAX_ROW_BYTES)
        .map_err(|e| StoreError::Io { operation: "encoding an index row", found: e.to_string() })
}

pub fn read_row<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StoreError> {
    codec::decode(bytes, MAX_ROW_BYTES)
        .map_err(|e| StoreError::Damaged(format!("a row of the index does not read ({e}); restart to rebuild it")))
}

fn key(table: u8, pieces: &[&[u8]]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + pieces.iter().map(|piece| piece.len()).sum::<usize>());
    key.push(table);
    for piece in pieces {
        key.extend_from_slice(piece);
    }
    key
}

/// So that times before 1970 sort first.
fn time_bytes(ms: i64) -> [u8; 8] {
    (ms ^ i64::MIN).to_be_bytes()
}

pub fn time_at(key: &[u8], at: usize) -> Option<i64> {
    let bytes: [u8; 8] = key.get(at..at + 8)?.try_into().ok()?;
    Some(i64::from_be_bytes(bytes) ^ i64::MIN)
}

pub fn number_at(key: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?))
}

/// The number in a key's last eight bytes.
pub fn last_number(key: &[u8]) -> Option<u64> {
    number_at(key, key.len().checked_sub(8)?)
}

pub fn totals() -> Vec<u8> {
    vec![b'm']
}

pub fn leaf(leaf: u64) -> Vec<u8> {
    key(b'l', &[&leaf.to_be_bytes()])
}

pub fn dedup(id: &[u8; 16], sender: &AgencyCode) -> Vec<u8> {
    key(b'i', &[id, &[0], sender.as_str().as_bytes(), &[0]])
}

/// A dispatch under its id alone: rejected, or accepted so long ago that its id is no longer kept from being used anew.
pub fn found_by_id(id: &[u8], seq: u64) -> Vec<u8> {
    key(b'i', &[id, &[1], &seq.to_be_bytes()])
}

/// When an id may be forgotten; the row's value is its key with the sender.
pub fn forget(expires_ms: i64, seq: u64) -> Vec<u8> {
    key(b'd', &[&time_bytes(expires_ms), &seq.to_be_bytes()])
}

/// The id in a `dedup` key.
pub fn id_in(dedup: &[u8]) -> Option<&[u8]> {
    dedup.get(1..17)
}

/// Everything under one id: acceptances, then rejections.
pub fn of_id(id: &[u8; 16]) -> Vec<u8> {
    key(b'i', &[id])
}

pub fn delivery(seq: u64, recipient: &AgencyCode) -> Vec<u8> {
    key(b'r', &[&seq.to_be_bytes(), recipient.as_str().as_bytes()])
}

pub fn queue(recipient: &AgencyCode, priority: u8, seq: u64) -> Vec<u8> {
    key(b'q', &[recipient.as_str().as_bytes(), &[0, u8::MAX - priority], &seq.to_be_bytes()])
}

pub fn queue_of(recipient: &AgencyCode) -> Vec<u8> {
    key(b'q', &[recipient.as_str().as_bytes(), &[0]])
}

pub fn expiry(expires_ms: i64, seq: u64) -> Vec<u8> {
    key(b'x', &[&time_bytes(expires_ms), &seq.to_be_bytes()])
}

/// Before everything that expires after `ms`.
pub fn expiry_after(ms: i64) -> Vec<u8> {
    key(b'x', &[&time_bytes(ms.saturating_add(1))])
}

pub fn event(seq: u64, leaf: u64) -> Vec<u8> {
    key(b'e', &[&seq.to_be_bytes(), &leaf.to_be_bytes()])
}

pub fn events(seq: u64) -> Vec<u8> {
    key(b'e', &[&seq.to_be_bytes()])
}

pub fn of_sender(sender: &AgencyCode, leaf: u64) -> Vec<u8> {
    key(b'a', &[sender.as_str().as_bytes(), &[0], &leaf.to_be_bytes()])
}

pub fn all_of_sender(sender: &AgencyCode) -> Vec<u8> {
    key(b'a', &[sender.as_str().as_bytes(), &[0]])
}

pub fn owner(sha256: &[u8; 32], agency: &AgencyCode, seq: u64) -> Vec<u8> {
    key(b'o', &[sha256, agency.as_str().as_bytes(), &[0], &seq.to_be_bytes()])
}

pub fn owned_by(sha256: &[u8; 32], agency: &AgencyCode) -> Vec<u8> {
    key(b'o', &[sha256, agency.as_str().as_bytes(), &[0]])
}

pub fn owners(sha256: &[u8; 32]) -> Vec<u8> {
    key(b'o', &[sha256])
}

pub fn body(sha256: &[u8; 32]) -> Vec<u8> {
    key(b'b', &[sha256])
}

pub fn finished(finished_ms: i64, seq: u64) -> Vec<u8> {
    key(b'p', &[&time_bytes(finished_ms), &seq.to_be_bytes()])
}

/// Before everything that finished after `ms`.
pub fn finished_after(ms: i64) -> Vec<u8> {
    key(b'p', &[&time_bytes(ms.saturating_add(1))])
}

/// Bytes of bodies in a journal segment that something still names.
pub fn live(segment: u64) -> Vec<u8> {
    key(b'g', &[&segment.to_be_bytes()])
}

/// Present when no row points to this journal segment's records any more.
pub fn moved(segment: u64) -> Vec<u8> {
    key(b'v', &[&segment.to_be_bytes()])
}

pub fn notice(name: &str) -> Vec<u8> {
    key(b'n', &[name.as_bytes()])
}

/// The first key after every key that begins with `prefix`.
pub fn end_of(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            break;
        }
    }
    end
}
