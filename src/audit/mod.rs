//! `docaxis audit`: finds, shows, hands out and checks delivery evidence.

pub mod verify;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use docaxis_protocol::{AgencyCode, DispatchId, Timestamp};
use serde_json::{Value, json};

use crate::broker::ConfigArg;
use crate::doc::write_new;
use crate::out::{Failure, Out};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// List the evidence of a dispatch.
    Find(FindArgs),
    /// Show a dispatch and where each delivery stands, as the exchange knows it.
    Show(FindArgs),
    /// Write a dispatch's evidence bundle: a ZIP that needs none of our software.
    Export(ExportArgs),
    /// Check evidence bundles against your own copy of the authority's root; needs no exchange and no network.
    Verify(verify::Args),
}

#[derive(Debug, Args)]
pub struct FindArgs {
    #[command(flatten)]
    broker: ConfigArg,
    /// The dispatch's id.
    id: DispatchId,
}

#[derive(Debug, Args)]
pub struct ExportArgs {
    #[command(flatten)]
    broker: ConfigArg,
    /// The dispatch's id.
    id: DispatchId,
    /// Only this recipient's part.
    #[arg(long)]
    recipient: Option<AgencyCode>,
    /// The file to write [default: the dispatch's id with .zip]. Not overwritten if it is there.
    #[arg(long)]
    out: Option<PathBuf>,
}

pub fn run(command: Command, out: Out) -> Result<(), Failure> {
    match command {
        Command::Find(args) => find(&args, out),
        Command::Show(args) => show(&args, out),
        Command::Export(args) => export(&args, out),
        Command::Verify(args) => verify::run(&args, out),
    }
}

fn find(args: &FindArgs, out: Out) -> Result<(), Failure> {
    let found: Vec<Value> = args.broker.control()?.get(&format!("/v1/evidence?dispatch={}", args.id))?;
    let line = |piece: &Value| {
        let text = |key: &str| piece[key].as_str().unwrap_or_default();
        let who = piece["recipient"].as_str().unwrap_or("(all)");
        format!("{}  leaf {:<6} {:<22} {who}\n", vietnam(text("time")), piece["leaf"], text("event"))
    };
    let lines: String = found.iter().map(line).collect();
    out.data(&found, lines)
}

fn show(args: &FindArgs, out: Out) -> Result<(), Failure> {
    let shown: Vec<Value> = args.broker.control()?.get(&format!("/v1/dispatches/{}", args.id))?;
    let mut words = String::new();
    for dispatch in &shown {
        let text = |key: &str| dispatch[key].as_str().unwrap_or_default();
        words += &format!("{} from {}, accepted {}\n", text("id"), text("sender"), vietnam(text("accepted")));
        for delivery in dispatch["deliveries"].as_array().into_iter().flatten() {
            let text = |key: &str| delivery[key].as_str().unwrap_or_default();
            let why = if text("why").is_empty() { String::new() } else { format!(" ({})", text("why")) };
            words += &format!("  {}: {} since {}{why}\n", text("recipient"), text("state"), vietnam(text("since")));
        }
    }
    out.data(&shown, words)
}

fn export(args: &ExportArgs, out: Out) -> Result<(), Failure> {
    let recipient = args.recipient.as_ref().map_or_else(String::new, |code| format!("?recipient={code}"));
    let zip = args.broker.control()?.bytes(&format!("/v1/dispatches/{}/bundle{recipient}", args.id))?;
    let path = args.out.clone().unwrap_or_else(|| format!("{}.zip", args.id).into());
    write_new(&path, |file| Ok(std::io::Write::write_all(file, &zip)?))?;
    out.data(&json!({"id": args.id, "file": path}), path.display())
}

fn vietnam(text: &str) -> String {
    text.parse::<Timestamp>().map_or_else(|_| text.to_owned(), Timestamp::to_vietnam)
}
