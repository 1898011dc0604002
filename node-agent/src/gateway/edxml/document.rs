//! A document message: who sends what to whom, and its kind, with everything each kind says.

use docaxis_protocol::{AgencyCode, Kind};
use serde_json::{Map, Value};

use super::attachment::{self, Attachment};
use super::error::{EdxmlError, Repair, shown};
use super::header::{File, at_most_one};
use super::limits::Limits;
use super::rules::{Organ, Reading, StaffInfo, staff, text_of};
use super::schema;
use super::value::{Dated, Moment};
use super::xml::Element;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Promulgation {
    pub place: Option<String>,
    pub date: Option<Dated>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SignerInfo {
    /// TM., Q., KT., TL., TUQ. or free text.
    pub competence: Option<String>,
    pub position: Option<String>,
    pub full_name: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OtherInfo {
    pub sphere_of_promulgation: Option<String>,
    pub typer_notation: Option<String>,
    pub promulgation_amount: Option<String>,
    pub page_amount: Option<String>,
    pub direction: Option<String>,
    pub appendixes: Vec<String>,
}

/// The document that this one answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// As written: an answer may name an agency that no longer exists.
    pub organ_id: Option<String>,
    pub code: Option<String>,
    pub date: Option<Dated>,
    pub document_id: Option<String>,
}

/// One hub on the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace {
    pub organ_id: Option<String>,
    pub time: Option<Moment>,
}

/// A change to the list of recipients (kind update).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receiver {
    pub code: AgencyCode,
    pub spelled: String,
    /// ReceiverType 1; 0 takes the agency off the list.
    pub added: bool,
}

/// One document that this one replaces, and for whom (kind replace).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Replacement {
    pub document_id: String,
    pub organs: Vec<AgencyCode>,
}

/// What the message does to earlier ones.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bussiness {
    /// The document to be changed (kind update).
    pub target: Option<String>,
    /// The reason of a recall, an update or a replacement.
    pub reason: Option<String>,
    /// A paper copy follows.
    pub paper: bool,
    /// DocumentInfo: the document's data change (kind update).
    pub document_info: Option<String>,
    /// DocumentReceiver: the recipients change (kind update).
    pub document_receiver: Option<String>,
    pub receivers: Vec<Receiver>,
    pub replacements: Vec<Replacement>,
    pub staff: Option<StaffInfo>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Document {
    /// By BussinessDocType; never a status.
    pub kind: Kind,
    pub sender: Organ,
    /// At least one; each agency once.
    pub recipients: Vec<Organ>,
    /// Opaque: `000.00.00.G22,2015/09/30,7816/VPCP-TTDT`, a UUID or anything else.
    pub document_id: Option<String>,
    pub number: Option<String>,
    pub notation: Option<String>,
    pub promulgation: Promulgation,
    /// The type's name, which is the truth, and its number, which is a hint.
    pub type_name: Option<String>,
    pub type_number: Option<String>,
    pub subject: Option<String>,
    pub content: Option<String>,
    pub signer: SignerInfo,
    pub due_date: Option<Dated>,
    /// 0 to 4.
    pub priority: u8,
    pub other: OtherInfo,
    pub responses: Vec<Response>,
    pub steering_type: Option<String>,
    pub to_places: Vec<String>,
    pub traces: Vec<Trace>,
    pub bussiness: Bussiness,
    /// Something in the header marks a state secret; admission refuses it.
    pub secret: bool,
    /// The header as JSON with edXML's own field names: the envelope's `document`.
    pub header: Map<String, Value>,
    pub attachments: Vec<Attachment>,
    pub warnings: Vec<Repair>,
}

