//! Claims about Merkle proofs on trees of any size: every proof verifies, no altered one does, and tiles hold the same
//! tree as a list.

#![allow(clippy::unwrap_used, reason = "a fixture that cannot be built ends the test")]

use std::collections::BTreeMap;
use std::convert::Infallible;

use docaxis_protocol::Digest;
use docaxis_protocol::tlog::merkle::{self, ProofError, Subtree};
use docaxis_protocol::tlog::tile::{self, TilePath, TileReader};
use docaxis_protocol::tlog::{Frontier, leaf_hash};
use proptest::prelude::*;

fn leaves(size: u64) -> Vec<Digest> {
    (0..size).map(|n| leaf_hash(&n.to_be_bytes())).collect()
}

fn range(low: u64, high: u64) -> std::ops::Range<usize> {
    usize::try_from(low).expect("small")..usize::try_from(high).expect("small")
}

fn from_list(leaves: &[Digest]) -> impl FnMut(Subtree) -> Result<Digest, ProofError> + '_ {
    |s| Ok(merkle::root(&leaves[range(s.index << s.level, (s.index + 1) << s.level)]))
}

/// The tiles that a log which grew by these steps has written.
fn tiles(leaves: &[Digest], steps: &[u64]) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut old = 0;
    for new in steps {
        for tile in tile::hash_tiles_of_growth(old, *new) {
            let mut read = from_list(leaves);
            let bytes = tile.subtrees().flat_map(|subtree| read(subtree).expect("from a list").0).collect();
            files.insert(tile.path(), bytes);
        }
        old = *new;
    }
    files
}

fn reader(
    size: u64,
    files: &BTreeMap<String, Vec<u8>>,
) -> TileReader<impl FnMut(TilePath) -> Result<Vec<u8>, Infallible>> {
    TileReader::new(size, |tile| Ok(files.get(&tile.path()).or(files.get(&tile.full().path())).expect("tile").clone()))
}

/// All ways to spoil a path by one hash.
fn spoiled(path: &[Digest]) -> Vec<Vec<Digest>> {
    let mut out: Vec<Vec<Digest>> = (0..path.len())
        .flat_map(|n| {
            let mut altered = path.to_vec();
            altered[n].0[n % 32] ^= 1;
            let mut dropped = path.to_vec();
            dropped.remove(n);
            [altered, dropped]
        })
        .collect();
    out.push([path, &[Digest([0; 32])]].concat());
    out
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_inclusion_proof_verifies_and_no_altered_one_does(size in 1u64..600, at in any::<prop::sample::Index>()) {
        let leaves = leaves(size);
        let index = at.index(leaves.len());
        let (leaf, root, index) = (leaves[index], merkle::root(&leaves), u64::try_from(index).expect("small"));
        let path = merkle::inclusion_path(index, size, from_list(&leaves)).expect("inside the tree");
        prop_assert_eq!(merkle::verify_inclusion(index, size, leaf, &path, root), Ok(()));
        for wrong in spoiled(&path) {
            prop_assert!(merkle::verify_inclusion(index, size, leaf, &wrong, root).is_err());
        }
        for other in [index + 1, index.wrapping_sub(1), size] {
            prop_assert!(merkle::verify_inclusion(other, size, leaf, &path, root).is_err());
        }
        prop_assert!(merkle::verify_inclusion(index, size, leaf_hash(b"?"), &path, root).is_err());
        prop_assert!(merkle::inclusion_path(size, size, from_list(&leaves)).is_err());
    }

    #[test]
    fn every_consistency_proof_verifies_and_no_altered_one_does(new in 1u64..600, at in any::<prop::sample::Index>()) {
        let leaves = leaves(new);
        let old = u64::try_from(at.index(leaves.len() + 1)).expect("small");
        let (old_root, new_root) = (merkle::root(&leaves[range(0, old)]), merkle::root(&leaves));
        let path = merkle::consistency_path(old, new, from_list(&leaves)).expect("a prefix");
        prop_assert_eq!(merkle::verify_consistency((old, old_root), (new, new_root), &path), Ok(()));
        for wrong in spoiled(&path) {
            prop_assert!(merkle::verify_consistency((old, old_root), (new, new_root), &wrong).is_err());
        }
        let other = Digest([7; 32]);
        prop_assert!(merkle::verify_consistency((old, other), (new, new_root), &path).is_err());
        if old > 0 {
            prop_assert!(merkle::verify_consistency((old, old_root), (new, other), &path).is_err());
        }
        prop_assert!(merkle::verify_consistency((new + 1, new_root), (new, new_root), &path).is_err());
    }

    #[test]
    fn tiles_hold_the_same_tree_as_the_list(mut steps in prop::collection::vec(1u64..1500, 1..5), at in any::<prop::sample::Index>()) {
        steps.sort_unstable();
        let size = *steps.last().expect("not empty");
        let leaves = leaves(size);
        let files = tiles(&leaves, &steps);
        // Every size that the log once had can still be read, from its own partial tiles or from later full ones.
        for size in steps {
            let mut tiles = reader(size, &files);
            let list = &leaves[range(0, size)];
            prop_assert_eq!(tiles.root().expect("tiles"), merkle::root(list));
            let mut frontier = Frontier::new();
            list.iter().for_each(|leaf| frontier.push(*leaf));
            prop_assert_eq!(tiles.frontier().expect("tiles"), frontier);
            let index = u64::try_from(at.index(list.len())).expect("small");
            prop_assert_eq!(
                tiles.inclusion_path(index).expect("tiles"),
                merkle::inclusion_path(index, size, from_list(list)).expect("list")
            );
            prop_assert_eq!(
                tiles.consistency_path(index).expect("tiles"),
                merkle::consistency_path(index, size, from_list(list)).expect("list")
            );
        }
    }
}

#[test]
fn a_tree_over_three_tile_levels_reads_the_same_from_tiles() {
    let size = 70_000;
    let leaves = leaves(size);
    let files = tiles(&leaves, &[size]);
    assert_eq!(files.len(), 274 + 2 + 1);
    let mut tiles = reader(size, &files);
    let root = merkle::root(&leaves);
    assert_eq!(tiles.root().expect("tiles"), root);
    for index in [0, 255, 256, 65_535, 65_536, 69_999] {
        let path = tiles.inclusion_path(index).expect("tiles");
        assert_eq!(merkle::verify_inclusion(index, size, leaves[range(index, index + 1)][0], &path, root), Ok(()));
    }
    for old in [1, 256, 65_536, 65_537, 69_999] {
        let path = tiles.consistency_path(old).expect("tiles");
        let old_root = merkle::root(&leaves[range(0, old)]);
        assert_eq!(merkle::verify_consistency((old, old_root), (size, root), &path), Ok(()));
    }
}

#[test]
fn a_short_or_incomplete_tile_is_reported() {
    let leaves = leaves(300);
    let mut files = tiles(&leaves, &[300]);
    if let Some(tile) = files.get_mut("tile/0/000") {
        tile.truncate(255 * 32);
    }
    let error = reader(300, &files).inclusion_path(3).expect_err("a short tile").to_string();
    assert_eq!(error, "tile tile/0/000 is 8160 bytes; expected 8192");
    let error = reader(300, &files).hash(Subtree { level: 8, index: 1 }).expect_err("not complete").to_string();
    assert_eq!(error, "subtree 1 of level 8 is not complete in a tree of 300");
}
