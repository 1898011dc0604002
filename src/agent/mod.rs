//! `docaxis agent`: one node's agent.

mod join;

use clap::Subcommand;

use crate::out::{Failure, Out};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join an exchange with the token that its authority printed. An interrupted join is repeated by the same command.
    Join(join::Join),
}

pub fn run(command: Command, out: Out) -> Result<(), Failure> {
    match command {
        Command::Join(args) => join::run(&args, out),
    }
}
