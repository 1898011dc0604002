//! A disk that fills: what is refused, what goes on, and what a restart and returning room do.

use std::sync::Arc;
use std::time::{Duration, Instant};

use docaxis_protocol::space::{Level, SpaceConfig};

use super::super::*;
use super::support::*;
use crate::disk::sim::{Cut, Failure, SimDisk};
use crate::store::claims::{agency, handover, letter, wait};
use crate::store::{DeliveryState, Seq};

const MIB: u64 = 1 << 20;
const HANG: Duration = Duration::from_secs(60);

/// As a broker has it, but tiny: three spares of which one is reserved, and a ballast.
fn config(index: &Arc<MemoryIndex>) -> EmbeddedConfig {
    EmbeddedConfig {
        spare_segments: 3,
        reserved_segments: 1,
        space: SpaceConfig::default(),
        look_every: Duration::from_millis(1),
        ..tiny(index)
    }
}

fn start(disk: &SimDisk, config: EmbeddedConfig) -> Arc<EmbeddedStore> {
    EmbeddedStore::open(Path::new(DATA), config, Arc::new(disk.clone())).unwrap()
}

/// A disk of 16 MiB and 1,024 files.
fn bounded() -> SimDisk {
    let disk = SimDisk::new();
    disk.bound(16 * MIB, 1024);
    disk
}

fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let since = Instant::now();
    while !reached() {
        assert!(since.elapsed() < HANG, "never: {what}");
        std::thread::yield_now();
    }
}

/// Asks again for as long as the answer is that the disk is full.
fn patiently<T>(what: &str, mut ask: impl FnMut() -> Result<T, StoreError>) -> T {
    let since = Instant::now();
    loop {
        match ask() {
            Ok(done) => return done,
            Err(StoreError::DiskFull(why)) => assert!(since.elapsed() < HANG, "{what} never: {why}"),
            Err(other) => panic!("{what}: {other}"),
        }
        std::thread::yield_now();
    }
}

struct Sent(u64, Acceptance);

fn accept(store: &EmbeddedStore, n: u64) -> Result<Sent, StoreError> {
    let sent = letter(n, &["H37.DN.001", "A53.01"]);
    let Accepted::New(Seq(seq)) = wait(store.accept(sent.clone()))? else { panic!("letter {n} is new") };
    Ok(Sent(seq, sent))
}

fn hand_over(store: &EmbeddedStore, Sent(seq, sent): &Sent, code: &str) -> Result<Recorded, StoreError> {
    wait(store.record(handover(*seq, code, &sent.evidence)))
}

fn states(store: &EmbeddedStore, Sent(seq, _): &Sent) -> Vec<DeliveryState> {
    store.deliveries(Seq(*seq)).unwrap().iter().map(|delivery| delivery.state).collect()
}

#[test]
fn at_95_percent_new_work_is_refused_and_outcomes_notices_and_retries_are_taken() {
    let (disk, index) = (bounded(), Arc::default());
    let store = start(&disk, config(&index));
    let sent = accept(&store, 1).unwrap();
    disk.leave_free(Some(16 * MIB / 20), None);
    until("draining", || store.space().level() == Level::DrainOnly);
    assert!(matches!(accept(&store, 2), Err(StoreError::DiskFull(_))));
    let rejected = wait(store.reject(crate::store::claims::rejection(3)));
    assert!(matches!(rejected, Err(StoreError::DiskFull(_))), "{rejected:?}");
    let again = wait(store.accept(sent.1.clone())).unwrap();
    assert_eq!(again, Accepted::Already(Seq(sent.0), sent.1.evidence.clone()));
    assert!(matches!(hand_over(&store, &sent, "H37.DN.001").unwrap(), Recorded::New(_)));
    wait(store.put_notices(vec![("crl/nodes".into(), vec![1])])).unwrap();
    disk.leave_free(None, None);
    until("open", || store.space().level() == Level::Open);
    accept(&store, 2).unwrap();
}

