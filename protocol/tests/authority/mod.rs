//! A small authority for tests: root, issuing authorities, seals, revocation lists.

#![allow(clippy::unwrap_used, reason = "a fixture that cannot be built ends the test")]

use docaxis_protocol::Timestamp;
use docaxis_protocol::key::SecretKey;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use time::OffsetDateTime;

pub struct Ca {
    params: CertificateParams,
    key: KeyPair,
    pub pem: String,
}

/// A certified Ed25519 key.
pub struct Seal {
    pub secret: SecretKey,
    pub pem: String,
}

/// What a certificate says, where a test wants it otherwise than usual.
#[derive(Clone)]
pub struct Wish {
    pub from: Timestamp,
    pub until: Timestamp,
    pub uris: Vec<String>,
    pub with_identifier: bool,
}

/// The start of every fixture's validity.
pub const START: Timestamp = Timestamp::from_unix_ms(1_795_000_000_000);

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_unix_ms(START.unix_ms() + seconds * 1000)
}

pub const YEAR: i64 = 365 * 86_400;

impl Wish {
    pub fn named(uri: &str) -> Self {
        Self { from: START, until: at(YEAR), uris: vec![uri.into()], with_identifier: true }
    }
}

fn moment(at: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(at.unix_s()).unwrap()
}

fn params(name: &str, wish: &Wish) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = moment(wish.from);
    params.not_after = moment(wish.until);
    params.subject_alt_names = wish.uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap())).collect();
    params.use_authority_key_identifier_extension = wish.with_identifier;
    params
}

fn ca_params(name: &str, wish: &Wish, constraint: BasicConstraints) -> CertificateParams {
    let mut params = params(name, wish);
    params.is_ca = IsCa::Ca(constraint);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

impl Ca {
    pub fn root(name: &str) -> Self {
        let wish = Wish { uris: vec![], until: at(20 * YEAR), ..Wish::named("") };
        Self::root_as(name, &wish)
    }

    pub fn root_as(name: &str, wish: &Wish) -> Self {
        let params = ca_params(name, wish, BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { params, key, pem }
    }

    pub fn issue_ca(&self, name: &str, wish: &Wish) -> Self {
        let params = ca_params(name, wish, BasicConstraints::Constrained(0));
        let key = KeyPair::generate().unwrap();
        let pem = params.signed_by(&key, &self.issuer()).unwrap().pem();
        Self { params, key, pem }
    }

    /// Certifies the key made from `seed`, which is also its serial number.
    pub fn issue(&self, seed: u8, wish: &Wish) -> Seal {
        let secret = SecretKey::from_seed(&[seed; 32]);
        // PKCS#8 version 1 of an Ed25519 seed (RFC 8410).
        let head = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        let der = [&head[..], &[seed; 32]].concat();
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&der.into(), &rcgen::PKCS_ED25519).unwrap();
        let mut params = params("seal", wish);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.serial_number = Some(SerialNumber::from(u64::from(seed)));
        let pem = params.signed_by(&key, &self.issuer()).unwrap().pem();
        Seal { secret, pem }
    }

    /// A revocation list with these serials and times.
    pub fn crl(&self, revoked: &[(u64, Timestamp)]) -> String {
        let revoked_certs = revoked
            .iter()
            .map(|(serial, at)| RevokedCertParams {
                serial_number: SerialNumber::from(*serial),
                revocation_time: moment(*at),
                reason_code: None,
                invalidity_date: None,
            })
            .collect();
        let list = CertificateRevocationListParams {
            this_update: moment(START),
            next_update: moment(at(30 * 86_400)),
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer()).unwrap().pem().unwrap()
    }

    fn issuer(&self) -> Issuer<'_, &KeyPair> {
        Issuer::from_params(&self.params, &self.key)
    }
}
