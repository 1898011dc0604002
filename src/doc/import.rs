//! edXML in and out: a file becomes a dispatch or a reported status; a dispatch becomes a file.

use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use clap::Args;
use docaxis_broker::env::{Env as _, SystemEnv};
use docaxis_node_agent::gateway::edxml::{
    self, Attachment, Document, EdxmlError, Limits, Message, Mode, StatusMessage, safe_name,
};
use docaxis_protocol::about::rel;
use docaxis_protocol::{DispatchId, Kind, PartRole, ReasonCode};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{AgentArg, Report, pages, report};
use crate::control::Control;
use crate::out::{Failure, Out};

#[derive(Debug, Args)]
pub struct ImportArgs {
    #[command(flatten)]
    agent: AgentArg,
    /// Refuse what the standard does not allow, instead of repairing and naming it.
    #[arg(long)]
    strict: bool,
    /// Only say what would be done.
    #[arg(long)]
    dry_run: bool,
    /// The edXML files.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// What became of one file.
#[derive(Debug, Clone, Serialize)]
pub struct Imported {
    pub file: PathBuf,
    /// new, recall, update, replace or status; nothing if the file does not read.
    pub kind: Option<&'static str>,
    /// queued, imported or refused.
    pub result: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<DispatchId>,
    /// A refusal's code, and what it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub message: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hint: String,
    /// Every repair that a lenient reading made.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repairs: Vec<String>,
    #[serde(skip)]
    exit: u8,
}

impl Imported {
    fn refused(file: &Path, kind: Option<&'static str>, failure: Failure) -> Self {
        Self {
            file: file.to_owned(),
            kind,
            result: "refused",
            id: None,
            code: Some(failure.code),
            message: failure.message,
            hint: failure.hint,
            repairs: Vec::new(),
            exit: failure.exit,
        }
    }

    fn done(file: &Path, kind: &'static str, result: &'static str, message: String) -> Self {
        Self {
            file: file.to_owned(),
            kind: Some(kind),
            result,
            id: None,
            code: None,
            message,
            hint: String::new(),
            repairs: Vec::new(),
            exit: 0,
        }
    }

    fn words(&self) -> String {
        let id = self.id.map_or_else(String::new, |id| format!("  {id}"));
        let code = self.code.as_ref().map_or_else(String::new, |code| format!(" [{code}]"));
        let mut words = format!("{}: {}{code}{id}  {}\n", self.file.display(), self.result, self.message);
        if !self.hint.is_empty() {
            words += &format!("  {}\n", self.hint);
        }
        for repair in &self.repairs {
            words += &format!("  repaired: {repair}\n");
        }
        words
    }
}

pub fn run(args: &ImportArgs, out: Out) -> Result<(), Failure> {
    let control = args.agent.control()?;
    let mode = if args.strict { Mode::Strict } else { Mode::Lenient };
    let all: Vec<Imported> = args.files.iter().map(|file| import_file(&control, file, mode, args.dry_run)).collect();
    if !out.json
        && let [Imported { id: Some(id), repairs, .. }] = &all[..]
    {
        repairs.iter().for_each(|repair| out.talk(format!("repaired: {repair}")));
        return out.data(&all, id);
    }
    let words: String = all.iter().map(Imported::words).collect();
    let refused: Vec<&Imported> = all.iter().filter(|one| one.exit != 0).collect();
    match refused[..] {
        [] => out.data(&all, words),
        [only] if all.len() == 1 => {
            let failure = Failure::new(ReasonCode::Other, format!("{}: {}", only.file.display(), only.message));
            let code = only.code.clone().unwrap_or_default();
            Err(Failure { code, hint: only.hint.clone(), exit: only.exit, ..failure })
        }
        _ => {
            out.data(&all, words)?;
            out.talk(format!("{} of {} files were refused", refused.len(), all.len()));
            Err(Failure::told(5))
        }
    }
}

/// Imports one file. Whatever is wrong with it is a result, not an end.
pub fn import_file(control: &Control, file: &Path, mode: Mode, dry_run: bool) -> Imported {
    let bytes = match std::fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) => return Imported::refused(file, None, Failure::new(ReasonCode::NotFound, error.to_string())),
    };
    let message = match edxml::import(&bytes, mode, &Limits::default()) {
        Ok(message) => message,
        Err(error) => return Imported::refused(file, None, not_edxml(&error)),
    };
    let repairs: Vec<String> = message.warnings().iter().map(ToString::to_string).collect();
    let imported = match message {
        Message::Document(document) => take_document(control, file, *document, &bytes, dry_run),
        Message::Status(status) => take_status(control, file, &status, dry_run),
    };
    Imported { repairs, ..imported }
}

