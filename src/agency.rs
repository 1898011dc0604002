//! `docaxis agency`: changes the authority's directory. Each change is one signed entry (an import: many); a running
//! `ca serve` hands them to the broker, and the broker to the agents.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use docaxis_certs::Authority;
use docaxis_certs::authority::{Agency, DirectoryChangeError, ImportOptions, ImportReport, RowNote, day_or_instant};
use docaxis_protocol::directory::DirectoryEntry;
use docaxis_protocol::{AgencyCode, ReasonCode, Timestamp};
use serde_json::{Value, json};

use crate::ca::folder::{self, directory_failure, open};
use crate::clock;
use crate::confirm::Confirm;
use crate::doc::AgentArg;
use crate::out::{Failure, Out};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add an agency. `ca invite` then gives it a node.
    Add(Add),
    /// List agencies.
    List(List),
    /// Show one agency, by any of its codes or its name; the name may be without accents.
    Show(Show),
    /// Lock an agency: it neither sends nor receives.
    Lock(Lock),
    /// Unlock an agency.
    Unlock(One),
    /// Merge an agency into another: what is addressed to it goes there from now on, and that agency answers for it.
    Merge(Merge),
    /// Give an agency one more code.
    Alias(Alias),
    /// Add the agencies of a CSV list: organ_id and name; if there, in_charge, parent, node, aliases, valid_from,
    /// valid_until, merged_into.
    Import(Import),
}

#[derive(Debug, Args)]
pub struct AuthorityArg {
    /// The authority's folder.
    #[arg(long, alias = "dir", value_name = "DIR", env = "DOCAXIS_AUTHORITY", default_value = folder::DEFAULT)]
    authority: PathBuf,
}

impl AuthorityArg {
    fn open(&self) -> Result<Authority, Failure> {
        open(&self.authority)
    }
}

#[derive(Debug, Args)]
pub struct Add {
    /// The agency's code, such as H37.DN.001.
    code: AgencyCode,
    #[arg(long)]
    name: String,
    /// The agency that this one belongs to.
    #[arg(long, value_name = "CODE")]
    parent: Option<AgencyCode>,
    /// Another code of the same agency; repeat it for more.
    #[arg(long = "alias", value_name = "CODE")]
    aliases: Vec<AgencyCode>,
    /// The organisation in charge, in words.
    #[arg(long, value_name = "TEXT")]
    in_charge: Option<String>,
    /// The day from which on it sends and receives, such as 2026-07-01; from now on if absent.
    #[arg(long, value_name = "DAY", value_parser = parse_day)]
    valid_from: Option<Timestamp>,
    /// The day from which on it no longer does.
    #[arg(long, value_name = "DAY", value_parser = parse_day)]
    valid_until: Option<Timestamp>,
    #[command(flatten)]
    dir: AuthorityArg,
}

#[derive(Debug, Args)]
pub struct List {
    /// Only agencies whose code, other codes, name or organisation in charge contain this, accents and case aside.
    #[arg(long, value_name = "TEXT")]
    q: Option<String>,
    #[command(flatten)]
    dir: AuthorityArg,
}

#[derive(Debug, Args)]
pub struct Show {
    /// A code, old or new, or a name.
    #[arg(value_name = "CODE_OR_NAME")]
    what: String,
    /// Ask the running agent with this configuration for its copy of the directory, instead of the authority.
    #[arg(long, value_name = "AGENT.TOML")]
    agent: Option<PathBuf>,
    #[command(flatten)]
    dir: AuthorityArg,
}

#[derive(Debug, Args)]
pub struct One {
    code: AgencyCode,
    #[command(flatten)]
    dir: AuthorityArg,
}

#[derive(Debug, Args)]
pub struct Lock {
    code: AgencyCode,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    dir: AuthorityArg,
}

#[derive(Debug, Args)]
pub struct Merge {
    code: AgencyCode,
    /// The agency that takes over.
    #[arg(long, value_name = "CODE")]
    into: AgencyCode,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    dir: AuthorityArg,
}

#[derive(Debug, Args)]
pub struct Alias {
    code: AgencyCode,
    alias: AgencyCode,
    #[command(flatten)]
    dir: AuthorityArg,
}

#[derive(Debug, Args)]
pub struct Import {
    file: PathBuf,
    /// Say what would be done with each row, and change nothing.
    #[arg(long)]
    dry_run: bool,
    /// Take the good rows although others are refused; without it, one bad row keeps the whole list out.
    #[arg(long)]
    partial: bool,
    #[command(flatten)]
    dir: AuthorityArg,
}

