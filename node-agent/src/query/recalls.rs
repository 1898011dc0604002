//! What was sent about a dispatch, as its sender and its recipients here see it: whether it was asked back, what was
//! answered, how far the work has come. A circular may have thousands of each: every map is made once.

use std::collections::{BTreeMap, BTreeSet};

use docaxis_protocol::envelope::Envelope;
use docaxis_protocol::{AgencyCode, DispatchId, Kind, StatusCode, Timestamp};

use super::views::{Box, Recall, RelatedView, Waiting};
use super::waiting;
use crate::agent::Shared;
use crate::compose::Refused;
use crate::mailbox::{DeliveryRow, DeliveryState, OutState, OutgoingRow, Related, RelatedRow};
use crate::related::request_of;
use crate::uplink::{LinkState, Whose};

/// The newest of what was sent about a dispatch that is shown.
const SHOWN: usize = 1_000;

pub struct Recalls {
    rows: Vec<RelatedRow>,
    /// Of each recipient, the newest of our requests for it and where that stands.
    asked: BTreeMap<AgencyCode, (DispatchId, DeliveryState)>,
    /// What each recipient has answered to each request.
    answers: BTreeMap<(AgencyCode, DispatchId), Recall>,
    progress: BTreeMap<AgencyCode, StatusCode>,
    /// Our dispatch that this one is about, as long as the exchange has not decided about that.
    held_by: Option<OutgoingRow>,
    sender: AgencyCode,
}

impl Recalls {
    /// What is here about this dispatch; `sent` is whoever of ours sent it.
    pub async fn of(shared: &Shared, envelope: &Envelope, sent: Option<&AgencyCode>) -> Result<Self, Refused> {
        let mut rows = shared.mailbox.related(envelope.id).await?;
        let recipients: BTreeSet<&AgencyCode> = envelope.recipients.iter().collect();
        // The exchange lets nobody else speak about it; neither do we.
        rows.retain(|RelatedRow { related, .. }| match related.kind {
            Kind::Status if related.code.is_some_and(StatusCode::is_recipients) => recipients.contains(&related.sender),
            _ => related.sender == envelope.sender.agency,
        });
        let (mut answers, mut progress) = (BTreeMap::new(), BTreeMap::new());
        let mut asked = BTreeMap::new();
        for RelatedRow { related, state } in rows.iter().filter(|row| row.state != OutState::Rejected.as_str()) {
            let by = related.sender.clone();
            match (related.code, related.answers) {
                (Some(StatusCode::Agreed), Some(request)) => drop(answers.insert((by, request), Recall::Agreed)),
                (Some(StatusCode::Declined), Some(request)) => drop(answers.insert((by, request), Recall::Declined)),
                (Some(code), _) if code.is_progress() => {
                    let furthest = progress.entry(by).or_insert(code);
                    *furthest = code.max(*furthest);
                }
                _ => {}
            }
            let ours = sent.is_some() && !related.incoming && related.kind == Kind::Recall;
            if ours && *state != OutState::Rejected.as_str() {
                for delivery in shared.mailbox.deliveries(related.dispatch).await? {
                    asked.insert(delivery.recipient, (related.dispatch, delivery.state));
                }
            }
        }
        let mut held_by = None;
        for target in envelope.about().iter().flat_map(|about| about.earlier().to_vec()) {
            if let Some(row) = shared.mailbox.outgoing(target).await?
                && row.state == OutState::Queued
            {
                held_by = Some(row);
            }
        }
        Ok(Self { rows, asked, answers, progress, held_by, sender: envelope.sender.agency.clone() })
    }

    /// Why a dispatch of ours that is about another one is not sent yet: it goes when that one has gone.
    pub fn held(&self, link: &LinkState, now: Timestamp) -> Option<Waiting> {
        let target = self.held_by.as_ref()?;
        let waits = waiting::queued(target, link, now);
        let first = format!("it follows when the exchange has decided about dispatch {}, which it is about", target.id);
        Some(Waiting { why: format!("{first}; of that one: {}", waits.why), ..waits })
    }

