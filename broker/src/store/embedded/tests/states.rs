//! What a crash can leave on the disk, state by state as `docs/format.md` lists them, each made by hand.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::super::layout::{FILE_HEADER_BYTES, FileHeader, FileKind, FrameHeader, GroupHeader, PAGE, padded};
use super::super::*;
use super::support::*;
use crate::disk::sim::{Cut, Failure, SimDisk};
use crate::store::Waiting;
use crate::store::claims::{agency, handover, letter, queue, wait};

/// A store that settled and freed segments, closed.
fn closed() -> (SimDisk, Acknowledged) {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 0, 30).unwrap();
    wait(store.close()).unwrap();
    (disk, acknowledged)
}

fn journal() -> PathBuf {
    Path::new(DATA).join("journal")
}

/// The newest file of this kind.
fn newest(disk: &SimDisk, folder: &str, kind: &str) -> (u64, PathBuf) {
    let names = disk.list(&Path::new(DATA).join(folder)).unwrap();
    let numbers = names.iter().filter_map(|name| segments::number_of(name, kind));
    let number = numbers.max().unwrap_or_else(|| panic!("no {kind}: {names:?}"));
    (number, Path::new(DATA).join(folder).join(segments::file_name(number, kind)))
}

fn put(disk: &SimDisk, path: &Path, bytes: &[u8]) {
    let file = disk.create(path).unwrap();
    file.write_at(0, bytes).unwrap();
    file.sync_data().unwrap();
    disk.sync_dir(path.parent().unwrap()).unwrap();
}

/// Everything is there without an index, and the store goes on.
fn goes_on(disk: &SimDisk, acknowledged: &Acknowledged, context: &str) {
    let index = Arc::default();
    let store = open(disk, &index).unwrap_or_else(|e| panic!("{context}: {e}"));
    acknowledged.check(&store, context);
    let mut more = acknowledged.clone();
    more.work(&store, 100, 125).unwrap();
    wait(store.close()).unwrap();
    drop(store);
    for index in [copy(&index), Arc::default()] {
        let store = open(&disk.after(Cut::Keep), &index).unwrap_or_else(|e| panic!("{context}: {e}"));
        more.check(&store, &format!("{context}, later"));
    }
}

#[test]
fn the_last_group_is_made_durable_before_the_first_answer() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let still = EmbeddedConfig { idle: Duration::from_secs(7200), ..tiny(&index) };
    let store = EmbeddedStore::open(Path::new(DATA), still, Arc::new(disk.clone())).unwrap();
    wait(store.accept(letter(0, &["H37.DN.001"]))).unwrap();
    // The write succeeds and its sync fails: the page cache has the group, the disk does not.
    disk.fail_at(2, Failure::Once);
    assert!(wait(store.accept(letter(1, &["H37.DN.001"]))).is_err());
    drop(store);
    disk.heal();
    assert_eq!(open(&disk.after(Cut::Drop), &Arc::default()).unwrap().counts().leaves, 1);
    let restarted = disk.after(Cut::Keep);
    assert_eq!(open(&restarted, &Arc::default()).unwrap().counts().leaves, 2);
    assert_eq!(open(&restarted.after(Cut::Drop), &Arc::default()).unwrap().counts().leaves, 2);
}

#[test]
fn a_spare_that_is_not_whole_is_removed() {
    let (disk, acknowledged) = closed();
    // Without a whole one that would be taken first.
    for name in disk.list(&journal()).unwrap().iter().filter(|name| name.ends_with("spare")) {
        disk.remove(&journal().join(name)).unwrap();
    }
    let left = [(0xf0, 10_000), (0xf1, 128 << 10), (0xf2, 0)].map(|(number, size)| {
        let path = journal().join(segments::file_name(number, "spare"));
        put(&disk, &path, &vec![0; size]);
        path
    });
    let store = open(&disk, &Arc::default()).unwrap();
    assert_eq!(left.map(|path| disk.exists(&path).unwrap()), [false; 3]);
    drop(store);
    goes_on(&disk, &acknowledged, "after unfinished spares");
}

#[test]
fn a_spare_with_a_header_is_still_a_spare() {
    let (disk, acknowledged) = closed();
    let (number, _) = newest(&disk, "journal", "segment");
    let header = FileHeader { number: number + 1, salt: 7, first: 1_000 }.encode(FileKind::Journal);
    match disk.list(&journal()).unwrap().iter().find(|name| name.ends_with("spare")) {
        Some(spare) => {
            disk.tamper(&journal().join(spare), |bytes| bytes[..FILE_HEADER_BYTES].copy_from_slice(&header)).unwrap();
        }
        None => put(&disk, &journal().join(segments::file_name(9, "spare")), &{
            let mut bytes = vec![0; 64 << 10];
            bytes[..FILE_HEADER_BYTES].copy_from_slice(&header);
            bytes
        }),
    }
    goes_on(&disk, &acknowledged, "after a spare with a header");
}

#[test]
fn the_journal_goes_on_in_a_segment_without_groups() {
    let (disk, acknowledged) = closed();
    let (number, path) = newest(&disk, "journal", "segment");
    let bytes = disk.read(&path).unwrap();
    let (mut at, mut first) = (PAGE, 0);
    while let Some(header) = bytes.get(at..).and_then(GroupHeader::peek).filter(|header| header.epoch == number) {
        first = header.sequence + 1;
        at += padded(header.length as usize);
    }
    let mut begun = vec![0; 64 << 10];
    let header = FileHeader { number: number + 1, salt: 7, first };
    begun[..FILE_HEADER_BYTES].copy_from_slice(&header.encode(FileKind::Journal));
    put(&disk, &journal().join(segments::file_name(number + 1, "segment")), &begun);
    goes_on(&disk, &acknowledged, "after a segment without groups");
}

