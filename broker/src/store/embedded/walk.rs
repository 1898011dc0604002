//! Reading a journal segment group by group, and telling a torn end from damage.
//!
//! Group N+1 is written only when N is durable. So what does not read at the very end was never acknowledged and is
//! cut; what does not read and has a valid later group behind it was durable once, and is damage.

use super::keys::{Area, Location, Position};
use super::layout::{FRAME_HEADER_BYTES, FrameHeader, GROUP_HEADER_BYTES, GroupHeader, PAGE, padded};
use super::outline::{Outline, Outlined};
use super::record::Prepared;
use super::segments::{Segment, io_error};
use crate::store::StoreError;

/// A frame's header, its place, and all its bytes.
pub type Frame<'a> = (FrameHeader, Location, &'a [u8]);

/// One record as read back.
pub struct Found {
    pub prepared: Prepared,
    pub leaf: u64,
}

/// A group as it stands in the file, header included, without padding.
pub struct Group {
    pub at: Position,
    pub header: GroupHeader,
    pub bytes: Vec<u8>,
}

impl Group {
    /// Where the next group begins.
    pub fn end(&self) -> Position {
        let length = padded(self.bytes.len()) as u64;
        Position { segment: self.at.segment, offset: self.at.offset + length, sequence: self.at.sequence + 1 }
    }

    /// The group's records, in order, with their frames' own bytes.
    pub fn frames(&self) -> Result<Vec<Frame<'_>>, StoreError> {
        let mut frames = Vec::new();
        let mut at = GROUP_HEADER_BYTES;
        while at < self.bytes.len() {
            let offset = self.at.offset + at as u64;
            let damaged = |what: &str| {
                StoreError::Damaged(format!("journal segment {:016x}, offset {offset}: {what}", self.at.segment))
            };
            let rest = &self.bytes[at..];
            let frame = FrameHeader::decode(rest).ok_or_else(|| damaged("no record begins here"))?;
            let whole = usize::try_from(frame.whole()).map_err(|_| damaged("the record is too long"))?;
            let bytes = rest.get(..whole).ok_or_else(|| damaged("the record goes on beyond its group"))?;
            frames.push((frame, Location { area: Area::Journal, segment: self.at.segment, offset }, bytes));
            at += whole;
        }
        Ok(frames)
    }

    /// What of each record the index is made from, in order.
    pub fn outlines(&self) -> Result<Vec<Outlined>, StoreError> {
        let outlined = |(frame, at, bytes): Frame<'_>| outline(&frame, meta_of(&frame, bytes, at)?, at);
        self.frames()?.into_iter().map(outlined).collect()
    }

    pub fn records(&self) -> Result<Vec<Found>, StoreError> {
        let read = |(frame, at, bytes): Frame<'_>| read_record(&frame, bytes, at);
        self.frames()?.into_iter().map(read).collect()
    }
}

/// The encoded record in a frame's bytes, checked; the tail need not be there.
pub fn meta_of<'a>(frame: &FrameHeader, bytes: &'a [u8], at: Location) -> Result<&'a [u8], StoreError> {
    let damaged = |what: &str| {
        StoreError::Damaged(format!("{:?} segment {:016x}, offset {}: {what}", at.area, at.segment, at.offset))
    };
    let meta = bytes
        .get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + frame.meta as usize)
        .ok_or_else(|| damaged("the record is cut short"))?;
    frame.holds(bytes, meta).then_some(meta).ok_or_else(|| damaged("the record's CRC-32C does not match"))
}

/// Reads the record in a frame's bytes; the tail need not be there.
pub fn read_record(frame: &FrameHeader, bytes: &[u8], at: Location) -> Result<Found, StoreError> {
    let prepared = Prepared::read(frame, meta_of(frame, bytes, at)?).map_err(|what| {
        StoreError::Damaged(format!("{:?} segment {:016x}, offset {}: {what}", at.area, at.segment, at.offset))
    })?;
    Ok(Found { prepared, leaf: frame.leaf })
}

