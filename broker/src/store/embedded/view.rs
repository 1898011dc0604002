//! What readers see: the index with the newest changes laid over it in memory.
//!
//! A committed group is visible the moment it is merged here; a thread of its own writes whole merges into the index
//! in large sorted batches. The layers are bounded: when the writer falls behind, [`View::merge`] waits for it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;

use super::index::{Changes, Index, Row};
use crate::store::StoreError;

/// Reading rows, wherever they are.
pub trait Lookup {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// Up to `limit` rows with `from <= key < to`, in order.
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError>;
}

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
    failed: Option<StoreError>,
}

/// The layered view.
pub struct View {
    base: Arc<dyn Index>,
    layers: RwLock<Layers>,
    progress: Mutex<Progress>,
    changed: Condvar,
    max_keys: usize,
}

impl View {
    pub fn new(base: Arc<dyn Index>, max_keys: usize) -> Arc<Self> {
        Arc::new(Self {
            base,
            layers: RwLock::default(),
            progress: Mutex::default(),
            changed: Condvar::new(),
            max_keys: max_keys.max(1),
        })
    }

    /// Starts the thread that writes merges into the index, at the latest `every` after they were made.
    pub fn start_writer(self: &Arc<Self>, every: Duration) -> std::io::Result<JoinHandle<()>> {
        let view = self.clone();
        std::thread::Builder::new().name("index".into()).spawn(move || view.write_all(every))
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

    fn write_all(&self, every: Duration) {
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
            if progress.stop {
                return;
            }
            let upto = progress.merged;
            let batch = {
                let mut layers = self.layers.write().unwrap_or_else(PoisonError::into_inner);
                let batch = Arc::new(std::mem::take(&mut layers.active));
                layers.frozen = Some(batch.clone());
                batch
            };
            progress.keys = 0;
            drop(progress);
            docaxis_failpoints::failpoint!("broker.index.writing");
            let done = self.base.apply(&batch);
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
            if progress.failed.is_some() {
                return;
            }
        }
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
        self.base.get(key)
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

    pub fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.changes.insert(key, Some(value));
    }

    pub fn remove(&mut self, key: Vec<u8>) {
        self.changes.insert(key, None);
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
        let base = view.base.scan(&at, to, step)?;
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
