//! Bodies that are files, by SHA-256: `PARTS/ab/abcdef...`, written once.
//!
//! A body appears under its digest only when all of it is on disk (file and folder synced), so a power cut leaves the
//! whole body or none. Memory is one chunk, whatever the size. A body is checked against its name each time it is read;
//! a damaged one is an error, never passed on. Knows nothing of dispatches: what refers to a body stands in the mailbox,
//! and small bodies themselves do (`bodies.rs`).

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Cursor, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use docaxis_protocol::Digest;
use docaxis_protocol::digest::Hasher;

use crate::space::is_full;

/// Bytes read or written at once.
pub const CHUNK_BYTES: usize = 256 << 10;
/// How much may be unsynced: syncing as it comes is faster than one sync at the end.
const SYNC_EVERY_BYTES: u64 = 16 << 20;
const TEMPORARY: &str = "tmp";

#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    #[error("cannot {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("body {expected} is damaged on disk: its bytes have digest {found}")]
    Damaged { expected: Digest, found: Digest },
    #[error("body {0} is not here")]
    Missing(Digest),
    #[error("body {sha256} does not read: {why}")]
    Unreadable { sha256: Digest, why: String },
}

impl PartsError {
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PartsError {
    move |source| PartsError::Io { operation, path: path.to_owned(), source }
}

pub struct Parts {
    folder: PathBuf,
    pins: Mutex<BTreeMap<Digest, usize>>,
    temporary: AtomicU64,
}

impl Parts {
    /// Opens the folder, and clears away what an earlier run left half-written.
    pub fn open(folder: PathBuf) -> Result<Self, PartsError> {
        let temporary = folder.join(TEMPORARY);
        make_folder(&temporary)?;
        // All folders, durable before the first body: a body's own folder is then the only one to sync for it, and no
        // body can be named whose folder a power cut takes away.
        for fan in 0..=u8::MAX {
            make_folder(&folder.join(format!("{fan:02x}")))?;
        }
        sync_folder(&folder)?;
        if let Some(above) = folder.parent() {
            sync_folder(above)?;
        }
        for entry in fs::read_dir(&temporary).map_err(failed("list", &temporary))? {
            let path = entry.map_err(failed("list", &temporary))?.path();
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        Ok(Self { folder, pins: Mutex::default(), temporary: AtomicU64::new(0) })
    }

    pub(crate) fn path(&self, sha256: Digest) -> PathBuf {
        let name = sha256.to_string();
        self.folder.join(&name[..2]).join(name)
    }

    /// Every body here.
    pub fn list(&self) -> Result<Vec<Digest>, PartsError> {
        let mut found = Vec::new();
        for fan in fs::read_dir(&self.folder).map_err(failed("list", &self.folder))? {
            let fan = fan.map_err(failed("list", &self.folder))?;
            if fan.file_name() == TEMPORARY || !fan.path().is_dir() {
                continue;
            }
            for entry in fs::read_dir(fan.path()).map_err(failed("list", &fan.path()))? {
                let name = entry.map_err(failed("list", &fan.path()))?.file_name();
                found.extend(name.to_str().and_then(|name| name.parse::<Digest>().ok()));
            }
        }
        Ok(found)
    }

    /// Begins a body whose digest is not known yet, or not believed.
    pub fn begin(self: &Arc<Self>) -> Result<PartWriter, PartsError> {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(TEMPORARY).join(number.to_string());
        let file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed("create", &path))?;
        Ok(PartWriter { parts: self.clone(), path, file, hasher: Hasher::new(), size: 0, unsynced: 0 })
    }

    /// Stores a small body at once.
    pub fn store(self: &Arc<Self>, bytes: &[u8]) -> Result<Stored, PartsError> {
        let mut writer = self.begin()?;
        writer.write(bytes)?;
        writer.finish()?.keep()
    }

