//! What this node can hold against the exchange: the newest checkpoint that it verified, and the evidence that it gives
//! back to an exchange whose data was put back from an older copy.

use std::collections::BTreeSet;
use std::path::Path;

use docaxis_protocol::envelope::Chain;
use docaxis_protocol::frame::{GivenLeaf, GoneItem};
use docaxis_protocol::tlog::{Checkpoint, SignedNote, TlogProof};
use docaxis_protocol::{Digest, DispatchId, Evidence, SealedEnvelope, Timestamp};
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};

use super::proofs::{COLUMNS, EvidenceRow, evidence};
use super::{BodyRow, Mailbox, MailboxError, bodies, rows, schema};

/// How many leaves the newest in a backup may be ahead of evidence that was still on its way to it.
const LEAVES_ON_THEIR_WAY: u64 = 10_000;
/// No database is made where none is.
pub(super) const EXISTING: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

impl Mailbox {
    /// The largest checkpoint that was verified here, as the exchange signed it.
    pub async fn checkpoint(&self) -> Result<Option<String>, MailboxError> {
        self.read(|connection| Ok(newest(connection)?.map(|(_, note)| note))).await
    }

    /// Keeps a checkpoint that was verified, if it is the largest so far. `false` if one of the same size with another
    /// root is here: then the exchange has signed two histories.
    pub async fn keep_checkpoint(&self, note: String) -> Result<bool, MailboxError> {
        self.write(move |connection| {
            let Some(new) = read(&note) else { return Ok(true) };
            if let Some((known, _)) = newest(connection)?
                && known.size >= new.size
            {
                return Ok(known.size > new.size || known.root == new.root);
            }
            connection
                .prepare_cached("INSERT OR REPLACE INTO meta VALUES ('checkpoint', ?1)")?
                .execute([note.as_bytes()])?;
            Ok(true)
        })
        .await
    }

    /// The first evidence from this leaf on, for an exchange that lost it. What was accepted there and has no outcome
    /// everywhere is queued again in the same transaction: its bodies may be lost as well. What is damaged here is left out
    /// and told, so that it does not keep back the rest; fewer than `limit` leaves still mean that there are no more.
    pub async fn give_back(
        &self,
        from: u64,
        limit: usize,
        now: Timestamp,
    ) -> Result<(Vec<GivenLeaf>, Vec<MailboxError>), MailboxError> {
        self.write(move |connection| {
            connection
                .prepare_cached(
                    "UPDATE outgoing SET state = 'queued', attempts = 0, next_attempt = ?2 WHERE state = 'accepted' \
                     AND EXISTS (SELECT 1 FROM evidence e WHERE e.dispatch = outgoing.id AND e.leaf >= ?1 \
                     AND e.event = 'SubmissionAcceptance') \
                     AND EXISTS (SELECT 1 FROM deliveries d WHERE d.dispatch = outgoing.id AND d.state = 'waiting')",
                )?
                .execute(params![rows::int(from), now.unix_ms()])?;
            let sql = format!("SELECT {COLUMNS} FROM evidence WHERE leaf >= ?1 ORDER BY leaf");
            let mut query = connection.prepare_cached(&sql)?;
            let mut found = query.query_map([rows::int(from)], evidence)?;
            let (mut leaves, mut damaged) = (Vec::new(), Vec::new());
            while leaves.len() < limit
                && let Some(row) = found.next()
            {
                match row?.and_then(|row| given(connection, row)) {
                    Ok(leaf) => leaves.push(leaf),
                    Err(error @ MailboxError::Damaged { .. }) => damaged.push(error),
                    Err(error) => return Err(error),
                }
            }
            Ok((leaves, damaged))
        })
        .await
    }

    /// From which leaf on the exchange is to offer again what it handed over to us; none unless the mailbox was restored.
    pub async fn restored_from(&self) -> Result<Option<u64>, MailboxError> {
        self.read(|connection| {
            let text: Option<Vec<u8>> = connection
                .prepare_cached("SELECT value FROM meta WHERE key = 'restored_from'")?
                .query_row([], |row| row.get(0))
                .optional()?;
            text.map(|text| rows::name("leaf", &String::from_utf8_lossy(&text))).transpose()
        })
        .await
    }

