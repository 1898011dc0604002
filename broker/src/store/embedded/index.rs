//! The index: an ordered map that is only a view of evidence and journal. It may be lost or damaged at any time and is
//! rebuilt from them, so nothing here is trusted for durability; what it must do is apply a batch wholly or not at all
//! when the process dies.

use std::collections::BTreeMap;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::segments::io_error;
use crate::store::StoreError;

/// New values by key; `None` removes.
pub type Changes = BTreeMap<Vec<u8>, Option<Vec<u8>>>;
pub type Row = (Vec<u8>, Vec<u8>);

pub trait Index: Send + Sync {
    fn apply(&self, changes: &Changes) -> Result<(), StoreError>;
    /// Takes room for a batch of so many rows before it is applied: one that runs out of it in the middle cannot go on.
    fn reserve(&self, rows: usize) -> Result<(), StoreError>;
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// Up to `limit` rows with `from <= key < to`, in order.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError>;
    /// After this, what was applied survives the death of the process, though not of the machine.
    fn flush(&self) -> Result<(), StoreError>;
    fn clear(&self) -> Result<(), StoreError>;
}

/// The twin in memory, for tests and simulations.
#[derive(Debug, Default)]
pub struct MemoryIndex(RwLock<BTreeMap<Vec<u8>, Vec<u8>>>);

impl MemoryIndex {
    /// All rows.
    pub fn rows(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Index for MemoryIndex {
    fn reserve(&self, _rows: usize) -> Result<(), StoreError> {
        Ok(())
    }

    fn apply(&self, changes: &Changes) -> Result<(), StoreError> {
        let mut rows = self.0.write().unwrap_or_else(PoisonError::into_inner);
        for (key, value) in changes {
            match value {
                Some(value) => rows.insert(key.clone(), value.clone()),
                None => rows.remove(key),
            };
        }
        Ok(())
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.0.read().unwrap_or_else(PoisonError::into_inner).get(key).cloned())
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        if from >= to {
            return Ok(vec![]);
        }
        let rows = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let range = rows.range::<[u8], _>((std::ops::Bound::Included(from), std::ops::Bound::Excluded(to)));
        Ok(range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }

    fn clear(&self) -> Result<(), StoreError> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).clear();
        Ok(())
    }
}

/// sled, kept to what it is good at: small rows, one writer, no promise. It may panic on damaged files, so every call
/// is caught.
pub struct SledIndex {
    db: sled::Db,
    /// sled's own file, for taking room behind its end.
    file: File,
}

/// What sled may write for one row: the row, and its share of the pages that are written anew.
const ROW_BYTES: u64 = 2 << 10;
/// What sled may write beside the rows: its buffers, which are flushed whole.
const BATCH_BYTES: u64 = 1 << 20;

fn failed(found: impl std::fmt::Display) -> StoreError {
    StoreError::Io { operation: "the index", found: format!("{found}; it is rebuilt at the next start") }
}

fn caught<T>(work: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(failed),
        Err(_) => Err(failed("it panicked")),
    }
}

impl SledIndex {
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        // No timed flush: it would only cost, as no promise rests on it.
        let config = sled::Config::new()
            .path(dir)
            .cache_capacity(cache_bytes)
            .flush_every_ms(None)
            .mode(sled::Mode::HighThroughput);
        let db = caught(|| config.open())?;
        let file = File::options().write(true).open(dir.join("db")).map_err(failed)?;
        Ok(Self { db, file })
    }
}

impl Index for SledIndex {
    /// sled stops for good when a write of its own finds no room, so the room is taken behind the file's end first. Where
    /// the file system cannot do that, nothing is taken, and such a stop leads to a rebuild at the next start.
    fn reserve(&self, rows: usize) -> Result<(), StoreError> {
        let taken = self.file.metadata().and_then(|metadata| {
            let more = BATCH_BYTES + ROW_BYTES * rows as u64;
            match rustix::fs::fallocate(&self.file, FallocateFlags::KEEP_SIZE, metadata.len(), more) {
                Err(Errno::OPNOTSUPP) => Ok(()),
                other => Ok(other?),
            }
        });
        taken.map_err(io_error("taking room for the index"))
    }

    fn apply(&self, changes: &Changes) -> Result<(), StoreError> {
        let mut batch = sled::Batch::default();
        for (key, value) in changes {
            match value {
                Some(value) => batch.insert(key.as_slice(), value.as_slice()),
                None => batch.remove(key.as_slice()),
            }
        }
        caught(|| self.db.apply_batch(batch))
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(caught(|| self.db.get(key))?.map(|value| value.to_vec()))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        if from >= to {
            return Ok(vec![]);
        }
        caught(|| {
            let rows = self.db.range(from..to).take(limit);
            rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
        })
    }

    fn flush(&self) -> Result<(), StoreError> {
        caught(|| self.db.flush()).map(drop)
    }

    fn clear(&self) -> Result<(), StoreError> {
        caught(|| self.db.clear())
    }
}
