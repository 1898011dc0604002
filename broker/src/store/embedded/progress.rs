//! How far the opening of a store has come: the one source for the log's lines and for whoever asks while it lasts.
//!
//! What is counted is read once in order, evidence first and then the journal, so a place in the files says how much of
//! them is behind it. Nobody decides anything by these numbers.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::Serialize;

use super::evidence::EvidenceFiles;
use super::keys::{Area, Location};
use super::layout::FRAME_HEADER_BYTES;
use super::segments::Segments;
use crate::store::StoreError;

/// A line in the log after so many records.
const LINE_EVERY: u64 = 200_000;

/// What the store does before it may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doing {
    /// Files are opened, and the end of the evidence is looked for.
    #[default]
    Opening,
    /// The journal's end is read, and what the index lacks is put into it.
    CatchingUp,
    /// The index is built from evidence and journal.
    Rebuilding,
    /// Everything was read; what is still in memory of the index is written.
    Writing,
    /// Large bodies that nothing names are looked for.
    Collecting,
}

/// One look at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Reached {
    #[serde(skip)]
    pub doing: Doing,
    /// Records applied to the index.
    pub records: u64,
    /// Bytes of evidence and journal that were read, and those that are there. The journal's last segment is seldom full:
    /// the rest of it is not read.
    pub bytes_read: u64,
    pub bytes_total: u64,
    /// The first of the two in percent of the second.
    pub percent: u64,
    pub seconds: u64,
}

#[derive(Debug, Default)]
struct State {
    reached: Reached,
    began: Option<Instant>,
    /// Bytes before each file, in the order in which they are read.
    before: BTreeMap<(Area, u64), u64>,
    /// Of the file that is read now.
    here: Option<((Area, u64), u64)>,
}

/// Shared by whoever opens a store and those who ask how far it is.
#[derive(Debug, Default)]
pub struct Progress(Mutex<State>);

impl Progress {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn reached(&self) -> Reached {
        let state = self.state();
        let seconds = state.began.map_or(0, |began| began.elapsed().as_secs());
        let percent = state.reached.bytes_read.saturating_mul(100).checked_div(state.reached.bytes_total).unwrap_or(0);
        Reached { percent, seconds, ..state.reached }
    }

    /// Something that has no length.
    pub fn begin(&self, doing: Doing) {
        let began = Some(Instant::now());
        *self.state() = State { reached: Reached { doing, ..Reached::default() }, began, ..State::default() };
    }

    /// Reads the journal from segment `from` on, or everything.
    pub fn begin_reading(
        &self,
        doing: Doing,
        evidence: Option<&EvidenceFiles>,
        segments: &Segments,
        from: u64,
    ) -> Result<(), StoreError> {
        let (mut before, mut bytes) = (BTreeMap::new(), 0);
        for (number, _, length) in evidence.map_or(Ok(vec![]), EvidenceFiles::ends)? {
            before.insert((Area::Evidence, number), bytes);
            bytes += length;
        }
        for segment in segments.all().iter().filter(|segment| segment.header.number >= from) {
            before.insert((Area::Journal, segment.header.number), bytes);
            bytes += segment.bytes;
        }
        self.begin(doing);
        let mut state = self.state();
        state.before = before;
        state.reached.bytes_total = bytes;
        Ok(())
    }

    /// A record at this place was read, whose frame has so many bytes behind its header.
    pub fn read(&self, at: Location, bytes: usize) {
        self.state().read(at, bytes);
    }

    /// The same of one that was applied as well.
    pub fn applied(&self, at: Location, bytes: usize) {
        let mut state = self.state();
        state.read(at, bytes);
        state.reached.records += 1;
        if state.reached.records.is_multiple_of(LINE_EVERY) {
            drop(state);
            self.line();
        }
    }

    /// Nothing more is read; what was counted stays.
    pub fn write(&self) {
        self.state().reached.doing = Doing::Writing;
        self.line();
    }

    fn line(&self) {
        let Reached { doing, records, percent, seconds, .. } = self.reached();
        tracing::info!(records, percent, seconds, "{}", doing.words());
    }
}

impl State {
    fn read(&mut self, at: Location, bytes: usize) {
        let file = (at.area, at.segment);
        let before = match self.here {
            Some((here, before)) if here == file => before,
            _ => {
                let before = self.before.get(&file).copied().unwrap_or(0);
                self.here = Some((file, before));
                before
            }
        };
        self.reached.bytes_read = before + at.offset + (FRAME_HEADER_BYTES + bytes) as u64;
    }
}

impl Doing {
    /// For people.
    pub const fn words(self) -> &'static str {
        match self {
            Self::Opening => "opening the store's files",
            Self::CatchingUp => "bringing the index up to the journal's end",
            Self::Rebuilding => "building the index from evidence and journal",
            Self::Writing => "writing the index; evidence and journal have been read",
            Self::Collecting => "looking for bodies that nothing names",
        }
    }
}
