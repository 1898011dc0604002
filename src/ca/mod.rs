//! `docaxis ca`: the authority's commands. Each opens the authority's folder, makes one change, and ends; a running
//! `ca serve` sees it and tells the broker.

pub mod folder;
mod init;
mod invite;
mod revoke;
mod serve;
mod show;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::out::{Failure, Out};

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make an authority, its broker's certificates, and broker.toml.
    Init(init::Init),
    /// Connect out to the broker: publish the directory, answer requests to join, until SIGTERM.
    Serve(DirArg),
    /// Invite a node: prints the token that its administrator gives to `docaxis agent join`.
    Invite(invite::Invite),
    /// Grant a request that asked for more than its invitation; without an id, list what waits.
    Approve(invite::Approve),
    /// Revoke certificates of a node, of an agency, or one by its serial number.
    Revoke(revoke::Revoke),
    /// List every certificate that was issued.
    List(show::List),
    /// Print the revocation lists in PEM.
    Crl(show::Crl),
}

#[derive(Debug, Args)]
pub struct DirArg {
    /// The authority's folder.
    #[arg(long, alias = "authority", value_name = "DIR", env = "DOCAXIS_AUTHORITY", default_value = folder::DEFAULT)]
    pub dir: PathBuf,
}

pub fn run(command: Command, out: Out) -> Result<(), Failure> {
    match command {
        Command::Init(args) => init::run(&args, out),
        Command::Serve(args) => serve::run(&args.dir, out),
        Command::Invite(args) => invite::invite(&args, out),
        Command::Approve(args) => invite::approve(&args, out),
        Command::Revoke(args) => revoke::run(args, out),
        Command::List(args) => show::list(&args, out),
        Command::Crl(args) => show::crl(&args, out),
    }
}
