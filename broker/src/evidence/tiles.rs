//! The evidence log's files, in the layout of C2SP tlog-tiles, and how they grow.
//!
//! Only the right edge of the tree is in memory. A full tile is written once. Until then its place has partial ones (`.p/W`),
//! each wider than the one before, which go when it is full. Each file is written under a
//! temporary name, synced and renamed, so that after a power cut a tile is whole or absent.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use docaxis_protocol::Digest;
use docaxis_protocol::tlog::merkle::{self, leaf_hash};
use docaxis_protocol::tlog::tile::{TILE_WIDTH, TilePath, TileReader, encode_entries};

/// Writes `bytes` to `path` so that after a power cut the file has either its old content or all of the new one.
pub fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_and_rename(path, bytes)?;
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

fn write_and_rename(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = folder.join(name);
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        docaxis_failpoints::failpoint!("broker.log.file-synced");
        fs::rename(&temporary, path)
    };
    if let Err(error) = write() {
        // Half a file is of no use, and on a full disk it is in the way; if it stays, the next one takes its name.
        let _stays = fs::remove_file(&temporary);
        return Err(error);
    }
    Ok(())
}

/// Writes files that belong together: each whole or not at all, and all of them durable at the end, with one sync for
/// each folder.
fn write_all_durably(files: &[(PathBuf, Vec<u8>)]) -> io::Result<()> {
    let mut folders = BTreeSet::new();
    for (path, bytes) in files {
        write_and_rename(path, bytes)?;
        folders.extend(path.parent());
    }
    folders.into_iter().try_for_each(|folder| File::open(folder)?.sync_all())
}

/// The files below the log's folder, and the right edge of the tree that they hold.
#[derive(Clone)]
pub struct Tiles {
    folder: PathBuf,
    size: u64,
    /// The hashes of the last, not yet full tile of each level, lowest first.
    edge: Vec<Vec<Digest>>,
    /// The entries of the last, not yet full bundle.
    entries: Vec<Digest>,
    /// Places that became full and may still have partial tiles.
    filled: Vec<TilePath>,
}

