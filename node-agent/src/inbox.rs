//! What we answer to an offer, and what follows from the exchange's answer to that. Pure: what was read and verified
//! comes in, a decision goes out.

use std::collections::BTreeSet;

use docaxis_protocol::envelope::Envelope;
use docaxis_protocol::frame::Standing;
use docaxis_protocol::{AgencyCode, Digest, Event, Evidence, Origin, Reason, ReasonCode, Timestamp};

use crate::mailbox::{InState, QueuedPart};

/// An offer that is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotTaken {
    /// The recipient signs why: final for this dispatch and recipient.
    Signed(Reason),
    /// The exchange did not keep to the protocol, or the agency is not ours: nothing can be signed.
    Unsigned(Reason),
}

/// Judges an offer before any body is looked at. `acceptance` was verified under the exchange's evidence key; `seal` says
/// whether the sender's seal held at `created` and at the acceptance's time.
pub fn judge(
    recipient: &AgencyCode,
    hosted: bool,
    origin: &Origin,
    (envelope, envelope_sha256): (&Envelope, Digest),
    acceptance: &Evidence,
    seal: impl FnOnce() -> Result<(), String>,
    max_part_bytes: u64,
) -> Result<(), NotTaken> {
    let unsigned = |code: ReasonCode, text: String| Err(NotTaken::Unsigned(code.because(text)));
    if !hosted {
        return unsigned(ReasonCode::NotHosted, format!("this node does not act for {recipient}"));
    }
    let fits = acceptance.event == Event::SubmissionAcceptance
        && acceptance.dispatch == envelope.id
        && acceptance.envelope_sha256 == envelope_sha256
        && acceptance.sender == envelope.sender.agency;
    if !fits {
        return unsigned(ReasonCode::Malformed, format!("the acceptance is not that of dispatch {}", envelope.id));
    }
    let signed = |code: ReasonCode, text: String| Err(NotTaken::Signed(code.because(text)));
    if envelope.exchange != *origin {
        return signed(
            ReasonCode::WrongAddressee,
            format!("made for exchange {}; this is {origin}", envelope.exchange),
        );
    }
    if !envelope.recipients.contains(recipient) {
        return signed(ReasonCode::WrongAddressee, format!("the envelope does not name {recipient}"));
    }
    if let Err(why) = seal() {
        return signed(ReasonCode::BadSeal, why);
    }
    envelope.check(max_part_bytes).map_err(|e| NotTaken::Signed(e.reason()))
}

/// The different bodies of an envelope; one digest with two sizes is a lie.
pub fn bodies(envelope: &Envelope) -> Result<Vec<QueuedPart>, Reason> {
    let all: BTreeSet<QueuedPart> =
        envelope.parts.iter().map(|part| QueuedPart { sha256: part.sha256, size: part.size }).collect();
    let all: Vec<QueuedPart> = all.into_iter().collect();
    match all.windows(2).find(|pair| pair[0].sha256 == pair[1].sha256) {
        Some(pair) => Err(ReasonCode::DigestMismatch
            .because(format!("body {} is said to have {} and {} bytes", pair[0].sha256, pair[0].size, pair[1].size))),
        None => Ok(all),
    }
}

/// What the exchange's answer to a statement does to the dispatch here.
pub fn after_recorded(stated: Event, standing: Standing) -> Option<InState> {
    match (stated, standing) {
        (
            Event::ContentHandover,
            Standing::HandedOver | Standing::Opened | Standing::Registered | Standing::Refused,
        ) => Some(InState::Visible),
        // Withdrawn, expired or failed before our word was recorded: nobody here may see it.
        (Event::ContentHandover, Standing::Withdrawn | Standing::Expired | Standing::Failed) => {
            Some(InState::Destroyed)
        }
        (Event::Registered, Standing::Registered) => Some(InState::Registered),
        (Event::Refused, Standing::Refused) => Some(InState::Refused),
        _ => None,
    }
}

