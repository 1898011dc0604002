//! The index's table of ids, as one file of pages: the newest leaf of each dispatch id. A linear hash, which grows a page at
//! a time, so that finding an id and adding one cost the same however many there are.
//!
//! Entries are never removed: whether an id is still kept from being used anew is a matter of time, and the leaf's row has
//! it, as it has the leaf before it under the same id. A page holds hashes, not ids, so what is found here may be another
//! id's, and the leaf's row has the id. The hash is
//! keyed with a salt of the file, so that no sender can choose ids that fall together. Like all of the index this is a view:
//! nothing is synced before the store is closed, and a page that does not read leads to a rebuild.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use docaxis_protocol::Digest;

/// A page is read and written at once.
pub const PAGE_BYTES: usize = 4096;
/// Count, zero, checksum.
const PAGE_HEADER_BYTES: usize = 8;
/// Hash and leaf.
const ENTRY_BYTES: usize = 16;
const MAX_ENTRIES: usize = (PAGE_BYTES - PAGE_HEADER_BYTES) / ENTRY_BYTES;
/// Entries to a page on average. Pages whose turn to be split has not come hold up to twice as many.
pub const FILL: u64 = 85;
const MAGIC: [u8; 8] = *b"dxidpage";

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    hash: u64,
    leaf: u64,
}

struct State {
    /// Pages with entries; the file's first page is its header.
    pages: u64,
    entries: u64,
}

pub struct IdFile {
    file: File,
    salt: [u8; 16],
    /// Held for writing while pages change, so that nobody reads half of a change.
    state: RwLock<State>,
}

fn damaged(what: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.into())
}

