//! Taking a backup: only what is new or changed is copied.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use docaxis_protocol::digest::Hasher;
use docaxis_protocol::{Digest, Timestamp};

use crate::error::{BackupError, failed};
use crate::manifest::{CHUNK_BYTES, Entry, MANIFEST, Manifest, make_folder, object, open, sync_folder};
use crate::put_back::free_bytes;

/// Room that is left for the manifest and the file system's own needs.
const MARGIN_BYTES: u64 = 4 << 20;

/// One file that belongs to the cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// Its name below the data folder.
    pub name: String,
    pub path: PathBuf,
    /// How many of its bytes, from the start.
    pub size: u64,
    /// Whether no other bytes will ever stand under this name with this size: then an earlier copy serves.
    pub fixed: bool,
    /// What its bytes must have; a file that has another is damaged and left out.
    pub sha256: Option<Digest>,
}

/// What a backup did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    pub manifest: Manifest,
    /// Files and bytes that were read and copied this time.
    pub copied: (u64, u64),
}

/// A backup in the making. Until [`Backup::finish`], the earlier one in the same folder is the one that counts.
pub struct Backup {
    dir: PathBuf,
    earlier: Option<Manifest>,
    /// What this one has to hold, so that it may replace the earlier one.
    least_leaves: u64,
    manifest: Manifest,
    copied: (u64, u64),
    _lock: File,
}

impl Backup {
    /// Begins a backup into `dir`, which is made if it is not there. Refuses a folder with a backup of somebody else.
    pub fn begin(dir: &Path, kind: &str, owner: &str, lineage: &str, taken: Timestamp) -> Result<Self, BackupError> {
        make_folder(&dir.join("objects"))?;
        let lock = lock(dir)?;
        let earlier = match open(dir) {
            Ok(earlier) => Some(earlier),
            Err(BackupError::NoBackup(_)) => None,
            Err(error) => return Err(error),
        };
        let who = |kind: &str, owner: &str| format!("{kind} {owner}");
        if let Some(earlier) = &earlier
            && (earlier.kind != kind || earlier.owner != owner)
        {
            let (expected, found) = (who(kind, owner), who(&earlier.kind, &earlier.owner));
            return Err(BackupError::Foreign { path: dir.to_owned(), expected, found });
        }
        // After a restore there may be fewer, but never none where there were some.
        let least_leaves =
            earlier.as_ref().map_or(0, |e| if e.lineage == lineage { e.leaves } else { e.leaves.min(1) });
        let earlier = earlier.filter(|earlier| earlier.lineage == lineage);
        let manifest = Manifest::new(kind, owner, lineage, taken, 0);
        Ok(Self { dir: dir.to_owned(), earlier, least_leaves, manifest, copied: (0, 0), _lock: lock })
    }

    /// Copies what is not here yet. The caller sees to it that the files keep these bytes meanwhile.
    pub fn copy(&mut self, sources: Vec<Source>) -> Result<(), BackupError> {
        let earlier = self.earlier.take();
        let known = earlier.as_ref().map(Manifest::by_name).unwrap_or_default();
        let there = |source: &Source| {
            let entry = known.get(source.name.as_str()).filter(|entry| {
                source.fixed
                    && entry.fixed
                    && entry.size == source.size
                    && source.sha256.is_none_or(|d| d == entry.sha256)
            });
            entry.filter(|entry| object(&self.dir, &entry.sha256).exists()).map(|entry| (*entry).clone())
        };
        let (kept, new): (Vec<_>, Vec<_>) =
            sources.into_iter().map(|source| (there(&source), source)).partition(|(entry, _)| entry.is_some());
        let needed = new.iter().map(|(_, source)| source.size).sum::<u64>() + MARGIN_BYTES;
        let free = free_bytes(&self.dir)?;
        if needed > free {
            return Err(BackupError::NoRoom { path: self.dir.clone(), needed, free });
        }
        drop(known);
        self.manifest.files.extend(kept.into_iter().filter_map(|(entry, _)| entry));
        for (_, source) in new {
            self.copy_one(source)?;
        }
        self.earlier = earlier;
        Ok(())
    }

