//! `docaxis broker backup|restore|rebuild`: copies of the broker's data, and its index.

use std::path::{Path, PathBuf};

use clap::Args;
use docaxis_backup::BackupError;
use docaxis_broker::backup::{self, Error};
use docaxis_broker::store::StoreError;
use docaxis_protocol::ReasonCode;
use serde_json::{Value, json};

use super::ConfigArg;
use crate::confirm::Confirm;
use crate::out::{Failure, Out, chain};
use crate::{clock, serve};

#[derive(Debug, Args)]
pub struct Backup {
    /// The folder of the backup. A second backup into it copies only what is new.
    dir: PathBuf,
    #[command(flatten)]
    config: ConfigArg,
}

#[derive(Debug, Args)]
pub struct Restore {
    /// The folder of the backup.
    #[arg(required_unless_present = "resume", conflicts_with = "resume")]
    dir: Option<PathBuf>,
    /// Tell the running broker that agents which are not linked now are gone for good: it opens without them, if no leaf
    /// that a checkpoint covers is missing.
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    config: ConfigArg,
    #[command(flatten)]
    confirm: Confirm,
}

/// Takes a backup: of the stopped broker under its lock, of the running one through its control socket.
pub fn backup(args: &Backup, out: Out) -> Result<(), Failure> {
    let config = args.config.load()?;
    let dir = std::path::absolute(&args.dir)?;
    let taken = match backup::take_stopped(&config, &dir, clock::now()) {
        Err(Error::Store(StoreError::Locked(_))) => {
            args.config.control()?.post("/v1/backup", &json!({ "dir": dir }), None)?
        }
        Err(error) => return Err(failure(&error)),
        Ok(taken) => backup::report(&taken),
    };
    told(&taken, &dir, out)
}

/// Prints what a backup did; a body that was damaged before is a failed verification.
pub fn told(taken: &Value, dir: &Path, out: Out) -> Result<(), Failure> {
    let words = format!(
        "{} holds a backup of {}: {} files, {} bytes; {} files, {} bytes of them copied now",
        dir.display(),
        taken["taken"].as_str().unwrap_or_default(),
        taken["files"],
        taken["bytes"],
        taken["copied_files"],
        taken["copied_bytes"]
    );
    out.data(taken, words)?;
    out.talk(
        "Keys and configuration are not in it: keep copies of the identity folder and of the configuration apart.",
    );
    match taken["damaged"].as_array().filter(|damaged| !damaged.is_empty()) {
        None => Ok(()),
        Some(damaged) => {
            let names: Vec<&str> = damaged.iter().filter_map(Value::as_str).collect();
            let message = format!(
                "these files were damaged or missing before the backup; they are in it only where an earlier one had them: {}",
                names.join(", ")
            );
            Err(Failure { exit: 6, code: "damaged".into(), ..Failure::other(message) })
        }
    }
}

pub fn restore(args: &Restore, out: Out) -> Result<(), Failure> {
    let Some(dir) = &args.dir else { return resume(args, out) };
    let config = args.config.load()?;
    let data = &config.broker.data;
    let empty = backup::is_empty(data);
    if !empty {
        args.confirm.ask(out, &format!("{} is not empty: move it aside and restore?", data.display()))?;
    }
    let restored = backup::restore(dir, &config, clock::now(), !empty).map_err(|e| failure(&e))?;
    let aside = restored.aside.as_ref().map(|aside| aside.display().to_string());
    let manifest = &restored.manifest;
    let value = json!({
        "data": data, "leaves": manifest.leaves, "files": manifest.files.len(), "bytes": manifest.bytes(),
        "taken": manifest.taken, "aside": aside,
    });
    out.data(&value, format!("{} is as it was at {}: {} leaves", data.display(), manifest.taken, manifest.leaves))?;
    if let Some(aside) = aside {
        out.talk(format_args!("What was there before is in {aside}."));
    }
    out.talk(
        "Start the broker and the authority. The broker accepts nothing until its agents have given back what it lost; \
         `docaxis broker status` says whom it waits for.",
    );
    Ok(())
}

fn resume(args: &Restore, out: Out) -> Result<(), Failure> {
    let control = args.config.control()?;
    args.confirm.ask(
        out,
        "What agents that are not linked now still hold is given up; if one of them comes back with a newer checkpoint, \
         the exchange closes for good. Go on?",
    )?;
    let report: Value = control.post("/v1/restore/resume", &json!({}), None)?;
    out.data(&report, format_args!("{}", super::continuity(&report)))
}

/// Builds the index of a stopped broker anew. Progress is in the log, on stderr.
pub fn rebuild(arg: &ConfigArg, out: Out) -> Result<(), Failure> {
    serve::start_logging(out);
    let config = arg.load()?;
    let built = docaxis_broker::rebuild(&config).map_err(|e| failure(&Error::Store(e)))?;
    let seconds = built.took.as_secs_f64();
    let per_second = if seconds > 0.0 { (built.records as f64 / seconds).round() } else { 0.0 };
    let value = json!({
        "records": built.records, "leaves": built.leaves, "seconds": seconds, "records_per_second": per_second,
    });
    out.data(&value, format!("{} records in {seconds:.1} s: {per_second} records/s", built.records))
}

fn failure(error: &Error) -> Failure {
    let message = chain(error);
    match error {
        Error::Store(StoreError::Locked(_)) => {
            Failure { exit: 4, ..Failure::new(ReasonCode::Busy, message) }.hint("The broker is running. Stop it first.")
        }
        Error::Store(StoreError::DiskFull(_)) | Error::Backup(BackupError::NoRoom { .. }) => {
            Failure::new(ReasonCode::DiskFull, message)
        }
        Error::Identity(_) => Failure { exit: 7, code: "identity".into(), ..Failure::other(message) },
        Error::Backup(error) => of_backup(error, message),
        _ => Failure::other(message),
    }
}

/// What a failed backup or restore means for whoever asked.
pub fn of_backup(error: &BackupError, message: String) -> Failure {
    match error {
        BackupError::NoBackup(_) => Failure::new(ReasonCode::NotFound, message),
        BackupError::Busy(_) => Failure { exit: 4, ..Failure::new(ReasonCode::Busy, message) },
        BackupError::NoRoom { .. } => Failure::new(ReasonCode::DiskFull, message),
        BackupError::Damaged { .. } | BackupError::Manifest { .. } => {
            Failure { exit: 6, code: "damaged".into(), ..Failure::other(message) }
                .hint("Restore another backup, or put a good copy of that file into this one.")
        }
        BackupError::Foreign { .. } => Failure { exit: 5, code: "foreign".into(), ..Failure::other(message) }
            .hint("Name the folder of this one's own backup."),
        _ => Failure::other(message),
    }
}
