//! Merkle trees of RFC 6962: roots, the frontier that grows them, and proofs of inclusion and consistency.
//!
//! A tree is read through a closure that returns the hash of a *complete* subtree ([`Subtree`]); where those hashes are
//! kept (a list, tiles) is the caller's business. Verification follows RFC 9162, sections 2.1.3.2 and 2.1.4.2.

use crate::digest::Digest;

/// No tree has more leaves than this: `size` and `2^level` then never overflow.
pub const MAX_SIZE: u64 = 1 << 62;

/// Why a proof does not prove what it claims, or cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    #[error("index {index} is not inside a tree of {size}")]
    OutOfTree { index: u64, size: u64 },
    #[error("a tree of {old} is not a prefix of one of {new}: it is larger")]
    Shrunk { old: u64, new: u64 },
    #[error("a tree of {size} is over the limit of {MAX_SIZE}")]
    TooLarge { size: u64 },
    #[error("the proof has {found} hashes; for this index and size another number is needed")]
    Length { found: usize },
    #[error("the proof leads to root {found}; expected {expected}")]
    Root { expected: Digest, found: Digest },
    #[error("a tree of {size} has a frontier of {expected} hashes, not {found}")]
    Frontier { size: u64, expected: u32, found: usize },
}

/// The complete subtree over the leaves `index << level .. (index + 1) << level`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subtree {
    pub level: u8,
    pub index: u64,
}

/// The hash of one log entry.
pub fn leaf_hash(entry: &[u8]) -> Digest {
    Digest::of_pieces(&[&[0], entry])
}

/// The hash of an inner node.
pub fn node_hash(left: &Digest, right: &Digest) -> Digest {
    Digest::of_pieces(&[&[1], &left.0, &right.0])
}

/// The root of a tree without leaves.
pub fn empty_root() -> Digest {
    Digest::of(b"")
}

/// The root over leaf hashes in order.
pub fn root(leaves: &[Digest]) -> Digest {
    let mut frontier = Frontier::new();
    for leaf in leaves {
        frontier.push(*leaf);
    }
    frontier.root()
}

/// What must be remembered of a tree to append to it: the roots of its complete subtrees, largest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Digest>,
}

impl Frontier {
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes up a frontier that [`Frontier::size`] and [`Frontier::peaks`] described.
    pub fn from_parts(size: u64, peaks: Vec<Digest>) -> Result<Self, ProofError> {
        if size > MAX_SIZE {
            return Err(ProofError::TooLarge { size });
        }
        if usize::try_from(size.count_ones()) != Ok(peaks.len()) {
            return Err(ProofError::Frontier { size, expected: size.count_ones(), found: peaks.len() });
        }
        Ok(Self { size, peaks })
    }

    /// The frontier of the first `size` leaves, read from what holds them.
    pub fn read<E>(size: u64, mut read: impl FnMut(Subtree) -> Result<Digest, E>) -> Result<Self, E> {
        let peaks = peaks(0, size).into_iter().map(&mut read).collect::<Result<_, _>>()?;
        Ok(Self { size, peaks })
    }

