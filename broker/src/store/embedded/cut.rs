//! A consistent cut of the files, while the store goes on: what a backup copies.
//!
//! Everything in the cut was durable when it was made, and the files keep these bytes while the cut is held: the journal
//! only grows behind the cut, evidence only behind its end, and while a cut is held nothing is pruned or freed.

use std::sync::{Arc, PoisonError};

use docaxis_backup::Source;

use super::EmbeddedStore;
use super::segments::{file_name, io_error};
use super::shared::Shared;
use crate::store::StoreError;

/// While it lives, no journal segment is freed and no body pruned.
pub struct Hold(Arc<Shared>);

impl Hold {
    fn new(shared: &Arc<Shared>) -> Self {
        *shared.held.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self(shared.clone())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        *self.0.held.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
    }
}

/// The files of one moment.
pub struct Cut {
    /// Leaves of the evidence log that they hold.
    pub leaves: u64,
    pub files: Vec<Source>,
    _hold: Hold,
}

impl EmbeddedStore {
    /// Cuts after the newest group that is durable. The order matters: evidence may hold only segments that are full at
    /// the cut, so its end is looked at before the journal's; bodies are durable before the group that names them, so
    /// theirs are looked at last.
    pub fn cut(&self) -> Result<Cut, StoreError> {
        if let Some(error) = self.shared.poison() {
            return Err(error);
        }
        let hold = Hold::new(&self.shared);
        let evidence = self.shared.evidence.ends()?;
        let totals = self.shared.totals();
        let mut files = Vec::new();
        for (number, path, size) in evidence {
            let name = format!("evidence/{}", file_name(number, "evidence"));
            // It grows only: the same length is the same file.
            files.push(Source { name, path, size, fixed: true, sha256: None });
        }
        let last = totals.applied.segment;
        for segment in self.shared.segments.all() {
            let number = segment.header.number;
            if number > last {
                continue;
            }
            let size = if number == last { totals.applied.offset } else { segment.bytes };
            let path = self.shared.segments.path(number);
            let name = format!("journal/{}", file_name(number, "segment"));
            files.push(Source { name, path, size, fixed: number < last, sha256: None });
        }
        for (sha256, size) in self.shared.blobs.list().map_err(io_error("listing the bodies"))? {
            let path = self.shared.blobs.path(&sha256);
            let text = sha256.to_string();
            let name = format!("blobs/{}/{text}", &text[..2]);
            files.push(Source { name, path, size, fixed: true, sha256: Some(sha256) });
        }
        Ok(Cut { leaves: totals.leaves, files, _hold: hold })
    }
}