/// Whether evidence is an answer to what this recipient stated about this envelope.
pub fn answers(evidence: &Evidence, dispatch: docaxis_protocol::DispatchId, sha256: Digest, who: &AgencyCode) -> bool {
    evidence.dispatch == dispatch && evidence.envelope_sha256 == sha256 && evidence.recipient.as_ref() == Some(who)
}

/// Whether signed bytes bear what the exchange says about a statement: its standing alone is signed by nobody. `ours`
/// says whether the statement inside the evidence is one that this recipient sealed.
pub fn rests_on(moved: Option<InState>, stated: Event, evidence: &Evidence, ours: bool) -> bool {
    let recorded = evidence.event == stated && !evidence.late && ours;
    match moved {
        Some(InState::Visible | InState::Registered | InState::Refused) => recorded,
        Some(InState::Destroyed) => {
            evidence.event == Event::ContentHandoverFailure || (evidence.event == stated && evidence.late)
        }
        Some(InState::Taken | InState::Recalled) | None => true,
    }
}

/// The time of a statement: our clock, but never before the acceptance that it answers, so that times do not run
/// backwards along the chain when our clock is a little behind.
pub fn statement_time(now: Timestamp, acceptance: Timestamp) -> Timestamp {
    now.max(acceptance)
}

#[cfg(test)]
mod tests {
    use super::*;
    use docaxis_protocol::envelope::{self, Kind, Part, PartRole, Sender};
    use docaxis_protocol::{DispatchId, evidence};

    fn envelope() -> Envelope {
        let created = Timestamp::from_unix_ms(1_795_318_200_123);
        Envelope {
            kind_of_bytes: envelope::TYPE.into(),
            exchange: "docaxis.example/vn".parse().unwrap(),
            id: DispatchId::from_parts(created, [1; 10]),
            created,
            expires: created.plus(std::time::Duration::from_secs(3600)),
            sender: Sender { agency: "000.00.00.G22".parse().unwrap(), node: "g22".parse().unwrap() },
            recipients: vec!["H37.DN.001".parse().unwrap()],
            partial: false,
            kind: Kind::New,
            priority: 0,
            not_before: None,
            document: serde_json::Map::new(),
            relates: vec![],
            status: None,
            parts: vec![part(b"abc", 3)],
            encryption: None,
            salt: "AAAAAAAAAAAAAAAAAAAAAA==".into(),
        }
    }

    fn part(bytes: &[u8], size: u64) -> Part {
        Part {
            name: "a.pdf".into(),
            media_type: "application/pdf".into(),
            size,
            sha256: Digest::of(bytes),
            role: PartRole::Document,
        }
    }

    fn acceptance(of: &Envelope) -> Evidence {
        Evidence {
            kind_of_bytes: evidence::TYPE.into(),
            id: of.id,
            event: Event::SubmissionAcceptance,
            uri: Event::SubmissionAcceptance.uri(),
            time: of.created,
            issuer: of.exchange.clone(),
            key: Digest::of(b"key"),
            policy: "urn:x".into(),
            dispatch: of.id,
            envelope_sha256: Digest::of(b"envelope"),
            sender: of.sender.agency.clone(),
            recipient: None,
            recipients: of.recipients.clone(),
            parts: vec![],
            submitted: None,
            expires: None,
            reasons: vec![],
            statement: None,
            cause: None,
            acting: None,
            late: false,
            outcome: None,
            previous: None,
            salt: String::new(),
        }
    }

    fn outcome(change: impl FnOnce(&mut Envelope, &mut Evidence), hosted: bool, seal: Result<(), String>) -> String {
        let mut envelope = envelope();
        let mut acceptance = acceptance(&envelope);
        change(&mut envelope, &mut acceptance);
        let origin = "docaxis.example/vn".parse().unwrap();
        let of = (&envelope, Digest::of(b"envelope"));
        match judge(&"H37.DN.001".parse().unwrap(), hosted, &origin, of, &acceptance, || seal, 1000) {
            Ok(()) => "taken".into(),
            Err(NotTaken::Signed(reason)) => format!("signed {}", reason.code),
            Err(NotTaken::Unsigned(reason)) => format!("unsigned {}", reason.code),
        }
    }

