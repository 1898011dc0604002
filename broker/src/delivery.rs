//! Delivery of one dispatch to one recipient, as a pure state machine (protocol.md, section 5).
//!
//! It owns no socket, clock or store. The delivery as it is durable, what the recipient stated and the time come in; a
//! decision goes out. The driver performs it and, if the store says that the chain has moved on, asks again.

use docaxis_protocol::{Event, Reason, ReasonCode, Timestamp};

use crate::store::DeliveryState;

/// What is to be done about a statement or an expiry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Issue evidence of this event and move on to this state.
    Record {
        event: Event,
        state: DeliveryState,
        reasons: Vec<Reason>,
    },
    /// Issue evidence of a handover after a failure, marked late; the outcome stays.
    RecordLate {
        state: DeliveryState,
    },
    /// It has happened already: answer with the newest evidence of this event.
    Answer {
        event: Event,
    },
    /// It cannot happen: answer with this reason, record nothing.
    Refuse(Reason),
    Nothing,
}

/// What the recipient stated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stated {
    pub event: Event,
    pub reasons: Vec<Reason>,
}

/// Why a recipient's node may refuse a handover: what it can see for itself. The other reasons are the exchange's word.
const NODE_REASONS: [ReasonCode; 3] = [ReasonCode::BadSeal, ReasonCode::DigestMismatch, ReasonCode::WrongAddressee];

/// Decides about a recipient's statement.
pub fn on_statement(state: DeliveryState, stated: &Stated, now: Timestamp, expires: Timestamp) -> Decision {
    use DeliveryState as S;
    let record = |state: S| Decision::Record { event: stated.event, state, reasons: stated.reasons.clone() };
    let refuse = |text: &str| Decision::Refuse(ReasonCode::Other.because(text));
    match (stated.event, state) {
        // A handover stated after expiry loses against the expiry, whether or not that was recorded yet.
        (Event::ContentHandover | Event::ContentHandoverFailure, S::Waiting) if now >= expires => {
            on_time(state, now, expires)
        }
        (Event::ContentHandover, S::Waiting) => record(S::HandedOver),
        (Event::ContentHandover, S::HandedOver | S::Registered | S::Refused | S::NoAnswer) => {
            Decision::Answer { event: Event::ContentHandover }
        }
        (Event::ContentHandover, S::Failed | S::Expired | S::Withdrawn) => Decision::RecordLate { state },
        (Event::ContentHandoverFailure, S::Waiting) => {
            match stated.reasons.iter().find(|reason| !NODE_REASONS.contains(&reason.known())) {
                None => record(S::Failed),
                Some(foreign) => {
                    let text = format!("{} is not for a recipient's node to state", foreign.code);
                    Decision::Refuse(ReasonCode::Malformed.because(text))
                }
            }
        }
        (Event::ContentHandoverFailure, S::Failed | S::Expired | S::Withdrawn) => {
            Decision::Answer { event: Event::ContentHandoverFailure }
        }
        (Event::ContentHandoverFailure, _) => refuse("the recipient has already signed for this dispatch"),
        // An answer that comes late still counts.
        (Event::Registered, S::HandedOver | S::NoAnswer) => record(S::Registered),
        (Event::Registered, S::Registered) => Decision::Answer { event: Event::Registered },
        (Event::Refused, S::HandedOver | S::NoAnswer) => record(S::Refused),
        (Event::Refused, S::Refused) => Decision::Answer { event: Event::Refused },
        (Event::Registered, S::Refused) => refuse("the recipient has already refused this dispatch"),
        (Event::Refused, S::Registered) => refuse("the recipient has already registered this dispatch"),
        (Event::Registered | Event::Refused, S::Waiting) => refuse("the dispatch has not been handed over yet"),
        (Event::Registered | Event::Refused, S::Failed | S::Expired | S::Withdrawn) => {
            refuse("the dispatch was never handed over to this recipient")
        }
        // Recorded once, whether the officer opened it before or after the answer, and changes nothing else.
        (Event::ContentAccessTracking, S::HandedOver | S::Registered | S::NoAnswer) => record(state),
        (Event::ContentAccessTracking, S::Refused) => refuse("the recipient has already refused this dispatch"),
        (Event::ContentAccessTracking, S::Waiting) => refuse("the dispatch has not been handed over yet"),
        (Event::ContentAccessTracking, S::Failed | S::Expired | S::Withdrawn) => {
            refuse("the dispatch was never handed over to this recipient")
        }
        (event, _) => Decision::Refuse(ReasonCode::Malformed.because(format!("{event} is not a recipient's to state"))),
    }
}

/// Decides what a recall by the sender does to a delivery. After its time, expiry has won; after a handover the recall is a
/// request to the recipient.
pub fn on_recall(state: DeliveryState, why: String, now: Timestamp, expires: Timestamp) -> Decision {
    if !state.is_waiting() {
        return Decision::Nothing;
    }
    match on_time(state, now, expires) {
        Decision::Nothing => Decision::Record {
            event: Event::ContentHandoverFailure,
            state: DeliveryState::Withdrawn,
            reasons: vec![ReasonCode::Withdrawn.because(why)],
        },
        expired => expired,
    }
}

/// Decides what happens when the time to answer is over.
pub fn on_no_answer(state: DeliveryState, why: String) -> Decision {
    match state {
        DeliveryState::HandedOver => Decision::Record {
            event: Event::NoAnswer,
            state: DeliveryState::NoAnswer,
            reasons: vec![ReasonCode::NoAnswer.because(why)],
        },
        _ => Decision::Nothing,
    }
}

