//! C2SP signed-note: a text, an empty line, and signature lines `— name base64(key id || signature)`; and the verifier
//! keys ("vkeys") `name+hex id+base64(kind || key)` that open it.
//!
//! Knows how lines are written and what a key id is; what a note says is `checkpoint`'s business.

use std::fmt;

use super::{base64, unbase64};
use crate::digest::{Digest, hex};
use crate::key::{Context, KeyError, PublicKey, RawSignature, SecretKey};

/// Longest note that is read: a checkpoint with a great many cosignatures is far smaller.
pub const MAX_NOTE: usize = 1 << 20;

/// What a key of a note signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyKind {
    /// A log's key: plain Ed25519 over the note's text.
    Ed25519,
    /// A witness's key: `cosignature/v1` with a time.
    Cosignature,
}

impl KeyKind {
    pub const fn byte(self) -> u8 {
        match self {
            Self::Ed25519 => 0x01,
            Self::Cosignature => 0x04,
        }
    }
}

/// Why a note, a vkey or a signature on a note was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    #[error("vkey {found:?} is not NAME+HEXID+BASE64")]
    KeyShape { found: String },
    #[error("vkey of {name}: expected an Ed25519 key of kind 0x{:02x}", expected.byte())]
    KeyKind { name: String, expected: KeyKind },
    #[error("vkey of {name}: it says key id {found}, but its key has {expected}")]
    KeyId { name: String, expected: String, found: String },
    #[error("name {found:?} of a key is empty, or holds a space or a plus sign")]
    KeyName { found: String },
    #[error("key of {name}")]
    Key {
        name: String,
        #[source]
        source: KeyError,
    },
    #[error("the note is {found} bytes; the limit is {MAX_NOTE}")]
    TooLong { found: usize },
    #[error("the note has no signature block")]
    Unsigned,
    #[error("signature line is malformed: {found:?}")]
    SignatureLine { found: String },
    #[error("the signature of {name} does not verify")]
    Signature {
        name: String,
        #[source]
        source: KeyError,
    },
}

/// A key that opens notes, with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    kind: KeyKind,
    key: PublicKey,
}

impl VerifierKey {
    pub fn new(name: &str, kind: KeyKind, key: PublicKey) -> Result<Self, NoteError> {
        if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+') {
            return Err(NoteError::KeyName { found: shorten(name) });
        }
        Ok(Self { name: name.to_owned(), kind, key })
    }

    /// Reads a vkey that must be of this kind. White space around it does not matter.
    pub fn parse(text: &str, kind: KeyKind) -> Result<Self, NoteError> {
        let shape = || NoteError::KeyShape { found: shorten(text) };
        let mut fields = text.trim().splitn(3, '+');
        let (Some(name), Some(id), Some(data)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(shape());
        };
        let data = unbase64(data).ok_or_else(shape)?;
        let raw = match data.split_first() {
            Some((byte, raw)) if *byte == kind.byte() && raw.len() == 32 => raw,
            _ => return Err(NoteError::KeyKind { name: shorten(name), expected: kind }),
        };
        let key = PublicKey::from_raw(raw).map_err(|source| NoteError::Key { name: shorten(name), source })?;
        let parsed = Self::new(name, kind, key)?;
        let expected = hex(&parsed.key_id());
        if expected != id {
            return Err(NoteError::KeyId { name: parsed.name, expected, found: shorten(id) });
        }
        Ok(parsed)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The first four bytes of SHA-256(name || newline || kind || key): finds the key of a line, proves nothing.
    pub fn key_id(&self) -> [u8; 4] {
        let Digest([a, b, c, d, ..]) =
            Digest::of_pieces(&[self.name.as_bytes(), b"\n", &[self.kind.byte()], &self.key.raw()]);
        [a, b, c, d]
    }

    /// Whether this line claims to be by this key.
    pub fn is_of(&self, line: &NoteSignature) -> bool {
        line.name == self.name && line.key_id == self.key_id()
    }

    /// Signs `message` as this key's line; `before` stands between key id and signature (a cosignature's time).
    pub(super) fn line(&self, secret: &SecretKey, before: &[u8], message: &[u8]) -> NoteSignature {
        let signature = secret.sign(Context::Plain, message);
        let blob = [before, &signature.0].concat();
        NoteSignature { name: self.name.clone(), key_id: self.key_id(), blob }
    }

    /// Checks a raw signature over `message`.
    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), NoteError> {
        RawSignature::from_slice(signature)
            .and_then(|signature| self.key.verify(Context::Plain, message, &signature))
            .map_err(|source| NoteError::Signature { name: self.name.clone(), source })
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let data = [&[self.kind.byte()][..], &self.key.raw()].concat();
        write!(f, "{}+{}+{}", self.name, hex(&self.key_id()), base64(&data))
    }
}

/// One signature line, not yet checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteSignature {
    pub name: String,
    pub key_id: [u8; 4],
    /// What follows the key id: 64 bytes of a log, 8 of time and 64 of a witness, anything of a stranger.
    pub blob: Vec<u8>,
}

