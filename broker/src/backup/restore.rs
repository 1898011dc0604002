//! Puts a backup in the place of a broker's data, and marks it: a broker that finds the mark signs and accepts nothing
//! until it has compared itself with what its agents hold.

use std::path::{Path, PathBuf};

use docaxis_backup::{BackupError, Fresh, Manifest, open, verify};
use docaxis_certs::BrokerIdentity;
use docaxis_protocol::Timestamp;

use super::{Error, KIND, LINEAGE};
use crate::config::BrokerConfig;
use crate::continuity::Mark;
use crate::disk::RealDisk;
use crate::store::StoreError;
use crate::store::embedded;

/// What in the data folder is the data's own. Keys and configuration may lie beside it.
const OWNED: &[&str] = &["journal", "evidence", "blobs", "log", "index", "index.state", "damaged", LINEAGE, Mark::FILE];

/// Whether a restore has nothing to move aside.
pub fn is_empty(data: &Path) -> bool {
    docaxis_backup::is_empty(data, OWNED)
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub manifest: Manifest,
    /// Where the data of before is now.
    pub aside: Option<PathBuf>,
}

/// Restores `dir` to the data folder of this broker. Every digest is checked before anything is touched; a folder that is not empty is moved
/// aside if `move_aside` says so, and refused otherwise.
pub fn restore(dir: &Path, config: &BrokerConfig, now: Timestamp, move_aside: bool) -> Result<Restored, Error> {
    let origin = BrokerIdentity::load(&config.broker.identity)?.origin;
    let data = config.broker.data.as_path();
    let manifest = open(dir)?;
    if manifest.kind != KIND || manifest.owner != origin.as_str() {
        let found = format!("{} {}", manifest.kind, manifest.owner);
        let expected = format!("{KIND} {origin}");
        return Err(BackupError::Foreign { path: dir.to_owned(), expected, found }.into());
    }
    let _stopped = if data.exists() { Some(embedded::lock(&RealDisk, data)?) } else { None };
    if !move_aside && !docaxis_backup::is_empty(data, OWNED) {
        return Err(BackupError::NotEmpty(data.to_owned()).into());
    }
    verify(dir, &manifest)?;
    let fresh = Fresh::write(dir, &manifest, data, OWNED)?;
    let mut random = [0; 16];
    getrandom::fill(&mut random)
        .map_err(|e| StoreError::Io { operation: "naming the restored data", found: e.to_string() })?;
    fresh.add(LINEAGE, docaxis_protocol::digest::hex(&random).as_bytes())?;
    let mark = Mark { leaves: manifest.leaves, taken: Some(manifest.taken), since: now };
    fresh.add(Mark::FILE, &mark.encode())?;
    let replaced = fresh.replace(move_aside)?;
    Ok(Restored { manifest, aside: replaced.aside })
}
