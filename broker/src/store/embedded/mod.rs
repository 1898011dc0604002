//! The engine that needs nothing installed: a journal of our own as the truth, evidence kept for good, large bodies as
//! files, and an index that may be lost at any time.
//!
//! An answer means that the change survives the loss of power: it is given after fdatasync, never before. After the
//! first failed write or sync nothing is acknowledged any more. Damage is refused at start with file and offset, and a
//! copy is set aside. `docs/format.md` describes the files.

mod apply;
mod aside;
mod bulk;
mod chains;
mod committer;
mod config;
mod cut;
mod evidence;
mod ids;
mod index;
mod journal;
mod keys;
mod layout;
mod leaves;
mod mend;
mod outline;
mod pages;
mod progress;
mod reads;
mod rebuild;
mod record;
mod recover;
mod rows;
mod segments;
mod settle;
mod shared;
mod state;
#[cfg(test)]
mod tests;
mod view;
mod walk;

use std::any::Any;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::{AgencyCode, Digest, DispatchId, Timestamp};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

pub use config::{EmbeddedConfig, IndexKind, MIN_SEGMENT_BYTES};
pub use cut::Cut;
pub use index::{Index, MemoryIndex};
pub use progress::{Doing, Progress, Reached};
pub use rebuild::{Rebuilt, rebuild};

use self::committer::{Committer, Request};
use self::evidence::EvidenceFiles;
use self::journal::Journal;
use self::keys::Totals;
use self::record::{NoticeV1, Prepared, RecordV1};
use self::recover::{End, Recovery};
use self::segments::{Segments, io_error};
use self::settle::Settler;
use self::shared::Shared;
use self::view::View;
use super::{
    Acceptance, Accepted, Answer, Body, BodySource, Counts, Delivery, Dispatch, Earlier, JournalPlace, Lane, Record,
    Recorded, Rejected, Rejection, Seq, Store, StoreError, StoredEvidence, Waiting,
};
use crate::blobs::BlobStore;
use crate::disk::Disk;
use crate::loops::{Loop, Loops};
use crate::space::Space;

#[derive(Default)]
struct Threads {
    requests: Option<mpsc::Sender<Request>>,
    committer: Option<Loop>,
    settler: Option<Loop>,
    index: Option<Loop>,
    space: Option<Loop>,
    lock: Option<Box<dyn Any + Send + Sync>>,
}

pub struct EmbeddedStore {
    shared: Arc<Shared>,
    dir: PathBuf,
    config: EmbeddedConfig,
    disk: Arc<dyn Disk>,
    threads: Mutex<Threads>,
}

impl EmbeddedStore {
    /// Opens `dir`, recovering what a crash left. Blocks until the store may answer: seconds if the index is built anew.
    pub fn open(dir: &Path, config: EmbeddedConfig, disk: Arc<dyn Disk>) -> Result<Arc<Self>, StoreError> {
        config.progress.begin(Doing::Opening);
        let lock = lock(disk.as_ref(), dir)?;
        whole(disk.as_ref(), dir)?;
        // Before everything else: on a full disk the rest opens only with the ballast's room.
        let space = Space::open(disk.clone(), dir, config.space).map_err(io_error("looking at the disk"))?;
        let watching =
            space.start(config.loops, config.look_every).map_err(io_error("starting a thread of the store"))?;
        let opened = Self::open_locked(dir, &config, &disk, &space).map_err(|e| recover::set_aside(&disk, dir, e));
        let (shared, end, totals, index) = opened.inspect_err(|_| space.stop())?;
        let threads = Threads { index: Some(index), space: Some(watching), lock: Some(lock), ..Threads::default() };
        let (noted, folder, held) = (disk.clone(), dir.to_owned(), Arc::downgrade(&shared));
        shared.view.when_unreadable(move |error| {
            // A process that dies now leaves an index of this boot: it must not be believed again.
            if let Err(error) = state::distrust(noted.as_ref(), &folder) {
                tracing::error!(%error, "it cannot be noted that the index is unreadable; delete DATA/index");
            }
            if let Some(shared) = held.upgrade() {
                shared.poison_with(error);
            }
        });
        let store = Self { shared, dir: dir.to_owned(), config, disk, threads: Mutex::new(threads) };
        store.start(end, totals)?;
        Ok(Arc::new(store))
    }

