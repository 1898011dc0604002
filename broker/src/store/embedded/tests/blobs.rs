//! Large bodies through the store's whole life, with the power cut at every operation on the disk: brought in, named by a
//! dispatch, delivered, pruned, and collected.

use std::path::Path;
use std::sync::Arc;

use super::super::*;
use super::support::*;
use crate::blobs::BlobError;
use crate::disk::sim::{Cut, Failure, SimDisk};
use crate::store::claims::{agency, body_of, handover, letter, wait};
use crate::store::{Body, Seq};

const LARGE: usize = 70_000;

/// Letter `n` with a body that is a file of its own.
fn letter_with_blob(n: u64) -> (Acceptance, Body) {
    let body = body_of(n, LARGE);
    let part = PartDigest { sha256: body.sha256, size: LARGE as u64 };
    (Acceptance { bodies: vec![], parts: vec![part], ..letter(n, &["H37.DN.001"]) }, body)
}

fn bring(store: &EmbeddedStore, body: &Body) -> Result<(), BlobError> {
    let part = PartDigest { sha256: body.sha256, size: body.bytes.len() as u64 };
    let mut writer = store.blobs().writer(&agency("000.00.00.G22"), part);
    body.bytes.chunks(32 << 10).try_for_each(|chunk| writer.write(chunk))?;
    writer.finish()
}

#[derive(Default, Clone)]
struct Done {
    accepted: Vec<(u64, u64)>,
    delivered: Vec<u64>,
}

/// Letters 0 to 2 are accepted, 0 is delivered; 3 has its body brought and is never submitted. Bodies of what was
/// delivered are pruned at once.
fn work(store: &EmbeddedStore, done: &mut Done) -> Option<()> {
    for n in 0..3 {
        let (sent, body) = letter_with_blob(n);
        bring(store, &body).ok()?;
        let Ok(Accepted::New(Seq(seq))) = wait(store.accept(sent.clone())) else { return None };
        done.accepted.push((n, seq));
        if n == 0 {
            wait(store.record(handover(seq, "H37.DN.001", &sent.evidence))).ok()?;
            done.delivered.push(n);
        }
    }
    bring(store, &letter_with_blob(3).1).ok()?;
    // A later record's time is what retention goes by.
    wait(store.accept(letter(1_000, &["A53.01"]))).ok()?;
    Some(())
}

fn blob_files(disk: &SimDisk) -> Vec<String> {
    let dir = Path::new(DATA).join("blobs");
    let folders = disk.list(&dir).unwrap();
    folders.iter().flat_map(|folder| disk.list(&dir.join(folder)).unwrap()).collect()
}

#[test]
fn a_power_cut_at_any_operation_loses_no_large_body_that_is_waited_for_and_keeps_none_that_is_not() {
    let total = {
        let (disk, index) = (SimDisk::new(), Arc::default());
        let store = open(&disk, &index).unwrap();
        work(&store, &mut Done::default()).unwrap();
        wait(store.close()).unwrap();
        disk.operations()
    };
    let mut complete = 0;
    for k in 1..=total + 40 {
        let (disk, index) = (SimDisk::new(), Arc::new(MemoryIndex::default()));
        disk.fail_at(k, Failure::PowerLoss);
        let mut done = Done::default();
        if let Ok(store) = open(&disk, &index)
            && work(&store, &mut done).is_some()
        {
            complete += 1;
        }
        disk.heal();
        for cut in [Cut::Drop, Cut::Tear(k), Cut::Keep] {
            let context = format!("power cut at operation {k} of {total}, {cut:?}");
            let after = disk.after(cut);
            let store = open(&after, &copy(&index)).unwrap_or_else(|e| panic!("{context}: {e}"));
            for (n, seq) in &done.accepted {
                let (sent, body) = letter_with_blob(*n);
                assert_eq!(wait(store.accept(sent.clone())).unwrap(), Accepted::Already(Seq(*seq), sent.evidence));
                if !done.delivered.contains(n) && *n != 0 {
                    let there = after.read(&store.blobs().path(&body.sha256));
                    assert_eq!(there.ok(), Some(body.bytes), "{context}: the body of letter {n}");
                    assert!(store.body(Seq(*seq), &sent.parts[0]).unwrap().is_some(), "{context}: letter {n}");
                }
            }
            // What a dispatch names that may still be accepted, and nothing else, has a file.
            let named: Vec<String> = (0..4)
                .filter(|n| store.body(Seq(*n), &letter_with_blob(*n).0.parts[0]).unwrap().is_some())
                .map(|n| letter_with_blob(n).1.sha256.to_string())
                .collect();
            let mut files = blob_files(&after);
            files.retain(|name| !named.contains(name));
            // The settler may be taking the delivered one away just now.
            files.retain(|name| *name != letter_with_blob(0).1.sha256.to_string());
            assert_eq!(files, Vec::<String>::new(), "{context}: bodies that nothing names");
        }
    }
    assert!(complete > 0 && complete < total, "{complete} of {total} ran to the end");
}

