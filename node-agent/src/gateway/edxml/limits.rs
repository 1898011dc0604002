//! Every bound of an edXML file, in one place: a hostile file may cost no more than these.

use docaxis_protocol::limits::{MAX_PARTS, MAX_RECIPIENTS};

/// How much one file may hold. The defaults fit every file seen in use, with room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// The whole file, bytes. It is read in memory, so larger parts travel as parts of a dispatch, not inside edXML.
    pub file_bytes: u64,
    /// How deep elements nest; real files reach 10. Also bounds the recursion of everything that walks the tree.
    pub depth: usize,
    /// Elements in all: 4,000 recipients of nine elements each, ten times over.
    pub elements: usize,
    pub attributes_per_element: usize,
    /// The text of one element other than an attachment's content, bytes.
    pub text_bytes: usize,
    /// Recipients of one document; no more fit into an envelope.
    pub recipients: usize,
    /// Attachments in one message, as many as parts in an envelope beside the original file.
    pub attachments: usize,
    /// One attachment after unwrapping, bytes.
    pub attachment_bytes: u64,
    /// All attachments after unwrapping, bytes.
    pub total_bytes: u64,
    /// How many times larger than its compressed form a ZIP entry over 1 MiB may become.
    pub expansion_ratio: u64,
    /// Entries that a ZIP (an office document, for instance) may list before it is not looked at further.
    pub archive_entries: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            file_bytes: 512 << 20,
            depth: 64,
            elements: 400_000,
            attributes_per_element: 32,
            text_bytes: 1 << 20,
            recipients: MAX_RECIPIENTS,
            attachments: MAX_PARTS - 1,
            attachment_bytes: 512 << 20,
            total_bytes: 1 << 30,
            expansion_ratio: 200,
            archive_entries: 20_000,
        }
    }
}
