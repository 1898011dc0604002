//! `docaxis ca serve`: the authority's link, as a long-running process.

use std::path::Path;

use docaxis_node_agent::link::authority::{self as link, Standing};
use docaxis_node_agent::link::registrar::{Registrar, RegistrarError};
use serde_json::json;
use tokio::sync::watch;

use super::folder::authority_failure;
use crate::clock;
use crate::control::block_on;
use crate::out::{Failure, Out, chain};
use crate::serve;

pub fn run(folder: &Path, out: Out) -> Result<(), Failure> {
    serve::start_logging(out);
    let registrar = Registrar::start(folder, clock::now).map_err(|error| failure(&error))?;
    let to = block_on(async { registrar.link().await.map_err(|error| failure(&error)) })?;
    let words = format!("serving exchange {} through the broker at {}", to.identity.origin, to.address);
    out.data(&json!({"origin": to.identity.origin, "broker_address": to.address}), words)?;
    let (stop, stopped) = watch::channel(false);
    let (standing, _) = watch::channel(Standing::Away);
    let linked = std::thread::Builder::new().name("link".into()).spawn(move || {
        block_on(async {
            link::run(registrar, clock::now, standing, stopped).await;
            Ok(())
        })
    })?;
    let waited = serve::wait_for_stop(|| {
        linked.is_finished().then(|| Failure::other("the link has ended by itself; the log says why"))
    });
    let _already_ended = stop.send(true);
    linked.join().map_err(|_| Failure::other("the link's thread had panicked"))??;
    waited
}

fn failure(error: &RegistrarError) -> Failure {
    match error {
        RegistrarError::Authority(error) => authority_failure(error),
        _ => Failure { exit: 7, code: "identity".into(), ..Failure::other(chain(error)) }
            .hint("Restore the authority's folder from a backup."),
    }
}
