//! A rebuild of the index: what it leaves when it is broken off, what it holds in memory, and what it says of how far it is.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::index::{Changes, Row};
use super::super::recover::{READ_AHEAD, READ_AT_ONCE_BYTES, ROWS_AT_ONCE};
use super::super::view::Lookup as _;
use super::super::*;
use super::support::*;
use crate::disk::sim::{Cut, SimDisk};
use crate::store::Seq;
use crate::store::claims::{agency, handover, letter, signed, wait};

/// Rows that wait in memory before the index's writer takes them, in these tests.
const BATCH_ROWS: usize = 50;
const REFUSED: usize = 1_000;

/// An index in memory that keeps every batch, and calls `look` before each read.
struct Watched<F> {
    rows: MemoryIndex,
    batches: Mutex<Vec<Changes>>,
    look: F,
}

impl<F: Fn() + Send + Sync> Index for Watched<F> {
    fn apply(&self, changes: &Changes) -> Result<(), StoreError> {
        self.batches.lock().unwrap().push(changes.clone());
        self.rows.apply(changes)
    }
    fn reserve(&self, rows: usize) -> Result<(), StoreError> {
        self.rows.reserve(rows)
    }
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        (self.look)();
        self.rows.get(key)
    }
    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        self.rows.scan(from, to, limit)
    }
    fn flush(&self) -> Result<(), StoreError> {
        self.rows.flush()
    }
    fn clear(&self) -> Result<(), StoreError> {
        self.rows.clear()
    }
}

/// Neither settles nor marks anything while it stands still.
fn quiet(index: &Arc<MemoryIndex>, segment_bytes: u64) -> EmbeddedConfig {
    EmbeddedConfig { segment_bytes, idle: Duration::from_secs(7200), evidence_file_bytes: 1 << 30, ..tiny(index) }
}

/// Builds the index of what lies on the disk, without a store around it; returns it with its batches.
fn build<F: Fn() + Send + Sync + 'static>(
    disk: &SimDisk,
    config: &EmbeddedConfig,
    look: F,
) -> (MemoryIndex, Vec<Changes>) {
    let sim = disk;
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let dir = Path::new(DATA);
    let space = Space::open(disk.clone(), dir, config.space).unwrap();
    let evidence = EvidenceFiles::open(disk.clone(), &dir.join("evidence"), config.evidence_file_bytes).unwrap();
    let segments = Segments::open(disk.clone(), &dir.join("journal"), config).unwrap();
    let index = Arc::new(Watched { rows: MemoryIndex::default(), batches: Mutex::default(), look });
    let config = EmbeddedConfig { index_batch_rows: BATCH_ROWS, ..config.clone() };
    // Opening the files has read them as well.
    sim.forget_reads();
    let (view, writer) = start_view(index.clone(), &config, &space).unwrap();
    Recovery { segments: &segments, evidence: &evidence, progress: &config.progress }.rebuild(&view).unwrap();
    view.flush().unwrap();
    view.stop();
    writer.join().unwrap();
    drop(view);
    let Watched { rows, batches, .. } = Arc::into_inner(index).unwrap();
    (rows, batches.into_inner().unwrap())
}

/// Letters with a body each, every fifth handed over; many in flight.
fn accept(store: &EmbeddedStore, letters: std::ops::Range<u64>) {
    for lot in letters.collect::<Vec<_>>().chunks(64) {
        let sent: Vec<_> = lot.iter().map(|n| letter(*n, &["H37.DN.001", "A53.01"])).collect();
        let answers: Vec<_> = sent.iter().map(|letter| store.accept(letter.clone())).collect();
        for (n, (answer, sent)) in lot.iter().zip(answers.into_iter().zip(&sent)) {
            let Accepted::New(Seq(seq)) = wait(answer).unwrap() else { panic!("letter {n} is new") };
            if n % 5 == 0 {
                wait(store.record(handover(seq, "H37.DN.001", &sent.evidence))).unwrap();
            }
        }
    }
}

