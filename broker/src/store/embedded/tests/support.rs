//! A store on a simulated disk, a workload that remembers what was acknowledged, and the check that it is all there.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use docaxis_protocol::space::SpaceConfig;

use super::super::*;
use crate::disk::sim::SimDisk;
use crate::store::claims::*;
use crate::store::{DeliveryState, Seq};

pub const DATA: &str = "/data";

/// Segments so small that a few letters fill one, and a settler that hardly waits.
pub fn tiny(index: &Arc<MemoryIndex>) -> EmbeddedConfig {
    EmbeddedConfig {
        segment_bytes: 64 << 10,
        spare_segments: 1,
        reserved_segments: 0,
        max_unsettled_segments: 10_000,
        // Its files and its thread would make the operations on the disk other ones in each run.
        space: SpaceConfig { ballast_mib: 0, ..SpaceConfig::default() },
        evidence_file_bytes: 8 << 10,
        idle: Duration::from_millis(2),
        keep_bodies: Duration::ZERO,
        index: IndexKind::Memory(index.clone()),
        index_batch_rows: 50,
        index_every: Duration::from_millis(1),
        ..EmbeddedConfig::default()
    }
}

pub fn open(disk: &SimDisk, index: &Arc<MemoryIndex>) -> Result<Arc<EmbeddedStore>, StoreError> {
    EmbeddedStore::open(Path::new(DATA), tiny(index), Arc::new(disk.clone()))
}

/// A copy of the index as the process left it.
pub fn copy(index: &MemoryIndex) -> Arc<MemoryIndex> {
    let copied = MemoryIndex::default();
    copied.apply(&index.rows().into_iter().map(|(key, value)| (key, Some(value))).collect()).unwrap();
    Arc::new(copied)
}

/// What the store acknowledged.
#[derive(Default, Clone)]
pub struct Acknowledged {
    accepted: Vec<(u64, Acceptance)>,
    recorded: Vec<(u64, Record)>,
    rejected: Vec<(u64, Rejection)>,
    notices: u64,
}

pub fn big_letter(n: u64) -> Acceptance {
    let body = body_of(n, 6_000);
    let part = PartDigest { sha256: body.sha256, size: 6_000 };
    Acceptance { bodies: vec![body], parts: vec![part], ..letter(n, &["H37.DN.001", "A53.01"]) }
}

impl Acknowledged {
    /// Letters `from..to`: each accepted, most handed over to both, every third waiting at one. Stops at the first
    /// refusal, and says whether there was one.
    pub fn work(&mut self, store: &EmbeddedStore, from: u64, to: u64) -> Result<(), StoreError> {
        for n in from..to {
            let sent = big_letter(n);
            let Accepted::New(Seq(seq)) = wait(store.accept(sent.clone()))? else { panic!("letter {n} is new") };
            self.accepted.push((seq, sent.clone()));
            for code in ["H37.DN.001", "A53.01"] {
                if n % 3 == 0 && code == "A53.01" {
                    continue;
                }
                let record = handover(seq, code, &sent.evidence);
                let Recorded::New(leaf) = wait(store.record(record.clone()))? else { panic!("not stale") };
                self.recorded.push((leaf, record));
            }
            if n % 4 == 0 {
                let refused = rejection(10_000 + n);
                let Rejected::New(leaf) = wait(store.reject(refused.clone()))? else { panic!("rejection {n} is new") };
                self.rejected.push((leaf, refused));
                wait(store.put_notices(vec![("crl/nodes".into(), n.to_be_bytes().to_vec())]))?;
                self.notices = n;
            }
        }
        Ok(())
    }

