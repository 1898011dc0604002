//! One authenticated connection: greets, then serves the streams that the peer opens. Who the peer is comes from its
//! certificate alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use docaxis_protocol::frame::{
    Class, Follow, Frame, Hello, Notices, Report, Reported, VERSION_WITHOUT_HOLDS, VERSIONS, Welcome,
};
use docaxis_protocol::limits::{MAX_BATCH, MAX_CLOCK_SKEW, MAX_ENVELOPE_BYTES};
use docaxis_protocol::{AgencyCode, NodeId, Reason, ReasonCode};
use quinn::{Connection, RecvStream, SendStream};
use tokio::task::JoinSet;

use super::again;
use super::bodies::BodyError;
use super::give_back;
use super::io::{self, IoError};
use super::precedence::Precedence;
use super::push;
use super::resend;
use super::submissions::Submissions;
use super::submit::{self, StreamError};
use crate::bells::Bell;
use crate::dispatch::{Exchange, ExchangeError, Way, size_of_item};
use crate::evidence::log::LogError;

/// How often a follower's evidence is looked for, whether or not the bell rang.
const ROUND: Duration = Duration::from_secs(30);
/// How long the streams of a lost link have to end by themselves.
pub const STREAMS_END_WITHIN: Duration = Duration::from_secs(2);
/// How long a new connection may take to say `Hello`.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Who is at the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    Node(NodeId),
    Authority,
}

/// Serves a connection until it ends.
pub async fn serve(exchange: Arc<Exchange>, connection: Connection, peer: Peer) {
    let greeted = tokio::time::timeout(HELLO_TIMEOUT, greet(&exchange, &connection, &peer)).await;
    let version = match greeted.unwrap_or(Err(IoError::Stalled)) {
        Ok(Some(version)) => version,
        // The refusal must reach the peer before the connection goes; the peer closes when it has read it.
        Ok(None) => {
            let _closed = tokio::time::timeout(HELLO_TIMEOUT, connection.closed()).await;
            connection.close(io::code::REFUSED.into(), b"refused");
            return;
        }
        Err(error) => {
            tracing::info!(?peer, %error, "a link ended before it began");
            connection.close(error.code(), error.to_string().as_bytes());
            return;
        }
    };
    match peer {
        Peer::Node(node) => serve_node(exchange, connection, node, version).await,
        Peer::Authority => serve_authority(exchange, connection).await,
    }
}

/// `Hello` and `Welcome`, and the version that both speak; none if the peer was refused in words.
async fn greet(exchange: &Arc<Exchange>, connection: &Connection, peer: &Peer) -> Result<Option<u16>, IoError> {
    let (mut send, mut recv) = connection.accept_bi().await.map_err(|e| IoError::Lost(e.to_string()))?;
    let hello = match io::read(&mut recv, Class::Control, "Hello").await? {
        Frame::Hello(hello) => hello,
        other => return Err(IoError::Unexpected { expected: "Hello", found: other.name() }),
    };
    let now = exchange.now();
    if let Some(reason) = objection(&hello, now) {
        tracing::warn!(?peer, %reason, software = %hello.software, "a link was refused");
        io::refuse(&mut send, reason, now).await?;
        return Ok(None);
    }
    let spoken = VERSIONS.into_iter().find(|version| hello.versions.contains(version));
    let version = spoken.unwrap_or(VERSION_WITHOUT_HOLDS);
    if version > VERSION_WITHOUT_HOLDS {
        compare(exchange, peer, &mut recv).await?;
    }
    let agencies = match peer {
        Peer::Node(node) => exchange.with_directory(|d| d.hosted_by(node)),
        Peer::Authority => Vec::new(),
    };
    let welcome = Welcome {
        version,
        software: concat!("docaxis ", env!("CARGO_PKG_VERSION")).into(),
        time: now,
        origin: exchange.origin.clone(),
        // A hub with thousands of agencies learns them from the directory; the frame stays within its bound.
        agencies: agencies.into_iter().take(MAX_BATCH).collect(),
        max_part_bytes: exchange.max_part_bytes,
        evidence_chain: exchange.evidence_chain.clone(),
        log_chain: exchange.log_chain.clone(),
        crl_number: 0,
        directory_version: exchange.with_directory(|d| d.version()),
    };
    io::write(&mut send, &Frame::Welcome(welcome)).await?;
    io::finish(&mut send);
    Ok(Some(version))
}

