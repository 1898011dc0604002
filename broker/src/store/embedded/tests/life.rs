//! A store over its life: settled segments, freed and used again, and an index that was deleted.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::super::*;
use super::support::*;
use crate::disk::sim::{Cut, SimDisk};
use crate::store::claims::{agency, at, body_of, handover, letter, queue, wait};
use crate::store::{Seq, Waiting};

#[test]
fn deleting_the_index_changes_nothing_that_a_user_can_see() {
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let store = open(&disk, &index).unwrap();
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 0, 60).unwrap();
    wait(store.close()).unwrap();
    drop(store);
    let kept = open(&disk.after(Cut::Keep), &copy(&index)).unwrap();
    acknowledged.check(&kept, "with its index");
    wait(kept.close()).unwrap();
    let rebuilt = open(&disk.after(Cut::Drop), &Arc::default()).unwrap();
    acknowledged.check(&rebuilt, "without its index");
    wait(rebuilt.close()).unwrap();
    for (left, right) in visible(&kept, 60).iter().zip(visible(&rebuilt, 60)) {
        assert_eq!(*left, right);
    }
}

#[test]
fn ids_whose_time_is_over_are_forgotten_and_found_all_the_same() {
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    let store = open(&disk, &index).unwrap();
    // Letters of forty days, of which each lives for an hour.
    let old = |n: u64| {
        let accepted = at(i64::try_from(n).unwrap() * 3_600_000);
        Acceptance {
            accepted,
            expires: accepted.plus(std::time::Duration::from_secs(3_600)),
            ..letter(n, &["H37.DN.001"])
        }
    };
    for n in 0..960 {
        assert_eq!(wait(store.accept(old(n))).unwrap(), Accepted::New(Seq(n)));
    }
    for n in [0, 400, 900, 940, 959] {
        let remembered = n >= 934;
        assert_eq!(store.find(old(n).id).unwrap(), [Seq(n)], "letter {n}");
        assert_eq!(store.lookup(&old(n).sender, old(n).id).unwrap(), remembered.then_some(Seq(n)), "letter {n}");
    }
    // The id is free again, and both dispatches are found.
    assert_eq!(wait(store.accept(Acceptance { id: old(3).id, ..old(960) })).unwrap(), Accepted::New(Seq(960)));
    assert_eq!(store.find(old(3).id).unwrap(), [Seq(3), Seq(960)]);
    wait(store.close()).unwrap();
    drop(store);
    let rebuilt = Arc::new(MemoryIndex::default());
    let store = open(&disk.after(Cut::Drop), &rebuilt).unwrap();
    assert_eq!(store.find(old(3).id).unwrap(), [Seq(3), Seq(960)]);
    assert_eq!(store.lookup(&old(3).sender, old(3).id).unwrap(), Some(Seq(960)), "a rebuilt index remembers the same");
    assert_eq!(store.lookup(&old(4).sender, old(4).id).unwrap(), None);
}

#[test]
fn settled_segments_are_freed_and_the_journal_stays_small_while_one_recipient_is_away() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 0, 300).unwrap();
    let live: u64 = queue(store.as_ref(), &agency("A53.01")).len() as u64 * 6_000;
    // Twice the live bodies, and the segment in use, one being emptied, one spare. The settler needs its time.
    let bound = 2 * live + (256 << 10);
    let mut looks = 0;
    while store.journal_bytes() > bound {
        looks += 1;
        assert!(looks < 20_000, "{} bytes of journal for {live} live bytes", store.journal_bytes());
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    wait(store.close()).unwrap();
    acknowledged.check(&store, "after 300 letters");
}

#[test]
fn two_processes_never_open_the_same_folder() {
    let disk = SimDisk::new();
    let first = open(&disk, &Arc::default()).unwrap();
    let second = open(&disk, &Arc::default()).err().unwrap();
    assert!(second.to_string().contains("lock"), "{second}");
    wait(first.close()).unwrap();
    assert!(open(&disk, &Arc::default()).is_ok());
}

#[test]
fn a_full_disk_refuses_and_goes_on_when_there_is_room() {
    use crate::disk::sim::Failure;
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    disk.fail_at(1, Failure::Full);
    let mut acknowledged = Acknowledged::default();
    let full = acknowledged.work(&store, 0, 300).unwrap_err();
    assert!(matches!(full, StoreError::DiskFull(_)), "{full}");
    disk.heal();
    acknowledged.work(&store, 400, 410).unwrap();
    acknowledged.check(&store, "after the disk had room again");
}

#[test]
fn a_submission_that_no_segment_holds_is_refused_and_others_go_on() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    let mut huge = letter(1, &["H37.DN.001"]);
    huge.envelope.bytes = vec![b'x'; 70 << 10];
    assert!(wait(store.accept(huge)).is_err());
    let sent = letter(2, &["H37.DN.001"]);
    assert_eq!(wait(store.accept(sent.clone())).unwrap(), Accepted::New(Seq(0)));
    let recipient = agency("H37.DN.001");
    let expected = Waiting { recipient: recipient.clone(), priority: 0, seq: Seq(0) };
    assert_eq!(queue(store.as_ref(), &recipient), [expected]);
}

/// Bytes of all files in a folder and the folders in it.
fn bytes_in(disk: &SimDisk, folder: &Path) -> u64 {
    let size = |name: &String| {
        let path = folder.join(name);
        disk.read(&path).map_or_else(|_| bytes_in(disk, &path), |bytes| bytes.len() as u64)
    };
    disk.list(folder).unwrap().iter().map(size).sum()
}

