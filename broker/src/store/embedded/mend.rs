//! One flipped bit of a journal group, found and put right.
//!
//! CRC-32C is linear: which bit of a group is flipped follows from the difference between the CRC that it has and the one that
//! it says. A torn group has such a difference as well, and now and then a bit belongs to it. So a bit counts only if with
//! it everything else agrees too: the header with the segment and the group before, the records with their SHA-256 in the
//! header, of which a CRC says nothing, the padding with zero. What agrees with all of that is what was written, whether a bit rotted
//! or a sector that differed in one bit was left out by a power cut.

use std::io;
use std::path::{Path, PathBuf};

use super::keys::Position;
use super::layout::{CRC_AT, FRAME_HEADER_BYTES, FrameHeader, GROUP_HEADER_BYTES, GroupHeader, padded};
use super::segments::{Segment, Segments, file_name, io_error};
use super::walk::Group;
use crate::store::StoreError;

/// CRC-32C's polynomial, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;
/// Where the length stands in a group's header.
const LENGTH_AT: usize = 4;
const CRC_BYTES: usize = 4;
/// The header's fields that follow from the segment and the group before: magic; epoch, salt, sequence, durable.
const KNOWN: [std::ops::Range<usize>; 2] = [0..LENGTH_AT, 8..40];

/// A group with the bit put right.
pub struct Mended {
    pub group: Group,
    /// Which bit of the group: eight times the byte's offset, and which of its eight, the lowest being 0.
    pub bit: usize,
    /// The group as it was found, with its padding.
    pub found: Vec<u8>,
}

/// The group at `at`, if one flipped bit explains why it does not read. The bit is put right in the file and synced, a copy
/// of what was found is kept under `DATA/damaged/`, and the log names the bit.
pub fn mend(segments: &Segments, segment: &Segment, at: Position) -> Result<Option<Group>, StoreError> {
    let Some(Mended { group, bit, found }) = find(segment, at)? else { return Ok(None) };
    let file = segments.path(at.segment);
    let (offset, bit) = (at.offset + bit as u64 / 8, bit % 8);
    match keep(segments, &file, at, offset, bit, &found) {
        Ok(aside) => tracing::warn!(file = %file.display(), offset, bit, aside = %aside.display(),
            "a flipped bit in the journal was put right; a copy of the damaged group was set aside"),
        // The two numbers say all that the copy would.
        Err(error) => tracing::warn!(file = %file.display(), offset, bit, %error,
            "a flipped bit in the journal was put right; no copy of the damaged group could be set aside"),
    }
    let right = usize::try_from(offset - at.offset).ok().and_then(|byte| group.bytes.get(byte));
    if let Some(byte) = right {
        segment.file.write_at(offset, &[*byte]).map_err(io_error("putting a bit of the journal right"))?;
        segment.file.sync_data().map_err(io_error("syncing the journal"))?;
    }
    Ok(Some(group))
}

/// Keeps the group as it was found.
fn keep(segments: &Segments, file: &Path, at: Position, offset: u64, bit: usize, found: &[u8]) -> io::Result<PathBuf> {
    let disk = segments.disk();
    let aside = file.parent().and_then(Path::parent).unwrap_or(Path::new("")).join("damaged");
    disk.create_dir_all(&aside)?;
    let name = format!("{}.{:x}.{offset:x}-{bit}.group", file_name(at.segment, "segment"), at.offset);
    let target = aside.join(name);
    if disk.exists(&target)? {
        return Ok(target);
    }
    let copy = disk.create(&target)?;
    copy.write_at(0, found)?;
    copy.sync_data()?;
    disk.sync_dir(&aside)?;
    Ok(target)
}

/// The group that stands at `at` but for one bit. Nothing is changed.
pub fn find(segment: &Segment, at: Position) -> Result<Option<Mended>, StoreError> {
    let mut head = [0; GROUP_HEADER_BYTES];
    let read = segment.file.read_at(at.offset, &mut head).map_err(io_error("reading the journal"))?;
    if read < head.len() {
        return Ok(None);
    }
    let mut expected = [0; GROUP_HEADER_BYTES];
    header(segment, at, 0, 0).seal(&mut expected);
    let bits = |byte: usize| (0..8).map(move |bit| 8 * byte + bit);
    let known = KNOWN.into_iter().flatten().flat_map(bits);
    let mut wrong = known.filter(|bit| is_set(&head, *bit) != is_set(&expected, *bit));
    let length = u32_at(&head, LENGTH_AT);
    match (wrong.next(), wrong.next()) {
        (Some(_), Some(_)) => Ok(None),
        (Some(bit), None) => attempt(segment, at, length, |_| Some(bit)),
        (None, _) => {
            if let Some(mended) = attempt(segment, at, length, flipped)? {
                return Ok(Some(mended));
            }
            // The length itself: the records say where the group ends.
            let Some(end) = extent(segment, at, u32_at(&head, CRC_AT - 4))? else { return Ok(None) };
            let difference = end ^ length;
            if !difference.is_power_of_two() {
                return Ok(None);
            }
            attempt(segment, at, end, |_| Some(8 * LENGTH_AT + difference.trailing_zeros() as usize))
        }
    }
}

