//! How many small dispatches does the broker accept in a second, durably and with signed evidence, and how far is that
//! from what the disk and QUIC give on the same machine in the same run?
//!
//! A dispatch is an envelope of 1 KiB and one part of 4 KiB, sealed before the clock starts. One client, on a thread of
//! its own, keeps 1, 64 or 512 submissions in flight on one link; broker and client share the machine. Beside it: the
//! same bytes overwritten in a prepared file with one `fdatasync` for as many records, and requests and answers of the
//! same sizes over bare QUIC. Windows of the three take turns; medians are printed, and nothing is asserted.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on ends")]

#[allow(dead_code, reason = "each benchmark uses its part")]
mod baseline;
#[path = "../tests/it/net.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod net;
#[path = "../tests/it/raw/mod.rs"]
#[allow(dead_code, reason = "the tests use more of it")]
mod raw;

use std::sync::Arc;
use std::time::Duration;

use docaxis_protocol::frame::{Frame, Intake, Submit};

use crate::baseline::{SyncedFile, median, wire};
use crate::net::TestNet;
use crate::raw::{Letter, RawNode, dial_as};

const WINDOWS: usize = 5;
/// In flight, and dispatches in one window.
const LEVELS: [(usize, usize); 3] = [(1, 1_000), (64, 8_000), (512, 8_000)];
const ENVELOPE_BYTES: usize = 1 << 10;
const PART_BYTES: usize = 4 << 10;

/// A submission as it goes over the wire: the frame, then the body.
fn sealed(node: &RawNode, number: u64) -> Vec<u8> {
    let mut body = vec![0x5a; PART_BYTES];
    body[..8].copy_from_slice(&number.to_be_bytes());
    let letter = Letter::new(("000.00.00.G22", "g22"), &["H37.DN.001"], &[&body]);
    let bare = letter.clone().but(|e| drop(e.document.insert("Content".into(), "".into()))).envelope;
    let missing = ENVELOPE_BYTES - bare.to_bytes().unwrap().len();
    let letter = letter.but(|e| drop(e.document.insert("Content".into(), "x".repeat(missing).into())));
    let sealed = letter.seal(node);
    assert_eq!(sealed.envelope.bytes.len(), ENVELOPE_BYTES);
    let mut bytes = Frame::Submit(Submit { envelope: sealed.envelope, inline: vec![0] }).encode().unwrap();
    bytes.extend_from_slice(&body);
    bytes
}

fn main() {
    let folder = baseline::data_folder();
    let data = folder.path().join("broker");
    let net = TestNet::new().node("g22", &["000.00.00.G22"]).node("h37", &["H37.DN.001"]).with(move |config| {
        let defaults = docaxis_broker::BrokerConfig::new(data, config.broker.identity.clone());
        config.broker.data = defaults.broker.data;
        config.store = defaults.store;
        config.broker.streams_per_node = 1024;
        config.quota = docaxis_broker::quota::QuotaSection::unlimited();
    });
    let net = net.start();
    let disk = SyncedFile::create(folder.path());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let g22 = RawNode::link(&net, "g22").await;
        let one = sealed(&g22, u64::MAX);
        let answer = wire::exchange(&g22.connection, &one).await;
        let (request_bytes, record_bytes) = (one.len(), one.len() + answer.len());
        let address = wire::answering(&net.config.broker.identity, request_bytes, answer.len());
        let (_endpoint, bare) = dial_as(&g22.identity, address).await.unwrap();
        println!("request {request_bytes} B, answer {} B, both stored: {record_bytes} B a record", answer.len());
        println!(
            "in flight | accepted/s | fdatasync, records/s | QUIC, requests/s | accepted to each | latency to both"
        );
        let mut number = 0;
        for (in_flight, count) in LEVELS {
            let (mut accepted, mut synced, mut asked) = (Vec::new(), Vec::new(), Vec::new());
            for _ in 0..WINDOWS {
                let requests: Vec<_> = (0..count as u64).map(|at| sealed(&g22, number + at)).collect();
                number += count as u64;
                let requests = Arc::new(requests);
                let (per_s, answers) = wire::rate(&g22.connection, requests.clone(), in_flight).await;
                for answer in answers {
                    let Frame::Done(done) = Frame::decode(&answer).unwrap() else { panic!("not Done") };
                    assert_eq!(done.intake, Intake::Accepted);
                }
                accepted.push(per_s);
                synced.push(disk.records_per_s(record_bytes, in_flight, Duration::from_millis(500)));
                asked.push(wire::rate(&bare, requests, in_flight).await.0);
            }
            let (accepted, synced, asked) = (median(accepted), median(synced), median(asked));
            // What one dispatch would take if it only crossed the wire and was synced.
            let floor = 1.0 / synced + 1.0 / asked;
            println!(
                "{in_flight:9} | {accepted:10.0} | {synced:20.0} | {asked:16.0} | {:.3} and {:.3} | {:.2}",
                accepted / synced,
                accepted / asked,
                1.0 / accepted / floor,
            );
            if in_flight == 1 {
                println!(
                    "            one dispatch takes {:.0} us; fdatasync {:.0} us + round trip {:.0} us",
                    1e6 / accepted,
                    1e6 / synced,
                    1e6 / asked
                );
            }
        }
    });
    drop(runtime);
}
