//! Ed25519 keys as files: seals, evidence, log, directory, witness.
//!
//! Chains of seals are verified in `docaxis_protocol`; this only brings the keys in.

use std::path::Path;

use docaxis_protocol::key::SecretKey;

use crate::encoding::{PemError, key_from_pem};
use crate::files::{self, FileError};

#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error(transparent)]
    Key(#[from] docaxis_protocol::key::KeyError),
    #[error(transparent)]
    Facts(#[from] crate::name::FactsError),
}

/// Reads an Ed25519 key from PKCS#8 in PEM.
pub fn secret_key_from_pem(text: &[u8]) -> Result<SecretKey, SealError> {
    Ok(SecretKey::from_pkcs8(&key_from_pem(text)?)?)
}

/// Reads an Ed25519 key from a file.
pub fn load_secret_key(path: &Path) -> Result<SecretKey, SealError> {
    secret_key_from_pem(&zeroize::Zeroizing::new(files::read(path)?))
}
