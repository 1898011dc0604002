//! After this node's mailbox was restored from a backup: asks the exchange to offer again what was handed over since, and
//! keeps a list of what it no longer has. Page by page, so that a lost link goes on where it was.

use std::sync::Arc;

use docaxis_protocol::frame::{Class, Frame};
use tokio::sync::watch;

use super::LinkError;
use super::session::Session;
use crate::agent::told_to_stop;
use crate::uplink::back_off;

pub async fn run(session: Arc<Session>, mut quit: watch::Receiver<bool>) -> Result<(), LinkError> {
    let link = &session.shared.config.link;
    let mut failures = 0;
    loop {
        let asked = tokio::select! {
            biased;
            () = told_to_stop(&mut quit) => return Ok(()),
            asked = ask(&session) => asked,
        };
        let pause = match asked {
            // Everything was given: nothing more is to be asked until the mailbox is restored again.
            Ok(false) => {
                told_to_stop(&mut quit).await;
                return Ok(());
            }
            Ok(true) => {
                failures = 0;
                continue;
            }
            Err(error) if error.ends_session() => return Err(error),
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, failures, "what was handed over before the restore is not offered; it is asked again");
                back_off(failures, link.retry_min, link.retry_max, session.shared.env.jitter())
            }
        };
        tokio::select! {
            biased;
            () = told_to_stop(&mut quit) => return Ok(()),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One page; says whether there may be more.
async fn ask(session: &Session) -> Result<bool, LinkError> {
    let shared = &session.shared;
    let Some(from) = shared.mailbox.restored_from().await? else { return Ok(false) };
    let mut stream = session.open().await?;
    stream.write(&Frame::Restored(from)).await?;
    stream.finish();
    // The offers of this page come in between, on streams of their own.
    let gone = match stream.read_unhurried(Class::Large).await? {
        Frame::Gone(gone) => gone,
        other => return Err(LinkError::Unexpected { found: other.name(), expected: "Gone" }),
    };
    for item in &gone.items {
        tracing::warn!(dispatch = %item.dispatch, recipient = %item.recipient, "received before the restore, and gone");
    }
    let more = gone.upto > from;
    shared.mailbox.keep_gone(gone.items, more.then_some(gone.upto)).await?;
    shared.changed();
    Ok(more)
}
