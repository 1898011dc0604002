//! Who this node is, for whom it may seal, and whom it believes.
//!
//! Evidence is believed under a key that chains to the authority for `docaxis://evidence/<origin>` at the evidence's
//! time, and a seal under one for `docaxis://agency/<code>`. What is returned as verified was verified here. What does not
//! change is verified once and remembered: the chain of a certificate, and the signature of a piece of evidence. Time and
//! revocation are looked at anew each time.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use docaxis_certs::identity::{Common, IdentityError};
use docaxis_certs::{NodeIdentity, Trust, tls};
use docaxis_protocol::chain::{CertifiedKey, ChainError, SealChains, TrustRoot};
use docaxis_protocol::envelope::Chain;
use docaxis_protocol::evidence::EvidenceError;
use docaxis_protocol::key::{PublicKey, SecretKey};
use docaxis_protocol::seal_keys::SealKeys;
use docaxis_protocol::statement::StatementError;
use docaxis_protocol::succession::SealedSuccession;
use docaxis_protocol::{
    AgencyCode, Digest, Evidence, NodeId, Origin, SealedStatement, SignedEvidence, Statement, Timestamp,
};

/// Certificates of seals remembered at most: more agencies than write to one node.
const MAX_SEALS: usize = 4_096;
/// Pieces of evidence remembered at most: the exchange's answer to a submission comes once more among the evidence that
/// is followed, soon after.
const MAX_VERIFIED: usize = 4_096;

/// An agency's seal: the key and its certificates, the leaf first.
#[derive(Clone)]
pub struct Seal {
    pub key: SecretKey,
    pub chain: Chain,
}

/// Everything that `agent join` wrote, read and checked.
#[derive(Clone)]
pub struct Identity {
    pub node: NodeId,
    pub origin: Origin,
    /// `HOST:PORT` of the broker.
    pub broker: String,
    /// The DNS name in the broker's certificate.
    pub server_name: String,
    /// Presents the node's certificate and believes the nodes' authority.
    pub tls: rustls::ClientConfig,
    pub seals: BTreeMap<AgencyCode, Seal>,
    pub chains: SealChains,
    seen: Arc<SealKeys>,
    /// Under which directory entries are believed.
    pub directory_key: PublicKey,
    /// The authorities' certificates and revocation lists.
    pub common: Common,
    /// What `tls` asks about the broker's certificate.
    pub trust: Arc<Trust>,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity(node {} of {})", self.node, self.origin)
    }
}

impl Identity {
    /// Reads the folder that `agent join` wrote.
    pub fn load(folder: &Path) -> Result<Self, LoadError> {
        Self::load_with(folder, tls::system_clock())
    }

    /// The same; the broker's certificate is judged by this clock.
    pub fn load_with(folder: &Path, clock: tls::Clock) -> Result<Self, LoadError> {
        Self::with_clock(&NodeIdentity::load(folder)?, clock)
    }

    /// The directory's key is believed only with a certificate that names it, under the authority.
    pub fn of(node: &NodeIdentity) -> Result<Self, LoadError> {
        Self::with_clock(node, tls::system_clock())
    }

    fn with_clock(node: &NodeIdentity, clock: tls::Clock) -> Result<Self, LoadError> {
        let common = node.common.clone();
        let chains = seal_chains(&common)?;
        let origin = node.link.origin.clone();
        let directory = docaxis_certs::identity::public_key(&common.directory).map_err(IdentityError::Seal)?;
        let trust = Trust::new(origin.clone(), &common).map_err(tls::TlsError::Trust)?;
        let seals = node.seals.values().map(|seal| {
            let chain = Chain::from_ders([seal.certificate.clone(), common.seals_ca.clone()]);
            (seal.agency.clone(), Seal { key: seal.key.clone(), chain })
        });
        Ok(Self {
            node: node.link.node.clone(),
            broker: node.link.broker_address.clone(),
            server_name: node.link.broker_dns_name.clone(),
            tls: tls::node_client(node, trust.clone(), clock)?,
            seals: seals.collect(),
            chains,
            seen: Arc::new(SealKeys::new(MAX_SEALS)),
            directory_key: directory,
            common,
            trust,
            origin,
        })
    }

