//! Whether the index on disk may be believed: a small file beside it says in which boot it was opened, or that it was
//! closed. After a loss of power neither holds, and the index is built anew.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::config::{EmbeddedConfig, IndexKind};
use super::index::{Index, SledIndex};
use super::segments::io_error;
use crate::disk::{Disk, read_all};
use crate::store::StoreError;

const FILE: &str = "index.state";
const CLOSED: &str = "closed";
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

fn believed(disk: &dyn Disk, dir: &Path) -> bool {
    let text = disk.open(&dir.join(FILE)).and_then(|file| read_all(file.as_ref(), MAX_BYTES));
    text.is_ok_and(|text| text == CLOSED.as_bytes() || text == disk.boot_id().as_bytes())
}

/// Opens the index, emptied if it is not to be believed or does not open. From now on it counts as open.
pub fn open(disk: &dyn Disk, dir: &Path, config: &EmbeddedConfig) -> Result<Arc<dyn Index>, StoreError> {
    let believed = believed(disk, dir);
    write(disk, dir, &disk.boot_id()).map_err(io_error("noting that the index is open"))?;
    docaxis_failpoints::failpoint!("broker.start.index-noted");
    if !believed {
        return empty(dir, config);
    }
    match &config.index {
        IndexKind::Memory(index) => Ok(index.clone()),
        IndexKind::Sled => match SledIndex::open(&dir.join("index"), config.index_cache_bytes) {
            Ok(index) => Ok(Arc::new(index)),
            Err(error) => {
                tracing::warn!(%error, "the index does not open");
                empty(dir, config)
            }
        },
    }
}

/// An empty index.
pub fn empty(dir: &Path, config: &EmbeddedConfig) -> Result<Arc<dyn Index>, StoreError> {
    match &config.index {
        IndexKind::Memory(index) => {
            index.clear()?;
            Ok(index.clone())
        }
        IndexKind::Sled => {
            let folder = dir.join("index");
            match fs::remove_dir_all(&folder) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_error("removing the old index")(e)),
                _ => {}
            }
            Ok(Arc::new(SledIndex::open(&folder, config.index_cache_bytes)?))
        }
    }
}

/// Makes a written index durable and says so. sled's own flush does not reach the disk.
pub fn closed(disk: &dyn Disk, dir: &Path, config: &EmbeddedConfig) -> Result<(), StoreError> {
    let failed = io_error("closing the index");
    if matches!(config.index, IndexKind::Sled) {
        sync_all(&dir.join("index")).map_err(&failed)?;
    }
    write(disk, dir, CLOSED).map_err(&failed)
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