    /// Everything acknowledged is there with identical bytes, nothing is half there, and the log has no gap.
    pub fn check(&self, store: &EmbeddedStore, context: &str) {
        let log = store.log_entries(0, usize::MAX).unwrap();
        assert_eq!(store.counts().leaves, log.len() as u64, "{context}: the log's size");
        for (seq, sent) in &self.accepted {
            let found = store.dispatch(Seq(*seq)).unwrap().unwrap_or_else(|| panic!("{context}: {seq} is lost"));
            assert_eq!((found.id, &found.envelope), (sent.id, &sent.envelope), "{context}: {seq}");
            assert_eq!((&found.evidence, &found.parts), (&sent.evidence, &sent.parts), "{context}: {seq}");
            assert_eq!(log[usize::try_from(*seq).unwrap()], sent.evidence.log_entry(), "{context}: {seq}");
            assert_eq!(store.lookup(&sent.sender, sent.id).unwrap(), Some(Seq(*seq)), "{context}: {seq}");
            let answered = store.answered(sent.id, sent.envelope.digest()).unwrap().map(|known| known.seq);
            assert_eq!(answered, Some(Seq(*seq)), "{context}: {seq}");
        }
        for (leaf, record) in &self.recorded {
            let found = store.evidence(Seq(record.seq)).unwrap();
            let found = found.iter().find(|stored| stored.leaf == *leaf);
            let found = found.unwrap_or_else(|| panic!("{context}: leaf {leaf} is lost"));
            assert_eq!(found.evidence, record.evidence, "{context}: leaf {leaf}");
            let delivery = store.delivery(Seq(record.seq), &record.recipient).unwrap().unwrap();
            assert_eq!((delivery.state, delivery.head), (record.state, record.evidence.digest()), "{context}");
        }
        for (leaf, refused) in &self.rejected {
            let found = store.dispatch(Seq(*leaf)).unwrap().unwrap();
            assert_eq!((found.id, found.evidence), (refused.id, refused.evidence.clone()), "{context}: {leaf}");
            let answered = store.answered(refused.id, refused.envelope.digest()).unwrap().map(|known| known.seq);
            assert_eq!(answered, Some(Seq(*leaf)), "{context}: {leaf}");
        }
        if self.notices > 0 {
            let notices = store.notices().unwrap();
            let newest = u64::from_be_bytes(notices[0].1.clone().try_into().unwrap());
            assert!(newest >= self.notices, "{context}: notice {newest}, expected {}", self.notices);
        }
        whole(store, &log, context);
    }
}

/// Whatever is there, acknowledged or not, is whole.
fn whole(store: &EmbeddedStore, log: &[Digest], context: &str) {
    let mut waiting = 0;
    let mut leaves = vec![];
    for leaf in 0..log.len() as u64 {
        for stored in store.evidence(Seq(leaf)).unwrap() {
            assert_eq!(stored.evidence.log_entry(), log[usize::try_from(stored.leaf).unwrap()], "{context}");
            leaves.push(stored.leaf);
        }
        let Some(dispatch) = store.dispatch(Seq(leaf)).unwrap() else { continue };
        let deliveries = store.deliveries(Seq(leaf)).unwrap();
        for delivery in deliveries.iter().filter(|delivery| delivery.state == DeliveryState::Waiting) {
            waiting += 1;
            let waiting_there = queue(store, &delivery.recipient);
            assert!(waiting_there.iter().any(|waiting| waiting.seq.0 == leaf), "{context}: {leaf} is in no queue");
            for part in &dispatch.parts {
                let body = store.body(Seq(leaf), part).unwrap();
                assert!(body.is_some(), "{context}: the body of {leaf} is lost, and it waits");
            }
        }
    }
    leaves.sort_unstable();
    assert_eq!(leaves, (0..log.len() as u64).collect::<Vec<_>>(), "{context}: each leaf belongs to one dispatch");
    assert_eq!(store.counts().waiting, waiting, "{context}: deliveries that wait");
}

/// Everything that a user can see.
pub fn visible(store: &EmbeddedStore, letters: u64) -> Vec<String> {
    let mut seen = vec![format!("{:?}", store.counts()), format!("{:?}", store.notices().unwrap())];
    let leaves = store.counts().leaves;
    seen.push(format!("{:?}", store.log_entries(0, usize::MAX).unwrap()));
    for leaf in 0..leaves {
        seen.push(format!("{:?}", store.dispatch(Seq(leaf)).unwrap()));
        seen.push(format!("{:?}", store.deliveries(Seq(leaf)).unwrap()));
        seen.push(format!("{:?}", store.evidence(Seq(leaf)).unwrap()));
    }
    let sender = agency("000.00.00.G22");
    seen.push(format!("{:?}", store.unfinished_bytes(&sender).unwrap()));
    seen.push(format!("{:?}", store.evidence_for_sender(&sender, 0, usize::MAX).unwrap()));
    for code in ["H37.DN.001", "A53.01"] {
        seen.push(format!("{:?}", queue(store, &agency(code))));
    }
    let late = letter(1_000_000, &[]).expires;
    seen.push(format!("{:?}", store.expired(late, usize::MAX).unwrap()));
    for n in 0..letters {
        let sent = big_letter(n);
        seen.push(format!("{:?} {:?}", store.lookup(&sent.sender, sent.id), store.find(sent.id)));
        for seq in store.find(sent.id).unwrap() {
            seen.push(format!("{:?}", store.body(seq, &sent.parts[0]).unwrap()));
        }
    }
    seen
}