    fn answer(&self, recipient: &AgencyCode, request: DispatchId) -> Recall {
        self.answers.get(&(recipient.clone(), request)).copied().unwrap_or(Recall::Asked)
    }

    /// Where our recall stands with a recipient that has the document. Whoever does not have it is not asked.
    pub fn with(&self, delivery: &DeliveryRow) -> Option<Recall> {
        use DeliveryState as S;
        let (request, _) = self.asked.get(&delivery.recipient)?;
        match delivery.state {
            S::Waiting | S::Withdrawn | S::Failed => None,
            S::HandedOver | S::Opened | S::Registered | S::Refused => Some(self.answer(&delivery.recipient, *request)),
        }
    }

    pub fn progress(&self, recipient: &AgencyCode) -> Option<StatusCode> {
        self.progress.get(recipient).copied()
    }

    /// Why nobody has answered our recall yet.
    pub fn unanswered(&self, delivery: &DeliveryRow) -> Option<Waiting> {
        if self.with(delivery) != Some(Recall::Asked) {
            return None;
        }
        let (recall, stands) = self.asked.get(&delivery.recipient)?;
        let queued = |row: &&RelatedRow| row.related.dispatch == *recall && row.state == OutState::Queued.as_str();
        let (why, whose_move) = match stands {
            DeliveryState::Waiting if self.rows.iter().any(|row| queued(&row)) => {
                ("it is asked back; the exchange does not have the recall yet", Whose::Broker)
            }
            DeliveryState::Waiting => {
                ("it is asked back; the recipient's node has not taken the recall yet", Whose::Recipient)
            }
            DeliveryState::Failed | DeliveryState::Withdrawn => {
                ("the recall did not reach the recipient in its time; recall it again", Whose::Sender)
            }
            _ => {
                let why = "it was asked back; the recipient's officer has not agreed (15) or declined (16) yet";
                (why, Whose::Recipient)
            }
        };
        Some(Waiting { why: why.into(), whose_move, next_attempt: None })
    }

    fn request(&self, recipient: &AgencyCode) -> Option<&Related> {
        request_of(&self.rows, recipient, &self.sender)
    }

    /// What has become of the sender's newest request to this recipient of ours.
    pub fn asked_of(&self, recipient: &AgencyCode) -> Option<Recall> {
        self.request(recipient).map(|request| self.answer(recipient, request.dispatch))
    }

    pub fn is_asked(&self, recipient: &AgencyCode) -> bool {
        self.asked_of(recipient) == Some(Recall::Asked)
    }

    /// What an officer of ours is to do about the request.
    pub fn to_answer(&self, recipient: &AgencyCode) -> Waiting {
        let asked = self.request(recipient);
        let why = asked.map(|request| request.text.as_str()).filter(|text| !text.is_empty());
        let what = match asked.map(|request| request.kind) {
            Some(Kind::Update) => "for an update",
            _ => "to have it back",
        };
        let why = why.map_or_else(String::new, |why| format!(", because: {why}"));
        Waiting {
            why: format!("{} asks {what}{why}; an officer agrees (15) or declines (16)", self.sender),
            whose_move: Whose::Recipient,
            next_attempt: None,
        }
    }

    /// And how many older ones are left out.
    pub fn views(self) -> (Vec<RelatedView>, u64) {
        let view = |RelatedRow { related, state }| {
            let Related { dispatch, agency, incoming, sender, kind, code, text, time, .. } = related;
            let which = if incoming { Box::In } else { Box::Out };
            RelatedView { time, dispatch, kind, code, sender, which, agency, state, text }
        };
        let older = self.rows.len().saturating_sub(SHOWN);
        (self.rows.into_iter().skip(older).map(view).collect(), older as u64)
    }
}
