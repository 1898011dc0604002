//! The embedded engine's settings, each with its unit and its price.

use std::sync::Arc;
use std::time::Duration;

use super::index::MemoryIndex;

/// Which index lies beside the journal.
#[derive(Clone)]
pub enum IndexKind {
    /// sled under `DATA/index/`.
    Sled,
    /// In memory: for tests and simulations. It survives as long as the value is kept.
    Memory(Arc<MemoryIndex>),
}

#[derive(Clone)]
pub struct EmbeddedConfig {
    /// Size of a journal segment, in bytes. Larger ones are changed less often; smaller ones are freed sooner. At
    /// least 1 MiB more than the largest submission, or such a one is refused.
    pub segment_bytes: u64,
    /// Pre-written segments kept ready, so that changing to the next one costs three syncs and not its whole length.
    pub spare_segments: usize,
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
    pub index: IndexKind,
    /// sled's cache, in bytes.
    pub index_cache_bytes: u64,
    /// Changed rows held in memory before they are written to the index in one batch; about 200 bytes each, and twice
    /// as many at most.
    pub index_batch_rows: usize,
    /// The longest that a changed row waits in memory: bounds what is applied again after a crash.
    pub index_every: Duration,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            spare_segments: 2,
            evidence_file_bytes: 256 << 20,
            group_records: 1024,
            group_bytes: 8 << 20,
            collect: Duration::from_millis(2),
            queue_records: 4096,
            idle: Duration::from_secs(1),
            keep_bodies: Duration::from_secs(30 * 24 * 3600),
            index: IndexKind::Sled,
            index_cache_bytes: 64 << 20,
            index_batch_rows: 4 << 10,
            index_every: Duration::from_secs(1),
        }
    }
}
