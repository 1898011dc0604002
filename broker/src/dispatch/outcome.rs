//! Outcomes: a recipient's statement, or time, becomes evidence about a delivery, exactly once.
//!
//! The decision is made from the delivery as it is durable; the store refuses the record if the chain has moved on
//! meanwhile, and it is decided again. So of two outcomes that race, one wins and the evidence says which.

use std::sync::Arc;

use docaxis_protocol::evidence::{PartDigest, StatementInEvidence};
use docaxis_protocol::frame::{Offer, Outcome, Standing};
use docaxis_protocol::limits::{MAX_CLOCK_SKEW, MAX_INLINE_BODY_BYTES, MAX_INLINE_TOTAL_BYTES};
use docaxis_protocol::{
    AgencyCode, Envelope, Event, Evidence, Kind, NodeId, Reason, ReasonCode, SealedStatement, SignedEvidence, Statement,
};

use super::{Exchange, ExchangeError, Way, in_place};
use crate::delivery::{Decision, Stated, on_statement, on_time};
use crate::directory::Directory;
use crate::evidence::issuer::DeliveryEvidence;
use crate::store::{
    BodySource, Delivery, DeliveryState, Dispatch, Record, Recorded, Seq, StoreError, StoredEvidence, Waiting,
};

/// How often a decision is made again because the chain moved on. Each time somebody else's outcome was recorded, and
/// a delivery has only a handful of them in its life.
const MAX_ROUNDS: usize = 16;
/// Expiries recorded in one go.
const EXPIRY_BATCH: usize = 256;

/// A statement that was checked: it is about a known delivery, and sealed by the recipient.
struct Checked {
    node: NodeId,
    stated: Stated,
    recipient: AgencyCode,
    /// Who speaks for the recipient, if it was merged.
    acting: Option<AgencyCode>,
    dispatch: Dispatch,
    sealed: SealedStatement,
    in_evidence: StatementInEvidence,
}

/// A delivery as it was read.
struct Stand {
    delivery: Delivery,
    chain: Vec<(StoredEvidence, Evidence)>,
}

/// What is offered to a node: the frame, and the bodies that go with it at once.
pub struct Offering {
    pub offer: Offer,
    pub bodies: Vec<Vec<u8>>,
    pub dispatch: Dispatch,
}

/// What there is to offer for a waiting delivery.
pub enum Prepared {
    Offer(Box<Offering>),
    /// It no longer waits, or has expired.
    NoLongerDue,
    /// Its appointed time is still to come; whether that is remembered.
    NotYet(bool),
    /// Bodies are damaged or missing.
    Lost(Box<Dispatch>, Vec<(u16, PartDigest)>),
}

/// Something that was handed over, for a node that has lost it.
pub struct Again {
    /// Of the handover.
    pub leaf: u64,
    pub seq: Seq,
    pub recipient: AgencyCode,
    pub time: docaxis_protocol::Timestamp,
    pub dispatch: docaxis_protocol::DispatchId,
    pub sender: AgencyCode,
}

