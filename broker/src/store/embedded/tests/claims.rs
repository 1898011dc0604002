use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::super::*;
use crate::disk::RealDisk;
use crate::disk::sim::SimDisk;
use crate::store::claims::CLAIMS;

fn small(index: IndexKind) -> EmbeddedConfig {
    EmbeddedConfig {
        segment_bytes: 4 << 20,
        spare_segments: 1,
        index_every: Duration::from_millis(20),
        index,
        ..EmbeddedConfig::default()
    }
}

#[test]
fn every_claim_holds_on_a_real_disk_with_sled() {
    for (name, claim) in CLAIMS {
        println!("{name}");
        let dir = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> =
            EmbeddedStore::open(dir.path(), small(IndexKind::Sled), Arc::new(RealDisk)).unwrap();
        claim(&store);
    }
}

#[test]
fn every_claim_holds_in_memory() {
    for (name, claim) in CLAIMS {
        println!("{name}");
        let index = IndexKind::Memory(Arc::default());
        let store: Arc<dyn Store> =
            EmbeddedStore::open(Path::new("/data"), small(index), Arc::new(SimDisk::new())).unwrap();
        claim(&store);
    }
}
