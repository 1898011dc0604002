//! A real process that dies in the middle of writing the index, on the real disk: the next start within the same boot
//! believes what is there, and must come to what a rebuild from evidence and journal comes to.

use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use super::super::bulk::Bounds;
use super::super::index::Row;
use super::super::view::Lookup;
use super::super::*;
use super::support::*;
use crate::disk::RealDisk;
use crate::store::Seq;
use crate::store::claims::{letter, queue, wait};

const FOLDER: &str = "DOCAXIS_TEST_VICTIM_FOLDER";
const FAILPOINT: &str = "DOCAXIS_TEST_VICTIM_FAILPOINT";
const BATCH: &str = "DOCAXIS_TEST_VICTIM_BATCH";
/// Letters with bodies that the victim handles one by one.
const LETTERS: u64 = 100;
/// Rows to a batch of the index: many batches, or one at the end.
const SMALL: usize = 50;
const ALL: usize = 1 << 20;

/// No segment becomes full and nothing is settled, so that what is there is compared at rest.
fn open(dir: &Path, index_batch_rows: usize) -> Arc<EmbeddedStore> {
    let config = EmbeddedConfig {
        segment_bytes: 16 << 20,
        spare_segments: 1,
        reserved_segments: 0,
        idle: Duration::from_secs(7200),
        index_every: if index_batch_rows == ALL { Duration::from_secs(7200) } else { Duration::from_millis(1) },
        index_batch_rows,
        // A rebuild writes from the beginning on.
        rebuild: Bounds { pages: 16, bytes: 256 << 10, ids: 500 },
        ..EmbeddedConfig::default()
    };
    EmbeddedStore::open(dir, config, Arc::new(RealDisk)).unwrap()
}

/// Not a test of its own: the process that the tests below start. Without the folder it does nothing.
#[test]
fn the_victim() {
    let (Ok(dir), Ok(failpoint)) = (std::env::var(FOLDER), std::env::var(FAILPOINT)) else { return };
    docaxis_failpoints::arm(&failpoint).unwrap();
    let store = open(&PathBuf::from(dir), std::env::var(BATCH).unwrap().parse().unwrap());
    let from = store.counts().dispatches;
    Acknowledged::default().work(&store, from, from + LETTERS).unwrap();
    wait(store.close()).unwrap();
}

/// Lets a process die there.
fn dies_at(dir: &Path, failpoint: &str, index_batch_rows: usize) {
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::embedded::tests::death::the_victim", "--nocapture", "--test-threads=1"])
        .env(FOLDER, dir)
        .env(FAILPOINT, failpoint)
        .env(BATCH, index_batch_rows.to_string())
        .output()
        .unwrap()
        .status;
    assert_eq!(status.signal(), Some(9), "it never came to {failpoint}: {status}");
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &target),
            false => drop(std::fs::copy(entry.path(), target).unwrap()),
        }
    }
}

/// What is visible in this folder as it is, and in a copy of it without its index.
fn as_it_is_and_rebuilt(dir: &Path, letters: u64) -> [Vec<String>; 2] {
    let copied = tempfile::tempdir().unwrap();
    copy_folder(dir, copied.path());
    std::fs::remove_dir_all(copied.path().join("index")).unwrap();
    [dir, copied.path()].map(|dir| {
        let store = open(dir, SMALL);
        let seen = visible(&store, letters);
        wait(store.close()).unwrap();
        seen
    })
}

#[test]
fn a_table_of_ids_that_was_left_half_written_leads_to_the_same_state_as_a_rebuild() {
    // A page more becomes necessary once a round, and where all is one batch, in that.
    for (name, passes, batch) in
        [("headed", [1, 4], SMALL), ("paged", [1, 4], SMALL), ("split", [1; 2], SMALL), ("paged", [1; 2], ALL)]
    {
        let dir = tempfile::tempdir().unwrap();
        // What the victim does before it dies stays, so that the table grows from round to round.
        for (round, pass) in (1..).zip(passes) {
            let failpoint = format!("broker.index.ids-{name}:{pass}");
            dies_at(dir.path(), &failpoint, batch);
            let [found, expected] = as_it_is_and_rebuilt(dir.path(), round * LETTERS);
            for (found, expected) in found.iter().zip(&expected) {
                assert_eq!(found, expected, "{failpoint}, round {round}");
            }
        }
    }
}