    #[test]
    fn each_fault_of_an_offer_has_its_own_answer() {
        let good = || Ok(());
        assert_eq!(outcome(|_, _| (), true, good()), "taken");
        assert_eq!(outcome(|_, _| (), false, good()), "unsigned not-hosted");
        assert_eq!(outcome(|_, a| a.event = Event::SubmissionRejection, true, good()), "unsigned malformed");
        assert_eq!(outcome(|_, a| a.envelope_sha256 = Digest::of(b"other"), true, good()), "unsigned malformed");
        assert_eq!(outcome(|_, a| a.sender = "A53".parse().unwrap(), true, good()), "unsigned malformed");
        assert_eq!(outcome(|e, _| e.exchange = "other".parse().unwrap(), true, good()), "signed wrong-addressee");
        assert_eq!(outcome(|e, _| e.recipients = vec!["A53".parse().unwrap()], true, good()), "signed wrong-addressee");
        assert_eq!(outcome(|_, _| (), true, Err("revoked".into())), "signed bad-seal");
        assert_eq!(outcome(|e, _| e.parts[0].size = 1001, true, good()), "signed too-large");
        assert_eq!(
            outcome(|e, _| drop(e.document.insert("secret".into(), true.into())), true, good()),
            "signed secret-refused"
        );
    }

    #[test]
    fn a_body_named_twice_is_one_body_and_a_digest_with_two_sizes_is_a_lie() {
        let mut envelope = envelope();
        envelope.parts = vec![part(b"abc", 3), part(b"x", 1), part(b"abc", 3)];
        assert_eq!(bodies(&envelope).unwrap().len(), 2);
        envelope.parts[2].size = 4;
        assert_eq!(bodies(&envelope).unwrap_err().code, "digest-mismatch");
    }

    #[test]
    fn a_standing_counts_only_with_signed_bytes_that_bear_it() {
        let bears = |moved: InState, stated: Event, event: Event, late: bool, ours: bool| {
            let evidence = Evidence { event, late, ..acceptance(&envelope()) };
            rests_on(Some(moved), stated, &evidence, ours)
        };
        let (handover, failure) = (Event::ContentHandover, Event::ContentHandoverFailure);
        assert!(bears(InState::Visible, handover, handover, false, true));
        assert!(!bears(InState::Visible, handover, handover, false, false), "someone else's statement");
        assert!(!bears(InState::Visible, handover, handover, true, true), "a late handover");
        assert!(!bears(InState::Visible, handover, failure, false, true), "a failure");
        assert!(bears(InState::Destroyed, handover, failure, false, false));
        assert!(bears(InState::Destroyed, handover, handover, true, true));
        assert!(!bears(InState::Destroyed, handover, handover, false, true), "a recorded handover");
        assert!(!bears(InState::Registered, Event::Registered, Event::Refused, false, true));
        assert!(bears(InState::Registered, Event::Registered, Event::Registered, false, true));
    }

    #[test]
    fn only_a_recorded_handover_makes_visible_and_whatever_else_won_destroys() {
        use Standing as S;
        let all = [S::HandedOver, S::Failed, S::Expired, S::Withdrawn, S::Opened, S::Registered, S::Refused];
        let (seen, gone) = (Some(InState::Visible), Some(InState::Destroyed));
        assert_eq!(all.map(|s| after_recorded(Event::ContentHandover, s)), [seen, gone, gone, gone, seen, seen, seen]);
        assert_eq!(all.map(|s| after_recorded(Event::ContentHandoverFailure, s)), [None; 7]);
        let registered = Some(InState::Registered);
        assert_eq!(all.map(|s| after_recorded(Event::Registered, s)), [None, None, None, None, None, registered, None]);
    }
}
