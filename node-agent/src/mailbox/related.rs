//! What was sent about an earlier dispatch: recalls, updates, replacements and statuses, of ours and to us. Each row stands
//! beside the dispatch that says it and is durable with it.

use docaxis_protocol::about::{About, rel};
use docaxis_protocol::{AgencyCode, DispatchId, Envelope, Kind, StatusCode, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::incoming::{Destroyed, release};
use super::rows::{self, InState};
use super::{Mailbox, MailboxError};

/// One dispatch about an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Related {
    /// The earlier dispatch.
    pub target: DispatchId,
    /// The one that is about it.
    pub dispatch: DispatchId,
    /// Our agency that sent it or was sent it.
    pub agency: AgencyCode,
    pub incoming: bool,
    /// Who sent it.
    pub sender: AgencyCode,
    pub kind: Kind,
    pub code: Option<StatusCode>,
    /// Why, in the sender's words.
    pub text: String,
    /// The request that it answers.
    pub answers: Option<DispatchId>,
    /// When it was made, by its sender's clock.
    pub time: Timestamp,
}

/// The same with where the dispatch stands that says it: a state of the outbox or of the inbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelatedRow {
    pub related: Related,
    pub state: String,
}

/// Reasons that earlier programs did not read: those that came as edXML files stand in `TraceHeaderList`.
pub(super) fn fill_reasons(connection: &Connection) -> Result<(), MailboxError> {
    let mut query = connection.prepare(
        "SELECT r.dispatch, r.agency, r.incoming, coalesce(o.envelope, i.envelope) FROM related r \
         LEFT JOIN outgoing o ON NOT r.incoming AND o.id = r.dispatch \
         LEFT JOIN incoming i ON r.incoming AND i.id = r.dispatch AND i.recipient = r.agency \
         WHERE r.text = '' AND r.kind <> ?1",
    )?;
    let mut found = query.query([Kind::Status.as_str()])?;
    while let Some(row) = found.next()? {
        let (dispatch, agency): (Vec<u8>, String) = (row.get(0)?, row.get(1)?);
        let incoming: bool = row.get(2)?;
        // One that does not read says nothing about others; the check of the mailbox tells of it.
        let Some(envelope) = row.get::<_, Option<Vec<u8>>>(3)? else { continue };
        if let Ok(envelope) = Envelope::parse(&envelope) {
            connection
                .prepare_cached("UPDATE related SET text = ?4 WHERE dispatch = ?1 AND agency = ?2 AND incoming = ?3")?
                .execute(params![dispatch, agency, incoming, envelope.business_reason()])?;
        }
    }
    Ok(())
}

impl Related {
    /// What an envelope says about earlier dispatches; nothing if it is a document of its own, or does not say it as it should.
    pub fn of(envelope: &Envelope, agency: &AgencyCode, incoming: bool) -> Vec<Self> {
        let Ok(about) = envelope.about() else { return vec![] };
        let code = match &about {
            About::Status(code, _) => Some(*code),
            _ => None,
        };
        let text = match &envelope.status {
            Some(status) => status.description.as_str(),
            None => envelope.business_reason(),
        };
        let answers = envelope.relates.iter().find(|relation| relation.rel == rel::REPLIES_TO);
        let related = |target: &DispatchId| Self {
            target: *target,
            dispatch: envelope.id,
            agency: agency.clone(),
            incoming,
            sender: envelope.sender.agency.clone(),
            kind: envelope.kind,
            code,
            text: text.to_owned(),
            answers: answers.map(|relation| relation.dispatch),
            time: envelope.created,
        };
        about.earlier().iter().map(related).collect()
    }
}

/// A document that its recipient gives up, as it agrees to a recall.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GivesUp {
    pub dispatch: DispatchId,
    pub recipient: AgencyCode,
    pub since: Timestamp,
}

const KINDS: [Kind; 5] = [Kind::New, Kind::Recall, Kind::Update, Kind::Replace, Kind::Status];

fn related(row: &Row<'_>) -> rusqlite::Result<Result<RelatedRow, MailboxError>> {
    let (target, dispatch): (Vec<u8>, Vec<u8>) = (row.get("target")?, row.get("dispatch")?);
    let (agency, sender, kind): (String, String, String) = (row.get("agency")?, row.get("sender")?, row.get("kind")?);
    let (incoming, code, text): (bool, Option<String>, String) =
        (row.get("incoming")?, row.get("code")?, row.get("text")?);
    let (answers, time, state): (Option<Vec<u8>>, i64, String) =
        (row.get("answers")?, row.get("time")?, row.get("state")?);
    Ok((|| {
        let found = KINDS.into_iter().find(|known| known.as_str() == kind);
        let related = Related {
            target: rows::dispatch(target)?,
            dispatch: rows::dispatch(dispatch)?,
            agency: rows::name("agency code", &agency)?,
            incoming,
            sender: rows::name("agency code", &sender)?,
            kind: found.ok_or_else(|| rows::damaged("kind")(kind))?,
            code: code.map(|code| rows::name("status code", &code)).transpose()?,
            text,
            answers: answers.map(rows::dispatch).transpose()?,
            time: rows::time(time),
        };
        Ok(RelatedRow { related, state })
    })())
}

