//! The one way in which journal, evidence and blobs reach the disk, so that a test can stand between them and it.
//!
//! A write is durable only after [`DiskFile::sync_data`]; a name (created, renamed, removed) only after
//! [`Disk::sync_dir`] of its folder. Nothing here retries: after a failed sync the caller must stop.

mod real;
pub mod sim;

use std::any::Any;
use std::io;
use std::path::Path;
use std::sync::Arc;

use docaxis_protocol::space::Usage;
pub use real::RealDisk;

/// An open file. Offsets and lengths are in bytes.
pub trait DiskFile: Send + Sync {
    /// Writes all of `bytes` at `offset`, growing the file if it must.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Reads until `buffer` is full or the file ends; returns how much was read.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;
    /// Makes contents and length durable (fdatasync).
    fn sync_data(&self) -> io::Result<()>;
    fn len(&self) -> io::Result<u64>;
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Takes room for `len` bytes, so that writing them later cannot fail for want of it. What is in them is not said.
    fn allocate(&self, len: u64) -> io::Result<()> {
        self.write_zeros(len)
    }

    /// Writes real zeros up to `len`: later overwrites then change no metadata and sync faster.
    fn write_zeros(&self, len: u64) -> io::Result<()> {
        const CHUNK: usize = 1 << 20;
        let zeros = vec![0; CHUNK];
        let mut at = 0;
        while at < len {
            let step = usize::try_from(len - at).unwrap_or(CHUNK).min(CHUNK);
            self.write_at(at, &zeros[..step])?;
            at += step as u64;
        }
        Ok(())
    }
}

/// Folders and names.
pub trait Disk: Send + Sync {
    /// Creates the folder and its parents, and makes their names durable.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// Creates a file for reading and writing; fails if the name exists.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Opens an existing file for reading and writing.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn DiskFile>>;
    /// Renames, replacing `to` if it exists.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Names in a folder, sorted; an absent folder is empty.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Makes the names in a folder durable (fsync of the folder).
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Holds `path` as a lock for as long as the value lives; `WouldBlock` if another holds it.
    fn lock(&self, path: &Path) -> io::Result<Box<dyn Any + Send + Sync>>;
    /// How full the file system is that `dir` lies on.
    fn usage(&self, dir: &Path) -> io::Result<Usage>;
    /// Names this run of the operating system: what was written without a sync survives a crash of the process within
    /// one boot, but not beyond.
    fn boot_id(&self) -> String;
}

/// Whether an error says that there is no room, and nothing worse.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Reads a whole file of at most `max` bytes.
pub fn read_all(file: &dyn DiskFile, max: u64) -> io::Result<Vec<u8>> {
    let len = file.len()?;
    if len > max {
        return Err(io::Error::other(format!("{len} bytes where at most {max} were expected")));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    let read = file.read_at(0, &mut bytes)?;
    bytes.truncate(read);
    Ok(bytes)
}