impl Exchange {
    /// Takes a statement from `node`. The inner error is for the node: nothing was recorded. A handover is recorded behind those
    /// of earlier dispatches of the same sender, recipient and priority: one in answer to an offer waits a while for those under
    /// way, and if one of them is still to come, it is refused as `busy`.
    pub async fn state(
        self: &Arc<Self>,
        node: &NodeId,
        sealed: SealedStatement,
        way: Way<'_>,
    ) -> Result<Result<Outcome, Reason>, ExchangeError> {
        if let Some(closed) = self.continuity.refusal() {
            return Ok(Err(closed));
        }
        let (exchange, node) = (self.clone(), node.clone());
        let look = move || {
            Ok::<_, ExchangeError>(match exchange.check_statement(&node, sealed)? {
                Ok(checked) => exchange.stand(&checked).map(|stand| Ok((Arc::new(checked), stand)))?,
                Err(reason) => Err(reason),
            })
        };
        let (checked, stand) = match self.workers.run(look).await?? {
            Ok(looked) => looked,
            Err(reason) => return Ok(Err(reason)),
        };
        // What is not recorded anyhow is refused for its own reason.
        let first = checked.stated.event == Event::ContentHandover
            && stand.delivery.state.is_waiting()
            && self.is_answered_for(&checked);
        if first && !self.is_its_turn(&checked.dispatch, &checked.recipient, way).await? {
            let text = "earlier dispatches of the same sender are to be handed over before this one";
            return Ok(Err(ReasonCode::Busy.because(text)));
        }
        let queued = || {
            if let Way::Offered(turn) = way {
                turn.pass();
            }
        };
        let mut read = Some(stand);
        for _ in 0..MAX_ROUNDS {
            let stand = match read.take() {
                Some(stand) => stand,
                None => {
                    // Reads from the disk: not on the link's thread.
                    let (exchange, about) = (self.clone(), checked.clone());
                    self.workers.run(move || exchange.stand(&about)).await??
                }
            };
            if let Some(settled) = self.settle(&checked, stand, &queued).await? {
                if settled.is_ok() {
                    queued();
                }
                return Ok(settled);
            }
        }
        Ok(Err(ReasonCode::Busy.because("the delivery changed again and again meanwhile")))
    }

    /// Whether it comes from whoever answers for the recipient now.
    fn is_answered_for(&self, Checked { recipient, acting, .. }: &Checked) -> bool {
        self.with_directory(|directory| directory.answers_for(recipient) == acting.as_ref().unwrap_or(recipient))
    }

    fn check_statement(
        &self,
        node: &NodeId,
        sealed: SealedStatement,
    ) -> Result<Result<Checked, Reason>, ExchangeError> {
        let refuse = |code: ReasonCode, text: String| Ok(Err(code.because(text)));
        let statement = match Statement::parse(&sealed.bytes) {
            Ok(statement) => statement,
            Err(error) => return refuse(ReasonCode::Malformed, error.to_string()),
        };
        // The evidence repeats the reasons; a verifier compares them with the statement's to the letter.
        let said: serde_json::Value = serde_json::from_slice(&sealed.bytes).unwrap_or_default();
        let repeated = serde_json::to_value(&statement.reasons).unwrap_or_default();
        if !statement.reasons.is_empty() && said.get("reasons") != Some(&repeated) {
            return refuse(ReasonCode::Malformed, "a reason has exactly a code and a text".into());
        }
        let recipient = statement.recipient;
        if statement.exchange != self.origin {
            let found = statement.exchange;
            return refuse(ReasonCode::Malformed, format!("stated for exchange {found}; this is {}", self.origin));
        }
        let now = self.now();
        let speaker = statement.acting.as_ref().unwrap_or(&recipient);
        if !self.hosts(node, speaker) {
            return refuse(ReasonCode::NotYours, format!("node {node} may not speak for {speaker}"));
        }
        if let Some(acting) = &statement.acting {
            let since = |d: &Directory| d.succession(&recipient, acting).map(|sealed| sealed.said().since);
            match self.with_directory(since) {
                None => {
                    let text = format!("the authority has not signed that {acting} answers for {recipient}");
                    return refuse(ReasonCode::NotYours, text);
                }
                Some(since) if since > now => {
                    return refuse(ReasonCode::Busy, format!("{acting} answers for {recipient} from {since} on"));
                }
                Some(_) => {}
            }
        }
        // Whoever is not a recipient learns nothing about the dispatch, not even that it exists.
        let Some(dispatch) = self.dispatch_of(&statement.dispatch, statement.envelope_sha256, &recipient)? else {
            let text = format!("{recipient} is no recipient of dispatch {} with that envelope", statement.dispatch);
            return refuse(ReasonCode::NotYours, text);
        };
        if !matches!(statement.event, Event::ContentHandover | Event::ContentHandoverFailure) {
            let read = Envelope::parse(&dispatch.envelope.bytes);
            let read =
                read.map_err(|error| StoreError::Damaged(format!("dispatch {} as stored: {error}", dispatch.id)))?;
            if read.kind == Kind::Status {
                return refuse(
                    ReasonCode::Malformed,
                    format!("dispatch {} is a status: nobody answers it", dispatch.id),
                );
            }
        }
        let (earliest, latest) = (dispatch.accepted.minus(MAX_CLOCK_SKEW), now.plus(MAX_CLOCK_SKEW));
        if statement.time < earliest || statement.time > latest {
            let text = format!("stated at {}; expected between {earliest} and {latest}", statement.time);
            return refuse(ReasonCode::ClockSkew, text);
        }
        let key = match self.seals.check_statement(speaker, &sealed, now) {
            Ok(key) => key,
            Err(error) => return refuse(ReasonCode::BadSeal, error.to_string()),
        };
        let stated = Stated { event: statement.event, reasons: statement.reasons };
        let in_evidence = StatementInEvidence::new(&sealed, &key);
        Ok(Ok(Checked {
            node: node.clone(),
            stated,
            recipient,
            acting: statement.acting,
            dispatch,
            sealed,
            in_evidence,
        }))
    }

