//! Backup of the running broker, and the operator's word after a restore.

use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use docaxis_backup::{BackupError, Taken};
use docaxis_protocol::{Reason, ReasonCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Problem, Shares};
use crate::backup;
use crate::store::embedded::EmbeddedStore;

/// What a backup is taken of.
pub struct Copies {
    pub store: Arc<EmbeddedStore>,
    pub data: PathBuf,
}

#[derive(Deserialize)]
pub struct BackupRequest {
    /// An absolute path.
    dir: PathBuf,
}

/// Takes a backup; answers when it is durable.
pub async fn backup(State(shared): Shares, Json(request): Json<BackupRequest>) -> Result<Json<Value>, Problem> {
    let work = move || {
        let (exchange, copies) = (&shared.exchange, &shared.copies);
        backup::take(&copies.store, &copies.data, &exchange.origin, exchange.now(), &request.dir)
    };
    match tokio::task::spawn_blocking(work).await? {
        Ok(taken) => Ok(Json(report(&taken))),
        Err(error) => Err(Problem(reason(&error))),
    }
}

/// What was done, for people and programs.
pub fn report(taken: &Taken) -> Value {
    let Taken { manifest, copied } = taken;
    json!({
        "leaves": manifest.leaves, "files": manifest.files.len(), "bytes": manifest.bytes(), "taken": manifest.taken,
        "copied_files": copied.0, "copied_bytes": copied.1, "damaged": manifest.damaged,
    })
}

/// Why a backup was not taken, with its code.
pub fn reason(error: &backup::Error) -> Reason {
    let code = match error {
        backup::Error::Backup(BackupError::NoRoom { .. }) => ReasonCode::DiskFull,
        backup::Error::Backup(BackupError::Busy(_)) => ReasonCode::Busy,
        _ => ReasonCode::Other,
    };
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    code.because(text)
}

/// The operator says that nodes which are not linked will not come back.
pub async fn resume(State(shared): Shares) -> Json<Value> {
    shared.exchange.continuity.waive();
    Json(json!(shared.exchange.continuity.report(&shared.exchange)))
}