#[test]
fn at_100_percent_deliveries_drain_a_restart_works_and_room_that_returns_is_used() {
    for (bytes, inodes) in [(Some(0), None), (None, Some(0))] {
        let context = format!("free bytes {bytes:?}, inodes {inodes:?}");
        let (disk, index) = (bounded(), Arc::new(MemoryIndex::default()));
        let store = start(&disk, config(&index));
        let all: Vec<Sent> = (0..60).map(|n| accept(&store, n).unwrap()).collect();
        disk.leave_free(bytes, inodes);
        until("full", || store.space().level() == Level::Full);
        let (before, after) = all.split_at(30);
        for sent in before {
            for code in ["H37.DN.001", "A53.01"] {
                patiently("a handover on a full disk", || hand_over(&store, sent, code));
            }
        }
        assert!(matches!(accept(&store, 100), Err(StoreError::DiskFull(_))), "{context}");
        assert!(store.poisoned().is_none(), "{context}: {:?}", store.poisoned());
        drop(store);
        for cut in [Cut::Keep, Cut::Drop] {
            let disk = disk.after(cut);
            let store = start(&disk, config(&copy(&index)));
            assert!(store.space().level() >= Level::DrainOnly, "{context}, {cut:?}");
            for sent in before {
                assert_eq!(states(&store, sent), [DeliveryState::HandedOver; 2], "{context}, {cut:?}");
            }
            for sent in after {
                patiently("a handover after the restart", || hand_over(&store, sent, "A53.01"));
            }
            disk.leave_free(None, None);
            until("room again", || store.space().level() == Level::Open);
            accept(&store, 200).unwrap_or_else(|e| panic!("{context}, {cut:?}: {e}"));
            for sent in after {
                assert_eq!(states(&store, sent), [DeliveryState::HandedOver, DeliveryState::Waiting], "{context}");
            }
            wait(store.close()).unwrap();
        }
    }
}

#[test]
fn new_work_leaves_a_spare_segment_to_what_drains() {
    let (disk, index) = (bounded(), Arc::default());
    let config = EmbeddedConfig { idle: HANG * 60, ..config(&index) };
    let config = EmbeddedConfig { space: SpaceConfig { ballast_mib: 0, ..config.space }, ..config };
    let store = start(&disk, config);
    // The settler writes spares when it has something to do.
    let mut all: Vec<Sent> = (0..20).map(|n| accept(&store, n).unwrap()).collect();
    until("spares", || store.journal_bytes() >= 4 * (64 << 10));
    // Nobody else knows that the disk is full: only the journal itself sees what is left of it.
    disk.leave_free(Some(0), None);
    disk.hide_bound();
    let full = loop {
        match accept(&store, all.len() as u64) {
            Ok(sent) => all.push(sent),
            Err(error) => break error,
        }
    };
    assert!(matches!(full, StoreError::DiskFull(_)), "{full}");
    // Of the segment in which the last submission found no room, nothing is left for these.
    for sent in &all[..10] {
        assert!(matches!(hand_over(&store, sent, "A53.01").unwrap(), Recorded::New(_)));
    }
    assert!(store.poisoned().is_none());
}

#[test]
fn a_settler_that_is_behind_makes_new_work_wait_and_not_what_drains() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = start(&disk, EmbeddedConfig { max_unsettled_segments: 2, ..tiny(&index) });
    let first = accept(&store, 0).unwrap();
    let (go_on, gate) = std::sync::mpsc::channel::<()>();
    let shared = store.shared.clone();
    // Whoever copies holds the evidence: the settler cannot begin.
    let holder = std::thread::spawn(move || {
        let ended = std::iter::once_with(|| {
            let _told_or_gone = gate.recv();
            Err(StoreError::Closed)
        });
        shared.evidence.append(u64::MAX, ended)
    });
    let mut n = 0;
    let behind = loop {
        n += 1;
        match accept(&store, n) {
            Ok(_) => assert!(n < 10_000, "the journal has no bound"),
            Err(error) => break error,
        }
    };
    assert!(matches!(behind, StoreError::Behind(_)), "{behind}");
    assert_eq!(behind.reason(), docaxis_protocol::ReasonCode::Busy);
    assert!(store.journal_bytes() <= 6 * (64 << 10), "{} bytes", store.journal_bytes());
    assert!(matches!(hand_over(&store, &first, "A53.01").unwrap(), Recorded::New(_)));
    go_on.send(()).unwrap();
    assert!(matches!(holder.join().unwrap(), Err(StoreError::Closed)));
    until("new work again", || accept(&store, 20_000).is_ok());
}

