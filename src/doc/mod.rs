//! `docaxis doc`: what a document officer does, through the control socket of the agency's own agent.

mod import;
mod many;
mod send;
mod view;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use docaxis_node_agent::TransferView;
use docaxis_node_agent::config::AgentConfig;
use docaxis_protocol::{AgencyCode, DispatchId, ReasonCode};
use serde_json::{Value, json};

use crate::confirm::Confirm;
use crate::control::Control;
use crate::out::{Failure, Out, chain};
use crate::progress::{self, Progress};

pub use import::{Imported, import_file};
pub use view::timeline;

use many::Standing;
use view::Recipients;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Seal files as a dispatch and queue it; prints its id.
    Send(send::SendArgs),
    /// Import edXML files: documents, recalls, updates, replacements and most statuses are queued; 02 and 03 are reported.
    Import(import::ImportArgs),
    /// List dispatches.
    List(ListArgs),
    /// Show one dispatch and its timeline.
    Show(ShowArgs),
    /// Write a dispatch's parts to a folder.
    Get(GetArgs),
    /// Open a dispatch that was received: shows it, and the sender sees when it was first opened.
    Open(AcceptArgs),
    /// Status 03: the recipient has entered it in its register.
    Accept(AcceptArgs),
    /// Status 02: the recipient returns it, with a reason.
    Refuse(RefuseArgs),
    /// Take a dispatch back: what has not been handed over is withdrawn, whoever has it is asked.
    Recall(RecallArgs),
    /// Answer the sender who asks for a dispatch back: 15 and its files are destroyed, or 16.
    Answer(AnswerArgs),
    /// Statuses 04, 05 and 06: how far the work on a registered dispatch has come.
    Report(ReportArgs),
    /// Status 06: the work on a registered dispatch is finished.
    Finish(AcceptArgs),
    /// Wait until every recipient has reached a state.
    Wait(WaitArgs),
    /// Write a dispatch as an edXML file.
    Export(ExportArgs),
}

#[derive(Debug, Args)]
pub struct AgentArg {
    /// The agent's configuration file.
    #[arg(long, env = "DOCAXIS_AGENT_CONFIG", default_value = "/etc/docaxis/agent.toml")]
    pub config: PathBuf,
}

impl AgentArg {
    pub fn load(&self) -> Result<AgentConfig, Failure> {
        AgentConfig::load(&self.config).map_err(|e| {
            Failure::usage(chain(&e)).hint("`docaxis agent join` writes an agent.toml; --config names another place.")
        })
    }

    /// The control socket of the agent with this configuration.
    pub fn control(&self) -> Result<Control, Failure> {
        let config = self.load()?;
        let hint = format!("Start the agent: docaxis agent run --config {}", self.config.display());
        Ok(Control::new(&config.agent.data.join("control.sock"), hint))
    }
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    agent: AgentArg,
    /// `in` or `out`; both if absent.
    #[arg(long = "box", value_parser = ["in", "out"])]
    which: Option<String>,
    /// Only this state, such as queued, accepted, handed-over, registered.
    #[arg(long)]
    state: Option<String>,
}

#[derive(Debug, Args)]
pub struct ShowArgs {
    #[command(flatten)]
    agent: AgentArg,
    /// The dispatch's id.
    id: DispatchId,
    /// Every recipient and every event, also of a dispatch with more than 20 recipients.
    #[arg(long, conflicts_with = "state")]
    all: bool,
    /// Only the recipients that stand so.
    #[arg(long)]
    state: Option<Standing>,
}

#[derive(Debug, Args)]
pub struct GetArgs {
    #[command(flatten)]
    agent: AgentArg,
    /// The dispatch's id.
    id: DispatchId,
    /// The folder to write to; made if it is not there. Files that are there are not overwritten.
    #[arg(long, default_value = ".")]
    out: PathBuf,
}

#[derive(Debug, Args)]
pub struct AcceptArgs {
    #[command(flatten)]
    agent: AgentArg,
    /// The dispatch's id.
    id: DispatchId,
    /// The recipient that speaks; needed if the node acts for several recipients of the dispatch.
    #[arg(long = "as")]
    recipient: Option<AgencyCode>,
}

#[derive(Debug, Args)]
pub struct RefuseArgs {
    #[command(flatten)]
    accept: AcceptArgs,
    /// A reason code, such as wrong-addressee or bad-seal.
    #[arg(long, default_value = "other")]
    reason: String,
    /// The reason in words.
    #[arg(long)]
    text: String,
}