pub(super) fn read(file: &File<'_, '_>, reading: Reading<'_>, limits: &Limits) -> Result<Document, EdxmlError> {
    let mut reading = reading;
    let message = file.message_header;
    let header = file.to_json(&mut reading)?;
    let secret = header.get(schema::SECRET) == Some(&Value::Bool(true));
    reading.check_shape(message, schema::MESSAGE_HEADER)?;
    if let Some(traces) = file.traces {
        reading.check_shape(traces, schema::TRACE_HEADER_LIST)?;
    }
    let missing = |name: &str| reading.malformed(message, &format!("{name} in a document"), "none");
    let from = at_most_one(message, "From", &reading)?.ok_or_else(|| missing("From"))?;
    let sender = reading.organ(from, "From")?;
    let recipients = recipients(message, &mut reading, limits)?;
    for name in ["DocumentId", "Subject"] {
        if text_of(message, name).is_none() {
            reading.forgive(message, name, "a value", "none", "taken without")?;
        }
    }
    let none = Element::nothing();
    let part = |name: &str| message.child(name).unwrap_or(&none);
    let (code, promulgation, signer) = (part("Code"), part("PromulgationInfo"), part("SignerInfo"));
    let (document_type, other, places) = (part("DocumentType"), part("OtherInfo"), part("ToPlaces"));
    check_type(document_type, &mut reading);
    check_places(places, &mut reading)?;
    let (kind, bussiness) = bussiness(file, &mut reading)?;
    Ok(Document {
        kind,
        sender,
        recipients,
        document_id: text_of(message, "DocumentId"),
        number: text_of(code, "CodeNumber"),
        notation: text_of(code, "CodeNotation"),
        promulgation: Promulgation {
            place: text_of(promulgation, "Place"),
            date: reading.date(promulgation, "PromulgationDate", "PromulgationInfo/PromulgationDate")?,
        },
        type_name: text_of(document_type, "TypeName"),
        type_number: text_of(document_type, "Type"),
        subject: text_of(message, "Subject"),
        content: text_of(message, "Content"),
        signer: SignerInfo {
            competence: text_of(signer, "Competence"),
            position: text_of(signer, "Position"),
            full_name: text_of(signer, "FullName"),
        },
        due_date: reading.date(message, "DueDate", "DueDate")?,
        priority: priority(other, &mut reading)?,
        other: OtherInfo {
            sphere_of_promulgation: text_of(other, "SphereOfPromulgation"),
            typer_notation: text_of(other, "TyperNotation"),
            promulgation_amount: text_of(other, "PromulgationAmount"),
            page_amount: text_of(other, "PageAmount"),
            direction: text_of(other, "Direction"),
            appendixes: other.child("Appendixes").map(|list| texts(list, "Appendix")).unwrap_or_default(),
        },
        responses: responses(message, &mut reading)?,
        steering_type: text_of(message, "SteeringType"),
        to_places: texts(places, "Place"),
        traces: traces(file, &mut reading)?,
        bussiness,
        secret,
        header,
        attachments: attachment::read(file, &mut reading, limits)?,
        warnings: reading.into_repairs(),
    })
}

fn texts(parent: &Element<'_>, name: &str) -> Vec<String> {
    parent.all(name).map(|element| element.trimmed().to_owned()).filter(|text| !text.is_empty()).collect()
}

fn recipients<'a>(message: &Element<'a>, reading: &mut Reading<'a>, limits: &Limits) -> Result<Vec<Organ>, EdxmlError> {
    let mut recipients: Vec<Organ> = Vec::new();
    let mut seen = std::collections::BTreeMap::new();
    let found = message.all("To").count() as u64;
    let max = limits.recipients as u64;
    if found > max {
        return Err(EdxmlError::TooLarge { what: "the number of recipients".into(), found, max });
    }
    for element in message.all("To") {
        let organ = reading.organ(element, "To")?;
        if let Some(first) = seen.insert(organ.code.clone(), recipients.len()) {
            return Err(EdxmlError::DuplicateRecipient {
                code: organ.code.to_string(),
                first: recipients[first].spelled.clone(),
                again: organ.spelled,
                at: reading.place(element),
            });
        }
        recipients.push(organ);
    }
    if recipients.is_empty() {
        return Err(reading.malformed(message, "at least one To in a document", "none"));
    }
    Ok(recipients)
}

