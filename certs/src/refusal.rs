//! Why a handshake was refused, as one of a few reasons that logs, metrics and people can tell apart.
//!
//! The refusing side knows the whole error; the other side sees a TLS alert. Each reason has an alert of its own, so
//! that both sides say the same. TLS itself has one alert for expired and not yet valid certificates; here a
//! certificate that is not valid yet is refused with `certificate_unknown`, which nothing else uses.

use std::fmt;

use docaxis_protocol::Timestamp;
use rustls::{AlertDescription, CertificateError, Error};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum HandshakeRefusal {
    Expired,
    NotYetValid,
    Revoked,
    UnknownAuthority,
    WrongRole,
    WrongName,
    Other,
}

impl HandshakeRefusal {
    /// The label in logs and in `handshakes_refused_total{reason}`.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::Revoked => "revoked",
            Self::UnknownAuthority => "unknown-authority",
            Self::WrongRole => "wrong-role",
            Self::WrongName => "wrong-name",
            Self::Other => "other",
        }
    }

    const fn what_to_do(self) -> &'static str {
        match self {
            Self::Expired => {
                "the certificate has ended: renew it or join again, and compare both sides' clocks if it should be good"
            }
            Self::NotYetValid => "the certificate is not valid yet: one of the two clocks is wrong, set it by NTP",
            Self::Revoked => "the certificate was revoked by the authority: ask for a new invitation",
            Self::UnknownAuthority => {
                "the certificate was issued by another authority: check that both sides belong to the same exchange"
            }
            Self::WrongRole => {
                "the certificate is for another role: use the one that the authority issued for this one"
            }
            Self::WrongName => {
                "the certificate is for another name: check the broker's address and name in link.json or the token"
            }
            Self::Other => "the connection was not set up: see the details",
        }
    }
}

impl fmt::Display for HandshakeRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.label())
    }
}

/// Who said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusedBy {
    /// This side refused the peer's certificate.
    Us,
    /// The peer refused this side's certificate.
    Peer,
}

/// A refused handshake, with a sentence that says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct Refusal {
    pub reason: HandshakeRefusal,
    pub by: RefusedBy,
    pub sentence: String,
}

impl Refusal {
    pub(crate) fn new(reason: HandshakeRefusal, by: RefusedBy, details: &dyn fmt::Display) -> Self {
        let who = match by {
            RefusedBy::Us => "this side refused the peer's certificate",
            RefusedBy::Peer => "the peer refused this side's certificate",
        };
        Self { reason, by, sentence: format!("{who} ({reason}): {}; {details}", reason.what_to_do()) }
    }

    /// What a TLS error means.
    pub fn classify(error: &Error) -> Self {
        match error {
            Error::InvalidCertificate(certificate) => Self::new(reason_of(certificate), RefusedBy::Us, error),
            Error::NoCertificatesPresented => Self::new(HandshakeRefusal::WrongRole, RefusedBy::Us, error),
            Error::AlertReceived(alert) => Self::from_alert(*alert),
            _ => Self::new(HandshakeRefusal::Other, RefusedBy::Us, error),
        }
    }

    /// What an alert that the peer sent means.
    pub fn from_alert(alert: AlertDescription) -> Self {
        Self::new(alert_reason(alert), RefusedBy::Peer, &format_args!("alert {alert:?}"))
    }

    /// The same from an alert's number, as QUIC carries it (crypto error 0x0100 + alert), sent by either side.
    /// `details` is the text that the refusing side gave; QUIC brings it along.
    pub fn from_alert_code(code: u8, by: RefusedBy, details: &str) -> Self {
        Self::new(alert_reason(AlertDescription::from(code)), by, &details)
    }
}

fn alert_reason(alert: AlertDescription) -> HandshakeRefusal {
    use AlertDescription as A;
    match alert {
        A::CertificateExpired => HandshakeRefusal::Expired,
        A::CertificateUnknown => HandshakeRefusal::NotYetValid,
        A::CertificateRevoked => HandshakeRefusal::Revoked,
        A::UnknownCA => HandshakeRefusal::UnknownAuthority,
        A::UnsupportedCertificate | A::CertificateRequired => HandshakeRefusal::WrongRole,
        A::BadCertificate => HandshakeRefusal::WrongName,
        _ => HandshakeRefusal::Other,
    }
}

/// A certificate that is not valid yet, with the verifier's time: the alert alone would say "expired".
#[derive(Debug, Clone, thiserror::Error)]
#[error("the certificate is valid from {not_before}, and the time here is {now}")]
pub(crate) struct NotYetValid {
    pub now: Timestamp,
    pub not_before: Timestamp,
}

fn reason_of(error: &CertificateError) -> HandshakeRefusal {
    use CertificateError as C;
    match error {
        C::Expired | C::ExpiredContext { .. } => HandshakeRefusal::Expired,
        C::NotValidYet | C::NotValidYetContext { .. } => HandshakeRefusal::NotYetValid,
        C::Other(other) if other.0.is::<NotYetValid>() => HandshakeRefusal::NotYetValid,
        C::Revoked => HandshakeRefusal::Revoked,
        C::UnknownIssuer => HandshakeRefusal::UnknownAuthority,
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => HandshakeRefusal::WrongRole,
        C::NotValidForName | C::NotValidForNameContext { .. } => HandshakeRefusal::WrongName,
        _ => HandshakeRefusal::Other,
    }
}