    /// The accepted dispatch with this id and envelope that has a delivery to this recipient.
    pub fn dispatch_of(
        &self,
        id: &docaxis_protocol::DispatchId,
        envelope_sha256: docaxis_protocol::Digest,
        recipient: &AgencyCode,
    ) -> Result<Option<Dispatch>, StoreError> {
        for seq in self.store.find(*id)? {
            if self.store.delivery(seq, recipient)?.is_none() {
                continue;
            }
            if let Some(dispatch) = self.store.dispatch(seq)?
                && dispatch.envelope_sha256 == envelope_sha256
            {
                return Ok(Some(dispatch));
            }
        }
        Ok(None)
    }

    /// The delivery that a statement is about, and its evidence.
    fn stand(&self, checked: &Checked) -> Result<Stand, ExchangeError> {
        let (seq, who) = (checked.dispatch.seq, &checked.recipient);
        Ok(Stand { delivery: self.delivery(seq, who)?, chain: self.chain_of(seq, who)? })
    }

    /// One round: decides from the delivery as it was read; `None` if it changed meanwhile.
    async fn settle(
        &self,
        checked: &Checked,
        Stand { delivery, chain }: Stand,
        queued: &(dyn Fn() + Send + Sync),
    ) -> Result<Option<Result<Outcome, Reason>>, ExchangeError> {
        let Checked { node, stated, recipient, acting, dispatch, sealed, in_evidence } = checked;
        // Read one after the other: if an outcome came in between, both are read again.
        if chain.last().is_some_and(|(piece, _)| piece.evidence.digest() != delivery.head) {
            return Ok(None);
        }
        if let Some((piece, _)) = chain.iter().find(|(_, evidence)| evidence.statement.as_ref() == Some(in_evidence)) {
            // These very bytes were recorded before. A late handover is on record, but the outcome is what counts.
            let of_outcome = outcome_event(delivery.state).filter(|_| stated.event == Event::ContentHandover);
            let counts = of_outcome.and_then(|event| newest(&chain, event)).map(|(piece, _)| piece).unwrap_or(piece);
            return Ok(Some(Ok(answer(counts, delivery.state))));
        }
        if stated.event == Event::ContentAccessTracking
            && let Some((piece, _)) = newest(&chain, stated.event)
        {
            // Only the first opening counts.
            return Ok(Some(Ok(answer(piece, delivery.state))));
        }
        // The first word is for whoever answers now. One that was durable elsewhere before a merge comes too late: nothing
        // was shown there, and the dispatch is offered to the successor.
        let speaker = acting.as_ref().unwrap_or(recipient);
        let first = chain.iter().all(|(_, evidence)| evidence.statement.is_none());
        if first && !self.is_answered_for(checked) {
            let text = format!("{speaker} does not answer for {recipient} any more");
            return Ok(Some(Err(ReasonCode::NotYours.because(text))));
        }
        let decision = on_statement(delivery.state, stated, self.now(), dispatch.expires);
        // Who took it answers for it to the end, whatever is merged meanwhile: a bundle proves one succession. A node that
        // took it under another of its seals and lost it is told what was recorded then.
        if let Some((_, earlier)) = chain.iter().find(|(_, evidence)| evidence.statement.is_some())
            && earlier.acting != *acting
            && !(matches!(decision, Decision::Answer { event: Event::ContentHandover })
                && self.hosts(node, earlier.acting.as_ref().unwrap_or(recipient)))
        {
            let (ours, theirs) = (acting.as_ref().unwrap_or(recipient), earlier.acting.as_ref().unwrap_or(recipient));
            let text = format!("{theirs} answered about this dispatch before, so {ours} may not");
            return Ok(Some(Err(ReasonCode::NotYours.because(text))));
        }
        let mut about = DeliveryEvidence {
            event: stated.event,
            recipient: recipient.clone(),
            previous: delivery.head,
            not_before: delivery.head_time,
            reasons: Vec::new(),
            statement: Some(in_evidence.clone()),
            cause: None,
            late_after: None,
        };
        let (state, statement) = match decision {
            Decision::Refuse(reason) => return Ok(Some(Err(reason))),
            Decision::Nothing => {
                return Ok(Some(Err(ReasonCode::Other.because("nothing is to be recorded"))));
            }
            Decision::Answer { event } => {
                let Some((piece, _)) = newest(&chain, event) else {
                    let text = format!("dispatch {} is {:?} without evidence of {event}", dispatch.id, delivery.state);
                    return Err(StoreError::Damaged(text).into());
                };
                return Ok(Some(Ok(answer(piece, delivery.state))));
            }
            Decision::Record { event, state, reasons } => {
                // An expiry is the broker's own word, even when a statement that came too late brought it up.
                let own_word = state == DeliveryState::Expired;
                about.event = event;
                about.reasons = reasons;
                if own_word {
                    about.not_before = about.not_before.max(dispatch.expires);
                }
                about.statement = about.statement.filter(|_| !own_word);
                (state, (!own_word).then(|| sealed.clone()))
            }
            // One late handover is on record; the same node saying it again with another time adds nothing.
            Decision::RecordLate { .. } if newest(&chain, Event::ContentHandover).is_some() => {
                let Some((piece, _)) = newest(&chain, Event::ContentHandoverFailure) else {
                    let text = format!("dispatch {} failed without evidence of it", dispatch.id);
                    return Err(StoreError::Damaged(text).into());
                };
                return Ok(Some(Ok(answer(piece, delivery.state))));
            }
            Decision::RecordLate { state } => {
                about.late_after = newest(&chain, Event::ContentHandoverFailure).map(|(_, evidence)| evidence.id);
                (state, Some(sealed.clone()))
            }
        };
        let (own_word, late) = (statement.is_none(), about.late_after.is_some());
        let Some((leaf, evidence)) = self.record(dispatch, about, statement, state, queued).await? else {
            return Ok(None);
        };
        if own_word {
            // The expiry is recorded; the statement itself is now judged in that state.
            return Ok(None);
        }
        let standing = if stated.event == Event::ContentAccessTracking { Standing::Opened } else { standing_of(state) };
        // A late handover is on record now, but what the node needs is the outcome that stands.
        let outcome = newest(&chain, Event::ContentHandoverFailure).filter(|_| late);
        Ok(Some(Ok(outcome.map_or(Outcome { standing, leaf, evidence }, |(piece, _)| answer(piece, state)))))
    }

