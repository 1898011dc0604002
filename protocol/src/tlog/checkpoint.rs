//! C2SP tlog-checkpoint: a log's name, size and root, signed by the log and cosigned by witnesses.
//!
//! [`OpenedCheckpoint`] exists only for a checkpoint whose log signature and quorum were verified.

use std::collections::BTreeSet;

use super::note::{NoteError, SignedNote, VerifierKey, shorten};
use super::{base64, cosignature, parse_hash, parse_number};
use crate::digest::Digest;
use crate::key::SecretKey;

/// What a checkpoint says. `text` of a signed one may hold extension lines after it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    pub origin: String,
    pub size: u64,
    pub root: Digest,
}

/// A checkpoint that was verified: by the log, and by as many witnesses as asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedCheckpoint {
    pub checkpoint: Checkpoint,
    /// Names of the trusted witnesses that cosigned.
    pub cosigned: BTreeSet<String>,
    /// The earliest cosignature's time, in seconds since 1970.
    pub first_cosigned_s: Option<u64>,
}

/// Why a checkpoint was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    #[error(transparent)]
    Note(#[from] NoteError),
    #[error("the checkpoint has fewer than three lines")]
    Lines,
    #[error("the checkpoint's origin {found:?} is not {expected:?}")]
    Origin { expected: String, found: String },
    #[error("the checkpoint's size {found:?} is malformed")]
    Size { found: String },
    #[error("the checkpoint's root {found:?} is not 32 bytes in base64")]
    Root { found: String },
    #[error("the log {log} did not sign this checkpoint")]
    NotSigned { log: String },
    #[error("{found} of the trusted witnesses cosigned; {expected} are needed")]
    Quorum { expected: usize, found: usize },
}

impl Checkpoint {
    /// The text that is signed.
    pub fn text(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, base64(&self.root.0))
    }

    /// Reads the text of a note; extension lines are let pass.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let mut lines = text.strip_suffix('\n').ok_or(CheckpointError::Lines)?.split('\n');
        let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
            return Err(CheckpointError::Lines);
        };
        Ok(Self {
            origin: origin.to_owned(),
            size: parse_number(size).ok_or_else(|| CheckpointError::Size { found: shorten(size) })?,
            root: parse_hash(root).ok_or_else(|| CheckpointError::Root { found: shorten(root) })?,
        })
    }

    /// The note with the log's signature.
    pub fn sign(&self, log: &VerifierKey, secret: &SecretKey) -> SignedNote {
        let mut note = SignedNote { text: self.text(), signatures: Vec::new() };
        note.sign(log, secret);
        note
    }

    /// Opens a signed checkpoint: the log must have signed it, and at least `quorum` of the witnesses, counted by name.
    pub fn open(
        note: &str,
        log: &VerifierKey,
        witnesses: &[VerifierKey],
        quorum: usize,
    ) -> Result<OpenedCheckpoint, CheckpointError> {
        let note = SignedNote::parse(note)?;
        let checkpoint = Self::parse(&note.text)?;
        if checkpoint.origin != log.name() {
            return Err(CheckpointError::Origin {
                expected: log.name().to_owned(),
                found: shorten(&checkpoint.origin),
            });
        }
        if !note.is_signed_by(log)? {
            return Err(CheckpointError::NotSigned { log: log.name().to_owned() });
        }
        let cosignatures = cosignature::cosigned(&note, witnesses)?;
        let first_cosigned_s = cosignatures.iter().map(|(_, time_s)| *time_s).min();
        let cosigned: BTreeSet<String> = cosignatures.into_iter().map(|(name, _)| name).collect();
        if cosigned.len() < quorum {
            return Err(CheckpointError::Quorum { expected: quorum, found: cosigned.len() });
        }
        Ok(OpenedCheckpoint { checkpoint, cosigned, first_cosigned_s })
    }
}

#[cfg(test)]
mod tests {
    use super::super::note::KeyKind;
    use super::*;

    fn named(name: &str, kind: KeyKind, seed: u8) -> (SecretKey, VerifierKey) {
        let secret = SecretKey::from_seed(&[seed; 32]);
        let key = VerifierKey::new(name, kind, secret.public()).expect("a name");
        (secret, key)
    }

    #[test]
    fn a_checkpoint_opens_only_with_its_log_and_enough_witnesses() {
        let (log_secret, log) = named("docaxis.example/vn", KeyKind::Ed25519, 1);
        let (a_secret, a) = named("witness.example/a", KeyKind::Cosignature, 2);
        let (_, b) = named("witness.example/b", KeyKind::Cosignature, 3);
        let checkpoint = Checkpoint { origin: "docaxis.example/vn".into(), size: 7, root: Digest([9; 32]) };
        let mut note = checkpoint.sign(&log, &log_secret);
        note.signatures.push(cosignature::cosign(&a, &a_secret, &note.text, 1_700_000_000));
        note.signatures.push(cosignature::cosign(&a, &a_secret, &note.text, 1_600_000_000));
        let text = note.to_string();
        let witnesses = [a.clone(), b];
        let opened = OpenedCheckpoint {
            checkpoint: checkpoint.clone(),
            cosigned: BTreeSet::from(["witness.example/a".to_owned()]),
            first_cosigned_s: Some(1_600_000_000),
        };
        assert_eq!(Checkpoint::open(&text, &log, &witnesses, 1), Ok(opened));
        // Two lines of one witness are still one witness.
        assert_eq!(
            Checkpoint::open(&text, &log, &witnesses, 2),
            Err(CheckpointError::Quorum { expected: 2, found: 1 })
        );
        let (_, other) = named("docaxis.example/vn", KeyKind::Ed25519, 4);
        assert!(matches!(Checkpoint::open(&text, &other, &[], 0), Err(CheckpointError::NotSigned { .. })));
        let (_, other) = named("docaxis.example/vn/1", KeyKind::Ed25519, 1);
        assert!(matches!(Checkpoint::open(&text, &other, &[], 0), Err(CheckpointError::Origin { .. })));
        // A time that the witness did not sign.
        note.signatures[1].blob[7] ^= 1;
        assert!(matches!(
            Checkpoint::open(&note.to_string(), &log, &[a], 0),
            Err(CheckpointError::Note(NoteError::Signature { .. }))
        ));
    }

    #[test]
    fn malformed_texts_are_refused() {
        let root = base64(&[9; 32]);
        assert!(Checkpoint::parse(&format!("x\n1\n{root}\nextension\n")).is_ok());
        for wrong in [
            "x\n1\n".to_owned(),
            format!("x\n01\n{root}\n"),
            format!("x\n-1\n{root}\n"),
            format!("x\n1\n{}\n", &root[1..]),
            format!("x\n1\n{}\n", base64(&[9; 31])),
        ] {
            assert!(Checkpoint::parse(&wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
