//! C2SP tlog-tiles: how a log's hashes and entries are cut into files of 256, what those files are called, and reading
//! a tree from them.
//!
//! Bytes of tiles come in through a closure; a full tile never changes; before it is full, its place has partial
//! ones (`.p/W`), each the beginning of the next.

use std::collections::BTreeMap;

use super::merkle::{self, Frontier, MAX_SIZE, ProofError, Subtree};
use crate::digest::Digest;

/// Levels of the tree in one tile.
pub const TILE_HEIGHT: u8 = 8;
/// Hashes in a full tile, entries in a full bundle.
pub const TILE_WIDTH: u16 = 256;

/// A file of the log: hashes of one tile level, or the entries themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TilePath {
    /// The tile level, `None` for a bundle of entries.
    pub level: Option<u8>,
    pub index: u64,
    /// How many hashes or entries it holds, 1 to 256.
    pub width: u16,
}

/// Why tiles do not yield what was asked.
#[derive(Debug, thiserror::Error)]
pub enum TileError<E: std::error::Error + 'static> {
    #[error("tile {path} cannot be read")]
    Read { path: String, source: E },
    #[error("tile {path} is {found} bytes; expected {expected}")]
    Length { path: String, expected: usize, found: usize },
    #[error(transparent)]
    Proof(#[from] ProofError),
    #[error("subtree {index} of level {level} is not complete in a tree of {size}")]
    Incomplete { level: u8, index: u64, size: u64 },
}

/// Why bytes are not a bundle of entries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntriesError {
    #[error("entry {n} is {found} bytes; a bundle takes at most 65535")]
    TooLong { n: usize, found: usize },
    #[error("the bundle is cut inside entry {n}")]
    Cut { n: usize },
    #[error("the bundle holds {found} entries; expected {expected}")]
    Count { expected: u16, found: usize },
}

impl TilePath {
    /// The path below the log's folder, such as `tile/0/x001/x234/067.p/12`.
    pub fn path(&self) -> String {
        let mut name = format!("{:03}", self.index % 1000);
        let mut rest = self.index / 1000;
        while rest > 0 {
            name = format!("x{:03}/{name}", rest % 1000);
            rest /= 1000;
        }
        let level = self.level.map_or_else(|| "entries".to_owned(), |level| level.to_string());
        let partial = if self.is_full() { String::new() } else { format!(".p/{}", self.width) };
        format!("tile/{level}/{name}{partial}")
    }

    /// Reads what [`TilePath::path`] writes, and nothing else.
    pub fn parse(path: &str) -> Option<Self> {
        let (level, rest) = path.strip_prefix("tile/")?.split_once('/')?;
        let level = match level {
            "entries" => None,
            number => Some(u8::try_from(super::parse_number(number)?).ok().filter(|level| *level < 8)?),
        };
        let (name, width) = match rest.split_once(".p/") {
            Some((name, width)) => (name, u16::try_from(super::parse_number(width)?).ok()?),
            None => (rest, TILE_WIDTH),
        };
        let mut index = 0u64;
        for group in name.split('/') {
            let digits = group.strip_prefix('x').unwrap_or(group);
            if digits.len() != 3 || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            index = index.checked_mul(1000)?.checked_add(digits.parse().ok()?)?;
        }
        // Only the one spelling that writing gives: this also refuses a zero width, ".p/256" and superfluous groups.
        let tile = Self { level, index, width };
        (width > 0 && tile.path() == path).then_some(tile)
    }

    pub fn is_full(&self) -> bool {
        self.width == TILE_WIDTH
    }

    /// The full tile of the same place: readers try it where a partial one is gone.
    #[must_use]
    pub fn full(self) -> Self {
        Self { width: TILE_WIDTH, ..self }
    }

    /// The subtrees whose hashes a hash tile holds, in order; for entries, the leaves.
    pub fn subtrees(&self) -> impl Iterator<Item = Subtree> + use<> {
        let level = self.level.unwrap_or(0) * TILE_HEIGHT;
        let first = self.index * u64::from(TILE_WIDTH);
        (first..first + u64::from(self.width)).map(move |index| Subtree { level, index })
    }
}

/// The hash tiles that are new or wider when a log grows from `old` to `new` leaves, lowest level first.
pub fn hash_tiles_of_growth(old: u64, new: u64) -> Vec<TilePath> {
    (0..8u8).flat_map(|level| tiles_between(Some(level), old >> (level * 8), new >> (level * 8))).collect()
}