fn not_edxml(error: &EdxmlError) -> Failure {
    Failure::new(error.code(), error.to_string()).hint(error.hint())
}

fn take_document(control: &Control, file: &Path, document: Document, original: &[u8], dry_run: bool) -> Imported {
    let kind = document.kind.as_str();
    let relates = match relates(control, &document) {
        Ok(relates) => relates,
        Err(failure) => return Imported::refused(file, Some(kind), failure),
    };
    if dry_run {
        let to: Vec<&str> = document.recipients.iter().map(|organ| organ.code.as_str()).collect();
        let text = format!("would go from {} to {}", document.sender.code, to.join(", "));
        return Imported::done(file, kind, "imported", text);
    }
    match queue(control, file, (&document, relates), original) {
        Ok((id, before)) => {
            let result = if document.kind == Kind::New { "queued" } else { "imported" };
            let warning = match before[..] {
                [] => String::new(),
                _ => format!("warning: a document of the same id or number was sent before: {}", before.join(", ")),
            };
            Imported { id: Some(id), ..Imported::done(file, kind, result, warning) }
        }
        Err(failure) => Imported::refused(file, Some(kind), failure),
    }
}

/// Hands a document to the agent: attachments as parts, and the file itself as it came.
fn queue(
    control: &Control,
    file: &Path,
    (document, relates): (&Document, Vec<Value>),
    original: &[u8],
) -> Result<(DispatchId, Vec<String>), Failure> {
    let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o700)).tempdir()?;
    let mut parts = Vec::new();
    let mut add = |name: &str, media_type: &str, role: &str, bytes: &[u8]| -> Result<(), Failure> {
        let path = folder.path().join(parts.len().to_string());
        std::fs::File::create(&path)?.write_all(bytes)?;
        parts.push(json!({"name": name, "media_type": media_type, "role": role, "path": path}));
        Ok(())
    };
    for (n, attachment) in document.attachments.iter().enumerate() {
        let role = if n == 0 { "document" } else { "appendix" };
        add(&attachment.name, &attachment.media_type, role, &attachment.bytes)?;
    }
    let file_name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    add(&safe_name(&file_name).0, "application/xml", "original-edxml", original)?;
    let to: Vec<&str> = document.recipients.iter().map(|organ| organ.code.as_str()).collect();
    let draft = json!({
        "from": document.sender.code, "to": to, "kind": document.kind, "priority": document.priority,
        "document": document.header, "parts": parts, "relates": relates,
    });
    made(control, &draft)
}

/// Queues a draft; says which documents were sent under the same name before.
fn made(control: &Control, draft: &Value) -> Result<(DispatchId, Vec<String>), Failure> {
    let queued: Value = control.post("/v1/dispatches", draft, None)?;
    let id = queued["id"].as_str().unwrap_or_default();
    let id = id.parse().map_err(|e| Failure::other(format!("the agent answered without an id: {e}")))?;
    let before = queued["sent_before"].as_array().into_iter().flatten().filter_map(Value::as_str);
    Ok((id, before.map(str::to_owned).collect()))
}

/// The dispatches that a recall, an update or a replacement is about, found by the document ids that it names.
fn relates(control: &Control, document: &Document) -> Result<Vec<Value>, Failure> {
    let bussiness = &document.bussiness;
    let replaced = || bussiness.replacements.iter().map(|one| Some(one.document_id.clone())).collect();
    let (rel, documents): (_, Vec<Option<String>>) = match document.kind {
        Kind::New | Kind::Status => return Ok(vec![]),
        Kind::Recall => (rel::RECALLS, vec![document.document_id.clone()]),
        Kind::Update => (rel::UPDATES, vec![bussiness.target.clone()]),
        Kind::Replace => (rel::REPLACES, replaced()),
    };
    let related = |name: Option<String>| {
        let id = found(control, "out", document.sender.code.as_str(), &name)?;
        Ok(json!({"rel": rel, "dispatch": id, "document_id": name}))
    };
    documents.into_iter().map(related).collect()
}

/// 02 and 03 become statements about the dispatch that they name; 01 says what the handover has said already.
fn take_status(control: &Control, file: &Path, status: &StatusMessage, dry_run: bool) -> Imported {
    let code = status.code.as_str();
    let about = named(&status.about_document);
    match code {
        "01" => {
            let text = "01 is said by the handover itself, with the recipient's seal: nothing is left to send";
            Imported::done(file, "status", "imported", text.into())
        }
        "02" | "03" if dry_run => {
            Imported::done(file, "status", "imported", format!("would report {code} about {about}"))
        }
        "02" | "03" => match state(control, status) {
            Ok(id) => {
                let text = format!("{code} reported about {about}");
                Imported { id: Some(id), ..Imported::done(file, "status", "imported", text) }
            }
            Err(failure) => Imported::refused(file, Some("status"), failure),
        },
        _ if dry_run => Imported::done(file, "status", "imported", format!("would send {code} about {about}")),
        _ => match further(control, status) {
            Ok(id) => {
                let text = format!("{code} queued about {about}");
                Imported { id: Some(id), ..Imported::done(file, "status", "imported", text) }
            }
            Err(failure) => Imported::refused(file, Some("status"), failure),
        },
    }
}

