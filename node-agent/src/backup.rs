//! Backup of an agent's data, online or stopped, and its restore: the mailbox as of one moment with the small bodies in it, and
//! every body that is a file.
//!
//! Keys and configuration are not in it. A restored mailbox gets a new epoch, so that the exchange sees that it is one.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use docaxis_backup::{Backup, BackupError, Fresh, Manifest, Source, Taken, open, verify};
use docaxis_protocol::partial::PartialsConfig;
use docaxis_protocol::{Digest, NodeId, Timestamp};

use crate::agent::{AgentError, lock, whole};
use crate::config::AgentConfig;
use crate::mailbox::{self, MailboxError};
use crate::parts::{Parts, PartsError};

pub use crate::desk::report;

const KIND: &str = "agent";
const MAILBOX: &str = "mailbox.db";
const PARTS: &str = "parts";
/// What in the data folder is the data's own. Keys and configuration may lie beside it.
const OWNED: &[&str] = &[MAILBOX, "mailbox.db-wal", "mailbox.db-shm", PARTS];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error(transparent)]
    Agent(#[from] AgentError),
    #[error("the mailbox")]
    Mailbox(#[from] MailboxError),
    #[error("the parts")]
    Parts(#[from] PartsError),
    #[error("cannot {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restored {
    pub manifest: Manifest,
    /// The mailbox's new epoch.
    pub epoch: u64,
    /// Where the data of before is now.
    pub aside: Option<PathBuf>,
}

/// Copies the mailbox and what is new of the bodies into `dir`. The agent may go on meanwhile. Blocks.
pub(crate) fn take(data: &Path, parts: &Arc<Parts>, node: &NodeId, now: Timestamp, dir: &Path) -> Result<Taken, Error> {
    there(data)?;
    // Bodies have their digests for names, so a restore does not change what a name means.
    let mut backup = Backup::begin(dir, KIND, node.as_str(), "bodies", now)?;
    // Pinned, so that none goes while it is copied. One that comes later is durable before the mailbox names it, and is
    // in the second list.
    let pins: Vec<_> = parts.list()?.into_iter().map(|sha256| parts.pin(sha256)).collect();
    let snapshot = dir.join("mailbox.new");
    remove(&snapshot)?;
    // A copy of what is left of it must not take the place of the earlier one.
    if let [found, ..] = &mailbox::check(&data.join(MAILBOX))?[..] {
        let found = format!(
            "{found}. Nothing was copied, and an earlier backup stays as it is. Stop the agent, copy its data folder as it is, \
             and restore the newest backup (docaxis agent restore)"
        );
        return Err(MailboxError::Damaged { what: "database", found }.into());
    }
    let mut held = mailbox::snapshot(&data.join(MAILBOX), &snapshot)?;
    let size_of = |path: &Path| {
        let failed = |source| Error::Io { operation: "look at", path: path.to_owned(), source };
        Ok::<_, Error>(std::fs::metadata(path).map_err(failed)?.len())
    };
    let name = MAILBOX.to_owned();
    let mut files =
        vec![Source { name, size: size_of(&snapshot)?, path: snapshot.clone(), fixed: false, sha256: None }];
    for sha256 in parts.list()? {
        let path = parts.path(sha256);
        files.push(Source { name: body(sha256), size: size_of(&path)?, path, fixed: true, sha256: Some(sha256) });
        held.bodies.remove(&sha256);
    }
    backup.copy(files)?;
    drop(pins);
    for sha256 in &held.bodies {
        keep_earlier(&mut backup, *sha256)?;
    }
    backup.missing(held.bodies.into_iter().map(|sha256| (body(sha256), sha256)).collect());
    let taken = backup.finish(held.records)?;
    remove(&snapshot)?;
    Ok(taken)
}

/// Of a small body that is damaged in the mailbox now, the copy in the earlier backup's mailbox is kept, as a file.
fn keep_earlier(backup: &mut Backup, sha256: Digest) -> Result<(), Error> {
    let name = body(sha256);
    if backup.earlier(&name).is_none()
        && let Some(mailbox) = backup.earlier(MAILBOX)
        && let Some(bytes) = mailbox::body_in(&mailbox, sha256)
    {
        backup.add(&name, &bytes)?;
    }
    Ok(())
}

/// The name of a body below the data folder.
fn body(sha256: Digest) -> String {
    let text = sha256.to_string();
    format!("{PARTS}/{}/{text}", &text[..2])
}

/// Refuses where no mailbox is: an empty one that is made now is no copy of one whose disk is not mounted.
fn there(data: &Path) -> Result<(), Error> {
    let mailbox = data.join(MAILBOX);
    match std::fs::metadata(&mailbox) {
        Ok(found) if found.len() > 0 => Ok(()),
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { operation: "look at", path: mailbox, source })
        }
        _ => Err(BackupError::NoData(mailbox).into()),
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(Error::Io { operation: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// The same for a stopped agent, under its lock. A damaged log of the mailbox is refused, as at a start: SQLite would
/// leave out what stands behind the damage.
pub fn take_stopped(config: &AgentConfig, node: &NodeId, now: Timestamp, dir: &Path) -> Result<Taken, Error> {
    let data = &config.agent.data;
    // A restore that was broken off is said first: until it has ended, the mailbox may not be there.
    whole(data)?;
    there(data)?;
    let _stopped = lock(data)?;
    whole(data)?;
    mailbox::check_log(&data.join(MAILBOX))?;
    let parts = Arc::new(Parts::open(data.join(PARTS), PartialsConfig::default())?);
    take(data, &parts, node, now, dir)
}

/// Restores `dir` to the data folder of this agent. Every digest is checked before anything is touched; a folder with a
/// mailbox is moved aside if `move_aside` says so, and refused otherwise.
pub fn restore(
    dir: &Path,
    config: &AgentConfig,
    node: &NodeId,
    now: Timestamp,
    move_aside: bool,
) -> Result<Restored, Error> {
    let data = &config.agent.data;
    let manifest = open(dir)?;
    if manifest.kind != KIND || manifest.owner != node.as_str() {
        let (expected, found) = (format!("{KIND} {node}"), format!("{} {}", manifest.kind, manifest.owner));
        return Err(BackupError::Foreign { path: dir.to_owned(), expected, found }.into());
    }
    let _stopped = if data.exists() { Some(lock(data)?) } else { None };
    if !move_aside && !docaxis_backup::is_empty(data, OWNED) {
        return Err(BackupError::NotEmpty(data.clone()).into());
    }
    verify(dir, &manifest)?;
    let fresh = Fresh::write(dir, &manifest, data, OWNED)?;
    let epoch = mailbox::begin_epoch(&fresh.folder().join(MAILBOX), now)?;
    let replaced = fresh.replace(move_aside)?;
    Ok(Restored { manifest, epoch, aside: replaced.aside })
}

/// Whether a restore has nothing to move aside.
pub fn is_empty(config: &AgentConfig) -> bool {
    docaxis_backup::is_empty(&config.agent.data, OWNED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mailbox::Mailbox;

    struct Node {
        _root: tempfile::TempDir,
        config: AgentConfig,
        data: PathBuf,
        dir: PathBuf,
    }

    impl Node {
        /// A stopped agent whose mailbox names one body that it holds as a file.
        fn with_a_body(bytes: &[u8]) -> Self {
            let root = tempfile::tempdir().unwrap();
            let (data, dir) = (root.path().join("data"), root.path().join("backup"));
            std::fs::create_dir(&data).unwrap();
            let node = Self { config: AgentConfig::at(&data, root.path().join("identity")), _root: root, data, dir };
            Arc::new(Parts::open(node.data.join(PARTS), PartialsConfig::default()).unwrap()).store(bytes).unwrap();
            Mailbox::open(&node.data.join(MAILBOX)).unwrap().close();
            node.write("INSERT INTO sqlite_sequence VALUES ('outgoing', 1)");
            let sha256 = Digest::of(bytes);
            node.write(&format!("INSERT INTO part_refs VALUES (x'{sha256}', 'a', 0, x'', {})", bytes.len()));
            node
        }

        fn write(&self, sql: &str) {
            mailbox::raw(&self.data.join(MAILBOX)).execute_batch(sql).unwrap();
        }

        fn take(&self) -> Result<Taken, Error> {
            take_stopped(&self.config, &"h37".parse().unwrap(), Timestamp::from_unix_ms(0), &self.dir)
        }
    }

    #[test]
    fn data_that_is_not_there_or_was_begun_anew_does_not_replace_the_backup() {
        let node = Node::with_a_body(b"body");
        let first = node.take().unwrap().manifest;
        std::fs::remove_dir_all(&node.data).unwrap();
        for mount_point in [false, true] {
            if mount_point {
                std::fs::create_dir(&node.data).unwrap();
            }
            let error = node.take().unwrap_err();
            assert!(matches!(&error, Error::Backup(BackupError::NoData(_))), "{error}");
            assert_eq!(node.data.exists(), mount_point, "nothing is made");
        }
        assert_eq!(std::fs::read_dir(&node.data).unwrap().count(), 0, "nothing is made");
        Mailbox::open(&node.data.join(MAILBOX)).unwrap().close();
        let error = node.take().unwrap_err();
        assert!(matches!(&error, Error::Backup(BackupError::Fewer { expected: 1, found: 0, .. })), "{error}");
        assert_eq!(open(&node.dir).unwrap(), first);
        verify(&node.dir, &first).unwrap();
    }

    #[test]
    fn a_body_that_the_mailbox_names_and_is_not_there_is_told_and_its_earlier_copy_stays() {
        let node = Node::with_a_body(b"body");
        node.take().unwrap();
        let name = body(Digest::of(b"body"));
        std::fs::remove_file(node.data.join(&name)).unwrap();
        // And again: the copy does not go with the second backup.
        for _ in 0..2 {
            let taken = node.take().unwrap().manifest;
            assert_eq!(taken.damaged, [name.as_str()]);
            assert!(taken.files.iter().any(|file| file.name == name), "{taken:?}");
            verify(&node.dir, &taken).unwrap();
        }
    }

    #[test]
    fn a_stopped_agents_mailbox_of_the_version_before_is_backed_up_with_its_bodies_as_files() {
        let node = Node::with_a_body(b"body");
        node.write("DROP TABLE bodies; PRAGMA user_version = 4");
        let taken = node.take().unwrap().manifest;
        assert_eq!((taken.files.len(), taken.damaged.len()), (2, 0), "{taken:?}");
        verify(&node.dir, &taken).unwrap();
    }

    #[test]
    fn a_mailbox_that_does_not_hold_together_does_not_replace_the_backup() {
        let node = Node::with_a_body(b"body");
        let first = node.take().unwrap().manifest;
        node.write("INSERT INTO evidence VALUES (1, x'', NULL, 'e', 0, x'', x'', x'', NULL, NULL, 0)");
        let error = node.take().unwrap_err();
        let Error::Mailbox(MailboxError::Damaged { what: "database", found }) = &error else { panic!("{error:?}") };
        assert!(found.contains("row 1 of evidence"), "{found}");
        assert_eq!(open(&node.dir).unwrap(), first);
        verify(&node.dir, &first).unwrap();
    }

    #[test]
    fn a_small_body_that_is_damaged_in_the_mailbox_is_told_and_its_copy_in_the_earlier_mailbox_stays() {
        let node = Node::with_a_body(b"body");
        let (small, other) = (Digest::of(b"small"), Digest::of(b"other"));
        for (sha256, text) in [(small, "small"), (other, "other")] {
            node.write(&format!("INSERT INTO part_refs VALUES (x'{sha256}', 'a', 0, x'', 5)"));
            node.write(&format!("INSERT INTO bodies (sha256, bytes) VALUES (x'{sha256}', CAST('{text}' AS BLOB))"));
        }
        let first = node.take().unwrap();
        let names = |taken: &Taken| taken.manifest.files.iter().map(|file| file.name.clone()).collect::<Vec<_>>();
        let (file, kept) = (body(Digest::of(b"body")), body(small));
        assert_eq!((names(&first), first.manifest.damaged.len()), (vec![MAILBOX.into(), file.clone()], 0));
        // Nothing new: of the bodies, nothing is copied again.
        assert_eq!(node.take().unwrap().copied.0, 1, "the mailbox alone");
        mailbox::damage(&node.data.join(MAILBOX), small, Some(b"SMALL"));
        for _ in 0..3 {
            let taken = node.take().unwrap();
            assert_eq!(taken.manifest.damaged, [kept.as_str()]);
            let mut expected = vec![MAILBOX.to_owned(), file.clone(), kept.clone()];
            expected.sort();
            assert_eq!(names(&taken), expected);
            verify(&node.dir, &taken.manifest).unwrap();
        }
        // Put back, the file stands for the damaged row.
        let restored = restore(&node.dir, &node.config, &"h37".parse().unwrap(), Timestamp::from_unix_ms(1), true);
        assert_eq!(restored.unwrap().manifest.damaged, [kept.as_str()]);
        assert_eq!(std::fs::read(node.data.join(kept)).unwrap(), b"small");
        let there = mailbox::body_in(&node.data.join(MAILBOX), other);
        assert_eq!(there, Some(b"other".to_vec()));
    }

    #[test]
    fn a_stopped_agent_whose_mailboxs_log_is_damaged_is_not_backed_up() {
        let node = Node::with_a_body(b"body");
        let (database, log) = (node.data.join(MAILBOX), node.data.join("mailbox.db-wal"));
        let connection = mailbox::raw(&database);
        for n in 0..4 {
            connection.execute("INSERT INTO meta VALUES (?1, zeroblob(3000))", [n.to_string()]).unwrap();
        }
        // As after kill -9: a connection that closes would empty the log.
        let mut bytes = std::fs::read(&log).unwrap();
        let pages = std::fs::read(&database).unwrap();
        drop(connection);
        // Two bits: one would be put right.
        bytes[100] ^= 1;
        bytes[2_000] ^= 4;
        std::fs::write(&database, pages).unwrap();
        std::fs::write(&log, &bytes).unwrap();
        let error = node.take().unwrap_err();
        assert!(matches!(&error, Error::Mailbox(MailboxError::Damaged { .. })), "{error}");
        assert_eq!((std::fs::read(&log).unwrap() == bytes, node.dir.exists()), (true, false));
    }
}
