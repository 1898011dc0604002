//! What a dispatch is about: the earlier one that it recalls, updates, replaces or reports on (domain.md's edXML
//! BussinessDocType 1 to 3 and status codes). The form alone is judged here; whose the earlier dispatch is, the exchange
//! and the receiving node look up.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::envelope::{Envelope, Kind};
use crate::id::DispatchId;
use crate::reason::{Reason, ReasonCode};

/// How one dispatch stands to an earlier one, as `relates[].rel` spells it.
pub mod rel {
    pub const REPLIES_TO: &str = "replies-to";
    pub const RECALLS: &str = "recalls";
    pub const UPDATES: &str = "updates";
    pub const REPLACES: &str = "replaces";
    pub const CONCERNS: &str = "concerns";
}

/// The most dispatches that one may replace.
pub const MAX_REPLACED: usize = 100;

/// A business status that travels as a dispatch of kind `status`. 01 is the handover itself, 02 and 03 are statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum StatusCode {
    /// A leader has assigned it.
    #[serde(rename = "04")]
    Assigned,
    #[serde(rename = "05")]
    InProcess,
    #[serde(rename = "06")]
    Finished,
    /// The sender asks to take the document back.
    #[serde(rename = "13")]
    TakeBack,
    /// The recipient agrees to a recall or an update; of a recalled document the body is destroyed.
    #[serde(rename = "15")]
    Agreed,
    /// The recipient declines it.
    #[serde(rename = "16")]
    Declined,
}

impl StatusCode {
    pub const ALL: [Self; 6] =
        [Self::Assigned, Self::InProcess, Self::Finished, Self::TakeBack, Self::Agreed, Self::Declined];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Assigned => "04",
            Self::InProcess => "05",
            Self::Finished => "06",
            Self::TakeBack => "13",
            Self::Agreed => "15",
            Self::Declined => "16",
        }
    }

    /// Whether a recipient reports it to the sender; else the sender asks it of a recipient.
    pub const fn is_recipients(self) -> bool {
        !matches!(self, Self::TakeBack)
    }

    /// Whether it says how far the work on the document has come. These follow one another and never go back.
    pub const fn is_progress(self) -> bool {
        matches!(self, Self::Assigned | Self::InProcess | Self::Finished)
    }
}

impl fmt::Display for StatusCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A status that no dispatch carries.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("status {0:?} does not travel as a dispatch; 04, 05, 06, 13, 15 and 16 do")]
pub struct NoStatusCode(pub String);

impl FromStr for StatusCode {
    type Err = NoStatusCode;
    fn from_str(text: &str) -> Result<Self, NoStatusCode> {
        Self::ALL.into_iter().find(|code| code.as_str() == text).ok_or_else(|| NoStatusCode(text.to_owned()))
    }
}

/// What an envelope says that it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// A document of its own.
    Itself,
    Recall(DispatchId),
    Update(DispatchId),
    /// Each once, in the envelope's order.
    Replace(Vec<DispatchId>),
    Status(StatusCode, DispatchId),
}

impl About {
    /// The dispatches that must be known, and whose sender or recipient this one's sender must be.
    pub fn earlier(&self) -> &[DispatchId] {
        match self {
            Self::Itself => &[],
            Self::Recall(one) | Self::Update(one) | Self::Status(_, one) => std::slice::from_ref(one),
            Self::Replace(all) => all,
        }
    }

    /// Whether only the sender of the earlier dispatch may send this. Otherwise only one of its recipients may.
    pub const fn is_senders(&self) -> bool {
        match self {
            Self::Status(code, _) => !code.is_recipients(),
            _ => true,
        }
    }
}

impl Envelope {
    /// Reads what the dispatch is about, or says why kind, relations and status do not go together.
    pub fn about(&self) -> Result<About, Reason> {
        let malformed = |text: String| Err(ReasonCode::Malformed.because(text));
        let kind = self.kind.as_str();
        if self.kind != Kind::Status && self.status.is_some() {
            return malformed(format!("a dispatch of kind {kind} carries a status; only kind status does"));
        }
        let wanted = match self.kind {
            Kind::New => return Ok(About::Itself),
            Kind::Recall => rel::RECALLS,
            Kind::Update => rel::UPDATES,
            Kind::Replace => rel::REPLACES,
            Kind::Status => rel::CONCERNS,
        };
        let mut earlier: Vec<DispatchId> = Vec::new();
        for relation in self.relates.iter().filter(|relation| relation.rel == wanted) {
            if relation.dispatch == self.id {
                return malformed(format!("dispatch {} {wanted} itself", self.id));
            }
            if !earlier.contains(&relation.dispatch) {
                earlier.push(relation.dispatch);
            }
            if earlier.len() > MAX_REPLACED {
                return malformed(format!("it {wanted} more than {MAX_REPLACED} dispatches"));
            }
        }
        if self.kind == Kind::Replace && !earlier.is_empty() {
            return Ok(About::Replace(earlier));
        }
        let [one] = earlier[..] else {
            let found = earlier.len();
            return malformed(format!("a dispatch of kind {kind} {wanted} exactly one dispatch; this one {found}"));
        };
        match (self.kind, &self.status) {
            (Kind::Recall, _) => Ok(About::Recall(one)),
            (Kind::Update, _) => Ok(About::Update(one)),
            (_, None) => malformed("a dispatch of kind status has no status".into()),
            (_, Some(_)) if !self.parts.is_empty() => {
                malformed(format!("a status has no parts; this one has {}", self.parts.len()))
            }
            (_, Some(status)) => match status.code.parse() {
                Ok(code) => Ok(About::Status(code, one)),
                Err(error) => malformed(error.to_string()),
            },
        }
    }

