//! Private keys and signing requests: made here, written as PKCS#8 that any tool reads.
//!
//! This and the choice of serial numbers are the only places in the crate that draw random bytes. Ed25519 keys are
//! written in PKCS#8 version 1: version 2, which carries the public key as well, is not read by every tool.

use std::fmt;

use aws_lc_rs::signature::{self, UnparsedPublicKey};
use docaxis_protocol::key::{Context, PublicKey, RawSignature, SecretKey};
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PublicKeyData, SigningKey as _, SubjectPublicKeyInfo};
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde::{Deserialize, Serialize};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;
use zeroize::Zeroizing;

use crate::encoding::{key_from_pem, pem};

/// Largest signing request that is read, in bytes; an honest one has about 200.
pub const MAX_CSR_BYTES: usize = 4096;

/// DER in front of the 32 secret bytes in PKCS#8 version 1 (RFC 8410).
const ED25519_PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// DER in front of the uncompressed point in a P-256 SubjectPublicKeyInfo.
const P256_SPKI_PREFIX: [u8; 27] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KeyAlgorithm {
    P256,
    Ed25519,
}

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("no random bytes from the operating system")]
    Random(#[source] getrandom::Error),
    #[error("the cryptographic library refused to {operation}")]
    Library {
        operation: &'static str,
        #[source]
        source: rcgen::Error,
    },
    #[error("expected a private key in PKCS#8 of type P-256 or Ed25519")]
    NotPkcs8,
    #[error(transparent)]
    Pem(#[from] crate::encoding::PemError),
    #[error("the signing request is not usable: {found}; expected a {expected:?} key that signed it itself")]
    Request { expected: KeyAlgorithm, found: &'static str },
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(KeyError::Random)?;
    Ok(bytes)
}

/// A private key that never shows itself.
pub struct PrivateKey {
    pair: KeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
    algorithm: KeyAlgorithm,
}

impl PrivateKey {
    pub fn generate(algorithm: KeyAlgorithm) -> Result<Self, KeyError> {
        match algorithm {
            KeyAlgorithm::P256 => {
                let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
                    .map_err(|source| KeyError::Library { operation: "make a P-256 key", source })?;
                let pkcs8 = Zeroizing::new(pair.serialize_der());
                Ok(Self { pair, pkcs8, algorithm })
            }
            KeyAlgorithm::Ed25519 => Self::from_seed(&Zeroizing::new(random::<32>()?)),
        }
    }

    pub(crate) fn from_seed(seed: &[u8; 32]) -> Result<Self, KeyError> {
        let pkcs8 = Zeroizing::new([&ED25519_PKCS8_PREFIX[..], seed].concat());
        Self::from_pkcs8(&pkcs8)
    }

    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        let pkcs8 = PrivatePkcs8KeyDer::from(der);
        for (algorithm, kind) in
            [(KeyAlgorithm::Ed25519, &rcgen::PKCS_ED25519), (KeyAlgorithm::P256, &rcgen::PKCS_ECDSA_P256_SHA256)]
        {
            if let Ok(pair) = KeyPair::from_pkcs8_der_and_sign_algo(&pkcs8, kind) {
                return Ok(Self { pair, pkcs8: Zeroizing::new(der.to_vec()), algorithm });
            }
        }
        Err(KeyError::NotPkcs8)
    }

    pub fn from_pem(text: &[u8]) -> Result<Self, KeyError> {
        Self::from_pkcs8(&key_from_pem(text)?)
    }

    pub fn pem(&self) -> Zeroizing<String> {
        Zeroizing::new(pem("PRIVATE KEY", &self.pkcs8))
    }

    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    pub fn algorithm(&self) -> KeyAlgorithm {
        self.algorithm
    }

    /// SubjectPublicKeyInfo in DER.
    pub fn spki(&self) -> Vec<u8> {
        self.pair.subject_public_key_info()
    }

    /// The same key for signing what the protocol signs; only Ed25519 does that.
    pub fn signing(&self) -> Result<SecretKey, docaxis_protocol::key::KeyError> {
        SecretKey::from_pkcs8(&self.pkcs8)
    }

    pub(crate) fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.pair.sign(bytes).map_err(|source| KeyError::Library { operation: "sign", source })
    }

    pub(crate) fn pair(&self) -> &KeyPair {
        &self.pair
    }

    pub(crate) fn into_pair(self) -> KeyPair {
        self.pair
    }

    /// A PKCS#10 request that proves possession of the key. It names nobody: the authority's record decides.
    pub fn request(&self) -> Result<Vec<u8>, KeyError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let csr = params
            .serialize_request(&self.pair)
            .map_err(|source| KeyError::Library { operation: "write a signing request", source })?;
        Ok(csr.der().to_vec())
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({:?})", self.algorithm)
    }
}