    /// The same identity with a newer revocation list of seals.
    pub fn with_common(&self, common: Common) -> Result<Self, ChainError> {
        Ok(Self { chains: seal_chains(&common)?, seen: Arc::new(SealKeys::new(MAX_SEALS)), common, ..self.clone() })
    }

    pub fn agencies(&self) -> Vec<AgencyCode> {
        self.seals.keys().cloned().collect()
    }

    /// The key of a seal that held at each of these instants.
    pub fn seal_key(&self, chain: &Chain, who: &AgencyCode, at: &[Timestamp]) -> Result<CertifiedKey, TrustError> {
        let leaf = chain.leaf().filter(|_| chain.within_bounds()).ok_or(TrustError::NoCertificate)?;
        Ok(self.seen.key(&self.chains, leaf, who, at)?)
    }

    /// The key of the exchange's evidence in this chain, good at `at`.
    pub fn evidence_key(&self, chain: &Chain, at: Timestamp) -> Result<CertifiedKey, TrustError> {
        let leaf = chain.leaf().filter(|_| chain.within_bounds()).ok_or(TrustError::NoCertificate)?;
        Ok(self.chains.certified(leaf, &format!("docaxis://evidence/{}", self.origin), &[at])?)
    }

    /// The key of the exchange's log in this chain, good at `at`.
    pub fn log_key(&self, chain: &Chain, at: Timestamp) -> Result<CertifiedKey, TrustError> {
        let leaf = chain.leaf().filter(|_| chain.within_bounds()).ok_or(TrustError::NoCertificate)?;
        Ok(self.chains.certified(leaf, &format!("docaxis://log/{}", self.origin), &[at])?)
    }

    /// Checks a recipient's statement inside evidence: about the same event, and sealed by that recipient, or by the agency
    /// that the evidence says acts for it. Then `succession` is what the authority signed about that.
    pub fn check_statement(
        &self,
        evidence: &Evidence,
        chain: Option<&Chain>,
        succession: Option<&SealedSuccession>,
    ) -> Result<(), TrustError> {
        use base64::Engine as _;
        use base64::engine::general_purpose::STANDARD;
        let Some(inside) = &evidence.statement else {
            return if evidence.event.is_countersigned() { Err(TrustError::NoStatement) } else { Ok(()) };
        };
        let (Some(recipient), Some(chain)) = (&evidence.recipient, chain) else {
            return Err(TrustError::NoCertificate);
        };
        let decode = |text: &str| STANDARD.decode(text).map_err(|_| TrustError::OtherStatement);
        let bytes = decode(&inside.bytes)?;
        let signature = docaxis_protocol::key::RawSignature::from_slice(&decode(&inside.signature)?)
            .map_err(|_| TrustError::OtherStatement)?;
        let signer = match &evidence.acting {
            None => recipient,
            Some(acting) => {
                let holds = |sealed: &&SealedSuccession| {
                    let said = sealed.said();
                    said.agency == *recipient && said.successor == *acting && said.since <= evidence.time
                };
                let none = || TrustError::NoSuccession { agency: recipient.clone(), acting: acting.clone() };
                &succession.filter(holds).ok_or_else(none)?.said().successor
            }
        };
        let key = self.seal_key(chain, signer, &[evidence.time])?;
        let sealed = SealedStatement { bytes, signature, chain: Chain::default() };
        sealed.verify(key.key()).map_err(EvidenceError::Signature)?;
        let said = Statement::parse(&sealed.bytes)?;
        let same = said.event == evidence.event
            && said.dispatch == evidence.dispatch
            && said.envelope_sha256 == evidence.envelope_sha256
            && said.recipient == *recipient
            && said.acting == evidence.acting
            && said.exchange == self.origin;
        if same { Ok(()) } else { Err(TrustError::OtherStatement) }
    }
}

