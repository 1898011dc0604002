//! The evidence log: takes committed leaves from the store, keeps the tiles, signs checkpoints, gives proofs.
//!
//! A checkpoint covers only committed leaves, and its tiles are durable before it is. At start the tiles must lead to
//! the last checkpoint's root; if they do not, they are made again from the store, and if even that gives another
//! root, nothing is signed: the log never shows two histories.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, RwLock};

use docaxis_protocol::key::SecretKey;
use docaxis_protocol::tlog::checkpoint::{Checkpoint, CheckpointError};
use docaxis_protocol::tlog::merkle::{Frontier, leaf_hash};
use docaxis_protocol::tlog::note::{KeyKind, NoteError, VerifierKey};
use docaxis_protocol::tlog::proof::TlogProof;
use docaxis_protocol::tlog::tile::TileReader;
use docaxis_protocol::{Digest, Origin};

use super::tiles::{Tiles, read_tile, write_durably};
use crate::disk::is_full;
use crate::store::{Store, StoreError};

/// Leaves taken from the store at once.
const BATCH: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("the log's files")]
    Io(#[from] io::Error),
    #[error("the store")]
    Store(#[from] StoreError),
    #[error("the log's key")]
    Key(#[from] NoteError),
    #[error("the log's own checkpoint is not good")]
    Checkpoint(#[from] CheckpointError),
    #[error(
        "the checkpoint covers {signed} leaves and the store holds {stored}: evidence is missing. Nothing is signed; \
         restore the newest backup of DATA"
    )]
    Missing { signed: u64, stored: u64 },
    #[error(
        "the store's first {size} leaves lead to root {found}, but the last checkpoint says {expected}. Nothing is signed; \
         restore the newest backup of DATA"
    )]
    Fork { size: u64, expected: Digest, found: Digest },
    #[error(
        "the store holds {stored} leaves, but the log has no checkpoint: which history was signed last is unknown. Nothing \
         is signed; restore DATA/log from the newest backup"
    )]
    NoCheckpoint { stored: u64 },
    #[error("no proof for leaf {leaf}: {why}")]
    Proof { leaf: u64, why: String },
}

impl LogError {
    /// Whether room on the disk is all that is missing.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Io(source) => is_full(source),
            Self::Store(source) => matches!(source, StoreError::DiskFull(_)),
            _ => false,
        }
    }
}

/// What readers see: the newest checkpoint that is on disk.
#[derive(Default)]
struct Published {
    size: u64,
    note: String,
}

/// Gives proofs and the checkpoint while the keeper goes on writing.
#[derive(Clone)]
pub struct LogReader {
    folder: PathBuf,
    published: Arc<RwLock<Published>>,
}

impl LogReader {
    /// How many leaves the newest checkpoint covers, and its signed note.
    pub fn checkpoint(&self) -> (u64, String) {
        let published = self.published.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        (published.size, published.note.clone())
    }

    /// The tlog-proof of a leaf under the newest checkpoint; none if no checkpoint covers it yet.
    pub fn proof(&self, leaf: u64) -> Result<Option<String>, LogError> {
        Ok(self.proofs(&[leaf])?.remove(0))
    }

    /// One for each leaf, all under the same checkpoint. Neighbours share their tiles, which are read once.
    pub fn proofs(&self, leaves: &[u64]) -> Result<Vec<Option<String>>, LogError> {
        // A partial tile that the keeper removes meanwhile has its full one in its place.
        let published = self.published.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut tiles = TileReader::new(published.size, |tile| read_tile(&self.folder, tile));
        let mut one = |leaf: u64| {
            if leaf >= published.size {
                return Ok(None);
            }
            let path = tiles.inclusion_path(leaf).map_err(|e| LogError::Proof { leaf, why: e.to_string() })?;
            let proof = TlogProof { extra: None, index: leaf, path, checkpoint: published.note.clone() };
            Ok(Some(proof.to_string()))
        };
        leaves.iter().map(|leaf| one(*leaf)).collect()
    }
}

impl LogReader {
    /// The root of the first `size` leaves, of those that the newest checkpoint covers.
    pub fn root_at(&self, size: u64) -> Result<Digest, LogError> {
        Ok(self.frontier(size)?.root())
    }

    fn frontier(&self, size: u64) -> Result<Frontier, LogError> {
        let published = self.published.read().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut tiles = TileReader::new(published.size, |tile| read_tile(&self.folder, tile));
        Frontier::read(size, |subtree| tiles.hash(subtree))
            .map_err(|e| LogError::Proof { leaf: size, why: e.to_string() })
    }

