//! edXML (QCVN 102:2016/BTTTT), the national message format: bytes in, a [`Message`] out, and back.
//!
//! Pure functions over bytes: no file, socket or clock. What real systems send is accepted in [`Mode::Lenient`] and every
//! liberty taken is said in words; [`Mode::Strict`] refuses them and names the field. What was parsed never replaces
//! what was received: the caller keeps the original bytes beside it, because re-serialising breaks signatures.

mod attachment;
mod document;
mod error;
mod header;
mod limits;
mod media;
mod name;
mod rules;
mod schema;
mod status;
mod value;
mod write;
mod xml;

#[cfg(test)]
mod tests;

pub use attachment::{Attachment, Encoding};
pub use document::{Bussiness, Document, OtherInfo, Promulgation, Receiver, Replacement, Response, SignerInfo, Trace};
pub use error::{EdxmlError, Place, Repair};
pub use limits::Limits;
pub use name::{SafeNames, safe_name};
pub use rules::{Organ, StaffInfo};
pub use status::{StatusCode, StatusMessage, status_header};
pub use value::{Dated, Moment};
pub use write::{export, export_status};

use rules::Reading;

/// How much an importer forgives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Refuses whatever departs from the standard and the lengths of Decree 30/2020, and names the field.
    Strict,
    /// Takes what the field really sends and lists every liberty in [`Repair`]s. Still refuses what is not XML, what has
    /// no usable sender or recipient, and what could do harm.
    Lenient,
}

/// What one edXML file says.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    Document(Box<Document>),
    Status(Box<StatusMessage>),
}

impl Message {
    /// Every liberty taken while reading, in the order of the file.
    pub fn warnings(&self) -> &[Repair] {
        match self {
            Self::Document(document) => &document.warnings,
            Self::Status(status) => &status.warnings,
        }
    }
}

/// Reads one edXML file. Documents of every kind are recognised with their data; whether a kind is acted upon is the
/// caller's decision.
pub fn import(bytes: &[u8], mode: Mode, limits: &Limits) -> Result<Message, EdxmlError> {
    let (source, had_bom) = xml::source(bytes, limits)?;
    let mut reading = Reading::new(source, mode);
    if had_bom {
        reading.note("the file", "a UTF-8 byte order mark was left out");
    }
    let root = xml::parse(source, limits)?;
    let file = header::File::open(&root, &mut reading)?;
    if file.message_header.child("StatusCode").is_some() {
        status::read(&file, reading).map(|status| Message::Status(Box::new(status)))
    } else {
        document::read(&file, reading, limits).map(|document| Message::Document(Box::new(document)))
    }
}
