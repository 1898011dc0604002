//! Builds the index anew while nobody serves: what `docaxis broker rebuild` does.
//!
//! The index is a view, so nothing can be lost here; a rebuild that was interrupted is done again by the next start.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::apply::{Placed, find_bodies, find_together};
use super::bulk::{Bounds, Bulk, Target};
use super::config::EmbeddedConfig;
use super::evidence::EvidenceFiles;
use super::index::Index;
use super::keys::{self, BodyPlace, Totals};
use super::layout::FRAME_HEADER_BYTES;
use super::outline::Outlined;
use super::progress::Doing;
use super::recover::{self, Applier, End, Recovery, damaged_at};
use super::rows::Rows as _;
use super::segments::{Segment, Segments, io_error};
use super::walk::{self, Next};
use super::{lock, record, state, whole};
use crate::disk::Disk;
use crate::space::Space;
use crate::store::StoreError;

/// Records that are handed on at once by the thread that reads them, and how many of such lots may wait: bounds memory.
const READ_AT_ONCE: usize = 512;
pub const READ_AT_ONCE_BYTES: usize = 2 << 20;
pub const READ_AHEAD: usize = 8;

/// What a rebuild read and how long it took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rebuilt {
    /// Records of evidence and journal.
    pub records: u64,
    /// Leaves of the evidence log among them.
    pub leaves: u64,
    pub took: Duration,
}

/// Deletes the index below `dir` and builds it from evidence and journal. [`StoreError::Locked`] while a broker runs.
pub fn rebuild(dir: &Path, config: &EmbeddedConfig, disk: Arc<dyn Disk>) -> Result<Rebuilt, StoreError> {
    let _lock = lock(disk.as_ref(), dir)?;
    whole(disk.as_ref(), dir)?;
    rebuild_locked(dir, config, &disk).map_err(|e| recover::set_aside(&disk, dir, e))
}

fn rebuild_locked(dir: &Path, config: &EmbeddedConfig, disk: &Arc<dyn Disk>) -> Result<Rebuilt, StoreError> {
    let began = Instant::now();
    // Also where the disk is full: the ballast's room is what the index is built in. Nobody watches it here, so whoever finds
    // no room looks by himself.
    let space = Space::open(disk.clone(), dir, config.space).map_err(io_error("looking at the disk"))?;
    let evidence = EvidenceFiles::open(disk.clone(), &dir.join("evidence"), config.evidence_file_bytes)?;
    let segments = Segments::open(disk.clone(), &dir.join("journal"), config)?;
    recover::check_order(&segments, &evidence)?;
    let recovery = Recovery { segments: &segments, evidence: &evidence, progress: &config.progress };
    state::begin_anew(disk.as_ref(), dir)?;
    let (index, _, totals) = recovery.rebuild_at(dir, config, &space)?;
    index.flush()?;
    drop(index);
    state::closed(disk.as_ref(), dir, config)?;
    Ok(Rebuilt { records: config.progress.reached().records, leaves: totals.leaves, took: began.elapsed() })
}

/// What a settled segment that is still there has of bodies; its records stand in evidence and have been applied.
enum Bodies {
    /// Those that came with an acceptance: its leaf, their bytes and place.
    Together(u64, u64, BodyPlace),
    Apart(Outlined),
    /// That was all of the segment.
    All(u64),
}

