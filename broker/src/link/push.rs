//! Offers what waits for the agencies of one connected node, a bounded number at a time, in the order that `schedule`
//! gives. What does not end in a recorded outcome simply waits on and is offered again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
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
use super::line::{Blocked, Ended, Key, Line, TRIES};
use super::precedence::{BODIES, Precedence, Sending};
use super::submit::StreamError;
use crate::bells::Bell;
use crate::dispatch::{Exchange, ExchangeError, Offering, Prepared, Way};
use crate::schedule;
use crate::store::{Lane, Seq, StoreError, Waiting};
use crate::turns::{PutBack, Turn};

/// How long an offer that the node did not take rests before the next try.
const REST: Duration = Duration::from_secs(5);
/// How long one rests that was put back behind another of its sender.
const PUT_BACK: Duration = Duration::from_millis(100);
/// How long a delivery that is no longer due is left alone, so that its place in the queue can be cleared.
const SETTLE: Duration = Duration::from_secs(1);
/// How often all queues of a node are looked at, whether or not the bell rang.
const ROUND: Duration = Duration::from_secs(30);
/// How long the node may take from the last byte of the bodies to its statement, for it hashes and syncs meanwhile. Longer
/// where it may have kept much of large bodies, which it reads again before it asks for the rest.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(120);

/// Deliveries of one lane that are read at a time, beside those that are under way.
const MIN_PAGE: usize = 16;
/// Deliveries of one agency and priority that are looked through in one go for some that may be begun. Behind more that have to
/// wait it goes on at the next turn.
const MAX_LOOKED_THROUGH: usize = 2048;

