//! Invitations, the requests that use them, and renewals.
//!
//! The broker only carries these bytes. A joining node proves the invitation's secret over its request, so that
//! whoever carries it can neither alter nor use it. An invitation is used durably before the answer leaves; the same
//! request bytes get the same answer bytes again, so that a lost answer does no harm.

use std::collections::BTreeMap;
use std::time::Duration;

use docaxis_protocol::directory::DirectoryError;
use docaxis_protocol::reason::ReasonCode;
use docaxis_protocol::{AgencyCode, Digest, NodeId, Timestamp};

use super::directory::sign_all;
use super::records::{Invitation, Record, State, Use};
use super::{Authority, AuthorityError, Keys, Which};
use crate::join::{JoinAnswer, JoinRequest, RenewRequest, SignedRenewal, Token};
use crate::keys::{KeyAlgorithm, KeyError, random, requested_key};
use crate::name::{Facts, Subject};
use crate::profile::{self, ProfileError};

/// Most agencies in one invitation; a province's hub hosts a few hundred.
pub const MAX_AGENCIES: usize = 1024;

/// Largest request to join, in bytes.
pub const MAX_REQUEST_BYTES: usize = 1 << 20;

/// The answer to a request to join.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JoinReply {
    /// The bytes of a `JoinAnswer`.
    Granted(Vec<u8>),
    /// Kept for `docaxis ca approve`; the same request may be sent again later.
    Kept { invitation: String },
}

/// A request that waits for approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pending {
    pub invitation: String,
    pub node: NodeId,
    pub invited: Vec<AgencyCode>,
    pub asked: Vec<AgencyCode>,
    pub since: Timestamp,
}

#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("there is no invitation {id}; ask the authority for a new token")]
    NotFound { id: String },
    #[error("invitation {id} was already used by another request; ask the authority for a new token")]
    TokenUsed { id: String },
    #[error("invitation {id} expired at {expired}; ask the authority for a new token")]
    TokenExpired { id: String, expired: Timestamp },
    #[error(
        "the request does not prove the secret of invitation {id}: it was altered on the way, or the token is wrong"
    )]
    NotAuthentic { id: String },
    #[error("the request to join is not usable: {found}")]
    Malformed { found: String },
    #[error("no request with invitation {id} waits for approval")]
    NotPending { id: String },
    #[error("agency {code} is not in the directory; add it before inviting a node for it")]
    UnknownAgency { code: AgencyCode },
    #[error("agency {code} is hosted by node {host}, not {node}; move it first")]
    HostedElsewhere { code: AgencyCode, host: NodeId, node: NodeId },
    #[error("{found} agencies in one invitation; the limit is {MAX_AGENCIES}")]
    TooMany { found: usize },
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl JoinError {
    /// The stable reason that goes over the link.
    pub const fn reason(&self) -> ReasonCode {
        match self {
            Self::NotFound { .. } | Self::NotPending { .. } => ReasonCode::NotFound,
            Self::TokenUsed { .. } => ReasonCode::TokenUsed,
            Self::TokenExpired { .. } => ReasonCode::TokenExpired,
            Self::NotAuthentic { .. } | Self::Malformed { .. } | Self::Key(_) => ReasonCode::Malformed,
            Self::UnknownAgency { .. } => ReasonCode::UnknownRecipient,
            Self::HostedElsewhere { .. } => ReasonCode::NotHosted,
            Self::TooMany { .. } => ReasonCode::TooLarge,
            Self::Directory(_) | Self::Authority(_) => ReasonCode::Other,
        }
    }
}

impl From<ProfileError> for JoinError {
    fn from(error: ProfileError) -> Self {
        Self::Authority(error.into())
    }
}

