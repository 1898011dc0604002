//! The journal's files: numbered segments in use, and pre-written ones kept ready.
//!
//! A file is called `N.segment` only when its header for that use is durable, so an unreadable header is damage and
//! never a crash's trace. A freed file becomes a spare under another name first, and only then gets a new header; its
//! old groups carry the old epoch and salt, and are no groups of the new segment.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use super::config::EmbeddedConfig;
use super::keys::Position;
use super::layout::{FILE_HEADER_BYTES, FileHeader, FileKind, PAGE};
use crate::disk::{Disk, DiskFile};
use crate::store::StoreError;

const SEGMENT: &str = "segment";
const SPARE: &str = "spare";

/// One open segment.
#[derive(Clone)]
pub struct Segment {
    pub header: FileHeader,
    pub file: Arc<dyn DiskFile>,
    pub bytes: u64,
}

impl Segment {
    /// Where the first group begins.
    pub const fn start(&self) -> Position {
        Position { segment: self.header.number, offset: PAGE as u64, sequence: self.header.first }
    }
}

#[derive(Default)]
struct Spares {
    ready: Vec<(PathBuf, Arc<dyn DiskFile>)>,
    next: u64,
}

/// All of the journal's files, shared by the committer, the settler and readers.
pub struct Segments {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    bytes: u64,
    max_spares: usize,
    in_use: RwLock<BTreeMap<u64, Segment>>,
    spares: Mutex<Spares>,
    reserved: usize,
    groups: AtomicU64,
    group_bytes: AtomicU64,
}

pub fn file_name(number: u64, kind: &str) -> String {
    format!("{number:016x}.{kind}")
}

pub fn number_of(name: &str, kind: &str) -> Option<u64> {
    let (digits, found) = name.split_once('.')?;
    if found != kind || digits.len() != 16 {
        return None;
    }
    u64::from_str_radix(digits, 16).ok()
}

pub fn io_error(operation: &'static str) -> impl Fn(io::Error) -> StoreError {
    move |e| match e.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::DiskFull(e.to_string()),
        _ => StoreError::Io { operation, found: e.to_string() },
    }
}

/// What a segment is begun for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Carries out what was promised, or controls the exchange: may take the last spare.
    Draining,
    /// Leaves the reserved spares alone.
    New,
}

/// A number that nobody can guess: it decides nothing, so no simulation needs to control it.
pub fn salt() -> Result<u64, StoreError> {
    getrandom::u64().map_err(|e| StoreError::Io { operation: "drawing a segment's salt", found: e.to_string() })
}

