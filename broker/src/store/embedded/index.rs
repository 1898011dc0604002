//! The index: an ordered map that is only a view of evidence and journal. It may be lost or damaged at any time and is
//! rebuilt from them, so nothing here is trusted for durability; what it must do is apply a batch wholly or not at all
//! when the process dies.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use docaxis_protocol::space::binary;
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use super::ids::{FILL, IdFile, PAGE_BYTES};
use super::keys::{self, Totals};
use super::leaves::{LeafFile, SLOT_BYTES};
use super::segments::{io_error, salt};
use crate::store::StoreError;

/// The table of leaves, by its keys' first byte.
const LEAVES: u8 = b'l';
/// The table of ids.
const IDS: u8 = b'i';

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

    /// Puts rows of leaves, ascending, taking the room for them. May be tried again when the disk was full.
    fn put_leaves(&self, rows: &[(u64, Vec<u8>)]) -> Result<(), StoreError> {
        self.reserve(rows.len())?;
        self.apply(&rows.iter().map(|(leaf, row)| (keys::leaf(*leaf), Some(row.clone()))).collect())
    }

    /// Gives ids their newest leaves, taking the room for them; the leaves ascend. Returns each leaf that took another one's
    /// place, and that one. [`StoreError::DiskFull`] only as long as nothing was put: what a second try would find in the
    /// table would be its own.
    fn put_ids(&self, ids: &[(IdKey, u64)]) -> Result<Vec<(u64, u64)>, StoreError> {
        self.reserve(ids.len())?;
        let mut replaced = Vec::new();
        for (id, leaf) in ids {
            let key = [&[IDS][..], id].concat();
            let before = self.get(&key)?.and_then(|bytes| keys::number_at(&bytes, 0));
            replaced.extend(before.map(|before| (*leaf, before)));
            self.apply(&Changes::from([(key, Some(leaf.to_be_bytes().to_vec()))]))?;
        }
        Ok(replaced)
    }
}

/// A key of the table of ids without the table's name: the kind and the id.
pub type IdKey = [u8; 17];

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

/// sled, kept to what it is good at (small rows, one writer, no promise), and the tables of leaves and ids beside it. sled may
/// panic on damaged files, so every call is caught.
pub struct FileIndex {
    rows: sled::Db,
    /// sled's own file, for taking room behind its end.
    file: File,
    leaves: LeafFile,
    /// Leaves below this one have room, as far as [`Index::put_leaves`] took it.
    leaf_room: AtomicU64,
    ids: IdFile,
}

/// Leaves for which room is taken at once while an index is built.
const LEAVES_AHEAD: usize = 4 << 10;
/// What sled may write for one row: the row, and its share of the pages that are written anew.
const ROW_BYTES: u64 = 2 << 10;
/// What sled may write beside the rows: its buffers, which are flushed whole.
const BATCH_BYTES: u64 = 1 << 20;

/// Takes room behind a file's end, without making it longer. Where the file system cannot, nothing is taken.
fn take_room(file: &File, bytes: u64) -> io::Result<()> {
    let end = file.metadata()?.len();
    match rustix::fs::fallocate(file, FallocateFlags::KEEP_SIZE, end, bytes) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        other => Ok(other?),
    }
}

fn no_room(bytes: u64) -> impl Fn(io::Error) -> StoreError {
    move |e| match io_error("taking room for the index")(e) {
        StoreError::DiskFull(found) => {
            StoreError::DiskFull(format!("the index needs {} more ({found})", binary(bytes)))
        }
        other => other,
    }
}

fn failed(found: impl std::fmt::Display) -> StoreError {
    StoreError::Io { operation: "the index", found: format!("{found}; it is rebuilt at the next start") }
}

fn caught<T>(work: impl FnOnce() -> sled::Result<T>) -> Result<T, StoreError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(failed),
        Err(_) => Err(failed("it panicked")),
    }
}

/// The leaf of a key in the table of leaves. A key that goes on behind the number stands after that leaf.
fn leaf_of(key: &[u8]) -> Option<u64> {
    let digits = key.strip_prefix(&[LEAVES])?;
    let mut number = [0; 8];
    let given = digits.len().min(8);
    number[..given].copy_from_slice(&digits[..given]);
    let leaf = u64::from_be_bytes(number);
    Some(if digits.len() > 8 { leaf.saturating_add(1) } else { leaf })
}

/// What a key in the table of ids is found by.
fn id_of(key: &[u8]) -> Option<&[u8]> {
    key.strip_prefix(&[IDS])
}