#[derive(Debug, thiserror::Error)]
pub enum RenewError {
    #[error("the request to renew is not usable: {found}")]
    Malformed { found: String },
    #[error("the certificate to be renewed was not issued here, or is not a node's")]
    Unknown,
    #[error("the certificate of node {node} was revoked; the node must be invited anew")]
    Revoked { node: NodeId },
    #[error("the certificate of node {node} ended at {ended}; the node must be invited anew")]
    Ended { node: NodeId, ended: Timestamp },
    #[error("the request is not signed by the key of the certificate to be renewed: {found}")]
    NotAuthentic { found: &'static str },
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl RenewError {
    /// The stable reason that goes over the link.
    pub const fn reason(&self) -> ReasonCode {
        match self {
            Self::Malformed { .. } | Self::NotAuthentic { .. } | Self::Key(_) => ReasonCode::Malformed,
            Self::Unknown => ReasonCode::NotFound,
            Self::Revoked { .. } => ReasonCode::Revoked,
            Self::Ended { .. } => ReasonCode::Expired,
            Self::Authority(_) => ReasonCode::Other,
        }
    }
}

impl From<ProfileError> for RenewError {
    fn from(error: ProfileError) -> Self {
        Self::Authority(error.into())
    }
}

impl Authority {
    /// Makes a token that lets one node join and host these agencies.
    pub fn invite(
        &mut self,
        node: &NodeId,
        agencies: &[AgencyCode],
        valid_for: Duration,
        now: Timestamp,
    ) -> Result<Token, JoinError> {
        if agencies.len() > MAX_AGENCIES {
            return Err(JoinError::TooMany { found: agencies.len() });
        }
        let mut agencies = agencies.to_vec();
        agencies.sort();
        agencies.dedup();
        let id = docaxis_protocol::digest::hex(&random::<8>()?);
        let secret: [u8; 32] = random()?;
        self.write(|keys, state| {
            for code in &agencies {
                check_host(state, code, node)?;
            }
            let invitation = Invitation {
                id: id.clone(),
                node: node.clone(),
                agencies,
                secret: secret.to_vec(),
                broker_address: keys.settings.broker_address.clone(),
                created: now,
                expires: now.plus(valid_for),
            };
            let token = Token {
                origin: keys.settings.origin.clone(),
                broker_address: keys.settings.broker_address.clone(),
                broker_dns_name: profile::broker_dns_name(&keys.settings.broker),
                root_sha256: keys.root_id(),
                root: keys.root.clone(),
                invitation: id,
                secret: secret.to_vec(),
                node: invitation.node.clone(),
                agencies: invitation.agencies.clone(),
                expires: invitation.expires,
                node_key: keys.settings.node_key,
            };
            Ok((vec![Record::Invited(invitation)], token))
        })
    }

    /// Answers a request to join, with the HMAC that came beside it.
    pub fn join(&mut self, request: &[u8], mac: &[u8], now: Timestamp) -> Result<JoinReply, JoinError> {
        let malformed = |found: String| JoinError::Malformed { found };
        if request.len() > MAX_REQUEST_BYTES {
            return Err(malformed(format!("it is {} bytes; the limit is {MAX_REQUEST_BYTES}", request.len())));
        }
        let parsed: JoinRequest =
            docaxis_protocol::json::parse(request).map_err(|error| malformed(error.to_string()))?;
        // Strangers get no further than this: no list is made and nothing is written for them.
        self.refresh()?;
        authentic(&self.state, &parsed, request, mac)?;
        let crls = self.crls_for_answer(now)?;
        self.write(|keys, state| {
            let (invitation, used) = authentic(state, &parsed, request, mac)?;
            let id = || invitation.id.clone();
            match used {
                Use::Answered { request: before, answer } if *before == Digest::of(request) => {
                    return Ok((Vec::new(), JoinReply::Granted(answer.clone())));
                }
                Use::Kept { request: before, .. } if before == request => {
                    return Ok((Vec::new(), JoinReply::Kept { invitation: id() }));
                }
                Use::Open => {}
                _ => return Err(JoinError::TokenUsed { id: id() }),
            }
            if invitation.expires <= now {
                return Err(JoinError::TokenExpired { id: id(), expired: invitation.expires });
            }
            check_request(&parsed)?;
            if !parsed.seals.keys().all(|code| invitation.agencies.contains(code)) {
                let record = Record::Kept { invitation: id(), request: request.to_vec(), at: now };
                return Ok((vec![record], JoinReply::Kept { invitation: id() }));
            }
            let (records, answer) = grant(keys, state, invitation, &parsed, request, crls, now)?;
            Ok((records, JoinReply::Granted(answer)))
        })
    }

    /// Requests that asked for more than their invitation allows.
    pub fn pending(&self) -> Vec<Pending> {
        let kept = |(invitation, used): &(Invitation, Use)| {
            let Use::Kept { request, at } = used else { return None };
            let parsed: JoinRequest = docaxis_protocol::json::parse(request).ok()?;
            Some(Pending {
                invitation: invitation.id.clone(),
                node: invitation.node.clone(),
                invited: invitation.agencies.clone(),
                asked: parsed.seals.into_keys().collect(),
                since: *at,
            })
        };
        self.state.invitations.values().filter_map(kept).collect()
    }

    /// Grants a kept request in full; the node gets its answer when it sends the request again.
    pub fn approve(&mut self, invitation: &str, now: Timestamp) -> Result<(), JoinError> {
        let crls = self.crls_for_answer(now)?;
        self.write(|keys, state| {
            let not_pending = || JoinError::NotPending { id: invitation.chars().take(40).collect() };
            let (invitation, used) = state.invitations.get(invitation).ok_or_else(not_pending)?;
            let Use::Kept { request, .. } = used else { return Err(not_pending()) };
            let parsed: JoinRequest = docaxis_protocol::json::parse(request)
                .map_err(|error| JoinError::Malformed { found: error.to_string() })?;
            let (records, _) = grant(keys, state, invitation, &parsed, request, crls, now)?;
            Ok((records, ()))
        })
    }

    /// Renews a node's link certificate: the request is signed by the key of the one that it replaces. Answers with
    /// the new certificate in DER; its repetition gets the same one.
    pub fn renew_node(&mut self, request: &[u8], now: Timestamp) -> Result<Vec<u8>, RenewError> {
        let malformed = |found: String| RenewError::Malformed { found };
        if request.len() > MAX_REQUEST_BYTES {
            return Err(malformed(format!("it is {} bytes; the limit is {MAX_REQUEST_BYTES}", request.len())));
        }
        let signed: SignedRenewal =
            docaxis_protocol::json::parse(request).map_err(|error| malformed(error.to_string()))?;
        let parsed: RenewRequest =
            docaxis_protocol::json::parse(&signed.bytes).map_err(|error| malformed(error.to_string()))?;
        self.write(|keys, state| {
            let issued = state.certificates.get(&parsed.serial).ok_or(RenewError::Unknown)?;
            let Subject::Node(node) = &issued.facts.subject else { return Err(RenewError::Unknown) };
            crate::keys::verify_with(keys.settings.node_key, &issued.facts.spki, &signed.bytes, &signed.signature)
                .map_err(|found| RenewError::NotAuthentic { found })?;
            let id = Digest::of(&signed.bytes);
            if let Some(again) = state.renewals.get(&id).and_then(|serial| state.certificates.get(serial)) {
                return Ok((Vec::new(), again.der.clone()));
            }
            if issued.revoked.is_some() {
                return Err(RenewError::Revoked { node: node.clone() });
            }
            if issued.facts.not_after <= now {
                return Err(RenewError::Ended { node: node.clone(), ended: issued.facts.not_after });
            }
            let key = requested_key(&parsed.csr, keys.settings.node_key)?;
            let der = keys.issue(&issued.facts.subject, &key, now)?;
            let serial = Facts::of(&der).map_err(|error| malformed(error.to_string()))?.serial;
            Ok((vec![Record::Issued { der: der.clone() }, Record::Renewed { request: id, serial }], der))
        })
    }

    fn crls_for_answer(&mut self, now: Timestamp) -> Result<Crls, AuthorityError> {
        Ok(Crls { nodes: self.crl(Which::Nodes, now)?, seals: self.crl(Which::Seals, now)? })
    }
}

struct Crls {
    nodes: Vec<u8>,
    seals: Vec<u8>,
}

/// The invitation that a request names, if the request proves its secret.
fn authentic<'a>(
    state: &'a State,
    parsed: &JoinRequest,
    request: &[u8],
    mac: &[u8],
) -> Result<&'a (Invitation, Use), JoinError> {
    let id = || parsed.invitation.chars().take(40).collect();
    let found = state.invitations.get(&parsed.invitation).ok_or_else(|| JoinError::NotFound { id: id() })?;
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, &found.0.secret);
    match aws_lc_rs::hmac::verify(&key, request, mac) {
        Ok(()) => Ok(found),
        Err(_) => Err(JoinError::NotAuthentic { id: id() }),
    }
}

