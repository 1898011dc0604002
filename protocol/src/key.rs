//! Ed25519 keys, and what each kind of signature is taken over.
//!
//! Signatures are raw 64 bytes. They are always checked with `verify_strict`, one by one: batch verification accepts
//! seals with small-order components that a single check refuses.

use std::fmt;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde::{Deserialize, Serialize};

use crate::digest::Digest;

/// What a sealed thing is, as the prefix that its signature covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    Envelope,
    Statement,
    Succession,
    Directory,
    /// Evidence and checkpoints: the bytes as they stand, so that any tool can check them.
    Plain,
}

impl Context {
    pub const fn prefix(self) -> &'static [u8] {
        match self {
            Self::Envelope => b"docaxis/envelope@1\n",
            Self::Statement => b"docaxis/statement@1\n",
            Self::Succession => b"docaxis/succession@1\n",
            Self::Directory => b"docaxis/directory@1\n",
            Self::Plain => b"",
        }
    }
}

/// A raw Ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RawSignature(pub [u8; 64]);

impl RawSignature {
    /// Exactly 64 bytes, or nothing.
    pub fn from_slice(bytes: &[u8]) -> Result<Self, KeyError> {
        bytes.try_into().map(Self).map_err(|_| KeyError::SignatureLength { found: bytes.len() })
    }
}

impl fmt::Debug for RawSignature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::digest::hex(&self.0))
    }
}

impl Serialize for RawSignature {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for RawSignature {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        /// Takes the bytes from where they lie, without a copy of their own.
        struct Bytes;
        impl serde::de::Visitor<'_> for Bytes {
            type Value = RawSignature;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a byte string of 64 bytes")
            }
            fn visit_bytes<E: serde::de::Error>(self, bytes: &[u8]) -> Result<RawSignature, E> {
                RawSignature::from_slice(bytes).map_err(E::custom)
            }
        }
        deserializer.deserialize_bytes(Bytes)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the key is not a usable Ed25519 public key: {found}")]
    NotEd25519 { found: &'static str },
    #[error("the signature is {found} bytes; an Ed25519 one has 64")]
    SignatureLength { found: usize },
    #[error("the signature does not verify under key {key}")]
    BadSignature { key: Digest },
}

/// An Ed25519 public key that is on the curve and not of small order.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

impl PublicKey {
    /// The DER in front of the 32 raw bytes in a SubjectPublicKeyInfo (RFC 8410).
    pub const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

    /// Takes 32 raw bytes; refuses weak keys, under which a signature proves nothing.
    pub fn from_raw(raw: &[u8]) -> Result<Self, KeyError> {
        let raw: &[u8; 32] = raw.try_into().map_err(|_| KeyError::NotEd25519 { found: "not 32 bytes" })?;
        let key = VerifyingKey::from_bytes(raw).map_err(|_| KeyError::NotEd25519 { found: "no point on the curve" })?;
        if key.is_weak() {
            return Err(KeyError::NotEd25519 { found: "a point of small order" });
        }
        Ok(Self(key))
    }

    /// Takes a SubjectPublicKeyInfo in DER.
    pub fn from_spki(der: &[u8]) -> Result<Self, KeyError> {
        match der.strip_prefix(&Self::SPKI_PREFIX) {
            Some(raw) => Self::from_raw(raw),
            None => Err(KeyError::NotEd25519 { found: "another algorithm" }),
        }
    }

