//! What agencies of this node send: durable from the moment an id is given out.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use docaxis_protocol::{
    AgencyCode, Digest, DispatchId, Envelope, Reason, SealedEnvelope, StatusCode, Timestamp, limits,
};
use rusqlite::{Connection, OptionalExtension as _, Row, named_params, params};

use super::incoming::Destroyed;
use super::proofs::insert_evidence;
use super::related::Before;
use super::rows::{self, DeliveryState, OutState};
use super::{
    DocumentKeys, EvidenceRow, GivesUp, Mailbox, MailboxError, Related, SmallBodies, bodies, documents, related,
};
use crate::order::{Line, Places, Waits};

/// A new dispatch, sealed.
#[derive(Debug, Clone)]
pub struct Queued {
    pub id: DispatchId,
    pub sender: AgencyCode,
    pub recipients: Vec<AgencyCode>,
    pub sealed: SealedEnvelope,
    pub priority: u8,
    pub queued: Timestamp,
    pub parts: Vec<QueuedPart>,
    /// Those of the parts that are not files.
    pub small: SmallBodies,
    /// What it says about earlier dispatches.
    pub related: Vec<Related>,
    /// What the document is told from others by, and whether one that was sent before keeps it back.
    pub document: DocumentKeys,
    pub unless_sent_before: bool,
    /// Of an agreement to a recall: the document that goes with it.
    pub gives_up: Option<GivesUp>,
    /// The caller's own key for this request and the digest of what was asked.
    pub idempotency: Option<(String, Digest)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct QueuedPart {
    pub sha256: Digest,
    pub size: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutgoingRow {
    pub seq: u64,
    pub id: DispatchId,
    pub sender: AgencyCode,
    pub sealed: SealedEnvelope,
    /// Of the envelope as it was sealed: whoever shows it compares.
    pub envelope_sha256: Digest,
    pub priority: u8,
    pub queued: Timestamp,
    pub state: OutState,
    pub since: Timestamp,
    pub attempts: u32,
    pub next_attempt: Timestamp,
    /// Why the last try did not end, or why it was rejected.
    pub trouble: Option<Reason>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    pub recipient: AgencyCode,
    pub state: DeliveryState,
    pub since: Timestamp,
    pub reason: Option<Reason>,
}

const COLUMNS: &str = "seq, id, sender, envelope, envelope_sha256, seal, chain, priority, queued, state, since, attempts, next_attempt, trouble";

/// A query's answer that still has to be read as domain values.
type RowOf<T> = Result<T, MailboxError>;

fn outgoing(row: &Row<'_>) -> rusqlite::Result<RowOf<OutgoingRow>> {
    let (seal, chain): (Vec<u8>, Vec<u8>) = (row.get("seal")?, row.get("chain")?);
    let (sender, state): (String, String) = (row.get("sender")?, row.get("state")?);
    let (id, envelope): (Vec<u8>, Vec<u8>) = (row.get("id")?, row.get("envelope")?);
    let envelope_sha256: Vec<u8> = row.get("envelope_sha256")?;
    let (seq, queued, since, next): (i64, i64, i64, i64) =
        (row.get("seq")?, row.get("queued")?, row.get("since")?, row.get("next_attempt")?);
    let (priority, attempts, trouble) = (row.get("priority")?, row.get("attempts")?, row.get("trouble")?);
    Ok((|| {
        Ok(OutgoingRow {
            seq: rows::uint(seq),
            id: rows::dispatch(id)?,
            sender: rows::name("agency code", &sender)?,
            sealed: rows::sealed(envelope, &seal, &chain)?,
            envelope_sha256: rows::digest(envelope_sha256)?,
            priority,
            queued: rows::time(queued),
            state: OutState::read(&state)?,
            since: rows::time(since),
            attempts,
            next_attempt: rows::time(next),
            trouble: rows::reason(trouble),
        })
    })())
}

/// What the turn of a queued dispatch depends on.
fn waits(connection: &Connection, seq: i64) -> Result<Waits, MailboxError> {
    let sql = "SELECT id, sender, priority, attempts, next_attempt, trouble FROM outgoing WHERE seq = ?1";
    let (id, sender, priority, attempts, next, trouble) = connection.prepare_cached(sql)?.query_row([seq], |row| {
        let id: Vec<u8> = row.get(0)?;
        let (sender, next): (String, i64) = (row.get(1)?, row.get(4)?);
        Ok((id, sender, row.get(2)?, row.get(3)?, next, row.get(5)?))
    })?;
    let mut query = connection.prepare_cached("SELECT recipient FROM deliveries WHERE dispatch = ?1")?;
    let recipients = query.query_map([&id], |row| row.get::<_, String>(0))?;
    let recipients = recipients.map(|code| rows::name("agency code", &code?)).collect::<Result<_, MailboxError>>()?;
    // What is about a dispatch of ours goes when the exchange has decided about that one: it would not know it before.
    let mut query = connection.prepare_cached(
        "SELECT r.target FROM related r JOIN outgoing t ON t.id = r.target \
         WHERE r.dispatch = ?1 AND r.incoming = 0 AND t.state = 'queued'",
    )?;
    let about = query.query_map([&id], |row| row.get::<_, Vec<u8>>(0))?;
    let about = about.map(|id| rows::dispatch(id?)).collect::<Result<_, MailboxError>>()?;
    let sql = "SELECT coalesce(max(size), 0), coalesce(sum(size), 0) FROM part_refs \
               WHERE dispatch = ?1 AND agency = ?2 AND incoming = 0";
    let (largest, all): (i64, i64) =
        connection.prepare_cached(sql)?.query_row(params![id, sender], |row| Ok((row.get(0)?, row.get(1)?)))?;
    // The envelope is read of the few that were tried in vain.
    let expires = match attempts {
        0 => None,
        _ => {
            let mut query = connection.prepare_cached("SELECT envelope FROM outgoing WHERE seq = ?1")?;
            let envelope: Vec<u8> = query.query_row([seq], |row| row.get(0))?;
            Envelope::parse(&envelope).ok().map(|envelope| envelope.expires)
        }
    };
    let fits = |size: i64, bound: usize| usize::try_from(size).is_ok_and(|size| size <= bound);
    Ok(Waits {
        seq: rows::uint(seq),
        id: rows::dispatch(id)?,
        sender: rows::name("agency code", &sender)?,
        priority,
        recipients,
        large: !(fits(largest, limits::MAX_INLINE_BODY_BYTES) && fits(all, limits::MAX_INLINE_TOTAL_BYTES)),
        about,
        attempts,
        next_attempt: rows::time(next),
        trouble: rows::reason(trouble),
        expires,
    })
}

/// The lines that something is queued in: one step in the index for each, however much that is.
fn lines(connection: &Connection) -> Result<Vec<Line>, MailboxError> {
    let mut next = connection.prepare_cached(
        "SELECT sender, priority FROM outgoing INDEXED BY outgoing_lines \
         WHERE state = 'queued' AND (sender, priority) > (?1, ?2) ORDER BY sender, priority LIMIT 1",
    )?;
    let (mut found, mut last) = (Vec::new(), (String::new(), 0));
    while let Some(line) = next.query_row(params![last.0, last.1], |row| Ok((row.get(0)?, row.get(1)?))).optional()? {
        last = line;
        found.push((rows::name("agency code", &last.0)?, last.1));
    }
    Ok(found)
}

impl Mailbox {
    /// Makes a dispatch and its small bodies durable. A request that was made before under the same key gets its id again.
    pub async fn queue(&self, new: Queued) -> Result<Result<QueuedAs, NotQueued>, MailboxError> {
        self.write(move |connection| {
            if let Some((key, request)) = &new.idempotency {
                let earlier: Option<(Vec<u8>, Vec<u8>)> = connection
                    .prepare_cached("SELECT id, request_sha256 FROM outgoing WHERE sender = ?1 AND idempotency = ?2")?
                    .query_row(params![new.sender.as_str(), key], |row| Ok((row.get(0)?, row.get(1)?)))
                    .optional()?;
                if let Some((id, earlier)) = earlier {
                    let id = rows::dispatch(id)?;
                    let same = earlier == request.as_bytes();
                    let known = QueuedAs { id, destroyed: Destroyed::default(), sent_before: vec![] };
                    return Ok(if same { Ok(known) } else { Err(NotQueued::Conflict(id)) });
                }
            }
            if let Some(sha256) = bodies::known_one(connection, &new.small)? {
                return Ok(Err(NotQueued::LookAt(sha256)));
            }
            for said in &new.related {
                match related::said_before(connection, said)? {
                    Before::Nothing => {}
                    Before::Same(id) => {
                        return Ok(Ok(QueuedAs { id, destroyed: Destroyed::default(), sent_before: vec![] }));
                    }
                    Before::Further(code) => return Ok(Err(NotQueued::Said(code))),
                }
            }
            let sent_before = documents::same(connection, &new.document, &new.sender, false, new.id)?;
            if new.unless_sent_before && !sent_before.is_empty() {
                return Ok(Err(NotQueued::SentBefore(sent_before)));
            }
            let destroyed = match &new.gives_up {
                None => Destroyed::default(),
                Some(given) => match related::give_up(connection, given)? {
                    Some(destroyed) => destroyed,
                    None => return Ok(Err(NotQueued::NotHere)),
                },
            };
            insert(connection, &new)?;
            Ok(Ok(QueuedAs { id: new.id, destroyed, sent_before }))
        })
        .await
    }

    /// What is queued behind these places of the outbox, of each line: the urgent first, then the oldest, no more than may be
    /// begun. A line that is not named is read from its beginning, one without a place not at all.
    pub async fn queued_behind(
        &self,
        from: BTreeMap<Line, Option<u64>>,
        places: Places,
    ) -> Result<Vec<Waits>, MailboxError> {
        self.read(move |connection| {
            // In the order of an index that holds all that is looked for: this is asked after each answer.
            let mut query = connection.prepare_cached(
                "SELECT seq FROM outgoing INDEXED BY outgoing_lines \
                 WHERE state = 'queued' AND sender = ?1 AND priority = ?2 AND seq > ?3 ORDER BY seq LIMIT ?4",
            )?;
            let mut found = Vec::new();
            for line in lines(connection)? {
                let free = places.free(line.1);
                let Some(behind) = from.get(&line).copied().unwrap_or(Some(0)).filter(|_| free > 0) else { continue };
                let at_most = i64::try_from(free).unwrap_or(i64::MAX);
                let of_line = params![line.0.as_str(), line.1, rows::int(behind), at_most];
                for seq in query.query_map(of_line, |row| row.get::<_, i64>(0))? {
                    found.push((Reverse(line.1), seq?));
                }
            }
            found.sort_unstable();
            let has_a_place =
                |(ahead, (Reverse(priority), _)): &(usize, (Reverse<u8>, i64))| *ahead < places.free(*priority);
            let found = (0..).zip(found).take_while(has_a_place);
            found.map(|(_, (_, seq))| waits(connection, seq)).collect()
        })
        .await
    }

    /// Those of these places that are still queued.
    pub async fn queued_at(&self, seqs: Vec<u64>) -> Result<Vec<OutgoingRow>, MailboxError> {
        self.read(move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM outgoing WHERE seq = ?1 AND state = 'queued'");
            let mut one = connection.prepare_cached(&sql)?;
            let mut found = Vec::with_capacity(seqs.len());
            for seq in seqs {
                if let Some(row) = one.query_row([rows::int(seq)], outgoing).optional()? {
                    found.push(row?);
                }
            }
            Ok(found)
        })
        .await
    }

    pub async fn postpone(&self, id: DispatchId, until: Timestamp, why: Reason) -> Result<(), MailboxError> {
        self.write(move |connection| {
            connection
                .prepare_cached(
                    "UPDATE outgoing SET attempts = attempts + 1, next_attempt = ?2, trouble = ?3 \
                     WHERE id = ?1 AND state = 'queued'",
                )?
                .execute(params![id.as_bytes(), until.unix_ms(), rows::reason_to_text(&why)])?;
            Ok(())
        })
        .await
    }

    /// After a new connection everything is worth a try at once.
    pub async fn all_due_now(&self, now: Timestamp) -> Result<(), MailboxError> {
        self.write(move |connection| {
            connection
                .prepare_cached("UPDATE outgoing SET next_attempt = ?1 WHERE state = 'queued' AND next_attempt > ?1")?
                .execute([now.unix_ms()])?;
            Ok(())
        })
        .await
    }

    /// The exchange took it or refused it, and this is its evidence. `false` if other evidence is here under the same
    /// leaf: then the dispatch stays as it is.
    pub async fn settle(
        &self,
        id: DispatchId,
        state: OutState,
        since: Timestamp,
        why: Option<Reason>,
        evidence: Option<EvidenceRow>,
    ) -> Result<bool, MailboxError> {
        self.write(move |connection| {
            if let Some(evidence) = &evidence
                && !insert_evidence(connection, evidence)?
            {
                return Ok(false);
            }
            settle(connection, id, state, since, why.as_ref())?;
            Ok(true)
        })
        .await
    }

    pub async fn outgoing(&self, id: DispatchId) -> Result<Option<OutgoingRow>, MailboxError> {
        self.read(move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM outgoing WHERE id = ?1");
            connection.prepare_cached(&sql)?.query_row([id.as_bytes()], outgoing).optional()?.transpose()
        })
        .await
    }