/// Decides what the passing of time does.
pub fn on_time(state: DeliveryState, now: Timestamp, expires: Timestamp) -> Decision {
    if state.is_waiting() && now >= expires {
        let text = format!("not handed over before {expires}");
        Decision::Record {
            event: Event::ContentHandoverFailure,
            state: DeliveryState::Expired,
            reasons: vec![ReasonCode::Expired.because(text)],
        }
    } else {
        Decision::Nothing
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATES: [DeliveryState; 8] = [
        DeliveryState::Waiting,
        DeliveryState::HandedOver,
        DeliveryState::Failed,
        DeliveryState::Expired,
        DeliveryState::Withdrawn,
        DeliveryState::Registered,
        DeliveryState::Refused,
        DeliveryState::NoAnswer,
    ];

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(ms)
    }

    fn decide(event: Event, state: DeliveryState, now: i64) -> String {
        let reasons = if event.is_negative() { vec![ReasonCode::WrongAddressee.because("no")] } else { vec![] };
        match on_statement(state, &Stated { event, reasons }, at(now), at(100)) {
            Decision::Record { event, state, .. } => format!("{event} -> {state:?}"),
            Decision::RecordLate { state } => format!("late -> {state:?}"),
            Decision::Answer { event } => format!("answer {event}"),
            Decision::Refuse(reason) => format!("refuse {}", reason.code),
            Decision::Nothing => "nothing".into(),
        }
    }

    #[test]
    fn every_statement_in_every_state_has_one_outcome() {
        let table = |event| STATES.map(|state| decide(event, state, 50));
        assert_eq!(
            table(Event::ContentHandover),
            [
                "ContentHandover -> HandedOver",
                "answer ContentHandover",
                "late -> Failed",
                "late -> Expired",
                "late -> Withdrawn",
                "answer ContentHandover",
                "answer ContentHandover",
                "answer ContentHandover"
            ]
        );
        assert_eq!(
            table(Event::ContentHandoverFailure),
            [
                "ContentHandoverFailure -> Failed",
                "refuse other",
                "answer ContentHandoverFailure",
                "answer ContentHandoverFailure",
                "answer ContentHandoverFailure",
                "refuse other",
                "refuse other",
                "refuse other"
            ]
        );
        assert_eq!(
            table(Event::Registered),
            [
                "refuse other",
                "Registered -> Registered",
                "refuse other",
                "refuse other",
                "refuse other",
                "answer Registered",
                "refuse other",
                "Registered -> Registered"
            ]
        );
        assert_eq!(
            table(Event::Refused),
            [
                "refuse other",
                "Refused -> Refused",
                "refuse other",
                "refuse other",
                "refuse other",
                "refuse other",
                "answer Refused",
                "Refused -> Refused"
            ]
        );
        assert_eq!(
            table(Event::ContentAccessTracking),
            [
                "refuse other",
                "ContentAccessTracking -> HandedOver",
                "refuse other",
                "refuse other",
                "refuse other",
                "ContentAccessTracking -> Registered",
                "refuse other",
                "ContentAccessTracking -> NoAnswer"
            ]
        );
        assert_eq!(table(Event::SubmissionAcceptance), ["refuse malformed"; 8].map(String::from));
    }

    #[test]
    fn a_handover_stated_at_or_after_expiry_loses_against_it() {
        assert_eq!(decide(Event::ContentHandover, DeliveryState::Waiting, 99), "ContentHandover -> HandedOver");
        assert_eq!(decide(Event::ContentHandover, DeliveryState::Waiting, 100), "ContentHandoverFailure -> Expired");
        assert_eq!(decide(Event::ContentHandover, DeliveryState::HandedOver, 500), "answer ContentHandover");
    }

    #[test]
    fn a_node_may_not_state_what_only_the_exchange_can_know() {
        let refuse = |code: ReasonCode| {
            let stated = Stated { event: Event::ContentHandoverFailure, reasons: vec![code.because("x")] };
            matches!(on_statement(DeliveryState::Waiting, &stated, at(1), at(100)), Decision::Refuse(_))
        };
        assert!(refuse(ReasonCode::Withdrawn) && refuse(ReasonCode::Expired) && refuse(ReasonCode::Other));
        assert!(!refuse(ReasonCode::BadSeal) && !refuse(ReasonCode::DigestMismatch));
    }

    #[test]
    fn a_recall_withdraws_only_what_waits_and_has_not_expired() {
        for state in STATES {
            let after = |now| match on_recall(state, "x".into(), at(now), at(100)) {
                Decision::Record { state, .. } => Some(state),
                Decision::Nothing => None,
                other => panic!("{other:?}"),
            };
            let waits = state == DeliveryState::Waiting;
            assert_eq!(after(99), waits.then_some(DeliveryState::Withdrawn), "{state:?}");
            assert_eq!(after(100), waits.then_some(DeliveryState::Expired), "{state:?}");
        }
    }

    #[test]
    fn only_what_was_handed_over_and_is_open_lacks_an_answer() {
        for state in STATES {
            let expected = state == DeliveryState::HandedOver;
            assert_eq!(on_no_answer(state, "x".into()) != Decision::Nothing, expected, "{state:?}");
        }
    }

    #[test]
    fn only_what_waits_expires() {
        for state in STATES {
            let expected = state == DeliveryState::Waiting;
            assert_eq!(on_time(state, at(100), at(100)) != Decision::Nothing, expected, "{state:?}");
            assert_eq!(on_time(state, at(99), at(100)), Decision::Nothing);
        }
    }
}