#[derive(Debug, Args)]
pub struct RecallArgs {
    #[command(flatten)]
    agent: AgentArg,
    /// The dispatch's id.
    id: DispatchId,
    /// Why, in words: the recipients read it.
    #[arg(long)]
    reason: String,
    /// From this recipient alone; repeat it for several. From all if absent.
    #[arg(long = "to")]
    to: Vec<AgencyCode>,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("answer").required(true).args(["agree", "decline"]))]
pub struct AnswerArgs {
    #[command(flatten)]
    accept: AcceptArgs,
    /// Status 15: the files are destroyed here, what is known of the dispatch stays.
    #[arg(long)]
    agree: bool,
    /// Status 16: it is kept.
    #[arg(long)]
    decline: bool,
    /// The answer in words.
    #[arg(long, default_value = "")]
    text: String,
    #[command(flatten)]
    confirm: Confirm,
}

#[derive(Debug, Args)]
pub struct ReportArgs {
    #[command(flatten)]
    accept: AcceptArgs,
    /// 04 assigned by a leader, 05 in process, 06 finished.
    #[arg(long, value_parser = ["04", "05", "06"])]
    status: String,
    /// The status in words.
    #[arg(long, default_value = "")]
    text: String,
}

#[derive(Debug, Args)]
pub struct WaitArgs {
    #[command(flatten)]
    agent: AgentArg,
    /// The dispatch's id.
    id: DispatchId,
    /// accepted, handed-over, opened, registered, refused, withdrawn or failed.
    #[arg(long, default_value = "handed-over")]
    until: String,
    /// How long, such as 30s or 5m.
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    timeout: Duration,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    agent: AgentArg,
    /// The dispatch's id.
    id: DispatchId,
    /// The file to write; not overwritten if it is there.
    #[arg(long)]
    out: PathBuf,
}

/// A number with s, m, h or d behind it.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no duration: expected a number with s, m, h or d behind it, such as 30s");
    let unit = text.chars().next_back().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    number.checked_mul(seconds).map(Duration::from_secs).ok_or_else(wrong)
}

/// How long one question to the agent hangs while something is waited for.
const ASKED_FOR: Duration = Duration::from_secs(30);

pub fn run(command: Command, out: Out) -> Result<(), Failure> {
    match command {
        Command::Send(args) => send::run(&args, out),
        Command::Import(args) => import::run(&args, out),
        Command::List(args) => list(&args, out),
        Command::Show(args) => show(&args, out),
        Command::Get(args) => get(&args, out),
        Command::Open(args) => open(&args, out),
        Command::Accept(args) => accept(&args, out),
        Command::Refuse(args) => refuse(&args, out),
        Command::Recall(args) => recall(&args, out),
        Command::Answer(args) => answer(&args, out),
        Command::Report(args) => progress(&args, out),
        Command::Finish(args) => finish(&args, out),
        Command::Wait(args) => wait(&args, out),
        Command::Export(args) => export(&args, out),
    }
}

fn list(args: &ListArgs, out: Out) -> Result<(), Failure> {
    let control = args.agent.control()?;
    let boxes: Vec<&str> = args.which.as_deref().map_or_else(|| vec!["in", "out"], |which| vec![which]);
    let mut all = Vec::new();
    for which in boxes {
        all.extend(pages(&control, which, args.state.as_deref())?);
    }
    let lines: String = all.iter().map(view::line).collect();
    out.data(&all, lines)
}

/// All pages of one box.
pub fn pages(control: &Control, which: &str, state: Option<&str>) -> Result<Vec<Value>, Failure> {
    let mut all: Vec<Value> = Vec::new();
    let mut next: Option<u64> = None;
    loop {
        let after = next.map_or_else(String::new, |cursor| format!("&after={cursor}"));
        let state = state.map_or_else(String::new, |state| format!("&state={state}"));
        let page: Value = control.get(&format!("/v1/dispatches?box={which}{state}{after}"))?;
        all.extend(page["dispatches"].as_array().into_iter().flatten().cloned());
        next = page["next"].as_u64();
        if next.is_none() {
            return Ok(all);
        }
    }
}

fn show(args: &ShowArgs, out: Out) -> Result<(), Failure> {
    let mut shown: Value = args.agent.control()?.get(&format!("/v1/dispatches/{}", args.id))?;
    let recipients = match args.state {
        Some(standing) => {
            view::keep(&mut shown, standing);
            Recipients::Chosen
        }
        None if args.all => Recipients::All,
        None => Recipients::Brief,
    };
    let words = view::dispatch(&shown, recipients);
    out.data(&shown, words)
}

fn get(args: &GetArgs, out: Out) -> Result<(), Failure> {
    let control = args.agent.control()?;
    let written = get_parts(&control, args.id, &args.out)?;
    let words: String = written.iter().map(|path| format!("{}\n", path.display())).collect();
    out.data(&json!({"id": args.id, "files": written}), words)
}

