//! `docaxis agent`: one node's agent.

mod copies;
mod join;
mod run;

use clap::Subcommand;

use crate::doc::AgentArg;
use crate::out::{Failure, Out};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join an exchange with the token that its authority printed. An interrupted join is repeated by the same command.
    Join(join::Join),
    /// Serve until SIGTERM.
    Run(AgentArg),
    /// Check the configuration and the identity without starting.
    Check(AgentArg),
    /// Ask the running agent how it is.
    Status(AgentArg),
    /// Copy the mailbox and its bodies to a folder, while the agent runs or is stopped.
    Backup(copies::Backup),
    /// Put a backup in the place of a stopped agent's data.
    Restore(copies::Restore),
}

pub fn run(command: Command, out: Out) -> Result<(), Failure> {
    match command {
        Command::Join(args) => join::run(&args, out),
        Command::Run(arg) => run::run(&arg, out),
        Command::Check(arg) => run::check(&arg, out),
        Command::Status(arg) => run::status(&arg, out),
        Command::Backup(args) => copies::backup(&args, out),
        Command::Restore(args) => copies::restore(&args, out),
    }
}