    /// Signs and commits one piece of evidence; `None` if the chain moved on first. `queued` is called when it has its place
    /// among what the store is asked to do.
    pub(super) async fn record(
        &self,
        dispatch: &Dispatch,
        about: DeliveryEvidence,
        statement: Option<SealedStatement>,
        state: DeliveryState,
        queued: &(dyn Fn() + Send + Sync),
    ) -> Result<Option<(u64, SignedEvidence)>, ExchangeError> {
        let (recipient, event, previous) = (about.recipient.clone(), about.event, about.previous);
        let (evidence, time) = self.issuer.delivery(dispatch, about)?;
        docaxis_failpoints::failpoint!("broker.record.signed");
        let record = Record {
            seq: dispatch.seq.0,
            recipient,
            event,
            time,
            previous,
            evidence: evidence.clone(),
            statement,
            state,
        };
        match in_place(self.store.record(record), queued).await? {
            Recorded::New(leaf) => {
                docaxis_failpoints::failpoint!("broker.record.committed");
                self.ring_sender(&dispatch.sender);
                Ok(Some((leaf, evidence)))
            }
            Recorded::Stale(_) => Ok(None),
        }
    }

    pub(super) fn delivery(&self, seq: Seq, recipient: &AgencyCode) -> Result<Delivery, StoreError> {
        self.store
            .delivery(seq, recipient)?
            .ok_or_else(|| StoreError::Damaged(format!("the delivery of dispatch {} to {recipient} is gone", seq.0)))
    }

