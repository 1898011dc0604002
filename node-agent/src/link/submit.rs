//! Sends what the outbox holds, several dispatches at a time, in the order that `order` gives. Each try sends the very bytes that were stored when the
//! dispatch was made; only signed evidence ends it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use docaxis_protocol::envelope::Envelope;
use docaxis_protocol::frame::{Class, Done, Frame, Intake, Need, Resend, Submit, VERSION_WITHOUT_ORDER};
use docaxis_protocol::partial::rehash_time;
use docaxis_protocol::{DispatchId, Event, Evidence, Reason, ReasonCode, Timestamp, limits};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::io::Stream;
use super::precedence::BODIES;
use super::session::Session;
use super::{LinkError, offer};
use crate::agent::told_to_stop;
use crate::mailbox::{self, EvidenceRow, MailboxError, OutState, OutgoingRow};
use crate::order::{Ended, Next, Order, Places};
use crate::outbox::{self, Answer, Verdict};

/// Exchanges of `Need` and bodies in one submission: one is usual, a second follows if a body was destroyed meanwhile.
const MAX_ROUNDS: usize = 4;
/// How long a dispatch rests whose answer found no room on our disk.
const AFTER_FULL: Duration = Duration::from_secs(1);
/// How long to wait for something due when nothing says when.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

type Tried = Result<(DispatchId, Ended), LinkError>;

pub async fn run(session: Arc<Session>, mut quit: watch::Receiver<bool>) -> Result<(), LinkError> {
    let shared = session.shared.clone();
    let concurrent = shared.config.outbox.concurrent.get();
    let mut order = Order::default();
    let mut tasks: JoinSet<Tried> = JoinSet::new();
    let ended = loop {
        if let Err(error) = begin(&session, &mut order, &mut tasks, concurrent).await {
            break Err(error.into());
        }
        let now = shared.env.now();
        let pause = order.next_at(now).map_or(LOOK_AGAIN, |at| at.since(now).max(Duration::from_millis(1)));
        tokio::select! {
            biased;
            () = told_to_stop(&mut quit) => break Ok(()),
            Some(done) = tasks.join_next() => {
                // Answers come in groups, as they were committed: what is due is looked at once for all of them.
                let mut ended = Some(done);
                let mut failed = None;
                while let Some(done) = ended {
                    match done.unwrap_or(Err(LinkError::Panicked)) {
                        Ok((id, ended)) => order.ended(id, ended),
                        Err(error) => failed = failed.or(Some(error)),
                    }
                    ended = tasks.try_join_next();
                }
                if let Some(error) = failed {
                    break Err(error);
                }
            }
            () = shared.outbox.notified() => {}
            () = tokio::time::sleep(pause.min(LOOK_AGAIN)) => {}
        }
    };
    while tasks.join_next().await.is_some() {}
    ended
}

/// Reads on in the outbox, and begins what there are places for.
async fn begin(
    session: &Arc<Session>,
    order: &mut Order,
    tasks: &mut JoinSet<Tried>,
    normal: usize,
) -> Result<(), MailboxError> {
    let shared = &session.shared;
    let beside = session.welcome.version > VERSION_WITHOUT_ORDER;
    if shared.queued_again.swap(false, Ordering::Relaxed) {
        order.read_anew();
    }
    loop {
        let places = Places { normal, under_way: tasks.len() };
        let Some(least) = places.least() else { return Ok(()) };
        let found = shared.mailbox.queued_behind(order.read_from(), places).await?;
        let more = found.len() >= places.free(least);
        found.into_iter().for_each(|waits| order.add(waits));
        let next = order.next(shared.env.now(), places, beside);
        let rows = match next.is_empty() {
            true => vec![],
            false => shared.mailbox.queued_at(next.iter().map(|next| next.seq).collect()).await?,
        };
        let mut rows: BTreeMap<DispatchId, OutgoingRow> = rows.into_iter().map(|row| (row.id, row)).collect();
        let mut settled = false;
        for Next { id, behind, .. } in next {
            // Evidence about it may have come on another way.
            let Some(row) = rows.remove(&id) else {
                order.ended(id, Ended::Settled);
                settled = true;
                continue;
            };
            let session = session.clone();
            tasks.spawn(async move {
                let sent = send_one(&session, row, behind).await;
                Ok((id, unless_full(&session, sent).await?))
            });
        }
        // What followed one that was settled meanwhile may go now, and nothing else would say so.
        if !(more || settled) {
            return Ok(());
        }
    }
}

