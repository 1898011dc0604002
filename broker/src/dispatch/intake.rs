//! Intake: from a sealed envelope to a durable acceptance, or to a refusal that says why.

use std::collections::BTreeMap;
use std::sync::Arc;

use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::frame::{self, Done};
use docaxis_protocol::limits::{
    MAX_CONTROL_FRAME_BYTES, MAX_INLINE_BODY_BYTES, MAX_INLINE_TOTAL_BYTES, MAX_LARGE_FRAME_BYTES,
};
use docaxis_protocol::{
    About, AgencyCode, Digest, Envelope, Event, Evidence, NodeId, Reason, ReasonCode, SealedEnvelope, SignedEvidence,
    Timestamp,
};

use super::{Exchange, ExchangeError, in_place};
use crate::admission::{self, Refused, Situation};
use crate::evidence::issuer::{DeliveryEvidence, Submitted, parts_of};
use crate::quota::Upload;
use crate::store::{Acceptance, Accepted, Answer, Body, Dispatch, Rejected, Rejection, Seq, StoreError};
use crate::turns::Turn;

/// A dispatch that may be submitted: its seal and every rule have been checked, its bodies not yet.
pub struct Admitted {
    pub envelope: Envelope,
    digest: Digest,
    sealed: SealedEnvelope,
    /// Small bodies that came with it, by digest.
    pub(super) bodies: BTreeMap<Digest, Vec<u8>>,
    /// Parts whose bodies must still come, by their first index in the envelope.
    pub missing: Vec<(u16, PartDigest)>,
    /// Counts what is missing as being uploaded.
    _upload: Option<Upload>,
    /// It was accepted before, and these of its bodies were lost since: nothing but they is wanted of it.
    known: Option<(Done, Vec<Digest>)>,
}

impl Admitted {
    /// Whether it was accepted before. Then bodies that are not what was sealed change nothing, and give no evidence.
    pub const fn is_known(&self) -> bool {
        self.known.is_some()
    }
}

/// What the first look at a submission gives.
pub enum Intake {
    Admitted(Box<Admitted>),
    /// It was accepted or rejected before or just now: this is the answer.
    Answered(Done),
    /// A link error.
    Refused(Reason),
}

/// A signed acceptance on its way into the store.
struct Committing {
    envelope: Envelope,
    digest: Digest,
    /// For the rejection, should the same id have been used for other bytes meanwhile.
    sealed: SealedEnvelope,
    evidence: SignedEvidence,
    /// Of a recall: the dispatch of which deliveries are withdrawn with it.
    recalled: Option<Seq>,
    answer: Answer<'static, Accepted>,
}

/// A signed acceptance, or why the dispatch may not be accepted.
type Signed = Result<Box<Committing>, (Box<Admitted>, Reason)>;

/// Room in an offer for certificates, names and lengths beside envelope and receipt.
const OFFER_OVERHEAD_BYTES: usize = 40 << 10;

enum Look {
    Admitted(Box<Admitted>, Timestamp),
    Committing(Box<Committing>),
    Known(Done),
    Rejected(Box<Envelope>, Digest, SealedEnvelope, Reason),
    Refused(Reason),
}

impl Exchange {
    /// Reads an envelope; a large one not on the link's thread. Without an envelope that reads there is nothing that
    /// evidence could be about.
    pub async fn read_envelope(&self, sealed: &SealedEnvelope) -> Result<Result<Envelope, Reason>, ExchangeError> {
        let parsed = if sealed.bytes.len() <= MAX_CONTROL_FRAME_BYTES {
            Envelope::parse(&sealed.bytes)
        } else {
            let bytes = sealed.bytes.clone();
            self.workers.run(move || Envelope::parse(&bytes)).await?
        };
        Ok(parsed.map_err(|error| error.reason()))
    }

