//! What an officer does with a dispatch that was handed over: opens it, registers it (03), refuses it (02). The statement is sealed
//! and durable when this answers; the exchange's evidence follows.

use docaxis_protocol::{
    AgencyCode, DispatchId, Envelope, Event, Kind, Reason, ReasonCode, SealedStatement, Statement, limits, statement,
};

use crate::acting;
use crate::agent::{AgentHandle, Shared};
use crate::compose::Refused;
use crate::mailbox::Stated;

impl AgentHandle {
    /// Status 03: entered in the incoming register. Saying it again changes nothing.
    pub async fn register(&self, id: DispatchId, recipient: AgencyCode) -> Result<(), Refused> {
        state(&self.shared, id, recipient, Event::Registered, vec![]).await
    }

    /// An officer has opened it. Only the first time counts; a dispatch that was returned is opened no more.
    pub async fn open(&self, id: DispatchId, recipient: AgencyCode) -> Result<(), Refused> {
        state(&self.shared, id, recipient, Event::ContentAccessTracking, vec![]).await
    }

    /// Status 02: returned, with a reason.
    pub async fn refuse(&self, id: DispatchId, recipient: AgencyCode, reason: Reason) -> Result<(), Refused> {
        state(&self.shared, id, recipient, Event::Refused, vec![reason]).await
    }
}

pub(crate) async fn state(
    shared: &Shared,
    id: DispatchId,
    recipient: AgencyCode,
    event: Event,
    reasons: Vec<Reason>,
) -> Result<(), Refused> {
    let rule = |code: ReasonCode, text: String| Err(Refused::Rule(code.because(text)));
    if reasons.iter().any(|reason| reason.text.len() > limits::MAX_REASON_TEXT_BYTES) {
        return rule(ReasonCode::TooLarge, format!("a reason has at most {} bytes", limits::MAX_REASON_TEXT_BYTES));
    }
    let identity = shared.identity.load_full();
    let signer = acting::signer_of(shared, &identity, id, &recipient).await?;
    let Some((signer, seal)) = signer.and_then(|signer| identity.seals.get_key_value(&signer)) else {
        return rule(ReasonCode::NotHosted, format!("this node does not act for {recipient}"));
    };
    let none = || format!("{recipient} has no dispatch {id} that was handed over");
    let Some(row) = shared.mailbox.incoming(id, recipient.clone()).await?.filter(|row| row.state.is_visible()) else {
        return rule(ReasonCode::NotFound, none());
    };
    let envelope = Envelope::parse(&row.sealed.bytes).map_err(|e| Refused::Rule(e.reason()))?;
    if matches!(envelope.kind, Kind::Status | Kind::Recall) {
        let kind = envelope.kind.as_str();
        return rule(
            ReasonCode::Malformed,
            format!("dispatch {id} is a {kind}: it is not opened, registered or refused"),
        );
    }
    let envelope_sha256 = row.sealed.digest();
    let said = Statement {
        kind_of_bytes: statement::TYPE.into(),
        exchange: identity.origin.clone(),
        event,
        dispatch: id,
        envelope_sha256,
        recipient: recipient.clone(),
        // Never before the handover that it follows, even where our clock is a little behind.
        time: shared.env.now().max(row.since),
        reasons,
        acting: Some(signer.clone()).filter(|signer| *signer != recipient),
    };
    let sealed = SealedStatement::seal(&said, &seal.key, seal.chain.clone())
        .map_err(|e| Refused::Rule(ReasonCode::Other.because(e.to_string())))?;
    docaxis_failpoints::failpoint!("agent.officer.sealed");
    match shared.mailbox.state(id, recipient.clone(), envelope_sha256, event, sealed).await? {
        Stated::New => {
            docaxis_failpoints::failpoint!("agent.officer.stated");
            shared.reports.notify_one();
            shared.changed();
            Ok(())
        }
        Stated::Already => Ok(()),
        Stated::Other(earlier) => {
            rule(ReasonCode::NotYours, format!("{recipient} has already answered dispatch {id}: {earlier}"))
        }
        Stated::NotVisible => rule(ReasonCode::NotFound, none()),
    }
}
