//! Uploads that broke off, one file each under `blobs/partial/`: the next try of the same agency goes on where this one
//! stopped.
//!
//! A file's name says whose it is and how many of its bytes are durable, and is changed only after a sync: a name never
//! stands for more than a loss of power leaves. What lies behind that number is written anew. Losing a file loses nothing
//! but time: its body is sent from the beginning.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use docaxis_protocol::Timestamp;
use docaxis_protocol::partial::{Book, PartialKey, PartialName, PartialsConfig, Taken};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::disk::Disk;

const PARTIAL: &str = "partial";
/// How long a dispatch's uploads wait, all together, for others of the same bodies: mostly a lost connection's, which are about
/// to end. After that, they begin anew beside them.
pub(super) const EARLIER_ENDS_WITHIN: Duration = Duration::from_millis(if cfg!(test) { 200 } else { 5_000 });

pub(super) struct Partials {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    book: Mutex<Book>,
    /// An upload has ended.
    released: Notify,
    /// The time that the sweep said last, in milliseconds since 1970.
    now_ms: AtomicI64,
}

impl Partials {
    pub fn open(disk: Arc<dyn Disk>, bodies: &Path, config: PartialsConfig) -> io::Result<Self> {
        let dir = bodies.join(PARTIAL);
        disk.create_dir_all(&dir)?;
        let mut book = Book::new(config);
        for found in disk.list(&dir)? {
            let path = dir.join(&found);
            let name = match found.parse::<PartialName>() {
                Ok(name) if disk.open(&path)?.len()? >= name.bytes => name,
                Ok(name) => {
                    tracing::warn!(path = %path.display(), bytes = name.bytes, "a partial body is shorter than its name says; it is removed");
                    disk.remove(&path)?;
                    continue;
                }
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a file that does not belong here is removed");
                    disk.remove(&path)?;
                    continue;
                }
            };
            // Of one whose beginning was never synced there is nothing to keep.
            let worthless = if name.bytes == 0 { Some(name) } else { book.found(name) };
            if let Some(name) = worthless {
                disk.remove(&dir.join(name.to_string()))?;
            }
        }
        Ok(Self { disk, dir, book: Mutex::new(book), released: Notify::new(), now_ms: AtomicI64::new(0) })
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn path(&self, name: &PartialName) -> PathBuf {
        self.dir.join(name.to_string())
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::from_unix_ms(self.now_ms.load(Ordering::Relaxed))
    }

    /// Takes up a body for one upload. [`Taken::Busy`] if another upload of it has not ended by then.
    pub async fn take(self: &Arc<Self>, key: PartialKey, by: Instant) -> Taken {
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
        tokio::time::timeout_at(by, taking).await.unwrap_or(Taken::Busy)
    }

    /// An upload has ended; this is kept of it.
    pub fn release(&self, key: PartialKey, kept: Option<PartialName>) {
        self.book().release(key, kept);
        self.released.notify_waiters();
    }

    /// Removes what waited too long or is too much, and all of it where there is no room for new work. Returns how many.
    pub fn sweep(&self, now: Timestamp, no_room: bool) -> usize {
        self.now_ms.store(now.unix_ms(), Ordering::Relaxed);
        let due = self.book().due(now, no_room);
        for name in &due {
            let path = self.path(name);
            match self.disk.remove(&path) {
                Ok(()) => tracing::info!(path = %path.display(), no_room, "a partial body is removed"),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a partial body stays until the next start")
                }
            }
        }
        due.len()
    }

    /// Everything that waits for its upload to go on.
    pub fn waiting(&self) -> Vec<PartialName> {
        self.book().waiting().cloned().collect()
    }
}
