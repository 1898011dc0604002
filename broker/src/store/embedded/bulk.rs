//! Rows on their way into an index that is built anew: kept in memory while records change them, and written once.
//!
//! Nothing reads such an index before it is whole, and one that was broken off is begun anew; so the order in which rows are
//! written is free, but for the totals, which come last: an index that has them is whole. Memory is bounded: what is too much
//! goes to the index early, and is read back when a record changes it again.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use super::index::{Changes, IdKey, Index, Row};
use super::keys::{self, Intake, LeafRow, Totals, row};
use super::pages::Pages;
use super::rows::Rows;
use crate::space::Space;
use crate::store::StoreError;

/// How much of an index that is built anew is kept in memory, beside what its latest record or group has changed.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Pages of leaves' rows, of about 5 KiB each.
    pub pages: u64,
    /// Bytes of the other rows, with all that they take up in memory until they are written.
    pub bytes: usize,
    /// Ids, of 32 bytes each and about as much again while they are put. The more are put at once, the fewer pages are read
    /// and written for each.
    pub ids: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self { pages: 4 << 10, bytes: 48 << 20, ids: 1 << 19 }
    }
}

/// What a row takes up beside its key and value at most. A map that has just grown is 7/16 full of places of 49 bytes, and has
/// the old one, of half as many, beside it; once it has grown, rows that are written stand beside it in a list.
const PLACE_BYTES: usize = 168;
/// What an allocation takes up at least, in what steps it grows, and how much of it is the allocator's own.
const LEAST_ALLOCATION: usize = 32;
const ALLOCATION_STEP: usize = 16;
const ALLOCATION_HEAD: usize = 8;
/// Rows in one batch of the index. sled keeps every state of a page in memory until its batch has ended: with 4,096 rows at once,
/// writing 78,000 took 170 MiB, with so many 80 MiB, in the same time.
pub const BATCH_ROWS: usize = 256;

const fn allocated(bytes: usize) -> usize {
    let taken = (bytes + ALLOCATION_HEAD).next_multiple_of(ALLOCATION_STEP);
    match bytes {
        0 => 0,
        _ if taken < LEAST_ALLOCATION => LEAST_ALLOCATION,
        _ => taken,
    }
}

fn value_bytes(value: Option<&Vec<u8>>) -> usize {
    value.map_or(0, |value| allocated(value.capacity()))
}

/// What a row takes up in memory, in bytes.
pub fn bytes_in_memory(key: &[u8], value: Option<&Vec<u8>>) -> usize {
    PLACE_BYTES + allocated(key.len()) + value_bytes(value)
}

/// Tables of which a range is read, and so kept in order: bodies apart, and owners of large bodies.
const fn is_ordered(key: &[u8]) -> bool {
    matches!(key.first(), Some(b'u' | b'o'))
}

/// The index, and who may make room for it.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    pub index: &'a dyn Index,
    pub space: &'a Space,
}

impl Target<'_> {
    /// Goes on for as long as the ballast gives back room. Nobody else would make some while a start waits for it: then the
    /// start fails and says so.
    pub fn with_room<T>(&self, work: impl Fn(&dyn Index) -> Result<T, StoreError>) -> Result<T, StoreError> {
        loop {
            match work(self.index) {
                Err(StoreError::DiskFull(_)) if self.space.make_room() => {}
                // The last of the ballast may have been given back to another thread since.
                Err(StoreError::DiskFull(_)) => return work(self.index).map_err(|error| self.full(error)),
                done => return done,
            }
        }
    }

    fn full(&self, error: StoreError) -> StoreError {
        let StoreError::DiskFull(needed) = error else { return error };
        StoreError::DiskFull(format!(
            "{needed}; {}, and the ballast is used up. Nothing is lost. Make room there, then start the broker or run \
             `docaxis broker rebuild`: the index is built from the beginning",
            self.space.why()
        ))
    }
}