    /// A page of what was sent, newest first, from before `before` (a `seq`) on.
    pub async fn outgoing_page(
        &self,
        state: Option<OutState>,
        delivery: Option<DeliveryState>,
        before: Option<u64>,
        limit: u32,
    ) -> Result<Vec<OutgoingRow>, MailboxError> {
        self.read(move |connection| {
            let sql = format!(
                "SELECT {COLUMNS} FROM outgoing WHERE seq < :before AND (:state IS NULL OR state = :state) AND \
                 (:delivery IS NULL OR EXISTS (SELECT 1 FROM deliveries d WHERE d.dispatch = outgoing.id \
                 AND d.state = :delivery)) ORDER BY seq DESC LIMIT :limit"
            );
            connection
                .prepare_cached(&sql)?
                .query_map(
                    named_params! {
                        ":before": before.map_or(i64::MAX, rows::int),
                        ":state": state.map(OutState::as_str),
                        ":delivery": delivery.map(DeliveryState::as_str),
                        ":limit": limit,
                    },
                    outgoing,
                )?
                .map(|row| row?)
                .collect()
        })
        .await
    }

    pub async fn deliveries(&self, id: DispatchId) -> Result<Vec<DeliveryRow>, MailboxError> {
        self.read(move |connection| {
            let mut query = connection
                .prepare_cached("SELECT recipient, state, since, reason FROM deliveries WHERE dispatch = ?1")?;
            let found = query.query_map([id.as_bytes()], |row| {
                Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?, row.get(3)?))
            })?;
            found
                .map(|row| {
                    let (recipient, state, since, reason) = row?;
                    Ok(DeliveryRow {
                        recipient: rows::name("agency code", &recipient)?,
                        state: DeliveryState::read(&state)?,
                        since: rows::time(since),
                        reason: rows::reason(reason),
                    })
                })
                .collect()
        })
        .await
    }

    /// How many dispatches of ours stand in each state.
    pub async fn outbox_counts(&self) -> Result<Vec<(OutState, u64)>, MailboxError> {
        self.read(|connection| {
            let mut query = connection.prepare_cached("SELECT state, count(*) FROM outgoing GROUP BY state")?;
            let found = query.query_map([], |row| Ok((row.get::<_, String>(0)?, row.get::<_, i64>(1)?)))?;
            found
                .map(|row| {
                    let (state, count) = row?;
                    Ok((OutState::read(&state)?, rows::uint(count)))
                })
                .collect()
        })
        .await
    }
}

