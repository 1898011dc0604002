//! Damaged bodies: a copy is kept under `DATA/damaged/` and the log says where, and which dispatches name it. What stands
//! where the body should be is never given out; the sender is asked to bring the body once more.

use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::{Digest, DispatchId};

use super::keys::{self, BodyPlace, end_of, last_number};
use super::record::{RecordV1, id_of};
use super::segments::io_error;
use super::shared::Shared;
use super::view::Lookup;
use crate::store::{Seq, StoreError};

/// Dispatches that one line of the log names.
const MAX_NAMED: usize = 16;

impl Shared {
    /// Moves a large body out of the way if its file does not give it back.
    pub fn set_aside(&self, part: &PartDigest) -> Result<(), StoreError> {
        let moved = self.blobs.set_aside(part).map_err(io_error("setting a damaged body aside"))?;
        if let Some(aside) = moved {
            let (file, dispatches) = (self.blobs.path(&part.sha256), self.named_by(&part.sha256));
            tracing::error!(file = %file.display(), aside = %aside.display(), %dispatches, "a body is damaged; it was set aside");
        }
        Ok(())
    }

    /// Keeps a copy of what was found where a body of the journal should be.
    pub fn body_is_damaged(&self, seq: Seq, sha256: &Digest, place: BodyPlace, found: &[u8]) {
        let BodyPlace { segment, offset } = place;
        let file = self.segments.path(segment);
        match self.blobs.copy_aside(sha256, found) {
            Ok(Some(aside)) => {
                let dispatch = self.id_of(seq.0).map(|id| id.to_string()).unwrap_or_default();
                tracing::error!(file = %file.display(), offset, aside = %aside.display(), dispatch,
                    "a body in the journal is damaged; a copy was set aside");
            }
            Ok(None) => {}
            Err(error) => {
                tracing::error!(file = %file.display(), offset, body = %sha256, %error,
                    "a body in the journal is damaged, and no copy could be set aside");
            }
        }
    }

    /// The dispatches that name a large body, for the log.
    fn named_by(&self, sha256: &Digest) -> String {
        let owners = keys::owners(&sha256.0);
        let rows = self.view.scan(&owners, &end_of(&owners), MAX_NAMED).unwrap_or_default();
        let ids = rows.iter().filter_map(|(key, _)| self.id_of(last_number(key)?)).map(|id| id.to_string());
        ids.collect::<Vec<_>>().join(" ")
    }

    fn id_of(&self, seq: u64) -> Option<DispatchId> {
        match self.leaf(seq).ok()??.1.prepared.record {
            RecordV1::Accepted(accepted) => id_of(accepted.id).ok(),
            _ => None,
        }
    }
}