fn seal_chains(common: &Common) -> Result<SealChains, ChainError> {
    SealChains::new(TrustRoot::new(&common.root)?, &common.seals_ca, [&common.seals_crl])?.with_crl_required()
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Folder(#[from] IdentityError),
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
}

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("there is no certificate, or too many")]
    NoCertificate,
    #[error(transparent)]
    Chain(#[from] ChainError),
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error("the evidence was issued by {found}; expected {expected}")]
    Issuer { found: Origin, expected: Origin },
    #[error("the evidence is signed under key {0}, of which there is no certificate here")]
    UnknownKey(Digest),
    #[error("the evidence has no statement of the recipient, which its event needs")]
    NoStatement,
    #[error("the statement inside the evidence says something else")]
    OtherStatement,
    #[error("the directory here does not say that {acting} answered for {agency} then")]
    NoSuccession { agency: AgencyCode, acting: AgencyCode },
    #[error("the succession does not hold: {0}")]
    Succession(String),
    #[error(transparent)]
    Statement(#[from] StatementError),
}

/// The keys of the exchange's evidence that were certified, by their ids.
#[derive(Default)]
pub struct EvidenceKeys {
    keys: Mutex<BTreeMap<Digest, CertifiedKey>>,
    verified: Mutex<Recent>,
}

/// What was seen lately, by digest.
#[derive(Default)]
struct Recent {
    seen: BTreeSet<Digest>,
    order: VecDeque<Digest>,
}

impl Recent {
    fn add(&mut self, digest: Digest) {
        if self.seen.insert(digest) {
            self.order.push_back(digest);
        }
        if self.order.len() > MAX_VERIFIED
            && let Some(oldest) = self.order.pop_front()
        {
            self.seen.remove(&oldest);
        }
    }
}

impl EvidenceKeys {
    pub fn add(&self, key: CertifiedKey) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).insert(key.key().id(), key);
    }

    pub fn has(&self, id: Digest) -> bool {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).contains_key(&id)
    }

    /// Checks signature, issuer, and that the key was good when the evidence says that it was signed.
    pub fn verify(&self, identity: &Identity, signed: &SignedEvidence) -> Result<Evidence, TrustError> {
        self.check(identity, signed, Evidence::parse(&signed.bytes)?)
    }

    /// The same, where `evidence` has been read out of the signed bytes already.
    pub fn check(
        &self,
        identity: &Identity,
        signed: &SignedEvidence,
        evidence: Evidence,
    ) -> Result<Evidence, TrustError> {
        let key = self.keys.lock().unwrap_or_else(PoisonError::into_inner).get(&evidence.key).cloned();
        let key = key.ok_or(TrustError::UnknownKey(evidence.key))?;
        // Over bytes and signature; the bytes name the key.
        let entry = signed.log_entry();
        let known = self.verified.lock().unwrap_or_else(PoisonError::into_inner).seen.contains(&entry);
        if !known {
            signed.verify_signature(key.key())?;
            self.verified.lock().unwrap_or_else(PoisonError::into_inner).add(entry);
        }
        identity.chains.still_good(&key, evidence.time)?;
        if evidence.issuer != identity.origin {
            return Err(TrustError::Issuer { found: evidence.issuer, expected: identity.origin.clone() });
        }
        Ok(evidence)
    }
}

