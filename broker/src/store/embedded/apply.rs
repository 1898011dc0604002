//! What a record changes in the index. The same function serves a new record, the journal's tail after a restart and
//! a rebuild, and depends on nothing but the rows and the record: so a rebuilt index is the index that was lost.

use docaxis_protocol::limits::DEDUP_AFTER_EXPIRY;
use docaxis_protocol::{AgencyCode, Digest, Event, Timestamp};

use super::keys::{
    self, Area, BodyPlace, BodyRow, DedupRow, DeliveryRow, HeadRow, LeafRow, Location, NoticeRow, Totals, read_row, row,
};
use super::layout::FRAME_HEADER_BYTES;
use super::record::{AcceptedV1, BodyV1, Entry, EventV1, Prepared, PrunedV1, RecordV1};
use super::view::{Lookup, Staged};
use crate::store::{Delivery, DeliveryState, StoreError};

/// Knows whether a body that no journal segment holds is in the blob store.
pub type HasBlob<'a> = &'a dyn Fn(&[u8; 32], u64) -> bool;

/// A record's place and what its application may need to know besides the rows.
pub struct Placed<'a> {
    pub prepared: &'a Prepared,
    /// Index of its first entry in the log.
    pub leaf: u64,
    pub at: Location,
    pub has_blob: HasBlob<'a>,
}

fn lost(what: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged(format!("the index lacks {what}; restart to rebuild it"))
}

/// Stages what the record changes.
pub fn apply(placed: &Placed<'_>, rows: &mut Staged<'_>, totals: &mut Totals) -> Result<(), StoreError> {
    let prepared = placed.prepared;
    match &prepared.record {
        RecordV1::Accepted(accepted) => apply_accepted(placed, accepted, rows, totals)?,
        RecordV1::Rejected(rejected) => {
            put_leaf(rows, placed, 0, placed.leaf, Event::SubmissionRejection, None)?;
            rows.put(keys::of_sender(&rejected.sender, placed.leaf), vec![]);
            rows.put(keys::rejection(&rejected.id, placed.leaf), vec![]);
        }
        RecordV1::Event(event) => apply_event(placed, event, rows, totals)?,
        RecordV1::Notices(notices) => {
            for (item, notice) in (0u32..).zip(notices) {
                rows.put(keys::notice(&notice.name), row(&NoticeRow { at: placed.at, item })?);
            }
        }
        RecordV1::Bodies(bodies) => keep_bodies(bodies, prepared.meta.len(), placed.at, rows)?,
        RecordV1::Pruned(pruned) => {
            for dispatch in pruned {
                apply_pruned(dispatch, rows)?;
            }
        }
        RecordV1::Settled(_) => {}
        RecordV1::Supplied(parts) => {
            for part in parts {
                keep_blob(placed, &part.sha256, part.size, rows)?;
            }
        }
        RecordV1::Lost(entries) => {
            for item in 0..entries.len() as u64 {
                // The row is there for its entry alone: no dispatch, sender or recipient leads to it.
                put_leaf(rows, placed, item, placed.leaf + item, Event::SubmissionRejection, None)?;
            }
        }
    }
    totals.leaves = totals.leaves.max(placed.leaf.saturating_add(prepared.entries.len() as u64));
    Ok(())
}

fn put_leaf(
    rows: &mut Staged<'_>,
    placed: &Placed<'_>,
    item: u64,
    seq: u64,
    event: Event,
    head: Option<HeadRow>,
) -> Result<(), StoreError> {
    let entry = usize::try_from(item).ok().and_then(|item| placed.prepared.entries.get(item));
    let entry = entry.ok_or_else(|| lost(format_args!("entry {item} of a record")))?.log;
    rows.put(keys::leaf(placed.leaf + item), row(&LeafRow { entry, seq, event, at: placed.at, head })?);
    Ok(())
}

