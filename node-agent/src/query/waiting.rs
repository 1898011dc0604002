//! Why something waits, whose move it is, and when it is tried again by itself. Pure.
//!
//! Nothing is said that this node cannot know: the exchange does not tell a sender whether a recipient's node is linked, nor
//! by when an answer is due; and while there is no link, what is known is what was heard last.

use docaxis_protocol::envelope::Envelope;
use docaxis_protocol::{Event, Kind, Reason, Timestamp};

use super::views::Waiting;
use crate::mailbox::{DeliveryRow, DeliveryState, OutState, OutgoingRow};
use crate::uplink::{LinkState, Whose};

/// A dispatch that the exchange has not decided about.
pub fn queued(row: &OutgoingRow, link: &LinkState, now: Timestamp) -> Waiting {
    if let Some(unlinked) = unlinked(link) {
        return unlinked;
    }
    match (link, &row.trouble) {
        (LinkState::Up { .. }, Some(trouble)) => Waiting {
            why: format!("the last try did not end: {trouble}"),
            whose_move: if trouble.known().text().retryable { Whose::Agent } else { Whose::Administrator },
            // What is due is tried in its turn, and nobody knows when that is.
            next_attempt: Some(row.next_attempt).filter(|at| *at > now),
        },
        (LinkState::Up { .. }, None) => {
            Waiting { why: "it is being sent".into(), whose_move: Whose::Agent, next_attempt: None }
        }
        _ => {
            Waiting { why: "the link to the broker is not up yet".into(), whose_move: Whose::Agent, next_attempt: None }
        }
    }
}

fn unlinked(link: &LinkState) -> Option<Waiting> {
    let LinkState::Down { why, whose_move, next_attempt, .. } = link else { return None };
    Some(Waiting {
        why: format!("there is no link to the broker: {why}"),
        whose_move: *whose_move,
        next_attempt: Some(*next_attempt),
    })
}

/// One recipient's delivery of a dispatch of ours; `overdue` is when NoAnswer was recorded.
pub fn undelivered(
    state: OutState,
    delivery: &DeliveryRow,
    envelope: &Envelope,
    (overdue, link, now): (Option<Timestamp>, &LinkState, Timestamp),
) -> Option<Waiting> {
    let appointed = envelope.not_before.filter(|at| *at > now);
    let answered = !matches!(envelope.kind, Kind::Status | Kind::Recall);
    let (why, whose_move) = match (state, delivery.state) {
        (OutState::Accepted, DeliveryState::Waiting) if let Some(at) = appointed => {
            (format!("it is handed over from {} on, as appointed", at.to_vietnam()), Whose::Agent)
        }
        (OutState::Accepted, DeliveryState::Waiting) => {
            let until = envelope.expires.to_vietnam();
            (format!("the recipient's node has not taken it yet; the exchange tries until {until}"), Whose::Recipient)
        }
        (OutState::Accepted, DeliveryState::HandedOver | DeliveryState::Opened) if answered => {
            let why = "the recipient's officer has not registered or refused it";
            let why = match overdue {
                Some(recorded) => format!("{why} in time (NoAnswer recorded {})", recorded.to_vietnam()),
                None => format!("{why} yet"),
            };
            (why, Whose::Recipient)
        }
        _ => return None,
    };
    let heard = if matches!(link, LinkState::Up { .. }) { "" } else { ", as far as was heard while there was a link" };
    let next_attempt = appointed.filter(|_| delivery.state == DeliveryState::Waiting);
    Some(Waiting { why: why + heard, whose_move, next_attempt })
}

/// A received dispatch that no officer has answered.
pub fn unanswered() -> Waiting {
    Waiting {
        why: "an officer registers it (03) or refuses it (02)".into(),
        whose_move: Whose::Recipient,
        next_attempt: None,
    }
}

/// An officer's statement that the exchange turned down.
pub fn restated(event: Event, why: &Reason) -> Waiting {
    Waiting {
        why: format!("the exchange did not record the statement {event}: {why}; an officer states anew"),
        whose_move: Whose::Recipient,
        next_attempt: None,
    }
}

/// An officer's statement that there is no evidence of yet.
pub fn unrecorded(event: Event, link: &LinkState) -> Waiting {
    let why = format!("the exchange has not recorded the statement {event} yet");
    match unlinked(link) {
        Some(unlinked) => Waiting { why: format!("{why}; {}", unlinked.why), ..unlinked },
        None => Waiting { why, whose_move: Whose::Broker, next_attempt: None },
    }
}

#[cfg(test)]
mod tests {
    use docaxis_protocol::ReasonCode;
    use docaxis_protocol::key::SecretKey;
    use docaxis_protocol::{AgencyCode, SealedEnvelope};

    use super::*;

