//! A body on its way in: one that a person sends, of which nothing stays if it ends early, or one that is delivered, which
//! is kept and goes on later.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use docaxis_protocol::Digest;
use docaxis_protocol::digest::Hasher;
use docaxis_protocol::partial::{PartialName, Taken};

use super::partial::Claim;
use super::{CHUNK_BYTES, Parts, PartsError, Pin, TEMPORARY, failed, sync_folder};

/// Less than this is sent again sooner than it is synced and looked up.
const WORTH_KEEPING_BYTES: u64 = 64 << 10;
/// How much of what was kept is read in one go.
const TAKE_UP_CHUNKS: usize = 64;

/// Where a body's bytes go until it is whole.
enum Place {
    /// It leaves nothing if it ends early.
    Passing(PathBuf),
    /// It is kept if it breaks off; the claim says so too.
    Partial(Claim, PartialName),
}

/// A body on its way in.
pub struct PartWriter {
    parts: Arc<Parts>,
    place: Place,
    /// Open only while bytes of it are read or written: many bodies may wait for their turns.
    file: Option<File>,
    /// Whether there is a file.
    created: bool,
    hasher: Hasher,
    /// Bytes taken and hashed.
    size: u64,
    unsynced: u64,
    /// Bytes of an earlier delivery that this one goes on with.
    resumed: u64,
}

fn create(path: &Path) -> Result<File, PartsError> {
    let mut options = fs::OpenOptions::new();
    options.read(true).write(true).create_new(true).mode(0o600).open(path).map_err(failed("create", path))
}

impl Parts {
    /// Begins a body whose digest is not known yet, or not believed.
    pub fn begin(self: &Arc<Self>) -> Result<PartWriter, PartsError> {
        let path = self.passing();
        let file = create(&path)?;
        Ok(self.writer(Place::Passing(path), Some(file), 0))
    }

    fn passing(&self) -> PathBuf {
        let number = self.temporary.fetch_add(1, Ordering::Relaxed);
        self.folder.join(TEMPORARY).join(number.to_string())
    }

    /// Begins a body that was taken up, or goes on with what an earlier delivery left of it: then
    /// [`PartWriter::take_up`] has to be called to its end.
    pub fn begin_claimed(self: &Arc<Self>, mut claim: Claim) -> Result<PartWriter, PartsError> {
        let anew = PartialName { key: claim.key.clone(), bytes: 0, at: self.partials.now() };
        let kept = match &claim.taken {
            Taken::Busy => return Ok(self.writer(Place::Passing(self.passing()), None, 0)),
            Taken::Nothing => None,
            Taken::Kept(name) => Some(name.clone()),
        };
        if let Some(name) = kept {
            let path = self.partials.path(&name);
            match fs::OpenOptions::new().read(true).write(true).open(&path) {
                Ok(file) => {
                    let resumed = name.bytes;
                    return Ok(self.writer(Place::Partial(claim, name), Some(file), resumed));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(failed("open", &path)(error)),
            }
        }
        claim.taken = Taken::Nothing;
        Ok(self.writer(Place::Partial(claim, anew), None, 0))
    }

    fn writer(self: &Arc<Self>, place: Place, file: Option<File>, resumed: u64) -> PartWriter {
        let (parts, created) = (self.clone(), file.is_some());
        PartWriter { parts, place, file, created, hasher: Hasher::new(), size: 0, unsynced: 0, resumed }
    }
}

impl PartWriter {
    /// Reads and hashes more of what an earlier delivery left. False at its end. What cannot be read is given up, and the
    /// body begins anew.
    pub fn take_up(&mut self) -> Result<bool, PartsError> {
        let more = self.size < self.resumed && self.take_up_pieces()?;
        if !more {
            self.file = None;
        }
        Ok(more)
    }

    fn take_up_pieces(&mut self) -> Result<bool, PartsError> {
        let mut piece = vec![0; CHUNK_BYTES];
        for _ in 0..TAKE_UP_CHUNKS {
            let left = self.resumed - self.size;
            if left == 0 {
                return Ok(false);
            }
            piece.truncate(usize::try_from(left).unwrap_or(CHUNK_BYTES));
            let at = self.size;
            if let Err(error) = self.opened()?.read_exact_at(&mut piece, at) {
                tracing::warn!(path = %self.path().display(), %error, "a partial body cannot be read; it begins anew");
                self.begin_anew();
                return Ok(false);
            }
            self.hasher.update(&piece);
            self.size += piece.len() as u64;
        }
        Ok(self.size < self.resumed)
    }

    /// Another file, and not the same one: the name of the old one promises bytes that would no longer be there.
    fn begin_anew(&mut self) {
        self.remove();
        if let Place::Partial(claim, name) = &mut self.place {
            name.bytes = 0;
            claim.taken = Taken::Nothing;
        }
        (self.file, self.created) = (None, false);
        (self.hasher, self.size, self.unsynced, self.resumed) = (Hasher::new(), 0, 0, 0);
    }

