//! From the files to a store that may answer: reads the journal's end, makes durable what it read, and brings the
//! index up to it, or builds a new one.
//!
//! Refuses damage, with file and offset, and copies the damaged file to `DATA/damaged/`. What a power cut leaves is no
//! damage: see `docs/format.md` for every such state.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::apply::{Placed, apply, find_bodies, find_together};
use super::evidence::EvidenceFiles;
use super::keys::{self, BodyPlace, Position, Totals, read_row, row};
use super::layout::FRAME_HEADER_BYTES;
use super::mend::mend;
use super::progress::{Doing, Progress};
use super::record;
use super::segments::{Segment, Segments, Work, io_error};
use super::view::{Lookup, Staged, View};
use super::walk::{self, Found, Next};
use crate::blobs::BlobStore;
use crate::disk::Disk;
use crate::store::StoreError;

/// Records applied before their rows are merged: bounds memory while the index is built.
const RECORDS_AT_ONCE: u32 = 2_000;
/// Rows at which they are merged earlier, about 200 bytes each: a circular that thousands of recipients refuse has twice as
/// many. In the journal's tail the group is ended first, of which a commit had all rows in memory too.
pub const ROWS_AT_ONCE: usize = 16 << 10;
/// Records that are handed on at once by whoever reads them, and how many of such lots may wait: bounds memory.
const READ_AT_ONCE: usize = 128;
pub const READ_AT_ONCE_BYTES: usize = 1 << 20;
pub const READ_AHEAD: usize = 8;

/// The journal's end.
pub struct End {
    pub segment: Segment,
    pub next: Position,
    /// Whether the last group is an empty one.
    pub marked: bool,
}

fn damaged_at(segment: &Segment, at: Position, what: &str) -> StoreError {
    let number = segment.header.number;
    StoreError::Damaged(format!("journal segment {number:016x}, offset {}: {what}", at.offset))
}

/// Checks that no segment is missing, and begins the first one.
pub fn check_order(segments: &Segments, evidence: &EvidenceFiles) -> Result<(), StoreError> {
    let settled = evidence.settled();
    let all = segments.all();
    let mut expected = settled + 1;
    for segment in all.iter().filter(|segment| segment.header.number > settled) {
        let found = segment.header.number;
        if found != expected {
            return Err(StoreError::Damaged(format!(
                "journal segment {expected:016x} is missing; {found:016x} is there"
            )));
        }
        expected += 1;
    }
    if expected == settled + 1 {
        if settled > 0 || !all.is_empty() {
            return Err(StoreError::Damaged(format!("journal segment {expected:016x}, the newest, is missing")));
        }
        segments.begin(1, 1, Work::Draining)?;
    }
    Ok(())
}

/// Reads from `from` to the journal's end, giving every group to `each`, and makes durable what it read.
pub fn read_tail(
    segments: &Segments,
    from: Position,
    mut each: impl FnMut(walk::Group) -> Result<(), StoreError>,
) -> Result<End, StoreError> {
    let mut at = from;
    let mut last: Option<(u64, Vec<u8>, bool)> = None;
    let mut segment = segments
        .get(from.segment)
        .ok_or_else(|| StoreError::Damaged(format!("journal segment {:016x} is missing", from.segment)))?;
    loop {
        let next = segments.get(segment.header.number + 1).map(|next| next.header.first);
        let found = match walk::next(&segment, at, next)? {
            Next::Group(group) => Next::Group(group),
            other => mend(segments, &segment, at)?.map_or(other, Next::Group),
        };
        match found {
            Next::Group(group) => {
                at = group.end();
                last = Some((group.at.offset, group.bytes.clone(), group.header.records == 0));
                each(group)?;
            }
            Next::Damage { found } => {
                let what = format!("a group does not read, though the one at offset {found} does; it was durable once");
                return Err(damaged_at(&segment, at, &what));
            }
            Next::End => {
                sync(&segment, last.as_ref())?;
                let Some(next) = segments.get(segment.header.number + 1) else { break };
                if next.header.first != at.sequence {
                    let what = format!(
                        "group {} does not read, though the next segment begins with {}; it was durable once",
                        at.sequence, next.header.first
                    );
                    return Err(damaged_at(&segment, at, &what));
                }
                at = next.start();
                segment = next;
                last = None;
            }
        }
    }
    segments.sync_dir()?;
    let marked = last.is_some_and(|(_, _, empty)| empty);
    Ok(End { segment, next: at, marked })
}