impl NoteSignature {
    fn parse(line: &str) -> Result<Self, NoteError> {
        let wrong = || NoteError::SignatureLine { found: shorten(line) };
        let (name, data) = line.strip_prefix("\u{2014} ").and_then(|rest| rest.split_once(' ')).ok_or_else(wrong)?;
        let data = unbase64(data).ok_or_else(wrong)?;
        let (key_id, blob) = data.split_first_chunk::<4>().ok_or_else(wrong)?;
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(wrong());
        }
        Ok(Self { name: name.to_owned(), key_id: *key_id, blob: blob.to_vec() })
    }
}

impl fmt::Display for NoteSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\u{2014} {} {}", self.name, base64(&[&self.key_id[..], &self.blob].concat()))
    }
}

/// A note taken apart: nothing in it is verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedNote {
    /// The signed text, with its last newline.
    pub text: String,
    pub signatures: Vec<NoteSignature>,
}

impl SignedNote {
    /// Takes a note apart. A missing last newline is no fault: people paste notes.
    pub fn parse(note: &str) -> Result<Self, NoteError> {
        if note.len() > MAX_NOTE {
            return Err(NoteError::TooLong { found: note.len() });
        }
        let (text, lines) = note.split_once("\n\n").ok_or(NoteError::Unsigned)?;
        let signatures =
            lines.trim_end_matches('\n').split('\n').map(NoteSignature::parse).collect::<Result<_, _>>()?;
        Ok(Self { text: format!("{text}\n"), signatures })
    }

    /// Adds a log's plain signature.
    pub fn sign(&mut self, key: &VerifierKey, secret: &SecretKey) {
        self.signatures.push(key.line(secret, &[], self.text.as_bytes()));
    }

    /// Whether there is a signature by this log key; a line that claims its id and does not verify is an error.
    pub fn is_signed_by(&self, key: &VerifierKey) -> Result<bool, NoteError> {
        let mut signed = false;
        for line in self.signatures.iter().filter(|line| key.is_of(line)) {
            key.verify(self.text.as_bytes(), &line.blob)?;
            signed = true;
        }
        Ok(signed)
    }
}

impl fmt::Display for SignedNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.text)?;
        self.signatures.iter().try_for_each(|line| line.fmt(f))
    }
}

pub(super) fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> (SecretKey, VerifierKey) {
        let secret = SecretKey::from_seed(&[5; 32]);
        let public = secret.public();
        (secret, VerifierKey::new("log.example/x", KeyKind::Ed25519, public).expect("a name"))
    }

    #[test]
    fn a_vkey_reads_back_and_an_altered_one_does_not() {
        // The key of the specification's own example.
        let text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let parsed = VerifierKey::parse(text, KeyKind::Ed25519).expect("the example");
        assert_eq!(parsed.to_string(), text);
        assert_eq!(VerifierKey::parse(&format!(" {text}\n"), KeyKind::Ed25519), Ok(parsed));
        assert!(matches!(VerifierKey::parse(text, KeyKind::Cosignature), Err(NoteError::KeyKind { .. })));
        for wrong in [text.replace("Peter", "peter"), text.replace("c74f", "c74e"), text.replace("TW", "TX")] {
            assert!(VerifierKey::parse(&wrong, KeyKind::Ed25519).is_err(), "{wrong} was taken");
        }
        for name in ["", "a b", "a+b", "a\nb"] {
            assert!(VerifierKey::new(name, KeyKind::Ed25519, key().1.key).is_err(), "{name:?} was taken");
        }
    }

    #[test]
    fn the_specifications_example_note_opens() {
        let key =
            VerifierKey::parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW", KeyKind::Ed25519)
                .expect("the example");
        let text = "If you think cryptography is the answer to your problem,\n\
                    then you don't know what your problem is.\n\n\
                    \u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n";
        let note = SignedNote::parse(text).expect("the example");
        assert_eq!(note.is_signed_by(&key), Ok(true));
        assert_eq!(note.to_string(), text);
    }

    #[test]
    fn a_note_is_opened_by_its_key_only() {
        let (secret, key) = key();
        let mut note = SignedNote { text: "hello\nworld\n".into(), signatures: Vec::new() };
        note.sign(&key, &secret);
        let text = note.to_string();
        assert_eq!(SignedNote::parse(&text), Ok(note.clone()));
        assert_eq!(SignedNote::parse(text.trim_end()), Ok(note.clone()));
        assert_eq!(note.is_signed_by(&key), Ok(true));
        let other = SecretKey::from_seed(&[6; 32]).public();
        let stranger = VerifierKey::new("log.example/x", KeyKind::Ed25519, other).expect("a name");
        assert_eq!(note.is_signed_by(&stranger), Ok(false));
        note.text = "hello\nWorld\n".into();
        assert!(matches!(note.is_signed_by(&key), Err(NoteError::Signature { .. })));
    }

    #[test]
    fn malformed_signature_blocks_are_refused() {
        for wrong in [
            "a\n",
            "a\n\n",
            "a\n\n- x AAAAAAAA\n",
            "a\n\n\u{2014} x\n",
            "a\n\n\u{2014} x AA==\n",
            "a\n\n\u{2014} x AAAAAAAA\n\n\u{2014} x AAAAAAAA\n",
            "a\n\n\u{2014} x y AAAAAAAA\n",
        ] {
            assert!(SignedNote::parse(wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
