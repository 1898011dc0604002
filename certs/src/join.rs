//! How a node joins: token, request, answer.
//!
//! The token pins the exchange's root and names the broker; the answer is believed only as far as it chains to that
//! root, names what the token names, and is for the keys that were asked for. Everything is checked before anything
//! is written.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use docaxis_protocol::chain::{SealChains, TrustRoot};
use docaxis_protocol::{AgencyCode, Digest, NodeId, Origin, Timestamp};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::chain::{self, ChainError};
use crate::crl::{CrlError, RevocationList};
use crate::encoding::{b64, b64_map};
use crate::files::{self, FileError};
use crate::identity::{Common, Link, NodeIdentity, SealIdentity};
use crate::keys::{KeyAlgorithm, KeyError, PrivateKey};
use crate::layout;
use crate::name::{Serial, Subject};

/// Longest token in characters; one for a few agencies has about 1,500.
const MAX_TOKEN_CHARS: usize = 64 * 1024;

/// What an invited node is handed, on one line.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    pub origin: Origin,
    /// `host:port`.
    pub broker_address: String,
    pub broker_dns_name: String,
    pub root_sha256: Digest,
    #[serde(with = "b64")]
    pub root: Vec<u8>,
    pub invitation: String,
    #[serde(with = "b64")]
    pub(crate) secret: Vec<u8>,
    pub node: NodeId,
    pub agencies: Vec<AgencyCode>,
    pub expires: Timestamp,
    pub node_key: KeyAlgorithm,
}

#[derive(Debug, thiserror::Error)]
#[error("this is not a join token: {found}; copy the whole line that `docaxis ca invite` printed")]
pub struct TokenError {
    pub found: &'static str,
}

impl fmt::Display for Token {
    /// The whole token, secret included: this is what the invited administrator is given.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let json = serde_json::to_vec(self).map_err(|_| fmt::Error)?;
        f.write_str(&URL_SAFE_NO_PAD.encode(json))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token(invitation {} of {} for {})", self.invitation, self.origin, self.node)
    }
}

impl FromStr for Token {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let text = text.trim();
        if text.len() > MAX_TOKEN_CHARS {
            return Err(TokenError { found: "it is too long" });
        }
        let json = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError { found: "not base64url" })?;
        let token: Self =
            docaxis_protocol::json::parse(&json).map_err(|_| TokenError { found: "incomplete, or of another kind" })?;
        if Digest::of(&token.root) != token.root_sha256 {
            return Err(TokenError { found: "its root certificate does not have the digest that it names" });
        }
        if token.secret.len() != 32 {
            return Err(TokenError { found: "its secret does not have 32 bytes" });
        }
        Ok(token)
    }
}

/// What a node asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    #[serde(rename = "type")]
    pub kind: String,
    pub invitation: String,
    #[serde(with = "b64")]
    pub node_csr: Vec<u8>,
    #[serde(with = "b64")]
    pub witness_csr: Vec<u8>,
    #[serde(with = "b64_map")]
    pub seals: BTreeMap<AgencyCode, Vec<u8>>,
    pub software: String,
}

impl JoinRequest {
    pub const TYPE: &str = "docaxis/join-request@1";
}

/// What a node gets; all certificates in DER.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAnswer {
    #[serde(rename = "type")]
    pub kind: String,
    pub origin: Origin,
    pub node: NodeId,
    pub broker_address: String,
    pub broker_dns_name: String,
    #[serde(with = "b64")]
    pub root: Vec<u8>,
    #[serde(with = "b64")]
    pub nodes_ca: Vec<u8>,
    #[serde(with = "b64")]
    pub seals_ca: Vec<u8>,
    #[serde(with = "b64")]
    pub node_certificate: Vec<u8>,
    #[serde(with = "b64")]
    pub witness_certificate: Vec<u8>,
    #[serde(with = "b64_map")]
    pub seals: BTreeMap<AgencyCode, Vec<u8>>,
    #[serde(with = "b64")]
    pub directory_certificate: Vec<u8>,
    #[serde(with = "b64")]
    pub evidence_certificate: Vec<u8>,
    #[serde(with = "b64")]
    pub log_certificate: Vec<u8>,
    #[serde(with = "b64")]
    pub nodes_crl: Vec<u8>,
    #[serde(with = "b64")]
    pub seals_crl: Vec<u8>,
}

impl JoinAnswer {
    pub const TYPE: &str = "docaxis/join-answer@1";
}

/// Why an answer was not believed.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    #[error("the answer to the request to join does not read")]
    Json(#[source] docaxis_protocol::json::JsonError),
    #[error("the answer's {field} is {found}; the token says {expected}")]
    Field { field: &'static str, expected: String, found: String },
    #[error("the answer's revocation list of {issuer} is not usable")]
    Crl {
        issuer: Subject,
        #[source]
        source: CrlError,
    },
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Seal(#[from] docaxis_protocol::chain::ChainError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("a key of the pending join cannot sign")]
    Signing(#[source] docaxis_protocol::key::KeyError),
}

#[derive(Debug, thiserror::Error)]
pub enum PendingJoinError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error("the pending join does not become JSON, or does not read")]
    Json(#[source] serde_json::Error),
}

/// A join that was begun: the keys that were made for it and the request, which must be repeated byte for byte.
pub struct PendingJoin {
    token: Token,
    node: PrivateKey,
    witness: PrivateKey,
    seals: BTreeMap<AgencyCode, PrivateKey>,
    request: Vec<u8>,
}

impl fmt::Debug for PendingJoin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PendingJoin({:?})", self.token)
    }
}

