//! Evidence, the inclusion proofs that come later, and how far the stream of evidence was read.

use std::collections::BTreeMap;

use docaxis_protocol::envelope::Chain;
use docaxis_protocol::{AgencyCode, Digest, DispatchId, Event, Reason, SignedEvidence, Timestamp};
use rusqlite::{Connection, OptionalExtension as _, Row, params};

use super::outgoing::settle;
use super::rows::{self, DeliveryState, OutState};
use super::statements::event_named;
use super::{Mailbox, MailboxError};
use crate::outbox;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EvidenceRow {
    pub leaf: u64,
    pub dispatch: DispatchId,
    pub recipient: Option<AgencyCode>,
    pub event: Event,
    pub time: Timestamp,
    pub signed: SignedEvidence,
    /// Certificates of the recipient's seal, where there is a statement in it.
    pub statement_chain: Option<Chain>,
    pub proof: Option<String>,
    /// When it came here.
    pub stored: Timestamp,
}

/// A piece of evidence, verified under the exchange's key, about something that an agency of ours sent.
#[derive(Debug, Clone)]
pub struct Follows {
    pub row: EvidenceRow,
    pub sender: AgencyCode,
    pub envelope_sha256: Digest,
    pub previous: Option<Digest>,
    pub late: bool,
    pub reason: Option<Reason>,
    /// Whether the recipient's own word stands behind it where its event needs that. If not, it is kept and moves nothing.
    pub believed: bool,
}

/// What became of a batch of evidence.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Followed {
    pub stored: usize,
    /// The next piece builds on one that is not here yet: nothing from there on was stored.
    pub gap: bool,
    /// What does not fit, in words. It is stored all the same: it is the exchange's signed word.
    pub alarms: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingProof {
    pub leaf: u64,
    pub stored: Timestamp,
}

pub(super) const COLUMNS: &str =
    "leaf, dispatch, recipient, event, time, bytes, signature, statement_chain, proof, stored";

pub(super) fn evidence(row: &Row<'_>) -> rusqlite::Result<Result<EvidenceRow, MailboxError>> {
    let (leaf, time, stored): (i64, i64, i64) = (row.get("leaf")?, row.get("time")?, row.get("stored")?);
    let dispatch: Vec<u8> = row.get("dispatch")?;
    let (recipient, event): (Option<String>, String) = (row.get("recipient")?, row.get("event")?);
    let (bytes, signature): (Vec<u8>, Vec<u8>) = (row.get("bytes")?, row.get("signature")?);
    let chain: Option<Vec<u8>> = row.get("statement_chain")?;
    let proof = row.get("proof")?;
    Ok((|| {
        Ok(EvidenceRow {
            leaf: rows::uint(leaf),
            dispatch: rows::dispatch(dispatch)?,
            recipient: recipient.map(|code| rows::name("agency code", &code)).transpose()?,
            event: event_named(&event)?,
            time: rows::time(time),
            signed: SignedEvidence { bytes, signature: rows::signature(&signature)? },
            statement_chain: chain.map(|chain| rows::chain(&chain)).transpose()?,
            proof,
            stored: rows::time(stored),
        })
    })())
}

impl Mailbox {
    /// Stores a batch of evidence, what it changes, and the cursors after it, in one transaction.
    pub async fn follow(&self, batch: Vec<Follows>) -> Result<Followed, MailboxError> {
        self.write(move |connection| {
            let mut done = Followed::default();
            for item in batch {
                if !follow_one(connection, &item, &mut done.alarms)? {
                    done.gap = true;
                    break;
                }
                connection
                    .prepare_cached(
                        "INSERT INTO cursors VALUES (?1, ?2) ON CONFLICT (agency) \
                         DO UPDATE SET next_leaf = max(next_leaf, excluded.next_leaf)",
                    )?
                    .execute(params![item.sender.as_str(), rows::int(item.row.leaf.saturating_add(1))])?;
                done.stored += 1;
            }
            Ok(done)
        })
        .await
    }

