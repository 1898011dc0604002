//! What agencies of this node were sent. A dispatch, its bodies' references and the recipient's statement become
//! durable in one transaction; only then may the statement be sent.

use docaxis_protocol::key::RawSignature;
use docaxis_protocol::{
    AgencyCode, Digest, DispatchId, Event, Reason, SealedEnvelope, SealedStatement, SignedEvidence, Timestamp,
};
use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};

use super::proofs::insert_evidence;
use super::rows::{self, InState};
use super::statements::{self, handover_statement};
use super::{
    DocumentKeys, EvidenceRow, Mailbox, MailboxError, QueuedPart, Related, SmallBodies, bodies, documents, related,
};

/// What a recipient answers to an offer, about to become durable.
#[derive(Debug, Clone)]
pub struct Take {
    pub id: DispatchId,
    pub recipient: AgencyCode,
    pub envelope_sha256: Digest,
    pub event: Event,
    pub statement: SealedStatement,
    pub time: Timestamp,
    /// The dispatch itself; none where the statement says that it was not taken.
    pub body: Option<TakeBody>,
}

#[derive(Debug, Clone)]
pub struct TakeBody {
    pub sender: AgencyCode,
    pub sealed: SealedEnvelope,
    pub acceptance: EvidenceRow,
    pub parts: Vec<QueuedPart>,
    /// Those of the parts that came with this offer and are not files.
    pub small: SmallBodies,
    /// Those of the parts that did not come with this offer, because this agency had them.
    pub held: Vec<Digest>,
    /// What it says about earlier dispatches.
    pub related: Vec<Related>,
    /// What the document is told from others by.
    pub document: DocumentKeys,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Taken {
    New,
    /// It was answered before, with this statement.
    Already(SealedStatement),
    /// The agency has another dispatch under this id.
    Conflict,
    /// Other evidence is here under the acceptance's place in the log.
    Contradiction,
    /// A part that was held when the offer came has been destroyed since.
    HeldPartGone,
    /// This small body is here already, and nothing was stored: whether it is whole there is to be looked at first.
    LookAt(Digest),
}

/// What is here about an offer before it is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Known {
    /// It was answered before, with this statement.
    Stated(SealedStatement),
    Open {
        /// Whether the agency has another dispatch under this id.
        other: bool,
        /// Which of the bodies the agency was given before, by digest. Bodies of other agencies do not count, even on the
        /// same node: a digest alone must not open a body, nor tell whether it exists.
        held: Vec<Digest>,
    },
}

/// Bodies that nothing refers to any more.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Destroyed {
    pub unreferenced: Vec<Digest>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IncomingRow {
    pub seq: u64,
    pub id: DispatchId,
    pub recipient: AgencyCode,
    pub sender: AgencyCode,
    pub sealed: SealedEnvelope,
    /// Of the envelope as it came: whoever shows it compares.
    pub envelope_sha256: Digest,
    pub acceptance: SignedEvidence,
    pub acceptance_leaf: u64,
    pub taken: Timestamp,
    pub state: InState,
    pub since: Timestamp,
    pub reason: Option<Reason>,
}

const COLUMNS: &str = "seq, id, recipient, sender, envelope, envelope_sha256, seal, chain, acceptance, acceptance_signature, \
                       acceptance_leaf, taken, state, since, reason";

fn incoming(row: &Row<'_>) -> rusqlite::Result<Result<IncomingRow, MailboxError>> {
    let (id, envelope): (Vec<u8>, Vec<u8>) = (row.get("id")?, row.get("envelope")?);
    let (seal, chain): (Vec<u8>, Vec<u8>) = (row.get("seal")?, row.get("chain")?);
    let envelope_sha256: Vec<u8> = row.get("envelope_sha256")?;
    let (recipient, sender, state): (String, String, String) =
        (row.get("recipient")?, row.get("sender")?, row.get("state")?);
    let (acceptance, acceptance_signature): (Vec<u8>, Vec<u8>) =
        (row.get("acceptance")?, row.get("acceptance_signature")?);
    let (seq, leaf, taken, since): (i64, i64, i64, i64) =
        (row.get("seq")?, row.get("acceptance_leaf")?, row.get("taken")?, row.get("since")?);
    let reason = row.get("reason")?;
    Ok((|| {
        Ok(IncomingRow {
            seq: rows::uint(seq),
            id: rows::dispatch(id)?,
            recipient: rows::name("agency code", &recipient)?,
            sender: rows::name("agency code", &sender)?,
            sealed: rows::sealed(envelope, &seal, &chain)?,
            envelope_sha256: rows::digest(envelope_sha256)?,
            acceptance: SignedEvidence {
                bytes: acceptance,
                signature: RawSignature::from_slice(&acceptance_signature)
                    .map_err(|e| rows::damaged("signature")(e.to_string()))?,
            },
            acceptance_leaf: rows::uint(leaf),
            taken: rows::time(taken),
            state: InState::read(&state)?,
            since: rows::time(since),
            reason: rows::reason(reason),
        })
    })())
}