pub fn run(command: Command, out: Out) -> Result<(), Failure> {
    match command {
        Command::Add(args) => add(args, out),
        Command::List(args) => list(&args, out),
        Command::Show(args) => show(args, out),
        Command::Lock(args) => {
            args.confirm.ask(out, &format!("Lock {}, so that it neither sends nor receives?", args.code))?;
            change(&args.dir, &args.code, out, |a, now| a.lock_agency(&args.code, true, now))
        }
        Command::Unlock(args) => change(&args.dir, &args.code, out, |a, now| a.lock_agency(&args.code, false, now)),
        Command::Merge(args) => {
            args.confirm.ask(out, &format!("Merge {} into {} for good?", args.code, args.into))?;
            change(&args.dir, &args.code, out, |a, now| a.merge_agency(&args.code, &args.into, now))
        }
        Command::Alias(args) => change(&args.dir, &args.code, out, |a, now| a.add_alias(&args.code, &args.alias, now)),
        Command::Import(args) => import(&args, out),
    }
}

fn parse_day(text: &str) -> Result<Timestamp, String> {
    day_or_instant(text).ok_or_else(|| format!("{text:?} is no day such as 2026-07-01, nor an instant in UTC"))
}

fn add(args: Add, out: Out) -> Result<(), Failure> {
    let code = args.code.clone();
    let agency = Agency {
        code: args.code,
        name: args.name,
        parent: args.parent,
        aliases: args.aliases,
        in_charge: args.in_charge,
        node: None,
        valid_from: args.valid_from,
        valid_until: args.valid_until,
    };
    change(&args.dir, &code, out, |authority, now| authority.add_agency(&agency, now))
}

/// Makes one change and shows the entry as it is now.
fn change(
    dir: &AuthorityArg,
    code: &AgencyCode,
    out: Out,
    edit: impl FnOnce(&mut Authority, docaxis_protocol::Timestamp) -> Result<(), DirectoryChangeError>,
) -> Result<(), Failure> {
    let mut authority = dir.open()?;
    edit(&mut authority, clock::now()).map_err(|error| directory_failure(&error))?;
    print(&authority, code, out)
}

fn show(args: Show, out: Out) -> Result<(), Failure> {
    if let Some(config) = args.agent {
        let found = ask_agent(&AgentArg { config }, &args.what)?;
        return out.data(&found, agents_words(&found));
    }
    let authority = args.dir.open()?;
    match &authority.find_agencies(&args.what)[..] {
        [entry] => out.data(entry, in_words(entry)),
        [] => Err(unknown(&args.what)),
        several => {
            let codes: Vec<_> = several.iter().map(|entry| format!("{} ({})", entry.agency, entry.name)).collect();
            Err(ambiguous(&args.what, &codes))
        }
    }
}

/// The one agency that an agent's directory has for a code or a name.
pub fn ask_agent(agent: &AgentArg, what: &str) -> Result<Value, Failure> {
    let found: Value = agent.control()?.get(&format!("/v1/agencies?q={}", percent(what)))?;
    let all = found["agencies"].as_array().map(Vec::as_slice).unwrap_or_default();
    match all {
        [one] => Ok(one.clone()),
        [] => Err(Failure::new(ReasonCode::NotFound, format!("the agent's directory has no agency {what:?}")).hint(
            "`docaxis agency list` at the authority shows all. A change reaches a connected agent within seconds.",
        )),
        several => {
            let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
            let codes: Vec<_> =
                several.iter().map(|one| format!("{} ({})", text(one, "agency"), text(one, "name"))).collect();
            Err(ambiguous(what, &codes))
        }
    }
}

