//! The way back: a backup's files become a data folder, beside the one that is there, and then in its place.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{BackupError, failed};
use crate::manifest::{Manifest, make_folder, object, sync_folder};
use crate::take::create;

/// Bytes that this user may still write on the file system of `path`.
pub fn free_bytes(path: &Path) -> Result<u64, BackupError> {
    let stat = rustix::fs::statvfs(path).map_err(|e| failed("ask for the room on", path)(e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// A data folder written beside the real one, durable but not in its place yet.
pub struct Fresh {
    folder: PathBuf,
    data: PathBuf,
}

/// What [`Fresh::replace`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// Where the data folder of before is now.
    pub aside: Option<PathBuf>,
}

impl Fresh {
    /// Writes the files of a verified backup into a new folder beside `data`, durably.
    pub fn write(dir: &Path, manifest: &Manifest, data: &Path) -> Result<Self, BackupError> {
        let mut name = data.file_name().unwrap_or_default().to_owned();
        name.push(".restoring");
        let folder = data.with_file_name(name);
        // Left by a restore that was broken off: nobody counts on it.
        match fs::remove_dir_all(&folder) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("remove", &folder)(e)),
            _ => {}
        }
        make_folder(&folder)?;
        let (needed, free) = (manifest.bytes(), free_bytes(&folder)?);
        if needed > free {
            return Err(BackupError::NoRoom { path: folder, needed, free });
        }
        for entry in &manifest.files {
            let target = folder.join(&entry.name);
            make_folder(target.parent().unwrap_or(&folder))?;
            let from = object(dir, &entry.sha256);
            let mut source = File::open(&from).map_err(failed("open", &from))?;
            let mut file = create(&target)?;
            io::copy(&mut source, &mut file).and_then(|_| file.sync_all()).map_err(failed("write", &target))?;
        }
        Ok(Self { folder, data: data.to_owned() })
    }

    /// Adds a small file.
    pub fn add(&self, name: &str, bytes: &[u8]) -> Result<(), BackupError> {
        let path = self.folder.join(name);
        let mut file = create(&path)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("write", &path))
    }

    /// Where the files are until they are in place.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Copies a folder that lies in the data folder and is to stay, such as one with keys.
    pub fn keep(&self, name: &str) -> Result<(), BackupError> {
        let from = self.data.join(name);
        if from.exists() { copy_folder(&from, &self.folder.join(name)) } else { Ok(()) }
    }

    /// Puts the folder in the data folder's place; what is there is moved aside, if that is allowed. `kept` was copied.
    pub fn replace(self, move_aside: bool, kept: Option<&str>) -> Result<Replaced, BackupError> {
        sync_all(&self.folder)?;
        if !move_aside && !is_empty(&self.data, kept)? {
            return Err(BackupError::NotEmpty(self.data));
        }
        // Nothing but a lock: whoever restores holds it.
        let aside = match is_empty(&self.data, None)? {
            true => remove_lock(&self.data).map(|()| None)?,
            false => Some(free_name(&self.data)),
        };
        if let Some(aside) = &aside {
            fs::rename(&self.data, aside).map_err(failed("move aside", &self.data))?;
        }
        fs::rename(&self.folder, &self.data).map_err(failed("rename to", &self.data))?;
        sync_folder(self.data.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        Ok(Replaced { aside })
    }
}

/// Whether a folder is absent or holds nothing but a lock and what is kept.
pub fn is_empty(data: &Path, kept: Option<&str>) -> Result<bool, BackupError> {
    match fs::read_dir(data) {
        Ok(mut entries) => Ok(entries.all(|entry| {
            entry.is_ok_and(|entry| entry.file_name() == "lock" || kept.is_some_and(|kept| entry.file_name() == kept))
        })),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(failed("list", data)(e)),
    }
}

fn copy_folder(from: &Path, to: &Path) -> Result<(), BackupError> {
    make_folder(to)?;
    for entry in fs::read_dir(from).map_err(failed("list", from))? {
        let path = entry.map_err(failed("list", from))?.path();
        let target = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_folder(&path, &target)?;
            continue;
        }
        let mut source = File::open(&path).map_err(failed("open", &path))?;
        let mut file = create(&target)?;
        io::copy(&mut source, &mut file).and_then(|_| file.sync_all()).map_err(failed("write", &target))?;
    }
    Ok(())
}

fn remove_lock(data: &Path) -> Result<(), BackupError> {
    let path = data.join("lock");
    match fs::remove_file(&path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(e)),
        _ => Ok(()),
    }
}

fn free_name(data: &Path) -> PathBuf {
    let mut number = 1u32;
    loop {
        let mut name = data.file_name().unwrap_or_default().to_owned();
        name.push(format!(".before-restore-{number}"));
        let path = data.with_file_name(name);
        if !path.exists() {
            return path;
        }
        number += 1;
    }
}

fn sync_all(folder: &Path) -> Result<(), BackupError> {
    for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
        let path = entry.map_err(failed("list", folder))?.path();
        if path.is_dir() {
            sync_all(&path)?;
        }
    }
    sync_folder(folder)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::take::{Backup, Source};
    use docaxis_protocol::Timestamp;

    fn backup(root: &Path) -> (PathBuf, Manifest) {
        let (file, dir) = (root.join("file"), root.join("backup"));
        fs::write(&file, b"as it was").unwrap();
        let mut backup = Backup::begin(&dir, "broker", "x", "1", Timestamp::from_unix_ms(0)).unwrap();
        let name = "journal/0000000000000001.segment".to_owned();
        backup.copy(vec![Source { name, path: file, size: 5, fixed: false, sha256: None }]).unwrap();
        (dir, backup.finish(0).unwrap().manifest)
    }

    #[test]
    fn a_restore_writes_the_bytes_of_the_cut_and_moves_what_was_there_aside_only_if_told() {
        let root = tempfile::tempdir().unwrap();
        let (dir, manifest) = backup(root.path());
        let data = root.path().join("data");
        let put = |move_aside| {
            let fresh = Fresh::write(&dir, &manifest, &data).unwrap();
            fresh.add("restored.json", b"{}").unwrap();
            fresh.replace(move_aside, None)
        };
        // A lock file alone is no data.
        fs::create_dir(&data).unwrap();
        fs::write(data.join("lock"), b"").unwrap();
        assert_eq!(put(false).unwrap(), Replaced { aside: None });
        assert_eq!(fs::read(data.join("journal/0000000000000001.segment")).unwrap(), b"as it");
        fs::write(data.join("new"), b"x").unwrap();
        assert!(matches!(put(false), Err(BackupError::NotEmpty(_))));
        assert!(data.join("new").exists(), "a refused restore changes nothing");
        let first = root.path().join("data.before-restore-1");
        assert_eq!(put(true).unwrap(), Replaced { aside: Some(first.clone()) });
        assert!(first.join("new").exists() && !data.join("new").exists());
        assert_eq!(put(true).unwrap(), Replaced { aside: Some(root.path().join("data.before-restore-2")) });
    }
}