impl FileIndex {
    pub fn open(dir: &Path, cache_bytes: u64) -> Result<Self, StoreError> {
        std::fs::create_dir_all(dir).map_err(failed)?;
        // No timed flush: it would only cost, as no promise rests on it.
        let config = sled::Config::new()
            .path(dir.join("rows"))
            .cache_capacity(cache_bytes)
            .flush_every_ms(None)
            .mode(sled::Mode::HighThroughput);
        let written = |name| std::fs::metadata(dir.join(name)).is_ok_and(|found| found.len() > 0);
        let (is_new, has_ids) = (!written("rows/db"), written("ids"));
        let rows = caught(|| config.open())?;
        let leaves = LeafFile::open(&dir.join("leaves")).map_err(failed)?;
        let ids = IdFile::open(&dir.join("ids"), [salt()?, salt()?]).map_err(failed)?;
        let file = File::options().write(true).open(dir.join("rows").join("db")).map_err(failed)?;
        let leaf_room = AtomicU64::new(0);
        let index = Self { rows, file, leaves, leaf_room, ids };
        if !is_new && !has_ids {
            return Err(failed("its table of ids is gone"));
        }
        index.check_length()?;
        Ok(index)
    }

    /// Leaves are never older than the other rows: a file with fewer of them is not the one that was written. The table of ids
    /// knows its own length.
    fn check_length(&self) -> Result<(), StoreError> {
        let Some(bytes) = self.get(&keys::totals())? else { return Ok(()) };
        let (found, expected) = (self.leaves.end(), keys::read_row::<Totals>(&bytes)?.leaves);
        if found < expected {
            return Err(failed(format_args!("it has {found} leaves; expected at least {expected}")));
        }
        Ok(())
    }
}

impl Index for FileIndex {
    /// sled stops for good when a write of its own finds no room, so the room is taken first. Where the file
    /// system cannot do that, such a stop leads to a rebuild at the next start.
    fn reserve(&self, rows: usize) -> Result<(), StoreError> {
        let of_each = [
            (&self.file, BATCH_BYTES + ROW_BYTES * rows as u64),
            (self.leaves.file(), (SLOT_BYTES * rows) as u64),
            (self.ids.file(), PAGE_BYTES as u64 * (2 + rows as u64 / FILL)),
        ];
        of_each.into_iter().try_for_each(|(file, bytes)| take_room(file, bytes).map_err(no_room(bytes)))
    }

    /// Leaves and ids first: their rows may be newer than the others, never older.
    fn apply(&self, changes: &Changes) -> Result<(), StoreError> {
        let leaves = changes.range(vec![LEAVES]..vec![LEAVES + 1]);
        let slots = leaves.filter_map(|(key, value)| Some((leaf_of(key)?, value.as_deref())));
        // New ones before those that lead to them: whenever the process dies, no row names a leaf that is not there.
        let end = self.leaves.end();
        let (new, old): (Vec<_>, Vec<_>) = slots.partition(|(leaf, _)| *leaf >= end);
        self.leaves.write(new.into_iter()).map_err(failed)?;
        self.leaves.write(old.into_iter()).map_err(failed)?;
        let ids = changes.range(vec![IDS]..vec![IDS + 1]);
        let ids = ids.filter_map(|(key, value)| Some((id_of(key)?, keys::number_at(value.as_ref()?, 0)?)));
        drop(self.ids.put(ids).map_err(failed)?);
        let mut batch = sled::Batch::default();
        let others = changes.iter().filter(|(key, _)| !matches!(key.first(), Some(&LEAVES | &IDS)));
        for (key, value) in others {
            match value {
                Some(value) => batch.insert(key.as_slice(), value.as_slice()),
                None => batch.remove(key.as_slice()),
            }
        }
        caught(|| self.rows.apply_batch(batch))
    }

    fn put_leaves(&self, rows: &[(u64, Vec<u8>)]) -> Result<(), StoreError> {
        let end = rows.last().map_or(0, |(leaf, _)| leaf.saturating_add(1));
        if end > self.leaf_room.load(Ordering::Relaxed) {
            let bytes = (SLOT_BYTES * LEAVES_AHEAD) as u64 + end.saturating_sub(self.leaves.end()) * SLOT_BYTES as u64;
            take_room(self.leaves.file(), bytes).map_err(no_room(bytes))?;
            self.leaf_room.store(end + LEAVES_AHEAD as u64, Ordering::Relaxed);
        }
        self.leaves.write(rows.iter().map(|(leaf, row)| (*leaf, Some(row.as_slice())))).map_err(failed)
    }