    /// The root of the store's first `size` leaves followed by these entries, whether or not a checkpoint covers them.
    pub fn root_with(&self, store: &dyn Store, size: u64, entries: &[Digest]) -> Result<Digest, LogError> {
        let mut frontier = self.frontier(size.min(self.checkpoint().0))?;
        while frontier.size() < size {
            let wanted = usize::try_from(size - frontier.size()).unwrap_or(BATCH).min(BATCH);
            let batch = store.log_entries(frontier.size(), wanted)?;
            if batch.is_empty() {
                return Err(LogError::Missing { signed: size, stored: frontier.size() });
            }
            batch.iter().for_each(|entry| frontier.push(leaf_hash(&entry.0)));
        }
        entries.iter().for_each(|entry| frontier.push(leaf_hash(&entry.0)));
        Ok(frontier.root())
    }
}

/// The one writer of the log.
pub struct LogKeeper {
    folder: PathBuf,
    key: VerifierKey,
    secret: SecretKey,
    tiles: Tiles,
    reader: LogReader,
}

impl LogKeeper {
    /// Opens the log below `folder` and makes it agree with the store. Signs nothing unless it is told that it may.
    pub fn open(
        folder: &Path,
        origin: &Origin,
        secret: SecretKey,
        store: &dyn Store,
        may_sign: bool,
    ) -> Result<Self, LogError> {
        let key = VerifierKey::new(origin.as_str(), KeyKind::Ed25519, secret.public())?;
        // Whatever bytes are there: what is no text is no checkpoint either, and is called so.
        let note = std::fs::read(folder.join("checkpoint")).map(|note| String::from_utf8_lossy(&note).into_owned());
        let (tiles, note) = match note {
            Ok(note) => {
                let signed = Checkpoint::open(&note, &key, &[], 0)?.checkpoint;
                (Self::agree(folder, &signed, store)?, note)
            }
            // An empty log publishes its first checkpoint before any leaf can be committed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => match store.counts().leaves {
                0 => (Tiles::empty(folder), String::new()),
                stored => return Err(LogError::NoCheckpoint { stored }),
            },
            Err(error) => return Err(error.into()),
        };
        let published = Arc::new(RwLock::new(Published { size: tiles.size(), note }));
        let reader = LogReader { folder: folder.to_owned(), published };
        let mut keeper = Self { folder: folder.to_owned(), key, secret, tiles, reader };
        if !may_sign {
            return Ok(keeper);
        }
        match keeper.publish(store) {
            // The last one stands, and the next follows when there is room.
            Err(error) if error.is_disk_full() && !keeper.reader.checkpoint().1.is_empty() => {
                tracing::warn!(%error, "no room for a checkpoint over what was committed last; it is tried again");
            }
            published => drop(published?),
        }
        Ok(keeper)
    }

    fn agree(folder: &Path, signed: &Checkpoint, store: &dyn Store) -> Result<Tiles, LogError> {
        let stored = store.counts().leaves;
        if stored < signed.size {
            return Err(LogError::Missing { signed: signed.size, stored });
        }
        let from = signed.size - signed.size % 256;
        let last = entries(store, from, signed.size)?;
        let why = match Tiles::open(folder, signed.size, signed.root, last) {
            Ok(tiles) => return Ok(tiles),
            Err(why) => why,
        };
        tracing::warn!(%why, size = signed.size, "the log's tiles do not agree with the checkpoint; made again from the store");
        let mut tiles = Tiles::empty(folder);
        let mut next = 0;
        while next < signed.size {
            let batch = entries(store, next, signed.size.min(next + BATCH as u64))?;
            next += batch.len() as u64;
            tiles.grow(&batch)?;
        }
        if signed.size > 0 && tiles.root() != signed.root {
            return Err(LogError::Fork { size: signed.size, expected: signed.root, found: tiles.root() });
        }
        Ok(tiles)
    }

    /// The newest checkpoint, taken apart; none if none was signed yet.
    pub fn checkpoint(&self) -> Result<Option<Checkpoint>, LogError> {
        match self.reader.checkpoint().1 {
            note if note.is_empty() => Ok(None),
            note => Ok(Some(Checkpoint::open(&note, &self.key, &[], 0)?.checkpoint)),
        }
    }

    pub fn reader(&self) -> LogReader {
        self.reader.clone()
    }

    pub fn verifier_key(&self) -> &VerifierKey {
        &self.key
    }

    /// Takes up all committed leaves and publishes a checkpoint over them. Returns its size.
    ///
    /// Order: tiles durable, then the checkpoint durable, then readers see it, then partial tiles go whose tile is full by
    /// now. If the disk is full, everything stays as it was before, and the call may be repeated.
    pub fn publish(&mut self, store: &dyn Store) -> Result<u64, LogError> {
        let before = self.tiles.clone();
        let published = self.try_publish(store);
        if let Err(error) = &published
            && error.is_disk_full()
        {
            // What was written of a size that nobody has seen would be left for good; a full tile comes again as it is.
            let begun = std::mem::replace(&mut self.tiles, before).partials();
            if let Err(error) = self.tiles.remove_begun(&begun) {
                tracing::warn!(%error, "tiles of a checkpoint that was not made stay");
            }
        }
        published
    }

    fn try_publish(&mut self, store: &dyn Store) -> Result<u64, LogError> {
        let before = self.tiles.size();
        loop {
            let batch = store.log_entries(self.tiles.size(), BATCH)?;
            if batch.is_empty() {
                break;
            }
            self.tiles.grow(&batch)?;
        }
        let size = self.tiles.size();
        if size == before && !self.reader.checkpoint().1.is_empty() {
            return Ok(size);
        }
        docaxis_failpoints::failpoint!("broker.log.tiles-written");
        let checkpoint = Checkpoint { origin: self.key.name().to_owned(), size, root: self.tiles.root() };
        let note = checkpoint.sign(&self.key, &self.secret).to_string();
        write_durably(&self.folder.join("checkpoint"), note.as_bytes())?;
        docaxis_failpoints::failpoint!("broker.log.checkpoint-written");
        *self.reader.published.write().unwrap_or_else(std::sync::PoisonError::into_inner) = Published { size, note };
        // Whoever reads on with a narrower tile finds the full one in its place.
        self.tiles.remove_outgrown()?;
        docaxis_failpoints::failpoint!("broker.log.outgrown-removed");
        Ok(size)
    }
}

