//! Small bodies, in rows: durable with the transaction that names them, gone with the last dispatch that does.
//!
//! A row is compared with its digest each time it is read, and never inside a transaction that writes: what SQLite finds
//! damaged there would end the transaction, and with it the mailbox. A damaged row is neither written over nor removed: SQLite
//! would follow its chain of pages, and one that a flipped bit has bent may lead into pages of others. A good copy of such a
//! body is kept as a file, and so is a body that is a file already: a body stands in one place.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use bytes::Bytes;
use docaxis_protocol::{Digest, limits};
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension as _, params};

use super::{Mailbox, MailboxError, incoming, rows};

/// A body of at most this many bytes is small: those that travel beside their envelope.
pub const MAX_SMALL_BODY_BYTES: usize = limits::MAX_INLINE_BODY_BYTES;
/// Bytes of all small bodies of one dispatch that are kept in rows. They wait in memory for their transaction, so what is
/// beyond this is kept as files.
pub const MAX_SMALL_TOTAL_BYTES: usize = limits::MAX_INLINE_TOTAL_BYTES;

/// Small bodies of one dispatch, by digest, that become durable with it.
#[derive(Clone, Default)]
pub struct SmallBodies {
    bodies: BTreeMap<Digest, Bytes>,
    /// Those of them that were found whole in a row.
    found: BTreeSet<Digest>,
    total: usize,
}

impl SmallBodies {
    /// Whether a body of this size may be added.
    pub fn fits(&self, size: u64) -> bool {
        self.fits_beside(size, 0)
    }

    /// The same beside others of so many bytes that are still to be added.
    pub fn fits_beside(&self, size: u64, others: u64) -> bool {
        let total = others.saturating_add(size).saturating_add(self.total as u64);
        size <= MAX_SMALL_BODY_BYTES as u64 && total <= MAX_SMALL_TOTAL_BYTES as u64
    }

    /// Adds a body that fits; says what it is.
    pub fn add(&mut self, bytes: Bytes) -> Digest {
        let sha256 = Digest::of(&bytes);
        let size = bytes.len();
        if self.bodies.insert(sha256, bytes).is_none() {
            self.total += size;
        }
        sha256
    }

    /// Notes that this body's row was looked at and is whole.
    pub fn found_whole(&mut self, sha256: Digest) {
        self.found.insert(sha256);
    }

    /// Takes out a body that has to be kept elsewhere.
    pub fn remove(&mut self, sha256: Digest) -> Option<Bytes> {
        let bytes = self.bodies.remove(&sha256)?;
        self.total -= bytes.len();
        Some(bytes)
    }
}

impl fmt::Debug for SmallBodies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.bodies.iter().map(|(sha256, bytes)| (sha256, bytes.len()))).finish()
    }
}

/// What stands in a body's row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BodyRow {
    /// There is none.
    None,
    Whole(Vec<u8>),
    /// Bytes that have another digest.
    Damaged(Vec<u8>),
    /// SQLite finds its pages damaged, and says this.
    Unreadable(String),
}

impl Mailbox {
    /// A small body, if it is kept here.
    pub async fn body(&self, sha256: Digest) -> Result<BodyRow, MailboxError> {
        let row = self.read(move |connection| raw(connection, sha256)).await?;
        Ok(judged(row, sha256))
    }

    /// The bodies in rows that nothing refers to: left by a crash between the last reference's end and theirs. None where
    /// SQLite finds the table damaged: what is in doubt stays.
    pub async fn unnamed_bodies(&self) -> Result<Vec<Digest>, MailboxError> {
        self.read(|connection| {
            let sql =
                "SELECT sha256 FROM bodies b WHERE NOT EXISTS (SELECT 1 FROM part_refs p WHERE p.sha256 = b.sha256)";
            let mut query = connection.prepare(sql)?;
            let found: Result<Vec<Vec<u8>>, _> = query.query_map([], |row| row.get(0))?.collect();
            match found {
                Ok(found) => found.into_iter().map(rows::digest).collect(),
                Err(error) if is_damage(&error) => {
                    tracing::warn!(%error, "the mailbox's bodies do not all read: none is cleared away");
                    Ok(vec![])
                }
                Err(error) => Err(error.into()),
            }
        })
        .await
    }

