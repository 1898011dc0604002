//! A status message: what a recipient (or, with 13, the sender) says about a document that was exchanged before.

use std::fmt;

use docaxis_protocol::{AgencyCode, Timestamp};
use serde_json::{Map, Value, json};

use super::document::response_code;
use super::error::{EdxmlError, Repair, shown};
use super::header::{File, at_most_one};
use super::rules::{Organ, Reading, StaffInfo, staff, text_of};
use super::schema;
use super::value::{Dated, Moment, write_moment};

/// The statuses of QCVN 102 that are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StatusCode {
    /// 01: the receiving software has it.
    Arrived,
    /// 02: refused, with a reason.
    Refused,
    /// 03: entered in the incoming register.
    Accepted,
    /// 04: assigned by a leader.
    Assigned,
    /// 05: in process.
    InProcess,
    /// 06: finished.
    Finished,
    /// 13: the sender asks to take the document back.
    TakeBack,
    /// 15: take-back or update agreed.
    ChangeAgreed,
    /// 16: take-back or update refused.
    ChangeRefused,
}

impl StatusCode {
    pub const ALL: [Self; 9] = [
        Self::Arrived,
        Self::Refused,
        Self::Accepted,
        Self::Assigned,
        Self::InProcess,
        Self::Finished,
        Self::TakeBack,
        Self::ChangeAgreed,
        Self::ChangeRefused,
    ];

    /// The two digits that stand in the file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Arrived => "01",
            Self::Refused => "02",
            Self::Accepted => "03",
            Self::Assigned => "04",
            Self::InProcess => "05",
            Self::Finished => "06",
            Self::TakeBack => "13",
            Self::ChangeAgreed => "15",
            Self::ChangeRefused => "16",
        }
    }
}

impl fmt::Display for StatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct StatusMessage {
    pub sender: Organ,
    /// Whom it is for: the agency whose document it is about.
    pub to: AgencyCode,
    pub to_spelled: String,
    pub code: StatusCode,
    pub description: String,
    pub time: Option<Moment>,
    /// The document's id as its sender wrote it.
    pub about_document: Option<String>,
    /// Number and notation as one, `7816/VPCP-TTDT`.
    pub about_code: Option<String>,
    pub about_date: Option<Dated>,
    pub staff: Option<StaffInfo>,
    /// The header as JSON with edXML's own field names.
    pub header: Map<String, Value>,
    pub warnings: Vec<Repair>,
}

/// The header of a status about `document` (a document's header), ready for [`super::export_status`].
pub fn status_header(
    sender: &AgencyCode,
    to: &AgencyCode,
    document: &Map<String, Value>,
    code: StatusCode,
    description: &str,
    time: Timestamp,
) -> Map<String, Value> {
    let text = |group: &str, name: &str| document.get(group).and_then(|g| g.get(name)).and_then(Value::as_str);
    let (number, notation) = (text("Code", "CodeNumber"), text("Code", "CodeNotation"));
    let mut about = Map::new();
    about.insert("OrganId".into(), json!(to));
    let number_and_notation: Vec<&str> = [number, notation].into_iter().flatten().filter(|t| !t.is_empty()).collect();
    about.insert("Code".into(), json!(number_and_notation.join("/")));
    if let Some(date) = text("PromulgationInfo", "PromulgationDate") {
        about.insert("PromulgationDate".into(), json!(date));
    }
    if let Some(id) = document.get("DocumentId") {
        about.insert("DocumentId".into(), id.clone());
    }
    let mut header = Map::new();
    header.insert("From".into(), json!({ "OrganId": sender }));
    header.insert("ResponseFor".into(), json!([about]));
    header.insert("StatusCode".into(), json!(code.as_str()));
    header.insert("Description".into(), json!(description));
    if let Some(time) = write_moment(time) {
        header.insert("Timestamp".into(), json!(time));
    }
    header
}

pub(super) fn read(file: &File<'_, '_>, reading: Reading<'_>) -> Result<StatusMessage, EdxmlError> {
    let mut reading = reading;
    let message = file.message_header;
    let header = file.to_json(&mut reading)?;
    reading.check_shape(message, schema::MESSAGE_HEADER)?;
    let missing = |name: &str| reading.malformed(message, &format!("{name} in a status message"), "none");
    let from = at_most_one(message, "From", &reading)?.ok_or_else(|| missing("From"))?;
    let about = at_most_one(message, "ResponseFor", &reading)?.ok_or_else(|| missing("ResponseFor"))?;
    let code_element = at_most_one(message, "StatusCode", &reading)?.ok_or_else(|| missing("StatusCode"))?;

    let sender = reading.organ(from, "From")?;
    let (to, to_spelled) = reading.code_in(about, "ResponseFor")?;
    let about_document = text_of(about, "DocumentId");
    let about_code = response_code(about, &mut reading)?;
    if about_document.is_none() && about_code.is_none() {
        return Err(reading.bad_field(about, "ResponseFor", "the DocumentId or the Code of a document", "neither"));
    }
    if about_document.is_none() {
        reading.forgive(about, "ResponseFor/DocumentId", "a document's id", "none", "known by its Code only")?;
    }
    let written = code_element.trimmed();
    let padded = format!("{written:0>2}");
    let code = StatusCode::ALL
        .into_iter()
        .find(|code| code.as_str() == padded)
        .ok_or_else(|| reading.bad_field(code_element, "StatusCode", "one of 01 to 06, 13, 15, 16", &shown(written)))?;
    if written != padded {
        let done = format!("read as {code}");
        reading.forgive(code_element, "StatusCode", "two digits", &shown(written), &done)?;
    }
    if code == StatusCode::Refused && text_of(message, "Description").is_none() {
        let done = "taken without a reason";
        reading.forgive(message, "Description", "the reason of a refusal", "none", done)?;
    }
    let time = reading.moment(message, "Timestamp", "Timestamp")?;
    if time.is_none() {
        reading.forgive(message, "Timestamp", "the time of the status", "none", "taken without a time")?;
    }
    if !file.attachments.is_empty() {
        reading.forgive(message, "AttachmentEncoded", "no attachments in a status", "some", "left out")?;
    }
    Ok(StatusMessage {
        sender,
        to,
        to_spelled,
        code,
        description: text_of(message, "Description").unwrap_or_default(),
        time,
        about_document,
        about_code,
        about_date: reading.date(about, "PromulgationDate", "ResponseFor/PromulgationDate")?,
        staff: staff(message),
        header,
        warnings: reading.into_repairs(),
    })
}