    pub fn push(&mut self, leaf: Digest) {
        let mut hash = leaf;
        let mut below = self.size;
        while below & 1 == 1 {
            if let Some(left) = self.peaks.pop() {
                hash = node_hash(&left, &hash);
            }
            below >>= 1;
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    pub fn size(&self) -> u64 {
        self.size
    }

    pub fn peaks(&self) -> &[Digest] {
        &self.peaks
    }

    pub fn root(&self) -> Digest {
        join(&self.peaks).unwrap_or_else(empty_root)
    }
}

/// The root of the first `size` leaves.
pub fn read_root<E>(size: u64, read: impl FnMut(Subtree) -> Result<Digest, E>) -> Result<Digest, E> {
    Ok(Frontier::read(size, read)?.root())
}

/// The inclusion path of leaf `index` in the tree of `size` leaves.
pub fn inclusion_path<E: From<ProofError>>(
    index: u64,
    size: u64,
    mut read: impl FnMut(Subtree) -> Result<Digest, E>,
) -> Result<Vec<Digest>, E> {
    if index >= size || size > MAX_SIZE {
        return Err(ProofError::OutOfTree { index, size }.into());
    }
    // Walk down to the leaf; the sibling ranges met on the way, nearest first, are the path.
    let mut siblings = Vec::new();
    let (mut low, mut high) = (0, size);
    while high - low > 1 {
        let middle = low + split(high - low);
        if index < middle {
            siblings.push((middle, high));
            high = middle;
        } else {
            siblings.push((low, middle));
            low = middle;
        }
    }
    siblings.into_iter().rev().map(|(low, high)| range_hash(low, high, &mut read)).collect()
}

/// The proof that the tree of `old` leaves is a prefix of the tree of `new` leaves. Empty if they are equal or `old` is 0.
pub fn consistency_path<E: From<ProofError>>(
    old: u64,
    new: u64,
    mut read: impl FnMut(Subtree) -> Result<Digest, E>,
) -> Result<Vec<Digest>, E> {
    if old > new || new > MAX_SIZE {
        return Err(ProofError::Shrunk { old, new }.into());
    }
    if old == 0 || old == new {
        return Ok(Vec::new());
    }
    let mut ranges = Vec::new();
    let (mut low, mut high) = (0, new);
    while old != high {
        let middle = low + split(high - low);
        if old <= middle {
            ranges.push((middle, high));
            high = middle;
        } else {
            ranges.push((low, middle));
            low = middle;
        }
    }
    // The old tree itself is known to whoever checks; any other common subtree is not.
    if low != 0 {
        ranges.push((low, high));
    }
    ranges.into_iter().rev().map(|(low, high)| range_hash(low, high, &mut read)).collect()
}

/// The root to which an inclusion path leads (RFC 9162, section 2.1.3.2).
pub fn root_of_inclusion(index: u64, size: u64, leaf: Digest, path: &[Digest]) -> Result<Digest, ProofError> {
    if index >= size {
        return Err(ProofError::OutOfTree { index, size });
    }
    let wrong_length = ProofError::Length { found: path.len() };
    let (mut fn_, mut sn, mut hash) = (index, size - 1, leaf);
    for step in path {
        if sn == 0 {
            return Err(wrong_length);
        }
        if fn_ & 1 == 1 || fn_ == sn {
            hash = node_hash(step, &hash);
            while fn_ & 1 == 0 && fn_ != 0 {
                (fn_, sn) = (fn_ >> 1, sn >> 1);
            }
        } else {
            hash = node_hash(&hash, step);
        }
        (fn_, sn) = (fn_ >> 1, sn >> 1);
    }
    if sn == 0 { Ok(hash) } else { Err(wrong_length) }
}

/// Checks that `leaf` is at `index` of the tree of `size` leaves with this root.
pub fn verify_inclusion(index: u64, size: u64, leaf: Digest, path: &[Digest], root: Digest) -> Result<(), ProofError> {
    same_root(root, root_of_inclusion(index, size, leaf, path)?)
}

/// Checks that a tree only grew (RFC 9162, section 2.1.4.2). Every tree grows from the empty one.
pub fn verify_consistency(
    (old, old_root): (u64, Digest),
    (new, new_root): (u64, Digest),
    path: &[Digest],
) -> Result<(), ProofError> {
    if old > new {
        return Err(ProofError::Shrunk { old, new });
    }
    let wrong_length = ProofError::Length { found: path.len() };
    if old == 0 || old == new {
        if !path.is_empty() {
            return Err(wrong_length);
        }
        return same_root(if old == 0 { empty_root() } else { new_root }, old_root);
    }
    let (mut fn_, mut sn) = (old - 1, new - 1);
    while fn_ & 1 == 1 {
        (fn_, sn) = (fn_ >> 1, sn >> 1);
    }
    let (first, rest) = if old.is_power_of_two() {
        (old_root, path)
    } else {
        let (first, rest) = path.split_first().ok_or_else(|| wrong_length.clone())?;
        (*first, rest)
    };
    if rest.is_empty() {
        return Err(wrong_length);
    }
    let (mut from_old, mut from_new) = (first, first);
    for step in rest {
        if sn == 0 {
            return Err(wrong_length);
        }
        if fn_ & 1 == 1 || fn_ == sn {
            from_old = node_hash(step, &from_old);
            from_new = node_hash(step, &from_new);
            while fn_ & 1 == 0 && fn_ != 0 {
                (fn_, sn) = (fn_ >> 1, sn >> 1);
            }
        } else {
            from_new = node_hash(&from_new, step);
        }
        (fn_, sn) = (fn_ >> 1, sn >> 1);
    }
    if sn != 0 {
        return Err(wrong_length);
    }
    same_root(old_root, from_old)?;
    same_root(new_root, from_new)
}

fn same_root(expected: Digest, found: Digest) -> Result<(), ProofError> {
    if expected == found { Ok(()) } else { Err(ProofError::Root { expected, found }) }
}

/// The largest power of two smaller than `n`, for `n` over 1: where RFC 6962 cuts a tree.
fn split(n: u64) -> u64 {
    1 << (63 - (n - 1).leading_zeros())
}

/// The complete subtrees that make up the leaves `low..high`, left to right. `low` is where RFC 6962 would cut.
fn peaks(low: u64, high: u64) -> Vec<Subtree> {
    let mut out = Vec::new();
    let mut at = low;
    for level in (0..63u8).rev() {
        if (high - low) >> level & 1 == 1 {
            out.push(Subtree { level, index: at >> level });
            at += 1 << level;
        }
    }
    out
}

fn range_hash<E>(low: u64, high: u64, read: impl FnMut(Subtree) -> Result<Digest, E>) -> Result<Digest, E> {
    let hashes: Vec<Digest> = peaks(low, high).into_iter().map(read).collect::<Result<_, _>>()?;
    Ok(join(&hashes).unwrap_or_else(empty_root))
}

/// The root over complete subtrees, largest first; `None` without any.
fn join(peaks: &[Digest]) -> Option<Digest> {
    peaks.iter().rev().copied().reduce(|right, left| node_hash(&left, &right))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::unhex;

    /// The eight entries of the Certificate Transparency project's reference tree.
    const ENTRIES: [&str; 8] =
        ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
    const ROOTS: [&str; 8] = [
        "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
        "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
        "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
        "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
        "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
        "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
        "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
    ];

    fn leaves() -> Vec<Digest> {
        ENTRIES.iter().map(|text| leaf_hash(&unhex(text).expect("hex"))).collect()
    }

    #[test]
    fn the_reference_tree_has_the_published_roots() {
        assert_eq!(empty_root().to_string(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(Frontier::new().root(), empty_root());
        let found: Vec<String> = (1..=8).map(|size| root(&leaves()[..size]).to_string()).collect();
        assert_eq!(found, ROOTS);
    }

    #[test]
    fn the_reference_tree_has_the_published_paths() {
        let leaves = leaves();
        let read = |s: Subtree| {
            let (low, high) = (s.index << s.level, (s.index + 1) << s.level);
            let range = usize::try_from(low).expect("small")..usize::try_from(high).expect("small");
            Ok::<_, ProofError>(root(&leaves[range]))
        };
        let text = |path: Vec<Digest>| path.iter().map(Digest::to_string).collect::<Vec<_>>();
        assert_eq!(
            text(inclusion_path(0, 8, read).expect("in the tree")),
            [
                "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
                "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
                "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
            ]
        );
        assert_eq!(
            text(consistency_path(6, 8, read).expect("a prefix")),
            [
                "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
                "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
                "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
            ]
        );
        assert_eq!(text(consistency_path(1, 1, read).expect("equal")), Vec::<String>::new());
    }

    #[test]
    fn a_frontier_is_taken_up_where_it_was_left_and_a_wrong_one_is_refused() {
        let leaves = leaves();
        let mut whole = Frontier::new();
        for (n, leaf) in leaves.iter().enumerate() {
            let mut again = Frontier::from_parts(whole.size(), whole.peaks().to_vec()).expect("its own parts");
            again.push(*leaf);
            whole.push(*leaf);
            assert_eq!(again, whole);
            assert_eq!(whole.root(), root(&leaves[..=n]));
        }
        assert_eq!(
            Frontier::from_parts(7, vec![empty_root(); 2]),
            Err(ProofError::Frontier { size: 7, expected: 3, found: 2 })
        );
    }
}
