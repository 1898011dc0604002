//! A body on its way in. An upload that breaks off leaves a partial body, with which the next one goes on; a body gets its
//! name only when it is whole, its digest is right, and file and folder are synced.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use docaxis_protocol::digest::Hasher;
use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::partial::{PartialKey, PartialName};

use super::partial::Partials;
use super::{BlobError, CHUNK_BYTES};
use crate::disk::{Disk, DiskFile};

/// Less than this is sent again sooner than it is synced and looked up.
const WORTH_KEEPING_BYTES: u64 = 64 << 10;

/// Where an upload's bytes go until it is whole.
pub(super) enum Place {
    /// It is kept when it breaks off.
    Partial(Arc<Partials>, PartialName),
    /// Beside another upload of the same body: it leaves nothing.
    Passing(PathBuf),
}

pub struct BlobWriter {
    pub(super) disk: Arc<dyn Disk>,
    /// Open only while bytes of it are read or written: many bodies may wait for their turns.
    pub(super) file: Option<Arc<dyn DiskFile>>,
    /// Whether there is a file.
    pub(super) created: bool,
    pub(super) place: Place,
    pub(super) target: PathBuf,
    pub(super) expected: PartDigest,
    pub(super) hasher: Hasher,
    pub(super) sync_every: u64,
    /// Bytes taken and hashed.
    pub(super) written: u64,
    pub(super) unsynced: u64,
    /// Bytes of an earlier upload that this one goes on with.
    pub(super) resumed: u64,
    /// What there is of it must not be taken up again.
    pub(super) worthless: bool,
    /// All of it is there, its digest is right, and its contents are durable.
    pub(super) whole: bool,
    pub(super) finished: bool,
}

impl BlobWriter {
    /// Reads and hashes the next piece of what an earlier upload left. False at its end. What cannot be read is given up,
    /// and the upload begins anew. Blocks while the disk works.
    pub fn take_up(&mut self) -> Result<bool, BlobError> {
        let more = self.written < self.resumed && self.take_up_piece()?;
        if !more {
            self.file = None;
        }
        Ok(more)
    }

    fn take_up_piece(&mut self) -> Result<bool, BlobError> {
        let wanted = usize::try_from(self.resumed - self.written).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let mut piece = vec![0; wanted];
        match self.opened()?.read_at(self.written, &mut piece) {
            Ok(read) if read == wanted => {
                self.hasher.update(&piece);
                self.written += wanted as u64;
                Ok(self.written < self.resumed)
            }
            failed => {
                let why = failed.map_or_else(|error| error.to_string(), |_| "it ends early".into());
                tracing::warn!(path = %self.path().display(), why, "a partial body cannot be read; its upload begins anew");
                self.begin_anew();
                Ok(false)
            }
        }
    }

    /// Another file, and not the same one: the name of the old one promises bytes that would no longer be there.
    fn begin_anew(&mut self) {
        self.remove();
        if let Place::Partial(_, name) = &mut self.place {
            name.bytes = 0;
        }
        (self.file, self.created) = (None, false);
        (self.hasher, self.written, self.unsynced, self.resumed) = (Hasher::new(), 0, 0, 0);
    }

    /// The file, which is opened, or created, when it is first needed.
    fn opened(&mut self) -> Result<Arc<dyn DiskFile>, BlobError> {
        if let Some(file) = &self.file {
            return Ok(file.clone());
        }
        let path = self.path();
        let file = match self.created {
            true => self.disk.open(&path).map_err(|e| self.failed("opening", e))?,
            false => self.disk.create(&path).map_err(|e| self.failed("creating", e))?,
        };
        (self.file, self.created) = (Some(file.clone()), true);
        Ok(file)
    }

