//! A look at SQLite's write-ahead log before SQLite opens it. SQLite takes the first frame that does not read for the
//! end, as after a power cut, and would silently forget every transaction behind it.
//!
//! A single flipped bit is found everywhere, and put right where the log's checksums say which it is (`mend.rs`). Beyond
//! that, each transaction is synced before the next is begun, and each start empties the log. So a power cut tears the last
//! transaction only; a frame that does not read with more than one commit from there on is damage, and is refused.
//!
//! The format is SQLite's own: <https://sqlite.org/fileformat2.html#the_write_ahead_log>.

mod mend;

use std::fs::File;
use std::io::{BufReader, ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};

use self::mend::{Flip, Patched};
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

/// What a look at the log finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Whole, or what a power cut leaves.
    Good,
    /// Whole but for this bit.
    Flipped(Flip),
    /// What stands at this offset does not read and was durable once.
    Damaged(u64),
}

fn path_of(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-wal");
    name.into()
}

/// The log of a database that is open, for reading.
pub(super) fn open(database: &Path) -> Result<File, MailboxError> {
    let path = path_of(database);
    let failed =
        |error| MailboxError::Damaged { what: "write-ahead log", found: format!("{}: {error}", path.display()) };
    File::open(&path).map_err(failed)
}

/// Refuses a damaged log beside this database, but for one flipped bit that can be put right. A log that a power cut left, or
/// none, is good. Nobody else may have the database open.
pub fn check(database: &Path) -> Result<(), MailboxError> {
    let path = &path_of(database);
    let damaged = |found: String| MailboxError::Damaged { what: "write-ahead log", found };
    let failed = |error: std::io::Error| damaged(error.to_string());
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
    };
    match judge(&mut BufReader::new(file)).map_err(failed)? {
        Verdict::Good => Ok(()),
        Verdict::Flipped(flip) => mend::put_right(path, flip),
        Verdict::Damaged(offset) => Err(damaged(format!(
            "{}, offset {offset}: it does not read, and it was durable once. Nothing was changed. Check the disk, then \
             restore the agent's data from a backup",
            path.display()
        ))),
    }
}

fn judge(log: &mut (impl Read + Seek)) -> std::io::Result<Verdict> {
    let found = scan(log)?;
    let Some(bad) = &found.bad else { return Ok(Verdict::Good) };
    let mut flips = vec![];
    for flip in mend::candidates(bad) {
        log.rewind()?;
        let with = scan(&mut Patched::new(&mut *log, flip))?;
        // Everything up to a commit reads with it, and what follows is no more than a torn transaction.
        if with.committed > bad.offset && with.bad.is_none_or(|next| next.commits < 2) {
            flips.push(flip);
        }
        if flips.len() > 1 {
            break;
        }
    }
    // Several bits that explain it alike are no torn write either: it is known that one is flipped, not which.
    Ok(match flips[..] {
        [flip] => Verdict::Flipped(flip),
        [] if bad.commits < 2 => Verdict::Good,
        _ => Verdict::Damaged(bad.offset),
    })
}

/// A log as far as it reads.
struct Scan {
    /// Where the last commit that reads ends.
    committed: u64,
    /// What does not read.
    bad: Option<Bad>,
}

/// The first thing that does not read, and what is known about it.
struct Bad {
    offset: u64,
    /// The log's header, or the frame with its header.
    bytes: Vec<u8>,
    /// Checksum of everything before.
    before: (u32, u32),
    /// Salts that a frame of this log has, as they stand in its header.
    salts: [u8; 8],
    big_endian: bool,
    /// Commits of this log from there on, whether they read or not.
    commits: usize,
}

fn is_header(header: &[u8]) -> bool {
    let big_endian = word(header, 0) == MAGIC | 1;
    let page = usize::try_from(word(header, 2)).unwrap_or(0);
    word(header, 0) | 1 == MAGIC | 1
        && PAGE_BYTES.contains(&page)
        && page.is_power_of_two()
        && header.get(..24).is_some_and(|said| checksum(said, big_endian, (0, 0)) == (word(header, 6), word(header, 7)))
}

