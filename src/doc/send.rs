//! `docaxis doc send`: files and a few words about them become a dispatch.

use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use clap::Args;
use docaxis_broker::env::{Env as _, SystemEnv};
use docaxis_node_agent::TransferView;
use docaxis_node_agent::gateway::edxml::safe_name;
use docaxis_protocol::{AgencyCode, ReasonCode, Timestamp};
use serde_json::{Value, json};

use super::{AgentArg, parse_duration, wait_watching};
use crate::agency::ask_agent;
use crate::control::Control;
use crate::out::{Failure, Out};
use crate::progress::{self, Progress};

#[derive(Debug, Args)]
pub struct SendArgs {
    #[command(flatten)]
    agent: AgentArg,
    /// The sending agency; the agent must act for it.
    #[arg(long)]
    from: AgencyCode,
    /// A recipient, by any of its codes or by its name, which may be without accents; repeat it for several.
    #[arg(long, required = true, value_name = "CODE_OR_NAME")]
    to: Vec<String>,
    /// Send it to those who can be reached, although others cannot: unknown, locked. Each of these fails at once, and
    /// `doc show` says why. Without it, one of them keeps the whole dispatch back.
    #[arg(long)]
    partial: bool,
    /// The document's number.
    #[arg(long)]
    number: Option<String>,
    /// The document's notation, such as VPCP-TTDT.
    #[arg(long)]
    notation: Option<String>,
    /// The kind of document in words, such as "Công văn".
    #[arg(long = "type")]
    type_name: Option<String>,
    /// What it is about.
    #[arg(long)]
    subject: String,
    /// 0 normal, 1 urgent, 2 very urgent, 3 flash, 4 flash and timed.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=4))]
    priority: u8,
    /// When the exchange gives up, such as 30d.
    #[arg(long, value_parser = parse_duration)]
    expires_in: Option<Duration>,
    /// Hand it over from this time on, not before, such as 2026-12-01T08:00:00+07:00.
    #[arg(long, value_parser = parse_time)]
    not_before: Option<Timestamp>,
    /// A key of your own: the same key again gives the same dispatch.
    #[arg(long)]
    idempotency_key: Option<String>,
    /// Send it although a document of the same id or number was sent before.
    #[arg(long)]
    again: bool,
    /// Do not end before the exchange has accepted it, or every recipient has it; its id is printed at once.
    #[arg(long, value_parser = ["accepted", "handed-over"])]
    wait: Option<String>,
    /// How long to wait, such as 30s or 5m.
    #[arg(long, default_value = "1h", value_parser = parse_duration, requires = "wait")]
    timeout: Duration,
    /// The files; the first one is the document, the others are appendices.
    #[arg(required = true)]
    files: Vec<PathBuf>,
}

/// A time with its zone.
fn parse_time(text: &str) -> Result<Timestamp, String> {
    let wrong = |_| format!("{text:?} is no time: expected one with its zone, such as 2026-12-01T08:00:00+07:00");
    let at = text.parse::<jiff::Timestamp>().map_err(wrong)?;
    Ok(Timestamp::from_unix_ms(at.as_millisecond()))
}

pub fn run(args: &SendArgs, out: Out) -> Result<(), Failure> {
    let control = args.agent.control()?;
    let to = args.to.iter().map(|text| recipient(&args.agent, text, out)).collect::<Result<Vec<_>, _>>()?;
    let mut parts = Vec::new();
    for (n, file) in args.files.iter().enumerate() {
        let path = file.canonicalize().map_err(|e| {
            Failure::new(ReasonCode::NotFound, format!("{}: {e}", file.display())).hint("Check the file's name.")
        })?;
        let original = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let (name, changed) = safe_name(&original);
        if changed {
            out.talk(format!("{original:?} is sent as {name:?}"));
        }
        let role = if n == 0 { "document" } else { "appendix" };
        parts.push(json!({"name": name, "media_type": media_type(&path), "role": role, "path": path}));
    }
    let mut document = json!({"Subject": args.subject, "Code": {}});
    for (value, field) in [(&args.number, "CodeNumber"), (&args.notation, "CodeNotation")] {
        if let Some(text) = value {
            document["Code"][field] = text.as_str().into();
        }
    }
    if let Some(name) = &args.type_name {
        document["DocumentType"] = json!({"TypeName": name});
    }
    let mut draft = json!({
        "from": args.from, "to": to, "kind": "new", "priority": args.priority, "document": document, "parts": parts,
        "unless_sent_before": !args.again,
    });
    if let Some(at) = args.not_before {
        draft["not_before"] = json!(at);
    }
    if args.partial {
        draft["partial"] = true.into();
    }
    if let Some(life) = args.expires_in {
        draft["expires"] = json!(SystemEnv.now().plus(life));
    }
    let mut progress = Progress::new(out);
    let queued = queue(&control, &draft, args.idempotency_key.as_deref(), &mut progress)?;
    progress.end();
    let id = queued["id"].as_str().unwrap_or_default().to_owned();
    // At once, also where it is waited for: whoever breaks off the waiting knows what was queued.
    out.data(&queued, &id)?;
    let Some(until) = &args.wait else { return Ok(()) };
    let id = id.parse().map_err(|error| Failure::other(format!("the agent answered something unexpected: {error}")))?;
    wait_watching(&control, id, (until, args.timeout), &mut progress)
}

/// Queues it; somebody at a terminal sees meanwhile how far the agent has taken in the files.
fn queue(control: &Control, draft: &Value, key: Option<&str>, progress: &mut Progress) -> Result<Value, Failure> {
    if !progress.is_on() {
        return control.post("/v1/dispatches", draft, key);
    }
    let name = format!("{}-{}", std::process::id(), SystemEnv.now().unix_ms());
    let (done, ended) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        let path = format!("/v1/progress/{name}");
        scope.spawn(move || {
            while ended.recv_timeout(progress::EVERY) == Err(mpsc::RecvTimeoutError::Timeout) {
                // What cannot be seen is not shown; the request itself says what is wrong.
                let Ok(Some(seen)) = control.get::<Option<TransferView>>(&path) else { continue };
                progress.at("taking in", seen.sent, seen.total);
            }
        });
        let queued = control.post_watched("/v1/dispatches", draft, key, &name);
        drop(done);
        queued
    })
}

/// A code goes on as it is, in capitals: the agent knows whose other codes there are. Anything else is a name.
fn recipient(agent: &AgentArg, text: &str, out: Out) -> Result<AgencyCode, Failure> {
    if let Ok((code, _)) = AgencyCode::lenient(text) {
        return Ok(code);
    }
    let found = ask_agent(agent, text)?;
    let code = found["agency"].as_str().unwrap_or_default();
    out.talk(format!("{text:?} is {code} ({})", found["name"].as_str().unwrap_or_default()));
    code.parse().map_err(|error| Failure::other(format!("the agent answered something unexpected: {error}")))
}

/// What a file's name says that it is. The bytes are what counts; this only helps the reader's program.
pub fn media_type(path: &Path) -> &'static str {
    let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
    match extension.as_str() {
        "pdf" => "application/pdf",
        "doc" => "application/msword",
        "docx" => "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
        "xls" => "application/vnd.ms-excel",
        "xlsx" => "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "txt" => "text/plain",
        "xml" | "edxml" => "application/xml",
        "zip" => "application/zip",
        "png" => "image/png",
        "jpg" | "jpeg" => "image/jpeg",
        _ => "application/octet-stream",
    }
}