/// What could not be written down for want of room is as if it had not been tried: it is tried again, with the same bytes.
async fn unless_full(session: &Session, sent: Result<Ended, LinkError>) -> Result<Ended, LinkError> {
    match sent {
        Err(error) if error.is_disk_full() => {
            session.shared.space.ran_out();
            tokio::time::sleep(AFTER_FULL).await;
            Ok(Ended::PutBack)
        }
        sent => sent,
    }
}

/// One try. An error here is one of the mailbox: the try's own end is written there.
async fn send_one(session: &Session, row: OutgoingRow, behind: Vec<DispatchId>) -> Result<Ended, LinkError> {
    let shared = &session.shared;
    let follows = !behind.is_empty();
    let (answer, evidence) = match try_once(session, &row, behind).await {
        Ok((done, evidence)) => {
            let reason = evidence.reasons.first().cloned();
            let stored = EvidenceRow {
                leaf: done.leaf,
                dispatch: evidence.dispatch,
                recipient: None,
                event: evidence.event,
                time: evidence.time,
                signed: done.evidence,
                statement_chain: None,
                proof: None,
                stored: shared.env.now(),
            };
            let answer = match evidence.event {
                Event::SubmissionAcceptance => Answer::Accepted,
                _ => Answer::Rejected(reason.unwrap_or_else(|| ReasonCode::Other.because("no reason was given"))),
            };
            (answer, Some(stored))
        }
        // What it was to follow was not accepted, or nothing is: it is no failure of this one.
        Err(LinkError::Refused(refusal)) if follows && refusal.reason.known() == ReasonCode::Busy => {
            tracing::debug!(dispatch = %row.id, reason = %refusal.reason, "a dispatch follows when those before it were taken");
            return Ok(Ended::PutBack);
        }
        Err(LinkError::Refused(refusal)) => (Answer::Refused(refusal.reason), None),
        Err(LinkError::Mailbox(error)) => return Err(error.into()),
        Err(LinkError::Parts(error)) => {
            shared.alarm(format!("dispatch {} cannot be sent: {error}", row.id));
            let code = if error.is_disk_full() { ReasonCode::DiskFull } else { ReasonCode::DigestMismatch };
            let expires = Envelope::parse(&row.sealed.bytes).map_or(row.queued, |envelope| envelope.expires);
            (Answer::Broken { why: code.because(error.to_string()), expires }, None)
        }
        Err(error) => (Answer::Lost(error.to_string()), None),
    };
    let bounds = (shared.config.outbox.retry_min, shared.config.outbox.retry_max);
    let now = shared.env.now();
    let decide = |answer| outbox::verdict(answer, row.attempts, now, bounds, shared.env.jitter());
    let (state, why) = match decide(answer) {
        Verdict::Accepted => (OutState::Accepted, None),
        Verdict::Rejected(why) => {
            tracing::warn!(dispatch = %row.id, %why, "a dispatch was rejected");
            (OutState::Rejected, Some(why))
        }
        Verdict::RetryAt { at, why } => return postpone(session, &row, at, why).await,
    };
    let (at, leaf) = evidence.as_ref().map_or((now, 0), |evidence| (evidence.time, evidence.leaf));
    if !shared.mailbox.settle(row.id, state, at, why, evidence).await? {
        let text = mailbox::contradiction(leaf);
        shared.alarm(text.clone());
        if let Verdict::RetryAt { at, why } = decide(Answer::Lost(text)) {
            return postpone(session, &row, at, why).await;
        }
    }
    docaxis_failpoints::failpoint!("agent.submit.settled");
    shared.changed();
    Ok(Ended::Settled)
}

