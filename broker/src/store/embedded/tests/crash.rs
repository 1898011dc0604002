//! Crashes at every operation on the disk, with what was not synced dropped, kept or torn.

use std::sync::Arc;

use super::super::*;
use super::support::*;
use crate::disk::sim::{Cut, Failure, SimDisk};
use crate::store::claims::wait;

const LETTERS: u64 = 16;

fn operations() -> u64 {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    Acknowledged::default().work(&store, 0, LETTERS).unwrap();
    wait(store.close()).unwrap();
    disk.operations()
}

/// Runs the workload with a failure at operation `k`. What was acknowledged, the disk, and the index as it was left.
fn run(k: u64, failure: Failure) -> (Acknowledged, SimDisk, Arc<MemoryIndex>, u64) {
    let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
    disk.fail_at(k, failure);
    let mut acknowledged = Acknowledged::default();
    let mut refused = 0;
    if let Ok(store) = open(&disk, &index) {
        if acknowledged.work(&store, 0, LETTERS).is_err() {
            refused += 1;
            assert!(
                acknowledged.clone().work(&store, 500, 501).is_err(),
                "operation {k}: acknowledged after a failure"
            );
        }
        drop(store);
    }
    disk.heal();
    (acknowledged, disk, index, refused)
}

#[test]
fn after_a_power_cut_at_any_operation_everything_acknowledged_is_there() {
    let total = operations();
    assert!(total > 100, "the workload is too small to mean anything: {total} operations");
    for k in 1..=total {
        let (acknowledged, disk, index, _) = run(k, Failure::PowerLoss);
        for cut in [Cut::Drop, Cut::Tear(k), Cut::Tear(k.wrapping_mul(0x9e37_79b9_7f4a_7c15)), Cut::Keep] {
            let context = format!("power cut at operation {k} of {total}, {cut:?}");
            let (after, index) = (disk.after(cut), copy(&index));
            let store = open(&after, &index).unwrap_or_else(|e| panic!("{context}: {e}"));
            acknowledged.check(&store, &context);
            let leaves = store.counts().leaves;
            // What a restarted store shows is as good as acknowledged: a retry may be answered from it.
            let next = open(&after.after(Cut::Drop), &Arc::default()).unwrap_or_else(|e| panic!("{context}: {e}"));
            assert!(next.counts().leaves >= leaves, "{context}: shown after the restart and lost in the next cut");
            acknowledged.check(&next, &context);
            let mut more = acknowledged.clone();
            more.work(&store, 100, 102).unwrap_or_else(|e| panic!("{context}: {e}"));
            more.check(&store, &context);
        }
    }
}

#[test]
fn after_one_failed_operation_nothing_is_acknowledged_that_a_cut_can_lose() {
    let total = operations();
    let mut refused = 0;
    for k in 1..=total {
        let (acknowledged, disk, index, stopped) = run(k, Failure::Once);
        refused += stopped;
        let context = format!("operation {k} of {total} failed");
        let dropped = open(&disk.after(Cut::Drop), &Arc::default()).unwrap_or_else(|e| panic!("{context}: {e}"));
        acknowledged.check(&dropped, &context);
        let restarted = disk.after(Cut::Keep);
        let store = open(&restarted, &copy(&index)).unwrap_or_else(|e| panic!("{context}: {e}"));
        acknowledged.check(&store, &context);
        let leaves = store.counts().leaves;
        let next = open(&restarted.after(Cut::Drop), &Arc::default()).unwrap_or_else(|e| panic!("{context}: {e}"));
        assert!(next.counts().leaves >= leaves, "{context}: shown after the restart and lost in the next cut");
    }
    assert!(refused > 20, "hardly any failure was noticed: {refused}");
}