/// The store's log entries in `from..to`.
fn entries(store: &dyn Store, from: u64, to: u64) -> Result<Vec<Digest>, LogError> {
    let mut all = Vec::new();
    let mut next = from;
    while next < to {
        let wanted = usize::try_from(to - next).unwrap_or(BATCH).min(BATCH);
        let batch = store.log_entries(next, wanted)?;
        if batch.is_empty() {
            return Err(LogError::Missing { signed: to, stored: next });
        }
        next += batch.len() as u64;
        all.extend(batch);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use docaxis_protocol::tlog::merkle::{leaf_hash, root};

    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::store::claims::{letter, wait};
    use crate::store::embedded::{EmbeddedConfig, EmbeddedStore, IndexKind};

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_checkpoint_that_finds_no_room_leaves_the_log_as_it_was_and_comes_when_there_is_some() {
        let folder = tempfile::tempdir().unwrap();
        let config = EmbeddedConfig {
            segment_bytes: 1 << 20,
            index: IndexKind::Memory(Arc::default()),
            ..EmbeddedConfig::default()
        };
        let store = EmbeddedStore::open(Path::new("/data"), config, Arc::new(SimDisk::new())).unwrap();
        let origin = "docaxis.example/vn".parse().unwrap();
        let open = || LogKeeper::open(folder.path(), &origin, SecretKey::from_seed(&[7; 32]), &*store, true);
        let mut keeper = open().unwrap();
        let accept = |from: u64, to: u64| {
            (from..to).for_each(|n| drop(wait(store.accept(letter(n, &["H37.DN.001"]))).unwrap()));
        };
        accept(0, 3);
        assert_eq!(keeper.publish(&*store).unwrap(), 3);
        let (partials, bundles) = (folder.path().join("tile/0/000.p"), folder.path().join("tile/entries/000.p"));
        let before = keeper.reader().checkpoint();
        // Writes to it fail as on a full disk: once for the tile, once for its bundle of entries, once for the checkpoint.
        for (n, full) in
            (3..).zip([partials.join("4.tmp"), bundles.join("5.tmp"), folder.path().join("checkpoint.tmp")])
        {
            accept(n, n + 1);
            symlink("/dev/full", &full).unwrap();
            let error = keeper.publish(&*store).unwrap_err();
            assert!(error.is_disk_full(), "{}: {error:?}", full.display());
            assert_eq!(keeper.reader().checkpoint(), before);
            assert!(keeper.reader().proof(2).unwrap().is_some());
            assert_eq!((names(&partials), names(&bundles)), (vec!["3".into()], vec!["3".into()]), "{}", full.display());
        }
        assert_eq!(keeper.publish(&*store).unwrap(), 6);
        let entries = store.log_entries(0, 6).unwrap();
        let expected = root(&entries.iter().map(|entry| leaf_hash(&entry.0)).collect::<Vec<_>>());
        assert_eq!((keeper.tiles.root(), names(&partials)), (expected, vec!["3".to_owned(), "6".to_owned()]));
        let published = keeper.reader().checkpoint();
        assert_eq!(open().unwrap().reader().checkpoint(), published);
    }
}
