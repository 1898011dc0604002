//! Backup of a broker's data, online or stopped, and its restore.
//!
//! A backup is a cut of journal, evidence and bodies at a durable position, with a checkpoint that the cut covers. The
//! index, the log's tiles and the directory in force are views of these and are made again. Keys and configuration are
//! not in it: they stay where they are.

mod restore;

use std::io;
use std::path::{Path, PathBuf};

use docaxis_backup::{Backup, BackupError, Taken};
use docaxis_certs::BrokerIdentity;
use docaxis_protocol::tlog::note::SignedNote;
use docaxis_protocol::{Origin, Timestamp, tlog};

pub use crate::control::report;
pub use restore::{Restored, is_empty, restore};

use crate::config::BrokerConfig;
use crate::store::embedded::EmbeddedStore;
use crate::store::{Store as _, StoreError};

const KIND: &str = "broker";
const LINEAGE: &str = "lineage";
/// What every broker's data has from its first start on.
const NEEDED: &[&str] = &["journal", "evidence"];
pub(crate) const CHECKPOINT: &str = "log/checkpoint";

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    #[error("the broker's identity: {0}")]
    Identity(#[from] docaxis_certs::identity::IdentityError),
    #[error("{} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("the log's checkpoint does not read: {0}")]
    Checkpoint(String),
    #[error(
        "the checkpoint covers {checkpoint} leaves and the store holds {leaves}: this data is not whole, and a copy of it \
         would be none. Restore an earlier backup"
    )]
    Ahead { checkpoint: u64, leaves: u64 },
}

/// Copies what is new since the last backup into `dir`. The store may go on meanwhile.
pub fn take(store: &EmbeddedStore, data: &Path, origin: &Origin, now: Timestamp, dir: &Path) -> Result<Taken, Error> {
    let mut backup = Backup::begin(dir, KIND, origin.as_str(), &lineage(data)?, now)?;
    // The checkpoint before the cut: it covers committed leaves only, so the cut has all of them.
    let checkpoint = read(&data.join(CHECKPOINT))?;
    let cut = store.cut()?;
    if let Some(bytes) = &checkpoint {
        let covered = size_of(bytes)?;
        if covered > cut.leaves {
            return Err(Error::Ahead { checkpoint: covered, leaves: cut.leaves });
        }
        backup.add(CHECKPOINT, bytes)?;
    }
    backup.copy(cut.files.clone())?;
    Ok(backup.finish(cut.leaves)?)
}

/// The same for a stopped broker, under its lock: [`StoreError::Locked`] if it runs. Makes no data where none is: an empty
/// store is no copy of one whose disk is not mounted.
pub fn take_stopped(config: &BrokerConfig, dir: &Path, now: Timestamp) -> Result<Taken, Error> {
    let identity = BrokerIdentity::load(&config.broker.identity)?;
    let data = &config.broker.data;
    // What a broken-off restore left is for the store to refuse.
    if let Some(missing) = NEEDED.iter().map(|name| data.join(name)).find(|folder| !folder.is_dir())
        && !docaxis_backup::is_broken_off(data)
    {
        return Err(BackupError::NoData(missing).into());
    }
    let store = crate::start::open_store(config)?;
    let taken = take(&store, &config.broker.data, &identity.origin, now, dir);
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.map_err(|e| StoreError::Io { operation: "closing the store", found: e.to_string() })?;
    runtime.block_on(store.close())?;
    taken
}

fn size_of(checkpoint: &[u8]) -> Result<u64, Error> {
    let wrong = |why: String| Error::Checkpoint(why);
    let text = std::str::from_utf8(checkpoint).map_err(|e| wrong(e.to_string()))?;
    let note = SignedNote::parse(text).map_err(|e| wrong(e.to_string()))?;
    Ok(tlog::Checkpoint::parse(&note.text).map_err(|e| wrong(e.to_string()))?.size)
}

/// Names this history of the data folder: the same file names mean other files after a restore.
fn lineage(data: &Path) -> Result<String, Error> {
    let text = read(&data.join(LINEAGE))?;
    Ok(text.map_or_else(|| "first".to_owned(), |bytes| String::from_utf8_lossy(&bytes).trim().to_owned()))
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use docaxis_certs::{Authority, AuthorityConfig};

    use super::*;

    #[test]
    fn a_stopped_broker_whose_data_is_not_there_is_not_backed_up_and_nothing_is_made() {
        let root = tempfile::tempdir().unwrap();
        let now = Timestamp::from_unix_ms(1_795_318_200_123);
        let authority = AuthorityConfig::new(
            "docaxis.example/vn".parse().unwrap(),
            "b1".parse().unwrap(),
            "broker.example:7400",
            now,
        );
        let mut authority = Authority::init(&root.path().join("authority"), &authority).unwrap();
        let (identity, data, dir) =
            (root.path().join("identity"), root.path().join("data"), root.path().join("backup"));
        authority.issue_broker(&identity, now).unwrap();
        let config = BrokerConfig::new(data.clone(), identity);
        let refused = |missing: &Path| {
            let error = take_stopped(&config, &dir, now).unwrap_err();
            assert!(matches!(&error, Error::Backup(BackupError::NoData(path)) if path == missing), "{error}");
        };
        refused(&data.join("journal"));
        assert!(!data.exists());
        // The place where its disk is mounted is there, and its disk is not.
        std::fs::create_dir_all(data.join("journal")).unwrap();
        refused(&data.join("evidence"));
        assert_eq!((std::fs::read_dir(&data).unwrap().count(), dir.exists()), (1, false));
    }
}
