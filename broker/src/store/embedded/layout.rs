//! Bytes of the journal's and evidence's own framing: file header, group header, record frame. All numbers are
//! little-endian. `docs/format.md` describes them for readers in other languages.
//!
//! Knows no file and no record's meaning. Every piece carries a CRC-32C, so that damage is found and not believed.

use docaxis_protocol::Digest;

/// Groups begin at multiples of this, and are padded to it: a write never shares a page with an acknowledged one.
pub const PAGE: usize = 4096;
pub const FILE_HEADER_BYTES: usize = 48;
pub const GROUP_HEADER_BYTES: usize = 56;
pub const FRAME_HEADER_BYTES: usize = 24;
pub const VERSION: u32 = 2;
/// Where a group's CRC-32C stands; behind it the beginning of SHA-256 over its records.
pub const CRC_AT: usize = 44;
const HASH_AT: usize = CRC_AT + 4;
const GROUP_MAGIC: [u8; 4] = *b"DXgr";

/// What a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    Journal,
    Evidence,
}

impl FileKind {
    const fn magic(self) -> [u8; 8] {
        match self {
            Self::Journal => *b"dxjournl",
            Self::Evidence => *b"dxeviden",
        }
    }
}

/// The first bytes of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileHeader {
    /// The segment's number, which is also the epoch of its groups: a recycled file gets a new one.
    pub number: u64,
    /// Drawn at random for each use of the file. Groups repeat it, so that no body can pass for a group.
    pub salt: u64,
    /// Journal: sequence of the first group. Evidence: the last journal segment that is wholly in earlier files.
    pub first: u64,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

impl FileHeader {
    pub fn encode(&self, kind: FileKind) -> [u8; FILE_HEADER_BYTES] {
        let mut bytes = [0; FILE_HEADER_BYTES];
        bytes[..8].copy_from_slice(&kind.magic());
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.number.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.salt.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.first.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..44]);
        bytes[44..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// The header, or what is wrong with it.
    pub fn decode(kind: FileKind, bytes: &[u8]) -> Result<Self, String> {
        if bytes.len() < FILE_HEADER_BYTES {
            return Err(format!("the file has {} bytes, a header has {FILE_HEADER_BYTES}", bytes.len()));
        }
        if bytes[..8] != kind.magic() {
            return Err(format!("the file does not begin like a segment of {kind:?}"));
        }
        let (found, stored) = (crc32c::crc32c(&bytes[..44]), u32_at(bytes, 44));
        if found != stored {
            return Err(format!("the header's CRC-32C is {found:08x}; it says {stored:08x}"));
        }
        match u32_at(bytes, 8) {
            VERSION => Ok(Self { number: u64_at(bytes, 16), salt: u64_at(bytes, 24), first: u64_at(bytes, 32) }),
            other => Err(format!("the format's version is {other}; this program reads {VERSION}")),
        }
    }
}

/// What stands in front of a group of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupHeader {
    pub epoch: u64,
    pub salt: u64,
    pub sequence: u64,
    /// Highest sequence that was durable when this group was written.
    pub durable: u64,
    /// Header and records, without the padding.
    pub length: u32,
    pub records: u32,
}

impl GroupHeader {
    /// Writes the header into the first bytes of `group`, whose records follow it.
    pub fn seal(&self, group: &mut [u8]) {
        group[..4].copy_from_slice(&GROUP_MAGIC);
        group[4..8].copy_from_slice(&self.length.to_le_bytes());
        group[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        group[16..24].copy_from_slice(&self.salt.to_le_bytes());
        group[24..32].copy_from_slice(&self.sequence.to_le_bytes());
        group[32..40].copy_from_slice(&self.durable.to_le_bytes());
        group[40..44].copy_from_slice(&self.records.to_le_bytes());
        let hash = records_hash(group);
        group[HASH_AT..GROUP_HEADER_BYTES].copy_from_slice(&hash);
        let crc = group_crc(group);
        group[CRC_AT..HASH_AT].copy_from_slice(&crc.to_le_bytes());
    }

    /// Reads a header without checking the group's CRC; `None` if these bytes do not begin a group.
    pub fn peek(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < GROUP_HEADER_BYTES || bytes[..4] != GROUP_MAGIC {
            return None;
        }
        Some(Self {
            length: u32_at(bytes, 4),
            epoch: u64_at(bytes, 8),
            salt: u64_at(bytes, 16),
            sequence: u64_at(bytes, 24),
            durable: u64_at(bytes, 32),
            records: u32_at(bytes, 40),
        })
    }

    /// Whether `group`, header and records, is what was written.
    pub fn holds(group: &[u8]) -> bool {
        group.len() >= GROUP_HEADER_BYTES && group_crc(group) == u32_at(group, CRC_AT)
    }

    /// Whether the records of `group` are what was written, as far as SHA-256 tells: this does not hang together with any
    /// CRC-32C, as the records' own do.
    pub fn records_hold(group: &[u8]) -> bool {
        group.len() >= GROUP_HEADER_BYTES && records_hash(group) == group[HASH_AT..GROUP_HEADER_BYTES]
    }
}

/// Over the whole group but the field itself.
fn group_crc(group: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&group[..CRC_AT]), &group[HASH_AT..])
}

/// The first bytes of SHA-256 over the records.
fn records_hash(group: &[u8]) -> [u8; GROUP_HEADER_BYTES - HASH_AT] {
    let digest = Digest::of(&group[GROUP_HEADER_BYTES..]);
    std::array::from_fn(|at| digest.0[at])
}

/// Rounds up to a whole number of pages.
pub const fn padded(length: usize) -> usize {
    length.div_ceil(PAGE) * PAGE
}

/// No leaf: the record adds nothing to the evidence log.
pub const NO_LEAF: u64 = u64::MAX;

/// What stands in front of a record: `meta` is the encoded record, `tail` the bodies that it brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    pub meta: u32,
    pub tail: u32,
    /// Index of the record's first evidence in the log; its others follow without a gap.
    pub leaf: u64,
    /// Over the header's other fields and `meta`; a body is checked by its digest.
    pub crc: u32,
}

impl FrameHeader {
    pub fn encode(meta: &[u8], tail: u32, leaf: u64) -> [u8; FRAME_HEADER_BYTES] {
        let mut bytes = [0; FRAME_HEADER_BYTES];
        let length = u32::try_from(meta.len()).unwrap_or(u32::MAX);
        bytes[..4].copy_from_slice(&length.to_le_bytes());
        bytes[4..8].copy_from_slice(&tail.to_le_bytes());
        bytes[8..16].copy_from_slice(&leaf.to_le_bytes());
        bytes[16..20].copy_from_slice(&VERSION.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..20]), meta);
        bytes[20..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < FRAME_HEADER_BYTES || u32_at(bytes, 16) != VERSION {
            return None;
        }
        Some(Self { meta: u32_at(bytes, 0), tail: u32_at(bytes, 4), leaf: u64_at(bytes, 8), crc: u32_at(bytes, 20) })
    }

    /// Whether header and `meta` are what was written; `header` are the frame's first bytes.
    pub fn holds(&self, header: &[u8], meta: &[u8]) -> bool {
        header.len() >= FRAME_HEADER_BYTES && crc32c::crc32c_append(crc32c::crc32c(&header[..20]), meta) == self.crc
    }

    /// Header, meta and tail.
    pub const fn whole(&self) -> u64 {
        FRAME_HEADER_BYTES as u64 + self.meta as u64 + self.tail as u64
    }
}