pub struct Bulk<'a> {
    target: Target<'a>,
    bounds: Bounds,
    leaves: Pages<'a>,
    /// Rows that are reached by their keys only. None: it is to go.
    rows: HashMap<Vec<u8>, Option<Vec<u8>>>,
    ordered: Changes,
    bytes: usize,
    ids: Vec<(IdKey, u64)>,
    /// Whether the index may have rows that are not here.
    written: bool,
}

impl<'a> Bulk<'a> {
    /// For an index that is empty.
    pub fn new(target: Target<'a>, bounds: Bounds) -> Self {
        Self {
            target,
            bounds,
            leaves: Pages::new(target, bounds.pages),
            rows: HashMap::new(),
            ordered: Changes::new(),
            bytes: 0,
            ids: Vec::new(),
            written: false,
        }
    }

    fn kept(&self, key: &[u8]) -> Option<&Option<Vec<u8>>> {
        if is_ordered(key) { self.ordered.get(key) } else { self.rows.get(key) }
    }

    /// Writes everything, and `totals` last. Then the index is whole.
    pub fn finish(mut self, totals: &Totals) -> Result<(), StoreError> {
        let (target, written) = (self.target, self.written);
        let (rows, ordered) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.ordered));
        std::thread::scope(|scope| {
            let others = scope.spawn(move || write_rows(target, rows.into_iter().chain(ordered), written));
            self.write_ids()?;
            docaxis_failpoints::failpoint!("broker.rebuild.ids-written");
            self.leaves.finish()?;
            docaxis_failpoints::failpoint!("broker.rebuild.leaves-written");
            others.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        docaxis_failpoints::failpoint!("broker.rebuild.rows-written");
        apply(target, &Changes::from([(keys::totals(), Some(row(totals)?))]))?;
        docaxis_failpoints::failpoint!("broker.rebuild.whole");
        Ok(())
    }

    fn write_ids(&mut self) -> Result<(), StoreError> {
        let ids = std::mem::take(&mut self.ids);
        let replaced = self.target.with_room(|index| index.put_ids(&ids))?;
        for (leaf, before) in replaced {
            // A dispatch before itself would be looked for without end.
            if before >= leaf {
                let found =
                    format!("leaf {leaf} took the place of leaf {before} under one id; start again to rebuild it");
                return Err(StoreError::Io { operation: "the index", found });
            }
            self.leaves.change(leaf, |row| row.before_with_id = Some(before))?;
        }
        Ok(())
    }
}

/// Writes rows in the order of their keys, which costs less.
fn write_rows(
    target: Target<'_>,
    rows: impl Iterator<Item = (Vec<u8>, Option<Vec<u8>>)>,
    written: bool,
) -> Result<(), StoreError> {
    let mut sorted = Vec::with_capacity(rows.size_hint().0);
    // Of an index without rows none has to go.
    sorted.extend(rows.filter(|(_, row)| written || row.is_some()));
    sorted.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    let mut rows = sorted.into_iter().peekable();
    while rows.peek().is_some() {
        apply(target, &rows.by_ref().take(BATCH_ROWS).collect())?;
    }
    Ok(())
}

fn apply(target: Target<'_>, batch: &Changes) -> Result<(), StoreError> {
    target.with_room(|index| index.reserve(batch.len()))?;
    target.index.apply(batch)
}