    /// Keeps what is gone, and from where on to ask next; none ends it. What is here is not gone: leaves from before the
    /// backup are asked for as well.
    pub async fn keep_gone(&self, items: Vec<GoneItem>, next: Option<u64>) -> Result<(), MailboxError> {
        self.write(move |connection| {
            for item in items {
                connection
                    .prepare_cached(
                        "INSERT OR IGNORE INTO gone SELECT ?1, ?2, ?3, ?4, ?5 \
                         WHERE NOT EXISTS (SELECT 1 FROM incoming WHERE id = ?2 AND recipient = ?3)",
                    )?
                    .execute(params![
                        rows::int(item.leaf),
                        item.dispatch.as_bytes(),
                        item.recipient.as_str(),
                        item.sender.as_str(),
                        item.time.unix_ms()
                    ])?;
            }
            match next {
                Some(next) => connection.execute(
                    "INSERT OR REPLACE INTO meta VALUES ('restored_from', CAST(?1 AS BLOB))",
                    [next.to_string()],
                )?,
                None => connection.execute("DELETE FROM meta WHERE key = 'restored_from'", [])?,
            };
            Ok(())
        })
        .await
    }

    /// What was received, lost with a restore and is no longer at the exchange, oldest first.
    pub async fn gone(&self, limit: u32) -> Result<Vec<GoneItem>, MailboxError> {
        self.read(move |connection| {
            let mut query = connection.prepare_cached(
                "SELECT leaf, dispatch, recipient, sender, time FROM gone WHERE NOT EXISTS \
                 (SELECT 1 FROM incoming i WHERE i.id = gone.dispatch AND i.recipient = gone.recipient) \
                 ORDER BY leaf LIMIT ?1",
            )?;
            let found = query.query_map([limit], |row| {
                let texts: (String, String) = (row.get(2)?, row.get(3)?);
                Ok((row.get::<_, i64>(0)?, row.get::<_, Vec<u8>>(1)?, texts, row.get::<_, i64>(4)?))
            })?;
            found
                .map(|row| {
                    let (leaf, dispatch, (recipient, sender), time) = row?;
                    Ok(GoneItem {
                        leaf: rows::uint(leaf),
                        dispatch: rows::dispatch(dispatch)?,
                        recipient: rows::name("agency code", &recipient)?,
                        sender: rows::name("agency code", &sender)?,
                        time: rows::time(time),
                    })
                })
                .collect()
        })
        .await
    }
}

/// What a copy of a mailbox holds.
pub struct Snapshot {
    /// Pieces of evidence in it, and dispatches that were ever sent or taken: only grows.
    pub records: u64,
    /// The bodies that it names and does not hold whole itself.
    pub bodies: BTreeSet<Digest>,
}

/// Writes the database as of one moment to a new file, while it may be in use. Makes no database where none is.
pub fn snapshot(database: &Path, to: &Path) -> Result<Snapshot, MailboxError> {
    let connection = Connection::open_with_flags(database, EXISTING)?;
    connection.execute_batch("PRAGMA busy_timeout=5000;")?;
    connection.execute("VACUUM INTO ?1", [to.to_string_lossy()])?;
    let copy = Connection::open_with_flags(to, EXISTING)?;
    let records = copy.query_row(
        "SELECT (SELECT count(*) FROM evidence) + (SELECT coalesce(sum(seq), 0) FROM sqlite_sequence)",
        [],
        |row| row.get(0),
    )?;
    let mut bodies = copy
        .prepare("SELECT DISTINCT sha256 FROM part_refs")?
        .query_map([], |row| row.get::<_, Vec<u8>>(0))?
        .map(|row| rows::digest(row?))
        .collect::<Result<BTreeSet<_>, MailboxError>>()?;
    let version: i64 = copy.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    let mut damaged = None;
    // Of a stopped agent it may be of a version that has all bodies as files.
    bodies.retain(|sha256| match bodies::look(&copy, *sha256) {
        _ if version < schema::WITH_BODIES => true,
        Ok(row) => !matches!(row, BodyRow::Whole(_)),
        Err(error) => {
            damaged = Some(error);
            true
        }
    });
    if let Some(error) = damaged {
        return Err(error);
    }
    copy.close().map_err(|(_, error)| error)?;
    Ok(Snapshot { records: rows::uint(records), bodies })
}