    /// Blocks while the disk works: call it where blocking is allowed.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        let after = self.written.saturating_add(bytes.len() as u64);
        if after > self.expected.size {
            return Err(BlobError::TooLarge { expected: self.expected.size });
        }
        self.opened()?.write_at(self.written, bytes).map_err(|e| self.failed("writing", e))?;
        self.hasher.update(bytes);
        self.written = after;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= self.sync_every {
            self.mark()?;
        }
        Ok(())
    }

    /// Makes durable what was taken, and then says so in the name.
    fn mark(&mut self) -> Result<(), BlobError> {
        self.opened()?.sync_data().map_err(|e| self.failed("syncing", e))?;
        self.unsynced = 0;
        let Place::Partial(partials, name) = &mut self.place else { return Ok(()) };
        docaxis_failpoints::failpoint!("broker.partial.synced");
        let next = PartialName { bytes: self.written, at: partials.now().max(name.at), ..name.clone() };
        let (from, to) = (partials.path(name), partials.path(&next));
        let named = self.disk.rename(&from, &to).and_then(|()| {
            *name = next;
            docaxis_failpoints::failpoint!("broker.partial.named");
            self.disk.sync_dir(partials.dir())
        });
        named.map_err(|e| self.failed("renaming", e))
    }

    /// How many bytes have been taken, with those that an earlier upload left: the body goes on there.
    pub const fn written(&self) -> u64 {
        self.written
    }

    /// Ends an upload that broke off: what was taken is kept to its last byte. Blocks while the disk works.
    pub fn break_off(mut self) {
        if self.unsynced > 0
            && self.written >= WORTH_KEEPING_BYTES
            && matches!(self.place, Place::Partial(..))
            && let Err(error) = self.mark()
        {
            // The name still says what was durable before.
            tracing::warn!(%error, "the end of a partial body is not kept");
        }
    }

    /// Checks a body that is all there, and keeps it as a partial one of its full size, made durable, until the others of its
    /// dispatch have come: then [`BlobWriter::finish`] gives it its name. If they do not come, the next try finds it. Blocks
    /// while the disk works.
    pub fn hold(mut self) -> Result<Self, BlobError> {
        self.check()?;
        let marked = matches!(&self.place, Place::Partial(_, name) if name.bytes == self.written);
        if self.unsynced > 0 || !marked {
            self.mark()?;
        }
        (self.whole, self.file) = (true, None);
        Ok(self)
    }

    fn check(&mut self) -> Result<(), BlobError> {
        if self.written < self.expected.size {
            return Err(BlobError::TooShort { expected: self.expected.size, found: self.written });
        }
        let found = std::mem::take(&mut self.hasher).finish();
        if found != self.expected.sha256 {
            self.worthless = true;
            let resumed = self.resumed > 0;
            return Err(BlobError::DigestMismatch { expected: self.expected.sha256, found, resumed });
        }
        Ok(())
    }

    /// Checks the digest and makes the body durable under its name. After this a commit may name it.
    pub fn finish(mut self) -> Result<(), BlobError> {
        // Contents first, then the name, then the name's folder: a name never stands for half a body.
        if !self.whole {
            self.check()?;
            docaxis_failpoints::failpoint!("broker.blob.written");
            self.opened()?.sync_data().map_err(|e| self.failed("syncing", e))?;
        }
        docaxis_failpoints::failpoint!("broker.blob.synced");
        let folder = self.target.parent().unwrap_or(Path::new("")).to_owned();
        self.disk.create_dir_all(&folder).map_err(|e| self.failed("creating the folder of", e))?;
        self.disk.rename(&self.path(), &self.target).map_err(|e| self.failed("renaming", e))?;
        docaxis_failpoints::failpoint!("broker.blob.renamed");
        self.finished = true;
        self.disk.sync_dir(&folder).map_err(|e| self.failed("syncing the folder of", e))?;
        // The folder may have been made a moment ago by another upload that has not synced its name yet.
        let above = folder.parent().unwrap_or(Path::new(""));
        self.disk.sync_dir(above).map_err(|e| self.failed("syncing the folder above", e))?;
        docaxis_failpoints::failpoint!("broker.blob.named");
        // A body must not have a second, durable name under which an upload could write into it.
        if let Place::Partial(partials, name) = &self.place
            && name.bytes > 0
        {
            self.disk.sync_dir(partials.dir()).map_err(|e| self.failed("syncing the former folder of", e))?;
        }
        Ok(())
    }

    fn path(&self) -> PathBuf {
        match &self.place {
            Place::Partial(partials, name) => partials.path(name),
            Place::Passing(path) => path.clone(),
        }
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> BlobError {
        BlobError::Io { operation, path: self.path(), source }
    }

    fn remove(&self) {
        let path = self.path();
        if self.created
            && let Err(error) = self.disk.remove(&path)
        {
            tracing::warn!(path = %path.display(), %error, "an unfinished body stays until the next start");
        }
    }
}

impl Drop for BlobWriter {
    /// Keeps what is durable already, and waits for nothing: a task may be dropped anywhere.
    fn drop(&mut self) {
        let durable = match &self.place {
            Place::Partial(_, name) if !self.worthless => name.bytes,
            _ => 0,
        };
        if !self.finished && durable == 0 {
            self.remove();
        }
        if let Place::Partial(partials, name) = &self.place {
            let key: PartialKey = name.key.clone();
            partials.release(key, (!self.finished && durable > 0).then(|| name.clone()));
        }
    }
}
