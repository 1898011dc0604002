//! Rows of leaves in memory while an index is built: decoded, in pages, so that each is written about once. Records mostly
//! change rows that are new, or one row after the other.
//!
//! Each page has one place here. Another one that comes there sends it to the index, from where it is read back when a record
//! changes one of its rows again.

use super::apply::lost;
use super::bulk::Target;
use super::keys::{self, LeafRow, read_row, row};
use crate::store::StoreError;

/// Leaves of a page: as many slots as a page of the file holds.
const PAGE_LEAVES: usize = 16;

#[allow(clippy::large_enum_variant, reason = "nearly all are decoded")]
enum Slot {
    Empty,
    /// As it was read.
    Encoded(Vec<u8>),
    Decoded(LeafRow),
}

struct Page {
    number: u64,
    slots: [Slot; PAGE_LEAVES],
    changed: bool,
}

pub struct Pages<'a> {
    target: Target<'a>,
    pages: Vec<Option<Box<Page>>>,
    /// One more than the highest leaf that was put.
    end: u64,
}

fn slot_of(leaf: u64) -> usize {
    usize::try_from(leaf % PAGE_LEAVES as u64).unwrap_or(0)
}

impl<'a> Pages<'a> {
    /// For an index without leaves. So many pages are kept; a row takes about 300 bytes here.
    pub fn new(target: Target<'a>, max: u64) -> Self {
        Self { target, pages: (0..max.max(1)).map(|_| None).collect(), end: 0 }
    }

    fn page(&mut self, leaf: u64) -> Result<&mut Page, StoreError> {
        let number = leaf / PAGE_LEAVES as u64;
        let place = usize::try_from(number % self.pages.len() as u64).unwrap_or(0);
        if self.pages[place].as_ref().is_none_or(|page| page.number != number) {
            if let Some(other) = self.pages[place].take() {
                self.write(&other)?;
            }
            self.pages[place] = Some(self.read(number)?);
        }
        self.pages[place].as_deref_mut().ok_or_else(|| lost(format_args!("leaf {leaf}")))
    }

    fn read(&self, number: u64) -> Result<Box<Page>, StoreError> {
        let mut slots = [const { Slot::Empty }; PAGE_LEAVES];
        let first = number * PAGE_LEAVES as u64;
        if first < self.end {
            let (from, to) = (keys::leaf(first), keys::leaf(first + PAGE_LEAVES as u64));
            for (key, row) in self.target.index.scan(&from, &to, slots.len())? {
                let leaf = keys::last_number(&key).ok_or_else(|| lost("the number of a leaf"))?;
                slots[slot_of(leaf)] = Slot::Encoded(row);
            }
        }
        Ok(Box::new(Page { number, slots, changed: false }))
    }

    /// The leaf's row, if there is one.
    fn row(&mut self, leaf: u64) -> Result<Option<&mut LeafRow>, StoreError> {
        let slot = &mut self.page(leaf)?.slots[slot_of(leaf)];
        if let Slot::Encoded(bytes) = slot {
            *slot = Slot::Decoded(read_row(bytes)?);
        }
        match slot {
            Slot::Decoded(row) => Ok(Some(row)),
            _ => Ok(None),
        }
    }

    pub fn get(&mut self, leaf: u64) -> Result<Option<LeafRow>, StoreError> {
        Ok(self.row(leaf)?.cloned())
    }

    pub fn put(&mut self, leaf: u64, row: LeafRow) -> Result<(), StoreError> {
        self.end = self.end.max(leaf + 1);
        let page = self.page(leaf)?;
        page.slots[slot_of(leaf)] = Slot::Decoded(row);
        page.changed = true;
        Ok(())
    }

    /// Changes a row that must be there.
    pub fn change<T>(&mut self, leaf: u64, change: impl FnOnce(&mut LeafRow) -> T) -> Result<T, StoreError> {
        self.page(leaf)?.changed = true;
        self.row(leaf)?.map(change).ok_or_else(|| lost(format_args!("leaf {leaf}")))
    }

    /// Writes everything.
    pub fn finish(&mut self) -> Result<(), StoreError> {
        let pages = std::mem::take(&mut self.pages);
        pages.iter().flatten().try_for_each(|page| self.write(page))
    }

    fn write(&self, page: &Page) -> Result<(), StoreError> {
        if !page.changed {
            return Ok(());
        }
        let mut rows = Vec::with_capacity(page.slots.len());
        for (leaf, slot) in (page.number * PAGE_LEAVES as u64..).zip(&page.slots) {
            match slot {
                Slot::Empty => {}
                Slot::Encoded(bytes) => rows.push((leaf, bytes.clone())),
                Slot::Decoded(made) => rows.push((leaf, row(made)?)),
            }
        }
        self.target.with_room(|index| index.put_leaves(&rows))
    }
}
