//! May this dispatch recall, update, replace or report on those that it names? Pure: the envelope and what is known of the
//! earlier dispatches come in, a verdict goes out. Whoever is neither sender nor recipient of one learns nothing about it,
//! not even that it exists.

use std::collections::BTreeMap;

use docaxis_protocol::{About, AgencyCode, DispatchId, Envelope, Kind, Reason, ReasonCode, StatusCode};

use crate::store::DeliveryState;

/// An accepted dispatch that another one is about, as its own sender and recipients may know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Earlier {
    pub kind: Kind,
    pub sender: AgencyCode,
    pub deliveries: BTreeMap<AgencyCode, DeliveryState>,
}

/// What is known of earlier dispatches, by id; without those that are not known.
pub type Known = BTreeMap<DispatchId, Earlier>;

/// How many recipients an answer names.
const NAMED: usize = 20;

/// Judges a dispatch by those that it is about.
pub fn may_relate(envelope: &Envelope, about: &About, known: &Known) -> Result<(), Reason> {
    for id in about.earlier() {
        let sender = &envelope.sender.agency;
        // The same words whether it is not there or somebody else's.
        let not_yours = || {
            let role = if about.is_senders() { "sent no" } else { "received no" };
            ReasonCode::NotYours.because(format!("{sender} {role} dispatch {id} that the exchange accepted"))
        };
        let earlier = known.get(id).ok_or_else(not_yours)?;
        let theirs = match about.is_senders() {
            true => earlier.sender == *sender,
            false => earlier.deliveries.contains_key(sender),
        };
        if !theirs {
            return Err(not_yours());
        }
        if matches!(earlier.kind, Kind::Status | Kind::Recall) {
            let text = format!("dispatch {id} is of kind {}; only documents are recalled", earlier.kind.as_str());
            return Err(ReasonCode::Malformed.because(format!("{text}, updated, replaced or reported on")));
        }
        match about {
            About::Recall(_) | About::Status(StatusCode::TakeBack, _) => only_its_recipients(envelope, *id, earlier)?,
            About::Status(..) => from_recipient_to_sender(envelope, *id, earlier)?,
            About::Itself | About::Update(_) | About::Replace(_) => {}
        }
    }
    Ok(())
}

/// A recall goes to those who were sent the document.
fn only_its_recipients(envelope: &Envelope, id: DispatchId, earlier: &Earlier) -> Result<(), Reason> {
    let foreign = envelope.recipients.iter().filter(|code| !earlier.deliveries.contains_key(*code));
    let foreign: Vec<&str> = foreign.take(NAMED).map(AgencyCode::as_str).collect();
    if foreign.is_empty() {
        return Ok(());
    }
    let text = format!("dispatch {id} was not sent to {}; a recall names only its recipients", foreign.join(", "));
    Err(ReasonCode::WrongAddressee.because(text))
}

/// A status goes back to the sender alone, from a recipient that has the document.
fn from_recipient_to_sender(envelope: &Envelope, id: DispatchId, earlier: &Earlier) -> Result<(), Reason> {
    if envelope.recipients != [earlier.sender.clone()] {
        let text = format!("a status about dispatch {id} goes to its sender {} alone", earlier.sender);
        return Err(ReasonCode::WrongAddressee.because(text));
    }
    match earlier.deliveries.get(&envelope.sender.agency) {
        Some(
            DeliveryState::HandedOver | DeliveryState::Registered | DeliveryState::Refused | DeliveryState::NoAnswer,
        ) => Ok(()),
        state => {
            let who = &envelope.sender.agency;
            let text =
                format!("dispatch {id} was not handed over to {who} (it is {state:?}): nothing is to be reported");
            Err(ReasonCode::NotYours.because(text))
        }
    }
}

#[cfg(test)]
mod tests {
    use docaxis_protocol::Timestamp;
    use docaxis_protocol::about::rel;
    use docaxis_protocol::envelope::{Relation, Sender, StatusReport, TYPE};

    use super::*;

    fn id(n: u8) -> DispatchId {
        DispatchId::from_parts(Timestamp::from_unix_ms(1_795_318_200_000), [n; 10])
    }

