//! Who acts for an agency that was merged into another: the authority's word, signed by the directory key.
//!
//! It is a document of its own, because it stands in evidence bundles beside what the successor signed; in the directory
//! it travels inside the merged agency's entry. A [`SealedSuccession`] whose signature was not checked is only a claim:
//! [`SealedSuccession::verify`] checks it.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::directory::DirectoryError;
use crate::id::{AgencyCode, Origin};
use crate::json::{self, JsonError};
use crate::key::{Context, PublicKey, RawSignature, SecretKey};
use crate::time::Timestamp;

/// The `type` of a succession.
pub const TYPE: &str = "docaxis/succession@1";

/// Most successions of one agency: each merge of its successor is one more.
pub const MAX_SUCCESSIONS: usize = 8;

/// From `since` on, `successor` answers for `agency`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Succession {
    #[serde(rename = "type")]
    pub kind: String,
    pub exchange: Origin,
    pub agency: AgencyCode,
    pub successor: AgencyCode,
    pub since: Timestamp,
}

impl Succession {
    pub fn new(exchange: Origin, agency: AgencyCode, successor: AgencyCode, since: Timestamp) -> Self {
        Self { kind: TYPE.into(), exchange, agency, successor, since }
    }

    /// Writes it down once and signs those bytes.
    pub fn sign(self, key: &SecretKey) -> Result<SealedSuccession, DirectoryError> {
        let bytes = serde_json::to_vec(&self).map_err(|error| DirectoryError::Json(JsonError::Shape(error)))?;
        let signature = key.sign(Context::Succession, &bytes);
        Ok(SealedSuccession { said: self, bytes, signature })
    }
}

/// A succession with the bytes that were signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub struct SealedSuccession {
    said: Succession,
    bytes: Vec<u8>,
    signature: RawSignature,
}

impl SealedSuccession {
    /// What the bytes say.
    pub fn said(&self) -> &Succession {
        &self.said
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub fn signature(&self) -> &RawSignature {
        &self.signature
    }

    /// Checks that the directory's key signed this for `agency` of `exchange`.
    pub fn verify(&self, key: &PublicKey, exchange: &Origin, agency: &AgencyCode) -> Result<(), DirectoryError> {
        let wrong = |field, found: &str, expected: &str| {
            let (found, expected) = (found.chars().take(80).collect(), expected.to_owned());
            Err(DirectoryError::Field { field, found, expected })
        };
        key.verify(Context::Succession, &self.bytes, &self.signature).map_err(DirectoryError::Signature)?;
        if self.said.kind != TYPE {
            return wrong("succession's type", &self.said.kind, TYPE);
        }
        if self.said.exchange != *exchange {
            return wrong("succession's exchange", self.said.exchange.as_str(), exchange.as_str());
        }
        if self.said.agency != *agency {
            return wrong("succession's agency", self.said.agency.as_str(), agency.as_str());
        }
        Ok(())
    }
}

/// As it stands in a directory entry: bytes and signature in base64.
#[derive(Serialize, Deserialize)]
struct Written {
    bytes: String,
    signature: String,
}

impl TryFrom<Written> for SealedSuccession {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        let decode = |text: &str| STANDARD.decode(text).map_err(|error| format!("a succession's base64: {error}"));
        let bytes = decode(&written.bytes)?;
        let signature = RawSignature::from_slice(&decode(&written.signature)?).map_err(|error| error.to_string())?;
        let said = json::parse(&bytes).map_err(|error| format!("a succession does not read: {error}"))?;
        Ok(Self { said, bytes, signature })
    }
}

impl From<SealedSuccession> for Written {
    fn from(sealed: SealedSuccession) -> Self {
        Self { bytes: STANDARD.encode(&sealed.bytes), signature: STANDARD.encode(sealed.signature.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(key: &SecretKey) -> SealedSuccession {
        let (exchange, since) = ("docaxis.example/vn".parse().unwrap(), "2026-11-22T03:30:00Z".parse().unwrap());
        let (agency, successor) = ("H37.DN.001".parse().unwrap(), "H37.DN.002".parse().unwrap());
        Succession::new(exchange, agency, successor, since).sign(key).unwrap()
    }

    #[test]
    fn a_succession_is_written_as_documented_and_reads_back_with_its_bytes() {
        let sealed = sealed(&SecretKey::from_seed(&[9; 32]));
        assert_eq!(
            std::str::from_utf8(sealed.bytes()).unwrap(),
            "{\"type\":\"docaxis/succession@1\",\"exchange\":\"docaxis.example/vn\",\"agency\":\"H37.DN.001\",\
             \"successor\":\"H37.DN.002\",\"since\":\"2026-11-22T03:30:00.000Z\"}"
        );
        let text = serde_json::to_string(&sealed).unwrap();
        assert_eq!(serde_json::from_str::<SealedSuccession>(&text).unwrap(), sealed);
    }

    #[test]
    fn a_succession_holds_only_under_its_key_for_its_exchange_and_agency() {
        let key = SecretKey::from_seed(&[9; 32]);
        let sealed = sealed(&key);
        let (exchange, agency) = ("docaxis.example/vn".parse().unwrap(), "H37.DN.001".parse().unwrap());
        sealed.verify(&key.public(), &exchange, &agency).unwrap();
        let stranger = SecretKey::from_seed(&[1; 32]).public();
        assert!(matches!(sealed.verify(&stranger, &exchange, &agency), Err(DirectoryError::Signature(_))));
        let elsewhere: Origin = "docaxis.example/other".parse().unwrap();
        assert!(matches!(sealed.verify(&key.public(), &elsewhere, &agency), Err(DirectoryError::Field { .. })));
        let successor = sealed.said().successor.clone();
        assert!(matches!(sealed.verify(&key.public(), &exchange, &successor), Err(DirectoryError::Field { .. })));
        let mut altered = sealed.clone();
        altered.bytes.push(b' ');
        assert!(matches!(altered.verify(&key.public(), &exchange, &agency), Err(DirectoryError::Signature(_))));
    }
}
