//! May this node submit this dispatch now? Pure: the envelope, what the directory says and the time come in, a verdict
//! goes out. The seal has been checked before, because that costs a signature check.

use docaxis_protocol::limits::MAX_CLOCK_SKEW;
use docaxis_protocol::{AgencyCode, Envelope, Kind, NodeId, Origin, Reason, ReasonCode, Timestamp};

/// What the directory says of an agency as a recipient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Open,
    Locked,
    /// Not yet, or no longer: the directory gives it a first and a last day.
    NotValid,
    Unknown,
}

/// How a submission is turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// A link error: no evidence is made of it.
    Link(Reason),
    /// A SubmissionRejection is issued.
    WithEvidence(Reason),
}

/// Codes that are answered on the link alone.
const LINK_ONLY: &[ReasonCode] = &[
    ReasonCode::Malformed,
    ReasonCode::NotHosted,
    ReasonCode::ClockSkew,
    ReasonCode::Busy,
    ReasonCode::DiskFull,
    // It will be taken later: nothing is over, so there is nothing to give evidence of.
    ReasonCode::OverQuota,
    ReasonCode::TokenUsed,
    ReasonCode::TokenExpired,
];

impl Refused {
    pub fn new(reason: Reason) -> Self {
        if LINK_ONLY.contains(&reason.known()) { Self::Link(reason) } else { Self::WithEvidence(reason) }
    }

    pub const fn reason(&self) -> &Reason {
        match self {
            Self::Link(reason) | Self::WithEvidence(reason) => reason,
        }
    }
}

/// What admission needs to know beside the envelope.
pub struct Situation<'a> {
    pub origin: &'a Origin,
    /// Who submits, from the connection's certificate.
    pub node: &'a NodeId,
    pub now: Timestamp,
    pub max_part_bytes: u64,
    /// Whether the directory lets the node act for this agency.
    pub hosted: &'a dyn Fn(&AgencyCode) -> bool,
    pub recipient: &'a dyn Fn(&AgencyCode) -> Standing,
    /// Why the sending agency may not send, if it may not: locked, merged, not valid now.
    pub sender_stopped: Option<String>,
}

/// Who may speak, and for which exchange: what must hold before a signature is worth checking.
pub fn may_speak(envelope: &Envelope, situation: &Situation<'_>) -> Result<(), Refused> {
    let refuse = |code: ReasonCode, text: String| Err(Refused::new(code.because(text)));
    if envelope.exchange != *situation.origin {
        let (found, expected) = (&envelope.exchange, situation.origin);
        return refuse(ReasonCode::Malformed, format!("sealed for exchange {found}; this is {expected}"));
    }
    if envelope.sender.node != *situation.node || !(situation.hosted)(&envelope.sender.agency) {
        return refuse(
            ReasonCode::NotHosted,
            format!(
                "dispatch {} claims to come from {} at node {}; node {} submits it and may not speak for that agency",
                envelope.id, envelope.sender.agency, envelope.sender.node, situation.node
            ),
        );
    }
    Ok(())
}

/// The rules about content, time and recipients, after the seal was found good.
pub fn admit(envelope: &Envelope, situation: &Situation<'_>) -> Result<(), Refused> {
    let refuse = |code: ReasonCode, text: String| Err(Refused::new(code.because(text)));
    envelope.check(situation.max_part_bytes).map_err(|e| Refused::new(e.reason()))?;
    if envelope.created > situation.now.plus(MAX_CLOCK_SKEW) {
        let (created, now) = (envelope.created, situation.now);
        return refuse(ReasonCode::ClockSkew, format!("created {created}, but the exchange's clock says {now}"));
    }
    if envelope.expires <= situation.now {
        return refuse(ReasonCode::Expired, format!("expired {}; it is {}", envelope.expires, situation.now));
    }
    if let Some(why) = &situation.sender_stopped {
        return refuse(ReasonCode::SenderLocked, why.clone());
    }
    if let Some(at) = envelope.not_before.filter(|at| *at >= envelope.expires) {
        let expires = envelope.expires;
        return refuse(ReasonCode::Malformed, format!("appointed for {at}, but it expires {expires}: never to be had"));
    }
    let bad = unreachable(envelope, situation.recipient);
    // A recall withdraws also where nobody can be told of it now.
    if envelope.partial && (bad.len() < envelope.recipients.len() || envelope.kind == Kind::Recall) {
        return Ok(());
    }
    // One reason stands for all that share it; the first of the list's, as long as there is one.
    for code in [ReasonCode::UnknownRecipient, ReasonCode::RecipientLocked] {
        let texts: Vec<&str> =
            bad.iter().filter(|(_, why)| why.known() == code).take(NAMED).map(|(_, why)| why.text.as_str()).collect();
        if !texts.is_empty() {
            return refuse(code, texts.join("; "));
        }
    }
    Ok(())
}

/// Recipients that a refusal names, of those that share its reason.
const NAMED: usize = 20;