/// Letters in the store of this folder, which is then left as by a crash.
fn fill(dir: &Path, letters: u64) -> Vec<Acceptance> {
    let store = open(dir, 4 << 10);
    let sent: Vec<_> = (0..letters).map(|n| letter(n, &["H37.DN.001", "A53.01"])).collect();
    for some in sent.chunks(512) {
        let answers: Vec<_> = some.iter().map(|letter| store.accept(letter.clone())).collect();
        for answer in answers {
            assert!(matches!(wait(answer).unwrap(), Accepted::New(_)));
        }
    }
    sent
}

/// Every row, those of leaves in a list of their own.
fn tables(store: &EmbeddedStore) -> [Vec<Row>; 2] {
    let rows = |from: &[u8], to: &[u8]| Lookup::scan(&*store.shared.view, from, to, usize::MAX).unwrap();
    // The table of leaves is read by itself.
    [rows(&[0], &[255]), rows(b"l", b"m")]
}

#[test]
fn a_process_that_dies_while_it_builds_the_index_leaves_nothing_that_the_next_start_takes_for_whole() {
    const MANY: u64 = 7_000;
    let (dir, half) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let sent = fill(dir.path(), MANY);
    copy_folder(dir.path(), half.path());
    std::fs::remove_dir_all(half.path().join("index")).unwrap();
    // Far enough for most rows to have been written.
    dies_at(half.path(), &format!("broker.rebuild.applied:{}", MANY - 100), 4 << 10);
    for table in ["leaves", "ids"] {
        let written = std::fs::metadata(half.path().join("index").join(table)).unwrap().len();
        assert!(written > 64 << 10, "{table} has {written} bytes: little of the index was written when it died");
    }
    let [whole, found] = [dir.path(), half.path()].map(|dir| open(dir, 4 << 10));
    assert_eq!((whole.counts(), found.counts().dispatches), (found.counts(), MANY));
    for to in ["H37.DN.001", "A53.01"].map(crate::store::claims::agency) {
        assert_eq!(queue(whole.as_ref(), &to), queue(found.as_ref(), &to));
    }
    for (n, letter) in (0..).zip(&sent) {
        assert_eq!(found.find(letter.id).unwrap(), [Seq(n)]);
        assert_eq!(found.lookup(&letter.sender, letter.id).unwrap(), Some(Seq(n)));
    }
    assert!(tables(&whole) == tables(&found), "rows differ between an index that was kept and one that was begun anew");
}

#[test]
fn a_process_that_dies_while_the_built_index_is_written_leads_to_the_same_state_wherever_it_dies() {
    const SOME: u64 = 1_500;
    let dir = tempfile::tempdir().unwrap();
    let sent = fill(dir.path(), SOME);
    let whole = open(dir.path(), 4 << 10);
    let expected = (whole.counts(), tables(&whole));
    drop(whole);
    let steps = ["ids-written", "leaves-written", "rows-written", "whole"];
    for failpoint in steps.map(|step| format!("broker.rebuild.{step}")) {
        let half = tempfile::tempdir().unwrap();
        copy_folder(dir.path(), half.path());
        std::fs::remove_dir_all(half.path().join("index")).unwrap();
        // It dies in the rebuild itself: nothing is accepted that this one would have more than the other.
        dies_at(half.path(), &format!("{failpoint}:1"), 4 << 10);
        let found = open(half.path(), 4 << 10);
        assert_eq!(found.counts(), expected.0, "{failpoint}");
        assert!(tables(&found) == expected.1, "{failpoint}: rows differ");
        for (n, letter) in (0..).zip(&sent) {
            assert_eq!(found.find(letter.id).unwrap(), [Seq(n)], "{failpoint}");
        }
    }
}
