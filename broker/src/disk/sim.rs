//! A disk in memory that keeps what was written (*live*) apart from what is durable, so that a test can cut the power
//! at any operation and look at what is left.
//!
//! Contents are durable after `sync_data`, names after `sync_dir`. A cut drops every name that was not synced, and of
//! every unsynced write keeps what the test asks for: nothing, or some of its 512-byte sectors.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use docaxis_protocol::space::{Amount, Usage};

use super::{Disk, DiskFile};

const SECTOR: usize = 512;

/// What remains of writes that were not synced when the power went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing.
    Drop,
    /// All of it: as after the death of the process alone.
    Keep,
    /// Each sector by itself, as the seed decides.
    Tear(u64),
}

/// What an injected failure does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// This operation and every later one fails, as if the power were gone.
    PowerLoss,
    /// This operation fails with an I/O error; later ones succeed. A failed sync has dropped what it should have kept.
    Once,
    /// This operation and later ones that need room fail with "no space".
    Full,
    /// This operation panics, as a defect in whoever asked for it would.
    Panic,
    /// This operation fails with "no space", though it may need none: as where overwriting takes new room.
    FullOnce,
}

#[derive(Debug, Clone, Default)]
struct Contents {
    live: Vec<u8>,
    durable: Vec<u8>,
    /// Ranges written since the last sync.
    dirty: Vec<(usize, usize)>,
    /// Where the last read ended that went furthest since [`SimDisk::forget_reads`].
    furthest_read: u64,
}

#[derive(Debug, Default)]
struct State {
    files: Vec<Contents>,
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    dirs: BTreeSet<PathBuf>,
    locks: BTreeSet<PathBuf>,
    operations: u64,
    fail_at: Option<(u64, Failure)>,
    boot: u64,
    bounds: Bounds,
}

/// How much fits; 0 where there is no bound. What others have written is not ours to remove.
#[derive(Debug, Clone, Copy, Default)]
struct Bounds {
    bytes: u64,
    inodes: u64,
    others_bytes: u64,
    others_inodes: u64,
    /// The disk does not say how full it is.
    hidden: bool,
}

/// The disk; clones share it.
#[derive(Debug, Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

struct SimFile {
    state: Arc<Mutex<State>>,
    file: usize,
}

struct SimLock {
    state: Arc<Mutex<State>>,
    path: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        lock(&self.state).locks.remove(&self.path);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

fn to_index(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

impl State {
    /// Counts one operation that changes the disk, and fails it if a test asked for that.
    fn operate(&mut self, needs_room: bool) -> io::Result<()> {
        self.operations += 1;
        match self.fail_at {
            Some((at, Failure::PowerLoss)) if self.operations >= at => Err(io::Error::other("the power is gone")),
            Some((at, Failure::Once)) if self.operations == at => Err(io::Error::other("injected failure")),
            Some((at, Failure::Full)) if self.operations >= at && needs_room => {
                Err(io::Error::from(io::ErrorKind::StorageFull))
            }
            Some((at, Failure::Panic)) if self.operations == at => panic!("on purpose"),
            Some((at, Failure::FullOnce)) if self.operations == at => Err(io::Error::from(io::ErrorKind::StorageFull)),
            _ => Ok(()),
        }
    }

    fn usage(&self) -> Usage {
        let ours: usize = self.names.values().map(|file| self.files[*file].live.len()).sum();
        let amount = |ours: usize, others: u64, bound: u64| {
            let used = (ours as u64).saturating_add(others);
            if bound == 0 { Amount::default() } else { Amount { used, free: bound.saturating_sub(used) } }
        };
        let Bounds { bytes, inodes, others_bytes, others_inodes, .. } = self.bounds;
        Usage { bytes: amount(ours, others_bytes, bytes), inodes: amount(self.names.len(), others_inodes, inodes) }
    }

    /// Whether so many bytes and names more still fit.
    fn fits(&self, bytes: usize, names: u64) -> io::Result<()> {
        if self.bounds.bytes == 0 && self.bounds.inodes == 0 {
            return Ok(());
        }
        let usage = self.usage();
        let beyond = |bound: u64, of: Amount, more: u64| bound > 0 && more > of.free;
        if beyond(self.bounds.bytes, usage.bytes, bytes as u64) || beyond(self.bounds.inodes, usage.inodes, names) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        Ok(())
    }

    fn index_of(&self, path: &Path) -> io::Result<usize> {
        self.names
            .get(path)
            .copied()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display())))
    }
}