    const NOW: Timestamp = Timestamp::from_unix_ms(1_795_318_200_000);

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_unix_ms(NOW.unix_ms() + minutes * 60_000)
    }

    fn up() -> LinkState {
        LinkState::Up { since: NOW, broker: "docaxis".into(), clock_offset_ms: 0 }
    }

    fn down() -> LinkState {
        LinkState::Down { since: NOW, why: "no answer".into(), whose_move: Whose::Broker, next_attempt: at(1) }
    }

    fn envelope() -> Envelope {
        Envelope { expires: at(60), ..crate::link::testing::envelope("000.00.00.G22", &["H37.DN.001"]) }
    }

    fn row(trouble: Option<ReasonCode>, next_attempt: Timestamp) -> OutgoingRow {
        let envelope = envelope();
        let sealed = SealedEnvelope::seal(&envelope, &SecretKey::from_seed(&[1; 32]), Default::default()).unwrap();
        OutgoingRow {
            seq: 1,
            id: envelope.id,
            sender: envelope.sender.agency,
            envelope_sha256: sealed.digest(),
            sealed,
            priority: 0,
            queued: NOW,
            state: OutState::Queued,
            since: NOW,
            attempts: 1,
            next_attempt,
            trouble: trouble.map(|code| code.because("x")),
        }
    }

    fn waiting(why: &str, whose_move: Whose, next_attempt: Option<Timestamp>) -> Waiting {
        Waiting { why: why.into(), whose_move, next_attempt }
    }

    #[test]
    fn what_is_queued_says_when_it_is_tried_again_if_that_is_known() {
        let full = "the last try did not end: disk-full: x";
        let checks = [
            (row(None, NOW), up(), waiting("it is being sent", Whose::Agent, None)),
            (row(Some(ReasonCode::DiskFull), at(2)), up(), waiting(full, Whose::Agent, Some(at(2)))),
            // It is due, and waits for its turn.
            (row(Some(ReasonCode::DiskFull), at(-2)), up(), waiting(full, Whose::Agent, None)),
            (
                row(Some(ReasonCode::DiskFull), at(2)),
                down(),
                waiting("there is no link to the broker: no answer", Whose::Broker, Some(at(1))),
            ),
        ];
        for (row, link, expected) in checks {
            assert_eq!(queued(&row, &link, NOW), expected);
        }
    }

    #[test]
    fn a_delivery_says_no_more_than_was_heard_while_there_was_a_link() {
        let says = |state, overdue, link: &LinkState, envelope: &Envelope| {
            let recipient: AgencyCode = "H37.DN.001".parse().unwrap();
            let delivery = DeliveryRow { recipient, state, since: NOW, reason: None };
            undelivered(OutState::Accepted, &delivery, envelope, (overdue, link, NOW))
        };
        use DeliveryState as S;
        let (plain, appointed) = (envelope(), Envelope { not_before: Some(at(30)), ..envelope() });
        let tries = "the recipient's node has not taken it yet; the exchange tries until 2026-11-22 11:30:00 +07:00";
        let (recipient, heard) = (Whose::Recipient, "as far as was heard while there was a link");
        assert_eq!(says(S::Waiting, None, &up(), &plain), Some(waiting(tries, recipient, None)));
        assert_eq!(
            says(S::Waiting, None, &down(), &plain),
            Some(waiting(&format!("{tries}, {heard}"), recipient, None))
        );
        let from = "it is handed over from 2026-11-22 11:00:00 +07:00 on, as appointed";
        assert_eq!(says(S::Waiting, None, &up(), &appointed), Some(waiting(from, Whose::Agent, Some(at(30)))));
        let silent = "the recipient's officer has not registered or refused it";
        let yet = waiting(&format!("{silent} yet"), recipient, None);
        assert_eq!(says(S::HandedOver, None, &up(), &appointed), Some(yet), "the appointment is over for it");
        let late = format!("{silent} in time (NoAnswer recorded 2026-11-22 10:25:00 +07:00)");
        assert_eq!(says(S::Opened, Some(at(-5)), &up(), &plain), Some(waiting(&late, recipient, None)));
        for done in [S::Registered, S::Refused, S::Failed, S::Withdrawn] {
            assert_eq!(says(done, None, &down(), &plain), None);
        }
    }

    #[test]
    fn a_statement_that_cannot_be_reported_says_when_the_link_is_tried_again() {
        let why = "the exchange has not recorded the statement Registered yet";
        assert_eq!(unrecorded(Event::Registered, &up()), waiting(why, Whose::Broker, None));
        let unlinked = format!("{why}; there is no link to the broker: no answer");
        assert_eq!(unrecorded(Event::Registered, &down()), waiting(&unlinked, Whose::Broker, Some(at(1))));
    }
}
