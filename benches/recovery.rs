//! How soon may a broker's store answer again after kill -9 while a million dispatches wait, how fast is its index built
//! anew from the journal, and does it accept more slowly with a million waiting than when empty?
//!
//! A child process fills a store and kills itself with SIGKILL; then the store is opened, closed, and opened again without
//! its index. Beside it: the same files read once in order. Run: `cargo bench --bench recovery [-- COUNT [FOLDER]]`.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::io::{BufRead as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use docaxis_broker::disk::RealDisk;
use docaxis_broker::store::embedded::{EmbeddedConfig, EmbeddedStore};
use docaxis_broker::store::{Accepted, Store, StoreError};

#[path = "../tests/it/resident.rs"]
#[allow(dead_code, reason = "each benchmark uses its part")]
mod resident;
mod store;
use store::submission;

const COUNT: u64 = 1_000_000;
const IN_FLIGHT: usize = 512;
/// Dispatches of a burst: what comes before the settler, which works behind it, has anything to do counts for most of it.
const BURST: u64 = 25_000;
const FILL: &str = "DOCAXIS_BENCH_FILL";

fn open(dir: &Path) -> Arc<EmbeddedStore> {
    EmbeddedStore::open(dir, EmbeddedConfig::default(), Arc::new(RealDisk)).unwrap()
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Resident memory of this process, in MiB.
fn resident_mib() -> u64 {
    resident::kib("self", "VmRSS") >> 10
}

/// Processor time of all threads of this process so far, in seconds.
fn processor_s() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    // User and system time, in hundredths of a second; the name before them may have spaces.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// Accepts these submissions, so many in flight; returns how many a second.
async fn accept(store: &Arc<EmbeddedStore>, numbers: std::ops::Range<u64>) -> f64 {
    let (next, began) = (Arc::new(AtomicU64::new(numbers.start)), Instant::now());
    let tasks: Vec<_> = (0..IN_FLIGHT)
        .map(|_| {
            let (store, next) = (store.clone(), next.clone());
            tokio::spawn(async move {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= numbers.end {
                        return;
                    }
                    loop {
                        match store.accept(submission(n)).await {
                            Ok(accepted) => break assert!(matches!(accepted, Accepted::New(_))),
                            // As a node does that is told that the exchange is busy.
                            Err(StoreError::Behind(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
                            Err(error) => panic!("{error}"),
                        }
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    (numbers.end - numbers.start) as f64 / began.elapsed().as_secs_f64()
}

/// Fills the store and kills itself. Prints rate and memory: of a burst into the empty store, of everything else, and of a
/// burst into the full one that has settled what came before.
fn fill(dir: &Path, count: u64) {
    let store = open(dir);
    let settled = || {
        let place = store.journal();
        place.settled + 1 >= place.segment
    };
    let burst = BURST.min(count / 3);
    runtime().block_on(async {
        for numbers in [0..burst, burst..count - burst, count - burst..count] {
            while !settled() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            println!("{:.0} {}", accept(&store, numbers).await, resident_mib());
        }
    });
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
}

/// Reads every file of these folders once; returns bytes.
fn read_all(dir: &Path) -> u64 {
    let mut bytes = 0;
    let mut buffer = vec![0; 1 << 20];
    for folder in ["journal", "evidence"] {
        for entry in std::fs::read_dir(dir.join(folder)).unwrap() {
            let mut file = std::fs::File::open(entry.unwrap().path()).unwrap();
            loop {
                match file.read(&mut buffer).unwrap() {
                    0 => break,
                    read => bytes += read as u64,
                }
            }
        }
    }
    bytes
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let count = args.next().map_or(COUNT, |count| count.parse().unwrap());
    if let Some(dir) = std::env::var_os(FILL) {
        return fill(Path::new(&dir), count);
    }
    let below =
        args.next().map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-data"), PathBuf::from);
    std::fs::create_dir_all(&below).unwrap();
    let folder = tempfile::tempdir_in(below).unwrap();
    let dir = folder.path().join("store");

    let mut child = Command::new(std::env::current_exe().unwrap());
    let mut child = child.arg(count.to_string()).env(FILL, &dir).stdout(Stdio::piped()).spawn().unwrap();
    let lines: Vec<String> =
        std::io::BufReader::new(child.stdout.take().unwrap()).lines().map(|line| line.unwrap()).collect();
    assert!(!child.wait().unwrap().success(), "the child kills itself");
    let step = |line: &String| line.split_once(' ').map(|(rate, mib)| (rate.parse::<f64>().unwrap(), mib.to_owned()));
    let [empty, filling, full] = [0, 1, 2].map(|n| step(&lines[n]).unwrap());
    println!(
        "accepted/s in a burst: into the empty store {:.0}, with all but that many waiting {:.0}",
        empty.0, full.0
    );
    println!("ratio: {:.2}; {:.0} accepted/s between the two", full.0 / empty.0, filling.0);
    println!("resident while filling: {} MiB after the first burst, {} MiB at the end", empty.1, full.1);

    let before = resident_mib();
    let began = Instant::now();
    let store = open(&dir);
    println!("open after kill -9: {:.2} s, {} waiting", began.elapsed().as_secs_f64(), store.counts().waiting);
    assert_eq!(store.counts().waiting, count);
    println!("resident after the open: {} MiB, {before} before", resident_mib());
    runtime().block_on(store.close()).unwrap();
    drop(store);

    std::fs::remove_dir_all(dir.join("index")).unwrap();
    let began = Instant::now();
    let bytes = read_all(&dir);
    let read_s = began.elapsed().as_secs_f64();
    resident::forget_the_peak("self");
    let (began, processor) = (Instant::now(), processor_s());
    let store = open(&dir);
    let (seconds, processor) = (began.elapsed().as_secs_f64(), processor_s() - processor);
    assert_eq!(store.counts().waiting, count);
    println!(
        "rebuild: {seconds:.2} s, {:.0} records/s; the same files read once: {} MiB in {read_s:.2} s",
        count as f64 / seconds,
        bytes >> 20
    );
    println!("processor time for a record: {:.1} us, of all threads", processor * 1e6 / count as f64);
    println!(
        "resident after the rebuild: {} MiB, {} at its peak",
        resident_mib(),
        resident::kib("self", "VmHWM") >> 10
    );
    runtime().block_on(store.close()).unwrap();
}