#[test]
fn a_body_that_was_lost_is_named_again_only_when_it_was_brought_again() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    let (sent, body) = letter_with_blob(1);
    bring(&store, &body).unwrap();
    wait(store.accept(sent.clone())).unwrap();
    let part = sent.parts[0].clone();
    disk.tamper(&store.blobs().path(&body.sha256), |bytes| bytes[9] ^= 1).unwrap();
    store.set_aside(&part).unwrap();
    assert_eq!((store.body(Seq(0), &part).unwrap(), store.holds(&sent.sender, &part).unwrap()), (None, false));
    let again = Acceptance { parts: sent.parts.clone(), bodies: vec![], ..letter(2, &["H37.DN.001"]) };
    assert!(wait(store.accept(again.clone())).is_err(), "a promise to deliver what is not there");
    wait(store.close()).unwrap();
    drop(store);
    // A rebuilt index knows as well that the body is wanted: it is not collected when it comes again.
    let rebuilt: Arc<MemoryIndex> = Arc::default();
    let store = open(&disk, &rebuilt).unwrap();
    assert_eq!(store.body(Seq(0), &part).unwrap(), None);
    bring(&store, &body).unwrap();
    assert!(store.holds(&sent.sender, &part).unwrap());
    assert!(matches!(wait(store.accept(again)).unwrap(), Accepted::New(_)));
    wait(store.close()).unwrap();
    drop(store);
    let store = open(&disk, &rebuilt).unwrap();
    assert_eq!(disk.read(&store.blobs().path(&body.sha256)).unwrap(), body.bytes);
}

#[test]
fn a_damaged_body_of_the_journal_is_set_aside_and_a_restored_one_outlives_its_segment() {
    let (disk, index) = (SimDisk::new(), Arc::default());
    let store = open(&disk, &index).unwrap();
    let (first, second) = (big_letter(3), big_letter(6));
    let letters = [(Seq(0), &first), (Seq(1), &second)];
    for (seq, sent) in letters {
        assert_eq!(wait(store.accept(sent.clone())).unwrap(), Accepted::New(seq));
    }
    let file = Path::new(DATA).join("journal").join(segments::file_name(1, "segment"));
    let journal = disk.read(&file).unwrap();
    let at = |body: &[u8]| journal.windows(body.len()).position(|window| window == body).unwrap();
    for (seq, sent) in letters {
        let at = at(&sent.bodies[0].bytes);
        disk.tamper(&file, |bytes| bytes[at + 10] ^= 1).unwrap();
        assert_eq!(store.body(seq, &sent.parts[0]).unwrap(), None);
        let aside = Path::new(DATA).join("damaged").join(format!("{}.body", sent.parts[0].sha256));
        assert_eq!(disk.read(&aside).unwrap()[10] ^ 1, sent.bodies[0].bytes[10]);
    }
    wait(store.restore(Seq(0), first.bodies.clone())).unwrap();
    let whole = Some(BodySource::Inline(first.bodies[0].bytes.clone()));
    assert_eq!(store.body(Seq(0), &first.parts[0]).unwrap(), whole);
    // Other traffic fills segments; the damaged one is settled, and neither stops the store nor loses the rest.
    let mut acknowledged = Acknowledged::default();
    acknowledged.work(&store, 100, 130).unwrap();
    assert_eq!(store.body(Seq(0), &first.parts[0]).unwrap(), whole);
    wait(store.restore(Seq(1), second.bodies.clone())).unwrap();
    wait(store.close()).unwrap();
    for index in [copy(&index), Arc::default()] {
        let store = open(&disk.after(Cut::Keep), &index).unwrap();
        for (seq, sent) in letters {
            let whole = Some(BodySource::Inline(sent.bodies[0].bytes.clone()));
            assert_eq!(store.body(seq, &sent.parts[0]).unwrap(), whole);
        }
        acknowledged.check(&store, "after the repair");
    }
}