impl Segments {
    /// Opens what is there. Segments are not read beyond their headers.
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, config: &EmbeddedConfig) -> Result<Self, StoreError> {
        let (bytes, max_spares, reserved) = (config.segment_bytes, config.spare_segments, config.reserved_segments);
        let failed = io_error("opening the journal");
        disk.create_dir_all(dir).map_err(&failed)?;
        let mut in_use = BTreeMap::new();
        let mut spares = Spares { ready: vec![], next: 1 };
        for name in disk.list(dir).map_err(&failed)? {
            let path = dir.join(&name);
            if let Some(number) = number_of(&name, SEGMENT) {
                in_use.insert(number, open_segment(disk.as_ref(), &path, number)?);
            } else if let Some(number) = number_of(&name, SPARE) {
                spares.next = spares.next.max(number + 1);
                let file = disk.open(&path).map_err(&failed)?;
                // One of another size is left from other settings, or was not finished.
                if file.len().map_err(&failed)? == bytes && spares.ready.len() < max_spares {
                    spares.ready.push((path, file));
                } else {
                    disk.remove(&path).map_err(&failed)?;
                }
            }
        }
        let (in_use, spares) = (RwLock::new(in_use), Mutex::new(spares));
        let (groups, group_bytes) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok(Self { disk, dir: dir.to_owned(), bytes, max_spares, reserved, in_use, spares, groups, group_bytes })
    }

    pub fn get(&self, number: u64) -> Option<Segment> {
        self.in_use.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    /// All in use, oldest first.
    pub fn all(&self) -> Vec<Segment> {
        self.in_use.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub fn disk(&self) -> &dyn Disk {
        self.disk.as_ref()
    }

    pub fn path(&self, number: u64) -> PathBuf {
        self.dir.join(file_name(number, SEGMENT))
    }

    fn spares(&self) -> MutexGuard<'_, Spares> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes spares until enough are ready.
    pub fn prepare(&self) -> Result<(), StoreError> {
        while self.spares().ready.len() < self.max_spares {
            let spare = self.write_spare()?;
            self.spares().ready.push(spare);
        }
        Ok(())
    }

    fn write_spare(&self) -> Result<(PathBuf, Arc<dyn DiskFile>), StoreError> {
        let failed = io_error("writing a spare segment");
        let number = {
            let mut spares = self.spares();
            spares.next += 1;
            spares.next - 1
        };
        let path = self.dir.join(file_name(number, SPARE));
        let file = self.disk.create(&path).map_err(&failed)?;
        let zeroed = file.write_zeros(self.bytes);
        docaxis_failpoints::failpoint!("broker.segment.spare-written");
        let written = zeroed.and_then(|()| file.sync_data());
        if let Err(e) = written {
            // What is there of it is of no use, and on a full disk it is in the way.
            if let Err(left) = self.disk.remove(&path) {
                tracing::warn!(path = %path.display(), error = %left, "an unfinished spare segment stays");
            }
            return Err(failed(e));
        }
        docaxis_failpoints::failpoint!("broker.segment.spare-synced");
        Ok((path, file))
    }

    /// Takes a spare into use as segment `number`, whose first group will be `first`.
    pub fn begin(&self, number: u64, first: u64, work: Work) -> Result<Segment, StoreError> {
        let failed = io_error("beginning a journal segment");
        let kept = if work == Work::New { self.reserved } else { 0 };
        let ready = {
            let mut spares = self.spares();
            if spares.ready.len() > kept { spares.ready.pop() } else { None }
        };
        let (path, file) = match ready {
            Some(spare) => spare,
            None => self.write_spare()?,
        };
        let header = FileHeader { number, salt: salt()?, first };
        let mut page = vec![0; PAGE];
        page[..FILE_HEADER_BYTES].copy_from_slice(&header.encode(FileKind::Journal));
        if let Err(e) = file.write_at(0, &page) {
            // Still a spare, whatever its first page holds.
            self.spares().ready.push((path, file));
            return Err(failed(e));
        }
        docaxis_failpoints::failpoint!("broker.segment.headed");
        file.sync_data().map_err(&failed)?;
        docaxis_failpoints::failpoint!("broker.segment.head-synced");
        // From here on an error is final, whatever it says: the segment may stand on the disk, and nothing more may be
        // written to the one before.
        let last = |e: io::Error| StoreError::Io { operation: "beginning a journal segment", found: e.to_string() };
        self.disk.rename(&path, &self.path(number)).map_err(last)?;
        docaxis_failpoints::failpoint!("broker.segment.renamed");
        self.disk.sync_dir(&self.dir).map_err(last)?;
        docaxis_failpoints::failpoint!("broker.segment.begun");
        let segment = Segment { header, file, bytes: self.bytes };
        self.in_use.write().unwrap_or_else(PoisonError::into_inner).insert(number, segment.clone());
        Ok(segment)
    }

    /// Gives a segment's file back. The caller has made durable elsewhere whatever must last.
    pub fn free(&self, number: u64) -> Result<(), StoreError> {
        let Some(segment) = self.in_use.write().unwrap_or_else(PoisonError::into_inner).remove(&number) else {
            return Ok(());
        };
        self.give_back(number, &segment).map_err(|e| {
            // It is in use as long as its name says so, and is freed another time.
            self.in_use.write().unwrap_or_else(PoisonError::into_inner).insert(number, segment.clone());
            io_error("freeing a journal segment")(e)
        })
    }

    fn give_back(&self, number: u64, segment: &Segment) -> io::Result<()> {
        let mut spares = self.spares();
        if segment.bytes != self.bytes || spares.ready.len() >= self.max_spares {
            drop(spares);
            return self.disk.remove(&self.path(number));
        }
        let path = self.dir.join(file_name(spares.next, SPARE));
        spares.next += 1;
        docaxis_failpoints::failpoint!("broker.segment.freeing");
        self.disk.rename(&self.path(number), &path)?;
        docaxis_failpoints::failpoint!("broker.segment.spared");
        // Before the file gets a new header, its old name must be gone for good. It has its new name, so this error is final.
        self.disk.sync_dir(&self.dir).map_err(|e| io::Error::other(e.to_string()))?;
        docaxis_failpoints::failpoint!("broker.segment.freed");
        spares.ready.push((path, segment.file.clone()));
        Ok(())
    }

    /// Whether a segment can be begun without writing a new file.
    pub fn has_spare(&self) -> bool {
        !self.spares().ready.is_empty()
    }

    pub fn sync_dir(&self) -> Result<(), StoreError> {
        self.disk.sync_dir(&self.dir).map_err(io_error("syncing the journal's folder"))
    }

    pub fn count_group(&self, bytes: u64) {
        self.groups.fetch_add(1, Ordering::Relaxed);
        self.group_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Groups written since the start, and their bytes with padding.
    pub fn written(&self) -> (u64, u64) {
        (self.groups.load(Ordering::Relaxed), self.group_bytes.load(Ordering::Relaxed))
    }

    /// Bytes of all files, spares included.
    pub fn disk_bytes(&self) -> u64 {
        let in_use: u64 = self.all().iter().map(|segment| segment.bytes).sum();
        in_use + self.spares().ready.len() as u64 * self.bytes
    }
}

fn open_segment(disk: &dyn Disk, path: &Path, number: u64) -> Result<Segment, StoreError> {
    let failed = io_error("opening a journal segment");
    let file = disk.open(path).map_err(&failed)?;
    let mut bytes = [0; FILE_HEADER_BYTES];
    let read = file.read_at(0, &mut bytes).map_err(&failed)?;
    let header = FileHeader::decode(FileKind::Journal, &bytes[..read])
        .map_err(|what| StoreError::Damaged(format!("{}, offset 0: {what}", path.display())))?;
    if header.number != number {
        let what = format!("{}: its header says segment {}", path.display(), header.number);
        return Err(StoreError::Damaged(what));
    }
    let bytes = file.len().map_err(&failed)?;
    Ok(Segment { header, file, bytes })
}
