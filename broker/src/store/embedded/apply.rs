//! What a record changes in the index. The same function serves a new record, the journal's tail after a restart and
//! a rebuild, and depends on nothing but the rows and the record: so a rebuilt index is the index that was lost.

use docaxis_protocol::limits::{DEDUP_AFTER_EXPIRY, MAX_INLINE_BODY_BYTES, MAX_PARTS};
use docaxis_protocol::{AgencyCode, Digest, Event, Timestamp};

use super::chains::{self, NewLeaf};
use super::keys::{
    self, ApartRow, Area, BodyPlace, BodyRow, DeliveryRow, HeadRow, Intake, LeafRow, Location, NoticeRow, Queued,
    Stage, Totals, envelope_mark, read_row, row,
};
use super::layout::FRAME_HEADER_BYTES;
use super::outline::{AcceptedOutline, EventOutline, Outline, Subject};
use super::record::{BodiesV1, Entry, PrunedV1, bytes_of};
use super::rows::Rows;
use super::view::Lookup;
use crate::store::{Delivery, DeliveryState, Lane, StoreError};

/// Whether a body of this many bytes is a file of its own. Smaller ones are in the journal.
pub const fn is_large(size: u64) -> bool {
    size > MAX_INLINE_BODY_BYTES as u64
}

/// A record and its place.
pub struct Placed<'a> {
    pub outline: &'a Outline,
    /// Index of its first entry in the log.
    pub leaf: u64,
    pub at: Location,
    /// Whether rows of leaves may be of a later state than the others: when the journal's tail is applied after a crash.
    pub again: bool,
}

impl Placed<'_> {
    /// Where the record's tail begins.
    pub fn tail(&self) -> BodyPlace {
        let offset = self.at.offset + (FRAME_HEADER_BYTES + self.outline.meta_bytes) as u64;
        BodyPlace { segment: self.at.segment, offset }
    }
}

pub fn lost(what: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged(format!("the index lacks {what}; restart to rebuild it"))
}

/// Stages what the record changes.
pub fn apply(placed: &Placed<'_>, rows: &mut impl Rows, totals: &mut Totals) -> Result<(), StoreError> {
    match &placed.outline.subject {
        Subject::Accepted(accepted) => apply_accepted(placed, accepted, rows, totals)?,
        Subject::Rejected { sender, id, envelope_sha256 } => {
            let new = new_leaf(placed, 0, placed.leaf, Event::SubmissionRejection, sender)?;
            let before_with_id = rows.put_id(id, Intake::Rejected, placed.leaf)?;
            let envelope = envelope_mark(envelope_sha256);
            let made = LeafRow { before_with_id, rejected: Some(*id), envelope, ..chains::begin(&new, rows)? };
            rows.put_leaf(placed.leaf, made)?;
        }
        Subject::Event(event) => apply_event(placed, event, rows, totals)?,
        Subject::Notices(names) => {
            for (item, name) in (0u32..).zip(names) {
                rows.put(keys::notice(name), row(&NoticeRow { at: placed.at, item })?);
            }
        }
        Subject::Bodies(list) => apply_bodies(list, placed, rows)?,
        Subject::Pruned(pruned) => {
            for dispatch in pruned {
                apply_pruned(dispatch, placed, rows)?;
            }
        }
        Subject::Settled => {}
        Subject::Lost(entries) => {
            for (leaf, entry) in (placed.leaf..).zip(entries) {
                rows.put_leaf(leaf, chains::alone(*entry, leaf, placed.at))?;
            }
        }
    }
    totals.leaves = totals.leaves.max(placed.leaf.saturating_add(placed.outline.entries.len() as u64));
    Ok(())
}

fn new_leaf<'a>(
    placed: &Placed<'_>,
    item: u64,
    seq: u64,
    event: Event,
    sender: &'a AgencyCode,
) -> Result<NewLeaf<'a>, StoreError> {
    let entry = usize::try_from(item).ok().and_then(|item| placed.outline.entries.get(item));
    let entry = entry.ok_or_else(|| lost(format_args!("entry {item} of a record")))?.log;
    Ok(NewLeaf { leaf: placed.leaf + item, entry, seq, event, at: placed.at, sender })
}