#[test]
fn a_disk_that_fills_at_any_operation_poisons_nothing_and_loses_nothing() {
    let total = {
        let (disk, index) = (SimDisk::new(), Arc::default());
        let store = open(&disk, &index).unwrap();
        Acknowledged::default().work(&store, 0, 12).unwrap();
        wait(store.close()).unwrap();
        disk.operations()
    };
    for k in 1..=total {
        let context = format!("full from operation {k} of {total}");
        let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
        disk.fail_at(k, Failure::Full);
        let mut acknowledged = Acknowledged::default();
        let store = match open(&disk, &index) {
            Ok(store) => store,
            Err(error) => {
                assert!(matches!(error, StoreError::DiskFull(_)), "{context}: {error}");
                disk.heal();
                open(&disk, &index).unwrap_or_else(|e| panic!("{context}: {e}"))
            }
        };
        if let Err(error) = acknowledged.work(&store, 0, 12) {
            assert!(matches!(error, StoreError::DiskFull(_)), "{context}: {error}");
        }
        disk.heal();
        acknowledged.work(&store, 100, 104).unwrap_or_else(|e| panic!("{context}: {e}"));
        wait(store.close()).unwrap_or_else(|e| panic!("{context}: {e}"));
        acknowledged.check(&store, &context);
        let again = open(&disk.after(Cut::Drop), &Arc::default()).unwrap_or_else(|e| panic!("{context}: {e}"));
        acknowledged.check(&again, &context);
    }
}

#[test]
fn a_journal_write_that_finds_no_room_in_the_middle_is_final() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = start(&disk, EmbeddedConfig { idle: HANG * 60, ..tiny(&index) });
    let sent = accept(&store, 1).unwrap();
    disk.fail_at(1, Failure::FullOnce);
    assert!(matches!(accept(&store, 2), Err(StoreError::Poisoned(_))));
    assert!(matches!(hand_over(&store, &sent, "A53.01"), Err(StoreError::Poisoned(_))));
    drop(store);
    let again = open(&disk.after(Cut::Keep), &copy(&index)).unwrap();
    assert_eq!(again.lookup(&agency("000.00.00.G22"), sent.1.id).unwrap(), Some(Seq(sent.0)));
    accept(&again, 2).unwrap();
}

#[test]
fn the_smallest_segment_that_may_be_configured_holds_the_largest_submission() {
    use docaxis_protocol::envelope::{Certificate, Chain};
    use docaxis_protocol::limits::*;
    let mut largest = letter(1, &[]);
    largest.bodies = (0..MAX_PARTS as u64).map(|n| crate::store::claims::body_of(n, MAX_INLINE_BODY_BYTES)).collect();
    let size = MAX_INLINE_BODY_BYTES as u64;
    largest.parts = largest.bodies.iter().map(|body| PartDigest { sha256: body.sha256, size }).collect();
    // An offer carries envelope and receipt in one frame.
    largest.envelope.bytes = vec![b'x'; MAX_ENVELOPE_BYTES];
    largest.evidence.bytes = vec![b'x'; MAX_LARGE_FRAME_BYTES - MAX_ENVELOPE_BYTES];
    largest.envelope.chain = Chain(vec![Certificate(vec![0; MAX_CERTIFICATE_BYTES]); MAX_CHAIN_CERTIFICATES]);
    largest.recipients = (0..MAX_RECIPIENTS).map(|n| (agency(&format!("H37.{n:029}")), None)).collect();
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = start(&disk, EmbeddedConfig { segment_bytes: MIN_SEGMENT_BYTES, ..tiny(&index) });
    assert_eq!(wait(store.accept(largest)).unwrap(), Accepted::New(Seq(0)));
}