fn state(control: &Control, status: &StatusMessage) -> Result<DispatchId, Failure> {
    let id = found(control, "in", status.sender.code.as_str(), &status.about_document)?;
    let said = match status.code.as_str() {
        "02" => Report::Refused(ReasonCode::Other, status.description.clone()),
        _ => Report::Registered,
    };
    report(control, id, Some(&status.sender.code), &said)?;
    Ok(id)
}

/// 04 to 06, 15 and 16 of a recipient, and 13 of the sender.
fn further(control: &Control, status: &StatusMessage) -> Result<DispatchId, Failure> {
    let (who, code) = (status.sender.code.as_str(), status.code.as_str());
    if code != "13" {
        let id = found(control, "in", who, &status.about_document)?;
        let said = Report::Further(code.to_owned(), status.description.clone());
        report(control, id, Some(&status.sender.code), &said)?;
        return Ok(id);
    }
    let id = found(control, "out", who, &status.about_document)?;
    let time = SystemEnv.now();
    let draft = json!({
        "from": who, "to": [status.to], "kind": "status",
        "relates": [{"rel": rel::CONCERNS, "dispatch": id, "document_id": status.about_document}],
        "status": {"code": code, "description": status.description, "time": time},
    });
    Ok(made(control, &draft)?.0)
}

/// The newest dispatch that `who` sent or received from here under this document id.
fn found(control: &Control, which: &str, who: &str, document_id: &Option<String>) -> Result<DispatchId, Failure> {
    if document_id.is_none() {
        return Err(Failure::new(ReasonCode::Malformed, "the file does not say which document it is about"));
    }
    for summary in pages(control, which, None)?.iter().filter(|summary| summary["kind"] != "status") {
        let shown: Value = control.get(&format!("/v1/dispatches/{}", summary["id"].as_str().unwrap_or_default()))?;
        let ours = match which {
            "out" => shown["sender"] == who && !shown["outgoing"].is_null(),
            _ => shown["incoming"].as_array().is_some_and(|all| all.iter().any(|view| view["recipient"] == who)),
        };
        let same = shown["document"]["DocumentId"].as_str() == document_id.as_deref();
        // A recall bears the id of what it recalls.
        if ours && same && shown["kind"] != "recall" {
            let id = shown["id"].as_str().unwrap_or_default();
            return id.parse().map_err(|e| Failure::other(format!("the agent answered without an id: {e}")));
        }
    }
    let did = if which == "out" { "sent" } else { "received" };
    let text = format!("{who} {did} no document {} at this node", named(document_id));
    Err(Failure::new(ReasonCode::NotFound, text).hint(format!("Import it at the node that {did} the document.")))
}

fn named(document_id: &Option<String>) -> &str {
    document_id.as_deref().unwrap_or("(without an id)")
}

/// A dispatch as an edXML file: its header and its parts, without the original file that may have come with it.
pub fn export(control: &Control, id: DispatchId) -> Result<Vec<u8>, Failure> {
    let shown: Value = control.get(&format!("/v1/dispatches/{id}"))?;
    let empty = Map::new();
    let header = shown["document"].as_object().unwrap_or(&empty);
    let original = serde_json::to_value(PartRole::OriginalEdxml).unwrap_or_default();
    let mut attachments = Vec::new();
    for part in shown["parts"].as_array().into_iter().flatten().filter(|part| part["role"] != original) {
        let bytes = control.bytes(&format!("/v1/dispatches/{id}/parts/{}", part["n"]))?;
        attachments.push(Attachment::new(part["name"].as_str().unwrap_or_default(), None, bytes));
    }
    edxml::export(&complete(header, &shown), &attachments).map_err(|e| not_edxml(&e))
}

/// The header with what the exchange knows better: sender, recipients, and an id where the document has none.
fn complete(header: &Map<String, Value>, shown: &Value) -> Map<String, Value> {
    let mut header = header.clone();
    header.entry("From").or_insert_with(|| json!({"OrganId": shown["sender"]}));
    header.entry("To").or_insert_with(|| {
        shown["recipients"].as_array().into_iter().flatten().map(|code| json!({"OrganId": code})).collect()
    });
    header.entry("DocumentId").or_insert_with(|| shown["id"].clone());
    header
}