impl Tiles {
    /// An empty log below `folder`.
    pub fn empty(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), size: 0, edge: vec![Vec::new()], entries: Vec::new(), filled: Vec::new() }
    }

    /// The log of `size` leaves whose tiles are there; fails if one is missing or they do not lead to `root`.
    /// `last_entries` are the entries from the last full bundle's end on.
    pub fn open(folder: &Path, size: u64, root: Digest, last_entries: Vec<Digest>) -> io::Result<Self> {
        let mut reader = TileReader::new(size, |tile| read_tile(folder, tile));
        let found = reader.root().map_err(io::Error::other)?;
        if size > 0 && found != root {
            return Err(io::Error::other(format!("the tiles lead to root {found}; the checkpoint says {root}")));
        }
        let mut edge = Vec::new();
        let mut count = size;
        while edge.is_empty() || count > 0 {
            let level = u8::try_from(edge.len()).unwrap_or(u8::MAX);
            let width = u16::try_from(count % u64::from(TILE_WIDTH)).unwrap_or(0);
            let tile = TilePath { level: Some(level), index: count / u64::from(TILE_WIDTH), width };
            let mut bytes = if width == 0 { Vec::new() } else { read_tile(folder, tile)? };
            bytes.truncate(usize::from(width) * 32);
            edge.push(bytes.chunks_exact(32).map(|hash| Digest(hash.try_into().unwrap_or([0; 32]))).collect());
            count /= u64::from(TILE_WIDTH);
        }
        let leaves: Vec<Digest> = last_entries.iter().map(|entry| leaf_hash(&entry.0)).collect();
        if leaves != edge[0] {
            return Err(io::Error::other("the last tile holds other leaves than the store"));
        }
        Ok(Self { folder: folder.to_owned(), size, edge, entries: last_entries, filled: Vec::new() })
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn root(&self) -> Digest {
        // Each level's edge, with all that is to its right folded in: the tree's root from the bottom up.
        let mut right: Option<Digest> = None;
        for hashes in &self.edge {
            let mut peaks = hashes.clone();
            right = if peaks.is_empty() { right } else { fold(&mut peaks, right) };
        }
        right.unwrap_or_else(merkle::empty_root)
    }

    /// Appends entries and writes every tile and bundle that is new or wider, durably.
    pub fn grow(&mut self, entries: &[Digest]) -> io::Result<()> {
        let mut files = Vec::new();
        for entry in entries {
            self.push(0, leaf_hash(&entry.0), &mut files);
            self.entries.push(*entry);
            self.size += 1;
            if self.entries.len() == usize::from(TILE_WIDTH) {
                self.filled.push(TilePath { level: None, index: (self.size - 1) / u64::from(TILE_WIDTH), width: 1 });
                files.push(self.bundle()?);
                self.entries.clear();
            }
        }
        for level in 0..self.edge.len() {
            if !self.edge[level].is_empty() {
                files.push(self.level(level));
            }
        }
        if !self.entries.is_empty() {
            files.push(self.bundle()?);
        }
        write_all_durably(&files)
    }

    fn push(&mut self, level: usize, hash: Digest, files: &mut Vec<(PathBuf, Vec<u8>)>) {
        if self.edge.len() == level {
            self.edge.push(Vec::new());
        }
        self.edge[level].push(hash);
        if self.edge[level].len() < usize::from(TILE_WIDTH) {
            return;
        }
        // `size` still counts the leaves before this one; the full tile is the one that holds it.
        let index = self.size >> (8 * (level + 1));
        let tile = TilePath { level: u8::try_from(level).ok(), index, width: TILE_WIDTH };
        let root = merkle::root(&self.edge[level]);
        files.push((self.folder.join(tile.path()), concat(&self.edge[level])));
        self.filled.push(TilePath { width: 1, ..tile });
        self.edge[level].clear();
        self.push(level + 1, root, files);
    }

    fn level(&self, level: usize) -> (PathBuf, Vec<u8>) {
        let hashes = &self.edge[level];
        let tile = self.partial(u8::try_from(level).ok(), level, hashes.len());
        (self.folder.join(tile.path()), concat(hashes))
    }

    /// The entry bundle that the last entries are in.
    fn bundle(&self) -> io::Result<(PathBuf, Vec<u8>)> {
        let bytes: Vec<[u8; 32]> = self.entries.iter().map(|entry| entry.0).collect();
        let bundle = encode_entries(&bytes).map_err(io::Error::other)?;
        let width = u16::try_from(self.entries.len()).unwrap_or(TILE_WIDTH);
        let first = self.size - u64::from(width);
        let tile = TilePath { level: None, index: first / u64::from(TILE_WIDTH), width };
        Ok((self.folder.join(tile.path()), bundle))
    }

    fn partial(&self, name: Option<u8>, level: usize, len: usize) -> TilePath {
        let width = u16::try_from(len).unwrap_or(TILE_WIDTH);
        TilePath { level: name, index: self.size >> (8 * (level + 1)), width }
    }

    /// The partial tiles and bundle that a reader at the present size needs.
    pub fn partials(&self) -> Vec<TilePath> {
        let levels = self.edge.iter().enumerate().filter(|(_, hashes)| !hashes.is_empty());
        let mut all: Vec<TilePath> =
            levels.map(|(level, hashes)| self.partial(u8::try_from(level).ok(), level, hashes.len())).collect();
        if !self.entries.is_empty() {
            all.push(self.partial(None, 0, self.entries.len()));
        }
        all
    }

    /// Removes the partial tiles of places that are full by now. Before that they stay (C2SP tlog-tiles): whoever has read a
    /// checkpoint of before still needs that width. What a crash keeps from being removed stays, and is in nobody's way.
    pub fn remove_outgrown(&mut self) -> io::Result<()> {
        for place in std::mem::take(&mut self.filled) {
            if let Some(folder) = self.folder.join(place.path()).parent()
                && let Err(error) = fs::remove_dir_all(folder)
                && error.kind() != io::ErrorKind::NotFound
            {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Removes those of these partial tiles that the present size does not need: of a growth that was not concluded, so that
    /// nobody has read of them.
    pub fn remove_begun(&self, begun: &[TilePath]) -> io::Result<()> {
        let now = self.partials();
        for tile in begun.iter().filter(|tile| !now.contains(tile)) {
            match fs::remove_file(self.folder.join(tile.path())) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}

/// A tile's bytes, from the full tile where the partial one is gone.
pub fn read_tile(folder: &Path, tile: TilePath) -> io::Result<Vec<u8>> {
    match fs::read(folder.join(tile.path())) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !tile.is_full() => {
            fs::read(folder.join(tile.full().path()))
        }
        read => read,
    }
}

fn concat(hashes: &[Digest]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.0).collect()
}

/// The root over `hashes` (complete subtrees of one size, in order) and a smaller tree to their right.
fn fold(hashes: &mut Vec<Digest>, right: Option<Digest>) -> Option<Digest> {
    let mut peaks: Vec<(usize, Digest)> = Vec::new();
    for hash in hashes.drain(..) {
        let mut node = (1, hash);
        while let Some(&(width, left)) = peaks.last()
            && width == node.0
        {
            peaks.pop();
            node = (width * 2, merkle::node_hash(&left, &node.1));
        }
        peaks.push(node);
    }
    peaks
        .into_iter()
        .rev()
        .map(|(_, hash)| hash)
        .fold(right, |right, left| Some(right.map_or(left, |right| merkle::node_hash(&left, &right))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(n: u64) -> Digest {
        Digest::of(&n.to_be_bytes())
    }

    fn reference(size: u64) -> Digest {
        merkle::root(&(0..size).map(|n| leaf_hash(&entry(n).0)).collect::<Vec<_>>())
    }

    #[test]
    fn a_log_that_grows_in_any_steps_has_the_root_and_tiles_of_rfc_6962() {
        let folder = tempfile::tempdir().unwrap();
        let mut tiles = Tiles::empty(folder.path());
        let mut size = 0;
        let mut readers = Vec::new();
        for step in [1, 2, 1, 251, 1, 1, 255, 256, 700, 3] {
            tiles.grow(&(size..size + step).map(entry).collect::<Vec<_>>()).unwrap();
            size += step;
            assert_eq!((tiles.size(), tiles.root()), (size, reference(size)), "at {size}");
            tiles.remove_outgrown().unwrap();
            let last = (size - size % 256..size).map(entry).collect::<Vec<_>>();
            let again = Tiles::open(folder.path(), size, reference(size), last).unwrap();
            assert_eq!(
                (again.root(), again.edge, again.entries),
                (tiles.root(), tiles.edge.clone(), tiles.entries.clone())
            );
            // Whoever has read an earlier checkpoint still finds its tiles.
            readers.push(size);
            for &size in &readers {
                let mut reader = TileReader::new(size, |tile| read_tile(folder.path(), tile));
                assert_eq!(reader.root().unwrap(), reference(size));
            }
        }
        let left = fs::read_dir(folder.path().join("tile/0")).unwrap().map(|entry| entry.unwrap().file_name());
        let mut left: Vec<_> = left.filter_map(|name| name.into_string().ok()).collect();
        left.sort();
        assert_eq!(left, ["000", "001", "002", "003", "004", "005.p"], "what is full has no partial tiles");
    }

    #[test]
    fn a_damaged_or_missing_tile_is_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let mut tiles = Tiles::empty(folder.path());
        tiles.grow(&(0..300).map(entry).collect::<Vec<_>>()).unwrap();
        let last: Vec<Digest> = (256..300).map(entry).collect();
        let open = || Tiles::open(folder.path(), 300, reference(300), last.clone());
        assert!(open().is_ok());
        let full = folder.path().join("tile/0/000");
        let good = fs::read(&full).unwrap();
        let partial = folder.path().join("tile/0/001.p/44");
        let mut bad = fs::read(&partial).unwrap();
        bad[5] ^= 1;
        fs::write(&partial, &bad).unwrap();
        assert!(open().is_err());
        fs::remove_file(&partial).unwrap();
        assert!(open().is_err());
        assert_eq!(good.len(), 8192);
    }
}
