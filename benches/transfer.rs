//! How fast does one large part travel from a node to the broker and on to its recipient, beside bare QUIC with the same
//! digest and the same file behind it, and does the memory that it takes grow with its size?
//!
//! The clients speak the link directly: they make the bytes as they go and check the digest of what arrives, so that
//! neither holds the part. `--quick` takes 64 MiB instead of 1 GiB, and `DOCAXIS_BENCH_BYTES` any size. Everything runs
//! in this process, whose peak memory is reset before each size. Nothing is asserted but the digest.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on ends")]

#[allow(dead_code, reason = "each benchmark uses its part")]
mod baseline;
#[path = "../tests/it/net.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod net;
#[path = "../tests/it/raw/mod.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod raw;

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use docaxis_protocol::digest::Hasher;
use docaxis_protocol::frame::{Class, Frame, Intake, Need, Submit};
use docaxis_protocol::{Digest, Part, PartRole};
use quinn::{Connection, RecvStream, SendStream};

use crate::net::{Exchange, TestNet};
use crate::raw::{Letter, RawNode, dial_as};

const CHUNK: usize = 256 << 10;

/// Bytes that differ from chunk to chunk, made without being kept.
fn chunks(size: u64) -> impl Iterator<Item = Vec<u8>> {
    (0..size.div_ceil(CHUNK as u64)).map(move |number| {
        let left = size - number * CHUNK as u64;
        let mut chunk = vec![0x5a; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        let stamp = number.to_be_bytes();
        let room = chunk.len().min(stamp.len());
        chunk[..room].copy_from_slice(&stamp[..room]);
        chunk
    })
}

fn digest(size: u64) -> Digest {
    let mut hasher = Hasher::new();
    chunks(size).for_each(|chunk| hasher.update(&chunk));
    hasher.finish()
}

async fn send_all(send: &mut SendStream, size: u64) {
    for chunk in chunks(size) {
        send.write_chunk(chunk.into()).await.unwrap();
    }
}

async fn receive(recv: &mut RecvStream, size: u64) -> Digest {
    let (mut hasher, mut left) = (Hasher::new(), size);
    while left > 0 {
        let wanted = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        let chunk = recv.read_chunk(wanted, true).await.unwrap().expect("more bytes");
        hasher.update(&chunk.bytes);
        left -= chunk.bytes.len() as u64;
    }
    hasher.finish()
}

/// Submits the part, then has it delivered: seconds for each way.
async fn through_the_broker(net: &Exchange, size: u64, sha256: Digest) -> (f64, f64) {
    let (g22, h37) = (RawNode::link(net, "g22").await, RawNode::link(net, "h37").await);
    let (name, media_type) = ("large.zip".into(), "application/zip".into());
    let part = Part { name, media_type, size, sha256, role: PartRole::Document };
    let sealed = Letter::new(("000.00.00.G22", "g22"), &["H37.DN.001"], &[]).but(|e| e.parts = vec![part]).seal(&g22);
    let started = Instant::now();
    let mut stream = g22.open().await;
    stream.write(&Frame::Submit(Submit { envelope: sealed.envelope, inline: Vec::new() })).await;
    match stream.read(Class::Large).await {
        Frame::Need(need) => assert_eq!(need, Need { parts: vec![(0, 0)] }),
        other => panic!("{other:?}"),
    }
    send_all(&mut stream.send, size).await;
    match stream.read(Class::Large).await {
        Frame::Done(done) => assert_eq!(done.intake, Intake::Accepted),
        other => panic!("{other:?}"),
    }
    let sent = started.elapsed().as_secs_f64();
    let started = Instant::now();
    let mut offered = h37.offered().await;
    offered.stream.write(&Frame::Need(Need { parts: vec![(0, 0)] })).await;
    assert_eq!(receive(&mut offered.stream.recv, size).await, sha256);
    let received = started.elapsed().as_secs_f64();
    let statement = offered.handover(&h37);
    offered.answer(&statement).await.unwrap();
    (sent, received)
}

/// The other end of bare QUIC: digest and file on a thread of their own, and one byte when all of it is durable.
async fn keep(connection: Connection, folder: PathBuf) {
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        let (chunks, mut taken) = tokio::sync::mpsc::channel::<bytes::Bytes>(8);
        let path = folder.join("bare");
        let writer = std::thread::spawn(move || {
            let (mut file, mut hasher, mut unsynced) = (File::create(path).unwrap(), Hasher::new(), 0);
            while let Some(chunk) = taken.blocking_recv() {
                hasher.update(&chunk);
                file.write_all(&chunk).unwrap();
                unsynced += chunk.len();
                if unsynced >= 16 << 20 {
                    file.sync_data().unwrap();
                    unsynced = 0;
                }
            }
            file.sync_all().unwrap();
            hasher.finish()
        });
        while let Some(chunk) = recv.read_chunk(CHUNK, true).await.unwrap() {
            chunks.send(chunk.bytes).await.unwrap();
        }
        drop(chunks);
        let digest = tokio::task::spawn_blocking(move || writer.join().unwrap()).await.unwrap();
        send.write_all(&digest.0).await.unwrap();
        send.finish().unwrap();
    }
}

async fn over_bare_quic(bare: &Connection, size: u64, sha256: Digest) -> f64 {
    let started = Instant::now();
    let (mut send, mut recv) = bare.open_bi().await.unwrap();
    send_all(&mut send, size).await;
    send.finish().unwrap();
    let mut answer = [0; 32];
    recv.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, sha256.0);
    started.elapsed().as_secs_f64()
}

/// Sets the peak of this process's memory back to what it has now.
fn forget_the_peak() {
    if let Err(error) = std::fs::write("/proc/self/clear_refs", "5") {
        println!("the peak cannot be reset ({error}): it is that of everything so far");
    }
}

fn memory_kib(what: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(what)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
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
    let address = baseline::serve(&net.config.broker.identity, move |connection| keep(connection, below.clone()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (_endpoint, bare) = dial_as(&net.identity("g22"), address).await.unwrap();
        println!("size MiB | to the broker MiB/s | to the recipient MiB/s | bare QUIC + SHA-256 + file MiB/s | peak MiB (before)");
        let full = full_size();
        for size in [full / 8, full] {
            let sha256 = digest(size);
            let before = memory_kib("VmRSS");
            forget_the_peak();
            let (sent, received) = through_the_broker(&net, size, sha256).await;
            let peak = memory_kib("VmHWM");
            let alone = over_bare_quic(&bare, size, sha256).await;
            let mib = size as f64 / f64::from(1 << 20);
            println!(
                "{mib:8.0} | {:19.0} | {:22.0} | {:32.0} | {} ({})",
                mib / sent,
                mib / received,
                mib / alone,
                peak >> 10,
                before >> 10
            );
        }
    });
    drop(runtime);
}
