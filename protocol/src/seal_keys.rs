//! Keys of seals whose certificates were verified before. A path costs several signatures; time and revocation, which
//! change, are looked at anew each time.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use crate::chain::{CertifiedKey, ChainError, SealChains};
use crate::{AgencyCode, Digest, Timestamp};

/// Belongs to one set of authorities: with others it begins empty. Newer revocation lists may come meanwhile.
#[derive(Debug)]
pub struct SealKeys {
    most: usize,
    known: Mutex<BTreeMap<(Digest, AgencyCode), CertifiedKey>>,
}

impl SealKeys {
    /// Remembers at most so many, of about 700 bytes each; over it all are forgotten.
    pub const fn new(most: usize) -> Self {
        Self { most, known: Mutex::new(BTreeMap::new()) }
    }

    /// The key in the seal's certificate `leaf` of `agency`, good at each of the instants. Errors as
    /// [`SealChains::certified`].
    pub fn key(
        &self,
        chains: &SealChains,
        leaf: &[u8],
        agency: &AgencyCode,
        instants: &[Timestamp],
    ) -> Result<CertifiedKey, ChainError> {
        let name = (Digest::of(leaf), agency.clone());
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner).get(&name).cloned();
        // Where what is remembered does not hold, the whole check says why, or finds another path.
        if let Some(key) = known.filter(|key| instants.iter().all(|at| chains.still_good(key, *at).is_ok())) {
            return Ok(key);
        }
        let key = chains.certified(leaf, &format!("docaxis://agency/{agency}"), instants)?;
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= self.most {
            known.clear();
        }
        known.insert(name, key.clone());
        Ok(key)
    }

    pub fn remembered(&self) -> usize {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}
