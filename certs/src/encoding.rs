//! Text forms of binary things: PEM, and base64 inside JSON.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls_pki_types::pem::{PemObject as _, SectionKind};
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer};

/// Text that is not the PEM it should be.
#[derive(Debug, thiserror::Error)]
#[error("expected PEM with {expected}, found {found}")]
pub struct PemError {
    pub expected: &'static str,
    pub found: String,
}

/// One PEM section.
pub fn pem(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for at in (0..body.len()).step_by(64) {
        text.push_str(&body[at..body.len().min(at + 64)]);
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

pub fn pem_certificates<'a>(certificates: impl IntoIterator<Item = &'a [u8]>) -> String {
    certificates.into_iter().map(|der| pem("CERTIFICATE", der)).collect()
}

/// At least one certificate, in the file's order.
pub fn certificates_from_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let expected = "one or more certificates";
    let found: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .map_err(|error| PemError { expected, found: format!("{error:?}") })?;
    match found.is_empty() {
        true => Err(PemError { expected, found: "none".into() }),
        false => Ok(found),
    }
}

/// Exactly one certificate.
pub fn certificate_from_pem(text: &[u8]) -> Result<CertificateDer<'static>, PemError> {
    let mut found = certificates_from_pem(text)?;
    match found.pop() {
        Some(certificate) if found.is_empty() => Ok(certificate),
        _ => Err(PemError { expected: "one certificate", found: format!("{}", found.len() + 1) }),
    }
}

pub fn crl_from_pem(text: &[u8]) -> Result<Vec<u8>, PemError> {
    CertificateRevocationListDer::from_pem_slice(text)
        .map(|crl| crl.to_vec())
        .map_err(|error| PemError { expected: "a revocation list", found: format!("{error:?}") })
}

/// The DER of a PKCS#8 key.
pub fn key_from_pem(text: &[u8]) -> Result<zeroize::Zeroizing<Vec<u8>>, PemError> {
    // The parser's own message is left out: it must never quote a key.
    let wrong = |found: &str| PemError { expected: "a PKCS#8 private key", found: found.to_owned() };
    match <(SectionKind, Vec<u8>)>::from_pem_slice(text) {
        Ok((SectionKind::PrivateKey, der)) => Ok(zeroize::Zeroizing::new(der)),
        Ok((other, _)) => Err(wrong(&format!("{other:?}"))),
        Err(_) => Err(wrong("no PEM")),
    }
}

/// Byte strings as base64 in JSON.
pub(crate) mod b64 {
    use super::STANDARD;
    use base64::Engine as _;
    use serde::{Deserialize as _, Deserializer, Serializer, de};

    pub fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(de::Error::custom)
    }
}

/// A map from names to byte strings as base64 in JSON.
pub(crate) mod b64_map {
    use super::STANDARD;
    use base64::Engine as _;
    use docaxis_protocol::AgencyCode;
    use serde::{Deserialize as _, Deserializer, Serializer, de};
    use std::collections::BTreeMap;

    pub fn serialize<S: Serializer>(map: &BTreeMap<AgencyCode, Vec<u8>>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(map.iter().map(|(code, bytes)| (code, STANDARD.encode(bytes))))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<AgencyCode, Vec<u8>>, D::Error> {
        let texts = BTreeMap::<AgencyCode, String>::deserialize(deserializer)?;
        texts.into_iter().map(|(code, text)| Ok((code, STANDARD.decode(text).map_err(de::Error::custom)?))).collect()
    }
}
