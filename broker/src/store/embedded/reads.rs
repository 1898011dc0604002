//! Answers to questions. Reads see every committed change and wait for nobody but the disk.

use std::collections::BTreeMap;

use docaxis_protocol::envelope::Chain;
use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::{AgencyCode, Digest, DispatchId, Event, Evidence, SignedEvidence, Timestamp};

use super::apply::{
    answers, apart_at, delivery, head_row, is_large, is_queued, log_entry, remembered, unfinished_bytes, with_id,
};
use super::chains;
use super::keys::{
    self, BLOCK_LEAVES, BodyPlace, BodyRow, HeadRow, Intake, LeafRow, Location, NoticeRow, Queued, Stage, block_at,
    end_of, in_minute, last_number, read_row,
};
use super::record::{RecordV1, id_of};
use super::shared::{MAX_MOVES, Shared};
use super::view::Lookup;
use super::walk::Found;
use crate::store::{BodySource, Delivery, Dispatch, Lane, Seq, StoreError, StoredEvidence, Waiting};

/// Rows taken at once where a whole list is read.
const PAGE_ROWS: usize = 1024;
/// Rows of a queue taken at once: each may hold a whole block's dispatches, and the first few are what is asked for.
const QUEUE_ROWS: usize = 16;
/// The same where the deliveries of one lane are read: each row is for a block of many.
const LANE_ROWS: usize = 4;
/// Acceptances under one id that are found, and rejections; the newest. Nothing limits how often a node has one rejected.
const MAX_FOUND: usize = 1_000;

const UNREADABLE_QUEUE: &str = "a row of a queue does not read; restart to rebuild the index";

pub struct Reads<'a>(pub &'a Shared);

fn damaged(what: impl Into<String>) -> StoreError {
    StoreError::Damaged(what.into())
}

