//! Dispatches with an appointed time (`not_before`, edXML's priority 4): they wait, and are offered from that time on.
//!
//! What stands here is forgotten with the process: the time stands in the envelope, and is found again when it is read to be
//! offered.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use docaxis_protocol::{Envelope, Timestamp};

use super::{Exchange, ExchangeError};
use crate::store::{Dispatch, Seq, StoreError};

/// Dispatches that are remembered. Beyond that, one is found again at its next turn.
const MAX_REMEMBERED: usize = 100_000;

#[derive(Default)]
pub struct Appointed(Mutex<BTreeMap<Seq, Timestamp>>);

impl Appointed {
    fn times(&self) -> MutexGuard<'_, BTreeMap<Seq, Timestamp>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a dispatch is not to be offered before `at`. False if there is no room to remember it.
    fn note(&self, seq: Seq, at: Timestamp) -> bool {
        let mut times = self.times();
        let room = times.len() < MAX_REMEMBERED || times.contains_key(&seq);
        if room {
            times.insert(seq, at);
        }
        room
    }

    pub fn has(&self, seq: Seq) -> bool {
        self.times().contains_key(&seq)
    }

    /// All that are not to be offered yet.
    pub fn all(&self) -> BTreeSet<Seq> {
        self.times().keys().copied().collect()
    }

    /// Takes out what may be offered at `now`.
    fn due(&self, now: Timestamp) -> Vec<Seq> {
        let mut times = self.times();
        let due: Vec<Seq> = times.iter().filter(|(_, at)| **at <= now).map(|(seq, _)| *seq).collect();
        times.retain(|_, at| *at > now);
        due
    }
}

/// The appointed time in an envelope.
fn not_before(dispatch: &Dispatch) -> Result<Option<Timestamp>, StoreError> {
    const KEY: &[u8] = b"not_before";
    let bytes = &dispatch.envelope.bytes;
    let mut places = bytes.windows(KEY.len()).enumerate().filter(|(_, window)| *window == KEY).map(|(at, _)| at);
    // Nearly every envelope says only that there is none: then it need not be read whole for each recipient.
    let none = match (places.next(), places.next()) {
        (None, _) => true,
        (Some(at), None) => bytes[at + KEY.len()..].starts_with(b"\":null"),
        (Some(_), Some(_)) => false,
    };
    if none {
        return Ok(None);
    }
    let read = Envelope::parse(bytes);
    read.map(|envelope| envelope.not_before)
        .map_err(|error| StoreError::Damaged(format!("dispatch {} as stored: {error}", dispatch.id)))
}

impl Exchange {
    /// Whether a dispatch is not to be offered yet, and if so whether that is remembered.
    pub(super) fn is_early(&self, dispatch: &Dispatch) -> Result<Option<bool>, StoreError> {
        let early = docaxis_failpoints::defect!("broker.defect.handed-over-early");
        let at = not_before(dispatch)?.filter(|at| *at > self.now() && !early);
        Ok(at.map(|at| self.appointed.note(dispatch.seq, at)))
    }

    /// Rings for what may be offered from now on.
    pub fn ring_appointed(&self) -> Result<(), ExchangeError> {
        for seq in self.appointed.due(self.now()) {
            self.ring_waiting(seq)?;
        }
        Ok(())
    }

    /// Why a dispatch waits, if it is for its time.
    pub fn why_early(&self, seq: Seq) -> Option<String> {
        let at = self.appointed.times().get(&seq).copied()?;
        Some(format!("it is handed over from {at} on, as its sender appointed"))
    }
}

#[cfg(test)]
mod tests {
    use docaxis_protocol::SealedEnvelope;

    use super::*;
    use crate::store::claims::{at, letter};

    fn dispatch(envelope: &str) -> Dispatch {
        let sent = letter(1, &["H37.DN.001"]);
        Dispatch {
            seq: Seq(1),
            sender: sent.sender,
            id: sent.id,
            accepted: sent.accepted,
            expires: sent.expires,
            priority: 0,
            envelope_sha256: sent.envelope_sha256,
            envelope: SealedEnvelope { bytes: envelope.as_bytes().to_vec(), ..sent.envelope },
            parts: sent.parts,
            evidence: sent.evidence,
        }
    }

    #[test]
    fn an_envelope_is_read_whole_unless_it_says_only_that_there_is_no_time() {
        assert_eq!(not_before(&dispatch(r#"{"priority":0,"not_before":null,"document":{}}"#)).unwrap(), None);
        assert_eq!(not_before(&dispatch(r#"{"priority":0,"document":{}}"#)).unwrap(), None);
        // Whatever else has the word in it is read, and this does not read as an envelope.
        for other in
            [r#"{"not_before":"2026-11-26T00:00:00Z"}"#, r#"{"not_before":null,"document":{"not_before":null}}"#]
        {
            assert!(not_before(&dispatch(other)).is_err(), "{other}");
        }
    }

    #[test]
    fn what_is_due_is_taken_out_once_and_the_rest_stays() {
        let appointed = Appointed::default();
        assert!(appointed.note(Seq(1), at(10)) && appointed.note(Seq(2), at(20)) && appointed.note(Seq(2), at(30)));
        assert_eq!(appointed.all(), BTreeSet::from([Seq(1), Seq(2)]));
        assert_eq!(
            (appointed.due(at(9)), appointed.due(at(10)), appointed.due(at(29))),
            (vec![], vec![Seq(1)], vec![])
        );
        assert_eq!((appointed.due(at(30)), appointed.all()), (vec![Seq(2)], BTreeSet::new()));
    }
}
