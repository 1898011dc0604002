//! The mailbox: what this node sent, took, stated and can prove, with its small bodies, in one SQLite database.
//!
//! A write is answered after the COMMIT that it is part of; many waiting writes share one transaction and one fsync
//! (WAL, synchronous=FULL), so an answered write survives kill -9 and a power cut. After a failed commit nothing more
//! is taken. Reads have a connection of their own and see the last commit. The only place of this crate that knows
//! SQL.

mod agencies;
mod bodies;
mod check;
mod documents;
mod held;
mod incoming;
mod outgoing;
mod proofs;
mod related;
mod rows;
mod schema;
mod statements;
mod wal;

pub use agencies::{AgencyRow, Resolved};
pub use bodies::{BodyRow, MAX_SMALL_BODY_BYTES, SmallBodies, body_in};
pub use check::check;
pub use documents::DocumentKeys;
pub use held::{begin_epoch, snapshot};
pub use incoming::{Destroyed, IncomingRow, Known, Take, TakeBody, Taken};
pub use outgoing::{DeliveryRow, NotQueued, OutgoingRow, Queued, QueuedAs, QueuedPart};
pub use proofs::{EvidenceRow, Followed, Follows, MissingProof, contradiction};
pub use related::{GivesUp, Related, RelatedRow};
pub use rows::{DeliveryState, InState, OutState};
pub use statements::{Stated, StatementKey, StatementRow};
pub use wal::check as check_log;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::Connection;
use rusqlite::config::DbConfig;
use tokio::sync::{mpsc, oneshot};

/// Writes that may wait for the writer, each with up to 256 KiB of small bodies. Beyond that, callers wait.
const MAX_WAITING_WRITES: usize = 1024;
/// Writes in one transaction: bounds how long the first of them waits for the last.
const MAX_BATCH: usize = 256;
const MAX_WAITING_READS: usize = 256;

#[derive(Debug, Clone, thiserror::Error)]
pub enum MailboxError {
    #[error("the mailbox is closed")]
    Closed,
    #[error("the mailbox takes nothing more after a failed commit: {0}")]
    Poisoned(String),
    /// Nothing of it was stored, and it may be tried again.
    #[error("the disk under the mailbox is full")]
    Full,
    #[error("the mailbox's database refused an operation")]
    Sql(#[source] Arc<rusqlite::Error>),
    #[error("the mailbox's schema has version {found}; this program knows up to {known}")]
    Newer { found: i64, known: i64 },
    #[error("the mailbox holds a damaged {what}: {found}")]
    Damaged { what: &'static str, found: String },
    #[error("the mailbox's thread could not be started: {0}")]
    Thread(Arc<std::io::Error>),
}

impl From<rusqlite::Error> for MailboxError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            _ => Self::Sql(Arc::new(error)),
        }
    }
}

type Tell = Box<dyn FnOnce(Result<(), MailboxError>) + Send>;
/// Runs inside the transaction, or is told why there is none; says whether its own changes are kept, and whom to tell once
/// they are durable.
type Write = Box<dyn FnOnce(Result<&Connection, MailboxError>) -> (Result<(), MailboxError>, Tell) + Send>;
type Read = Box<dyn FnOnce(&Connection) + Send>;

enum Job<T> {
    Run(T),
    Close,
}

/// The database beside the mailbox, for tests that write what matters to them alone.
#[cfg(test)]
pub(crate) fn raw(database: &Path) -> Connection {
    Connection::open(database).unwrap()
}

/// Makes a small body's row other than it was written, or removes it: as a damaged disk may.
#[cfg(test)]
pub(crate) fn damage(database: &Path, sha256: docaxis_protocol::Digest, bytes: Option<&[u8]>) {
    let connection = raw(database);
    let changed = match bytes {
        Some(bytes) => connection
            .execute("UPDATE bodies SET bytes = ?2 WHERE sha256 = ?1", rusqlite::params![sha256.as_bytes(), bytes]),
        None => connection.execute("DELETE FROM bodies WHERE sha256 = ?1", [sha256.as_bytes()]),
    };
    assert_eq!(changed.unwrap(), 1, "{sha256} is in the mailbox");
}