/// Writes a dispatch's parts below `folder`, each whole or not at all. Returns their paths.
pub fn get_parts(control: &Control, id: DispatchId, folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let shown: Value = control.get(&format!("/v1/dispatches/{id}"))?;
    std::fs::create_dir_all(folder)?;
    let mut written = Vec::new();
    for part in shown["parts"].as_array().into_iter().flatten() {
        let name = part["name"].as_str().unwrap_or_default();
        // The sealed name was checked by everybody on the way; a file is written on our own check alone.
        docaxis_protocol::envelope::check_part_name(name)
            .map_err(|why| Failure::new(ReasonCode::UnsafeName, format!("part name {name:?} {why}")))?;
        let path = folder.join(name);
        write_new(&path, |file| control.stream(&format!("/v1/dispatches/{id}/parts/{}", part["n"]), file))?;
        written.push(path);
    }
    Ok(written)
}

/// Writes a file that is not there yet; whole, or not at all.
pub fn write_new(path: &Path, write: impl FnOnce(&mut std::fs::File) -> Result<(), Failure>) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut temporary = tempfile::NamedTempFile::new_in(folder)?;
    write(temporary.as_file_mut())?;
    temporary.as_file().sync_all()?;
    temporary.persist_noclobber(path).map_err(|e| {
        Failure::usage(format!("{} cannot be written: {}", path.display(), e.error)).hint("Choose another place.")
    })?;
    Ok(())
}

fn open(args: &AcceptArgs, out: Out) -> Result<(), Failure> {
    let control = args.agent.control()?;
    let recipient = speaker(&control, args.id, args.recipient.as_ref())?;
    let asked = json!({"recipient": recipient});
    let shown: Value = control.post(&format!("/v1/dispatches/{}/open", args.id), &asked, None)?;
    let words = view::dispatch(&shown, Recipients::Brief);
    out.data(&shown, words)
}

fn accept(args: &AcceptArgs, out: Out) -> Result<(), Failure> {
    report(&args.agent.control()?, args.id, args.recipient.as_ref(), &Report::Registered)?;
    out.data(&json!({"id": args.id, "status": "03"}), format!("{}: registered", args.id))
}

fn refuse(args: &RefuseArgs, out: Out) -> Result<(), Failure> {
    let AcceptArgs { agent, id, recipient } = &args.accept;
    let reason = args.reason.parse::<ReasonCode>().map_err(|e| {
        let codes: Vec<&str> = ReasonCode::ALL.iter().map(|code| code.as_str()).collect();
        Failure::usage(e.to_string()).hint(format!("Known codes: {}.", codes.join(", ")))
    })?;
    report(&agent.control()?, *id, recipient.as_ref(), &Report::Refused(reason, args.text.clone()))?;
    out.data(&json!({"id": id, "status": "02"}), format!("{id}: returned to the sender"))
}

fn recall(args: &RecallArgs, out: Out) -> Result<(), Failure> {
    let body = json!({"to": args.to, "reason": args.reason});
    let made: Value = args.agent.control()?.post(&format!("/v1/dispatches/{}/recall", args.id), &body, None)?;
    let id = made["id"].as_str().unwrap_or_default().to_owned();
    out.data(&made, id)
}

fn answer(args: &AnswerArgs, out: Out) -> Result<(), Failure> {
    let AcceptArgs { agent, id, recipient } = &args.accept;
    let code = if args.agree { "15" } else { "16" };
    if args.agree {
        let what = "The files of a document that is asked back are destroyed here; what is known of it stays.";
        args.confirm.ask(out, &format!("Agree to {id}? {what}"))?;
    }
    report(&agent.control()?, *id, recipient.as_ref(), &Report::Further(code.into(), args.text.clone()))?;
    let words = if args.agree {
        "agreed: the files of a document that was asked back are destroyed here"
    } else {
        "kept: the sender is told"
    };
    out.data(&json!({"id": id, "status": code}), format!("{id}: {words}"))
}

fn progress(args: &ReportArgs, out: Out) -> Result<(), Failure> {
    let AcceptArgs { agent, id, recipient } = &args.accept;
    let said = Report::Further(args.status.clone(), args.text.clone());
    report(&agent.control()?, *id, recipient.as_ref(), &said)?;
    out.data(&json!({"id": id, "status": args.status}), format!("{id}: {}", args.status))
}

fn finish(args: &AcceptArgs, out: Out) -> Result<(), Failure> {
    let said = Report::Further("06".into(), String::new());
    report(&args.agent.control()?, args.id, args.recipient.as_ref(), &said)?;
    out.data(&json!({"id": args.id, "status": "06"}), format!("{}: finished", args.id))
}