/// The public key of a request that its own key signed. What the request asks to be called is not even read.
pub fn requested_key(csr: &[u8], expected: KeyAlgorithm) -> Result<SubjectPublicKeyInfo, KeyError> {
    let wrong = |found| KeyError::Request { expected, found };
    if csr.len() > MAX_CSR_BYTES {
        return Err(wrong("it is over 4 KiB"));
    }
    let (rest, csr) = X509CertificationRequest::from_der(csr).map_err(|_| wrong("it does not parse"))?;
    if !rest.is_empty() {
        return Err(wrong("bytes follow it"));
    }
    let info = &csr.certification_request_info;
    verify_with(expected, info.subject_pki.raw, info.raw, &csr.signature_value.data).map_err(wrong)?;
    SubjectPublicKeyInfo::from_der(info.subject_pki.raw).map_err(|_| wrong("its key does not parse"))
}

/// Whether `signature` over `bytes` was made by this public key of the given kind.
pub(crate) fn verify_with(
    algorithm: KeyAlgorithm,
    spki: &[u8],
    bytes: &[u8],
    signature: &[u8],
) -> Result<(), &'static str> {
    match algorithm {
        KeyAlgorithm::P256 => {
            // The prefix ends with the 04 of an uncompressed point; the library takes the point with it.
            let point = spki.strip_prefix(&P256_SPKI_PREFIX[..26]).filter(|point| point.first() == Some(&4));
            let point = point.ok_or("it is for another kind of key")?;
            UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_ASN1, point)
                .verify(bytes, signature)
                .map_err(|_| "the signature does not verify")
        }
        KeyAlgorithm::Ed25519 => {
            let key = PublicKey::from_spki(spki).map_err(|_| "it is for another kind of key, or a weak one")?;
            RawSignature::from_slice(signature)
                .and_then(|signature| key.verify(Context::Plain, bytes, &signature))
                .map_err(|_| "the signature does not verify")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_both_kinds_survive_their_file_and_prove_themselves_in_a_request() {
        for (algorithm, other) in
            [(KeyAlgorithm::P256, KeyAlgorithm::Ed25519), (KeyAlgorithm::Ed25519, KeyAlgorithm::P256)]
        {
            let key = PrivateKey::generate(algorithm).unwrap();
            let again = PrivateKey::from_pem(key.pem().as_bytes()).unwrap();
            assert_eq!((again.algorithm(), again.spki()), (algorithm, key.spki()));
            let request = key.request().unwrap();
            assert_eq!(requested_key(&request, algorithm).unwrap().subject_public_key_info(), key.spki());
            assert!(matches!(requested_key(&request, other), Err(KeyError::Request { .. })));
            let mut altered = request.clone();
            *altered.last_mut().unwrap() ^= 1;
            assert!(requested_key(&altered, algorithm).is_err());
            assert!(requested_key(&[&request[..], &[0]].concat(), algorithm).is_err());
        }
    }

    #[test]
    fn a_request_with_a_weak_ed25519_key_is_refused() {
        let request = PrivateKey::generate(KeyAlgorithm::Ed25519).unwrap();
        let (csr, public) = (request.request().unwrap(), request.spki());
        let at = csr.windows(32).position(|window| window == &public[12..]).unwrap();
        let mut weak = csr;
        weak[at..at + 32].copy_from_slice(&[1; 32].map(|_: u8| 0));
        assert!(matches!(
            requested_key(&weak, KeyAlgorithm::Ed25519),
            Err(KeyError::Request { found: "it is for another kind of key, or a weak one", .. })
        ));
    }
}
