//! Attachments: from base64, and mostly from a ZIP with one entry around the file, to the file's own bytes.
//!
//! The bytes decide what an attachment is, never its declared type. Only a ZIP with exactly one entry that is no office
//! document is unwrapped; an entry's name is data and never a path. Every expansion is bounded before it happens.

use std::io::{Cursor, Read};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zip::ZipArchive;

use super::error::{EdxmlError, shown};
use super::header::{File, at_most_one};
use super::limits::Limits;
use super::media;
use super::name::{SafeNames, extension};
use super::rules::{Reading, text_of};
use super::xml::Element;

/// How the file stood in the message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encoding {
    /// Inside a ZIP with this one entry.
    ZipWrapped { entry_name: String },
    /// As it is.
    Raw,
}

/// One attached file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Safe as a file name, in NFC, distinct within the message.
    pub name: String,
    /// The name as sent, where it had to change.
    pub original_name: Option<String>,
    /// Empty where the sender gave none.
    pub content_id: String,
    pub description: Option<String>,
    pub declared_content_type: Option<String>,
    /// By the bytes.
    pub media_type: String,
    pub encoding: Encoding,
    pub bytes: Vec<u8>,
}

impl Attachment {
    /// A file to be written into a message; its content id is given when it is written.
    pub fn new(name: &str, description: Option<&str>, bytes: Vec<u8>) -> Self {
        let (safe, changed) = super::safe_name(name);
        Self {
            name: safe,
            original_name: changed.then(|| name.to_owned()),
            content_id: String::new(),
            description: description.map(str::to_owned),
            declared_content_type: None,
            media_type: media_of(&bytes, Limits::default().archive_entries).to_owned(),
            encoding: Encoding::Raw,
            bytes,
        }
    }
}

/// The media type of a file's own bytes, looking into office documents by their entries' names.
fn media_of(bytes: &[u8], max_entries: usize) -> &'static str {
    match media::media_type(bytes) {
        "application/zip" if lists_more_than(bytes, max_entries) => "application/zip",
        "application/zip" => ZipArchive::new(Cursor::new(bytes))
            .map(|archive| media::package_type(bytes, &names(&archive)))
            .unwrap_or("application/zip"),
        other => other,
    }
}

pub(super) fn read<'a>(
    file: &File<'_, 'a>,
    reading: &mut Reading<'a>,
    limits: &Limits,
) -> Result<Vec<Attachment>, EdxmlError> {
    if file.attachments.len().max(file.references.len()) > limits.attachments {
        return Err(EdxmlError::TooManyAttachments { max: limits.attachments });
    }
    check_manifest(file, reading)?;
    let mut attachments: Vec<Attachment> = Vec::new();
    let mut names = SafeNames::default();
    let mut room = Room { used: 0, of_one: limits.attachment_bytes, in_all: limits.total_bytes };
    for element in &file.attachments {
        let attachment = read_one(element, file, &mut names, &room, reading, limits)?;
        room.used += attachment.bytes.len() as u64;
        attachments.push(attachment);
    }
    Ok(attachments)
}

/// How much attachments may still take.
struct Room {
    used: u64,
    of_one: u64,
    in_all: u64,
}

impl Room {
    /// Refuses an attachment of `found` bytes, or of at least as many, that does not fit.
    fn check(&self, label: &str, found: u64) -> Result<(), EdxmlError> {
        if found > self.of_one {
            let what = format!("attachment {} (bytes)", shown(label));
            return Err(EdxmlError::TooLarge { what, found, max: self.of_one });
        }
        let together = self.used.saturating_add(found);
        if together > self.in_all {
            let what = format!("attachment {} and those before it (bytes)", shown(label));
            return Err(EdxmlError::TooLarge { what, found: together, max: self.in_all });
        }
        Ok(())
    }
}

/// What the manifest announces and what is attached must be the same, or somebody's file is lost without a word.
fn check_manifest<'a>(file: &File<'_, 'a>, reading: &mut Reading<'a>) -> Result<(), EdxmlError> {
    let ids = |elements: &[&Element<'a>]| -> Vec<String> {
        elements.iter().map(|element| text_of(element, "ContentId").unwrap_or_default()).collect()
    };
    let (announced, attached) = (ids(&file.references), ids(&file.attachments));
    for (element, id) in file.references.iter().zip(&announced) {
        if !attached.contains(id) {
            let name = text_of(element, "AttachmentName").unwrap_or_default();
            let found = format!("none for {}", shown(if name.is_empty() { id } else { &name }));
            let expected = "an attachment for each Reference of the manifest";
            reading.forgive(element, "edXMLManifest/Reference", expected, &found, "imported without it")?;
        }
    }
    for (index, (element, id)) in file.attachments.iter().zip(&attached).enumerate() {
        if !announced.contains(id) {
            let expected = "a Reference in the manifest for each attachment";
            reading.forgive(element, "Attachment/ContentId", expected, &shown(id), "imported all the same")?;
        } else if attached[..index].contains(id) {
            let expected = "each ContentId once";
            reading.forgive(element, "Attachment/ContentId", expected, &shown(id), "both are imported")?;
        }
    }
    Ok(())
}

