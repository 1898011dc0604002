//! One connection, from `Hello` until it is lost or the agent stops.

use std::sync::Arc;

use docaxis_protocol::frame::{Class, Frame, Hello, Holds, VERSION_WITHOUT_HOLDS, VERSIONS, Welcome};
use docaxis_protocol::limits::MAX_BATCH;
use docaxis_protocol::tlog::{KeyKind, VerifierKey};
use docaxis_protocol::{ReasonCode, Timestamp};
use quinn::Connection;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;

use super::io::Stream;
use super::precedence::Precedence;
use super::{LinkError, directory, evidence, give_back, missed, offer, report, submit};
use crate::agent::{DRAIN_WITHIN, Shared, told_to_stop};
use crate::identity::Identity;
use crate::mailbox::MailboxError;

/// A connection on which the broker has answered `Welcome`.
pub struct Session {
    pub shared: Arc<Shared>,
    pub identity: Arc<Identity>,
    pub connection: Connection,
    pub welcome: Welcome,
    /// Under which inclusion proofs are believed.
    pub log: VerifierKey,
    /// The directory changed what this node acts for.
    pub hosting: Notify,
    pub precedence: Arc<Precedence>,
}

impl Session {
    pub async fn open(&self) -> Result<Stream, LinkError> {
        let pair = self.connection.open_bi().await.map_err(|e| LinkError::Connection(e.to_string()))?;
        Ok(Stream::new(pair, self.shared.config.link.answer_timeout))
    }
}

/// Runs the session. `Ok` means that the agent stops; everything else is a lost link.
pub async fn run(
    shared: &Arc<Shared>,
    identity: &Arc<Identity>,
    connection: &Connection,
    up: impl FnOnce(&str, Timestamp),
    mut stop: watch::Receiver<bool>,
) -> Result<(), LinkError> {
    let welcome = hello(shared, connection).await?;
    let now = shared.env.now();
    if welcome.origin != identity.origin {
        return Err(LinkError::Protocol(format!("it is {}; expected {}", welcome.origin, identity.origin)));
    }
    let evidence_key = identity.evidence_key(&welcome.evidence_chain, now)?;
    let kept = shared.mailbox.keep_certificates(evidence_key.key().id(), welcome.evidence_chain.clone()).await;
    unless_full(shared, kept)?;
    shared.keys.add(evidence_key);
    let log_key = identity.log_key(&welcome.log_chain, now)?;
    unless_full(shared, shared.mailbox.keep_log_certificates(welcome.log_chain.clone()).await)?;
    let log = VerifierKey::new(identity.origin.as_str(), KeyKind::Ed25519, log_key.key().clone())
        .map_err(|e| LinkError::Protocol(e.to_string()))?;
    // A longer list is cut short: then only the directory tells.
    if welcome.agencies.len() < MAX_BATCH {
        for agency in identity.agencies().iter().filter(|agency| !welcome.agencies.contains(agency)) {
            tracing::warn!(%agency, "the exchange's directory does not let this node act for an agency yet");
        }
    }
    unless_full(shared, shared.mailbox.all_due_now(now).await)?;
    up(&welcome.software, welcome.time);
    let session = Arc::new(Session {
        shared: shared.clone(),
        identity: identity.clone(),
        connection: connection.clone(),
        welcome,
        log,
        hosting: Notify::new(),
        precedence: Arc::default(),
    });
    work(session, &mut stop).await
}

/// What the next connection stores as well must not cost a node its link while its disk is full.
fn unless_full(shared: &Shared, stored: Result<(), MailboxError>) -> Result<(), MailboxError> {
    match stored {
        Err(MailboxError::Full) => {
            shared.space.ran_out();
            Ok(())
        }
        stored => stored,
    }
}

async fn hello(shared: &Arc<Shared>, connection: &Connection) -> Result<Welcome, LinkError> {
    let pair = connection.open_bi().await.map_err(|e| LinkError::Connection(e.to_string()))?;
    let mut stream = Stream::new(pair, shared.config.link.connect_timeout);
    let hello = Hello {
        versions: VERSIONS.to_vec(),
        software: concat!("docaxis/", env!("CARGO_PKG_VERSION")).into(),
        time: shared.env.now(),
        mailbox_epoch: shared.mailbox.epoch().await?,
    };
    stream.write(&Frame::Hello(hello)).await?;
    // Before anything is sent or taken over this link, the exchange sees whether its log goes as far as what we hold.
    stream.write(&Frame::Holds(Holds { checkpoint: shared.mailbox.checkpoint().await? })).await?;
    stream.finish();
    match stream.read(Class::Large).await? {
        Frame::Welcome(welcome) if VERSIONS.contains(&welcome.version) => Ok(welcome),
        Frame::Welcome(welcome) => Err(LinkError::Protocol(format!("it speaks version {}", welcome.version))),
        other => Err(LinkError::Unexpected { found: other.name(), expected: "Welcome" }),
    }
}