    fn code(text: &str) -> AgencyCode {
        text.parse().unwrap()
    }

    /// Dispatch 1 from G22 to A, which has it, and B, which waits; dispatch 2 is a recall from G22.
    fn known() -> Known {
        let deliveries = [("A01", DeliveryState::HandedOver), ("B01", DeliveryState::Waiting)];
        let deliveries: BTreeMap<_, _> = deliveries.into_iter().map(|(who, state)| (code(who), state)).collect();
        let letter = Earlier { kind: Kind::New, sender: code("G22"), deliveries };
        Known::from([(id(1), letter.clone()), (id(2), Earlier { kind: Kind::Recall, ..letter })])
    }

    fn verdict(from: &str, to: &[&str], kind: Kind, rel: &str, about: u8, status: Option<&str>) -> Option<String> {
        let created = Timestamp::from_unix_ms(1_795_318_200_000);
        let envelope = Envelope {
            kind_of_bytes: TYPE.into(),
            exchange: "docaxis.example/vn".parse().unwrap(),
            id: id(0),
            created,
            expires: created.plus(std::time::Duration::from_secs(60)),
            sender: Sender { agency: code(from), node: "node".parse().unwrap() },
            recipients: to.iter().map(|to| code(to)).collect(),
            kind,
            priority: 0,
            partial: false,
            not_before: None,
            document: Default::default(),
            relates: vec![Relation { rel: rel.into(), dispatch: id(about), document_id: None }],
            status: status.map(|code| StatusReport { code: code.into(), description: String::new(), time: created }),
            parts: vec![],
            encryption: None,
            salt: "AA==".into(),
        };
        let about = envelope.about().unwrap();
        may_relate(&envelope, &about, &known()).err().map(|reason| reason.code)
    }

    #[test]
    fn only_the_sender_recalls_updates_and_replaces_and_only_from_those_it_sent_to() {
        let case = |from, to: &[&str], kind, rel| verdict(from, to, kind, rel, 1, None);
        let is = |code: &str| Some(code.to_owned());
        assert_eq!(case("G22", &["A01", "B01"], Kind::Recall, rel::RECALLS), None);
        assert_eq!(case("G22", &["B01"], Kind::Recall, rel::RECALLS), None);
        assert_eq!(case("G22", &["A01", "C01"], Kind::Recall, rel::RECALLS), is("wrong-addressee"));
        for (kind, rel) in [(Kind::Recall, rel::RECALLS), (Kind::Update, rel::UPDATES), (Kind::Replace, rel::REPLACES)]
        {
            assert_eq!(case("A01", &["B01"], kind, rel), is("not-yours"));
            assert_eq!(verdict("G22", &["A01"], kind, rel, 9, None), is("not-yours"), "not there");
            assert_eq!(verdict("G22", &["A01"], kind, rel, 2, None), is("malformed"), "a recall of a recall");
        }
        assert_eq!(case("G22", &["C01"], Kind::Replace, rel::REPLACES), None);
        let take_back = |from, to: &[&str]| verdict(from, to, Kind::Status, rel::CONCERNS, 1, Some("13"));
        assert_eq!(take_back("G22", &["A01"]), None);
        assert_eq!(take_back("A01", &["B01"]), is("not-yours"));
        assert_eq!(take_back("G22", &["C01"]), is("wrong-addressee"));
    }

    #[test]
    fn only_a_recipient_that_has_it_reports_and_to_the_sender_alone() {
        let case = |from, to: &[&str], status| verdict(from, to, Kind::Status, rel::CONCERNS, 1, Some(status));
        let is = |code: &str| Some(code.to_owned());
        for status in ["04", "05", "06", "15", "16"] {
            assert_eq!(case("A01", &["G22"], status), None);
            assert_eq!(case("A01", &["B01"], status), is("wrong-addressee"));
            assert_eq!(case("A01", &["G22", "B01"], status), is("wrong-addressee"));
            assert_eq!(case("B01", &["G22"], status), is("not-yours"), "it waits");
            assert_eq!(case("C01", &["G22"], status), is("not-yours"), "a stranger");
            assert_eq!(case("G22", &["G22"], status), is("not-yours"), "the sender");
        }
    }
}
