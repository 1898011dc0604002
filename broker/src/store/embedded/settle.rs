//! The thread that moves what must last out of full journal segments, and frees them.
//!
//! Per segment, in this order, each step harmless to repeat: records without bodies into evidence, synced; rows point
//! there; bodies that something still names copied forward into the journal, once they are the smaller half; the index
//! written; the file freed. It changes nothing itself but evidence and spares: all else goes through the committer.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use docaxis_protocol::Digest;

use super::apply::{head_row, live_bytes};
use super::committer::{Answer, Moved, Request, lies_at};
use super::config::EmbeddedConfig;
use super::keys::{self, last_number, time_at};
use super::layout::{FRAME_HEADER_BYTES, NO_LEAF};
use super::record::{BodyV1, Prepared, PrunedV1, RecordV1};
use super::segments::Segment;
use super::shared::Shared;
use super::view::Lookup;
use super::walk::{self, Next};
use crate::store::{Body, StoreError};

/// Records that one request moves: bounds the wait of acceptances behind it.
const MOVED_AT_ONCE: usize = 512;
/// Bodies that one record copies forward, in bytes.
const FORWARD_BYTES: usize = 1 << 20;
/// Dispatches that one record prunes.
const PRUNED_AT_ONCE: usize = 256;

pub struct Settler {
    pub shared: Arc<Shared>,
    pub config: EmbeddedConfig,
    /// Weak, so that the committer ends when the store is dropped.
    pub requests: mpsc::WeakSender<Request>,
    pub full: Receiver<u64>,
}

