//! The journal's writing end: one group at a time, each durable before the next is begun.
//!
//! A failed write or sync is final: the caller must not call again. What a power cut leaves of the last group is cut
//! whole at the next start; all earlier groups are there.

use std::sync::Arc;

use super::keys::{Area, Location, Position};
use super::layout::{GROUP_HEADER_BYTES, GroupHeader, PAGE, padded};
use super::record::Prepared;
use super::segments::{Segment, Segments, Work, io_error};
use crate::store::StoreError;

pub struct Journal {
    segments: Arc<Segments>,
    current: Segment,
    /// Where the next group goes.
    next: Position,
    /// The group in the making: header, frames, padding.
    buffer: Vec<u8>,
    records: u32,
    /// Whether the last group is an empty one, which says that all before it is durable.
    marked: bool,
}

impl Journal {
    /// Goes on at `next` in `current`.
    pub fn new(segments: Arc<Segments>, current: Segment, next: Position, marked: bool) -> Self {
        let mut journal = Self { segments, current, next, buffer: Vec::new(), records: 0, marked };
        journal.reset();
        journal
    }

    fn reset(&mut self) {
        self.buffer.clear();
        self.buffer.resize(GROUP_HEADER_BYTES, 0);
        self.records = 0;
    }

    /// Where the next group goes: everything before it is durable.
    pub const fn position(&self) -> Position {
        self.next
    }

    pub const fn records(&self) -> u32 {
        self.records
    }

    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Whether a record of this length still fits into the group's segment.
    pub fn fits(&self, frame_bytes: usize) -> bool {
        self.next.offset + padded(self.buffer.len() + frame_bytes) as u64 <= self.current.bytes
    }

    /// The longest record that an empty segment takes.
    pub fn max_frame_bytes(&self) -> u64 {
        self.current.bytes.min(u64::from(u32::MAX)).saturating_sub((2 * PAGE + GROUP_HEADER_BYTES) as u64)
    }

    /// Goes on in a new segment. Only between groups. Returns the number of the segment that is full now.
    pub fn roll(&mut self, work: Work) -> Result<u64, StoreError> {
        let full = self.current.header.number;
        self.current = self.segments.begin(full + 1, self.next.sequence, work)?;
        self.next = self.current.start();
        Ok(full)
    }

    /// Where a record added now will stand.
    pub fn place(&self) -> Location {
        let offset = self.next.offset + self.buffer.len() as u64;
        Location { area: Area::Journal, segment: self.next.segment, offset }
    }

    pub fn add(&mut self, prepared: &Prepared, leaf: u64) {
        prepared.write_frame(leaf, &mut self.buffer);
        self.records += 1;
    }

    /// Writes the group and makes it durable. After an error the journal must not be used again: what the disk holds
    /// is not known, and a second sync would not tell.
    pub fn commit(&mut self) -> Result<Position, StoreError> {
        let header = GroupHeader {
            epoch: self.current.header.number,
            salt: self.current.header.salt,
            sequence: self.next.sequence,
            durable: self.next.sequence - 1,
            length: u32::try_from(self.buffer.len())
                .map_err(|e| StoreError::Io { operation: "writing the journal", found: e.to_string() })?,
            records: self.records,
        };
        header.seal(&mut self.buffer);
        let whole = padded(self.buffer.len());
        self.buffer.resize(whole, 0);
        let failed = io_error("writing the journal");
        self.current.file.write_at(self.next.offset, &self.buffer).map_err(&failed)?;
        docaxis_failpoints::failpoint!("broker.commit.written");
        self.current.file.sync_data().map_err(io_error("syncing the journal"))?;
        docaxis_failpoints::failpoint!("broker.commit.synced");
        self.segments.count_group(whole as u64);
        self.marked = self.records == 0;
        self.next.offset += whole as u64;
        self.next.sequence += 1;
        self.reset();
        Ok(self.next)
    }

    /// Writes an empty group, unless the last one is such: from now on a bad group before it is damage, not a tail.
    pub fn mark(&mut self) -> Result<(), StoreError> {
        if !self.marked && self.fits(0) {
            self.commit()?;
        }
        Ok(())
    }
}