    #[allow(clippy::type_complexity, reason = "the pieces of one constructor, taken apart at once")]
    fn open_locked(
        dir: &Path,
        config: &EmbeddedConfig,
        disk: &Arc<dyn Disk>,
        space: &Arc<Space>,
    ) -> Result<(Arc<Shared>, End, Totals, Loop), StoreError> {
        let blobs = BlobStore::open(disk.clone(), &dir.join("blobs"), config.loops, config.partials)
            .map_err(io_error("opening the bodies"))?;
        let evidence = EvidenceFiles::open(disk.clone(), &dir.join("evidence"), config.evidence_file_bytes)?;
        let segments = Segments::open(disk.clone(), &dir.join("journal"), config)?;
        recover::check_order(&segments, &evidence)?;
        let recovery = Recovery { segments: &segments, evidence: &evidence, progress: &config.progress };
        let index = state::open(disk.as_ref(), dir, config)?;
        let (view, writer) = start_view(index, config, space)?;
        let caught_up = match recovery.catch_up(&view) {
            // What is wrong with the index is no reason to refuse: it is only a view.
            Err(error @ (StoreError::Damaged(_) | StoreError::Io { operation: "the index", .. })) => {
                tracing::warn!(%error, "the index cannot be brought up to date");
                None
            }
            other => other.inspect_err(|_| view.stop())?,
        };
        let (view, writer, end, totals) = match caught_up {
            Some((end, totals)) => (view, writer, end, totals),
            None => {
                view.stop();
                let _failed_as_well = writer.join();
                drop(view);
                let (index, end, totals) = recovery.rebuild_at(dir, config, space)?;
                let (view, writer) = start_view(index, config, space)?;
                (view, writer, end, totals)
            }
        };
        config.progress.begin(Doing::Collecting);
        recover::collect_blobs(&blobs, &view).inspect_err(|_| view.stop())?;
        let shared = Shared::new(view, Arc::new(segments), evidence, Arc::new(blobs), space.clone(), totals);
        Ok((Arc::new(shared), end, totals, writer))
    }

    fn start(&self, end: End, totals: Totals) -> Result<(), StoreError> {
        let failed = io_error("starting a thread of the store");
        let (requests, queue) = mpsc::channel(self.config.queue_records.max(1));
        let (full, full_segments) = std::sync::mpsc::channel();
        let mut settler = Settler {
            shared: self.shared.clone(),
            config: self.config.clone(),
            requests: requests.downgrade(),
            full: full_segments,
            stuck: Default::default(),
            committer: None,
        };
        let committer = Committer {
            journal: Journal::new(self.shared.segments.clone(), end.segment, end.next, end.marked),
            shared: self.shared.clone(),
            config: self.config.clone(),
            totals,
            requests: queue,
            first: None,
            pruned: vec![],
            new: vec![],
            restored: 0,
            full,
        };
        let mut threads = self.threads();
        threads.requests = Some(requests);
        let shared = &self.shared;
        if let Loops::Tasks { disk } = self.config.loops {
            let committer = Arc::new(Mutex::new(committer));
            settler.committer = Some(committer.clone());
            threads.committer = Some(Loops::task("committer", Committer::run_as_task(committer, disk)));
            threads.settler = Some(Loops::task("settler", settler.run_as_task()));
            return Ok(());
        }
        threads.committer = Some(spawn("committer", shared, move || committer.run()).map_err(&failed)?);
        threads.settler = Some(spawn("settler", shared, move || settler.run()).map_err(&failed)?);
        Ok(())
    }

    fn threads(&self) -> MutexGuard<'_, Threads> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where bodies that are too large for the journal arrive.
    pub fn blobs(&self) -> Arc<BlobStore> {
        self.shared.blobs.clone()
    }

