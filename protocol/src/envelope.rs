//! The envelope: what the sending agency seals. The stored bytes are the truth; the parsed form is only for reading.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::codec::blob;
use crate::digest::Digest;
use crate::id::{AgencyCode, DispatchId, NodeId, Origin};
use crate::json::{self, JsonError};
use crate::key::{Context, KeyError, PublicKey, RawSignature, SecretKey};
use crate::limits;
use crate::reason::{Reason, ReasonCode};
use crate::time::Timestamp;

pub const TYPE: &str = "docaxis/envelope@1";

/// What a dispatch is (protocol.md, section 2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    New,
    Recall,
    Update,
    Replace,
    Status,
}

impl Kind {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Recall => "recall",
            Self::Update => "update",
            Self::Replace => "replace",
            Self::Status => "status",
        }
    }
}

/// What one part is within the document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PartRole {
    Document,
    Appendix,
    /// The edXML file as it came in, byte for byte.
    OriginalEdxml,
}

/// One part: a file by digest. The body travels beside the envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    pub name: String,
    pub media_type: String,
    /// Bytes.
    pub size: u64,
    pub sha256: Digest,
    pub role: PartRole,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sender {
    pub agency: AgencyCode,
    pub node: NodeId,
}

/// How this dispatch stands to an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relation {
    pub rel: String,
    pub dispatch: DispatchId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub document_id: Option<String>,
}

/// A business status 04, 05, 06, 13, 15 or 16 (kind `status`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    pub code: String,
    #[serde(default)]
    pub description: String,
    pub time: Timestamp,
}

/// The envelope's content. Field order is the order in which it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Envelope {
    #[serde(rename = "type")]
    pub kind_of_bytes: String,
    pub exchange: Origin,
    pub id: DispatchId,
    pub created: Timestamp,
    pub expires: Timestamp,
    pub sender: Sender,
    pub recipients: Vec<AgencyCode>,
    /// Whether the others shall have it although some of the recipients cannot. Those fail at once, with evidence of each;
    /// without this, one of them has the whole submission rejected.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    pub kind: Kind,
    /// 0 normal to 4 (domain.md, section 3).
    #[serde(default)]
    pub priority: u8,
    #[serde(default)]
    pub not_before: Option<Timestamp>,
    /// The edXML header under its own field names, plus `secret`.
    #[serde(default)]
    pub document: Map<String, Value>,
    #[serde(default)]
    pub relates: Vec<Relation>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<StatusReport>,
    pub parts: Vec<Part>,
    #[serde(default)]
    pub encryption: Option<Value>,
    /// Base64 of 16 random bytes.
    pub salt: String,
}

#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("the envelope is {found} bytes; the limit is {max}", max = limits::MAX_ENVELOPE_BYTES)]
    TooLarge { found: usize },
    #[error("the envelope does not read")]
    Json(#[from] JsonError),
    #[error("the envelope's type is {found:?}; expected {TYPE:?}")]
    Type { found: String },
    #[error("{0}")]
    Rule(Reason),
}

impl EnvelopeError {
    /// The reason that a peer is given.
    pub fn reason(&self) -> Reason {
        match self {
            Self::TooLarge { .. } => ReasonCode::TooLarge.because(self.to_string()),
            Self::Json(source) => ReasonCode::Malformed.because(format!("{self}: {source}")),
            Self::Type { .. } => ReasonCode::Malformed.because(self.to_string()),
            Self::Rule(reason) => reason.clone(),
        }
    }
}

