//! XML into a small tree of elements, with namespaces checked and everything bounded.
//!
//! Knows nothing of edXML. No document type is accepted at all, so there are no entities beyond the five predefined
//! ones and character references: nothing here can expand. Comments and processing instructions are read over.

use std::borrow::Cow;

use quick_xml::errors::{Error as XmlError, IllFormedError, SyntaxError};
use quick_xml::events::{BytesRef, BytesStart, Event};
use quick_xml::reader::Reader;

use super::error::{EdxmlError, Place, shown};
use super::limits::Limits;

const XML_NAMESPACE: &str = "http://www.w3.org/XML/1998/namespace";
const XMLNS_NAMESPACE: &str = "http://www.w3.org/2000/xmlns/";
/// Namespace declarations in scope at once; real files have three. Each element's prefix is looked up among them.
const MAX_BINDINGS: usize = 256;
/// The one element whose text is bounded by the file's size alone, because it is the attachment.
const CONTENT_ELEMENT: &str = "ContentTransferEncoded";

/// One element: local names only, with the namespace beside it.
#[derive(Debug)]
pub(super) struct Element<'a> {
    pub name: Box<str>,
    /// Empty where the element stands in no namespace.
    pub namespace: Box<str>,
    /// Local name and value, namespace declarations left out.
    pub attributes: Vec<(Box<str>, String)>,
    pub children: Vec<Element<'a>>,
    /// All character data directly inside, line ends as `\n`.
    pub text: Cow<'a, str>,
    /// Byte position of the start tag in the source.
    pub offset: usize,
}

impl<'a> Element<'a> {
    /// Stands for an element that is absent, so that its fields read as absent too.
    pub fn nothing() -> Self {
        Self {
            name: "".into(),
            namespace: "".into(),
            attributes: Vec::new(),
            children: Vec::new(),
            text: Cow::Borrowed(""),
            offset: 0,
        }
    }

    pub fn child(&self, name: &str) -> Option<&Element<'a>> {
        self.children.iter().find(|child| &*child.name == name)
    }

    pub fn all<'s>(&'s self, name: &'s str) -> impl Iterator<Item = &'s Element<'a>> {
        self.children.iter().filter(move |child| &*child.name == name)
    }

    /// The text without the white space that pretty-printing put around it.
    pub fn trimmed(&self) -> &str {
        trim(&self.text)
    }
}

/// Trims what XML calls white space, and nothing else.
pub(super) fn trim(text: &str) -> &str {
    text.trim_matches([' ', '\t', '\r', '\n'])
}

/// The file as text, without a byte order mark; the second value says whether there was one.
pub(super) fn source<'a>(bytes: &'a [u8], limits: &Limits) -> Result<(&'a str, bool), EdxmlError> {
    let found = bytes.len() as u64;
    if found > limits.file_bytes {
        return Err(EdxmlError::TooLarge { what: "the edXML file (bytes)".into(), found, max: limits.file_bytes });
    }
    let start = Place { line: 1, column: 1 };
    if bytes.starts_with(&[0xff, 0xfe]) || bytes.starts_with(&[0xfe, 0xff]) {
        return Err(malformed_at(start, "UTF-8", "UTF-16"));
    }
    let (body, had_bom) = match bytes.strip_prefix(b"\xef\xbb\xbf") {
        Some(rest) => (rest, true),
        None => (bytes, false),
    };
    let text = match std::str::from_utf8(body) {
        Ok(text) => text,
        Err(error) => {
            let valid = std::str::from_utf8(&body[..error.valid_up_to()]).unwrap_or("");
            // A declared encoding explains the bytes better than the bytes themselves do.
            let found = match declared_encoding(valid) {
                Some(encoding) if !encoding.eq_ignore_ascii_case("utf-8") => format!("encoding {}", shown(encoding)),
                _ => format!("byte 0x{:02x}", body[error.valid_up_to()]),
            };
            return Err(malformed_at(Place::of(valid, valid.len()), "UTF-8", &found));
        }
    };
    if let Some((offset, wrong)) = text.char_indices().find(|(_, c)| !is_xml_char(*c)) {
        let found = format!("character U+{:04X}", u32::from(wrong));
        return Err(malformed_at(Place::of(text, offset), "characters that XML 1.0 allows", &found));
    }
    Ok((text, had_bom))
}