impl Rows for Bulk<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        match self.kept(key) {
            Some(row) => Ok(row.clone()),
            None if self.written => self.target.index.get(key),
            None => Ok(None),
        }
    }

    fn scan(&mut self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        if from >= to {
            return Ok(vec![]);
        }
        let mut found: BTreeMap<Vec<u8>, Option<Vec<u8>>> = BTreeMap::new();
        let mut left = limit;
        for (key, row) in self.ordered.range::<[u8], _>((Bound::Included(from), Bound::Excluded(to))) {
            if left == 0 {
                break;
            }
            left -= usize::from(row.is_some());
            found.insert(key.clone(), row.clone());
        }
        if self.written {
            // As many more as rows here may stand in the place of the index's.
            for (key, row) in self.target.index.scan(from, to, limit.saturating_add(found.len()))? {
                found.entry(key).or_insert(Some(row));
            }
        }
        Ok(found.into_iter().filter_map(|(key, row)| Some((key, row?))).take(limit).collect())
    }

    fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        let (whole, of_value) = (bytes_in_memory(&key, value.as_ref()), value_bytes(value.as_ref()));
        let earlier = match is_ordered(&key) {
            true => self.ordered.insert(key, value),
            false => self.rows.insert(key, value),
        };
        match earlier {
            Some(earlier) => self.bytes = self.bytes + of_value - value_bytes(earlier.as_ref()),
            None => self.bytes += whole,
        }
    }

    fn change(
        &mut self,
        key: Vec<u8>,
        change: impl FnOnce(Option<Vec<u8>>) -> Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<(), StoreError> {
        if let Some(there) = self.rows.get_mut(&key) {
            let taken = there.take();
            self.bytes -= value_bytes(taken.as_ref());
            *there = change(taken)?;
            self.bytes += value_bytes(there.as_ref());
            return Ok(());
        }
        let changed = change(self.get(&key)?)?;
        self.set(key, changed);
        Ok(())
    }

    fn leaf(&mut self, leaf: u64) -> Result<Option<LeafRow>, StoreError> {
        self.leaves.get(leaf)
    }

    fn put_leaf(&mut self, leaf: u64, row: LeafRow) -> Result<(), StoreError> {
        self.leaves.put(leaf, row)
    }

    fn change_leaf<T>(&mut self, leaf: u64, change: impl FnOnce(&mut LeafRow) -> T) -> Result<T, StoreError> {
        self.leaves.change(leaf, change)
    }

    /// What was there before is found out when many are put at once.
    fn put_id(&mut self, id: &[u8; 16], kind: Intake, leaf: u64) -> Result<Option<u64>, StoreError> {
        let mut key = [kind as u8; 17];
        key[1..].copy_from_slice(id);
        self.ids.push((key, leaf));
        Ok(None)
    }

    fn is_full(&self) -> bool {
        self.ids.len() >= self.bounds.ids || self.bytes >= self.bounds.bytes
    }

    fn agree(&mut self, _totals: &Totals) -> Result<(), StoreError> {
        if self.ids.len() >= self.bounds.ids {
            self.write_ids()?;
        }
        if self.bytes >= self.bounds.bytes {
            let rows = std::mem::take(&mut self.rows).into_iter().chain(std::mem::take(&mut self.ordered));
            write_rows(self.target, rows, self.written)?;
            (self.bytes, self.written) = (0, true);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use docaxis_protocol::Digest;
    use docaxis_protocol::evidence::PartDigest;
    use docaxis_protocol::space::SpaceConfig;

    use super::super::apply::{Placed, apply};
    use super::super::index::{FileIndex, MemoryIndex};
    use super::super::keys::{Area, Location};
    use super::super::outline::Outline;
    use super::super::record::{NoticeV1, Prepared, PrunedV1, RecordV1};
    use super::super::view::{Staged, View};
    use super::*;
    use crate::disk::sim::SimDisk;
    use crate::store::claims::{body_of, handover, letter, rejection};
    use crate::store::{Acceptance, Body};

    const LARGE: u64 = 5 << 20;

    struct Log(Vec<(Outline, u64, Location)>, u64);

    impl Log {
        fn add(&mut self, prepared: Prepared, segment: u64) -> u64 {
            let leaf = self.1;
            self.1 += prepared.entries.len() as u64;
            let at = Location { area: Area::Journal, segment, offset: 4096 * self.0.len() as u64 };
            self.0.push((Outline::of(&prepared), leaf, at));
            leaf
        }
    }

    /// Dispatches under ids that come again, with small and large bodies that some share; handed over, pruned long after, and
    /// what lies between them.
    fn log() -> Log {
        let mut log = Log(vec![], 0);
        let mut finished = Vec::new();
        for n in 0..200 {
            let segment = n / 10 + 1;
            let body = body_of(n, 700);
            let large = Digest([(n % 4) as u8; 32]);
            let parts = vec![PartDigest { sha256: body.sha256, size: 700 }, PartDigest { sha256: large, size: LARGE }];
            let sent = letter(n % 60, &["H37.DN.001", "A53.01"]);
            let sent = Acceptance { bodies: vec![body.clone()], parts, ..sent };
            let seq = log.add(Prepared::accepted(sent.clone()).unwrap(), segment);
            if n % 4 == 0 {
                log.add(Prepared::rejected(rejection(n % 28)).unwrap(), segment);
                let notice = NoticeV1 { name: format!("agency/{}", n % 5), bytes: vec![1] };
                log.add(Prepared::new(RecordV1::Notices(vec![notice]), vec![]).unwrap(), segment);
            }
            let bodies =
                |from: Option<u64>| Prepared::bodies(vec![(seq, from, Vec::<Body>::from([body.clone()]))]).unwrap();
            if n % 6 < 2 {
                log.add(bodies((n % 6 == 0).then_some(segment)), segment + 1);
            }
            for code in ["H37.DN.001", "A53.01"].into_iter().take((n % 3) as usize) {
                log.add(Prepared::event(handover(seq, code, &sent.evidence)).unwrap(), segment);
            }
            if n % 3 == 2 {
                let time = handover(seq, "A53.01", &sent.evidence).time;
                finished.push((seq, segment, large, time.unix_ms()));
            }
            if n % 15 == 14 && finished.len() > 20 {
                let pruned = finished.drain(..5).map(|(seq, segment, large, finished_ms)| PrunedV1 {
                    seq,
                    sender: sent.sender.clone(),
                    finished_ms,
                    parts: vec![large.0],
                    freed: Some((segment, 700)),
                });
                log.add(Prepared::new(RecordV1::Pruned(pruned.collect()), vec![]).unwrap(), segment);
            }
        }
        log
    }

    #[test]
    fn rows_are_those_of_a_store_that_serves_however_little_is_kept_in_memory() {
        let Log(records, _) = log();
        let served = Arc::new(MemoryIndex::default());
        let view = View::new(served.clone(), usize::MAX / 4);
        let mut expected = Totals::default();
        for (outline, leaf, at) in &records {
            let mut staged = Staged::new(&view);
            apply(&Placed { outline, leaf: *leaf, at: *at, again: false }, &mut staged, &mut expected).unwrap();
            served.apply(&staged.changes).unwrap();
        }
        let mut rows = served.rows();
        rows.insert(keys::totals(), row(&expected).unwrap());

        let space = Space::open(Arc::new(SimDisk::new()), Path::new("data"), SpaceConfig::default()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let tiny = Bounds { pages: 3, bytes: 2_000, ids: 7 };
        let small = Bounds { pages: 20, bytes: 30_000, ids: 100 };
        for (number, bounds) in [tiny, small, Bounds::default()].into_iter().enumerate() {
            let files = FileIndex::open(&folder.path().join(number.to_string()), 8 << 20).unwrap();
            let memory = MemoryIndex::default();
            for index in [&files as &dyn Index, &memory] {
                let mut bulk = Bulk::new(Target { index, space: &space }, bounds);
                let mut totals = Totals::default();
                for (outline, leaf, at) in &records {
                    apply(&Placed { outline, leaf: *leaf, at: *at, again: false }, &mut bulk, &mut totals).unwrap();
                    bulk.agree(&totals).unwrap();
                }
                bulk.finish(&totals).unwrap();
                assert_eq!(totals, expected);
                for (key, expected) in &rows {
                    assert_eq!(index.get(key).unwrap().as_ref(), Some(expected), "{bounds:?}: {}", key.escape_ascii());
                }
                // None is left that should have gone.
                for table in (b'a'..=b'z').filter(|table| *table != b'i') {
                    let here = rows.keys().filter(|key| key[0] == table).count();
                    assert_eq!(index.scan(&[table], &[table + 1], usize::MAX).unwrap().len(), here, "{bounds:?}");
                }
            }
        }
    }
}
