//! Backup of the running agent.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use docaxis_backup::{BackupError, Taken};
use docaxis_protocol::ReasonCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::problem::Problem;
use crate::agent::Shared;
use crate::backup::{self, Error};
use crate::mailbox::MailboxError;

#[derive(Deserialize)]
pub(super) struct BackupRequest {
    /// An absolute path.
    dir: PathBuf,
}

/// Takes a backup; answers when it is durable.
pub(super) async fn backup(
    State(shared): State<Arc<Shared>>,
    Json(request): Json<BackupRequest>,
) -> Result<Json<Value>, Problem> {
    let node = shared.identity.load().node.clone();
    let work = move || backup::take(&shared.config.agent.data, &shared.parts, &node, shared.env.now(), &request.dir);
    match tokio::task::spawn_blocking(work).await {
        Ok(Ok(taken)) => Ok(Json(report(&taken))),
        Ok(Err(error)) => Err(problem(&error)),
        Err(error) => Err(Problem(ReasonCode::Other.because(error.to_string()))),
    }
}

/// What was done, for people and programs.
pub fn report(taken: &Taken) -> Value {
    let Taken { manifest, copied } = taken;
    json!({
        "files": manifest.files.len(), "bytes": manifest.bytes(), "taken": manifest.taken,
        "copied_files": copied.0, "copied_bytes": copied.1, "damaged": manifest.damaged,
    })
}

fn problem(error: &Error) -> Problem {
    let code = match error {
        Error::Backup(BackupError::NoRoom { .. }) | Error::Mailbox(MailboxError::Full) => ReasonCode::DiskFull,
        Error::Backup(BackupError::Busy(_)) => ReasonCode::Busy,
        _ => ReasonCode::Other,
    };
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    Problem(code.because(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_full_during_the_snapshot_is_told_as_one() {
        assert_eq!(problem(&Error::Mailbox(MailboxError::Full)).0.code, "disk-full");
    }
}
