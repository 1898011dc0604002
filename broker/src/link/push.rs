//! Offers what waits for the agencies of one connected node, a bounded number at a time, in the order that `schedule`
//! gives. What does not end in a recorded outcome simply waits on and is offered again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::frame::{Class, Frame};
use docaxis_protocol::partial::rehash_time;
use docaxis_protocol::{AgencyCode, NodeId, ReasonCode, Statement};
use quinn::{Connection, RecvStream, SendStream};
use tokio::task::JoinSet;

use super::bodies::{self, BodyError};
use super::io::{self, IoError};
use super::submit::StreamError;
use crate::bells::Bell;
use crate::dispatch::{Exchange, ExchangeError, Offering, Prepared};
use crate::schedule;
use crate::store::{Seq, StoreError, Waiting};

/// Offers under way at once on one link.
const MAX_OFFERS: usize = 64;
/// How long an offer that the node did not take rests before the next try.
const REST: Duration = Duration::from_secs(5);
/// How long a delivery that is no longer due is left alone, so that its place in the queue can be cleared.
const SETTLE: Duration = Duration::from_secs(1);
/// How often all queues of a node are looked at, whether or not the bell rang.
const ROUND: Duration = Duration::from_secs(30);
/// How long the node may take from the last byte of the bodies to its statement, for it hashes and syncs meanwhile. Longer
/// where it may have kept much of large bodies, which it reads again before it asks for the rest.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(120);

type Key = (Seq, AgencyCode);

/// Runs until the connection is gone.
pub async fn run(exchange: Arc<Exchange>, node: NodeId, connection: Connection, bell: Arc<Bell>) {
    // Agencies that may have something waiting. At first all; afterwards those for whom the bell rang.
    let served = || -> BTreeSet<AgencyCode> { exchange.with_directory(|d| d.served_by(&node)).into_iter().collect() };
    let mut ours = served();
    let mut active = ours.clone();
    let mut under_way: BTreeSet<Key> = BTreeSet::new();
    let mut offers: JoinSet<Key> = JoinSet::new();
    let mut last = None;
    let mut directory = bell.directory();
    let mut round = tokio::time::interval(ROUND);
    loop {
        // What cannot be recorded is not offered.
        let open = exchange.continuity.is_open();
        let room = if open { MAX_OFFERS.saturating_sub(under_way.len()) } else { 0 };
        if room > 0 {
            let picked = match pick(&exchange, &mut active, &under_way, last.as_ref(), room) {
                Ok(picked) => picked,
                Err(error) => {
                    tracing::error!(%node, %error, "nothing can be offered: the store does not answer; the link is closed");
                    connection.close(io::code::STOPPING.into(), b"the store does not answer");
                    return;
                }
            };
            for waiting in picked {
                last = Some(waiting.recipient.clone());
                under_way.insert((waiting.seq, waiting.recipient.clone()));
                offers.spawn(offer(exchange.clone(), node.clone(), connection.clone(), waiting));
            }
        }
        tokio::select! {
            biased;
            _ = connection.closed() => return,
            // A bell may be lost with the request that was to ring it; the queue is the truth.
            _ = round.tick() => active.extend(ours.iter().cloned()),
            // An agency that moved to this node, or was merged into one of this node, may bring a queue with it; one that
            // left has taken its own along. Of a whole country's import most is about others.
            Ok(()) = directory.changed() => {
                let now = served();
                active.extend(now.difference(&ours).cloned());
                active.retain(|agency| now.contains(agency));
                ours = now;
            }
            Some(ended) = offers.join_next() => {
                // Outcomes are committed in groups: the queues are looked at once for all that ended together.
                let mut ended = Some(ended);
                while let Some(one) = ended {
                    match one {
                        Ok(key) => {
                            under_way.remove(&key);
                            if ours.contains(&key.1) {
                                active.insert(key.1);
                            }
                        }
                        Err(error) => {
                            tracing::error!(%node, %error, "an offer failed unexpectedly; the link is closed to start afresh");
                            connection.close(io::code::STOPPING.into(), b"internal error");
                            return;
                        }
                    }
                    ended = offers.try_join_next();
                }
            },
            // What was rung for an agency that has left since is its new node's; one that has just come is looked at with the
            // directory.
            rung = bell.recipients() => active.extend(rung.into_iter().filter(|agency| ours.contains(agency))),
        }
    }
}