/// Gives a mailbox that was put back from a backup a new epoch, durably. It is larger than any that a mailbox restored
/// from this backup had before, because it follows the clock.
pub fn begin_epoch(database: &Path, now: Timestamp) -> Result<u64, MailboxError> {
    let mut connection = Connection::open(database)?;
    schema::prepare(&mut connection)?;
    let old: Vec<u8> =
        connection.query_row("SELECT value FROM meta WHERE key = 'mailbox_epoch'", [], |row| row.get(0))?;
    let old: u64 = rows::name("mailbox epoch", &String::from_utf8_lossy(&old))?;
    let epoch = old.saturating_add(1).max(rows::uint(now.unix_ms()));
    connection.execute("UPDATE meta SET value = CAST(?1 AS BLOB) WHERE key = 'mailbox_epoch'", [epoch.to_string()])?;
    let newest: i64 = connection.query_row("SELECT coalesce(max(leaf), 0) FROM evidence", [], |row| row.get(0))?;
    // Some of what was on its way when the backup was made stands a little before the newest leaf that is in it.
    let from = rows::uint(newest).saturating_sub(LEAVES_ON_THEIR_WAY);
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('restored_from', CAST(?1 AS BLOB))", [from.to_string()])?;
    connection.close().map_err(|(_, error)| error)?;
    Ok(epoch)
}

fn read(note: &str) -> Option<Checkpoint> {
    Checkpoint::parse(&SignedNote::parse(note).ok()?.text).ok()
}

fn newest(connection: &Connection) -> Result<Option<(Checkpoint, String)>, MailboxError> {
    let kept: Option<Vec<u8>> = connection
        .prepare_cached("SELECT value FROM meta WHERE key = 'checkpoint'")?
        .query_row([], |row| row.get(0))
        .optional()?;
    let note = match kept {
        Some(bytes) => String::from_utf8(bytes).ok(),
        // A mailbox from before checkpoints were kept has them in its proofs.
        None => connection
            .prepare_cached("SELECT proof FROM evidence WHERE proof IS NOT NULL ORDER BY leaf DESC LIMIT 1")?
            .query_row([], |row| row.get::<_, String>(0))
            .optional()?
            .and_then(|proof| Some(TlogProof::parse(&proof).ok()?.checkpoint)),
    };
    Ok(note.and_then(|note| Some((read(&note)?, note))))
}

/// A piece of evidence with what the exchange needs beside it.
fn given(connection: &Connection, row: EvidenceRow) -> Result<GivenLeaf, MailboxError> {
    let read = Evidence::parse(&row.signed.bytes).map_err(|e| rows::damaged("evidence")(e.to_string()))?;
    let envelope = match row.event.is_submission() {
        true => envelope(connection, row.dispatch, read.envelope_sha256)?,
        false => None,
    };
    let statement_chain = match row.statement_chain {
        None if read.statement.is_some() => own_chain(connection, &row, read.envelope_sha256)?,
        chain => chain,
    };
    Ok(GivenLeaf { leaf: row.leaf, evidence: row.signed, envelope, statement_chain, proof: row.proof })
}

