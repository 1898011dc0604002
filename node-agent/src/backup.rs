//! Backup of an agent's data, online or stopped, and its restore: the mailbox as of one moment, and every body.
//!
//! Keys and configuration are not in it. A restored mailbox gets a new epoch, so that the exchange sees that it is one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use docaxis_backup::{Backup, BackupError, Fresh, Manifest, Source, Taken, open, verify};
use docaxis_protocol::{NodeId, Timestamp};

use crate::agent::{AgentError, lock, whole};
use crate::config::AgentConfig;
use crate::mailbox::{self, MailboxError};
use crate::parts::{Parts, PartsError};

pub use crate::desk::report;

const KIND: &str = "agent";
const MAILBOX: &str = "mailbox.db";
const PARTS: &str = "parts";
/// What in the data folder is the data's own. Keys and configuration may lie beside it.
const OWNED: &[&str] = &[MAILBOX, "mailbox.db-wal", "mailbox.db-shm", PARTS];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("the mailbox")]
    Mailbox(#[from] MailboxError),
    #[error("the parts")]
    Parts(#[from] PartsError),
    #[error("cannot {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub manifest: Manifest,
    /// The mailbox's new epoch.
    pub epoch: u64,
    /// Where the data of before is now.
    pub aside: Option<PathBuf>,
}

/// Copies the mailbox and what is new of the bodies into `dir`. The agent may go on meanwhile. Blocks.
pub(crate) fn take(data: &Path, parts: &Arc<Parts>, node: &NodeId, now: Timestamp, dir: &Path) -> Result<Taken, Error> {
    // Bodies have their digests for names, so a restore does not change what a name means.
    let mut backup = Backup::begin(dir, KIND, node.as_str(), "bodies", now)?;
    // Pinned, so that none goes while it is copied. One that comes later is durable before the mailbox names it, and is
    // in the second list.
    let pins: Vec<_> = parts.list()?.into_iter().map(|sha256| parts.pin(sha256)).collect();
    let snapshot = dir.join("mailbox.new");
    remove(&snapshot)?;
    mailbox::snapshot(&data.join(MAILBOX), &snapshot)?;
    let size_of = |path: &Path| {
        let failed = |source| Error::Io { operation: "look at", path: path.to_owned(), source };
        Ok::<_, Error>(std::fs::metadata(path).map_err(failed)?.len())
    };
    let name = MAILBOX.to_owned();
    let mut files =
        vec![Source { name, size: size_of(&snapshot)?, path: snapshot.clone(), fixed: false, sha256: None }];
    for sha256 in parts.list()? {
        let path = parts.path(sha256);
        let text = sha256.to_string();
        let name = format!("{PARTS}/{}/{text}", &text[..2]);
        files.push(Source { name, size: size_of(&path)?, path, fixed: true, sha256: Some(sha256) });
    }
    backup.copy(files)?;
    drop(pins);
    let taken = backup.finish(0)?;
    remove(&snapshot)?;
    Ok(taken)
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { operation: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// The same for a stopped agent, under its lock.
pub fn take_stopped(config: &AgentConfig, node: &NodeId, now: Timestamp, dir: &Path) -> Result<Taken, Error> {
    let data = &config.agent.data;
    let _stopped = lock(data)?;
    whole(data)?;
    let parts = Arc::new(Parts::open(data.join(PARTS))?);
    take(data, &parts, node, now, dir)
}

/// Restores `dir` to the data folder of this agent. Every digest is checked before anything is touched; a folder with a
/// mailbox is moved aside if `move_aside` says so, and refused otherwise.
pub fn restore(
    dir: &Path,
    config: &AgentConfig,
    node: &NodeId,
    now: Timestamp,
    move_aside: bool,
) -> Result<Restored, Error> {
    let data = &config.agent.data;
    let manifest = open(dir)?;
    if manifest.kind != KIND || manifest.owner != node.as_str() {
        let (expected, found) = (format!("{KIND} {node}"), format!("{} {}", manifest.kind, manifest.owner));
        return Err(BackupError::Foreign { path: dir.to_owned(), expected, found }.into());
    }
    let _stopped = if data.exists() { Some(lock(data)?) } else { None };
    if !move_aside && !docaxis_backup::is_empty(data, OWNED) {
        return Err(BackupError::NotEmpty(data.clone()).into());
    }
    verify(dir, &manifest)?;
    let fresh = Fresh::write(dir, &manifest, data, OWNED)?;
    let epoch = mailbox::begin_epoch(&fresh.folder().join(MAILBOX), now)?;
    let replaced = fresh.replace(move_aside)?;
    Ok(Restored { manifest, epoch, aside: replaced.aside })
}

/// Whether a restore has nothing to move aside.
pub fn is_empty(config: &AgentConfig) -> bool {
    docaxis_backup::is_empty(&config.agent.data, OWNED)
}
