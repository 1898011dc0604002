//! Writes and signs evidence. The only holder of the evidence key; it signs nothing but evidence.
//!
//! Times never run backwards along a chain: a piece of evidence is never dated before the one that it follows.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use docaxis_protocol::evidence::{self, Cause, EvidenceError, PartDigest, StatementInEvidence};
use docaxis_protocol::key::SecretKey;
use docaxis_protocol::{
    AgencyCode, Digest, DispatchId, Envelope, Event, Evidence, EvidenceId, Origin, Reason, SignedEvidence, Statement,
    Timestamp,
};

use crate::env::{Env, new_id};
use crate::store::Dispatch;

/// The rules under which the exchange issues evidence, as ETSI EN 319 522 asks for one.
pub const POLICY: &str = "urn:docaxis:policy:1";

pub struct Issuer {
    origin: Origin,
    key: SecretKey,
    key_id: Digest,
    env: Arc<dyn Env>,
}

/// Evidence about one delivery, before it is signed.
pub struct DeliveryEvidence {
    pub event: Event,
    pub recipient: AgencyCode,
    pub previous: Digest,
    /// Time of the evidence before it.
    pub not_before: Timestamp,
    pub reasons: Vec<Reason>,
    pub statement: Option<StatementInEvidence>,
    /// The recall that withdrew it.
    pub cause: Option<Cause>,
    /// For a handover after a failure: the failure's evidence.
    pub late_after: Option<EvidenceId>,
}

/// What evidence about a delivery repeats of its dispatch.
pub struct Submitted<'a> {
    pub id: DispatchId,
    pub envelope_sha256: Digest,
    pub sender: &'a AgencyCode,
    pub parts: Vec<PartDigest>,
    pub accepted: Timestamp,
    pub expires: Timestamp,
}

impl Issuer {
    pub fn new(origin: Origin, key: SecretKey, env: Arc<dyn Env>) -> Self {
        let key_id = key.public().id();
        Self { origin, key, key_id, env }
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// SubmissionAcceptance of `envelope`, dated `accepted`.
    pub fn acceptance(
        &self,
        envelope: &Envelope,
        digest: Digest,
        accepted: Timestamp,
    ) -> Result<SignedEvidence, EvidenceError> {
        let mut evidence =
            self.blank(Event::SubmissionAcceptance, accepted, envelope.id, digest, &envelope.sender.agency);
        evidence.recipients = envelope.recipients.clone();
        evidence.parts = parts_of(envelope);
        evidence.submitted = Some(accepted);
        evidence.expires = Some(envelope.expires);
        SignedEvidence::sign(&evidence, &self.key)
    }

    /// SubmissionRejection: stands alone.
    pub fn rejection(
        &self,
        envelope: &Envelope,
        digest: Digest,
        reason: Reason,
    ) -> Result<SignedEvidence, EvidenceError> {
        let now = self.env.now();
        let mut evidence = self.blank(Event::SubmissionRejection, now, envelope.id, digest, &envelope.sender.agency);
        evidence.recipients = envelope.recipients.clone();
        evidence.parts = parts_of(envelope);
        evidence.reasons = vec![reason];
        SignedEvidence::sign(&evidence, &self.key)
    }

    /// Evidence about one recipient of an accepted dispatch, and its time.
    pub fn delivery(
        &self,
        dispatch: &Dispatch,
        about: DeliveryEvidence,
    ) -> Result<(SignedEvidence, Timestamp), EvidenceError> {
        let of = Submitted {
            id: dispatch.id,
            envelope_sha256: dispatch.envelope_sha256,
            sender: &dispatch.sender,
            parts: dispatch.parts.clone(),
            accepted: dispatch.accepted,
            expires: dispatch.expires,
        };
        self.delivery_of(of, about)
    }

    /// The same, where the dispatch is only about to be accepted.
    pub fn delivery_of(
        &self,
        of: Submitted<'_>,
        about: DeliveryEvidence,
    ) -> Result<(SignedEvidence, Timestamp), EvidenceError> {
        let time = self.env.now().max(about.not_before);
        let mut evidence = self.blank(about.event, time, of.id, of.envelope_sha256, of.sender);
        evidence.recipient = Some(about.recipient);
        evidence.parts = of.parts;
        evidence.submitted = Some(of.accepted);
        evidence.expires = Some(of.expires);
        evidence.reasons = about.reasons;
        // Beside the merged recipient the evidence names who spoke for it.
        evidence.acting = about.statement.as_ref().and_then(acting_in);
        evidence.statement = about.statement;
        evidence.cause = about.cause;
        evidence.late = about.late_after.is_some();
        evidence.outcome = about.late_after;
        evidence.previous = Some(about.previous);
        Ok((SignedEvidence::sign(&evidence, &self.key)?, time))
    }

    fn blank(
        &self,
        event: Event,
        time: Timestamp,
        dispatch: DispatchId,
        digest: Digest,
        sender: &AgencyCode,
    ) -> Evidence {
        let mut salt = [0; 16];
        self.env.random(&mut salt);
        Evidence {
            kind_of_bytes: evidence::TYPE.into(),
            id: new_id(&*self.env),
            event,
            uri: event.uri(),
            time,
            issuer: self.origin.clone(),
            key: self.key_id,
            policy: POLICY.into(),
            dispatch,
            envelope_sha256: digest,
            sender: sender.clone(),
            recipient: None,
            recipients: vec![],
            parts: vec![],
            submitted: None,
            expires: None,
            reasons: vec![],
            statement: None,
            cause: None,
            acting: None,
            late: false,
            outcome: None,
            previous: None,
            salt: STANDARD.encode(salt),
        }
    }
}

/// Who spoke for the recipient, as the statement says; none if the recipient did.
fn acting_in(statement: &StatementInEvidence) -> Option<AgencyCode> {
    let bytes = STANDARD.decode(&statement.bytes).ok()?;
    Statement::parse(&bytes).ok()?.acting
}

/// The parts of an envelope as evidence lists them.
pub fn parts_of(envelope: &Envelope) -> Vec<PartDigest> {
    envelope.parts.iter().map(|part| PartDigest { sha256: part.sha256, size: part.size }).collect()
}