impl Mailbox {
    /// Makes the answer to an offer durable, or says what was answered before. Whoever sends the statement waits for
    /// this first: what is stated once can be repeated byte for byte after any crash.
    pub async fn take(&self, take: Take) -> Result<Taken, MailboxError> {
        self.write(move |connection| {
            if let Some(earlier) = handover_statement(connection, take.id, &take.recipient, take.envelope_sha256)? {
                return Ok(Taken::Already(earlier));
            }
            if let Some(body) = &take.body {
                if envelope_of(connection, take.id, &take.recipient)?.is_some() {
                    return Ok(Taken::Conflict);
                }
                for sha256 in &body.held {
                    if !holds(connection, &take.recipient, *sha256)? {
                        return Ok(Taken::HeldPartGone);
                    }
                }
                if let Some(sha256) = bodies::known_one(connection, &body.small)? {
                    return Ok(Taken::LookAt(sha256));
                }
                if !insert_evidence(connection, &body.acceptance)? {
                    return Ok(Taken::Contradiction);
                }
                insert(connection, &take, body)?;
            }
            statements::insert(
                connection,
                take.id,
                &take.recipient,
                take.envelope_sha256,
                take.event,
                &take.statement,
            )?;
            Ok(Taken::New)
        })
        .await
    }

    /// Looks at an offer of these bytes and bodies to `recipient`. [`Mailbox::take`] looks again: meanwhile much may happen.
    pub async fn known_of(
        &self,
        id: DispatchId,
        recipient: AgencyCode,
        envelope_sha256: Digest,
        parts: Vec<QueuedPart>,
    ) -> Result<Known, MailboxError> {
        self.read(move |connection| {
            if let Some(sealed) = handover_statement(connection, id, &recipient, envelope_sha256)? {
                return Ok(Known::Stated(sealed));
            }
            let other = envelope_of(connection, id, &recipient)?.is_some();
            let mut query = connection.prepare_cached(
                "SELECT 1 FROM part_refs WHERE sha256 = ?1 AND agency = ?2 AND incoming = 1 AND size = ?3 LIMIT 1",
            )?;
            let mut held = Vec::new();
            for part in parts {
                if query.exists(params![part.sha256.as_bytes(), recipient.as_str(), rows::int(part.size)])? {
                    held.push(part.sha256);
                }
            }
            Ok(Known::Open { other, held })
        })
        .await
    }

    pub async fn incoming(&self, id: DispatchId, recipient: AgencyCode) -> Result<Option<IncomingRow>, MailboxError> {
        self.read(move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM incoming WHERE id = ?1 AND recipient = ?2");
            connection
                .prepare_cached(&sql)?
                .query_row(params![id.as_bytes(), recipient.as_str()], incoming)
                .optional()?
                .transpose()
        })
        .await
    }

    /// One dispatch to each of our agencies that it is for.
    pub async fn incoming_all(&self, id: DispatchId) -> Result<Vec<IncomingRow>, MailboxError> {
        self.read(move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM incoming WHERE id = ?1 ORDER BY recipient");
            connection.prepare_cached(&sql)?.query_map([id.as_bytes()], incoming)?.map(|row| row?).collect()
        })
        .await
    }

    /// A page of what came in and may be shown, newest first, from before `before` (a `seq`) on.
    pub async fn incoming_page(
        &self,
        state: Option<InState>,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<IncomingRow>, MailboxError> {
        self.read(move |connection| {
            let early = docaxis_failpoints::defect!("agent.defect.shown-before-recorded");
            let hidden = if early { "" } else { "taken" };
            let sql = format!(
                "SELECT {COLUMNS} FROM incoming WHERE seq < :before AND state <> '{hidden}' AND \
                 (:state IS NULL OR state = :state) ORDER BY seq DESC LIMIT :limit"
            );
            connection
                .prepare_cached(&sql)?
                .query_map(
                    named_params! {
                        ":before": before.map_or(i64::MAX, rows::int),
                        ":state": state.map(InState::as_str),
                        ":limit": limit,
                    },
                    incoming,
                )?
                .map(|row| row?)
                .collect()
        })
        .await
    }

    /// How many dispatches to us stand in each state.
    pub async fn inbox_counts(&self) -> Result<Vec<(InState, u64)>, MailboxError> {
        self.read(|connection| {
            let mut query = connection.prepare_cached("SELECT state, count(*) FROM incoming GROUP BY state")?;
            let found = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
            found
                .map(|row| {
                    let (state, count) = row?;
                    Ok((InState::read(&state)?, rows::uint(count)))
                })
                .collect()
        })
        .await
    }

    /// Which of these bodies nothing refers to.
    pub async fn unreferenced(&self, candidates: Vec<Digest>) -> Result<Vec<Digest>, MailboxError> {
        // In the writer, so that every reference that was answered for is seen.
        self.write(move |connection| unreferenced(connection, candidates)).await
    }
}

fn envelope_of(
    connection: &Connection,
    id: DispatchId,
    recipient: &AgencyCode,
) -> Result<Option<Digest>, MailboxError> {
    let found: Option<Vec<u8>> = connection
        .prepare_cached("SELECT envelope_sha256 FROM incoming WHERE id = ?1 AND recipient = ?2")?
        .query_row(params![id.as_bytes(), recipient.as_str()], |row| row.get(0))
        .optional()?;
    found.map(rows::digest).transpose()
}