    /// The evidence in one recipient's chain, oldest first.
    fn chain_of(&self, seq: Seq, recipient: &AgencyCode) -> Result<Vec<(StoredEvidence, Evidence)>, ExchangeError> {
        let mut chain = Vec::new();
        for piece in self.store.chain(seq, recipient)? {
            let evidence = Evidence::parse(&piece.evidence.bytes)?;
            chain.push((piece, evidence));
        }
        Ok(chain)
    }

    /// Records the expiry of everything that waited too long. Returns how many there were.
    pub async fn expire_due(&self) -> Result<usize, ExchangeError> {
        if !self.continuity.is_open() {
            return Ok(0);
        }
        let due = self.store.expired(self.now(), EXPIRY_BATCH)?;
        let mut done = 0;
        for Waiting { recipient, seq, .. } in due {
            let Some(dispatch) = self.store.dispatch(seq)? else {
                return Err(StoreError::Damaged(format!("dispatch {} waits but is gone", seq.0)).into());
            };
            let delivery = self.delivery(seq, &recipient)?;
            if let Decision::Record { event, state, reasons } = on_time(delivery.state, self.now(), dispatch.expires) {
                docaxis_failpoints::failpoint!("broker.expire.due");
                let about = DeliveryEvidence {
                    event,
                    recipient,
                    previous: delivery.head,
                    // Decided by one look at the clock and dated by another: never dated before the expiry.
                    not_before: delivery.head_time.max(dispatch.expires),
                    reasons,
                    statement: None,
                    cause: None,
                    late_after: None,
                };
                done += usize::from(self.record(&dispatch, about, None, state, &|| ()).await?.is_some());
                docaxis_failpoints::failpoint!("broker.expire.recorded");
                self.forget_if_over(seq)?;
            }
        }
        Ok(done)
    }

    /// What is offered to `node` for a waiting delivery. Nothing is offered of which a body is known to be lost, nor to a node
    /// whose agency it is no longer.
    pub fn offering(&self, waiting: &Waiting, node: &NodeId) -> Result<Prepared, ExchangeError> {
        let (seq, recipient) = (waiting.seq, &waiting.recipient);
        if self.with_directory(|directory| directory.serving_node(recipient) != Some(node)) {
            return Ok(Prepared::NoLongerDue);
        }
        let still = self.store.delivery(seq, recipient)?.is_some_and(|delivery| delivery.state.is_waiting());
        let Some(dispatch) = self.store.dispatch(seq)?.filter(|dispatch| still && dispatch.expires > self.now()) else {
            return Ok(Prepared::NoLongerDue);
        };
        if let Some(noted) = self.is_early(&dispatch)? {
            return Ok(Prepared::NotYet(noted));
        }
        self.offer_of(dispatch, recipient)
    }

    /// The same for what was handed over before and lost by its recipient; none if the bodies are gone.
    pub fn offering_again(&self, seq: Seq, recipient: &AgencyCode) -> Result<Option<Offering>, ExchangeError> {
        let Some(dispatch) = self.store.dispatch(seq)? else { return Ok(None) };
        Ok(match self.offer_of(dispatch, recipient)? {
            Prepared::Offer(offering) => Some(*offering),
            Prepared::NoLongerDue | Prepared::NotYet(_) | Prepared::Lost(..) => None,
        })
    }

