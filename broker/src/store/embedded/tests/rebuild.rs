//! A rebuild of the index: what it leaves when it is broken off, what it holds in memory, and what it says of how far it is.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::super::bulk::{BATCH_ROWS, Bounds, Target, bytes_in_memory};
use super::super::index::{Changes, Row};
use super::super::keys::row;
use super::super::rebuild::{READ_AHEAD, READ_AT_ONCE_BYTES};
use super::super::rows::ROWS_AT_ONCE;
use super::super::view::Lookup as _;
use super::super::*;
use super::support::*;
use crate::disk::sim::{Cut, SimDisk};
use crate::store::Seq;
use crate::store::claims::{agency, handover, letter, signed, wait};

const REFUSED: usize = 1_000;
/// So little that ids are looked for after every acceptance, and rows are read back.
const LITTLE: Bounds = Bounds { pages: 4, bytes: 64 << 10, ids: 1 };

/// An index in memory that keeps every batch with the number of records applied before, and calls `look` before each read.
struct Watched<F> {
    rows: MemoryIndex,
    batches: Mutex<Vec<(u64, Changes)>>,
    progress: Arc<Progress>,
    look: F,
}

impl<F> Watched<F> {
    fn new(config: &EmbeddedConfig, look: F) -> Self {
        Self { rows: MemoryIndex::default(), batches: Mutex::default(), progress: config.progress.clone(), look }
    }
}

