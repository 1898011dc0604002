//! What is to become of a dispatch that we send. Pure: the exchange's answer, the time and a random number come in;
//! the next step comes out. An id never changes, nor do the bytes: every try is the same try.

use std::time::Duration;

use docaxis_protocol::{Event, Reason, ReasonCode, Timestamp};

use crate::mailbox::DeliveryState;
use crate::uplink::back_off;

/// How a try ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Signed evidence says that the exchange has it.
    Accepted,
    /// Signed evidence says that it will never take it.
    Rejected(Reason),
    /// A link error: no evidence stands behind it.
    Refused(Reason),
    /// No answer came.
    Lost(String),
    /// A body of ours is missing or damaged: no try can end well before a person has put it back.
    Broken { why: Reason, expires: Timestamp },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    Rejected(Reason),
    RetryAt { at: Timestamp, why: Reason },
}

/// Decides after a try. `failures` counts the tries before this one that did not end.
pub fn verdict(
    answer: Answer,
    failures: u32,
    now: Timestamp,
    (min, max): (Duration, Duration),
    random: u64,
) -> Verdict {
    let retry = |why: Reason, failures: u32| Verdict::RetryAt {
        at: now.plus(back_off(failures.saturating_add(1), min, max, random)),
        why,
    };
    match answer {
        Answer::Accepted => Verdict::Accepted,
        Answer::Rejected(why) => Verdict::Rejected(why),
        // The bytes can never be taken: trying again would repeat the same answer for ever.
        Answer::Refused(why) if matches!(why.known(), ReasonCode::Malformed | ReasonCode::TooLarge) => {
            Verdict::Rejected(why)
        }
        Answer::Refused(why) if why.known().text().retryable => retry(why, failures),
        // A person has to change something (who hosts the agency, a certificate): rarely, but for ever.
        Answer::Refused(why) => retry(why, u32::MAX - 1),
        Answer::Broken { why, expires } if now >= expires => Verdict::Rejected(why),
        // The pause counts from here, and never runs past the end.
        Answer::Broken { why, expires } => {
            Verdict::RetryAt { at: now.plus(back_off(u32::MAX, min, max, random)).min(expires), why }
        }
        Answer::Lost(text) => retry(ReasonCode::Busy.because(text), failures),
    }
}

/// Tries that a dispatch holds up those queued behind it for the same recipient.
pub const HOLDS_FOR: u32 = 10;

/// Whether what is queued behind a dispatch goes on without it: after so many failed tries, for whatever reasons; at once if a
/// body of its own is lost. Tries for which the exchange had no room (`over-quota`, `disk-full`) count like others: nothing says
/// that there will ever be room for this one, and those behind it may be smaller, or charged to somebody else.
pub fn is_passed_by(failures: u32, why: Option<&Reason>) -> bool {
    match why.map(Reason::known) {
        None => false,
        Some(ReasonCode::DigestMismatch) => failures > 0,
        Some(_) => failures >= HOLDS_FOR,
    }
}

