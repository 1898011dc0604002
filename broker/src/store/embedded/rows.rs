//! Where a record's changes to the index go: over the view of a store that serves, or into an index that is built anew.

use super::apply::{leaf_row, lost};
use super::index::Row;
use super::keys::{self, Intake, LeafRow, Totals, row};
use super::view::{Lookup, Staged};
use crate::store::StoreError;

/// Rows at which the journal's tail is merged, about 200 bytes each: a circular that thousands of recipients refuse has twice as
/// many. The group is ended first, of which a commit had all rows in memory too.
pub const ROWS_AT_ONCE: usize = 16 << 10;

/// Rows that a record reads and changes. Tables of leaves and ids have operations of their own; the others are reached by key.
pub trait Rows {
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// Up to `limit` rows with `from <= key < to`, in order.
    fn scan(&mut self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError>;
    /// Puts a row, or removes it.
    fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>);
    /// Makes a row from the one that is there.
    fn change(
        &mut self,
        key: Vec<u8>,
        change: impl FnOnce(Option<Vec<u8>>) -> Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<(), StoreError>;

    fn leaf(&mut self, leaf: u64) -> Result<Option<LeafRow>, StoreError>;
    fn put_leaf(&mut self, leaf: u64, row: LeafRow) -> Result<(), StoreError>;
    /// Changes a leaf's row that must be there.
    fn change_leaf<T>(&mut self, leaf: u64, change: impl FnOnce(&mut LeafRow) -> T) -> Result<T, StoreError>;
    /// Makes `leaf` the newest of its kind under this id. The one before it, or none if that is found out later.
    fn put_id(&mut self, id: &[u8; 16], kind: Intake, leaf: u64) -> Result<Option<u64>, StoreError>;

    /// Whether as much is kept in memory as may be.
    fn is_full(&self) -> bool;
    /// Hands on what is too much to keep in memory, at the latest. Called where rows and `totals` agree.
    fn agree(&mut self, totals: &Totals) -> Result<(), StoreError>;

    fn put(&mut self, key: Vec<u8>, value: Vec<u8>) {
        self.set(key, Some(value));
    }

    fn remove(&mut self, key: Vec<u8>) {
        self.set(key, None);
    }
}

impl Rows for Staged<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        Lookup::get(self, key)
    }

    fn scan(&mut self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<Row>, StoreError> {
        Lookup::scan(self, from, to, limit)
    }

    fn set(&mut self, key: Vec<u8>, value: Option<Vec<u8>>) {
        self.changes.insert(key, value);
    }

    fn change(
        &mut self,
        key: Vec<u8>,
        change: impl FnOnce(Option<Vec<u8>>) -> Result<Option<Vec<u8>>, StoreError>,
    ) -> Result<(), StoreError> {
        let changed = change(Lookup::get(self, &key)?)?;
        self.changes.insert(key, changed);
        Ok(())
    }

    fn leaf(&mut self, leaf: u64) -> Result<Option<LeafRow>, StoreError> {
        leaf_row(leaf, self)
    }

    fn put_leaf(&mut self, leaf: u64, made: LeafRow) -> Result<(), StoreError> {
        self.changes.insert(keys::leaf(leaf), Some(row(&made)?));
        Ok(())
    }

    fn change_leaf<T>(&mut self, leaf: u64, change: impl FnOnce(&mut LeafRow) -> T) -> Result<T, StoreError> {
        let mut there = leaf_row(leaf, self)?.ok_or_else(|| lost(format_args!("leaf {leaf}")))?;
        let changed = change(&mut there);
        self.put_leaf(leaf, there)?;
        Ok(changed)
    }

    /// A table of a later state has a newer one; then the leaf's row is of a later state too, as leaves are never older, and
    /// knows the one before it.
    fn put_id(&mut self, id: &[u8; 16], kind: Intake, leaf: u64) -> Result<Option<u64>, StoreError> {
        let key = keys::with_id(id, kind);
        let newest = Lookup::get(self, &key)?.and_then(|bytes| keys::number_at(&bytes, 0));
        if newest.is_some_and(|newest| newest >= leaf) {
            let there = leaf_row(leaf, self)?.ok_or_else(|| lost(format_args!("leaf {leaf}")))?;
            return Ok(there.before_with_id);
        }
        self.changes.insert(key, Some(leaf.to_be_bytes().to_vec()));
        Ok(newest)
    }

    fn is_full(&self) -> bool {
        self.changes.len() >= ROWS_AT_ONCE
    }

    fn agree(&mut self, totals: &Totals) -> Result<(), StoreError> {
        self.changes.insert(keys::totals(), Some(row(totals)?));
        // Nobody would make room while a start waits for it: then the start fails and says so.
        self.has_room()?;
        self.merge()
    }
}
