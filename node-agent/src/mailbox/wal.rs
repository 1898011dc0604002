//! A look at SQLite's write-ahead log before SQLite opens it. SQLite takes the first frame that does not read for the
//! end, as after a power cut, and would silently forget every transaction behind it.
//!
//! Each transaction is synced before the next is begun, and each start empties the log. So a power cut tears the last
//! transaction only; a frame that does not read with more than one commit from there on is damage, and is refused. What
//! rots in the very last transaction cannot be told from a torn one.
//!
//! The format is SQLite's own: <https://sqlite.org/fileformat2.html#the_write_ahead_log>.

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::Path;

use super::MailboxError;

const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;
const PAGE_BYTES: std::ops::RangeInclusive<usize> = 512..=65_536;
const MAGIC: u32 = 0x377f_0682;

fn word(bytes: &[u8], n: usize) -> u32 {
    bytes.get(4 * n..4 * n + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_be_bytes)
}

/// SQLite's checksum over words of the byte order that the header's magic names.
fn checksum(bytes: &[u8], big_endian: bool, (mut first, mut second): (u32, u32)) -> (u32, u32) {
    let of = |four: &[u8]| {
        let four = four.try_into().unwrap_or_default();
        if big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) }
    };
    for pair in bytes.chunks_exact(8) {
        first = first.wrapping_add(of(&pair[..4])).wrapping_add(second);
        second = second.wrapping_add(of(&pair[4..])).wrapping_add(first);
    }
    (first, second)
}

/// Refuses a damaged log beside this database. One that a power cut left, or none, is good.
pub fn check(database: &Path) -> Result<(), MailboxError> {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    let path = Path::new(&name);
    let failed = |error: std::io::Error| MailboxError::Damaged { what: "write-ahead log", found: error.to_string() };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    match damage(&mut BufReader::new(file)).map_err(failed)? {
        None => Ok(()),
        Some(offset) => {
            let found = format!(
                "{}, offset {offset}: it does not read, though later transactions follow. Nothing was changed. Check the \
                 disk, then restore the agent's data from a backup",
                path.display()
            );
            Err(MailboxError::Damaged { what: "write-ahead log", found })
        }
    }
}

/// The offset of what does not read though it was durable once.
fn damage(log: &mut impl Read) -> std::io::Result<Option<u64>> {
    let mut header = [0; HEADER];
    if !fill(log, &mut header)? {
        return Ok(None);
    }
    let big_endian = word(&header, 0) == MAGIC | 1;
    let page = usize::try_from(word(&header, 2)).unwrap_or(0);
    let mut sum = checksum(&header[..24], big_endian, (0, 0));
    let good = word(&header, 0) | 1 == MAGIC | 1 && PAGE_BYTES.contains(&page) && page.is_power_of_two();
    if !good || sum != (word(&header, 6), word(&header, 7)) {
        // Of a header that a power cut kept from the disk, nothing is known to the frames, which are older.
        let mut frame = [0; FRAME_HEADER];
        let known =
            fill(log, &mut frame)? && (word(&frame, 2) == word(&header, 4) || word(&frame, 3) == word(&header, 5));
        return Ok(known.then_some(0));
    }
    let mut frame = vec![0; FRAME_HEADER + page];
    let (mut at, mut bad, mut commits) = (HEADER as u64, None, 0);
    while fill(log, &mut frame)? {
        let ours = (word(&frame, 2), word(&frame, 3)) == (word(&header, 4), word(&header, 5));
        sum = checksum(&frame[..8], big_endian, sum);
        sum = checksum(&frame[FRAME_HEADER..], big_endian, sum);
        if bad.is_none() && !(ours && sum == (word(&frame, 4), word(&frame, 5))) {
            bad = Some(at);
        }
        let commit = word(&frame, 1) != 0;
        commits += usize::from(bad.is_some() && ours && commit);
        at += frame.len() as u64;
    }
    Ok(bad.filter(|_| commits > 1))
}

/// Whether the buffer could be filled; what is left at the end is no frame.
fn fill(log: &mut impl Read, buffer: &mut [u8]) -> std::io::Result<bool> {
    match log.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use rusqlite::Connection;

    use super::*;

    const TRANSACTIONS: usize = 5;

    /// The log of a few transactions, and where each one's last frame ends.
    fn log() -> (Vec<u8>, Vec<usize>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.db");
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t (x); PRAGMA wal_checkpoint(TRUNCATE);")
            .unwrap();
        let mut ends = vec![];
        for n in 0..TRANSACTIONS {
            connection.execute("INSERT INTO t VALUES (randomblob(3000 + ?1))", [i64::try_from(n).unwrap()]).unwrap();
            ends.push(std::fs::read(folder.path().join("a.db-wal")).unwrap().len());
        }
        (std::fs::read(folder.path().join("a.db-wal")).unwrap(), ends)
    }

    #[test]
    fn a_flipped_bit_is_damage_anywhere_but_in_the_last_transaction() {
        let (whole, ends) = log();
        assert_eq!(damage(&mut whole.as_slice()).unwrap(), None);
        let durable = ends[TRANSACTIONS - 2];
        for at in (0..durable).step_by(61).chain(0..HEADER + FRAME_HEADER) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            let found = damage(&mut bytes.as_slice()).unwrap();
            assert!(found.is_some_and(|offset| offset <= at as u64), "byte {at}: {found:?}");
        }
    }

    #[test]
    fn a_last_transaction_that_was_cut_or_torn_is_no_damage_and_neither_is_what_an_earlier_log_left() {
        let (whole, ends) = log();
        for at in (ends[TRANSACTIONS - 2]..whole.len()).step_by(89) {
            assert_eq!(damage(&mut &whole[..at]).unwrap(), None, "cut at {at}");
        }
        for at in (ends[TRANSACTIONS - 2]..whole.len()).step_by(512) {
            let mut torn = whole.clone();
            let end = (at + 512).min(torn.len());
            torn[at..end].fill(0);
            assert_eq!(damage(&mut torn.as_slice()).unwrap(), None, "torn at {at}");
        }
        // The log was begun anew over the old one, and the power went before anything followed.
        let (other, _) = log();
        let begun = [&other[..HEADER], &whole[HEADER..]].concat();
        assert_eq!(damage(&mut begun.as_slice()).unwrap(), None);
    }
}
