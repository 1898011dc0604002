//! Is this seal good? Certificate chains are verified once per certificate and remembered; time and revocation are
//! looked at anew each time, and every signature is checked on its own.

use std::sync::{PoisonError, RwLock};

use docaxis_protocol::chain::{ChainError, SealChains, TrustRoot};
use docaxis_protocol::envelope::Chain;
use docaxis_protocol::key::{KeyError, PublicKey};
use docaxis_protocol::seal_keys::SealKeys;
use docaxis_protocol::{AgencyCode, Envelope, SealedEnvelope, SealedStatement, Timestamp};

/// Certificates remembered at most: each agency has one or, while they overlap, two.
const MAX_REMEMBERED: usize = 250_000;

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error("the seal comes with {found} certificates; expected one to four of at most 8 KiB")]
    Chain { found: usize },
    #[error("the seal's certificate is not good: {0}")]
    Certificate(#[from] ChainError),
    #[error("the seal does not fit what was sealed: {0}")]
    Signature(#[from] KeyError),
}

pub struct Seals {
    root: TrustRoot,
    issuers: Vec<u8>,
    chains: RwLock<SealChains>,
    crl: RwLock<Option<Vec<u8>>>,
    /// The lists of the identity folder: what they revoke stays revoked, whatever comes later.
    first_crls: Vec<Vec<u8>>,
    keys: SealKeys,
}

impl Seals {
    /// `issuers` holds the seals' authorities in PEM, `crls` their revocation lists.
    pub fn new(root_pem: &[u8], issuers: Vec<u8>, crls: &[Vec<u8>]) -> Result<Self, ChainError> {
        let root = TrustRoot::new(root_pem)?;
        let chains = RwLock::new(SealChains::new(root.clone(), &issuers, crls)?);
        let crl = RwLock::new(crls.first().cloned());
        Ok(Self { root, issuers, chains, crl, first_crls: crls.to_vec(), keys: SealKeys::new(MAX_REMEMBERED) })
    }

    /// Takes up newer revocation lists. Keys certified before are looked up in them at their next use.
    pub fn replace_crls(&self, crls: &[Vec<u8>]) -> Result<(), ChainError> {
        let all = self.first_crls.iter().chain(crls);
        let chains = SealChains::new(self.root.clone(), &self.issuers, all)?;
        *self.chains.write().unwrap_or_else(PoisonError::into_inner) = chains;
        *self.crl.write().unwrap_or_else(PoisonError::into_inner) = crls.first().cloned();
        Ok(())
    }

    /// The revocation list in force, as it came.
    pub fn crl(&self) -> Option<Vec<u8>> {
        self.crl.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Checks an envelope's seal at `now` and at the time when it says that it was made.
    pub fn check_envelope(
        &self,
        envelope: &Envelope,
        sealed: &SealedEnvelope,
        now: Timestamp,
    ) -> Result<(), SealError> {
        let key = self.key(&envelope.sender.agency, &sealed.chain, &[envelope.created, now])?;
        Ok(sealed.verify(&key)?)
    }

    /// Checks a statement's seal at `now`; returns the key that it was made with.
    pub fn check_statement(
        &self,
        recipient: &AgencyCode,
        sealed: &SealedStatement,
        now: Timestamp,
    ) -> Result<PublicKey, SealError> {
        let key = self.key(recipient, &sealed.chain, &[now])?;
        sealed.verify(&key)?;
        Ok(key)
    }

    fn key(&self, agency: &AgencyCode, chain: &Chain, instants: &[Timestamp]) -> Result<PublicKey, SealError> {
        let leaf = chain.leaf().filter(|_| chain.within_bounds()).ok_or(SealError::Chain { found: chain.0.len() })?;
        let chains = self.chains.read().unwrap_or_else(PoisonError::into_inner);
        Ok(self.keys.key(&chains, leaf, agency, instants)?.key().clone())
    }
}