fn apply_accepted(
    placed: &Placed<'_>,
    accepted: &AcceptedV1,
    rows: &mut Staged<'_>,
    totals: &mut Totals,
) -> Result<(), StoreError> {
    let seq = placed.leaf;
    let first = placed.prepared.entries.first().ok_or_else(|| lost("the acceptance's evidence"))?;
    let mut refused = placed.prepared.entries[1..].iter();
    let mut item = 0;
    let mut waiting = 0u32;
    rows.put(keys::of_sender(&accepted.sender, seq), vec![]);
    for (recipient, failure) in &accepted.recipients {
        if failure.is_none() {
            waiting += 1;
            let key = keys::queue(recipient, accepted.priority, seq);
            rows.put(key, accepted.expires_ms.to_be_bytes().to_vec());
            continue;
        }
        item += 1;
        let Entry { evidence: head, .. } = *refused.next().ok_or_else(|| lost("a refusal's evidence"))?;
        let delivery = DeliveryRow { state: DeliveryState::Failed, head, head_ms: accepted.accepted_ms };
        rows.put(keys::delivery(seq, recipient), row(&delivery)?);
        put_leaf(rows, placed, item, seq, Event::ContentHandoverFailure, None)?;
        rows.put(keys::event(seq, seq + item), vec![]);
        rows.put(keys::of_sender(&accepted.sender, seq + item), vec![]);
    }
    let head = HeadRow {
        sender: accepted.sender.clone(),
        priority: accepted.priority,
        accepted_ms: accepted.accepted_ms,
        expires_ms: accepted.expires_ms,
        evidence: first.evidence,
        waiting,
    };
    put_leaf(rows, placed, 0, seq, Event::SubmissionAcceptance, Some(head))?;
    let dedup = DedupRow { seq, expires_ms: accepted.expires_ms, envelope_sha256: accepted.envelope_sha256 };
    rows.put(keys::dedup(&accepted.id, &accepted.sender), row(&dedup)?);
    totals.dispatches += 1;
    totals.waiting += u64::from(waiting);
    totals.newest_ms = totals.newest_ms.max(accepted.accepted_ms);
    if waiting > 0 {
        rows.put(keys::expiry(accepted.expires_ms, seq), vec![]);
    } else {
        rows.put(keys::finished(totals.newest_ms, seq), vec![]);
    }
    for part in &accepted.parts {
        rows.put(keys::owner(&part.sha256, &accepted.sender, seq), vec![]);
        let inline = accepted.bodies.iter().any(|body| body.sha256 == part.sha256);
        if !inline && rows.get(&keys::body(&part.sha256))?.is_none() && (placed.has_blob)(&part.sha256, part.size) {
            let blob = BodyRow { size: part.size, place: BodyPlace::Blob };
            rows.put(keys::body(&part.sha256), row(&blob)?);
        }
    }
    // In evidence the record stands without its tail: its bodies have been copied forward, or pruned.
    if placed.at.area == Area::Journal {
        keep_bodies(&accepted.bodies, placed.prepared.meta.len(), placed.at, rows)?;
    }
    Ok(())
}

/// Points the bodies in a record's tail there, as far as a dispatch still names them.
pub fn keep_bodies(bodies: &[BodyV1], meta_len: usize, at: Location, rows: &mut Staged<'_>) -> Result<(), StoreError> {
    let mut offset = at.offset + (FRAME_HEADER_BYTES + meta_len) as u64;
    for body in bodies {
        if is_named(&body.sha256, rows)? {
            drop_body(&body.sha256, rows)?;
            add_live(at.segment, i64::from(body.size), rows)?;
            let place = BodyPlace::Journal { segment: at.segment, offset };
            rows.put(keys::body(&body.sha256), row(&BodyRow { size: u64::from(body.size), place })?);
        }
        offset += u64::from(body.size);
    }
    Ok(())
}

/// Points a body's row to the blob store, if a dispatch names the body and the blob is there.
fn keep_blob(placed: &Placed<'_>, sha256: &[u8; 32], size: u64, rows: &mut Staged<'_>) -> Result<(), StoreError> {
    if rows.get(&keys::body(sha256))?.is_none() && is_named(sha256, rows)? && (placed.has_blob)(sha256, size) {
        rows.put(keys::body(sha256), row(&BodyRow { size, place: BodyPlace::Blob })?);
    }
    Ok(())
}

/// Whether a dispatch names the body. A new dispatch's own row is staged, and spares the look into the index.
fn is_named(sha256: &[u8; 32], rows: &Staged<'_>) -> Result<bool, StoreError> {
    let owners = keys::owners(sha256);
    let end = keys::end_of(&owners);
    let staged = rows.changes.range(owners.clone()..end.clone()).any(|(_, value)| value.is_some());
    Ok(staged || !rows.scan(&owners, &end, 1)?.is_empty())
}

fn drop_body(sha256: &[u8; 32], rows: &mut Staged<'_>) -> Result<(), StoreError> {
    let key = keys::body(sha256);
    if let Some(bytes) = rows.get(&key)? {
        let body: BodyRow = read_row(&bytes)?;
        if let BodyPlace::Journal { segment, .. } = body.place {
            add_live(segment, -i64::try_from(body.size).unwrap_or(i64::MAX), rows)?;
        }
        rows.remove(key);
    }
    Ok(())
}

fn add_live(segment: u64, change: i64, rows: &mut Staged<'_>) -> Result<(), StoreError> {
    let now = live_bytes(segment, rows)?.saturating_add_signed(change);
    rows.put(keys::live(segment), row(&now)?);
    Ok(())
}