/// The next deliveries to offer. Agencies with nothing left to offer leave `active`.
fn pick(
    exchange: &Exchange,
    active: &mut BTreeSet<AgencyCode>,
    under_way: &BTreeSet<Key>,
    last: Option<&AgencyCode>,
    room: usize,
) -> Result<Vec<Waiting>, StoreError> {
    let mut queues = Vec::new();
    let mut idle = BTreeSet::new();
    // They take no place among the offers: others flow while their bodies are asked for, or their time is to come.
    let mut held = exchange.repairs.all();
    held.extend(exchange.appointed.all());
    for agency in active.iter() {
        // Enough to look past everything of this agency that is under way already.
        let mut queue = exchange.store.waiting(agency, None, room + under_way.len() + held.len())?;
        queue.retain(|waiting| !held.contains(&waiting.seq));
        queue.retain(|Waiting { seq, recipient, .. }| {
            !docaxis_failpoints::defect!("broker.defect.dropped-on-retry" has befallen format!("{} {recipient}", seq.0))
        });
        if queue.iter().all(|waiting| under_way.contains(&(waiting.seq, waiting.recipient.clone()))) {
            idle.insert(agency.clone());
        } else {
            queues.push(queue);
        }
    }
    active.retain(|agency| !idle.contains(agency));
    Ok(schedule::next(queues, under_way, last, room))
}

async fn offer(exchange: Arc<Exchange>, node: NodeId, connection: Connection, waiting: Waiting) -> Key {
    let key = (waiting.seq, waiting.recipient.clone());
    let rest = match hand_over(&exchange, &node, &connection, waiting).await {
        Ok(Offered::Recorded) => return key,
        // It has just expired, or its outcome was recorded on another way: the queue will say so in a moment.
        Ok(Offered::NoLongerDue) => SETTLE,
        // It is not picked again before its bodies are here, or its time has come; if it could not be noted, it is found again after a rest.
        Ok(Offered::BodiesLost { noted: true } | Offered::NotYet { noted: true }) => return key,
        Ok(Offered::BodiesLost { noted: false } | Offered::NotYet { noted: false }) => REST,
        Err(error) => {
            let (seq, recipient) = (key.0.0, &key.1);
            tracing::warn!(%node, seq, %recipient, %error, "an offer was not taken; it waits on");
            docaxis_failpoints::defect!("broker.defect.dropped-on-retry" befalls format!("{seq} {recipient}"));
            REST
        }
    };
    tokio::select! {
        biased;
        () = tokio::time::sleep(rest) => {}
        _ = connection.closed() => {}
    }
    key
}

/// How an offer ended without an error.
pub enum Offered {
    Recorded,
    NoLongerDue,
    /// Its appointed time is still to come.
    NotYet {
        noted: bool,
    },
    /// Bodies are damaged or missing; nothing whole was sent of them.
    BodiesLost {
        noted: bool,
    },
}

async fn hand_over(
    exchange: &Arc<Exchange>,
    node: &NodeId,
    connection: &Connection,
    waiting: Waiting,
) -> Result<Offered, StreamError> {
    let (reader, to) = (exchange.clone(), node.clone());
    let prepared =
        exchange.workers.run(move || reader.offering(&waiting, &to)).await.map_err(ExchangeError::from)??;
    let offering = match prepared {
        Prepared::Offer(offering) => *offering,
        Prepared::NoLongerDue => return Ok(Offered::NoLongerDue),
        Prepared::NotYet(noted) => return Ok(Offered::NotYet { noted }),
        Prepared::Lost(dispatch, parts) => {
            return Ok(Offered::BodiesLost { noted: exchange.ask_sender(&dispatch, &parts) });
        }
    };
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| IoError::Lost(e.to_string()))?;
    // QUIC sends higher numbers first: an urgent letter passes in the middle of a large part.
    let _gone = send.set_priority(i32::from(offering.dispatch.priority));
    let told = converse(exchange, node, offering, &mut send, &mut recv).await;
    if let Err(error) = &told
        && let StreamError::Io(io) = error
        && io.is_fault()
    {
        let _gone = (send.reset(io.code()), recv.stop(io.code()));
    }
    if matches!(told, Ok(Offered::BodiesLost { .. })) {
        // Reset rather than finish: what is not whole must not look whole.
        let _gone = (send.reset(io::code::BODY_LOST.into()), recv.stop(io::code::BODY_LOST.into()));
    }
    told
}

