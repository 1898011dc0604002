//! Bodies that are files, by SHA-256: `PARTS/ab/abcdef...`, written once.
//!
//! A body appears under its digest only when all of it is on disk (file and folder synced), so a power cut leaves the
//! whole body or none. Memory is one chunk, whatever the size. A body is checked against its name each time it is read;
//! a damaged one is an error, never passed on. Knows nothing of dispatches: what refers to a body stands in the mailbox,
//! and small bodies themselves do (`bodies.rs`). A delivery that broke off is in `partial/`, and goes on.

mod partial;
mod reader;
mod writer;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use docaxis_protocol::partial::{PartialKey, PartialName, PartialsConfig};
use docaxis_protocol::{Digest, Timestamp};
use tokio::time::Instant;

use self::partial::{Claim, Partials};
pub use self::reader::PartReader;
use self::reader::PartSource;
pub use self::writer::{PartWriter, Stored, Whole};
use crate::space::is_full;

/// Bytes read or written at once.
pub const CHUNK_BYTES: usize = 256 << 10;
const TEMPORARY: &str = "tmp";
const PARTIAL: &str = "partial";

#[derive(Debug, thiserror::Error)]
pub enum PartsError {
    #[error("cannot {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("body {expected} is damaged on disk: its bytes have digest {found}")]
    Damaged { expected: Digest, found: Digest },
    #[error("body {0} is not here")]
    Missing(Digest),
    #[error("body {sha256} does not read: {why}")]
    Unreadable { sha256: Digest, why: String },
}

impl PartsError {
    pub fn is_disk_full(&self) -> bool {
        matches!(self, Self::Io { source, .. } if is_full(source))
    }
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PartsError {
    move |source| PartsError::Io { operation, path: path.to_owned(), source }
}

pub struct Parts {
    folder: PathBuf,
    pins: Mutex<BTreeMap<Digest, usize>>,
    temporary: AtomicU64,
    partials: Arc<Partials>,
    /// How much may be unsynced, in bytes: syncing as it comes is faster than one sync at the end, and no more than this has
    /// to come again after a loss of power.
    sync_every: u64,
}

impl Parts {
    /// Opens the folder, and clears away what an earlier run left half-written.
    pub fn open(folder: PathBuf, config: PartialsConfig) -> Result<Self, PartsError> {
        let temporary = folder.join(TEMPORARY);
        make_folder(&temporary)?;
        // All folders, durable before the first body: a body's own folder is then the only one to sync for it, and no
        // body can be named whose folder a power cut takes away.
        for fan in 0..=u8::MAX {
            make_folder(&folder.join(format!("{fan:02x}")))?;
        }
        sync_folder(&folder)?;
        if let Some(above) = folder.parent() {
            sync_folder(above)?;
        }
        for entry in fs::read_dir(&temporary).map_err(failed("list", &temporary))? {
            let path = entry.map_err(failed("list", &temporary))?.path();
            fs::remove_file(&path).map_err(failed("remove", &path))?;
        }
        let partials = Arc::new(Partials::open(folder.join(PARTIAL), config)?);
        let (temporary, sync_every) = (AtomicU64::new(0), config.sync_every_bytes());
        Ok(Self { folder, pins: Mutex::default(), temporary, partials, sync_every })
    }

    pub(crate) fn path(&self, sha256: Digest) -> PathBuf {
        let name = sha256.to_string();
        self.folder.join(&name[..2]).join(name)
    }

    /// Every body here.
    pub fn list(&self) -> Result<Vec<Digest>, PartsError> {
        let mut found = Vec::new();
        for fan in fs::read_dir(&self.folder).map_err(failed("list", &self.folder))? {
            let fan = fan.map_err(failed("list", &self.folder))?;
            if fan.file_name() == TEMPORARY || fan.file_name() == PARTIAL || !fan.path().is_dir() {
                continue;
            }
            for entry in fs::read_dir(fan.path()).map_err(failed("list", &fan.path()))? {
                let name = entry.map_err(failed("list", &fan.path()))?.file_name();
                found.extend(name.to_str().and_then(|name| name.parse::<Digest>().ok()));
            }
        }
        Ok(found)
    }

    /// Stores a small body at once.
    pub fn store(self: &Arc<Self>, bytes: &[u8]) -> Result<Stored, PartsError> {
        let mut writer = self.begin()?;
        writer.write(bytes)?;
        writer.finish()?.keep()
    }