impl<F: Fn() + Send + Sync> Index for Watched<F> {
    fn apply(&self, changes: &Changes) -> Result<(), StoreError> {
        self.batches.lock().unwrap().push((self.progress.reached().records, changes.clone()));
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
        (self.look)();
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

/// The files of a store that nobody has open, and its disk.
fn files(disk: &SimDisk, config: &EmbeddedConfig) -> (EvidenceFiles, Segments, Arc<Space>) {
    let sim = disk;
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    let dir = Path::new(DATA);
    let space = Space::open(disk.clone(), dir, config.space).unwrap();
    let evidence = EvidenceFiles::open(disk.clone(), &dir.join("evidence"), config.evidence_file_bytes).unwrap();
    let segments = Segments::open(disk, &dir.join("journal"), config).unwrap();
    // Opening the files has read them as well.
    sim.forget_reads();
    (evidence, segments, space)
}

/// Builds the index of what lies on the disk, without a store around it; returns it with its batches.
fn build(disk: &SimDisk, config: &EmbeddedConfig, look: impl Fn() + Send + Sync) -> (MemoryIndex, Vec<(u64, Changes)>) {
    let (evidence, segments, space) = files(disk, config);
    let index = Watched::new(config, look);
    let recovery = Recovery { segments: &segments, evidence: &evidence, progress: &config.progress };
    recovery.rebuild(Target { index: &index, space: &space }, config.rebuild).unwrap();
    (index.rows, index.batches.into_inner().unwrap())
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
    const SEGMENT: u64 = 512 << 10;
    let disk = SimDisk::new();
    let store = EmbeddedStore::open(Path::new(DATA), quiet(&Arc::default(), SEGMENT), Arc::new(disk.clone())).unwrap();
    // Circulars that a thousand refuse have many rows; letters have bodies. Both stand in evidence and in the journal.
    for part in [0, 1_000] {
        accept(&store, part..part + 250);
        (900..906).for_each(|n| drop(wait(store.accept(circular(part + n))).unwrap()));
        if part == 0 {
            settled(&store);
            assert!(store.journal().settled > 0);
        }
    }
    // Not closed: the process dies with everything committed.
    let died = disk.after(Cut::Keep);
    drop(store);
    let little = EmbeddedConfig { rebuild: LITTLE, ..quiet(&Arc::default(), SEGMENT) };
    let (whole, batches) = build(&died.after(Cut::Keep), &little, || {});
    assert!(batches.len() >= 100, "only {} batches", batches.len());
    let seen = |index: Arc<MemoryIndex>| {
        let store = EmbeddedStore::open(
            Path::new(DATA),
            quiet(&index, SEGMENT),
            // Of this boot: the index is believed as it is.
            Arc::new(died.after(Cut::Keep)),
        )
        .unwrap();
        (rows(&store), store.counts())
    };
    let expected = seen(Arc::default());
    assert_eq!(expected.0, whole.rows().into_iter().collect::<Vec<_>>(), "the same with and without a store around it");
    // The last batch makes it whole; and some of those before.
    let step = batches.len() / 8;
    for broken_off in (1..=batches.len()).filter(|after| after % step == 1 || after + 2 >= batches.len()) {
        let index = Arc::new(MemoryIndex::default());
        batches[..broken_off].iter().for_each(|(_, batch)| index.apply(batch).unwrap());
        let found = seen(index);
        assert!(found == expected, "broken off after {broken_off} of {} batches", batches.len());
    }
}

#[test]
fn what_is_read_ahead_is_bounded_by_bytes_however_long_the_records_are() {
    const RECORD_BYTES: usize = 160 << 10;
    let (disk, config) = (SimDisk::new(), quiet(&Arc::default(), 2 << 20));
    let store = EmbeddedStore::open(Path::new(DATA), config.clone(), Arc::new(disk.clone())).unwrap();
    for n in 0..250 {
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
    let config = EmbeddedConfig { progress: Arc::default(), rebuild: LITTLE, ..config };
    let most = Arc::new(Mutex::new((0, 0)));
    let (seen, reading, progress) = (most.clone(), disk.clone(), config.progress.clone());
    build(&disk, &config, move || {
        let mut seen = seen.lock().unwrap();
        let ahead = reading.furthest_read(&file).saturating_sub(progress.reached().bytes_read);
        *seen = (seen.0.max(ahead), seen.1 + 1);
    });
    let (ahead, looks) = *most.lock().unwrap();
    assert!(looks >= 250, "{looks} looks");
    assert!((1..=bound).contains(&ahead), "{ahead} bytes were read ahead; the bound is {bound}");
}

/// A disk with circulars: all but the last segment's in evidence, or all in the journal alone.
fn circulars(in_evidence: bool) -> (SimDisk, EmbeddedConfig) {
    let segment_bytes = if in_evidence { 512 << 10 } else { 16 << 20 };
    let (disk, config) = (SimDisk::new(), quiet(&Arc::default(), segment_bytes));
    let store = EmbeddedStore::open(Path::new(DATA), config.clone(), Arc::new(disk.clone())).unwrap();
    (0..24).for_each(|n| drop(wait(store.accept(circular(n))).unwrap()));
    settled(&store);
    assert_eq!(store.journal().settled > 0, in_evidence);
    wait(store.close()).unwrap();
    (disk, EmbeddedConfig { progress: Arc::default(), ..config })
}

#[test]
fn what_a_rebuild_keeps_in_memory_is_bounded_however_many_rows_a_record_has() {
    for in_evidence in [true, false] {
        let (disk, config) = circulars(in_evidence);
        let (whole, batches) = build(&disk, &config, || {});
        assert!(whole.rows().len() > 24 * 2 * REFUSED, "{} rows", whole.rows().len());
        let most = batches.iter().map(|(_, batch)| batch.len()).max().unwrap();
        assert_eq!(most, BATCH_ROWS, "all rows are put at the end, many at once");

        let config = EmbeddedConfig { progress: Arc::default(), rebuild: LITTLE, ..config };
        let (built, batches) = build(&disk, &config, || {});
        assert!(built.rows() == whole.rows(), "in evidence: {in_evidence}");
        // What was put between two records was kept together. Leaves and ids have bounds of their own.
        let mut kept = std::collections::BTreeMap::<u64, usize>::new();
        for (records, batch) in &batches {
            let others = batch.iter().filter(|(key, _)| !matches!(key[0], b'l' | b'i'));
            let bytes = others.map(|(key, row)| bytes_in_memory(key, row.as_ref()));
            *kept.entry(*records).or_default() += bytes.sum::<usize>();
        }
        // The last record goes over the bound; it has a delivery for each who refused it.
        let bound = LITTLE.bytes + REFUSED * bytes_in_memory(&[0; 40], Some(&vec![0; 60]));
        let most = kept.values().copied().max().unwrap();
        assert!((LITTLE.bytes..=bound).contains(&most), "{most} bytes were kept; the bound is {bound}");
    }
}

#[test]
fn what_a_start_puts_into_an_index_that_lacks_it_is_bounded_however_many_rows_a_record_has() {
    /// Rows that wait in memory before the index's writer takes them.
    const WAITING_ROWS: usize = 50;
    let (disk, config) = circulars(false);
    let (whole, _) = build(&disk, &config, || {});
    let (evidence, segments, space) = files(&disk, &config);
    let config = EmbeddedConfig { index_batch_rows: WAITING_ROWS, ..config };
    let index = Arc::new(Watched::new(&config, || {}));
    let nothing = Totals { applied: segments.all()[0].start(), ..Totals::default() };
    index.rows.apply(&Changes::from([(keys::totals(), Some(row(&nothing).unwrap()))])).unwrap();
    let (view, writer) = start_view(index.clone(), &config, &space).unwrap();
    let recovery = Recovery { segments: &segments, evidence: &evidence, progress: &config.progress };
    assert!(recovery.catch_up(&view).unwrap().is_some());
    view.flush().unwrap();
    view.stop();
    assert!(writer.join());
    assert!(index.rows.rows() == whole.rows(), "rows differ from those of a rebuild");
    // A merge may meet what little the writer has not taken; the last record of it has a leaf and a delivery for each.
    let bound = ROWS_AT_ONCE + 2 * WAITING_ROWS + 2 * REFUSED + 10;
    let most = index.batches.lock().unwrap().iter().map(|(_, batch)| batch.len()).max().unwrap();
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
    let config = EmbeddedConfig { progress: Arc::default(), rebuild: LITTLE, ..config };
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
    // Nor does it stand still at evidence's end while bodies are looked for in the journal, which takes looks at leaves.
    assert!(steps.iter().any(|step| step.bytes_read > evidence));
    assert!(steps.iter().all(|step| step.bytes_read != evidence), "{evidence} bytes of evidence");
    let end = config.progress.reached();
    // 200 letters, 40 of them handed over, and what the settler has committed beside them.
    assert!(steps[0].records <= 1 && (240..400).contains(&end.records), "{:?}, {end:?}", steps[0]);
    // The last segment is the only one that need not be read to its end.
    assert!((evidence + journal - (64 << 10)..=evidence + journal).contains(&end.bytes_read), "{end:?}");
    assert_eq!(end.percent, end.bytes_read * 100 / end.bytes_total);
    // What is done when everything was read is said by its own words.
    assert_eq!(end.doing, Doing::Writing);
    // A third of them, with their bodies, is a third of the way, give or take what stands in files' heads.
    let third = steps.iter().find(|step| step.records >= 80).unwrap();
    let share = evidence * third.records / 240;
    assert!(third.records < 160, "{third:?}");
    assert!((share * 3 / 4..share * 3 / 2).contains(&third.bytes_read), "{third:?} of {evidence} bytes of evidence");
}
