//! Revocation: by serial number, node or agency; and the lists that say so.

use std::time::Duration;

use docaxis_protocol::{AgencyCode, NodeId, Timestamp};
use rcgen::{CertificateRevocationListParams, KeyIdMethod, RevokedCertParams, SerialNumber};

use super::records::Record;
use super::{Authority, AuthorityError, RevocationReason, Which};
use crate::encoding::{crl_from_pem, pem};
use crate::files;
use crate::layout;
use crate::name::{Serial, Subject};
use crate::profile::{ProfileError, date};

/// A new list is made at least this often, so that a receiver can tell a stale one.
const CRL_FRESH: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a list says that it is good for.
const CRL_LIFE: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// Whose certificates are revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Serial(Serial),
    /// All link and witness certificates of a node.
    Node(NodeId),
    /// All seals of an agency.
    Agency(AgencyCode),
}

#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    #[error("{target:?} has no certificate that could be revoked")]
    Nothing { target: Target },
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl Authority {
    /// Revokes all certificates of the target that are not revoked or ended yet; says which. The new lists come from
    /// [`Authority::crl`].
    pub fn revoke(
        &mut self,
        target: &Target,
        now: Timestamp,
        reason: RevocationReason,
    ) -> Result<Vec<Serial>, RevokeError> {
        self.write(|_, state| {
            let meant = |subject: &Subject, serial: &Serial| match target {
                Target::Serial(wanted) => serial == wanted,
                Target::Node(id) => matches!(subject, Subject::Node(node) | Subject::Witness(node) if node == id),
                Target::Agency(code) => matches!(subject, Subject::Agency(agency) if agency == code),
            };
            let serials: Vec<Serial> = state
                .certificates
                .values()
                .filter(|issued| issued.revoked.is_none() && now < issued.facts.not_after)
                .map(|issued| &issued.facts)
                .filter(|facts| meant(&facts.subject, &facts.serial))
                .map(|facts| facts.serial.clone())
                .collect();
            if serials.is_empty() {
                return Err(RevokeError::Nothing { target: target.clone() });
            }
            let records =
                serials.iter().map(|serial| Record::Revoked { serial: serial.clone(), at: now, reason }).collect();
            Ok((records, serials))
        })
    }

    /// The revocation list in DER: the one in force, or the next number if something was revoked or a day has passed.
    pub fn crl(&mut self, which: Which, now: Timestamp) -> Result<Vec<u8>, AuthorityError> {
        let path = self.keys.folder.join(crl_file(which));
        let mut in_force = None;
        self.write(|_, state| -> Result<_, AuthorityError> {
            let before = state.crls.get(&which);
            if let Some(crl) = before.filter(|crl| !crl.outdated && now < crl.at.plus(CRL_FRESH)) {
                // The number is recorded before the file is written: after a crash in between, the file is missing or
                // older, and the next number is taken.
                if let Ok(text) = files::read(&path)
                    && let Ok(der) = crl_from_pem(&text)
                    && number_of(&der) == Some(crl.number)
                {
                    in_force = Some(der);
                    return Ok((Vec::new(), ()));
                }
            }
            let number = before.map_or(1, |crl| crl.number + 1);
            Ok((vec![Record::CrlNumber { which, number, at: now }], ()))
        })?;
        if let Some(der) = in_force {
            return Ok(der);
        }
        let der = self.sign_crl(which, now)?;
        files::write(&path, pem("X509 CRL", &der).as_bytes())?;
        Ok(der)
    }

    fn sign_crl(&self, which: Which, now: Timestamp) -> Result<Vec<u8>, AuthorityError> {
        let number = self.state.crls.get(&which).map_or(1, |crl| crl.number);
        let mut revoked_certs = Vec::new();
        for issued in self.state.certificates.values() {
            if let Some((at, reason)) = issued.revoked
                && Which::issuer_of(&issued.facts.subject) == which
            {
                revoked_certs.push(RevokedCertParams {
                    serial_number: SerialNumber::from_slice(issued.facts.serial.as_bytes()),
                    revocation_time: date(at)?,
                    reason_code: reason_code(reason),
                    invalidity_date: None,
                });
            }
        }
        let params = CertificateRevocationListParams {
            this_update: date(now)?,
            next_update: date(now.plus(CRL_LIFE))?,
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs,
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let subject = format!("revocation list {number} of {}", which.subject());
        let list =
            params.signed_by(&self.keys.ca(which).issuer).map_err(|source| ProfileError::Make { subject, source })?;
        Ok(list.der().to_vec())
    }
}

fn crl_file(which: Which) -> &'static str {
    match which {
        Which::Nodes => layout::NODES_CRL,
        Which::Seals => layout::SEALS_CRL,
    }
}

fn number_of(der: &[u8]) -> Option<u64> {
    use x509_parser::prelude::FromDer as _;
    let (_, list) = x509_parser::revocation_list::CertificateRevocationList::from_der(der).ok()?;
    u64::try_from(list.crl_number()?).ok()
}

fn reason_code(reason: RevocationReason) -> Option<rcgen::RevocationReason> {
    match reason {
        // Absent rather than written down (RFC 5280, section 5.3.1).
        RevocationReason::Unspecified => None,
        RevocationReason::KeyCompromise => Some(rcgen::RevocationReason::KeyCompromise),
        RevocationReason::AffiliationChanged => Some(rcgen::RevocationReason::AffiliationChanged),
        RevocationReason::Superseded => Some(rcgen::RevocationReason::Superseded),
        RevocationReason::CessationOfOperation => Some(rcgen::RevocationReason::CessationOfOperation),
        RevocationReason::PrivilegeWithdrawn => Some(rcgen::RevocationReason::PrivilegeWithdrawn),
    }
}
