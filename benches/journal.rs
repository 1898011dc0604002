//! What does the journal cost beside the bare disk, and how many submissions a second does the store accept?
//!
//! Group commits of 1, 64 and 512 records of 4 KiB through the store, beside pre-written files overwritten with the
//! same bytes and synced, in the same run; then acceptances through the store with 1, 64 and 512 tasks waiting at
//! once. Run: `cargo bench --bench journal [-- FOLDER]`. The folder should be on the disk that is meant.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use docaxis_broker::disk::{Disk, RealDisk};
use docaxis_broker::store::embedded::{EmbeddedConfig, EmbeddedStore};
use docaxis_broker::store::{Accepted, Store};

mod store;
use store::submission;

const RUN: Duration = Duration::from_secs(3);

fn main() -> anyhow::Result<()> {
    let folder: Option<PathBuf> = std::env::args().skip(1).find(|arg| !arg.starts_with('-')).map(PathBuf::from);
    let dir = match folder {
        Some(folder) => tempfile::tempdir_in(folder)?,
        None => tempfile::tempdir()?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!("in flight | raw groups/s (p50) | accepted/s | records a group | groups/s, ratio to raw");
    for tasks in [1, 64, 512] {
        let accepted = accept_rate(&runtime, &dir.path().join(format!("store-{tasks}")), tasks)?;
        let bytes = (accepted.bytes_a_record * accepted.records_a_group).max(1.0);
        let raw = raw_rate(&dir.path().join(format!("raw-{tasks}")), bytes)?;
        println!(
            "{tasks:9} | {:8.0} ({:.3} ms) | {:10.0} | {:15.1} | {:8.0}, {:.2}",
            raw.groups_a_second,
            raw.median_ms,
            accepted.a_second,
            accepted.records_a_group,
            accepted.a_second / accepted.records_a_group,
            accepted.a_second / accepted.records_a_group / raw.groups_a_second
        );
    }
    Ok(())
}

struct Raw {
    groups_a_second: f64,
    median_ms: f64,
}

/// Overwrites a pre-written file in groups of `bytes`, syncing each.
fn raw_rate(path: &Path, bytes: f64) -> anyhow::Result<Raw> {
    const FILE_BYTES: u64 = 64 << 20;
    #[allow(clippy::cast_possible_truncation, reason = "a group has a few MiB")]
    let group = vec![7; ((bytes / 4096.0).ceil().max(1.0) as usize) * 4096];
    let file = RealDisk.create(path)?;
    file.write_zeros(FILE_BYTES)?;
    file.sync_data()?;
    let (began, mut at, mut took) = (Instant::now(), 0, vec![]);
    while began.elapsed() < RUN {
        let one = Instant::now();
        if at + group.len() as u64 > FILE_BYTES {
            at = 0;
        }
        file.write_at(at, &group)?;
        file.sync_data()?;
        at += group.len() as u64;
        took.push(one.elapsed());
    }
    let seconds = began.elapsed().as_secs_f64();
    took.sort();
    Ok(Raw { groups_a_second: took.len() as f64 / seconds, median_ms: took[took.len() / 2].as_secs_f64() * 1000.0 })
}

struct Rate {
    a_second: f64,
    records_a_group: f64,
    bytes_a_record: f64,
}

fn accept_rate(runtime: &tokio::runtime::Runtime, dir: &Path, tasks: u64) -> anyhow::Result<Rate> {
    let store = EmbeddedStore::open(dir, EmbeddedConfig::default(), Arc::new(RealDisk))?;
    let (groups_before, bytes_before) = store.written();
    let began = Instant::now();
    let accepted = runtime.block_on(async {
        let mut running = Vec::new();
        for task in 0..tasks {
            let store = store.clone();
            running.push(tokio::spawn(async move {
                let mut n = 0;
                while began.elapsed() < RUN {
                    match store.accept(submission(task << 32 | n)).await {
                        Ok(Accepted::New(_)) => n += 1,
                        other => anyhow::bail!("expected a new dispatch, found {other:?}"),
                    }
                }
                Ok(n)
            }));
        }
        let mut sum = 0;
        for task in running {
            sum += task.await??;
        }
        anyhow::Ok(sum)
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let (groups, bytes) = store.written();
    runtime.block_on(store.close())?;
    let accepted = accepted as f64;
    Ok(Rate {
        a_second: accepted / seconds,
        records_a_group: accepted / (groups - groups_before) as f64,
        bytes_a_record: (bytes - bytes_before) as f64 / accepted,
    })
}
