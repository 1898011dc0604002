//! Whether the database holds together: SQLite has no checksums over its pages, and a bit that rots in what links them can
//! keep a row out of every list without a word.
//!
//! SQLite's own check finds pages, indexes and types that do not agree. Then rows of dispatches, evidence and statements are held
//! against the signed bytes in them: digests, and what stands in columns of its own so that it can be looked for. States and
//! times stand for themselves, and are not found; a body is compared with its digest when it is read.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use docaxis_protocol::{Digest, Envelope, Evidence, Statement};
use rusqlite::types::{FromSql, ValueRef};
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, Row, params};

use super::bodies::is_damage;
use super::held::EXISTING;
use super::{Mailbox, MailboxError, Related, spawn};

/// How many findings are told. One bit may be found in many places.
const MAX_FINDINGS: usize = 5;
/// Steps of SQLite's machine after which it asks whether to go on.
const STEPS: i32 = 20;

/// Looks at the database from time to time until it is told to stop.
pub(super) struct Watch {
    stop: Arc<AtomicBool>,
    /// Dropped to end a pause.
    going: mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Watch {
    /// Looks at once and then every so often, in a thread of its own, and tells `found` what is wrong.
    pub fn start(
        database: PathBuf,
        every: Duration,
        found: impl Fn(Result<Vec<String>, MailboxError>) + Send + 'static,
    ) -> Result<Self, MailboxError> {
        let (going, gone) = mpsc::channel::<()>();
        let stop = Arc::<AtomicBool>::default();
        let stopped = stop.clone();
        let thread = spawn("mailbox-check", move || {
            loop {
                let began = Instant::now();
                let stopped = stopped.clone();
                match look(&database, move || stopped.load(Ordering::Relaxed)) {
                    Ok(findings) if findings.is_empty() => {
                        let ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                        tracing::debug!(ms, "the mailbox's database was checked");
                    }
                    other => found(other),
                }
                if !matches!(gone.recv_timeout(every), Err(RecvTimeoutError::Timeout)) {
                    break;
                }
            }
        })?;
        Ok(Self { stop, going, thread })
    }

    /// Breaks off what it is looking at, and waits for its end.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.going);
        if self.thread.join().is_err() {
            tracing::error!("the check of the mailbox had panicked");
        }
    }
}

/// What does not hold together in the database, in words; at most a few.
pub fn check(database: &Path) -> Result<Vec<String>, MailboxError> {
    look(database, || false)
}

/// An error is no finding: then it was not checked.
fn look(database: &Path, stopped: impl Fn() -> bool + Clone + Send + 'static) -> Result<Vec<String>, MailboxError> {
    let mut connection = Connection::open_with_flags(database, EXISTING)?;
    connection.execute_batch("PRAGMA query_only=ON; PRAGMA busy_timeout=5000;")?;
    connection.progress_handler(STEPS, Some(stopped.clone()))?;
    let mut findings = Vec::new();
    for part in [pages, outgoing, incoming, evidence, statements] {
        if stopped() {
            break;
        }
        match part(&connection, &mut findings) {
            Ok(()) => {}
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::OperationInterrupted) => break,
            Err(error) if is_damage(&error) => findings.push(error.to_string()),
            Err(error) => return Err(error.into()),
        }
        if findings.len() >= MAX_FINDINGS {
            break;
        }
    }
    findings.truncate(MAX_FINDINGS);
    Ok(findings)
}

impl Mailbox {
    /// What SQLite finds wrong with the table that says which dispatches name a body.
    pub async fn damage_of_names(&self) -> Result<Option<String>, MailboxError> {
        self.read(|connection| {
            let first = connection.query_row("PRAGMA integrity_check(part_refs)", [], |row| row.get::<_, String>(0));
            match first {
                Ok(line) => Ok((line != "ok").then_some(line)),
                Err(error) if is_damage(&error) => Ok(Some(error.to_string())),
                Err(error) => Err(error.into()),
            }
        })
        .await
    }
}

fn pages(connection: &Connection, findings: &mut Vec<String>) -> rusqlite::Result<()> {
    let mut check = connection.prepare(&format!("PRAGMA integrity_check({MAX_FINDINGS})"))?;
    for line in check.query_map([], |row| row.get::<_, String>(0))? {
        let line = line?;
        if line != "ok" {
            findings.push(line);
        }
    }
    Ok(())
}

