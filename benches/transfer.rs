//! How fast does one large part travel from a node to the broker and on to its recipient, beside bare QUIC with the same
//! digest and the same file behind it, and does the memory that it takes grow with its size?
//!
//! The clients speak the link directly: they make the bytes as they go and check the digest of what arrives, so that
//! neither holds the part. `--quick` takes 64 MiB instead of 1 GiB, and `DOCAXIS_BENCH_BYTES` any size. Everything runs
//! in this process, whose peak memory is reset before each size. Nothing is asserted but the digest.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on ends")]

#[allow(dead_code, reason = "each benchmark uses its part")]
mod baseline;
mod large;
#[path = "../tests/it/net.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod net;
#[path = "../tests/it/raw/mod.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod raw;
#[path = "../tests/it/resident.rs"]
#[allow(dead_code, reason = "each benchmark uses its part")]
mod resident;

use std::path::Path;
use std::time::Instant;

use docaxis_protocol::Digest;
use docaxis_protocol::frame::{Frame, Need};

use crate::large::{Large, receive};
use crate::net::{Exchange, TestNet};
use crate::raw::{Letter, RawNode, dial_as};

/// Submits the part, then has it delivered: seconds for each way.
async fn through_the_broker(net: &Exchange, large: Large, sha256: Digest) -> (f64, f64) {
    let (g22, h37) = (RawNode::link(net, "g22").await, RawNode::link(net, "h37").await);
    let letter = Letter::new(("000.00.00.G22", "g22"), &["H37.DN.001"], &[]);
    let sealed = letter.but(|e| e.parts = vec![large.part(sha256)]).seal(&g22);
    let started = Instant::now();
    large.submit(&g22, sealed).await;
    let sent = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let mut offered = h37.offered().await;
    offered.stream.write(&Frame::Need(Need { parts: vec![(0, 0)] })).await;
    assert_eq!(receive(&mut offered.stream.recv, large.size).await, sha256);
    let received = started.elapsed().as_secs_f64();
    let statement = offered.handover(&h37);
    offered.answer(&statement).await.unwrap();
    (sent, received)
}

fn full_size() -> u64 {
    if let Ok(bytes) = std::env::var("DOCAXIS_BENCH_BYTES") {
        return bytes.parse().expect("DOCAXIS_BENCH_BYTES is a number of bytes");
    }
    if std::env::args().any(|arg| arg == "--quick") { 64 << 20 } else { 1 << 30 }
}

fn data_below(folder: &Path) -> TestNet {
    let data = folder.join("broker");
    TestNet::new().node("g22", &["000.00.00.G22"]).node("h37", &["H37.DN.001"]).with(move |config| {
        config.broker.data = data;
        config.broker.max_part_bytes = 16 << 30;
    })
}

fn main() {
    let folder = baseline::data_folder();
    let net = data_below(folder.path()).start();
    let below = folder.path().to_owned();
    let address =
        baseline::serve(&net.config.broker.identity, move |connection| large::keep(connection, below.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (_endpoint, bare) = dial_as(&net.identity("g22"), address).await.unwrap();
        println!("size MiB | to the broker MiB/s | to the recipient MiB/s | bare QUIC + SHA-256 + file MiB/s | peak MiB (before)");
        let full = full_size();
        for size in [full / 8, full] {
            let large = Large { number: 0, size };
            let sha256 = large.digest();
            let before = resident::mib("self", "VmRSS");
            resident::forget_the_peak("self");
            let (sent, received) = through_the_broker(&net, large, sha256).await;
            let peak = resident::mib("self", "VmHWM");
            let alone = large.over_bare_quic(&bare, sha256).await;
            let mib = size as f64 / f64::from(1 << 20);
            println!(
                "{mib:8.0} | {:19.0} | {:22.0} | {:32.0} | {peak:.0} ({before:.0})",
                mib / sent,
                mib / received,
                mib / alone,
            );
        }
    });
    drop(runtime);
}
