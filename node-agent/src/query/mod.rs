//! What people and programs ask an agent: lists, one dispatch with its timeline, its evidence, where the link stands.
//! Every waiting state says why, whose move it is, and when the next automatic attempt comes.

mod bundle;
mod recalls;
mod views;
mod waiting;

pub use bundle::BundleMaterial;
pub use views::{
    Box, Count, DeliveryView, DispatchView, GoneView, InView, OutView, PartView, Recall, RelatedView, StatusView,
    Summary, TimelineEntry, Waiting,
};

pub(crate) use bundle::bundle;

use std::collections::BTreeMap;
use std::time::Duration;

use docaxis_protocol::envelope::{Envelope, Part};
use docaxis_protocol::{AgencyCode, Digest, DispatchId, Event, Kind, Reason, ReasonCode, SealedEnvelope, Timestamp};
use serde_json::Value;

use crate::agent::{AgentHandle, Shared};
use crate::compose::Refused;
use crate::mailbox::{
    AgencyRow, DeliveryRow, DeliveryState, EvidenceRow, InState, IncomingRow, MailboxError, OutState, OutgoingRow,
    StatementRow,
};
use crate::parts::{PartReader, PartsError};
use crate::transfers::TransferView;
use crate::uplink::LinkState;

/// Entries of one page.
pub const PAGE: u32 = 100;

/// What `wait` waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// The exchange has decided about the submission.
    Settled,
    /// Every recipient has reached this state, or can never reach it.
    Delivered(DeliveryState),
}

impl Until {
    /// Reads what `doc wait --until` is given.
    pub fn from_text(text: &str) -> Option<Self> {
        match text {
            "accepted" => Some(Self::Settled),
            _ => DeliveryState::from_text(text).filter(|s| *s != DeliveryState::Waiting).map(Self::Delivered),
        }
    }

    /// `None` while it may still come; then whether it came.
    pub fn reached(self, state: OutState, deliveries: &[DeliveryState]) -> Option<bool> {
        use DeliveryState as S;
        if state == OutState::Rejected {
            return Some(false);
        }
        let Self::Delivered(wanted) = self else { return (state == OutState::Accepted).then_some(true) };
        let one = |found: S| match (wanted, found) {
            (wanted, found) if wanted == found => Some(true),
            (S::HandedOver, S::Opened | S::Registered | S::Refused) | (S::Opened, S::Registered | S::Refused) => {
                Some(true)
            }
            (_, S::Registered | S::Refused | S::Failed | S::Withdrawn) => Some(false),
            (S::Failed | S::Withdrawn, S::HandedOver | S::Opened) => Some(false),
            _ => None,
        };
        let all: Option<Vec<bool>> = deliveries.iter().map(|found| one(*found)).collect();
        all.map(|all| all.into_iter().all(|came| came))
    }
}

#[derive(Debug, Clone, PartialEq)]
pub enum Waited {
    Reached(DispatchView),
    /// It can never come to it.
    Never(DispatchView),
    TimedOut(DispatchView),
}

/// An open body.
pub struct OpenPart {
    pub part: Part,
    pub reader: PartReader,
}

impl AgentHandle {
    pub async fn status(&self) -> Result<StatusView, Refused> {
        status(&self.shared).await
    }

    pub async fn show(&self, id: DispatchId) -> Result<DispatchView, Refused> {
        show(&self.shared, id).await
    }

    /// A page, newest first; `state` is one of the texts of [`OutState`], [`DeliveryState`] or [`InState`].
    pub async fn list(&self, which: Box, state: Option<&str>, after: Option<u64>) -> Result<Vec<Summary>, Refused> {
        list(&self.shared, which, state, after).await
    }

    pub async fn evidence(&self, id: DispatchId) -> Result<Vec<EvidenceRow>, Refused> {
        evidence(&self.shared, id).await
    }

    /// The statements of this node's agencies about a dispatch.
    pub async fn statements(&self, id: DispatchId) -> Result<Vec<StatementRow>, Refused> {
        Ok(self.shared.mailbox.statements(id).await?)
    }

    pub async fn part(&self, id: DispatchId, n: usize) -> Result<OpenPart, Refused> {
        part(&self.shared, id, n).await
    }

    pub async fn agencies(&self, query: &str) -> Result<Vec<AgencyRow>, Refused> {
        Ok(self.shared.mailbox.find_agencies(query, PAGE).await?)
    }

