//! Dispatches about earlier ones: whether they may be, and what a recall withdraws.

use std::collections::BTreeMap;

use docaxis_protocol::evidence::Cause;
use docaxis_protocol::{About, AgencyCode, Digest, DispatchId, Envelope, Event, Evidence, Reason, Timestamp};

use super::{Exchange, ExchangeError};
use crate::delivery::{Decision, on_recall};
use crate::evidence::issuer::DeliveryEvidence;
use crate::relation::{self, Earlier, Known};
use crate::store::{DeliveryState, Dispatch, Record, StoreError};

/// Bytes of the recall's reason that each withdrawal repeats; the whole of it stands in the recall.
const REPEATED_REASON_BYTES: usize = 200;

impl Exchange {
    /// Whether the dispatch may recall, update, replace or report on what it names.
    pub(super) fn may_relate(&self, envelope: &Envelope) -> Result<Result<(), Reason>, StoreError> {
        let about = match envelope.about() {
            Ok(about) => about,
            Err(reason) => return Ok(Err(reason)),
        };
        // Of a circular's thousands of deliveries, those that matter here.
        let asked: &[AgencyCode] = match &about {
            About::Recall(_) => &envelope.recipients,
            About::Status(code, _) if !code.is_recipients() => &envelope.recipients,
            About::Status(..) => std::slice::from_ref(&envelope.sender.agency),
            About::Itself | About::Update(_) | About::Replace(_) => &[],
        };
        let mut known = Known::new();
        for id in about.earlier() {
            let Some(earlier) = self.earlier(*id, envelope, about.is_senders())? else { continue };
            let read = Envelope::parse(&earlier.envelope.bytes);
            let read = read.map_err(|error| StoreError::Damaged(format!("dispatch {id} as stored: {error}")))?;
            let mut deliveries = BTreeMap::new();
            for recipient in asked {
                if let Some(delivery) = self.store.delivery(earlier.seq, recipient)? {
                    deliveries.insert(recipient.clone(), delivery.state);
                }
            }
            known.insert(*id, Earlier { kind: read.kind, sender: earlier.sender, deliveries });
        }
        Ok(relation::may_relate(envelope, &about, &known))
    }

    /// The accepted dispatch of this id that the envelope's sender sent, or received.
    pub(super) fn earlier(
        &self,
        id: DispatchId,
        envelope: &Envelope,
        sent: bool,
    ) -> Result<Option<Dispatch>, StoreError> {
        let who = &envelope.sender.agency;
        // By id, however long ago: what keeps an id from being used twice is forgotten after its time.
        for seq in self.store.find(id)? {
            if !sent && self.store.delivery(seq, who)?.is_none() {
                continue;
            }
            let Some(found) = self.store.dispatch(seq)? else { continue };
            // A rejection stands under the same id.
            let piece = Evidence::parse(&found.evidence.bytes);
            let accepted = piece.is_ok_and(|piece| piece.event == Event::SubmissionAcceptance);
            if accepted && (!sent || found.sender == *who) {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// What a recall accepted now withdraws: whatever waits for its recipients. The store leaves out what has moved on
    /// when it commits them.
    pub(super) fn withdrawals(
        &self,
        recall: &Envelope,
        digest: Digest,
        recalled: &Dispatch,
        now: Timestamp,
    ) -> Result<Vec<Record>, ExchangeError> {
        let mut why = format!("recalled by {} with dispatch {}", recall.sender.agency, recall.id);
        let reason = recall.business_reason();
        if !reason.is_empty() {
            why = format!("{why}: {}", &reason[..reason.floor_char_boundary(REPEATED_REASON_BYTES)]);
        }
        let cause = Cause { dispatch: recall.id, envelope_sha256: digest };
        let mut withdrawals = Vec::new();
        for recipient in &recall.recipients {
            let Some(delivery) = self.store.delivery(recalled.seq, recipient)? else { continue };
            let both_win = docaxis_failpoints::defect!("broker.defect.recall-and-handover");
            let state = if both_win { DeliveryState::Waiting } else { delivery.state };
            let decision = on_recall(state, why.clone(), now, recalled.expires);
            let Decision::Record { event, state: state @ DeliveryState::Withdrawn, reasons } = decision else {
                continue;
            };
            let about = DeliveryEvidence {
                event,
                recipient: recipient.clone(),
                previous: delivery.head,
                not_before: delivery.head_time.max(now),
                reasons,
                statement: None,
                cause: Some(cause.clone()),
                late_after: None,
            };
            let (evidence, time) = self.issuer.delivery(recalled, about)?;
            withdrawals.push(Record {
                seq: recalled.seq.0,
                recipient: recipient.clone(),
                event: Event::ContentHandoverFailure,
                time,
                previous: delivery.head,
                evidence,
                statement: None,
                state,
            });
        }
        Ok(withdrawals)
    }
}