/// The page cache may hold what the disk does not: a sync that failed before has left the pages clean. Only the last
/// group can be such, as each later one was begun after the sync of the one before. So it is written once more.
fn sync(segment: &Segment, last: Option<&(u64, Vec<u8>, bool)>) -> Result<(), StoreError> {
    if let Some((offset, bytes, _)) = last {
        segment.file.write_at(*offset, bytes).map_err(io_error("writing the journal's last group again"))?;
        docaxis_failpoints::failpoint!("broker.start.tail-rewritten");
    }
    segment.file.sync_data().map_err(io_error("syncing the journal"))
}

pub struct Recovery<'a> {
    pub segments: &'a Segments,
    pub evidence: &'a EvidenceFiles,
    /// How far it is: for the log, and for whoever asks.
    pub progress: &'a Progress,
}

/// Rows on their way into the index.
struct Applier<'a> {
    view: &'a View,
    progress: &'a Progress,
    staged: Staged<'a>,
    totals: Totals,
    /// See [`Placed::again`].
    again: bool,
    records: u32,
}

impl<'a> Applier<'a> {
    fn new(view: &'a View, progress: &'a Progress, totals: Totals, again: bool) -> Self {
        Self { view, progress, staged: Staged::new(view), totals, again, records: 0 }
    }

    fn apply(&mut self, found: &Found) -> Result<(), StoreError> {
        if !found.prepared.entries.is_empty() && found.leaf != self.totals.leaves {
            return Err(StoreError::Damaged(format!(
                "{:?} segment {:016x}, offset {}: the record has leaf {}; expected {}",
                found.at.area, found.at.segment, found.at.offset, found.leaf, self.totals.leaves
            )));
        }
        let (leaf, again) = (self.totals.leaves, self.again);
        let placed = Placed { prepared: &found.prepared, leaf, at: found.at, again };
        apply(&placed, &mut self.staged, &mut self.totals)?;
        self.records += 1;
        self.progress.applied(found.at, found.prepared.meta_bytes + found.prepared.tail_bytes as usize);
        if !again {
            docaxis_failpoints::failpoint!("broker.rebuild.applied");
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.records >= RECORDS_AT_ONCE || self.staged.changes.len() >= ROWS_AT_ONCE
    }

    /// Merges at a group's end, where rows and position agree.
    fn reached(&mut self, position: Position) -> Result<(), StoreError> {
        self.totals.applied = position;
        if !self.is_full() {
            return Ok(());
        }
        // A rebuild that is broken off is begun anew, not gone on with.
        if self.again { self.merge() } else { self.merge_rows() }
    }

    /// Without a position yet: an index left in this state is built again.
    fn merge_rows(&mut self) -> Result<(), StoreError> {
        // Nobody would make room while a start waits for it: then the start fails and says so.
        self.view.has_room()?;
        self.records = 0;
        self.staged.merge()
    }

    fn merge(&mut self) -> Result<(), StoreError> {
        self.staged.put(keys::totals(), row(&self.totals)?);
        self.merge_rows()
    }
}

impl Recovery<'_> {
    /// Applies what the index does not have yet. `None` if the index does not fit to the files and must be built anew.
    pub fn catch_up(&self, view: &View) -> Result<Option<(End, Totals)>, StoreError> {
        let Some(bytes) = view.get(&keys::totals())? else { return Ok(None) };
        let Ok(totals) = read_row::<Totals>(&bytes) else { return Ok(None) };
        let from = totals.applied;
        // Every segment from there on must still be there: one that was freed after the index was written has its
        // records only in evidence.
        let last = self.segments.all().last().map_or(0, |segment| segment.header.number);
        let present = (from.segment..=last).all(|number| self.segments.get(number).is_some());
        let fits = self
            .segments
            .get(from.segment)
            .is_some_and(|segment| from.sequence >= segment.header.first && from.offset <= segment.bytes);
        if !fits || !present {
            return Ok(None);
        }
        self.progress.begin_reading(Doing::CatchingUp, None, self.segments, from.segment)?;
        let mut applier = Applier::new(view, self.progress, totals, true);
        // The last group that was applied is read as well: whether it is durable is not known.
        let end = self.apply_tail(&mut applier, from)?;
        applier.merge()?;
        let totals = applier.totals;
        Ok(Some((end, totals)))
    }

