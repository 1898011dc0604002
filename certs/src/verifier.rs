//! Who may connect: the peer's certificate, checked by rustls's own verifiers, then against the revocation list and the
//! role that it names.
//!
//! A node's or the authority's certificate is good for a client only, a broker's for a server only. The list of revoked
//! serial numbers is replaced while running; the next handshake sees it. Open connections are not checked again by TLS:
//! whoever holds them asks [`Trust::is_revoked`] after a reload and closes them.

use std::sync::{Arc, PoisonError, RwLock};

use docaxis_protocol::{NodeId, Origin, Timestamp};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::crl::{CrlError, RevocationList};
use crate::identity::Common;
use crate::name::{Facts, Serial, Subject};
use crate::refusal::{HandshakeRefusal, NotYetValid, Refusal, RefusedBy};
use crate::tls::{ALPN_JOIN, ALPN_LINK};

/// Who is at the other end of a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    Node(NodeId),
    Broker(Origin),
    Authority(Origin),
}

impl Identity {
    /// From a certificate that TLS has already verified.
    pub fn of(certificate: &[u8]) -> Option<Self> {
        match Facts::of(certificate).ok()?.subject {
            Subject::Node(id) => Some(Self::Node(id)),
            Subject::Broker(origin) => Some(Self::Broker(origin)),
            Subject::Authority(origin) => Some(Self::Authority(origin)),
            _ => None,
        }
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node {id}"),
            Self::Broker(origin) => write!(f, "broker of {origin}"),
            Self::Authority(origin) => write!(f, "authority of {origin}"),
        }
    }
}

/// What a certificate says that TLS has verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkedPeer {
    pub identity: Identity,
    pub serial: Serial,
    pub not_after: Timestamp,
}

