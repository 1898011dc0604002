//! The thread that moves what must last out of full journal segments, and frees them.
//!
//! Per segment, in this order, each step harmless to repeat: records without bodies into evidence, synced; rows point
//! there; bodies that something still names copied forward into the journal, once they are the smaller half; the index
//! written; the file freed. It changes nothing itself but evidence and spares: all else goes through the committer.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use docaxis_protocol::Digest;
use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::space::Level;

use super::apply::{apart_at, head_row, is_large, live_bytes};
use super::committer::{Answer, Committer, Moved, Request};
use super::config::EmbeddedConfig;
use super::keys::{self, BodyPlace, Location, Stage, block_at};
use super::layout::{FRAME_HEADER_BYTES, NO_LEAF};
use super::record::{self, BodyV1, NAMED_BYTES, Prepared, PrunedV1, RecordV1, bytes_of};
use super::segments::Segment;
use super::shared::Shared;
use super::view::Lookup;
use super::walk::{self, Next};
use crate::store::{Body, BodySource, Seq, StoreError};

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
    /// Where both are tasks, and none can wait for the other.
    pub committer: Option<Arc<Mutex<Committer>>>,
    /// Live bytes that could not be copied forward, by segment, and how often bodies had been restored: damaged bodies. Tried
    /// again when either has changed.
    pub stuck: BTreeMap<u64, (u64, u64)>,
}

/// One of the things that a round does.
type Step = fn(&mut Settler) -> Result<(), StoreError>;

impl Settler {
    /// Until the committer is gone.
    pub fn run(mut self) {
        let tick = self.tick();
        let mut seen = (self.shared.groups(), Instant::now());
        loop {
            match self.full.recv_timeout(tick) {
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            self.turn(&mut seen);
        }
    }

    /// The same as a task beside the committer's.
    pub async fn run_as_task(mut self) {
        let tick = self.tick();
        let mut seen = (self.shared.groups(), Instant::now());
        loop {
            tokio::time::sleep(tick).await;
            self.turn(&mut seen);
        }
    }

    fn tick(&self) -> Duration {
        (self.config.idle / 2).max(Duration::from_millis(1))
    }

    fn turn(&mut self, seen: &mut (u64, Instant)) {
        if self.shared.poison().is_some() {
            return;
        }
        match self.round(seen) {
            Ok(()) | Err(StoreError::Closed) => {}
            Err(StoreError::DiskFull(what)) => {
                self.shared.space.ran_out();
                tracing::debug!(%what, "no room to settle full journal segments; it is tried again");
            }
            Err(error) => self.shared.stop_for(&error),
        }
    }

    fn round(&mut self, seen: &mut (u64, Instant)) -> Result<(), StoreError> {
        // Where one finds no room, another may make some: pruning and freeing are not held up by a copy.
        let mut full = None;
        let steps: [Step; 4] = [
            |it| it.settle_full(),
            |it| it.unless_held(|it| it.prune()),
            |it| it.unless_held(Self::free),
            |it| it.prepare(),
        ];
        for step in steps {
            match step(self) {
                Err(error @ StoreError::DiskFull(_)) => full = full.or(Some(error)),
                done => done?,
            }
        }
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
        full.map_or(Ok(()), Err)
    }

    /// Spares are for what comes: on a disk where nothing new is finished, their room is better used by evidence.
    fn prepare(&self) -> Result<(), StoreError> {
        if self.shared.space.level() < Level::DrainOnly { self.shared.segments.prepare() } else { Ok(()) }
    }

    /// Nothing goes while a backup still reads it.
    fn unless_held(&mut self, step: Step) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        let held = shared.held.lock().unwrap_or_else(PoisonError::into_inner);
        if *held > 0 { Ok(()) } else { step(self) }
    }

