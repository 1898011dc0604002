//! Reading single fields under a mode: what strict refuses and lenient forgives with a word, decided in one place.

use std::cell::OnceCell;

use docaxis_protocol::AgencyCode;

use super::Mode;
use super::error::{EdxmlError, Place, Repair, shown};
use super::schema::{self, Field};
use super::value::{Dated, Moment, Spelling, parse_date, parse_moment};
use super::xml::Element;

/// Repairs that one file may list; a file with more is told so in the last.
const MAX_REPAIRS: usize = 500;

/// An agency as a message names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Organ {
    pub code: AgencyCode,
    /// The code as the sender wrote it.
    pub spelled: String,
    pub in_charge: Option<String>,
    pub name: Option<String>,
    pub address: Option<String>,
    pub email: Option<String>,
    pub telephone: Option<String>,
    pub fax: Option<String>,
    pub website: Option<String>,
}

/// The clerk who handled the message at its sender.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StaffInfo {
    pub department: Option<String>,
    pub staff: Option<String>,
    pub email: Option<String>,
    pub mobile: Option<String>,
    pub department_id: Option<String>,
    pub staff_id: Option<String>,
}

/// One reading of one file: its mode, and what had to be forgiven so far.
pub(super) struct Reading<'a> {
    source: &'a str,
    mode: Mode,
    repairs: Vec<Repair>,
    line_starts: OnceCell<Vec<usize>>,
}

/// An element's text, or `None` where it is absent or empty.
pub(super) fn text_of(parent: &Element<'_>, name: &str) -> Option<String> {
    parent.child(name).map(Element::trimmed).filter(|text| !text.is_empty()).map(str::to_owned)
}

impl<'a> Reading<'a> {
    pub fn new(source: &'a str, mode: Mode) -> Self {
        Self { source, mode, repairs: Vec::new(), line_starts: OnceCell::new() }
    }

    pub fn is_strict(&self) -> bool {
        self.mode == Mode::Strict
    }

    /// What was forgiven, in the order of the file; what concerns the whole file comes first.
    pub fn into_repairs(mut self) -> Vec<Repair> {
        self.repairs.sort_by_key(|repair| repair.at);
        self.repairs
    }

    /// Like [`Place::of`], for many questions about one file. In very long lines the column counts bytes.
    pub fn place(&self, element: &Element<'a>) -> Place {
        let starts = self.line_starts.get_or_init(|| {
            let breaks = self.source.bytes().enumerate().filter(|(_, b)| *b == b'\n');
            std::iter::once(0).chain(breaks.map(|(at, _)| at + 1)).collect()
        });
        let line = starts.partition_point(|start| *start <= element.offset);
        let start = starts[line.saturating_sub(1)];
        let before = self.source.get(start..element.offset).unwrap_or("");
        let column = if before.len() > 4096 { before.len() } else { before.chars().count() };
        Place { line, column: column + 1 }
    }

    pub fn malformed(&self, element: &Element<'a>, expected: &str, found: &str) -> EdxmlError {
        EdxmlError::Malformed { at: self.place(element), expected: expected.to_owned(), found: found.to_owned() }
    }

    pub fn bad_field(&self, element: &Element<'a>, field: &str, expected: &str, found: &str) -> EdxmlError {
        EdxmlError::Field {
            field: field.to_owned(),
            at: self.place(element),
            expected: expected.to_owned(),
            found: found.to_owned(),
        }
    }

    /// Says something that no mode refuses.
    pub fn note(&mut self, field: &str, what: &str) {
        self.push(Repair { field: field.to_owned(), at: None, what: what.to_owned() });
    }

    pub fn note_at(&mut self, element: &Element<'a>, field: &str, what: &str) {
        let at = Some(self.place(element));
        self.push(Repair { field: field.to_owned(), at, what: what.to_owned() });
    }

    /// Refuses in strict mode; otherwise goes on and remembers what was done.
    pub fn forgive(
        &mut self,
        element: &Element<'a>,
        field: &str,
        expected: &str,
        found: &str,
        done: &str,
    ) -> Result<(), EdxmlError> {
        if self.is_strict() {
            return Err(self.bad_field(element, field, expected, found));
        }
        self.note_at(element, field, &format!("expected {expected}, found {found}; {done}"));
        Ok(())
    }

    fn push(&mut self, repair: Repair) {
        match self.repairs.len() {
            n if n < MAX_REPAIRS => self.repairs.push(repair),
            MAX_REPAIRS => {
                let what = format!("more than {MAX_REPAIRS} repairs; the others are not listed");
                self.repairs.push(Repair { field: "the file".into(), at: None, what });
            }
            _ => {}
        }
    }

