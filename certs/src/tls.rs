//! rustls configurations for every role: TLS 1.3 only, X25519MLKEM768 before X25519, no tickets and no 0-RTT.
//!
//! Without resumption every connection presents and checks certificates, so that a revocation takes effect with the
//! next one. The caller turns these into its transport's configurations; this crate knows no transport.

use std::sync::Arc;

pub use docaxis_protocol::frame::{ALPN_JOIN, ALPN_LINK};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::NoServerSessionStorage;
use rustls::time_provider::{DefaultTimeProvider, TimeProvider};
use rustls::{CipherSuite, ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};

use crate::identity::{AuthorityLink, BrokerIdentity, NodeIdentity};
use crate::join::Token;
use crate::keys::PrivateKey;
use crate::verifier::{LinkClientVerifier, LinkServerVerifier, Trust, TrustError};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("the TLS configuration could not be built")]
    Config(#[source] rustls::Error),
    #[error("{found:?} is not a DNS name")]
    Name { found: String },
}

/// Where TLS takes the time from.
pub type Clock = Arc<dyn TimeProvider>;

/// The machine's clock.
pub fn system_clock() -> Clock {
    Arc::new(DefaultTimeProvider)
}

/// The cryptography of every link.
pub fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups = vec![aws_lc_rs::kx_group::X25519MLKEM768, aws_lc_rs::kx_group::X25519];
    provider.cipher_suites.retain(|suite| {
        matches!(
            suite.suite(),
            CipherSuite::TLS13_AES_128_GCM_SHA256
                | CipherSuite::TLS13_AES_256_GCM_SHA384
                | CipherSuite::TLS13_CHACHA20_POLY1305_SHA256
        )
    });
    Arc::new(provider)
}

/// The broker's one endpoint for both protocols. A client's certificate is verified if it is presented, and not
/// demanded: **every** connection must go through [`Trust::admit`] before a frame is read.
pub fn broker_server(identity: &BrokerIdentity, trust: Arc<Trust>, clock: Clock) -> Result<ServerConfig, TlsError> {
    server(identity, trust, clock, false, &[ALPN_LINK, ALPN_JOIN])
}

/// A server that demands a client's certificate, for the link alone.
pub fn broker_link_server(
    identity: &BrokerIdentity,
    trust: Arc<Trust>,
    clock: Clock,
) -> Result<ServerConfig, TlsError> {
    server(identity, trust, clock, true, &[ALPN_LINK])
}

fn server(
    identity: &BrokerIdentity,
    trust: Arc<Trust>,
    clock: Clock,
    mandatory: bool,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    server_with(&identity.chain(), &identity.key, trust, clock, mandatory, alpn)
}

pub(crate) fn server_with(
    chain: &[Vec<u8>],
    key: &PrivateKey,
    trust: Arc<Trust>,
    clock: Clock,
    mandatory: bool,
    alpn: &[&[u8]],
) -> Result<ServerConfig, TlsError> {
    let provider = provider();
    let verifier = LinkClientVerifier::new(trust, provider.clone(), mandatory)?;
    let mut config = ServerConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(chain), private_key(key))
        .map_err(TlsError::Config)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    Ok(config)
}

/// A node's link to the broker; connect to [`server_name`] of the identity's `broker_dns_name`.
pub fn node_client(identity: &NodeIdentity, trust: Arc<Trust>, clock: Clock) -> Result<ClientConfig, TlsError> {
    client_with(Some((&identity.chain(), &identity.key)), trust, clock, ALPN_LINK)
}

/// The authority's link to the broker.
pub fn authority_client(identity: &AuthorityLink, trust: Arc<Trust>, clock: Clock) -> Result<ClientConfig, TlsError> {
    client_with(Some((&identity.chain(), &identity.key)), trust, clock, ALPN_LINK)
}

/// For joining: trusts only the root in the token, presents nothing.
pub fn join_client(token: &Token, clock: Clock) -> Result<ClientConfig, TlsError> {
    let trust = Trust::pinned(token.origin.clone(), &token.root)?;
    client_with(None, trust, clock, ALPN_JOIN)
}

pub(crate) fn client_with(
    identity: Option<(&[Vec<u8>], &PrivateKey)>,
    trust: Arc<Trust>,
    clock: Clock,
    alpn: &[u8],
) -> Result<ClientConfig, TlsError> {
    let provider = provider();
    let verifier = LinkServerVerifier::new(trust, provider.clone())?;
    let builder = ClientConfig::builder_with_details(provider, clock)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        // "Dangerous" names any verifier that is not the library's: this one asks the library first.
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match identity {
        Some((chain, key)) => {
            builder.with_client_auth_cert(certificates(chain), private_key(key)).map_err(TlsError::Config)?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// The name to connect to.
pub fn server_name(dns_name: &str) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(dns_name.to_owned()).map_err(|_| TlsError::Name { found: dns_name.chars().take(80).collect() })
}

fn certificates(chain: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
    chain.iter().map(|der| CertificateDer::from(der.clone())).collect()
}

fn private_key(key: &PrivateKey) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8().to_vec()))
}
