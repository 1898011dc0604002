//! What readers see: the index with the newest changes laid over it in memory.
//!
//! A committed group is visible the moment it is merged here; a thread of its own writes whole merges into the index
//! in large sorted batches. The layers are bounded: when the writer falls behind, [`View::merge`] waits for it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use super::index::{Changes, Index, Row};
use crate::loops::{Loop, Loops};
use crate::space::Space;
use crate::store::StoreError;

/// Reading rows, wherever they are.
pub trait Lookup {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// Up to `limit` rows with `from <= key < to`, in order.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError>;
}

/// How long to wait before the index looks for room again.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// Rows that one scan step takes from each layer.
const MAX_STEP: usize = 1024;

#[derive(Default)]
struct Layers {
    active: Changes,
    /// What the writer is putting into the index now.
    frozen: Option<Arc<Changes>>,
}

#[derive(Default)]
struct Progress {
    /// Merges so far, and up to which merge the index has everything.
    merged: u64,
    written: u64,
    /// Somebody waits for everything up to this merge.
    wanted: u64,
    keys: usize,
    stop: bool,
    /// The index has found no room for what waits; it is tried again.
    full: Option<StoreError>,
    failed: Option<StoreError>,
}

/// The layered view.
pub struct View {
    base: Arc<dyn Index>,
    layers: RwLock<Layers>,
    progress: Mutex<Progress>,
    changed: Condvar,
    max_keys: usize,
    /// The writer is a task, for which nobody can wait.
    as_task: OnceLock<Arc<Space>>,
    /// Told when the index does not give back what it was given.
    unreadable: OnceLock<Unreadable>,
}

type Unreadable = Box<dyn Fn(&StoreError) + Send + Sync>;

impl View {
    pub fn new(base: Arc<dyn Index>, max_keys: usize) -> Arc<Self> {
        Arc::new(Self {
            base,
            layers: RwLock::default(),
            progress: Mutex::default(),
            changed: Condvar::new(),
            max_keys: max_keys.max(1),
            as_task: OnceLock::new(),
            unreadable: OnceLock::new(),
        })
    }

    /// Calls this with the error when a read of the index fails from now on.
    pub fn when_unreadable(&self, tell: impl Fn(&StoreError) + Send + Sync + 'static) {
        // Set once, by whoever opened the store.
        let _set_before = self.unreadable.set(Box::new(tell));
    }

    pub fn tell(&self, error: &StoreError) {
        if let Some(tell) = self.unreadable.get() {
            tell(error);
        }
    }