    /// Parses an agency code. "null" and nothing are refused in every mode: no one can be reached by them.
    pub fn code(&mut self, element: &Element<'a>, field: &str) -> Result<(AgencyCode, String), EdxmlError> {
        let spelled = element.trimmed();
        let (code, changed) =
            AgencyCode::lenient(spelled).map_err(|e| self.bad_field(element, field, e.expected, &shown(spelled)))?;
        if changed {
            let done = format!("read as {code}");
            self.forgive(element, field, "an agency code in capitals", &shown(spelled), &done)?;
        }
        Ok((code, spelled.to_owned()))
    }

    /// The code in the `OrganId` of `parent`.
    pub fn code_in(&mut self, parent: &Element<'a>, field: &str) -> Result<(AgencyCode, String), EdxmlError> {
        match parent.child("OrganId") {
            Some(element) => self.code(element, &format!("{field}/OrganId")),
            None => Err(self.bad_field(parent, &format!("{field}/OrganId"), "an agency code", "no OrganId")),
        }
    }

    pub fn organ(&mut self, element: &Element<'a>, field: &str) -> Result<Organ, EdxmlError> {
        let (code, spelled) = self.code_in(element, field)?;
        Ok(Organ {
            code,
            spelled,
            in_charge: text_of(element, "OrganizationInCharge"),
            name: text_of(element, "OrganName"),
            address: text_of(element, "OrganAdd"),
            email: text_of(element, "Email"),
            telephone: text_of(element, "Telephone"),
            fax: text_of(element, "Fax"),
            website: text_of(element, "Website"),
        })
    }

    /// A date that may be missing; what is no date stays as text.
    pub fn date(&mut self, parent: &Element<'a>, name: &str, field: &str) -> Result<Option<Dated>, EdxmlError> {
        let Some(element) = parent.child(name).filter(|element| !element.trimmed().is_empty()) else {
            return Ok(None);
        };
        let text = element.trimmed().to_owned();
        let expected = "a date written yyyy/MM/dd";
        let date = match parse_date(&text) {
            Some((date, Spelling::Standard)) => Some(date),
            Some((date, Spelling::Other)) => {
                self.forgive(element, field, expected, &shown(&text), &format!("read as {date}"))?;
                Some(date)
            }
            None => {
                self.forgive(element, field, expected, &shown(&text), "kept as text, without a date")?;
                None
            }
        };
        Ok(Some(Dated { text, date }))
    }

    /// A time that may be missing; what is no time stays as text.
    pub fn moment(&mut self, parent: &Element<'a>, name: &str, field: &str) -> Result<Option<Moment>, EdxmlError> {
        let Some(element) = parent.child(name).filter(|element| !element.trimmed().is_empty()) else {
            return Ok(None);
        };
        let text = element.trimmed().to_owned();
        let expected = "a time written yyyy/MM/dd HH:mm:ss";
        let time = match parse_moment(&text) {
            Some((time, Spelling::Standard)) => Some(time),
            Some((time, Spelling::Other)) => {
                self.forgive(element, field, expected, &shown(&text), &format!("read as {time}"))?;
                Some(time)
            }
            None => {
                self.forgive(element, field, expected, &shown(&text), "kept as text, without a time")?;
                None
            }
        };
        Ok(Some(Moment { text, time }))
    }

    /// Holds every known field to its length (Decree 30/2020, appendix VI) and to being text where text belongs.
    pub fn check_shape(&mut self, parent: &Element<'a>, fields: &'static [Field]) -> Result<(), EdxmlError> {
        for element in &parent.children {
            let Some(field) = schema::find(fields, &element.name) else { continue };
            let path = format!("{}/{}", parent.name, field.name);
            if field.fields.is_empty() && !element.children.is_empty() {
                // A response's Code comes as text and as the pair of number and notation.
                if field.name != "Code" {
                    self.forgive(element, &path, "text", "elements", "kept in the header as they are")?;
                }
                continue;
            }
            let found = element.trimmed().chars().count();
            if let Some(max) = field.max_chars.filter(|max| found > *max) {
                let (expected, found) = (format!("at most {max} characters"), format!("{found}"));
                self.forgive(element, &path, &expected, &found, "kept whole")?;
            }
            self.check_shape(element, field.fields)?;
        }
        Ok(())
    }
}

pub(super) fn staff(parent: &Element<'_>) -> Option<StaffInfo> {
    let element = parent.child("StaffInfo")?;
    Some(StaffInfo {
        department: text_of(element, "Department"),
        staff: text_of(element, "Staff"),
        email: text_of(element, "Email"),
        mobile: text_of(element, "Mobile"),
        department_id: text_of(element, "DepartmentId"),
        staff_id: text_of(element, "StaffId"),
    })
}