/// What of a record the index is made from; `meta` was checked.
pub fn outline(frame: &FrameHeader, meta: &[u8], at: Location) -> Result<Outlined, StoreError> {
    let outline = Outline::read(frame, meta).map_err(|what| {
        StoreError::Damaged(format!("{:?} segment {:016x}, offset {}: {what}", at.area, at.segment, at.offset))
    })?;
    Ok(Outlined { outline, leaf: frame.leaf, at, bytes: meta.len() + frame.tail as usize })
}

/// What stands where a group should.
pub enum Next {
    Group(Group),
    /// Nothing valid, here and behind: the end.
    End,
    /// Nothing valid here, but a group of this segment behind it.
    Damage {
        found: u64,
    },
}

/// The group at `at`. `end` is the sequence with which the next segment begins, where that is known: every group before
/// it was durable once.
pub fn next(segment: &Segment, at: Position, end: Option<u64>) -> Result<Next, StoreError> {
    if let Some(group) = group_at(segment, at.offset, |header| header.sequence == at.sequence)? {
        return Ok(Next::Group(group));
    }
    let mut later = None;
    let mut offset = at.offset;
    while offset < segment.bytes && later.is_none() {
        later = group_at(segment, offset, |header| header.sequence >= at.sequence)?;
        offset += PAGE as u64;
    }
    if (later.is_some() || end.is_some_and(|end| end > at.sequence))
        && let Some(group) = records_at(segment, at)?
    {
        let (number, offset) = (segment.header.number, at.offset);
        tracing::error!("journal segment {number:016x}, offset {offset}: a group is damaged; all of its records read");
        return Ok(Next::Group(group));
    }
    Ok(later.map_or(Next::End, |later| Next::Damage { found: later.at.offset }))
}

/// A group that was durable once and does not have its CRC-32C, though each of its records does: what is damaged is a
/// body, which is checked by its own digest before it is given out.
fn records_at(segment: &Segment, at: Position) -> Result<Option<Group>, StoreError> {
    let Some((header, bytes)) = bytes_at(segment, at.offset, |header| header.sequence == at.sequence)? else {
        return Ok(None);
    };
    let group = Group { at, header, bytes };
    Ok(group.records().is_ok_and(|records| records.len() == header.records as usize).then_some(group))
}

fn group_at(
    segment: &Segment,
    offset: u64,
    wanted: impl Fn(&GroupHeader) -> bool,
) -> Result<Option<Group>, StoreError> {
    let found = bytes_at(segment, offset, wanted)?.filter(|(_, bytes)| GroupHeader::holds(bytes));
    Ok(found.map(|(header, bytes)| {
        let at = Position { segment: segment.header.number, offset, sequence: header.sequence };
        Group { at, header, bytes }
    }))
}

/// A header of this segment's own at `offset`, and as many bytes as it announces; whether they hold is not checked.
fn bytes_at(
    segment: &Segment,
    offset: u64,
    wanted: impl Fn(&GroupHeader) -> bool,
) -> Result<Option<(GroupHeader, Vec<u8>)>, StoreError> {
    let failed = io_error("reading the journal");
    let mut head = [0; GROUP_HEADER_BYTES];
    let read = segment.file.read_at(offset, &mut head).map_err(&failed)?;
    let Some(header) = GroupHeader::peek(&head[..read]) else { return Ok(None) };
    let length = u64::from(header.length);
    let own = header.epoch == segment.header.number && header.salt == segment.header.salt;
    let fits = length >= GROUP_HEADER_BYTES as u64 && offset.saturating_add(length) <= segment.bytes;
    if !own || !fits || !wanted(&header) {
        return Ok(None);
    }
    let mut bytes = vec![0; header.length as usize];
    let read = segment.file.read_at(offset, &mut bytes).map_err(&failed)?;
    Ok((read == bytes.len()).then_some((header, bytes)))
}