    /// Looks at a submission and the bodies that came inline with it. One that lacks nothing is signed and queued for
    /// commit by the thread that checked it: each change of threads costs as much as a signature. `turn` passes when it is queued.
    pub async fn look(
        self: &Arc<Self>,
        node: &NodeId,
        envelope: Envelope,
        sealed: SealedEnvelope,
        inline: Vec<(u16, Vec<u8>)>,
        turn: &Turn,
    ) -> Result<Intake, ExchangeError> {
        if let Some(closed) = self.continuity.refusal() {
            return Ok(Intake::Refused(closed));
        }
        let (exchange, node) = (self.clone(), node.clone());
        let look = self.workers.run(move || exchange.examine_and_sign(&node, envelope, sealed, inline)).await??;
        Ok(match look {
            Look::Admitted(admitted, _) => Intake::Admitted(admitted),
            Look::Committing(committing) => Intake::Answered(self.conclude(*committing, turn).await?),
            Look::Known(done) => Intake::Answered(done),
            Look::Refused(reason) => Intake::Refused(reason),
            Look::Rejected(envelope, digest, sealed, reason) => {
                Intake::Answered(self.reject(&envelope, digest, sealed, reason).await?)
            }
        })
    }

    fn examine_and_sign(
        &self,
        node: &NodeId,
        envelope: Envelope,
        sealed: SealedEnvelope,
        inline: Vec<(u16, Vec<u8>)>,
    ) -> Result<Look, ExchangeError> {
        match self.examine(node, envelope, sealed, inline)? {
            Look::Admitted(admitted, judged) if admitted.missing.is_empty() && !admitted.is_known() => {
                Ok(match self.sign_acceptance(*admitted, judged)? {
                    Ok(committing) => Look::Committing(committing),
                    Err((admitted, reason)) => {
                        let Admitted { envelope, digest, sealed, .. } = *admitted;
                        Look::Rejected(Box::new(envelope), digest, sealed, reason)
                    }
                })
            }
            other => Ok(other),
        }
    }

    fn examine(
        &self,
        node: &NodeId,
        envelope: Envelope,
        sealed: SealedEnvelope,
        inline: Vec<(u16, Vec<u8>)>,
    ) -> Result<Look, ExchangeError> {
        let now = self.now();
        let hosted = |code: &_| self.hosts(node, code);
        let recipient = |code: &_| self.with_directory(|directory| directory.standing(code, now));
        let situation = Situation {
            origin: &self.origin,
            node,
            now,
            max_part_bytes: self.max_part_bytes,
            hosted: &hosted,
            recipient: &recipient,
            sender_stopped: self.with_directory(|d| d.may_not_send(&envelope.sender.agency, now)),
        };
        let digest = sealed.digest();
        let turned = |refused: Refused, envelope: Envelope, sealed: SealedEnvelope| match refused {
            Refused::Link(reason) => Look::Refused(reason),
            Refused::WithEvidence(reason) => Look::Rejected(Box::new(envelope), digest, sealed, reason),
        };
        if let Err(refused) = admission::may_speak(&envelope, &situation) {
            return Ok(turned(refused, envelope, sealed));
        }
        // A retry is answered before anything is judged: what was accepted stays accepted, even if the certificate has expired
        // since, and what was rejected stays rejected, even if it would be good by now. Evidence names the envelope by its
        // digest, so there must not be two answers to one; the seal beside it does not count.
        if let Some(known) = self.store.answered(envelope.id, digest)? {
            return match intake_of(&known.evidence)? {
                frame::Intake::Rejected => {
                    let Dispatch { seq, evidence, .. } = known;
                    Ok(Look::Known(Done { intake: frame::Intake::Rejected, leaf: seq.0, evidence }))
                }
                _ => self.known(now, &known, envelope, sealed, inline),
            };
        }
        if let Some(seq) = self.store.lookup(&envelope.sender.agency, envelope.id)?
            && let Some(known) = self.store.dispatch(seq)?
        {
            if known.envelope_sha256 == digest {
                return self.known(now, &known, envelope, sealed, inline);
            }
            if let Err(reason) = self.space.may_begin() {
                return Ok(Look::Refused(reason));
            }
            if let Err(reason) = self.quotas.submit(node, &envelope.sender.agency, now) {
                return Ok(Look::Refused(reason));
            }
            let reason = conflict(&envelope, known.envelope_sha256, digest);
            return Ok(Look::Rejected(Box::new(envelope), digest, sealed, reason));
        }
        // Before anything costs work or leaves evidence. Retries were answered above: they need no room.
        if let Err(reason) = self.space.may_begin() {
            return Ok(Look::Refused(reason));
        }
        if let Err(reason) = self.within_quota(node, &envelope, now)? {
            return Ok(Look::Refused(reason));
        }
        if let Err(error) = self.seals.check_envelope(&envelope, &sealed, now) {
            let reason = ReasonCode::BadSeal.because(error.to_string());
            return Ok(Look::Rejected(Box::new(envelope), digest, sealed, reason));
        }
        if let Err(refused) = admission::admit(&envelope, &situation) {
            return Ok(turned(refused, envelope, sealed));
        }
        if let Err(reason) = self.may_relate(&envelope)? {
            return Ok(turned(Refused::new(reason), envelope, sealed));
        }
        let mut bodies = BTreeMap::new();
        for (index, bytes) in inline {
            match check_body(&envelope, index, &bytes) {
                Ok(sha256) => drop(bodies.insert(sha256, bytes)),
                Err(reason) => return Ok(Look::Rejected(Box::new(envelope), digest, sealed, reason)),
            }
        }
        let missing = self.missing(&envelope, &bodies)?;
        let large = missing.iter().map(|(_, part)| part.size).filter(|size| *size > MAX_INLINE_BODY_BYTES as u64);
        let _upload = match large.fold(0, u64::saturating_add) {
            0 => None,
            bytes => match self.quotas.upload((node, &envelope.sender.agency), bytes, now) {
                Ok(upload) => Some(upload),
                Err(reason) => return Ok(Look::Refused(reason)),
            },
        };
        let admitted = Admitted { envelope, digest, sealed, bodies, missing, _upload, known: None };
        Ok(Look::Admitted(Box::new(admitted), now))
    }