/// The bundles of entries that are new or longer when a log grows from `old` to `new` leaves.
pub fn entry_bundles_of_growth(old: u64, new: u64) -> Vec<TilePath> {
    tiles_between(None, old, new).collect()
}

fn tiles_between(level: Option<u8>, old: u64, new: u64) -> impl Iterator<Item = TilePath> {
    let width = u64::from(TILE_WIDTH);
    let tiles = if new > old { old / width..new.div_ceil(width) } else { 0..0 };
    tiles.map(move |index| TilePath { level, index, width: width_of(new, index) })
}

/// How wide tile `index` is when its level holds `count` hashes.
fn width_of(count: u64, index: u64) -> u16 {
    let left = count.saturating_sub(index * u64::from(TILE_WIDTH));
    u16::try_from(left).map_or(TILE_WIDTH, |left| left.min(TILE_WIDTH))
}

/// Reads the tree of `size` leaves from tiles; keeps the tiles that it has read, and what it has made of them.
pub struct TileReader<F> {
    size: u64,
    read: F,
    kept: BTreeMap<TilePath, Vec<u8>>,
    /// Hashes between the levels of two tiles, by level and index: paths of neighbours share most of them.
    inner: BTreeMap<(u8, u64), Digest>,
}

impl<F, E> TileReader<F>
where
    F: FnMut(TilePath) -> Result<Vec<u8>, E>,
    E: std::error::Error + 'static,
{
    /// `read` returns a tile's bytes; for a partial tile it may return a wider one's, whose beginning is the same.
    pub fn new(size: u64, read: F) -> Self {
        Self { size: size.min(MAX_SIZE), read, kept: BTreeMap::new(), inner: BTreeMap::new() }
    }

    /// The hash of a complete subtree.
    pub fn hash(&mut self, subtree: Subtree) -> Result<Digest, TileError<E>> {
        let Subtree { level, index } = subtree;
        let complete = level < 62 && index.checked_add(1).is_some_and(|next| next <= self.size >> level);
        if !complete {
            return Err(TileError::Incomplete { level, index, size: self.size });
        }
        let tile_level = level / TILE_HEIGHT;
        if level % TILE_HEIGHT > 0 {
            if let Some(known) = self.inner.get(&(level, index)) {
                return Ok(*known);
            }
            let left = self.hash(Subtree { level: level - 1, index: 2 * index })?;
            let right = self.hash(Subtree { level: level - 1, index: 2 * index + 1 })?;
            let hash = merkle::node_hash(&left, &right);
            self.inner.insert((level, index), hash);
            return Ok(hash);
        }
        let tile_index = index / u64::from(TILE_WIDTH);
        let width = width_of(self.size >> (tile_level * TILE_HEIGHT), tile_index);
        let bytes = self.tile(TilePath { level: Some(tile_level), index: tile_index, width })?;
        let at = usize::from(u8::try_from(index % u64::from(TILE_WIDTH)).unwrap_or(0)) * 32;
        // The tile holds at least its width, as was checked when it was read.
        let hash = bytes.get(at..at + 32).and_then(|hash| hash.try_into().ok()).unwrap_or([0; 32]);
        Ok(Digest(hash))
    }

    pub fn root(&mut self) -> Result<Digest, TileError<E>> {
        merkle::read_root(self.size, |subtree| self.hash(subtree))
    }

    pub fn frontier(&mut self) -> Result<Frontier, TileError<E>> {
        Frontier::read(self.size, |subtree| self.hash(subtree))
    }

    pub fn inclusion_path(&mut self, index: u64) -> Result<Vec<Digest>, TileError<E>> {
        merkle::inclusion_path(index, self.size, |subtree| self.hash(subtree))
    }

    pub fn consistency_path(&mut self, old: u64) -> Result<Vec<Digest>, TileError<E>> {
        merkle::consistency_path(old, self.size, |subtree| self.hash(subtree))
    }

    fn tile(&mut self, tile: TilePath) -> Result<&[u8], TileError<E>> {
        use std::collections::btree_map::Entry;
        match self.kept.entry(tile) {
            Entry::Occupied(kept) => Ok(kept.into_mut()),
            Entry::Vacant(free) => {
                let mut bytes = (self.read)(tile).map_err(|source| TileError::Read { path: tile.path(), source })?;
                let expected = usize::from(tile.width) * 32;
                if bytes.len() < expected || bytes.len() % 32 != 0 || bytes.len() > usize::from(TILE_WIDTH) * 32 {
                    return Err(TileError::Length { path: tile.path(), expected, found: bytes.len() });
                }
                bytes.truncate(expected);
                Ok(free.insert(bytes))
            }
        }
    }
}