#[derive(Serialize, Deserialize)]
struct PendingFile {
    token: Token,
    node: KeyText,
    witness: KeyText,
    seals: BTreeMap<AgencyCode, KeyText>,
    #[serde(with = "b64")]
    request: Vec<u8>,
}

/// A key's PEM inside JSON, wiped from memory after use.
struct KeyText(Zeroizing<String>);

impl Serialize for KeyText {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for KeyText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

impl PendingJoin {
    /// Makes keys for the node and every agency that the token names. `software` is what the authority's list shows.
    pub fn new(token: Token, software: &str) -> Result<Self, KeyError> {
        let agencies = token.agencies.clone();
        Self::asking_for(token, &agencies, software)
    }

    /// The same, asking for other agencies than the token names: those must be approved by hand.
    pub fn asking_for(token: Token, agencies: &[AgencyCode], software: &str) -> Result<Self, KeyError> {
        let node = PrivateKey::generate(token.node_key)?;
        let witness = PrivateKey::generate(KeyAlgorithm::Ed25519)?;
        let mut seals = BTreeMap::new();
        let mut requests = BTreeMap::new();
        for code in agencies {
            let key = PrivateKey::generate(KeyAlgorithm::Ed25519)?;
            requests.insert(code.clone(), key.request()?);
            seals.insert(code.clone(), key);
        }
        let request = JoinRequest {
            kind: JoinRequest::TYPE.into(),
            invitation: token.invitation.clone(),
            node_csr: node.request()?,
            witness_csr: witness.request()?,
            seals: requests,
            software: software.chars().take(80).collect(),
        };
        // Only strings and byte strings: writing it cannot fail.
        let request = serde_json::to_vec(&request).unwrap_or_default();
        Ok(Self { token, node, witness, seals, request })
    }

    pub fn token(&self) -> &Token {
        &self.token
    }

    /// The request, always the same bytes.
    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// HMAC-SHA-256 of the request under the invitation's secret.
    pub fn mac(&self) -> [u8; 32] {
        let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &self.token.secret);
        let mut mac = [0; 32];
        mac.copy_from_slice(aws_lc_rs::hmac::sign(&key, &self.request).as_ref());
        mac
    }

    /// Keeps the keys before the request is first sent, so that a crash does not lose what was granted.
    pub fn save(&self, folder: &Path) -> Result<(), PendingJoinError> {
        let file = PendingFile {
            token: self.token.clone(),
            node: KeyText(self.node.pem()),
            witness: KeyText(self.witness.pem()),
            seals: self.seals.iter().map(|(code, key)| (code.clone(), KeyText(key.pem()))).collect(),
            request: self.request.clone(),
        };
        let text = Zeroizing::new(serde_json::to_vec(&file).map_err(PendingJoinError::Json)?);
        files::create_folder(folder)?;
        Ok(files::write(&folder.join(layout::PENDING_JOIN), &text)?)
    }