    /// Why the sender recalls, updates or replaces, as edXML says it in `TraceHeaderList/Bussiness`; a `Bussiness` at the top
    /// is read as well, as agents once wrote it. Empty if it does not say.
    pub fn business_reason(&self) -> &str {
        let traces = self.document.get("TraceHeaderList");
        let places = [traces.and_then(|traces| traces.get("Bussiness")), self.document.get("Bussiness")];
        let mut said =
            places.into_iter().flatten().filter_map(|bussiness| bussiness.get("BussinessDocReason")?.as_str());
        said.next().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope::{Relation, Sender, StatusReport, TYPE};
    use crate::time::Timestamp;

    fn id(n: u8) -> DispatchId {
        DispatchId::from_parts(Timestamp::from_unix_ms(1_795_318_200_000), [n; 10])
    }

    fn envelope(kind: Kind, relates: &[(&str, u8)], status: Option<&str>) -> Envelope {
        let created = Timestamp::from_unix_ms(1_795_318_200_000);
        let relation = |(rel, n): &(&str, u8)| Relation { rel: (*rel).into(), dispatch: id(*n), document_id: None };
        Envelope {
            kind_of_bytes: TYPE.into(),
            exchange: "docaxis.example/vn".parse().unwrap(),
            id: id(0),
            created,
            expires: created.plus(std::time::Duration::from_secs(60)),
            sender: Sender { agency: "000.00.00.G22".parse().unwrap(), node: "g22".parse().unwrap() },
            recipients: vec!["H37.DN.001".parse().unwrap()],
            kind,
            priority: 0,
            partial: false,
            not_before: None,
            document: Default::default(),
            relates: relates.iter().map(relation).collect(),
            status: status.map(|code| StatusReport { code: code.into(), description: String::new(), time: created }),
            parts: vec![],
            encryption: None,
            salt: "AA==".into(),
        }
    }

    #[test]
    fn each_kind_names_what_it_is_about_and_nothing_else_counts() {
        let about = |kind, relates: &[(&str, u8)], status| envelope(kind, relates, status).about();
        assert_eq!(about(Kind::New, &[("replies-to", 1)], None), Ok(About::Itself));
        assert_eq!(about(Kind::Recall, &[("recalls", 1), ("replies-to", 2)], None), Ok(About::Recall(id(1))));
        assert_eq!(about(Kind::Recall, &[("recalls", 1), ("recalls", 1)], None), Ok(About::Recall(id(1))));
        assert_eq!(about(Kind::Update, &[("updates", 3)], None), Ok(About::Update(id(3))));
        let replaced = About::Replace(vec![id(3), id(1)]);
        assert_eq!(about(Kind::Replace, &[("replaces", 3), ("replaces", 1), ("replaces", 3)], None), Ok(replaced));
        for code in StatusCode::ALL {
            let expected = About::Status(code, id(1));
            assert_eq!(about(Kind::Status, &[("concerns", 1)], Some(code.as_str())), Ok(expected));
        }
    }

    #[test]
    fn the_reason_is_read_where_edxml_has_it_and_where_it_once_stood() {
        let reason = |document: serde_json::Value| {
            let document = document.as_object().cloned().unwrap();
            Envelope { document, ..envelope(Kind::Recall, &[("recalls", 1)], None) }.business_reason().to_owned()
        };
        let said = |why: &str| serde_json::json!({"Bussiness": {"BussinessDocType": "1", "BussinessDocReason": why}});
        assert_eq!(reason(serde_json::json!({"TraceHeaderList": said("nhầm")})), "nhầm");
        assert_eq!(reason(said("nhầm")), "nhầm");
        assert_eq!(reason(serde_json::json!({"TraceHeaderList": {"Bussiness": {}}})), "");
    }

    #[test]
    fn kind_relations_and_status_that_do_not_go_together_are_malformed() {
        let refused = |kind, relates: &[(&str, u8)], status| {
            let reason = envelope(kind, relates, status).about().unwrap_err();
            assert_eq!(reason.code, "malformed");
            reason.text
        };
        assert!(refused(Kind::Recall, &[], None).contains("exactly one"));
        assert!(refused(Kind::Recall, &[("recalls", 1), ("recalls", 2)], None).contains("this one 2"));
        assert!(refused(Kind::Recall, &[("updates", 1)], None).contains("this one 0"));
        assert!(refused(Kind::Recall, &[("recalls", 0)], None).contains("itself"));
        assert!(refused(Kind::Replace, &[], None).contains("exactly one"));
        assert!(refused(Kind::New, &[], Some("05")).contains("kind new"));
        assert!(refused(Kind::Status, &[("concerns", 1)], None).contains("no status"));
        for code in ["01", "02", "03", "07", ""] {
            assert!(refused(Kind::Status, &[("concerns", 1)], Some(code)).contains("does not travel"), "{code}");
        }
    }
}
