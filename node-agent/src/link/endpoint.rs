//! Connects out to a broker for an exchange of few frames: a node that joins, or the authority's link.
//!
//! It promises a verified broker or an error in words; it does not know what is said on the connection.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use docaxis_certs::Refusal;
use docaxis_certs::refusal::RefusedBy;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, TransportConfig, VarInt};

/// Before anything is known of the way to the broker, an unanswered packet is repeated after three times this: a broker
/// that is just starting is found soon.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// How long resolving the name and the handshake may take together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// An idle connection says that it lives this often; its loss is noticed after [`IDLE_TIMEOUT_MS`].
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT_MS: u32 = 30_000;
/// Exchanges that the broker may have open at once: join requests that it relays.
const STREAMS: u32 = 64;
/// What the broker may send before it is read: a few large frames.
const RECEIVE_WINDOW_BYTES: u32 = 4 << 20;
/// How long a closed connection may take to say so.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("broker address {address:?} is not a HOST:PORT that can be resolved")]
    Resolve {
        address: String,
        #[source]
        source: std::io::Error,
    },
    #[error("a socket for the link cannot be made")]
    Socket(#[source] std::io::Error),
    #[error("TLS is not set up: {found}")]
    Tls { found: String },
    #[error("nobody answers at {address} (UDP): {found}")]
    Unreachable { address: String, found: String },
    #[error("the handshake with {address} was refused: {refusal}")]
    Refused { address: String, refusal: Refusal },
}

/// A connection and the socket beneath it.
pub struct Dialled {
    endpoint: Endpoint,
    pub connection: Connection,
}

impl Dialled {
    /// Connects to the broker at `address` (`HOST:PORT`), which must prove to be `dns_name`.
    pub async fn to(address: &str, dns_name: &str, tls: rustls::ClientConfig) -> Result<Self, ConnectError> {
        let dialling = async {
            let remote = resolve(address).await?;
            let endpoint = endpoint(remote, tls)?;
            let tls_error = |found: quinn::ConnectError| ConnectError::Tls { found: found.to_string() };
            let connecting = endpoint.connect(remote, dns_name).map_err(tls_error)?;
            let connection = connecting.await.map_err(|error| refused(address, &error))?;
            Ok(Self { endpoint, connection })
        };
        tokio::time::timeout(CONNECT_TIMEOUT, dialling).await.unwrap_or_else(|_| {
            let found = format!("no answer within {} s", CONNECT_TIMEOUT.as_secs());
            Err(ConnectError::Unreachable { address: address.to_owned(), found })
        })
    }

    /// Closes in good order; the broker is told within a second or not at all.
    pub async fn close(self) {
        self.connection.close(VarInt::from_u32(0), b"done");
        if tokio::time::timeout(CLOSE_TIMEOUT, self.endpoint.wait_idle()).await.is_err() {
            tracing::debug!("the broker did not hear that the connection closed");
        }
    }

    /// The handshake's refusal, if that is what ended the connection: a broker that refuses our certificate shows it
    /// only after our side of the handshake is done.
    pub fn refusal(&self) -> Option<Refusal> {
        self.connection.close_reason().as_ref().and_then(tls_refusal)
    }
}

fn refused(address: &str, error: &ConnectionError) -> ConnectError {
    let address = address.to_owned();
    match tls_refusal(error) {
        Some(refusal) => ConnectError::Refused { address, refusal },
        None => ConnectError::Unreachable { address, found: error.to_string() },
    }
}

/// What a refused handshake means. QUIC carries a TLS alert as 0x100 plus its number (RFC 9001, section 4.8).
pub(super) fn tls_refusal(error: &ConnectionError) -> Option<Refusal> {
    let alert = |code: u64| u8::try_from(code.checked_sub(0x100)?).ok();
    match error {
        ConnectionError::TransportError(error) => {
            let alert = alert(u64::from(error.code))?;
            Some(Refusal::from_alert_code(alert, RefusedBy::Us, &error.reason))
        }
        ConnectionError::ConnectionClosed(closed) => {
            let alert = alert(u64::from(closed.error_code))?;
            Some(Refusal::from_alert_code(alert, RefusedBy::Peer, &String::from_utf8_lossy(&closed.reason)))
        }
        _ => None,
    }
}

async fn resolve(address: &str) -> Result<SocketAddr, ConnectError> {
    let failed = |source| ConnectError::Resolve { address: address.to_owned(), source };
    let mut found = tokio::net::lookup_host(address).await.map_err(failed)?;
    found.next().ok_or_else(|| failed(std::io::Error::other("the name has no address")))
}

fn endpoint(remote: SocketAddr, tls: rustls::ClientConfig) -> Result<Endpoint, ConnectError> {
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls)
        .map_err(|error| ConnectError::Tls { found: error.to_string() })?;
    let mut transport = TransportConfig::default();
    let window = VarInt::from_u32(RECEIVE_WINDOW_BYTES);
    transport
        .initial_rtt(INITIAL_RTT)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_TIMEOUT_MS).into()))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .datagram_receive_buffer_size(None)
        .receive_window(window)
        .stream_receive_window(window);
    let mut config = ClientConfig::new(Arc::new(tls));
    config.transport_config(Arc::new(transport));
    let local: SocketAddr =
        if remote.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let mut endpoint = Endpoint::client(local).map_err(ConnectError::Socket)?;
    endpoint.set_default_client_config(config);
    Ok(endpoint)
}
