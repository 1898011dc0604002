//! From the files to a store that may answer: reads the journal's end, makes durable what it read, and brings the
//! index up to it, or builds a new one.
//!
//! Refuses damage, with file and offset, and copies the damaged file to `DATA/damaged/`. What a power cut leaves is no
//! damage: see `docs/format.md` for every such state.

use std::path::Path;
use std::sync::Arc;

use super::apply::{Placed, apply};
use super::evidence::EvidenceFiles;
use super::keys::{self, Position, Totals, read_row};
use super::mend::mend;
use super::outline::Outlined;
use super::progress::{Doing, Progress};
use super::rows::Rows;
use super::segments::{Segment, Segments, Work, io_error};
use super::view::{Lookup as _, Staged, View};
use super::walk::{self, Next};
use crate::blobs::BlobStore;
use crate::disk::Disk;
use crate::store::StoreError;

/// The journal's end.
pub struct End {
    pub segment: Segment,
    pub next: Position,
    /// Whether the last group is an empty one.
    pub marked: bool,
}

pub fn damaged_at(segment: &Segment, at: Position, what: &str) -> StoreError {
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
    mut each: impl FnMut(&walk::Group) -> Result<(), StoreError>,
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
                each(&group)?;
                last = Some((group.at.offset, group.bytes, group.header.records == 0));
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

/// Records on their way into the index.
pub struct Applier<'a, R> {
    pub rows: R,
    progress: &'a Progress,
    pub totals: Totals,
    /// See [`Placed::again`].
    again: bool,
}

impl<'a, R: Rows> Applier<'a, R> {
    pub const fn new(rows: R, progress: &'a Progress, totals: Totals, again: bool) -> Self {
        Self { rows, progress, totals, again }
    }

    pub fn apply(&mut self, found: &Outlined) -> Result<(), StoreError> {
        if !found.outline.entries.is_empty() && found.leaf != self.totals.leaves {
            return Err(StoreError::Damaged(format!(
                "{:?} segment {:016x}, offset {}: the record has leaf {}; expected {}",
                found.at.area, found.at.segment, found.at.offset, found.leaf, self.totals.leaves
            )));
        }
        let (leaf, again) = (self.totals.leaves, self.again);
        let placed = Placed { outline: &found.outline, leaf, at: found.at, again };
        apply(&placed, &mut self.rows, &mut self.totals)?;
        self.progress.applied(found.at, found.bytes);
        if !again {
            docaxis_failpoints::failpoint!("broker.rebuild.applied");
        }
        Ok(())
    }

    /// Called where rows and totals agree, such as at a group's end.
    pub fn agree(&mut self) -> Result<(), StoreError> {
        if self.rows.is_full() { self.rows.agree(&self.totals) } else { Ok(()) }
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
        let mut applier = Applier::new(Staged::new(view), self.progress, totals, true);
        // The last group that was applied is read as well: whether it is durable is not known.
        let end = self.apply_tail(&mut applier, from)?;
        applier.rows.agree(&applier.totals)?;
        Ok(Some((end, applier.totals)))
    }

    pub fn apply_tail<R: Rows>(&self, applier: &mut Applier<'_, R>, from: Position) -> Result<End, StoreError> {
        let begin = self.segments.get(from.segment).map_or(from, |segment| segment.start());
        read_tail(self.segments, begin, |group| {
            if group.at < from {
                return Ok(());
            }
            for found in group.outlines()? {
                applier.apply(&found)?;
            }
            applier.totals.applied = group.end();
            applier.agree()
        })
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
