//! What officers do about a dispatch of before: its sender recalls it, its recipient answers the recall and reports how far
//! the work has come. Each is a dispatch of its own, sealed and durable when this answers; asking again gives the same one.

use std::collections::BTreeSet;

use docaxis_protocol::about::rel;
use docaxis_protocol::envelope::{Envelope, Kind, Relation, StatusReport};
use docaxis_protocol::{About, AgencyCode, DispatchId, ReasonCode, StatusCode, limits};
use serde_json::{Map, Value, json};

use crate::agent::{AgentHandle, Shared};
use crate::compose::{Draft, Refused, compose};
use crate::mailbox::{DeliveryState, GivesUp, InState, IncomingRow, OutState, Related, RelatedRow};

/// What a new dispatch about a document repeats of its header, so that readers recognise it.
const REPEATED: [&str; 5] = ["DocumentId", "Code", "PromulgationInfo", "DocumentType", "Subject"];
/// A recall overtakes ordinary dispatches.
const RECALL_PRIORITY: u8 = 1;
/// The highest priority that has no appointed time.
const FLASH: u8 = 3;

fn rule<T>(code: ReasonCode, text: impl Into<String>) -> Result<T, Refused> {
    Err(Refused::Rule(code.because(text)))
}

impl AgentHandle {
    /// Recalls a dispatch that was sent from here, from these recipients, or from all that have it or will get it. What has
    /// not been handed over is withdrawn by the exchange; whoever has it is asked.
    pub async fn recall(&self, id: DispatchId, from: Vec<AgencyCode>, why: &str) -> Result<DispatchId, Refused> {
        recall(&self.shared, id, from, why).await
    }

    /// Statuses 04 to 06, and 15 or 16 as the answer to a recall; with 15 the bodies are destroyed.
    pub async fn report(
        &self,
        id: DispatchId,
        recipient: AgencyCode,
        code: StatusCode,
        text: &str,
    ) -> Result<DispatchId, Refused> {
        report(&self.shared, id, recipient, code, text).await
    }
}

fn words(what: &str, text: &str) -> Result<String, Refused> {
    let text = text.trim();
    if text.len() > limits::MAX_REASON_TEXT_BYTES {
        let max = limits::MAX_REASON_TEXT_BYTES;
        return rule(ReasonCode::TooLarge, format!("{what} has {} bytes; the limit is {max}", text.len()));
    }
    Ok(text.to_owned())
}

fn repeated(document: &Map<String, Value>) -> Map<String, Value> {
    let kept = |name: &&str| Some(((*name).to_owned(), document.get(*name)?.clone()));
    REPEATED.iter().filter_map(kept).collect()
}

fn relation(rel: &str, dispatch: DispatchId, document: &Map<String, Value>) -> Relation {
    let document_id = document.get("DocumentId").and_then(Value::as_str).map(str::to_owned);
    Relation { rel: rel.to_owned(), dispatch, document_id }
}

/// Looks at what a new dispatch says about earlier ones of ours. Whatever is not here is left to the exchange to judge: an
/// agency may have sent it from another node.
pub(crate) async fn check(shared: &Shared, envelope: &Envelope, checked: bool) -> Result<Vec<Related>, Refused> {
    let about = envelope.about().map_err(Refused::Rule)?;
    if let (About::Status(code, id), false) = (&about, checked || about.is_senders()) {
        let text = format!(
            "{code} about dispatch {id} is reported as a status of it (`/v1/dispatches/{id}/status`), not sent by itself"
        );
        return rule(ReasonCode::Malformed, text);
    }
    let sender = &envelope.sender.agency;
    for id in about.earlier().iter().filter(|_| about.is_senders()) {
        let Some(row) = shared.mailbox.outgoing(*id).await? else { continue };
        if row.sender != *sender {
            return rule(ReasonCode::NotYours, format!("dispatch {id} was sent by {}, not by {sender}", row.sender));
        }
        if row.state == OutState::Rejected {
            return rule(ReasonCode::NotFound, format!("the exchange rejected dispatch {id}: nobody was sent it"));
        }
        let recalled = recalls_of(shared, *id).await?.pop();
        if let (About::Update(_) | About::Replace(_), Some(recall)) = (&about, recalled) {
            let Related { dispatch, time, .. } = recall.related;
            let text = format!("dispatch {id} was recalled by {dispatch} at {time} and is frozen since");
            return rule(ReasonCode::Withdrawn, text);
        }
    }
    Ok(Related::of(envelope, sender, false))
}

/// Our recalls of this dispatch that the exchange has not rejected.
async fn recalls_of(shared: &Shared, id: DispatchId) -> Result<Vec<RelatedRow>, Refused> {
    let mut rows = shared.mailbox.related(id).await?;
    rows.retain(|row| {
        row.related.kind == Kind::Recall && !row.related.incoming && row.state != OutState::Rejected.as_str()
    });
    Ok(rows)
}

