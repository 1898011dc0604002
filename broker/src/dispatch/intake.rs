//! Intake: from a sealed envelope to a durable acceptance, or to a refusal that says why.

use std::collections::BTreeMap;
use std::sync::Arc;

use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::frame::{self, Done, Submit};
use docaxis_protocol::limits::{MAX_INLINE_BODY_BYTES, MAX_INLINE_TOTAL_BYTES, MAX_LARGE_FRAME_BYTES};
use docaxis_protocol::{Digest, Envelope, NodeId, Reason, ReasonCode, SealedEnvelope, Timestamp};

use super::{Exchange, ExchangeError};
use crate::admission::{self, Refused, Situation, Standing};
use crate::evidence::issuer::parts_of;
use crate::store::{Acceptance, Accepted, Body, Rejection};

/// A dispatch that may be submitted: its seal and every rule have been checked, its bodies not yet.
pub struct Admitted {
    pub envelope: Envelope,
    digest: Digest,
    sealed: SealedEnvelope,
    /// Small bodies that came with it, by digest.
    bodies: BTreeMap<Digest, Vec<u8>>,
    /// Parts whose bodies must still come, by their first index in the envelope.
    pub missing: Vec<(u16, PartDigest)>,
}

/// What the first look at a submission gives.
pub enum Intake {
    Admitted(Box<Admitted>),
    /// It was accepted or rejected before or just now: this is the answer.
    Answered(Done),
    /// A link error.
    Refused(Reason),
}

/// A signed acceptance, or why the dispatch may no longer be accepted.
type Signed = Result<(Envelope, Acceptance), (Box<Admitted>, Reason)>;

/// Room in an offer for certificates, names and lengths beside envelope and receipt.
const OFFER_OVERHEAD_BYTES: usize = 40 << 10;

enum Look {
    Admitted(Box<Admitted>),
    Known(Done),
    Rejected(Box<Envelope>, Digest, SealedEnvelope, Reason),
    Refused(Reason),
}

impl Exchange {
    /// Looks at a submission and the bodies that came inline with it.
    pub async fn look(
        self: &Arc<Self>,
        node: &NodeId,
        submit: Submit,
        inline: Vec<(u16, Vec<u8>)>,
    ) -> Result<Intake, ExchangeError> {
        let (exchange, node) = (self.clone(), node.clone());
        let look = self.workers.run(move || exchange.examine(&node, submit.envelope, inline)).await??;
        Ok(match look {
            Look::Admitted(admitted) => Intake::Admitted(admitted),
            Look::Known(done) => Intake::Answered(done),
            Look::Refused(reason) => Intake::Refused(reason),
            Look::Rejected(envelope, digest, sealed, reason) => {
                Intake::Answered(self.reject(&envelope, digest, sealed, reason).await?)
            }
        })
    }

    fn examine(
        &self,
        node: &NodeId,
        sealed: SealedEnvelope,
        inline: Vec<(u16, Vec<u8>)>,
    ) -> Result<Look, ExchangeError> {
        let envelope = match Envelope::parse(&sealed.bytes) {
            Ok(envelope) => envelope,
            // Without an envelope that reads there is nothing that evidence could be about.
            Err(error) => return Ok(Look::Refused(error.reason())),
        };
        let now = self.now();
        let hosted = |code: &_| self.hosts(node, code);
        let recipient = |code: &_| self.with_directory(|directory| directory.standing(code));
        let situation = Situation {
            origin: &self.origin,
            node,
            now,
            max_part_bytes: self.max_part_bytes,
            hosted: &hosted,
            recipient: &recipient,
            sender_locked: self.with_directory(|d| d.standing(&envelope.sender.agency)) == Standing::Locked,
        };
        let digest = sealed.digest();
        let turned = |refused: Refused, envelope: Envelope, sealed: SealedEnvelope| match refused {
            Refused::Link(reason) => Look::Refused(reason),
            Refused::WithEvidence(reason) => Look::Rejected(Box::new(envelope), digest, sealed, reason),
        };
        if let Err(refused) = admission::may_speak(&envelope, &situation) {
            return Ok(turned(refused, envelope, sealed));
        }
        // A retry is answered before the seal is judged: what was accepted stays accepted, even if the certificate
        // has expired since. Only exactly the same bytes are a retry.
        if let Some(seq) = self.store.lookup(&envelope.sender.agency, envelope.id)?
            && let Some(known) = self.store.dispatch(seq)?
        {
            return Ok(if known.envelope_sha256 == digest {
                Look::Known(Done { intake: frame::Intake::Already, leaf: seq.0, evidence: known.evidence })
            } else {
                let reason = conflict(&envelope, known.envelope_sha256, digest);
                Look::Rejected(Box::new(envelope), digest, sealed, reason)
            });
        }
        if let Err(error) = self.seals.check_envelope(&envelope, &sealed, now) {
            let reason = ReasonCode::BadSeal.because(error.to_string());
            return Ok(Look::Rejected(Box::new(envelope), digest, sealed, reason));
        }
        if let Err(refused) = admission::admit(&envelope, &situation) {
            return Ok(turned(refused, envelope, sealed));
        }
        let mut bodies = BTreeMap::new();
        for (index, bytes) in inline {
            match check_body(&envelope, index, &bytes) {
                Ok(sha256) => drop(bodies.insert(sha256, bytes)),
                Err(reason) => return Ok(Look::Rejected(Box::new(envelope), digest, sealed, reason)),
            }
        }
        let missing = self.missing(&envelope, &bodies)?;
        Ok(Look::Admitted(Box::new(Admitted { envelope, digest, sealed, bodies, missing })))
    }