fn apply_accepted(
    placed: &Placed<'_>,
    accepted: &AcceptedOutline,
    rows: &mut impl Rows,
    totals: &mut Totals,
) -> Result<(), StoreError> {
    let seq = placed.leaf;
    let first = placed.outline.entries.first().ok_or_else(|| lost("the acceptance's evidence"))?;
    totals.newest_ms = totals.newest_ms.max(accepted.accepted_ms);
    let waiting = accepted.recipients.iter().filter(|(_, failed)| !failed).count() as u64;
    // In evidence the record stands without its tail.
    let bodies = accepted.tail.filter(|_| placed.at.area == Area::Journal).map(|bytes| (bytes, placed.tail()));
    if let Some((bytes, place)) = bodies {
        add_live(place.segment, bytes.cast_signed(), rows)?;
    }
    let mut head = HeadRow {
        id: accepted.id,
        sender: accepted.sender.clone(),
        priority: accepted.priority,
        accepted_ms: accepted.accepted_ms,
        expires_ms: accepted.expires_ms,
        evidence: first.evidence,
        newest: seq,
        stage: if waiting > 0 { Stage::Waiting } else { Stage::Finished(totals.newest_ms) },
        bytes: accepted.bytes(),
        bodies: bodies.map(|(_, place)| place),
    };
    let acceptance = new_leaf(placed, 0, seq, Event::SubmissionAcceptance, &accepted.sender)?;
    let before_with_id = rows.put_id(&accepted.id, Intake::Accepted, seq)?;
    let envelope = envelope_mark(&accepted.envelope_sha256);
    let made = LeafRow { head: Some(head.clone()), before_with_id, envelope, ..chains::begin(&acceptance, rows)? };
    rows.put_leaf(seq, made)?;
    let lane = head.lane();
    let mut refused = placed.outline.entries[1..].iter();
    let mut item = 0;
    for (recipient, failed) in &accepted.recipients {
        if !failed {
            rows.change(keys::queue(recipient, lane, seq), |queued| {
                let mut queued = queued.map(Queued::read).unwrap_or_default();
                queued.put(seq);
                Ok(queued.row())
            })?;
            continue;
        }
        item += 1;
        let Entry { evidence, .. } = *refused.next().ok_or_else(|| lost("a refusal's evidence"))?;
        let new = new_leaf(placed, item, seq, Event::ContentHandoverFailure, &accepted.sender)?;
        chains::follow(&new, &mut head, None, rows)?;
        let (state, head_ms) = (DeliveryState::Failed, accepted.accepted_ms);
        let delivery = DeliveryRow { state, head: evidence, head_ms, leaf: new.leaf };
        rows.put(keys::delivery(seq, recipient), row(&delivery)?);
    }
    if waiting > 0 {
        count(keys::expiry(accepted.expires_ms, seq), 1, rows)?;
        count_unfinished(&accepted.sender, accepted.bytes().cast_signed(), rows)?;
    } else {
        count(keys::finished(totals.newest_ms, seq), 1, rows)?;
    }
    if waiting > 1 {
        rows.put(keys::waiting(seq), row(&waiting)?);
    }
    if head.newest > seq {
        put_head(seq, head, rows)?;
    }
    totals.dispatches += 1;
    totals.waiting += waiting;
    for part in &accepted.large {
        rows.put(keys::owner(&part.sha256, &accepted.sender, seq), vec![]);
        // Whether the file is there now is no matter of the index: a lost body is still a body of this dispatch.
        rows.put(keys::body(&part.sha256), row(&BodyRow { size: part.size })?);
    }
    Ok(())
}

fn put_head(seq: u64, head: HeadRow, rows: &mut impl Rows) -> Result<(), StoreError> {
    rows.change_leaf(seq, |row| row.head = Some(head))
}

fn head_of(seq: u64, rows: &mut impl Rows) -> Result<Option<HeadRow>, StoreError> {
    Ok(rows.leaf(seq)?.and_then(|row| row.head))
}

