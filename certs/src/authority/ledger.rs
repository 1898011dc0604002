//! The authority's records: one append-only file of JSON lines, one line per change.
//!
//! A change is all the records of one operation on one line, so that a crash leaves it whole or absent. A returned
//! append is on disk. A last line that is torn was never answered for: it is set aside in a file of its own and cut.
//! Damage before the last line is reported and nothing is written any more. Several processes may hold the authority
//! open (a serving one and the command line): each change is made under a file lock, after reading what others wrote.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use super::records::Record;
use crate::files::{self, FileError, failed};

#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{} is damaged in the line at byte {offset}; restore it from a backup", path.display())]
    Damaged {
        path: PathBuf,
        offset: u64,
        #[source]
        source: serde_json::Error,
    },
    #[error("a record does not become JSON")]
    Encode(#[source] serde_json::Error),
    #[error("{} is shorter than what was already read of it; stop every process that uses it and restore it", path.display())]
    Shrunk { path: PathBuf },
    #[error("an earlier write to {} failed; open the authority again", path.display())]
    Poisoned { path: PathBuf },
}

pub(crate) struct Ledger {
    path: PathBuf,
    file: File,
    lock: PathBuf,
    read_to: u64,
    poisoned: bool,
}

/// Held while a change is decided and written; dropping it lets other processes in.
pub(crate) struct Guard(#[expect(dead_code, reason = "the open file is the lock")] File);

impl Ledger {
    pub fn create(path: &Path) -> Result<Self, LedgerError> {
        files::write(path, b"")?;
        Self::open(path)
    }

    pub fn open(path: &Path) -> Result<Self, LedgerError> {
        let file = OpenOptions::new().read(true).append(true).open(path).map_err(failed("open", path))?;
        Ok(Self { path: path.to_owned(), file, lock: path.with_extension("lock"), read_to: 0, poisoned: false })
    }

    /// Waits until no other process is changing the records.
    pub fn lock(&self) -> Result<Guard, LedgerError> {
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&self.lock)
            .map_err(failed("open", &self.lock))?;
        lock.lock().map_err(failed("lock", &self.lock))?;
        Ok(Guard(lock))
    }

    /// What was written since the last call, by any process. Needs the lock: a torn tail is cut here.
    pub fn read_new(&mut self, _held: &Guard) -> Result<Vec<Record>, LedgerError> {
        let length = self.file.metadata().map_err(failed("measure", &self.path))?.len();
        if length < self.read_to {
            return Err(LedgerError::Shrunk { path: self.path.clone() });
        }
        let mut bytes = Vec::new();
        self.file
            .seek(SeekFrom::Start(self.read_to))
            .and_then(|_| self.file.read_to_end(&mut bytes))
            .map_err(failed("read", &self.path))?;
        let mut records = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let end = bytes[at..].iter().position(|byte| *byte == b'\n').map(|length| at + length);
            let line = &bytes[at..end.unwrap_or(bytes.len())];
            let is_last = end.is_none_or(|end| end + 1 == bytes.len());
            match (serde_json::from_slice::<Vec<Record>>(line), end) {
                (Ok(found), Some(end)) => {
                    records.extend(found);
                    at = end + 1;
                }
                // Without its newline even a line that reads was not synced as a whole, so nobody was told of it.
                (Ok(_), None) => {
                    self.cut(at, &bytes)?;
                    break;
                }
                (Err(_), _) if is_last => {
                    self.cut(at, &bytes)?;
                    break;
                }
                (Err(source), _) => {
                    let offset = self.read_to + at as u64;
                    return Err(LedgerError::Damaged { path: self.path.clone(), offset, source });
                }
            }
        }
        self.read_to += at as u64;
        Ok(records)
    }

    fn cut(&self, at: usize, bytes: &[u8]) -> Result<(), LedgerError> {
        let offset = self.read_to + at as u64;
        files::write(&self.path.with_extension(format!("torn-{offset}")), &bytes[at..])?;
        self.file.set_len(offset).and_then(|()| self.file.sync_all()).map_err(failed("cut", &self.path))?;
        Ok(())
    }

    /// Adds one change. When this returns, it is on disk.
    pub fn append(&mut self, records: &[Record], _held: &Guard) -> Result<(), LedgerError> {
        if self.poisoned {
            return Err(LedgerError::Poisoned { path: self.path.clone() });
        }
        let mut line = serde_json::to_vec(records).map_err(LedgerError::Encode)?;
        line.push(b'\n');
        // After a failed write or sync nobody knows what is on disk: reading it again decides.
        self.poisoned = true;
        self.write(&line).map_err(failed("append to", &self.path))?;
        self.poisoned = false;
        self.read_to += line.len() as u64;
        Ok(())
    }

    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.file.write_all(line)?;
        self.file.sync_data()
    }
}
