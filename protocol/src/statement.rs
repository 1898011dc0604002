//! A recipient's statement: its sealed word that it has a dispatch, refuses it, registered it or returns it. Stored
//! before it is first sent, and repeated byte for byte.

use serde::{Deserialize, Serialize};

use crate::codec::blob;
use crate::digest::Digest;
use crate::envelope::Chain;
use crate::evidence::Event;
use crate::id::{AgencyCode, DispatchId, Origin};
use crate::json::{self, JsonError};
use crate::key::{Context, KeyError, PublicKey, RawSignature, SecretKey};
use crate::limits;
use crate::reason::Reason;
use crate::time::Timestamp;

pub const TYPE: &str = "docaxis/statement@1";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    #[serde(rename = "type")]
    pub kind_of_bytes: String,
    pub exchange: Origin,
    pub event: Event,
    pub dispatch: DispatchId,
    pub envelope_sha256: Digest,
    pub recipient: AgencyCode,
    pub time: Timestamp,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<Reason>,
    /// The successor's code, when it acts for a merged agency.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acting: Option<AgencyCode>,
}

#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    #[error("the statement is {found} bytes; the limit is {max}", max = limits::MAX_STATEMENT_BYTES)]
    TooLarge { found: usize },
    #[error("the statement does not read")]
    Json(#[from] JsonError),
    #[error("the statement's type is {found:?}; expected {TYPE:?}")]
    Type { found: String },
    #[error("{event} is not an event that a recipient states")]
    Event { event: Event },
    #[error("a statement of {event} has {found} reasons; expected {expected}")]
    Reasons { event: Event, found: usize, expected: &'static str },
}

impl Statement {
    pub fn parse(bytes: &[u8]) -> Result<Self, StatementError> {
        if bytes.len() > limits::MAX_STATEMENT_BYTES {
            return Err(StatementError::TooLarge { found: bytes.len() });
        }
        let statement: Self = json::parse(bytes)?;
        statement.check()?;
        Ok(statement)
    }

    fn check(&self) -> Result<(), StatementError> {
        if self.kind_of_bytes != TYPE {
            return Err(StatementError::Type { found: self.kind_of_bytes.clone() });
        }
        let (event, found) = (self.event, self.reasons.len());
        match event {
            Event::ContentHandover | Event::ContentAccessTracking | Event::Registered if found != 0 => {
                Err(StatementError::Reasons { event, found, expected: "none" })
            }
            Event::Refused | Event::ContentHandoverFailure if found == 0 => {
                Err(StatementError::Reasons { event, found, expected: "at least one" })
            }
            Event::ContentHandover
            | Event::ContentAccessTracking
            | Event::Registered
            | Event::Refused
            | Event::ContentHandoverFailure => Ok(()),
            _ => Err(StatementError::Event { event }),
        }
    }
}

/// A statement as it travels and is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedStatement {
    #[serde(with = "blob")]
    pub bytes: Vec<u8>,
    pub signature: RawSignature,
    pub chain: Chain,
}

impl SealedStatement {
    pub fn seal(statement: &Statement, key: &SecretKey, chain: Chain) -> Result<Self, StatementError> {
        statement.check()?;
        let bytes = serde_json::to_vec(statement).map_err(|e| StatementError::Json(JsonError::Shape(e)))?;
        if bytes.len() > limits::MAX_STATEMENT_BYTES {
            return Err(StatementError::TooLarge { found: bytes.len() });
        }
        let signature = key.sign(Context::Statement, &bytes);
        Ok(Self { bytes, signature, chain })
    }

    pub fn verify(&self, key: &PublicKey) -> Result<(), KeyError> {
        key.verify(Context::Statement, &self.bytes, &self.signature)
    }
}