/// Flips a bit at the last place where these bytes stand in the first page of a table or index. Nobody may have it open.
#[cfg(test)]
pub(crate) fn flip_in(database: &Path, name: &str, piece: &[u8]) {
    let connection = raw(database);
    let page = connection.query_row("SELECT rootpage FROM sqlite_schema WHERE name = ?1", [name], |row| row.get(0));
    let page = usize::try_from(page.map(|page: i64| page).unwrap()).unwrap();
    drop(connection);
    let mut bytes = std::fs::read(database).unwrap();
    let begin = (page - 1) * 4096;
    let at =
        bytes[begin..begin + 4096].windows(piece.len()).rposition(|window| window == piece).expect("it stands there");
    bytes[begin + at] ^= 1;
    std::fs::write(database, bytes).unwrap();
}

/// The bodies that stand in rows of this database.
#[cfg(test)]
pub(crate) fn small_bodies(database: &Path) -> Vec<docaxis_protocol::Digest> {
    let connection = raw(database);
    let mut query = connection.prepare("SELECT sha256 FROM bodies").unwrap();
    query.query_map([], |row| row.get(0)).unwrap().map(|sha256| rows::digest(sha256.unwrap()).unwrap()).collect()
}

pub struct Mailbox {
    path: PathBuf,
    writer: mpsc::Sender<Job<Write>>,
    reader: mpsc::Sender<Job<Read>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    watch: Mutex<Option<check::Watch>>,
    failed: Arc<OnceLock<String>>,
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, MailboxError> {
    std::thread::Builder::new().name(name.into()).spawn(work).map_err(|e| MailboxError::Thread(Arc::new(e)))
}

/// Statements keep the plan that they were prepared with. Else those with parameters are prepared anew at nearly every use,
/// as this SQLite looks at the parameters' values; two thirds of the time spent in it went there.
fn keep_plans(connection: &Connection) -> Result<(), rusqlite::Error> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true).map(drop)
}

impl Mailbox {
    /// Opens or makes the database in this file. A damaged log of the database is refused.
    pub fn open(path: &Path) -> Result<Self, MailboxError> {
        Self::open_with(path, || (), None)
    }

    /// The same; `full` is called when a write has found no room on the disk. With a time for each commit, writer and reader
    /// are tasks of the runtime around the caller, as in a simulation.
    pub fn open_with(
        path: &Path,
        full: impl Fn() + Send + 'static,
        as_tasks: Option<Duration>,
    ) -> Result<Self, MailboxError> {
        wal::check(path)?;
        let mut connection = Connection::open(path)?;
        schema::prepare(&mut connection)?;
        let log = wal::open(path)?;
        let reading = Connection::open(path)?;
        keep_plans(&connection)?;
        keep_plans(&reading)?;
        reading.execute_batch("PRAGMA query_only=ON; PRAGMA busy_timeout=5000;")?;
        let (writer, writes) = mpsc::channel(MAX_WAITING_WRITES);
        let (reader, reads) = mpsc::channel(MAX_WAITING_READS);
        let failed = Arc::<OnceLock<String>>::default();
        let failing = failed.clone();
        let threads = if let Some(commit) = as_tasks {
            drop(tokio::spawn(write_task(connection, log, writes, full, failing, commit)));
            drop(tokio::spawn(read_task(reading, reads)));
            vec![]
        } else {
            vec![
                spawn("mailbox-write", move || write_loop(connection, &log, writes, full, &failing))?,
                spawn("mailbox-read", move || read_loop(&reading, reads))?,
            ]
        };
        Ok(Self {
            path: path.to_owned(),
            writer,
            reader,
            threads: Mutex::new(threads),
            watch: Mutex::default(),
            failed,
        })
    }

    /// Checks now and every so often whether the database holds together, in a thread of its own, and tells `found` what does
    /// not, or why that is not known.
    pub fn check_every(
        &self,
        every: Duration,
        found: impl Fn(Result<Vec<String>, MailboxError>) + Send + 'static,
    ) -> Result<(), MailboxError> {
        let watch = check::Watch::start(self.path.clone(), every, found)?;
        *self.watch.lock().unwrap_or_else(PoisonError::into_inner) = Some(watch);
        Ok(())
    }