impl Mailbox {
    /// What was sent about this dispatch, oldest first, as far as it may be shown.
    pub async fn related(&self, target: DispatchId) -> Result<Vec<RelatedRow>, MailboxError> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT r.*, coalesce(o.state, i.state) AS state FROM related r \
                 LEFT JOIN outgoing o ON r.incoming = 0 AND o.id = r.dispatch \
                 LEFT JOIN incoming i ON r.incoming = 1 AND i.id = r.dispatch AND i.recipient = r.agency \
                 WHERE r.target = ?1 AND coalesce(o.state, i.state, 'taken') NOT IN ('taken', 'destroyed') \
                 ORDER BY r.time, r.dispatch",
            )?;
            query.query_map([target.as_bytes()], related)?.map(|row| row?).collect()
        })
        .await
    }
}

pub(super) fn insert(connection: &Connection, all: &[Related]) -> Result<(), MailboxError> {
    for one in all {
        connection
            .prepare_cached("INSERT OR IGNORE INTO related VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)")?
            .execute(params![
                one.target.as_bytes(),
                one.dispatch.as_bytes(),
                one.agency.as_str(),
                one.incoming,
                one.sender.as_str(),
                one.kind.as_str(),
                one.code.map(StatusCode::as_str),
                one.text,
                one.answers.as_ref().map(DispatchId::as_bytes),
                one.time.unix_ms()
            ])?;
    }
    Ok(())
}

/// What a recipient of ours has said before about the same document.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Before {
    Nothing,
    /// This very status, with this dispatch.
    Same(DispatchId),
    /// One after which this cannot be said.
    Further(StatusCode),
}

/// Looks in the transaction that would say it, so that of two officers one is first. Progress goes on and never back; an
/// agreement is final, as its document is gone; what was declined may still be agreed to.
pub(super) fn said_before(connection: &Connection, new: &Related) -> Result<Before, MailboxError> {
    let Some(code) = new.code.filter(|code| code.is_recipients() && !new.incoming) else { return Ok(Before::Nothing) };
    let mut query = connection.prepare_cached(
        "SELECT r.code, r.dispatch FROM related r JOIN outgoing o ON o.id = r.dispatch \
         WHERE r.target = ?1 AND r.agency = ?2 AND r.incoming = 0 AND r.code IS NOT NULL AND o.state <> 'rejected' \
         AND (?3 OR r.answers IS ?4) ORDER BY r.time DESC, o.seq DESC",
    )?;
    let key = params![
        new.target.as_bytes(),
        new.agency.as_str(),
        code.is_progress(),
        new.answers.as_ref().map(DispatchId::as_bytes)
    ];
    let said = query.query_map(key, |row| Ok((row.get::<_, String>(0)?, row.get::<_, Vec<u8>>(1)?)))?;
    let mut before = Before::Nothing;
    for row in said {
        let (earlier, dispatch) = row?;
        let earlier: StatusCode = rows::name("status code", &earlier)?;
        if earlier.is_progress() != code.is_progress() {
            continue;
        }
        let further =
            if code.is_progress() { earlier > code } else { earlier == StatusCode::Agreed && code != earlier };
        if earlier == code {
            return Ok(Before::Same(rows::dispatch(dispatch)?));
        }
        if further {
            before = Before::Further(earlier);
        }
    }
    Ok(before)
}

/// What a dispatch that was set aside said is said no longer.
pub(super) fn forget(connection: &Connection, dispatch: DispatchId, agency: &AgencyCode) -> Result<(), MailboxError> {
    connection
        .prepare_cached("DELETE FROM related WHERE dispatch = ?1 AND agency = ?2 AND incoming = 1")?
        .execute(params![dispatch.as_bytes(), agency.as_str()])?;
    Ok(())
}

/// Destroys the references of a recalled document to its bodies; its envelope, evidence and history stay. `None` if the
/// agency no longer has it.
pub(super) fn give_up(connection: &Connection, given: &GivesUp) -> Result<Option<Destroyed>, MailboxError> {
    let key = params![given.dispatch.as_bytes(), given.recipient.as_str()];
    let state: Option<String> = connection
        .prepare_cached("SELECT state FROM incoming WHERE id = ?1 AND recipient = ?2")?
        .query_row(key, |row| row.get(0))
        .optional()?;
    if !state.map(|state| InState::read(&state)).transpose()?.is_some_and(InState::is_visible) {
        return Ok(None);
    }
    connection.prepare_cached("UPDATE incoming SET state = ?3, since = ?4 WHERE id = ?1 AND recipient = ?2")?.execute(
        params![given.dispatch.as_bytes(), given.recipient.as_str(), InState::Recalled.as_str(), given.since.unix_ms()],
    )?;
    release(connection, given.dispatch, &given.recipient).map(Some)
}