    fn apply_tail(&self, applier: &mut Applier<'_>, from: Position) -> Result<End, StoreError> {
        let begin = self.segments.get(from.segment).map_or(from, |segment| segment.start());
        read_tail(self.segments, begin, |group| {
            if group.at < from {
                return Ok(());
            }
            for found in group.records()? {
                applier.apply(&found)?;
            }
            applier.reached(group.end())
        })
    }

    /// Builds an empty index from evidence and journal.
    pub fn rebuild(&self, view: &View) -> Result<(End, Totals), StoreError> {
        let began = Instant::now();
        self.progress.begin_reading(Doing::Rebuilding, Some(self.evidence), self.segments, 0)?;
        tracing::info!(bytes = self.progress.reached().bytes_total, "{}", Doing::Rebuilding.words());
        let mut applier = Applier::new(view, self.progress, Totals::default(), false);
        self.each_of_evidence(|found| {
            applier.apply(&found)?;
            if applier.is_full() { applier.merge_rows() } else { Ok(()) }
        })?;
        let settled = self.evidence.settled();
        for segment in self.segments.all().iter().filter(|segment| segment.header.number <= settled) {
            self.bodies_of(segment, &mut applier)?;
        }
        let first = self.segments.get(settled + 1).map(|segment| segment.start());
        let from = first.ok_or_else(|| StoreError::Damaged("the journal has no segment".to_owned()))?;
        let end = self.apply_tail(&mut applier, from)?;
        applier.totals.applied = end.next;
        applier.merge()?;
        let (records, totals) = (self.progress.reached().records, applier.totals);
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(records, leaves = totals.leaves, ms, "the index is built");
        Ok((end, totals))
    }

    /// Every record of evidence in order, read and decoded by a thread of its own.
    fn each_of_evidence(&self, mut each: impl FnMut(Found) -> Result<(), StoreError>) -> Result<(), StoreError> {
        std::thread::scope(|scope| {
            let (to, records) = std::sync::mpsc::sync_channel::<Vec<Found>>(READ_AHEAD);
            let reader = scope.spawn(move || {
                let (mut some, mut bytes) = (Vec::new(), 0);
                self.evidence.walk(|found| {
                    bytes += found.prepared.meta_bytes;
                    some.push(found);
                    // Nobody takes any more: an error has ended it on the other side, and is what is told.
                    if some.len() < READ_AT_ONCE && bytes < READ_AT_ONCE_BYTES {
                        return Ok(());
                    }
                    bytes = 0;
                    to.send(std::mem::take(&mut some)).map_err(|_| StoreError::Closed)
                })?;
                drop(to.send(some));
                Ok(())
            });
            let applied = records.into_iter().flatten().try_for_each(&mut each);
            let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            applied.and(read)
        })
    }

