//! The authority's link to the broker: publishes what the authority signs, and answers the requests to join that the
//! broker relays.
//!
//! It promises that every change recorded in the authority's folder, by whichever process, reaches a linked broker
//! within two seconds, in the order of its versions; and that a lost link is made again. It holds no state of its own:
//! the broker says how far it is.

use std::sync::Arc;
use std::time::Duration;

use docaxis_certs::Trust;
use docaxis_certs::tls::{self, TlsError};
use docaxis_certs::verifier::TrustError;
use docaxis_protocol::frame::{Class, Frame, Hello, Joined, Refusal, VERSION_WITHOUT_HOLDS, Welcome};
use docaxis_protocol::{Origin, Reason, Timestamp};
use quinn::{Connection, ConnectionError, RecvStream, SendStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use super::endpoint::{ConnectError, Dialled};
use super::frames::{self, FramesError};
use super::registrar::{Registrar, RegistrarError};

/// How often the authority's folder is looked at for what other processes recorded.
const POLL_EVERY: Duration = Duration::from_secs(1);
/// How long the broker may take to store notices.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the broker may take to send a request that it has opened a stream for.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an answer to a join waits for the directory to be published.
const PUBLISH_WITHIN: Duration = Duration::from_secs(5);
/// First and longest pause between two attempts to connect. There is one authority, so it need not hold back much.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// With this code the broker closes a link that a newer one of the same party replaces.
const CODE_REPLACED: u32 = 4;

#[derive(Debug, thiserror::Error)]
pub enum AuthorityLinkError {
    #[error(transparent)]
    Registrar(#[from] RegistrarError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Frames(#[from] FramesError),
    #[error("the broker serves exchange {found}; this is the authority of {expected}")]
    Origin { expected: Origin, found: Origin },
    #[error("the broker stored the directory up to version {found}; it was sent up to {expected}")]
    Version { expected: u64, found: u64 },
    #[error("another `docaxis ca serve` of this authority has taken the link; run only one")]
    Replaced,
}

/// Where the link stands, for who started it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    Away,
    /// Everything up to this version of the directory is published.
    Linked {
        version: u64,
    },
}

/// Keeps the link until `stop` becomes true.
pub async fn run(
    registrar: Registrar,
    now: fn() -> Timestamp,
    standing: watch::Sender<Standing>,
    mut stop: watch::Receiver<bool>,
) {
    let mut pause = RETRY_MIN;
    loop {
        let linked = tokio::select! {
            ended = link_once(&registrar, now, &standing) => ended,
            _ = stop.wait_for(|stop| *stop) => return,
        };
        if standing.send_replace(Standing::Away) != Standing::Away {
            pause = RETRY_MIN;
        }
        let Err(error) = linked;
        if matches!(error, AuthorityLinkError::Replaced) {
            pause = RETRY_MAX;
        }
        tracing::warn!(error = %chain(&error), retry_in = ?pause, "no link to the broker");
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            _ = stop.wait_for(|stop| *stop) => return,
        }
        pause = (pause * 2).min(RETRY_MAX);
    }
}

/// One connection, until it is lost.
async fn link_once(
    registrar: &Registrar,
    now: fn() -> Timestamp,
    standing: &watch::Sender<Standing>,
) -> Result<std::convert::Infallible, AuthorityLinkError> {
    let to = registrar.link().await?;
    let trust = Trust::new(to.identity.origin.clone(), &to.identity.common)?;
    let tls = tls::authority_client(&to.identity, trust, tls::system_clock())?;
    let dialled = Dialled::to(&to.address, &to.dns_name, tls).await?;
    let ended = serve(registrar, now, standing, &dialled.connection, &to.identity.origin).await;
    let refusal = dialled.refusal();
    let replaced = is_replaced(dialled.connection.close_reason().as_ref());
    dialled.close().await;
    match (ended, refusal) {
        (Err(_), Some(refusal)) => Err(ConnectError::Refused { address: to.address, refusal }.into()),
        (Err(_), None) if replaced => Err(AuthorityLinkError::Replaced),
        (ended, _) => ended,
    }
}

fn is_replaced(reason: Option<&ConnectionError>) -> bool {
    matches!(reason, Some(ConnectionError::ApplicationClosed(closed)) if closed.error_code == CODE_REPLACED.into())
}

