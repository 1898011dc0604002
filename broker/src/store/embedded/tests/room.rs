//! A rebuild that finds no room: what it gets from the ballast, what it says without, and that the next try works.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use docaxis_protocol::space::SpaceConfig;

use super::super::bulk::{Bounds, Bulk, Target};
use super::super::index::{Changes, IdKey, Row};
use super::super::keys::{Area, Intake, Location};
use super::super::rows::Rows as _;
use super::super::*;
use super::support::*;
use crate::disk::DiskFile;
use crate::disk::sim::{Failure, SimDisk};
use crate::store::claims::{handover, id, letter, rejection, wait};
use crate::store::{Rejection, Seq};

const MIB: u64 = 1 << 20;
const LETTERS: u64 = 400;
/// Room that a row takes on the disk.
const ROW_BYTES: u64 = 128;

/// An index whose rows are in memory and whose room is taken on the simulated disk.
struct Narrow {
    rows: MemoryIndex,
    file: Arc<dyn DiskFile>,
    /// Rows for which room was taken. Two threads write at once, so the room of one is not the other's.
    taken: Mutex<u64>,
    /// Rows that were put, each of which takes room of its own.
    put: AtomicU64,
    /// Times that there was no room.
    short: AtomicU64,
}

impl Narrow {
    fn new(disk: &SimDisk) -> Self {
        let path = Path::new(DATA).join("index-of-the-test");
        if disk.exists(&path).unwrap() {
            disk.remove(&path).unwrap();
        }
        let file = disk.create(&path).unwrap();
        Self {
            rows: MemoryIndex::default(),
            file,
            taken: Mutex::default(),
            put: AtomicU64::new(0),
            short: AtomicU64::new(0),
        }
    }
}

impl Index for Narrow {
    fn apply(&self, changes: &Changes) -> Result<(), StoreError> {
        let put = self.put.fetch_add(changes.len() as u64, Ordering::SeqCst) + changes.len() as u64;
        assert!(put <= *self.taken.lock().unwrap(), "rows are put for which no room was taken");
        self.rows.apply(changes)
    }
    fn reserve(&self, rows: usize) -> Result<(), StoreError> {
        let mut taken = self.taken.lock().unwrap();
        let wanted = *taken + rows as u64;
        self.file.set_len(wanted * ROW_BYTES).map_err(|error| {
            self.short.fetch_add(1, Ordering::SeqCst);
            io_error("taking room")(error)
        })?;
        *taken = wanted;
        Ok(())
    }
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.rows.get(key)
    }
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        self.rows.scan(from, to, limit)
    }
    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }
    fn clear(&self) -> Result<(), StoreError> {
        self.rows.clear()
    }
}

/// One batch after the other, so that it is known how much room is taken at once.
fn little(index: &Arc<MemoryIndex>) -> EmbeddedConfig {
    let rebuild = Bounds { pages: 4, bytes: 64 << 10, ids: 64 };
    EmbeddedConfig { rebuild, space: SpaceConfig::default(), ..tiny(index) }
}

/// A disk of 64 MiB with the files of a closed store and a ballast of 2 MiB.
fn filled() -> SimDisk {
    let disk = SimDisk::new();
    disk.bound(64 * MIB, 4096);
    let store = EmbeddedStore::open(Path::new(DATA), little(&Arc::default()), Arc::new(disk.clone())).unwrap();
    for n in 0..LETTERS {
        let sent = letter(n, &["H37.DN.001", "A53.01"]);
        let Accepted::New(Seq(seq)) = wait(store.accept(sent.clone())).unwrap() else { panic!("letter {n} is new") };
        wait(store.record(handover(seq, "H37.DN.001", &sent.evidence))).unwrap();
        // Under ids that come again, so that it matters what was there before.
        wait(store.reject(Rejection { id: id(10_000 + n % 7), ..rejection(10_000 + n) })).unwrap();
    }
    wait(store.close()).unwrap();
    disk
}

fn ballast_files(disk: &SimDisk) -> usize {
    disk.list(&Path::new(DATA).join("ballast")).unwrap().len()
}

/// Builds the index without anybody who watches the disk, as `docaxis broker rebuild` does.
fn build(disk: &SimDisk, config: &EmbeddedConfig) -> (Narrow, Result<(), StoreError>) {
    let (dir, shared): (&Path, Arc<dyn Disk>) = (Path::new(DATA), Arc::new(disk.clone()));
    let index = Narrow::new(disk);
    let space = Space::open(shared.clone(), dir, config.space).unwrap();
    let evidence = EvidenceFiles::open(shared.clone(), &dir.join("evidence"), config.evidence_file_bytes).unwrap();
    let segments = Segments::open(shared, &dir.join("journal"), config).unwrap();
    let recovery = Recovery { segments: &segments, evidence: &evidence, progress: &config.progress };
    let built = recovery.rebuild(Target { index: &index, space: &space }, config.rebuild).map(drop);
    (index, built)
}

