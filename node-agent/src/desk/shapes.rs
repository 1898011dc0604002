//! What comes in and goes out as JSON.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use docaxis_protocol::directory::DirectoryEntry;
use docaxis_protocol::envelope::{Chain, Kind, PartRole, Relation, StatusReport};
use docaxis_protocol::{AgencyCode, DispatchId, Event, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::problem::Problem;
use crate::compose::{Draft, DraftPart, Source};
use crate::mailbox::{AgencyRow, EvidenceRow, MailboxError};

fn new() -> Kind {
    Kind::New
}

fn document() -> PartRole {
    PartRole::Document
}

fn octets() -> String {
    "application/octet-stream".into()
}

/// `POST /v1/dispatches`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DraftJson {
    from: AgencyCode,
    to: Vec<AgencyCode>,
    #[serde(default)]
    partial: bool,
    #[serde(default = "new")]
    kind: Kind,
    #[serde(default)]
    priority: u8,
    #[serde(default)]
    not_before: Option<Timestamp>,
    #[serde(default)]
    document: Map<String, Value>,
    #[serde(default)]
    parts: Vec<PartJson>,
    #[serde(default)]
    expires: Option<Timestamp>,
    #[serde(default)]
    relates: Vec<Relation>,
    #[serde(default)]
    status: Option<StatusReport>,
    /// Refuse it if a document was sent under the same name before.
    #[serde(default)]
    unless_sent_before: bool,
}

/// A part by its absolute path, or its bytes. A path is taken only because the peer is the same user on the same
/// machine: it could read the file itself.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PartJson {
    name: String,
    #[serde(default = "octets")]
    media_type: String,
    #[serde(default = "document")]
    role: PartRole,
    #[serde(default)]
    path: Option<PathBuf>,
    #[serde(default)]
    base64: Option<String>,
}

impl DraftJson {
    pub fn into_draft(self, idempotency_key: Option<String>, progress_key: Option<String>) -> Result<Draft, Problem> {
        Ok(Draft {
            from: self.from,
            to: self.to,
            partial: self.partial,
            kind: self.kind,
            priority: self.priority,
            not_before: self.not_before,
            document: self.document,
            parts: self.parts.into_iter().map(PartJson::into_part).collect::<Result<_, _>>()?,
            expires: self.expires,
            relates: self.relates,
            status: self.status,
            progress_key,
            idempotency_key,
            unless_sent_before: self.unless_sent_before,
            checked: false,
            gives_up: None,
        })
    }
}

impl PartJson {
    fn into_part(self) -> Result<DraftPart, Problem> {
        let wrong = |text: String| Err(Problem::malformed(format!("part {:?}: {text}", self.name)));
        let source = match (self.path, self.base64) {
            (Some(path), None) if path.is_absolute() => Source::File(path),
            (Some(path), None) => return wrong(format!("path {path:?} is not absolute")),
            (None, Some(text)) => match STANDARD.decode(text) {
                Ok(bytes) => Source::Bytes(bytes),
                Err(error) => return wrong(format!("its base64: {error}")),
            },
            _ => return wrong("it needs either path or base64".into()),
        };
        Ok(DraftPart { name: self.name, media_type: self.media_type, role: self.role, source })
    }
}

#[derive(Debug, Serialize)]
pub(super) struct Made {
    pub id: DispatchId,
    /// Documents that were sent under the same name before: a warning.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sent_before: Vec<DispatchId>,
}

/// `POST /v1/dispatches/{id}/status`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatusJson {
    /// 02 to 06, 15 or 16.
    pub code: String,
    pub recipient: AgencyCode,
    /// Why, in words; needed for 02.
    #[serde(default)]
    pub description: String,
    /// The reason code of a 02; `other` if absent.
    #[serde(default)]
    pub reason: Option<String>,
}

/// `POST /v1/dispatches/{id}/open`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OpenJson {
    pub recipient: AgencyCode,
}

/// `POST /v1/dispatches/{id}/recall`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecallJson {
    /// From whom; from all if empty.
    #[serde(default)]
    pub to: Vec<AgencyCode>,
    pub reason: String,
}

#[derive(Debug, Serialize)]
pub(super) struct EvidenceJson {
    leaf: u64,
    event: Event,
    time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    recipient: Option<AgencyCode>,
    /// The signed bytes, in base64.
    bytes: String,
    signature: String,
    /// Certificates of the recipient's seal in DER, the leaf first, where there is a statement.
    #[serde(skip_serializing_if = "Option::is_none")]
    statement_chain: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proof: Option<String>,
}

impl From<EvidenceRow> for EvidenceJson {
    fn from(row: EvidenceRow) -> Self {
        Self {
            leaf: row.leaf,
            event: row.event,
            time: row.time,
            recipient: row.recipient,
            bytes: STANDARD.encode(&row.signed.bytes),
            signature: STANDARD.encode(row.signed.signature.0),
            statement_chain: row.statement_chain.as_ref().map(ders),
            proof: row.proof,
        }
    }
}

fn ders(chain: &Chain) -> Vec<String> {
    chain.0.iter().map(|certificate| STANDARD.encode(&certificate.0)).collect()
}

/// The directory's entry as it was signed.
#[derive(Debug, Serialize)]
pub(super) struct AgencyJson {
    code: AgencyCode,
    #[serde(flatten)]
    entry: DirectoryEntry,
}

impl TryFrom<AgencyRow> for AgencyJson {
    type Error = MailboxError;

    fn try_from(row: AgencyRow) -> Result<Self, MailboxError> {
        let entry = row.entry()?;
        Ok(Self { code: row.code, entry })
    }
}
