//! The directory's entries: which node hosts which agency since when, its other codes, its successor, whether it is
//! locked.
//!
//! The authority signs each entry with the directory key; every change of one agency is a new entry with the next
//! version. Nobody else can make one: a [`VerifiedEntry`] exists only after its signature was checked.

use serde::{Deserialize, Serialize};

use crate::id::{AgencyCode, NodeId, Origin};
use crate::json::{self, JsonError};
use crate::key::{Context, KeyError, PublicKey, SecretKey};
use crate::succession::{MAX_SUCCESSIONS, SealedSuccession};
use crate::time::Timestamp;

/// An entry's bytes as they were signed, and the directory key's signature, as the link carries them.
pub use crate::frame::SignedBytes as SignedEntry;

/// The `type` of a directory entry.
pub const TYPE: &str = "docaxis/directory@1";

/// Largest entry in bytes: a name of 200 characters and 32 codes fit with room to spare.
pub const MAX_ENTRY_BYTES: usize = 16 * 1024;

/// Longest name in characters (Decree 30/2020, Appendix VI: OrganName).
pub const MAX_NAME_CHARS: usize = 200;

/// Most other codes of one agency.
pub const MAX_ALIASES: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    #[error("a directory entry is {found} bytes; the limit is {MAX_ENTRY_BYTES}")]
    TooLarge { found: usize },
    #[error("the directory entry is signed by another key than the exchange's directory key")]
    Signature(#[source] KeyError),
    #[error("the directory entry does not read")]
    Json(#[source] JsonError),
    #[error("the directory entry's {field} is {found:?}; expected {expected}")]
    Field { field: &'static str, found: String, expected: String },
}

/// One agency as the directory knows it from `since` on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryEntry {
    #[serde(rename = "type")]
    pub kind: String,
    pub exchange: Origin,
    /// Grows by one with every change anywhere in the directory.
    pub version: u64,
    pub agency: AgencyCode,
    pub name: String,
    /// The node that hosts the agency; `None` as long as nobody does.
    pub node: Option<NodeId>,
    pub since: Timestamp,
    /// Other codes of the same agency, old and new.
    #[serde(default)]
    pub aliases: Vec<AgencyCode>,
    #[serde(default)]
    pub locked: bool,
    /// The agency that this one was merged into.
    pub successor: Option<AgencyCode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<AgencyCode>,
    /// The organisation in charge, in words, where an imported list names one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_charge: Option<String>,
    /// The agency neither sends nor receives before this instant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_from: Option<Timestamp>,
    /// Nor from this one on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub valid_until: Option<Timestamp>,
    /// Everybody who has ever answered for the agency since it was merged, the one of today last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub successions: Vec<SealedSuccession>,
}

impl DirectoryEntry {
    /// Writes the entry down once and signs those bytes.
    pub fn sign(&self, key: &SecretKey) -> Result<SignedEntry, DirectoryError> {
        self.check(&self.exchange)?;
        let bytes = serde_json::to_vec(self).map_err(|error| DirectoryError::Json(JsonError::Shape(error)))?;
        if bytes.len() > MAX_ENTRY_BYTES {
            return Err(DirectoryError::TooLarge { found: bytes.len() });
        }
        let signature = key.sign(Context::Directory, &bytes);
        Ok(SignedEntry { bytes, signature })
    }

    fn check(&self, exchange: &Origin) -> Result<(), DirectoryError> {
        let wrong = |field, found: String, expected: String| Err(DirectoryError::Field { field, found, expected });
        if self.kind != TYPE {
            return wrong("type", self.kind.chars().take(80).collect(), TYPE.into());
        }
        if self.exchange != *exchange {
            return wrong("exchange", self.exchange.to_string(), exchange.to_string());
        }
        let chars = self.name.chars().count();
        if chars > MAX_NAME_CHARS || self.name.chars().any(char::is_control) {
            let found = self.name.chars().take(80).collect();
            return wrong("name", found, format!("at most {MAX_NAME_CHARS} characters without control characters"));
        }
        if self.aliases.len() > MAX_ALIASES {
            return wrong("aliases", self.aliases.len().to_string(), format!("at most {MAX_ALIASES}"));
        }
        if self.successions.len() > MAX_SUCCESSIONS {
            return wrong("successions", self.successions.len().to_string(), format!("at most {MAX_SUCCESSIONS}"));
        }
        if let Some(last) = self.successions.last()
            && self.successor.as_ref() != Some(&last.said().successor)
        {
            let found = self.successor.as_ref().map_or("none".into(), ToString::to_string);
            return wrong("successor", found, format!("{}, as the last succession says", last.said().successor));
        }
        Ok(())
    }

    /// Whether the agency may send and receive at this time, its locks aside.
    pub fn is_valid_at(&self, now: Timestamp) -> bool {
        self.valid_from.is_none_or(|from| from <= now) && self.valid_until.is_none_or(|until| now < until)
    }

    /// What the authority said of the agency that acts, or acted, for this one.
    pub fn succession_to(&self, acting: &AgencyCode) -> Option<&SealedSuccession> {
        self.successions.iter().rev().find(|sealed| sealed.said().successor == *acting)
    }
}

impl SignedEntry {
    /// Checks the signature and that the entry belongs to this exchange.
    pub fn verify(self, key: &PublicKey, exchange: &Origin) -> Result<VerifiedEntry, DirectoryError> {
        if self.bytes.len() > MAX_ENTRY_BYTES {
            return Err(DirectoryError::TooLarge { found: self.bytes.len() });
        }
        key.verify(Context::Directory, &self.bytes, &self.signature).map_err(DirectoryError::Signature)?;
        let entry: DirectoryEntry = json::parse(&self.bytes).map_err(DirectoryError::Json)?;
        entry.check(exchange)?;
        for sealed in &entry.successions {
            sealed.verify(key, exchange, &entry.agency)?;
        }
        Ok(VerifiedEntry { entry, signed: self })
    }
}

/// An entry whose signature held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedEntry {
    entry: DirectoryEntry,
    signed: SignedEntry,
}

