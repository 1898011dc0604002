//! The tables, and how an older database becomes the present one. The version stands in `user_version`.

use docaxis_protocol::Envelope;
use rusqlite::Connection;

use super::{MailboxError, Related, documents, related};

const VERSION: i64 = 7;
/// From this version on small bodies are rows.
pub(super) const WITH_BODIES: i64 = 5;

pub(super) const V1: &str = "
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO meta VALUES ('mailbox_epoch', CAST('1' AS BLOB)), ('directory_version', CAST('0' AS BLOB));

CREATE TABLE outgoing (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id BLOB NOT NULL UNIQUE,
  sender TEXT NOT NULL,
  envelope BLOB NOT NULL,
  envelope_sha256 BLOB NOT NULL,
  seal BLOB NOT NULL,
  chain BLOB NOT NULL,
  priority INTEGER NOT NULL,
  queued INTEGER NOT NULL,
  state TEXT NOT NULL,
  since INTEGER NOT NULL,
  attempts INTEGER NOT NULL DEFAULT 0,
  next_attempt INTEGER NOT NULL,
  trouble TEXT,
  idempotency TEXT,
  request_sha256 BLOB
) STRICT;
CREATE INDEX outgoing_due ON outgoing (state, next_attempt);
CREATE UNIQUE INDEX outgoing_idempotency ON outgoing (sender, idempotency) WHERE idempotency IS NOT NULL;

CREATE TABLE deliveries (
  dispatch BLOB NOT NULL,
  recipient TEXT NOT NULL,
  state TEXT NOT NULL,
  since INTEGER NOT NULL,
  reason TEXT,
  PRIMARY KEY (dispatch, recipient)
) STRICT, WITHOUT ROWID;

CREATE TABLE incoming (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  id BLOB NOT NULL,
  recipient TEXT NOT NULL,
  sender TEXT NOT NULL,
  envelope BLOB NOT NULL,
  envelope_sha256 BLOB NOT NULL,
  seal BLOB NOT NULL,
  chain BLOB NOT NULL,
  acceptance BLOB NOT NULL,
  acceptance_signature BLOB NOT NULL,
  acceptance_leaf INTEGER NOT NULL,
  taken INTEGER NOT NULL,
  state TEXT NOT NULL,
  since INTEGER NOT NULL,
  reason TEXT,
  UNIQUE (id, recipient)
) STRICT;
CREATE INDEX incoming_state ON incoming (state);

CREATE TABLE statements (
  dispatch BLOB NOT NULL,
  recipient TEXT NOT NULL,
  envelope_sha256 BLOB NOT NULL,
  event TEXT NOT NULL,
  bytes BLOB NOT NULL,
  signature BLOB NOT NULL,
  chain BLOB NOT NULL,
  time INTEGER NOT NULL,
  answered INTEGER NOT NULL DEFAULT 0,
  refusal TEXT,
  PRIMARY KEY (dispatch, recipient, envelope_sha256, event)
) STRICT, WITHOUT ROWID;
CREATE INDEX statements_open ON statements (answered, time);

CREATE TABLE evidence (
  leaf INTEGER PRIMARY KEY,
  dispatch BLOB NOT NULL,
  recipient TEXT,
  event TEXT NOT NULL,
  time INTEGER NOT NULL,
  bytes BLOB NOT NULL,
  signature BLOB NOT NULL,
  sha256 BLOB NOT NULL,
  statement_chain BLOB,
  proof TEXT,
  stored INTEGER NOT NULL
) STRICT;
CREATE INDEX evidence_dispatch ON evidence (dispatch, leaf);
CREATE INDEX evidence_unproven ON evidence (stored) WHERE proof IS NULL;