fn scan(log: &mut impl Read) -> std::io::Result<Scan> {
    let mut header = [0; HEADER];
    if !fill(log, &mut header)? {
        return Ok(Scan { committed: 0, bad: None });
    }
    let big_endian = word(&header, 0) == MAGIC | 1;
    let mut salts = [0; 8];
    salts.copy_from_slice(&header[16..24]);
    if !is_header(&header) {
        // Of a header that a power cut kept from the disk, nothing is known to the frames, which are older.
        let mut frame = [0; FRAME_HEADER];
        let known = fill(log, &mut frame)? && (frame[8..12] == salts[..4] || frame[12..16] == salts[4..]);
        let commits = if known { usize::MAX } else { 0 };
        let bad = Bad { offset: 0, bytes: header.to_vec(), before: (0, 0), salts, big_endian, commits };
        return Ok(Scan { committed: 0, bad: Some(bad) });
    }
    let page = usize::try_from(word(&header, 2)).unwrap_or(0);
    let mut sum = (word(&header, 6), word(&header, 7));
    let mut frame = vec![0; FRAME_HEADER + page];
    let (mut at, mut found) = (HEADER as u64, Scan { committed: 0, bad: None });
    while fill(log, &mut frame)? {
        let ours = frame[8..16] == salts;
        let before = sum;
        sum = checksum(&frame[..8], big_endian, sum);
        sum = checksum(&frame[FRAME_HEADER..], big_endian, sum);
        let offset = at;
        at += frame.len() as u64;
        let commit = word(&frame, 1) != 0;
        if found.bad.is_none() && !(ours && sum == (word(&frame, 4), word(&frame, 5))) {
            found.bad = Some(Bad { offset, bytes: frame.clone(), before, salts, big_endian, commits: 0 });
        }
        match &mut found.bad {
            Some(bad) => bad.commits += usize::from(ours && commit),
            None if commit => found.committed = at,
            None => {}
        }
    }
    Ok(found)
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
    use std::io::Cursor;
    use std::path::PathBuf;

    use rusqlite::Connection;

    use super::*;

    const TRANSACTIONS: usize = 5;
    const PAGE: usize = 4096;

    /// A database whose process died, with the log of a few transactions; and where each one's last frame ends.
    fn died() -> (tempfile::TempDir, PathBuf, Vec<u8>, Vec<usize>) {
        let folder = tempfile::tempdir().unwrap();
        let (path, left) = (folder.path().join("a.db"), folder.path().join("left.db"));
        let connection = Connection::open(&path).unwrap();
        connection
            .execute_batch("PRAGMA journal_mode=WAL; CREATE TABLE t (x); PRAGMA wal_checkpoint(TRUNCATE);")
            .unwrap();
        let mut ends = vec![];
        let mut log = vec![];
        for n in 0..TRANSACTIONS {
            connection.execute("INSERT INTO t VALUES (randomblob(3000 + ?1))", [i64::try_from(n).unwrap()]).unwrap();
            log = std::fs::read(folder.path().join("a.db-wal")).unwrap();
            ends.push(log.len());
        }
        std::fs::copy(&path, &left).unwrap();
        (folder, left, log, ends)
    }

    fn log() -> (Vec<u8>, Vec<usize>) {
        let (_, _, log, ends) = died();
        (log, ends)
    }

    fn judged(bytes: &[u8]) -> Verdict {
        judge(&mut Cursor::new(bytes)).unwrap()
    }

    fn flipped(bytes: &[u8], flip: Flip) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        bytes[usize::try_from(flip.offset).unwrap()] ^= 1 << flip.bit;
        bytes
    }

    #[test]
    fn every_flipped_bit_is_found_and_what_is_put_right_is_what_was_written() {
        let (whole, ends) = log();
        assert_eq!(judged(&whole), Verdict::Good);
        let frame = FRAME_HEADER + PAGE;
        let last = ends[TRANSACTIONS - 2];
        let heads = (last..whole.len()).step_by(frame).flat_map(|at| at..at + FRAME_HEADER);
        let bytes = (0..HEADER + FRAME_HEADER)
            .chain(heads)
            .chain((0..last).step_by(499))
            .chain((last..whole.len()).step_by(61));
        let (mut right, mut refused) = (0, 0);
        for at in bytes {
            for bit in 0..8 {
                let flip = Flip { offset: at as u64, bit };
                match judged(&flipped(&whole, flip)) {
                    Verdict::Flipped(found) if found == flip => right += 1,
                    // A flip in the last words of a page changes the checksum as one in the checksum does, and one in the
                    // highest bits of a word as one in another word's.
                    Verdict::Damaged(offset) => {
                        assert!(offset <= at as u64 && at as u64 - offset < frame as u64, "{flip:?}: {offset}");
                        refused += 1;
                    }
                    found => panic!("{flip:?}: {found:?}"),
                }
            }
        }
        assert!(right > 2 * refused, "{right} put right, {refused} refused");
    }

    #[test]
    fn a_flipped_bit_in_the_low_bits_of_a_page_is_put_right() {
        let (whole, ends) = log();
        let page = ends[TRANSACTIONS - 2] + FRAME_HEADER;
        // Words are of the machine's byte order.
        for (at, bit) in [(0, 0), (0, 7), (1, 3), (4, 1), (1_000, 5), (2_049, 6), (4_084, 2)] {
            let byte = if word(&whole, 0) == MAGIC { at } else { at ^ 3 };
            let flip = Flip { offset: (page + byte) as u64, bit };
            assert_eq!(judged(&flipped(&whole, flip)), Verdict::Flipped(flip));
        }
    }

    #[test]
    fn two_flipped_bits_are_damage_unless_both_are_in_the_last_transaction() {
        let (whole, ends) = log();
        let durable = ends[TRANSACTIONS - 2];
        for at in (HEADER..durable).step_by(61) {
            let one = flipped(&whole, Flip { offset: at as u64, bit: 1 });
            let other = (at + 1_203) % whole.len();
            let both = flipped(&one, Flip { offset: other as u64, bit: 2 });
            let found = judged(&both);
            // In the last transaction it may be a torn one, behind a bit that is put right.
            let right = found == Verdict::Flipped(Flip { offset: at as u64, bit: 1 }) && other >= durable;
            assert!(
                matches!(found, Verdict::Damaged(offset) if offset <= at.max(other) as u64) || right,
                "{at}: {found:?}"
            );
        }
    }

    fn differing_bits(one: &[u8], other: &[u8]) -> u32 {
        one.iter().zip(other).map(|(a, b)| (a ^ b).count_ones()).sum()
    }

    /// A last transaction that was torn is good as it is; where one bit alone is missing, putting it right is as good.
    fn no_damage(whole: &[u8], torn: &[u8], context: &str) {
        match judged(torn) {
            Verdict::Good => {}
            Verdict::Flipped(flip) => assert_eq!(flipped(torn, flip), whole, "{context}"),
            Verdict::Damaged(_) => assert_eq!(differing_bits(torn, whole), 1, "{context}"),
        }
    }

    #[test]
    fn a_last_transaction_that_was_cut_or_torn_is_no_damage_and_neither_is_what_an_earlier_log_left() {
        let (whole, ends) = log();
        let (other, _) = log();
        let last = ends[TRANSACTIONS - 2];
        for at in (last..whole.len()).step_by(89) {
            assert_eq!(judged(&whole[..at]), Verdict::Good, "cut at {at}");
        }
        let noise: Vec<u8> =
            (0..whole.len() as u64).map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[3]).collect();
        // What stood there before: nothing, the frames of an earlier log, anything.
        for (name, before) in [("zeros", vec![0; whole.len()]), ("an earlier log", other.clone()), ("noise", noise)] {
            for unit in [512, PAGE] {
                let sectors = (last / unit * unit..whole.len()).step_by(unit);
                for (start, end) in sectors.map(|at| (at.max(last), (at + unit).min(whole.len()))) {
                    let ways = [
                        ("from", [&whole[..start], &before[start..]].concat()),
                        ("before", [&whole[..last], &before[last..end], &whole[end..]].concat()),
                        ("at", [&whole[..start], &before[start..end], &whole[end..]].concat()),
                        ("but at", [&whole[..last], &before[last..start], &whole[start..end], &before[end..]].concat()),
                    ];
                    for (way, torn) in ways {
                        no_damage(&whole, &torn, &format!("{name} {way} {start}..{end}"));
                    }
                }
            }
        }
        // The log was begun anew over the old one, and the power went before anything followed.
        let begun = [&other[..HEADER], &whole[HEADER..]].concat();
        assert_eq!(judged(&begun), Verdict::Good);
    }

    #[test]
    fn a_mailbox_s_last_transaction_is_there_after_a_flipped_bit_and_the_damaged_log_is_kept() {
        let (folder, database, whole, ends) = died();
        let wal = folder.path().join("left.db-wal");
        let at = ends[TRANSACTIONS - 2] + FRAME_HEADER + 2_000;
        let damaged = flipped(&whole, Flip { offset: at as u64, bit: 2 });
        std::fs::write(&wal, &damaged).unwrap();
        check(&database).unwrap();
        assert_eq!(std::fs::read(&wal).unwrap(), whole);
        let aside = folder.path().join("damaged").join(format!("left.db-wal.{at}-2"));
        assert_eq!(std::fs::read(aside).unwrap(), damaged);
        let connection = Connection::open(&database).unwrap();
        let count: i64 = connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).unwrap();
        assert_eq!(usize::try_from(count), Ok(TRANSACTIONS));
    }
}
