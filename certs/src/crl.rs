//! Revocation lists: checked once when they are loaded, then a set of serial numbers.
//!
//! A handshake must not pay for the list's length: at 50,000 entries, checking the list's signature each time costs
//! three milliseconds. A list past its nextUpdate stays in force: an authority that is offline must not stop the
//! exchange, and what it revoked so far stays revoked.

use std::collections::BTreeMap;

use docaxis_protocol::Timestamp;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use x509_parser::revocation_list::CertificateRevocationList;

use crate::keys::{KeyAlgorithm, verify_with};
use crate::name::Serial;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    #[error("the revocation list does not parse")]
    Syntax,
    #[error("the revocation list names another issuer than the certificate it was checked against")]
    Issuer,
    #[error("the revocation list is not usable: {found}")]
    Signature { found: &'static str },
    #[error("the revocation list has no number")]
    NoNumber,
    #[error("revocation list {found} is older than list {held}, which is in force")]
    Older { held: u64, found: u64 },
}

/// A revocation list whose signature held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RevocationList {
    pub number: u64,
    pub this_update: Timestamp,
    pub next_update: Option<Timestamp>,
    der: Vec<u8>,
    revoked: BTreeMap<Serial, Timestamp>,
}

impl RevocationList {
    /// Checks the list against the certificate of its issuer.
    pub fn verify(der: &[u8], issuer: &[u8]) -> Result<Self, CrlError> {
        let (rest, list) = CertificateRevocationList::from_der(der).map_err(|_| CrlError::Syntax)?;
        let (_, issuer) = X509Certificate::from_der(issuer).map_err(|_| CrlError::Issuer)?;
        if !rest.is_empty() {
            return Err(CrlError::Syntax);
        }
        if list.issuer().as_raw() != issuer.subject().as_raw() {
            return Err(CrlError::Issuer);
        }
        verify_with(
            KeyAlgorithm::P256,
            issuer.public_key().raw,
            list.tbs_cert_list.as_ref(),
            &list.signature_value.data,
        )
        .map_err(|found| CrlError::Signature { found })?;
        let number = list.crl_number().ok_or(CrlError::NoNumber)?;
        let at = |time: x509_parser::time::ASN1Time| Timestamp::from_unix_ms(time.timestamp().saturating_mul(1000));
        Ok(Self {
            number: u64::try_from(number).map_err(|_| CrlError::NoNumber)?,
            this_update: at(list.last_update()),
            next_update: list.next_update().map(at),
            der: der.to_vec(),
            revoked: list
                .iter_revoked_certificates()
                .map(|entry| (Serial::from_der_integer(entry.raw_serial()), at(entry.revocation_date)))
                .collect(),
        })
    }

    pub fn is_revoked(&self, serial: &Serial) -> bool {
        self.revoked.contains_key(serial)
    }

    /// When the certificate was revoked, if it was.
    pub fn revoked_at(&self, serial: &Serial) -> Option<Timestamp> {
        self.revoked.get(serial).copied()
    }

    pub fn len(&self) -> usize {
        self.revoked.len()
    }

    pub fn is_empty(&self) -> bool {
        self.revoked.is_empty()
    }

    pub fn der(&self) -> &[u8] {
        &self.der
    }
}
