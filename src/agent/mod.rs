//! `docaxis agent`: one node's agent.

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
}

pub fn run(command: Command, out: Out) -> Result<(), Failure> {
    match command {
        Command::Join(args) => join::run(&args, out),
        Command::Run(arg) => run::run(&arg, out),
        Command::Check(arg) => run::check(&arg, out),
        Command::Status(arg) => run::status(&arg, out),
    }
}