    /// Why nothing more is taken, after a commit or a read of the disk failed: the process must stop and be started again.
    pub fn poisoned(&self) -> Option<String> {
        self.failed.get().cloned()
    }

    /// Runs `work` in the next transaction; answers after its commit. If `work` fails, its changes alone are undone.
    async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, MailboxError> + Send + 'static,
    ) -> Result<T, MailboxError> {
        let (tell, told) = oneshot::channel();
        let failed = self.failed.clone();
        let job: Write = Box::new(move |connection| {
            let result = connection.and_then(work);
            note_lost_disk(&failed, &result);
            let keep = result.as_ref().map(drop).map_err(Clone::clone);
            let answer = move |committed: Result<(), MailboxError>| {
                // Nobody may be waiting any more; the change stays either way.
                let _gone = tell.send(committed.and(result));
            };
            (keep, Box::new(answer))
        });
        self.writer.send(Job::Run(job)).await.map_err(|_| MailboxError::Closed)?;
        told.await.unwrap_or(Err(MailboxError::Closed))
    }

    async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, MailboxError> + Send + 'static,
    ) -> Result<T, MailboxError> {
        let (tell, told) = oneshot::channel();
        let failed = self.failed.clone();
        let job: Read = Box::new(move |connection| {
            let result = work(connection);
            note_lost_disk(&failed, &result);
            let _gone = tell.send(result);
        });
        self.reader.send(Job::Run(job)).await.map_err(|_| MailboxError::Closed)?;
        told.await.unwrap_or(Err(MailboxError::Closed))
    }

    /// Lets what waits be committed, then closes. Blocks: not to be called on an asynchronous thread.
    pub fn close(&self) {
        // First, as the last connection to close empties the database's log.
        let watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(watch) = watch {
            watch.stop();
        }
        let mut threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let mut join = || {
            if threads.pop().is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("a thread of the mailbox had panicked");
            }
        };
        // One after the other: of two that close at once neither may find itself the last. Either thread may have ended
        // already; then there is nothing to tell it.
        let _ended = self.reader.blocking_send(Job::Close);
        join();
        let _ended = self.writer.blocking_send(Job::Close);
        join();
    }
}

/// A database that cannot be read takes nothing more either, and the process must not look alive until a write shows it.
fn note_lost_disk<T>(failed: &OnceLock<String>, result: &Result<T, MailboxError>) {
    if let Err(MailboxError::Sql(error)) = result
        && error.sqlite_error_code() == Some(rusqlite::ErrorCode::SystemIoFailure)
    {
        failed.get_or_init(|| error.to_string());
    }
}

fn write_loop(
    connection: Connection,
    log: &File,
    mut jobs: mpsc::Receiver<Job<Write>>,
    full: impl Fn(),
    failed: &OnceLock<String>,
) {
    while let Some(Job::Run(first)) = jobs.blocking_recv() {
        if write_batch(&connection, log, first, &mut jobs, &full, failed) {
            break;
        }
    }
    if let Err((_, error)) = connection.close() {
        tracing::warn!(%error, "the mailbox was not closed cleanly");
    }
}

async fn write_task(
    connection: Connection,
    log: File,
    mut jobs: mpsc::Receiver<Job<Write>>,
    full: impl Fn() + Send,
    failed: Arc<OnceLock<String>>,
    commit: Duration,
) {
    while let Some(Job::Run(first)) = jobs.recv().await {
        tokio::time::sleep(commit).await;
        if write_batch(&connection, &log, first, &mut jobs, &full, &failed) {
            break;
        }
    }
}

/// Commits what waits, beginning with `first`; says whether a close came behind it.
fn write_batch(
    connection: &Connection,
    log: &File,
    first: Write,
    jobs: &mut mpsc::Receiver<Job<Write>>,
    full: &impl Fn(),
    failed: &OnceLock<String>,
) -> bool {
    let mut closing = false;
    let mut batch = vec![first];
    while batch.len() < MAX_BATCH {
        match jobs.try_recv() {
            Ok(Job::Run(job)) => batch.push(job),
            Ok(Job::Close) => {
                closing = true;
                break;
            }
            Err(_) => break,
        }
    }
    let refusing = failed.get().is_some();
    match commit(connection, log, batch, failed) {
        Ok(()) => {}
        // Undone as a whole: the next one may find room.
        Err(MailboxError::Full) => full(),
        Err(error) if refusing => tracing::warn!(%error, "writes are refused"),
        Err(error) => {
            tracing::error!(%error, "the mailbox could not commit; it takes nothing more until a restart");
        }
    }
    closing
}