    /// Starts the thread that writes merges into the index, at the latest `every` after they were made.
    pub fn start_writer(self: &Arc<Self>, loops: Loops, every: Duration, space: Arc<Space>) -> std::io::Result<Loop> {
        let view = self.clone();
        if loops != Loops::Threads {
            let _set_before = self.as_task.set(space.clone());
            let writing = async move {
                loop {
                    tokio::time::sleep(every).await;
                    let progress = view.progress();
                    if progress.stop || !view.write_batch(progress, &space) {
                        return;
                    }
                }
            };
            return Ok(Loops::task("index", writing));
        }
        let thread = std::thread::Builder::new().name("index".into()).spawn(move || {
            let written = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| view.write_all(every, &space)));
            if let Err(panic) = written {
                // Whoever waits for the writer, or merges next, must not wait for ever.
                let found = "its thread panicked; it is rebuilt at the next start".to_owned();
                view.progress().failed = Some(StoreError::Io { operation: "the index", found });
                view.changed.notify_all();
                std::panic::resume_unwind(panic);
            }
        });
        thread.map(Loop::Thread)
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `changes` visible, all at once. Called by one thread only.
    pub fn merge(&self, changes: Changes) -> Result<(), StoreError> {
        let mut progress = self.progress();
        // Twice the size at which the writer begins: it has time for one batch while the next one fills.
        while progress.keys >= 2 * self.max_keys && progress.failed.is_none() && !progress.stop {
            self.changed.notify_all();
            progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(failed) = &progress.failed {
            return Err(failed.clone());
        }
        let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
        layers.active.extend(changes);
        progress.keys = layers.active.len();
        progress.merged += 1;
        if progress.keys >= self.max_keys {
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Waits until the index has everything merged so far and keeps it if the process dies.
    pub fn flush(&self) -> Result<(), StoreError> {
        let mut progress = self.progress();
        if let Some(space) = self.as_task.get() {
            let behind = progress.merged > progress.written;
            return if behind && !self.write_batch(progress, space) {
                Err(StoreError::Closed)
            } else {
                self.base.flush()
            };
        }
        let wanted = progress.merged;
        progress.wanted = progress.wanted.max(wanted);
        self.changed.notify_all();
        while progress.written < wanted {
            if let Some(failed) = &progress.failed {
                return Err(failed.clone());
            }
            if progress.stop {
                return Err(StoreError::Closed);
            }
            if let Some(full) = &progress.full {
                return Err(full.clone());
            }
            progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
        drop(progress);
        self.base.flush()
    }

    /// Lets the writer end after what it has begun.
    pub fn stop(&self) {
        self.progress().stop = true;
        self.changed.notify_all();
    }

    /// Whether a group's rows may be merged without waiting for room on the disk.
    pub fn has_room(&self) -> Result<(), StoreError> {
        let progress = self.progress();
        match &progress.full {
            Some(full) if progress.keys >= self.max_keys => Err(full.clone()),
            _ => Ok(()),
        }
    }

    /// Waits until the index has room for a batch; false if it is told to stop meanwhile.
    fn reserve(&self, rows: usize, space: &Space) -> Result<bool, StoreError> {
        loop {
            match self.base.reserve(rows) {
                Ok(()) => {
                    self.progress().full = None;
                    return Ok(true);
                }
                Err(full @ StoreError::DiskFull(_)) => {
                    space.ran_out();
                    let mut progress = self.progress();
                    progress.full = Some(full);
                    self.changed.notify_all();
                    let waited = self.changed.wait_timeout_while(progress, TRY_AGAIN, |progress| !progress.stop);
                    if waited.unwrap_or_else(PoisonError::into_inner).0.stop {
                        return Ok(false);
                    }
                }
                Err(other) => return Err(other),
            }
        }
    }

    fn write_all(&self, every: Duration, space: &Space) {
        loop {
            let mut progress = self.progress();
            while !progress.stop && progress.wanted <= progress.written && progress.keys < self.max_keys {
                let (next, timeout) =
                    self.changed.wait_timeout(progress, every).unwrap_or_else(PoisonError::into_inner);
                progress = next;
                if timeout.timed_out() && progress.merged > progress.written {
                    break;
                }
            }
            if progress.stop || !self.write_batch(progress, space) {
                return;
            }
        }
    }

    /// Writes what was merged into the index; false if the writer must end.
    fn write_batch(&self, mut progress: MutexGuard<'_, Progress>, space: &Space) -> bool {
        let upto = progress.merged;
        let batch = {
            let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
            let batch = Arc::new(std::mem::take(&mut layers.active));
            layers.frozen = Some(batch.clone());
            batch
        };
        progress.keys = 0;
        // Who waited for room has it now: the next batch fills while this one is written.
        self.changed.notify_all();
        drop(progress);
        docaxis_failpoints::failpoint!("broker.index.writing");
        let done = match self.reserve(batch.len(), space) {
            Ok(true) => self.base.apply(&batch),
            Ok(false) => return false,
            Err(error) => Err(error),
        };
        docaxis_failpoints::failpoint!("broker.index.written");
        let mut progress = self.progress();
        match done {
            Ok(()) => {
                self.layers.write().unwrap_or_else(PoisonError::into_inner).frozen = None;
                progress.written = upto;
            }
            Err(e) => {
                tracing::error!(error = %e, "the index cannot be written");
                progress.failed = Some(e);
            }
        }
        self.changed.notify_all();
        progress.failed.is_none()
    }
}

impl Lookup for View {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        {
            let layers = self.layers.read().unwrap_or_else(PoisonError::into_inner);
            let found = layers.active.get(key).or_else(|| layers.frozen.as_ref()?.get(key));
            if let Some(value) = found {
                return Ok(value.clone());
            }
        }
        self.base.get(key).inspect_err(|error| self.tell(error))
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        scan_over(None, self, from, to, limit)
    }
}

/// A view with changes over it that are not committed yet: what the committer decides by.
pub struct Staged<'a> {
    view: &'a View,
    pub changes: Changes,
}

impl<'a> Staged<'a> {
    pub fn new(view: &'a View) -> Self {
        Self { view, changes: Changes::new() }
    }

    /// See [`View::has_room`].
    pub fn has_room(&self) -> Result<(), StoreError> {
        self.view.has_room()
    }

    /// Makes the changes visible.
    pub fn merge(&mut self) -> Result<(), StoreError> {
        self.view.merge(std::mem::take(&mut self.changes))
    }
}

impl Lookup for Staged<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.changes.get(key) {
            Some(value) => Ok(value.clone()),
            None => self.view.get(key),
        }
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        scan_over(Some(&self.changes), self.view, from, to, limit)
    }
}