impl VerifiedEntry {
    pub fn entry(&self) -> &DirectoryEntry {
        &self.entry
    }

    /// The bytes and signature, to hand on.
    pub fn signed(&self) -> &SignedEntry {
        &self.signed
    }

    pub fn into_parts(self) -> (DirectoryEntry, SignedEntry) {
        (self.entry, self.signed)
    }
}

impl std::ops::Deref for VerifiedEntry {
    type Target = DirectoryEntry;
    fn deref(&self) -> &DirectoryEntry {
        &self.entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::succession::Succession;

    fn exchange() -> Origin {
        "docaxis.example/vn".parse().unwrap()
    }

    fn key() -> SecretKey {
        SecretKey::from_seed(&[9; 32])
    }

    fn entry() -> DirectoryEntry {
        DirectoryEntry {
            kind: TYPE.into(),
            exchange: exchange(),
            version: 7,
            agency: "H37.DN.001".parse().unwrap(),
            name: "Sở Nội vụ".into(),
            node: Some("h37".parse().unwrap()),
            since: "2026-11-22T03:30:00.000Z".parse().unwrap(),
            aliases: vec!["000.12.31.H37".parse().unwrap()],
            locked: false,
            successor: None,
            parent: None,
            in_charge: None,
            valid_from: None,
            valid_until: None,
            successions: vec![],
        }
    }

    #[test]
    fn an_entry_reads_as_it_was_signed_and_is_written_as_documented() {
        let signed = entry().sign(&key()).unwrap();
        assert_eq!(
            std::str::from_utf8(&signed.bytes).unwrap(),
            "{\"type\":\"docaxis/directory@1\",\"exchange\":\"docaxis.example/vn\",\"version\":7,\"agency\":\"H37.DN.001\",\
             \"name\":\"Sở Nội vụ\",\"node\":\"h37\",\"since\":\"2026-11-22T03:30:00.000Z\",\"aliases\":[\"000.12.31.H37\"],\
             \"locked\":false,\"successor\":null}"
        );
        let verified = signed.clone().verify(&key().public(), &exchange()).unwrap();
        assert_eq!((verified.entry(), verified.signed()), (&entry(), &signed));
    }

    #[test]
    fn another_key_an_altered_byte_and_another_exchange_are_refused() {
        let signed = entry().sign(&key()).unwrap();
        let stranger = SecretKey::from_seed(&[1; 32]).public();
        let mut altered = signed.clone();
        altered.bytes[20] ^= 1;
        let other: Origin = "docaxis.example/other".parse().unwrap();
        assert!(matches!(signed.clone().verify(&stranger, &exchange()), Err(DirectoryError::Signature(_))));
        assert!(matches!(altered.verify(&key().public(), &exchange()), Err(DirectoryError::Signature(_))));
        assert!(matches!(signed.verify(&key().public(), &other), Err(DirectoryError::Field { field: "exchange", .. })));
    }

    #[test]
    fn names_and_aliases_over_their_bounds_are_not_signed() {
        let long = DirectoryEntry { name: "ệ".repeat(MAX_NAME_CHARS + 1), ..entry() };
        assert!(matches!(long.sign(&key()), Err(DirectoryError::Field { field: "name", .. })));
        let many = DirectoryEntry { aliases: vec!["H37".parse().unwrap(); MAX_ALIASES + 1], ..entry() };
        assert!(matches!(many.sign(&key()), Err(DirectoryError::Field { field: "aliases", .. })));
    }

    fn merged_into(successor: &str, key: &SecretKey) -> DirectoryEntry {
        let successor: AgencyCode = successor.parse().unwrap();
        let (agency, since) = (entry().agency, entry().since);
        let succession = Succession::new(exchange(), agency, successor.clone(), since).sign(key).unwrap();
        DirectoryEntry { successor: Some(successor), successions: vec![succession], ..entry() }
    }

    #[test]
    fn an_entry_carries_only_successions_that_the_directorys_key_signed_for_its_agency() {
        let merged = merged_into("H37.DN.002", &key());
        let read = merged.sign(&key()).unwrap().verify(&key().public(), &exchange()).unwrap();
        let to: AgencyCode = "H37.DN.002".parse().unwrap();
        assert_eq!(read.succession_to(&to).unwrap().said().since, entry().since);
        assert_eq!(read.succession_to(&entry().agency), None);

        let strangers = merged_into("H37.DN.002", &SecretKey::from_seed(&[1; 32])).sign(&key()).unwrap();
        assert!(matches!(strangers.verify(&key().public(), &exchange()), Err(DirectoryError::Signature(_))));
        let others = DirectoryEntry { agency: "H37.DN.003".parse().unwrap(), ..merged.clone() }.sign(&key()).unwrap();
        assert!(matches!(others.verify(&key().public(), &exchange()), Err(DirectoryError::Field { .. })));
        let contradicting = DirectoryEntry { successor: None, ..merged };
        assert!(matches!(contradicting.sign(&key()), Err(DirectoryError::Field { field: "successor", .. })));
    }

    #[test]
    fn an_agency_is_valid_from_its_first_instant_up_to_its_last() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let (from, until) = (at("2026-01-01T00:00:00Z"), at("2027-01-01T00:00:00Z"));
        let entry = DirectoryEntry { valid_from: Some(from), valid_until: Some(until), ..entry() };
        let day = std::time::Duration::from_secs(86_400);
        let found = [from.minus(day), from, until.minus(day), until].map(|now| entry.is_valid_at(now));
        assert_eq!(found, [false, true, true, false]);
    }

    #[test]
    fn a_signed_entry_survives_the_private_encoding() {
        let signed = entry().sign(&key()).unwrap();
        let bytes = codec::encode(&signed, MAX_ENTRY_BYTES + 128).unwrap();
        assert_eq!(codec::decode::<SignedEntry>(&bytes, MAX_ENTRY_BYTES + 128).unwrap(), signed);
    }
}