fn read_one<'a>(
    element: &Element<'a>,
    file: &File<'_, 'a>,
    names: &mut SafeNames,
    room: &Room,
    reading: &mut Reading<'a>,
    limits: &Limits,
) -> Result<Attachment, EdxmlError> {
    let content_id = text_of(element, "ContentId").unwrap_or_default();
    let announced = file.references.iter().copied().find(|r| text_of(r, "ContentId").unwrap_or_default() == content_id);
    let from_either = |field: &str| text_of(element, field).or_else(|| announced.and_then(|r| text_of(r, field)));
    let sent_name = from_either("AttachmentName");
    let label = sent_name.clone().unwrap_or_else(|| content_id.clone());
    let content = at_most_one(element, "ContentTransferEncoded", reading)?
        .ok_or_else(|| reading.malformed(element, "ContentTransferEncoded in an Attachment", "none"))?;
    if content.trimmed().is_empty() {
        reading.forgive(
            content,
            "ContentTransferEncoded",
            "a file in base64",
            "nothing",
            "imported as an empty file",
        )?;
    }
    let encoded = decode(content, &label, room, reading)?;
    let (bytes, encoding, media_type) = unwrap(encoded, &label, room, limits)?;

    let written = match (sent_name, &encoding) {
        (Some(name), _) => name,
        (None, encoding) => {
            let name = match encoding {
                Encoding::ZipWrapped { entry_name } => entry_name.clone(),
                Encoding::Raw => String::new(),
            };
            reading.forgive(element, "AttachmentName", "a name", "none", "named after its content")?;
            name
        }
    };
    let (name, changed) = names.take(&written);
    let only_composed = changed && unicode_normalization::UnicodeNormalization::nfc(written.as_str()).eq(name.chars());
    if only_composed {
        reading.note_at(element, "AttachmentName", &format!("{} brought to composed form (NFC)", shown(&written)));
    } else if changed && reading.is_strict() {
        return Err(EdxmlError::UnsafeName { found: written, safe: name, at: reading.place(element) });
    } else if changed {
        reading.note_at(element, "AttachmentName", &format!("{} became {name:?}", shown(&written)));
    }
    let declared_content_type = from_either("ContentType");
    if let Some(declared) = &declared_content_type {
        // A declared ZIP describes the wrapping, which is as good as describing the file.
        let of_wrapping = encoding != Encoding::Raw && declared.eq_ignore_ascii_case("application/zip");
        if !of_wrapping && media::contradicts(declared, media_type) {
            let what = format!("{} is declared, but the bytes are {media_type}; the bytes count", shown(declared));
            reading.note_at(element, "ContentType", &what);
        }
    }
    if looks_passed_through_text(&bytes, media_type) {
        let what = "the file is full of U+FFFD: a system on its way treated it as text, and it is probably damaged";
        reading.note_at(element, "ContentTransferEncoded", what);
    }
    Ok(Attachment {
        original_name: changed.then_some(written),
        name,
        content_id,
        description: from_either("Description"),
        declared_content_type,
        media_type: media_type.to_owned(),
        encoding,
        bytes,
    })
}

/// Base64 in its strict alphabet; white space between is what pretty-printing does.
fn decode<'a>(content: &Element<'a>, label: &str, room: &Room, reading: &Reading<'a>) -> Result<Vec<u8>, EdxmlError> {
    if let Some(child) = content.children.first() {
        return Err(reading.malformed(child, "base64 text", "an element"));
    }
    let is_space = |b: &u8| matches!(b, b' ' | b'\t' | b'\r' | b'\n');
    let text = content.text.as_bytes();
    let symbols = text.iter().filter(|b| !is_space(b)).count() as u64;
    // Four symbols carry three bytes, the last four perhaps one.
    room.check(label, (symbols / 4 * 3).saturating_sub(2))?;
    let compact: Vec<u8> = text.iter().copied().filter(|b| !is_space(b)).collect();
    let bytes = STANDARD.decode(&compact).map_err(|error| {
        let is_symbol = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '/' | '=' | ' ' | '\t' | '\r' | '\n');
        let found = match content.text.chars().find(|c| !is_symbol(*c)) {
            Some(wrong) => format!("character {wrong:?}"),
            None => error.to_string(),
        };
        let field = format!("ContentTransferEncoded of attachment {}", shown(label));
        reading.bad_field(content, &field, "base64 (A-Z a-z 0-9 + / and = at the end)", &found)
    })?;
    room.check(label, bytes.len() as u64)?;
    Ok(bytes)
}