/// Answers come after the COMMIT, never before: whoever is told "done" may rely on it after a power cut. On an error
/// nothing of the batch is kept.
fn commit(
    connection: &Connection,
    log: &File,
    batch: Vec<Write>,
    failed: &OnceLock<String>,
) -> Result<(), MailboxError> {
    let mut tells = Vec::with_capacity(batch.len());
    let mut jobs = batch.into_iter();
    let mut result = match failed.get() {
        Some(why) => Err(MailboxError::Poisoned(why.to_owned())),
        None => run_all(connection, &mut jobs, &mut tells).and_then(|()| still_there(log)),
    };
    docaxis_failpoints::failpoint!("agent.mailbox.committed");
    if result.is_err()
        && !connection.is_autocommit()
        && let Err(error) = connection.execute_batch("ROLLBACK")
    {
        // What was not committed is undone by closing, at the latest.
        result = Err(MailboxError::Poisoned(error.to_string()));
    }
    if let Err(error) = &result
        && !matches!(error, MailboxError::Full)
    {
        // Set before the first refusal leaves: who is refused must find the mailbox refusing.
        failed.get_or_init(|| match error {
            MailboxError::Poisoned(why) => why.clone(),
            other => other.to_string(),
        });
    }
    if let Err(error) = &result {
        tells.extend(jobs.map(|job| job(Err(error.clone())).1));
    }
    for tell in tells {
        tell(result.clone());
    }
    docaxis_failpoints::failpoint!("agent.mailbox.told");
    result
}

/// A file system that goes away during a sync may let it succeed without having written: on xfs it finds that nothing is
/// left to wait for, because that was dropped. From then on every read fails, even of what is in memory.
fn still_there(log: &File) -> Result<(), MailboxError> {
    use std::os::unix::fs::FileExt as _;
    loop {
        match log.read_at(&mut [0], 0) {
            Ok(_) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(MailboxError::Poisoned(format!("its disk is gone: {error}"))),
        }
    }
}

fn run_all(
    connection: &Connection,
    jobs: &mut impl Iterator<Item = Write>,
    tells: &mut Vec<Tell>,
) -> Result<(), MailboxError> {
    let run = |sql: &str| connection.execute_batch(sql).map_err(failed_commit);
    run("BEGIN IMMEDIATE")?;
    docaxis_failpoints::failpoint!("agent.mailbox.begun");
    for job in jobs {
        run("SAVEPOINT one")?;
        let (kept, tell) = job(Ok(connection));
        tells.push(tell);
        // On a full disk and the like, SQLite undoes the whole transaction by itself.
        if connection.is_autocommit() {
            return kept.and(Err(MailboxError::Poisoned("the transaction ended by itself".into())));
        }
        run(if kept.is_ok() { "RELEASE one" } else { "ROLLBACK TO one; RELEASE one" })?;
    }
    docaxis_failpoints::failpoint!("agent.mailbox.filled");
    run("COMMIT")
}

/// A full disk is found before anything is written to it that counts; after any other failure it is not known what the
/// disk holds.
fn failed_commit(error: rusqlite::Error) -> MailboxError {
    match MailboxError::from(error) {
        MailboxError::Full => MailboxError::Full,
        other => MailboxError::Poisoned(other.to_string()),
    }
}

fn read_loop(connection: &Connection, mut jobs: mpsc::Receiver<Job<Read>>) {
    while let Some(Job::Run(job)) = jobs.blocking_recv() {
        job(connection);
    }
}

async fn read_task(connection: Connection, mut jobs: mpsc::Receiver<Job<Read>>) {
    while let Some(Job::Run(job)) = jobs.recv().await {
        job(&connection);
    }
}

#[cfg(test)]
mod tests;