impl SimDisk {
    pub fn new() -> Self {
        Self::default()
    }

    /// How many operations changed the disk, or tried to.
    pub fn operations(&self) -> u64 {
        lock(&self.state).operations
    }

    /// Makes the `n`th operation from now (1 is the next) fail.
    pub fn fail_at(&self, n: u64, failure: Failure) {
        let mut state = lock(&self.state);
        let at = state.operations + n;
        state.fail_at = Some((at, failure));
    }

    /// How far into this file anybody has read.
    pub fn furthest_read(&self, path: &Path) -> u64 {
        let state = lock(&self.state);
        state.names.get(path).map_or(0, |file| state.files[*file].furthest_read)
    }

    pub fn forget_reads(&self) {
        lock(&self.state).files.iter_mut().for_each(|file| file.furthest_read = 0);
    }

    pub fn heal(&self) {
        lock(&self.state).fail_at = None;
    }

    /// Gives the disk an end: so many bytes, and so many names of files. 0 is no bound.
    pub fn bound(&self, bytes: u64, inodes: u64) {
        let mut state = lock(&self.state);
        (state.bounds.bytes, state.bounds.inodes) = (bytes, inodes);
    }

    /// The disk says from now on that it has no end, and still has it.
    pub fn hide_bound(&self) {
        lock(&self.state).bounds.hidden = true;
    }

    /// Another program leaves only so much free, or gives back what it took.
    pub fn leave_free(&self, bytes: Option<u64>, inodes: Option<u64>) {
        let mut state = lock(&self.state);
        (state.bounds.others_bytes, state.bounds.others_inodes) = (0, 0);
        let Usage { bytes: of_bytes, inodes: of_inodes } = state.usage();
        state.bounds.others_bytes = bytes.map_or(0, |free| of_bytes.free.saturating_sub(free));
        state.bounds.others_inodes = inodes.map_or(0, |free| of_inodes.free.saturating_sub(free));
    }

    /// The disk as the next boot finds it after a cut now. `self` stays as it is.
    pub fn after(&self, cut: Cut) -> Self {
        let state = lock(&self.state);
        if cut == Cut::Keep {
            // The process died and the kernel did not: what was not durable still is not.
            let kept = State {
                files: state.files.clone(),
                names: state.names.clone(),
                durable_names: state.durable_names.clone(),
                dirs: state.dirs.clone(),
                boot: state.boot,
                bounds: state.bounds,
                ..State::default()
            };
            return Self { state: Arc::new(Mutex::new(kept)) };
        }
        let mut seed = match cut {
            Cut::Tear(seed) => seed | 1,
            _ => 1,
        };
        let files = state
            .files
            .iter()
            .map(|file| {
                let bytes = if cut == Cut::Drop { file.durable.clone() } else { torn(file, &mut seed) };
                Contents { live: bytes.clone(), durable: bytes, ..Contents::default() }
            })
            .collect();
        let state = State {
            files,
            names: state.durable_names.clone(),
            durable_names: state.durable_names.clone(),
            dirs: state.dirs.clone(),
            boot: state.boot + 1,
            bounds: state.bounds,
            ..State::default()
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    /// The live contents of a file.
    pub fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = lock(&self.state);
        let file = state.index_of(path)?;
        Ok(state.files[file].live.clone())
    }

    /// Changes a file behind everybody's back, durably: what a failing medium does.
    pub fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut state = lock(&self.state);
        let file = state.index_of(path)?;
        change(&mut state.files[file].live);
        state.files[file].durable = state.files[file].live.clone();
        Ok(())
    }
}

/// The durable bytes with some sectors of the unsynced writes in place.
fn torn(file: &Contents, seed: &mut u64) -> Vec<u8> {
    let mut bytes = file.durable.clone();
    for &(start, end) in &file.dirty {
        let mut at = start;
        while at < end {
            let stop = ((at / SECTOR + 1) * SECTOR).min(end).min(file.live.len());
            // xorshift: any sequence will do, as long as a seed repeats it.
            *seed ^= *seed << 13;
            *seed ^= *seed >> 7;
            *seed ^= *seed << 17;
            if *seed & 4 == 0 && at < stop {
                if bytes.len() < stop {
                    bytes.resize(stop, 0);
                }
                bytes[at..stop].copy_from_slice(&file.live[at..stop]);
            }
            at = (at / SECTOR + 1) * SECTOR;
        }
    }
    bytes
}

