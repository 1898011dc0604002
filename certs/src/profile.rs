//! The certificates of protocol.md, section 1: for each kind exactly these names, uses and lives.
//!
//! Every certificate carries subject and authority key identifiers, and is backdated five minutes so that a receiver
//! whose clock is a little late takes it at once.

use std::time::Duration;

use docaxis_protocol::{NodeId, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use crate::keys::random;
use crate::name::{Serial, Subject};

/// How far before its issue a certificate is already valid.
pub const BACKDATED: Duration = Duration::from_secs(5 * 60);

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long each kind of certificate lives. None outlives its issuer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Validity {
    pub root_days: u32,
    pub ca_days: u32,
    /// Node, broker and authority's link.
    pub link_days: u32,
    /// Seal, evidence, directory and witness.
    pub signing_days: u32,
    /// The log's key names the log for as long as it lives.
    pub log_days: u32,
}

impl Default for Validity {
    fn default() -> Self {
        Self { root_days: 20 * 365, ca_days: 5 * 365, link_days: 90, signing_days: 2 * 365, log_days: 20 * 365 }
    }
}

impl Validity {
    pub(crate) fn of(&self, subject: &Subject) -> Duration {
        let days = match subject {
            Subject::NodesCa | Subject::SealsCa => self.ca_days,
            Subject::Node(_) | Subject::Broker(_) | Subject::Authority(_) => self.link_days,
            Subject::Agency(_) | Subject::Evidence(_) | Subject::Directory(_) | Subject::Witness(_) => {
                self.signing_days
            }
            Subject::Log(_) => self.log_days,
        };
        DAY * days
    }

    pub(crate) fn root(&self) -> Duration {
        DAY * self.root_days
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("the certificate for {subject} could not be made")]
    Make {
        subject: String,
        #[source]
        source: rcgen::Error,
    },
    #[error("time {found} cannot stand in a certificate")]
    Time { found: Timestamp },
    #[error("the issuing certificate ended at {ended}; issue a new one before anything else")]
    IssuerEnded { ended: Timestamp },
    #[error(transparent)]
    Key(#[from] crate::keys::KeyError),
}

/// An issuing certificate with its key.
pub(crate) struct Ca {
    pub certificate: Vec<u8>,
    pub not_after: Timestamp,
    pub issuer: Issuer<'static, KeyPair>,
}

pub(crate) fn date(at: Timestamp) -> Result<OffsetDateTime, ProfileError> {
    OffsetDateTime::from_unix_timestamp(at.unix_s()).map_err(|_| ProfileError::Time { found: at })
}

fn common_name(text: String) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    // A common name has at most 64 characters (RFC 5280, ub-common-name); decisions rest on the URI alone.
    let short: String = text.chars().take(64).collect();
    name.push(DnType::CommonName, short);
    name
}

fn params(name: String, from: Timestamp, until: Timestamp, serial: &Serial) -> Result<CertificateParams, ProfileError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(name);
    params.not_before = date(from)?;
    params.not_after = date(until)?;
    params.serial_number = Some(SerialNumber::from_slice(serial.as_bytes()));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

/// The root certificate, signed by itself.
pub(crate) fn root(
    exchange: &docaxis_protocol::Origin,
    key: KeyPair,
    now: Timestamp,
    life: Duration,
) -> Result<Ca, ProfileError> {
    let not_after = now.plus(life);
    let mut params =
        params(format!("docaxis root {exchange}"), now.minus(BACKDATED), not_after, &Serial::from_random(random()?))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate =
        params.self_signed(&key).map_err(|source| ProfileError::Make { subject: "the root".into(), source })?;
    Ok(Ca { certificate: certificate.der().to_vec(), not_after, issuer: Issuer::new(params, key) })
}

/// A certificate for `subject`, whatever its request asked for. A broker also gets its DNS name.
pub(crate) fn issue(
    ca: &Ca,
    subject: &Subject,
    dns_name: Option<&str>,
    key: &impl PublicKeyData,
    now: Timestamp,
    life: Duration,
) -> Result<Vec<u8>, ProfileError> {
    if ca.not_after <= now {
        return Err(ProfileError::IssuerEnded { ended: ca.not_after });
    }
    let make = |source| ProfileError::Make { subject: subject.uri(), source };
    let until = now.plus(life).min(ca.not_after);
    let uri = subject.uri();
    let short = uri.trim_start_matches("docaxis://").to_owned();
    let mut params = params(short, now.minus(BACKDATED), until, &Serial::from_random(random()?))?;
    if let Some(dns_name) = dns_name {
        params.subject_alt_names.push(SanType::DnsName(dns_name.try_into().map_err(make)?));
    }
    params.subject_alt_names.push(SanType::URI(uri.as_str().try_into().map_err(make)?));
    match subject {
        Subject::NodesCa | Subject::SealsCa => {
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        }
        _ => {
            params.is_ca = IsCa::ExplicitNoCa;
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        }
    }
    params.extended_key_usages = match subject {
        Subject::Node(_) | Subject::Authority(_) => vec![ExtendedKeyUsagePurpose::ClientAuth],
        Subject::Broker(_) => vec![ExtendedKeyUsagePurpose::ServerAuth],
        _ => Vec::new(),
    };
    Ok(params.signed_by(key, &ca.issuer).map_err(make)?.der().to_vec())
}

/// The name that agents check with their TLS library: it stands in no name server.
pub fn broker_dns_name(broker: &NodeId) -> String {
    format!("{broker}.broker.docaxis.invalid")
}