    fn ask(&self, request: impl FnOnce(Answer<()>) -> Request) -> Result<(), StoreError> {
        let (to, mut answer) = oneshot::channel();
        if let Some(committer) = &self.committer {
            committer.lock().unwrap_or_else(PoisonError::into_inner).at_once(request(to));
            return answer.try_recv().unwrap_or(Err(StoreError::Closed));
        }
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
        let mut groups = Groups::of(&self.shared, segment);
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
        self.shared.evidence.walk_segment(number, |copy| {
            if record::tag_of(copy.meta) == record::NOTICES_TAG
                && let RecordV1::Notices(notices) = copy.read()?.prepared.record
            {
                last_of.extend(notices.into_iter().map(|notice| (notice.name, copy.at.offset)));
            }
            Ok(())
        })?;
        let mut moved: Vec<Moved> = Vec::new();
        // Leaves have no gaps: a record's end where the next one begins, so that none has to be decoded for it.
        let mut open: Option<Moved> = None;
        self.shared.evidence.walk_segment(number, |copy| {
            let mut notices = Vec::new();
            if record::tag_of(copy.meta) == record::NOTICES_TAG
                && let RecordV1::Notices(list) = &copy.read()?.prepared.record
            {
                let named: BTreeMap<&str, u32> = list.iter().map(|notice| notice.name.as_str()).zip(0u32..).collect();
                let last = named.into_iter().filter(|(name, _)| last_of.get(*name) == Some(&copy.at.offset));
                notices.extend(last.map(|(name, item)| (item, name.to_owned())));
            }
            let leaf = copy.frame.leaf;
            let here = Moved { to: copy.at, leaf, leaves: 0, notices };
            if leaf == NO_LEAF {
                moved.push(here);
            } else if let Some(mut earlier) = open.replace(here) {
                earlier.leaves = leaf.saturating_sub(earlier.leaf);
                moved.push(earlier);
            }
            if moved.len() >= MOVED_AT_ONCE {
                let moved = std::mem::take(&mut moved);
                self.ask(|to| Request::Moved(number, moved, to))?;
            }
            Ok(())
        })?;
        if let Some(mut last) = open {
            last.leaves = self.shared.record_at(last.to)?.prepared.entries.len() as u64;
            moved.push(last);
        }
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
            let mut pruned = Vec::new();
            for (key, _) in self.shared.view.scan(b"p", &keys::finished_after(until), PRUNED_AT_ONCE)? {
                let Some((minute, first)) = block_at(&key) else { continue };
                for (seq, head) in self.shared.reads().finished_in(minute, first, until)? {
                    if let Stage::Finished(finished_ms) = head.stage {
                        let (parts, bytes) = self.bodies_of(seq)?;
                        let freed = head.bodies.map(|place| (place.segment, bytes));
                        pruned.push(PrunedV1 { seq, sender: head.sender, finished_ms, parts, freed });
                    }
                }
                if pruned.len() >= PRUNED_AT_ONCE {
                    break;
                }
            }
            if pruned.is_empty() {
                return Ok(());
            }
            let prepared = Prepared::new(RecordV1::Pruned(pruned), vec![])?;
            self.ask(|to| Request::Plain(Box::new(prepared), to))?;
            docaxis_failpoints::failpoint!("broker.prune.committed");
        }
    }

    /// A dispatch's large bodies, and the bytes of the small ones that came with it.
    fn bodies_of(&self, seq: u64) -> Result<(Vec<[u8; 32]>, u64), StoreError> {
        Ok(match self.shared.leaf(seq)?.map(|(_, found)| found.prepared.record) {
            Some(RecordV1::Accepted(accepted)) => {
                let large = accepted.parts.iter().filter(|part| is_large(part.size)).map(|part| part.sha256);
                (large.collect(), bytes_of(&accepted.bodies))
            }
            _ => {
                return Err(StoreError::Damaged(format!(
                    "the acceptance of dispatch {seq} is not where the index says"
                )));
            }
        })
    }

    fn free(&mut self) -> Result<(), StoreError> {
        let mut full = None;
        for segment in self.full_segments() {
            let number = segment.header.number;
            // One may have become full since: only what stands in evidence, and is looked for there, may go.
            if self.shared.view.get(&keys::moved(number))?.is_none() || number > self.shared.evidence.settled() {
                continue;
            }
            // Copying forward what is still the larger part would fill the journal faster than it is emptied.
            let live = live_bytes(number, self.shared.view.as_ref())?;
            let restored = self.shared.restored.load(Ordering::Relaxed);
            if live.saturating_mul(2) > segment.bytes || self.stuck.get(&number) == Some(&(live, restored)) {
                continue;
            }
            if live > 0 {
                match self.forward(&segment) {
                    // Another may need no room to be freed, and makes some.
                    Err(error @ StoreError::DiskFull(_)) => {
                        full = full.or(Some(error));
                        continue;
                    }
                    done => done?,
                }
                docaxis_failpoints::failpoint!("broker.settle.forwarded");
                let left = live_bytes(number, self.shared.view.as_ref())?;
                if left > 0 {
                    self.stuck.insert(number, (left, restored));
                    continue;
                }
            }
            self.stuck.remove(&number);
            // The index must not point into the file after it was freed, even if this process dies now.
            self.shared.view.flush()?;
            self.shared.segments.free(number)?;
            docaxis_failpoints::failpoint!("broker.settle.freed");
            self.ask(|to| Request::Freed(number, to))?;
        }
        full.map_or(Ok(()), Err)
    }

    /// Copies the bodies forward that a dispatch still names.
    fn forward(&self, segment: &Segment) -> Result<(), StoreError> {
        let mut groups = Groups::of(&self.shared, segment);
        let mut some = Forward { settler: self, of: Vec::new(), bytes: 0 };
        while let Some(group) = groups.next()? {
            for (frame, at, frame_bytes) in group.frames()? {
                let found = walk::read_record(&frame, frame_bytes, at)?;
                let mut from = FRAME_HEADER_BYTES + frame.meta as usize;
                match &found.prepared.record {
                    RecordV1::Accepted(accepted) => {
                        some.take(frame.leaf, true, &accepted.bodies, (at, from), frame_bytes)?;
                    }
                    RecordV1::Bodies(list) => {
                        for one in list {
                            some.take(one.seq, one.from.is_some(), &one.bodies, (at, from), frame_bytes)?;
                            from += usize::try_from(bytes_of(&one.bodies)).unwrap_or(usize::MAX);
                        }
                    }
                    _ => {}
                }
            }
        }
        some.send()
    }
}

