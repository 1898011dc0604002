//! NoAnswer: what was handed over and neither registered nor refused in time. It goes through the log's handovers in order,
//! each once, when its answer is due; how far it has come is kept with the notices, and to look twice changes nothing.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use docaxis_protocol::{Envelope, Evidence, Kind, Timestamp};

use super::{Exchange, ExchangeError};
use crate::delivery::{Decision, on_no_answer};
use crate::evidence::issuer::DeliveryEvidence;
use crate::store::{StoreError, StoredEvidence};

/// Leaves that are looked at in one go.
const LEAVES: usize = 256;
/// After so many leaves it is kept how far it has come: what a restart looks at again.
const KEEP_EVERY: u64 = 4_096;
/// Under this name.
pub(super) const CURSOR: &str = "cursor/no-answer";

/// Where the walk stands.
#[derive(Debug, Default)]
pub struct Unanswered {
    kept: u64,
    /// When the next answer is due; nothing is to be done before.
    next_due: Option<Timestamp>,
}

/// What is to be done about one handover.
enum Look {
    Passed,
    NotDue(Timestamp),
    Overdue(Box<(crate::store::Dispatch, DeliveryEvidence, crate::store::DeliveryState)>),
}

/// What is damaged is told once, and keeps nobody behind it from being looked at.
fn pass_damage(leaf: u64, error: ExchangeError) -> Result<Look, ExchangeError> {
    match error {
        ExchangeError::Store(StoreError::Damaged(_)) | ExchangeError::Evidence(_) => {
            tracing::error!(leaf, %error, "whether this handover was answered cannot be told; it is passed over");
            Ok(Look::Passed)
        }
        error => Err(error),
    }
}

impl Exchange {
    /// Records NoAnswer for what is overdue. Returns whether there may be more at once.
    pub async fn no_answers_due(self: &Arc<Self>, walk: &mut Unanswered) -> Result<bool, ExchangeError> {
        let idle = walk.next_due.is_some_and(|due| due > self.now());
        if idle || !self.continuity.is_open() {
            return Ok(false);
        }
        walk.next_due = None;
        let from = self.unanswered_from.load(Ordering::Relaxed).min(self.store.counts().leaves);
        let exchange = self.clone();
        let (next, found) = self.workers.run(move || exchange.store.handovers(from, LEAVES)).await??;
        let mut reached = next;
        for piece in found {
            let leaf = piece.leaf;
            loop {
                let (exchange, looked_at) = (self.clone(), piece.clone());
                let look = self.workers.run(move || exchange.look_for_answer(&looked_at)).await?;
                match look.or_else(|error| pass_damage(leaf, error))? {
                    Look::Passed => break,
                    Look::NotDue(due) => {
                        walk.next_due = Some(due);
                        reached = leaf;
                        break;
                    }
                    Look::Overdue(overdue) => {
                        let (dispatch, about, state) = *overdue;
                        if self.record(&dispatch, about, None, state, &|| ()).await?.is_some() {
                            break;
                        }
                        // Answered at this moment: it is looked at again.
                    }
                }
            }
            if walk.next_due.is_some() {
                break;
            }
        }
        self.unanswered_from.store(reached, Ordering::Relaxed);
        if reached.saturating_sub(walk.kept) >= KEEP_EVERY {
            self.store.put_notices(vec![(CURSOR.into(), reached.to_be_bytes().to_vec())]).await?;
            walk.kept = reached;
        }
        Ok(walk.next_due.is_none() && next > from)
    }

    fn look_for_answer(&self, piece: &StoredEvidence) -> Result<Look, ExchangeError> {
        let evidence = Evidence::parse(&piece.evidence.bytes)?;
        let Some(recipient) = evidence.recipient.filter(|_| !evidence.late) else { return Ok(Look::Passed) };
        let Some(due) = self.calendar.due(evidence.time) else { return Ok(Look::Passed) };
        let delivery = self.delivery(piece.seq, &recipient)?;
        let text = format!("neither registered nor refused before {due}");
        let Decision::Record { event, state, reasons } = on_no_answer(delivery.state, text) else {
            return Ok(Look::Passed);
        };
        if due > self.now() {
            return Ok(Look::NotDue(due));
        }
        let Some(dispatch) = self.store.dispatch(piece.seq)? else {
            return Err(StoreError::Damaged(format!("dispatch {} was handed over but is gone", piece.seq.0)).into());
        };
        let read = Envelope::parse(&dispatch.envelope.bytes);
        let kind = read.map_err(|error| StoreError::Damaged(format!("dispatch {}: {error}", dispatch.id)))?.kind;
        // Nobody registers or refuses these.
        if matches!(kind, Kind::Status | Kind::Recall) {
            return Ok(Look::Passed);
        }
        let about = DeliveryEvidence {
            event,
            recipient,
            previous: delivery.head,
            not_before: delivery.head_time.max(due),
            reasons,
            statement: None,
            cause: None,
            late_after: None,
        };
        Ok(Look::Overdue(Box::new((dispatch, about, state))))
    }
}