    /// Whether node and agency may submit one more, and let so much more wait. The seal has not been checked: whoever may
    /// speak for the agency can use up its quota anyway.
    fn within_quota(
        &self,
        node: &NodeId,
        envelope: &Envelope,
        now: Timestamp,
    ) -> Result<Result<(), Reason>, StoreError> {
        let agency = &envelope.sender.agency;
        let too_large = envelope.parts.iter().any(|part| part.size > self.max_part_bytes);
        // What is to be rejected anyhow is not told to come again.
        let own = match too_large || envelope.expires <= now {
            true => 0,
            false => envelope.parts.iter().map(|part| part.size).fold(0, u64::saturating_add),
        };
        let of_node = || {
            let hosted = self.with_directory(|directory| directory.hosted_by(node));
            hosted.iter().try_fold(0u64, |sum, agency| Ok(sum.saturating_add(self.store.unfinished_bytes(agency)?)))
        };
        let waits = self.quotas.wait((node, agency), own, now, || self.store.unfinished_bytes(agency), of_node)?;
        Ok(waits.and_then(|()| self.quotas.submit(node, agency, now)))
    }

    /// A retry of what was accepted: the receipt of then, or first the bodies that were lost since.
    fn known(
        &self,
        now: Timestamp,
        known: &Dispatch,
        envelope: Envelope,
        sealed: SealedEnvelope,
        inline: Vec<(u16, Vec<u8>)>,
    ) -> Result<Look, ExchangeError> {
        let done = Done { intake: frame::Intake::Already, leaf: known.seq.0, evidence: known.evidence.clone() };
        let mut missing = self.lost_parts(known)?;
        if missing.is_empty() {
            return Ok(Look::Known(done));
        }
        let lost: Vec<Digest> = missing.iter().map(|(_, part)| part.sha256).collect();
        let mut bodies = BTreeMap::new();
        for (index, bytes) in inline {
            // One that is not what was sealed is asked for by itself; the retry is no worse for it.
            if let Ok(sha256) = check_body(&envelope, index, &bytes)
                && lost.contains(&sha256)
            {
                missing.retain(|(_, part)| part.sha256 != sha256);
                bodies.insert(sha256, bytes);
            }
        }
        let (digest, known) = (known.envelope_sha256, Some((done, lost)));
        Ok(Look::Admitted(Box::new(Admitted { envelope, digest, sealed, bodies, missing, _upload: None, known }), now))
    }

    /// Parts whose bodies are neither here inline nor large ones that this same agency uploaded before. A digest alone never
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

