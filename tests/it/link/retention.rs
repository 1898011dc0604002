//! What stays when journal segments have been freed, and that anyone can read what is on the disk from the document alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use docaxis::control::Control;
use docaxis_protocol::bundle::{self, Question};
use docaxis_protocol::frame::{Done, Intake, Standing};
use docaxis_protocol::{Digest, Event, ReasonCode};
use serde_json::Value;

use super::{DN, G22, TC, leaves, letter, net};
use crate::net::{Exchange, now};
use crate::raw::{RawNode, Sealed};

/// Settling and freeing take a moment each; a wait as long as this hangs.
const HANG: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// An exchange with the smallest segments, which keeps no body longer than it must.
fn frugal() -> Exchange {
    net().with(|config| config.store.keep_bodies = Duration::ZERO).start()
}

/// Sends and takes letters until the journal's first segment has been freed.
async fn free_the_first_segment(exchange: &Exchange, g22: &RawNode, h37: &RawNode) {
    for number in 0..40u8 {
        let body = |part: u8| [[number, part].repeat(1000), vec![part; 58_000]].concat();
        let sealed = letter(&[DN], &[&body(0), &body(1), &body(2), &body(3)]).seal(g22);
        g22.submit(&sealed).await.done();
        h37.take().await;
    }
    let first = exchange.config.broker.data.join("journal/0000000000000001.segment");
    let began = Instant::now();
    while first.exists() {
        assert!(began.elapsed() < HANG, "the first segment is not freed");
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// The broker's own bundle of a dispatch must hold for an auditor.
fn bundle_holds(exchange: &Exchange, sealed: &Sealed) {
    let control = Control::new(&docaxis_broker::control_socket(&exchange.config), "");
    let zip = std::thread::scope(|scope| {
        scope.spawn(|| control.bytes(&format!("/v1/dispatches/{}/bundle", sealed.id)).map_err(|e| e.message)).join()
    });
    let log = exchange.config.broker.data.join("log");
    let read = |path: &str| std::fs::read(log.join(path));
    let parts = sealed.bodies.iter().map(|body| (Digest::of(body), body.len() as u64)).collect::<BTreeMap<_, _>>();
    let question =
        Question { root: exchange.authority.root(), log: Some(&read), parts: Some(parts), ..Question::default() };
    let verdict = bundle::verify(&zip.unwrap().unwrap(), &question);
    assert!(verdict.holds(), "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn after_segments_were_freed_and_the_index_deleted_an_old_id_gets_its_receipt_and_an_old_bundle_holds() {
    let mut exchange = frugal();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let old = letter(&[DN], &[b"old"]).seal(&g22);
    let receipt = g22.submit(&old).await.done();
    h37.take().await;
    // This one is not taken: its body must outlive its segment.
    let waits = letter(&[TC], &[b"it waits"]).seal(&g22);
    g22.submit(&waits).await.done();
    let offered = h37.offered().await;
    assert_eq!(offered.envelope.id, waits.id);
    free_the_first_segment(&exchange, &g22, &h37).await;
    drop(offered);
    exchange.stop_broker();
    std::fs::remove_dir_all(exchange.config.broker.data.join("index")).unwrap();
    exchange.start_broker();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    assert_eq!(g22.submit(&old).await.done(), Done { intake: Intake::Already, ..receipt });
    bundle_holds(&exchange, &old);
    let (offered, outcome) = h37.take().await;
    assert_eq!(
        (offered.envelope.id, offered.bytes(), outcome.standing),
        (waits.id, waits.bodies.clone(), Standing::HandedOver)
    );
    bundle_holds(&exchange, &waits);
}

/// What `docaxis broker status --json` says.
fn status(config: &Path) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_docaxis"))
        .args(["broker", "status", "--json", "--config"])
        .arg(config)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What the reader in Python finds in the files, written from `docs/format.md` and knowing nothing of this program.
fn read_by_python(data: &Path) -> Value {
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader/journal.py");
    let lines = std::fs::read_to_string(&reader).unwrap().lines().count();
    assert!(lines <= 60, "the reader has {lines} lines; the format is to be readable in 60");
    let output = Command::new("python3").arg("-B").arg(reader).arg(data).output().expect("python3 is installed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_reader_written_from_the_document_alone_finds_what_the_broker_says() {
    let mut exchange = frugal();
    let data = exchange.config.broker.data.clone();
    let config = exchange.folder().join("broker.toml");
    std::fs::write(&config, "[broker]\ndata = \"broker\"\nidentity = \"broker-identity\"\n").unwrap();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    // Registered, refused by the node, expired, rejected at intake, to an unknown recipient beside a known one.
    g22.submit(&letter(&[DN], &[b"registered"]).seal(&g22)).await.done();
    let (offered, _) = h37.take().await;
    h37.report(&[offered.state(&h37, Event::Registered, &[])]).await.remove(0).unwrap();
    g22.submit(&letter(&[DN], &[b"refused"]).seal(&g22)).await.done();
    let mut offered = h37.offered().await;
    let why = ReasonCode::BadSeal.because("the seal does not verify here");
    let statement = offered.state(&h37, Event::ContentHandoverFailure, &[why]);
    assert_eq!(offered.answer(&statement).await.unwrap().standing, Standing::Failed);
    g22.submit(&letter(&["H37.XX.999"], &[]).seal(&g22)).await.done();
    free_the_first_segment(&exchange, &g22, &h37).await;
    h37.connection.close(0u32.into(), b"gone");
    let brief = letter(&[DN], &[b"expires"]).but(|e| e.expires = now().plus(Duration::from_secs(1)));
    let before = g22.submit(&brief.seal(&g22)).await.done().leaf;
    g22.follow(G22.0, before + 1, 1).await;
    for to in [&[DN][..], &[DN, TC]] {
        g22.submit(&letter(to, &[b"waits", &[7; 100_000]]).seal(&g22)).await.done();
    }
    let compare = |config: &Path| {
        let (said, found) = (status(config), read_by_python(&data));
        let said = [
            &said["evidence"],
            &said["dispatches"],
            &said["waiting"],
            &said["journal"]["settled"],
            &said["journal"]["sequence"],
        ];
        let found = ["leaves", "dispatches", "waiting", "settled", "sequence"].map(|name| &found[name]);
        (said.map(Value::clone), found.map(Value::clone))
    };
    // A mark may be written, or a segment settled, between the two looks.
    let agreed = |config: &Path| {
        let began = Instant::now();
        loop {
            let (said, found) = compare(config);
            if said == found {
                return said;
            }
            assert!(began.elapsed() < HANG, "the broker says {said:?}, the files say {found:?}");
            std::thread::sleep(LOOK_AGAIN);
        }
    };
    let said = agreed(&config);
    assert_eq!((said[0].as_u64(), said[2].as_u64()), (Some(leaves(&exchange)), Some(3)));
    assert!(said[3].as_u64() >= Some(1), "no segment was settled");
    exchange.stop_broker();
    let found = read_by_python(&data);
    assert_eq!(
        (found["durable"].as_u64(), found["leaves"].clone()),
        (found["sequence"].as_u64().map(|n| n - 1), said[0].clone())
    );
    exchange.start_broker();
    assert_eq!(agreed(&config)[..3], said[..3]);
}