async fn postpone(session: &Session, row: &OutgoingRow, until: Timestamp, why: Reason) -> Result<Ended, LinkError> {
    let shared = &session.shared;
    tracing::info!(dispatch = %row.id, %why, at = %until, "a dispatch is tried again later");
    shared.mailbox.postpone(row.id, until, why.clone()).await?;
    shared.changed();
    let expires = Envelope::parse(&row.sealed.bytes).ok().map(|envelope| envelope.expires);
    Ok(Ended::Postponed { attempts: row.attempts.saturating_add(1), until, why, expires })
}

async fn try_once(
    session: &Session,
    row: &OutgoingRow,
    behind: Vec<DispatchId>,
) -> Result<(Done, Evidence), LinkError> {
    let envelope = Envelope::parse(&row.sealed.bytes).map_err(|e| refused_here(session, e.reason()))?;
    let inline = choose_inline(&envelope, |_| true);
    let bodies = read_inline(session, &envelope, &inline).await?;
    let mut stream = session.open().await?;
    // Lower numbers would be sent later; urgent dispatches go before normal ones on a busy link.
    let _closed = stream.send.set_priority(i32::from(envelope.priority));
    if !behind.is_empty() {
        stream.write(&Frame::Behind(behind)).await?;
    }
    converse(session, &mut stream, row, &envelope, (inline, bodies)).await
}

/// The exchange lost bodies of a dispatch that it accepted, and asks for them on a stream of its own: the same submission
/// once more, with no more bodies at once than it asked for.
pub async fn resend(session: &Session, mut stream: Stream, asked: Resend) -> Result<(), LinkError> {
    let shared = &session.shared;
    let row = shared.mailbox.outgoing(asked.dispatch).await?.filter(|row| row.sender == asked.sender);
    let Some(row) = row else {
        let text = format!("this node holds no dispatch {} of {}", asked.dispatch, asked.sender);
        return stream.refuse(shared, ReasonCode::NotFound.because(text)).await;
    };
    let envelope = Envelope::parse(&row.sealed.bytes).map_err(|e| refused_here(session, e.reason()))?;
    let wanted = (0u16..).zip(&envelope.parts).filter(|(index, _)| asked.parts.contains(index));
    let (_, damaged) = offer::whole(session, wanted.map(|(_, part)| part.sha256).collect()).await?;
    if let Some(error) = damaged.first() {
        shared.alarm(format!("the exchange lost bodies of dispatch {}, and they are lost here too: {error}", row.id));
        return stream.refuse(shared, ReasonCode::NotFound.because(format!("the sender's copy: {error}"))).await;
    }
    let inline = choose_inline(&envelope, |index| asked.parts.contains(&index));
    let bodies = read_inline(session, &envelope, &inline).await?;
    converse(session, &mut stream, &row, &envelope, (inline, bodies)).await?;
    tracing::warn!(dispatch = %row.id, parts = ?asked.parts, "the exchange lost bodies and was given them once more");
    Ok(())
}

