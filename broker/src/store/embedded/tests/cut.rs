//! Cuts for backups, and leaves that are taken up again after a restore.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use docaxis_backup::{Backup, Fresh, Taken};
use docaxis_protocol::Timestamp;

use super::super::*;
use super::support::*;
use crate::disk::RealDisk;
use crate::disk::sim::SimDisk;
use crate::store::claims::{agency, handover, letter, rejection, wait};
use crate::store::{Body, BodySource, DeliveryState, Earlier, Seq};

fn on_disk(dir: &Path) -> Arc<EmbeddedStore> {
    EmbeddedStore::open(dir, tiny(&Arc::default()), Arc::new(RealDisk)).unwrap()
}

fn back_up(store: &EmbeddedStore, dir: &Path) -> Taken {
    let mut backup = Backup::begin(dir, "broker", "x", "first", Timestamp::from_unix_ms(0)).unwrap();
    let cut = store.cut().unwrap();
    backup.copy(cut.files.clone()).unwrap();
    backup.finish(cut.leaves).unwrap()
}

#[test]
fn a_second_backup_copies_only_what_is_new_and_opens_with_everything_acknowledged() {
    let root = tempfile::tempdir().unwrap();
    let (data, dir) = (root.path().join("data"), root.path().join("backup"));
    let store = on_disk(&data);
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 0, 40).unwrap();
    back_up(&store, &dir);
    acknowledged.work(&store, 40, 80).unwrap();
    let second = back_up(&store, &dir);
    assert!(second.copied.0 < second.manifest.files.len() as u64, "{:?} of {:?}", second.copied, second.manifest.files);
    wait(store.close()).unwrap();
    drop(store);
    acknowledged.check(&restored(root.path(), &dir, &second), "the second backup");
}

fn restored(root: &Path, dir: &Path, taken: &Taken) -> Arc<EmbeddedStore> {
    let data = root.join("restored");
    docaxis_backup::verify(dir, &taken.manifest).unwrap();
    Fresh::write(dir, &taken.manifest, &data, &[]).unwrap().replace(true).unwrap();
    let store = on_disk(&data);
    assert_eq!(store.counts().leaves, taken.manifest.leaves);
    store
}

#[test]
fn a_backup_while_others_write_is_one_moment() {
    let root = tempfile::tempdir().unwrap();
    let (data, dir) = (root.path().join("data"), root.path().join("backup"));
    let store = on_disk(&data);
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 0, 40).unwrap();
    let before = acknowledged.clone();
    let writing = {
        let store = store.clone();
        std::thread::spawn(move || acknowledged.work(&store, 40, 120))
    };
    let taken = back_up(&store, &dir);
    writing.join().unwrap().unwrap();
    wait(store.close()).unwrap();
    drop(store);
    before.check(&restored(root.path(), &dir, &taken), "the backup of a store under load");
}

#[test]
fn while_a_cut_is_held_nothing_of_it_is_freed_and_afterwards_it_is() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 0, 30).unwrap();
    let cut = store.cut().unwrap();
    let names: Vec<_> = cut.files.iter().map(|file| file.path.clone()).collect();
    acknowledged.work(&store, 30, 200).unwrap();
    let there = |path: &std::path::PathBuf| disk.exists(path).unwrap();
    assert!(names.iter().all(there), "a file of the cut is gone");
    drop(cut);
    let mut looks = 0;
    while names.iter().all(there) {
        looks += 1;
        assert!(looks < 20_000, "nothing is freed after the cut was let go");
        std::thread::sleep(Duration::from_millis(1));
    }
    acknowledged.check(&store, "after the cut was let go");
}

