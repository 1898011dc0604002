//! Leaves that nodes give back, checked: our own signature on the evidence, the sender's and the recipient's seals, and,
//! where there is a proof, the place in the log.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use docaxis_protocol::frame::GivenLeaf;
use docaxis_protocol::key::{PublicKey, RawSignature};
use docaxis_protocol::tlog::{TlogProof, VerifierKey};
use docaxis_protocol::{Digest, Envelope, Event, Evidence, Origin, SealedEnvelope, SealedStatement};

use crate::evidence::issuer::parts_of;
use crate::seals::Seals;
use crate::store::{Acceptance, DeliveryState, Rejection};

/// A leaf that may be taken up again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub leaf: u64,
    /// Its entry in the log.
    pub entry: Digest,
    /// Whether a checkpoint of ours shows that it stands at this place.
    pub proven: bool,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Accepted(Box<Acceptance>),
    Rejected(Box<Rejection>),
    /// An event in a delivery's life; where it belongs is known when what it follows is in the store.
    Event(Box<Earlier>),
}

/// An event as evidence has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Earlier {
    pub signed: docaxis_protocol::SignedEvidence,
    pub evidence: Evidence,
    pub statement: Option<SealedStatement>,
}

/// What leaves are checked against.
pub struct Checks<'a> {
    pub origin: &'a Origin,
    pub evidence_key: &'a PublicKey,
    pub log: &'a VerifierKey,
    pub seals: &'a Seals,
}

impl Checks<'_> {
    /// Checks one leaf; an error says in words why it cannot be taken up.
    pub fn check(&self, given: GivenLeaf) -> Result<Piece, String> {
        let evidence = given.evidence.verify(self.evidence_key).map_err(|e| e.to_string())?;
        if evidence.issuer != *self.origin {
            return Err(format!("it is evidence of {}", evidence.issuer));
        }
        let entry = given.evidence.log_entry();
        let proven = match &given.proof {
            Some(text) => self.prove(text, given.leaf, entry)?,
            None => false,
        };
        let what = match evidence.event {
            Event::SubmissionAcceptance | Event::SubmissionRejection => {
                let sealed = given.envelope.ok_or("the envelope that it is about is not with it")?;
                self.submission(evidence, given.evidence, sealed)?
            }
            _ => {
                let statement = self.statement(&evidence, given.statement_chain)?;
                What::Event(Box::new(Earlier { signed: given.evidence, evidence, statement }))
            }
        };
        Ok(Piece { leaf: given.leaf, entry, proven, what })
    }

    fn prove(&self, text: &str, leaf: u64, entry: Digest) -> Result<bool, String> {
        let proof = TlogProof::parse(text).and_then(|proof| proof.verify(entry.as_bytes(), self.log, &[], 0));
        match proof {
            Ok(proof) if proof.index == leaf => Ok(true),
            Ok(proof) => Err(format!("its proof shows leaf {}", proof.index)),
            Err(error) => Err(format!("its proof does not hold: {error}")),
        }
    }

    fn submission(
        &self,
        evidence: Evidence,
        signed: docaxis_protocol::SignedEvidence,
        sealed: SealedEnvelope,
    ) -> Result<What, String> {
        let envelope = Envelope::parse(&sealed.bytes).map_err(|e| e.to_string())?;
        let digest = sealed.digest();
        if digest != evidence.envelope_sha256 || envelope.id != evidence.dispatch {
            return Err("the envelope with it is another one".to_owned());
        }
        if evidence.event == Event::SubmissionRejection {
            // It may have been rejected for its seal: that is judged no further.
            let rejection = Rejection { sender: evidence.sender, id: envelope.id, envelope: sealed, evidence: signed };
            return Ok(What::Rejected(Box::new(rejection)));
        }
        self.seals.check_envelope(&envelope, &sealed, evidence.time).map_err(|e| e.to_string())?;
        let acceptance = Acceptance {
            sender: evidence.sender,
            id: envelope.id,
            node: envelope.sender.node.clone(),
            accepted: evidence.time,
            expires: envelope.expires,
            priority: envelope.priority,
            envelope_sha256: digest,
            parts: parts_of(&envelope),
            envelope: sealed,
            bodies: Vec::new(),
            evidence: signed,
            recipients: envelope.recipients.into_iter().map(|code| (code, None)).collect(),
        };
        Ok(What::Accepted(Box::new(acceptance)))
    }

    /// The statement inside evidence, with the certificates that came beside it.
    fn statement(
        &self,
        evidence: &Evidence,
        chain: Option<docaxis_protocol::envelope::Chain>,
    ) -> Result<Option<SealedStatement>, String> {
        let Some(stated) = &evidence.statement else { return Ok(None) };
        let recipient = evidence.recipient.as_ref().ok_or("it names no recipient")?;
        // That this one may act for the recipient was looked at before our signature was put under it.
        let speaker = evidence.acting.as_ref().unwrap_or(recipient);
        let decode = |text: &str| STANDARD.decode(text).map_err(|e| e.to_string());
        let signature = RawSignature::from_slice(&decode(&stated.signature)?).map_err(|e| e.to_string())?;
        let chain = chain.ok_or("the certificates of the recipient's seal are not with it")?;
        let sealed = SealedStatement { bytes: decode(&stated.bytes)?, signature, chain };
        let key = self.seals.check_statement(speaker, &sealed, evidence.time).map_err(|e| e.to_string())?;
        if key.id() != stated.key {
            return Err("the certificates with it are of another key".to_owned());
        }
        Ok(Some(sealed))
    }
}

/// The delivery after an event, as it was before the data was put back.
pub fn state_after(before: DeliveryState, evidence: &Evidence) -> DeliveryState {
    let because = |code: &str| evidence.reasons.iter().any(|reason| reason.code == code);
    match evidence.event {
        _ if evidence.late => before,
        Event::ContentHandover => DeliveryState::HandedOver,
        Event::ContentHandoverFailure if because("expired") => DeliveryState::Expired,
        Event::ContentHandoverFailure if because("withdrawn") => DeliveryState::Withdrawn,
        Event::ContentHandoverFailure => DeliveryState::Failed,
        Event::Registered => DeliveryState::Registered,
        Event::Refused => DeliveryState::Refused,
        Event::NoAnswer => DeliveryState::NoAnswer,
        _ => before,
    }
}