    pub fn raw(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    pub fn spki(&self) -> Vec<u8> {
        [&Self::SPKI_PREFIX[..], &self.raw()].concat()
    }

    /// SHA-256 of the SubjectPublicKeyInfo: how evidence and statements name a key.
    pub fn id(&self) -> Digest {
        Digest::of(&self.spki())
    }

    pub fn verify(&self, context: Context, bytes: &[u8], signature: &RawSignature) -> Result<(), KeyError> {
        let signature = Signature::from_bytes(&signature.0);
        let checked = match context.prefix() {
            b"" => self.0.verify_strict(bytes, &signature),
            prefix => self.0.verify_strict(&[prefix, bytes].concat(), &signature),
        };
        checked.map_err(|_| KeyError::BadSignature { key: self.id() })
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({})", self.id())
    }
}

/// An Ed25519 key that signs. It never shows itself.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// Reads PKCS#8 in DER, version 1 or 2.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, KeyError> {
        use ed25519_dalek::pkcs8::DecodePrivateKey as _;
        SigningKey::from_pkcs8_der(der)
            .map(Self)
            .map_err(|_| KeyError::NotEd25519 { found: "no PKCS#8 of an Ed25519 key" })
    }

    pub fn seed(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    pub fn sign(&self, context: Context, bytes: &[u8]) -> RawSignature {
        let signature = match context.prefix() {
            b"" => self.0.sign(bytes),
            prefix => self.0.sign(&[prefix, bytes].concat()),
        };
        RawSignature(signature.to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public().id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::unhex;

    fn key() -> SecretKey {
        SecretKey::from_seed(&[7; 32])
    }

    #[test]
    fn a_seal_over_one_kind_of_thing_is_none_over_another() {
        let seal = key().sign(Context::Envelope, b"{}");
        assert_eq!(key().public().verify(Context::Envelope, b"{}", &seal), Ok(()));
        for context in [Context::Statement, Context::Succession, Context::Directory, Context::Plain] {
            assert!(key().public().verify(context, b"{}", &seal).is_err(), "{context:?}");
        }
        assert!(key().public().verify(Context::Envelope, b"{ }", &seal).is_err());
    }

    #[test]
    fn keys_of_small_order_are_refused_when_they_are_read() {
        for text in [
            "0100000000000000000000000000000000000000000000000000000000000000",
            "0000000000000000000000000000000000000000000000000000000000000000",
            "0000000000000000000000000000000000000000000000000000000000000080",
            "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        ] {
            let raw = unhex(text).expect("hex");
            assert!(PublicKey::from_raw(&raw).is_err(), "{text} was taken");
        }
    }

    #[test]
    fn a_signature_with_a_non_canonical_s_is_refused() {
        // S + L verifies under the equation but is another encoding of the same signature (RFC 8032, section 5.1.7).
        const L: [u8; 32] = [
            0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0,
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
        ];
        let mut seal = key().sign(Context::Plain, b"x");
        let mut carry = 0u16;
        for (s, l) in seal.0[32..].iter_mut().zip(L) {
            let sum = u16::from(*s) + u16::from(l) + carry;
            *s = sum.to_le_bytes()[0];
            carry = sum >> 8;
        }
        assert_eq!(carry, 0);
        assert!(key().public().verify(Context::Plain, b"x", &seal).is_err());
    }

    #[test]
    fn a_signature_whose_r_is_of_small_order_is_refused() {
        // With R the neutral point and S = k*a, the plain equation S*B = R + k*A would hold.
        use ed25519_dalek::hazmat::ExpandedSecretKey;
        use sha2::{Digest as _, Sha512};
        let seed = [7; 32];
        let expanded = ExpandedSecretKey::from(&seed);
        let public = key().public();
        let mut r = [0u8; 32];
        r[0] = 1;
        let hash: [u8; 64] =
            Sha512::new().chain_update(r).chain_update(public.raw()).chain_update(b"x").finalize().into();
        let k = curve25519_dalek::Scalar::from_bytes_mod_order_wide(&hash);
        let s = k * expanded.scalar;
        let mut bytes = [0u8; 64];
        bytes[..32].copy_from_slice(&r);
        bytes[32..].copy_from_slice(s.as_bytes());
        use ed25519_dalek::Verifier as _;
        let lax = public.0.verify(b"x", &Signature::from_bytes(&bytes));
        assert!(lax.is_ok(), "the vector must hold under the plain equation, or it tests nothing");
        assert!(public.verify(Context::Plain, b"x", &RawSignature(bytes)).is_err());
    }

    #[test]
    fn keys_survive_their_encodings() {
        let public = key().public();
        assert_eq!(PublicKey::from_spki(&public.spki()), Ok(public.clone()));
        assert_eq!(PublicKey::from_raw(&public.raw()), Ok(public));
        assert!(PublicKey::from_spki(b"").is_err());
        assert!(format!("{:?}", key()).starts_with("SecretKey(of "));
    }
}
