//! The mark on a data folder that may be older than what was signed from it. While it is there, the broker signs and
//! accepts nothing; it is removed when the log goes on where it was.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use docaxis_protocol::Timestamp;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Leaves of the evidence log that the folder had when it was marked.
    pub leaves: u64,
    /// When the backup was taken; none if an older copy was put back without `broker restore`.
    pub taken: Option<Timestamp>,
    /// When the folder was marked.
    pub since: Timestamp,
}

impl Mark {
    pub const FILE: &'static str = "restored.json";

    pub fn encode(&self) -> Vec<u8> {
        // Three plain fields: there is nothing in them that JSON cannot say.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// The mark on this folder. One that does not read marks it all the same.
    pub fn read(data: &Path, now: Timestamp) -> io::Result<Option<Self>> {
        match fs::read(data.join(Self::FILE)) {
            Ok(bytes) => {
                let unread = Self { leaves: 0, taken: None, since: now };
                Ok(Some(serde_json::from_slice(&bytes).unwrap_or(unread)))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Marks the folder durably.
    pub fn write(&self, data: &Path) -> io::Result<()> {
        let temporary = data.join("restored.new");
        let mut file = File::create(&temporary)?;
        file.write_all(&self.encode())?;
        file.sync_all()?;
        fs::rename(&temporary, data.join(Self::FILE))?;
        File::open(data)?.sync_all()
    }

    /// Takes the mark away, durably.
    pub fn remove(data: &Path) -> io::Result<()> {
        match fs::remove_file(data.join(Self::FILE)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        File::open(data)?.sync_all()
    }
}
