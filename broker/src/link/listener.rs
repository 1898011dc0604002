//! The broker's endpoint: one UDP socket, one thread with a current-thread runtime for it and all session handlers
//! (half the CPU per request of a multi-thread one, measured).

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::{hkdf, hmac};
use docaxis_certs::refusal::RefusedBy;
use docaxis_certs::tls::{self, TlsError};
use docaxis_certs::verifier::{Identity, Peer as TlsPeer};
use docaxis_certs::{BrokerIdentity, Refusal, Trust};
use docaxis_protocol::Digest;
use quinn::crypto::rustls::{HandshakeData, QuicServerConfig};
use quinn::{
    AsyncUdpSocket, Connection, ConnectionError, ConnectionId, ConnectionIdGenerator, Endpoint, EndpointConfig,
    Incoming, Runtime, ServerConfig, TimeSource, TokioRuntime, TransportConfig, VarInt,
};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::time_provider::TimeProvider;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::io::code;
use super::join::AuthorityLink;
use super::links::Links;
use super::session::{self, Peer};
use crate::dispatch::Exchange;
use crate::env::Env;
use crate::loops::{Loop, Loops};

/// Kernel buffers for the socket: with the default of 200 KiB a burst of handshakes loses packets and waits for timers.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Unread bytes that one peer may have under way, all streams together; half of it on one stream.
const RECEIVE_WINDOW_BYTES: u32 = 4 << 20;
/// Bytes on their way to one peer that it has not acknowledged. With 8 MiB each, fifty peers that sent and fetched bodies took
/// the broker to 484 MiB; a link of 100 ms still carries 160 Mbit/s with 2.
const SEND_WINDOW_BYTES: u64 = 2 << 20;
/// How long `stop` waits for the peers to hear that the link closes.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Debug, Clone)]
pub struct LinkConfig {
    pub listen: SocketAddr,
    /// Streams that one node may have open at once.
    pub streams_per_node: u32,
    /// Connections at most, all peers together.
    pub max_connections: usize,
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("UDP {address} cannot be used: {source}")]
    Bind { address: SocketAddr, source: io::Error },
    #[error("the link's thread cannot be started: {0}")]
    Thread(io::Error),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("the TLS configuration does not suit QUIC: {0}")]
    Quic(String),
}

/// The network of a simulation: its datagrams, and its timers for QUIC.
pub trait Network: Send + Sync {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>>;
    fn runtime(&self) -> Arc<dyn Runtime>;
}

/// The running link.
pub struct Link {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    serving: Option<Loop>,
    links: Arc<Links>,
}

impl Link {
    /// Binds the socket, then serves on a thread of its own until [`Link::stop`].
    pub fn start(
        config: &LinkConfig,
        identity: &BrokerIdentity,
        trust: Arc<Trust>,
        exchange: Arc<Exchange>,
        links: Arc<Links>,
    ) -> Result<Self, LinkError> {
        let server = server_config(config, identity, &trust, &exchange.env)?;
        let socket = bind(config.listen).map_err(|source| LinkError::Bind { address: config.listen, source })?;
        let address = socket.local_addr().map_err(LinkError::Thread)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(LinkError::Thread)?;
        let endpoint_config = endpoint_config(identity, exchange.env.clone());
        let (stop, stopped) = watch::channel(false);
        let (served, max_connections) = (links.clone(), config.max_connections);
        let endpoint = {
            let _in_runtime = runtime.enter();
            Endpoint::new(endpoint_config, Some(server), socket, Arc::new(TokioRuntime)).map_err(LinkError::Thread)?
        };
        let serve = move || {
            runtime.block_on(accept(endpoint, trust, exchange, served, max_connections, stopped));
            // Disk threads that still serve a lost transfer must not hold up the end.
            runtime.shutdown_timeout(CLOSE_TIMEOUT);
        };
        let thread = std::thread::Builder::new().name("link".into()).spawn(serve).map_err(LinkError::Thread)?;
        Ok(Self { address, stop, serving: Some(Loop::Thread(thread)), links })
    }

