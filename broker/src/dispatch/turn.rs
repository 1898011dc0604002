//! Whether it is a handover's turn: those of one sender to one recipient, in one priority, are recorded in the order of
//! acceptance.

use std::sync::Arc;

use docaxis_protocol::AgencyCode;

use super::{Exchange, ExchangeError};
use crate::store::{Dispatch, Lane, Seq, StoreError};
use crate::turns::Turn;

/// Waiting deliveries that are looked through for an earlier one of the same sender.
const MAX_LOOKED_THROUGH: usize = 256;

/// How a statement came, which says what it has to wait for.
#[derive(Clone, Copy)]
pub enum Way<'a> {
    /// In answer to an offer, which has its turn among the others of its link.
    Offered(&'a Turn),
    /// By itself.
    Reported,
}

impl Exchange {
    /// Waits for what is under way ahead of an offer; of a report, says whether anything is.
    pub(super) async fn is_its_turn(
        self: &Arc<Self>,
        dispatch: &Dispatch,
        recipient: &AgencyCode,
        way: Way<'_>,
    ) -> Result<bool, ExchangeError> {
        match way {
            Way::Offered(_) if docaxis_failpoints::defect!("broker.defect.handed-over-out-of-turn") => Ok(true),
            Way::Offered(turn) => Ok(turn.wait().await.is_ok()),
            Way::Reported => {
                let (exchange, dispatch, recipient) = (self.clone(), dispatch.clone(), recipient.clone());
                let look = move || exchange.is_first_waiting(&dispatch, &recipient);
                Ok(self.workers.run(look).await??)
            }
        }
    }

    /// Whether no earlier dispatch of the same sender and priority waits for the recipient. One that is appointed for
    /// later, or whose bodies are lost, holds nobody up. Behind very many others it is not found out, and the answer is no:
    /// then the offer of it decides.
    fn is_first_waiting(&self, dispatch: &Dispatch, recipient: &AgencyCode) -> Result<bool, StoreError> {
        let priority = dispatch.priority;
        let held = |seq: Seq| self.repairs.has(seq) || self.appointed.has(seq);
        let queue = self.store.waiting(recipient, Lane::of(&dispatch.sender, priority), None, MAX_LOOKED_THROUGH)?;
        let looked_through = queue.len() < MAX_LOOKED_THROUGH || queue.iter().any(|one| one.seq >= dispatch.seq);
        for ahead in queue.iter().take_while(|one| one.seq < dispatch.seq) {
            if !held(ahead.seq) && self.store.sender(ahead.seq)?.as_ref() == Some(&dispatch.sender) {
                return Ok(false);
            }
        }
        Ok(looked_through)
    }
}