    /// What was handed over to agencies of this node at the next leaves from `from` on, and where to go on.
    pub fn handed_over_since(
        &self,
        node: &NodeId,
        from: u64,
        limit: usize,
    ) -> Result<(u64, Vec<Again>), ExchangeError> {
        let (next, found) = self.store.handovers(from, limit)?;
        let mut again = Vec::new();
        for StoredEvidence { leaf, seq, recipient, evidence, .. } in found {
            let may = |recipient: &AgencyCode| self.with_directory(|d| d.may_have_taken(node, recipient));
            let Some(recipient) = recipient.filter(may) else { continue };
            let Evidence { time, dispatch, sender, late, acting, .. } = Evidence::parse(&evidence.bytes)?;
            if !late && self.hosts(node, acting.as_ref().unwrap_or(&recipient)) {
                again.push(Again { leaf, seq, recipient, time, dispatch, sender });
            }
        }
        Ok((next, again))
    }

    fn offer_of(&self, dispatch: Dispatch, recipient: &AgencyCode) -> Result<Prepared, ExchangeError> {
        let (mut inline, mut bodies, mut total) = (Vec::new(), Vec::new(), 0usize);
        for (index, part) in (0u16..).zip(&dispatch.parts) {
            let size = usize::try_from(part.size).unwrap_or(usize::MAX);
            let small = size <= MAX_INLINE_BODY_BYTES;
            if small && total.saturating_add(size) > MAX_INLINE_TOTAL_BYTES {
                continue;
            }
            match self.store.body(dispatch.seq, part)? {
                Some(BodySource::Inline(bytes)) => {
                    total += size;
                    inline.push(index);
                    bodies.push(bytes);
                }
                Some(BodySource::File(_)) => {}
                None => {
                    let lost = self.lost_parts(&dispatch)?;
                    return Ok(if lost.is_empty() {
                        Prepared::NoLongerDue
                    } else {
                        Prepared::Lost(Box::new(dispatch), lost)
                    });
                }
            }
        }
        let offer = Offer {
            recipient: recipient.clone(),
            envelope: dispatch.envelope.clone(),
            acceptance: dispatch.evidence.clone(),
            acceptance_leaf: dispatch.seq.0,
            inline,
        };
        Ok(Prepared::Offer(Box::new(Offering { offer, bodies, dispatch })))
    }
}

fn newest(chain: &[(StoredEvidence, Evidence)], event: Event) -> Option<&(StoredEvidence, Evidence)> {
    chain.iter().rev().find(|(piece, _)| piece.event == event)
}

fn answer(piece: &StoredEvidence, state: DeliveryState) -> Outcome {
    let standing = match piece.event {
        Event::Registered => Standing::Registered,
        Event::Refused => Standing::Refused,
        Event::ContentAccessTracking => Standing::Opened,
        Event::ContentHandover if outcome_event(state).is_none() => Standing::HandedOver,
        _ => standing_of(state),
    };
    Outcome { standing, leaf: piece.leaf, evidence: piece.evidence.clone() }
}

/// The event that ended a delivery without a handover.
const fn outcome_event(state: DeliveryState) -> Option<Event> {
    match state {
        DeliveryState::Failed | DeliveryState::Expired | DeliveryState::Withdrawn => {
            Some(Event::ContentHandoverFailure)
        }
        _ => None,
    }
}

const fn standing_of(state: DeliveryState) -> Standing {
    match state {
        DeliveryState::Waiting | DeliveryState::HandedOver | DeliveryState::NoAnswer => Standing::HandedOver,
        DeliveryState::Failed => Standing::Failed,
        DeliveryState::Expired => Standing::Expired,
        DeliveryState::Withdrawn => Standing::Withdrawn,
        DeliveryState::Registered => Standing::Registered,
        DeliveryState::Refused => Standing::Refused,
    }
}
