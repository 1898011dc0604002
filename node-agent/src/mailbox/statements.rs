//! Statements of this node's agencies: stored before they are first sent, repeated byte for byte, and open until the
//! exchange's evidence for them is here.

use docaxis_protocol::{AgencyCode, Digest, DispatchId, Event, Reason, SealedStatement, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::incoming::{Destroyed, move_on, set_aside};
use super::proofs::insert_evidence;
use super::rows::{self, InState};
use super::{EvidenceRow, Mailbox, MailboxError};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementRow {
    pub dispatch: DispatchId,
    pub recipient: AgencyCode,
    pub envelope_sha256: Digest,
    pub event: Event,
    pub time: Timestamp,
    pub sealed: SealedStatement,
    /// Whether the exchange has answered it, with evidence or with a refusal.
    pub answered: bool,
    pub refusal: Option<Reason>,
}

/// A statement's place among those that are open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementKey {
    time: Timestamp,
    dispatch: DispatchId,
    recipient: AgencyCode,
    envelope_sha256: Digest,
    event: Event,
}

impl StatementRow {
    pub fn key(&self) -> StatementKey {
        StatementKey {
            time: self.time,
            dispatch: self.dispatch,
            recipient: self.recipient.clone(),
            envelope_sha256: self.envelope_sha256,
            event: self.event,
        }
    }
}

/// What became of an officer's 02 or 03.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stated {
    New,
    /// It was stated before, in these bytes.
    Already,
    /// The other of the two was stated before.
    Other(Event),
    /// The agency has no such dispatch to act on.
    NotVisible,
}

const COLUMNS: &str = "dispatch, recipient, envelope_sha256, event, bytes, signature, chain, time, answered, refusal";

fn statement(row: &Row<'_>) -> rusqlite::Result<Result<StatementRow, MailboxError>> {
    let (dispatch, sha256): (Vec<u8>, Vec<u8>) = (row.get("dispatch")?, row.get("envelope_sha256")?);
    let (recipient, event): (String, String) = (row.get("recipient")?, row.get("event")?);
    let (bytes, signature, chain): (Vec<u8>, Vec<u8>, Vec<u8>) =
        (row.get("bytes")?, row.get("signature")?, row.get("chain")?);
    let (time, answered, refusal): (i64, bool, _) = (row.get("time")?, row.get("answered")?, row.get("refusal")?);
    Ok((|| {
        Ok(StatementRow {
            dispatch: rows::dispatch(dispatch)?,
            recipient: rows::name("agency code", &recipient)?,
            envelope_sha256: rows::digest(sha256)?,
            event: event_named(&event)?,
            time: rows::time(time),
            sealed: SealedStatement { bytes, signature: rows::signature(&signature)?, chain: rows::chain(&chain)? },
            answered,
            refusal: rows::reason(refusal),
        })
    })())
}

pub(super) fn event_named(text: &str) -> Result<Event, MailboxError> {
    let found = Event::ALL.into_iter().find(|event| event.as_str() == text);
    found.ok_or_else(|| rows::damaged("event")(text.to_owned()))
}

impl Mailbox {
    /// Stores an officer's 02 or 03 about a visible dispatch, or that it was opened.
    pub async fn state(
        &self,
        id: DispatchId,
        recipient: AgencyCode,
        envelope_sha256: Digest,
        event: Event,
        sealed: SealedStatement,
    ) -> Result<Stated, MailboxError> {
        self.write(move |connection| {
            let of_one_kind = match event {
                Event::ContentAccessTracking => &[Event::ContentAccessTracking, Event::Refused][..],
                _ => &[Event::Registered, Event::Refused],
            };
            for earlier in of_one_kind.iter().copied() {
                if standing(connection, id, &recipient, envelope_sha256, earlier)?.is_some() {
                    return Ok(if earlier == event { Stated::Already } else { Stated::Other(earlier) });
                }
            }
            let visible: Option<String> = connection
                .prepare_cached("SELECT state FROM incoming WHERE id = ?1 AND recipient = ?2")?
                .query_row(params![id.as_bytes(), recipient.as_str()], |row| row.get(0))
                .optional()?;
            match visible.map(|state| InState::read(&state)).transpose()? {
                Some(state) if state.is_visible() => {
                    insert(connection, id, &recipient, envelope_sha256, event, &sealed)?;
                    Ok(Stated::New)
                }
                _ => Ok(Stated::NotVisible),
            }
        })
        .await
    }

    /// Statements that the exchange has not answered, oldest first, from behind `after` on.
    pub async fn open_statements(
        &self,
        after: Option<StatementKey>,
        limit: u32,
    ) -> Result<Vec<StatementRow>, MailboxError> {
        self.read(move |connection| {
            let sql = format!(
                "SELECT {COLUMNS} FROM statements WHERE answered = 0 AND \
                 (time, dispatch, recipient, envelope_sha256, event) > (?1, ?2, ?3, ?4, ?5) \
                 ORDER BY time, dispatch, recipient, envelope_sha256, event LIMIT ?6"
            );
            let mut query = connection.prepare_cached(&sql)?;
            let found = match &after {
                Some(key) => query.query_map(
                    params![
                        key.time.unix_ms(),
                        key.dispatch.as_bytes(),
                        key.recipient.as_str(),
                        key.envelope_sha256.as_bytes(),
                        key.event.as_str(),
                        limit
                    ],
                    statement,
                )?,
                None => query.query_map(params![i64::MIN, [0u8; 0], "", [0u8; 0], "", limit], statement)?,
            };
            found.map(|row| row?).collect()
        })
        .await
    }