/// Senders often put the wrong number: the name is the truth, so no mode refuses this.
fn check_type<'a>(element: &Element<'a>, reading: &mut Reading<'a>) {
    let (Some(number), Some(name)) = (text_of(element, "Type"), text_of(element, "TypeName")) else { return };
    let same = |a: &str, b: &str| a.to_lowercase() == b.to_lowercase();
    let listed = schema::TYPE_NAMES.iter().find(|(known, _)| *known == number);
    if let Some((_, listed)) = listed.filter(|(_, listed)| !same(listed, &name)) {
        let what = format!("{number} stands for {listed:?}, but TypeName says {}; the name counts", shown(&name));
        reading.note_at(element, "DocumentType/Type", &what);
    }
}

fn check_places<'a>(element: &Element<'a>, reading: &mut Reading<'a>) -> Result<(), EdxmlError> {
    const MAX: usize = 1000;
    let found: usize = element.all("Place").map(|place| place.trimmed().chars().count()).sum();
    if found > MAX {
        let (expected, found) = (format!("at most {MAX} characters in all"), found.to_string());
        reading.forgive(element, "ToPlaces", &expected, &found, "kept whole")?;
    }
    Ok(())
}

fn priority<'a>(other: &Element<'a>, reading: &mut Reading<'a>) -> Result<u8, EdxmlError> {
    let Some(element) = other.child("Priority").filter(|element| !element.trimmed().is_empty()) else { return Ok(0) };
    match element.trimmed().parse() {
        Ok(priority @ 0..=4) if element.trimmed().len() == 1 => Ok(priority),
        _ => {
            let found = shown(element.trimmed());
            reading.forgive(element, "OtherInfo/Priority", "a digit from 0 to 4", &found, "taken as normal (0)")?;
            Ok(0)
        }
    }
}

/// The Code of a ResponseFor, which comes as text or as the pair of number and notation.
pub(super) fn response_code<'a>(
    element: &Element<'a>,
    reading: &mut Reading<'a>,
) -> Result<Option<String>, EdxmlError> {
    let Some(code) = element.child("Code") else { return Ok(None) };
    if code.children.is_empty() {
        return Ok(text_of(element, "Code"));
    }
    let joined = match (text_of(code, "CodeNumber"), text_of(code, "CodeNotation")) {
        (Some(number), Some(notation)) => format!("{number}/{notation}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => return Ok(None),
    };
    let done = format!("read as {}", shown(&joined));
    reading.forgive(code, "ResponseFor/Code", "number/notation as one text", "two elements", &done)?;
    Ok(Some(joined))
}

fn responses<'a>(message: &Element<'a>, reading: &mut Reading<'a>) -> Result<Vec<Response>, EdxmlError> {
    let mut responses = Vec::new();
    for element in message.all("ResponseFor") {
        let response = Response {
            organ_id: text_of(element, "OrganId"),
            code: response_code(element, reading)?,
            date: reading.date(element, "PromulgationDate", "ResponseFor/PromulgationDate")?,
            document_id: text_of(element, "DocumentId"),
        };
        // Templates leave the whole group empty.
        if response != (Response { organ_id: None, code: None, date: None, document_id: None }) {
            responses.push(response);
        }
    }
    Ok(responses)
}

fn traces<'a>(file: &File<'_, 'a>, reading: &mut Reading<'a>) -> Result<Vec<Trace>, EdxmlError> {
    let mut traces = Vec::new();
    for element in file.traces.iter().flat_map(|list| list.all("TraceHeader")) {
        traces.push(Trace {
            organ_id: text_of(element, "OrganId"),
            time: reading.moment(element, "Timestamp", "TraceHeader/Timestamp")?,
        });
    }
    Ok(traces)
}

