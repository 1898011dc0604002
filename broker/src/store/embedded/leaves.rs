//! The index's table of leaves, as one flat file: slot N holds the row of leaf N, with a checksum.
//!
//! Leaves are numbered without gaps and looked up by number, so a file of slots does for a hundredth of the work what an
//! ordered map would do. Like all of the index it is a view: nothing here is synced before the store is closed, and a
//! slot that does not read leads to a rebuild. A batch may be written in part when the process dies; the rows are such
//! that applying the journal's records to later rows gives the same rows again.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

use super::index::Row;
use super::keys;

/// Of one slot: a length, a checksum, the row.
pub const SLOT_BYTES: usize = 256;
const HEADER_BYTES: usize = 8;
/// The longest row.
pub const MAX_LEAF_ROW_BYTES: usize = SLOT_BYTES - HEADER_BYTES;
/// Slots read or written at once: bounds the buffer.
const SLOTS_AT_ONCE: usize = 1024;

pub struct LeafFile {
    file: File,
    slots: AtomicU64,
    /// A slot that is read while it is written might be half of each.
    still: RwLock<()>,
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Of the slot's number as well, so that a slot in another's place does not read.
fn checksum(leaf: u64, row: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&leaf.to_le_bytes()), row)
}

fn encode(leaf: u64, row: &[u8], slot: &mut [u8]) -> io::Result<()> {
    let length = u32::try_from(row.len()).ok().filter(|_| row.len() <= MAX_LEAF_ROW_BYTES);
    let length = length.ok_or_else(|| {
        damaged(format!("the row of leaf {leaf} has {} bytes; a slot holds {MAX_LEAF_ROW_BYTES}", row.len()))
    })?;
    slot.fill(0);
    // One more than the length, so that a slot that was never written is told from an empty row.
    slot[..4].copy_from_slice(&(length + 1).to_le_bytes());
    slot[4..8].copy_from_slice(&checksum(leaf, row).to_le_bytes());
    slot[HEADER_BYTES..HEADER_BYTES + row.len()].copy_from_slice(row);
    Ok(())
}

fn decode(leaf: u64, slot: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let number = |at: usize| u32::from_le_bytes([slot[at], slot[at + 1], slot[at + 2], slot[at + 3]]);
    let Some(length) = number(0).checked_sub(1) else {
        return match slot.iter().all(|byte| *byte == 0) {
            true => Ok(None),
            false => Err(damaged(format!("the slot of leaf {leaf} does not read"))),
        };
    };
    let row = usize::try_from(length).ok().and_then(|length| slot.get(HEADER_BYTES..HEADER_BYTES.checked_add(length)?));
    match row {
        Some(row) if checksum(leaf, row) == number(4) => Ok(Some(row.to_vec())),
        _ => Err(damaged(format!("the slot of leaf {leaf} does not read"))),
    }
}

