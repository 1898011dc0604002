//! What can go wrong with a backup.

use std::io;
use std::path::{Path, PathBuf};

use docaxis_protocol::Digest;

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("cannot {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} holds no backup: there is no manifest in it", .0.display())]
    NoBackup(PathBuf),
    #[error("the manifest {} is damaged: {why}", path.display())]
    Manifest { path: PathBuf, why: String },
    #[error("{} of the backup is damaged: {found}; the manifest says SHA-256 {expected}. Nothing was changed", name)]
    Damaged { name: String, expected: Digest, found: String },
    #[error("{} holds a backup of {found}; expected {expected}", path.display())]
    Foreign { path: PathBuf, expected: String, found: String },
    #[error("the copies take {needed} bytes and {} has {free} left", path.display())]
    NoRoom { path: PathBuf, needed: u64, free: u64 },
    #[error("another backup into {} is under way", .0.display())]
    Busy(PathBuf),
    #[error("{} is shorter than the {expected} bytes that belong to the backup", path.display())]
    Short { path: PathBuf, expected: u64 },
    #[error("{} is not empty", .0.display())]
    NotEmpty(PathBuf),
    #[error(
        "{} is not there; expected the data of a program that ran before, found nothing to back up. Nothing was made, and \
         an earlier backup is untouched. Mount the data's disk or set the data folder right, then try again", .0.display()
    )]
    NoData(PathBuf),
    #[error(
        "the backup in {} holds {expected} records and the data only {found}: data that lost some would replace the only \
         copy. The older backup is kept. Check the data's disk; to back up this data all the same, name another folder",
        path.display()
    )]
    Fewer { path: PathBuf, expected: u64, found: u64 },
}

pub(crate) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> BackupError {
    move |source| BackupError::Io { operation, path: path.to_owned(), source }
}
