//! The frame of an edXML file, and its header as JSON with its own field names (the envelope's `document`).
//!
//! The fields of MessageHeader stand at the top, `TraceHeaderList` beside them, other children of edXMLHeader under
//! `edXMLHeader`, and `secret` says whether anything marks the document as a state secret. Unknown elements are kept;
//! attributes are `@name`. Left out are only the XML signature, which no longer fits anything once re-serialised, and
//! which stays in the original bytes.

use serde_json::{Map, Value};

use super::error::{EdxmlError, shown};
use super::rules::Reading;
use super::schema::{self, Field};
use super::xml::Element;

/// The parts of a file that matter, found by local name in any order.
pub(super) struct File<'e, 'a> {
    pub message_header: &'e Element<'a>,
    pub traces: Option<&'e Element<'a>>,
    /// Children of edXMLHeader that are neither of the two, nor the signature.
    others: Vec<&'e Element<'a>>,
    /// Manifest references: what the sender says is attached.
    pub references: Vec<&'e Element<'a>>,
    pub attachments: Vec<&'e Element<'a>>,
    secret: bool,
}

impl<'e, 'a> File<'e, 'a> {
    pub fn open(root: &'e Element<'a>, reading: &mut Reading<'a>) -> Result<Self, EdxmlError> {
        if &*root.name != "edXML" {
            return Err(reading.malformed(root, "the root element edXML", &shown(&root.name)));
        }
        if &*root.namespace != schema::NAMESPACE && !schema::LEGACY_NAMESPACES.contains(&&*root.namespace) {
            let found = format!("namespace {}", shown(&root.namespace));
            reading.forgive(root, "edXML", "a namespace of QCVN 102", &found, "read as if it were the standard's")?;
        }
        check_namespaces(root, root, reading)?;
        let envelope = one(root, "edXMLEnvelope", reading)?;
        let header = one(envelope, "edXMLHeader", reading)?;
        let message_header = one(header, "MessageHeader", reading)?;
        let traces = at_most_one(header, "TraceHeaderList", reading)?;
        let known = ["MessageHeader", "TraceHeaderList", "Signature"];
        let others = header.children.iter().filter(|child| !known.contains(&&*child.name)).collect();
        let body = at_most_one(envelope, "edXMLBody", reading)?;
        let manifest = body.map(|body| at_most_one(body, "edXMLManifest", reading)).transpose()?.flatten();
        let references = manifest.map(|manifest| manifest.all("Reference").collect()).unwrap_or_default();
        // Some writers put it inside the envelope.
        let mut encoded: Vec<_> = root.all("AttachmentEncoded").chain(envelope.all("AttachmentEncoded")).collect();
        encoded.dedup_by_key(|element| element.offset);
        let attachments = encoded.into_iter().flat_map(|list| list.all("Attachment")).collect();
        let secret = header.children.iter().any(|child| &*child.name != "Signature" && marks_secret(child));
        Ok(Self { message_header, traces, others, references, attachments, secret })
    }

    /// The header as JSON. Refuses an element that would hide another one.
    pub fn to_json(&self, reading: &mut Reading<'a>) -> Result<Map<String, Value>, EdxmlError> {
        let Value::Object(mut json) = object(self.message_header, schema::MESSAGE_HEADER, reading)? else {
            return Err(reading.malformed(self.message_header, "elements", "text"));
        };
        for reserved in [schema::TRACES, schema::HEADER, schema::SECRET] {
            if let Some(element) = self.message_header.child(reserved) {
                return Err(reading.malformed(element, "the fields of MessageHeader", &shown(reserved)));
            }
        }
        if let Some(traces) = self.traces {
            json.insert(schema::TRACES.into(), object(traces, schema::TRACE_HEADER_LIST, reading)?);
        }
        if !self.others.is_empty() {
            let mut others = Map::new();
            for element in &self.others {
                let value = object(element, &[], reading)?;
                insert(&mut others, element, value, false);
            }
            json.insert(schema::HEADER.into(), Value::Object(others));
        }
        json.insert(schema::SECRET.into(), Value::Bool(self.secret));
        Ok(json)
    }
}

pub(super) fn at_most_one<'e, 'a>(
    parent: &'e Element<'a>,
    name: &'static str,
    reading: &Reading<'a>,
) -> Result<Option<&'e Element<'a>>, EdxmlError> {
    let mut all = parent.children.iter().filter(|child| &*child.name == name);
    let first = all.next();
    match all.next() {
        Some(second) => Err(reading.malformed(second, &format!("one {name} in {}", parent.name), "another one")),
        None => Ok(first),
    }
}

