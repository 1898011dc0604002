//! Bodies too large for the journal: one file each, by SHA-256, written once.
//!
//! A body is named only when it is whole, its digest is right, and file and folder are synced: so the commit that
//! names it may follow at once. What a crash leaves are files under `incoming/`, and bodies that nothing names; both
//! are collected at start; and uploads under `partial/`, which go on (`partial.rs`). This module does not know who may read
//! a body.

mod partial;
mod writer;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use docaxis_protocol::digest::Hasher;
use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::partial::{PartialKey, PartialName, PartialsConfig, Taken};
use docaxis_protocol::{AgencyCode, Digest, Timestamp};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use self::partial::Partials;
pub use self::writer::BlobWriter;
use self::writer::Place;
use crate::disk::{Disk, DiskFile, is_full};
use crate::loops::Loops;

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
    DigestMismatch {
        expected: Digest,
        found: Digest,
        /// Whether its beginning came with an earlier upload: then the fault may be our own disk's.
        resumed: bool,
    },
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
    partials: Arc<Partials>,
    /// Syncing this often keeps the disk busy while a large body arrives, instead of stalling at its end; and no more than
    /// this has to come again after a loss of power. In bytes.
    sync_every: u64,
    /// Whoever works on a piece of a body holds one meanwhile.
    turns: Arc<Semaphore>,
    loops: Loops,
}

/// The thread that worked on a piece of a body failed.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the disk thread failed")]
pub struct LostTurn;

impl BlobStore {
    pub fn open(disk: Arc<dyn Disk>, dir: &Path, loops: Loops, config: PartialsConfig) -> io::Result<Self> {
        for name in [INCOMING, RETIRED] {
            disk.create_dir_all(&dir.join(name))?;
            for left in disk.list(&dir.join(name))? {
                disk.remove(&dir.join(name).join(left))?;
            }
        }
        let turns = Arc::new(Semaphore::new(TURNS));
        let partials = Arc::new(Partials::open(disk.clone(), dir, config)?);
        let (uploads, sync_every) = (AtomicU64::new(0), config.sync_every_bytes());
        Ok(Self { disk, dir: dir.to_owned(), uploads, partials, sync_every, turns, loops })
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

    /// An error is no word on whether it is there: too many open files, for one, must not make a body look lost.
    pub fn exists(&self, part: &PartDigest) -> io::Result<bool> {
        match self.open_body(&part.sha256) {
            Ok((_, len)) => Ok(len == part.size),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
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

    /// By when the earlier uploads of a dispatch that is tried now should have ended.
    pub fn earlier_end_by() -> Instant {
        Instant::now() + partial::EARLIER_ENDS_WITHIN
    }

    /// Begins to take a body from this agency, or goes on where its last upload of the same body broke off: then
    /// [`BlobWriter::take_up`] has to be called to its end. Waits for another upload of it to end, but not longer than `by`.
    pub async fn upload(
        self: &Arc<Self>,
        agency: &AgencyCode,
        expected: PartDigest,
        by: Instant,
    ) -> Result<Result<BlobWriter, BlobError>, LostTurn> {
        let key = PartialKey { agency: agency.clone(), sha256: expected.sha256, size: expected.size };
        let taken = self.partials.take(key.clone(), by).await;
        let store = self.clone();
        // Held by the work itself: whoever asked may be gone before its turn comes.
        let claim = Claim { partials: self.partials.clone(), key, taken: Some(taken) };
        self.in_turn(move || store.claimed(claim, expected)).await
    }

    fn claimed(&self, mut claim: Claim, expected: PartDigest) -> Result<BlobWriter, BlobError> {
        let name = match &claim.taken {
            Some(Taken::Kept(name)) => name.clone(),
            Some(Taken::Nothing) => PartialName { key: claim.key.clone(), bytes: 0, at: self.partials.now() },
            Some(Taken::Busy) | None => return Ok(self.writer(&claim.key.agency, expected)),
        };
        let path = self.partials.path(&name);
        let mut resumed = name.bytes;
        let file = match (resumed > 0).then(|| self.disk.open(&path)) {
            Some(Ok(file)) => Some(file),
            Some(Err(e)) if e.kind() != io::ErrorKind::NotFound => {
                return Err(BlobError::Io { operation: "opening", path, source: e });
            }
            // Not there any more, or not there yet: it is created when its first bytes come.
            _ => {
                resumed = 0;
                None
            }
        };
        claim.taken = None;
        let place = Place::Partial(claim.partials.clone(), PartialName { bytes: resumed, ..name });
        Ok(self.writer_at(place, file, expected, resumed))
    }

    /// Begins to take a body from this agency, of which nothing stays if it breaks off.
    pub fn writer(&self, agency: &AgencyCode, expected: PartDigest) -> BlobWriter {
        let upload = self.uploads.fetch_add(1, Ordering::Relaxed);
        let path = self.dir.join(INCOMING).join(format!("{agency}-{}-{upload}", expected.sha256));
        self.writer_at(Place::Passing(path), None, expected, 0)
    }

    fn writer_at(
        &self,
        place: Place,
        file: Option<Arc<dyn DiskFile>>,
        expected: PartDigest,
        resumed: u64,
    ) -> BlobWriter {
        BlobWriter {
            disk: self.disk.clone(),
            created: file.is_some(),
            file,
            place,
            target: self.path(&expected.sha256),
            expected,
            hasher: Hasher::new(),
            sync_every: self.sync_every,
            written: 0,
            unsynced: 0,
            resumed,
            worthless: false,
            whole: false,
            finished: false,
        }
    }

    /// Removes partial bodies that waited too long or are too many, and all of them where there is no room for new work.
    /// Returns how many. To be called again and again: it also tells the time.
    pub fn sweep_partials(&self, now: Timestamp, no_room: bool) -> usize {
        self.partials.sweep(now, no_room)
    }

    /// Partial bodies that wait for their uploads to go on.
    pub fn partials(&self) -> Vec<PartialName> {
        self.partials.waiting()
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

/// A body that was taken up, until a writer has it.
struct Claim {
    partials: Arc<Partials>,
    key: PartialKey,
    /// What there was; none once it is the writer's.
    taken: Option<Taken>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        match self.taken.take() {
            Some(Taken::Nothing) => self.partials.release(self.key.clone(), None),
            Some(Taken::Kept(name)) => self.partials.release(self.key.clone(), Some(name)),
            Some(Taken::Busy) | None => {}
        }
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

#[cfg(test)]
mod tests;
