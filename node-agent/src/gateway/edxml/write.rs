//! Writing edXML: the standard's order and namespace, attachments wrapped in a ZIP, the same bytes for the same input.
//!
//! Strict on the way out: what XML cannot carry is refused with the field's name instead of being dropped.

use std::io::{Cursor, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipWriter};

use super::attachment::{Attachment, Encoding};
use super::error::{EdxmlError, shown};
use super::name::{extension, safe_name};
use super::schema::{self, Field};
use super::xml::{is_plain_name, is_xml_char, trim};

/// Deeper than any header; bounds the recursion over JSON that came from elsewhere.
const MAX_DEPTH: usize = 48;

/// Writes a document message from its header (as [`super::Document::header`] holds it, which is the envelope's
/// `document`) and its attachments.
pub fn export(header: &Map<String, Value>, attachments: &[Attachment]) -> Result<Vec<u8>, EdxmlError> {
    let mut out = Writer::begin();
    out.header(header)?;
    out.open("edXMLBody");
    out.line("<edXMLManifest version=\"1.0\">");
    out.depth += 1;
    let ids: Vec<String> = content_ids(attachments);
    for (attachment, id) in attachments.iter().zip(&ids) {
        out.open("Reference");
        out.text("ContentId", id)?;
        out.text("ContentType", declared(attachment))?;
        out.text("AttachmentName", checked_name(attachment)?)?;
        out.optional("Description", attachment.description.as_deref())?;
        out.close("Reference");
    }
    out.close("edXMLManifest");
    out.close("edXMLBody");
    out.close("edXMLEnvelope");
    if !attachments.is_empty() {
        out.open("AttachmentEncoded");
        for (index, (attachment, id)) in attachments.iter().zip(&ids).enumerate() {
            out.open("Attachment");
            out.text("ContentId", id)?;
            out.text("AttachmentName", checked_name(attachment)?)?;
            out.optional("Description", attachment.description.as_deref())?;
            out.text("ContentType", declared(attachment))?;
            let wrapped = wrap(attachment, index)?;
            out.text("ContentTransferEncoded", &STANDARD.encode(wrapped))?;
            out.close("Attachment");
        }
        out.close("AttachmentEncoded");
    }
    Ok(out.finish())
}

/// Writes a status message from its header (as [`super::StatusMessage::header`] holds it).
pub fn export_status(header: &Map<String, Value>) -> Result<Vec<u8>, EdxmlError> {
    if !header.contains_key("StatusCode") {
        return Err(EdxmlError::Unwritable {
            field: "StatusCode".into(),
            expected: "a status code",
            found: "none".into(),
        });
    }
    let mut out = Writer::begin();
    out.header(header)?;
    out.close("edXMLEnvelope");
    Ok(out.finish())
}

/// The ids as given; those that are missing or stand twice become `cid:1`, `cid:2`, ...
fn content_ids(attachments: &[Attachment]) -> Vec<String> {
    let mut ids: Vec<String> = Vec::new();
    let mut next = 1_usize;
    for attachment in attachments {
        let given = trim(&attachment.content_id);
        let mut id = given.to_owned();
        while id.is_empty()
            || ids.contains(&id)
            || (id != given && attachments.iter().any(|a| trim(&a.content_id) == id))
        {
            id = format!("cid:{next}");
            next += 1;
        }
        ids.push(id);
    }
    ids
}

fn declared(attachment: &Attachment) -> &str {
    attachment.declared_content_type.as_deref().unwrap_or(&attachment.media_type)
}

fn checked_name(attachment: &Attachment) -> Result<&str, EdxmlError> {
    match safe_name(&attachment.name) {
        (_, false) => Ok(&attachment.name),
        (safe, true) => Err(EdxmlError::Unwritable {
            field: "AttachmentName".into(),
            expected: "a safe file name",
            found: format!("{}, which would have to become {safe:?}", shown(&attachment.name)),
        }),
    }
}

/// The file in a ZIP with one entry, dated the same whenever it is written.
fn wrap(attachment: &Attachment, index: usize) -> Result<Vec<u8>, EdxmlError> {
    let unwritable = |error: zip::result::ZipError| EdxmlError::Unwritable {
        field: format!("attachment {}", shown(&attachment.name)),
        expected: "a file that a ZIP can hold",
        found: error.to_string(),
    };
    let ending = extension(&attachment.name);
    let entry_name = match &attachment.encoding {
        Encoding::ZipWrapped { entry_name } if !safe_name(entry_name).1 && reads_back(entry_name, ending) => {
            entry_name.clone()
        }
        _ => format!("{}{ending}", index + 1),
    };
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Deflated)
        .last_modified_time(DateTime::default())
        .unix_permissions(0o644);
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    zip.start_file(entry_name, options).map_err(unwritable)?;
    zip.write_all(&attachment.bytes).map_err(|error| unwritable(error.into()))?;
    Ok(zip.finish().map_err(unwritable)?.into_inner())
}

/// Whether an importer unwraps this entry again: not the mark of an office document, and an archive's name around
/// another file means that the archive was meant.
fn reads_back(entry_name: &str, ending: &str) -> bool {
    let office = matches!(entry_name, "[Content_Types].xml" | "mimetype");
    !office && (!ending.eq_ignore_ascii_case(".zip") || extension(entry_name).eq_ignore_ascii_case(".zip"))
}

struct Writer {
    out: String,
    depth: usize,
}