/// Puts entries into a bundle: each with its length in two bytes, big endian, before it.
pub fn encode_entries<T: AsRef<[u8]>>(entries: &[T]) -> Result<Vec<u8>, EntriesError> {
    let mut out = Vec::new();
    for (n, entry) in entries.iter().enumerate() {
        let entry = entry.as_ref();
        let length = u16::try_from(entry.len()).map_err(|_| EntriesError::TooLong { n, found: entry.len() })?;
        out.extend_from_slice(&length.to_be_bytes());
        out.extend_from_slice(entry);
    }
    Ok(out)
}

/// Takes the `expected` entries out of a bundle.
pub fn decode_entries(mut bytes: &[u8], expected: u16) -> Result<Vec<&[u8]>, EntriesError> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let cut = EntriesError::Cut { n: out.len() };
        let (length, rest) = bytes.split_first_chunk::<2>().ok_or_else(|| cut.clone())?;
        let (entry, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or(cut)?;
        out.push(entry);
        bytes = rest;
    }
    if out.len() != usize::from(expected) {
        return Err(EntriesError::Count { expected, found: out.len() });
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_standard_and_have_one_spelling() {
        let tile = |level, index, width| TilePath { level, index, width };
        for (expected, path) in [
            (tile(Some(0), 0, 256), "tile/0/000"),
            (tile(Some(0), 1_234_067, 256), "tile/0/x001/x234/067"),
            (tile(Some(1), 0, 17), "tile/1/000.p/17"),
            (tile(None, 273, 112), "tile/entries/273.p/112"),
            (tile(None, 1000, 256), "tile/entries/x001/000"),
        ] {
            assert_eq!(expected.path(), path);
            assert_eq!(TilePath::parse(path), Some(expected));
        }
        for path in [
            "tile/0/0",
            "tile/0/x000/001",
            "tile/0/001/002",
            "tile/00/001",
            "tile/8/001",
            "tile/0/001.p/0",
            "tile/0/001.p/256",
            "tile/0/001.p/01",
            "tile/0/../001",
            "tile/-1/001",
            "checkpoint",
            "tile/0/",
            "tile/0/x999/x999/x999/x999/x999/x999/x999/999",
        ] {
            assert_eq!(TilePath::parse(path), None, "{path} was taken");
        }
    }

    #[test]
    fn growth_names_every_tile_that_changes_and_no_other() {
        let names = |old, new| hash_tiles_of_growth(old, new).iter().map(TilePath::path).collect::<Vec<_>>();
        assert_eq!(names(0, 1), ["tile/0/000.p/1"]);
        assert_eq!(names(5, 5), Vec::<String>::new());
        assert_eq!(names(255, 256), ["tile/0/000", "tile/1/000.p/1"]);
        assert_eq!(names(256, 257), ["tile/0/001.p/1"]);
        assert_eq!(names(250, 70_000).len(), 274 + 2 + 1);
        let bundles: Vec<_> = entry_bundles_of_growth(255, 513).iter().map(TilePath::path).collect();
        assert_eq!(bundles, ["tile/entries/000", "tile/entries/001", "tile/entries/002.p/1"]);
    }

    #[test]
    fn entries_come_back_and_damaged_bundles_are_refused() {
        let bytes = encode_entries(&[&b"abc"[..], b"", b"d"]).expect("short entries");
        assert_eq!(bytes, b"\0\x03abc\0\0\0\x01d");
        assert_eq!(decode_entries(&bytes, 3), Ok(vec![&b"abc"[..], b"", b"d"]));
        assert_eq!(decode_entries(&bytes[..9], 3), Err(EntriesError::Cut { n: 2 }));
        assert_eq!(decode_entries(&bytes, 2), Err(EntriesError::Count { expected: 2, found: 3 }));
        assert!(encode_entries(&[vec![0; 65_536]]).is_err());
    }
}