fn check_host(state: &State, code: &AgencyCode, node: &NodeId) -> Result<(), JoinError> {
    let (entry, _) = state.entries.get(code).ok_or_else(|| JoinError::UnknownAgency { code: code.clone() })?;
    match &entry.node {
        Some(host) if host != node => {
            Err(JoinError::HostedElsewhere { code: code.clone(), host: host.clone(), node: node.clone() })
        }
        _ => Ok(()),
    }
}

fn check_request(request: &JoinRequest) -> Result<(), JoinError> {
    if request.kind != JoinRequest::TYPE {
        return Err(JoinError::Malformed { found: format!("its type is not {}", JoinRequest::TYPE) });
    }
    match request.seals.len() {
        found if found > MAX_AGENCIES => Err(JoinError::TooMany { found }),
        _ => Ok(()),
    }
}

/// Issues everything a node needs and hosts its agencies: one change, with the answer in it.
fn grant(
    keys: &Keys,
    state: &State,
    invitation: &Invitation,
    request: &JoinRequest,
    request_bytes: &[u8],
    crls: Crls,
    now: Timestamp,
) -> Result<(Vec<Record>, Vec<u8>), JoinError> {
    let node = &invitation.node;
    let origin = keys.settings.origin.clone();
    let mut records = Vec::new();
    let mut issue = |subject: Subject, csr: &[u8], algorithm| -> Result<Vec<u8>, JoinError> {
        let key = requested_key(csr, algorithm)?;
        let der = keys.issue(&subject, &key, now)?;
        records.push(Record::Issued { der: der.clone() });
        Ok(der)
    };
    let node_certificate = issue(Subject::Node(node.clone()), &request.node_csr, keys.settings.node_key)?;
    let witness_certificate = issue(Subject::Witness(node.clone()), &request.witness_csr, KeyAlgorithm::Ed25519)?;
    let mut seals = BTreeMap::new();
    let mut entries = Vec::new();
    for (code, csr) in &request.seals {
        check_host(state, code, node)?;
        seals.insert(code.clone(), issue(Subject::Agency(code.clone()), csr, KeyAlgorithm::Ed25519)?);
        if let Some((entry, _)) = state.entries.get(code)
            && entry.node.as_ref() != Some(node)
        {
            let mut hosted = entry.clone();
            hosted.node = Some(node.clone());
            hosted.since = now;
            entries.push(hosted);
        }
    }
    records.extend(sign_all(keys, state, entries)?);
    let held = |subject: Subject| {
        state.current(&subject, now).map(|issued| issued.der.clone()).ok_or(AuthorityError::NoBroker)
    };
    let answer = JoinAnswer {
        kind: JoinAnswer::TYPE.into(),
        origin: origin.clone(),
        node: node.clone(),
        broker_address: invitation.broker_address.clone(),
        broker_dns_name: profile::broker_dns_name(&keys.settings.broker),
        root: keys.root.clone(),
        nodes_ca: keys.nodes.certificate.clone(),
        seals_ca: keys.seals.certificate.clone(),
        node_certificate,
        witness_certificate,
        seals,
        directory_certificate: held(Subject::Directory(origin.clone()))?,
        evidence_certificate: held(Subject::Evidence(origin.clone()))?,
        log_certificate: held(Subject::Log(origin))?,
        nodes_crl: crls.nodes,
        seals_crl: crls.seals,
    };
    let answer = serde_json::to_vec(&answer).map_err(|error| JoinError::Malformed { found: error.to_string() })?;
    records.push(Record::Answered {
        invitation: invitation.id.clone(),
        request: Digest::of(request_bytes),
        answer: answer.clone(),
        at: now,
    });
    Ok((records, answer))
}
