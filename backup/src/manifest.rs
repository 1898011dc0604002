//! The list of a backup's files with sizes and digests, and the check that all of them are there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use docaxis_protocol::digest::Hasher;
use docaxis_protocol::{Digest, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::{BackupError, failed};

pub(crate) const MANIFEST: &str = "manifest";
const FORMAT: u32 = 1;
/// A million bodies take about 150 MB of manifest.
const MAX_MANIFEST_BYTES: u64 = 1 << 30;
pub(crate) const CHUNK_BYTES: usize = 1 << 20;

/// One file of the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Below the data folder, with `/` between folders.
    pub name: String,
    /// Bytes.
    pub size: u64,
    pub sha256: Digest,
    /// Whether no other bytes will ever stand under this name with this size.
    pub fixed: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format: u32,
    /// What was backed up: `broker` or `agent`.
    pub kind: String,
    /// The exchange, or the node.
    pub owner: String,
    /// Changes with each restore: names of files mean the same only within one.
    pub lineage: String,
    pub taken: Timestamp,
    /// What only grows within one lineage. Broker: leaves of the evidence log in it. Agent: pieces of evidence in it and
    /// dispatches that were ever sent or taken.
    pub leaves: u64,
    pub files: Vec<Entry>,
    /// Files that were missing, or did not have the digest that their name says. In `files` only if an earlier backup
    /// had them whole.
    pub damaged: Vec<String>,
}

impl Manifest {
    pub(crate) fn new(kind: &str, owner: &str, lineage: &str, taken: Timestamp, leaves: u64) -> Self {
        let (kind, owner, lineage) = (kind.to_owned(), owner.to_owned(), lineage.to_owned());
        Self { format: FORMAT, kind, owner, lineage, taken, leaves, files: Vec::new(), damaged: Vec::new() }
    }

    /// Sum of the files' sizes.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    pub(crate) fn by_name(&self) -> BTreeMap<&str, &Entry> {
        self.files.iter().map(|file| (file.name.as_str(), file)).collect()
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut bytes = serde_json::to_vec(self)?;
        let digest = Digest::of(&bytes);
        bytes.extend_from_slice(format!("\n{digest}\n").as_bytes());
        Ok(bytes)
    }

    fn decode(bytes: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(bytes).map_err(|e| e.to_string())?;
        let (json, digest) = text
            .strip_suffix('\n')
            .and_then(|text| text.rsplit_once('\n'))
            .ok_or("it does not end with its SHA-256")?;
        let found = Digest::of(json.as_bytes());
        if found.to_string() != digest {
            return Err(format!("its SHA-256 is {found}; it says {digest}"));
        }
        let manifest: Self = serde_json::from_str(json).map_err(|e| e.to_string())?;
        if manifest.format != FORMAT {
            return Err(format!("its format is {}; this program reads {FORMAT}", manifest.format));
        }
        match manifest.files.iter().find(|file| !is_plain(&file.name)) {
            Some(file) => Err(format!("{:?} is no name below a data folder", file.name)),
            None => Ok(manifest),
        }
    }
}

/// Whether a name stays below the folder that it is put into.
fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.split('/').all(|part| !part.is_empty() && part != "." && part != "..")
}

pub(crate) fn object(dir: &Path, sha256: &Digest) -> PathBuf {
    let name = sha256.to_string();
    dir.join("objects").join(&name[..2]).join(name)
}

/// Reads the manifest of the backup in `dir`.
pub fn open(dir: &Path) -> Result<Manifest, BackupError> {
    let path = dir.join(MANIFEST);
    let file = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(BackupError::NoBackup(dir.to_owned())),
        other => other.map_err(failed("open", &path))?,
    };
    let mut bytes = Vec::new();
    file.take(MAX_MANIFEST_BYTES).read_to_end(&mut bytes).map_err(failed("read", &path))?;
    Manifest::decode(&bytes).map_err(|why| BackupError::Manifest { path, why })
}

/// Reads every file of the backup and compares it with the manifest.
pub fn verify(dir: &Path, manifest: &Manifest) -> Result<(), BackupError> {
    for entry in &manifest.files {
        check(dir, entry)?;
    }
    Ok(())
}

fn check(dir: &Path, entry: &Entry) -> Result<(), BackupError> {
    let path = object(dir, &entry.sha256);
    let damaged = |found: String| BackupError::Damaged { name: entry.name.clone(), expected: entry.sha256, found };
    let file = match File::open(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(damaged("it is not there".to_owned())),
        other => other.map_err(failed("open", &path))?,
    };
    let (size, sha256) = digest_of(&file, u64::MAX).map_err(failed("read", &path))?;
    if size != entry.size {
        return Err(damaged(format!("it has {size} bytes instead of {}", entry.size)));
    }
    if sha256 != entry.sha256 {
        return Err(damaged(format!("its SHA-256 is {sha256}")));
    }
    Ok(())
}

/// Length and digest of up to `limit` bytes of a file.
fn digest_of(file: &File, limit: u64) -> io::Result<(u64, Digest)> {
    let mut reader = file.take(limit);
    let (mut size, mut hasher, mut buffer) = (0, Hasher::new(), vec![0; CHUNK_BYTES]);
    loop {
        let read = reader.read(&mut buffer)?;
        if read == 0 {
            return Ok((size, hasher.finish()));
        }
        hasher.update(&buffer[..read]);
        size += read as u64;
    }
}

pub(crate) fn sync_folder(path: &Path) -> Result<(), BackupError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(failed("sync", path))
}

pub(crate) fn make_folder(path: &Path) -> Result<(), BackupError> {
    use std::os::unix::fs::DirBuilderExt as _;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create folder", path))
}
