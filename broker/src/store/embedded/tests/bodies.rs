//! Where small bodies lie, and what is counted of them: the same on every way in which the rows can have come about.

use std::sync::Arc;

use super::super::apply::{Placed, apply, live_bytes};
use super::super::keys::{Area, LeafRow, Location, row};
use super::super::leaves::MAX_LEAF_ROW_BYTES;
use super::super::outline::Outline;
use super::super::record::PrunedV1;
use super::super::view::{Lookup as _, Staged};
use super::super::*;
use super::support::*;
use crate::disk::sim::SimDisk;
use crate::store::claims::{body_of, handover, letter, wait};
use crate::store::{Body, Seq};

type Rows = Vec<(Vec<u8>, Vec<u8>)>;

fn all(view: &View) -> Rows {
    view.scan(&[0], &[255], usize::MAX).unwrap()
}

/// A view with these rows.
fn view_of(rows: Rows) -> Arc<View> {
    let index = Arc::new(MemoryIndex::default());
    index.apply(&rows.into_iter().map(|(key, value)| (key, Some(value))).collect()).unwrap();
    View::new(index, 1_000)
}

/// The life of one dispatch with two bodies, record by record, each with its segment: accepted, one body brought once more,
/// all copied forward, that one copied forward by itself, handed over, pruned.
fn life() -> Vec<(Prepared, u64)> {
    let bodies = [body_of(1, 700), body_of(2, 90)];
    let parts = bodies.each_ref().map(|body| PartDigest { sha256: body.sha256, size: body.bytes.len() as u64 });
    let sent = Acceptance { bodies: bodies.to_vec(), parts: parts.to_vec(), ..letter(1, &["H37.DN.001"]) };
    let of = |from, bodies: &[Body]| Prepared::bodies(vec![(0, from, bodies.to_vec())]).unwrap();
    let handed = handover(0, "H37.DN.001", &sent.evidence);
    let (finished_ms, parts, freed) = (handed.time.unix_ms(), vec![], Some((3, 790)));
    let pruned = PrunedV1 { seq: 0, sender: sent.sender.clone(), finished_ms, parts, freed };
    vec![
        (Prepared::accepted(sent).unwrap(), 1),
        (of(None, &bodies[1..]), 2),
        (of(Some(1), &bodies), 3),
        (of(None, &bodies[1..]), 3),
        (Prepared::event(handed).unwrap(), 4),
        (Prepared::new(RecordV1::Pruned(vec![pruned]), vec![]).unwrap(), 4),
    ]
}

/// Applies the records from number `from` on, each at its own place.
fn put(view: &View, records: &[(Prepared, u64)], from: usize, totals: &mut Totals, again: bool) {
    for (number, (prepared, segment)) in (0u64..).zip(records).skip(from) {
        let at = Location { area: Area::Journal, segment: *segment, offset: 4096 * (number + 1) };
        let (leaf, mut staged) = (totals.leaves, Staged::new(view));
        apply(&Placed { outline: &Outline::of(prepared), leaf, at, again }, &mut staged, totals).unwrap();
        staged.merge().unwrap();
    }
}

#[test]
fn bytes_are_counted_where_the_bodies_lie_whatever_state_the_leaves_rows_are_of() {
    let records = life();
    let counted = [[790, 0, 0, 0], [790, 90, 0, 0], [0, 90, 790, 0], [0, 0, 880, 0], [0, 0, 880, 0], [0; 4]];
    // The rows after each record.
    let (view, mut totals) = (view_of(vec![]), Totals::default());
    let mut states = vec![(vec![], totals)];
    for (number, expected) in counted.iter().enumerate() {
        put(&view, &records[..=number], number, &mut totals, false);
        let live = [1, 2, 3, 4].map(|segment| live_bytes(segment, view.as_ref()).unwrap());
        assert_eq!(live, *expected, "after record {number}");
        states.push((all(&view), totals));
    }
    let is_leaf = |row: &&(Vec<u8>, Vec<u8>)| row.0[0] == b'l';
    for (applied, (rows, totals)) in states.iter().enumerate() {
        for (newer, (later, _)) in states.iter().enumerate().skip(applied) {
            let others = rows.iter().filter(|row| !is_leaf(row));
            let view = view_of(others.chain(later.iter().filter(is_leaf)).cloned().collect());
            put(&view, &records, applied, &mut totals.clone(), true);
            assert_eq!(all(&view), states[records.len()].0, "rows of {applied} records, leaves of {newer}");
        }
    }
}

