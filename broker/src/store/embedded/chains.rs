//! How evidence hangs together in the index: of a dispatch, of one delivery, and of everything that one sender sent.
//!
//! Each leaf's row names its neighbours, so that a chain costs no rows of its own. Rows of leaves may be newer than the
//! rest of the index after a crash; a chain is therefore never continued from a leaf that is still to be applied.

use docaxis_protocol::{AgencyCode, Event};

use super::apply::leaf_row;
use super::keys::{self, HeadRow, LeafRow, Location, SENDER_STRIDE, SenderRow, end_of, last_number, read_row, row};
use super::rows::Rows;
use super::view::Lookup;
use crate::store::StoreError;

/// A new leaf and what it is about.
pub struct NewLeaf<'a> {
    pub leaf: u64,
    /// SHA-256 over evidence and signature.
    pub entry: [u8; 32],
    pub seq: u64,
    pub event: Event,
    pub at: Location,
    /// Who sent the dispatch.
    pub sender: &'a AgencyCode,
}

fn lost(leaf: u64) -> StoreError {
    StoreError::Damaged(format!("the index lacks the row of leaf {leaf}; restart to rebuild it"))
}

/// The leaf's row, not put yet, after it was made the newest of its sender's chain.
pub fn begin(new: &NewLeaf<'_>, rows: &mut impl Rows) -> Result<LeafRow, StoreError> {
    let mut known: Option<SenderRow> = None;
    rows.change(keys::sender(new.sender), |bytes| {
        known = bytes.map(|bytes| read_row(&bytes)).transpose()?;
        let count = known.map_or(0, |known| known.count);
        Ok(Some(row(&SenderRow { newest: new.leaf, count: count + 1 })?))
    })?;
    if let Some(SenderRow { newest, .. }) = known {
        rows.change_leaf(newest, |earlier| earlier.next_of_sender = new.leaf)?;
    }
    if known.map_or(0, |known| known.count).is_multiple_of(SENDER_STRIDE) {
        rows.put(keys::of_sender(new.sender, new.leaf), vec![]);
    }
    let (entry, seq, event, at) = (new.entry, new.seq, new.event, new.at);
    Ok(LeafRow {
        entry,
        seq,
        event,
        at,
        next_of_sender: 0,
        before: seq,
        before_of_delivery: seq,
        head: None,
        before_with_id: None,
        rejected: None,
        envelope: 0,
    })
}

/// The row of a leaf that is known by its entry only: it belongs to no dispatch and no sender.
pub const fn alone(entry: [u8; 32], leaf: u64, at: Location) -> LeafRow {
    LeafRow {
        entry,
        seq: leaf,
        event: Event::SubmissionRejection,
        at,
        next_of_sender: 0,
        before: leaf,
        before_of_delivery: leaf,
        head: None,
        before_with_id: None,
        rejected: None,
        envelope: 0,
    }
}

/// Puts a leaf that follows others of its dispatch; `of_delivery` is the newest of its delivery before it, if any.
/// `head` belongs to the acceptance and is to be put by the caller.
pub fn follow(
    new: &NewLeaf<'_>,
    head: &mut HeadRow,
    of_delivery: Option<u64>,
    rows: &mut impl Rows,
) -> Result<(), StoreError> {
    let mut made = begin(new, rows)?;
    made.before = head.newest;
    while made.before >= new.leaf {
        made.before = rows.leaf(made.before)?.ok_or_else(|| lost(made.before))?.before;
    }
    made.before_of_delivery = of_delivery.unwrap_or(new.seq);
    head.newest = new.leaf;
    rows.put_leaf(new.leaf, made)
}

/// Walks back from `newest` to the acceptance; the leaves come oldest first, the acceptance left out.
fn back(seq: u64, newest: u64, before: impl Fn(&LeafRow) -> u64, rows: &dyn Lookup) -> Result<Vec<u64>, StoreError> {
    let (mut leaves, mut at) = (Vec::new(), newest);
    while at > seq {
        leaves.push(at);
        let next = before(&leaf_row(at, rows)?.ok_or_else(|| lost(at))?);
        if next >= at {
            return Err(StoreError::Damaged(format!("leaf {at} follows leaf {next}; restart to rebuild the index")));
        }
        at = next;
    }
    leaves.reverse();
    Ok(leaves)
}

/// Every leaf of a dispatch, or of a rejection, oldest first.
pub fn of_dispatch(seq: u64, rows: &dyn Lookup) -> Result<Vec<u64>, StoreError> {
    let Some(first) = leaf_row(seq, rows)?.filter(|row| row.seq == seq) else { return Ok(vec![]) };
    let mut leaves = vec![seq];
    if let Some(head) = first.head {
        leaves.extend(back(seq, head.newest, |row| row.before, rows)?);
    }
    Ok(leaves)
}

/// The leaves of one delivery from `newest` back, oldest first, without the acceptance.
pub fn of_delivery(seq: u64, newest: u64, rows: &dyn Lookup) -> Result<Vec<u64>, StoreError> {
    back(seq, newest, |row| row.before_of_delivery, rows)
}

/// Leaves about what `sender` sent, from `from` on.
pub fn of_sender(sender: &AgencyCode, from: u64, limit: usize, rows: &dyn Lookup) -> Result<Vec<u64>, StoreError> {
    let Some(bytes) = rows.get(&keys::sender(sender))? else { return Ok(vec![]) };
    let newest = read_row::<SenderRow>(&bytes)?.newest;
    if from > newest {
        return Ok(vec![]);
    }
    let mut found = Vec::new();
    let mut at = Some(place_to_begin(sender, from, rows)?);
    while let Some(leaf) = at
        && leaf <= newest
        && found.len() < limit
    {
        if leaf >= from {
            found.push(leaf);
        }
        let next = leaf_row(leaf, rows)?.ok_or_else(|| lost(leaf))?.next_of_sender;
        at = Some(next).filter(|next| *next > leaf);
    }
    Ok(found)
}

/// A leaf of the sender's chain at or before its first one from `from` on. Who follows asks for what comes after the
/// last that he was given, and is there at once.
fn place_to_begin(sender: &AgencyCode, from: u64, rows: &dyn Lookup) -> Result<u64, StoreError> {
    if let Some(last_given) = from.checked_sub(1)
        && let Some(given) = leaf_row(last_given, rows)?
        && sender_of(&given, last_given, rows)?.as_ref() == Some(sender)
    {
        return Ok(last_given);
    }
    let mut at = keys::of_sender(sender, 0);
    let end = keys::of_sender(sender, from.saturating_add(1)).min(end_of(&at[..at.len() - 8]));
    let mut begin = None;
    loop {
        let step = rows.scan(&at, &end, 1024)?;
        let Some((key, _)) = step.last() else { break };
        begin = last_number(key);
        at = [key.as_slice(), &[0]].concat();
    }
    // Without one before `from`, the chain's first leaf is the first after it.
    match begin {
        Some(begin) => Ok(begin),
        None => {
            let prefix = keys::of_sender(sender, 0);
            let first = rows.scan(&prefix, &end_of(&prefix[..prefix.len() - 8]), 1)?;
            first.first().and_then(|(key, _)| last_number(key)).ok_or_else(|| lost(from))
        }
    }
}

fn sender_of(row: &LeafRow, leaf: u64, rows: &dyn Lookup) -> Result<Option<AgencyCode>, StoreError> {
    match &row.head {
        Some(head) => Ok(Some(head.sender.clone())),
        None if row.seq == leaf => Ok(None),
        None => Ok(leaf_row(row.seq, rows)?.and_then(|row| row.head).map(|head| head.sender)),
    }
}