    fn put_ids(&self, ids: &[(IdKey, u64)]) -> Result<Vec<(u64, u64)>, StoreError> {
        let bytes = PAGE_BYTES as u64 * (2 + ids.len() as u64 / FILL);
        take_room(self.ids.file(), bytes).map_err(no_room(bytes))?;
        self.ids.put(ids.iter().map(|(id, leaf)| (id.as_slice(), *leaf))).map_err(failed)
    }

    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match leaf_of(key) {
            Some(leaf) => self.leaves.get(leaf).map_err(failed),
            None if let Some(id) = id_of(key) => {
                Ok(self.ids.find(id).map_err(failed)?.map(|leaf| leaf.to_be_bytes().to_vec()))
            }
            None => Ok(caught(|| self.rows.get(key))?.map(|value| value.to_vec())),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        if from >= to {
            return Ok(vec![]);
        }
        if let Some(first) = leaf_of(from) {
            return self.leaves.scan(first, leaf_of(to).unwrap_or(u64::MAX), limit).map_err(failed);
        }
        caught(|| {
            let rows = self.rows.range(from..to).take(limit);
            rows.map(|row| row.map(|(key, value)| (key.to_vec(), value.to_vec()))).collect()
        })
    }

    fn flush(&self) -> Result<(), StoreError> {
        caught(|| self.rows.flush()).map(drop)
    }

    fn clear(&self) -> Result<(), StoreError> {
        self.leaf_room.store(0, Ordering::Relaxed);
        self.leaves.clear().and_then(|()| self.ids.clear()).map_err(failed)?;
        caught(|| self.rows.clear())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::embedded::keys;

    #[test]
    fn an_index_opens_again_where_two_dispatches_have_one_id_and_not_without_its_ids() {
        let folder = tempfile::tempdir().unwrap();
        let files = FileIndex::open(folder.path(), 8 << 20).unwrap();
        let totals = Totals { leaves: 2, dispatches: 2, ..Totals::default() };
        let id = keys::with_id(&[7; 16], keys::Intake::Accepted);
        for leaf in [0u64, 1] {
            let changes = [
                (keys::leaf(leaf), Some(b"row".to_vec())),
                (id.clone(), Some(leaf.to_be_bytes().to_vec())),
                (keys::totals(), Some(keys::row(&totals).unwrap())),
            ];
            files.apply(&Changes::from(changes)).unwrap();
        }
        drop(files);
        let files = FileIndex::open(folder.path(), 8 << 20).unwrap();
        assert_eq!(files.get(&id).unwrap(), Some(1u64.to_be_bytes().to_vec()));
        drop(files);
        std::fs::remove_file(folder.path().join("ids")).unwrap();
        assert!(FileIndex::open(folder.path(), 8 << 20).is_err());
    }

    /// Both engines of the index give the same answers.
    #[test]
    fn the_files_and_the_twin_in_memory_agree() {
        let folder = tempfile::tempdir().unwrap();
        let files = FileIndex::open(folder.path(), 8 << 20).unwrap();
        let memory = MemoryIndex::default();
        let mut changes = Changes::new();
        for leaf in (0..3_000).chain(4_000..4_100) {
            changes.insert(keys::leaf(leaf), Some(format!("leaf {leaf}").into_bytes()));
        }
        for name in ["b", "k", "l", "m", "q"] {
            changes.insert(keys::notice(name), Some(name.as_bytes().to_vec()));
        }
        let later = Changes::from([(keys::leaf(7), Some(b"seven".to_vec())), (keys::notice("k"), None)]);
        for changes in [&changes, &later] {
            files.apply(changes).unwrap();
            memory.apply(changes).unwrap();
        }
        let after = [keys::leaf(2_999).as_slice(), &[0]].concat();
        for (from, to) in [
            (keys::leaf(0), keys::end_of(b"l")),
            (keys::leaf(5), keys::leaf(9)),
            (keys::leaf(9), keys::leaf(5)),
            (after, keys::end_of(b"l")),
            (b"l".to_vec(), keys::leaf(3)),
            (keys::notice(""), keys::end_of(b"n")),
        ] {
            for limit in [1, 2, 1_500, 9_999] {
                assert_eq!(files.scan(&from, &to, limit).unwrap(), memory.scan(&from, &to, limit).unwrap(), "{from:?}");
            }
        }
        for key in [keys::leaf(7), keys::leaf(3_500), keys::leaf(9_999), keys::notice("k"), keys::notice("q")] {
            assert_eq!(files.get(&key).unwrap(), memory.get(&key).unwrap(), "{key:?}");
        }
        files.clear().unwrap();
        assert_eq!(files.get(&keys::leaf(7)).unwrap(), None);
        assert_eq!(files.scan(&keys::notice(""), b"z", 9).unwrap(), vec![]);
    }
}
