//! Keys and rows of the index. The first byte of a key names its table; numbers are big-endian, so that the order of
//! the keys is the order that is asked for; names end with a zero byte, which none of them contains.
//!
//! No row is over 4 KiB: large values break the index's engine, so lists are rows of their own.

use docaxis_protocol::codec::{self, words};
use docaxis_protocol::{AgencyCode, Digest, Event};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::store::{DeliveryState, Lane, StoreError};

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
}

/// `l` leaf: one entry of the log. These rows lie in a file of their own, of which a crash may leave a newer state than
/// of the other tables: nothing here is counted up or down, and every field is made anew when records are applied again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeafRow {
    #[serde(with = "words")]
    pub entry: [u8; 32],
    pub seq: u64,
    pub event: Event,
    pub at: Location,
    /// The next evidence about what the same sender sent; 0 while there is none.
    pub next_of_sender: u64,
    /// The evidence before this one, of the same dispatch and of the same delivery; the acceptance is before the first.
    pub before: u64,
    pub before_of_delivery: u64,
    /// On the acceptance's own leaf.
    pub head: Option<HeadRow>,
    /// On an acceptance: the one before it under the same id; on a rejection, the rejection.
    pub before_with_id: Option<u64>,
    /// On a rejection's leaf: the id that was rejected.
    pub rejected: Option<[u8; 16]>,
    /// On an acceptance's or rejection's leaf, [`envelope_mark`].
    pub envelope: u64,
}

/// The beginning of an envelope's SHA-256: tells without reading records which of many answers under one id may be that to a
/// certain envelope.
pub fn envelope_mark(envelope_sha256: &Digest) -> u64 {
    envelope_sha256.0.iter().take(8).fold(0, |mark, byte| mark << 8 | u64::from(*byte))
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeadRow {
    #[serde(with = "words")]
    pub id: [u8; 16],
    pub sender: AgencyCode,
    pub priority: u8,
    pub accepted_ms: i64,
    pub expires_ms: i64,
    /// SHA-256 of the SubmissionAcceptance: where every recipient's chain begins.
    #[serde(with = "words")]
    pub evidence: [u8; 32],
    /// The dispatch's newest evidence.
    pub newest: u64,
    pub stage: Stage,
    /// Of all its bodies.
    pub bytes: u64,
    /// Where the small bodies that came with it lie, one behind the other as the acceptance lists them.
    pub bodies: Option<BodyPlace>,
}

impl HeadRow {
    /// In its recipients' queues.
    pub fn lane(&self) -> Lane {
        Lane::of(&self.sender, self.priority)
    }
}

/// Where a dispatch as a whole stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// At least one delivery waits.
    Waiting,
    /// When the last delivery ended.
    Finished(i64),
    /// It names its bodies no longer.
    Pruned,
}

/// `s` sender: the chain of the evidence about what it sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SenderRow {
    pub newest: u64,
    pub count: u64,
}

/// `r` seq, recipient: a delivery whose chain has moved on from the acceptance. One that waits untouched has only its
/// row in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeliveryRow {
    pub state: DeliveryState,
    #[serde(with = "words")]
    pub head: [u8; 32],
    pub head_ms: i64,
    /// The newest evidence in its chain.
    pub leaf: u64,
}

/// A place in a journal segment where bodies begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BodyPlace {
    pub segment: u64,
    pub offset: u64,
}

/// `u` seq, sha256: a small body that does not lie with the others of its dispatch, as it was brought once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApartRow {
    pub size: u32,
    pub place: BodyPlace,
}

/// `b` sha256: a large body's size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct BodyRow {
    pub size: u64,
}

/// `n` name: the notice's record and its place among the record's notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoticeRow {
    pub at: Location,
    pub item: u32,
}

/// The row's bytes. They are made in a place that is large enough, so that they are not moved while they become more.
pub fn row<T: Serialize>(value: &T) -> Result<Vec<u8>, StoreError> {
    let mut place = [0; MAX_ROW_BYTES];
    let length = codec::encode_into(value, &mut place)
        .map_err(|e| StoreError::Io { operation: "encoding an index row", found: e.to_string() })?;
    Ok(place[..length].to_vec())
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

/// `i` 0 id, `i` 1 id: the newest acceptance under this id, the newest rejection. The table lies in a file of its own, which
/// seldom gives the leaf of another id.
pub fn with_id(id: &[u8; 16], kind: Intake) -> Vec<u8> {
    key(b'i', &[&[kind as u8], id])
}

/// What is found by an id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Intake {
    Accepted = 0,
    Rejected = 1,
}

pub fn delivery(seq: u64, recipient: &AgencyCode) -> Vec<u8> {
    key(b'r', &[&seq.to_be_bytes(), recipient.as_str().as_bytes()])
}

/// `q` recipient, 0, 255 - priority, senders of the lane, block: the waiting deliveries among a block of leaves, as [`Queued`] has
/// them.
pub fn queue(recipient: &AgencyCode, lane: Lane, seq: u64) -> Vec<u8> {
    let mut key = lane_of(recipient, lane);
    key.extend_from_slice(&(seq / BLOCK_LEAVES).to_be_bytes());
    key
}