/// What the node holds is compared with our log before anything else of it is served.
async fn compare(exchange: &Arc<Exchange>, peer: &Peer, recv: &mut RecvStream) -> Result<(), IoError> {
    let holds = match io::read(recv, Class::Control, "Holds").await? {
        Frame::Holds(holds) => holds,
        other => return Err(IoError::Unexpected { expected: "Holds", found: other.name() }),
    };
    let Peer::Node(node) = peer.clone() else { return Ok(()) };
    let keeper = exchange.clone();
    let compared = exchange.workers.run(move || keeper.continuity.compare(&keeper, &node, &holds)).await;
    compared.map_err(|error| IoError::Lost(error.to_string()))
}

fn objection(hello: &Hello, now: docaxis_protocol::Timestamp) -> Option<Reason> {
    if !hello.versions.iter().any(|version| VERSIONS.contains(version)) {
        let text =
            format!("the node speaks versions {:?} of the link; this broker speaks {VERSIONS:?}", hello.versions);
        return Some(ReasonCode::NotYetSupported.because(text));
    }
    let off = hello.time.since(now).max(now.since(hello.time));
    (off > MAX_CLOCK_SKEW).then(|| {
        let text = format!("the node's clock says {}, the exchange's {now}: {} s apart", hello.time, off.as_secs());
        ReasonCode::ClockSkew.because(text)
    })
}

async fn serve_node(exchange: Arc<Exchange>, connection: Connection, node: NodeId, version: u16) {
    tracing::info!(%node, remote = %connection.remote_address(), "linked");
    let bell = exchange.bells.hang(&node);
    let submissions = Arc::new(Submissions::default());
    let precedence = Arc::<Precedence>::default();
    let mut streams = JoinSet::new();
    streams.spawn(push::run(exchange.clone(), (node.clone(), connection.clone(), precedence.clone()), bell.clone()));
    streams.spawn(resend::run(exchange.clone(), node.clone(), connection.clone(), bell.clone()));
    if version > VERSION_WITHOUT_HOLDS {
        streams.spawn(give_back::run(exchange.clone(), node.clone(), connection.clone()));
    }
    loop {
        tokio::select! {
            biased;
            Some(ended) = streams.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%node, %error, "a stream's handler failed unexpectedly");
                }
            }
            stream = connection.accept_bi() => match stream {
                Ok((send, recv)) => {
                    let link = (connection.clone(), bell.clone(), submissions.clone(), precedence.clone());
                    streams.spawn(serve_stream(exchange.clone(), node.clone(), link, send, recv));
                }
                Err(error) => {
                    tracing::info!(%node, %error, "unlinked");
                    break;
                }
            },
        }
    }
    exchange.bells.take_down(&node, &bell);
    // All of them meet the link's end by themselves; uploads then keep what came.
    let ended = tokio::time::timeout(STREAMS_END_WITHIN, async { while streams.join_next().await.is_some() {} }).await;
    if ended.is_err() {
        tracing::debug!(%node, "streams that did not end with their link are cut");
    }
    streams.shutdown().await;
}