/// Changes the number in a row; a row that comes to nothing goes.
fn count(key: Vec<u8>, change: i64, rows: &mut impl Rows) -> Result<(), StoreError> {
    rows.change(key, |bytes| {
        let now: u64 = bytes.map_or(Ok(0), |bytes| read_row(&bytes))?;
        match now.saturating_add_signed(change) {
            0 => Ok(None),
            changed => Ok(Some(row(&changed)?)),
        }
    })
}

/// A recall, or a letter without files, has none.
fn count_unfinished(sender: &AgencyCode, change: i64, rows: &mut impl Rows) -> Result<(), StoreError> {
    if change == 0 { Ok(()) } else { count(keys::unfinished(sender), change, rows) }
}

/// Bytes of the bodies of what this agency sent and what waits for at least one recipient.
pub fn unfinished_bytes(sender: &AgencyCode, rows: &dyn Lookup) -> Result<u64, StoreError> {
    rows.get(&keys::unfinished(sender))?.map_or(Ok(0), |bytes| read_row(&bytes))
}

/// One delivery of the dispatch waits no longer. Whether it was the last.
fn one_less(seq: u64, rows: &mut impl Rows) -> Result<bool, StoreError> {
    let key = keys::waiting(seq);
    let Some(bytes) = rows.get(&key)? else { return Ok(true) };
    match read_row::<u64>(&bytes)?.saturating_sub(1) {
        0 | 1 => rows.remove(key),
        left => rows.put(key, row(&left)?),
    }
    Ok(false)
}

/// Bodies that lie in another place from now on.
fn apply_bodies(list: &[BodiesV1], placed: &Placed<'_>, rows: &mut impl Rows) -> Result<(), StoreError> {
    let mut place = placed.tail();
    for one in list {
        let bytes = bytes_of(&one.bodies);
        match one.from {
            Some(from) => {
                let mut head = head_of(one.seq, rows)?.ok_or_else(|| lost(format_args!("dispatch {}", one.seq)))?;
                take_live(head.bodies.replace(place), Some(from), bytes, placed.again, rows)?;
                add_live(place.segment, bytes.cast_signed(), rows)?;
                put_head(one.seq, head, rows)?;
            }
            None => put_apart(one, place, rows)?,
        }
        place.offset += bytes;
    }
    Ok(())
}

/// Bodies that lay together are counted no longer where they lay. The leaf's row says where, unless it may be of a later
/// state; then the record does. An index that was built anew may know an older copy than the one that the record was made
/// from, as that one's segment may be gone.
fn take_live(
    row: Option<BodyPlace>,
    record: Option<u64>,
    bytes: u64,
    again: bool,
    rows: &mut impl Rows,
) -> Result<(), StoreError> {
    let segment = if again { record } else { row.map(|place| place.segment) };
    segment.map_or(Ok(()), |segment| add_live(segment, -bytes.cast_signed(), rows))
}

fn put_apart(one: &BodiesV1, mut place: BodyPlace, rows: &mut impl Rows) -> Result<(), StoreError> {
    for body in &one.bodies {
        let key = keys::apart(one.seq, &body.sha256);
        drop_apart(key.clone(), rows)?;
        rows.put(key, row(&ApartRow { size: body.size, place })?);
        add_live(place.segment, i64::from(body.size), rows)?;
        place.offset += u64::from(body.size);
    }
    Ok(())
}

fn drop_apart(key: Vec<u8>, rows: &mut impl Rows) -> Result<(), StoreError> {
    if let Some(bytes) = rows.get(&key)? {
        let ApartRow { size, place } = read_row(&bytes)?;
        add_live(place.segment, -i64::from(size), rows)?;
        rows.remove(key);
    }
    Ok(())
}

/// While an index is built anew: a record of bodies in a segment whose records stand in evidence and have been applied, so
/// that it is known which dispatches still name theirs.
pub fn find_bodies(placed: &Placed<'_>, rows: &mut impl Rows) -> Result<(), StoreError> {
    let mut place = placed.tail();
    let Subject::Bodies(list) = &placed.outline.subject else { return Ok(()) };
    for one in list {
        let bytes = bytes_of(&one.bodies);
        if one.from.is_some() {
            find_together(one.seq, bytes, place, rows)?;
        } else if head_of(one.seq, rows)?.is_some_and(|head| head.stage != Stage::Pruned) {
            put_apart(one, place, rows)?;
        }
        place.offset += bytes;
    }
    Ok(())
}