#[test]
fn a_rebuild_on_a_full_disk_goes_on_in_the_room_that_the_ballast_gives_back() {
    let (disk, config) = (filled(), little(&Arc::default()));
    let (expected, built) = build(&disk, &config);
    built.unwrap();
    // Without a ballast there would be room for nothing.
    disk.remove(&Path::new(DATA).join("index-of-the-test")).unwrap();
    disk.leave_free(Some(ROW_BYTES), None);
    let (index, built) = build(&disk, &config);
    built.unwrap();
    assert!(index.rows.rows() == expected.rows.rows(), "rows differ from those that were built with room");
    let short = index.short.load(Ordering::SeqCst);
    let put = index.put.load(Ordering::SeqCst);
    assert!(short >= 3, "{put} rows, and no room {short} times: all was taken out of what the first look gave back");
    assert!((1..60).contains(&ballast_files(&disk)), "{} files of the ballast are left", ballast_files(&disk));
}

#[test]
fn a_rebuild_without_room_says_what_it_needs_and_what_to_do_and_the_next_try_leads_to_the_same_state() {
    let (disk, config) = (filled(), little(&Arc::default()));
    let (expected, built) = build(&disk, &config);
    built.unwrap();
    disk.remove(&Path::new(DATA).join("index-of-the-test")).unwrap();
    let config = EmbeddedConfig { space: SpaceConfig { ballast_mib: 0, ..config.space }, ..config };
    // Enough for some of it: the ballast goes when it is turned off.
    Space::open(Arc::new(disk.clone()), Path::new(DATA), config.space).unwrap();
    disk.leave_free(Some(50 << 10), None);
    let (index, built) = build(&disk, &config);
    let error = built.unwrap_err();
    assert!(matches!(error, StoreError::DiskFull(_)), "{error}");
    let said = error.to_string();
    for words in ["of the file system's bytes are used", "of 64.0 MiB are free", "the ballast is used up", "Make room"]
    {
        assert!(said.contains(words), "{said}");
    }
    assert!(index.put.load(Ordering::SeqCst) > 0, "nothing was written before it ended");
    assert_eq!(index.get(&keys::totals()).unwrap(), None, "half an index counts as whole");
    disk.leave_free(None, None);
    let (index, built) = build(&disk, &config);
    built.unwrap();
    assert!(index.rows.rows() == expected.rows.rows(), "rows differ from those that were built at once");
}

#[test]
fn a_rebuild_that_found_no_room_leaves_no_half_index_behind_and_the_next_one_works() {
    let (disk, folder) = (filled(), tempfile::tempdir().unwrap());
    // The index lies on a real disk; the journal, whose end is written once more, on a simulated one.
    let config = EmbeddedConfig { index: IndexKind::Sled, ..little(&Arc::default()) };
    let (dir, shared): (&Path, Arc<dyn Disk>) = (Path::new(DATA), Arc::new(disk.clone()));
    let space = Space::open(shared.clone(), dir, config.space).unwrap();
    let evidence = EvidenceFiles::open(shared.clone(), &dir.join("evidence"), config.evidence_file_bytes).unwrap();
    let segments = Segments::open(shared, &dir.join("journal"), &config).unwrap();
    let recovery = Recovery { segments: &segments, evidence: &evidence, progress: &config.progress };
    disk.fail_at(1, Failure::FullOnce);
    let error = recovery.rebuild_at(folder.path(), &config, &space).map(drop).unwrap_err();
    assert!(matches!(error, StoreError::DiskFull(_)), "{error}");
    assert!(!folder.path().join("index").exists(), "what it took is not given back");
    let (index, _, totals) = recovery.rebuild_at(folder.path(), &config, &space).unwrap();
    assert_eq!(totals.dispatches, LETTERS);
    assert!(index.get(&keys::totals()).unwrap().is_some());
}

/// Breaks the promise that nothing was put when the disk was full.
struct PutsAndFails(MemoryIndex, AtomicU64);

impl Index for PutsAndFails {
    fn apply(&self, changes: &Changes) -> Result<(), StoreError> {
        self.0.apply(changes)
    }
    fn reserve(&self, _rows: usize) -> Result<(), StoreError> {
        Ok(())
    }
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.0.get(key)
    }
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        self.0.scan(from, to, limit)
    }
    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }
    fn clear(&self) -> Result<(), StoreError> {
        self.0.clear()
    }
    fn put_ids(&self, ids: &[(IdKey, u64)]) -> Result<Vec<(u64, u64)>, StoreError> {
        let put = self.0.put_ids(ids)?;
        let first = self.1.fetch_add(1, Ordering::SeqCst) == 0;
        if first { Err(StoreError::DiskFull("no room in the middle".to_owned())) } else { Ok(put) }
    }
}

#[test]
fn ids_that_were_put_by_half_and_again_make_no_dispatch_its_own_predecessor() {
    let index = PutsAndFails(MemoryIndex::default(), AtomicU64::new(0));
    let space = Space::open(Arc::new(SimDisk::new()), Path::new(DATA), SpaceConfig::default()).unwrap();
    let mut bulk = Bulk::new(Target { index: &index, space: &space }, Bounds::default());
    let at = Location { area: Area::Journal, segment: 1, offset: 4096 };
    for leaf in 0..2 {
        bulk.put_leaf(leaf, chains::alone([7; 32], leaf, at)).unwrap();
        bulk.put_id(&[7; 16], Intake::Accepted, leaf).unwrap();
    }
    let error = bulk.finish(&Totals::default()).unwrap_err();
    assert!(matches!(error, StoreError::Io { operation: "the index", .. }), "{error}");
    assert_eq!(index.get(&keys::totals()).unwrap(), None);
}