/// Where the newest evidence file's frames begin, and where each of its copies ends.
fn frames_of(bytes: &[u8]) -> (Vec<usize>, Vec<usize>) {
    let (mut at, mut begins, mut marks) = (FILE_HEADER_BYTES, vec![], vec![]);
    while let Some(frame) = bytes.get(at..).and_then(FrameHeader::decode) {
        let record = Prepared::read(&frame, &bytes[at + 24..at + 24 + frame.meta as usize]).unwrap().record;
        begins.push(at);
        at += usize::try_from(frame.whole()).unwrap();
        if matches!(record, RecordV1::Settled(_)) {
            marks.push(at);
        }
    }
    (begins, marks)
}

#[test]
fn evidence_behind_the_last_mark_is_cut() {
    let (disk, acknowledged) = closed();
    let (_, path) = newest(&disk, "evidence", "evidence");
    let bytes = disk.read(&path).unwrap();
    let (begins, _) = frames_of(&bytes);
    let frame = &bytes[begins[0]..begins[1]];
    for (left, what) in [(frame.len(), "a whole record"), (frame.len() / 2, "half a record"), (3, "three bytes")] {
        let after = disk.after(Cut::Keep);
        after.tamper(&path, |bytes| bytes.extend_from_slice(&frame[..left])).unwrap();
        goes_on(&after, &acknowledged, &format!("with {what} behind the mark"));
    }
}

#[test]
fn the_last_copy_into_evidence_is_made_durable_before_the_first_answer() {
    let (disk, acknowledged) = closed();
    let (_, path) = newest(&disk, "evidence", "evidence");
    let whole = disk.read(&path).unwrap();
    let (_, marks) = frames_of(&whole);
    let before = marks.len().checked_sub(2).map_or(FILE_HEADER_BYTES, |last| marks[last]);
    // As after a sync that failed: the page cache has the copy and counts as clean, the disk has nothing of it.
    disk.tamper(&path, |bytes| bytes.truncate(before)).unwrap();
    let file = disk.open(&path).unwrap();
    file.write_at(before as u64, &whole[before..]).unwrap();
    disk.fail_at(1, Failure::Once);
    assert!(file.sync_data().is_err());
    disk.heal();
    let restarted = disk.after(Cut::Keep);
    let store = open(&restarted, &Arc::default()).unwrap();
    acknowledged.check(&store, "after the restart");
    let lost = restarted.after(Cut::Drop).read(&path).unwrap();
    assert_eq!(lost.get(..whole.len()), Some(whole.as_slice()), "shown after the restart, and lost in the next cut");
}

#[test]
fn files_on_their_way_are_removed() {
    let (disk, acknowledged) = closed();
    let left = ["evidence/00000000000000ff.new", "index.state.new", "blobs/incoming/H37-0", "blobs/retired/0123"]
        .map(|name| Path::new(DATA).join(name));
    left.iter().for_each(|path| put(&disk, path, b"half"));
    let store = open(&disk, &Arc::default()).unwrap();
    acknowledged.check(&store, "after files on their way");
    assert_eq!(left.map(|path| disk.exists(&path).unwrap()), [false; 4]);
}

/// The table of leaves is written before the other tables, and a process may die in between.
#[test]
fn leaves_that_are_newer_than_the_rest_of_the_index_are_applied_again() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let config = |index: &Arc<MemoryIndex>| {
        let keep_bodies = Duration::from_secs(7200);
        EmbeddedConfig { segment_bytes: 4 << 20, keep_bodies, ..tiny(index) }
    };
    let open = |index| EmbeddedStore::open(Path::new(DATA), config(index), Arc::new(disk.clone())).unwrap();
    let store = open(&index);
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 0, 20).unwrap();
    let waiting = queue(store.as_ref(), &agency("A53.01"));
    wait(store.close()).unwrap();
    drop(store);
    let earlier = index.rows();

    let store = open(&index);
    for Waiting { recipient, seq, .. } in waiting {
        let sent = store.dispatch(seq).unwrap().unwrap();
        let record = handover(seq.0, recipient.as_str(), &sent.evidence);
        assert!(matches!(wait(store.record(record)).unwrap(), Recorded::New(_)));
    }
    acknowledged.work(&store, 20, 40).unwrap();
    wait(store.close()).unwrap();
    drop(store);
    let later = index.rows();

    // All but the position, which moves with every mark.
    let rows =
        |rows: BTreeMap<Vec<u8>, Vec<u8>>| -> Vec<_> { rows.into_iter().filter(|(key, _)| key[0] != b'm').collect() };
    let is_leaf = |key: &[u8]| key[0] == b'l';
    // All of the leaves were written, or the new ones alone, or only the first of those.
    let known = earlier.keys().filter(|key| is_leaf(key)).max().cloned().unwrap();
    let few = keys::leaf(keys::last_number(&known).unwrap() + 5);
    for case in ["all", "new", "few"] {
        let written = |key: &[u8]| match case {
            "all" => true,
            "new" => key > known.as_slice(),
            _ => key > known.as_slice() && key < few.as_slice(),
        };
        let mixed = Arc::new(MemoryIndex::default());
        let leaves = later.iter().filter(|(key, _)| is_leaf(key) && written(key));
        let changes = earlier.iter().chain(leaves).map(|(key, value)| (key.clone(), Some(value.clone())));
        mixed.apply(&changes.collect()).unwrap();
        let disk = disk.after(Cut::Keep);
        let store = EmbeddedStore::open(Path::new(DATA), config(&mixed), Arc::new(disk)).unwrap();
        acknowledged.check(&store, case);
        wait(store.close()).unwrap();
        assert_eq!(rows(mixed.rows()), rows(later.clone()), "{case}");
    }
}