/// What a recipient reports about a dispatch that was handed over to it.
pub enum Report {
    /// Status 03.
    Registered,
    /// Status 02: why, and in words.
    Refused(ReasonCode, String),
    /// 04, 05, 06, 15 or 16, and in words.
    Further(String, String),
}

/// Reports a status of one of this node's agencies about a dispatch that it received.
pub fn report(
    control: &Control,
    id: DispatchId,
    recipient: Option<&AgencyCode>,
    report: &Report,
) -> Result<(), Failure> {
    let recipient = speaker(control, id, recipient)?;
    let body = match report {
        Report::Registered => json!({"code": "03", "recipient": recipient}),
        Report::Refused(reason, text) => {
            json!({"code": "02", "recipient": recipient, "reason": reason, "description": text})
        }
        Report::Further(code, text) => json!({"code": code, "recipient": recipient, "description": text}),
    };
    control.post::<Value>(&format!("/v1/dispatches/{id}/status"), &body, None)?;
    Ok(())
}

/// The recipient that was named, or the one that a dispatch has here; an error if there are several.
fn speaker(control: &Control, id: DispatchId, named: Option<&AgencyCode>) -> Result<String, Failure> {
    if let Some(named) = named {
        return Ok(named.to_string());
    }
    let shown: Value = control.get(&format!("/v1/dispatches/{id}"))?;
    let recipients: Vec<&str> =
        shown["incoming"].as_array().into_iter().flatten().filter_map(|view| view["recipient"].as_str()).collect();
    match recipients[..] {
        [one] => Ok(one.to_owned()),
        [] => Err(Failure::new(ReasonCode::NotFound, format!("no agency of this node received dispatch {id}"))),
        _ => Err(Failure::usage(format!("dispatch {id} was received by {}", recipients.join(" and ")))
            .hint("Say which one speaks: --as CODE.")),
    }
}

fn wait(args: &WaitArgs, out: Out) -> Result<(), Failure> {
    let control = args.agent.control()?;
    wait_watching(&control, args.id, (&args.until, args.timeout), &mut Progress::new(out))?;
    out.data(&json!({"id": args.id, "reached": args.until}), format!("{}: {}", args.id, args.until))
}

/// Waits until every recipient has reached `until`. A state that can no longer be reached is a refusal.
pub fn wait_until(control: &Control, id: DispatchId, until: &str, timeout: Duration) -> Result<(), Failure> {
    wait_watching(control, id, (until, timeout), &mut Progress::off())
}

/// The same; somebody at a terminal sees meanwhile how far the bodies are on their way to the exchange, and how many of several
/// recipients are in which state.
fn wait_watching(
    control: &Control,
    id: DispatchId,
    (until, timeout): (&str, Duration),
    progress: &mut Progress,
) -> Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    let most = if progress.is_on() { progress::EVERY } else { ASKED_FOR };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let ms = left.clamp(Duration::from_millis(1), most).as_millis();
        let answer: Value = control.get(&format!("/v1/dispatches/{id}/wait?until={until}&timeout_ms={ms}"))?;
        let outgoing = &answer["dispatch"]["outgoing"];
        let several = outgoing["deliveries"].as_array().is_some_and(|all| all.len() > 1);
        let stand = if several { many::counts(outgoing) } else { String::new() };
        match serde_json::from_value::<TransferView>(outgoing["transfer"].clone()) {
            Ok(seen) => progress.at("sending", seen.sent, seen.total),
            // None is under way.
            Err(_) if !stand.is_empty() => progress.say(&stand),
            Err(_) => progress.end(),
        }
        let stand = if stand.is_empty() { stand } else { format!(": {stand}") };
        match answer["outcome"].as_str() {
            Some("reached") => return Ok(()),
            Some("never") => {
                let failure = Failure::new(ReasonCode::Other, format!("dispatch {id} can no longer be {until}{stand}"));
                return Err(Failure { exit: 5, ..failure }.hint(format!("See `docaxis doc show {id}`.")));
            }
            _ if left.is_zero() => {
                let text = format!("dispatch {id} is not {until} after {} s{stand}", timeout.as_secs());
                return Err(Failure::new(ReasonCode::Busy, text).hint(format!("See `docaxis doc show {id}` for why.")));
            }
            _ => {}
        }
    }
}

fn export(args: &ExportArgs, out: Out) -> Result<(), Failure> {
    let control = args.agent.control()?;
    let edxml = import::export(&control, args.id)?;
    write_new(&args.out, |file| Ok(std::io::Write::write_all(file, &edxml)?))?;
    out.data(&json!({"id": args.id, "file": args.out}), args.out.display())
}