    /// For each of these senders the first leaf that is not stored yet.
    pub async fn cursors(&self, agencies: Vec<AgencyCode>) -> Result<Vec<(AgencyCode, u64)>, MailboxError> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached("SELECT next_leaf FROM cursors WHERE agency = ?1")?;
            let mut found = Vec::with_capacity(agencies.len());
            for agency in agencies {
                let next: Option<i64> = query.query_row([agency.as_str()], |row| row.get(0)).optional()?;
                found.push((agency, rows::uint(next.unwrap_or(0))));
            }
            Ok(found)
        })
        .await
    }

    /// All evidence about a dispatch, in the order of the log.
    pub async fn evidence_of(&self, id: DispatchId) -> Result<Vec<EvidenceRow>, MailboxError> {
        self.read(move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM evidence WHERE dispatch = ?1 ORDER BY leaf");
            connection.prepare_cached(&sql)?.query_map([id.as_bytes()], evidence)?.map(|row| row?).collect()
        })
        .await
    }

    /// What is here under these leaves.
    pub async fn evidence_at(&self, leaves: Vec<u64>) -> Result<BTreeMap<u64, EvidenceRow>, MailboxError> {
        self.read(move |connection| {
            let sql = format!("SELECT {COLUMNS} FROM evidence WHERE leaf = ?1");
            let mut query = connection.prepare_cached(&sql)?;
            let mut found = BTreeMap::new();
            for leaf in leaves {
                if let Some(row) = query.query_row([rows::int(leaf)], evidence).optional()? {
                    found.insert(leaf, row?);
                }
            }
            Ok(found)
        })
        .await
    }

    /// Evidence without an inclusion proof, oldest first, from behind `after` on.
    pub async fn unproven(&self, after: Option<MissingProof>, limit: u32) -> Result<Vec<MissingProof>, MailboxError> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT leaf, stored FROM evidence WHERE proof IS NULL AND (stored, leaf) > (?1, ?2) \
                 ORDER BY stored, leaf LIMIT ?3",
            )?;
            let (stored, leaf) = after.map_or((i64::MIN, -1), |last| (last.stored.unix_ms(), rows::int(last.leaf)));
            let found = query
                .query_map([stored, leaf, limit.into()], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
            found
                .map(|row| {
                    let (leaf, stored) = row?;
                    Ok(MissingProof { leaf: rows::uint(leaf), stored: rows::time(stored) })
                })
                .collect()
        })
        .await
    }

    pub async fn store_proofs(&self, proofs: Vec<(u64, String)>) -> Result<(), MailboxError> {
        self.write(move |connection| {
            let mut update =
                connection.prepare_cached("UPDATE evidence SET proof = ?2 WHERE leaf = ?1 AND proof IS NULL")?;
            for (leaf, proof) in proofs {
                update.execute(params![rows::int(leaf), proof])?;
            }
            Ok(())
        })
        .await
    }

    /// Keeps the certificates of a key of the exchange, so that older evidence can be judged after a change of keys.
    pub async fn keep_certificates(&self, key_id: Digest, chain: Chain) -> Result<(), MailboxError> {
        self.write(move |connection| {
            connection
                .prepare_cached("INSERT OR REPLACE INTO certificates VALUES (?1, ?2)")?
                .execute(params![key_id.as_bytes(), rows::chain_to_bytes(&chain)?])?;
            Ok(())
        })
        .await
    }

    pub async fn certificates(&self, key_id: Digest) -> Result<Option<Chain>, MailboxError> {
        self.read(move |connection| {
            let found: Option<Vec<u8>> = connection
                .prepare_cached("SELECT chain FROM certificates WHERE key_id = ?1")?
                .query_row([key_id.as_bytes()], |row| row.get(0))
                .optional()?;
            found.map(|chain| rows::chain(&chain)).transpose()
        })
        .await
    }

    /// The certificates of the log's key, as the exchange last showed them.
    pub async fn log_certificates(&self) -> Result<Option<Chain>, MailboxError> {
        self.read(|connection| {
            let found: Option<Vec<u8>> = connection
                .prepare_cached("SELECT value FROM meta WHERE key = 'log_chain'")?
                .query_row([], |row| row.get(0))
                .optional()?;
            found.map(|chain| rows::chain(&chain)).transpose()
        })
        .await
    }

    pub async fn keep_log_certificates(&self, chain: Chain) -> Result<(), MailboxError> {
        self.write(move |connection| {
            connection
                .prepare_cached("INSERT OR REPLACE INTO meta VALUES ('log_chain', ?1)")?
                .execute([rows::chain_to_bytes(&chain)?])?;
            Ok(())
        })
        .await
    }

    /// A number that grows when the mailbox was restored from a backup.
    pub async fn epoch(&self) -> Result<u64, MailboxError> {
        self.read(|connection| {
            let text: Vec<u8> =
                connection.query_row("SELECT value FROM meta WHERE key = 'mailbox_epoch'", [], |row| row.get(0))?;
            let text = String::from_utf8_lossy(&text).into_owned();
            rows::name("mailbox epoch", &text)
        })
        .await
    }
}