/// Runs everything that goes on over a connection. The first thing that ends ends the session.
async fn work(session: Arc<Session>, stop: &mut watch::Receiver<bool>) -> Result<(), LinkError> {
    let (quit, quitting) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn(submit::run(session.clone(), quitting.clone()));
    tasks.spawn(accept(session.clone(), quitting.clone()));
    tasks.spawn(report::run(session.clone(), quitting.clone()));
    tasks.spawn(evidence::follow(session.clone(), quitting.clone()));
    tasks.spawn(evidence::fetch_proofs(session.clone(), quitting.clone()));
    if session.welcome.version > VERSION_WITHOUT_HOLDS {
        tasks.spawn(missed::run(session.clone(), quitting.clone()));
    }
    tasks.spawn(directory::follow(session.clone(), quitting));
    let ended = tokio::select! {
        biased;
        () = told_to_stop(stop) => Ok(()),
        error = session.connection.closed() => Err(LinkError::Connection(error.to_string())),
        Some(task) = tasks.join_next() => task.unwrap_or(Err(LinkError::Panicked)),
    };
    quit.send_replace(true);
    if ended.is_err() {
        session.connection.close(super::CODE_DONE, b"the session ended");
    }
    // No new work from here on; what is under way may end within a bounded time. On a lost link it ends at once.
    let drained = tokio::time::timeout(DRAIN_WITHIN, async { while tasks.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!("transfers were cut after {DRAIN_WITHIN:?}; they are taken up again after the next start");
    }
    tasks.shutdown().await;
    ended
}

/// Answers the exchanges that the broker opens.
async fn accept(session: Arc<Session>, mut quit: watch::Receiver<bool>) -> Result<(), LinkError> {
    let streams = usize::try_from(session.shared.config.link.streams.get()).unwrap_or(usize::MAX);
    let room = Arc::new(Semaphore::new(streams.min(Semaphore::MAX_PERMITS)));
    let mut tasks = JoinSet::new();
    let ended = loop {
        tokio::select! {
            biased;
            () = told_to_stop(&mut quit) => break Ok(()),
            Some(done) = tasks.join_next() => {
                if let Err(error) = done.unwrap_or(Err(LinkError::Panicked)) {
                    tracing::warn!(%error, "an exchange that the broker opened did not end well");
                }
            }
            opened = session.connection.accept_bi() => match opened {
                Err(error) => break Err(LinkError::Connection(error.to_string())),
                Ok(pair) => {
                    let Ok(permit) = room.clone().acquire_owned().await else { break Err(LinkError::Panicked) };
                    let session = session.clone();
                    tasks.spawn(async move {
                        let answered = answer(&session, pair).await;
                        drop(permit);
                        answered
                    });
                }
            },
        }
    };
    while tasks.join_next().await.is_some() {}
    ended
}

async fn answer(session: &Session, pair: (quinn::SendStream, quinn::RecvStream)) -> Result<(), LinkError> {
    let mut stream = Stream::new(pair, session.shared.config.link.answer_timeout);
    match stream.read(Class::Large).await {
        Ok(Frame::Offer(offer)) => offer::run(session, stream, offer).await,
        Ok(Frame::Resend(asked)) => submit::resend(session, stream, asked).await,
        Ok(Frame::GiveBack(from)) => give_back::run(session, stream, from).await,
        Ok(Frame::Ping) => {
            stream.write(&Frame::Pong).await?;
            stream.finish();
            Ok(())
        }
        Ok(Frame::Cosign(_)) => {
            stream.refuse(&session.shared, ReasonCode::NotYetSupported.because("this node is no witness")).await
        }
        Ok(other) => {
            let text = format!("an agent does not answer {}", other.name());
            stream.refuse(&session.shared, ReasonCode::Malformed.because(text)).await
        }
        Err(error @ LinkError::Frame(_)) => {
            stream.refuse(&session.shared, ReasonCode::Malformed.because(error.to_string())).await?;
            Err(error)
        }
        Err(error) => Err(error),
    }
}
