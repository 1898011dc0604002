//! A real process, killed while it writes, on the real disk with the real index.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::super::*;
use super::support::big_letter;
use crate::disk::RealDisk;
use crate::store::claims::wait;
use crate::store::{BodySource, Seq};

const FOLDER: &str = "DOCAXIS_TEST_WRITER_FOLDER";
const ROUND: &str = "DOCAXIS_TEST_WRITER_ROUND";
const TASKS: u64 = 8;

fn open(dir: &Path) -> Arc<EmbeddedStore> {
    let config = EmbeddedConfig {
        segment_bytes: 1 << 20,
        spare_segments: 1,
        reserved_segments: 0,
        max_unsettled_segments: 10_000,
        idle: Duration::from_millis(20),
        index_every: Duration::from_millis(30),
        ..EmbeddedConfig::default()
    };
    EmbeddedStore::open(dir, config, Arc::new(RealDisk)).unwrap()
}

/// Not a test of its own: the process that the test below starts and kills. Without the folder it does nothing.
#[test]
fn the_writer() {
    let (Ok(dir), Ok(round)) = (std::env::var(FOLDER), std::env::var(ROUND)) else { return };
    let round: u64 = round.parse().unwrap();
    let store = open(&PathBuf::from(dir));
    wait(async {
        let writers: Vec<_> = (0..TASKS)
            .map(|task| {
                let store = store.clone();
                tokio::spawn(async move {
                    for n in 0.. {
                        let n = (round * TASKS + task) * 100_000 + n;
                        let Ok(Accepted::New(Seq(seq))) = store.accept(big_letter(n)).await else { return };
                        let mut out = std::io::stdout().lock();
                        writeln!(out, "\naccepted {n} {seq}").and_then(|()| out.flush()).unwrap();
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.await.unwrap();
        }
    });
}

#[test]
fn what_a_killed_process_acknowledged_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = BTreeMap::new();
    for (round, kill_after) in (0u64..).zip([1, 90, 7, 400, 33, 150]) {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::embedded::tests::kill::the_writer", "--nocapture", "--test-threads=1"])
            .env(FOLDER, dir.path())
            .env(ROUND, round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut seen = 0;
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            if let ["accepted", n, seq] = words[..] {
                acknowledged.insert(n.parse::<u64>().unwrap(), seq.parse::<u64>().unwrap());
                seen += 1;
                if seen == kill_after {
                    child.kill().unwrap();
                }
            }
        }
        assert!(!child.wait().unwrap().success());
        assert!(seen >= kill_after, "round {round}: only {seen} were acknowledged");
        let store = open(dir.path());
        for (n, seq) in &acknowledged {
            let (sent, seq) = (big_letter(*n), Seq(*seq));
            let found = store.dispatch(seq).unwrap().unwrap_or_else(|| panic!("round {round}: letter {n} is lost"));
            assert_eq!((found.id, found.envelope, found.evidence), (sent.id, sent.envelope, sent.evidence));
            assert_eq!(store.lookup(&sent.sender, sent.id).unwrap(), Some(seq));
            assert_eq!(store.deliveries(seq).unwrap().len(), 2);
            let body = store.body(seq, &sent.parts[0]).unwrap();
            assert_eq!(body, Some(BodySource::Inline(sent.bodies[0].bytes.clone())));
        }
        let leaves = store.counts().leaves;
        assert!(leaves >= acknowledged.len() as u64);
        assert_eq!(store.log_entries(0, usize::MAX).unwrap().len() as u64, leaves);
    }
}
