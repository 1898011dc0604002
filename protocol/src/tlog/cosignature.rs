//! C2SP tlog-cosignature, version 1: a witness says that it saw a checkpoint at a time, and that the log only grew.
//!
//! Whether the log grew is for the witness to check before it signs; here are only the bytes.

use super::note::{KeyKind, NoteError, NoteSignature, SignedNote, VerifierKey};
use crate::key::{KeyError, SecretKey};

/// The bytes that a cosignature covers.
pub fn message(text: &str, time_s: u64) -> Vec<u8> {
    format!("cosignature/v1\ntime {time_s}\n{text}").into_bytes()
}

/// A witness's line under a checkpoint with this text. `time_s` is in seconds since 1970.
pub fn cosign(witness: &VerifierKey, secret: &SecretKey, text: &str, time_s: u64) -> NoteSignature {
    witness.line(secret, &time_s.to_be_bytes(), &message(text, time_s))
}

/// Checks a witness's line; returns its time in seconds since 1970.
pub fn verify(witness: &VerifierKey, text: &str, line: &NoteSignature) -> Result<u64, NoteError> {
    let length = || NoteError::Signature {
        name: witness.name().to_owned(),
        source: KeyError::SignatureLength { found: line.blob.len() },
    };
    let (time, signature) = line.blob.split_first_chunk::<8>().ok_or_else(length)?;
    let time_s = u64::from_be_bytes(*time);
    witness.verify(&message(text, time_s), signature)?;
    Ok(time_s)
}

/// The cosignatures of trusted witnesses under a note: who, and when. A line that claims to be by one of them and does
/// not verify is an error.
pub fn cosigned(note: &SignedNote, witnesses: &[VerifierKey]) -> Result<Vec<(String, u64)>, NoteError> {
    let mut out = Vec::new();
    for line in &note.signatures {
        let known = witnesses.iter().find(|witness| witness.kind() == KeyKind::Cosignature && witness.is_of(line));
        if let Some(witness) = known {
            out.push((witness.name().to_owned(), verify(witness, &note.text, line)?));
        }
    }
    Ok(out)
}
