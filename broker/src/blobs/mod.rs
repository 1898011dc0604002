//! Bodies too large for the journal: one file each, by SHA-256, written once.
//!
//! A body is named only when it is whole, its digest is right, and file and folder are synced: so the commit that
//! names it may follow at once. What a crash leaves are files under `incoming/`, and bodies that nothing names; both
//! are collected at start. This module does not know who may read a body.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use docaxis_protocol::digest::Hasher;
use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::{AgencyCode, Digest};
use tokio::sync::Semaphore;

use crate::disk::{Disk, DiskFile, is_full};
use crate::loops::Loops;

/// Syncing this often keeps the disk busy while a large body arrives, instead of stalling at its end.
pub const SYNC_EVERY_BYTES: u64 = 16 << 20;
const INCOMING: &str = "incoming";
const RETIRED: &str = "retired";
/// Beside the bodies' folder: where damaged ones are kept for inspection, the newest of each digest.
const ASIDE: &str = "damaged";
const CHUNK_BYTES: usize = 1 << 20;
/// How many bodies may be written or read at once. More gain nothing and take the processor and the disk from commits.
const TURNS: usize = 2;

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("the body's digest is {found}; expected {expected}")]
    DigestMismatch { expected: Digest, found: Digest },
    #[error("the body goes on after {expected} bytes")]
    TooLarge { expected: u64 },
    #[error("the body ends after {found} bytes; expected {expected}")]
    TooShort { expected: u64, found: u64 },
    #[error("{operation} {} failed", path.display())]
    Io { operation: &'static str, path: PathBuf, source: io::Error },
}

impl BlobError {
    /// Whether room on the disk is what is missing.
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }
}

/// All large bodies.
pub struct BlobStore {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    /// Tells apart two uploads of one body at the same time.
    uploads: AtomicU64,
    /// Whoever works on a piece of a body holds one meanwhile.
    turns: Arc<Semaphore>,
    loops: Loops,
}

/// The thread that worked on a piece of a body failed.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the disk thread failed")]
pub struct LostTurn;

