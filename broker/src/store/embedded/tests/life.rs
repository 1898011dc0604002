//! A store over its life: settled segments, freed and used again, and an index that was deleted.

use std::sync::Arc;

use super::super::*;
use super::support::*;
use crate::disk::sim::{Cut, SimDisk};
use crate::store::claims::{agency, letter, wait};
use crate::store::{Seq, Waiting};

/// Everything that a user can see.
fn visible(store: &EmbeddedStore, letters: u64) -> Vec<String> {
    let mut seen = vec![format!("{:?}", store.counts()), format!("{:?}", store.notices().unwrap())];
    let leaves = store.counts().leaves;
    seen.push(format!("{:?}", store.log_entries(0, usize::MAX).unwrap()));
    for leaf in 0..leaves {
        seen.push(format!("{:?}", store.dispatch(Seq(leaf)).unwrap()));
        seen.push(format!("{:?}", store.deliveries(Seq(leaf)).unwrap()));
        seen.push(format!("{:?}", store.evidence(Seq(leaf)).unwrap()));
    }
    let sender = agency("000.00.00.G22");
    seen.push(format!("{:?}", store.evidence_for_sender(&sender, 0, usize::MAX).unwrap()));
    for code in ["H37.DN.001", "A53.01"] {
        seen.push(format!("{:?}", store.waiting(&agency(code), None, usize::MAX).unwrap()));
    }
    let late = letter(1_000_000, &[]).expires;
    seen.push(format!("{:?}", store.expired(late, usize::MAX).unwrap()));
    for n in 0..letters {
        let sent = big_letter(n);
        seen.push(format!("{:?} {:?}", store.lookup(&sent.sender, sent.id), store.find(sent.id)));
        seen.push(format!("{:?}", store.holds(&sent.sender, &sent.parts[0])));
        seen.push(format!("{:?}", store.body(&sent.parts[0]).unwrap()));
    }
    seen
}

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
fn settled_segments_are_freed_and_the_journal_stays_small_while_one_recipient_is_away() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 0, 300).unwrap();
    let live: u64 = store.waiting(&agency("A53.01"), None, usize::MAX).unwrap().len() as u64 * 6_000;
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
    let expected = Waiting { recipient: recipient.clone(), priority: 0, seq: Seq(0), expires: sent.expires };
    assert_eq!(store.waiting(&recipient, None, 9).unwrap(), [expected]);
}
