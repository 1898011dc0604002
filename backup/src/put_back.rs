//! The way back: a backup's files take the place of a data folder's own, beside keys and configuration that may lie in
//! the same folder.
//!
//! Nothing is moved before all files are durable in `restoring.new`. While files are moved, the folder is called
//! `restoring`: whoever would open the data must refuse as long as it is there, and the same restore ends it.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{BackupError, failed};
use crate::manifest::{Manifest, make_folder, object, sync_folder};
use crate::take::create;

const NEW: &str = "restoring.new";
const MOVING: &str = "restoring";

/// Bytes that this user may still write on the file system of `path`.
pub fn free_bytes(path: &Path) -> Result<u64, BackupError> {
    let stat = rustix::fs::statvfs(path).map_err(|e| failed("ask for the room on", path)(e.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Whether a restore was broken off while it moved files: the data is neither the old nor the new one.
pub fn is_broken_off(data: &Path) -> bool {
    data.join(MOVING).exists()
}

/// Whether none of the data's own files is there.
pub fn is_empty(data: &Path, owned: &[&str]) -> bool {
    !owned.iter().any(|name| data.join(name).exists()) && !is_broken_off(data)
}

/// The files of a backup, written below the data folder and durable, but not in their places yet.
pub struct Fresh {
    folder: PathBuf,
    data: PathBuf,
    owned: Vec<String>,
}

/// What [`Fresh::replace`] did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replaced {
    /// Where the files of before are now.
    pub aside: Option<PathBuf>,
}

impl Fresh {
    /// Writes the files of a verified backup durably into a new folder below `data`. `owned` are the names in `data` that
    /// belong to it; all others stay where they are.
    pub fn write(dir: &Path, manifest: &Manifest, data: &Path, owned: &[&str]) -> Result<Self, BackupError> {
        let folder = data.join(NEW);
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
        let owned = owned.iter().map(|name| (*name).to_owned()).collect();
        Ok(Self { folder, data: data.to_owned(), owned })
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

    /// Puts the files in their places; those of before are moved to `before-restore-N`, if that is allowed.
    pub fn replace(self, move_aside: bool) -> Result<Replaced, BackupError> {
        self.replace_some(move_aside, usize::MAX)
    }

    /// The same, broken off after some moves.
    fn replace_some(self, move_aside: bool, mut moves: usize) -> Result<Replaced, BackupError> {
        sync_all(&self.folder)?;
        let owned: Vec<&str> = self.owned.iter().map(String::as_str).collect();
        if !move_aside && !is_empty(&self.data, &owned) {
            return Err(BackupError::NotEmpty(self.data));
        }
        let moving = self.data.join(MOVING);
        // Emptied but never absent, so that a folder which was broken off before is seen to be at every moment.
        clear(&moving)?;
        fs::rename(&self.folder, &moving).map_err(failed("rename to", &moving))?;
        sync_folder(&self.data)?;
        let there: Vec<&str> = owned.into_iter().filter(|name| self.data.join(name).exists()).collect();
        let aside = (!there.is_empty()).then(|| free_name(&self.data));
        if let Some(aside) = &aside {
            make_folder(aside)?;
            move_all(&self.data, aside, there.into_iter().map(str::to_owned).collect(), &mut moves)?;
        }
        move_all(&moving, &self.data, names(&moving)?, &mut moves)?;
        if moves > 0 {
            fs::remove_dir(&moving).map_err(failed("remove", &moving))?;
            sync_folder(&self.data)?;
        }
        Ok(Replaced { aside })
    }
}

fn move_all(from: &Path, to: &Path, names: Vec<String>, moves: &mut usize) -> Result<(), BackupError> {
    for name in names {
        if *moves == 0 {
            return Ok(());
        }
        *moves -= 1;
        let source = from.join(&name);
        fs::rename(&source, to.join(&name)).map_err(failed("move", &source))?;
    }
    sync_folder(to)?;
    sync_folder(from)
}

fn names(folder: &Path) -> Result<Vec<String>, BackupError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed("list", folder))? {
        let entry = entry.map_err(failed("list", folder))?;
        // Everything in it was written under a name of ours.
        names.extend(entry.file_name().into_string().ok());
    }
    names.sort();
    Ok(names)
}

fn clear(folder: &Path) -> Result<(), BackupError> {
    if !folder.exists() {
        return Ok(());
    }
    for name in names(folder)? {
        let path = folder.join(name);
        let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(failed("remove", &path))?;
    }
    Ok(())
}

fn free_name(data: &Path) -> PathBuf {
    let mut number = 1u32;
    loop {
        let path = data.join(format!("before-restore-{number}"));
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

    const OWNED: &[&str] = &["journal", "index", "restored.json"];

    struct Case {
        root: tempfile::TempDir,
        manifest: Manifest,
    }

    impl Case {
        /// A backup of one file of five bytes, and a data folder with keys and a lock in it.
        fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            let file = root.path().join("file");
            fs::write(&file, b"as it was").unwrap();
            let at = Timestamp::from_unix_ms(0);
            let mut backup = Backup::begin(&root.path().join("backup"), "broker", "x", "1", at).unwrap();
            let name = "journal/0000000000000001.segment".to_owned();
            backup.copy(vec![Source { name, path: file, size: 5, fixed: false, sha256: None }]).unwrap();
            let manifest = backup.finish(0).unwrap().manifest;
            fs::create_dir_all(root.path().join("data/identity")).unwrap();
            fs::write(root.path().join("data/identity/key.pem"), b"key").unwrap();
            fs::write(root.path().join("data/lock"), b"").unwrap();
            Self { root, manifest }
        }

        fn data(&self) -> PathBuf {
            self.root.path().join("data")
        }

        fn fresh(&self) -> Fresh {
            let fresh = Fresh::write(&self.root.path().join("backup"), &self.manifest, &self.data(), OWNED).unwrap();
            fresh.add("restored.json", b"{}").unwrap();
            fresh
        }

        fn read(&self, name: &str) -> Option<String> {
            fs::read_to_string(self.data().join(name)).ok()
        }

        fn is_restored(&self) {
            assert_eq!(self.read("journal/0000000000000001.segment").as_deref(), Some("as it"));
            assert_eq!((self.read("restored.json").as_deref(), self.read("index/new")), (Some("{}"), None));
            assert_eq!(self.read("identity/key.pem").as_deref(), Some("key"), "keys stay where they are");
            assert!(!is_broken_off(&self.data()));
        }
    }

    #[test]
    fn a_restore_writes_the_bytes_of_the_cut_and_moves_what_was_there_aside_only_if_told() {
        let case = Case::new();
        assert_eq!(case.fresh().replace(false).unwrap(), Replaced { aside: None });
        case.is_restored();
        fs::create_dir(case.data().join("index")).unwrap();
        fs::write(case.data().join("index/new"), b"x").unwrap();
        assert!(matches!(case.fresh().replace(false), Err(BackupError::NotEmpty(_))));
        assert_eq!(case.read("index/new").as_deref(), Some("x"), "a refused restore changes nothing");
        let first = case.data().join("before-restore-1");
        assert_eq!(case.fresh().replace(true).unwrap(), Replaced { aside: Some(first.clone()) });
        case.is_restored();
        assert!(first.join("index/new").exists() && first.join("journal").exists());
        let second = case.data().join("before-restore-2");
        assert_eq!(case.fresh().replace(true).unwrap(), Replaced { aside: Some(second) });
    }

    #[test]
    fn a_restore_that_is_broken_off_anywhere_is_seen_and_the_same_command_ends_it() {
        // After how many of the moves it was broken off.
        for moves in 0..4 {
            let case = Case::new();
            case.fresh().replace(true).unwrap();
            fs::create_dir(case.data().join("index")).unwrap();
            fs::write(case.data().join("index/new"), b"x").unwrap();
            let fresh = case.fresh();
            assert!(!is_broken_off(&case.data()), "nothing was touched yet");
            fresh.replace_some(true, moves).unwrap();
            assert!(is_broken_off(&case.data()), "after {moves} moves");
            case.fresh().replace(true).unwrap();
            case.is_restored();
            let aside = ["before-restore-1", "before-restore-2"].map(|n| case.data().join(n).join("index/new"));
            assert!(aside.iter().any(|path| path.exists()), "after {moves} moves: what was there is lost");
        }
    }
}
