//! The link to the broker over QUIC: the only place of this crate that knows quinn.
//!
//! One endpoint and one connection at a time, driven on a current-thread runtime on a thread of its own. When to
//! connect is decided in `uplink`, what to say in `outbox` and `inbox`; here it is done.

pub mod authority;
mod directory;
pub mod endpoint;
mod evidence;
mod frames;
mod give_back;
mod io;
pub mod join;
mod missed;
mod offer;
mod precedence;
pub mod registrar;
mod report;
mod session;
mod submit;

pub use frames::FramesError;

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use docaxis_protocol::frame::{ALPN_LINK, FrameError, Refusal};
use docaxis_protocol::{Digest, ReasonCode};
use quinn::{
    AsyncUdpSocket, ClientConfig, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig, IdleTimeout, Runtime,
    TransportConfig, VarInt,
};
use tokio::sync::watch;

use self::endpoint::tls_refusal;
use crate::agent::{Shared, told_to_stop};
use crate::env::EntropyError;
use crate::identity::{Identity, TrustError};
use crate::mailbox::MailboxError;
use crate::parts::PartsError;
use crate::uplink::{Failure, Uplink};

/// A stream is reset with this when a stored body turned out damaged.
const CODE_DAMAGED: VarInt = VarInt::from_u32(1);
/// The connection is closed with this in good order.
const CODE_DONE: VarInt = VarInt::from_u32(0);

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("the thread or socket of the link cannot be made")]
    Start(#[source] std::io::Error),
    #[error("the TLS configuration cannot be used for QUIC: {0}")]
    Tls(String),
    #[error("the connection: {0}")]
    Connection(String),
    #[error("a stream: {0}")]
    Stream(String),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the broker sent {found}; expected {expected}")]
    Unexpected { found: &'static str, expected: &'static str },
    #[error("waited {after:?} for {what}")]
    TimedOut { what: &'static str, after: Duration },
    #[error("the broker refused: {}", .0.reason)]
    Refused(Box<Refusal>),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("the broker does not keep to the protocol: {0}")]
    Protocol(String),
    #[error(transparent)]
    Mailbox(#[from] MailboxError),
    #[error(transparent)]
    Parts(#[from] PartsError),
    #[error("a task of the link had panicked")]
    Panicked,
}

impl LinkError {
    fn stream(error: impl std::error::Error) -> Self {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(inner) = source {
            text = format!("{text}: {inner}");
            source = inner.source();
        }
        Self::Stream(text)
    }

    /// Whether nothing else over this connection can go on either. Anything less ends one exchange, and is tried again.
    const fn ends_session(&self) -> bool {
        match self {
            Self::Mailbox(error) => !matches!(error, MailboxError::Full),
            Self::Connection(_) | Self::Panicked => true,
            _ => false,
        }
    }

    /// Whether room on our own disk is all that is missing. Nothing was half done, and it may be tried again.
    fn is_disk_full(&self) -> bool {
        match self {
            Self::Parts(error) => error.is_disk_full(),
            Self::Mailbox(error) => matches!(error, MailboxError::Full),
            _ => false,
        }
    }

    /// The reason that the broker is given when we cannot go on.
    fn code(&self) -> ReasonCode {
        match self {
            _ if self.is_disk_full() => ReasonCode::DiskFull,
            Self::Frame(_) | Self::Unexpected { .. } | Self::Protocol(_) => ReasonCode::Malformed,
            _ => ReasonCode::Busy,
        }
    }
}

/// Starts the link's thread.
pub(crate) fn start(
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
) -> Result<std::thread::JoinHandle<()>, LinkError> {
    // What cannot work is told to whoever starts the agent, rather than retried.
    client_config(&shared)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(LinkError::Start)?;
    std::thread::Builder::new()
        .name("link".into())
        .spawn(move || runtime.block_on(run(shared, stop)))
        .map_err(LinkError::Start)
}

/// The same as a task of the runtime around the caller.
pub(crate) fn start_as_task(shared: Arc<Shared>, stop: watch::Receiver<bool>) -> Result<(), LinkError> {
    client_config(&shared)?;
    drop(tokio::spawn(run(shared, stop)));
    Ok(())
}

async fn run(shared: Arc<Shared>, mut stop: watch::Receiver<bool>) {
    let link = &shared.config.link;
    let mut uplink = Uplink::new(link.retry_min, link.retry_max, shared.env.now());
    while !*stop.borrow() {
        uplink.connecting(shared.env.now());
        publish(&shared, &uplink);
        let failure = match connect_and_run(&shared, &mut uplink, &mut stop).await {
            Ok(()) => break,
            Err(failure) => failure,
        };
        if *stop.borrow() {
            break;
        }
        let now = shared.env.now();
        let next = uplink.failed(now, &failure, shared.env.jitter());
        tracing::warn!(?failure, %next, "no link to the broker");
        publish(&shared, &uplink);
        tokio::select! {
            biased;
            () = tokio::time::sleep(next.since(now)) => {}
            () = told_to_stop(&mut stop) => {}
        }
    }
    uplink.stopped();
    publish(&shared, &uplink);
}

fn publish(shared: &Shared, uplink: &Uplink) {
    shared.link.send_replace(uplink.state().clone());
    shared.changed();
}

async fn connect_and_run(
    shared: &Arc<Shared>,
    uplink: &mut Uplink,
    stop: &mut watch::Receiver<bool>,
) -> Result<(), Failure> {
    let identity = shared.identity.load_full();
    let patience = shared.config.link.connect_timeout;
    let connecting = async {
        let address = resolve(shared, &identity).await?;
        let endpoint = endpoint(shared, address)?;
        let attempt = endpoint
            .connect(address, &identity.server_name)
            .map_err(|e| Failure::Unreachable(format!("{address}: {e}")))?;
        match tokio::time::timeout(patience, attempt).await {
            Ok(Ok(connection)) => Ok((endpoint, connection)),
            Ok(Err(error)) => Err(why_not_connected(&error, address)),
            Err(_) => Err(Failure::Unreachable(format!("{address} did not answer within {patience:?}"))),
        }
    };
    let (endpoint, connection) = tokio::select! {
        biased;
        connected = connecting => connected?,
        () = told_to_stop(stop) => return Ok(()),
    };
    let up = |broker: &str, time| {
        uplink.connected(shared.env.now(), broker.to_owned(), time);
        publish(shared, uplink);
    };
    let ended = session::run(shared, &identity, &connection, up, stop.clone()).await;
    // Our own closing would hide the peer's reason.
    let refusal = connection.close_reason().as_ref().and_then(tls_refusal);
    connection.close(CODE_DONE, b"");
    endpoint.wait_idle().await;
    match ended {
        Ok(()) => Ok(()),
        // A handshake that the broker refuses shows as a connection that ends with its first use.
        Err(error) => Err(match refusal {
            Some(refusal) => Failure::Identity(refusal.sentence),
            None => match error {
                LinkError::Refused(refusal) => {
                    Failure::Refused(format!("{} (the broker's time is {})", refusal.reason, refusal.time))
                }
                LinkError::Trust(error) => Failure::Identity(error.to_string()),
                other => Failure::Lost(other.to_string()),
            },
        }),
    }
}

fn why_not_connected(error: &quinn::ConnectionError, address: SocketAddr) -> Failure {
    match tls_refusal(error) {
        Some(refusal) => Failure::Identity(format!("{address}: {refusal}")),
        None => Failure::Unreachable(format!("{address}: {error}")),
    }
}

async fn resolve(shared: &Shared, identity: &Identity) -> Result<SocketAddr, Failure> {
    let name = shared.config.agent.broker.as_deref().unwrap_or(&identity.broker);
    let mut found = tokio::net::lookup_host(name).await.map_err(|e| Failure::Unreachable(format!("{name}: {e}")))?;
    found.next().ok_or_else(|| Failure::Unreachable(format!("{name} has no address")))
}

fn endpoint(shared: &Shared, broker: SocketAddr) -> Result<Endpoint, Failure> {
    let unreachable = |e: std::io::Error| Failure::Unreachable(format!("cannot open a UDP socket: {e}"));
    let any: SocketAddr =
        if broker.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let config = endpoint_config(shared).map_err(|e| Failure::Unreachable(format!("{e}")))?;
    if let Some(world) = shared.env.simulation() {
        let socket = world.network.bind(any).map_err(unreachable)?;
        let made = Endpoint::new_with_abstract_socket(config, None, socket, world.network.runtime());
        return with_client_config(shared, made.map_err(unreachable)?);
    }
    let socket = socket2::Socket::new(socket2::Domain::for_address(any), socket2::Type::DGRAM, None)
        .and_then(|socket| {
            let wanted = shared.config.link.socket_buffer_bytes.get();
            socket.set_recv_buffer_size(wanted)?;
            socket.set_send_buffer_size(wanted)?;
            socket.bind(&any.into())?;
            Ok(socket)
        })
        .map_err(unreachable)?;
    let runtime =
        quinn::default_runtime().ok_or_else(|| Failure::Unreachable("no asynchronous runtime for QUIC".into()))?;
    with_client_config(shared, Endpoint::new(config, None, socket.into(), runtime).map_err(unreachable)?)
}

fn with_client_config(shared: &Shared, mut endpoint: Endpoint) -> Result<Endpoint, Failure> {
    let mut config = client_config(shared).map_err(|e| Failure::Identity(e.to_string()))?;
    // The id by which a connection calls its peer until that has told its own: 8 bytes at least, and none that can be
    // foreseen (RFC 9000 §7.2). From the environment, as a Retry's token holds it, and so a simulation repeats.
    let seed = shared.env.random().map_err(|e| Failure::Unreachable(e.to_string()))?;
    let first = Mutex::new(Ids { seed, count: 0 });
    config.initial_dst_cid_provider(Arc::new(move || {
        first.lock().unwrap_or_else(PoisonError::into_inner).generate_cid()
    }));
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}

/// What is random in the endpoint comes from the environment, but for the key of stateless resets, which is quinn's own.
fn endpoint_config(shared: &Shared) -> Result<EndpointConfig, EntropyError> {
    let mut config = EndpointConfig::default();
    config.rng_seed(Some(shared.env.random()?));
    let seed = shared.env.random::<32>()?;
    config.cid_generator(move || Box::new(Ids { seed, count: 0 }));
    Ok(config)
}

/// Connection ids that say nothing to whoever does not know the seed. Servers take no first one of less than 8 bytes.
struct Ids {
    seed: [u8; 32],
    count: u64,
}

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        self.count += 1;
        let digest = Digest::of_pieces(&[&self.seed, &self.count.to_be_bytes()]);
        ConnectionId::new(&digest.0[..8])
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The network of a simulation: its datagrams, and its timers for QUIC.
pub trait Network: Send + Sync {
    fn bind(&self, address: SocketAddr) -> std::io::Result<Arc<dyn AsyncUdpSocket>>;
    fn runtime(&self) -> Arc<dyn Runtime>;
}

fn client_config(shared: &Shared) -> Result<ClientConfig, LinkError> {
    let link = &shared.config.link;
    let mut tls = shared.identity.load().tls.clone();
    tls.alpn_protocols = vec![ALPN_LINK.to_vec()];
    tls.enable_early_data = false;
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).map_err(|e| LinkError::Tls(e.to_string()))?;
    let mut transport = TransportConfig::default();
    let idle = IdleTimeout::try_from(link.idle_timeout).map_err(|e| LinkError::Tls(e.to_string()))?;
    let window = VarInt::from_u32(link.receive_window_bytes.get());
    transport
        .keep_alive_interval(Some(link.keep_alive))
        .max_idle_timeout(Some(idle))
        .receive_window(window)
        .stream_receive_window(window)
        .max_concurrent_bidi_streams(VarInt::from_u32(link.streams.get()))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None);
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