    pub fn read(&self, sha256: Digest) -> Result<PartReader, PartsError> {
        let path = self.path(sha256);
        match File::open(&path) {
            Ok(file) => {
                let size = file.metadata().map_err(failed("look at", &path))?.len();
                // Most bodies are small, and need no memory for a large one.
                let chunk = usize::try_from(size).unwrap_or(usize::MAX).saturating_add(1).min(CHUNK_BYTES);
                Ok(PartReader::new(PartSource::File { file, path }, chunk, sha256))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(PartsError::Missing(sha256)),
            Err(e) => Err(failed("open", &path)(e)),
        }
    }

    fn pins(&self) -> MutexGuard<'_, BTreeMap<Digest, usize>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a body from being removed until the mailbox refers to it.
    pub fn pin(self: &Arc<Self>, sha256: Digest) -> Pin {
        *self.pins().entry(sha256).or_insert(0) += 1;
        Pin { parts: self.clone(), sha256 }
    }

    /// Destroys a body that nothing refers to. A pinned one stays: whoever pinned it is about to refer to it, and if
    /// that fails, the next start clears it away.
    pub fn remove(&self, sha256: Digest) -> Result<(), PartsError> {
        let pins = self.pins();
        if pins.contains_key(&sha256) {
            return Ok(());
        }
        let path = self.path(sha256);
        match fs::remove_file(&path) {
            Ok(()) => sync_folder(path.parent().unwrap_or(&self.folder)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed("remove", &path)(e)),
        }
    }
}

/// While this lives, the body is not removed.
pub struct Pin {
    parts: Arc<Parts>,
    sha256: Digest,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.parts.pins();
        if let Some(count) = pins.get_mut(&self.sha256) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.sha256);
            }
        }
    }
}

/// A durable body, pinned.
pub struct Stored {
    pub sha256: Digest,
    pub size: u64,
    pub pin: Pin,
}

/// A body on its way in. Dropped before the end, it leaves nothing.
pub struct PartWriter {
    parts: Arc<Parts>,
    path: PathBuf,
    file: File,
    hasher: Hasher,
    size: u64,
    unsynced: u64,
}

impl PartWriter {
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), PartsError> {
        self.file.write_all(bytes).map_err(failed("write", &self.path))?;
        self.hasher.update(bytes);
        let length = bytes.len() as u64;
        self.size += length;
        self.unsynced += length;
        if self.unsynced >= SYNC_EVERY_BYTES {
            self.file.sync_data().map_err(failed("sync", &self.path))?;
            self.unsynced = 0;
        }
        Ok(())
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    /// All bytes are there: says what they are. Nothing is kept yet.
    pub fn finish(self) -> Result<Whole, PartsError> {
        let sha256 = self.hasher.clone().finish();
        Ok(Whole { sha256, size: self.size, writer: self })
    }
}

impl Drop for PartWriter {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %self.path.display(), %error, "a half-written body stays until the next start")
            }
        }
    }
}

/// A body whose digest is known, not kept yet.
pub struct Whole {
    pub sha256: Digest,
    pub size: u64,
    writer: PartWriter,
}

impl Whole {
    /// Makes it durable under its digest.
    pub fn keep(self) -> Result<Stored, PartsError> {
        let parts = self.writer.parts.clone();
        docaxis_failpoints::failpoint!("agent.part.written");
        self.writer.file.sync_all().map_err(failed("sync", &self.writer.path))?;
        docaxis_failpoints::failpoint!("agent.part.synced");
        let pin = parts.pin(self.sha256);
        let path = parts.path(self.sha256);
        let fan = path.parent().unwrap_or(&parts.folder);
        fs::rename(&self.writer.path, &path).map_err(failed("rename to", &path))?;
        docaxis_failpoints::failpoint!("agent.part.renamed");
        sync_folder(fan)?;
        docaxis_failpoints::failpoint!("agent.part.named");
        Ok(Stored { sha256: self.sha256, size: self.size, pin })
    }
}

/// A body on its way out.
pub struct PartReader {
    source: PartSource,
    /// Bytes read at once.
    chunk: usize,
    hasher: Hasher,
    expected: Digest,
    /// Read, and not given out before it is known whether it is the last.
    held: Option<Vec<u8>>,
    ended: bool,
}

enum PartSource {
    File { file: File, path: PathBuf },
    Memory(Cursor<Vec<u8>>),
}

impl PartReader {
    fn new(source: PartSource, chunk: usize, expected: Digest) -> Self {
        Self { source, chunk, hasher: Hasher::new(), expected, held: None, ended: false }
    }

    /// A body that is in memory, and is compared with its digest as one on disk is.
    pub fn of(bytes: Vec<u8>, expected: Digest) -> Self {
        let chunk = bytes.len().saturating_add(1).min(CHUNK_BYTES);
        Self::new(PartSource::Memory(Cursor::new(bytes)), chunk, expected)
    }

