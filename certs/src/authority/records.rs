//! What the authority remembers: the records on disk, and the state that they add up to.
//!
//! Pure: records in, state out. Nothing here decides whether something is allowed.

use std::collections::BTreeMap;

use docaxis_protocol::directory::{DirectoryEntry, SignedEntry};
use docaxis_protocol::key::RawSignature;
use docaxis_protocol::{AgencyCode, Digest, NodeId, Timestamp};
use serde::{Deserialize, Serialize};

use crate::encoding::b64;
use crate::name::{Facts, Serial, Subject};

/// Which of the two issuing certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Which {
    Nodes,
    Seals,
}

impl Which {
    /// Who issues certificates for this subject.
    pub fn issuer_of(subject: &Subject) -> Self {
        match subject {
            Subject::Node(_) | Subject::Broker(_) | Subject::Authority(_) | Subject::NodesCa => Self::Nodes,
            _ => Self::Seals,
        }
    }

    pub const fn subject(self) -> Subject {
        match self {
            Self::Nodes => Subject::NodesCa,
            Self::Seals => Subject::SealsCa,
        }
    }
}

/// Why a certificate was revoked; the names of RFC 5280, section 5.3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RevocationReason {
    Unspecified,
    KeyCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
    PrivilegeWithdrawn,
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Record {
    Issued {
        #[serde(with = "b64")]
        der: Vec<u8>,
    },
    Revoked {
        serial: Serial,
        at: Timestamp,
        reason: RevocationReason,
    },
    /// The number is taken before the list is signed, so that no two lists share one.
    CrlNumber {
        which: Which,
        number: u64,
        at: Timestamp,
    },
    Invited(Invitation),
    /// The request that an invitation was used for, kept until it is approved.
    Kept {
        invitation: String,
        #[serde(with = "b64")]
        request: Vec<u8>,
        at: Timestamp,
    },
    Answered {
        invitation: String,
        request: Digest,
        #[serde(with = "b64")]
        answer: Vec<u8>,
        at: Timestamp,
    },
    /// A renewal that was answered, so that its repetition gets the same certificate.
    Renewed {
        request: Digest,
        serial: Serial,
    },
    Entry {
        #[serde(with = "b64")]
        bytes: Vec<u8>,
        #[serde(with = "b64")]
        signature: Vec<u8>,
    },
}

#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Invitation {
    pub id: String,
    pub node: NodeId,
    pub agencies: Vec<AgencyCode>,
    #[serde(with = "b64")]
    pub secret: Vec<u8>,
    /// As the token names it: the answer must say the same, also if the broker has moved since.
    pub broker_address: String,
    pub created: Timestamp,
    pub expires: Timestamp,
}

impl std::fmt::Debug for Invitation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Invitation({} for {} until {})", self.id, self.node, self.expires)
    }
}

/// What became of an invitation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Use {
    Open,
    Kept { request: Vec<u8>, at: Timestamp },
    Answered { request: Digest, answer: Vec<u8> },
}

/// A certificate that the authority issued.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    pub facts: Facts,
    pub der: Vec<u8>,
    pub revoked: Option<(Timestamp, RevocationReason)>,
}

impl Issued {
    pub fn is_good(&self, now: Timestamp) -> bool {
        self.revoked.is_none() && self.facts.not_before <= now && now < self.facts.not_after
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CrlState {
    pub number: u64,
    pub at: Timestamp,
    /// Whether something was revoked since that number was taken.
    pub outdated: bool,
}

/// Everything, folded.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub certificates: BTreeMap<Serial, Issued>,
    /// The newest certificate of each subject.
    pub newest: BTreeMap<Subject, Serial>,
    pub crls: BTreeMap<Which, CrlState>,
    pub invitations: BTreeMap<String, (Invitation, Use)>,
    pub renewals: BTreeMap<Digest, Serial>,
    pub entries: BTreeMap<AgencyCode, (DirectoryEntry, SignedEntry)>,
    pub entries_by_version: BTreeMap<u64, AgencyCode>,
    pub aliases: BTreeMap<AgencyCode, AgencyCode>,
    pub version: u64,
}

/// A record that contradicts the ones before it.
#[derive(Debug, thiserror::Error)]
#[error("a record of the authority makes no sense: {found}; restore the records from a backup")]
pub struct StateError {
    pub found: String,
}

impl State {
    pub fn apply(&mut self, record: Record) -> Result<(), StateError> {
        let senseless = |found: String| StateError { found };
        match record {
            Record::Issued { der } => {
                let facts = Facts::of(&der).map_err(|error| senseless(error.to_string()))?;
                self.newest.insert(facts.subject.clone(), facts.serial.clone());
                self.certificates.insert(facts.serial.clone(), Issued { facts, der, revoked: None });
            }
            Record::Revoked { serial, at, reason } => {
                let issued = self
                    .certificates
                    .get_mut(&serial)
                    .ok_or_else(|| senseless(format!("{serial} was revoked but never issued")))?;
                issued.revoked.get_or_insert((at, reason));
                let which = Which::issuer_of(&issued.facts.subject);
                if let Some(crl) = self.crls.get_mut(&which) {
                    crl.outdated = true;
                }
            }
            Record::CrlNumber { which, number, at } => {
                self.crls.insert(which, CrlState { number, at, outdated: false });
            }
            Record::Invited(invitation) => {
                self.invitations.insert(invitation.id.clone(), (invitation, Use::Open));
            }
            Record::Kept { invitation, request, at } => self.invitation(&invitation)?.1 = Use::Kept { request, at },
            Record::Answered { invitation, request, answer, at: _ } => {
                self.invitation(&invitation)?.1 = Use::Answered { request, answer };
            }
            Record::Renewed { request, serial } => {
                self.renewals.insert(request, serial);
            }
            Record::Entry { bytes, signature } => self.apply_entry(bytes, &signature)?,
        }
        Ok(())
    }

    fn invitation(&mut self, id: &str) -> Result<&mut (Invitation, Use), StateError> {
        self.invitations
            .get_mut(id)
            .ok_or_else(|| StateError { found: format!("invitation {id} was used but never made") })
    }

    fn apply_entry(&mut self, bytes: Vec<u8>, signature: &[u8]) -> Result<(), StateError> {
        let entry: DirectoryEntry =
            docaxis_protocol::json::parse(&bytes).map_err(|error| StateError { found: error.to_string() })?;
        let signature = RawSignature::from_slice(signature).map_err(|error| StateError { found: error.to_string() })?;
        if entry.version != self.version + 1 {
            return Err(StateError { found: format!("version {} follows {}", entry.version, self.version) });
        }
        self.version = entry.version;
        if let Some((before, _)) = self.entries.get(&entry.agency) {
            self.entries_by_version.remove(&before.version);
            for alias in &before.aliases {
                self.aliases.remove(alias);
            }
        }
        self.entries_by_version.insert(entry.version, entry.agency.clone());
        for alias in &entry.aliases {
            self.aliases.insert(alias.clone(), entry.agency.clone());
        }
        self.entries.insert(entry.agency.clone(), (entry, SignedEntry { bytes, signature }));
        Ok(())
    }

    /// The newest good certificate of a subject.
    pub fn current(&self, subject: &Subject, now: Timestamp) -> Option<&Issued> {
        self.newest.get(subject).and_then(|serial| self.certificates.get(serial)).filter(|issued| issued.is_good(now))
    }
}
