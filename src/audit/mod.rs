//! `docaxis audit`: finds, shows and checks delivery evidence.

pub mod verify;

use clap::Subcommand;

use crate::out::{Failure, Out};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Check evidence bundles against your own copy of the authority's root; needs no exchange and no network.
    Verify(verify::Args),
}

pub fn run(command: Command, out: Out) -> Result<(), Failure> {
    match command {
        Command::Verify(args) => verify::run(&args, out),
    }
}