async fn serve_stream(
    exchange: Arc<Exchange>,
    node: NodeId,
    (connection, bell, submissions, precedence): (Connection, Arc<Bell>, Arc<Submissions>, Arc<Precedence>),
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let served = async {
        match io::read(&mut recv, Class::Large, "a request").await? {
            Frame::Submit(request) => {
                let order = (&*submissions, vec![]);
                submit::serve(&exchange, &node, request, order, (&mut send, &mut recv)).await
            }
            Frame::Behind(behind) => {
                let request = match io::read(&mut recv, Class::Large, "Submit").await? {
                    Frame::Submit(request) => request,
                    other => return Err(IoError::Unexpected { expected: "Submit", found: other.name() }.into()),
                };
                let order = (&*submissions, behind);
                submit::serve(&exchange, &node, request, order, (&mut send, &mut recv)).await
            }
            Frame::Report(report) => take_report(&exchange, &node, report, &mut send).await,
            Frame::Follow(follow) => feed_evidence(&exchange, &node, (&bell, &precedence), follow, &mut send).await,
            Frame::FetchProofs(leaves) => give_proofs(&exchange, leaves, &mut send).await,
            Frame::Directory(version) => feed_directory(&exchange, &bell, version, &mut send).await,
            Frame::Restored(from) => again::serve(&exchange, (&node, &connection, &precedence), from, &mut send).await,
            Frame::Ping => {
                io::write(&mut send, &Frame::Pong).await?;
                io::finish(&mut send);
                Ok(())
            }
            other => Err(IoError::Unexpected { expected: "a request of a node", found: other.name() }.into()),
        }
    };
    let Err(error) = served.await else { return };
    match &error {
        StreamError::Io(io) if io.is_fault() => {
            tracing::warn!(%node, %error, "a stream was closed for what the node sent");
            let reason = ReasonCode::Malformed.because(io.to_string());
            // The peer may be beyond hearing it.
            let _unheard = io::refuse(&mut send, reason, exchange.now()).await;
            let _gone = recv.stop(io.code());
        }
        StreamError::Io(_) => tracing::debug!(%node, %error, "a stream ended early"),
        StreamError::Body(_) | StreamError::Exchange(_) => {
            let reason = match &error {
                StreamError::Exchange(own) => own.reason(),
                StreamError::Body(BodyError::NoRoom(reason)) => reason.clone(),
                StreamError::Body(BodyError::Blob(own)) if own.is_disk_full() => {
                    ReasonCode::DiskFull.because("the exchange's disk is full")
                }
                _ => ReasonCode::Busy.because("the exchange cannot take this at the moment"),
            };
            // Of a full disk the log speaks once, and not with every request.
            match &error {
                StreamError::Exchange(own) if own.is_expected() => tracing::debug!(%node, %error, "refused"),
                _ if reason.known() == ReasonCode::DiskFull => tracing::debug!(%node, %error, "refused"),
                _ => tracing::error!(%node, %error, "a request could not be done"),
            }
            let _unheard = io::refuse(&mut send, reason, exchange.now()).await;
        }
    }
}

async fn take_report(
    exchange: &Arc<Exchange>,
    node: &NodeId,
    report: Report,
    send: &mut SendStream,
) -> Result<(), StreamError> {
    if report.statements.len() > MAX_BATCH {
        let reason = ReasonCode::Malformed
            .because(format!("{} statements in one report; the limit is {MAX_BATCH}", report.statements.len()));
        return Ok(io::refuse(send, reason, exchange.now()).await?);
    }
    docaxis_failpoints::failpoint!("broker.report.read");
    let mut answers = Vec::with_capacity(report.statements.len());
    let mut bytes = 0;
    for statement in report.statements {
        // What does not fit into one answer is not recorded now: the node asks again.
        if bytes > MAX_ENVELOPE_BYTES / 2 {
            answers.push(Err(ReasonCode::Busy.because("the answer to this report is full; report it again")));
            continue;
        }
        let answer = exchange.state(node, statement, Way::Reported).await?;
        bytes += answer.as_ref().map_or(0, |outcome| outcome.evidence.bytes.len());
        answers.push(answer);
    }
    docaxis_failpoints::failpoint!("broker.report.answering");
    io::write(send, &Frame::Reported(Reported { answers })).await?;
    io::finish(send);
    docaxis_failpoints::failpoint!("broker.report.answered");
    Ok(())
}

/// Streams evidence to the node of its senders, from each cursor on, without end.
async fn feed_evidence(
    exchange: &Arc<Exchange>,
    node: &NodeId,
    (bell, precedence): (&Bell, &Arc<Precedence>),
    follow: Follow,
    send: &mut SendStream,
) -> Result<(), StreamError> {
    // At most one cursor for each agency of the node, however many a peer names.
    let mut cursors: Arc<BTreeMap<AgencyCode, u64>> = Arc::new(follow.cursors.into_iter().collect());
    if let Some((foreign, _)) = cursors.iter().find(|(agency, _)| !exchange.hosts(node, agency)) {
        let reason = ReasonCode::NotHosted.because(format!("node {node} may not follow what {foreign} sent"));
        return Ok(io::refuse(send, reason, exchange.now()).await?);
    }
    let mut rung = bell.evidence();
    // Senders take turns.
    let mut last: Option<AgencyCode> = None;
    loop {
        rung.mark_unchanged();
        // Reads from the disk: not on the link's thread.
        let (reader, asked, after) = (exchange.clone(), cursors.clone(), last.clone());
        let look = move || reader.next_news(&asked, after.as_ref());
        let news = exchange.workers.run(look).await.map_err(ExchangeError::from)?.map_err(ExchangeError::from)?;
        let Some(newest) = news.last() else {
            tokio::select! {
                biased;
                _ = rung.changed() => {}
                () = tokio::time::sleep(ROUND) => {}
                _ = send.stopped() => return Ok(()),
            }
            continue;
        };
        Arc::make_mut(&mut cursors).insert(newest.sender.clone(), newest.leaf + 1);
        last = Some(newest.sender.clone());
        for batch in split(news) {
            docaxis_failpoints::failpoint!("broker.follow.sending");
            let ahead = precedence.frames();
            io::write(send, &Frame::Evidence(batch)).await?;
            drop(ahead);
            docaxis_failpoints::failpoint!("broker.follow.sent");
        }
    }
}