    pub async fn bundle(&self, id: DispatchId) -> Result<BundleMaterial, Refused> {
        bundle(&self.shared, id).await
    }

    /// Waits for a dispatch that was sent from here.
    pub async fn wait(&self, id: DispatchId, until: Until, timeout: Duration) -> Result<Waited, Refused> {
        wait(&self.shared, id, until, timeout).await
    }

    /// Changes with everything that any of the above may show.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// How far the files of a draft with this progress key are taken in; none if none is under way.
    pub fn taken_in(&self, progress_key: &str) -> Option<TransferView> {
        self.shared.transfers.of(&crate::compose::taking_in(progress_key))
    }

    pub fn link(&self) -> tokio::sync::watch::Receiver<LinkState> {
        self.shared.link.subscribe()
    }
}

fn no_such<T>(id: DispatchId) -> Result<T, Refused> {
    Err(Refused::Rule(ReasonCode::NotFound.because(format!("there is no dispatch {id} here"))))
}

/// Lines about lost dispatches in a status.
const MAX_GONE: u32 = 100;

pub(crate) async fn status(shared: &Shared) -> Result<StatusView, Refused> {
    let identity = shared.identity.load_full();
    let count = |(state, count): (&'static str, u64)| Count { state, count };
    let outbox = shared.mailbox.outbox_counts().await?;
    let inbox = shared.mailbox.inbox_counts().await?;
    let link = shared.link.borrow().clone();
    let gone = shared.mailbox.gone(MAX_GONE).await?;
    let of_gone = |item: docaxis_protocol::frame::GoneItem| GoneView {
        dispatch: item.dispatch,
        recipient: item.recipient,
        sender: item.sender,
        handed_over: item.time,
    };
    Ok(StatusView {
        node: identity.node.clone(),
        origin: identity.origin.clone(),
        agencies: identity.agencies(),
        time: shared.env.now(),
        link,
        outbox: outbox.into_iter().map(|(state, n)| count((state.as_str(), n))).collect(),
        inbox: inbox.into_iter().map(|(state, n)| count((state.as_str(), n))).collect(),
        directory_version: shared.mailbox.directory_version().await?,
        space: shared.space.report(),
        alarms: shared.alarms(),
        gone: gone.into_iter().map(of_gone).collect(),
    })
}

/// The envelope, if it is still the one with this digest: what rotted in the database is not shown as if it were said.
fn read(sealed: &SealedEnvelope, sha256: Digest) -> Result<Envelope, Refused> {
    let found = sealed.digest();
    if found != sha256 {
        let found = format!("its bytes have digest {found}; {sha256} was stored");
        return Err(MailboxError::Damaged { what: "envelope", found }.into());
    }
    Envelope::parse(&sealed.bytes).map_err(|e| Refused::Rule(e.reason()))
}

fn subject(envelope: &Envelope) -> String {
    envelope.document.get("Subject").and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// What is here and may be seen of a dispatch.
async fn find(shared: &Shared, id: DispatchId) -> Result<(Option<OutgoingRow>, Vec<IncomingRow>), Refused> {
    let outgoing = shared.mailbox.outgoing(id).await?;
    let mut incoming = shared.mailbox.incoming_all(id).await?;
    incoming.retain(|row| row.state != InState::Taken);
    if outgoing.is_none() && incoming.is_empty() {
        return no_such(id);
    }
    Ok((outgoing, incoming))
}

pub(crate) async fn show(shared: &Shared, id: DispatchId) -> Result<DispatchView, Refused> {
    let (outgoing, incoming) = find(shared, id).await?;
    let sent = outgoing.as_ref().map(|row| (&row.sealed, row.envelope_sha256));
    let Some((sealed, sha256)) = sent.or(incoming.first().map(|row| (&row.sealed, row.envelope_sha256))) else {
        return no_such(id);
    };
    let envelope = read(sealed, sha256)?;
    let statements = shared.mailbox.statements(id).await?;
    let evidence = shared.mailbox.evidence_of(id).await?;
    let deliveries = shared.mailbox.deliveries(id).await?;
    let recalls = recalls::Recalls::of(shared, &envelope, outgoing.as_ref().map(|row| &row.sender)).await?;
    let mut same_document = Vec::new();
    let agencies = outgoing.iter().map(|row| (row.sender.clone(), false));
    for (agency, received) in agencies.chain(incoming.iter().map(|row| (row.recipient.clone(), true))) {
        for other in shared.mailbox.same_documents(&envelope, agency, received).await? {
            if !same_document.contains(&other) {
                same_document.push(other);
            }
        }
    }
    let link = shared.link.borrow().clone();
    let mut timeline: Vec<TimelineEntry> = evidence.iter().map(|row| entry(row, &envelope)).collect();
    if let Some(row) = &outgoing {
        timeline.insert(0, plain(row.queued, row.sender.clone(), "Queued"));
    }
    timeline.sort_by_key(|entry| entry.time);
    let incoming = incoming.into_iter().map(|row| in_view(row, &envelope, (&statements, &recalls), &link)).collect();
    let outgoing = outgoing
        .map(|row| out_view(&row, &envelope, (deliveries, &recalls, &evidence), (&link, shared.env.now())))
        .map(|view| OutView { transfer: shared.transfers.of(&id.to_string()), ..view });
    let (related, related_older) = recalls.views();
    Ok(DispatchView {
        id,
        kind: envelope.kind,
        sender: envelope.sender.agency.clone(),
        recipients: envelope.recipients.clone(),
        created: envelope.created,
        expires: envelope.expires,
        priority: envelope.priority,
        subject: subject(&envelope),
        parts: envelope.parts.iter().cloned().enumerate().map(|(n, part)| PartView { n, part }).collect(),
        outgoing,
        incoming,
        same_document,
        relates: envelope.relates,
        related,
        related_older,
        document: envelope.document,
        timeline,
    })
}

fn plain(time: Timestamp, agency: AgencyCode, event: &str) -> TimelineEntry {
    TimelineEntry { time, agency, acting: None, event: event.into(), reason: None, leaf: None, proven: false }
}

fn entry(row: &EvidenceRow, envelope: &Envelope) -> TimelineEntry {
    let said = docaxis_protocol::Evidence::parse(&row.signed.bytes).ok();
    let reason = said.as_ref().and_then(|e| e.reasons.first().cloned());
    TimelineEntry {
        acting: said.and_then(|e| e.acting),
        time: row.time,
        agency: row.recipient.clone().unwrap_or_else(|| envelope.sender.agency.clone()),
        event: row.event.to_string(),
        reason,
        leaf: Some(row.leaf),
        proven: row.proof.is_some(),
    }
}

fn out_view(
    row: &OutgoingRow,
    envelope: &Envelope,
    (deliveries, recalls, evidence): (Vec<DeliveryRow>, &recalls::Recalls, &[EvidenceRow]),
    (link, now): (&LinkState, Timestamp),
) -> OutView {
    let queued = || recalls.held(link, now).unwrap_or_else(|| waiting::queued(row, link, now));
    let waiting = (row.state == OutState::Queued).then(queued);
    let overdue: BTreeMap<AgencyCode, Timestamp> = evidence
        .iter()
        .filter(|row| row.event == Event::NoAnswer)
        .filter_map(|row| Some((row.recipient.clone()?, row.time)))
        .collect();
    let overdue = |delivery: &DeliveryRow| {
        let unanswered = matches!(delivery.state, DeliveryState::HandedOver | DeliveryState::Opened);
        overdue.get(&delivery.recipient).copied().filter(|_| unanswered)
    };
    let deliver = |delivery: DeliveryRow| DeliveryView {
        waiting: recalls
            .unanswered(&delivery)
            .or_else(|| waiting::undelivered(row.state, &delivery, envelope, (overdue(&delivery), link, now))),
        recall: recalls.with(&delivery),
        progress: recalls.progress(&delivery.recipient),
        no_answer: overdue(&delivery),
        recipient: delivery.recipient,
        state: delivery.state,
        since: delivery.since,
        reason: delivery.reason,
    };
    let deliveries: Vec<DeliveryView> = deliveries.into_iter().map(deliver).collect();
    OutView {
        state: row.state,
        since: row.since,
        attempts: row.attempts,
        reason: row.trouble.clone().filter(|_| row.state == OutState::Rejected),
        waiting,
        transfer: None,
        // What the exchange does not have waits for nobody's node.
        counts: if row.state == OutState::Accepted { counts(&deliveries) } else { vec![] },
        no_answer: deliveries.iter().filter(|delivery| delivery.no_answer.is_some()).count() as u64,
        deliveries,
    }
}

/// How many deliveries are in each state, in the order of [`DeliveryState::ALL`].
fn counts(deliveries: &[DeliveryView]) -> Vec<Count> {
    let mut found: BTreeMap<DeliveryState, u64> = BTreeMap::new();
    for delivery in deliveries {
        *found.entry(delivery.state).or_default() += 1;
    }
    found.into_iter().map(|(state, count)| Count { state: state.as_str(), count }).collect()
}

fn in_view(
    row: IncomingRow,
    envelope: &Envelope,
    (statements, recalls): (&[StatementRow], &recalls::Recalls),
    link: &LinkState,
) -> InView {
    let open = statements.iter().find(|statement| statement.recipient == row.recipient && !statement.answered);
    let refused = statements.iter().rev().find_map(|statement| {
        let officers = matches!(statement.event, Event::Registered | Event::Refused);
        let why = statement.refusal.as_ref().filter(|_| officers && statement.recipient == row.recipient)?;
        Some((statement.event, why))
    });
    let refused = refused.filter(|_| open.is_none() && row.state == InState::Visible);
    let reason = row.reason.or_else(|| refused.map(|(_, why)| why.clone()));
    let waiting = match (open, row.state) {
        (None, InState::Visible) if let Some((event, why)) = refused => Some(waiting::restated(event, why)),
        (Some(open), _) => Some(waiting::unrecorded(open.event, link)),
        (None, state) if state.is_visible() && recalls.is_asked(&row.recipient) => {
            Some(recalls.to_answer(&row.recipient))
        }
        // A status or a recall is not registered or refused.
        (None, InState::Visible) if matches!(envelope.kind, Kind::Status | Kind::Recall) => None,
        (None, InState::Visible) => Some(waiting::unanswered()),
        _ => None,
    };
    let recall = recalls.asked_of(&row.recipient);
    InView { recipient: row.recipient, state: row.state, since: row.since, reason, waiting, recall }
}

pub(crate) async fn list(
    shared: &Shared,
    which: Box,
    state: Option<&str>,
    after: Option<u64>,
) -> Result<Vec<Summary>, Refused> {
    let unknown = |text: &str| {
        Err(Refused::Rule(ReasonCode::Malformed.because(format!("there is no state {text:?} in this box"))))
    };
    match which {
        Box::Out => {
            let (whole, delivery) = match state {
                None => (None, None),
                Some(text) => match (OutState::from_text(text), DeliveryState::from_text(text)) {
                    (None, None) => return unknown(text),
                    found => found,
                },
            };
            let rows = shared.mailbox.outgoing_page(whole, delivery, after, PAGE).await?;
            Ok(rows.iter().map(summary_out).collect())
        }
        Box::In => {
            let state = match state.map(InState::from_text) {
                None => None,
                Some(Some(found)) if found != InState::Taken => Some(found),
                Some(_) => return unknown(state.unwrap_or_default()),
            };
            let rows = shared.mailbox.incoming_page(state, after, PAGE).await?;
            Ok(rows.iter().map(summary_in).collect())
        }
    }
}

fn summary_out(row: &OutgoingRow) -> Summary {
    let envelope = read(&row.sealed, row.envelope_sha256);
    let damage = envelope.as_ref().err().map(damaged);
    let envelope = envelope.ok();
    Summary {
        cursor: row.seq,
        id: row.id,
        which: Box::Out,
        kind: envelope.as_ref().map_or(Kind::New, |envelope| envelope.kind),
        state: row.state.as_str().into(),
        sender: row.sender.clone(),
        priority: row.priority,
        subject: envelope.as_ref().map(subject).unwrap_or_default(),
        time: row.queued,
        reason: damage.or(row.trouble.clone()),
        recipients: envelope.map(|envelope| envelope.recipients).unwrap_or_default(),
    }
}

fn summary_in(row: &IncomingRow) -> Summary {
    let envelope = read(&row.sealed, row.envelope_sha256);
    let damage = envelope.as_ref().err().map(damaged);
    let envelope = envelope.ok();
    Summary {
        cursor: row.seq,
        id: row.id,
        which: Box::In,
        kind: envelope.as_ref().map_or(Kind::New, |envelope| envelope.kind),
        state: row.state.as_str().into(),
        sender: row.sender.clone(),
        recipients: vec![row.recipient.clone()],
        priority: envelope.as_ref().map_or(0, |envelope| envelope.priority),
        subject: envelope.as_ref().map(subject).unwrap_or_default(),
        time: row.taken,
        reason: damage.or(row.reason.clone()),
    }
}

/// Why a line of a list says so little. The other lines are not to suffer for it.
fn damaged(error: &Refused) -> Reason {
    ReasonCode::DigestMismatch.because(error.to_string())
}

pub(crate) async fn evidence(shared: &Shared, id: DispatchId) -> Result<Vec<EvidenceRow>, Refused> {
    find(shared, id).await?;
    Ok(shared.mailbox.evidence_of(id).await?)
}

pub(crate) async fn part(shared: &Shared, id: DispatchId, n: usize) -> Result<OpenPart, Refused> {
    let (outgoing, incoming) = find(shared, id).await?;
    let visible = incoming.iter().find(|row| row.state.is_visible()).map(|row| (&row.sealed, row.envelope_sha256));
    let sent = outgoing.as_ref().map(|row| (&row.sealed, row.envelope_sha256));
    let Some((sealed, sha256)) = sent.or(visible) else {
        return Err(Refused::Rule(ReasonCode::Withdrawn.because(format!("the parts of dispatch {id} were destroyed"))));
    };
    let parts = read(sealed, sha256)?.parts;
    let Some(part) = parts.get(n).cloned() else {
        let text = format!("dispatch {id} has {} parts, counted from 0; there is no part {n}", parts.len());
        return Err(Refused::Rule(ReasonCode::NotFound.because(text)));
    };
    let opened = shared.open_body(part.sha256).await?;
    if let Err(error @ PartsError::Unreadable { .. }) = &opened {
        shared.alarm(format!("part {n} of dispatch {id} cannot be given out: {error}"));
    }
    Ok(OpenPart { part, reader: opened? })
}

pub(crate) async fn wait(shared: &Shared, id: DispatchId, until: Until, timeout: Duration) -> Result<Waited, Refused> {
    let deadline = tokio::time::Instant::now() + timeout;
    let mut changes = shared.changes.subscribe();
    loop {
        changes.mark_unchanged();
        let Some(row) = shared.mailbox.outgoing(id).await? else { return no_such(id) };
        let states: Vec<DeliveryState> = shared.mailbox.deliveries(id).await?.iter().map(|d| d.state).collect();
        match until.reached(row.state, &states) {
            Some(true) => return Ok(Waited::Reached(show(shared, id).await?)),
            Some(false) => return Ok(Waited::Never(show(shared, id).await?)),
            None => {}
        }
        match tokio::time::timeout_at(deadline, changes.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Ok(Waited::TimedOut(show(shared, id).await?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use DeliveryState as S;

    #[test]
    fn an_envelope_that_rotted_in_the_database_is_not_shown() {
        let envelope = crate::link::testing::envelope("000.00.00.G22", &["H37.DN.001"]);
        let key = docaxis_protocol::key::SecretKey::from_seed(&[1; 32]);
        let mut sealed = SealedEnvelope::seal(&envelope, &key, docaxis_protocol::envelope::Chain::default()).unwrap();
        let sha256 = sealed.digest();
        assert_eq!(read(&sealed, sha256).unwrap(), envelope);
        let at = sealed.bytes.len() / 2;
        sealed.bytes[at] ^= 1;
        let refused = read(&sealed, sha256).unwrap_err();
        assert!(refused.to_string().contains(&sha256.to_string()), "{refused}");
    }

    #[test]
    fn waiting_ends_when_all_recipients_are_there_or_one_can_never_be() {
        let until = |text: &str| Until::from_text(text).unwrap();
        let accepted = OutState::Accepted;
        assert_eq!(until("accepted").reached(OutState::Queued, &[S::Waiting]), None);
        assert_eq!(until("accepted").reached(accepted, &[S::Waiting]), Some(true));
        assert_eq!(until("accepted").reached(OutState::Rejected, &[S::Waiting]), Some(false));
        assert_eq!(until("handed-over").reached(accepted, &[S::HandedOver, S::Waiting]), None);
        assert_eq!(until("handed-over").reached(accepted, &[S::HandedOver, S::Registered]), Some(true));
        assert_eq!(until("handed-over").reached(accepted, &[S::HandedOver, S::Failed]), Some(false));
        assert_eq!(until("registered").reached(accepted, &[S::HandedOver]), None);
        assert_eq!(until("registered").reached(accepted, &[S::Refused]), Some(false));
        assert_eq!(until("failed").reached(accepted, &[S::Failed]), Some(true));
        assert_eq!(until("failed").reached(accepted, &[S::HandedOver]), Some(false));
        assert_eq!(Until::from_text("waiting"), None);
    }
}