/// One layer's next rows, and whether there may be more in the range.
type Step = (Vec<(Vec<u8>, Option<Vec<u8>>)>, bool);

fn step_of(changes: &Changes, from: &[u8], to: &[u8], step: usize) -> Step {
    if from >= to {
        return (vec![], false);
    }
    let range = changes.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to)));
    let rows: Vec<_> = range.take(step).map(|(key, value)| (key.clone(), value.clone())).collect();
    let more = rows.len() == step;
    (rows, more)
}

/// Merges the layers step by step: of each layer a few rows, of which those count that lie before the end of every
/// layer's step. The layers in memory are read before the index, so that a row on its way down is seen in one of them.
fn scan_over(top: Option<&Changes>, view: &View, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
    let mut found = Vec::new();
    let mut at = from.to_vec();
    while found.len() < limit && at.as_slice() < to {
        let step = (limit - found.len()).saturating_add(8).min(MAX_STEP);
        let mut steps: Vec<Step> = Vec::with_capacity(4);
        {
            let layers = view.layers.read().unwrap_or_else(PoisonError::into_inner);
            steps.extend(layers.frozen.as_ref().map(|frozen| step_of(frozen, &at, to, step)));
            steps.push(step_of(&layers.active, &at, to, step));
        }
        steps.extend(top.map(|changes| step_of(changes, &at, to, step)));
        let base = view.base.scan(&at, to, step).inspect_err(|error| view.tell(error))?;
        let base_more = base.len() == step;
        let base: Vec<_> = base.into_iter().map(|(key, value)| (key, Some(value))).collect();
        steps.insert(0, (base, base_more));
        let bound = steps.iter().filter(|(_, more)| *more).filter_map(|(rows, _)| Some(rows.last()?.0.clone())).min();
        let mut merged: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
        for (rows, _) in steps {
            merged.extend(rows.into_iter().filter(|(key, _)| bound.as_ref().is_none_or(|bound| key <= bound)));
        }
        found.extend(merged.into_iter().filter_map(|(key, value)| Some((key, value?))));
        match bound {
            Some(mut bound) => {
                bound.push(0);
                at = bound;
            }
            None => break,
        }
    }
    found.truncate(limit);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use docaxis_protocol::space::SpaceConfig;

    use super::*;
    use crate::disk::sim::SimDisk;

    /// An index whose writer fails in the worst way.
    struct Panics;

    impl Index for Panics {
        fn reserve(&self, _: usize) -> Result<(), StoreError> {
            Ok(())
        }
        fn apply(&self, _: &Changes) -> Result<(), StoreError> {
            panic!("on purpose")
        }
        fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
            Err(StoreError::Closed)
        }
        fn scan(&self, _: &[u8], _: &[u8], _: usize) -> Result<Vec<Row>, StoreError> {
            Err(StoreError::Closed)
        }
        fn flush(&self) -> Result<(), StoreError> {
            Ok(())
        }
        fn clear(&self) -> Result<(), StoreError> {
            Ok(())
        }
    }

    #[test]
    fn a_writer_that_panics_fails_whoever_waits_for_it_and_whatever_comes_after() {
        let view = View::new(Arc::new(Panics), 10);
        let disk = Arc::new(SimDisk::new());
        let space = Space::open(disk, Path::new("data"), SpaceConfig::default()).unwrap();
        let writer = view.start_writer(Loops::Threads, Duration::from_secs(3600), space).unwrap();
        let change = || Changes::from([(vec![1], Some(vec![2]))]);
        view.merge(change()).unwrap();
        assert!(view.flush().is_err());
        assert!(view.merge(change()).is_err());
        assert!(!writer.join());
    }

    #[test]
    fn whoever_opened_the_store_hears_of_every_read_that_fails() {
        let view = View::new(Arc::new(Panics), 10);
        let told = Arc::new(Mutex::new(0));
        let count = told.clone();
        view.when_unreadable(move |_| *count.lock().unwrap() += 1);
        view.merge(Changes::from([(vec![1], Some(vec![2]))])).unwrap();
        assert_eq!(view.get(&[1]).unwrap(), Some(vec![2]), "what is in memory needs no index");
        assert!(view.get(&[3]).is_err() && view.scan(&[0], &[9], 4).is_err());
        assert_eq!(*told.lock().unwrap(), 2);
    }
}