pub fn lane_of(recipient: &AgencyCode, lane: Lane) -> Vec<u8> {
    key(b'q', &[recipient.as_str().as_bytes(), &[0, u8::MAX - lane.priority, lane.senders]])
}

pub fn queue_of(recipient: &AgencyCode) -> Vec<u8> {
    key(b'q', &[recipient.as_str().as_bytes(), &[0]])
}

/// A row of table `q`: each dispatch's place in its block, two bytes each, ascending.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Queued(Vec<u8>);

impl Queued {
    pub const fn read(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    fn place(seq: u64) -> [u8; 2] {
        // Below BLOCK_LEAVES.
        ((seq % BLOCK_LEAVES) as u16).to_be_bytes()
    }

    fn find(&self, seq: u64) -> Result<usize, usize> {
        self.0.as_chunks().0.binary_search(&Self::place(seq))
    }

    pub fn has(&self, seq: u64) -> bool {
        self.find(seq).is_ok()
    }

    pub fn put(&mut self, seq: u64) {
        if let Err(at) = self.find(seq) {
            self.0.splice(2 * at..2 * at, Self::place(seq));
        }
    }

    /// Whether it was there.
    pub fn take(&mut self, seq: u64) -> bool {
        let found = self.find(seq);
        if let Ok(at) = found {
            self.0.drain(2 * at..2 * at + 2);
        }
        found.is_ok()
    }

    /// The row; none if nothing waits.
    pub fn row(self) -> Option<Vec<u8>> {
        (!self.0.is_empty()).then_some(self.0)
    }

    /// The dispatches of the block that begins with leaf `first`.
    pub fn seqs(&self, first: u64) -> impl Iterator<Item = u64> {
        self.0.as_chunks().0.iter().map(move |place| first.saturating_add(u16::from_be_bytes(*place).into()))
    }
}

/// Leaves that share a row of the tables `x`, `p` and `q`.
pub const BLOCK_LEAVES: u64 = 1024;

const MINUTE_MS: i64 = 60_000;

fn minute_of(ms: i64) -> [u8; 8] {
    time_bytes(ms.div_euclid(MINUTE_MS))
}

/// A table's row for the dispatches of one block and one minute.
fn block(table: u8, ms: i64, seq: u64) -> Vec<u8> {
    key(table, &[&minute_of(ms), &(seq / BLOCK_LEAVES).to_be_bytes()])
}

/// The minute and the first leaf of a block's row.
pub fn block_at(key: &[u8]) -> Option<(i64, u64)> {
    let (minute, block) = (number_at(key, 1)?, number_at(key, 9)?);
    Some(((minute ^ i64::MIN.cast_unsigned()).cast_signed(), block.checked_mul(BLOCK_LEAVES)?))
}

/// Whether a time is in the minute of a block's row.
pub const fn in_minute(ms: i64, minute: i64) -> bool {
    ms.div_euclid(MINUTE_MS) == minute
}

/// `x`: how many dispatches that wait expire in this minute, by blocks of their leaves.
pub fn expiry(expires_ms: i64, seq: u64) -> Vec<u8> {
    block(b'x', expires_ms, seq)
}

/// Behind the rows of every minute up to that of `ms`.
pub fn expiry_after(ms: i64) -> Vec<u8> {
    key(b'x', &[&time_bytes(ms.div_euclid(MINUTE_MS).saturating_add(1))])
}

/// `w` seq: how many deliveries wait, if it is more than one.
pub fn waiting(seq: u64) -> Vec<u8> {
    key(b'w', &[&seq.to_be_bytes()])
}

/// `y` sender: bytes of the bodies of what it sent and what waits for at least one recipient.
pub fn unfinished(sender: &AgencyCode) -> Vec<u8> {
    key(b'y', &[sender.as_str().as_bytes()])
}

pub fn sender(sender: &AgencyCode) -> Vec<u8> {
    key(b's', &[sender.as_str().as_bytes()])
}

/// Of a sender's evidence so many pieces share one row of the table `a`.
pub const SENDER_STRIDE: u64 = 64;

/// `a` sender, 0, leaf: every [`SENDER_STRIDE`]th piece of evidence about what it sent, as a place to begin.
pub fn of_sender(sender: &AgencyCode, leaf: u64) -> Vec<u8> {
    key(b'a', &[sender.as_str().as_bytes(), &[0], &leaf.to_be_bytes()])
}

pub fn apart(seq: u64, sha256: &[u8; 32]) -> Vec<u8> {
    key(b'u', &[&seq.to_be_bytes(), sha256])
}

pub fn apart_of(seq: u64) -> Vec<u8> {
    key(b'u', &[&seq.to_be_bytes()])
}

/// `o`: this agency's dispatch `seq` names this large body.
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

/// `p`: how many dispatches finished in this minute and still name their bodies, by blocks of their leaves.
pub fn finished(finished_ms: i64, seq: u64) -> Vec<u8> {
    block(b'p', finished_ms, seq)
}

/// Behind the rows of every minute up to that of `ms`.
pub fn finished_after(ms: i64) -> Vec<u8> {
    key(b'p', &[&time_bytes(ms.div_euclid(MINUTE_MS).saturating_add(1))])
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