    /// Parts whose bodies are neither here inline nor were uploaded by this same agency before. A digest alone never
    /// opens a body, nor tells whether one exists: for the sender of foreign digests there is no difference.
    fn missing(
        &self,
        envelope: &Envelope,
        bodies: &BTreeMap<Digest, Vec<u8>>,
    ) -> Result<Vec<(u16, PartDigest)>, ExchangeError> {
        let mut wanted: BTreeMap<Digest, (u16, PartDigest)> = BTreeMap::new();
        for (index, part) in (0u16..).zip(parts_of(envelope)) {
            if !bodies.contains_key(&part.sha256) && !self.store.holds(&envelope.sender.agency, &part)? {
                wanted.entry(part.sha256).or_insert((index, part));
            }
        }
        let mut wanted: Vec<_> = wanted.into_values().collect();
        wanted.sort_by_key(|(index, _)| *index);
        Ok(wanted)
    }

    /// Takes a small body that was asked for.
    pub fn take_body(admitted: &mut Admitted, index: u16, bytes: Vec<u8>) -> Result<(), Reason> {
        let sha256 = check_body(&admitted.envelope, index, &bytes)?;
        admitted.bodies.insert(sha256, bytes);
        admitted.missing.retain(|(_, part)| part.sha256 != sha256);
        Ok(())
    }

    /// Notes that a large body is durable in the blob store.
    pub fn took_blob(admitted: &mut Admitted, sha256: Digest) {
        admitted.missing.retain(|(_, part)| part.sha256 != sha256);
    }

    /// Commits an admitted dispatch whose bodies are all there, and answers with its receipt.
    pub async fn accept(self: &Arc<Self>, admitted: Box<Admitted>) -> Result<Done, ExchangeError> {
        let exchange = self.clone();
        let (envelope, sealed) = match self.workers.run(move || exchange.sign_acceptance(*admitted)).await?? {
            Ok(acceptance) => acceptance,
            Err((admitted, reason)) => return self.reject_admitted(admitted, reason).await,
        };
        let evidence = sealed.evidence.clone();
        docaxis_failpoints::failpoint!("broker.accept.signed");
        let (rejected, digest) = (sealed.envelope.clone(), sealed.envelope_sha256);
        let done = match self.store.accept(sealed).await? {
            Accepted::New(seq) => {
                self.ring_recipients(envelope.recipients.iter());
                self.ring_sender(&envelope.sender.agency);
                Done { intake: frame::Intake::Accepted, leaf: seq.0, evidence }
            }
            Accepted::Already(seq, evidence) => {
                self.ring_recipients(envelope.recipients.iter());
                Done { intake: frame::Intake::Already, leaf: seq.0, evidence }
            }
            Accepted::Conflict { envelope_sha256 } => {
                let reason = conflict(&envelope, envelope_sha256, digest);
                self.reject(&envelope, digest, rejected, reason).await?
            }
        };
        docaxis_failpoints::failpoint!("broker.accept.committed");
        Ok(done)
    }

    /// Signs the acceptance of a dispatch whose bodies are all here. It is judged once more at the time that the
    /// evidence will name: a large body may have taken longer than the dispatch, the seal or a lock allowed.
    fn sign_acceptance(&self, admitted: Admitted) -> Result<Signed, ExchangeError> {
        let accepted = self.now();
        let verdict = match self.seals.check_envelope(&admitted.envelope, &admitted.sealed, accepted) {
            Ok(()) => self.judge(&admitted.envelope, accepted).map_err(|refused| refused.reason().clone()),
            Err(error) => Err(ReasonCode::BadSeal.because(error.to_string())),
        };
        if let Err(reason) = verdict {
            return Ok(Err((Box::new(admitted), reason)));
        }
        let Admitted { envelope, digest, sealed, bodies, .. } = admitted;
        let evidence = self.issuer.acceptance(&envelope, digest, accepted)?;
        let acceptance = Acceptance {
            sender: envelope.sender.agency.clone(),
            id: envelope.id,
            node: envelope.sender.node.clone(),
            accepted,
            expires: envelope.expires,
            priority: envelope.priority,
            envelope_sha256: digest,
            envelope: sealed,
            parts: parts_of(&envelope),
            bodies: bodies.into_iter().map(|(sha256, bytes)| Body { sha256, bytes }).collect(),
            evidence,
            recipients: envelope.recipients.iter().map(|code| (code.clone(), None)).collect(),
        };
        let offered = acceptance.envelope.bytes.len() + acceptance.evidence.bytes.len() + OFFER_OVERHEAD_BYTES;
        if offered > MAX_LARGE_FRAME_BYTES {
            let text = format!(
                "envelope and receipt are {offered} bytes together; an offer has room for {MAX_LARGE_FRAME_BYTES}"
            );
            let Acceptance { envelope: sealed, .. } = acceptance;
            let admitted = Admitted { envelope, digest, sealed, bodies: BTreeMap::new(), missing: Vec::new() };
            return Ok(Err((Box::new(admitted), ReasonCode::TooLarge.because(text))));
        }
        Ok(Ok((envelope, acceptance)))
    }