pub(crate) async fn recall(
    shared: &Shared,
    id: DispatchId,
    from: Vec<AgencyCode>,
    why: &str,
) -> Result<DispatchId, Refused> {
    let why = words("the reason", why)?;
    if why.is_empty() {
        return rule(ReasonCode::Malformed, "a recall says why");
    }
    let Some(row) = shared.mailbox.outgoing(id).await? else {
        return rule(ReasonCode::NotFound, format!("no agency of this node sent a dispatch {id}"));
    };
    let envelope = Envelope::parse(&row.sealed.bytes).map_err(|e| Refused::Rule(e.reason()))?;
    if matches!(envelope.kind, Kind::Recall | Kind::Status) {
        return rule(
            ReasonCode::Malformed,
            format!("dispatch {id} is of kind {}; only documents are recalled", envelope.kind.as_str()),
        );
    }
    let deliveries = shared.mailbox.deliveries(id).await?;
    let stranger = from.iter().find(|code| deliveries.iter().all(|delivery| delivery.recipient != **code));
    if let Some(stranger) = stranger {
        return rule(ReasonCode::WrongAddressee, format!("dispatch {id} was not sent to {stranger}"));
    }
    let ended = |state| matches!(state, DeliveryState::Failed | DeliveryState::Withdrawn);
    let mut open: BTreeSet<AgencyCode> = deliveries
        .into_iter()
        .filter(|delivery| from.is_empty() || from.contains(&delivery.recipient))
        .filter(|delivery| !ended(delivery.state))
        .map(|delivery| delivery.recipient)
        .collect();
    let mut earlier = None;
    for recall in recalls_of(shared, id).await? {
        let mut asked = shared.mailbox.deliveries(recall.related.dispatch).await?;
        // A recall that did not reach somebody in its time may be made again.
        asked.retain(|delivery| delivery.state != DeliveryState::Failed);
        open.retain(|code| asked.iter().all(|delivery| delivery.recipient != *code));
        let wanted = from.is_empty() || asked.iter().any(|delivery| from.contains(&delivery.recipient));
        earlier = wanted.then_some(recall.related.dispatch).or(earlier);
    }
    if open.is_empty() {
        return match earlier {
            Some(earlier) => Ok(earlier),
            None => rule(ReasonCode::NotFound, format!("none of them has dispatch {id} or will get it")),
        };
    }
    let mut document = repeated(&envelope.document);
    let bussiness = json!({"BussinessDocType": "1", "BussinessDocReason": why, "Paper": "0"});
    document.insert("TraceHeaderList".into(), json!({ "Bussiness": bussiness.clone() }));
    // Where programs of before read it.
    document.insert("Bussiness".into(), bussiness);
    let names: Vec<&str> = open.iter().map(AgencyCode::as_str).collect();
    let tries = shared.mailbox.related(id).await?;
    let tries = tries.iter().filter(|row| row.related.kind == Kind::Recall && !row.related.incoming).count();
    // Two officers at the same moment make one recall; one that was rejected or came too late is followed by another.
    let key = format!("recall {id} {tries} {}", names.join(" "));
    let key = docaxis_protocol::Digest::of(key.as_bytes()).to_string();
    let draft = Draft {
        kind: Kind::Recall,
        priority: envelope.priority.clamp(RECALL_PRIORITY, FLASH),
        relates: vec![relation(rel::RECALLS, id, &envelope.document)],
        document,
        idempotency_key: Some(key),
        // Whoever cannot be reached now must not keep it from being taken back from the others.
        partial: true,
        checked: true,
        ..Draft::new(row.sender, open.into_iter().collect())
    };
    Ok(compose(shared, draft).await?.id)
}

