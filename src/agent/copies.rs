//! `docaxis agent backup|restore`.

use std::path::PathBuf;

use clap::Args;
use docaxis_node_agent::AgentError;
use docaxis_node_agent::backup::{self, Error};
use docaxis_node_agent::mailbox::MailboxError;
use docaxis_protocol::ReasonCode;
use serde_json::json;

use super::run::identity;
use crate::broker::{of_backup, told};
use crate::clock;
use crate::confirm::Confirm;
use crate::doc::AgentArg;
use crate::out::{Failure, Out, chain};

#[derive(Debug, Args)]
pub struct Backup {
    /// The folder of the backup. A second backup into it copies only what is new.
    dir: PathBuf,
    #[command(flatten)]
    agent: AgentArg,
}

#[derive(Debug, Args)]
pub struct Restore {
    /// The folder of the backup.
    dir: PathBuf,
    #[command(flatten)]
    agent: AgentArg,
    #[command(flatten)]
    confirm: Confirm,
}

/// Takes a backup: of the stopped agent under its lock, of the running one through its control socket.
pub fn backup(args: &Backup, out: Out) -> Result<(), Failure> {
    let config = args.agent.load()?;
    let node = identity(&config)?.node;
    let dir = std::path::absolute(&args.dir)?;
    let taken = match backup::take_stopped(&config, &node, clock::now(), &dir) {
        Err(Error::Agent(AgentError::Locked(_))) => {
            args.agent.control()?.post("/v1/backup", &json!({ "dir": dir }), None)?
        }
        Err(error) => return Err(failure(&error)),
        Ok(taken) => backup::report(&taken),
    };
    told(&taken, &dir, out)
}

pub fn restore(args: &Restore, out: Out) -> Result<(), Failure> {
    let config = args.agent.load()?;
    let node = identity(&config)?.node;
    let data = &config.agent.data;
    let empty = backup::is_empty(&config);
    if !empty {
        args.confirm.ask(out, &format!("{} is not empty: move it aside and restore?", data.display()))?;
    }
    let restored = backup::restore(&args.dir, &config, &node, clock::now(), !empty).map_err(|e| failure(&e))?;
    let aside = restored.aside.as_ref().map(|aside| aside.display().to_string());
    let manifest = &restored.manifest;
    let value = json!({
        "data": data, "files": manifest.files.len(), "bytes": manifest.bytes(), "taken": manifest.taken,
        "epoch": restored.epoch, "aside": aside,
    });
    out.data(&value, format!("{} is as it was at {}", data.display(), manifest.taken))?;
    if let Some(aside) = aside {
        out.talk(format_args!("What was there before is in {aside}."));
    }
    out.talk(
        "Start the agent: what was received after the backup is offered again, as far as the exchange still has it; \
         `docaxis agent status` names the rest.",
    );
    Ok(())
}

fn failure(error: &Error) -> Failure {
    let message = chain(error);
    match error {
        Error::Agent(AgentError::Locked(_)) => {
            Failure { exit: 4, ..Failure::new(ReasonCode::Busy, message) }.hint("The agent is running. Stop it first.")
        }
        Error::Backup(error) => of_backup(error, message),
        Error::Mailbox(MailboxError::Full) => Failure::new(ReasonCode::DiskFull, message),
        Error::Parts(error) if error.is_disk_full() => Failure::new(ReasonCode::DiskFull, message),
        _ => Failure::other(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_full_during_the_snapshot_is_no_other_failure_than_one_that_is_full_later() {
        let found = failure(&Error::Mailbox(MailboxError::Full));
        assert_eq!((found.code.as_str(), found.exit), ("disk-full", 4));
    }
}