impl Recovery<'_> {
    /// Builds the index of the store in this folder from nothing.
    pub fn rebuild_at(
        &self,
        dir: &Path,
        config: &EmbeddedConfig,
        space: &Space,
    ) -> Result<(Arc<dyn Index>, End, Totals), StoreError> {
        let index = state::empty(dir, config)?;
        let built = self.rebuild(Target { index: index.as_ref(), space }, config.rebuild);
        match built {
            Ok((end, totals)) => Ok((index, end, totals)),
            Err(full @ StoreError::DiskFull(_)) => {
                // Half an index is of no use, and what it took is missing wherever the next start needs room first.
                drop(index);
                if let Err(error) = state::remove(dir, config) {
                    tracing::warn!(%error, "the index that found no room cannot be removed; the next start does so");
                }
                Err(full)
            }
            Err(other) => Err(other),
        }
    }

    /// Builds an empty index from evidence and journal.
    pub fn rebuild(&self, target: Target<'_>, bounds: Bounds) -> Result<(End, Totals), StoreError> {
        let began = Instant::now();
        self.progress.begin_reading(Doing::Rebuilding, Some(self.evidence), self.segments, 0)?;
        tracing::info!(bytes = self.progress.reached().bytes_total, "{}", Doing::Rebuilding.words());
        let mut applier = Applier::new(Bulk::new(target, bounds), self.progress, Totals::default(), false);
        read_ahead(
            |give| self.evidence.walk(|copy| give(walk::outline(&copy.frame, copy.meta, copy.at)?, copy.meta.len())),
            |found| {
                applier.apply(&found)?;
                applier.agree()
            },
        )?;
        let settled = self.evidence.settled();
        let segments = self.segments.all();
        read_ahead(
            |give| {
                let mut settled = segments.iter().filter(|segment| segment.header.number <= settled);
                settled.try_for_each(|segment| self.bodies_of(segment, give))
            },
            |bodies| {
                place(&bodies, &mut applier.rows)?;
                applier.agree()
            },
        )?;
        let first = self.segments.get(settled + 1).map(|segment| segment.start());
        let from = first.ok_or_else(|| StoreError::Damaged("the journal has no segment".to_owned()))?;
        let end = self.apply_tail(&mut applier, from)?;
        applier.totals.applied = end.next;
        let (records, totals) = (self.progress.reached().records, applier.totals);
        self.progress.write();
        applier.rows.finish(&totals)?;
        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(records, leaves = totals.leaves, ms, "the index is built");
        Ok((end, totals))
    }

    fn bodies_of(&self, segment: &Segment, give: &mut Give<'_, Bodies>) -> Result<(), StoreError> {
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
                        give(Bodies::Together(frame.leaf, frame.tail.into(), place), 0)?;
                    }
                    record::BODIES_TAG => give(Bodies::Apart(walk::outline(&frame, meta, at)?), meta.len())?,
                    _ => {}
                }
                self.progress.read(at, meta.len() + frame.tail as usize);
            }
        }
        give(Bodies::All(segment.header.number), 0)
    }
}

fn place(bodies: &Bodies, rows: &mut Bulk<'_>) -> Result<(), StoreError> {
    match bodies {
        Bodies::Together(seq, bytes, place) => find_together(*seq, *bytes, *place, rows)?,
        Bodies::Apart(Outlined { outline, leaf, at, .. }) => {
            find_bodies(&Placed { outline, leaf: *leaf, at: *at, again: false }, rows)?;
        }
        Bodies::All(segment) => rows.put(keys::moved(*segment), vec![]),
    }
    Ok(())
}

/// Takes what was read, and how many bytes it takes up at most beside its own. An error ends the reading.
type Give<'a, T> = dyn FnMut(T, usize) -> Result<(), StoreError> + 'a;

/// Reads in a thread of its own, and uses what was read in this one.
fn read_ahead<T: Send>(
    read: impl FnOnce(&mut Give<'_, T>) -> Result<(), StoreError> + Send,
    mut each: impl FnMut(T) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    std::thread::scope(|scope| {
        let (to, lots) = std::sync::mpsc::sync_channel::<Vec<T>>(READ_AHEAD);
        let reader = scope.spawn(move || {
            let (mut some, mut bytes) = (Vec::with_capacity(READ_AT_ONCE), 0);
            read(&mut |one, more| {
                some.push(one);
                bytes += more;
                if some.len() < READ_AT_ONCE && bytes < READ_AT_ONCE_BYTES {
                    return Ok(());
                }
                bytes = 0;
                // Nobody takes any more: an error has ended it on the other side, and is what is told.
                let lot = std::mem::replace(&mut some, Vec::with_capacity(READ_AT_ONCE));
                to.send(lot).map_err(|_| StoreError::Closed)
            })?;
            drop(to.send(some));
            Ok(())
        });
        let used = lots.into_iter().flatten().try_for_each(&mut each);
        let read = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        used.and(read)
    })
}
