//! What a rebuild keeps in memory, measured in a process of its own, so that no other test has a part in it.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use docaxis_protocol::space::SpaceConfig;

use super::super::bulk::{Bounds, Bulk, Target};
use super::super::index::{Changes, Row};
use super::super::keys::{DeliveryRow, row};
use super::super::rows::Rows as _;
use super::super::*;
use crate::disk::sim::SimDisk;
use crate::store::DeliveryState;
use crate::store::claims::agency;

const BOUND: &str = "DOCAXIS_TEST_MEASURED_MIB";
/// Of one batch of rows, and of what an allocator keeps for itself.
const BESIDE_KIB: usize = 3 << 10;

/// Keeps nothing.
struct Nowhere;

impl Index for Nowhere {
    fn apply(&self, _: &Changes) -> Result<(), StoreError> {
        Ok(())
    }
    fn reserve(&self, _: usize) -> Result<(), StoreError> {
        Ok(())
    }
    fn get(&self, _: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(None)
    }
    fn scan(&self, _: &[u8], _: &[u8], _: usize) -> Result<Vec<Row>, StoreError> {
        Ok(vec![])
    }
    fn flush(&self) -> Result<(), StoreError> {
        Ok(())
    }
    fn clear(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

fn kib(what: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.split(':').next() == Some(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Not a test of its own: the process that the test below starts. Without the bound it does nothing.
#[test]
fn the_measured() {
    let Ok(bound) = std::env::var(BOUND) else { return };
    let bytes = bound.parse::<usize>().unwrap() << 20;
    let space = Space::open(Arc::new(SimDisk::new()), Path::new("data"), SpaceConfig::default()).unwrap();
    let bounds = Bounds { pages: 1, bytes, ids: 1 };
    let mut bulk = Bulk::new(Target { index: &Nowhere, space: &space }, bounds);
    let recipient = agency("000.00.12.H37");
    let before = kib("VmRSS");
    for seq in 0.. {
        let delivery = DeliveryRow { state: DeliveryState::HandedOver, head: [7; 32], head_ms: 1, leaf: seq };
        bulk.put(keys::delivery(seq, &recipient), row(&delivery).unwrap());
        bulk.put(keys::waiting(seq), row(&2u64).unwrap());
        bulk.put(keys::owner(&[(seq % 251) as u8; 32], &recipient, seq), vec![]);
        if bulk.is_full() {
            break;
        }
    }
    bulk.agree(&Totals::default()).unwrap();
    let (taken, bound) = (kib("VmHWM") - before, bytes >> 10);
    assert!(taken <= bound + BESIDE_KIB, "{taken} KiB were taken; the bound is {bound}");
    // Reckoned far too high, a rebuild would write and read rows more often than it must.
    assert!(taken >= bound / 2, "only {taken} KiB were taken; the bound is {bound}");
}

#[test]
fn rows_that_wait_for_being_written_take_up_no_more_memory_than_is_reckoned_for_them() {
    // A map doubles at some number of rows: these bounds are reached before, at and behind it.
    for mib in [24, 32, 40, 48] {
        let done = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::embedded::tests::measure::the_measured", "--nocapture", "--test-threads=1"])
            .env(BOUND, mib.to_string())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{mib} MiB: {said}");
    }
}