    /// Notes that a large body is durable in the blob store, or will be there by its name before the dispatch is accepted.
    pub fn took_blob(admitted: &mut Admitted, sha256: Digest) {
        admitted.missing.retain(|(_, part)| part.sha256 != sha256);
    }

    /// Commits an admitted dispatch whose bodies are all there, and answers with its receipt. It is judged once more at
    /// the time that the evidence will name: a large body may have taken longer than the dispatch, the seal or a lock
    /// allowed.
    pub async fn accept(self: &Arc<Self>, mut admitted: Box<Admitted>, turn: &Turn) -> Result<Done, ExchangeError> {
        if let Some((done, lost)) = admitted.known.take() {
            return self.restore(*admitted, lost, done).await;
        }
        let exchange = self.clone();
        let signed = self.workers.run(move || {
            let now = exchange.now();
            match exchange.judge_again(&admitted, now)? {
                Ok(()) => exchange.sign_acceptance(*admitted, now),
                Err(reason) => Ok(Err((admitted, reason))),
            }
        });
        match signed.await?? {
            Ok(committing) => self.conclude(*committing, turn).await,
            Err((admitted, reason)) => self.reject_admitted(admitted, reason).await,
        }
    }

    fn judge_again(&self, admitted: &Admitted, now: Timestamp) -> Result<Result<(), Reason>, StoreError> {
        if let Err(error) = self.seals.check_envelope(&admitted.envelope, &admitted.sealed, now) {
            return Ok(Err(ReasonCode::BadSeal.because(error.to_string())));
        }
        match self.judge(&admitted.envelope, now) {
            Ok(()) => self.may_relate(&admitted.envelope),
            Err(refused) => Ok(Err(refused.reason().clone())),
        }
    }

    /// Waits for the commit. The receipt leaves only after it.
    async fn conclude(self: &Arc<Self>, committing: Committing, turn: &Turn) -> Result<Done, ExchangeError> {
        let Committing { envelope, digest, sealed, evidence, recalled, answer } = committing;
        let done = match in_place(answer, || turn.pass()).await? {
            Accepted::New(seq) => {
                // Large bodies are shared: another dispatch may have waited for one of these.
                let large = envelope.parts.iter().filter(|part| part.size > MAX_INLINE_BODY_BYTES as u64);
                let large = large.map(|part| part.sha256).collect();
                self.bodies_are_here(None, vec![], large).await?;
                self.ring_recipients(envelope.recipients.iter());
                self.ring_sender(&envelope.sender.agency);
                recalled.map_or(Ok(()), |seq| self.forget_if_over(seq))?;
                Done { intake: frame::Intake::Accepted, leaf: seq.0, evidence }
            }
            Accepted::Already(seq, evidence) => {
                let intake = intake_of(&evidence)?;
                if intake == frame::Intake::Already {
                    self.ring_recipients(envelope.recipients.iter());
                }
                Done { intake, leaf: seq.0, evidence }
            }
            Accepted::Conflict { envelope_sha256 } => {
                let reason = conflict(&envelope, envelope_sha256, digest);
                self.reject(&envelope, digest, sealed, reason).await?
            }
        };
        docaxis_failpoints::failpoint!("broker.accept.committed");
        Ok(done)
    }

