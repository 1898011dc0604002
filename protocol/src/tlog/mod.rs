//! The evidence log as anyone can check it: RFC 6962 trees in the C2SP formats (tlog-tiles, signed-note,
//! tlog-checkpoint, tlog-cosignature, tlog-proof).
//!
//! Everything here is computation on bytes that the caller read. It knows no files, and nothing of what an entry means.

pub mod checkpoint;
pub mod cosignature;
pub mod merkle;
pub mod note;
pub mod proof;
pub mod tile;

pub use checkpoint::{Checkpoint, OpenedCheckpoint};
pub use merkle::{Frontier, Subtree, leaf_hash, node_hash};
pub use note::{KeyKind, NoteSignature, SignedNote, VerifierKey};
pub use proof::{TlogProof, VerifiedProof};
pub use tile::{TilePath, TileReader};

use crate::digest::Digest;

/// A decimal number as the C2SP formats write it: no sign, no leading zero.
pub(crate) fn parse_number(text: &str) -> Option<u64> {
    let plain = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if plain { text.parse().ok() } else { None }
}

pub(crate) fn base64(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

pub(crate) fn unbase64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}

/// A hash as a line of base64.
pub(crate) fn parse_hash(text: &str) -> Option<Digest> {
    unbase64(text)?.try_into().ok().map(Digest)
}
