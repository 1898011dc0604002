//! Do memory and disk stay flat while a million dispatches come and go? Nine hundred and ninety-nine of a thousand are handed
//! over at once, the others wait for an agency that is away; bodies are kept for ten seconds.
//!
//! Through the store alone, without link and signatures. What must stay for good (envelopes and evidence) grows, by the same
//! for each dispatch. Run: `cargo bench --bench turnover [-- COUNT [FOLDER]]`.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use docaxis_broker::disk::RealDisk;
use docaxis_broker::store::embedded::{EmbeddedConfig, EmbeddedStore};
use docaxis_broker::store::{Acceptance, Accepted, Body, DeliveryState, Record, Recorded, Store, StoreError};
use docaxis_protocol::envelope::Chain;
use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::key::RawSignature;
use docaxis_protocol::{Digest, Event, SealedStatement, SignedEvidence, Timestamp};

#[path = "../tests/it/resident.rs"]
#[allow(dead_code, reason = "each benchmark uses its part")]
mod resident;
mod store;

const COUNT: u64 = 1_000_000;
const STEPS: u64 = 20;
const IN_FLIGHT: usize = 256;
const KEPT: Duration = Duration::from_secs(10);
/// One of so many goes to an agency that is away.
const AWAY: u64 = 1_000;

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap())
}

/// With a body of 4 KiB and the times of now.
fn submission(n: u64) -> Acceptance {
    let mut bytes = vec![0x55; 4 << 10];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    let body = Body { sha256: Digest::of(&bytes), bytes };
    let accepted = now();
    Acceptance {
        accepted,
        expires: accepted.plus(Duration::from_secs(30 * 86_400)),
        parts: vec![PartDigest { sha256: body.sha256, size: 4 << 10 }],
        bodies: vec![body],
        ..store::submission(n)
    }
}

fn handover(seq: u64, n: u64, of: &Acceptance) -> Record {
    let mut bytes = vec![b'h'; 900];
    bytes[..8].copy_from_slice(&n.to_be_bytes());
    Record {
        seq,
        recipient: of.recipients[0].0.clone(),
        event: Event::ContentHandover,
        time: now(),
        previous: of.evidence.digest(),
        evidence: SignedEvidence { bytes, signature: RawSignature([6; 64]) },
        statement: Some(SealedStatement {
            bytes: vec![b's'; 300],
            signature: RawSignature([5; 64]),
            chain: Chain::from_ders([vec![3; 600], vec![2; 500]]),
        }),
        state: DeliveryState::HandedOver,
    }
}

async fn pass_on(store: &EmbeddedStore, n: u64) {
    let submission = submission(n);
    let seq = loop {
        match store.accept(submission.clone()).await {
            Ok(Accepted::New(seq)) => break seq.0,
            Ok(other) => panic!("{other:?}"),
            // As a node does that is told that the exchange is busy.
            Err(StoreError::Behind(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    };
    if !n.is_multiple_of(AWAY) {
        let recorded = store.record(handover(seq, n, &submission)).await.unwrap();
        assert!(matches!(recorded, Recorded::New(_)), "{recorded:?}");
    }
}

fn mib_below(folder: &Path) -> f64 {
    fn bytes(folder: &Path) -> u64 {
        use std::os::unix::fs::MetadataExt as _;
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        // A file may go while it is looked at.
        entries
            .map(|entry| {
                if entry.path().is_dir() {
                    bytes(&entry.path())
                } else {
                    entry.metadata().map_or(0, |m| m.blocks() * 512)
                }
            })
            .sum()
    }
    bytes(folder) as f64 / f64::from(1 << 20)
}

fn main() {
    let mut args = std::env::args().skip(1).filter(|arg| !arg.starts_with('-'));
    let count = args.next().map_or(COUNT, |count| count.parse().unwrap());
    let below =
        args.next().map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench-data"), PathBuf::from);
    std::fs::create_dir_all(&below).unwrap();
    let folder = tempfile::tempdir_in(below).unwrap();
    let dir = folder.path().join("store");
    let config = EmbeddedConfig { keep_bodies: KEPT, ..EmbeddedConfig::default() };
    let store = EmbeddedStore::open(&dir, config, Arc::new(RealDisk)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!(
        "| dispatches | a second | waiting | resident MiB | journal MiB | index MiB | for good: MiB | KiB a dispatch |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for step in 0..STEPS {
        let (from, to) = (count * step / STEPS, count * (step + 1) / STEPS);
        let (next, began) = (Arc::new(AtomicU64::new(from)), Instant::now());
        runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for _ in 0..IN_FLIGHT {
                let (store, next) = (store.clone(), next.clone());
                tasks.spawn(async move {
                    loop {
                        match next.fetch_add(1, Ordering::Relaxed) {
                            n if n < to => pass_on(&store, n).await,
                            _ => break,
                        }
                    }
                });
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
        });
        let seconds = began.elapsed().as_secs_f64();
        let good = mib_below(&dir.join("evidence"));
        println!(
            "| {to} | {:.0} | {} | {:.0} | {:.0} | {:.0} | {good:.0} | {:.2} |",
            (to - from) as f64 / seconds,
            store.counts().waiting,
            resident::mib("self", "VmRSS"),
            mib_below(&dir.join("journal")),
            mib_below(&dir.join("index")),
            good * 1024.0 / to as f64,
        );
    }
    runtime.block_on(store.close()).unwrap();
}
