//! The embedded engine's settings, each with its unit and its price.

use std::sync::Arc;
use std::time::Duration;

use docaxis_protocol::partial::PartialsConfig;
use docaxis_protocol::space::SpaceConfig;

use super::bulk::Bounds;
use super::index::MemoryIndex;
use super::progress::Progress;
use crate::loops::Loops;
use crate::space::LOOK_EVERY;

/// Which index lies beside the journal.
#[derive(Clone)]
pub enum IndexKind {
    /// sled under `DATA/index/`.
    Sled,
    /// In memory: for tests and simulations. It survives as long as the value is kept.
    Memory(Arc<MemoryIndex>),
}

/// The smallest segment that holds any submission: 100 bodies of 64 KiB, an envelope with its receipt as large as an offer
/// may be, 4,096 recipients, certificates, and the segment's own framing.
pub const MIN_SEGMENT_BYTES: u64 = 8 << 20;

#[derive(Clone)]
pub struct EmbeddedConfig {
    /// Size of a journal segment, in bytes. Larger ones are changed less often; smaller ones are freed sooner. At
    /// least [`MIN_SEGMENT_BYTES`], or the largest submission fits into none and is refused for ever.
    pub segment_bytes: u64,
    /// Pre-written segments kept ready, so that changing to the next one costs three syncs and not its whole length.
    pub spare_segments: usize,
    /// How many of them new submissions may not take: overwriting one needs no room, so that handovers and expiries are
    /// recorded on a full disk as well.
    pub reserved_segments: usize,
    /// Full segments that may wait to be settled; over it, new submissions are refused as `busy` until the settler has
    /// caught up. Bounds the journal, and what a start reads.
    pub max_unsettled_segments: u64,
    /// An evidence file is closed after the first journal segment that takes it over this many bytes.
    pub evidence_file_bytes: u64,
    /// The most records in one group: bounds the wait of the first of them.
    pub group_records: usize,
    /// The most bytes in one group.
    pub group_bytes: usize,
    /// The longest that records are collected for one group. Nothing waits for it: a group is closed when the queue is
    /// empty.
    pub collect: Duration,
    /// Requests waiting for the committer; over it, callers wait before they are queued.
    pub queue_records: usize,
    /// After this long without a commit, the durable position is written.
    pub idle: Duration,
    /// How long bodies are kept after their dispatch's last delivery ended. Envelopes and evidence stay for good.
    pub keep_bodies: Duration,
    /// How much of the disk is kept back.
    pub space: SpaceConfig,
    /// What is kept of uploads that broke off.
    pub partials: PartialsConfig,
    /// How often the disk is looked at.
    pub look_every: Duration,
    pub index: IndexKind,
    /// sled's cache, in bytes.
    pub index_cache_bytes: u64,
    /// Changed rows held in memory before they are written to the index in one batch; about 200 bytes each, and twice
    /// as many at most.
    pub index_batch_rows: usize,
    /// The longest that a changed row waits in memory: bounds what is applied again after a crash.
    pub index_every: Duration,
    /// What a rebuild of the index keeps in memory: the less, the more often it writes and reads rows again.
    pub rebuild: Bounds,
    /// Where committer, settler and the others run.
    pub loops: Loops,
    /// How far the opening is, for whoever shares it.
    pub progress: Arc<Progress>,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            spare_segments: 3,
            reserved_segments: 1,
            max_unsettled_segments: 16,
            evidence_file_bytes: 256 << 20,
            group_records: 1024,
            group_bytes: 8 << 20,
            collect: Duration::from_millis(2),
            queue_records: 4096,
            idle: Duration::from_secs(1),
            keep_bodies: Duration::from_secs(30 * 24 * 3600),
            space: SpaceConfig::default(),
            partials: PartialsConfig::default(),
            look_every: LOOK_EVERY,
            index: IndexKind::Sled,
            index_cache_bytes: 64 << 20,
            index_batch_rows: 4 << 10,
            index_every: Duration::from_secs(1),
            rebuild: Bounds::default(),
            loops: Loops::Threads,
            progress: Arc::default(),
        }
    }
}