    /// A settled segment that is still there holds bodies; its records stand in evidence and have been applied.
    fn bodies_of(&self, segment: &Segment, applier: &mut Applier<'_>) -> Result<(), StoreError> {
        let mut at = segment.start();
        loop {
            let next = self.segments.get(segment.header.number + 1).map(|next| next.header.first);
            let group = match walk::next(segment, at, next)? {
                Next::Group(group) => group,
                Next::End => break,
                Next::Damage { .. } => {
                    return Err(damaged_at(segment, at, "a group does not read, though a later one does"));
                }
            };
            at = group.end();
            for (frame, at, bytes) in group.frames()? {
                let meta = walk::meta_of(&frame, bytes, at)?;
                match record::tag_of(meta) {
                    // All that is asked of it stands in its frame.
                    record::ACCEPTED_TAG if frame.tail > 0 => {
                        let offset = at.offset + (FRAME_HEADER_BYTES + meta.len()) as u64;
                        let place = BodyPlace { segment: at.segment, offset };
                        find_together(frame.leaf, frame.tail.into(), place, &mut applier.staged)?;
                    }
                    record::BODIES_TAG => {
                        let found = walk::read_record(&frame, bytes, at)?;
                        let placed = Placed { prepared: &found.prepared, leaf: found.leaf, at, again: false };
                        find_bodies(&placed, &mut applier.staged)?;
                    }
                    _ => {}
                }
                applier.records += 1;
                self.progress.read(at, meta.len() + frame.tail as usize);
            }
            if applier.is_full() {
                applier.merge_rows()?;
            }
        }
        applier.staged.put(keys::moved(segment.header.number), vec![]);
        Ok(())
    }
}

/// Removes large bodies that nothing names: what a crash between body and commit left.
pub fn collect_blobs(blobs: &BlobStore, view: &View) -> Result<(), StoreError> {
    struct Failed(StoreError);
    impl From<std::io::Error> for Failed {
        fn from(e: std::io::Error) -> Self {
            Self(io_error("collecting bodies that nothing names")(e))
        }
    }
    let removed = blobs.collect(|sha256| Ok::<_, Failed>(view.get(&keys::body(&sha256.0)).map_err(Failed)?.is_some()));
    let removed = removed.map_err(|Failed(e)| e)?;
    if removed > 0 {
        tracing::info!(removed, "removed large bodies that nothing names");
    }
    Ok(())
}

/// Copies the file that an error names to `DATA/damaged/`, and says what to do.
pub fn set_aside(disk: &Arc<dyn Disk>, dir: &Path, error: StoreError) -> StoreError {
    let StoreError::Damaged(what) = error else { return error };
    let aside = dir.join("damaged");
    let copied = copy_named(disk, dir, &aside, &what);
    let copies = match copied {
        Ok(Some(name)) => format!("a copy is at {}", aside.join(name).display()),
        Ok(None) => "there is no file of it to copy".to_owned(),
        Err(e) => format!("it could not be copied to {}: {e}", aside.display()),
    };
    StoreError::Damaged(format!(
        "{what}; {copies}. Nothing was changed. Check the disk, then restore the folder from a backup"
    ))
}

fn copy_named(disk: &Arc<dyn Disk>, dir: &Path, aside: &Path, what: &str) -> std::io::Result<Option<String>> {
    for folder in ["journal", "evidence"] {
        for name in disk.list(&dir.join(folder))? {
            // A spare may bear the number of a segment that is missing; it is no copy of anything.
            let Some((number, "segment" | "evidence")) = name.split_once('.') else { continue };
            if !what.contains(&name) && !what.to_lowercase().contains(&format!("{folder} segment {number}")) {
                continue;
            }
            disk.create_dir_all(aside)?;
            let target = aside.join(&name);
            if disk.exists(&target)? {
                return Ok(Some(name));
            }
            let (from, to) = (disk.open(&dir.join(folder).join(&name))?, disk.create(&target)?);
            let mut buffer = vec![0; 1 << 20];
            let mut at = 0;
            loop {
                let read = from.read_at(at, &mut buffer)?;
                if read == 0 {
                    break;
                }
                to.write_at(at, &buffer[..read])?;
                at += read as u64;
            }
            to.sync_data()?;
            disk.sync_dir(aside)?;
            return Ok(Some(name));
        }
    }
    Ok(None)
}
