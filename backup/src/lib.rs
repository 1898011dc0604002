//! Backups: a folder that holds each copied file once, under its SHA-256, and a manifest that says which files of which
//! folder they were. Broker and agent make their own lists of what belongs to a consistent cut; this crate copies,
//! checks and puts back, and does not know what the files mean.
//!
//! ```text
//! DIR/manifest           JSON in one line, then a line with its SHA-256
//! DIR/objects/ab/abcd... the files' bytes, by SHA-256
//! ```
//!
//! On power loss or a crash at any moment, DIR holds either the earlier backup or the new one, whole: objects are synced
//! before the manifest that names them is renamed into place, and what only the earlier one named goes afterwards.

mod error;
mod manifest;
mod put_back;
mod take;

pub use error::BackupError;
pub use manifest::{Entry, Manifest, open, verify};
pub use put_back::{Fresh, Replaced, free_bytes, is_broken_off, is_empty};
pub use take::{Backup, Source, Taken};