fn number(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

/// Of the page's number as well, so that a page in another's place does not read. The checksum's own bytes are left out.
fn checksum(page: u64, bytes: &[u8]) -> [u8; 4] {
    let head = crc32c::crc32c_append(crc32c::crc32c(&page.to_le_bytes()), &bytes[..4]);
    crc32c::crc32c_append(head, &bytes[PAGE_HEADER_BYTES..]).to_le_bytes()
}

/// The page of a hash among so many: those before the one whose turn it is have been split in this round.
const fn page_of(hash: u64, pages: u64) -> u64 {
    let round = 1 << pages.ilog2();
    let wide = hash & (2 * round - 1);
    if wide < pages { wide } else { hash & (round - 1) }
}

impl IdFile {
    /// `salt` is for a new file; one that is there has its own.
    pub fn open(path: &Path, salt: [u64; 2]) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let len = file.metadata()?.len();
        let [low, high] = salt.map(u64::to_le_bytes);
        let mut salt = [0; 16];
        salt[..8].copy_from_slice(&low);
        salt[8..].copy_from_slice(&high);
        let made = Self { file, salt, state: RwLock::new(State { pages: 0, entries: 0 }) };
        if len == 0 {
            made.clear()?;
            return Ok(made);
        }
        let mut head = [0; PAGE_BYTES];
        made.file.read_exact_at(&mut head, 0)?;
        if head[8..16] != MAGIC || head[4..8] != checksum(0, &head) {
            return Err(damaged("the header of the table of ids does not read"));
        }
        let mut salt = [0; 16];
        salt.copy_from_slice(&head[16..32]);
        let (pages, entries) = (number(&head, 32), number(&head, 40));
        // A process that died may have added pages since; what is counted here bounds nothing.
        let pages = pages.max((len / PAGE_BYTES as u64).saturating_sub(1));
        if pages == 0 || len < (pages + 1) * PAGE_BYTES as u64 {
            return Err(damaged(format!("the table of ids has {len} bytes; its header says {pages} pages")));
        }
        Ok(Self { salt, state: RwLock::new(State { pages, entries }), ..made })
    }

    /// For taking room behind its end.
    pub const fn file(&self) -> &File {
        &self.file
    }

    fn reading(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn hash(&self, id: &[u8]) -> u64 {
        number(&Digest::of_pieces(&[&self.salt, id]).0, 0)
    }

    /// The newest leaf of an id; seldom that of another id.
    pub fn find(&self, id: &[u8]) -> io::Result<Option<u64>> {
        let hash = self.hash(id);
        let state = self.reading();
        let entries = self.read(page_of(hash, state.pages))?;
        Ok(entries.iter().find(|entry| entry.hash == hash).map(|entry| entry.leaf))
    }

    /// Gives each id its newest leaf; of one that comes twice, the last counts. Returns each leaf that took another one's place,
    /// and that one. Many at once cost less, as a page is read and written once for all that fall into it.
    pub fn put<'a>(&self, ids: impl Iterator<Item = (&'a [u8], u64)>) -> io::Result<Vec<(u64, u64)>> {
        let mut new: Vec<Entry> = ids.map(|(id, leaf)| Entry { hash: self.hash(id), leaf }).collect();
        // The first leaf of each id that comes more than once: the one that takes the place of what is there.
        let mut firsts: BTreeMap<u64, u64> = BTreeMap::new();
        let mut replaced = Vec::new();
        if new.is_empty() {
            return Ok(replaced);
        }
        new.sort_by_key(|entry| entry.hash);
        new.dedup_by(|later, earlier| {
            let same = later.hash == earlier.hash;
            if same {
                replaced.push((later.leaf, earlier.leaf));
                firsts.entry(later.hash).or_insert(earlier.leaf);
                earlier.leaf = later.leaf;
            }
            same
        });
        let mut state = self.writing();
        // First, so that it never says too few, whenever the process dies.
        let before = state.entries;
        state.entries += new.len() as u64;
        self.write_header(&state)?;
        docaxis_failpoints::failpoint!("broker.index.ids-headed");
        while state.entries > state.pages * FILL {
            self.split(&mut state)?;
        }
        new.sort_by_key(|entry| page_of(entry.hash, state.pages));
        let mut added = 0;
        let mut crowded = Vec::new();
        for new in new.chunk_by(|one, next| page_of(one.hash, state.pages) == page_of(next.hash, state.pages)) {
            let page = page_of(new[0].hash, state.pages);
            let mut entries = self.read(page)?;
            for entry in new {
                match entries.iter().position(|there| there.hash == entry.hash) {
                    Some(at) => {
                        let first = firsts.get(&entry.hash).copied().unwrap_or(entry.leaf);
                        replaced.push((first, std::mem::replace(&mut entries[at], *entry).leaf));
                    }
                    None if entries.len() < MAX_ENTRIES => {
                        entries.push(*entry);
                        added += 1;
                    }
                    None => crowded.push(*entry),
                }
            }
            self.write(page, &entries)?;
        }
        for entry in crowded {
            self.squeeze(&mut state, entry)?;
            added += 1;
        }
        docaxis_failpoints::failpoint!("broker.index.ids-paged");
        state.entries = before + added;
        self.write_header(&state)?;
        Ok(replaced)
    }

    /// An entry whose page is full: other pages are split until its own has been. Hashes in a page differ, so that there is
    /// an end to it.
    fn squeeze(&self, state: &mut State, entry: Entry) -> io::Result<()> {
        loop {
            let page = page_of(entry.hash, state.pages);
            let mut entries = self.read(page)?;
            if entries.len() < MAX_ENTRIES {
                entries.push(entry);
                return self.write(page, &entries);
            }
            self.split(state)?;
        }
    }

    /// Splits the page whose turn it is. The new page is written first: whenever the process dies, no entry is lost, and one
    /// that then stands in both pages is looked for in the new one only.
    fn split(&self, state: &mut State) -> io::Result<()> {
        let (new, old) = (state.pages, state.pages - (1 << state.pages.ilog2()));
        let (go, mut stay): (Vec<_>, Vec<_>) =
            self.read(old)?.into_iter().partition(|entry| page_of(entry.hash, new + 1) == new);
        // What an earlier split that was broken off has left here.
        stay.retain(|entry| page_of(entry.hash, new + 1) == old);
        self.write(new, &go)?;
        docaxis_failpoints::failpoint!("broker.index.ids-split");
        self.write(old, &stay)?;
        state.pages += 1;
        Ok(())
    }

    fn read(&self, page: u64) -> io::Result<Vec<Entry>> {
        let mut bytes = [0; PAGE_BYTES];
        self.file.read_exact_at(&mut bytes, (page + 1) * PAGE_BYTES as u64)?;
        let count = usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
        if bytes[4..8] != checksum(page + 1, &bytes) || count > MAX_ENTRIES {
            return Err(damaged(format!("page {page} of the table of ids does not read")));
        }
        let entries = bytes[PAGE_HEADER_BYTES..].chunks_exact(ENTRY_BYTES).take(count);
        Ok(entries.map(|entry| Entry { hash: number(entry, 0), leaf: number(entry, 8) }).collect())
    }

    fn write(&self, page: u64, entries: &[Entry]) -> io::Result<()> {
        let mut bytes = [0; PAGE_BYTES];
        let count = u16::try_from(entries.len()).map_err(|_| damaged("a page of the table of ids is too full"))?;
        bytes[..2].copy_from_slice(&count.to_le_bytes());
        for (slot, entry) in bytes[PAGE_HEADER_BYTES..].chunks_exact_mut(ENTRY_BYTES).zip(entries) {
            slot[..8].copy_from_slice(&entry.hash.to_le_bytes());
            slot[8..].copy_from_slice(&entry.leaf.to_le_bytes());
        }
        let crc = checksum(page + 1, &bytes);
        bytes[4..8].copy_from_slice(&crc);
        self.file.write_all_at(&bytes, (page + 1) * PAGE_BYTES as u64)
    }

    fn write_header(&self, state: &State) -> io::Result<()> {
        let mut bytes = [0; PAGE_BYTES];
        bytes[8..16].copy_from_slice(&MAGIC);
        bytes[16..32].copy_from_slice(&self.salt);
        bytes[32..40].copy_from_slice(&state.pages.to_le_bytes());
        bytes[40..48].copy_from_slice(&state.entries.to_le_bytes());
        let crc = checksum(0, &bytes);
        bytes[4..8].copy_from_slice(&crc);
        self.file.write_all_at(&bytes, 0)
    }

    pub fn clear(&self) -> io::Result<()> {
        let mut state = self.writing();
        self.file.set_len(0)?;
        *state = State { pages: 1, entries: 0 };
        self.write(0, &[])?;
        self.write_header(&state)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u64) -> [u8; 16] {
        let mut id = [0x11; 16];
        id[8..].copy_from_slice(&n.to_be_bytes());
        id
    }

    fn file() -> (tempfile::TempDir, IdFile) {
        let folder = tempfile::tempdir().unwrap();
        let ids = IdFile::open(&folder.path().join("ids"), [7; 2]).unwrap();
        (folder, ids)
    }

    fn put(ids: &IdFile, which: &[(u64, u64)]) {
        let which: Vec<_> = which.iter().map(|(n, leaf)| (id(*n), *leaf)).collect();
        ids.put(which.iter().map(|(id, leaf)| (id.as_slice(), *leaf))).unwrap();
    }

    #[test]
    fn every_id_is_found_while_the_table_grows_and_after_reopening() {
        let (folder, ids) = file();
        let all: Vec<_> = (0..30_000).map(|n| (n, 3 * n)).collect();
        for some in all.chunks(700) {
            put(&ids, some);
            put(&ids, &some[..9]);
        }
        put(&ids, &[(5, 99_999)]);
        assert_eq!(ids.reading().entries, 30_000, "what is put again stays once");
        for ids in [&ids, &IdFile::open(&folder.path().join("ids"), [9; 2]).unwrap()] {
            assert_eq!(ids.find(&id(5)).unwrap(), Some(99_999));
            for n in (0..30_000).filter(|n| *n != 5) {
                assert_eq!(ids.find(&id(n)).unwrap(), Some(3 * n), "id {n}");
            }
            assert_eq!(ids.find(&id(30_000)).unwrap(), None);
        }
        let pages = ids.reading().pages;
        assert!((30_000 / FILL..=30_000 / FILL + 10).contains(&pages), "{pages} pages");
        ids.clear().unwrap();
        assert_eq!(ids.find(&id(7)).unwrap(), None);
    }

    #[test]
    fn a_split_that_was_broken_off_loses_nothing() {
        let (folder, ids) = file();
        let all: Vec<_> = (0..84).map(|n| (n, n)).collect();
        put(&ids, &all);
        // The new page is there, the old one still has everything, and the header knows of neither.
        let path = folder.path().join("ids");
        let earlier = std::fs::read(&path).unwrap();
        ids.split(&mut ids.writing()).unwrap();
        let mut later = std::fs::read(&path).unwrap();
        later[..2 * PAGE_BYTES].copy_from_slice(&earlier[..2 * PAGE_BYTES]);
        std::fs::write(&path, later).unwrap();
        let ids = IdFile::open(&path, [9; 2]).unwrap();
        assert_eq!(ids.reading().pages, 2);
        let more: Vec<_> = (84..2_000).map(|n| (n, n)).collect();
        put(&ids, &more);
        for n in 0..2_000 {
            assert_eq!(ids.find(&id(n)).unwrap(), Some(n));
        }
    }

    #[test]
    fn a_page_that_is_full_before_its_turn_gets_room() {
        let (_folder, ids) = file();
        let page = |ids: &IdFile, n: u64| page_of(ids.hash(&id(n)), 8);
        // Ids that fall into the last page to be split of eight.
        let together: Vec<_> = (0..40_000).filter(|n| page(&ids, *n) == 7).take(600).map(|n| (n, n)).collect();
        put(&ids, &together);
        for (n, leaf) in together {
            assert_eq!(ids.find(&id(n)).unwrap(), Some(leaf));
        }
    }

    #[test]
    fn a_flipped_bit_a_page_in_anothers_place_and_a_shorter_file_do_not_read() {
        let (folder, ids) = file();
        let all: Vec<_> = (0..300).map(|n| (n, n)).collect();
        put(&ids, &all);
        let path = folder.path().join("ids");
        let whole = std::fs::read(&path).unwrap();
        let reads = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            IdFile::open(&path, [9; 2]).is_ok_and(|ids| (0..ids.reading().pages).all(|page| ids.read(page).is_ok()))
        };
        assert!(reads(&whole));
        for bit in (0..whole.len() * 8).step_by(77) {
            let mut flipped = whole.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(!reads(&flipped), "bit {bit}");
        }
        let mut changed = whole.clone();
        changed.copy_within(PAGE_BYTES..2 * PAGE_BYTES, 2 * PAGE_BYTES);
        assert!(!reads(&changed));
        assert!(!reads(&whole[..whole.len() - PAGE_BYTES]));
        assert!(!reads(&whole[..whole.len() - 1]));
    }
}