    /// Whether there is room for new work.
    pub fn space(&self) -> Arc<Space> {
        self.shared.space.clone()
    }

    /// Bytes of the journal's files, spares included.
    pub fn journal_bytes(&self) -> u64 {
        self.shared.segments.disk_bytes()
    }

    /// Groups that were committed since the start, and their bytes in the journal.
    pub fn written(&self) -> (u64, u64) {
        self.shared.segments.written()
    }

    /// Why nothing is acknowledged any more, if so.
    pub fn poisoned(&self) -> Option<StoreError> {
        self.shared.poison()
    }

    /// Queues a request at once if there is room, so that the committer begins while its caller goes on; else the future
    /// waits for room.
    fn ask<T: Send + 'static>(&self, request: impl FnOnce(committer::Answer<T>) -> Request) -> Answer<'static, T> {
        let Some(requests) = self.threads().requests.clone() else {
            return Box::pin(std::future::ready(Err(StoreError::Closed)));
        };
        let shared = self.shared.clone();
        let (to, answer) = oneshot::channel();
        let queued = requests.try_send(request(to));
        Box::pin(async move {
            let gone = || shared.poison().unwrap_or(StoreError::Closed);
            match queued {
                Ok(()) => {}
                Err(TrySendError::Full(request)) => requests.send(request).await.map_err(|_| gone())?,
                Err(TrySendError::Closed(_)) => return Err(gone()),
            }
            drop(requests);
            answer.await.map_err(|_| gone())?
        })
    }

    /// Queues what was prepared; what cannot be prepared is the answer.
    fn put<T: Send + 'static>(
        &self,
        prepared: Result<Prepared, StoreError>,
        request: impl FnOnce(Box<Prepared>, committer::Answer<T>) -> Request,
    ) -> Answer<'static, T> {
        match prepared {
            Ok(prepared) => self.ask(|to| request(Box::new(prepared), to)),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    /// Ends the threads, in the order in which they feed one another.
    fn end_threads(&self) -> Result<(), StoreError> {
        let (committer, settler, index, space) = {
            let mut threads = self.threads();
            threads.requests = None;
            (threads.committer.take(), threads.settler.take(), threads.index.take(), threads.space.take())
        };
        let joined = |thread: Option<Loop>| thread.is_none_or(Loop::join);
        let mut ended = joined(committer);
        ended &= joined(settler);
        let writes = matches!(index, Some(Loop::Thread(_)));
        let flushed = if writes && self.shared.poison().is_none() { self.shared.view.flush() } else { Ok(()) };
        self.shared.view.stop();
        ended &= joined(index);
        self.shared.space.stop();
        ended &= joined(space);
        if !ended {
            return Err(StoreError::Io { operation: "ending a thread of the store", found: "it panicked".to_owned() });
        }
        flushed
    }

    fn close_now(&self) -> Result<(), StoreError> {
        let written = match self.end_threads() {
            // What the index lacks stands in the journal: the next start applies it, as after a crash.
            Err(StoreError::DiskFull(what)) => {
                tracing::warn!(%what, "no room to bring the index up to date; the next start does so");
                false
            }
            other => other.map(|()| true)?,
        };
        if let Some(error) = self.shared.poison() {
            return Err(error);
        }
        let mut threads = self.threads();
        if threads.lock.is_some() {
            let noted = if written { state::closed(self.disk.as_ref(), &self.dir, &self.config) } else { Ok(()) };
            match noted {
                Err(StoreError::DiskFull(what)) => {
                    tracing::warn!(%what, "no room to note that the index is closed; the next start checks it");
                }
                other => other?,
            }
            threads.lock = None;
        }
        Ok(())
    }
}

/// A thread of the store. If it panics, nothing is acknowledged any more: what it left half done is not known.
fn spawn(name: &'static str, shared: &Arc<Shared>, work: impl FnOnce() + Send + 'static) -> std::io::Result<Loop> {
    let shared = shared.clone();
    let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)) {
            shared.poison_with(&StoreError::Io { operation: name, found: "the thread panicked".to_owned() });
            std::panic::resume_unwind(panic);
        }
    });
    thread.map(Loop::Thread)
}