fn holds(connection: &Connection, agency: &AgencyCode, sha256: Digest) -> Result<bool, MailboxError> {
    Ok(connection
        .prepare_cached("SELECT 1 FROM part_refs WHERE sha256 = ?1 AND agency = ?2 AND incoming = 1 LIMIT 1")?
        .exists(params![sha256.as_bytes(), agency.as_str()])?)
}

fn insert(connection: &Connection, take: &Take, body: &TakeBody) -> Result<(), MailboxError> {
    connection
        .prepare_cached(
            "INSERT INTO incoming (id, recipient, sender, envelope, envelope_sha256, seal, chain, acceptance, \
             acceptance_signature, acceptance_leaf, taken, state, since) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, 'taken', ?11)",
        )?
        .execute(params![
            take.id.as_bytes(),
            take.recipient.as_str(),
            body.sender.as_str(),
            body.sealed.bytes,
            take.envelope_sha256.as_bytes(),
            body.sealed.signature.0,
            rows::chain_to_bytes(&body.sealed.chain)?,
            body.acceptance.signed.bytes,
            body.acceptance.signed.signature.0,
            rows::int(body.acceptance.leaf),
            take.time.unix_ms(),
        ])?;
    bodies::insert(connection, &body.small)?;
    related::insert(connection, &body.related)?;
    documents::insert(connection, &body.document, &take.recipient, true, take.id)?;
    for part in &body.parts {
        connection.prepare_cached("INSERT OR IGNORE INTO part_refs VALUES (?1, ?2, 1, ?3, ?4)")?.execute(params![
            part.sha256.as_bytes(),
            take.recipient.as_str(),
            take.id.as_bytes(),
            rows::int(part.size)
        ])?;
    }
    Ok(())
}

/// Moves an incoming dispatch on, never back: an answer that comes once more finds it elsewhere and changes nothing. Where
/// its bodies must go, their references go here, and they themselves after the commit.
pub(super) fn move_on(
    connection: &Connection,
    id: DispatchId,
    recipient: &AgencyCode,
    state: InState,
    since: Timestamp,
    reason: Option<&Reason>,
) -> Result<Destroyed, MailboxError> {
    let from = match state {
        // Its recipient alone brings that about.
        InState::Taken | InState::Recalled => return Ok(Destroyed::default()),
        InState::Visible | InState::Destroyed => InState::Taken,
        InState::Registered | InState::Refused => InState::Visible,
    };
    let moved = connection
        .prepare_cached(
            "UPDATE incoming SET state = ?3, since = ?4, reason = ?5 WHERE id = ?1 AND recipient = ?2 AND state = ?6",
        )?
        .execute(params![
            id.as_bytes(),
            recipient.as_str(),
            state.as_str(),
            since.unix_ms(),
            reason.map(rows::reason_to_text),
            from.as_str()
        ])?;
    if moved == 0 || state != InState::Destroyed {
        return Ok(Destroyed::default());
    }
    release(connection, id, recipient)
}

/// Sets aside what was taken and never recorded, so that the next offer is taken as new.
pub(super) fn set_aside(
    connection: &Connection,
    id: DispatchId,
    recipient: &AgencyCode,
    envelope_sha256: Digest,
) -> Result<Destroyed, MailboxError> {
    let gone = connection
        .prepare_cached(
            "DELETE FROM incoming WHERE id = ?1 AND recipient = ?2 AND envelope_sha256 = ?3 AND state = 'taken'",
        )?
        .execute(params![id.as_bytes(), recipient.as_str(), envelope_sha256.as_bytes()])?;
    if gone == 0 {
        return Ok(Destroyed::default());
    }
    related::forget(connection, id, recipient)?;
    connection
        .prepare_cached("DELETE FROM documents WHERE agency = ?1 AND incoming = 1 AND dispatch = ?2")?
        .execute(params![recipient.as_str(), id.as_bytes()])?;
    release(connection, id, recipient)
}

/// Drops the references of one dispatch to its bodies; says which bodies nothing refers to any more.
pub(super) fn release(
    connection: &Connection,
    id: DispatchId,
    recipient: &AgencyCode,
) -> Result<Destroyed, MailboxError> {
    let candidates: Vec<Vec<u8>> = connection
        .prepare_cached("DELETE FROM part_refs WHERE dispatch = ?1 AND agency = ?2 AND incoming = 1 RETURNING sha256")?
        .query_map(params![id.as_bytes(), recipient.as_str()], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    let candidates = candidates.into_iter().map(rows::digest).collect::<Result<_, _>>()?;
    Ok(Destroyed { unreferenced: unreferenced(connection, candidates)? })
}

pub(super) fn unreferenced(connection: &Connection, candidates: Vec<Digest>) -> Result<Vec<Digest>, MailboxError> {
    let mut free = Vec::new();
    for sha256 in candidates {
        if !bodies::is_named(connection, sha256)? {
            free.push(sha256);
        }
    }
    Ok(free)
}