    /// Names files that belong to the cut and are not in the data; the earlier backup's copies of them are kept.
    pub fn missing(&mut self, files: Vec<(String, Digest)>) {
        let known = self.earlier.as_ref().map(Manifest::by_name).unwrap_or_default();
        for (name, sha256) in files {
            let kept = known.get(name.as_str()).filter(|entry| entry.sha256 == sha256);
            let kept = kept.filter(|entry| object(&self.dir, &entry.sha256).exists());
            self.manifest.files.extend(kept.map(|entry| (*entry).clone()));
            self.manifest.damaged.push(name);
        }
    }

    /// The earlier backup's copy of a file.
    pub fn earlier(&self, name: &str) -> Option<PathBuf> {
        let entry = self.earlier.as_ref()?.files.iter().find(|entry| entry.name == name)?;
        Some(object(&self.dir, &entry.sha256)).filter(|path| path.exists())
    }

    /// Adds a small file that must have just these bytes, whatever becomes of the one that it was read from.
    pub fn add(&mut self, name: &str, bytes: &[u8]) -> Result<(), BackupError> {
        let temporary = self.dir.join("objects").join("incoming");
        let mut file = create(&temporary)?;
        file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed("write", &temporary))?;
        let size = bytes.len() as u64;
        self.keep(&temporary, Entry { name: name.to_owned(), size, sha256: Digest::of(bytes), fixed: false })
    }

    fn copy_one(&mut self, source: Source) -> Result<(), BackupError> {
        let temporary = self.dir.join("objects").join("incoming");
        let sha256 = copy_bytes(&source.path, source.size, &temporary)?;
        if source.sha256.is_some_and(|expected| expected != sha256) {
            fs::remove_file(&temporary).map_err(failed("remove", &temporary))?;
            self.manifest.damaged.push(source.name);
            return Ok(());
        }
        self.keep(&temporary, Entry { name: source.name, size: source.size, sha256, fixed: source.fixed })
    }

    /// Gives a written and synced file its place, durably.
    fn keep(&mut self, temporary: &Path, entry: Entry) -> Result<(), BackupError> {
        let target = object(&self.dir, &entry.sha256);
        let folder = target.parent().unwrap_or(&self.dir);
        make_folder(folder)?;
        fs::rename(temporary, &target).map_err(failed("rename to", &target))?;
        sync_folder(folder)?;
        self.copied.0 += 1;
        self.copied.1 += entry.size;
        self.manifest.files.push(entry);
        Ok(())
    }

    /// Makes this backup the one that counts, then removes what only the earlier one needed. Refuses to replace one that
    /// holds more: the data was lost in part.
    pub fn finish(mut self, leaves: u64) -> Result<Taken, BackupError> {
        if leaves < self.least_leaves {
            return Err(BackupError::Fewer { path: self.dir, expected: self.least_leaves, found: leaves });
        }
        self.manifest.leaves = leaves;
        self.manifest.files.sort_by(|a, b| a.name.cmp(&b.name));
        let path = self.dir.join(MANIFEST);
        let bytes = self.manifest.encode().map_err(|e| failed("encode", &path)(io::Error::other(e)))?;
        let temporary = self.dir.join("manifest.new");
        let mut file = create(&temporary)?;
        file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(failed("write", &temporary))?;
        // The objects' names first, then the manifest that counts on them.
        sync_folder(&self.dir.join("objects"))?;
        fs::rename(&temporary, &path).map_err(failed("rename to", &path))?;
        sync_folder(&self.dir)?;
        self.remove_unnamed()?;
        Ok(Taken { manifest: self.manifest, copied: self.copied })
    }

    fn remove_unnamed(&self) -> Result<(), BackupError> {
        let named: BTreeSet<Digest> = self.manifest.files.iter().map(|file| file.sha256).collect();
        let objects = self.dir.join("objects");
        for fan in fs::read_dir(&objects).map_err(failed("list", &objects))? {
            let fan = fan.map_err(failed("list", &objects))?.path();
            if !fan.is_dir() {
                continue;
            }
            for entry in fs::read_dir(&fan).map_err(failed("list", &fan))? {
                let entry = entry.map_err(failed("list", &fan))?;
                let sha256 = entry.file_name().to_str().and_then(|name| name.parse::<Digest>().ok());
                if sha256.is_some_and(|sha256| !named.contains(&sha256)) {
                    fs::remove_file(entry.path()).map_err(failed("remove", &entry.path()))?;
                }
            }
        }
        Ok(())
    }
}

