//! What the engine's threads share: files, view, and whether the store still stands.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use tokio::sync::watch;

use super::apply::leaf_row;
use super::evidence::{EvidenceFiles, frame_at};
use super::keys::{Area, LeafRow, Location, Position, Totals};
use super::reads::Reads;
use super::segments::Segments;
use super::view::View;
use super::walk::{Found, read_record};
use crate::blobs::BlobStore;
use crate::space::Space;
use crate::store::{Counts, JournalPlace, StoreError};

/// A record may move to evidence between the look at its row and the read: so often is a read tried again.
pub const MAX_MOVES: usize = 4;

pub struct Shared {
    pub view: Arc<View>,
    pub segments: Arc<Segments>,
    pub evidence: EvidenceFiles,
    pub blobs: Arc<BlobStore>,
    pub space: Arc<Space>,
    /// Why nothing new is recorded, while the log is being made whole again.
    pub frozen: RwLock<Option<String>>,
    /// Cuts that are held. The settler prunes and frees under this lock, and only while there is none.
    pub held: Mutex<u32>,
    /// Bodies that were brought once more since the start, in lots: what could not be copied forward may be now.
    pub restored: AtomicU64,
    poison: Mutex<Option<StoreError>>,
    totals: Mutex<Totals>,
    size: watch::Sender<u64>,
    /// Groups committed or decided, so that the settler can tell when nothing happens.
    groups: AtomicU64,
}

impl Shared {
    pub fn new(
        view: Arc<View>,
        segments: Arc<Segments>,
        evidence: EvidenceFiles,
        blobs: Arc<BlobStore>,
        space: Arc<Space>,
        totals: Totals,
    ) -> Self {
        let (poison, size) = (Mutex::new(None), watch::Sender::new(totals.leaves));
        let totals = Mutex::new(totals);
        Self {
            view,
            segments,
            evidence,
            blobs,
            space,
            held: Mutex::default(),
            restored: AtomicU64::new(0),
            frozen: RwLock::default(),
            poison,
            totals,
            size,
            groups: AtomicU64::new(0),
        }
    }

    fn poison_cell(&self) -> MutexGuard<'_, Option<StoreError>> {
        self.poison.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub const fn reads(&self) -> Reads<'_> {
        Reads(self)
    }

    /// Why nothing is acknowledged any more.
    pub fn poison(&self) -> Option<StoreError> {
        self.poison_cell().clone()
    }

    /// Why nothing new is recorded.
    pub fn frozen(&self) -> Option<StoreError> {
        self.frozen.read().unwrap_or_else(PoisonError::into_inner).clone().map(StoreError::Frozen)
    }

    /// From now on nothing is acknowledged. The first reason stays.
    pub fn poison_with(&self, error: &StoreError) {
        let mut poison = self.poison_cell();
        if poison.is_none() {
            tracing::error!(%error, "the store stops acknowledging; restart it when the disk is well");
            *poison = Some(StoreError::Poisoned(error.to_string()));
        }
    }

    /// The same; where rows are missing or contradict the files, the next start must not believe the index.
    pub fn stop_for(&self, error: &StoreError) {
        if matches!(error, StoreError::Damaged(_)) {
            self.view.tell(error);
        }
        self.poison_with(error);
    }

    pub fn set_totals(&self, totals: &Totals) {
        *self.totals.lock().unwrap_or_else(PoisonError::into_inner) = *totals;
        self.groups.fetch_add(1, Ordering::Relaxed);
    }

    /// Tells those who follow the log of its size.
    pub fn publish(&self, totals: &Totals) {
        self.size.send_if_modified(|size| {
            let grown = *size != totals.leaves;
            *size = totals.leaves;
            grown
        });
    }

    pub fn groups(&self) -> u64 {
        self.groups.load(Ordering::Relaxed)
    }

    pub fn totals(&self) -> Totals {
        *self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn counts(&self) -> Counts {
        let Totals { leaves, dispatches, waiting, .. } = self.totals();
        Counts { leaves, dispatches, waiting }
    }

    pub fn journal(&self) -> JournalPlace {
        let Position { segment, sequence, .. } = self.totals().applied;
        JournalPlace { settled: self.evidence.settled(), segment, sequence: sequence.saturating_sub(1) }
    }

    pub fn size(&self) -> watch::Receiver<u64> {
        self.size.subscribe()
    }

    /// The record at a place, checked.
    pub fn record_at(&self, at: Location) -> Result<Found, StoreError> {
        let file = match at.area {
            Area::Journal => self.segments.get(at.segment).map(|segment| segment.file),
            Area::Evidence => self.evidence.open_file(at.segment),
        };
        let gone = |what: &str| {
            StoreError::Damaged(format!("{:?} segment {:016x}, offset {}: {what}", at.area, at.segment, at.offset))
        };
        let file = file.ok_or_else(|| gone("there is no such file"))?;
        let (frame, bytes) = frame_at(file.as_ref(), at.offset)?.ok_or_else(|| gone("the record does not read"))?;
        read_record(&frame, &bytes, at)
    }

    /// A leaf's row and the record that brought it.
    pub fn leaf(&self, leaf: u64) -> Result<Option<(LeafRow, Found)>, StoreError> {
        let mut failed: Option<(Location, StoreError)> = None;
        for _ in 0..MAX_MOVES {
            let Some(row) = leaf_row(leaf, self.view.as_ref())? else { return Ok(None) };
            // It has not moved since: then it is not the move that went wrong.
            if let Some((_, error)) = failed.take_if(|(at, _)| *at == row.at) {
                return Err(error);
            }
            match self.record_at(row.at) {
                Ok(found) if (found.leaf..found.leaf + found.prepared.entries.len() as u64).contains(&leaf) => {
                    return Ok(Some((row, found)));
                }
                Ok(_) => {
                    let what = StoreError::Damaged(format!("leaf {leaf}'s record is not where the index says"));
                    failed = Some((row.at, what));
                }
                Err(error) => failed = Some((row.at, error)),
            }
        }
        Err(failed.map_or(StoreError::Closed, |(_, error)| error))
    }
}