    /// The same over a simulated network, as a task of the runtime around the caller.
    pub fn simulated(
        config: &LinkConfig,
        identity: &BrokerIdentity,
        trust: Arc<Trust>,
        exchange: Arc<Exchange>,
        links: Arc<Links>,
        network: &dyn Network,
    ) -> Result<Self, LinkError> {
        let server = server_config(config, identity, &trust, &exchange.env)?;
        let endpoint_config = endpoint_config(identity, exchange.env.clone());
        let bound = network.bind(config.listen).and_then(|socket| {
            let address = socket.local_addr()?;
            Ok((address, Endpoint::new_with_abstract_socket(endpoint_config, Some(server), socket, network.runtime())?))
        });
        let (address, endpoint) = bound.map_err(|source| LinkError::Bind { address: config.listen, source })?;
        let (stop, stopped) = watch::channel(false);
        let serving = accept(endpoint, trust, exchange, links.clone(), config.max_connections, stopped);
        Ok(Self { address, stop, serving: Some(Loops::task("link", serving)), links })
    }

    /// Where it listens; the port is known even if 0 was asked for.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn links(&self) -> &Links {
        &self.links
    }

    /// Closes every connection and ends the thread. What was not answered is asked again by the peers.
    pub fn stop(&mut self) {
        let _already_ended = self.stop.send(true);
        if let Some(serving) = self.serving.take()
            && !serving.join()
        {
            tracing::error!("the link's thread had panicked");
        }
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Connection ids that say nothing. Any id is taken for one of ours, so that a packet of a connection from before a
/// restart is answered with a reset; quinn bounds how often it answers.
struct RandomIds(Arc<dyn Env>);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut id = [0; 8];
        self.0.random(&mut id);
        ConnectionId::new(&id)
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Stateless resets keep their key across restarts: a node whose broker was killed is told at its
/// next packet that the connection is gone (RFC 9000, section 10.3), instead of waiting for its idle timeout.
fn endpoint_config(identity: &BrokerIdentity, env: Arc<dyn Env>) -> EndpointConfig {
    let seed = Digest::of_pieces(&[b"docaxis/stateless-reset\n", identity.key.pkcs8()]);
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &seed.0)));
    let mut random = [0; 32];
    env.random(&mut random);
    config.rng_seed(Some(random));
    config.cid_generator(move || Box::new(RandomIds(env.clone())));
    config
}

/// How old an address token is, is judged by the broker's clock.
struct TokenTime(Arc<dyn Env>);

impl TimeSource for TokenTime {
    fn now(&self) -> SystemTime {
        let since = Duration::from_millis(u64::try_from(self.0.now().unix_ms()).unwrap_or(0));
        UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH)
    }
}

/// TLS judges certificates by the broker's clock.
#[derive(Clone)]
struct TlsTime(Arc<dyn Env>);

impl std::fmt::Debug for TlsTime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsTime")
    }
}

impl TimeProvider for TlsTime {
    fn current_time(&self) -> Option<UnixTime> {
        u64::try_from(self.0.now().unix_ms()).ok().map(|ms| UnixTime::since_unix_epoch(Duration::from_millis(ms)))
    }
}

fn server_config(
    config: &LinkConfig,
    identity: &BrokerIdentity,
    trust: &Arc<Trust>,
    env: &Arc<dyn Env>,
) -> Result<ServerConfig, LinkError> {
    let tls = tls::broker_server(identity, trust.clone(), Arc::new(TlsTime(env.clone())))?;
    let quic = QuicServerConfig::try_from(tls).map_err(|e| LinkError::Quic(e.to_string()))?;
    // As quinn's own would be, but from the environment: quinn reads a Retry that comes late to a closed connection as
    // frames, so its bytes must repeat for a simulation to repeat.
    let mut random = [0; 64];
    env.random(&mut random);
    let token_key = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&random);
    let mut server = ServerConfig::new(Arc::new(quic), Arc::new(token_key));
    server.transport_config(Arc::new(transport(config)));
    server.migration(true);
    server.time_source(Arc::new(TokenTime(env.clone())));
    Ok(server)
}

fn transport(config: &LinkConfig) -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(config.streams_per_node))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES))
        .stream_receive_window(VarInt::from_u32(RECEIVE_WINDOW_BYTES / 2))
        .send_window(SEND_WINDOW_BYTES)
        .keep_alive_interval(Some(Duration::from_secs(15)))
        .max_idle_timeout(Some(VarInt::from_u32(45_000).into()));
    transport
}