impl Envelope {
    /// Reads an envelope's bytes: size, strict JSON, type. The rules of [`Envelope::check`] are apart, because an
    /// envelope that breaks one of them still gets evidence of its rejection.
    pub fn parse(bytes: &[u8]) -> Result<Self, EnvelopeError> {
        if bytes.len() > limits::MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::TooLarge { found: bytes.len() });
        }
        let envelope: Self = json::parse(bytes)?;
        if envelope.kind_of_bytes != TYPE {
            return Err(EnvelopeError::Type { found: envelope.kind_of_bytes });
        }
        Ok(envelope)
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>, EnvelopeError> {
        let bytes = serde_json::to_vec(self).map_err(|e| EnvelopeError::Json(JsonError::Shape(e)))?;
        if bytes.len() > limits::MAX_ENVELOPE_BYTES {
            return Err(EnvelopeError::TooLarge { found: bytes.len() });
        }
        Ok(bytes)
    }

    /// Whether the document is marked as a state secret.
    pub fn is_secret(&self) -> bool {
        !matches!(self.document.get("secret"), None | Some(Value::Bool(false) | Value::Null))
    }

    /// The rules that an envelope must keep by itself, whoever sends it and whatever the directory says. The first
    /// broken one is returned.
    pub fn check(&self, max_part_bytes: u64) -> Result<(), EnvelopeError> {
        let rule = |code: ReasonCode, text: String| Err(EnvelopeError::Rule(code.because(text)));
        if self.is_secret() {
            return rule(ReasonCode::SecretRefused, format!("dispatch {} is marked secret", self.id));
        }
        if self.encryption.is_some() {
            return rule(ReasonCode::NotYetSupported, "the envelope asks for encryption, which is reserved".into());
        }
        if self.recipients.is_empty() {
            return rule(ReasonCode::Malformed, "the envelope names no recipient".into());
        }
        if self.recipients.len() > limits::MAX_RECIPIENTS {
            let found = self.recipients.len();
            return rule(ReasonCode::TooLarge, format!("{found} recipients; the limit is {}", limits::MAX_RECIPIENTS));
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.recipients.iter().find(|code| !seen.insert(*code)) {
            return rule(ReasonCode::DuplicateRecipient, format!("{twice} is named twice"));
        }
        if self.priority > limits::MAX_PRIORITY {
            return rule(
                ReasonCode::Malformed,
                format!("priority is {}; expected 0 to {}", self.priority, limits::MAX_PRIORITY),
            );
        }
        if self.parts.len() > limits::MAX_PARTS {
            let found = self.parts.len();
            return rule(ReasonCode::TooManyParts, format!("{found} parts; the limit is {}", limits::MAX_PARTS));
        }
        for part in &self.parts {
            if part.size > max_part_bytes {
                return rule(
                    ReasonCode::TooLarge,
                    format!("part {:?} is {} bytes; the limit is {max_part_bytes}", part.name, part.size),
                );
            }
            if let Err(why) = check_part_name(&part.name) {
                return rule(ReasonCode::UnsafeName, format!("part name {:?} {why}", part.name));
            }
        }
        if self.expires <= self.created || self.expires.since(self.created) > limits::MAX_LIFE {
            return rule(
                ReasonCode::Malformed,
                format!("expires {} must lie within 90 days after created {}", self.expires, self.created),
            );
        }
        Ok(())
    }
}

/// Whether `name` may stand for a file: NFC, no path separators, no control characters, at most 255 bytes.
pub fn check_part_name(name: &str) -> Result<(), &'static str> {
    use unicode_normalization::is_nfc;
    if name.is_empty() || name == "." || name == ".." {
        return Err("is no file name");
    }
    if name.len() > limits::MAX_NAME_BYTES {
        return Err("is longer than 255 bytes");
    }
    if name.chars().any(|c| matches!(c, '/' | '\\')) {
        return Err("has a path separator");
    }
    if name.chars().any(char::is_control) {
        return Err("has a control character");
    }
    if !is_nfc(name) {
        return Err("is not in Unicode normal form C");
    }
    Ok(())
}

/// An envelope as it travels and is stored: the bytes, the seal over them, and the seal's certificates (leaf first).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedEnvelope {
    #[serde(with = "blob")]
    pub bytes: Vec<u8>,
    pub signature: RawSignature,
    pub chain: Chain,
}

impl SealedEnvelope {
    /// Seals `envelope`.
    pub fn seal(envelope: &Envelope, key: &SecretKey, chain: Chain) -> Result<Self, EnvelopeError> {
        let bytes = envelope.to_bytes()?;
        let signature = key.sign(Context::Envelope, &bytes);
        Ok(Self { bytes, signature, chain })
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// Checks the signature under a key that was certified for the sender's agency.
    pub fn verify(&self, key: &PublicKey) -> Result<(), KeyError> {
        key.verify(Context::Envelope, &self.bytes, &self.signature)
    }
}

/// Certificates in DER, the leaf first, without the root.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Chain(pub Vec<Certificate>);

impl Chain {
    pub fn from_ders(ders: impl IntoIterator<Item = Vec<u8>>) -> Self {
        Self(ders.into_iter().map(Certificate).collect())
    }

    pub fn leaf(&self) -> Option<&[u8]> {
        self.0.first().map(|certificate| certificate.0.as_slice())
    }

    /// Whether the number and size of the certificates are within bounds.
    pub fn within_bounds(&self) -> bool {
        (1..=limits::MAX_CHAIN_CERTIFICATES).contains(&self.0.len())
            && self.0.iter().all(|certificate| certificate.0.len() <= limits::MAX_CERTIFICATE_BYTES)
    }
}

/// One certificate in DER.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate(#[serde(with = "blob")] pub Vec<u8>);

#[cfg(test)]
mod tests {
    use super::*;