impl BlobStore {
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, loops: Loops) -> io::Result<Self> {
        for name in [INCOMING, RETIRED] {
            disk.create_dir_all(&dir.join(name))?;
            for left in disk.list(&dir.join(name))? {
                disk.remove(&dir.join(name).join(left))?;
            }
        }
        let turns = Arc::new(Semaphore::new(TURNS));
        Ok(Self { disk, dir: dir.to_owned(), uploads: AtomicU64::new(0), turns, loops })
    }

    /// Where the bodies' files are.
    pub fn files(&self) -> Arc<dyn Disk> {
        self.disk.clone()
    }

    /// Does this on a blocking thread when it is its turn.
    pub async fn in_turn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, LostTurn> {
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| LostTurn)?;
        if let Loops::Tasks { disk } = self.loops {
            tokio::time::sleep(disk).await;
            let done = work();
            drop(turn);
            return Ok(done);
        }
        let work = move || {
            let done = work();
            drop(turn);
            done
        };
        tokio::task::spawn_blocking(work).await.map_err(|_| LostTurn)
    }

    /// Where the body is, if it is there.
    pub fn path(&self, sha256: &Digest) -> PathBuf {
        let name = sha256.to_string();
        self.dir.join(&name[..2]).join(name)
    }

    pub fn exists(&self, part: &PartDigest) -> bool {
        self.open_body(&part.sha256).is_ok_and(|(_, len)| len == part.size)
    }

    /// The body's file and its length in bytes.
    pub fn open_body(&self, sha256: &Digest) -> io::Result<(Arc<dyn DiskFile>, u64)> {
        let file = self.disk.open(&self.path(sha256))?;
        let len = file.len()?;
        Ok((file, len))
    }

    /// Moves a body that is not what its name says out of the way, and says where to. `None` if it is whole after all, or
    /// not there. Reads all of it once more: what one read got wrong is no reason to throw a body away.
    pub fn set_aside(&self, part: &PartDigest) -> io::Result<Option<PathBuf>> {
        let (file, len) = match self.open_body(&part.sha256) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        if len == part.size && holds(file.as_ref(), &part.sha256) {
            return Ok(None);
        }
        let from = self.path(&part.sha256);
        let to = self.aside(&part.sha256)?;
        self.disk.rename(&from, &to)?;
        self.disk.sync_dir(to.parent().unwrap_or(Path::new("")))?;
        self.disk.sync_dir(from.parent().unwrap_or(Path::new("")))?;
        Ok(Some(to))
    }

    /// Keeps a copy of what stands where a body of the journal should be. `None` if there is one already.
    pub fn copy_aside(&self, sha256: &Digest, found: &[u8]) -> io::Result<Option<PathBuf>> {
        let to = self.aside(sha256)?;
        if self.disk.exists(&to)? {
            return Ok(None);
        }
        let file = self.disk.create(&to)?;
        file.write_at(0, found)?;
        file.sync_data()?;
        self.disk.sync_dir(to.parent().unwrap_or(Path::new("")))?;
        Ok(Some(to))
    }

    fn aside(&self, sha256: &Digest) -> io::Result<PathBuf> {
        let folder = self.dir.parent().unwrap_or(Path::new("")).join(ASIDE);
        self.disk.create_dir_all(&folder)?;
        Ok(folder.join(format!("{sha256}.body")))
    }

    /// Begins to take a body from this agency. Dropped without [`BlobWriter::finish`], it leaves nothing behind.
    pub fn writer(&self, agency: &AgencyCode, expected: PartDigest) -> Result<BlobWriter, BlobError> {
        let upload = self.uploads.fetch_add(1, Ordering::Relaxed);
        let temporary = self.dir.join(INCOMING).join(format!("{agency}-{}-{upload}", expected.sha256));
        let target = self.path(&expected.sha256);
        let create = |source| BlobError::Io { operation: "creating", path: temporary.clone(), source };
        let file = self.disk.create(&temporary).map_err(create)?;
        Ok(BlobWriter {
            disk: self.disk.clone(),
            file,
            temporary,
            target,
            expected,
            hasher: Hasher::new(),
            written: 0,
            unsynced: 0,
            finished: false,
        })
    }

    /// Takes a body out of sight at once; [`BlobStore::remove_retired`] frees its room. The caller has made durable
    /// that nothing names it.
    pub fn retire(&self, sha256: &Digest) -> io::Result<()> {
        let retired = self.disk.rename(&self.path(sha256), &self.dir.join(RETIRED).join(sha256.to_string()));
        docaxis_failpoints::failpoint!("broker.blob.retired");
        match retired {
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    pub fn remove_retired(&self) -> io::Result<()> {
        let dir = self.dir.join(RETIRED);
        for name in self.disk.list(&dir)? {
            self.disk.remove(&dir.join(name))?;
            docaxis_failpoints::failpoint!("broker.blob.removed");
        }
        Ok(())
    }

    /// Every whole body and its length in bytes.
    pub fn list(&self) -> io::Result<Vec<(Digest, u64)>> {
        let mut bodies = Vec::new();
        for folder in self.disk.list(&self.dir)?.into_iter().filter(|folder| folder.len() == 2) {
            for name in self.disk.list(&self.dir.join(&folder))? {
                if let Ok(sha256) = name.parse::<Digest>() {
                    bodies.push((sha256, self.open_body(&sha256)?.1));
                }
            }
        }
        Ok(bodies)
    }

    /// Removes every body for which `named` says no. Returns how many.
    pub fn collect<E>(&self, mut named: impl FnMut(&Digest) -> Result<bool, E>) -> Result<u64, E>
    where
        E: From<io::Error>,
    {
        let mut removed = 0;
        for folder in self.disk.list(&self.dir)? {
            if folder.len() != 2 {
                continue;
            }
            for name in self.disk.list(&self.dir.join(&folder))? {
                if let Ok(sha256) = name.parse::<Digest>()
                    && !named(&sha256)?
                {
                    self.disk.remove(&self.dir.join(&folder).join(name))?;
                    removed += 1;
                }
            }
        }
        Ok(removed)
    }
}

/// Whether a file's bytes have this digest. A read that fails says no: the medium does not give the body back.
fn holds(file: &dyn DiskFile, sha256: &Digest) -> bool {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut at = 0;
    loop {
        match file.read_at(at, &mut buffer) {
            Ok(0) => return hasher.finish() == *sha256,
            Ok(read) => {
                hasher.update(&buffer[..read]);
                at += read as u64;
            }
            Err(error) => {
                tracing::error!(body = %sha256, %error, "a body cannot be read");
                return false;
            }
        }
    }
}

/// A body on its way in.
pub struct BlobWriter {
    disk: Arc<dyn Disk>,
    file: Arc<dyn DiskFile>,
    temporary: PathBuf,
    target: PathBuf,
    expected: PartDigest,
    hasher: Hasher,
    written: u64,
    unsynced: u64,
    finished: bool,
}

impl BlobWriter {
    /// Blocks while the disk works: call it where blocking is allowed.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let after = self.written.saturating_add(bytes.len() as u64);
        if after > self.expected.size {
            return Err(BlobError::TooLarge { expected: self.expected.size });
        }
        self.file.write_at(self.written, bytes).map_err(|e| self.failed("writing", e))?;
        self.hasher.update(bytes);
        self.written = after;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= SYNC_EVERY_BYTES {
            self.file.sync_data().map_err(|e| self.failed("syncing", e))?;
            self.unsynced = 0;
        }
        Ok(())
    }

    /// How many bytes have been taken.
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// Checks the digest and makes the body durable under its name. After this a commit may name it.
    pub fn finish(mut self) -> Result<(), BlobError> {
        if self.written < self.expected.size {
            return Err(BlobError::TooShort { expected: self.expected.size, found: self.written });
        }
        let found = std::mem::take(&mut self.hasher).finish();
        if found != self.expected.sha256 {
            return Err(BlobError::DigestMismatch { expected: self.expected.sha256, found });
        }
        docaxis_failpoints::failpoint!("broker.blob.written");
        // Contents first, then the name, then the name's folder: a name never stands for half a body.
        self.file.sync_data().map_err(|e| self.failed("syncing", e))?;
        docaxis_failpoints::failpoint!("broker.blob.synced");
        let folder = self.target.parent().unwrap_or(Path::new("")).to_owned();
        self.disk.create_dir_all(&folder).map_err(|e| self.failed("creating the folder of", e))?;
        self.disk.rename(&self.temporary, &self.target).map_err(|e| self.failed("renaming", e))?;
        docaxis_failpoints::failpoint!("broker.blob.renamed");
        self.finished = true;
        self.disk.sync_dir(&folder).map_err(|e| self.failed("syncing the folder of", e))?;
        // The folder may have been made a moment ago by another upload that has not synced its name yet.
        let above = folder.parent().unwrap_or(Path::new(""));
        self.disk.sync_dir(above).map_err(|e| self.failed("syncing the folder above", e))?;
        docaxis_failpoints::failpoint!("broker.blob.named");
        Ok(())
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> BlobError {
        BlobError::Io { operation, path: self.temporary.clone(), source }
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if !self.finished
            && let Err(e) = self.disk.remove(&self.temporary)
        {
            tracing::warn!(path = %self.temporary.display(), error = %e, "an unfinished body stays until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::{Cut, Failure, SimDisk};

    fn open(disk: &SimDisk) -> BlobStore {
        BlobStore::open(Arc::new(disk.clone()), Path::new("/data/blobs"), Loops::Threads).unwrap()
    }

    fn part(bytes: &[u8]) -> PartDigest {
        PartDigest { sha256: Digest::of(bytes), size: bytes.len() as u64 }
    }

    fn put(blobs: &BlobStore, bytes: &[u8], expected: PartDigest) -> Result<(), BlobError> {
        let mut writer = blobs.writer(&"H37.DN.001".parse().unwrap(), expected)?;
        for chunk in bytes.chunks(1000) {
            writer.write(chunk)?;
        }
        writer.finish()
    }

    fn files(disk: &SimDisk, blobs: &BlobStore) -> Vec<String> {
        let folders = disk.list(&blobs.dir).unwrap();
        folders.iter().flat_map(|folder| disk.list(&blobs.dir.join(folder)).unwrap()).collect()
    }

    #[test]
    fn a_finished_body_survives_a_power_cut_at_any_operation_and_is_never_half_there() {
        let bytes: Vec<u8> = (0..9_999u32).map(|n| n.to_le_bytes()[0]).collect();
        let all = {
            let disk = SimDisk::new();
            put(&open(&disk), &bytes, part(&bytes)).unwrap();
            disk.operations()
        };
        for k in 1..=all + 1 {
            let disk = SimDisk::new();
            disk.fail_at(k, Failure::PowerLoss);
            let done = put(&open(&disk), &bytes, part(&bytes)).is_ok();
            assert_eq!(done, k > all, "operation {k}");
            for cut in [Cut::Drop, Cut::Keep, Cut::Tear(k)] {
                let after = disk.after(cut);
                let blobs = open(&after);
                let found = after.read(&blobs.path(&part(&bytes).sha256)).ok();
                assert!(!done || found.is_some(), "operation {k}, {cut:?}: lost");
                assert!(found.is_none_or(|found| found == bytes), "operation {k}, {cut:?}: half a body");
                assert_eq!(after.list(&blobs.dir.join(INCOMING)).unwrap(), Vec::<String>::new());
            }
        }
    }

    #[test]
    fn a_body_that_is_not_what_was_announced_leaves_nothing_behind() {
        let disk = SimDisk::new();
        let blobs = open(&disk);
        let other = PartDigest { sha256: Digest::of(b"other"), size: 5 };
        assert!(matches!(put(&blobs, b"bytes", other.clone()), Err(BlobError::DigestMismatch { .. })));
        assert!(matches!(put(&blobs, b"byte", other.clone()), Err(BlobError::TooShort { expected: 5, found: 4 })));
        assert!(matches!(put(&blobs, b"longer", other.clone()), Err(BlobError::TooLarge { expected: 5 })));
        drop(blobs.writer(&"H37.DN.001".parse().unwrap(), other).unwrap());
        assert_eq!(files(&disk, &blobs), Vec::<String>::new());
    }

    #[test]
    fn bodies_that_nothing_names_are_collected_and_others_stay() {
        let disk = SimDisk::new();
        let blobs = open(&disk);
        for bytes in [b"one", b"two"] {
            put(&blobs, bytes, part(bytes)).unwrap();
        }
        let named = part(b"one").sha256;
        assert_eq!(blobs.collect(|sha256| Ok::<_, io::Error>(*sha256 == named)).unwrap(), 1);
        assert!(blobs.exists(&part(b"one")) && !blobs.exists(&part(b"two")));
        blobs.retire(&named).unwrap();
        assert!(!blobs.exists(&part(b"one")));
        blobs.remove_retired().unwrap();
        assert_eq!(files(&disk, &blobs), Vec::<String>::new());
    }

    #[test]
    fn a_damaged_body_is_set_aside_as_it_was_found_and_a_whole_one_stays() {
        let disk = SimDisk::new();
        let blobs = open(&disk);
        put(&blobs, b"the words", part(b"the words")).unwrap();
        let sha256 = part(b"the words").sha256;
        assert_eq!(blobs.set_aside(&part(b"the words")).unwrap(), None);
        assert!(blobs.exists(&part(b"the words")));
        for (damaged, len) in [(b"the wordz".as_slice(), 9), (b"the", 3)] {
            put(&blobs, b"the words", part(b"the words")).unwrap();
            disk.tamper(&blobs.path(&sha256), |bytes| *bytes = damaged.to_vec()).unwrap();
            let aside = blobs.set_aside(&part(b"the words")).unwrap().unwrap();
            assert_eq!(aside, Path::new("/data/damaged").join(format!("{sha256}.body")));
            assert_eq!((disk.read(&aside).unwrap(), damaged.len()), (damaged.to_vec(), len));
            assert!(!blobs.exists(&part(b"the words")));
            assert_eq!(disk.after(Cut::Drop).read(&aside).unwrap(), damaged, "durably");
        }
        assert_eq!(blobs.set_aside(&part(b"the words")).unwrap(), None, "gone");
    }
}