/// One submission on one stream, up to signed evidence about these very bytes.
async fn converse(
    session: &Session,
    stream: &mut Stream,
    row: &OutgoingRow,
    envelope: &Envelope,
    (inline, bodies): (Vec<u16>, Vec<u8>),
) -> Result<(Done, Evidence), LinkError> {
    let shared = &session.shared;
    docaxis_failpoints::failpoint!("agent.submit.sending");
    stream.write(&Frame::Submit(Submit { envelope: row.sealed.clone(), inline })).await?;
    stream.write_raw(Bytes::from(bodies)).await?;
    docaxis_failpoints::failpoint!("agent.submit.sent");
    // A broker that has seen enough answers before all bodies are sent: then its answer counts, not our failed write.
    let mut early = None;
    // What the broker kept of an earlier try it reads again before it asks for the rest.
    let bytes = envelope.parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.size));
    let patience = stream.patience + rehash_time(bytes);
    let mut transfer = None;
    for _ in 0..MAX_ROUNDS {
        let frame = match (stream.read_within(Class::Large, patience).await, early.take()) {
            (Ok(Frame::Need(_)) | Err(_), Some(error)) => return Err(error),
            (read, _) => read?,
        };
        match frame {
            Frame::Need(Need { parts }) => {
                docaxis_failpoints::failpoint!("agent.submit.needed");
                let mut needed = Vec::with_capacity(parts.len());
                for (index, offset) in parts {
                    match envelope.parts.get(usize::from(index)).filter(|part| offset <= part.size) {
                        Some(part) => needed.push((part.sha256, offset, part.size - offset)),
                        None => return Err(LinkError::Protocol(format!("it asks for byte {offset} of part {index}"))),
                    }
                }
                let transfer = transfer.get_or_insert_with(|| shared.transfers.begin(row.id.to_string(), bytes));
                transfer.needs(needed.iter().fold(0, |sum, (_, _, left)| sum.saturating_add(*left)));
                let sending = session.precedence.begin(envelope.priority);
                let _closed = stream.send.set_priority(BODIES);
                for (sha256, offset, left) in needed {
                    let range = (sha256, offset, offset + left);
                    if let Err(error) = stream.write_body(shared, range, (&sending, transfer)).await {
                        early = Some(error);
                        break;
                    }
                }
            }
            Frame::Done(done) => {
                stream.finish();
                let evidence = verify(session, row, &done)?;
                docaxis_failpoints::failpoint!("agent.submit.answered");
                return Ok((done, evidence));
            }
            other => return Err(LinkError::Unexpected { found: other.name(), expected: "Need or Done" }),
        }
    }
    Err(LinkError::Protocol(format!("it asked for bodies {MAX_ROUNDS} times")))
}

fn refused_here(session: &Session, reason: Reason) -> LinkError {
    LinkError::Refused(Box::new(docaxis_protocol::frame::Refusal { reason, time: session.shared.env.now() }))
}

/// The small bodies that go with the envelope, of those that are wanted, each digest once.
fn choose_inline(envelope: &Envelope, wanted: impl Fn(u16) -> bool) -> Vec<u16> {
    let mut total = 0;
    let mut seen = BTreeSet::new();
    let mut chosen = Vec::new();
    for (index, part) in (0..).zip(&envelope.parts) {
        let size = usize::try_from(part.size).unwrap_or(usize::MAX);
        let fits = size <= limits::MAX_INLINE_BODY_BYTES && total + size <= limits::MAX_INLINE_TOTAL_BYTES;
        if fits && wanted(index) && seen.insert(part.sha256) {
            total += size;
            chosen.push(index);
        }
    }
    chosen
}

async fn read_inline(session: &Session, envelope: &Envelope, inline: &[u16]) -> Result<Vec<u8>, LinkError> {
    let mut all = Vec::new();
    for part in inline.iter().filter_map(|index| envelope.parts.get(usize::from(*index))) {
        all.extend(session.shared.read_small_body(part.sha256).await??);
    }
    Ok(all)
}