impl Settler {
    /// Until the committer is gone.
    pub fn run(self) {
        let tick = (self.config.idle / 2).max(Duration::from_millis(1));
        let mut seen = (self.shared.groups(), Instant::now());
        loop {
            match self.full.recv_timeout(tick) {
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            if self.shared.poison().is_some() {
                continue;
            }
            match self.round(&mut seen) {
                Ok(()) | Err(StoreError::Closed) => {}
                Err(StoreError::DiskFull(what)) => {
                    tracing::warn!(%what, "no room to settle full journal segments; it is tried again");
                }
                Err(error) => self.shared.poison_with(&error),
            }
        }
    }

    fn round(&self, seen: &mut (u64, Instant)) -> Result<(), StoreError> {
        self.settle_full()?;
        self.prune()?;
        self.free()?;
        self.shared.segments.prepare()?;
        if let Err(e) = self.shared.blobs.remove_retired() {
            tracing::warn!(error = %e, "bodies that nothing names stay until the next start");
        }
        let groups = self.shared.groups();
        if groups != seen.0 {
            *seen = (groups, Instant::now());
        } else if seen.1.elapsed() >= self.config.idle / 2
            && let Some(requests) = self.requests.upgrade()
        {
            // If the queue is full, nobody is idle.
            drop(requests.try_send(Request::Idle));
        }
        Ok(())
    }

    fn ask(&self, request: impl FnOnce(Answer<()>) -> Request) -> Result<(), StoreError> {
        let (to, answer) = oneshot::channel();
        let requests = self.requests.upgrade().ok_or(StoreError::Closed)?;
        requests.blocking_send(request(to)).map_err(|_| StoreError::Closed)?;
        drop(requests);
        answer.blocking_recv().unwrap_or(Err(StoreError::Closed))
    }

    /// Full segments: all but the last.
    fn full_segments(&self) -> Vec<Segment> {
        let mut segments = self.shared.segments.all();
        segments.pop();
        segments
    }

    fn settle_full(&self) -> Result<(), StoreError> {
        for segment in self.full_segments() {
            let number = segment.header.number;
            if number > self.shared.evidence.settled() {
                self.copy(&segment)?;
                docaxis_failpoints::failpoint!("broker.settle.copied");
            }
            if self.shared.view.get(&keys::moved(number))?.is_none() {
                self.move_rows(number)?;
                docaxis_failpoints::failpoint!("broker.settle.moved");
            }
        }
        Ok(())
    }

    /// Copies the records without their bodies into evidence.
    fn copy(&self, segment: &Segment) -> Result<(), StoreError> {
        let mut groups = Groups { segment, at: segment.start() };
        let mut frames: Vec<Result<(Vec<u8>, u64), StoreError>> = Vec::new();
        let records = std::iter::from_fn(|| {
            loop {
                if let Some(frame) = frames.pop() {
                    return Some(frame);
                }
                match groups.next() {
                    Ok(Some(group)) => match lasting(&group) {
                        Ok(lasting) => frames.extend(lasting.into_iter().rev().map(Ok)),
                        Err(error) => return Some(Err(error)),
                    },
                    Ok(None) => return None,
                    Err(error) => return Some(Err(error)),
                }
            }
        });
        self.shared.evidence.append(segment.header.number, records)
    }

    /// Points the rows of a segment's records to their copies. The copies are read back for it, so that a start after
    /// a crash does the same.
    fn move_rows(&self, number: u64) -> Result<(), StoreError> {
        let mut last_of: BTreeMap<String, u64> = BTreeMap::new();
        self.shared.evidence.walk_segment(number, |found| {
            if let RecordV1::Notices(notices) = found.prepared.record {
                last_of.extend(notices.into_iter().map(|notice| (notice.name, found.at.offset)));
            }
            Ok(())
        })?;
        let mut moved = Vec::new();
        self.shared.evidence.walk_segment(number, |found| {
            let mut notices = Vec::new();
            if let RecordV1::Notices(list) = &found.prepared.record {
                let named: BTreeMap<&str, u32> = list.iter().map(|notice| notice.name.as_str()).zip(0u32..).collect();
                let last = named.into_iter().filter(|(name, _)| last_of.get(*name) == Some(&found.at.offset));
                notices.extend(last.map(|(name, item)| (item, name.to_owned())));
            }
            let leaf = if found.leaf == NO_LEAF { 0 } else { found.leaf };
            let leaves = found.prepared.entries.len() as u64;
            moved.push(Moved { to: found.at, leaf, leaves, notices });
            if moved.len() >= MOVED_AT_ONCE {
                let moved = std::mem::take(&mut moved);
                self.ask(|to| Request::Moved(number, moved, to))?;
            }
            Ok(())
        })?;
        if !moved.is_empty() {
            self.ask(|to| Request::Moved(number, moved, to))?;
        }
        docaxis_failpoints::failpoint!("broker.settle.pointed");
        // An empty list says that this was all.
        self.ask(|to| Request::Moved(number, vec![], to))
    }

    /// Lets dispatches whose retention has passed name their bodies no longer.
    fn prune(&self) -> Result<(), StoreError> {
        loop {
            let keep_ms = i64::try_from(self.config.keep_bodies.as_millis()).unwrap_or(i64::MAX);
            let until = self.shared.totals().newest_ms.saturating_sub(keep_ms);
            let due = self.shared.view.scan(b"p", &keys::finished_after(until), PRUNED_AT_ONCE)?;
            let mut pruned = Vec::with_capacity(due.len());
            for (key, _) in &due {
                let (Some(finished_ms), Some(seq)) = (time_at(key, 1), last_number(key)) else { continue };
                let parts = match self.shared.leaf(seq)?.map(|(_, found)| found.prepared.record) {
                    Some(RecordV1::Accepted(accepted)) => accepted.parts.iter().map(|part| part.sha256).collect(),
                    _ => vec![],
                };
                if let Some(head) = head_row(seq, self.shared.view.as_ref())? {
                    pruned.push(PrunedV1 { seq, sender: head.sender, finished_ms, parts });
                }
            }
            if pruned.is_empty() {
                return Ok(());
            }
            let prepared = Prepared::new(RecordV1::Pruned(pruned), vec![])?;
            self.ask(|to| Request::Plain(Box::new(prepared), to))?;
            docaxis_failpoints::failpoint!("broker.prune.committed");
            if due.len() < PRUNED_AT_ONCE {
                return Ok(());
            }
        }
    }

    fn free(&self) -> Result<(), StoreError> {
        for segment in self.full_segments() {
            let number = segment.header.number;
            // One may have become full since: only what stands in evidence, and is looked for there, may go.
            if self.shared.view.get(&keys::moved(number))?.is_none() || number > self.shared.evidence.settled() {
                continue;
            }
            // Copying forward what is still the larger part would fill the journal faster than it is emptied.
            let live = live_bytes(number, self.shared.view.as_ref())?;
            if live.saturating_mul(2) > segment.bytes {
                continue;
            }
            if live > 0 {
                self.forward(&segment)?;
                docaxis_failpoints::failpoint!("broker.settle.forwarded");
                if live_bytes(number, self.shared.view.as_ref())? > 0 {
                    continue;
                }
            }
            // The index must not point into the file after it was freed, even if this process dies now.
            self.shared.view.flush()?;
            self.shared.segments.free(number)?;
            docaxis_failpoints::failpoint!("broker.settle.freed");
            self.ask(|to| Request::Freed(number, to))?;
        }
        Ok(())
    }

    /// Copies the bodies forward that something still names.
    fn forward(&self, segment: &Segment) -> Result<(), StoreError> {
        let mut groups = Groups { segment, at: segment.start() };
        let mut bodies: Vec<Body> = Vec::new();
        let mut bytes = 0;
        while let Some(group) = groups.next()? {
            for (frame, at, frame_bytes) in group.frames()? {
                let found = walk::read_record(&frame, frame_bytes, at)?;
                let list = match &found.prepared.record {
                    RecordV1::Accepted(accepted) => &accepted.bodies,
                    RecordV1::Bodies(bodies) => bodies,
                    _ => continue,
                };
                let mut from = FRAME_HEADER_BYTES + frame.meta as usize;
                for body in list {
                    let to = from + body.size as usize;
                    let offset = at.offset + from as u64;
                    if lies_at(&body.sha256, segment.header.number, offset, self.shared.view.as_ref())? {
                        let taken = frame_bytes.get(from..to).unwrap_or_default().to_vec();
                        let sha256 = Digest(body.sha256);
                        // A damaged body must not get a new and healthy frame.
                        if Digest::of(&taken) != sha256 {
                            let what = format!("journal segment {:x}, offset {offset}: body {sha256}", at.segment);
                            return Err(StoreError::Damaged(what));
                        }
                        bytes += taken.len();
                        bodies.push(Body { sha256, bytes: taken });
                    }
                    from = to;
                    if bytes >= FORWARD_BYTES {
                        bytes = 0;
                        self.forward_some(std::mem::take(&mut bodies))?;
                    }
                }
            }
        }
        if bodies.is_empty() { Ok(()) } else { self.forward_some(bodies) }
    }

    fn forward_some(&self, bodies: Vec<Body>) -> Result<(), StoreError> {
        let list = bodies.iter().map(|body| {
            let size = u32::try_from(body.bytes.len()).unwrap_or(u32::MAX);
            BodyV1 { sha256: body.sha256.0, size }
        });
        let prepared = Prepared::new(RecordV1::Bodies(list.collect()), bodies)?;
        self.ask(|to| Request::Plain(Box::new(prepared), to))
    }
}

/// The groups of a full segment, of which none may be missing.
struct Groups<'a> {
    segment: &'a Segment,
    at: keys::Position,
}

impl Groups<'_> {
    fn next(&mut self) -> Result<Option<walk::Group>, StoreError> {
        match walk::next(self.segment, self.at)? {
            Next::Group(group) => {
                self.at = group.end();
                Ok(Some(group))
            }
            Next::End => Ok(None),
            Next::Damage { found } => Err(StoreError::Damaged(format!(
                "journal segment {:x}, offset {}: a group does not read, though one at offset {found} does",
                self.segment.header.number, self.at.offset
            ))),
        }
    }
}

/// The records of a group that are kept for good: encoded record and leaf.
fn lasting(group: &walk::Group) -> Result<Vec<(Vec<u8>, u64)>, StoreError> {
    let mut kept = Vec::new();
    for found in group.records()? {
        if !matches!(found.prepared.record, RecordV1::Bodies(_) | RecordV1::Settled(_)) {
            kept.push((found.prepared.meta, found.leaf));
        }
    }
    Ok(kept)
}