    /// All of a body that is known to be small.
    pub fn read_all(mut self) -> Result<Vec<u8>, PartsError> {
        let mut all = Vec::new();
        while let Some(chunk) = self.next_chunk()? {
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    /// The next bytes; `None` at the end. The last bytes are given out only if all of it has the right digest, so that
    /// nobody can take a damaged body for a whole one.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, PartsError> {
        while !self.ended {
            match self.read_chunk()? {
                Some(chunk) => {
                    if let Some(ready) = self.held.replace(chunk) {
                        return Ok(Some(ready));
                    }
                }
                None => self.ended = true,
            }
        }
        Ok(self.held.take())
    }

    fn read_chunk(&mut self) -> Result<Option<Vec<u8>>, PartsError> {
        let mut chunk = Vec::with_capacity(self.chunk);
        let most = self.chunk as u64;
        match &mut self.source {
            PartSource::File { file, path } => file.take(most).read_to_end(&mut chunk).map_err(failed("read", path))?,
            PartSource::Memory(bytes) => {
                bytes.take(most).read_to_end(&mut chunk).map_err(failed("read", Path::new("")))?
            }
        };
        if chunk.is_empty() {
            let found = self.hasher.clone().finish();
            return if found == self.expected {
                Ok(None)
            } else {
                Err(PartsError::Damaged { expected: self.expected, found })
            };
        }
        self.hasher.update(&chunk);
        Ok(Some(chunk))
    }
}

fn make_folder(path: &Path) -> Result<(), PartsError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create folder", path))
}

fn sync_folder(path: &Path) -> Result<(), PartsError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(failed("sync folder", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(folder: &Path) -> Arc<Parts> {
        Arc::new(Parts::open(folder.join("parts")).unwrap())
    }

    #[test]
    fn a_body_is_read_back_as_it_was_written_and_an_abandoned_one_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let parts = parts(folder.path());
        let body: Vec<u8> = (0..CHUNK_BYTES * 2 + 7).map(|n| n.to_le_bytes()[0]).collect();
        let mut writer = parts.begin().unwrap();
        body.chunks(1000).for_each(|chunk| writer.write(chunk).unwrap());
        let stored = writer.finish().unwrap().keep().unwrap();
        assert_eq!((stored.sha256, stored.size), (Digest::of(&body), body.len() as u64));
        assert_eq!(parts.read(stored.sha256).unwrap().read_all().unwrap(), body);

        let mut abandoned = parts.begin().unwrap();
        abandoned.write(b"half").unwrap();
        drop(abandoned);
        assert_eq!(parts.list().unwrap(), [stored.sha256]);
        assert_eq!(fs::read_dir(folder.path().join("parts/tmp")).unwrap().count(), 0);
        assert!(matches!(parts.read(Digest::of(b"half")), Err(PartsError::Missing(_))));
    }

    #[test]
    fn a_body_that_changed_on_disk_is_refused_at_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let parts = parts(folder.path());
        let sha256 = parts.store(b"the words").unwrap().sha256;
        fs::write(parts.path(sha256), b"the wordz").unwrap();
        assert!(matches!(parts.read(sha256).and_then(PartReader::read_all), Err(PartsError::Damaged { .. })));
    }

    #[test]
    fn the_last_bytes_of_a_damaged_body_are_never_given_out() {
        let folder = tempfile::tempdir().unwrap();
        let parts = parts(folder.path());
        for chunks in [1, 3] {
            let mut body = vec![7; CHUNK_BYTES * chunks];
            let sha256 = parts.store(&body).unwrap().sha256;
            body[1] = 8;
            fs::write(parts.path(sha256), &body).unwrap();
            let mut reader = parts.read(sha256).unwrap();
            let mut given = 0;
            let error = loop {
                match reader.next_chunk() {
                    Ok(chunk) => given += chunk.expect("no end of a damaged body").len(),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, PartsError::Damaged { .. }));
            assert_eq!(given, CHUNK_BYTES * (chunks - 1));
        }
    }

    #[test]
    fn a_pinned_body_outlives_its_removal_and_what_was_half_written_is_cleared_at_start() {
        let folder = tempfile::tempdir().unwrap();
        let parts = parts(folder.path());
        let stored = parts.store(b"x").unwrap();
        parts.remove(stored.sha256).unwrap();
        assert_eq!(parts.read(stored.sha256).unwrap().read_all().unwrap(), b"x");
        let sha256 = stored.sha256;
        drop(stored);
        parts.remove(sha256).unwrap();
        assert!(matches!(parts.read(sha256).and_then(PartReader::read_all), Err(PartsError::Missing(_))));

        fs::write(folder.path().join("parts/tmp/9"), b"left over").unwrap();
        let again = Parts::open(folder.path().join("parts")).unwrap();
        assert_eq!(again.list().unwrap(), []);
        assert_eq!(fs::read_dir(folder.path().join("parts/tmp")).unwrap().count(), 0);
    }

    #[test]
    fn every_folder_that_a_body_may_need_is_there_before_the_first_body() {
        let folder = tempfile::tempdir().unwrap();
        let parts = parts(folder.path());
        for first in 0..=u8::MAX {
            let mut digest = [0; 32];
            digest[0] = first;
            assert!(parts.path(Digest(digest)).parent().unwrap().is_dir(), "{first:02x}");
        }
    }
}