/// Runs until the connection is gone.
pub async fn run(
    exchange: Arc<Exchange>,
    (node, connection, precedence): (NodeId, Connection, Arc<Precedence>),
    bell: Arc<Bell>,
) {
    let served = || -> BTreeSet<AgencyCode> { exchange.with_directory(|d| d.served_by(&node)).into_iter().collect() };
    let mut ours = served();
    let mut active = Active::default();
    active.ring(ours.iter().cloned());
    let mut line = Line::default();
    let mut offers: JoinSet<(Key, Ended)> = JoinSet::new();
    let mut last = BTreeMap::new();
    let mut directory = bell.directory();
    let mut round = tokio::time::interval(ROUND);
    loop {
        // What cannot be recorded is not offered.
        let open = exchange.continuity.is_open();
        let mut more = false;
        if let Some(least) = schedule::least_with_a_place(line.len()).filter(|_| open) {
            let picked = pick(&exchange, &mut active, &mut line, (&last, least)).and_then(|(picked, unread)| {
                more = unread;
                let begin = |waiting: Waiting| Ok((line.begin(&waiting, &|seq| exchange.store.sender(seq))?, waiting));
                picked.into_iter().map(begin).collect::<Result<Vec<_>, _>>()
            });
            let picked = match picked {
                Ok(picked) => picked,
                Err(error) => {
                    tracing::error!(%node, %error, "nothing can be offered: the store does not answer; the link is closed");
                    connection.close(io::code::STOPPING.into(), b"the store does not answer");
                    return;
                }
            };
            for (turn, waiting) in picked {
                last.insert(waiting.priority, waiting.recipient.clone());
                let to = (node.clone(), connection.clone(), precedence.clone());
                offers.spawn(offer(exchange.clone(), to, waiting, turn));
            }
        }
        tokio::select! {
            biased;
            _ = connection.closed() => return,
            // A bell may be lost with the request that was to ring it; the queue is the truth.
            _ = round.tick() => {
                line.look_anew();
                active.ring(ours.iter().cloned());
            }
            // An agency that moved to this node, or was merged into one of this node, may bring a queue with it; one that
            // left has taken its own along. Of a whole country's import most is about others.
            Ok(()) = directory.changed() => {
                let now = served();
                active.ring(now.difference(&ours).cloned());
                active.0.retain(|agency, _| now.contains(agency));
                ours = now;
            }
            Some(ended) = offers.join_next() => {
                // Outcomes are committed in groups: the queues are looked at once for all that ended together.
                let mut ended = Some(ended);
                while let Some(one) = ended {
                    match one {
                        Ok((key, how)) => {
                            line.end(&key, how);
                            if ours.contains(&key.1) {
                                active.ring([key.1]);
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
            rung = bell.recipients() => active.ring(rung.into_iter().filter(|agency| ours.contains(agency))),
            () = tokio::task::yield_now(), if more => {}
        }
    }
}

/// Agencies that may have something waiting, each with a priority below which it may be: at first all of them, afterwards
/// those for whom the bell rang. While few places are left nobody is looked at twice for the same.
#[derive(Debug, Default)]
struct Active(BTreeMap<AgencyCode, u8>);

impl Active {
    fn ring(&mut self, agencies: impl IntoIterator<Item = AgencyCode>) {
        self.0.extend(agencies.into_iter().map(|agency| (agency, u8::MAX)));
    }

    fn forget_idle(&mut self) {
        self.0.retain(|_, below| *below > 0);
    }
}

/// The next deliveries to offer, and whether there may be others behind what has to wait. Agencies with nothing left to offer
/// leave `active`.
fn pick(
    exchange: &Exchange,
    active: &mut Active,
    line: &mut Line,
    (last, least): (&BTreeMap<u8, AgencyCode>, u8),
) -> Result<(Vec<Waiting>, bool), StoreError> {
    let mut lanes_of = Vec::new();
    for (agency, below) in active.0.iter_mut().filter(|(_, below)| least < **below) {
        let lanes = exchange.store.lanes(agency, least)?;
        if lanes.is_empty() {
            *below = least;
        } else {
            lanes_of.push((agency, below, lanes));
        }
    }
    if lanes_of.is_empty() {
        active.forget_idle();
        return Ok((vec![], false));
    }
    let mut unread = None;
    let mut queues = Vec::new();
    // They take no place among the offers: others flow while their bodies are asked for, or their time is to come.
    let mut held = exchange.repairs.all();
    held.extend(exchange.appointed.all());
    line.hold(held);
    for (agency, below, lanes) in lanes_of {
        let (queue, of) = may_begin(exchange, (agency, lanes), line)?;
        unread = unread.max(of);
        if !queue.is_empty() {
            queues.push(queue);
        } else if of.is_none() {
            *below = least;
        }
    }
    active.forget_idle();
    let picked = schedule::next(queues, &line.keys(), last);
    let more = unread.is_some_and(|priority| line.len() + picked.len() < schedule::places(priority));
    Ok((picked, more))
}

/// The first of an agency's queue that may be offered now, as many as have places on the link: what is under way is not, nor
/// what has to wait for it. Urgent ones first; within a priority the senders take turns, by lanes. And the highest priority of
/// which not all was looked through.
fn may_begin(
    exchange: &Exchange,
    (agency, mut lanes): (&AgencyCode, Vec<Lane>),
    line: &mut Line,
) -> Result<(Vec<Waiting>, Option<u8>), StoreError> {
    let busy = line.busy(agency);
    let (mut found, mut unread) = (Vec::new(), None);
    for lanes in lanes.chunk_by_mut(|one, next| one.priority == next.priority) {
        let Some(priority) = lanes.first().map(|lane| lane.priority) else { break };
        let upto = schedule::places(priority).saturating_sub(line.len());
        let room = upto.saturating_sub(found.len());
        if room == 0 {
            break;
        }
        line.in_turn(agency, lanes);
        let most = MAX_LOOKED_THROUGH / lanes.len();
        let mut in_turn: Vec<VecDeque<Waiting>> = Vec::new();
        for &lane in &*lanes {
            // One of each is enough.
            if in_turn.len() == room {
                break;
            }
            // Enough to look past everything of this lane that is under way already.
            let page = room.max(MIN_PAGE) + busy.get(&lane).copied().unwrap_or(0);
            let (queue, ended) = may_begin_in(exchange, (agency, lane), line, (room, page, most))?;
            if !ended {
                unread = unread.max(Some(priority));
            }
            if !queue.is_empty() {
                in_turn.push(queue.into());
            }
        }
        while found.len() < upto && in_turn.iter().any(|queue| !queue.is_empty()) {
            found.extend(in_turn.iter_mut().filter_map(VecDeque::pop_front));
        }
        found.truncate(upto);
    }
    Ok((found, unread))
}

/// The same for one lane of the queue, which is read in pages, and looked through no further than `most` if nothing is found.
fn may_begin_in(
    exchange: &Exchange,
    (agency, lane): (&AgencyCode, Lane),
    line: &mut Line,
    (room, page, most): (usize, usize, usize),
) -> Result<(Vec<Waiting>, bool), StoreError> {
    let (mut found, mut looked_through, mut ended) = (Vec::new(), 0, false);
    let mut here = Blocked::default();
    while !ended && found.len() < room && looked_through < most.max(page + 1) {
        let mut queue = exchange.store.waiting(agency, lane, here.after, page)?;
        ended = queue.len() < page;
        looked_through += queue.len();
        here.after = queue.last().map(|newest| newest.seq).or(here.after);
        queue.retain(|waiting| !line.is_held(waiting.seq));
        queue.retain(|Waiting { seq, recipient, .. }| {
            !docaxis_failpoints::defect!("broker.defect.dropped-on-retry" has befallen format!("{} {recipient}", seq.0))
        });
        line.retain(&mut queue, &mut here.senders, &|seq| exchange.store.sender(seq))?;
        found.append(&mut queue);
        if found.is_empty() {
            // What had to wait or was held still does.
            line.skip(agency, lane, &mut here);
            line.note(agency, lane, here.clone());
        }
    }
    Ok((found, ended))
}

async fn offer(
    exchange: Arc<Exchange>,
    (node, connection, precedence): (NodeId, Connection, Arc<Precedence>),
    waiting: Waiting,
    (turn, failures): (Turn, u32),
) -> (Key, Ended) {
    let key = (waiting.seq, waiting.recipient.clone());
    let (rest, ended) = match hand_over(&exchange, (&node, &connection, &precedence), waiting, &turn).await {
        Ok(Offered::Recorded) => return (key, Ended::Done),
        Ok(Offered::NotYetItsTurn) => (PUT_BACK, Ended::PutBack),
        // It has just expired, or its outcome was recorded on another way: the queue will say so in a moment. Until it does, those
        // behind wait: it might be due after all.
        Ok(Offered::NoLongerDue) => {
            turn.fail();
            (SETTLE, Ended::PutBack)
        }
        // It is not picked again before its bodies are here, or its time has come, and holds up nobody meanwhile; if it could not
        // be noted, it is found again after a rest.
        Ok(Offered::BodiesLost { noted } | Offered::NotYet { noted }) => {
            turn.pass();
            if noted {
                return (key, Ended::Done);
            }
            (REST, Ended::Done)
        }
        Err(error) => {
            let (seq, recipient) = (key.0.0, &key.1);
            tracing::warn!(%node, seq, %recipient, %error, "an offer was not taken; it waits on");
            docaxis_failpoints::defect!("broker.defect.dropped-on-retry" befalls format!("{seq} {recipient}"));
            // A node without room takes nothing, and what fails here is no fault of the dispatch: it is no worse than those behind.
            let own = match &error {
                StreamError::Io(IoError::Refused(reason)) => !has_no_room(reason.known()),
                StreamError::Exchange(_) | StreamError::Body(BodyError::NoRoom(_) | BodyError::Thread(_)) => false,
                StreamError::Body(BodyError::Blob(error)) => !error.is_disk_full(),
                StreamError::Io(_) | StreamError::Body(_) => true,
            };
            if own && failures + 1 >= TRIES {
                turn.pass();
            } else {
                turn.fail();
            }
            (REST, if own { Ended::NotTaken } else { Ended::PutBack })
        }
    };
    tokio::select! {
        biased;
        () = tokio::time::sleep(rest) => {}
        _ = connection.closed() => {}
    }
    (key, ended)
}

const fn has_no_room(reason: ReasonCode) -> bool {
    matches!(reason, ReasonCode::DiskFull | ReasonCode::OverQuota)
}

/// How an offer ended without an error.
pub enum Offered {
    Recorded,
    NoLongerDue,
    /// Earlier ones of the same sender come first.
    NotYetItsTurn,
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
    (node, connection, precedence): (&NodeId, &Connection, &Arc<Precedence>),
    waiting: Waiting,
    turn: &Turn,
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
    let small = offering.offer.inline.len() == offering.dispatch.parts.len();
    if turn.begin(small).await == Err(PutBack) {
        return Ok(Offered::NotYetItsTurn);
    }
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| IoError::Lost(e.to_string()))?;
    // QUIC sends higher numbers first. Large parts come behind all of it.
    let _gone = send.set_priority(i32::from(offering.dispatch.priority));
    let told = converse((exchange, node, precedence), offering, turn, (&mut send, &mut recv)).await;
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
    (node, connection, precedence): (&NodeId, &Connection, &Arc<Precedence>),
    offering: Offering,
) -> Result<Offered, StreamError> {
    let (mut send, mut recv) = connection.open_bi().await.map_err(|e| IoError::Lost(e.to_string()))?;
    // Its outcome is on record: nothing is ahead of it.
    let told = converse((exchange, node, precedence), offering, &Turn::default(), (&mut send, &mut recv)).await?;
    if matches!(told, Offered::BodiesLost { .. }) {
        // Reset rather than finish: what is not whole must not look whole.
        let _gone = (send.reset(io::code::BODY_LOST.into()), recv.stop(io::code::BODY_LOST.into()));
    }
    Ok(told)
}

async fn converse(
    (exchange, node, precedence): (&Arc<Exchange>, &NodeId, &Arc<Precedence>),
    offering: Offering,
    turn: &Turn,
    (send, recv): (&mut SendStream, &mut RecvStream),
) -> Result<Offered, StreamError> {
    let Offering { offer, bodies: inline, dispatch } = offering;
    let recipient = offer.recipient.clone();
    docaxis_failpoints::failpoint!("broker.offer.sending");
    let ahead = precedence.frames();
    io::write(send, &Frame::Offer(offer)).await?;
    for body in &inline {
        // A node that has the dispatch already stops the bodies and answers with its statement of then.
        if io::write_all(send, body).await.is_err() {
            break;
        }
    }
    drop(ahead);
    docaxis_failpoints::failpoint!("broker.offer.sent");
    let bytes = dispatch.parts.iter().fold(0u64, |sum, part| sum.saturating_add(part.size));
    let patience = HANDOVER_TIMEOUT + rehash_time(bytes);
    let sealed = loop {
        let answer = tokio::time::timeout(patience, io::read_unhurried(recv, Class::Large, "Handover"));
        match answer.await.unwrap_or(Err(IoError::Stalled))? {
            Frame::Need(need) => {
                let sending = precedence.begin(dispatch.priority);
                let _gone = send.set_priority(BODIES);
                for (index, offset) in need.parts {
                    let part = dispatch.parts.get(usize::from(index)).filter(|part| offset <= part.size);
                    let Some(part) = part else {
                        return Err(
                            IoError::Unexpected { expected: "a part of this dispatch", found: "another" }.into()
                        );
                    };
                    if !give(exchange, dispatch.seq, (part, offset), (send, &sending)).await? {
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
    match exchange.state(node, sealed, Way::Offered(turn)).await? {
        Ok(outcome) => {
            docaxis_failpoints::failpoint!("broker.handover.answering");
            let _ahead = precedence.frames();
            io::write(send, &Frame::Recorded(outcome)).await?;
            io::finish(send);
            docaxis_failpoints::failpoint!("broker.handover.answered");
            Ok(Offered::Recorded)
        }
        Err(reason) => {
            io::refuse(send, reason.clone(), exchange.now()).await?;
            // Its statement is as good as before: it is offered again, and the node says the same.
            if turn.is_put_back() { Ok(Offered::NotYetItsTurn) } else { Err(IoError::Refused(reason).into()) }
        }
    }
}

/// Sends a body. False if it is damaged or missing: then it has been set aside, and not all of it was sent.
async fn give(
    exchange: &Arc<Exchange>,
    seq: Seq,
    (part, offset): (&PartDigest, u64),
    (send, sending): (&mut SendStream, &Sending),
) -> Result<bool, StreamError> {
    let (reader, wanted) = (exchange.clone(), part.clone());
    let found = exchange.workers.run(move || reader.store.body(seq, &wanted)).await.map_err(ExchangeError::from)?;
    let Some(source) = found.map_err(ExchangeError::from)? else { return Ok(false) };
    let failed = match bodies::send((send, sending), &exchange.blobs, source, (part, offset)).await {
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