fn one<'e, 'a>(
    parent: &'e Element<'a>,
    name: &'static str,
    reading: &Reading<'a>,
) -> Result<&'e Element<'a>, EdxmlError> {
    at_most_one(parent, name, reading)?
        .ok_or_else(|| reading.malformed(parent, &format!("{name} in {}", parent.name), "none"))
}

/// Says once that an element stands in a namespace of its own; the signature may.
fn check_namespaces<'a>(
    element: &Element<'a>,
    root: &Element<'a>,
    reading: &mut Reading<'a>,
) -> Result<bool, EdxmlError> {
    if &*element.name == "Signature" || &*element.namespace == schema::SIGNATURE_NAMESPACE {
        return Ok(false);
    }
    let known = [&*root.namespace, schema::NAMESPACE, schema::LEGACY_NAMESPACES[0], schema::LEGACY_NAMESPACES[1]];
    if !known.contains(&&*element.namespace) {
        let found = format!("namespace {}", shown(&element.namespace));
        let what = "elements are matched by their local name, whatever their namespace";
        reading.forgive(element, &element.name, "a namespace of QCVN 102", &found, what)?;
        return Ok(true);
    }
    for child in &element.children {
        if check_namespaces(child, root, reading)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// One element as JSON: text, or an object of its attributes and children.
fn object<'a>(element: &Element<'a>, fields: &'static [Field], reading: &mut Reading<'a>) -> Result<Value, EdxmlError> {
    let text = element.trimmed();
    if element.children.is_empty() && element.attributes.is_empty() && (fields.is_empty() || !text.is_empty()) {
        return Ok(Value::String(text.to_owned()));
    }
    let mut json = Map::new();
    for (name, value) in &element.attributes {
        let key = format!("@{name}");
        if json.contains_key(&key) {
            let expected = "attributes with different local names";
            reading.forgive(element, &element.name, expected, &shown(name), "the first is kept")?;
        } else {
            json.insert(key, Value::String(value.clone()));
        }
    }
    if !text.is_empty() {
        json.insert("#text".into(), Value::String(text.to_owned()));
    }
    for child in &element.children {
        let field = schema::find(fields, &child.name);
        let value = object(child, field.map_or(&[], |field| field.fields), reading)?;
        if field.is_some_and(|field| !field.many) && json.get(&*child.name) == Some(&value) {
            reading.forgive(child, &child.name, "the element once", "the same again", "taken once")?;
            continue;
        }
        if field.is_some_and(|field| !field.many) && json.contains_key(&*child.name) {
            return Err(reading.malformed(child, &format!("{} once in {}", child.name, element.name), "another one"));
        }
        insert(&mut json, child, value, field.is_some_and(|field| field.many));
    }
    Ok(Value::Object(json))
}

/// Adds a child's value; what stands several times becomes an array in the order of the file.
fn insert(json: &mut Map<String, Value>, child: &Element<'_>, value: Value, many: bool) {
    match json.get_mut(&*child.name) {
        None if many => {
            json.insert(child.name.to_string(), Value::Array(vec![value]));
        }
        None => {
            json.insert(child.name.to_string(), value);
        }
        Some(Value::Array(values)) => values.push(value),
        Some(first) => *first = Value::Array(vec![first.take(), value]),
    }
}

/// Parts of element names that speak of secrecy. The standard has no such field; senders' systems add their own.
const SECRECY_NAMES: [&str; 7] = ["secret", "secrecy", "security", "domat", "baomat", "độmật", "confidential"];
/// Values of such a field that say "not secret". Everything else counts as secret: refusing is the safe error.
const NOT_SECRET: [&str; 15] = [
    "",
    "0",
    "00",
    "false",
    "no",
    "none",
    "null",
    "normal",
    "public",
    "unclassified",
    "thường",
    "thuong",
    "không",
    "khong",
    "không mật",
];

fn marks_secret(element: &Element<'_>) -> bool {
    let speaks_of_it = |name: &str| {
        let name: String = name.to_lowercase().chars().filter(|c| c.is_alphanumeric()).collect();
        SECRECY_NAMES.iter().any(|part| name.contains(part))
    };
    let denies = |value: &str| NOT_SECRET.contains(&value.trim().to_lowercase().as_str());
    let by_text = element.children.is_empty() && speaks_of_it(&element.name) && !denies(element.trimmed());
    by_text
        || element.attributes.iter().any(|(name, value)| speaks_of_it(name) && !denies(value))
        || element.children.iter().any(|child| {
            // A group such as <SecurityLevel><Value>2</Value></SecurityLevel> speaks through its children.
            (speaks_of_it(&element.name) && child.children.is_empty() && !denies(child.trimmed()))
                || marks_secret(child)
        })
}