async fn serve(
    registrar: &Registrar,
    now: fn() -> Timestamp,
    standing: &watch::Sender<Standing>,
    connection: &Connection,
    origin: &Origin,
) -> Result<std::convert::Infallible, AuthorityLinkError> {
    let welcome = greet(connection, now()).await?;
    if welcome.origin != *origin {
        return Err(AuthorityLinkError::Origin { expected: origin.clone(), found: welcome.origin });
    }
    tracing::info!(broker = %welcome.software, version = welcome.directory_version, "linked to the broker");
    let desk =
        Arc::new(Desk { registrar: registrar.clone(), now, standing: standing.subscribe(), news: Notify::new() });
    tokio::select! {
        ended = publish(&desk, standing, connection, welcome.directory_version) => ended,
        ended = answer_joins(&desk, connection) => ended,
    }
}

/// What answering a request takes.
struct Desk {
    registrar: Registrar,
    now: fn() -> Timestamp,
    standing: watch::Receiver<Standing>,
    /// Something was recorded that should be published at once.
    news: Notify,
}

async fn greet(connection: &Connection, now: Timestamp) -> Result<Welcome, FramesError> {
    let hello = Hello {
        // The authority holds no evidence.
        versions: vec![VERSION_WITHOUT_HOLDS],
        software: concat!("docaxis ", env!("CARGO_PKG_VERSION")).into(),
        time: now,
        mailbox_epoch: 0,
    };
    match frames::ask(connection, &Frame::Hello(hello), ANSWER_TIMEOUT).await? {
        Frame::Welcome(welcome) => Ok(welcome),
        other => Err(FramesError::Unexpected { expected: "Welcome", found: other.name() }),
    }
}

/// Publishes what is new, batch after batch, and then looks for more for ever.
async fn publish(
    desk: &Desk,
    standing: &watch::Sender<Standing>,
    connection: &Connection,
    mut version: u64,
) -> Result<std::convert::Infallible, AuthorityLinkError> {
    let mut lists = Vec::new();
    let mut poll = tokio::time::interval(POLL_EVERY);
    poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let mut notices = desk.registrar.notices_since(version).await?;
        if notices.crls == lists {
            // The broker has them; repeating them costs it a commit.
            notices.crls.clear();
        }
        if notices.entries.is_empty() && notices.crls.is_empty() {
            standing.send_replace(Standing::Linked { version });
            tokio::select! {
                _ = poll.tick() => {}
                () = desk.news.notified() => {}
            }
            continue;
        }
        let (entries, upto) = (notices.entries.len(), notices.version.max(version));
        if !notices.crls.is_empty() {
            lists.clone_from(&notices.crls);
        }
        let published = match frames::ask(connection, &Frame::Notices(notices), ANSWER_TIMEOUT).await? {
            Frame::Published(published) => published,
            other => return Err(FramesError::Unexpected { expected: "Published", found: other.name() }.into()),
        };
        if published < upto {
            return Err(AuthorityLinkError::Version { expected: upto, found: published });
        }
        version = upto;
        tracing::info!(entries, version, "published");
    }
}

async fn answer_joins(
    desk: &Arc<Desk>,
    connection: &Connection,
) -> Result<std::convert::Infallible, AuthorityLinkError> {
    let mut answering = JoinSet::new();
    loop {
        tokio::select! {
            opened = connection.accept_bi() => {
                let (send, recv) = opened.map_err(|error| FramesError::Lost { found: error.to_string() })?;
                answering.spawn(answer(desk.clone(), send, recv));
            }
            Some(ended) = answering.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "a request's handler failed unexpectedly");
                }
            }
        }
    }
}

async fn answer(desk: Arc<Desk>, mut send: SendStream, mut recv: RecvStream) {
    let answering = async {
        let frame = match frames::read(&mut recv, Class::Large).await? {
            Frame::Join(join) => match desk.registrar.join(join.request, join.mac).await {
                Ok(granted) => {
                    desk.until_published(granted.version).await;
                    Frame::Joined(Joined { answer: granted.answer })
                }
                Err(reason) => refused(reason, (desk.now)()),
            },
            Frame::Ping => Frame::Pong,
            other => return Err(FramesError::Unexpected { expected: "Join", found: other.name() }),
        };
        frames::write_last(&mut send, &frame).await
    };
    match tokio::time::timeout(REQUEST_TIMEOUT, answering).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "a request of the broker was not answered"),
        Err(_) => tracing::warn!("a request of the broker took too long"),
    }
}

impl Desk {
    /// A node that has joined may link at once: by then the broker should know whom it acts for.
    async fn until_published(&self, version: u64) {
        self.news.notify_one();
        let mut standing = self.standing.clone();
        let published = standing.wait_for(|at| matches!(at, Standing::Linked { version: at } if *at >= version));
        if tokio::time::timeout(PUBLISH_WITHIN, published).await.is_err() {
            tracing::warn!(version, "the broker has not taken the directory yet; the node gets its answer anyway");
        }
    }
}

fn refused(reason: Reason, now: Timestamp) -> Frame {
    Frame::Refused(Refusal { reason, time: now })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