    /// A join that was begun in this folder, if there is one.
    pub fn load(folder: &Path) -> Result<Option<Self>, PendingJoinError> {
        let text = match files::read(&folder.join(layout::PENDING_JOIN)) {
            Ok(text) => Zeroizing::new(text),
            Err(error) if error.is_not_found() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let file: PendingFile = serde_json::from_slice(&text).map_err(PendingJoinError::Json)?;
        let key = |text: &KeyText| PrivateKey::from_pem(text.0.as_bytes());
        let seals = file.seals.iter().map(|(code, text)| Ok((code.clone(), key(text)?)));
        Ok(Some(Self {
            node: key(&file.node)?,
            witness: key(&file.witness)?,
            seals: seals.collect::<Result<_, KeyError>>()?,
            token: file.token,
            request: file.request,
        }))
    }

    /// Checks an answer in full and makes the node's identity of it. Nothing is written.
    pub fn accept(&self, answer: &[u8], now: Timestamp) -> Result<NodeIdentity, AcceptError> {
        let answer: JoinAnswer = docaxis_protocol::json::parse(answer).map_err(AcceptError::Json)?;
        self.check_fields(&answer)?;
        let root = &self.token.root;
        let origin = &answer.origin;
        chain::verify_ca_name(&answer.nodes_ca, &Subject::NodesCa)?;
        let seal_chains = TrustRoot::new(root)
            .and_then(|root| SealChains::new(root, &answer.seals_ca, [&answer.seals_crl]))
            .and_then(SealChains::with_crl_required)?;
        let link = |der: &[u8], subject: &Subject| chain::verify(root, &[&answer.nodes_ca], der, subject, now);
        let signing = |der: &[u8], subject: &Subject| seal_chains.certified(der, &subject.uri(), &[now]);
        let same_key = |subject: Subject, found: &[u8], key: &PrivateKey| match found == key.spki() {
            true => Ok(()),
            false => Err(ChainError::Key { subject }),
        };
        let subject = Subject::Node(answer.node.clone());
        same_key(subject.clone(), &link(&answer.node_certificate, &subject)?.spki, &self.node)?;
        let subject = Subject::Witness(answer.node.clone());
        same_key(subject.clone(), signing(&answer.witness_certificate, &subject)?.spki(), &self.witness)?;
        signing(&answer.directory_certificate, &Subject::Directory(origin.clone()))?;
        signing(&answer.evidence_certificate, &Subject::Evidence(origin.clone()))?;
        signing(&answer.log_certificate, &Subject::Log(origin.clone()))?;
        RevocationList::verify(&answer.nodes_crl, &answer.nodes_ca)
            .map_err(|source| AcceptError::Crl { issuer: Subject::NodesCa, source })?;
        let mut seals = BTreeMap::new();
        for (code, key) in &self.seals {
            let subject = Subject::Agency(code.clone());
            let der = answer.seals.get(code).map(Vec::as_slice).unwrap_or_default();
            same_key(subject.clone(), signing(der, &subject)?.spki(), key)?;
            let key = key.signing().map_err(AcceptError::Signing)?;
            seals.insert(code.clone(), SealIdentity { agency: code.clone(), certificate: der.to_vec(), key });
        }
        Ok(NodeIdentity {
            link: Link {
                node: answer.node,
                origin: answer.origin,
                broker_address: answer.broker_address,
                broker_dns_name: answer.broker_dns_name,
            },
            common: Common {
                root: answer.root,
                nodes_ca: answer.nodes_ca,
                seals_ca: answer.seals_ca,
                directory: answer.directory_certificate,
                nodes_crl: answer.nodes_crl,
                seals_crl: answer.seals_crl,
            },
            certificate: answer.node_certificate,
            key: PrivateKey::from_pkcs8(self.node.pkcs8())?,
            witness_certificate: answer.witness_certificate,
            witness_key: self.witness.signing().map_err(AcceptError::Signing)?,
            evidence: answer.evidence_certificate,
            log: answer.log_certificate,
            seals,
        })
    }

    fn check_fields(&self, answer: &JoinAnswer) -> Result<(), AcceptError> {
        let token = &self.token;
        let root = Digest::of(&answer.root).to_string();
        for (field, expected, found) in [
            ("type", JoinAnswer::TYPE, answer.kind.as_str()),
            ("exchange", token.origin.as_str(), answer.origin.as_str()),
            ("node", token.node.as_str(), answer.node.as_str()),
            ("broker address", &token.broker_address, &answer.broker_address),
            ("broker's name", &token.broker_dns_name, &answer.broker_dns_name),
            ("root", &token.root_sha256.to_string(), &root),
        ] {
            if expected != found {
                let found = found.chars().take(120).collect();
                return Err(AcceptError::Field { field, expected: expected.to_owned(), found });
            }
        }
        Ok(())
    }
}

/// A request for the next link certificate, inside [`SignedRenewal`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RenewRequest {
    /// Of the certificate that is to be replaced.
    pub serial: Serial,
    #[serde(with = "b64")]
    pub csr: Vec<u8>,
}

/// The request's bytes, signed with the key of the certificate that is to be replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SignedRenewal {
    #[serde(with = "b64")]
    pub bytes: Vec<u8>,
    #[serde(with = "b64")]
    pub signature: Vec<u8>,
}

/// A renewal that was begun: the next key and the request for its certificate.
#[derive(Debug)]
pub struct PendingRenewal {
    key: PrivateKey,
    request: Vec<u8>,
    identity: Subject,
}

impl PendingRenewal {
    pub fn new(identity: &NodeIdentity) -> Result<Self, AcceptError> {
        let subject = Subject::Node(identity.link.node.clone());
        let facts = crate::name::Facts::of(&identity.certificate)
            .map_err(|source| ChainError::Facts { expected: subject.clone(), source })?;
        let key = PrivateKey::generate(identity.key.algorithm())?;
        // Only strings and byte strings: writing them cannot fail.
        let bytes = serde_json::to_vec(&RenewRequest { serial: facts.serial, csr: key.request()? }).unwrap_or_default();
        let signature = identity.key.sign(&bytes)?;
        let request = serde_json::to_vec(&SignedRenewal { bytes, signature }).unwrap_or_default();
        Ok(Self { key, request, identity: subject })
    }

    pub fn request(&self) -> &[u8] {
        &self.request
    }

    /// Puts the new certificate and key into the identity, after checking them.
    pub fn accept(self, certificate: &[u8], identity: &mut NodeIdentity, now: Timestamp) -> Result<(), AcceptError> {
        let common = &identity.common;
        let facts = chain::verify(&common.root, &[&common.nodes_ca], certificate, &self.identity, now)?;
        if facts.spki != self.key.spki() {
            return Err(ChainError::Key { subject: self.identity }.into());
        }
        identity.certificate = certificate.to_vec();
        identity.key = self.key;
        Ok(())
    }
}