    pub fn read(&self, sha256: Digest) -> Result<PartReader, PartsError> {
        let path = self.path(sha256);
        match File::open(&path) {
            Ok(file) => {
                let size = file.metadata().map_err(failed("look at", &path))?.len();
                // Most bodies are small, and need no memory for a large one.
                let chunk = usize::try_from(size).unwrap_or(usize::MAX).saturating_add(1).min(CHUNK_BYTES);
                Ok(PartReader::new(PartSource::File { file, path }, chunk, sha256))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(PartsError::Missing(sha256)),
            Err(e) => Err(failed("open", &path)(e)),
        }
    }

    /// By when earlier deliveries of the bodies of an offer that came now should have ended.
    pub fn earlier_end_by() -> Instant {
        Instant::now() + partial::EARLIER_ENDS_WITHIN
    }

    /// Takes up a body for one delivery to this recipient. Waits for another one to end, but not longer than `by`.
    pub async fn take(&self, key: PartialKey, by: Instant) -> Claim {
        self.partials.take(key, by).await
    }

    /// Removes partial bodies that waited too long or are too many, and all of them where there is no room for new work.
    /// Returns how many. To be called again and again: it also tells the time.
    pub fn sweep_partials(&self, now: Timestamp, no_room: bool) -> usize {
        self.partials.sweep(now, no_room)
    }

    /// Partial bodies that wait for their deliveries to go on.
    pub fn partials(&self) -> Vec<PartialName> {
        self.partials.waiting()
    }

    fn pins(&self) -> MutexGuard<'_, BTreeMap<Digest, usize>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a body from being removed until the mailbox refers to it.
    pub fn pin(self: &Arc<Self>, sha256: Digest) -> Pin {
        *self.pins().entry(sha256).or_insert(0) += 1;
        Pin { parts: self.clone(), sha256 }
    }

    /// Destroys a body that nothing refers to. A pinned one stays: whoever pinned it is about to refer to it, and if
    /// that fails, the next start clears it away.
    pub fn remove(&self, sha256: Digest) -> Result<(), PartsError> {
        let pins = self.pins();
        if pins.contains_key(&sha256) {
            return Ok(());
        }
        let path = self.path(sha256);
        match fs::remove_file(&path) {
            Ok(()) => sync_folder(path.parent().unwrap_or(&self.folder)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(e) => Err(failed("remove", &path)(e)),
        }
    }
}

/// While this lives, the body is not removed.
pub struct Pin {
    parts: Arc<Parts>,
    sha256: Digest,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.parts.pins();
        if let Some(count) = pins.get_mut(&self.sha256) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.sha256);
            }
        }
    }
}

fn make_folder(path: &Path) -> Result<(), PartsError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed("create folder", path))
}