/// The id under which evidence names its key, as the bytes claim.
pub fn claimed_key(signed: &SignedEvidence) -> Result<Digest, TrustError> {
    Ok(Evidence::parse(&signed.bytes)?.key)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use docaxis_protocol::{DispatchId, Event, SealedEnvelope};

    use super::*;
    use crate::Env;
    use crate::link::testing::{Exchange, code, envelope};

    const SENDER: &str = "000.00.00.G22";

    #[tokio::test]
    async fn a_seal_that_was_good_once_is_good_only_while_it_is_in_force() {
        let mut exchange = Exchange::start();
        let sender = Identity::of(&exchange.join("g22", &[SENDER])).unwrap();
        let identity = Identity::of(&exchange.join("h37", &["H37.DN.001"])).unwrap();
        let (chain, now) = (&sender.seals[&code(SENDER)].chain, Env::real().now());
        let good = identity.seal_key(chain, &code(SENDER), &[now]).unwrap();
        assert_eq!(identity.seen.remembered(), 1);
        assert_eq!(identity.seal_key(chain, &code(SENDER), &[now, now]).unwrap().key(), good.key());
        assert_eq!(identity.seen.remembered(), 1);

        let in_ten_years = now.plus(Duration::from_secs(10 * 366 * 86_400));
        for at in [in_ten_years, now.minus(Duration::from_secs(10 * 366 * 86_400))] {
            let error = identity.seal_key(chain, &code(SENDER), &[now, at]).unwrap_err();
            assert!(matches!(error, TrustError::Chain(_)), "{error}");
        }
        let error = identity.seal_key(chain, &code("H37.DN.002"), &[now]).unwrap_err();
        assert!(matches!(error, TrustError::Chain(ChainError::Uri { .. })), "{error}");

        let seals_crl = exchange.revoke_seals(SENDER);
        let common = Common { seals_crl, ..identity.common.clone() };
        let later = identity.with_common(common).unwrap();
        let error = later.seal_key(chain, &code(SENDER), &[now.plus(Duration::from_secs(5))]).unwrap_err();
        assert!(error.to_string().contains("revoked"), "{error}");
    }

    #[tokio::test]
    async fn evidence_that_was_verified_once_is_known_again_by_all_its_bytes_and_its_signature() {
        let mut exchange = Exchange::start();
        let sender = Identity::of(&exchange.join("g22", &[SENDER])).unwrap();
        let seal = &sender.seals[&code(SENDER)];
        let sealed = SealedEnvelope::seal(&envelope(SENDER, &["H37.DN.001"]), &seal.key, seal.chain.clone()).unwrap();
        let signed = exchange.evidence(Event::SubmissionAcceptance, &sealed, |_| ());
        let keys = EvidenceKeys::default();
        let unknown = keys.verify(&sender, &signed).unwrap_err();
        assert!(matches!(unknown, TrustError::UnknownKey(_)), "{unknown}");
        let certificates = Chain::from_ders([exchange.broker.evidence.clone(), sender.common.seals_ca.clone()]);
        keys.add(sender.evidence_key(&certificates, Env::real().now()).unwrap());
        for _ in 0..2 {
            assert_eq!(keys.verify(&sender, &signed).unwrap().envelope_sha256, sealed.digest());
        }
        let mut other = signed.clone();
        other.signature.0[3] ^= 1;
        assert!(matches!(keys.verify(&sender, &other), Err(TrustError::Evidence(_))));
        let mut other = signed;
        let id = DispatchId::from_parts(Env::real().now(), [7; 10]).to_string();
        let text = String::from_utf8(other.bytes).unwrap();
        let old = Evidence::parse(text.as_bytes()).unwrap().dispatch.to_string();
        other.bytes = text.replace(&old, &id).into_bytes();
        assert!(matches!(keys.verify(&sender, &other), Err(TrustError::Evidence(_))));
    }

    #[test]
    fn what_was_seen_longest_ago_is_forgotten_first() {
        let mut recent = Recent::default();
        let digest = |n: usize| Digest::of(&n.to_be_bytes());
        for n in 0..=MAX_VERIFIED {
            recent.add(digest(n));
            recent.add(digest(n));
        }
        assert_eq!((recent.seen.len(), recent.order.len()), (MAX_VERIFIED, MAX_VERIFIED));
        assert!(!recent.seen.contains(&digest(0)) && recent.seen.contains(&digest(1)));
    }
}