/// Where a delivery stands after a piece of evidence. A failure is final; nothing goes back.
pub fn delivery_after(state: DeliveryState, event: Event, late: bool, reason: Option<&Reason>) -> DeliveryState {
    use DeliveryState as S;
    let withdrawn = reason.is_some_and(|reason| reason.known() == ReasonCode::Withdrawn);
    match (event, state) {
        (_, S::Failed | S::Withdrawn) => state,
        (Event::ContentHandover, S::Waiting) if !late => S::HandedOver,
        (Event::ContentHandoverFailure, S::Waiting) if withdrawn => S::Withdrawn,
        (Event::ContentHandoverFailure | Event::RelayFailure | Event::RelayRejection, S::Waiting) => S::Failed,
        (Event::ContentAccessTracking, S::Waiting | S::HandedOver) => S::Opened,
        (Event::Registered, S::Waiting | S::HandedOver | S::Opened) => S::Registered,
        (Event::Refused, S::Waiting | S::HandedOver | S::Opened) => S::Refused,
        (_, state) => state,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

    fn decide(answer: Answer, failures: u32) -> Verdict {
        verdict(answer, failures, Timestamp::from_unix_ms(0), BOUNDS, 0)
    }

    fn retry(seconds: i64, why: Reason) -> Verdict {
        Verdict::RetryAt { at: Timestamp::from_unix_ms(seconds * 1000), why }
    }

    #[test]
    fn every_answer_leads_to_one_verdict_and_nothing_queued_is_dropped_for_a_busy_exchange() {
        let busy = ReasonCode::Busy.because("later");
        let lost = ReasonCode::Busy.because("reset");
        let hosted = ReasonCode::NotHosted.because("not yours");
        let malformed = ReasonCode::Malformed.because("no JSON");
        assert_eq!(decide(Answer::Accepted, 3), Verdict::Accepted);
        assert_eq!(decide(Answer::Rejected(busy.clone()), 0), Verdict::Rejected(busy.clone()));
        assert_eq!(decide(Answer::Refused(busy.clone()), 0), retry(1, busy.clone()));
        assert_eq!(decide(Answer::Refused(busy.clone()), 3), retry(8, busy.clone()));
        assert_eq!(decide(Answer::Refused(busy.clone()), 30), retry(60, busy));
        assert_eq!(decide(Answer::Lost("reset".into()), 1), retry(2, lost));
        assert_eq!(decide(Answer::Refused(hosted.clone()), 0), retry(60, hosted));
        assert_eq!(decide(Answer::Refused(malformed.clone()), 0), Verdict::Rejected(malformed));
        let why = ReasonCode::DigestMismatch.because("the body is damaged");
        let broken =
            |seconds: i64| Answer::Broken { why: why.clone(), expires: Timestamp::from_unix_ms(seconds * 1000) };
        assert_eq!(decide(broken(100), 0), retry(60, why.clone()));
        assert_eq!(decide(broken(7), 0), retry(7, why.clone()));
        assert_eq!(decide(broken(0), 0), Verdict::Rejected(why.clone()));
    }

    #[test]
    fn a_dispatch_is_passed_by_after_so_many_tries_and_at_once_for_a_lost_body() {
        let passed_by = |code: ReasonCode, failures| is_passed_by(failures, Some(&code.because("x")));
        assert!(!is_passed_by(HOLDS_FOR, None));
        for code in [ReasonCode::Busy, ReasonCode::DiskFull, ReasonCode::OverQuota] {
            assert_eq!([HOLDS_FOR - 1, HOLDS_FOR].map(|n| passed_by(code, n)), [false, true], "{code:?}");
        }
        assert_eq!([0, 1].map(|n| passed_by(ReasonCode::DigestMismatch, n)), [false, true]);
    }

    #[test]
    fn every_event_in_every_state_leads_to_one_state() {
        use DeliveryState as S;
        let table =
            |event, late| S::ALL.iter().map(|state| delivery_after(*state, event, late, None)).collect::<Vec<_>>();
        let unchanged = S::ALL.to_vec();
        assert_eq!(
            table(Event::ContentHandover, false),
            [S::HandedOver, S::HandedOver, S::Opened, S::Registered, S::Refused, S::Withdrawn, S::Failed]
        );
        assert_eq!(table(Event::ContentHandover, true), unchanged);
        assert_eq!(
            table(Event::ContentHandoverFailure, false),
            [S::Failed, S::HandedOver, S::Opened, S::Registered, S::Refused, S::Withdrawn, S::Failed]
        );
        assert_eq!(
            table(Event::Registered, false),
            [S::Registered, S::Registered, S::Registered, S::Registered, S::Refused, S::Withdrawn, S::Failed]
        );
        assert_eq!(
            table(Event::Refused, false),
            [S::Refused, S::Refused, S::Refused, S::Registered, S::Refused, S::Withdrawn, S::Failed]
        );
        assert_eq!(table(Event::NoAnswer, false), unchanged);
        let recalled = ReasonCode::Withdrawn.because("recalled");
        let after = |state| delivery_after(state, Event::ContentHandoverFailure, false, Some(&recalled));
        assert_eq!(after(S::Waiting), S::Withdrawn);
        assert_eq!(after(S::HandedOver), S::HandedOver);
    }
}