/// Copies the first `size` bytes and makes them durable; returns their digest.
fn copy_bytes(from: &Path, size: u64, to: &Path) -> Result<Digest, BackupError> {
    let mut reader = File::open(from).map_err(failed("open", from))?.take(size);
    let mut file = create(to)?;
    let (mut copied, mut hasher, mut buffer) = (0, Hasher::new(), vec![0; CHUNK_BYTES]);
    loop {
        let read = reader.read(&mut buffer).map_err(failed("read", from))?;
        if read == 0 {
            break;
        }
        hasher.update(&buffer[..read]);
        file.write_all(&buffer[..read]).map_err(failed("write", to))?;
        copied += read as u64;
    }
    if copied < size {
        return Err(BackupError::Short { path: from.to_owned(), expected: size });
    }
    file.sync_all().map_err(failed("sync", to))?;
    Ok(hasher.finish())
}

pub(crate) fn create(path: &Path) -> Result<File, BackupError> {
    OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(failed("create", path))
}

fn lock(dir: &Path) -> Result<File, BackupError> {
    let path = dir.join("lock");
    let file = create(&path)?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(BackupError::Busy(dir.to_owned())),
        Err(error) => Err(failed("lock", &path)(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::verify;

    struct Folders {
        _root: tempfile::TempDir,
        data: PathBuf,
        dir: PathBuf,
    }

    fn folders() -> Folders {
        let root = tempfile::tempdir().unwrap();
        let (data, dir) = (root.path().join("data"), root.path().join("backup"));
        fs::create_dir(&data).unwrap();
        Folders { _root: root, data, dir }
    }

    impl Folders {
        fn source(&self, name: &str, bytes: &[u8], fixed: bool) -> Source {
            let path = self.data.join(name);
            fs::write(&path, bytes).unwrap();
            Source { name: name.into(), path, size: bytes.len() as u64, fixed, sha256: None }
        }

        fn begin(&self) -> Backup {
            Backup::begin(&self.dir, "broker", "docaxis.example/test", "1", Timestamp::from_unix_ms(0)).unwrap()
        }

        fn take(&self, sources: Vec<Source>) -> Taken {
            let mut backup = self.begin();
            backup.copy(sources).unwrap();
            backup.finish(7).unwrap()
        }

        fn objects(&self) -> usize {
            let fans = fs::read_dir(self.dir.join("objects")).unwrap().map(|fan| fan.unwrap().path());
            fans.filter(|fan| fan.is_dir()).map(|fan| fs::read_dir(fan).unwrap().count()).sum()
        }
    }

    #[test]
    fn a_second_backup_copies_only_what_is_new_or_changed_and_drops_what_nobody_needs() {
        let f = folders();
        let first =
            f.take(vec![f.source("a", b"full", true), f.source("b", b"grows", false), f.source("c", b"goes", true)]);
        assert_eq!((first.copied, f.objects()), ((3, 13), 3));
        let again = f.take(vec![
            f.source("a", b"full", true),
            f.source("b", b"grows more", false),
            f.source("d", b"new", true),
        ]);
        assert_eq!((again.copied, f.objects()), ((2, 13), 3));
        let names: Vec<&str> = again.manifest.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "d"]);
        assert_eq!(open(&f.dir).unwrap(), again.manifest);
        verify(&f.dir, &again.manifest).unwrap();
    }

    #[test]
    fn a_fixed_file_of_another_lineage_or_whose_copy_is_gone_is_copied_again() {
        let f = folders();
        let taken = f.take(vec![f.source("a", b"full", true)]);
        let mut other =
            Backup::begin(&f.dir, "broker", "docaxis.example/test", "2", Timestamp::from_unix_ms(0)).unwrap();
        other.copy(vec![f.source("a", b"FULL", true)]).unwrap();
        let taken = (other.finish(7).unwrap().copied, taken.copied);
        assert_eq!(taken, ((1, 4), (1, 4)));
        let entry = open(&f.dir).unwrap().files.remove(0);
        fs::remove_file(object(&f.dir, &entry.sha256)).unwrap();
        let mut other =
            Backup::begin(&f.dir, "broker", "docaxis.example/test", "2", Timestamp::from_unix_ms(0)).unwrap();
        other.copy(vec![f.source("a", b"FULL", true)]).unwrap();
        assert_eq!(other.finish(7).unwrap().copied, (1, 4));
    }

    #[test]
    fn a_backup_that_is_broken_off_leaves_the_earlier_one_whole() {
        let f = folders();
        let first = f.take(vec![f.source("a", b"one", false)]).manifest;
        let mut broken = f.begin();
        broken.copy(vec![f.source("a", b"two", false)]).unwrap();
        drop(broken);
        assert_eq!(open(&f.dir).unwrap(), first);
        verify(&f.dir, &first).unwrap();
        // And what the broken one left is cleared by the next.
        f.take(vec![f.source("a", b"three", false)]);
        assert_eq!(f.objects(), 1);
    }

    #[test]
    fn every_flipped_bit_in_manifest_and_files_is_found() {
        let f = folders();
        let manifest = f.take(vec![f.source("a", b"some bytes", true)]).manifest;
        let file = object(&f.dir, &manifest.files[0].sha256);
        for path in [file, f.dir.join(MANIFEST)] {
            let good = fs::read(&path).unwrap();
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] ^= 1;
                fs::write(&path, &bad).unwrap();
                let found = open(&f.dir).and_then(|manifest| verify(&f.dir, &manifest));
                assert!(found.is_err(), "byte {at} of {}", path.display());
            }
            fs::write(&path, &good[..good.len() - 1]).unwrap();
            assert!(open(&f.dir).and_then(|manifest| verify(&f.dir, &manifest)).is_err(), "{} cut", path.display());
            fs::write(&path, &good).unwrap();
        }
        verify(&f.dir, &open(&f.dir).unwrap()).unwrap();
    }

    #[test]
    fn a_backup_of_less_or_of_nothing_leaves_the_earlier_one_whole() {
        let f = folders();
        let first = f.take(vec![f.source("a", b"one", false)]).manifest;
        for (lineage, leaves) in [("1", 6), ("1", 0), ("2", 0)] {
            let begun = Backup::begin(&f.dir, "broker", "docaxis.example/test", lineage, Timestamp::from_unix_ms(1));
            let error = begun.unwrap().finish(leaves).unwrap_err();
            assert!(
                matches!(error, BackupError::Fewer { found, .. } if found == leaves),
                "{lineage} {leaves}: {error}"
            );
            assert_eq!(open(&f.dir).unwrap(), first);
            verify(&f.dir, &first).unwrap();
        }
        // A restore of an older copy has fewer, and another lineage.
        Backup::begin(&f.dir, "broker", "docaxis.example/test", "2", Timestamp::from_unix_ms(1))
            .unwrap()
            .finish(6)
            .unwrap();
    }

    #[test]
    fn a_missing_file_is_named_and_the_earlier_copy_of_it_is_kept() {
        let f = folders();
        let whole = Source { sha256: Some(Digest::of(b"body")), ..f.source("body", b"body", true) };
        f.take(vec![whole]);
        let mut backup = f.begin();
        backup.missing(vec![("body".into(), Digest::of(b"body")), ("never here".into(), Digest::of(b"never here"))]);
        let taken = backup.finish(7).unwrap().manifest;
        let names: Vec<&str> = taken.files.iter().map(|file| file.name.as_str()).collect();
        assert_eq!((names, taken.damaged.len(), f.objects()), (vec!["body"], 2, 1));
        verify(&f.dir, &taken).unwrap();
    }

    #[test]
    fn a_file_that_does_not_have_the_digest_of_its_name_is_left_out_and_named() {
        let f = folders();
        let good = Source { sha256: Some(Digest::of(b"good")), ..f.source("good", b"good", true) };
        let bad = Source { sha256: Some(Digest::of(b"as it was")), ..f.source("bad", b"as it is", true) };
        let taken = f.take(vec![good, bad]).manifest;
        assert_eq!((taken.files.len(), taken.damaged), (1, vec!["bad".to_owned()]));
    }

    #[test]
    fn a_backup_of_somebody_else_is_not_written_over_and_two_at_once_are_refused() {
        let f = folders();
        f.take(vec![]);
        let begin = |owner| Backup::begin(&f.dir, "broker", owner, "1", Timestamp::from_unix_ms(0)).map(drop);
        assert!(matches!(begin("docaxis.example/other"), Err(BackupError::Foreign { .. })));
        let held = f.begin();
        assert!(matches!(begin("docaxis.example/test"), Err(BackupError::Busy(_))));
        drop(held);
        begin("docaxis.example/test").unwrap();
    }
}