    /// The file, which is opened, or created, when it is first needed.
    fn opened(&mut self) -> Result<&File, PartsError> {
        let file = match self.file.take() {
            Some(file) => file,
            None => {
                let path = self.path();
                match self.created {
                    true => fs::OpenOptions::new().read(true).write(true).open(&path).map_err(failed("open", &path))?,
                    false => create(&path)?,
                }
            }
        };
        self.created = true;
        Ok(self.file.insert(file))
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<(), PartsError> {
        let at = self.size;
        self.opened()?.write_all_at(bytes, at).map_err(|e| failed("write", &self.path())(e))?;
        self.hasher.update(bytes);
        let length = bytes.len() as u64;
        self.size += length;
        self.unsynced += length;
        if self.unsynced >= self.parts.sync_every {
            self.mark()?;
        }
        Ok(())
    }

    /// Makes durable what was taken, and then says so in the name.
    fn mark(&mut self) -> Result<(), PartsError> {
        self.opened()?.sync_data().map_err(|e| failed("sync", &self.path())(e))?;
        self.unsynced = 0;
        let Place::Partial(claim, name) = &mut self.place else { return Ok(()) };
        docaxis_failpoints::failpoint!("agent.partial.synced");
        let partials = &claim.partials;
        let next = PartialName { bytes: self.size, at: partials.now().max(name.at), ..name.clone() };
        let (from, to) = (partials.path(name), partials.path(&next));
        fs::rename(&from, &to).map_err(failed("rename", &from))?;
        docaxis_failpoints::failpoint!("agent.partial.named");
        claim.taken = Taken::Kept(next.clone());
        *name = next;
        sync_folder(partials.folder())
    }

    /// Bytes taken so far, with those that an earlier delivery left: the body goes on there.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Ends a delivery that broke off: what was taken is kept to its last byte.
    pub fn break_off(mut self) {
        if self.unsynced > 0
            && self.size >= WORTH_KEEPING_BYTES
            && matches!(self.place, Place::Partial(..))
            && let Err(error) = self.mark()
        {
            // The name still says what was durable before.
            tracing::warn!(%error, "the end of a partial body is not kept");
        }
    }

    /// All bytes are there: says what they are. Nothing is kept yet.
    pub fn finish(self) -> Result<Whole, PartsError> {
        let sha256 = self.hasher.clone().finish();
        Ok(Whole { sha256, size: self.size, resumed: self.resumed > 0, held: false, writer: self })
    }

    fn path(&self) -> PathBuf {
        match &self.place {
            Place::Passing(path) => path.clone(),
            Place::Partial(claim, name) => claim.partials.path(name),
        }
    }

    fn remove(&self) {
        let path = self.path();
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "a half-written body stays until the next start")
            }
        }
    }
}

impl Drop for PartWriter {
    fn drop(&mut self) {
        match &self.place {
            Place::Partial(Claim { taken: Taken::Kept(_), .. }, _) => {}
            _ => self.remove(),
        }
    }
}

/// A body whose digest is known, not kept yet.
pub struct Whole {
    pub sha256: Digest,
    pub size: u64,
    /// Whether its beginning came with an earlier delivery.
    pub resumed: bool,
    /// Its contents are durable.
    held: bool,
    writer: PartWriter,
}

impl Whole {
    /// It is not what it should be: nothing of it is taken up again.
    pub fn discard(mut self) {
        self.forget();
    }

    fn forget(&mut self) {
        if let Place::Partial(claim, _) = &mut self.writer.place {
            claim.taken = Taken::Nothing;
        }
    }

    /// Keeps it as a partial body of its full size, made durable, until the others of its dispatch have come: then
    /// [`Whole::keep`] gives it its name. If they do not come, the next delivery finds it.
    pub fn hold(mut self) -> Result<Self, PartsError> {
        let writer = &mut self.writer;
        let marked = matches!(&writer.place, Place::Partial(_, name) if name.bytes == writer.size);
        if writer.unsynced > 0 || !marked {
            writer.mark()?;
        }
        writer.file = None;
        self.held = true;
        Ok(self)
    }

    /// Makes it durable under its digest.
    pub fn keep(mut self) -> Result<Stored, PartsError> {
        let parts = self.writer.parts.clone();
        let from = self.writer.path();
        if !self.held {
            docaxis_failpoints::failpoint!("agent.part.written");
            self.writer.opened()?.sync_all().map_err(failed("sync", &from))?;
        }
        docaxis_failpoints::failpoint!("agent.part.synced");
        let pin = parts.pin(self.sha256);
        let path = parts.path(self.sha256);
        let fan = path.parent().unwrap_or(&parts.folder);
        fs::rename(&from, &path).map_err(failed("rename to", &path))?;
        self.forget();
        docaxis_failpoints::failpoint!("agent.part.renamed");
        sync_folder(fan)?;
        docaxis_failpoints::failpoint!("agent.part.named");
        // A body must not have a second, durable name under which a delivery could write into it.
        if let Place::Partial(claim, name) = &self.writer.place
            && name.bytes > 0
        {
            sync_folder(claim.partials.folder())?;
        }
        Ok(Stored { sha256: self.sha256, size: self.size, pin })
    }
}

/// A durable body, pinned.
pub struct Stored {
    pub sha256: Digest,
    pub size: u64,
    pub pin: Pin,
}