/// Refuses a folder in which a restore was broken off: it is neither the old data nor the new.
fn whole(disk: &dyn Disk, dir: &Path) -> Result<(), StoreError> {
    match disk.exists(&dir.join("restoring")) {
        Ok(false) => Ok(()),
        Ok(true) => Err(StoreError::Io {
            operation: "opening the data folder",
            found: format!("a restore to {} was broken off; run the same restore again", dir.display()),
        }),
        Err(e) => Err(io_error("opening the data folder")(e)),
    }
}

/// Only one process at a time has the folder.
pub(crate) fn lock(disk: &dyn Disk, dir: &Path) -> Result<Box<dyn Any + Send + Sync>, StoreError> {
    disk.create_dir_all(dir).map_err(io_error("creating the data folder"))?;
    disk.lock(&dir.join("lock")).map_err(|e| match e.kind() {
        std::io::ErrorKind::WouldBlock => StoreError::Locked(dir.to_owned()),
        _ => io_error("locking the data folder")(e),
    })
}

/// [`StoreError::Locked`] while a process has the folder.
pub fn is_free(dir: &Path) -> Result<(), StoreError> {
    lock(&crate::disk::RealDisk, dir).map(drop)
}

fn start_view(
    index: Arc<dyn Index>,
    config: &EmbeddedConfig,
    space: &Arc<Space>,
) -> Result<(Arc<View>, Loop), StoreError> {
    let view = View::new(index, config.index_batch_rows);
    let writer = view
        .start_writer(config.loops, config.index_every, space.clone())
        .map_err(io_error("starting the index's thread"))?;
    Ok((view, writer))
}

impl Drop for EmbeddedStore {
    /// Without [`Store::close`] before, this is a crash as far as the disk is concerned.
    fn drop(&mut self) {
        if let Err(error) = self.end_threads() {
            tracing::warn!(%error, "the store was dropped and did not end well");
        }
    }
}