CREATE TABLE cursors (agency TEXT PRIMARY KEY, next_leaf INTEGER NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE agencies (
  code TEXT PRIMARY KEY,
  version INTEGER NOT NULL,
  bytes BLOB NOT NULL,
  signature BLOB NOT NULL,
  name TEXT NOT NULL,
  folded TEXT NOT NULL,
  node TEXT,
  locked INTEGER NOT NULL,
  successor TEXT
) STRICT, WITHOUT ROWID;
CREATE TABLE aliases (alias TEXT NOT NULL, agency TEXT NOT NULL, PRIMARY KEY (alias, agency)) STRICT, WITHOUT ROWID;

CREATE TABLE part_refs (
  sha256 BLOB NOT NULL,
  agency TEXT NOT NULL,
  incoming INTEGER NOT NULL,
  dispatch BLOB NOT NULL,
  size INTEGER NOT NULL,
  PRIMARY KEY (sha256, agency, incoming, dispatch)
) STRICT, WITHOUT ROWID;
CREATE INDEX part_refs_dispatch ON part_refs (dispatch, agency);

CREATE TABLE certificates (key_id BLOB PRIMARY KEY, chain BLOB NOT NULL) STRICT, WITHOUT ROWID;
";

/// Evidence that claims a place in the log under which other evidence is here.
const V2: &str = "
CREATE TABLE contradictions (
  leaf INTEGER NOT NULL,
  sha256 BLOB NOT NULL,
  bytes BLOB NOT NULL,
  signature BLOB NOT NULL,
  stored INTEGER NOT NULL,
  PRIMARY KEY (leaf, sha256)
) STRICT, WITHOUT ROWID;
";

/// What was handed over to us, lost with a restore, and is no longer at the exchange.
const V3: &str = "
CREATE TABLE gone (
  leaf INTEGER PRIMARY KEY,
  dispatch BLOB NOT NULL,
  recipient TEXT NOT NULL,
  sender TEXT NOT NULL,
  time INTEGER NOT NULL
) STRICT;
";

/// The order in which the outbox is sent.
const V4: &str = "
CREATE INDEX outgoing_order ON outgoing (priority DESC, seq, next_attempt, id) WHERE state = 'queued';
";

/// Small bodies. Larger ones, and what was stored before this version, are files.
const V5: &str = "
CREATE TABLE bodies (n INTEGER PRIMARY KEY, sha256 BLOB NOT NULL UNIQUE, bytes BLOB NOT NULL) STRICT;
";

/// What was sent about earlier dispatches, and the names of documents.
const V6: &str = "
CREATE TABLE related (
  target BLOB NOT NULL,
  dispatch BLOB NOT NULL,
  agency TEXT NOT NULL,
  incoming INTEGER NOT NULL,
  sender TEXT NOT NULL,
  kind TEXT NOT NULL,
  code TEXT,
  text TEXT NOT NULL,
  answers BLOB,
  time INTEGER NOT NULL,
  PRIMARY KEY (target, dispatch, agency, incoming)
) STRICT, WITHOUT ROWID;
CREATE INDEX related_dispatch ON related (dispatch, agency);
CREATE TABLE documents (
  agency TEXT NOT NULL,
  incoming INTEGER NOT NULL,
  key TEXT NOT NULL,
  dispatch BLOB NOT NULL,
  PRIMARY KEY (agency, incoming, key, dispatch)
) STRICT, WITHOUT ROWID;
";

/// Before version 6 the exchange took documents alone. What else was made here waits, or was rejected.
fn relate_what_was_not_accepted(connection: &Connection) -> Result<(), MailboxError> {
    let mut query = connection.prepare("SELECT envelope FROM outgoing WHERE state <> 'accepted'")?;
    let mut found = query.query([])?;
    while let Some(row) = found.next()? {
        // One that does not read says nothing about others; the check of the mailbox tells of it.
        if let Ok(envelope) = Envelope::parse(&row.get::<_, Vec<u8>>(0)?) {
            related::insert(connection, &Related::of(&envelope, &envelope.sender.agency, false))?;
        }
    }
    Ok(())
}

/// What the directory is searched by: a country's agencies are not read whole for one name, or for one node.
const AGENCIES: &str = "
CREATE INDEX IF NOT EXISTS agencies_folded ON agencies (folded);
CREATE INDEX IF NOT EXISTS agencies_node ON agencies (node) WHERE node IS NOT NULL;
CREATE INDEX IF NOT EXISTS aliases_agency ON aliases (agency);
";

/// In which order the outbox is read, each sender and priority for itself. The index of version 4 stays: programs of this version
/// that know no other read by it.
const LINES: &str = "
CREATE INDEX IF NOT EXISTS outgoing_lines ON outgoing (sender, priority, seq) WHERE state = 'queued';
";

/// The most that the writer's cache takes, in KiB.
const CACHE_KIB: i64 = 24 << 10;

pub(super) fn prepare(connection: &mut Connection) -> Result<(), MailboxError> {
    connection.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout=5000; PRAGMA foreign_keys=ON;",
    )?;
    // A body that is destroyed leaves no bytes behind in free pages.
    connection.execute_batch("PRAGMA secure_delete=ON;")?;
    connection.set_prepared_statement_cache_capacity(64);
    // Pages in memory, as many as are used: a country's directory comes in an order that is not that of its codes and names.
    connection.pragma_update(None, "cache_size", -CACHE_KIB)?;
    // What a crash left in the log goes into the database now: a check of the log (wal.rs) counts on an empty one.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    let found: i64 = connection.query_row("PRAGMA user_version", [], |row| row.get(0))?;
    match found {
        0..VERSION => {
            let transaction = connection.transaction()?;
            if found == 0 {
                transaction.execute_batch(V1)?;
            }
            if found < 2 {
                transaction.execute_batch(V2)?;
            }
            if found < 3 {
                transaction.execute_batch(V3)?;
            }
            if found < 4 {
                transaction.execute_batch(V4)?;
            }
            if found < 5 {
                transaction.execute_batch(V5)?;
            }
            if found < 6 {
                transaction.execute_batch(V6)?;
                relate_what_was_not_accepted(&transaction)?;
                documents::fill(&transaction)?;
            }
            related::fill_reasons(&transaction)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
            transaction.commit()?;
        }
        VERSION => {}
        found => return Err(MailboxError::Newer { found, known: VERSION }),
    }
    connection.execute_batch(AGENCIES)?;
    Ok(connection.execute_batch(LINES)?)
}