    /// The rules of admission at one time.
    fn judge(&self, envelope: &Envelope, now: Timestamp) -> Result<(), Refused> {
        let node = &envelope.sender.node;
        let situation = Situation {
            origin: &self.origin,
            node,
            now,
            max_part_bytes: self.max_part_bytes,
            hosted: &|code| self.hosts(node, code),
            recipient: &|code| self.with_directory(|directory| directory.standing(code)),
            sender_locked: self.with_directory(|d| d.standing(&envelope.sender.agency)) == Standing::Locked,
        };
        admission::may_speak(envelope, &situation)?;
        admission::admit(envelope, &situation)
    }

    /// Issues a SubmissionRejection.
    pub async fn reject(
        &self,
        envelope: &Envelope,
        digest: Digest,
        sealed: SealedEnvelope,
        reason: Reason,
    ) -> Result<Done, ExchangeError> {
        let evidence = self.issuer.rejection(envelope, digest, reason)?;
        let sender = envelope.sender.agency.clone();
        let rejection = Rejection { sender, id: envelope.id, envelope: sealed, evidence: evidence.clone() };
        docaxis_failpoints::failpoint!("broker.reject.signed");
        let leaf = self.store.reject(rejection).await?;
        docaxis_failpoints::failpoint!("broker.reject.committed");
        self.ring_sender(&envelope.sender.agency);
        Ok(Done { intake: frame::Intake::Rejected, leaf, evidence })
    }

    /// Rejects an admitted dispatch for what its bodies turned out to be.
    pub async fn reject_admitted(&self, admitted: Box<Admitted>, reason: Reason) -> Result<Done, ExchangeError> {
        let Admitted { envelope, digest, sealed, .. } = *admitted;
        self.reject(&envelope, digest, sealed, reason).await
    }
}

/// The sizes of the bodies that follow a `Submit` inline, if they are within bounds. Known before anything is read.
pub fn inline_sizes(envelope_bytes: &[u8], inline: &[u16]) -> Result<Vec<(u16, usize)>, Reason> {
    let envelope = Envelope::parse(envelope_bytes).map_err(|e| e.reason())?;
    if inline.len() > envelope.parts.len() {
        let text = format!("{} bodies are announced for {} parts", inline.len(), envelope.parts.len());
        return Err(ReasonCode::Malformed.because(text));
    }
    let mut total = 0;
    let mut sizes = Vec::with_capacity(inline.len());
    for index in inline {
        let part = envelope.parts.get(usize::from(*index)).ok_or_else(|| {
            ReasonCode::Malformed.because(format!("part {index} is announced, but not in the envelope"))
        })?;
        let size = usize::try_from(part.size).unwrap_or(usize::MAX);
        total = usize::saturating_add(total, size);
        if size > MAX_INLINE_BODY_BYTES || total > MAX_INLINE_TOTAL_BYTES {
            let text = format!(
                "part {index} is {size} bytes, {total} with those before it; a body sent at once may have \
                 {MAX_INLINE_BODY_BYTES}, all together {MAX_INLINE_TOTAL_BYTES}"
            );
            return Err(ReasonCode::Malformed.because(text));
        }
        sizes.push((*index, size));
    }
    Ok(sizes)
}

fn check_body(envelope: &Envelope, index: u16, bytes: &[u8]) -> Result<Digest, Reason> {
    let part = envelope
        .parts
        .get(usize::from(index))
        .ok_or_else(|| ReasonCode::Malformed.because(format!("the envelope has no part {index}")))?;
    let found = Digest::of(bytes);
    if found != part.sha256 || bytes.len() as u64 != part.size {
        return Err(ReasonCode::DigestMismatch.because(format!(
            "part {:?}: sealed as {} bytes with SHA-256 {}; received {} bytes with {found}",
            part.name,
            part.size,
            part.sha256,
            bytes.len()
        )));
    }
    Ok(found)
}

fn conflict(envelope: &Envelope, known: Digest, found: Digest) -> Reason {
    ReasonCode::IdConflict.because(format!(
        "{} already sent dispatch {} with SHA-256 {known}; this one has {found}",
        envelope.sender.agency, envelope.id
    ))
}