/// The ZIP reader's memory grows with the entries that an archive lists: they are counted before it opens them.
fn lists_more_than(bytes: &[u8], max: usize) -> bool {
    bytes.windows(4).filter(|window| window == b"PK\x01\x02").take(max.saturating_add(1)).count() > max
}

fn names(archive: &ZipArchive<Cursor<&[u8]>>) -> Vec<String> {
    archive.file_names_raw().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
}

/// Takes the one file out of a ZIP, unless the ZIP is the file.
fn unwrap(
    encoded: Vec<u8>,
    label: &str,
    room: &Room,
    limits: &Limits,
) -> Result<(Vec<u8>, Encoding, &'static str), EdxmlError> {
    let bad = |expected: &'static str, found: String| EdxmlError::BadArchive {
        attachment: label.to_owned(),
        expected,
        found,
    };
    let media_type = media::media_type(&encoded);
    if media_type != "application/zip" {
        return Ok((encoded, Encoding::Raw, media_type));
    }
    if lists_more_than(&encoded, limits.archive_entries) {
        return Err(bad("a ZIP with one entry", format!("more than {} entries", limits.archive_entries)));
    }
    let mut archive = ZipArchive::new(Cursor::new(encoded.as_slice()))
        .map_err(|error| bad("a ZIP that can be read", error.to_string()))?;
    let names = names(&archive);
    if names.iter().any(|name| name == "[Content_Types].xml" || name == "mimetype") {
        let package = media::package_type(&encoded, &names);
        return Ok((encoded, Encoding::Raw, package));
    }
    // The reader keeps one entry of each name, so two of the same name would look like one.
    if archive.has_duplicate_names() {
        return Err(bad("a ZIP with exactly one entry", "entries of the same name".to_owned()));
    }
    let [entry_name] = &names[..] else {
        return Err(bad("a ZIP with exactly one entry", format!("{} entries", names.len())));
    };
    let entry_name = entry_name.clone();
    let is_zip = |name: &str| extension(name).eq_ignore_ascii_case(".zip");
    if is_zip(label) && !is_zip(&entry_name) {
        // An archive that was attached as it is: its own name says so.
        return Ok((encoded, Encoding::Raw, "application/zip"));
    }
    let bytes = extract(&mut archive, label, room, limits, &bad)?;
    let media_type = media_of(&bytes, limits.archive_entries);
    Ok((bytes, Encoding::ZipWrapped { entry_name }, media_type))
}

fn extract(
    archive: &mut ZipArchive<Cursor<&[u8]>>,
    label: &str,
    room: &Room,
    limits: &Limits,
    bad: &dyn Fn(&'static str, String) -> EdxmlError,
) -> Result<Vec<u8>, EdxmlError> {
    /// Below this, what a file expands to is harmless whatever its ratio.
    const HARMLESS_BYTES: u64 = 1 << 20;
    const CHUNK_BYTES: u64 = 64 << 10;
    let mut entry =
        archive.by_index(0).map_err(|error| bad("an unencrypted entry that can be read", error.to_string()))?;
    if !entry.is_file() {
        return Err(bad("a file in the ZIP", "a folder or a link".to_owned()));
    }
    let compressed = entry.compressed_size();
    let by_ratio = compressed.saturating_mul(limits.expansion_ratio).max(HARMLESS_BYTES);
    // The declared size refuses at once; it may lie, so what really comes out is held to the same.
    let check = |found: u64| -> Result<(), EdxmlError> {
        if found > by_ratio {
            return Err(bad("an entry that expands less", format!("at least {found} bytes out of {compressed}")));
        }
        room.check(label, found)
    };
    check(entry.size())?;
    let mut bytes = Vec::new();
    loop {
        let read = (&mut entry)
            .take(CHUNK_BYTES)
            .read_to_end(&mut bytes)
            .map_err(|error| bad("an entry that unpacks without error", error.to_string()))?;
        check(bytes.len() as u64)?;
        if read == 0 {
            return Ok(bytes);
        }
    }
}

/// Whether a binary file carries the marks of having been decoded and encoded as text.
fn looks_passed_through_text(bytes: &[u8], media_type: &str) -> bool {
    const REPLACEMENT: &[u8] = "\u{fffd}".as_bytes();
    media_type == "application/pdf" && bytes.windows(3).filter(|w| *w == REPLACEMENT).take(16).count() == 16
}
