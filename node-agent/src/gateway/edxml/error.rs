//! Why an edXML file is not taken or not written, and what a lenient reading changed.

use std::fmt;

use docaxis_protocol::reason::ReasonCode;

/// A position in a file, both counted from 1; the column counts characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    pub line: usize,
    pub column: usize,
}

impl Place {
    /// The position of the byte at `offset`.
    pub(super) fn of(source: &str, offset: usize) -> Self {
        let mut end = offset.min(source.len());
        while !source.is_char_boundary(end) {
            end -= 1;
        }
        let before = &source[..end];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Self {
            line: 1 + before.bytes().filter(|b| *b == b'\n').count(),
            column: 1 + before[line_start..].chars().count(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EdxmlError {
    /// The file is not well-formed XML, or not an edXML message.
    #[error("malformed edXML at {at}: expected {expected}, found {found}")]
    Malformed { at: Place, expected: String, found: String },
    /// One field's value cannot be taken.
    #[error("{field} at {at}: expected {expected}, found {found}")]
    Field { field: String, at: Place, expected: String, found: String },
    #[error("{what} is {found}; the limit is {max}")]
    TooLarge { what: String, found: u64, max: u64 },
    #[error("the file holds more than {max} attachments")]
    TooManyAttachments { max: usize },
    /// The same agency stands twice among the recipients, perhaps in two spellings.
    #[error("recipient {again:?} at {at} is agency {code}, already named as {first:?}")]
    DuplicateRecipient { code: String, first: String, again: String, at: Place },
    #[error("attachment {attachment:?}: expected {expected}, found {found}")]
    BadArchive { attachment: String, expected: &'static str, found: String },
    #[error("attachment name {found:?} at {at} is not safe: it would have to become {safe:?}")]
    UnsafeName { found: String, safe: String, at: Place },
    /// A value that XML cannot carry, or a header of another shape than edXML's.
    #[error("{field} cannot be written as edXML: expected {expected}, found {found}")]
    Unwritable { field: String, expected: &'static str, found: String },
    /// State secrets do not travel this way (Decision 28/2018, article 2).
    #[error("the document is marked as a state secret and may not be written for exchange")]
    Secret,
}

impl EdxmlError {
    /// The stable reason code.
    pub fn code(&self) -> ReasonCode {
        match self {
            Self::Malformed { .. } | Self::Field { .. } | Self::Unwritable { .. } => ReasonCode::Malformed,
            Self::TooLarge { .. } => ReasonCode::TooLarge,
            Self::TooManyAttachments { .. } => ReasonCode::TooManyParts,
            Self::DuplicateRecipient { .. } => ReasonCode::DuplicateRecipient,
            Self::BadArchive { .. } => ReasonCode::BadArchive,
            Self::UnsafeName { .. } => ReasonCode::UnsafeName,
            Self::Secret => ReasonCode::SecretRefused,
        }
    }

    /// Where in the file, if one place is to blame.
    pub fn place(&self) -> Option<Place> {
        match self {
            Self::Malformed { at, .. }
            | Self::Field { at, .. }
            | Self::DuplicateRecipient { at, .. }
            | Self::UnsafeName { at, .. } => Some(*at),
            _ => None,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => {
                "export the document again from the system that wrote it, or correct the file at that place"
            }
            Self::Field { .. } => "correct that field in the document system, or import leniently if that forgives it",
            Self::TooLarge { .. } => "send large files as parts of a dispatch, without wrapping them in edXML",
            Self::TooManyAttachments { .. } => "put the files into fewer attachments, or send several dispatches",
            Self::DuplicateRecipient { .. } => "name each recipient once",
            Self::BadArchive { .. } => {
                "wrap each attachment in an unencrypted ZIP with exactly one entry, an archive too, or send it unwrapped"
            }
            Self::UnsafeName { .. } => "rename the attachment, or import leniently to have it renamed",
            Self::Unwritable { .. } => "correct that field of the document",
            Self::Secret => "documents marked secret go by the means that the law on state secrets names",
        }
    }
}

/// One liberty that reading took, in words: which field, and what was done about it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Repair {
    pub field: String,
    /// `None` where the whole file is meant.
    #[serde(serialize_with = "as_text", skip_serializing_if = "Option::is_none")]
    pub at: Option<Place>,
    pub what: String,
}

fn as_text<S: serde::Serializer>(at: &Option<Place>, serializer: S) -> Result<S::Ok, S::Error> {
    match at {
        Some(at) => serializer.collect_str(at),
        None => serializer.serialize_none(),
    }
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.at {
            Some(at) => write!(f, "{} ({at}): {}", self.field, self.what),
            None => write!(f, "{}: {}", self.field, self.what),
        }
    }
}

/// At most this many characters of a foreign value appear in a message about it.
pub(super) fn shown(text: &str) -> String {
    const MAX: usize = 80;
    let mut short: String = text.chars().take(MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}