/// Bytes of bodies in the segment that something still names.
pub fn live_bytes(segment: u64, rows: &dyn Lookup) -> Result<u64, StoreError> {
    rows.get(&keys::live(segment))?.map_or(Ok(0), |bytes| read_row(&bytes))
}

pub fn leaf_row(leaf: u64, rows: &dyn Lookup) -> Result<Option<LeafRow>, StoreError> {
    rows.get(&keys::leaf(leaf))?.map(|bytes| read_row(&bytes)).transpose()
}

/// The acceptance's own row, if `seq` is one.
pub fn head_row(seq: u64, rows: &dyn Lookup) -> Result<Option<HeadRow>, StoreError> {
    Ok(leaf_row(seq, rows)?.and_then(|row| row.head))
}

fn apply_event(
    placed: &Placed<'_>,
    event: &EventV1,
    rows: &mut Staged<'_>,
    totals: &mut Totals,
) -> Result<(), StoreError> {
    let mut row_of_seq = leaf_row(event.seq, rows)?.ok_or_else(|| lost(format_args!("dispatch {}", event.seq)))?;
    let Some(head) = &mut row_of_seq.head else {
        return Err(lost(format_args!("the acceptance of dispatch {}", event.seq)));
    };
    let entry = placed.prepared.entries.first().ok_or_else(|| lost("the event's evidence"))?;
    totals.newest_ms = totals.newest_ms.max(event.time_ms);
    let delivery = DeliveryRow { state: event.state, head: entry.evidence, head_ms: event.time_ms };
    rows.put(keys::delivery(event.seq, &event.recipient), row(&delivery)?);
    rows.put(keys::event(event.seq, placed.leaf), vec![]);
    rows.put(keys::of_sender(&head.sender, placed.leaf), vec![]);
    let queued = keys::queue(&event.recipient, head.priority, event.seq);
    if !event.state.is_waiting() && rows.get(&queued)?.is_some() {
        rows.remove(queued);
        totals.waiting = totals.waiting.saturating_sub(1);
        head.waiting = head.waiting.saturating_sub(1);
        if head.waiting == 0 {
            rows.remove(keys::expiry(head.expires_ms, event.seq));
            rows.put(keys::finished(totals.newest_ms, event.seq), vec![]);
        }
        rows.put(keys::leaf(event.seq), row(&row_of_seq)?);
    }
    put_leaf(rows, placed, 0, event.seq, event.event, None)
}

fn apply_pruned(pruned: &PrunedV1, rows: &mut Staged<'_>) -> Result<(), StoreError> {
    rows.remove(keys::finished(pruned.finished_ms, pruned.seq));
    for sha256 in &pruned.parts {
        rows.remove(keys::owner(sha256, &pruned.sender, pruned.seq));
        if !is_named(sha256, rows)? {
            drop_body(sha256, rows)?;
        }
    }
    Ok(())
}

/// One delivery as the rows have it.
pub fn delivery(seq: u64, recipient: &AgencyCode, rows: &dyn Lookup) -> Result<Option<Delivery>, StoreError> {
    let found = |state, head, head_ms| {
        let (head, head_time) = (Digest(head), Timestamp::from_unix_ms(head_ms));
        Some(Delivery { recipient: recipient.clone(), state, head, head_time })
    };
    if let Some(bytes) = rows.get(&keys::delivery(seq, recipient))? {
        let row: DeliveryRow = read_row(&bytes)?;
        return Ok(found(row.state, row.head, row.head_ms));
    }
    let Some(head) = head_row(seq, rows)? else { return Ok(None) };
    Ok(match rows.get(&keys::queue(recipient, head.priority, seq))? {
        Some(_) => found(DeliveryState::Waiting, head.evidence, head.accepted_ms),
        None => None,
    })
}

/// What was accepted under this id from this sender, while it is to be remembered (protocol.md, section 2).
pub fn remembered(
    id: &[u8; 16],
    sender: &AgencyCode,
    newest_ms: i64,
    rows: &dyn Lookup,
) -> Result<Option<DedupRow>, StoreError> {
    let Some(bytes) = rows.get(&keys::dedup(id, sender))? else { return Ok(None) };
    let row: DedupRow = read_row(&bytes)?;
    let until = Timestamp::from_unix_ms(row.expires_ms).plus(DEDUP_AFTER_EXPIRY);
    Ok((Timestamp::from_unix_ms(newest_ms) <= until).then_some(row))
}

/// The evidence log's entry in a row.
pub fn log_entry(bytes: &[u8]) -> Result<Digest, StoreError> {
    Ok(Digest(read_row::<LeafRow>(bytes)?.entry))
}