/// Bodies that are to be copied forward with one record.
struct Forward<'a> {
    settler: &'a Settler,
    of: Vec<(u64, Option<u64>, Vec<Body>)>,
    bytes: usize,
}

impl Forward<'_> {
    /// Takes what is looked for here of the bodies that begin at `from` in a record's bytes: all of them, or each by itself.
    /// A damaged body must not get a new and healthy frame. It stays, and its segment with it, until the sender has brought
    /// it once more or its dispatch names it no longer.
    fn take(
        &mut self,
        seq: u64,
        together: bool,
        list: &[BodyV1],
        (at, mut from): (Location, usize),
        record: &[u8],
    ) -> Result<(), StoreError> {
        let shared = &self.settler.shared;
        let place = |from: usize| BodyPlace { segment: at.segment, offset: at.offset + from as u64 };
        if together && head_row(seq, shared.view.as_ref())?.and_then(|head| head.bodies) != Some(place(from)) {
            return Ok(());
        }
        let mut bodies = Vec::with_capacity(list.len());
        let mut whole = true;
        for body in list {
            let to = from + body.size as usize;
            let (sha256, bytes) = (Digest(body.sha256), record.get(from..to).unwrap_or_default());
            let looked_for = together || apart_at(seq, &body.sha256, shared.view.as_ref())? == Some(place(from));
            if looked_for && Digest::of(bytes) == sha256 {
                bodies.push(Body { sha256, bytes: bytes.to_vec() });
            } else if looked_for {
                let part = PartDigest { sha256, size: u64::from(body.size) };
                match shared.reads().body(Seq(seq), &part)? {
                    // It was brought once more, and lies elsewhere.
                    Some(BodySource::Inline(bytes)) if together => bodies.push(Body { sha256, bytes }),
                    _ => whole = false,
                }
            }
            from = to;
        }
        if together && !whole || bodies.is_empty() {
            return Ok(());
        }
        // With what the record says of them, which for tiny bodies is more than they are.
        let bytes = NAMED_BYTES * (bodies.len() + 1) + bodies.iter().map(|body| body.bytes.len()).sum::<usize>();
        if self.bytes + bytes > FORWARD_BYTES {
            self.send()?;
        }
        self.bytes += bytes;
        self.of.push((seq, together.then_some(at.segment), bodies));
        Ok(())
    }

    fn send(&mut self) -> Result<(), StoreError> {
        self.bytes = 0;
        let of = std::mem::take(&mut self.of);
        if of.is_empty() {
            return Ok(());
        }
        let prepared = Prepared::bodies(of)?;
        self.settler.ask(|to| Request::Plain(Box::new(prepared), to))
    }
}

/// The groups of a full segment, of which none may be missing.
pub struct Groups<'a> {
    segment: &'a Segment,
    at: keys::Position,
    /// The first sequence of the next segment, if that is still there.
    end: Option<u64>,
}

impl<'a> Groups<'a> {
    pub fn of(shared: &Shared, segment: &'a Segment) -> Self {
        let end = shared.segments.get(segment.header.number + 1).map(|next| next.header.first);
        Self { segment, at: segment.start(), end }
    }

    pub fn next(&mut self) -> Result<Option<walk::Group>, StoreError> {
        let damaged = |what: String| {
            let number = self.segment.header.number;
            StoreError::Damaged(format!("journal segment {number:016x}, offset {}: {what}", self.at.offset))
        };
        match walk::next(self.segment, self.at, self.end)? {
            Next::Group(group) => {
                self.at = group.end();
                Ok(Some(group))
            }
            Next::End => match self.end.filter(|end| *end != self.at.sequence) {
                Some(end) => Err(damaged(format!(
                    "group {} does not read, though the next segment begins with {end}",
                    self.at.sequence
                ))),
                None => Ok(None),
            },
            Next::Damage { found } => {
                Err(damaged(format!("a group does not read, though the one at offset {found} does")))
            }
        }
    }
}

/// The records of a group that are kept for good: encoded record and leaf. Nothing is decoded: the group's checksum held.
fn lasting(group: &walk::Group) -> Result<Vec<(Vec<u8>, u64)>, StoreError> {
    let mut kept = Vec::new();
    for (frame, at, bytes) in group.frames()? {
        let meta = walk::meta_of(&frame, bytes, at)?;
        if !matches!(record::tag_of(meta), record::BODIES_TAG | record::SETTLED_TAG) {
            kept.push((meta.to_vec(), frame.leaf));
        }
    }
    Ok(kept)
}
