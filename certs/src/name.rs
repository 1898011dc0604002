//! Who a certificate is for: the one URI in its subjectAltName, and nothing else in it.
//!
//! Subject names are for people who look at a certificate; no decision is taken on them.

use std::fmt;

use docaxis_protocol::{AgencyCode, NodeId, Origin, Timestamp};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Whom a certificate names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    NodesCa,
    SealsCa,
    Node(NodeId),
    Broker(Origin),
    Authority(Origin),
    Agency(AgencyCode),
    Evidence(Origin),
    Log(Origin),
    Directory(Origin),
    Witness(NodeId),
}

impl Subject {
    pub fn uri(&self) -> String {
        match self {
            Self::NodesCa => "docaxis://ca/nodes".into(),
            Self::SealsCa => "docaxis://ca/seals".into(),
            Self::Node(id) => format!("docaxis://node/{id}"),
            Self::Broker(origin) => format!("docaxis://broker/{origin}"),
            Self::Authority(origin) => format!("docaxis://authority/{origin}"),
            Self::Agency(code) => format!("docaxis://agency/{code}"),
            Self::Evidence(origin) => format!("docaxis://evidence/{origin}"),
            Self::Log(origin) => format!("docaxis://log/{origin}"),
            Self::Directory(origin) => format!("docaxis://directory/{origin}"),
            Self::Witness(id) => format!("docaxis://witness/{id}"),
        }
    }

    pub fn from_uri(uri: &str) -> Option<Self> {
        let (kind, name) = uri.strip_prefix("docaxis://")?.split_once('/')?;
        match kind {
            "ca" if name == "nodes" => Some(Self::NodesCa),
            "ca" if name == "seals" => Some(Self::SealsCa),
            "node" => name.parse().ok().map(Self::Node),
            "broker" => name.parse().ok().map(Self::Broker),
            "authority" => name.parse().ok().map(Self::Authority),
            "agency" => name.parse().ok().map(Self::Agency),
            "evidence" => name.parse().ok().map(Self::Evidence),
            "log" => name.parse().ok().map(Self::Log),
            "directory" => name.parse().ok().map(Self::Directory),
            "witness" => name.parse().ok().map(Self::Witness),
            _ => None,
        }
    }

    /// The word that lists and records use.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NodesCa | Self::SealsCa => "ca",
            Self::Node(_) => "node",
            Self::Broker(_) => "broker",
            Self::Authority(_) => "authority",
            Self::Agency(_) => "seal",
            Self::Evidence(_) => "evidence",
            Self::Log(_) => "log",
            Self::Directory(_) => "directory",
            Self::Witness(_) => "witness",
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri())
    }
}

/// What is read out of a certificate. Reading proves nothing: the chain is checked elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    pub subject: Subject,
    pub serial: Serial,
    pub not_before: Timestamp,
    pub not_after: Timestamp,
    /// SubjectPublicKeyInfo in DER.
    pub spki: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FactsError {
    #[error("the certificate does not parse")]
    Syntax,
    #[error("the certificate names {found:?}; expected exactly one URI docaxis://KIND/NAME")]
    Names { found: Vec<String> },
}

impl Facts {
    pub fn of(der: &[u8]) -> Result<Self, FactsError> {
        let (rest, certificate) = X509Certificate::from_der(der).map_err(|_| FactsError::Syntax)?;
        if !rest.is_empty() {
            return Err(FactsError::Syntax);
        }
        let names = certificate.subject_alternative_name().map_err(|_| FactsError::Syntax)?;
        let uris: Vec<&str> = names
            .iter()
            .flat_map(|names| &names.value.general_names)
            .filter_map(|name| if let GeneralName::URI(uri) = name { Some(*uri) } else { None })
            .collect();
        let subject = match uris[..] {
            [uri] => Subject::from_uri(uri),
            _ => None,
        };
        let Some(subject) = subject else {
            let found = uris.iter().take(4).map(|uri| uri.chars().take(120).collect()).collect();
            return Err(FactsError::Names { found });
        };
        let validity = certificate.validity();
        Ok(Self {
            subject,
            serial: Serial::from_der_integer(certificate.raw_serial()),
            not_before: Timestamp::from_unix_ms(validity.not_before.timestamp().saturating_mul(1000)),
            not_after: Timestamp::from_unix_ms(validity.not_after.timestamp().saturating_mul(1000)),
            spki: certificate.public_key().raw.to_vec(),
        })
    }
}

/// A certificate's serial number, without leading zeros; as text lower-case hexadecimal.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Serial(Box<[u8]>);

/// Longest serial number (RFC 5280, section 4.1.2.2).
const MAX_SERIAL_BYTES: usize = 20;

impl Serial {
    /// 126 random bits with the top bits 01: positive, and always 16 bytes long.
    pub(crate) fn from_random(mut random: [u8; 16]) -> Self {
        random[0] = random[0] & 0x3f | 0x40;
        Self(random.into())
    }

    pub(crate) fn from_der_integer(bytes: &[u8]) -> Self {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Self(bytes[zeros..].into())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&docaxis_protocol::digest::hex(&self.0))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for Serial {
    type Err = docaxis_protocol::id::InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        docaxis_protocol::digest::unhex(text)
            .filter(|bytes| (1..=MAX_SERIAL_BYTES).contains(&bytes.len()))
            .map(|bytes| Self::from_der_integer(&bytes))
            .ok_or_else(|| docaxis_protocol::id::InvalidName {
                what: "serial number",
                found: text.chars().take(80).collect(),
                expected: "up to 40 lower-case hexadecimal digits",
            })
    }
}

impl TryFrom<String> for Serial {
    type Error = docaxis_protocol::id::InvalidName;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Serial> for String {
    fn from(serial: Serial) -> String {
        serial.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_subject_reads_back_from_its_uri_and_nothing_else_does() {
        let origin: Origin = "docaxis.example/vn".parse().unwrap();
        let node: NodeId = "h37".parse().unwrap();
        for subject in [
            Subject::NodesCa,
            Subject::SealsCa,
            Subject::Node(node.clone()),
            Subject::Broker(origin.clone()),
            Subject::Authority(origin.clone()),
            Subject::Agency("H37.DN.001".parse().unwrap()),
            Subject::Evidence(origin.clone()),
            Subject::Log(origin.clone()),
            Subject::Directory(origin),
            Subject::Witness(node),
        ] {
            assert_eq!(Subject::from_uri(&subject.uri()), Some(subject));
        }
        for uri in ["", "docaxis://", "docaxis://node/", "docaxis://node/H37", "docaxis://node/a/b", "https://node/h37"]
        {
            assert_eq!(Subject::from_uri(uri), None, "{uri}");
        }
    }

    #[test]
    fn a_serial_is_positive_and_sixteen_bytes_whatever_the_random_bytes() {
        for byte in [0, 0x7f, 0x80, 0xff] {
            let serial = Serial::from_random([byte; 16]);
            assert_eq!(serial.as_bytes().len(), 16);
            assert!((0x40..0x80).contains(&serial.as_bytes()[0]));
            assert_eq!(serial.to_string().parse(), Ok(serial));
        }
    }
}