    /// Removes those of these bodies that nothing refers to, wherever they are; `remove` is for files. In the writer: between
    /// the look and the removal nobody can make a reference, and whoever is about to make one to a file holds a pin.
    pub async fn remove_unreferenced<E: Send + 'static>(
        &self,
        candidates: Vec<Digest>,
        remove: impl FnMut(Digest) -> Result<(), E> + Send + 'static,
    ) -> Result<Result<(), E>, MailboxError> {
        let mut whole = BTreeSet::new();
        for sha256 in &candidates {
            match self.body(*sha256).await? {
                BodyRow::None => {}
                BodyRow::Whole(_) => {
                    whole.insert(*sha256);
                }
                BodyRow::Damaged(_) | BodyRow::Unreadable(_) => {
                    tracing::warn!(%sha256, "a damaged body stays in the mailbox, although nothing may refer to it any more");
                }
            }
        }
        self.write(move |connection| {
            let free = incoming::unreferenced(connection, candidates)?;
            for sha256 in free.iter().filter(|sha256| whole.contains(sha256)) {
                connection.prepare_cached("DELETE FROM bodies WHERE sha256 = ?1")?.execute([sha256.as_bytes()])?;
            }
            Ok(free.into_iter().try_for_each(remove))
        })
        .await
    }
}

/// A row as it is read, not compared with its digest yet.
enum Raw {
    None,
    Bytes(Vec<u8>),
    Unreadable(String),
}

fn raw(connection: &Connection, sha256: Digest) -> Result<Raw, MailboxError> {
    let found = connection
        .prepare_cached("SELECT bytes FROM bodies WHERE sha256 = ?1")?
        .query_row([sha256.as_bytes()], |row| row.get(0))
        .optional();
    match found {
        Ok(None) => Ok(Raw::None),
        Ok(Some(bytes)) => Ok(Raw::Bytes(bytes)),
        // One damaged body must not stop what has nothing to do with it.
        Err(error) if is_damage(&error) => Ok(Raw::Unreadable(error.to_string())),
        Err(error) => Err(error.into()),
    }
}

/// What SQLite says of a page that makes no sense, or a column that is not what was written.
pub(super) fn is_damage(error: &rusqlite::Error) -> bool {
    matches!(error, rusqlite::Error::InvalidColumnType(..))
        || matches!(error.sqlite_error_code(), Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase))
}

fn judged(row: Raw, sha256: Digest) -> BodyRow {
    match row {
        Raw::None => BodyRow::None,
        Raw::Bytes(bytes) if Digest::of(&bytes) == sha256 => BodyRow::Whole(bytes),
        Raw::Bytes(bytes) => BodyRow::Damaged(bytes),
        Raw::Unreadable(why) => BodyRow::Unreadable(why),
    }
}

pub(super) fn look(connection: &Connection, sha256: Digest) -> Result<BodyRow, MailboxError> {
    Ok(judged(raw(connection, sha256)?, sha256))
}

/// The first of these that is here already, in a row that was not looked at, or as a file.
pub(super) fn known_one(connection: &Connection, small: &SmallBodies) -> Result<Option<Digest>, MailboxError> {
    let mut query = connection.prepare_cached("SELECT 1 FROM bodies WHERE sha256 = ?1")?;
    for sha256 in small.bodies.keys() {
        // A row that was whole may have gone since with its last reference: then it is made again.
        let known = match query.exists([sha256.as_bytes()])? {
            true => !small.found.contains(sha256),
            false => is_named(connection, *sha256)?,
        };
        if known {
            return Ok(Some(*sha256));
        }
    }
    Ok(None)
}

/// Stores those that are not here yet. [`known_one`] came first, in the same transaction.
pub(super) fn insert(connection: &Connection, small: &SmallBodies) -> Result<(), MailboxError> {
    for (sha256, bytes) in &small.bodies {
        connection
            .prepare_cached("INSERT INTO bodies (sha256, bytes) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?
            .execute(params![sha256.as_bytes(), bytes.as_ref()])?;
    }
    Ok(())
}

pub(super) fn is_named(connection: &Connection, sha256: Digest) -> Result<bool, MailboxError> {
    Ok(connection.prepare_cached("SELECT 1 FROM part_refs WHERE sha256 = ?1 LIMIT 1")?.exists([sha256.as_bytes()])?)
}

/// A whole body out of a copy of a mailbox that nobody has open; none if that is of an older version, or does not read.
pub fn body_in(copy: &Path, sha256: Digest) -> Option<Vec<u8>> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(copy, flags).ok()?;
    match look(&connection, sha256) {
        Ok(BodyRow::Whole(bytes)) => Some(bytes),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