/// What a broker may do with a connection whose handshake is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// `docaxis/1`, mutually authenticated.
    Linked(LinkedPeer),
    /// `docaxis-join/1`: nobody yet; may only hand over a request to join.
    Joining,
}

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error("the root certificate cannot be trusted")]
    Root(#[source] Error),
    #[error("no verifier can be built over the root certificate")]
    Verifier(#[source] rustls::server::VerifierBuilderError),
    #[error(transparent)]
    Crl(#[from] CrlError),
}

/// The exchange's root, and who was revoked: shared by all TLS configurations of a process.
#[derive(Debug)]
pub struct Trust {
    origin: Origin,
    roots: Arc<RootCertStore>,
    /// Against which lists are checked; absent while joining, when only the root is known.
    nodes_ca: Option<Vec<u8>>,
    revoked: RwLock<Option<Arc<RevocationList>>>,
}

impl Trust {
    /// Trust in an exchange, with the revocation list of its links.
    pub fn new(origin: Origin, common: &Common) -> Result<Arc<Self>, TrustError> {
        let list = RevocationList::verify(&common.nodes_crl, &common.nodes_ca)?;
        Ok(Arc::new(Self {
            origin,
            roots: roots(&common.root)?,
            nodes_ca: Some(common.nodes_ca.clone()),
            revoked: RwLock::new(Some(Arc::new(list))),
        }))
    }

    /// Trust in nothing but a pinned root: for joining, before any revocation list is known.
    pub fn pinned(origin: Origin, root: &[u8]) -> Result<Arc<Self>, TrustError> {
        Ok(Arc::new(Self { origin, roots: roots(root)?, nodes_ca: None, revoked: RwLock::new(None) }))
    }

    /// Puts a newer list in force for every handshake from now on; the same list again changes nothing. An older or
    /// unsigned one is refused and the one in force stays. Says whether the list was new.
    pub fn reload_crl(&self, der: &[u8]) -> Result<bool, CrlError> {
        let list = RevocationList::verify(der, self.nodes_ca.as_deref().unwrap_or_default())?;
        let mut held = self.revoked.write().unwrap_or_else(PoisonError::into_inner);
        match held.as_ref() {
            Some(before) if before.number > list.number => {
                Err(CrlError::Older { held: before.number, found: list.number })
            }
            Some(before) if before.number == list.number => Ok(false),
            _ => {
                *held = Some(Arc::new(list));
                Ok(true)
            }
        }
    }

    /// The list in force.
    pub fn crl(&self) -> Option<Arc<RevocationList>> {
        self.revoked.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of the list in force; zero if there is none.
    pub fn crl_number(&self) -> u64 {
        self.crl().map_or(0, |list| list.number)
    }

    pub fn is_revoked(&self, serial: &Serial) -> bool {
        self.crl().is_some_and(|list| list.is_revoked(serial))
    }

    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    pub(crate) fn roots(&self) -> Arc<RootCertStore> {
        self.roots.clone()
    }

    /// What the library does not know about: issuer, revocation, role, name.
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        is_role: impl Fn(&Subject) -> Option<bool>,
    ) -> Result<(), Error> {
        let refused = |error: CertificateError| Err(Error::InvalidCertificate(error));
        let Ok(facts) = Facts::of(leaf) else { return refused(CertificateError::InvalidPurpose) };
        if self.is_revoked(&facts.serial) {
            return refused(CertificateError::Revoked);
        }
        // With exactly one certificate between, it is the one that the verified path went through: the seals' CA
        // must not be able to vouch for a link.
        let issuer = match intermediates {
            [issuer] => Facts::of(issuer).ok().map(|facts| facts.subject),
            _ => None,
        };
        if issuer != Some(Subject::NodesCa) {
            return refused(CertificateError::InvalidPurpose);
        }
        match is_role(&facts.subject) {
            Some(true) => Ok(()),
            Some(false) => refused(CertificateError::NotValidForName),
            None => refused(CertificateError::InvalidPurpose),
        }
    }

    /// Who is at the other end of a finished handshake on the broker's endpoint, which serves both protocols.
    ///
    /// QUIC gives an endpoint one TLS configuration, so a client's certificate cannot be demanded during the handshake
    /// without shutting out those who join. It is demanded here instead, before the first frame is read. That is as
    /// good: a certificate that is presented was fully verified by the handshake, with proof of its key; and without
    /// one the answer is a refusal.
    pub fn admit(&self, alpn: Option<&[u8]>, certificates: Option<&[CertificateDer<'_>]>) -> Result<Peer, Refusal> {
        let refused = |reason, details: &str| Err(Refusal::new(reason, RefusedBy::Us, &details));
        match (alpn, certificates.unwrap_or_default()) {
            (Some(ALPN_JOIN), _) => Ok(Peer::Joining),
            (Some(ALPN_LINK), [leaf, ..]) => {
                let facts = Facts::of(leaf)
                    .map_err(|error| Refusal::new(HandshakeRefusal::WrongRole, RefusedBy::Us, &error))?;
                // The list may have changed since the handshake verified the certificate.
                if self.is_revoked(&facts.serial) {
                    return refused(HandshakeRefusal::Revoked, "the list changed during the handshake");
                }
                match Identity::of(leaf) {
                    Some(identity @ (Identity::Node(_) | Identity::Authority(_))) => {
                        Ok(Peer::Linked(LinkedPeer { identity, serial: facts.serial, not_after: facts.not_after }))
                    }
                    _ => refused(HandshakeRefusal::WrongRole, "it is neither a node's nor the authority's"),
                }
            }
            (Some(ALPN_LINK), []) => refused(HandshakeRefusal::WrongRole, "no certificate was presented"),
            _ => refused(HandshakeRefusal::Other, "no protocol was agreed on"),
        }
    }
}

fn roots(root: &[u8]) -> Result<Arc<RootCertStore>, TrustError> {
    let mut store = RootCertStore::empty();
    store.add(CertificateDer::from(root.to_vec())).map_err(TrustError::Root)?;
    Ok(Arc::new(store))
}

/// Turns what the library says about a path into the reason that the other side must hear.
fn normalised(error: Error, now: UnixTime) -> Error {
    use CertificateError as C;
    let at = |time: UnixTime| {
        Timestamp::from_unix_ms(i64::try_from(time.as_secs()).unwrap_or(i64::MAX / 1000).saturating_mul(1000))
    };
    match error {
        // Another authority that took the same name: its signature does not verify under our root's key.
        #[expect(deprecated, reason = "the library still has the variant")]
        Error::InvalidCertificate(
            C::BadSignature
            | C::UnsupportedSignatureAlgorithm
            | C::UnsupportedSignatureAlgorithmContext { .. }
            | C::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
        ) => Error::InvalidCertificate(C::UnknownIssuer),
        Error::InvalidCertificate(C::NotValidYetContext { time, not_before }) => {
            let not_yet = NotYetValid { now: at(time), not_before: at(not_before) };
            Error::InvalidCertificate(C::Other(OtherError(Arc::new(not_yet))))
        }
        Error::InvalidCertificate(C::NotValidYet) => {
            let not_yet = NotYetValid { now: at(now), not_before: at(now) };
            Error::InvalidCertificate(C::Other(OtherError(Arc::new(not_yet))))
        }
        other => other,
    }
}

/// The broker's check of who connects.
#[derive(Debug)]
pub(crate) struct LinkClientVerifier {
    inner: Arc<dyn ClientCertVerifier>,
    trust: Arc<Trust>,
}

impl LinkClientVerifier {
    /// `mandatory` is false where those who join connect to the same endpoint; see [`Trust::admit`].
    pub fn new(
        trust: Arc<Trust>,
        provider: Arc<rustls::crypto::CryptoProvider>,
        mandatory: bool,
    ) -> Result<Arc<Self>, TrustError> {
        let builder = WebPkiClientVerifier::builder_with_provider(trust.roots(), provider);
        let builder = if mandatory { builder } else { builder.allow_unauthenticated() };
        let inner = builder.build().map_err(TrustError::Verifier)?;
        Ok(Arc::new(Self { inner, trust }))
    }
}

impl ClientCertVerifier for LinkClientVerifier {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified =
            self.inner.verify_client_cert(end_entity, intermediates, now).map_err(|error| normalised(error, now))?;
        self.trust.check(end_entity, intermediates, |subject| match subject {
            Subject::Node(_) => Some(true),
            Subject::Authority(origin) => Some(*origin == self.trust.origin),
            _ => None,
        })?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// A client's check that it reached its own exchange's broker: path and DNS name by the library, then the URI.
#[derive(Debug)]
pub(crate) struct LinkServerVerifier {
    inner: Arc<WebPkiServerVerifier>,
    trust: Arc<Trust>,
}

impl LinkServerVerifier {
    pub fn new(trust: Arc<Trust>, provider: Arc<rustls::crypto::CryptoProvider>) -> Result<Arc<Self>, TrustError> {
        let inner = WebPkiServerVerifier::builder_with_provider(trust.roots(), provider)
            .build()
            .map_err(TrustError::Verifier)?;
        Ok(Arc::new(Self { inner, trust }))
    }
}

impl ServerCertVerifier for LinkServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self
            .inner
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
            .map_err(|error| normalised(error, now))?;
        self.trust.check(end_entity, intermediates, |subject| match subject {
            Subject::Broker(origin) => Some(*origin == self.trust.origin),
            _ => None,
        })?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