/// Gives each row to `agrees`, which says what in it does not agree with its signed bytes.
fn rows(
    connection: &Connection,
    table: &str,
    findings: &mut Vec<String>,
    agrees: impl Fn(&Row<'_>) -> rusqlite::Result<Result<(), String>>,
) -> rusqlite::Result<()> {
    let mut query = connection.prepare(&format!("SELECT * FROM {table}"))?;
    let mut found = query.query([])?;
    while let Some(row) = found.next()?
        && findings.len() < MAX_FINDINGS
    {
        if let Err(what) = agrees(row)? {
            let row = key_of(row);
            findings.push(format!("row {row} of {table} does not agree with its signed bytes: {what}"));
        }
    }
    Ok(())
}

/// A row's first column, which is in each of these tables what its key begins with.
fn key_of(row: &Row<'_>) -> String {
    match row.get_ref(0) {
        Ok(ValueRef::Integer(number)) => number.to_string(),
        Ok(ValueRef::Blob(bytes)) => docaxis_protocol::digest::hex(bytes),
        _ => "without a key".into(),
    }
}

/// Whether the column holds this.
fn holds<T: FromSql + PartialEq + std::fmt::Debug>(row: &Row<'_>, column: &str, signed: &T) -> Result<(), String> {
    match row.get::<_, T>(column) {
        Ok(found) if found == *signed => Ok(()),
        Ok(found) => Err(format!("{column} is {found:?}, expected {signed:?}")),
        Err(error) => Err(format!("{column}: {error}")),
    }
}

fn digest_of(row: &Row<'_>, bytes: &str, digest: &str) -> Result<Vec<u8>, String> {
    let bytes: Vec<u8> = row.get(bytes).map_err(|error| format!("{bytes}: {error}"))?;
    holds(row, digest, &Digest::of(&bytes).0)?;
    Ok(bytes)
}

fn envelope_of(row: &Row<'_>) -> Result<Envelope, String> {
    let bytes = digest_of(row, "envelope", "envelope_sha256")?;
    let envelope = Envelope::parse(&bytes).map_err(|error| error.to_string())?;
    holds(row, "id", envelope.id.as_bytes())?;
    holds(row, "sender", &envelope.sender.agency.to_string())?;
    Ok(envelope)
}

fn outgoing(connection: &Connection, findings: &mut Vec<String>) -> rusqlite::Result<()> {
    let mut recipients =
        connection.prepare("SELECT recipient FROM deliveries WHERE dispatch = ?1 ORDER BY recipient")?;
    let recipients = std::cell::RefCell::new(&mut recipients);
    rows(connection, "outgoing", findings, |row| {
        let envelope = match envelope_of(row) {
            Ok(envelope) => envelope,
            Err(what) => return Ok(Err(what)),
        };
        let mut expected: Vec<_> = envelope.recipients.iter().map(ToString::to_string).collect();
        expected.sort_unstable();
        let mut recipients = recipients.borrow_mut();
        let known = recipients.query_map([envelope.id.as_bytes()], |row| row.get::<_, String>(0))?;
        let known: Vec<_> = known.collect::<Result<_, _>>()?;
        if known != expected {
            return Ok(Err(format!("the recipients of {} are {known:?}, expected {expected:?}", envelope.id)));
        }
        related(connection, &Related::of(&envelope, &envelope.sender.agency, false))
    })
}

fn incoming(connection: &Connection, findings: &mut Vec<String>) -> rusqlite::Result<()> {
    rows(connection, "incoming", findings, |row| {
        let envelope = match envelope_of(row) {
            Ok(envelope) => envelope,
            Err(what) => return Ok(Err(what)),
        };
        match row.get::<_, String>("recipient")?.parse() {
            Ok(recipient) => related(connection, &Related::of(&envelope, &recipient, true)),
            Err(error) => Ok(Err(format!("the recipient of {}: {error}", envelope.id))),
        }
    })
}

/// Whether all that a dispatch says about earlier ones is found with them.
fn related(connection: &Connection, said: &[Related]) -> rusqlite::Result<Result<(), String>> {
    for one in said {
        let found: Option<(String, Option<String>, String)> = connection
            .prepare_cached(
                "SELECT kind, code, text FROM related \
                 WHERE target = ?1 AND dispatch = ?2 AND agency = ?3 AND incoming = ?4 AND sender = ?5",
            )?
            .query_row(
                params![
                    one.target.as_bytes(),
                    one.dispatch.as_bytes(),
                    one.agency.as_str(),
                    one.incoming,
                    one.sender.as_str()
                ],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )
            .optional()?;
        let expected = (one.kind.as_str().to_owned(), one.code.map(|code| code.as_str().to_owned()), one.text.clone());
        if found.as_ref() != Some(&expected) {
            let (dispatch, target) = (one.dispatch, one.target);
            return Ok(Err(format!("what {dispatch} says about {target} is {found:?}, expected {expected:?}")));
        }
    }
    Ok(Ok(()))
}

fn evidence(connection: &Connection, findings: &mut Vec<String>) -> rusqlite::Result<()> {
    rows(connection, "evidence", findings, |row| {
        Ok(digest_of(row, "bytes", "sha256").and_then(|bytes| {
            let evidence = Evidence::parse(&bytes).map_err(|error| error.to_string())?;
            holds(row, "dispatch", evidence.dispatch.as_bytes())?;
            holds(row, "event", &evidence.event.to_string())
        }))
    })
}

fn statements(connection: &Connection, findings: &mut Vec<String>) -> rusqlite::Result<()> {
    rows(connection, "statements", findings, |row| {
        let bytes: Vec<u8> = row.get("bytes")?;
        Ok(Statement::parse(&bytes).map_err(|error| error.to_string()).and_then(|statement| {
            holds(row, "dispatch", statement.dispatch.as_bytes())?;
            holds(row, "recipient", &statement.recipient.to_string())?;
            holds(row, "envelope_sha256", &statement.envelope_sha256.0)?;
            holds(row, "event", &statement.event.to_string())
        }))
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::AtomicUsize;

    use super::super::tests::{queued, runtime};
    use super::super::{flip_in, raw};
    use super::*;

    /// A closed mailbox with this many dispatches of ours.
    fn mailbox(path: &Path, dispatches: u32) {
        let mailbox = Mailbox::open(path).unwrap();
        runtime().block_on(async {
            for n in 0..dispatches {
                mailbox.queue(queued(n)).await.unwrap().unwrap();
            }
        });
        mailbox.close();
    }

    /// Every dispatch as lists show it.
    fn listed(path: &Path) -> rusqlite::Result<Vec<(Vec<u8>, String)>> {
        let connection = Connection::open_with_flags(path, EXISTING)?;
        let sql = "SELECT o.id, d.recipient FROM outgoing o JOIN deliveries d ON d.dispatch = o.id \
                   WHERE o.state = 'queued' ORDER BY o.id";
        connection.prepare(sql)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
    }

    #[test]
    fn a_bit_that_takes_a_dispatch_out_of_the_lists_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mailbox.db");
        mailbox(&path, 60);
        assert_eq!(check(&path).unwrap(), Vec::<String>::new());
        let (sound, all) = (std::fs::read(&path).unwrap(), listed(&path).unwrap());
        assert_eq!(all.len(), 60);
        // Everywhere, and more where pages say what is in them.
        let everywhere = (0..sound.len() * 8).step_by(15_013);
        let heads = (0..sound.len()).step_by(4096).flat_map(|page| (page * 8 + 3..(page + 40) * 8).step_by(61));
        let (mut hidden, mut changed) = (0, 0);
        for bit in everywhere.chain(heads) {
            let mut bytes = sound.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, bytes).unwrap();
            let differs = listed(&path).map_or(true, |left| left != all);
            let findings = check(&path).unwrap_or_else(|error| vec![error.to_string()]);
            assert!(!differs || !findings.is_empty(), "bit {bit} changes the lists, and is not found");
            hidden += u32::from(differs);
            changed += u32::from(!findings.is_empty());
        }
        assert!(hidden > 20 && changed > hidden, "{hidden} and {changed}: the bits that are tried are the wrong ones");
    }

    #[test]
    fn a_column_that_does_not_agree_with_the_signed_bytes_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mailbox.db");
        mailbox(&path, 3);
        for (change, expected) in [
            ("UPDATE outgoing SET state = 'queued'", None),
            ("UPDATE outgoing SET sender = 'H37.DN.001' WHERE seq = 2", Some("sender is")),
            ("UPDATE outgoing SET envelope = substr(envelope, 2) WHERE seq = 2", Some("envelope_sha256 is")),
            (
                "DELETE FROM deliveries WHERE dispatch = (SELECT id FROM outgoing WHERE seq = 2)",
                Some("the recipients of"),
            ),
            ("UPDATE outgoing SET id = zeroblob(16) WHERE seq = 2", Some("id is")),
        ] {
            let bytes = std::fs::read(&path).unwrap();
            raw(&path).execute_batch(change).unwrap();
            let found = check(&path).unwrap();
            match expected {
                None => assert_eq!(found, Vec::<String>::new()),
                Some(text) => assert!(found.len() == 1 && found[0].contains(text), "{change}: {found:?}"),
            }
            std::fs::write(&path, bytes).unwrap();
        }
    }

    #[test]
    fn a_recall_that_is_hidden_from_its_document_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mailbox.db");
        let mailbox = Mailbox::open(&path).unwrap();
        let document = queued(1);
        let mut envelope = Envelope::parse(&queued(2).sealed.bytes).unwrap();
        envelope.kind = docaxis_protocol::Kind::Recall;
        let relation = serde_json::json!([{"rel": "recalls", "dispatch": document.id}]);
        envelope.relates = serde_json::from_value(relation).unwrap();
        let traces = serde_json::json!({"Bussiness": {"BussinessDocReason": "Nhầm phụ lục"}});
        envelope.document.insert("TraceHeaderList".into(), traces);
        let key = docaxis_protocol::key::SecretKey::from_seed(&[1; 32]);
        let sealed = docaxis_protocol::SealedEnvelope::seal(&envelope, &key, Default::default()).unwrap();
        let related = Related::of(&envelope, &envelope.sender.agency, false);
        let recall = super::super::Queued { sealed, related, ..queued(2) };
        runtime().block_on(async {
            mailbox.queue(document).await.unwrap().unwrap();
            mailbox.queue(recall).await.unwrap().unwrap();
        });
        mailbox.close();
        assert_eq!(check(&path).unwrap(), Vec::<String>::new());
        raw(&path).execute_batch("UPDATE related SET target = zeroblob(16)").unwrap();
        let found = check(&path).unwrap();
        assert!(found.len() == 1 && found[0].contains("says about"), "{found:?}");
        // As a program wrote it that did not read the reason where it stands in an edXML file.
        let related = "UPDATE related SET target = (SELECT id FROM outgoing ORDER BY seq LIMIT 1), text = ''";
        raw(&path).execute_batch(&format!("{related}; PRAGMA user_version = 6;")).unwrap();
        assert_eq!(check(&path).unwrap().len(), 1);
        Mailbox::open(&path).unwrap().close();
        assert_eq!(check(&path).unwrap(), Vec::<String>::new());
        // As a mailbox of an earlier version: it is filled in.
        raw(&path).execute_batch("DROP TABLE related; DROP TABLE documents; PRAGMA user_version = 5;").unwrap();
        Mailbox::open(&path).unwrap().close();
        assert_eq!(check(&path).unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_check_is_repeated_tells_what_it_finds_and_is_broken_off_by_closing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mailbox.db");
        let mailbox = Mailbox::open(&path).unwrap();
        let (tell, told) = mpsc::channel();
        let tell = Mutex::new(tell);
        let telling = move |found: Result<Vec<String>, MailboxError>| {
            // Nobody listens any more when the test is over.
            let _over = tell.lock().unwrap().send(found.unwrap());
        };
        mailbox.check_every(Duration::from_millis(1), telling).unwrap();
        let mut other = queued(1);
        other.recipients.clear();
        runtime().block_on(mailbox.queue(other)).unwrap().unwrap();
        for _ in 0..2 {
            let found = told.recv().unwrap();
            assert!(found.len() == 1 && found[0].contains("the recipients of"), "{found:?}");
        }
        mailbox.close();
        // The thread has ended, and no finding is of its end.
        assert!(told.iter().all(|found| found.len() == 1));
        assert!(!path.with_extension("db-wal").exists(), "the log is emptied by whoever closes last");
    }

    #[test]
    fn a_check_that_is_told_to_stop_ends_in_the_middle_and_without_a_finding() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mailbox.db");
        mailbox(&path, 60);
        // A state in the table that its index does not have.
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.windows(6).rposition(|window| window == b"queued").unwrap();
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert!(!check(&path).unwrap().is_empty());
        // Once before it begins; the next question comes from within SQLite.
        let asked = Arc::<AtomicUsize>::default();
        let stopped = asked.clone();
        let found = look(&path, move || stopped.fetch_add(1, Ordering::Relaxed) > 0).unwrap();
        assert_eq!((found, asked.load(Ordering::Relaxed)), (vec![], 2));
    }

    #[test]
    fn bodies_names_that_do_not_read_are_told_and_a_mailbox_without_them_is_sound() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mailbox.db");
        mailbox(&path, 20);
        let sound = Mailbox::open(&path).unwrap();
        assert_eq!(runtime().block_on(sound.damage_of_names()).unwrap(), None);
        sound.close();
        // One entry of its index is another.
        flip_in(&path, "part_refs_dispatch", b"000.0");
        let damaged = Mailbox::open(&path).unwrap();
        assert!(runtime().block_on(damaged.damage_of_names()).unwrap().is_some());
        damaged.close();
    }
}