/// The same of the bodies that came with an acceptance.
pub fn find_together(seq: u64, bytes: u64, place: BodyPlace, rows: &mut impl Rows) -> Result<(), StoreError> {
    let found = rows.change_leaf(seq, |row| {
        let head = row.head.as_mut()?;
        let named = head.stage != Stage::Pruned;
        Some(named.then(|| head.bodies.replace(place)))
    })?;
    let Some(earlier) = found.ok_or_else(|| lost(format_args!("dispatch {seq}")))? else { return Ok(()) };
    if let Some(earlier) = earlier {
        add_live(earlier.segment, -bytes.cast_signed(), rows)?;
    }
    add_live(place.segment, bytes.cast_signed(), rows)
}

/// Whether a dispatch names the large body.
fn is_named(sha256: &[u8; 32], rows: &mut impl Rows) -> Result<bool, StoreError> {
    let owners = keys::owners(sha256);
    Ok(!rows.scan(&owners, &keys::end_of(&owners), 1)?.is_empty())
}

fn add_live(segment: u64, change: i64, rows: &mut impl Rows) -> Result<(), StoreError> {
    count(keys::live(segment), change, rows)
}

/// Bytes of bodies in the segment that something still names.
pub fn live_bytes(segment: u64, rows: &dyn Lookup) -> Result<u64, StoreError> {
    rows.get(&keys::live(segment))?.map_or(Ok(0), |bytes| read_row(&bytes))
}

/// Where a small body lies that does not lie with the others of its dispatch.
pub fn apart_at(seq: u64, sha256: &[u8; 32], rows: &dyn Lookup) -> Result<Option<BodyPlace>, StoreError> {
    let row = rows.get(&keys::apart(seq, sha256))?.map(|bytes| read_row::<ApartRow>(&bytes)).transpose()?;
    Ok(row.map(|row| row.place))
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
    event: &EventOutline,
    rows: &mut impl Rows,
    totals: &mut Totals,
) -> Result<(), StoreError> {
    let seq = event.seq;
    let mut head = head_of(seq, rows)?.ok_or_else(|| lost(format_args!("the acceptance of dispatch {seq}")))?;
    let entry = placed.outline.entries.first().ok_or_else(|| lost("the event's evidence"))?;
    totals.newest_ms = totals.newest_ms.max(event.time_ms);
    let sender = head.sender.clone();
    let new = new_leaf(placed, 0, seq, event.event, &sender)?;
    let key = keys::delivery(seq, &event.recipient);
    let earlier: Option<DeliveryRow> = rows.get(&key)?.map(|bytes| read_row(&bytes)).transpose()?;
    chains::follow(&new, &mut head, earlier.map(|row| row.leaf), rows)?;
    let delivery = DeliveryRow { state: event.state, head: entry.evidence, head_ms: event.time_ms, leaf: placed.leaf };
    rows.put(key, row(&delivery)?);
    let key = keys::queue(&event.recipient, head.lane(), seq);
    let mut waited = false;
    if !event.state.is_waiting() {
        rows.change(key, |queued| {
            let mut queued = queued.map(Queued::read).unwrap_or_default();
            waited = queued.take(seq);
            Ok(queued.row())
        })?;
    }
    if waited {
        totals.waiting = totals.waiting.saturating_sub(1);
        if one_less(seq, rows)? {
            head.stage = Stage::Finished(totals.newest_ms);
            count(keys::expiry(head.expires_ms, seq), -1, rows)?;
            count_unfinished(&head.sender, -head.bytes.cast_signed(), rows)?;
            count(keys::finished(totals.newest_ms, seq), 1, rows)?;
        }
    }
    put_head(seq, head, rows)
}