fn header(segment: &Segment, at: Position, length: u32, records: u32) -> GroupHeader {
    GroupHeader {
        epoch: segment.header.number,
        salt: segment.header.salt,
        sequence: at.sequence,
        durable: at.sequence.saturating_sub(1),
        length,
        records,
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_le_bytes(*word))
}

fn is_set(bytes: &[u8], bit: usize) -> bool {
    bytes.get(bit / 8).is_some_and(|byte| byte >> (bit % 8) & 1 == 1)
}

/// Reads a group of this length, and flips the bit that `which` finds. None if what results is not a whole group.
fn attempt(
    segment: &Segment,
    at: Position,
    length: u32,
    which: impl Fn(&[u8]) -> Option<usize>,
) -> Result<Option<Mended>, StoreError> {
    let Ok(length) = usize::try_from(length) else { return Ok(None) };
    if length < GROUP_HEADER_BYTES || at.offset.saturating_add(padded(length) as u64) > segment.bytes {
        return Ok(None);
    }
    let mut found = vec![0; padded(length)];
    let read = segment.file.read_at(at.offset, &mut found).map_err(io_error("reading the journal"))?;
    if read < found.len() || found[length..].iter().any(|byte| *byte != 0) {
        return Ok(None);
    }
    let mut bytes = found[..length].to_vec();
    let Some(bit) = which(&bytes).filter(|bit| *bit < 8 * length) else { return Ok(None) };
    bytes[bit / 8] ^= 1 << (bit % 8);
    Ok(whole(segment, at, bytes).map(|group| Mended { group, bit, found }))
}

/// The bit whose flip would give the group the CRC that it says, or its CRC the value that the group has.
fn flipped(group: &[u8]) -> Option<usize> {
    let (before, after) = (group.get(..CRC_AT)?, group.get(CRC_AT + CRC_BYTES..)?);
    let difference = crc32c::crc32c_append(crc32c::crc32c(before), after) ^ u32_at(group, CRC_AT);
    if difference.is_power_of_two() {
        return Some(8 * CRC_AT + difference.trailing_zeros() as usize);
    }
    // What a flip changes in the CRC, beginning with the last bit; the one before it changes what one more step makes of that.
    let step = |change: u32| change >> 1 ^ if change & 1 == 1 { POLYNOMIAL } else { 0 };
    let bits = 8 * (before.len() + after.len());
    let mut change = 1;
    for bit in (0..bits).rev() {
        change = step(change);
        if change == difference {
            return Some(if bit < 8 * CRC_AT { bit } else { bit + 8 * CRC_BYTES });
        }
    }
    None
}

/// The length of a group of so many records, as their frames say; none if they lead nowhere.
fn extent(segment: &Segment, at: Position, records: u32) -> Result<Option<u32>, StoreError> {
    let mut end = GROUP_HEADER_BYTES as u64;
    for _ in 0..records {
        let mut frame = [0; FRAME_HEADER_BYTES];
        let read = segment.file.read_at(at.offset + end, &mut frame).map_err(io_error("reading the journal"))?;
        let Some(frame) = FrameHeader::decode(&frame[..read]) else { return Ok(None) };
        end += frame.whole();
        if at.offset + end > segment.bytes {
            return Ok(None);
        }
    }
    Ok(u32::try_from(end).ok())
}

/// The group, if all that is known of it agrees, its CRC and everything else.
fn whole(segment: &Segment, at: Position, bytes: Vec<u8>) -> Option<Group> {
    let found = GroupHeader::peek(&bytes)?;
    let length = u32::try_from(bytes.len()).ok()?;
    if found != header(segment, at, length, found.records) || !GroupHeader::holds(&bytes) {
        return None;
    }
    let group = Group { at, header: found, bytes };
    let records = group.records().ok()?;
    (records.len() == found.records as usize && GroupHeader::records_hold(&group.bytes)).then_some(group)
}