impl Store for EmbeddedStore {
    fn accept(&self, acceptance: Acceptance) -> Answer<'static, Accepted> {
        self.recall(acceptance, vec![])
    }

    fn recall(&self, recall: Acceptance, withdrawals: Vec<Record>) -> Answer<'static, Accepted> {
        let prepared = withdrawals.into_iter().map(Prepared::event).collect::<Result<Vec<_>, _>>();
        let prepared = prepared.and_then(|withdrawals| Ok((Prepared::accepted(recall)?, withdrawals)));
        match prepared {
            Ok((recall, withdrawals)) => self.ask(|to| Request::Accept(Box::new(recall), withdrawals, to)),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn reject(&self, rejection: Rejection) -> Answer<'static, Rejected> {
        self.put(Prepared::rejected(rejection), Request::Reject)
    }

    fn record(&self, record: Record) -> Answer<'static, Recorded> {
        self.put(Prepared::event(record), Request::Record)
    }

    fn put_notices(&self, notices: Vec<(String, Vec<u8>)>) -> Answer<'static, ()> {
        let notices = notices.into_iter().map(|(name, bytes)| NoticeV1 { name, bytes }).collect();
        self.put(Prepared::new(RecordV1::Notices(notices), vec![]), Request::Plain)
    }

    fn import(&self, leaf: u64, earlier: Vec<Earlier>) -> Answer<'static, u64> {
        match earlier.into_iter().map(Prepared::earlier).collect::<Result<_, _>>() {
            Ok(prepared) => self.ask(|to| Request::Import(prepared, leaf, to)),
            Err(error) => Box::pin(std::future::ready(Err(error))),
        }
    }

    fn freeze(&self, why: Option<String>) {
        *self.shared.frozen.write().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn notices(&self) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        self.shared.reads().notices()
    }

    fn lookup(&self, sender: &AgencyCode, id: DispatchId) -> Result<Option<Seq>, StoreError> {
        self.shared.reads().lookup(sender, id)
    }

    fn find(&self, id: DispatchId) -> Result<Vec<Seq>, StoreError> {
        self.shared.reads().find(id)
    }

    fn answered(&self, id: DispatchId, envelope_sha256: Digest) -> Result<Option<Dispatch>, StoreError> {
        self.shared.reads().answered(id, envelope_sha256)
    }

    fn dispatch(&self, seq: Seq) -> Result<Option<Dispatch>, StoreError> {
        self.shared.reads().dispatch(seq)
    }

    fn sender(&self, seq: Seq) -> Result<Option<AgencyCode>, StoreError> {
        self.shared.reads().sender(seq)
    }

    fn delivery(&self, seq: Seq, recipient: &AgencyCode) -> Result<Option<Delivery>, StoreError> {
        self.shared.reads().delivery(seq, recipient)
    }

    fn deliveries(&self, seq: Seq) -> Result<Vec<Delivery>, StoreError> {
        self.shared.reads().deliveries(seq)
    }

    fn lanes(&self, recipient: &AgencyCode, least: u8) -> Result<Vec<Lane>, StoreError> {
        self.shared.reads().lanes(recipient, least)
    }

    fn waiting(
        &self,
        recipient: &AgencyCode,
        lane: Lane,
        after: Option<Seq>,
        limit: usize,
    ) -> Result<Vec<Waiting>, StoreError> {
        self.shared.reads().waiting(recipient, lane, after, limit)
    }

    fn expired(&self, now: Timestamp, limit: usize) -> Result<Vec<Waiting>, StoreError> {
        self.shared.reads().expired(now, limit)
    }

    fn evidence(&self, seq: Seq) -> Result<Vec<StoredEvidence>, StoreError> {
        self.shared.reads().evidence(seq)
    }

    fn chain(&self, seq: Seq, recipient: &AgencyCode) -> Result<Vec<StoredEvidence>, StoreError> {
        self.shared.reads().chain(seq, recipient)
    }

    fn evidence_for_sender(
        &self,
        sender: &AgencyCode,
        from: u64,
        limit: usize,
    ) -> Result<Vec<StoredEvidence>, StoreError> {
        self.shared.reads().evidence_for_sender(sender, from, limit)
    }

    fn handovers(&self, from: u64, limit: usize) -> Result<(u64, Vec<StoredEvidence>), StoreError> {
        self.shared.reads().handovers(from, limit)
    }

    fn log_entries(&self, from: u64, limit: usize) -> Result<Vec<Digest>, StoreError> {
        self.shared.reads().log_entries(from, limit)
    }

    fn holds(&self, agency: &AgencyCode, part: &PartDigest) -> Result<bool, StoreError> {
        self.shared.reads().holds(agency, part)
    }

    fn body(&self, seq: Seq, part: &PartDigest) -> Result<Option<BodySource>, StoreError> {
        self.shared.reads().body(seq, part)
    }

    fn set_aside(&self, part: &PartDigest) -> Result<(), StoreError> {
        self.shared.set_aside(part)
    }

    fn restore(&self, seq: Seq, bodies: Vec<Body>) -> Answer<'static, ()> {
        self.put(Prepared::bodies(vec![(seq.0, None, bodies)]), |prepared, to| Request::Restore(prepared, seq.0, to))
    }

    fn unfinished_bytes(&self, sender: &AgencyCode) -> Result<u64, StoreError> {
        self.shared.reads().unfinished_bytes(sender)
    }

    fn counts(&self) -> Counts {
        self.shared.counts()
    }

    fn journal(&self) -> JournalPlace {
        self.shared.journal()
    }

    fn committed(&self) -> watch::Receiver<u64> {
        self.shared.size()
    }

    fn close(&self) -> Answer<'_, ()> {
        Box::pin(async move {
            match self.ask(Request::Close).await {
                Ok(()) => self.close_now(),
                // Closed before: whoever was first does the work.
                Err(StoreError::Closed) => Ok(()),
                Err(error) => Err(error),
            }
        })
    }
}