/// The recipients that a dispatch cannot reach now, and why.
pub fn unreachable<'a>(
    envelope: &'a Envelope,
    standing: &dyn Fn(&AgencyCode) -> Standing,
) -> Vec<(&'a AgencyCode, Reason)> {
    let why = |code: &AgencyCode| match standing(code) {
        Standing::Open => None,
        Standing::Unknown => {
            Some(ReasonCode::UnknownRecipient.because(format!("the directory knows no node that acts for {code}")))
        }
        Standing::Locked => Some(ReasonCode::RecipientLocked.because(format!("{code} is locked"))),
        Standing::NotValid => {
            let text = format!("{code} is not valid now: the directory gives it a first or a last day");
            Some(ReasonCode::RecipientLocked.because(text))
        }
    };
    envelope.recipients.iter().filter_map(|code| Some((code, why(code)?))).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use docaxis_protocol::envelope::{Sender, TYPE};
    use docaxis_protocol::{Digest, DispatchId, Part, PartRole};

    use super::*;

    fn now() -> Timestamp {
        Timestamp::from_unix_ms(1_795_318_200_000)
    }

    fn letter() -> Envelope {
        Envelope {
            kind_of_bytes: TYPE.into(),
            exchange: "docaxis.example/vn".parse().unwrap(),
            id: DispatchId::from_parts(now(), [1; 10]),
            created: now(),
            expires: now().plus(Duration::from_secs(86_400)),
            sender: Sender { agency: "000.00.00.G22".parse().unwrap(), node: "g22".parse().unwrap() },
            recipients: vec!["H37.DN.001".parse().unwrap(), "000.00.01.A53".parse().unwrap()],
            partial: false,
            kind: Kind::New,
            priority: 0,
            not_before: None,
            document: Default::default(),
            relates: vec![],
            status: None,
            parts: vec![Part {
                name: "a.pdf".into(),
                media_type: "application/pdf".into(),
                size: 1,
                sha256: Digest::of(b"a"),
                role: PartRole::Document,
            }],
            encryption: None,
            salt: "AA==".into(),
        }
    }

    /// The verdict for an envelope from node g22, which hosts 000.00.00.G22; 000.00.99.H99 is locked, codes that begin
    /// with X are unknown.
    fn verdict(change: impl FnOnce(&mut Envelope)) -> Option<(&'static str, String)> {
        verdict_of(change, false)
    }

    fn verdict_of(change: impl FnOnce(&mut Envelope), sender_locked: bool) -> Option<(&'static str, String)> {
        let mut envelope = letter();
        change(&mut envelope);
        let (origin, node) = ("docaxis.example/vn".parse().unwrap(), "g22".parse().unwrap());
        let situation = Situation {
            origin: &origin,
            node: &node,
            now: now(),
            max_part_bytes: 1_000,
            hosted: &|code| code.as_str() == "000.00.00.G22",
            recipient: &|code| match code.as_str() {
                "000.00.99.H99" => Standing::Locked,
                code if code.starts_with('X') => Standing::Unknown,
                _ => Standing::Open,
            },
            sender_stopped: sender_locked.then(|| "it is locked".to_owned()),
        };
        let refused = may_speak(&envelope, &situation).and_then(|()| admit(&envelope, &situation)).err()?;
        let how = if matches!(refused, Refused::Link(_)) { "link" } else { "evidence" };
        Some((how, refused.reason().code.clone()))
    }

    #[test]
    fn each_rule_refuses_with_its_own_code_and_only_some_leave_evidence() {
        let case = |change: fn(&mut Envelope)| verdict(change);
        let is = |how: &'static str, code: &str| Some((how, code.to_owned()));
        assert_eq!(case(|_| ()), None);
        assert_eq!(verdict_of(|_| (), true), is("evidence", "sender-locked"));
        assert_eq!(case(|e| e.exchange = "other.example".parse().unwrap()), is("link", "malformed"));
        assert_eq!(case(|e| e.sender.agency = "H37.DN.001".parse().unwrap()), is("link", "not-hosted"));
        assert_eq!(case(|e| e.sender.node = "h37".parse().unwrap()), is("link", "not-hosted"));
        assert_eq!(case(|e| e.recipients.push("XYZ".parse().unwrap())), is("evidence", "unknown-recipient"));
        assert_eq!(case(|e| e.recipients.push("000.00.99.H99".parse().unwrap())), is("evidence", "recipient-locked"));
        let bad = |code: &str| -> AgencyCode { code.parse().unwrap() };
        let partial = |e: &mut Envelope, codes: [&str; 2]| {
            e.partial = true;
            e.recipients = codes.map(bad).to_vec();
        };
        assert_eq!(verdict(|e| partial(e, ["H37.DN.001", "XYZ"])), None);
        assert_eq!(verdict(|e| partial(e, ["000.00.99.H99", "XYZ"])), is("evidence", "unknown-recipient"));
        assert_eq!(case(|e| e.recipients.push(e.recipients[0].clone())), is("evidence", "duplicate-recipient"));
        assert_eq!(case(|e| drop(e.document.insert("secret".into(), true.into()))), is("evidence", "secret-refused"));
        assert_eq!(case(|e| e.not_before = Some(e.expires)), is("link", "malformed"));
        assert_eq!(case(|e| e.not_before = Some(e.expires.minus(Duration::from_secs(1)))), None);
        assert_eq!(case(|e| e.parts[0].size = 1_001), is("evidence", "too-large"));
        assert_eq!(case(|e| e.parts[0].name = "a/b".into()), is("evidence", "unsafe-name"));
        assert_eq!(
            case(|e| {
                e.created = now().minus(Duration::from_secs(900));
                e.expires = now();
            }),
            is("evidence", "expired")
        );
        assert_eq!(case(|e| e.created = now().plus(Duration::from_secs(301))), is("link", "clock-skew"));
    }
}
