//! Evidence: the broker's signed word about one event in a dispatch's life (ETSI EN 319 522 events, and a few of our
//! own). The signed bytes are the truth; they begin `{"type":"docaxis/evidence@1"`, and the key that signs them signs
//! nothing else.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::codec::blob;
use crate::digest::Digest;
use crate::id::{AgencyCode, DispatchId, EvidenceId, Origin};
use crate::json::{self, JsonError};
use crate::key::{Context, KeyError, PublicKey, RawSignature, SecretKey};
use crate::reason::Reason;
use crate::statement::SealedStatement;
use crate::time::Timestamp;

pub const TYPE: &str = "docaxis/evidence@1";
/// How every piece of evidence begins: what the evidence key may sign.
pub const FIRST_BYTES: &[u8] = br#"{"type":"docaxis/evidence@1""#;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Event {
    SubmissionAcceptance,
    SubmissionRejection,
    ContentHandover,
    ContentHandoverFailure,
    ContentAccessTracking,
    Registered,
    Refused,
    NoAnswer,
    RelayAcceptance,
    RelayRejection,
    RelayFailure,
}

impl Event {
    pub const ALL: [Self; 11] = [
        Self::SubmissionAcceptance,
        Self::SubmissionRejection,
        Self::ContentHandover,
        Self::ContentHandoverFailure,
        Self::ContentAccessTracking,
        Self::Registered,
        Self::Refused,
        Self::NoAnswer,
        Self::RelayAcceptance,
        Self::RelayRejection,
        Self::RelayFailure,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SubmissionAcceptance => "SubmissionAcceptance",
            Self::SubmissionRejection => "SubmissionRejection",
            Self::ContentHandover => "ContentHandover",
            Self::ContentHandoverFailure => "ContentHandoverFailure",
            Self::ContentAccessTracking => "ContentAccessTracking",
            Self::Registered => "Registered",
            Self::Refused => "Refused",
            Self::NoAnswer => "NoAnswer",
            Self::RelayAcceptance => "RelayAcceptance",
            Self::RelayRejection => "RelayRejection",
            Self::RelayFailure => "RelayFailure",
        }
    }

    /// The event's URI: ETSI EN 319 522-1's where there is one.
    pub fn uri(self) -> String {
        match self {
            Self::Registered | Self::Refused | Self::NoAnswer => format!("urn:docaxis:event:{self}"),
            _ => format!("http://uri.etsi.org/19522/Event/{self}"),
        }
    }

    /// Whether it is about the submission as a whole rather than one recipient.
    pub const fn is_submission(self) -> bool {
        matches!(self, Self::SubmissionAcceptance | Self::SubmissionRejection)
    }

    /// Whether it carries reasons.
    pub const fn is_negative(self) -> bool {
        matches!(
            self,
            Self::SubmissionRejection
                | Self::ContentHandoverFailure
                | Self::Refused
                | Self::NoAnswer
                | Self::RelayRejection
                | Self::RelayFailure
        )
    }

    /// Whether it needs the recipient's own statement.
    pub const fn is_countersigned(self) -> bool {
        matches!(self, Self::ContentHandover | Self::ContentAccessTracking | Self::Registered | Self::Refused)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One part as evidence names it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PartDigest {
    pub sha256: Digest,
    pub size: u64,
}

/// The recipient's statement inside evidence: base64 of the signed bytes and of the signature, and the key's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatementInEvidence {
    pub bytes: String,
    pub signature: String,
    pub key: Digest,
}

impl StatementInEvidence {
    pub fn new(statement: &SealedStatement, key: &PublicKey) -> Self {
        Self {
            bytes: STANDARD.encode(&statement.bytes),
            signature: STANDARD.encode(statement.signature.0),
            key: key.id(),
        }
    }
}

/// The recall that a withdrawal rests on.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cause {
    pub dispatch: DispatchId,
    pub envelope_sha256: Digest,
}

/// The content of evidence. Field order is the order in which it is written; `type` must come first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    #[serde(rename = "type")]
    pub kind_of_bytes: String,
    pub id: EvidenceId,
    pub event: Event,
    pub uri: String,
    pub time: Timestamp,
    pub issuer: Origin,
    /// SHA-256 of the evidence key's SubjectPublicKeyInfo.
    pub key: Digest,
    pub policy: String,
    pub dispatch: DispatchId,
    pub envelope_sha256: Digest,
    pub sender: AgencyCode,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipient: Option<AgencyCode>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recipients: Vec<AgencyCode>,
    pub parts: Vec<PartDigest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submitted: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Timestamp>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statement: Option<StatementInEvidence>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acting: Option<AgencyCode>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub late: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<EvidenceId>,
    /// SHA-256 of the evidence before this one in the chain of its dispatch and recipient; null on the submission's.
    pub previous: Option<Digest>,
    /// Base64 of 16 random bytes, so that a published leaf cannot be guessed.
    pub salt: String,
}

#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    #[error("the evidence does not read")]
    Json(#[from] JsonError),
    #[error("the evidence does not begin with {TYPE:?} as its type")]
    Type,
    #[error("the evidence's signature does not verify")]
    Signature(#[from] KeyError),
}

impl Evidence {
    pub fn parse(bytes: &[u8]) -> Result<Self, EvidenceError> {
        if !bytes.starts_with(FIRST_BYTES) {
            return Err(EvidenceError::Type);
        }
        Ok(json::parse(bytes)?)
    }
}

/// Evidence as it travels and is stored: the bytes and the broker's raw signature over them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SignedEvidence {
    #[serde(with = "blob")]
    pub bytes: Vec<u8>,
    pub signature: RawSignature,
}

impl SignedEvidence {
    pub fn sign(evidence: &Evidence, key: &SecretKey) -> Result<Self, EvidenceError> {
        let bytes = serde_json::to_vec(evidence).map_err(|e| EvidenceError::Json(JsonError::Shape(e)))?;
        if !bytes.starts_with(FIRST_BYTES) {
            return Err(EvidenceError::Type);
        }
        let signature = key.sign(Context::Plain, &bytes);
        Ok(Self { bytes, signature })
    }

    /// Checks the signature under a key that was certified for the exchange's evidence, and reads the content.
    pub fn verify(&self, key: &PublicKey) -> Result<Evidence, EvidenceError> {
        self.verify_signature(key)?;
        Evidence::parse(&self.bytes)
    }

    /// Checks the signature alone, for whoever has read the content.
    pub fn verify_signature(&self, key: &PublicKey) -> Result<(), EvidenceError> {
        Ok(key.verify(Context::Plain, &self.bytes, &self.signature)?)
    }

    /// SHA-256 of the bytes: how the next piece in the chain names this one.
    pub fn digest(&self) -> Digest {
        Digest::of(&self.bytes)
    }

    /// The entry in the evidence log: SHA-256 over the bytes and the signature.
    pub fn log_entry(&self) -> Digest {
        Digest::of_pieces(&[&self.bytes, &self.signature.0])
    }
}