    pub(crate) fn letter() -> Envelope {
        let created = Timestamp::from_unix_ms(1_795_318_200_123);
        Envelope {
            kind_of_bytes: TYPE.into(),
            exchange: "docaxis.example/vn".parse().unwrap(),
            id: DispatchId::from_parts(created, [1; 10]),
            created,
            expires: created.plus(std::time::Duration::from_secs(30 * 86_400)),
            sender: Sender { agency: "000.00.00.G22".parse().unwrap(), node: "g22".parse().unwrap() },
            recipients: vec!["H37.DN.001".parse().unwrap()],
            partial: false,
            kind: Kind::New,
            priority: 0,
            not_before: None,
            document: Map::new(),
            relates: vec![],
            status: None,
            parts: vec![Part {
                name: "công văn.pdf".into(),
                media_type: "application/pdf".into(),
                size: 3,
                sha256: Digest::of(b"abc"),
                role: PartRole::Document,
            }],
            encryption: None,
            salt: "AAAAAAAAAAAAAAAAAAAAAA==".into(),
        }
    }

    fn code_of(envelope: &Envelope) -> Option<String> {
        envelope.check(limits::MAX_PART_BYTES).err().map(|e| e.reason().code)
    }

    #[test]
    fn an_envelope_is_read_back_as_it_was_written() {
        let envelope = letter();
        let bytes = envelope.to_bytes().unwrap();
        assert_eq!(Envelope::parse(&bytes).unwrap(), envelope);
        assert!(bytes.starts_with(br#"{"type":"docaxis/envelope@1","exchange":"docaxis.example/vn","id":""#));
    }

    #[test]
    fn the_choice_of_a_partial_submission_is_sealed_and_its_absence_changes_no_byte() {
        let text = |envelope: &Envelope| String::from_utf8(envelope.to_bytes().unwrap()).unwrap();
        assert!(!text(&letter()).contains("partial"));
        let partial = Envelope { partial: true, ..letter() };
        assert!(text(&partial).contains(r#""partial":true"#));
        assert_eq!(Envelope::parse(text(&partial).as_bytes()).unwrap(), partial);
    }

    #[test]
    fn each_broken_rule_has_its_own_code() {
        assert_eq!(code_of(&letter()), None);
        let broken = |change: fn(&mut Envelope)| {
            let mut envelope = letter();
            change(&mut envelope);
            code_of(&envelope).expect("a rule is broken")
        };
        assert_eq!(broken(|e| e.recipients.push(e.recipients[0].clone())), "duplicate-recipient");
        assert_eq!(broken(|e| e.recipients.clear()), "malformed");
        assert_eq!(broken(|e| drop(e.document.insert("secret".into(), true.into()))), "secret-refused");
        assert_eq!(broken(|e| drop(e.document.insert("secret".into(), "Mật".into()))), "secret-refused");
        assert_eq!(broken(|e| e.parts[0].size = limits::MAX_PART_BYTES + 1), "too-large");
        assert_eq!(broken(|e| e.parts = vec![e.parts[0].clone(); 101]), "too-many-parts");
        assert_eq!(broken(|e| e.parts[0].name = "../../etc/passwd".into()), "unsafe-name");
        assert_eq!(broken(|e| e.parts[0].name = "co\u{302}ng.pdf".into()), "unsafe-name");
        assert_eq!(broken(|e| e.parts[0].name = "a\u{7}".into()), "unsafe-name");
        assert_eq!(broken(|e| e.priority = 5), "malformed");
        assert_eq!(broken(|e| e.expires = e.created), "malformed");
        assert_eq!(broken(|e| e.expires = e.created.plus(limits::MAX_LIFE * 2)), "malformed");
        assert_eq!(broken(|e| e.encryption = Some(Value::Bool(true))), "not-yet-supported");
    }

    #[test]
    fn an_envelope_over_its_limit_or_of_another_type_is_refused() {
        let mut envelope = letter();
        envelope.kind_of_bytes = "docaxis/envelope@2".into();
        let bytes = serde_json::to_vec(&envelope).unwrap();
        assert!(matches!(Envelope::parse(&bytes), Err(EnvelopeError::Type { .. })));
        let mut envelope = letter();
        envelope.document.insert("Content".into(), "x".repeat(limits::MAX_ENVELOPE_BYTES).into());
        assert!(matches!(envelope.to_bytes(), Err(EnvelopeError::TooLarge { .. })));
    }

    #[test]
    fn a_seal_covers_every_byte() {
        let key = SecretKey::from_seed(&[9; 32]);
        let mut sealed = SealedEnvelope::seal(&letter(), &key, Chain::default()).unwrap();
        assert_eq!(sealed.verify(&key.public()), Ok(()));
        for at in [0, sealed.bytes.len() / 2, sealed.bytes.len() - 1] {
            sealed.bytes[at] ^= 1;
            assert!(sealed.verify(&key.public()).is_err(), "byte {at}");
            sealed.bytes[at] ^= 1;
        }
    }
}