    pub async fn statements(&self, id: DispatchId) -> Result<Vec<StatementRow>, MailboxError> {
        self.read(move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM statements WHERE dispatch = ?1 ORDER BY time");
            connection.prepare_cached(&sql)?.query_map([id.as_bytes()], statement)?.map(|row| row?).collect()
        })
        .await
    }

    /// The exchange recorded a statement: its evidence and what follows from it become durable together. `None` if
    /// other evidence is here under the same leaf: then nothing follows.
    pub async fn recorded(
        &self,
        about: &StatementRow,
        moved: Option<InState>,
        evidence: EvidenceRow,
        reason: Option<Reason>,
    ) -> Result<Option<Destroyed>, MailboxError> {
        let (id, recipient, sha256, event) =
            (about.dispatch, about.recipient.clone(), about.envelope_sha256, about.event);
        self.write(move |connection| {
            if !insert_evidence(connection, &evidence)? {
                return Ok(None);
            }
            close(connection, id, &recipient, sha256, event, None)?;
            Ok(Some(match moved {
                Some(state) => move_on(connection, id, &recipient, state, evidence.time, reason.as_ref())?,
                None => Destroyed::default(),
            }))
        })
        .await
    }

    /// The exchange will not record a statement, for a reason that no repetition changes. Nothing was said by it then:
    /// an officer may state anew, and what was taken under it is set aside for the next offer.
    pub async fn statement_refused(&self, about: &StatementRow, why: Reason) -> Result<Destroyed, MailboxError> {
        let (id, recipient, sha256, event) =
            (about.dispatch, about.recipient.clone(), about.envelope_sha256, about.event);
        self.write(move |connection| {
            close(connection, id, &recipient, sha256, event, Some(&why))?;
            match event {
                Event::ContentHandover => set_aside(connection, id, &recipient, sha256),
                _ => Ok(Destroyed::default()),
            }
        })
        .await
    }
}

fn close(
    connection: &Connection,
    id: DispatchId,
    recipient: &AgencyCode,
    envelope_sha256: Digest,
    event: Event,
    refusal: Option<&Reason>,
) -> Result<(), MailboxError> {
    connection
        .prepare_cached(
            "UPDATE statements SET answered = 1, refusal = ?5 \
             WHERE dispatch = ?1 AND recipient = ?2 AND envelope_sha256 = ?3 AND event = ?4",
        )?
        .execute(params![
            id.as_bytes(),
            recipient.as_str(),
            envelope_sha256.as_bytes(),
            event.as_str(),
            refusal.map(rows::reason_to_text)
        ])?;
    Ok(())
}

pub(super) fn handover_statement(
    connection: &Connection,
    id: DispatchId,
    recipient: &AgencyCode,
    envelope_sha256: Digest,
) -> Result<Option<SealedStatement>, MailboxError> {
    for event in [Event::ContentHandover, Event::ContentHandoverFailure] {
        if let Some(found) = standing(connection, id, recipient, envelope_sha256, event)? {
            return Ok(Some(found.sealed));
        }
    }
    Ok(None)
}

/// A statement that the exchange has not refused.
fn standing(
    connection: &Connection,
    id: DispatchId,
    recipient: &AgencyCode,
    envelope_sha256: Digest,
    event: Event,
) -> Result<Option<StatementRow>, MailboxError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM statements WHERE dispatch = ?1 AND recipient = ?2 AND envelope_sha256 = ?3 \
         AND event = ?4 AND refusal IS NULL"
    );
    connection
        .prepare_cached(&sql)?
        .query_row(params![id.as_bytes(), recipient.as_str(), envelope_sha256.as_bytes(), event.as_str()], statement)
        .optional()?
        .transpose()
}

pub(super) fn insert(
    connection: &Connection,
    id: DispatchId,
    recipient: &AgencyCode,
    envelope_sha256: Digest,
    event: Event,
    sealed: &SealedStatement,
) -> Result<(), MailboxError> {
    let time =
        docaxis_protocol::Statement::parse(&sealed.bytes).map_err(|e| rows::damaged("statement")(e.to_string()))?.time;
    connection
        .prepare_cached(
            "DELETE FROM statements WHERE dispatch = ?1 AND recipient = ?2 AND envelope_sha256 = ?3 AND event = ?4 \
             AND refusal IS NOT NULL",
        )?
        .execute(params![id.as_bytes(), recipient.as_str(), envelope_sha256.as_bytes(), event.as_str()])?;
    connection
        .prepare_cached(
            "INSERT INTO statements (dispatch, recipient, envelope_sha256, event, bytes, signature, chain, time) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?
        .execute(params![
            id.as_bytes(),
            recipient.as_str(),
            envelope_sha256.as_bytes(),
            event.as_str(),
            sealed.bytes,
            sealed.signature.0,
            rows::chain_to_bytes(&sealed.chain)?,
            time.unix_ms()
        ])?;
    Ok(())
}