fn bussiness<'a>(file: &File<'_, 'a>, reading: &mut Reading<'a>) -> Result<(Kind, Bussiness), EdxmlError> {
    let message = file.message_header;
    let element = file.traces.map(|list| at_most_one(list, "Bussiness", reading)).transpose()?.flatten();
    let Some(element) = element else {
        reading.forgive(message, "Bussiness", "what the message does", "no Bussiness", "taken as a new document")?;
        return Ok((Kind::New, Bussiness::default()));
    };
    let written = text_of(element, "BussinessDocType");
    let kind = match written.as_deref() {
        Some("0") => Kind::New,
        Some("1") => Kind::Recall,
        Some("2") => Kind::Update,
        Some("3") => Kind::Replace,
        None => {
            let field = "Bussiness/BussinessDocType";
            reading.forgive(element, field, "a digit from 0 to 3", "none", "taken as a new document")?;
            Kind::New
        }
        Some(other) => {
            let field = "Bussiness/BussinessDocType";
            return Err(reading.bad_field(element, field, "a digit from 0 to 3", &shown(other)));
        }
    };
    let paper = match text_of(element, "Paper").as_deref() {
        Some("1") => true,
        None | Some("0") => false,
        Some(other) => {
            reading.forgive(element, "Bussiness/Paper", "0 or 1", &shown(other), "taken as 0")?;
            false
        }
    };
    let none = Element::nothing();
    let info = element.child("BussinessDocumentInfo").unwrap_or(&none);
    let bussiness = Bussiness {
        target: text_of(element, "DocumentId"),
        reason: text_of(element, "BussinessDocReason"),
        paper,
        document_info: text_of(info, "DocumentInfo"),
        document_receiver: text_of(info, "DocumentReceiver"),
        receivers: receivers(info, reading)?,
        replacements: replacements(element, reading)?,
        staff: staff(element),
    };
    let wanted = match kind {
        Kind::Update if bussiness.target.is_none() => Some("DocumentId"),
        Kind::Replace if bussiness.replacements.is_empty() => Some("ReplacementInfoList"),
        Kind::Recall | Kind::Update | Kind::Replace if bussiness.reason.is_none() => Some("BussinessDocReason"),
        _ => None,
    };
    if let Some(name) = wanted {
        let expected = format!("a value in a message of kind {}", kind.as_str());
        reading.forgive(element, &format!("Bussiness/{name}"), &expected, "none", "taken without")?;
    }
    Ok((kind, bussiness))
}

fn receivers<'a>(info: &Element<'a>, reading: &mut Reading<'a>) -> Result<Vec<Receiver>, EdxmlError> {
    let mut receivers = Vec::new();
    for element in info.all("ReceiverList").flat_map(|list| list.all("Receiver")) {
        let (code, spelled) = reading.code_in(element, "Receiver")?;
        let added = match text_of(element, "ReceiverType").as_deref() {
            Some("0") => false,
            Some("1") => true,
            other => {
                let found = other.map_or_else(|| "none".to_owned(), shown);
                return Err(reading.bad_field(element, "Receiver/ReceiverType", "0 (removed) or 1 (added)", &found));
            }
        };
        receivers.push(Receiver { code, spelled, added });
    }
    Ok(receivers)
}

fn replacements<'a>(element: &Element<'a>, reading: &mut Reading<'a>) -> Result<Vec<Replacement>, EdxmlError> {
    let mut replacements = Vec::new();
    for info in element.all("ReplacementInfoList").flat_map(|list| list.all("ReplacementInfo")) {
        let Some(document_id) = text_of(info, "DocumentId") else {
            return Err(reading.bad_field(info, "ReplacementInfo/DocumentId", "the replaced document's id", "none"));
        };
        let mut organs = Vec::new();
        for organ in info.all("OrganIdList").flat_map(|list| list.all("OrganId")) {
            organs.push(reading.code(organ, "OrganIdList/OrganId")?.0);
        }
        replacements.push(Replacement { document_id, organs });
    }
    Ok(replacements)
}