/// A durable dispatch, and the bodies that nothing refers to any more since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueuedAs {
    pub id: DispatchId,
    pub destroyed: Destroyed,
    /// Documents that were sent under a name of this one before.
    pub sent_before: Vec<DispatchId>,
}

/// Why a dispatch was not queued. Nothing of it was stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotQueued {
    /// The caller's key was used before, for this other request.
    Conflict(DispatchId),
    /// The document that would go with it is not here, or no longer.
    NotHere,
    /// The agency has said this before, after which the new status cannot be said.
    Said(StatusCode),
    /// A document was sent under a name of this one before.
    SentBefore(Vec<DispatchId>),
    /// This small body is here already: whether it is whole there is to be looked at first.
    LookAt(Digest),
}

pub(super) fn insert(connection: &Connection, new: &Queued) -> Result<(), MailboxError> {
    let (key, request) = match &new.idempotency {
        Some((key, request)) => (Some(key.as_str()), Some(*request.as_bytes())),
        None => (None, None),
    };
    connection
        .prepare_cached(
            "INSERT INTO outgoing (id, sender, envelope, envelope_sha256, seal, chain, priority, queued, state, since, \
             next_attempt, idempotency, request_sha256) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, 'queued', ?8, ?8, ?9, ?10)",
        )?
        .execute(params![
            new.id.as_bytes(),
            new.sender.as_str(),
            new.sealed.bytes,
            new.sealed.digest().as_bytes(),
            new.sealed.signature.0,
            rows::chain_to_bytes(&new.sealed.chain)?,
            new.priority,
            new.queued.unix_ms(),
            key,
            request
        ])?;
    for recipient in &new.recipients {
        connection
            .prepare_cached(
                "INSERT INTO deliveries (dispatch, recipient, state, since) VALUES (?1, ?2, 'waiting', ?3)",
            )?
            .execute(params![new.id.as_bytes(), recipient.as_str(), new.queued.unix_ms()])?;
    }
    bodies::insert(connection, &new.small)?;
    related::insert(connection, &new.related)?;
    documents::insert(connection, &new.document, &new.sender, false, new.id)?;
    for part in &new.parts {
        connection.prepare_cached("INSERT OR IGNORE INTO part_refs VALUES (?1, ?2, 0, ?3, ?4)")?.execute(params![
            part.sha256.as_bytes(),
            new.sender.as_str(),
            new.id.as_bytes(),
            rows::int(part.size)
        ])?;
    }
    Ok(())
}

pub(super) fn settle(
    connection: &Connection,
    id: DispatchId,
    state: OutState,
    since: Timestamp,
    why: Option<&Reason>,
) -> Result<(), MailboxError> {
    connection
        .prepare_cached("UPDATE outgoing SET state = ?2, since = ?3, trouble = ?4 WHERE id = ?1 AND state = 'queued'")?
        .execute(params![id.as_bytes(), state.as_str(), since.unix_ms(), why.map(rows::reason_to_text)])?;
    Ok(())
}
