//! C2SP tlog-proof, version 1: one text that shows that an entry is in a log: index, inclusion path, signed checkpoint.

use std::collections::BTreeSet;
use std::fmt;

use super::checkpoint::{Checkpoint, CheckpointError, OpenedCheckpoint};
use super::merkle::{self, ProofError, leaf_hash};
use super::note::{MAX_NOTE, VerifierKey, shorten};
use super::{base64, parse_hash, parse_number};
use crate::digest::Digest;

const HEADER: &str = "c2sp.org/tlog-proof@v1";
/// No path in a tree that `u64` can count is longer.
const MAX_PATH: usize = 64;

/// A proof taken apart: nothing in it is verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlogProof {
    /// Data for the application as it stands, in base64; neither the log nor a witness vouches for it.
    pub extra: Option<String>,
    pub index: u64,
    pub path: Vec<Digest>,
    /// The signed checkpoint as it stands.
    pub checkpoint: String,
}

/// Where an entry was shown to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedProof {
    pub index: u64,
    pub size: u64,
    pub root: Digest,
    pub cosigned: BTreeSet<String>,
    pub first_cosigned_s: Option<u64>,
}

/// Why a proof was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TlogProofError {
    #[error("the proof is {found} bytes; the limit is {MAX_NOTE}")]
    TooLong { found: usize },
    #[error("the proof has no checkpoint")]
    NoCheckpoint,
    #[error("the proof starts with {found:?}; expected {HEADER:?}")]
    Header { found: String },
    #[error("the proof has no index line")]
    Index,
    #[error("line {found:?} of the proof is not base64 of the right length")]
    Line { found: String },
    #[error("the proof has {found} hashes; the limit is {MAX_PATH}")]
    Path { found: usize },
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    #[error("the inclusion proof does not hold")]
    Inclusion(#[from] ProofError),
}

impl TlogProof {
    pub fn parse(text: &str) -> Result<Self, TlogProofError> {
        if text.len() > MAX_NOTE {
            return Err(TlogProofError::TooLong { found: text.len() });
        }
        let (head, checkpoint) = text.split_once("\n\n").ok_or(TlogProofError::NoCheckpoint)?;
        let wrong = |line: &str| TlogProofError::Line { found: shorten(line) };
        let mut lines = head.split('\n').peekable();
        let header = lines.next().unwrap_or_default();
        if header != HEADER {
            return Err(TlogProofError::Header { found: shorten(header) });
        }
        let extra = lines.next_if(|line| line.starts_with("extra ")).map(|line| line["extra ".len()..].to_owned());
        let index = lines.next().and_then(|line| line.strip_prefix("index ")).and_then(parse_number);
        let index = index.ok_or(TlogProofError::Index)?;
        let path: Vec<Digest> =
            lines.map(|line| parse_hash(line).ok_or_else(|| wrong(line))).collect::<Result<_, _>>()?;
        if path.len() > MAX_PATH {
            return Err(TlogProofError::Path { found: path.len() });
        }
        Ok(Self { extra, index, path, checkpoint: checkpoint.to_owned() })
    }

    /// Checks that `entry` is in the log, under a checkpoint that the log signed and `quorum` witnesses cosigned.
    pub fn verify(
        &self,
        entry: &[u8],
        log: &VerifierKey,
        witnesses: &[VerifierKey],
        quorum: usize,
    ) -> Result<VerifiedProof, TlogProofError> {
        let opened = Checkpoint::open(&self.checkpoint, log, witnesses, quorum)?;
        self.verify_under(entry, &opened)?;
        let Checkpoint { size, root, .. } = opened.checkpoint;
        Ok(VerifiedProof {
            index: self.index,
            size,
            root,
            cosigned: opened.cosigned,
            first_cosigned_s: opened.first_cosigned_s,
        })
    }

    /// Checks that `entry` is in the log under this checkpoint, which the caller opened: many proofs may share one, whose
    /// signature is then checked once. Whether it is the one that the proof carries is not looked at.
    pub fn verify_under(&self, entry: &[u8], opened: &OpenedCheckpoint) -> Result<(), TlogProofError> {
        let Checkpoint { size, root, .. } = opened.checkpoint;
        Ok(merkle::verify_inclusion(self.index, size, leaf_hash(entry), &self.path, root)?)
    }
}

impl fmt::Display for TlogProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{HEADER}")?;
        if let Some(extra) = &self.extra {
            writeln!(f, "extra {extra}")?;
        }
        writeln!(f, "index {}", self.index)?;
        for hash in &self.path {
            writeln!(f, "{}", base64(&hash.0))?;
        }
        write!(f, "\n{}", self.checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::super::note::KeyKind;
    use super::*;
    use crate::key::SecretKey;

    #[test]
    fn a_proof_reads_back_verifies_and_every_altered_byte_is_found() {
        let secret = SecretKey::from_seed(&[1; 32]);
        let log = VerifierKey::new("docaxis.example/vn", KeyKind::Ed25519, secret.public()).expect("a name");
        let leaves: Vec<Digest> = (0..5u8).map(|n| leaf_hash(&[n])).collect();
        let checkpoint = Checkpoint { origin: log.name().into(), size: 5, root: merkle::root(&leaves) };
        let path = vec![leaves[3], merkle::root(&leaves[..2]), leaves[4]];
        let proof = TlogProof { extra: None, index: 2, path, checkpoint: checkpoint.sign(&log, &secret).to_string() };
        let text = proof.to_string();
        assert_eq!(TlogProof::parse(&text), Ok(proof.clone()));
        let expected = VerifiedProof {
            index: 2,
            size: 5,
            root: checkpoint.root,
            cosigned: BTreeSet::new(),
            first_cosigned_s: None,
        };
        assert_eq!(proof.verify(&[2], &log, &[], 0), Ok(expected));
        assert!(proof.verify(&[3], &log, &[], 0).is_err());
        for at in 0..text.len() - 1 {
            let mut altered = text.clone().into_bytes();
            altered[at] ^= 4;
            let found = String::from_utf8(altered)
                .ok()
                .and_then(|text| TlogProof::parse(&text).ok())
                .is_none_or(|proof| proof.verify(&[2], &log, &[], 0).is_err());
            assert!(found, "byte {at} was altered unnoticed");
        }
        let extra = TlogProof { extra: Some("eA==".into()), ..proof };
        assert_eq!(TlogProof::parse(&extra.to_string()), Ok(extra));
    }
}