impl Writer {
    fn begin() -> Self {
        let mut writer = Self { out: String::new(), depth: 0 };
        writer.line("<?xml version=\"1.0\" encoding=\"UTF-8\"?>");
        writer.line(&format!("<edXML xmlns=\"{}\">", schema::NAMESPACE));
        writer.depth = 1;
        writer.open("edXMLEnvelope");
        writer
    }

    fn finish(mut self) -> Vec<u8> {
        self.close("edXML");
        self.out.into_bytes()
    }

    fn line(&mut self, markup: &str) {
        self.out.extend(std::iter::repeat_n("  ", self.depth));
        self.out.push_str(markup);
        self.out.push('\n');
    }

    fn open(&mut self, name: &str) {
        self.line(&format!("<{name}>"));
        self.depth += 1;
    }

    fn close(&mut self, name: &str) {
        self.depth -= 1;
        self.line(&format!("</{name}>"));
    }

    fn text(&mut self, name: &str, text: &str) -> Result<(), EdxmlError> {
        let escaped = escape(name, trim(text))?;
        self.line(&format!("<{name}>{escaped}</{name}>"));
        Ok(())
    }

    fn optional(&mut self, name: &str, text: Option<&str>) -> Result<(), EdxmlError> {
        text.map_or(Ok(()), |text| self.text(name, text))
    }

    fn header(&mut self, header: &Map<String, Value>) -> Result<(), EdxmlError> {
        if !matches!(header.get(schema::SECRET), None | Some(Value::Bool(false) | Value::Null)) {
            return Err(EdxmlError::Secret);
        }
        self.open("edXMLHeader");
        let beside = [schema::TRACES, schema::HEADER, schema::SECRET];
        let message = header.iter().filter(|(name, _)| !beside.contains(&name.as_str()));
        let message: Map<String, Value> = message.map(|(name, value)| (name.clone(), value.clone())).collect();
        self.element("MessageHeader", &Value::Object(message), schema::MESSAGE_HEADER)?;
        if let Some(traces) = header.get(schema::TRACES) {
            self.element(schema::TRACES, traces, schema::TRACE_HEADER_LIST)?;
        }
        if let Some(others) = header.get(schema::HEADER) {
            let others = others.as_object().ok_or_else(|| unwritable(schema::HEADER, "an object", others))?;
            for (name, value) in others {
                self.element(name, value, &[])?;
            }
        }
        self.close("edXMLHeader");
        Ok(())
    }

    fn element(&mut self, name: &str, value: &Value, fields: &[Field]) -> Result<(), EdxmlError> {
        if !is_plain_name(name) {
            return Err(EdxmlError::Unwritable {
                field: shown(name),
                expected: "a name that XML allows",
                found: shown(name),
            });
        }
        match value {
            Value::Null => Ok(()),
            Value::String(text) => self.text(name, text),
            Value::Bool(flag) => self.text(name, &flag.to_string()),
            Value::Number(number) => self.text(name, &number.to_string()),
            Value::Array(values) => values.iter().try_for_each(|value| match value {
                Value::Array(_) => Err(unwritable(name, "values without a list inside a list", value)),
                value => self.element(name, value, fields),
            }),
            Value::Object(members) => self.group(name, members, fields),
        }
    }

    fn group(&mut self, name: &str, members: &Map<String, Value>, fields: &[Field]) -> Result<(), EdxmlError> {
        if self.depth > MAX_DEPTH {
            return Err(EdxmlError::TooLarge {
                what: format!("the depth of {name}"),
                found: self.depth as u64,
                max: MAX_DEPTH as u64,
            });
        }
        let mut tag = format!("<{name}");
        for (key, value) in members {
            let Some(attribute) = key.strip_prefix('@') else { continue };
            let text = value.as_str().filter(|_| is_plain_name(attribute) && attribute != "xmlns");
            let text = text.ok_or_else(|| unwritable(key, "an attribute with a text", value))?;
            tag.push_str(&format!(" {attribute}=\"{}\"", escape(key, text)?));
        }
        tag.push('>');
        let text = match members.get("#text") {
            None => "",
            Some(value) => value.as_str().ok_or_else(|| unwritable(name, "text", value))?,
        };
        let text = escape(name, trim(text))?;
        let is_child = |key: &str| !key.starts_with('@') && key != "#text";
        if !members.keys().any(|key| is_child(key)) {
            self.line(&format!("{tag}{text}</{name}>"));
            return Ok(());
        }
        self.line(&format!("{tag}{text}"));
        self.depth += 1;
        for field in fields {
            if let Some(value) = members.get(field.name) {
                self.element(field.name, value, field.fields)?;
            }
        }
        for (key, value) in members.iter().filter(|(key, _)| is_child(key) && schema::find(fields, key).is_none()) {
            self.element(key, value, &[])?;
        }
        self.close(name);
        Ok(())
    }
}

fn unwritable(field: &str, expected: &'static str, found: &Value) -> EdxmlError {
    let kind = match found {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    EdxmlError::Unwritable { field: field.to_owned(), expected, found: kind.to_owned() }
}

/// Escapes for text and attribute values alike. A carriage return would be read back as a line feed, and in attributes
/// all white space as spaces, unless written as references.
fn escape(field: &str, text: &str) -> Result<String, EdxmlError> {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' => escaped.push_str("&#9;"),
            '\n' => escaped.push_str("&#10;"),
            '\r' => escaped.push_str("&#13;"),
            c if is_xml_char(c) => escaped.push(c),
            c => {
                return Err(EdxmlError::Unwritable {
                    field: field.to_owned(),
                    expected: "characters that XML 1.0 allows",
                    found: format!("character U+{:04X}", u32::from(c)),
                });
            }
        }
    }
    Ok(escaped)
}