fn apply_pruned(pruned: &PrunedV1, placed: &Placed<'_>, rows: &mut impl Rows) -> Result<(), StoreError> {
    count(keys::finished(pruned.finished_ms, pruned.seq), -1, rows)?;
    let mut lay = None;
    if let Some(mut head) = head_of(pruned.seq, rows)? {
        head.stage = Stage::Pruned;
        lay = head.bodies.take();
        put_head(pruned.seq, head, rows)?;
    }
    if let Some((segment, bytes)) = pruned.freed {
        take_live(lay, Some(segment), bytes, placed.again, rows)?;
    }
    let apart = keys::apart_of(pruned.seq);
    for (key, _) in rows.scan(&apart, &keys::end_of(&apart), MAX_PARTS)? {
        drop_apart(key, rows)?;
    }
    for sha256 in &pruned.parts {
        rows.remove(keys::owner(sha256, &pruned.sender, pruned.seq));
        if !is_named(sha256, rows)? {
            rows.remove(keys::body(sha256));
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
    if is_queued(recipient, head.lane(), seq, rows)? {
        return Ok(found(DeliveryState::Waiting, head.evidence, head.accepted_ms));
    }
    // Its first outcome may have become visible between the two looks.
    match rows.get(&keys::delivery(seq, recipient))? {
        Some(bytes) => {
            let row: DeliveryRow = read_row(&bytes)?;
            Ok(found(row.state, row.head, row.head_ms))
        }
        None => Ok(None),
    }
}

/// Whether a delivery waits.
pub fn is_queued(recipient: &AgencyCode, lane: Lane, seq: u64, rows: &dyn Lookup) -> Result<bool, StoreError> {
    Ok(rows.get(&keys::queue(recipient, lane, seq))?.is_some_and(|bytes| Queued::read(bytes).has(seq)))
}

/// The most answers under one id, of all senders, that are looked at for that to a certain envelope: one that somebody makes
/// longer must not hold up everybody.
const MAX_SAME_ID: usize = 10_000;

/// Answers under this id that may be to this envelope, the newest first: nearly always the one that is, or none.
pub fn answers(
    (id, envelope_sha256): (&[u8; 16], &Digest),
    kind: Intake,
    rows: &dyn Lookup,
) -> Result<Vec<u64>, StoreError> {
    let mark = envelope_mark(envelope_sha256);
    let mut found = with_id(id, kind, MAX_SAME_ID, rows)?;
    found.retain(|(_, row)| row.envelope == mark);
    Ok(found.into_iter().map(|(leaf, _)| leaf).collect())
}

/// Acceptances or rejections under this id, the newest first, up to `limit`.
pub fn with_id(
    id: &[u8; 16],
    kind: Intake,
    limit: usize,
    rows: &dyn Lookup,
) -> Result<Vec<(u64, LeafRow)>, StoreError> {
    let mut found = Vec::new();
    let mut at = rows.get(&keys::with_id(id, kind))?.and_then(|bytes| keys::number_at(&bytes, 0));
    for _ in 0..limit {
        let Some(leaf) = at else { break };
        let row = leaf_row(leaf, rows)?.ok_or_else(|| lost(format_args!("leaf {leaf}")))?;
        at = row.before_with_id;
        if row.head.as_ref().map(|head| &head.id).or(row.rejected.as_ref()) == Some(id) {
            found.push((leaf, row));
        }
    }
    Ok(found)
}

/// What was accepted under this id from this sender, while it is to be remembered (protocol.md, section 2).
pub fn remembered(
    id: &[u8; 16],
    sender: &AgencyCode,
    newest_ms: i64,
    rows: &dyn Lookup,
) -> Result<Option<u64>, StoreError> {
    let is_remembered = |(seq, row): (u64, LeafRow)| {
        let head = row.head.filter(|head| head.sender == *sender)?;
        let until = Timestamp::from_unix_ms(head.expires_ms).plus(DEDUP_AFTER_EXPIRY);
        (Timestamp::from_unix_ms(newest_ms) <= until).then_some(seq)
    };
    // The sender may have used an id anew whose time was over: the newest counts.
    Ok(with_id(id, Intake::Accepted, usize::MAX, rows)?.into_iter().find_map(is_remembered))
}

/// The evidence log's entry in a row.
pub fn log_entry(bytes: &[u8]) -> Result<Digest, StoreError> {
    Ok(Digest(read_row::<LeafRow>(bytes)?.entry))
}