#[test]
fn leaves_of_before_stand_at_their_own_places_with_the_same_bytes_or_nowhere() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    let sent = letter(1, &["H37.DN.001", "A53.01"]);
    let bare = || Earlier::Accepted(Box::new(Acceptance { bodies: vec![], ..sent.clone() }));
    let given = handover(0, "A53.01", &sent.evidence);
    let event = || Earlier::Event(Box::new(given.clone()));
    let refused = rejection(2);
    let lost = Digest::of(b"lost");
    store.freeze(Some("being made whole".into()));
    assert!(matches!(wait(store.accept(letter(9, &["A53.01"]))), Err(StoreError::Frozen(_))));
    assert!(matches!(wait(store.record(given.clone())), Err(StoreError::Frozen(_))));
    assert_eq!(wait(store.import(1, vec![bare()])).unwrap(), 0, "not the log's next place");
    assert_eq!(wait(store.import(0, vec![event()])).unwrap(), 0, "it follows nothing");
    let all = vec![bare(), Earlier::Rejected(Box::new(refused.clone())), Earlier::Lost(lost), event(), bare()];
    assert_eq!(wait(store.import(0, all)).unwrap(), 4, "all but the one that was accepted already");
    let log = [sent.evidence.log_entry(), refused.evidence.log_entry(), lost, given.evidence.log_entry()];
    let check = |store: &EmbeddedStore, context: &str| {
        assert_eq!(store.log_entries(0, 9).unwrap(), log, "{context}");
        let states = store.deliveries(Seq(0)).unwrap().into_iter().map(|delivery| delivery.state);
        assert_eq!(states.collect::<Vec<_>>(), [DeliveryState::HandedOver, DeliveryState::Waiting], "{context}");
        assert_eq!(store.dispatch(Seq(2)).unwrap(), None, "{context}: a lost leaf is no dispatch");
    };
    check(&store, "after the import");
    assert_eq!(store.body(Seq(0), &sent.parts[0]).unwrap(), None);
    store.freeze(None);
    // The same bytes once more get the receipt of then, and the sender brings the body.
    assert_eq!(wait(store.accept(sent.clone())).unwrap(), Accepted::Already(Seq(0), sent.evidence.clone()));
    wait(store.restore(Seq(0), sent.bodies.clone())).unwrap();
    let body = Some(BodySource::Inline(sent.bodies[0].bytes.clone()));
    assert_eq!(store.body(Seq(0), &sent.parts[0]).unwrap(), body);
    wait(store.close()).unwrap();
    drop(store);
    let rebuilt = open(&disk, &Arc::default()).unwrap();
    check(&rebuilt, "rebuilt");
    assert_eq!(rebuilt.body(Seq(0), &sent.parts[0]).unwrap(), body);
    assert_eq!(rebuilt.lookup(&agency("000.00.00.G22"), sent.id).unwrap(), Some(Seq(0)));
}

#[test]
fn a_large_body_that_comes_late_is_found_after_a_rebuild_too() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    let Body { sha256, bytes } = crate::store::claims::body_of(3, 90_000);
    let part = PartDigest { sha256, size: 90_000 };
    let sent = Acceptance { bodies: vec![], parts: vec![part.clone()], ..letter(3, &["A53.01"]) };
    assert_eq!(wait(store.import(0, vec![Earlier::Accepted(Box::new(sent.clone()))])).unwrap(), 1);
    assert!(!store.holds(&sent.sender, &part).unwrap());
    let mut writer = store.blobs().writer(&sent.sender, part.clone());
    writer.write(&bytes).unwrap();
    writer.finish().unwrap();
    assert!(store.holds(&sent.sender, &part).unwrap());
    wait(store.close()).unwrap();
    drop(store);
    assert!(open(&disk, &Arc::default()).unwrap().holds(&sent.sender, &part).unwrap());
}

#[test]
fn a_rebuild_counts_what_it_read_and_leaves_the_same_index() {
    let root = tempfile::tempdir().unwrap();
    let store = on_disk(root.path());
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 0, 40).unwrap();
    assert!(matches!(rebuild(root.path(), &tiny(&Arc::default()), Arc::new(RealDisk)), Err(StoreError::Locked(_))));
    let leaves = store.counts().leaves;
    wait(store.close()).unwrap();
    drop(store);
    let index: Arc<MemoryIndex> = Arc::default();
    let built = rebuild(root.path(), &tiny(&index), Arc::new(RealDisk)).unwrap();
    assert_eq!(built.leaves, leaves);
    assert!(built.records >= 40, "{built:?}");
    assert_eq!(std::fs::read(root.path().join("index.state")).unwrap(), b"4 closed", "the next start believes it");
    let store = EmbeddedStore::open(root.path(), tiny(&index), Arc::new(RealDisk)).unwrap();
    acknowledged.check(&store, "rebuilt");
}
