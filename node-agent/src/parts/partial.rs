//! Bodies whose delivery broke off, one file each under `parts/partial/`: the next offer to the same recipient goes on where
//! this one stopped.
//!
//! A file's name says whose it is and how many of its bytes are durable, and is changed only after a sync: a name never
//! stands for more than a loss of power leaves. What lies behind that number is written anew. Losing a file loses nothing
//! but time. The mailbox knows nothing of them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use docaxis_protocol::Timestamp;
use docaxis_protocol::partial::{Book, PartialKey, PartialName, PartialsConfig, Taken};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{PartsError, failed, make_folder};

/// How long the bodies of an offer wait, all together, for other deliveries of the same: mostly a lost connection's, which are
/// about to end. After that, they begin anew beside them.
pub(super) const EARLIER_ENDS_WITHIN: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 5_000 });

pub(super) struct Partials {
    folder: PathBuf,
    book: Mutex<Book>,
    /// A delivery has ended.
    released: Notify,
    /// The time that the sweep said last, in milliseconds since 1970.
    now_ms: AtomicI64,
}

impl Partials {
    pub fn open(folder: PathBuf, config: PartialsConfig) -> Result<Self, PartsError> {
        make_folder(&folder)?;
        let mut book = Book::new(config);
        for entry in fs::read_dir(&folder).map_err(failed("list", &folder))? {
            let path = entry.map_err(failed("list", &folder))?.path();
            let len = path.metadata().map_err(failed("look at", &path))?.len();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let worthless = match name.parse::<PartialName>() {
                Ok(name) if name.bytes == 0 => Some(path),
                Ok(name) if len >= name.bytes => book.found(name).map(|shorter| folder.join(shorter.to_string())),
                Ok(name) => {
                    tracing::warn!(path = %path.display(), bytes = name.bytes, "a partial body is shorter than its name says; it is removed");
                    Some(path)
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a file that does not belong here is removed");
                    Some(path)
                }
            };
            if let Some(path) = worthless {
                fs::remove_file(&path).map_err(failed("remove", &path))?;
            }
        }
        Ok(Self { folder, book: Mutex::new(book), released: Notify::new(), now_ms: AtomicI64::new(0) })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn path(&self, name: &PartialName) -> PathBuf {
        self.folder.join(name.to_string())
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.now_ms.load(Ordering::Relaxed))
    }

    /// Takes up a body for one delivery, if another one of it has ended by then; it is given back when the claim is dropped.
    pub async fn take(self: &Arc<Self>, key: PartialKey, by: Instant) -> Claim {
        let taking = async {
            loop {
                let released = self.released.notified();
                match self.book().take(&key) {
                    Taken::Busy => {}
                    taken => return taken,
                }
                released.await;
            }
        };
        let taken = tokio::time::timeout_at(by, taking).await.unwrap_or(Taken::Busy);
        Claim { partials: self.clone(), key, taken }
    }

    fn release(&self, key: PartialKey, kept: Option<PartialName>) {
        self.book().release(key, kept);
        self.released.notify_waiters();
    }

    /// Removes what waited too long or is too much, and all of it where there is no room for new work. Returns how many.
    pub fn sweep(&self, now: Timestamp, no_room: bool) -> usize {
        self.now_ms.store(now.unix_ms(), Ordering::Relaxed);
        let due = self.book().due(now, no_room);
        for name in &due {
            let path = self.path(name);
            match fs::remove_file(&path) {
                Ok(()) => tracing::info!(path = %path.display(), no_room, "a partial body is removed"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a partial body stays until the next start")
                }
            }
        }
        due.len()
    }

    /// Everything that waits for its delivery to go on.
    pub fn waiting(&self) -> Vec<PartialName> {
        self.book().waiting().cloned().collect()
    }
}

/// A body that was taken up for one delivery, and what is to be kept of it when that ends.
pub struct Claim {
    pub(super) partials: Arc<Partials>,
    pub(super) key: PartialKey,
    pub(super) taken: Taken,
}

impl Drop for Claim {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.taken, Taken::Busy) {
            Taken::Nothing => self.partials.release(self.key.clone(), None),
            Taken::Kept(name) => self.partials.release(self.key.clone(), Some(name)),
            Taken::Busy => {}
        }
    }
}