impl Reads<'_> {
    fn rows(&self) -> &dyn Lookup {
        self.0.view.as_ref()
    }

    /// All rows from `from` up to the end of `prefix`, so many at once, until `each` says that it has enough.
    fn each_row(
        &self,
        prefix: &[u8],
        from: Vec<u8>,
        page: usize,
        mut each: impl FnMut(&[u8], &[u8]) -> Result<bool, StoreError>,
    ) -> Result<(), StoreError> {
        let end = end_of(prefix);
        let mut at = from;
        loop {
            let rows = self.rows().scan(&at, &end, page)?;
            for (key, value) in &rows {
                if !each(key, value)? {
                    return Ok(());
                }
            }
            match rows.last() {
                Some((key, _)) if rows.len() == page => at = [key.as_slice(), &[0]].concat(),
                _ => return Ok(()),
            }
        }
    }

    /// All notices in the order of their names. A record holds hundreds: each is read once for all of them.
    pub fn notices(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let mut places: BTreeMap<Location, Vec<(u32, String)>> = BTreeMap::new();
        let prefix = keys::notice("");
        self.each_row(&prefix, prefix.clone(), PAGE_ROWS, |key, value| {
            let name = std::str::from_utf8(&key[1..]).map_err(|e| damaged(format!("a notice's name: {e}")))?;
            let row: NoticeRow = read_row(value)?;
            places.entry(row.at).or_default().push((row.item, name.to_owned()));
            Ok(true)
        })?;
        let mut found = Vec::new();
        for (at, wanted) in places {
            let mut there: Vec<_> = match self.0.record_at(at) {
                Ok(Found { prepared, .. }) => match prepared.record {
                    RecordV1::Notices(list) => list.into_iter().map(Some).collect(),
                    _ => vec![],
                },
                Err(_) => vec![],
            };
            for (item, name) in wanted {
                match there.get_mut(item as usize).and_then(Option::take).filter(|notice| notice.name == name) {
                    Some(notice) => found.push((name, notice.bytes)),
                    // The record has moved since its place was read, or is damaged: looked up anew, and told.
                    None => found.extend(self.notice(&name)?.map(|bytes| (name, bytes))),
                }
            }
        }
        found.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        Ok(found)
    }

    fn notice(&self, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let mut failed = StoreError::Closed;
        for _ in 0..MAX_MOVES {
            let Some(bytes) = self.rows().get(&keys::notice(name))? else { return Ok(None) };
            let row: NoticeRow = read_row(&bytes)?;
            match self.0.record_at(row.at) {
                Ok(Found { prepared, .. }) => {
                    if let RecordV1::Notices(notices) = prepared.record
                        && let Some(notice) = notices.into_iter().nth(row.item as usize)
                        && notice.name == name
                    {
                        return Ok(Some(notice.bytes));
                    }
                    failed = damaged(format!("notice {name} is not where the index says"));
                }
                Err(error) => failed = error,
            }
        }
        Err(failed)
    }

    pub fn lookup(&self, sender: &AgencyCode, id: DispatchId) -> Result<Option<Seq>, StoreError> {
        let newest_ms = self.0.totals().newest_ms;
        Ok(remembered(id.as_bytes(), sender, newest_ms, self.rows())?.map(Seq))
    }

    pub fn find(&self, id: DispatchId) -> Result<Vec<Seq>, StoreError> {
        let mut found = Vec::new();
        for kind in [Intake::Accepted, Intake::Rejected] {
            let leaves = with_id(id.as_bytes(), kind, MAX_FOUND, self.rows())?;
            found.extend(leaves.into_iter().map(|(leaf, _)| Seq(leaf)));
        }
        found.sort();
        Ok(found)
    }

    pub fn answered(&self, id: DispatchId, envelope_sha256: Digest) -> Result<Option<Dispatch>, StoreError> {
        for kind in [Intake::Accepted, Intake::Rejected] {
            for leaf in answers((id.as_bytes(), &envelope_sha256), kind, self.rows())? {
                let known = self.dispatch(Seq(leaf))?;
                if known.as_ref().is_some_and(|known| known.envelope_sha256 == envelope_sha256) {
                    return Ok(known);
                }
            }
        }
        Ok(None)
    }

    pub fn dispatch(&self, seq: Seq) -> Result<Option<Dispatch>, StoreError> {
        let Some((row, found)) = self.0.leaf(seq.0)? else { return Ok(None) };
        if row.seq != seq.0 {
            return Ok(None);
        }
        match found.prepared.record {
            RecordV1::Accepted(accepted) => {
                let accepted = *accepted;
                Ok(Some(Dispatch {
                    seq,
                    id: id_of(accepted.id)?,
                    accepted: Timestamp::from_unix_ms(accepted.accepted_ms),
                    expires: accepted.expires(),
                    priority: accepted.priority,
                    envelope_sha256: Digest(accepted.envelope_sha256),
                    parts: accepted.part_digests(),
                    sender: accepted.sender,
                    envelope: accepted.envelope,
                    evidence: accepted.evidence,
                }))
            }
            RecordV1::Rejected(rejected) => {
                // Nothing was accepted, so what is known of it is what the rejection itself says.
                let said = Evidence::parse(&rejected.evidence.bytes).ok();
                let time = said.as_ref().map_or(Timestamp::from_unix_ms(0), |evidence| evidence.time);
                Ok(Some(Dispatch {
                    seq,
                    id: id_of(rejected.id)?,
                    accepted: time,
                    expires: said.as_ref().and_then(|evidence| evidence.expires).unwrap_or(time),
                    priority: 0,
                    envelope_sha256: rejected.envelope.digest(),
                    parts: said.map(|evidence| evidence.parts).unwrap_or_default(),
                    sender: rejected.sender,
                    envelope: rejected.envelope,
                    evidence: rejected.evidence,
                }))
            }
            _ => Ok(None),
        }
    }

    pub fn sender(&self, seq: Seq) -> Result<Option<AgencyCode>, StoreError> {
        Ok(head_row(seq.0, self.rows())?.map(|head| head.sender))
    }

    pub fn receipt(&self, seq: Seq) -> Result<SignedEvidence, StoreError> {
        let found = self.0.leaf(seq.0)?.map(|(_, found)| found.prepared.record);
        match found {
            Some(RecordV1::Accepted(accepted)) => Ok(accepted.evidence),
            Some(RecordV1::Rejected(rejected)) => Ok(rejected.evidence),
            _ => Err(damaged(format!("the answer to submission {} is not where the index says", seq.0))),
        }
    }

    pub fn delivery(&self, seq: Seq, recipient: &AgencyCode) -> Result<Option<Delivery>, StoreError> {
        delivery(seq.0, recipient, self.rows())
    }

    pub fn deliveries(&self, seq: Seq) -> Result<Vec<Delivery>, StoreError> {
        let mut recipients = self.recipients(seq)?;
        recipients.sort();
        let each = recipients.iter().filter_map(|recipient| delivery(seq.0, recipient, self.rows()).transpose());
        each.collect()
    }

    fn recipients(&self, seq: Seq) -> Result<Vec<AgencyCode>, StoreError> {
        match self.0.leaf(seq.0)? {
            Some((row, found)) if row.seq == seq.0 => match found.prepared.record {
                RecordV1::Accepted(accepted) => Ok(accepted.recipients.into_iter().map(|(code, _)| code).collect()),
                _ => Ok(vec![]),
            },
            _ => Ok(vec![]),
        }
    }

    pub fn lanes(&self, recipient: &AgencyCode, least: u8) -> Result<Vec<Lane>, StoreError> {
        let prefix = keys::queue_of(recipient);
        let last = Lane { priority: least, senders: u8::MAX };
        let (mut from, end) = (prefix.clone(), end_of(&keys::lane_of(recipient, last)));
        let mut lanes: Vec<Lane> = Vec::new();
        loop {
            let rows = self.rows().scan(&from, &end, QUEUE_ROWS)?;
            for (key, _) in &rows {
                let Some(&[inverse, senders]) = key.get(prefix.len()..prefix.len() + 2) else {
                    return Err(damaged(UNREADABLE_QUEUE));
                };
                let lane = Lane { priority: u8::MAX - inverse, senders };
                if lanes.last() != Some(&lane) {
                    lanes.push(lane);
                }
            }
            match lanes.last() {
                // A lane may have many rows: none of the others is read.
                Some(last) if rows.len() == QUEUE_ROWS => from = end_of(&keys::lane_of(recipient, *last)),
                _ => break,
            }
        }
        Ok(lanes)
    }

    pub fn waiting(
        &self,
        recipient: &AgencyCode,
        lane: Lane,
        after: Option<Seq>,
        limit: usize,
    ) -> Result<Vec<Waiting>, StoreError> {
        let prefix = keys::lane_of(recipient, lane);
        // The block that the last one is in may hold more.
        let from = after.map_or_else(|| prefix.clone(), |seq| keys::queue(recipient, lane, seq.0));
        let mut found = Vec::new();
        self.each_row(&prefix, from, LANE_ROWS, |key, value| {
            let block = last_number(key).ok_or_else(|| damaged(UNREADABLE_QUEUE))?;
            let seqs = Queued::read(value.to_vec());
            let seqs = seqs.seqs(block.saturating_mul(BLOCK_LEAVES)).map(Seq);
            let later = seqs.filter(|seq| after.is_none_or(|last| *seq > last));
            let (priority, more) = (lane.priority, limit - found.len());
            found.extend(later.take(more).map(|seq| Waiting { recipient: recipient.clone(), priority, seq }));
            Ok(found.len() < limit)
        })?;
        Ok(found)
    }

    pub fn expired(&self, now: Timestamp, limit: usize) -> Result<Vec<Waiting>, StoreError> {
        let mut due = Vec::new();
        let until = now.unix_ms();
        for (key, _) in self.rows().scan(b"x", &keys::expiry_after(until), limit)? {
            let (minute, first) = block_at(&key)
                .ok_or_else(|| damaged("a row of the expiries does not read; restart to rebuild the index"))?;
            for (_, seq, lane) in self.due_in(minute, first, until)? {
                let mut recipients = self.recipients(Seq(seq))?;
                recipients.sort();
                for recipient in recipients {
                    if due.len() >= limit {
                        return Ok(due);
                    }
                    if is_queued(&recipient, lane, seq, self.rows())? {
                        due.push(Waiting { recipient, priority: lane.priority, seq: Seq(seq) });
                    }
                }
            }
        }
        Ok(due)
    }

    /// Dispatches of a block that wait and expired in this minute, at the latest at `until`: time, number and lane,
    /// oldest first.
    fn due_in(&self, minute: i64, first: u64, until: i64) -> Result<Vec<(i64, u64, Lane)>, StoreError> {
        let mut due = Vec::new();
        self.each_of_block(first, |seq, head| {
            let expires_ms = head.expires_ms;
            if head.stage == Stage::Waiting && in_minute(expires_ms, minute) && expires_ms <= until {
                due.push((expires_ms, seq, head.lane()));
            }
        })?;
        due.sort_unstable();
        Ok(due)
    }

    /// Dispatches of a block that finished in this minute, at the latest at `until`, and are not pruned yet.
    pub fn finished_in(&self, minute: i64, first: u64, until: i64) -> Result<Vec<(u64, HeadRow)>, StoreError> {
        let mut found = Vec::new();
        self.each_of_block(first, |seq, head| {
            if let Stage::Finished(ms) = head.stage
                && in_minute(ms, minute)
                && ms <= until
            {
                found.push((seq, head));
            }
        })?;
        Ok(found)
    }

    fn each_of_block(&self, first: u64, mut each: impl FnMut(u64, HeadRow)) -> Result<(), StoreError> {
        let (from, to) = (keys::leaf(first), keys::leaf(first.saturating_add(BLOCK_LEAVES)));
        for (key, bytes) in self.rows().scan(&from, &to, PAGE_ROWS)? {
            if let (Some(seq), Some(head)) = (last_number(&key), read_row::<LeafRow>(&bytes)?.head) {
                each(seq, head);
            }
        }
        Ok(())
    }

    pub fn evidence(&self, seq: Seq) -> Result<Vec<StoredEvidence>, StoreError> {
        self.stored(chains::of_dispatch(seq.0, self.rows())?)
    }

    pub fn chain(&self, seq: Seq, recipient: &AgencyCode) -> Result<Vec<StoredEvidence>, StoreError> {
        let Some(bytes) = self.rows().get(&keys::delivery(seq.0, recipient))? else { return Ok(vec![]) };
        let newest = read_row::<keys::DeliveryRow>(&bytes)?.leaf;
        self.stored(chains::of_delivery(seq.0, newest, self.rows())?)
    }

    pub fn evidence_for_sender(
        &self,
        sender: &AgencyCode,
        from: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvidence>, StoreError> {
        self.stored(chains::of_sender(sender, from, limit, self.rows())?)
    }

    /// The evidence at these leaves. Several may come from one record, which is then read once.
    fn stored(&self, leaves: Vec<u64>) -> Result<Vec<StoredEvidence>, StoreError> {
        let mut stored = Vec::with_capacity(leaves.len());
        let mut last: Option<Found> = None;
        for leaf in leaves {
            let within = |found: &Found| (found.leaf..found.leaf + found.prepared.entries.len() as u64).contains(&leaf);
            let found = match last.take_if(|found| within(found)) {
                Some(found) => found,
                None => match self.0.leaf(leaf)? {
                    Some((_, found)) => found,
                    None => return Err(damaged(format!("leaf {leaf} has no row; restart to rebuild the index"))),
                },
            };
            stored.push(stored_in(&found, leaf)?);
            last = Some(found);
        }
        Ok(stored)
    }

    pub fn handovers(&self, from: u64, limit: usize) -> Result<(u64, Vec<StoredEvidence>), StoreError> {
        let rows = self.rows().scan(&keys::leaf(from), &end_of(b"l"), limit)?;
        let next = rows.last().and_then(|(key, _)| last_number(key)).map_or(from, |last| last + 1);
        let mut leaves = Vec::new();
        for (key, row) in &rows {
            if read_row::<LeafRow>(row)?.event == Event::ContentHandover {
                leaves.extend(last_number(key));
            }
        }
        Ok((next, self.stored(leaves)?))
    }

    pub fn log_entries(&self, from: u64, limit: usize) -> Result<Vec<Digest>, StoreError> {
        let rows = self.rows().scan(&keys::leaf(from), &end_of(b"l"), limit)?;
        // A gap must never be signed over.
        let entry = |(expected, (key, row)): (u64, &(Vec<u8>, Vec<u8>))| match last_number(key) {
            Some(leaf) if leaf == expected => log_entry(row),
            _ => {
                let error = damaged(format!("the index lacks leaf {expected}; restart to rebuild it"));
                self.0.view.tell(&error);
                Err(error)
            }
        };
        (from..).zip(&rows).map(entry).collect()
    }

    pub fn unfinished_bytes(&self, sender: &AgencyCode) -> Result<u64, StoreError> {
        unfinished_bytes(sender, self.rows())
    }

    pub fn holds(&self, agency: &AgencyCode, part: &PartDigest) -> Result<bool, StoreError> {
        let prefix = keys::owned_by(&part.sha256.0, agency);
        let owned = is_large(part.size) && !self.rows().scan(&prefix, &end_of(&prefix), 1)?.is_empty();
        Ok(owned && self.large(part)?.is_some())
    }

    /// A body that does not have its digest is not given out; a file's digest is checked by whoever sends it.
    pub fn body(&self, seq: Seq, part: &PartDigest) -> Result<Option<BodySource>, StoreError> {
        if is_large(part.size) {
            return self.large(part);
        }
        if part.size == 0 {
            return Ok((Digest::of(b"") == part.sha256).then(|| BodySource::Inline(vec![])));
        }
        let mut failed = None;
        for _ in 0..MAX_MOVES {
            let Some(place) = self.small(seq, part)? else { return Ok(None) };
            match self.inline(part, place) {
                Ok(bytes) => return Ok(Some(BodySource::Inline(bytes))),
                // It has not moved since: then it is not the move that went wrong.
                Err(found) if failed == Some(place) => {
                    self.0.body_is_damaged(seq, &part.sha256, place, &found);
                    return Ok(None);
                }
                Err(_) => failed = Some(place),
            }
        }
        Err(damaged(format!("the body {} moves again and again", part.sha256)))
    }

    fn large(&self, part: &PartDigest) -> Result<Option<BodySource>, StoreError> {
        let Some(bytes) = self.rows().get(&keys::body(&part.sha256.0))? else { return Ok(None) };
        let exists = || {
            let failed = |error: std::io::Error| {
                let found = format!("the body {}: {error}", part.sha256);
                StoreError::Io { operation: "looking for a body", found }
            };
            self.0.blobs.exists(part).map_err(failed)
        };
        let there = read_row::<BodyRow>(&bytes)?.size == part.size && exists()?;
        Ok(there.then(|| BodySource::File(self.0.blobs.path(&part.sha256))))
    }

    /// Where a dispatch's small body lies.
    fn small(&self, seq: Seq, part: &PartDigest) -> Result<Option<BodyPlace>, StoreError> {
        if let Some(place) = apart_at(seq.0, &part.sha256.0, self.rows())? {
            return Ok(Some(place));
        }
        let Some(mut place) = head_row(seq.0, self.rows())?.and_then(|head| head.bodies) else { return Ok(None) };
        let Some(RecordV1::Accepted(accepted)) = self.0.leaf(seq.0)?.map(|(_, found)| found.prepared.record) else {
            return Err(damaged(format!("the acceptance of dispatch {} is not where the index says", seq.0)));
        };
        for body in &accepted.bodies {
            if body.sha256 == part.sha256.0 && u64::from(body.size) == part.size {
                return Ok(Some(place));
            }
            place.offset += u64::from(body.size);
        }
        Ok(None)
    }

    /// The body's bytes; as an error, what was found in their place.
    fn inline(&self, part: &PartDigest, BodyPlace { segment, offset }: BodyPlace) -> Result<Vec<u8>, Vec<u8>> {
        let Some(segment) = self.0.segments.get(segment) else { return Err(vec![]) };
        let size = part.size.min(segment.bytes.saturating_sub(offset));
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        // A medium that gives nothing back has lost the body as well.
        let read = segment.file.read_at(offset, &mut bytes).unwrap_or(0);
        bytes.truncate(read);
        if Digest::of(&bytes) == part.sha256 { Ok(bytes) } else { Err(bytes) }
    }
}