/// Waits until journal and large bodies take up at most so much: the settler needs its time.
fn settles_below(disk: &SimDisk, bound: u64, context: &str) {
    let mut looks = 0;
    loop {
        let [journal, blobs] = ["journal", "blobs"].map(|name| bytes_in(disk, &Path::new(DATA).join(name)));
        if journal + blobs <= bound {
            return;
        }
        looks += 1;
        assert!(
            looks < 20_000,
            "{context}: {journal} bytes of journal and {blobs} of bodies; expected at most {bound}"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn while_one_agency_is_away_for_a_month_the_disk_holds_less_than_twice_what_is_live() {
    const LETTERS: u64 = 2_880;
    const BODY: u64 = 6_000;
    const SEGMENT: u64 = 64 << 10;
    // The segment in use, one that is full a moment ago, one being emptied, a spare, and one that is being written.
    const FIXED: u64 = 5 * SEGMENT;
    let (disk, index) = (SimDisk::new(), Arc::default());
    let config = EmbeddedConfig { keep_bodies: Duration::from_secs(86_400), ..tiny(&index) };
    let store = EmbeddedStore::open(Path::new(DATA), config, Arc::new(disk.clone())).unwrap();
    let mut away = vec![];
    let end = |seq, sent: &Acceptance, to: &str, time| {
        let record = Record { time, ..handover(seq, to, &sent.evidence) };
        assert!(matches!(wait(store.record(record)).unwrap(), Recorded::New(_)));
    };
    let letter_at = |n: u64, to: &str| {
        // One in a quarter of an hour, for thirty days.
        let accepted = at(i64::try_from(n).unwrap() * 900_000);
        let body = body_of(n, usize::try_from(BODY).unwrap());
        let parts = vec![PartDigest { sha256: body.sha256, size: BODY }];
        let expires = accepted.plus(Duration::from_secs(60 * 86_400));
        Acceptance { accepted, expires, parts, bodies: vec![body], ..letter(n, &[to]) }
    };
    for n in 0..LETTERS {
        let to = if n % 10 == 0 { "A53.01" } else { "H37.DN.001" };
        let sent = letter_at(n, to);
        let Accepted::New(Seq(seq)) = wait(store.accept(sent.clone())).unwrap() else { panic!("letter {n} is new") };
        if n % 10 == 0 {
            away.push((seq, sent));
        } else {
            end(seq, &sent, to, sent.accepted);
        }
        if n % 240 == 239 {
            // What waits, and what was delivered in the last day.
            let live = (away.len() as u64 + 97) * BODY;
            settles_below(&disk, 2 * live + FIXED, &format!("after {n} letters"));
        }
    }
    for (seq, sent) in &away {
        let body = Some(BodySource::Inline(sent.bodies[0].bytes.clone()));
        assert_eq!(store.body(Seq(*seq), &sent.parts[0]).unwrap(), body, "it waited for {}", sent.recipients[0].0);
        end(*seq, sent, "A53.01", letter_at(LETTERS, "A53.01").accepted);
    }
    // Two days later nothing of the month is kept but its evidence.
    wait(store.accept(letter_at(LETTERS + 192, "H37.DN.001"))).unwrap();
    settles_below(&disk, BODY + FIXED, "after the return");
    assert_eq!(store.counts().dispatches, LETTERS + 1);
    let log = store.log_entries(0, usize::MAX).unwrap();
    assert_eq!(log.len() as u64, 2 * LETTERS + 1, "all evidence is there");
}

#[test]
fn who_reads_for_a_bundle_never_meets_a_segment_that_was_freed_under_him() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    let (written, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let read = || {
        let mut rounds = 0;
        while !stop.load(Ordering::Relaxed) {
            for n in 0..written.load(Ordering::Acquire) {
                let sent = big_letter(n);
                let seq = store.lookup(&sent.sender, sent.id).unwrap().unwrap();
                let found = store.dispatch(seq).unwrap().unwrap();
                assert_eq!((found.envelope, found.evidence), (sent.envelope, sent.evidence), "letter {n}");
                let evidence = store.evidence(seq).unwrap();
                assert_eq!(evidence.len(), if n % 3 == 0 { 2 } else { 3 }, "letter {n}");
            }
            rounds += 1;
        }
        rounds
    };
    let first = Path::new(DATA).join("journal").join(segments::file_name(1, "segment"));
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2).map(|_| scope.spawn(read)).collect();
        let mut acknowledged = Acknowledged::default();
        for n in 0..150 {
            acknowledged.work(&store, n, n + 1).unwrap();
            written.store(n + 1, Ordering::Release);
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0);
        }
    });
    assert!(!disk.exists(&first).unwrap(), "segments were freed meanwhile");
}

#[test]
fn a_thread_of_the_store_that_panics_stops_all_acknowledging() {
    use crate::disk::sim::Failure;
    let mut in_time = 0;
    for k in [1, 2, 3, 5, 8, 13, 21, 34, 55, 89] {
        let (disk, index) = (SimDisk::new(), Arc::default());
        let store = open(&disk, &index).unwrap();
        disk.fail_at(k, Failure::Panic);
        let mut acknowledged = Acknowledged::default();
        let stopped = acknowledged.work(&store, 0, 60).is_err();
        if stopped {
            in_time += 1;
            assert!(acknowledged.clone().work(&store, 500, 501).is_err(), "operation {k}: acknowledged after a panic");
            // Who waited is let go while the thread unwinds; the reason follows.
            let mut looks = 0;
            while store.poisoned().is_none() {
                looks += 1;
                assert!(looks < 20_000, "operation {k}: nobody is told");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        drop(store);
        disk.heal();
        let store = open(&disk.after(Cut::Drop), &Arc::default()).unwrap_or_else(|e| panic!("operation {k}: {e}"));
        acknowledged.check(&store, &format!("after a panic at operation {k}"));
    }
    assert!(in_time >= 5, "only {in_time} panics were noticed while letters came");
}