#[test]
fn a_rebuilt_index_has_the_same_rows_where_bodies_were_copied_forward_brought_again_and_pruned() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 0, 40).unwrap();
    // Every third letter waits. Letter 9's body is brought once more, as if it had been lost.
    let seq = store.find(big_letter(9).id).unwrap()[0];
    wait(store.restore(seq, big_letter(9).bodies)).unwrap();
    acknowledged.work(&store, 40, 90).unwrap();
    wait(store.close()).unwrap();
    drop(store);
    let rebuilt: Arc<MemoryIndex> = Arc::default();
    rebuild(std::path::Path::new(DATA), &tiny(&rebuilt), Arc::new(disk)).unwrap();
    // The position moves with every mark. A segment whose records were copied when the store was closed is only then told
    // of by the rows, but known to a rebuild at once.
    let kept = |index: &MemoryIndex| -> Rows {
        let mut rows: Rows = index.rows().into_iter().filter(|(key, _)| !matches!(key[0], b'm' | b'v')).collect();
        for (_, bytes) in rows.iter_mut().filter(|(key, _)| key[0] == b'l') {
            let leaf: LeafRow = keys::read_row(bytes).unwrap();
            *bytes = row(&LeafRow { at: Location { area: Area::Evidence, segment: 0, offset: 0 }, ..leaf }).unwrap();
        }
        rows
    };
    let rows = kept(&rebuilt);
    for table in [b'g', b'u', b'q'] {
        assert!(rows.iter().any(|(key, _)| key[0] == table), "the workload leaves no row in {}", char::from(table));
    }
    let index = kept(&index);
    let only =
        |these: &Rows, those: &Rows| -> Rows { these.iter().filter(|row| !those.contains(row)).cloned().collect() };
    assert_eq!((only(&rows, &index), only(&index, &rows)), (vec![], vec![]));
}

#[test]
fn the_longest_row_of_a_leaf_fits_into_its_slot() {
    let records = life();
    let (view, mut totals) = (view_of(vec![]), Totals::default());
    put(&view, &records[..1], 0, &mut totals, false);
    let bytes = view.get(&keys::leaf(0)).unwrap().unwrap();
    let mut longest: LeafRow = keys::read_row(&bytes).unwrap();
    longest.head.as_mut().unwrap().sender = "A".repeat(35).parse().unwrap();
    assert!(longest.head.as_ref().unwrap().bodies.is_some());
    let length = row(&longest).unwrap().len();
    assert!(length <= MAX_LEAF_ROW_BYTES, "{length} bytes; a slot holds {MAX_LEAF_ROW_BYTES}");
}

#[test]
fn a_body_that_is_damaged_is_brought_again_for_its_dispatch_alone() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    let body = body_of(1, 6_000);
    let part = PartDigest { sha256: body.sha256, size: 6_000 };
    let with = |n| Acceptance { bodies: vec![body.clone()], parts: vec![part.clone()], ..letter(n, &["A53.01"]) };
    for n in 0..2 {
        wait(store.accept(with(n))).unwrap();
    }
    let journal = std::path::Path::new(DATA).join("journal").join(segments::file_name(1, "segment"));
    let bytes = disk.read(&journal).unwrap();
    let found = bytes.windows(6_000).position(|window| window == body.bytes).unwrap();
    disk.tamper(&journal, |bytes| bytes[found] ^= 1).unwrap();
    let there = |seq| store.body(Seq(seq), &part).unwrap().is_some();
    assert_eq!([there(0), there(1)], [false, true]);
    wait(store.restore(Seq(0), vec![body.clone()])).unwrap();
    assert_eq!([there(0), there(1)], [true, true]);
    wait(store.close()).unwrap();
    let apart: Vec<_> = index.rows().into_keys().filter(|key| key[0] == b'u').collect();
    assert_eq!(apart, [keys::apart(0, &body.sha256.0)]);
}

/// Until this holds; the settler needs its time.
fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if holds() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    panic!("it never came to this: {what}");
}

#[test]
fn a_segment_that_a_damaged_body_holds_is_looked_at_again_when_the_body_was_brought_once_more() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    // Nothing is freed while the damage is done.
    let held = store.cut().unwrap();
    let body = body_of(1, 6_000);
    let part = PartDigest { sha256: body.sha256, size: 6_000 };
    let waits = Acceptance { bodies: vec![body.clone()], parts: vec![part.clone()], ..letter(1_000, &["A53.01"]) };
    let Accepted::New(seq) = wait(store.accept(waits)).unwrap() else { panic!("it is new") };
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 1, 60).unwrap();
    let segment = |number| std::path::Path::new(DATA).join("journal").join(segments::file_name(number, "segment"));
    let bytes = disk.read(&segment(1)).unwrap();
    let found = bytes.windows(6_000).position(|window| window == body.bytes).unwrap();
    disk.tamper(&segment(1), |bytes| bytes[found] ^= 1).unwrap();
    let is_there = |number| disk.exists(&segment(number)).unwrap();
    assert!(is_there(1) && is_there(2));
    drop(held);
    // Segments are looked at in order: when one that follows is gone, this one could not be emptied.
    eventually("the second segment is freed", || !is_there(2));
    eventually("and the third", || !is_there(3));
    assert!(is_there(1), "the only copy of the body, damaged as it is, was thrown away");
    assert_eq!(live_bytes(1, store.shared.view.as_ref()).unwrap(), 6_000);
    assert_eq!(store.body(seq, &part).unwrap(), None, "what is damaged is not given out");
    // Nothing but this has changed for the first segment.
    wait(store.restore(seq, vec![body.clone()])).unwrap();
    eventually("the first segment is freed", || !is_there(1));
    assert_eq!(store.body(seq, &part).unwrap(), Some(crate::store::BodySource::Inline(body.bytes)));
    acknowledged.check(&store, "after the first segment was freed");
    wait(store.close()).unwrap();
}