pub(crate) async fn report(
    shared: &Shared,
    id: DispatchId,
    recipient: AgencyCode,
    code: StatusCode,
    text: &str,
) -> Result<DispatchId, Refused> {
    let text = words("the description", text)?;
    let row = received(shared, id, &recipient).await?;
    let envelope = Envelope::parse(&row.sealed.bytes).map_err(|e| Refused::Rule(e.reason()))?;
    let (given, is_update) = (id, envelope.kind == Kind::Update);
    // An answer to a recall is about the document that it recalls; so is one to an update, unless that is asked back itself.
    let target = match envelope.about() {
        Ok(About::Recall(target) | About::Status(StatusCode::TakeBack, target)) if !code.is_progress() => Some(target),
        Ok(About::Update(target)) if !code.is_progress() => {
            let rows = shared.mailbox.related(id).await?;
            request_of(&rows, &recipient, &envelope.sender.agency).is_none().then_some(target)
        }
        _ => None,
    };
    let (id, row, envelope) = match target {
        Some(target) => {
            let row = received(shared, target, &recipient).await?;
            let envelope = Envelope::parse(&row.sealed.bytes).map_err(|e| Refused::Rule(e.reason()))?;
            (target, row, envelope)
        }
        None => (id, row, envelope),
    };
    if matches!(envelope.kind, Kind::Recall | Kind::Status) {
        let kind = envelope.kind.as_str();
        return rule(ReasonCode::Malformed, format!("nothing is reported about a dispatch of kind {kind}"));
    }
    let rows: Vec<RelatedRow> = shared.mailbox.related(id).await?;
    let mut relates = vec![relation(rel::CONCERNS, id, &envelope.document)];
    let update = (is_update && given != id).then_some(given);
    let mut gives_up = None;
    match code {
        StatusCode::TakeBack => return rule(ReasonCode::NotYours, "only its sender asks for a document back (13)"),
        StatusCode::Agreed | StatusCode::Declined => {
            let Some(request) = request_of(&rows, &recipient, &envelope.sender.agency) else {
                return rule(ReasonCode::NotFound, format!("nobody has asked {recipient} for dispatch {id}"));
            };
            // Whoever agrees to an update must not destroy what a later recall asks for.
            if let Some(update) = update.filter(|update| *update != request.dispatch) {
                let (kind, later) = (request.kind.as_str(), request.dispatch);
                let text =
                    format!("after {update} its sender sent {later} of kind {kind} about dispatch {id}; answer that");
                return rule(ReasonCode::IdConflict, text);
            }
            relates.push(Relation { rel: rel::REPLIES_TO.into(), dispatch: request.dispatch, document_id: None });
            if code == StatusCode::Declined && row.state == InState::Recalled {
                return rule(ReasonCode::IdConflict, format!("{recipient} has agreed already; the document is gone"));
            }
            if code == StatusCode::Agreed && request.kind != Kind::Update && row.state.is_visible() {
                let since = shared.env.now();
                gives_up = Some(GivesUp { dispatch: id, recipient: recipient.clone(), since });
            }
        }
        StatusCode::Assigned | StatusCode::InProcess | StatusCode::Finished => {
            if row.state != InState::Registered {
                let text = format!("dispatch {id} is {}; {code} follows its registration (03)", row.state.as_str());
                return rule(ReasonCode::NotYours, text);
            }
        }
    }
    let time = shared.env.now();
    let mut document = Map::new();
    document.insert("ResponseFor".into(), response_for(&envelope));
    let draft = Draft {
        kind: Kind::Status,
        priority: envelope.priority.min(FLASH),
        relates,
        document,
        status: Some(StatusReport { code: code.as_str().into(), description: text, time }),
        gives_up,
        checked: true,
        ..Draft::new(recipient, vec![envelope.sender.agency])
    };
    Ok(compose(shared, draft).await?.id)
}

async fn received(shared: &Shared, id: DispatchId, recipient: &AgencyCode) -> Result<IncomingRow, Refused> {
    let row = shared.mailbox.incoming(id, recipient.clone()).await?;
    match row.filter(|row| row.state.is_visible() || row.state == InState::Recalled) {
        Some(row) => Ok(row),
        None => rule(ReasonCode::NotFound, format!("{recipient} has no dispatch {id} that was handed over")),
    }
}

/// The newest request to `recipient` by the document's own sender. Others' words count for nothing, whatever the exchange
/// lets through.
pub(crate) fn request_of<'a>(
    rows: &'a [RelatedRow],
    recipient: &AgencyCode,
    sender: &AgencyCode,
) -> Option<&'a Related> {
    let asks = |related: &&Related| {
        related.incoming
            && related.agency == *recipient
            && related.sender == *sender
            && (matches!(related.kind, Kind::Recall | Kind::Update) || related.code == Some(StatusCode::TakeBack))
    };
    rows.iter().map(|row| &row.related).rfind(asks)
}

/// What a status is about, as edXML names it.
fn response_for(envelope: &Envelope) -> Value {
    let document = &envelope.document;
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_owned();
    let code = |field: &str| text(document.get("Code").and_then(|code| code.get(field)));
    let (number, notation) = (code("CodeNumber"), code("CodeNotation"));
    let joined = if notation.is_empty() { number } else { format!("{number}/{notation}") };
    let date = document.get("PromulgationInfo").and_then(|info| info.get("PromulgationDate"));
    let document_id = text(document.get("DocumentId"));
    let document_id = if document_id.is_empty() { envelope.id.to_string() } else { document_id };
    json!({
        "OrganId": envelope.sender.agency, "Code": joined, "PromulgationDate": text(date), "DocumentId": document_id,
    })
}