/// Reads ` name="value" name='value'` to the letter of the grammar, white space before each; `None` where it departs.
fn name_value_pairs(mut text: &str) -> Option<Vec<(&str, &str)>> {
    let space = [' ', '\t', '\r', '\n'];
    let mut pairs = Vec::new();
    loop {
        let rest = text.trim_start_matches(space);
        if rest.is_empty() {
            return Some(pairs);
        }
        if rest.len() == text.len() {
            return None;
        }
        let (name, rest) = rest.split_once('=')?;
        let rest = rest.trim_start_matches(space);
        let quote = rest.chars().next().filter(|c| matches!(c, '"' | '\''))?;
        let (value, rest) = rest[1..].split_once(quote)?;
        pairs.push((name.trim_end_matches(space), value));
        text = rest;
    }
}

/// The encoding that the XML declaration at the very beginning names, if there is a good declaration.
fn declared_encoding(source: &str) -> Option<&str> {
    let (declaration, _) = source.strip_prefix("<?xml")?.split_once("?>")?;
    name_value_pairs(declaration)?.into_iter().find(|(name, _)| *name == "encoding").map(|(_, value)| value)
}

/// Whether XML 1.0 can carry this character at all.
pub(super) fn is_xml_char(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// Whether this is a name without a colon (Namespaces in XML, NCName).
pub(super) fn is_plain_name(name: &str) -> bool {
    let start = |c: char| {
        matches!(c, 'A'..='Z' | 'a'..='z' | '_' | '\u{c0}'..='\u{d6}' | '\u{d8}'..='\u{f6}' | '\u{f8}'..='\u{2ff}'
            | '\u{370}'..='\u{37d}' | '\u{37f}'..='\u{1fff}' | '\u{200c}'..='\u{200d}' | '\u{2070}'..='\u{218f}'
            | '\u{2c00}'..='\u{2fef}' | '\u{3001}'..='\u{d7ff}' | '\u{f900}'..='\u{fdcf}' | '\u{fdf0}'..='\u{fffd}'
            | '\u{10000}'..='\u{effff}')
    };
    let inner = |c: char| {
        start(c) || matches!(c, '0'..='9' | '-' | '.' | '\u{b7}' | '\u{300}'..='\u{36f}' | '\u{203f}'..='\u{2040}')
    };
    let mut chars = name.chars();
    chars.next().is_some_and(start) && chars.all(inner)
}

fn malformed_at(at: Place, expected: &str, found: &str) -> EdxmlError {
    EdxmlError::Malformed { at, expected: expected.to_owned(), found: found.to_owned() }
}

/// Parses the whole source into its root element.
pub(super) fn parse<'a>(source: &'a str, limits: &Limits) -> Result<Element<'a>, EdxmlError> {
    // The reader would silently drop a second mark.
    if source.starts_with('\u{feff}') {
        return Err(malformed_at(Place { line: 1, column: 1 }, "'<'", "a second byte order mark"));
    }
    Parser { source, limits, open: Vec::new(), bindings: Vec::new(), elements: 0, root: None }.run()
}

