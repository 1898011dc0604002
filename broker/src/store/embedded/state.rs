//! Whether the index on disk may be believed: a small file beside it says in which boot it was opened, or that it was
//! closed and what its files were then. After a loss of power neither holds, and the index is built anew; so it is when
//! the files are others than those that were closed, as its engine does not notice every damage.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use docaxis_protocol::Digest;

use super::config::{EmbeddedConfig, IndexKind};
use super::index::{FileIndex, Index};
use super::segments::io_error;
use crate::disk::{Disk, read_all};
use crate::store::StoreError;

const FILE: &str = "index.state";
const CLOSED: &str = "closed";
/// Grows with a change of what the rows say: an index of before is built anew.
const FORMAT: u32 = 4;
const MAX_BYTES: u64 = 4096;

/// Writes the file anew, durably.
fn write(disk: &dyn Disk, dir: &Path, text: &str) -> io::Result<()> {
    let temporary = dir.join("index.state.new");
    if disk.exists(&temporary)? {
        disk.remove(&temporary)?;
    }
    let file = disk.create(&temporary)?;
    file.write_at(0, text.as_bytes())?;
    file.sync_data()?;
    disk.rename(&temporary, &dir.join(FILE))?;
    disk.sync_dir(dir)
}

pub fn believed(disk: &dyn Disk, dir: &Path, config: &EmbeddedConfig) -> bool {
    let text = disk.open(&dir.join(FILE)).and_then(|file| read_all(file.as_ref(), MAX_BYTES));
    text.is_ok_and(|text| {
        let as_closed = || closed_text(dir, config).is_ok_and(|closed| text == closed.as_bytes());
        text == open_text(disk).as_bytes() || as_closed()
    })
}

/// What the file says while the index is open.
fn open_text(disk: &dyn Disk) -> String {
    format!("{FORMAT} {}", disk.boot_id())
}

/// What the file says after the index was closed as it is now.
fn closed_text(dir: &Path, config: &EmbeddedConfig) -> io::Result<String> {
    match &config.index {
        IndexKind::Memory(_) => Ok(format!("{FORMAT} {CLOSED}")),
        IndexKind::Sled => {
            let mut lines = Vec::new();
            list_files(&dir.join("index"), "", &mut lines)?;
            Ok(format!("{FORMAT} {CLOSED} {}", Digest::of(lines.concat().as_bytes())))
        }
    }
}

/// A line for each file: name, length, CRC-32C.
fn list_files(folder: &Path, above: &str, lines: &mut Vec<String>) -> io::Result<()> {
    let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    let mut buffer = vec![0; 1 << 20];
    for entry in entries {
        let name = format!("{above}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            list_files(&entry.path(), &name, lines)?;
            continue;
        }
        let mut file = File::open(entry.path())?;
        let (mut length, mut crc) = (0u64, 0);
        loop {
            let read = file.read(&mut buffer)?;
            if read == 0 {
                break;
            }
            length += read as u64;
            crc = crc32c::crc32c_append(crc, &buffer[..read]);
        }
        lines.push(format!("{name} {length} {crc:08x}\n"));
    }
    Ok(())
}

/// Opens the index, emptied if it is not to be believed or does not open. From now on it counts as open.
pub fn open(disk: &dyn Disk, dir: &Path, config: &EmbeddedConfig) -> Result<Arc<dyn Index>, StoreError> {
    let emptied = match believed(disk, dir, config) {
        true => None,
        false => {
            // Until it is empty, no start may take it for one that was open.
            distrust(disk, dir).map_err(io_error("noting that the index is not to be believed"))?;
            Some(empty(dir, config)?)
        }
    };
    write(disk, dir, &open_text(disk)).map_err(io_error("noting that the index is open"))?;
    docaxis_failpoints::failpoint!("broker.start.index-noted");
    if let Some(index) = emptied {
        return Ok(index);
    }
    match &config.index {
        IndexKind::Memory(index) => Ok(index.clone()),
        IndexKind::Sled => match FileIndex::open(&dir.join("index"), config.index_cache_bytes) {
            Ok(index) => Ok(Arc::new(index)),
            Err(error) => {
                tracing::warn!(%error, "the index does not open");
                empty(dir, config)
            }
        },
    }
}

/// Sees to it that the next start builds the index anew.
pub fn distrust(disk: &dyn Disk, dir: &Path) -> io::Result<()> {
    write(disk, dir, "unreadable")
}

/// Counts the index as open: as it is, it is not what was closed.
pub fn begin_anew(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    write(disk, dir, &open_text(disk)).map_err(io_error("noting that the index is open"))
}

/// An empty index.
pub fn empty(dir: &Path, config: &EmbeddedConfig) -> Result<Arc<dyn Index>, StoreError> {
    remove(dir, config)?;
    match &config.index {
        IndexKind::Memory(index) => Ok(index.clone()),
        IndexKind::Sled => Ok(Arc::new(FileIndex::open(&dir.join("index"), config.index_cache_bytes)?)),
    }
}

/// Removes an index that nobody has open, and gives back the room that it took.
pub fn remove(dir: &Path, config: &EmbeddedConfig) -> Result<(), StoreError> {
    match &config.index {
        IndexKind::Memory(index) => index.clear(),
        IndexKind::Sled => {
            let folder = dir.join("index");
            let removed = match fs::symlink_metadata(&folder) {
                Ok(found) if found.is_dir() => fs::remove_dir_all(&folder),
                Ok(_) => fs::remove_file(&folder),
                Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(e) => Err(e),
            };
            removed.map_err(io_error("removing the old index"))
        }
    }
}

/// Makes a written index durable and says so. sled's own flush does not reach the disk.
pub fn closed(disk: &dyn Disk, dir: &Path, config: &EmbeddedConfig) -> Result<(), StoreError> {
    let failed = io_error("closing the index");
    if matches!(config.index, IndexKind::Sled) {
        sync_all(&dir.join("index")).map_err(&failed)?;
    }
    let text = closed_text(dir, config).map_err(&failed)?;
    write(disk, dir, &text).map_err(&failed)
}

fn sync_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sync_all(&path)?;
        } else {
            File::open(path)?.sync_all()?;
        }
    }
    File::open(folder)?.sync_all()
}