fn bind(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    for (what, set) in [
        ("receive", socket.set_recv_buffer_size(SOCKET_BUFFER_BYTES)),
        ("send", socket.set_send_buffer_size(SOCKET_BUFFER_BYTES)),
    ] {
        if let Err(error) = set {
            tracing::warn!(%error, what, "the socket's buffer stays small: raise net.core.rmem_max and net.core.wmem_max");
        }
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

async fn accept(
    endpoint: Endpoint,
    trust: Arc<Trust>,
    exchange: Arc<Exchange>,
    links: Arc<Links>,
    max_connections: usize,
    mut stopped: watch::Receiver<bool>,
) {
    let authority = Arc::new(AuthorityLink::default());
    let mut sessions = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stop| *stop) => break,
            Some(ended) = sessions.join_next() => {
                if let Err(error) = ended && error.is_panic() {
                    tracing::error!(%error, "a session failed unexpectedly");
                }
            }
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { break };
                if !incoming.remote_address_validated() {
                    // Without it the handshake's answers exceed three times what came in.
                    if incoming.retry().is_err() {
                        tracing::debug!("an address could not be asked to prove itself");
                    }
                    continue;
                }
                if sessions.len() >= max_connections {
                    tracing::warn!(max_connections, "refused a connection: there are as many as may be");
                    incoming.refuse();
                    continue;
                }
                sessions.spawn(session(incoming, trust.clone(), exchange.clone(), links.clone(), authority.clone()));
            }
        }
    }
    endpoint.close(code::STOPPING.into(), b"the broker is stopping");
    let ending = async { while sessions.join_next().await.is_some() {} };
    if tokio::time::timeout(session::STREAMS_END_WITHIN, ending).await.is_err() {
        tracing::info!("sessions that did not end with their links are cut");
    }
    sessions.shutdown().await;
    if tokio::time::timeout(CLOSE_TIMEOUT, endpoint.wait_idle()).await.is_err() {
        tracing::info!("some peers did not hear that the link closed");
    }
}

async fn session(
    incoming: Incoming,
    trust: Arc<Trust>,
    exchange: Arc<Exchange>,
    links: Arc<Links>,
    authority: Arc<AuthorityLink>,
) {
    let remote = incoming.remote_address();
    let connection = match incoming.await {
        Ok(connection) => connection,
        Err(error) => return log_refusal(remote, &error),
    };
    match admit(&trust, &connection) {
        Ok(TlsPeer::Joining) => super::join::serve(exchange, connection, authority).await,
        Ok(TlsPeer::Linked(peer)) => match peer.identity.clone() {
            Identity::Node(node) => {
                let serial = peer.serial.clone();
                links.up(&node, peer, connection.clone());
                // A list that came between the handshake and this line closed nothing.
                if trust.is_revoked(&serial) {
                    connection.close(code::REVOKED.into(), b"revoked");
                }
                session::serve(exchange, connection.clone(), Peer::Node(node.clone())).await;
                links.down(&node, &connection);
            }
            Identity::Authority(origin) if origin == exchange.origin => {
                authority.set(connection.clone());
                session::serve(exchange, connection, Peer::Authority).await;
            }
            other => refuse(&connection, &format!("{other} has no business here")),
        },
        Err(refusal) => refuse(&connection, &refusal.to_string()),
    }
}

fn admit(trust: &Trust, connection: &Connection) -> Result<TlsPeer, Refusal> {
    let handshake = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
    let certificates = connection.peer_identity().and_then(|data| data.downcast::<Vec<CertificateDer<'static>>>().ok());
    let alpn = handshake.as_ref().and_then(|data| data.protocol.as_deref());
    trust.admit(alpn, certificates.as_ref().map(|certificates| certificates.as_slice()))
}

fn refuse(connection: &Connection, why: &str) {
    tracing::warn!(remote = %connection.remote_address(), why, "a connection was refused");
    connection.close(code::REFUSED.into(), why.as_bytes());
}

/// A handshake that came to nothing: whichever side refused, the reason is the TLS alert's.
fn log_refusal(remote: SocketAddr, error: &ConnectionError) {
    let (code, by, details) = match error {
        ConnectionError::TransportError(error) => (u64::from(error.code), RefusedBy::Us, error.reason.clone()),
        ConnectionError::ConnectionClosed(close) => {
            let details = String::from_utf8_lossy(&close.reason).into_owned();
            (u64::from(close.error_code), RefusedBy::Peer, details)
        }
        _ => return tracing::info!(%remote, %error, "a handshake was not finished"),
    };
    // QUIC carries a TLS alert as 0x100 plus the alert's code (RFC 9001, section 4.8).
    match code.checked_sub(0x100).and_then(|alert| u8::try_from(alert).ok()) {
        Some(alert) => {
            let refusal = Refusal::from_alert_code(alert, by, &details);
            tracing::warn!(%remote, reason = refusal.reason.label(), %refusal, "a handshake was refused");
        }
        None => tracing::info!(%remote, %error, "a handshake was not finished"),
    }
}
