//! Builds the index anew while nobody serves: what `docaxis broker rebuild` does.
//!
//! The index is a view, so nothing can be lost here; a rebuild that was interrupted is done again by the next start.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::config::EmbeddedConfig;
use super::evidence::EvidenceFiles;
use super::recover::{self, Recovery};
use super::segments::{Segments, io_error};
use super::{lock, start_view, state, whole};
use crate::disk::Disk;
use crate::space::Space;
use crate::store::StoreError;

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
    // Also where the disk is full: the ballast's room is what the index is built in.
    let space = Space::open(disk.clone(), dir, config.space).map_err(io_error("looking at the disk"))?;
    let evidence = EvidenceFiles::open(disk.clone(), &dir.join("evidence"), config.evidence_file_bytes)?;
    let segments = Segments::open(disk.clone(), &dir.join("journal"), config)?;
    recover::check_order(&segments, &evidence)?;
    let recovery = Recovery { segments: &segments, evidence: &evidence, progress: &config.progress };
    let (view, writer) = start_view(state::begin_anew(disk.as_ref(), dir, config)?, config, &space)?;
    let done = recovery.rebuild(&view).and_then(|(_, totals)| view.flush().map(|()| totals));
    view.stop();
    if writer.join().is_err() {
        return Err(StoreError::Io { operation: "writing the index", found: "its thread panicked".to_owned() });
    }
    let totals = done?;
    drop(view);
    state::closed(disk.as_ref(), dir, config)?;
    Ok(Rebuilt { records: config.progress.reached().records, leaves: totals.leaves, took: began.elapsed() })
}