/// A letter that one recipient gets and many others refuse at once, which is a leaf and a delivery for each.
fn circular(n: u64) -> Acceptance {
    let mut sent = letter(n, &["H37.DN.001"]);
    let refused = (0..REFUSED).map(|to| (agency(&format!("A{to}.01")), Some(signed(format!("{n} failed at {to}")))));
    sent.recipients.extend(refused);
    sent
}

/// Until the settler has done what there is to do.
fn settled(store: &EmbeddedStore) {
    for _ in 0..20_000 {
        let place = store.journal();
        if place.settled + 1 >= place.segment {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("the settler does not come to its end: {:?}", store.journal());
}

fn rows(store: &EmbeddedStore) -> Vec<Row> {
    store.shared.view.scan(&[0], &[255], usize::MAX).unwrap()
}

#[test]
fn a_rebuild_that_was_broken_off_after_any_batch_is_begun_anew_and_leads_to_the_same_state() {
    let disk = SimDisk::new();
    let store = EmbeddedStore::open(Path::new(DATA), quiet(&Arc::default(), 1 << 20), Arc::new(disk.clone())).unwrap();
    // Circulars that a thousand refuse have many rows; letters have bodies. Both stand in evidence and in the journal.
    for part in [0, 1_000] {
        accept(&store, part..part + 250);
        (900..909).for_each(|n| drop(wait(store.accept(circular(part + n))).unwrap()));
        if part == 0 {
            settled(&store);
        }
    }
    // Not closed: the process dies with everything committed.
    let died = disk.after(Cut::Keep);
    drop(store);
    let (whole, batches) = build(&died.after(Cut::Keep), &quiet(&Arc::default(), 1 << 20), || {});
    assert!(batches.len() >= 3, "only {} batches", batches.len());
    let seen = |index: Arc<MemoryIndex>| {
        let store = EmbeddedStore::open(
            Path::new(DATA),
            quiet(&index, 1 << 20),
            // Of this boot: the index is believed as it is.
            Arc::new(died.after(Cut::Keep)),
        )
        .unwrap();
        (rows(&store), store.counts())
    };
    let expected = seen(Arc::default());
    assert_eq!(expected.0, whole.rows().into_iter().collect::<Vec<_>>(), "the same with and without a store around it");
    for broken_off in 1..=batches.len() {
        let index = Arc::new(MemoryIndex::default());
        batches[..broken_off].iter().for_each(|batch| index.apply(batch).unwrap());
        let found = seen(index);
        assert!(found == expected, "broken off after {broken_off} of {} batches", batches.len());
    }
}

#[test]
fn what_is_read_ahead_is_bounded_by_bytes_however_long_the_records_are() {
    const RECORD_BYTES: usize = 160 << 10;
    let (disk, config) = (SimDisk::new(), quiet(&Arc::default(), 2 << 20));
    let store = EmbeddedStore::open(Path::new(DATA), config.clone(), Arc::new(disk.clone())).unwrap();
    for n in 0..150 {
        let mut long = letter(n, &["H37.DN.001"]);
        long.envelope.bytes = vec![b'x'; RECORD_BYTES];
        wait(store.accept(long)).unwrap();
    }
    settled(&store);
    wait(store.close()).unwrap();
    drop(store);
    let file = PathBuf::from(DATA).join("evidence").join(segments::file_name(1, "evidence"));
    let length = disk.read(&file).unwrap().len() as u64;
    // The lots that wait, the one that is being read, the one that is being applied; and what is read at once.
    let bound = ((READ_AHEAD + 2) * (READ_AT_ONCE_BYTES + 2 * RECORD_BYTES) + (1 << 20)) as u64;
    assert!(length > 3 * bound / 2, "{length} bytes of evidence do not show a bound of {bound}");
    let config = EmbeddedConfig { progress: Arc::default(), ..config };
    let most = Arc::new(Mutex::new((0, 0)));
    let (seen, reading, progress) = (most.clone(), disk.clone(), config.progress.clone());
    build(&disk, &config, move || {
        let mut seen = seen.lock().unwrap();
        let ahead = reading.furthest_read(&file).saturating_sub(progress.reached().bytes_read);
        *seen = (seen.0.max(ahead), seen.1 + 1);
    });
    let (ahead, looks) = *most.lock().unwrap();
    assert!(looks > 150, "{looks} looks");
    assert!((1..=bound).contains(&ahead), "{ahead} bytes were read ahead; the bound is {bound}");
}

#[test]
fn what_is_put_into_the_index_at_once_is_bounded_however_many_rows_a_record_has() {
    let (disk, config) = (SimDisk::new(), quiet(&Arc::default(), 2 << 20));
    let store = EmbeddedStore::open(Path::new(DATA), config.clone(), Arc::new(disk.clone())).unwrap();
    for n in 0..24 {
        wait(store.accept(circular(n))).unwrap();
        // Half of them stand in evidence, the others in the journal alone.
        if n == 12 {
            settled(&store);
        }
    }
    wait(store.close()).unwrap();
    drop(store);
    let (built, batches) = build(&disk, &config, || {});
    assert!(built.rows().len() > 24 * 2 * REFUSED, "{} rows", built.rows().len());
    // A merge may meet what little the writer has not taken; the last record of it has a leaf and a delivery for each.
    let bound = ROWS_AT_ONCE + 2 * BATCH_ROWS + 2 * REFUSED + 10;
    let most = batches.iter().map(Changes::len).max().unwrap();
    assert!(most <= bound, "{most} rows in one batch; the bound is {bound}");
}

#[test]
fn a_rebuild_says_how_many_records_and_how_much_of_the_files_are_behind_it() {
    let disk = SimDisk::new();
    let config = quiet(&Arc::default(), 64 << 10);
    let store = EmbeddedStore::open(Path::new(DATA), config.clone(), Arc::new(disk.clone())).unwrap();
    accept(&store, 0..200);
    settled(&store);
    wait(store.close()).unwrap();
    drop(store);
    let config = EmbeddedConfig { progress: Arc::default(), ..config };
    let steps = Arc::new(Mutex::new(Vec::new()));
    let (seen, progress) = (steps.clone(), config.progress.clone());
    build(&disk, &config, move || seen.lock().unwrap().push(progress.reached()));
    let size = |folder: &str, kind: &str| -> u64 {
        let folder = Path::new(DATA).join(folder);
        let names = disk.list(&folder).unwrap();
        names
            .iter()
            .filter(|name| name.ends_with(kind))
            .map(|name| disk.read(&folder.join(name)).unwrap().len() as u64)
            .sum()
    };
    let (evidence, journal) = (size("evidence", ".evidence"), size("journal", ".segment"));
    assert!(evidence > 0 && journal > 64 << 10);
    let steps = steps.lock().unwrap();
    for (before, after) in steps.iter().zip(&steps[1..]) {
        assert!(before.records <= after.records && before.bytes_read <= after.bytes_read, "{before:?} {after:?}");
    }
    assert!(steps.iter().all(|step| (step.doing, step.bytes_total) == (Doing::Rebuilding, evidence + journal)));
    let end = config.progress.reached();
    // 200 letters, 40 of them handed over, and what the settler has committed beside them.
    assert!(steps[0].bytes_read == 0 && (240..400).contains(&end.records), "{:?}, {end:?}", steps[0]);
    // The last segment is the only one that need not be read to its end.
    assert!((evidence + journal - (64 << 10)..=evidence + journal).contains(&end.bytes_read), "{end:?}");
    assert_eq!(end.percent, end.bytes_read * 100 / end.bytes_total);
    // A third of them, with their bodies, is a third of the way, give or take what stands in files' heads.
    let third = steps.iter().find(|step| step.records >= 80).unwrap();
    let share = evidence * third.records / 240;
    assert!(third.records < 160, "{third:?}");
    assert!((share * 3 / 4..share * 3 / 2).contains(&third.bytes_read), "{third:?} of {evidence} bytes of evidence");
}