/// Batches that fit into a frame: evidence about thousands of recipients can be large.
fn split(news: Vec<docaxis_protocol::frame::EvidenceItem>) -> Vec<Vec<docaxis_protocol::frame::EvidenceItem>> {
    const ROOM: usize = docaxis_protocol::limits::MAX_ENVELOPE_BYTES / 2;
    let mut batches = vec![Vec::new()];
    let mut bytes = 0;
    for item in news {
        let size = size_of_item(&item);
        if bytes + size > ROOM && bytes > 0 {
            batches.push(Vec::new());
            bytes = 0;
        }
        bytes += size;
        if let Some(batch) = batches.last_mut() {
            batch.push(item);
        }
    }
    batches
}

async fn give_proofs(exchange: &Arc<Exchange>, leaves: Vec<u64>, send: &mut SendStream) -> Result<(), StreamError> {
    if leaves.len() > MAX_BATCH {
        let text = format!("{} proofs in one request; the limit is {MAX_BATCH}", leaves.len());
        return Ok(io::refuse(send, ReasonCode::Malformed.because(text), exchange.now()).await?);
    }
    let log = exchange.log.clone();
    let proofs = exchange.workers.run(move || {
        let proofs = log.proofs(&leaves)?;
        Ok::<_, LogError>(leaves.into_iter().zip(proofs).collect())
    });
    match proofs.await.map_err(ExchangeError::from)? {
        Ok(proofs) => {
            io::write(send, &Frame::Proofs(proofs)).await?;
            io::finish(send);
            docaxis_failpoints::failpoint!("broker.proofs.sent");
        }
        Err(error) => {
            tracing::error!(%error, "the log gives no proof");
            let reason = ReasonCode::Busy.because("the log cannot give proofs at the moment");
            io::refuse(send, reason, exchange.now()).await?;
        }
    }
    Ok(())
}

/// Streams the revocation lists and the directory's changes, without end.
async fn feed_directory(
    exchange: &Arc<Exchange>,
    bell: &Bell,
    mut version: u64,
    send: &mut SendStream,
) -> Result<(), StreamError> {
    let mut rung = bell.directory();
    let mut known = BTreeMap::new();
    loop {
        rung.mark_unchanged();
        if let Some(crls) = exchange.new_crls(&mut known) {
            io::write(send, &Frame::Notices(crls)).await?;
        }
        while let Some(notices) = exchange.notices_since(version) {
            version = notices.version;
            io::write(send, &Frame::Notices(notices)).await?;
        }
        tokio::select! {
            biased;
            _ = rung.changed() => {}
            _ = send.stopped() => return Ok(()),
        }
    }
}

async fn serve_authority(exchange: Arc<Exchange>, connection: Connection) {
    tracing::info!(remote = %connection.remote_address(), "the authority is linked");
    loop {
        let (mut send, mut recv) = match connection.accept_bi().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::info!(%error, "the authority is unlinked");
                return;
            }
        };
        // One at a time: notices take effect in the order in which the authority sent them.
        let published = async {
            match io::read(&mut recv, Class::Large, "Notices").await? {
                Frame::Notices(notices) => take_notices(&exchange, notices, &mut send).await,
                other => Err(IoError::Unexpected { expected: "Notices", found: other.name() }.into()),
            }
        };
        if let Err(error) = published.await {
            tracing::warn!(%error, "the authority's notices were not taken");
        }
    }
}

async fn take_notices(exchange: &Arc<Exchange>, notices: Notices, send: &mut SendStream) -> Result<(), StreamError> {
    docaxis_failpoints::failpoint!("broker.notices.read");
    match exchange.publish(notices).await {
        Ok(version) => {
            docaxis_failpoints::failpoint!("broker.notices.answering");
            io::write(send, &Frame::Published(version)).await?;
            io::finish(send);
            docaxis_failpoints::failpoint!("broker.notices.answered");
            Ok(())
        }
        Err(error) => {
            io::refuse(send, error.reason(), exchange.now()).await?;
            Err(error.into())
        }
    }
}