struct Parser<'a, 'l> {
    source: &'a str,
    limits: &'l Limits,
    /// Elements not yet closed, with their qualified name and how many bindings were known before them.
    open: Vec<(Element<'a>, String, usize)>,
    /// Prefix and namespace, innermost last.
    bindings: Vec<(String, String)>,
    elements: usize,
    root: Option<Element<'a>>,
}

impl<'a> Parser<'a, '_> {
    fn run(mut self) -> Result<Element<'a>, EdxmlError> {
        let mut reader = Reader::from_str(self.source);
        let config = reader.config_mut();
        config.check_comments = true;
        config.check_end_names = true;
        loop {
            let offset = position(reader.buffer_position());
            let event = reader.read_event().map_err(|e| self.ill_formed(&e, position(reader.error_position())))?;
            match event {
                Event::Start(tag) => self.start(&tag, offset)?,
                Event::Empty(tag) => {
                    self.start(&tag, offset)?;
                    self.end();
                }
                Event::End(_) => self.end(),
                Event::Text(text) => {
                    let raw = text.xml10_content();
                    if let Some(at) = raw.find("]]>") {
                        return Err(self.malformed(offset + at, "character data", "\"]]>\""));
                    }
                    self.text(raw, offset)?;
                }
                Event::CData(data) => {
                    if self.open.is_empty() {
                        return Err(self.malformed(offset, "one root element", "a CDATA section outside it"));
                    }
                    self.text(data.xml10_content(), offset)?;
                }
                Event::GeneralRef(reference) => self.reference(&reference, offset)?,
                Event::Decl(_) => self.declaration(offset)?,
                Event::PI(instruction) => {
                    if instruction.target().eq_ignore_ascii_case("xml") {
                        return Err(self.malformed(
                            offset,
                            "an XML declaration only at the very beginning",
                            "\"<?xml\"",
                        ));
                    }
                    if !is_plain_name(instruction.target()) {
                        let found = shown(instruction.target());
                        return Err(self.malformed(offset, "a processing instruction's name", &found));
                    }
                }
                Event::Comment(_) => {}
                Event::DocType(_) => {
                    return Err(self.malformed(offset, "no document type", "a DOCTYPE declaration"));
                }
                Event::Eof => break,
            }
        }
        if let Some((element, name, _)) = self.open.last() {
            let expected = format!("the end tag </{name}> of the element begun at {}", self.place(element.offset));
            return Err(self.malformed(self.source.len(), &expected, "the end of the file"));
        }
        self.root.take().ok_or_else(|| self.malformed(0, "an edXML element", "no element at all"))
    }

    fn place(&self, offset: usize) -> Place {
        Place::of(self.source, offset)
    }

    fn malformed(&self, offset: usize, expected: &str, found: &str) -> EdxmlError {
        malformed_at(self.place(offset), expected, found)
    }

    fn ill_formed(&self, error: &XmlError, offset: usize) -> EdxmlError {
        let (expected, found) = match error {
            XmlError::IllFormed(IllFormedError::MismatchedEndTag { expected, found }) => {
                (format!("the end tag </{expected}>"), format!("</{found}>"))
            }
            XmlError::IllFormed(IllFormedError::UnmatchedEndTag(found)) => {
                ("no end tag here".to_owned(), format!("</{found}>"))
            }
            XmlError::IllFormed(IllFormedError::DoubleHyphenInComment) => {
                ("a comment without \"--\" inside".to_owned(), "\"--\"".to_owned())
            }
            XmlError::IllFormed(IllFormedError::UnclosedReference) => {
                ("\"&\" written as \"&amp;\", or a reference closed by \";\"".to_owned(), "a lone \"&\"".to_owned())
            }
            XmlError::Syntax(SyntaxError::InvalidBangMarkup) => {
                ("a comment or a CDATA section".to_owned(), "\"<!\" and something else".to_owned())
            }
            XmlError::Syntax(unclosed) => ("markup that is closed".to_owned(), unclosed.to_string()),
            other => ("well-formed XML".to_owned(), other.to_string()),
        };
        self.malformed(offset, &expected, &found)
    }

    fn declaration(&self, offset: usize) -> Result<(), EdxmlError> {
        if offset != 0 {
            return Err(self.malformed(offset, "an XML declaration only at the very beginning", "\"<?xml\""));
        }
        let text = self.source.strip_prefix("<?xml").and_then(|rest| rest.split_once("?>")).map(|(text, _)| text);
        let pairs = text.and_then(name_value_pairs);
        let encoding = match pairs.as_deref() {
            Some([("version", "1.0")] | [("version", "1.0"), ("standalone", "yes" | "no")]) => None,
            Some(
                [("version", "1.0"), ("encoding", encoding)]
                | [("version", "1.0"), ("encoding", encoding), ("standalone", "yes" | "no")],
            ) => Some(*encoding),
            _ => {
                let expected = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>";
                return Err(self.malformed(0, expected, &shown(text.unwrap_or_default())));
            }
        };
        match encoding {
            None => Ok(()),
            Some(name) if name.eq_ignore_ascii_case("utf-8") || name.eq_ignore_ascii_case("utf8") => Ok(()),
            Some(other) => Err(self.malformed(0, "encoding \"UTF-8\"", &format!("encoding {}", shown(other)))),
        }
    }

    fn start(&mut self, tag: &BytesStart<'_>, offset: usize) -> Result<(), EdxmlError> {
        if self.open.is_empty() && self.root.is_some() {
            return Err(self.malformed(offset, "the end of the file after the root element", "another element"));
        }
        self.elements += 1;
        if self.elements > self.limits.elements {
            let max = self.limits.elements as u64;
            return Err(EdxmlError::TooLarge { what: "the number of elements".into(), found: max + 1, max });
        }
        if self.open.len() >= self.limits.depth {
            let max = self.limits.depth as u64;
            return Err(EdxmlError::TooLarge { what: "the depth of nested elements".into(), found: max + 1, max });
        }
        let known_before = self.bindings.len();
        let plain = self.attributes(tag, offset)?;
        let qualified = tag.name().as_ref().to_owned();
        let (prefix, local) = self.split(&qualified, offset)?;
        let namespace = match self.lookup(prefix) {
            Some(namespace) => namespace.into(),
            None if prefix.is_empty() => "".into(),
            None => return Err(self.unbound(prefix, &qualified, offset)),
        };
        let mut attributes: Vec<(Box<str>, String)> = Vec::new();
        let mut seen: Vec<(String, String)> = Vec::new();
        for (name, value) in plain {
            let (prefix, local) = self.split(&name, offset)?;
            // An unprefixed attribute is in no namespace, whatever the default is.
            let namespace = match self.lookup(prefix) {
                _ if prefix.is_empty() => String::new(),
                Some(namespace) => namespace.to_owned(),
                None => return Err(self.unbound(prefix, &name, offset)),
            };
            let expanded = (namespace, local.to_owned());
            if seen.contains(&expanded) {
                return Err(self.malformed(offset, "each attribute once", &format!("{} again", shown(&name))));
            }
            seen.push(expanded);
            attributes.push((local.into(), value));
        }
        let element = Element {
            name: local.into(),
            namespace,
            attributes,
            children: Vec::new(),
            text: Cow::Borrowed(""),
            offset,
        };
        self.open.push((element, qualified, known_before));
        Ok(())
    }

    /// The attributes that are not namespace declarations; declarations become bindings.
    fn attributes(&mut self, tag: &BytesStart<'_>, offset: usize) -> Result<Vec<(String, String)>, EdxmlError> {
        let mut plain = Vec::new();
        if name_value_pairs(tag.attributes_raw()).is_none() {
            let expected = "attributes written name=\"value\" with white space between";
            return Err(self.malformed(offset, expected, &shown(trim(tag.attributes_raw()))));
        }
        for (count, attribute) in tag.attributes().enumerate() {
            if count >= self.limits.attributes_per_element {
                let max = self.limits.attributes_per_element as u64;
                let what = "the number of attributes of one element".into();
                return Err(EdxmlError::TooLarge { what, found: max + 1, max });
            }
            let attribute =
                attribute.map_err(|e| self.malformed(offset, "attributes written name=\"value\"", &e.to_string()))?;
            let name = attribute.key.as_ref().to_owned();
            if attribute.value.contains('<') {
                return Err(self.malformed(offset, "\"&lt;\" in an attribute's value", "\"<\""));
            }
            let value = attribute.normalized_value(quick_xml::XmlVersion::Implicit1_0).map_err(|e| {
                self.malformed(offset, "only predefined entities and character references", &e.to_string())
            })?;
            if let Some(wrong) = value.chars().find(|c| !is_xml_char(*c)) {
                let found = format!("a reference to character U+{:04X}", u32::from(wrong));
                return Err(self.malformed(offset, "characters that XML 1.0 allows", &found));
            }
            match name.strip_prefix("xmlns") {
                Some("") => self.bind("", &value, offset)?,
                Some(rest) if rest.starts_with(':') => self.bind(&rest[1..], &value, offset)?,
                _ => plain.push((name, value.into_owned())),
            }
        }
        Ok(plain)
    }

    fn bind(&mut self, prefix: &str, namespace: &str, offset: usize) -> Result<(), EdxmlError> {
        let reserved = (prefix == "xml") != (namespace == XML_NAMESPACE)
            || prefix == "xmlns"
            || namespace == XMLNS_NAMESPACE
            || (namespace.is_empty() && !prefix.is_empty())
            || !(prefix.is_empty() || is_plain_name(prefix));
        if reserved {
            let found = format!("xmlns:{prefix}={}", shown(namespace));
            return Err(self.malformed(offset, "a namespace declaration that XML allows", &found));
        }
        if self.bindings.len() >= MAX_BINDINGS {
            let (what, max) = ("the number of namespace declarations in scope".into(), MAX_BINDINGS as u64);
            return Err(EdxmlError::TooLarge { what, found: max + 1, max });
        }
        self.bindings.push((prefix.to_owned(), namespace.to_owned()));
        Ok(())
    }

    fn lookup(&self, prefix: &str) -> Option<&str> {
        if prefix == "xml" {
            return Some(XML_NAMESPACE);
        }
        self.bindings.iter().rev().find(|(known, _)| known == prefix).map(|(_, namespace)| namespace.as_str())
    }

    fn unbound(&self, prefix: &str, name: &str, offset: usize) -> EdxmlError {
        let expected = format!("a declaration xmlns:{prefix}=\"…\" in scope");
        self.malformed(offset, &expected, &format!("{} with an unbound prefix", shown(name)))
    }

    fn split<'n>(&self, qualified: &'n str, offset: usize) -> Result<(&'n str, &'n str), EdxmlError> {
        let (prefix, local) = qualified.split_once(':').unwrap_or(("", qualified));
        let prefixed = qualified.len() != local.len();
        if !is_plain_name(local) || (prefixed && !is_plain_name(prefix)) {
            return Err(self.malformed(offset, "a name that XML allows", &shown(qualified)));
        }
        Ok((prefix, local))
    }

    fn end(&mut self) {
        // The reader has matched the end tag with its start tag, so there is one open.
        let Some((element, _, known_before)) = self.open.pop() else { return };
        self.bindings.truncate(known_before);
        match self.open.last_mut() {
            Some((parent, ..)) => parent.children.push(element),
            None => self.root = Some(element),
        }
    }

    fn text(&mut self, text: Cow<'a, str>, offset: usize) -> Result<(), EdxmlError> {
        let Some((element, ..)) = self.open.last_mut() else {
            let blank = text.len() - text.trim_start_matches([' ', '\t', '\r', '\n']).len();
            if blank == text.len() {
                return Ok(());
            }
            let expected = if self.root.is_some() { "the end of the file" } else { "an XML declaration or an element" };
            return Err(self.malformed(offset + blank, expected, &shown(trim(&text))));
        };
        if element.text.is_empty() {
            element.text = text;
        } else {
            element.text.to_mut().push_str(&text);
        }
        if element.text.len() > self.limits.text_bytes && &*element.name != CONTENT_ELEMENT {
            let what = format!("the text of {} (bytes)", element.name);
            let found = element.text.len() as u64;
            return Err(EdxmlError::TooLarge { what, found, max: self.limits.text_bytes as u64 });
        }
        Ok(())
    }

    fn reference(&mut self, reference: &BytesRef<'a>, offset: usize) -> Result<(), EdxmlError> {
        let resolved = match reference.resolve_char_ref() {
            Ok(Some(c)) if is_xml_char(c) => Some(c),
            Ok(None) => match &*reference.xml10_content() {
                "lt" => Some('<'),
                "gt" => Some('>'),
                "amp" => Some('&'),
                "apos" => Some('\''),
                "quot" => Some('"'),
                _ => None,
            },
            _ => None,
        };
        let name = format!("&{};", reference.xml10_content());
        let resolved = resolved.ok_or_else(|| {
            self.malformed(offset, "only predefined entities and character references", &shown(&name))
        })?;
        if self.open.is_empty() {
            return Err(self.malformed(offset, "an element", &shown(&name)));
        }
        self.text(Cow::Owned(resolved.to_string()), offset)
    }
}

/// The reader counts in `u64`; it reads from memory, so every position fits.
fn position(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