/// A query's value: everything but plain letters and digits is escaped.
fn percent(text: &str) -> String {
    let escape = |byte: u8| match byte {
        b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' | b'.' | b'-' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    };
    text.bytes().map(escape).collect()
}

fn unknown(what: &str) -> Failure {
    let message = format!("agency {what:?} is not in the directory");
    match AgencyCode::lenient(what) {
        Ok((code, _)) => folder::unknown_agency(message, &code),
        Err(_) => {
            Failure::new(ReasonCode::NotFound, message).hint("`docaxis agency list --q TEXT` searches all names.")
        }
    }
}

/// At most so many agencies are named where one was wanted.
const NAMED: usize = 10;

fn ambiguous(what: &str, found: &[String]) -> Failure {
    let more = found.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let named = found.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    Failure { exit: 5, code: "ambiguous".into(), ..Failure::other(format!("{what:?} may be {named}{more}")) }
        .hint("Give the code.")
}

fn agents_words(found: &Value) -> String {
    match serde_json::from_value::<DirectoryEntry>(found.clone()) {
        Ok(entry) => in_words(&entry),
        Err(_) => format!("{found:#}"),
    }
}

fn print(authority: &Authority, code: &AgencyCode, out: Out) -> Result<(), Failure> {
    match authority.agency(code) {
        Some(entry) => out.data(entry, in_words(entry)),
        None => Err(unknown(code.as_str())),
    }
}

fn in_words(entry: &DirectoryEntry) -> String {
    let mut words = format!("{}  {}\n", entry.agency, entry.name);
    let mut line = |what: &str, text: String| words += &format!("  {what}: {text}\n");
    line("node", entry.node.as_ref().map_or("none yet".into(), ToString::to_string));
    line("since", entry.since.to_string());
    if entry.locked {
        line("locked", "yes".into());
    }
    if let Some(successor) = &entry.successor {
        let since = entry.successions.last().map_or(String::new(), |last| format!(" since {}", last.said().since));
        line("merged into", format!("{successor}{since}"));
    }
    if let Some(from) = entry.valid_from {
        line("valid from", from.to_vietnam());
    }
    if let Some(until) = entry.valid_until {
        line("valid until", until.to_vietnam());
    }
    if !entry.aliases.is_empty() {
        line("other codes", entry.aliases.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    }
    if let Some(parent) = &entry.parent {
        line("belongs to", parent.to_string());
    }
    if let Some(in_charge) = &entry.in_charge {
        line("in charge", in_charge.clone());
    }
    words
}

fn list(args: &List, out: Out) -> Result<(), Failure> {
    let authority = args.dir.open()?;
    let found: Vec<&DirectoryEntry> = match &args.q {
        Some(text) => authority.find_agencies(text),
        None => authority.agencies().collect(),
    };
    let line = |entry: &&DirectoryEntry| {
        let node = entry.node.as_ref().map_or("-", |node| node.as_str());
        let locked = if entry.locked { "  (locked)" } else { "" };
        let merged = entry.successor.as_ref().map_or(String::new(), |code| format!("  (merged into {code})"));
        format!("{}  {node}  {}{locked}{merged}\n", entry.agency, entry.name)
    };
    out.data(&json!({"agencies": found}), found.iter().map(line).collect::<String>())
}

fn import(args: &Import, out: Out) -> Result<(), Failure> {
    let list = read_list(&args.file)?;
    let mut authority = args.dir.open()?;
    let options = ImportOptions { partial: args.partial, dry_run: args.dry_run };
    let report = authority.import_agencies(&list, options, clock::now()).map_err(|error| directory_failure(&error))?;
    let lines =
        |rows: &[RowNote]| rows.iter().map(|(line, text)| json!({"line": line, "text": text})).collect::<Vec<_>>();
    let value = json!({
        "taken": report.taken && !args.dry_run, "dry_run": args.dry_run, "added": report.added,
        "unchanged": report.unchanged, "warnings": lines(&report.warnings), "refused": lines(&report.refused),
    });
    out.data(&value, report_in_words(&report, args.dry_run))?;
    // A list of which nothing may be taken is a failure, also where the good rows alone were asked for.
    let nothing = report.added + report.unchanged == 0 && !report.refused.is_empty();
    if report.taken && !nothing { Ok(()) } else { Err(Failure::told(5)) }
}

fn report_in_words(report: &ImportReport, dry_run: bool) -> String {
    let did = match (report.taken, dry_run) {
        (false, _) => "nothing was changed: correct the refused rows, or take the good ones with --partial; good are",
        (true, true) => "nothing was changed; without --dry-run there would be",
        (true, false) => "done:",
    };
    let (warned, refused) = (report.warnings.len(), report.refused.len());
    let mut words =
        format!("{did} {} added, {} unchanged, {refused} refused, {warned} warnings\n", report.added, report.unchanged);
    for (what, rows) in [("refused", &report.refused), ("warning", &report.warnings)] {
        for (line, why) in rows {
            words += &format!("  line {line}: {what}: {why}\n");
        }
    }
    words
}

fn read_list(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            Failure::new(ReasonCode::NotFound, format!("there is no file {}", path.display())).hint("Check the path.")
        }
        _ => Failure::other(format!("{} cannot be read: {error}", path.display())),
    })
}