    /// Signs the acceptance of a dispatch whose bodies are all here and which was judged at `accepted`, and queues it.
    fn sign_acceptance(&self, admitted: Admitted, accepted: Timestamp) -> Result<Signed, ExchangeError> {
        let Admitted { envelope, digest, sealed, bodies, .. } = admitted;
        let evidence = self.issuer.acceptance(&envelope, digest, accepted)?;
        let mut failed = match envelope.partial {
            true => self.fail_unreachable(&envelope, digest, accepted, &evidence)?,
            false => BTreeMap::new(),
        };
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
            recipients: envelope.recipients.iter().map(|code| (code.clone(), failed.remove(code))).collect(),
        };
        let offered = acceptance.envelope.bytes.len() + acceptance.evidence.bytes.len() + OFFER_OVERHEAD_BYTES;
        if offered > MAX_LARGE_FRAME_BYTES {
            let text = format!(
                "envelope and receipt are {offered} bytes together; an offer has room for {MAX_LARGE_FRAME_BYTES}"
            );
            let Acceptance { envelope: sealed, .. } = acceptance;
            let (bodies, missing, known) = (BTreeMap::new(), Vec::new(), None);
            let admitted = Admitted { envelope, digest, sealed, bodies, missing, _upload: None, known };
            return Ok(Err((Box::new(admitted), ReasonCode::TooLarge.because(text))));
        }
        let (sealed, evidence) = (acceptance.envelope.clone(), acceptance.evidence.clone());
        docaxis_failpoints::failpoint!("broker.accept.signed");
        let recalled = match envelope.about() {
            Ok(About::Recall(id)) => self.earlier(id, &envelope, true)?,
            _ => None,
        };
        let answer = match &recalled {
            None => self.store.accept(acceptance),
            Some(recalled) => {
                let withdrawals = self.withdrawals(&envelope, digest, recalled, accepted)?;
                self.store.recall(acceptance, withdrawals)
            }
        };
        let recalled = recalled.map(|recalled| recalled.seq);
        Ok(Ok(Box::new(Committing { envelope, digest, sealed, evidence, recalled, answer })))
    }

    /// Evidence of each recipient that a partial submission does not reach: it stands in the same record as the acceptance,
    /// which it follows.
    fn fail_unreachable(
        &self,
        envelope: &Envelope,
        digest: Digest,
        accepted: Timestamp,
        acceptance: &SignedEvidence,
    ) -> Result<BTreeMap<AgencyCode, SignedEvidence>, ExchangeError> {
        let standing = |code: &AgencyCode| self.with_directory(|directory| directory.standing(code, accepted));
        let mut failed = BTreeMap::new();
        for (recipient, reason) in admission::unreachable(envelope, &standing) {
            let about = DeliveryEvidence {
                event: Event::ContentHandoverFailure,
                recipient: recipient.clone(),
                previous: acceptance.digest(),
                not_before: accepted,
                reasons: vec![reason],
                statement: None,
                cause: None,
                late_after: None,
            };
            let of = Submitted {
                id: envelope.id,
                envelope_sha256: digest,
                sender: &envelope.sender.agency,
                parts: parts_of(envelope),
                accepted,
                expires: envelope.expires,
            };
            failed.insert(recipient.clone(), self.issuer.delivery_of(of, about)?.0);
        }
        Ok(failed)
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
            recipient: &|code| self.with_directory(|directory| directory.standing(code, now)),
            sender_stopped: self.with_directory(|d| d.may_not_send(&envelope.sender.agency, now)),
        };
        admission::may_speak(envelope, &situation)?;
        admission::admit(envelope, &situation)
    }

    /// Issues a SubmissionRejection, if nothing was answered to this envelope yet.
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
        let done = match self.store.reject(rejection).await? {
            Rejected::New(leaf) => Done { intake: frame::Intake::Rejected, leaf, evidence },
            Rejected::Already(seq, evidence) => Done { intake: intake_of(&evidence)?, leaf: seq.0, evidence },
        };
        docaxis_failpoints::failpoint!("broker.reject.committed");
        self.ring_sender(&envelope.sender.agency);
        Ok(done)
    }

    /// Rejects an admitted dispatch for what its bodies turned out to be.
    pub async fn reject_admitted(&self, admitted: Box<Admitted>, reason: Reason) -> Result<Done, ExchangeError> {
        let Admitted { envelope, digest, sealed, .. } = *admitted;
        self.reject(&envelope, digest, sealed, reason).await
    }
}

/// The sizes of the bodies that follow a `Submit` inline, if they are within bounds. Known before anything is read.
pub fn inline_sizes(envelope: &Envelope, inline: &[u16]) -> Result<Vec<(u16, usize)>, Reason> {
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

/// How a retry is answered, by the evidence of its first try.
fn intake_of(evidence: &SignedEvidence) -> Result<frame::Intake, ExchangeError> {
    Ok(match Evidence::parse(&evidence.bytes)?.event {
        Event::SubmissionRejection => frame::Intake::Rejected,
        _ => frame::Intake::Already,
    })
}

fn conflict(envelope: &Envelope, known: Digest, found: Digest) -> Reason {
    ReasonCode::IdConflict.because(format!(
        "{} already sent dispatch {} with SHA-256 {known}; this one has {found}",
        envelope.sender.agency, envelope.id
    ))
}
