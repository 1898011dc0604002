//! Reports statements that have no evidence yet: what officers decided, and handovers whose `Recorded` was lost.

use std::sync::Arc;
use std::time::Duration;

use docaxis_protocol::frame::{Class, Frame, Report};
use docaxis_protocol::limits::{MAX_BATCH, MAX_LARGE_FRAME_BYTES};
use docaxis_protocol::{Event, Timestamp};
use tokio::sync::watch;

use super::LinkError;
use super::offer;
use super::session::Session;
use crate::agent::told_to_stop;
use crate::mailbox::StatementRow;
use crate::uplink::back_off;

/// A statement of a handover may still be answered on its own stream; only after this does it count as lost.
const IN_FLIGHT: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// An agency's own statement without evidence for so long is an alarm.
const ALARM_AFTER: Duration = Duration::from_secs(60);

pub async fn run(session: Arc<Session>, mut quit: watch::Receiver<bool>) -> Result<(), LinkError> {
    let shared = &session.shared;
    // What was stated before this connection cannot be in flight on it.
    let connected = shared.env.now();
    let mut failures = 0;
    loop {
        // Cut at any point, a report is simply made again: what it carries is stored, and so is what has been answered.
        let reported = tokio::select! {
            () = told_to_stop(&mut quit) => return Ok(()),
            reported = report(&session, connected) => reported,
        };
        let pause = match reported {
            Ok(more) => {
                failures = 0;
                if more { Duration::ZERO } else { LOOK_EVERY }
            }
            Err(error) if error.ends_session() => return Err(error),
            Err(error) => {
                failures += 1;
                tracing::warn!(%error, failures, "a report did not come to its end; it is repeated");
                back_off(failures, shared.config.outbox.retry_min, shared.config.outbox.retry_max, shared.env.jitter())
            }
        };
        tokio::select! {
            () = told_to_stop(&mut quit) => return Ok(()),
            () = shared.reports.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Reports one batch; says whether there may be more at once.
async fn report(session: &Session, connected: Timestamp) -> Result<bool, LinkError> {
    let shared = &session.shared;
    let now = shared.env.now();
    let limit = u32::try_from(MAX_BATCH).unwrap_or(u32::MAX);
    let open = shared.mailbox.open_statements(limit).await?;
    let full = open.len() == MAX_BATCH;
    if let Some(oldest) = open.first().filter(|oldest| now.since(oldest.time) > ALARM_AFTER) {
        shared.alarm(format!(
            "the exchange has given no evidence yet for the statement {} about {}",
            oldest.event, oldest.dispatch
        ));
    }
    let due: Vec<StatementRow> = fit(open.into_iter().filter(|row| {
        let handover = matches!(row.event, Event::ContentHandover | Event::ContentHandoverFailure);
        !handover || row.time < connected || now.since(row.time) > IN_FLIGHT
    }));
    if due.is_empty() {
        return Ok(false);
    }
    let mut stream = session.open().await?;
    docaxis_failpoints::failpoint!("agent.report.sending");
    stream.write(&Frame::Report(Report { statements: due.iter().map(|row| row.sealed.clone()).collect() })).await?;
    stream.finish();
    let answers = match stream.read(Class::Large).await? {
        Frame::Reported(reported) if reported.answers.len() == due.len() => reported.answers,
        Frame::Reported(reported) => {
            let text = format!("{} answers to {} statements", reported.answers.len(), due.len());
            return Err(LinkError::Protocol(text));
        }
        other => return Err(LinkError::Unexpected { found: other.name(), expected: "Reported" }),
    };
    docaxis_failpoints::failpoint!("agent.report.answered");
    let mut postponed = false;
    let mut bad = None;
    for (row, answer) in due.into_iter().zip(answers) {
        match answer {
            // One answer that cannot be taken in must not hold up the others.
            Ok(outcome) => match offer::record(session, row.sealed, outcome).await {
                Ok(()) => {}
                Err(error) if error.ends_session() => return Err(error),
                Err(error) => {
                    shared.alarm(format!(
                        "the answer to the statement {} about {} was not taken: {error}",
                        row.event, row.dispatch
                    ));
                    bad = Some(error);
                }
            },
            Err(reason) if reason.known().text().retryable => {
                tracing::warn!(dispatch = %row.dispatch, %reason, "a statement is reported again later");
                postponed = true;
            }
            Err(reason) => {
                shared.alarm(format!(
                    "the exchange refused the statement {} about {}: {reason}",
                    row.event, row.dispatch
                ));
                let aside = shared.mailbox.statement_refused(&row, reason).await?;
                shared.clear(aside.unreferenced).await??;
            }
        }
    }
    docaxis_failpoints::failpoint!("agent.report.stored");
    shared.changed();
    match bad {
        Some(error) => Err(error),
        None => Ok(full && !postponed),
    }
}

/// As many as a frame holds.
fn fit(rows: impl Iterator<Item = StatementRow>) -> Vec<StatementRow> {
    let mut total = 1024;
    rows.take_while(|row| {
        total += row.sealed.bytes.len() + row.sealed.chain.0.iter().map(|c| c.0.len() + 16).sum::<usize>() + 128;
        total < MAX_LARGE_FRAME_BYTES
    })
    .collect()
}
