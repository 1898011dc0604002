//! One flipped bit of the log, found and put right.
//!
//! The log's checksum is a sum: what a flip adds or takes away at a word arrives at the frame's end multiplied by what belongs
//! to the word's place, so the difference between the checksum that a frame has and the one that it says names the bit. A
//! power cut leaves differences as well, but hardly ever, once in many billions of billions, one that belongs to a bit.
//! Of a word's highest bits only the lowest digits of those factors count, and several places have them in common.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Bad, FRAME_HEADER, HEADER, MailboxError, checksum, is_header, word};

/// A bit of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flip {
    /// Of the byte in the file.
    pub(super) offset: u64,
    /// The lowest is 0.
    pub(super) bit: u8,
}

/// A log with one bit turned over.
pub(super) struct Patched<R> {
    log: R,
    at: u64,
    flip: Flip,
}

impl<R> Patched<R> {
    pub(super) const fn new(log: R, flip: Flip) -> Self {
        Self { log, at: 0, flip }
    }
}

impl<R: Read> Read for Patched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.log.read(buffer)?;
        let place = self.flip.offset.checked_sub(self.at).and_then(|place| usize::try_from(place).ok());
        if let Some(byte) = place.and_then(|place| buffer[..read].get_mut(place)) {
            *byte ^= 1 << self.flip.bit;
        }
        self.at += read as u64;
        Ok(read)
    }
}

/// The bits each of which would explain alone why this does not read. Whether the log goes on from there is not looked at.
pub(super) fn candidates(bad: &Bad) -> Vec<Flip> {
    if bad.bytes.len() == HEADER {
        return in_header(bad);
    }
    let salts: Vec<Flip> = differences(&bad.bytes[8..16], &bad.salts, bad.offset + 8).take(2).collect();
    match salts[..] {
        [] => in_checksum(bad).chain(in_page(bad)).collect(),
        [salt] => vec![salt],
        // A frame of an earlier log.
        _ => vec![],
    }
}

/// Bits in which these bytes differ, the first of them being at `offset` of the file.
fn differences<'a>(found: &'a [u8], expected: &'a [u8], offset: u64) -> impl Iterator<Item = Flip> + 'a {
    let bits = move |(n, (a, b)): (usize, (&u8, &u8))| {
        let (offset, change) = (offset + n as u64, a ^ b);
        (0..8u8).filter(move |bit| change >> bit & 1 == 1).map(move |bit| Flip { offset, bit })
    };
    found.iter().zip(expected).enumerate().flat_map(bits)
}

fn in_header(bad: &Bad) -> Vec<Flip> {
    let bits = (0..HEADER).flat_map(|byte| (0..8u8).map(move |bit| (byte, bit)));
    let reads = |(byte, bit): &(usize, u8)| {
        let mut header = bad.bytes.clone();
        header[*byte] ^= 1 << bit;
        is_header(&header)
    };
    bits.filter(reads).map(|(byte, bit)| Flip { offset: byte as u64, bit }).collect()
}

/// The checksum that the frame has.
fn has(bad: &Bad) -> (u32, u32) {
    let sum = checksum(&bad.bytes[..8], bad.big_endian, bad.before);
    checksum(&bad.bytes[FRAME_HEADER..], bad.big_endian, sum)
}

/// The checksum itself, if that is all.
fn in_checksum(bad: &Bad) -> impl Iterator<Item = Flip> {
    let (first, second) = has(bad);
    let right = [first.to_be_bytes(), second.to_be_bytes()].concat();
    let flips: Vec<Flip> = differences(&bad.bytes[16..24], &right, bad.offset + 16).take(2).collect();
    (flips.len() == 1).then_some(flips).into_iter().flatten()
}

/// Bits of the frame's page and of what its checksum covers of its header.
fn in_page(bad: &Bad) -> Vec<Flip> {
    let found = has(bad);
    let wanted = (word(&bad.bytes, 4).wrapping_sub(found.0), word(&bad.bytes, 5).wrapping_sub(found.1));
    // What one more in a pair's first and second word makes of the two sums at the end, from the last pair on.
    let (mut first, mut second) = ((1u32, 1u32), (0u32, 1u32));
    let before = |(a, b): (u32, u32)| (a.wrapping_add(b), a.wrapping_add(b).wrapping_add(b));
    let covered = (0..8).chain(FRAME_HEADER..bad.bytes.len()).step_by(4);
    let mut words: Vec<usize> = covered.collect();
    let mut flips = vec![];
    while let (Some(second_at), Some(first_at)) = (words.pop(), words.pop()) {
        for (at, factors) in [(first_at, first), (second_at, second)] {
            for n in 0..32u8 {
                let (byte, bit) = (if bad.big_endian { 3 - n / 8 } else { n / 8 }, n % 8);
                let place = at + usize::from(byte);
                let is_set = bad.bytes.get(place).is_some_and(|byte| byte >> bit & 1 == 1);
                let change = if is_set { (1u32 << n).wrapping_neg() } else { 1 << n };
                if (change.wrapping_mul(factors.0), change.wrapping_mul(factors.1)) == wanted {
                    flips.push(Flip { offset: bad.offset + place as u64, bit });
                }
            }
        }
        (first, second) = (before(first), before(second));
    }
    flips
}

/// Keeps a copy of the log as it was found, and puts the bit right in it.
pub(super) fn put_right(log: &Path, flip: Flip) -> Result<(), MailboxError> {
    let Flip { offset, bit } = flip;
    match keep(log, flip) {
        Ok(aside) => tracing::warn!(file = %log.display(), offset, bit, aside = %aside.display(),
            "a flipped bit in the mailbox's write-ahead log was put right; a copy of the damaged log was set aside"),
        // The two numbers say all that the copy would.
        Err(error) => tracing::warn!(file = %log.display(), offset, bit, %error,
            "a flipped bit in the mailbox's write-ahead log was put right; no copy of the damaged log could be set aside"),
    }
    turn(log, flip).map_err(|error| {
        let found =
            format!("{}, offset {offset}: bit {bit} is flipped and cannot be put right: {error}", log.display());
        MailboxError::Damaged { what: "write-ahead log", found }
    })
}

fn keep(log: &Path, flip: Flip) -> io::Result<PathBuf> {
    let folder = log.parent().unwrap_or(Path::new("")).join("damaged");
    std::fs::create_dir_all(&folder)?;
    let mut name = log.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}-{}", flip.offset, flip.bit));
    let aside = folder.join(name);
    std::fs::copy(log, &aside)?;
    File::open(&aside)?.sync_all()?;
    File::open(&folder)?.sync_all()?;
    Ok(aside)
}

/// One byte, so that a power cut leaves it as it was or right.
fn turn(log: &Path, flip: Flip) -> io::Result<()> {
    let file = File::options().read(true).write(true).open(log)?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, flip.offset)?;
    file.write_all_at(&[byte[0] ^ 1 << flip.bit], flip.offset)?;
    file.sync_all()
}