/// The envelope as we sent it, or as it came to us.
fn envelope(connection: &Connection, id: DispatchId, sha256: Digest) -> Result<Option<SealedEnvelope>, MailboxError> {
    for table in ["outgoing", "incoming"] {
        let sql = format!("SELECT envelope, seal, chain FROM {table} WHERE id = ?1 AND envelope_sha256 = ?2 LIMIT 1");
        let found: Option<(Vec<u8>, Vec<u8>, Vec<u8>)> = connection
            .prepare_cached(&sql)?
            .query_row(params![id.as_bytes(), sha256.as_bytes()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .optional()?;
        if let Some((envelope, seal, chain)) = found {
            return rows::sealed(envelope, &seal, &chain).map(Some);
        }
    }
    Ok(None)
}

/// The certificates beside our own statement, where the evidence is about one of ours.
fn own_chain(connection: &Connection, row: &EvidenceRow, sha256: Digest) -> Result<Option<Chain>, MailboxError> {
    let Some(recipient) = &row.recipient else { return Ok(None) };
    let found: Option<Vec<u8>> = connection
        .prepare_cached(
            "SELECT chain FROM statements WHERE dispatch = ?1 AND recipient = ?2 AND envelope_sha256 = ?3 AND event = ?4",
        )?
        .query_row(
            params![row.dispatch.as_bytes(), recipient.as_str(), sha256.as_bytes(), row.event.as_str()],
            |row| row.get(0),
        )
        .optional()?;
    found.map(|chain| rows::chain(&chain)).transpose()
}

#[cfg(test)]
mod tests {
    use docaxis_protocol::key::SecretKey;
    use docaxis_protocol::tlog::{KeyKind, VerifierKey};

    use super::*;

    fn note(size: u64, root: u8) -> String {
        let secret = SecretKey::from_seed(&[1; 32]);
        let log = VerifierKey::new("docaxis.example/test", KeyKind::Ed25519, secret.public()).unwrap();
        Checkpoint { origin: log.name().into(), size, root: Digest([root; 32]) }.sign(&log, &secret).to_string()
    }

    fn wait<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn the_largest_checkpoint_stays_and_another_root_of_the_same_size_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let mailbox = Mailbox::open(&folder.path().join("mailbox.db")).unwrap();
        wait(async {
            assert_eq!(mailbox.checkpoint().await.unwrap(), None);
            for (size, root, fits) in [(7, 1, true), (9, 2, true), (8, 9, true), (9, 2, true), (9, 3, false)] {
                assert_eq!(mailbox.keep_checkpoint(note(size, root)).await.unwrap(), fits, "{size} {root}");
            }
            assert_eq!(mailbox.checkpoint().await.unwrap(), Some(note(9, 2)));
        });
        mailbox.close();
    }

    #[test]
    fn a_snapshot_is_the_mailbox_of_one_moment_and_a_restored_one_gets_a_larger_epoch_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let (path, copy) = (folder.path().join("mailbox.db"), folder.path().join("copy.db"));
        let mailbox = Mailbox::open(&path).unwrap();
        wait(mailbox.keep_checkpoint(note(7, 1))).unwrap();
        snapshot(&path, &copy).unwrap();
        wait(mailbox.keep_checkpoint(note(8, 1))).unwrap();
        mailbox.close();
        let second = folder.path().join("again.db");
        std::fs::copy(&copy, &second).unwrap();
        let now = Timestamp::from_unix_ms(1_795_318_200_123);
        let first = begin_epoch(&copy, now).unwrap();
        // Restored once more from the same backup: the epochs differ.
        assert!(begin_epoch(&second, now.plus(std::time::Duration::from_secs(1))).unwrap() > first);
        assert!(begin_epoch(&copy, Timestamp::from_unix_ms(0)).unwrap() > first, "even if the clock ran back");
        let mailbox = Mailbox::open(&copy).unwrap();
        wait(async {
            assert_eq!(mailbox.checkpoint().await.unwrap(), Some(note(7, 1)));
            assert_eq!(mailbox.restored_from().await.unwrap(), Some(0));
            let item = GoneItem {
                leaf: 5,
                recipient: "H37.DN.001".parse().unwrap(),
                sender: "000.00.00.G22".parse().unwrap(),
                dispatch: DispatchId::from_parts(now, [1; 10]),
                time: now,
            };
            mailbox.keep_gone(vec![item.clone()], Some(6)).await.unwrap();
            assert_eq!(mailbox.restored_from().await.unwrap(), Some(6));
            mailbox.keep_gone(vec![item.clone()], None).await.unwrap();
            assert_eq!((mailbox.restored_from().await.unwrap(), mailbox.gone(9).await.unwrap()), (None, vec![item]));
        });
        mailbox.close();
    }

    /// A row as `take` leaves it; its content does not matter here.
    const HELD: &str = "INSERT INTO incoming (id, recipient, sender, envelope, envelope_sha256, seal, chain, acceptance, \
        acceptance_signature, acceptance_leaf, taken, state, since) \
        VALUES (?1, ?2, 'x', x'', x'', x'', x'', x'', x'', 1, 0, 'visible', 0)";

    #[test]
    fn what_is_here_is_not_gone_whether_it_came_before_the_exchange_said_so_or_after() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mailbox.db");
        let mailbox = Mailbox::open(&path).unwrap();
        let now = Timestamp::from_unix_ms(1_795_318_200_123);
        let item = |leaf: u64, recipient: &str| GoneItem {
            leaf,
            recipient: recipient.parse().unwrap(),
            sender: "000.00.00.G22".parse().unwrap(),
            dispatch: DispatchId::from_parts(now, [1; 10]),
            time: now,
        };
        let (before, after, lost) = (item(5, "H37.DN.001"), item(6, "H37.DN.002"), item(7, "H37.DN.003"));
        let hold = |item: &GoneItem| {
            let other = Connection::open(&path).unwrap();
            other.execute(HELD, params![item.dispatch.as_bytes(), item.recipient.as_str()]).unwrap();
        };
        hold(&before);
        wait(mailbox.keep_gone(vec![before, after.clone(), lost.clone()], None)).unwrap();
        let rows = |of: &Connection| of.query_row("SELECT count(*) FROM gone", [], |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(rows(&Connection::open(&path).unwrap()), 2);
        hold(&after);
        assert_eq!(wait(mailbox.gone(9)).unwrap(), [lost]);
        mailbox.close();
    }
}