/// Stores one piece; `false` if it builds on one that is still on its way.
fn follow_one(connection: &Connection, item: &Follows, alarms: &mut Vec<String>) -> Result<bool, MailboxError> {
    let row = &item.row;
    let known: Option<(String, Vec<u8>, String)> = connection
        .prepare_cached("SELECT sender, envelope_sha256, state FROM outgoing WHERE id = ?1")?
        .query_row([row.dispatch.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
        .optional()?;
    let name = || format!("{} of dispatch {} (leaf {})", row.event, row.dispatch, row.leaf);
    let (ours, queued) = match &known {
        Some((sender, sha256, state)) => (
            sender == item.sender.as_str() && sha256 == item.envelope_sha256.as_bytes(),
            state == OutState::Queued.as_str(),
        ),
        None => (false, false),
    };
    let builds = row.event.is_submission() || builds_on_known(connection, item)?;
    if item.believed && ours && queued && !builds {
        return Ok(false);
    }
    if !insert_evidence(connection, row)? {
        alarms.push(contradiction(row.leaf));
        return Ok(true);
    }
    if !item.believed {
        return Ok(true);
    }
    if !ours {
        alarms.push(format!("{} is about a dispatch that {} did not send from here", name(), item.sender));
        return Ok(true);
    }
    match row.event {
        Event::SubmissionAcceptance => {
            settle(connection, row.dispatch, OutState::Accepted, row.time, None)?;
        }
        Event::SubmissionRejection => {
            settle(connection, row.dispatch, OutState::Rejected, row.time, item.reason.as_ref())?;
        }
        _ => {
            if !builds {
                alarms.push(format!("{} does not follow any evidence that is here", name()));
            }
            deliver(connection, item)?;
        }
    }
    Ok(true)
}

fn builds_on_known(connection: &Connection, item: &Follows) -> Result<bool, MailboxError> {
    let Some(previous) = item.previous else { return Ok(false) };
    Ok(connection
        .prepare_cached(
            "SELECT 1 FROM evidence WHERE dispatch = ?1 AND sha256 = ?2 AND (recipient IS NULL OR recipient = ?3)",
        )?
        .exists(params![
            item.row.dispatch.as_bytes(),
            previous.as_bytes(),
            item.row.recipient.as_ref().map(AgencyCode::as_str)
        ])?)
}

fn deliver(connection: &Connection, item: &Follows) -> Result<(), MailboxError> {
    let Some(recipient) = &item.row.recipient else { return Ok(()) };
    let key = params![item.row.dispatch.as_bytes(), recipient.as_str()];
    let state: Option<String> = connection
        .prepare_cached("SELECT state FROM deliveries WHERE dispatch = ?1 AND recipient = ?2")?
        .query_row(key, |row| row.get(0))
        .optional()?;
    let Some(state) = state.map(|state| DeliveryState::read(&state)).transpose()? else { return Ok(()) };
    let next = outbox::delivery_after(state, item.row.event, item.late, item.reason.as_ref());
    if next != state {
        connection
            .prepare_cached(
                "UPDATE deliveries SET state = ?3, since = ?4, reason = ?5 WHERE dispatch = ?1 AND recipient = ?2",
            )?
            .execute(params![
                item.row.dispatch.as_bytes(),
                recipient.as_str(),
                next.as_str(),
                item.row.time.unix_ms(),
                item.reason.as_ref().map(rows::reason_to_text)
            ])?;
    }
    Ok(())
}

/// What to say where two pieces of evidence claim one place in the log.
pub fn contradiction(leaf: u64) -> String {
    format!(
        "the exchange gave two pieces of evidence for leaf {leaf} of its log; both are kept, the second moves nothing"
    )
}

/// Stores evidence once. What is here under the same leaf stays; only a missing chain is filled in. `false` if other
/// bytes are here: both are kept, as proof against the exchange, and nothing may follow from the second.
pub(super) fn insert_evidence(connection: &Connection, row: &EvidenceRow) -> Result<bool, MailboxError> {
    let sha256 = row.signed.digest();
    let there: Option<Vec<u8>> = connection
        .prepare_cached("SELECT sha256 FROM evidence WHERE leaf = ?1")?
        .query_row([rows::int(row.leaf)], |row| row.get(0))
        .optional()?;
    if there.is_some_and(|there| there != sha256.as_bytes()) {
        connection.prepare_cached("INSERT OR IGNORE INTO contradictions VALUES (?1, ?2, ?3, ?4, ?5)")?.execute(
            params![
                rows::int(row.leaf),
                sha256.as_bytes(),
                row.signed.bytes,
                row.signed.signature.0,
                row.stored.unix_ms()
            ],
        )?;
        return Ok(false);
    }
    connection
        .prepare_cached(
            "INSERT INTO evidence VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11) ON CONFLICT (leaf) \
             DO UPDATE SET statement_chain = coalesce(statement_chain, excluded.statement_chain)",
        )?
        .execute(params![
            rows::int(row.leaf),
            row.dispatch.as_bytes(),
            row.recipient.as_ref().map(AgencyCode::as_str),
            row.event.as_str(),
            row.time.unix_ms(),
            row.signed.bytes,
            row.signed.signature.0,
            sha256.as_bytes(),
            row.statement_chain.as_ref().map(rows::chain_to_bytes).transpose()?,
            row.proof,
            row.stored.unix_ms()
        ])?;
    Ok(true)
}
