//! `docaxis agency`: changes the authority's directory. Each change is one signed entry (an import: many); a running
//! `ca serve` hands them to the broker, and the broker to the agents.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use docaxis_certs::Authority;
use docaxis_certs::authority::{Agency, DirectoryChangeError, ImportReport};
use docaxis_protocol::directory::DirectoryEntry;
use docaxis_protocol::{AgencyCode, ReasonCode};
use serde_json::json;

use crate::ca::folder::{self, directory_failure, open};
use crate::clock;
use crate::confirm::Confirm;
use crate::out::{Failure, Out};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Add an agency. `ca invite` then gives it a node.
    Add(Add),
    /// List agencies.
    List(List),
    /// Show one agency, by its code or another code of it.
    Show(One),
    /// Lock an agency: it neither sends nor receives.
    Lock(Lock),
    /// Unlock an agency.
    Unlock(One),
    /// Merge an agency into another. What is addressed to it is refused from now on, as it is not yet passed on.
    Merge(Merge),
    /// Give an agency one more code.
    Alias(Alias),
    /// Add the agencies of a CSV list with the columns organ_id, name and in_charge.
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
    #[command(flatten)]
    dir: AuthorityArg,
}

#[derive(Debug, Args)]
pub struct List {
    /// Only agencies whose code, other codes, name or organisation in charge contain this.
    #[arg(long, value_name = "TEXT")]
    q: Option<String>,
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
    #[command(flatten)]
    dir: AuthorityArg,
}

pub fn run(command: Command, out: Out) -> Result<(), Failure> {
    match command {
        Command::Add(args) => add(args, out),
        Command::List(args) => list(&args, out),
        Command::Show(args) => show(&args, out),
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

fn add(args: Add, out: Out) -> Result<(), Failure> {
    let code = args.code.clone();
    let agency = Agency {
        code: args.code,
        name: args.name,
        parent: args.parent,
        aliases: args.aliases,
        in_charge: args.in_charge,
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

fn show(args: &One, out: Out) -> Result<(), Failure> {
    print(&args.dir.open()?, &args.code, out)
}

fn print(authority: &Authority, code: &AgencyCode, out: Out) -> Result<(), Failure> {
    let Some(entry) = authority.agency(code) else {
        return Err(folder::unknown_agency(format!("agency {code} is not in the directory"), code));
    };
    out.data(entry, in_words(entry))
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
        line("merged into", successor.to_string());
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
    let wanted = args.q.as_ref().map(|text| text.to_lowercase());
    let found: Vec<&DirectoryEntry> =
        authority.agencies().filter(|entry| wanted.as_ref().is_none_or(|text| contains(entry, text))).collect();
    let line = |entry: &&DirectoryEntry| {
        let node = entry.node.as_ref().map_or("-", |node| node.as_str());
        let locked = if entry.locked { "  (locked)" } else { "" };
        let merged = entry.successor.as_ref().map_or(String::new(), |code| format!("  (merged into {code})"));
        format!("{}  {node}  {}{locked}{merged}\n", entry.agency, entry.name)
    };
    out.data(&json!({"agencies": found}), found.iter().map(line).collect::<String>())
}

fn contains(entry: &DirectoryEntry, text: &str) -> bool {
    let has = |field: &str| field.to_lowercase().contains(text);
    has(entry.agency.as_str())
        || has(&entry.name)
        || entry.aliases.iter().any(|alias| has(alias.as_str()))
        || entry.in_charge.as_deref().is_some_and(has)
}

fn import(args: &Import, out: Out) -> Result<(), Failure> {
    let list = read_list(&args.file)?;
    let mut authority = args.dir.open()?;
    let report = authority.import_agencies(&list, clock::now()).map_err(|error| directory_failure(&error))?;
    let lines = |rows: &[(u64, String)]| {
        rows.iter().map(|(line, text)| json!({"line": line, "text": text})).collect::<Vec<_>>()
    };
    let value = json!({
        "added": report.added, "unchanged": report.unchanged, "respelled": lines(&report.respelled),
        "refused": lines(&report.refused),
    });
    out.data(&value, report_in_words(&report))?;
    // A real list repeats a few rows, which is reported and no failure; one of which nothing was taken is.
    let taken = report.added + report.unchanged > 0 || report.refused.is_empty();
    if taken { Ok(()) } else { Err(Failure::told(5)) }
}

fn report_in_words(report: &ImportReport) -> String {
    let (respelled, refused) = (report.respelled.len(), report.refused.len());
    let mut words = format!(
        "{} added ({respelled} of the list under the canonical spelling), {} unchanged, {refused} refused\n",
        report.added, report.unchanged
    );
    for (line, why) in &report.refused {
        words += &format!("  line {line}: {why}\n");
    }
    words
}

fn read_list(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Failure::new(ReasonCode::NotFound, format!("there is no {}", path.display())),
        _ => Failure::other(format!("{} cannot be read: {error}", path.display())),
    })
}
