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
use crate::mailbox::{StatementKey, StatementRow};
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
    // Where this round over all open statements stands: what is refused again and again must not hold up what is behind it.
    let mut after = None;
    loop {
        // Cut at any point, a report is simply made again: what it carries is stored, and so is what has been answered.
        let reported = tokio::select! {
            biased;
            () = told_to_stop(&mut quit) => return Ok(()),
            reported = report(&session, connected, &mut after) => reported,
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
            biased;
            () = told_to_stop(&mut quit) => return Ok(()),
            () = shared.reports.notified() => {}
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Reports the batch behind `after`; says whether there may be more at once. At the end of all that is open, the next
/// round begins with the oldest.
async fn report(session: &Session, connected: Timestamp, after: &mut Option<StatementKey>) -> Result<bool, LinkError> {
    let shared = &session.shared;
    let now = shared.env.now();
    let limit = u32::try_from(MAX_BATCH).unwrap_or(u32::MAX);
    let first = after.is_none();
    let open = shared.mailbox.open_statements(after.take(), limit).await?;
    let last = open.last().filter(|_| open.len() == MAX_BATCH).map(StatementRow::key);
    if let Some(oldest) = open.first().filter(|oldest| first && now.since(oldest.time) > ALARM_AFTER) {
        shared.alarm(format!(
            "the exchange has given no evidence yet for the statement {} about {}",
            oldest.event, oldest.dispatch
        ));
    }
    let mut due: Vec<StatementRow> = open
        .into_iter()
        .filter(|row| {
            let handover = matches!(row.event, Event::ContentHandover | Event::ContentHandoverFailure);
            !handover || row.time < connected || now.since(row.time) > IN_FLIGHT
        })
        .collect();
    // Whatever comes of this batch, the next one is the one behind it.
    *after = last;
    if cut_to_frame(&mut due) {
        *after = due.last().map(StatementRow::key);
    }
    let more = after.is_some();
    if due.is_empty() {
        return Ok(more);
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
    let mut bad = None;
    for (row, answer) in due.into_iter().zip(answers) {
        match answer {
            // One answer that cannot be taken in must not hold up the others.
            Ok(outcome) => match offer::record(session, row.sealed, outcome).await {
                Ok(()) => {}
                // The answer is asked for again when there is room: nothing is wrong with it.
                Err(error) if error.ends_session() || error.is_disk_full() => return Err(error),
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
        None => Ok(more),
    }
}

/// Keeps as many as a frame holds; says whether any had to go.
fn cut_to_frame(rows: &mut Vec<StatementRow>) -> bool {
    let mut total = 1024;
    let fits = rows.iter().take_while(|row| {
        total += row.sealed.bytes.len() + row.sealed.chain.0.iter().map(|c| c.0.len() + 16).sum::<usize>() + 128;
        total < MAX_LARGE_FRAME_BYTES
    });
    let fits = fits.count();
    let cut = fits < rows.len();
    rows.truncate(fits);
    cut
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use docaxis_protocol::envelope::Chain;
    use docaxis_protocol::frame::Reported;
    use docaxis_protocol::key::SecretKey;
    use docaxis_protocol::{Digest, DispatchId, ReasonCode, SealedStatement, Statement, statement};

    use super::*;
    use crate::link::testing::{Exchange, code};
    use crate::mailbox::{Take, Taken};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_statement_behind_256_that_stay_refused_for_now_has_its_turn() {
        let mut exchange = Exchange::start();
        let node = exchange.join("h37", &["H37.DN.001"]);
        let agent = exchange.agent(&node, "agent");
        let hour_ago = agent.shared.env.now().minus(Duration::from_secs(3_600));
        let count = MAX_BATCH + 1;
        for n in 0..count {
            let mut random = [0; 10];
            random[..8].copy_from_slice(&(n as u64).to_be_bytes());
            let statement = Statement {
                kind_of_bytes: statement::TYPE.into(),
                exchange: "docaxis.example/test".parse().unwrap(),
                event: Event::ContentHandoverFailure,
                dispatch: DispatchId::from_parts(hour_ago, random),
                envelope_sha256: Digest::of(&random),
                recipient: code("H37.DN.001"),
                time: hour_ago,
                reasons: vec![ReasonCode::BadSeal.because("x")],
                acting: None,
            };
            let take = Take {
                id: statement.dispatch,
                recipient: statement.recipient.clone(),
                envelope_sha256: statement.envelope_sha256,
                event: statement.event,
                time: statement.time,
                statement: SealedStatement::seal(&statement, &SecretKey::from_seed(&[2; 32]), Chain::default())
                    .unwrap(),
                body: None,
            };
            assert_eq!(agent.shared.mailbox.take(take).await.unwrap(), Taken::New);
        }
        let link = exchange.accept().await;
        let mut reported = BTreeSet::new();
        for _ in 0..2 {
            let (Frame::Report(report), mut stream) = link.next("Report").await else { panic!() };
            let named = |one: &SealedStatement| Statement::parse(&one.bytes).unwrap().dispatch;
            reported.extend(report.statements.iter().map(named));
            let later = ReasonCode::Busy.because("later");
            let answers = report.statements.iter().map(|_| Err(later.clone())).collect();
            stream.write(&Frame::Reported(Reported { answers })).await.unwrap();
        }
        assert_eq!(reported.len(), count);
        agent.shutdown().await.unwrap();
    }
}