/// Offers once more what was handed over before, to a node that has lost it.
pub async fn again(
    exchange: &Arc<Exchange>,
    node: &NodeId,
    connection: &Connection,
    offering: Offering,
) -> Result<Offered, StreamError> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| IoError::Lost(e.to_string()))?;
    let told = converse(exchange, node, offering, &mut send, &mut recv).await?;
    if matches!(told, Offered::BodiesLost { .. }) {
        // Reset rather than finish: what is not whole must not look whole.
        let _gone = (send.reset(io::code::BODY_LOST.into()), recv.stop(io::code::BODY_LOST.into()));
    }
    Ok(told)
}

async fn converse(
    exchange: &Arc<Exchange>,
    node: &NodeId,
    offering: Offering,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<Offered, StreamError> {
    let Offering { offer, bodies: inline, dispatch } = offering;
    let recipient = offer.recipient.clone();
    docaxis_failpoints::failpoint!("broker.offer.sending");
    io::write(send, &Frame::Offer(offer)).await?;
    for body in &inline {
        // A node that has the dispatch already stops the bodies and answers with its statement of then.
        if io::write_all(send, body).await.is_err() {
            break;
        }
    }
    docaxis_failpoints::failpoint!("broker.offer.sent");
    let bytes = dispatch.parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.size));
    let patience = HANDOVER_TIMEOUT + rehash_time(bytes);
    let sealed = loop {
        let answer = tokio::time::timeout(patience, io::read_unhurried(recv, Class::Large, "Handover"));
        match answer.await.unwrap_or(Err(IoError::Stalled))? {
            Frame::Need(need) => {
                for (index, offset) in need.parts {
                    let part = dispatch.parts.get(usize::from(index)).filter(|part| offset <= part.size);
                    let Some(part) = part else {
                        return Err(
                            IoError::Unexpected { expected: "a part of this dispatch", found: "another" }.into()
                        );
                    };
                    if !give(exchange, dispatch.seq, part, offset, send).await? {
                        let noted = exchange.ask_sender(&dispatch, &[(index, part.clone())]);
                        return Ok(Offered::BodiesLost { noted });
                    }
                }
            }
            Frame::Handover(sealed) => break sealed,
            Frame::Refused(refusal) => return Err(IoError::Refused(refusal.reason).into()),
            other => return Err(IoError::Unexpected { expected: "Need or Handover", found: other.name() }.into()),
        }
    };
    docaxis_failpoints::failpoint!("broker.handover.read");
    let about_this = Statement::parse(&sealed.bytes).is_ok_and(|s| {
        s.dispatch == dispatch.id && s.recipient == recipient && s.envelope_sha256 == dispatch.envelope_sha256
    });
    if !about_this {
        let reason = ReasonCode::Malformed.because("the statement is about something else than the offer");
        io::refuse(send, reason.clone(), exchange.now()).await?;
        return Err(IoError::Refused(reason).into());
    }
    match exchange.state(node, sealed).await? {
        Ok(outcome) => {
            docaxis_failpoints::failpoint!("broker.handover.answering");
            io::write(send, &Frame::Recorded(outcome)).await?;
            io::finish(send);
            docaxis_failpoints::failpoint!("broker.handover.answered");
            Ok(Offered::Recorded)
        }
        Err(reason) => {
            io::refuse(send, reason.clone(), exchange.now()).await?;
            Err(IoError::Refused(reason).into())
        }
    }
}

/// Sends a body. False if it is damaged or missing: then it has been set aside, and not all of it was sent.
async fn give(
    exchange: &Arc<Exchange>,
    seq: Seq,
    part: &PartDigest,
    offset: u64,
    send: &mut SendStream,
) -> Result<bool, StreamError> {
    let (reader, wanted) = (exchange.clone(), part.clone());
    let found = exchange.workers.run(move || reader.store.body(seq, &wanted)).await.map_err(ExchangeError::from)?;
    let Some(source) = found.map_err(ExchangeError::from)? else { return Ok(false) };
    let failed = match bodies::send(send, &exchange.blobs, source, part, offset).await {
        Ok(()) => return Ok(true),
        Err(failed @ BodyError::Damaged { .. }) => failed,
        Err(other) => return Err(other.into()),
    };
    let (reader, wanted) = (exchange.clone(), part.clone());
    let look = move || reader.store.set_aside(&wanted).and_then(|()| Ok(reader.store.body(seq, &wanted)?.is_none()));
    let gone = exchange.workers.run(look).await.map_err(ExchangeError::from)?.map_err(ExchangeError::from)?;
    // Whole after all: this try ends, and the next one reads it again.
    if gone { Ok(false) } else { Err(failed.into()) }
}