/// Only evidence about these very bytes ends the dispatch.
fn verify(session: &Session, row: &OutgoingRow, done: &Done) -> Result<Evidence, LinkError> {
    let evidence = session.shared.keys.verify(&session.identity, &done.evidence)?;
    let expected = match done.intake {
        Intake::Accepted | Intake::Already => Event::SubmissionAcceptance,
        Intake::Rejected => Event::SubmissionRejection,
    };
    let ours = evidence.event == expected
        && evidence.dispatch == row.id
        && evidence.envelope_sha256 == row.sealed.digest()
        && evidence.sender == row.sender;
    if ours {
        Ok(evidence)
    } else {
        let text = format!("its {} is not about dispatch {}", evidence.event, row.id);
        session.shared.alarm(format!("the broker does not keep to the protocol: {text}"));
        Err(LinkError::Protocol(text))
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use docaxis_protocol::frame::EvidenceItem;
    use docaxis_protocol::{Digest, Part, PartRole};

    use super::*;
    use crate::link::testing::{Exchange, code, until};
    use crate::{Agent, Draft, DraftPart, Env, Identity, Source};

    #[test]
    fn small_bodies_go_inline_once_each_until_the_bound() {
        let part = |name: u8, size: u64| Part {
            name: "x".into(),
            media_type: "a/b".into(),
            size,
            sha256: Digest::of(&[name]),
            role: PartRole::Document,
        };
        let kib = |n: u64| n << 10;
        let parts = vec![
            part(0, kib(64)),
            part(0, kib(64)),
            part(1, kib(64) + 1),
            part(2, kib(64)),
            part(3, kib(64)),
            part(4, kib(60)),
            part(5, kib(5)),
            part(6, kib(4)),
        ];
        let mut envelope = crate::link::testing::envelope("000.00.00.G22", &["H37.DN.001"]);
        envelope.parts = parts;
        assert_eq!(choose_inline(&envelope, |_| true), [0, 3, 4, 5, 7]);
        assert_eq!(choose_inline(&envelope, |index| index > 5), [6, 7]);
    }

    /// What an earlier connection, or a copy of the mailbox that was put back, left undecided: the exchange's evidence comes
    /// on its own stream.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_follows_dispatches_that_were_settled_by_other_evidence_goes_without_being_asked_for() {
        let mut exchange = Exchange::start();
        let node = exchange.join("g22", &["000.00.00.G22"]);
        let mut config = exchange.config("agent");
        config.outbox.concurrent = NonZeroUsize::new(2).unwrap();
        let agent = Agent::start(config, Identity::of(&node).unwrap(), Env::real()).unwrap();
        let draft = |bytes: usize| {
            let mut draft = Draft::new(code("000.00.00.G22"), vec![code("H37.DN.001")]);
            let (name, media_type) = ("công văn.pdf".into(), "application/pdf".into());
            draft.parts =
                vec![DraftPart { name, media_type, role: PartRole::Document, source: Source::Bytes(vec![7; bytes]) }];
            draft
        };
        let mut ids = Vec::new();
        for bytes in [100_000, 1, 2, 3] {
            ids.push(agent.compose(draft(bytes)).await.unwrap());
        }
        let link = exchange.accept().await;
        let (Frame::Submit(large), mut stream) = link.next("Submit").await else { panic!() };
        let (Frame::Follow(_), mut news) = link.next("Follow").await else { panic!() };
        for (leaf, id) in (1u64..).zip(&ids[1..3]) {
            let envelope = agent.shared.mailbox.outgoing(*id).await.unwrap().unwrap().sealed;
            let evidence = exchange.evidence(Event::SubmissionAcceptance, &envelope, |_| ());
            let item = EvidenceItem { sender: code("000.00.00.G22"), leaf, evidence, statement_chain: None };
            news.write(&Frame::Evidence(vec![item])).await.unwrap();
        }
        for id in &ids[1..3] {
            let state = async || agent.show(*id).await.unwrap().outgoing.unwrap().state;
            until(&agent, async || (state().await == OutState::Accepted).then_some(())).await;
        }
        let evidence = exchange.evidence(Event::SubmissionAcceptance, &large.envelope, |_| ());
        stream.write(&Frame::Done(Done { intake: Intake::Accepted, leaf: 0, evidence })).await.unwrap();
        let (Frame::Submit(last), _stream) = link.next("Submit").await else { panic!() };
        assert_eq!(Envelope::parse(&last.envelope.bytes).unwrap().id, ids[3]);
        agent.shutdown().await.unwrap();
    }
}
