//! Whether a certificate handed to this party was issued under the exchange's root, for whom, and now.
//!
//! The path itself is checked by rustls-webpki; nothing here re-implements it.

use docaxis_protocol::{Digest, Timestamp};
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::aws_lc_rs::ECDSA_P256_SHA256;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::name::{Facts, FactsError, Subject};

#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    #[error("the certificate for {expected} does not chain to root {root} at {at}")]
    Path {
        expected: Subject,
        root: Digest,
        at: Timestamp,
        #[source]
        source: webpki::Error,
    },
    #[error("the certificate names {found}; expected {expected}")]
    Name { expected: Subject, found: Subject },
    #[error("the certificate expected for {expected} cannot be read")]
    Facts {
        expected: Subject,
        #[source]
        source: FactsError,
    },
    #[error("the certificate for {subject} is for another key than the one that asked for it")]
    Key { subject: Subject },
}

pub(crate) fn unix_time(at: Timestamp) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(u64::try_from(at.unix_s()).unwrap_or(0)))
}

/// Checks `leaf` against `root` over `intermediates`, and that it is for exactly `expected`.
pub(crate) fn verify(
    root: &[u8],
    intermediates: &[&[u8]],
    leaf: &[u8],
    expected: &Subject,
    now: Timestamp,
) -> Result<Facts, ChainError> {
    let root_id = Digest::of(root);
    let path = |source| ChainError::Path { expected: expected.clone(), root: root_id, at: now, source };
    let root = CertificateDer::from(root);
    let anchor = anchor_from_trusted_cert(&root).map_err(path)?;
    let intermediates: Vec<CertificateDer<'_>> = intermediates.iter().map(|der| CertificateDer::from(*der)).collect();
    let leaf_der = CertificateDer::from(leaf);
    let usage = match expected {
        Subject::Broker(_) => KeyUsage::server_auth(),
        // Certificates without any extended use pass as well: those that only sign have none.
        _ => KeyUsage::client_auth(),
    };
    EndEntityCert::try_from(&leaf_der)
        .and_then(|end| {
            end.verify_for_usage(&[ECDSA_P256_SHA256], &[anchor], &intermediates, unix_time(now), usage, None, None)
                .map(|_| ())
        })
        .map_err(path)?;
    let facts = Facts::of(leaf).map_err(|source| ChainError::Facts { expected: expected.clone(), source })?;
    match facts.subject == *expected {
        true => Ok(facts),
        false => Err(ChainError::Name { expected: expected.clone(), found: facts.subject }),
    }
}

/// Reads whom an issuing certificate names. That it was issued by the root is checked, by the library, under every
/// certificate that it issued: a node without any does not exist.
pub(crate) fn verify_ca_name(ca: &[u8], expected: &Subject) -> Result<(), ChainError> {
    let facts = Facts::of(ca).map_err(|source| ChainError::Facts { expected: expected.clone(), source })?;
    match facts.subject == *expected {
        true => Ok(()),
        false => Err(ChainError::Name { expected: expected.clone(), found: facts.subject }),
    }
}