impl DiskFile for SimFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = lock(&self.state);
        let start = to_index(offset)?;
        let growth = (start + bytes.len()).saturating_sub(state.files[self.file].live.len());
        let grows = growth > 0;
        state.operate(grows)?;
        state.fits(growth, 0)?;
        let file = &mut state.files[self.file];
        if grows {
            file.live.resize(start + bytes.len(), 0);
        }
        file.live[start..start + bytes.len()].copy_from_slice(bytes);
        file.dirty.push((start, start + bytes.len()));
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = lock(&self.state);
        let Contents { live, furthest_read, .. } = &mut state.files[self.file];
        let start = to_index(offset)?.min(live.len());
        let len = buffer.len().min(live.len() - start);
        buffer[..len].copy_from_slice(&live[start..start + len]);
        *furthest_read = (*furthest_read).max((start + len) as u64);
        Ok(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = lock(&self.state);
        let done = state.operate(false);
        let file = &mut state.files[self.file];
        match done {
            Ok(()) => {
                let len = file.live.len();
                file.durable.resize(len, 0);
                for (start, end) in std::mem::take(&mut file.dirty) {
                    let end = end.min(len);
                    if start < end {
                        file.durable[start..end].copy_from_slice(&file.live[start..end]);
                    }
                }
                Ok(())
            }
            Err(e) => {
                // As in Linux: the pages count as clean afterwards, though the disk never saw them.
                file.dirty.clear();
                Err(e)
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.state).files[self.file].live.len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = lock(&self.state);
        let len = to_index(len)?;
        let grows = len > state.files[self.file].live.len();
        state.operate(grows)?;
        let growth = len.saturating_sub(state.files[self.file].live.len());
        state.fits(growth, 0)?;
        let file = &mut state.files[self.file];
        let old = file.live.len();
        file.live.resize(len, 0);
        file.dirty.push((len.min(old), len.max(old)));
        Ok(())
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        for ancestor in dir.ancestors() {
            state.dirs.insert(ancestor.to_owned());
        }
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = lock(&self.state);
        state.operate(true)?;
        if state.names.contains_key(path) {
            return Err(io::Error::from(io::ErrorKind::AlreadyExists));
        }
        state.fits(0, 1)?;
        let file = state.files.len();
        state.files.push(Contents::default());
        state.names.insert(path.to_owned(), file);
        drop(state);
        Ok(Arc::new(SimFile { state: self.state.clone(), file }))
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>> {
        let file = lock(&self.state).index_of(path)?;
        Ok(Arc::new(SimFile { state: self.state.clone(), file }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.operate(false)?;
        let file = state.index_of(from)?;
        state.names.remove(from);
        state.names.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.operate(false)?;
        state.index_of(path)?;
        state.names.remove(path);
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = lock(&self.state);
        let inside = |path: &PathBuf| {
            (path.parent() == Some(dir)).then(|| path.file_name()?.to_str().map(str::to_owned)).flatten()
        };
        let mut names: Vec<_> = state.names.keys().chain(&state.dirs).filter_map(inside).collect();
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let state = lock(&self.state);
        Ok(state.names.contains_key(path) || state.dirs.contains(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = lock(&self.state);
        state.operate(false)?;
        let of_dir = |path: &PathBuf| path.parent() == Some(dir);
        state.durable_names.retain(|path, _| !of_dir(path));
        let now: Vec<_> = state.names.iter().filter(|(path, _)| of_dir(path)).map(|(p, f)| (p.clone(), *f)).collect();
        state.durable_names.extend(now);
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>> {
        if lock(&self.state).locks.insert(path.to_owned()) {
            Ok(Box::new(SimLock { state: self.state.clone(), path: path.to_owned() }))
        } else {
            Err(io::Error::from(io::ErrorKind::WouldBlock))
        }
    }

    fn usage(&self, _dir: &Path) -> io::Result<Usage> {
        let state = lock(&self.state);
        Ok(if state.bounds.hidden { Usage::default() } else { state.usage() })
    }

    fn boot_id(&self) -> String {
        lock(&self.state).boot.to_string()
    }
}