fn stored_in(found: &Found, leaf: u64) -> Result<StoredEvidence, StoreError> {
    let stored = |seq, event, recipient, evidence: &SignedEvidence, statement_chain: Option<Chain>| StoredEvidence {
        leaf,
        seq: Seq(seq),
        event,
        recipient,
        evidence: evidence.clone(),
        statement_chain,
    };
    let item = leaf - found.leaf;
    match &found.prepared.record {
        RecordV1::Accepted(accepted) if item == 0 => {
            Ok(stored(leaf, Event::SubmissionAcceptance, None, &accepted.evidence, None))
        }
        RecordV1::Accepted(accepted) => {
            let mut refused = accepted.recipients.iter().filter_map(|(code, failure)| Some((code, failure.as_ref()?)));
            let (code, failure) = usize::try_from(item - 1)
                .ok()
                .and_then(|item| refused.nth(item))
                .ok_or_else(|| damaged(format!("leaf {leaf}'s record is not where the index says")))?;
            Ok(stored(found.leaf, Event::ContentHandoverFailure, Some(code.clone()), failure, None))
        }
        RecordV1::Rejected(rejected) => Ok(stored(leaf, Event::SubmissionRejection, None, &rejected.evidence, None)),
        RecordV1::Event(event) => {
            let chain = event.statement.as_ref().map(|statement| statement.chain.clone());
            Ok(stored(event.seq, event.event, Some(event.recipient.clone()), &event.evidence, chain))
        }
        _ => Err(damaged(format!("leaf {leaf}'s record is not where the index says"))),
    }
}