fn sync_folder(path: &Path) -> Result<(), PartsError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(failed("sync folder", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(folder: &Path) -> Arc<Parts> {
        Arc::new(Parts::open(folder.join("parts"), PartialsConfig::default()).unwrap())
    }

    #[test]
    fn a_body_is_read_back_as_it_was_written_and_an_abandoned_one_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let parts = parts(folder.path());
        let body: Vec<u8> = (0..CHUNK_BYTES * 2 + 7).map(|n| n.to_le_bytes()[0]).collect();
        let mut writer = parts.begin().unwrap();
        body.chunks(1000).for_each(|chunk| writer.write(chunk).unwrap());
        let stored = writer.finish().unwrap().keep().unwrap();
        assert_eq!((stored.sha256, stored.size), (Digest::of(&body), body.len() as u64));
        assert_eq!(parts.read(stored.sha256).unwrap().read_all().unwrap(), body);

        let mut abandoned = parts.begin().unwrap();
        abandoned.write(b"half").unwrap();
        drop(abandoned);
        assert_eq!(parts.list().unwrap(), [stored.sha256]);
        assert_eq!(fs::read_dir(folder.path().join("parts/tmp")).unwrap().count(), 0);
        assert!(matches!(parts.read(Digest::of(b"half")), Err(PartsError::Missing(_))));
    }

    #[test]
    fn a_body_that_changed_on_disk_is_refused_at_its_end() {
        let folder = tempfile::tempdir().unwrap();
        let parts = parts(folder.path());
        let sha256 = parts.store(b"the words").unwrap().sha256;
        fs::write(parts.path(sha256), b"the wordz").unwrap();
        assert!(matches!(parts.read(sha256).and_then(PartReader::read_all), Err(PartsError::Damaged { .. })));
    }

    #[test]
    fn the_last_bytes_of_a_damaged_body_are_never_given_out() {
        let folder = tempfile::tempdir().unwrap();
        let parts = parts(folder.path());
        for chunks in [1, 3] {
            let mut body = vec![7; CHUNK_BYTES * chunks];
            let sha256 = parts.store(&body).unwrap().sha256;
            body[1] = 8;
            fs::write(parts.path(sha256), &body).unwrap();
            let mut reader = parts.read(sha256).unwrap();
            let mut given = 0;
            let error = loop {
                match reader.next_chunk() {
                    Ok(chunk) => given += chunk.expect("no end of a damaged body").len(),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, PartsError::Damaged { .. }));
            assert_eq!(given, CHUNK_BYTES * (chunks - 1));
        }
    }

    #[test]
    fn a_pinned_body_outlives_its_removal_and_what_was_half_written_is_cleared_at_start() {
        let folder = tempfile::tempdir().unwrap();
        let parts = parts(folder.path());
        let stored = parts.store(b"x").unwrap();
        parts.remove(stored.sha256).unwrap();
        assert_eq!(parts.read(stored.sha256).unwrap().read_all().unwrap(), b"x");
        let sha256 = stored.sha256;
        drop(stored);
        parts.remove(sha256).unwrap();
        assert!(matches!(parts.read(sha256).and_then(PartReader::read_all), Err(PartsError::Missing(_))));

        fs::write(folder.path().join("parts/tmp/9"), b"left over").unwrap();
        let again = Parts::open(folder.path().join("parts"), PartialsConfig::default()).unwrap();
        assert_eq!(again.list().unwrap(), []);
        assert_eq!(fs::read_dir(folder.path().join("parts/tmp")).unwrap().count(), 0);
    }

    #[test]
    fn every_folder_that_a_body_may_need_is_there_before_the_first_body() {
        let folder = tempfile::tempdir().unwrap();
        let parts = parts(folder.path());
        for first in 0..=u8::MAX {
            let mut digest = [0; 32];
            digest[0] = first;
            assert!(parts.path(Digest(digest)).parent().unwrap().is_dir(), "{first:02x}");
        }
    }

    const WHO: &str = "H37.DN.001";

    fn open_every_mib(folder: &Path) -> Arc<Parts> {
        let config = PartialsConfig { sync_every_mib: 1, most_mib: 4, ..PartialsConfig::default() };
        Arc::new(Parts::open(folder.join("parts"), config).unwrap())
    }

    fn bytes_of(len: usize) -> Vec<u8> {
        (0u32..).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).take(len).collect()
    }

    /// Begins a delivery, or goes on with one; all that was kept is read.
    fn begin(parts: &Arc<Parts>, who: &str, body: &[u8]) -> PartWriter {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let key = PartialKey { agency: who.parse().unwrap(), sha256: Digest::of(body), size: body.len() as u64 };
        let claim = runtime.block_on(async { parts.take(key, Parts::earlier_end_by()).await });
        let mut writer = parts.begin_claimed(claim).unwrap();
        while writer.take_up().unwrap() {}
        writer
    }

    fn send(writer: &mut PartWriter, body: &[u8], until: usize) {
        let from = usize::try_from(writer.size()).unwrap();
        body[from..until].chunks(CHUNK_BYTES).for_each(|chunk| writer.write(chunk).unwrap());
    }

    #[test]
    fn a_delivery_that_broke_off_goes_on_at_its_byte_also_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let body = bytes_of(20 << 20);
        let parts = open_every_mib(folder.path());
        let mut writer = begin(&parts, WHO, &body);
        send(&mut writer, &body, 17_000_001);
        writer.break_off();
        // As after a death of the process: what was not synced does not count.
        let parts = open_every_mib(folder.path());
        let mut writer = begin(&parts, WHO, &body);
        assert_eq!(writer.size(), 17_000_001);
        send(&mut writer, &body, (19 << 20) + 500);
        drop(writer);
        let mut writer = begin(&parts, WHO, &body);
        let from = writer.size();
        assert!(from > 17_000_001 && from <= (19 << 20) + 500 && from > 18 << 20, "{from}");
        send(&mut writer, &body, body.len());
        let whole = writer.finish().unwrap();
        assert!(whole.resumed);
        let stored = whole.keep().unwrap();
        assert_eq!((stored.sha256, parts.partials()), (Digest::of(&body), vec![]));
        assert_eq!(parts.read(stored.sha256).unwrap().read_all().unwrap(), body);
        assert_eq!(parts.list().unwrap(), [stored.sha256]);
        assert_eq!(fs::read_dir(folder.path().join("parts/partial")).unwrap().count(), 0);
    }

    #[test]
    fn a_partial_body_is_one_recipients_and_one_deliverys_at_a_time_and_what_is_wrong_with_it_is_given_up() {
        let folder = tempfile::tempdir().unwrap();
        let body = bytes_of(2 << 20);
        let parts = open_every_mib(folder.path());
        let mut writer = begin(&parts, WHO, &body);
        send(&mut writer, &body, 1 << 20);
        assert_eq!(begin(&parts, WHO, &body).size(), 0, "the first one does not end");
        writer.break_off();
        assert_eq!(begin(&parts, "H37.TC.002", &body).size(), 0);
        let path = parts.partials.path(&parts.partials()[0]);
        let mut damaged = fs::read(&path).unwrap();
        damaged[70_000] ^= 1;
        fs::write(&path, &damaged).unwrap();
        let mut writer = begin(&parts, WHO, &body);
        send(&mut writer, &body, body.len());
        let whole = writer.finish().unwrap();
        assert!(whole.resumed && whole.sha256 != Digest::of(&body));
        whole.discard();
        let mut writer = begin(&parts, WHO, &body);
        assert_eq!(writer.size(), 0);
        send(&mut writer, &body, 1 << 20);
        writer.break_off();
        fs::write(parts.partials.path(&parts.partials()[0]), &body[..70_000]).unwrap();
        assert_eq!(begin(&parts, WHO, &body).size(), 0, "it ends early");
        assert_eq!(fs::read_dir(folder.path().join("parts/partial")).unwrap().count(), 0);
    }

    #[test]
    fn a_body_that_waits_for_the_rest_of_its_dispatch_is_held_and_found_again_and_one_without_bytes_has_no_file() {
        let folder = tempfile::tempdir().unwrap();
        let body = bytes_of((1 << 20) + 5);
        let parts = open_every_mib(folder.path());
        let names = || fs::read_dir(folder.path().join("parts/partial")).unwrap().count();
        let mut writer = begin(&parts, WHO, &body);
        assert_eq!(names(), 0);
        send(&mut writer, &body, body.len());
        drop(writer.finish().unwrap().hold().unwrap());
        assert_eq!((names(), parts.list().unwrap()), (1, vec![]));
        let again = begin(&parts, WHO, &body);
        assert_eq!(again.size(), body.len() as u64);
        let stored = again.finish().unwrap().hold().unwrap().keep().unwrap();
        assert_eq!((names(), parts.list().unwrap()), (0, vec![stored.sha256]));
        assert_eq!(parts.read(stored.sha256).unwrap().read_all().unwrap(), body);
    }

    #[test]
    fn partial_bodies_are_bounded_and_strangers_among_them_are_removed() {
        let at = |days: i64| Timestamp::from_unix_ms(days * 86_400_000);
        let folder = tempfile::tempdir().unwrap();
        let parts = open_every_mib(folder.path());
        let keep = |n: usize| {
            let body = bytes_of((2 << 20) + n);
            let mut writer = begin(&parts, WHO, &body);
            send(&mut writer, &body, 1 << 20);
            writer.break_off();
        };
        for day in 1..=5 {
            assert_eq!(parts.sweep_partials(at(day), false), 0);
            keep(usize::try_from(day).unwrap());
        }
        assert_eq!(parts.sweep_partials(at(6), false), 1, "4 MiB may wait");
        assert_eq!(parts.sweep_partials(at(9), false), 1, "a week has passed");
        fs::write(folder.path().join("parts/partial/strange"), b"x").unwrap();
        let parts = open_every_mib(folder.path());
        let names = || fs::read_dir(folder.path().join("parts/partial")).unwrap().count();
        assert_eq!((parts.partials().len(), names()), (3, 3));
        assert_eq!((parts.sweep_partials(at(9), true), names()), (3, 0));
    }

    #[test]
    fn a_body_is_read_from_any_byte_on() {
        let folder = tempfile::tempdir().unwrap();
        let parts = open_every_mib(folder.path());
        let body = bytes_of(CHUNK_BYTES * 2 + 7);
        let sha256 = parts.store(&body).unwrap().sha256;
        for offset in [0, 1, CHUNK_BYTES, CHUNK_BYTES + 9, body.len()] {
            let from = offset as u64;
            let size = body.len() as u64;
            assert_eq!(parts.read(sha256).unwrap().from(from, size).unwrap().read_all().unwrap(), body[offset..]);
            let small = PartReader::of(body.clone(), sha256);
            assert_eq!(small.from(from, size).unwrap().read_all().unwrap(), body[offset..]);
            let short = parts.read(sha256).unwrap().from(from, size + 1);
            assert_eq!(matches!(short, Err(PartsError::Unreadable { .. })), offset > 0);
        }
    }
}
