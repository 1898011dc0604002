//! The command tree, and the way from arguments to an exit code.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::out::{Failure, Lang, Out};
use crate::{agency, agent, audit, broker, ca, demo, doc};

/// A national e-document exchange: sealed dispatches between agencies, with signed delivery evidence.
#[derive(Debug, Parser)]
#[command(name = "docaxis", version, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Print one JSON document; errors too.
    #[arg(long, global = true)]
    json: bool,
    /// The language of messages [default: the locale's].
    #[arg(long, global = true, value_enum)]
    lang: Option<Lang>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// The whole exchange in miniature on this machine: nodes, a dispatch, a killed broker, evidence.
    Demo(demo::DemoArgs),
    /// The authority: who may join, and what was revoked.
    #[command(subcommand)]
    Ca(ca::Command),
    /// The directory of agencies.
    #[command(subcommand)]
    Agency(agency::Command),
    /// A node's agent.
    #[command(subcommand)]
    Agent(agent::Command),
    /// The central broker.
    #[command(subcommand)]
    Broker(broker::Command),
    /// Sending and receiving official dispatches.
    #[command(subcommand)]
    Doc(doc::Command),
    /// Evidence, and checking it without trusting the exchange.
    #[command(subcommand)]
    Audit(audit::Command),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let out = Out { json: cli.json, lang: cli.lang.unwrap_or_else(Lang::from_locale) };
    match run(cli.command, out) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(out),
    }
}

fn run(command: Command, out: Out) -> Result<(), Failure> {
    #[cfg(debug_assertions)]
    crate::failpoint::arm()?;
    match command {
        Command::Demo(args) => demo::run(&args, out),
        Command::Ca(command) => ca::run(command, out),
        Command::Agency(command) => agency::run(command, out),
        Command::Agent(command) => agent::run(command, out),
        Command::Broker(command) => broker::run(command, out),
        Command::Doc(command) => doc::run(command, out),
        Command::Audit(command) => audit::run(command, out),
    }
}

/// Help and version go where clap sends them; a wrong use is JSON if that was asked for.
fn usage(error: &clap::Error) -> ExitCode {
    let asked_for = std::env::args_os().any(|arg| arg == "--json");
    if !error.use_stderr() || !asked_for {
        let printed = error.print();
        return if error.use_stderr() || printed.is_err() { ExitCode::from(2) } else { ExitCode::SUCCESS };
    }
    let text = error.render().to_string();
    Failure::usage(text.trim().trim_start_matches("error: ")).report(Out { json: true, lang: Lang::En })
}