impl LeafFile {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let slots = AtomicU64::new(file.metadata()?.len().div_ceil(SLOT_BYTES as u64));
        Ok(Self { file, slots, still: RwLock::default() })
    }

    /// For taking room behind its end.
    pub const fn file(&self) -> &File {
        &self.file
    }

    /// One more than the highest leaf that was ever written.
    pub fn end(&self) -> u64 {
        self.slots.load(Ordering::Acquire)
    }

    pub fn get(&self, leaf: u64) -> io::Result<Option<Vec<u8>>> {
        let mut slot = [0; SLOT_BYTES];
        if leaf >= self.end() {
            return Ok(None);
        }
        self.read(leaf, &mut slot)?;
        decode(leaf, &slot)
    }

    /// Fills the buffer from the slots from `leaf` on; what the file does not have is zero.
    fn read(&self, leaf: u64, buffer: &mut [u8]) -> io::Result<()> {
        let _still = self.still.read().unwrap_or_else(PoisonError::into_inner);
        let mut at = 0;
        while at < buffer.len() {
            match self.file.read_at(&mut buffer[at..], leaf * SLOT_BYTES as u64 + at as u64)? {
                0 => break,
                read => at += read,
            }
        }
        Ok(())
    }

    /// Up to `limit` rows with `from <= leaf < to`.
    pub fn scan(&self, from: u64, to: u64, limit: usize) -> io::Result<Vec<Row>> {
        let mut found = Vec::new();
        let (mut at, to) = (from, to.min(self.end()));
        let mut buffer = Vec::new();
        while at < to && found.len() < limit {
            let left = usize::try_from(to - at).unwrap_or(usize::MAX);
            let slots = left.min(limit - found.len()).min(SLOTS_AT_ONCE);
            buffer.clear();
            buffer.resize(slots * SLOT_BYTES, 0);
            self.read(at, &mut buffer)?;
            for slot in buffer.chunks_exact(SLOT_BYTES) {
                found.extend(decode(at, slot)?.map(|row| (keys::leaf(at), row)));
                at += 1;
            }
        }
        Ok(found)
    }

    /// Writes rows in order of their leaves; those that follow one another go together. `None` empties a slot.
    pub fn write<'a>(&self, rows: impl Iterator<Item = (u64, Option<&'a [u8]>)>) -> io::Result<()> {
        let mut buffer: Vec<u8> = Vec::new();
        let mut first = 0;
        for (leaf, row) in rows {
            let slots = buffer.len() / SLOT_BYTES;
            if slots > 0 && (leaf != first + slots as u64 || slots >= SLOTS_AT_ONCE) {
                self.flush(first, &mut buffer)?;
            }
            if buffer.is_empty() {
                first = leaf;
            }
            let at = buffer.len();
            buffer.resize(at + SLOT_BYTES, 0);
            if let Some(row) = row {
                encode(leaf, row, &mut buffer[at..])?;
            }
        }
        if buffer.is_empty() { Ok(()) } else { self.flush(first, &mut buffer) }
    }

    fn flush(&self, first: u64, buffer: &mut Vec<u8>) -> io::Result<()> {
        let _still = self.still.write().unwrap_or_else(PoisonError::into_inner);
        self.file.write_all_at(buffer, first * SLOT_BYTES as u64)?;
        self.slots.fetch_max(first + (buffer.len() / SLOT_BYTES) as u64, Ordering::AcqRel);
        buffer.clear();
        Ok(())
    }

    pub fn clear(&self) -> io::Result<()> {
        let _still = self.still.write().unwrap_or_else(PoisonError::into_inner);
        self.slots.store(0, Ordering::Release);
        self.file.set_len(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> (tempfile::TempDir, LeafFile) {
        let folder = tempfile::tempdir().unwrap();
        let leaves = LeafFile::open(&folder.path().join("leaves")).unwrap();
        (folder, leaves)
    }

    fn rows(of: &[(u64, &str)]) -> Vec<Row> {
        of.iter().map(|(leaf, row)| (keys::leaf(*leaf), row.as_bytes().to_vec())).collect()
    }

    #[test]
    fn rows_are_found_by_number_and_in_order_across_gaps_and_reopening() {
        let (folder, leaves) = file();
        let written = [(0, Some("a")), (1, Some("")), (2, Some("c")), (5_000, Some("far")), (2, Some("c again"))];
        for (leaf, row) in written {
            leaves.write([(leaf, row.map(str::as_bytes))].into_iter()).unwrap();
        }
        leaves.write((3..1_900).map(|leaf| (leaf, Some(&b"bulk"[..])))).unwrap();
        leaves.write([(4, None), (6, Some(&b"six"[..]))].into_iter()).unwrap();
        for leaves in [&leaves, &LeafFile::open(&folder.path().join("leaves")).unwrap()] {
            let head = rows(&[(0, "a"), (1, ""), (2, "c again"), (3, "bulk"), (5, "bulk"), (6, "six")]);
            assert_eq!(leaves.scan(0, 7, 100).unwrap(), head);
            assert_eq!(leaves.scan(1_899, u64::MAX, 9).unwrap(), rows(&[(1_899, "bulk"), (5_000, "far")]));
            assert_eq!(leaves.scan(2, u64::MAX, 2).unwrap(), rows(&[(2, "c again"), (3, "bulk")]));
            assert_eq!(leaves.get(4).unwrap(), None);
            assert_eq!(leaves.get(9_999).unwrap(), None);
        }
    }

    #[test]
    fn a_flipped_bit_and_a_slot_in_anothers_place_do_not_read() {
        let (_folder, leaves) = file();
        leaves.write((0..3).map(|leaf| (leaf, Some(&b"row"[..])))).unwrap();
        let mut slot = [0; SLOT_BYTES];
        leaves.read(1, &mut slot).unwrap();
        for bit in 0..(HEADER_BYTES + 3) * 8 {
            let mut flipped = slot;
            flipped[bit / 8] ^= 1 << (bit % 8);
            leaves.file.write_all_at(&flipped, SLOT_BYTES as u64).unwrap();
            assert!(leaves.get(1).is_err(), "bit {bit}");
        }
        leaves.file.write_all_at(&slot, 2 * SLOT_BYTES as u64).unwrap();
        assert!(leaves.get(2).is_err());
    }

    #[test]
    fn a_row_longer_than_a_slot_is_refused() {
        let (_folder, leaves) = file();
        let longest = vec![7; MAX_LEAF_ROW_BYTES];
        leaves.write([(0, Some(&longest[..]))].into_iter()).unwrap();
        assert_eq!(leaves.get(0).unwrap(), Some(longest));
        let longer = [7; MAX_LEAF_ROW_BYTES + 1];
        assert!(leaves.write([(0, Some(&longer[..]))].into_iter()).is_err());
    }
}
