//! Names of agencies, nodes, exchanges and dispatches, parsed at the edge: inside the program no bare string stands
//! for one of them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::time::Timestamp;

/// Why a name was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {found:?} is not valid: expected {expected}")]
pub struct InvalidName {
    pub what: &'static str,
    pub found: String,
    pub expected: &'static str,
}

fn invalid(what: &'static str, found: &str, expected: &'static str) -> InvalidName {
    InvalidName { what, found: found.chars().take(80).collect(), expected }
}

macro_rules! text_name {
    ($name:ident) => {
        impl $name {
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.into()
            }
        }
    };
}

/// An agency's canonical code, `[0-9A-Z]+(\.[0-9A-Z]+)*`, 3 to 35 characters: the old form of QCVN 102
/// (`000.12.31.H53`) or the new one of Decision 20/2020 (`H37.DN.001`).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct AgencyCode(Box<str>);

text_name!(AgencyCode);

impl AgencyCode {
    const EXPECTED: &str =
        "groups of 0-9 and A-Z joined by dots, 3 to 35 characters, such as 000.00.00.G22 or H37.DN.001";

    /// Reads what senders really write: trims and upper-cases. The second value says whether the spelling was changed.
    pub fn lenient(text: &str) -> Result<(Self, bool), InvalidName> {
        let canonical = text.trim().to_ascii_uppercase();
        let code: Self = canonical.parse().map_err(|_| invalid("agency code", text, Self::EXPECTED))?;
        let changed = code.as_str() != text;
        Ok((code, changed))
    }

    /// Whether this is the old form, `ddd.dd.dd.Xdd`.
    pub fn is_old_form(&self) -> bool {
        let digits = |group: &str, len: usize| group.len() == len && group.bytes().all(|b| b.is_ascii_digit());
        let groups: Vec<&str> = self.0.split('.').collect();
        matches!(groups[..], [a, b, c, d] if digits(a, 3) && digits(b, 2) && digits(c, 2)
            && d.len() == 3 && d.as_bytes()[0].is_ascii_uppercase() && digits(&d[1..], 2))
    }
}

impl FromStr for AgencyCode {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        // A rebuild of the store's index reads millions: bytes are looked at once, and a group ends at a dot or at the end.
        let (mut grouped, mut empty) = (true, true);
        for byte in text.bytes() {
            grouped &= byte.is_ascii_digit() || byte.is_ascii_uppercase() || byte == b'.' && !empty;
            empty = byte == b'.';
        }
        if !grouped || empty || !(3..=35).contains(&text.len()) || text == "NULL" {
            return Err(invalid("agency code", text, Self::EXPECTED));
        }
        Ok(Self(text.into()))
    }
}

/// A node's name: `[a-z0-9]([a-z0-9-]*[a-z0-9])?`, at most 63 characters (one DNS label).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(Box<str>);

text_name!(NodeId);

impl FromStr for NodeId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if is_dns_label(text) {
            Ok(Self(text.into()))
        } else {
            Err(invalid(
                "node id",
                text,
                "lower-case letters, digits and inner hyphens, at most 63 characters, such as h37",
            ))
        }
    }
}

/// The name of an exchange and of its evidence log, such as `docaxis.example/vn`: a C2SP checkpoint origin.
/// `[a-z0-9.-]+(/[a-z0-9.-]+)*`, at most 200 characters, so that it can also stand inside a URI.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Origin(Box<str>);

text_name!(Origin);

impl FromStr for Origin {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let plain = |group: &str| {
            !group.is_empty()
                && group.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-'))
        };
        if text.len() <= 200 && text.split('/').all(plain) {
            Ok(Self(text.into()))
        } else {
            Err(invalid(
                "origin",
                text,
                "lower-case letters, digits, dots and hyphens in groups joined by '/', such as docaxis.example/vn",
            ))
        }
    }
}

fn is_dns_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    let inner = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-';
    (1..=63).contains(&bytes.len()) && bytes.iter().all(inner) && bytes[0] != b'-' && bytes[bytes.len() - 1] != b'-'
}

/// A dispatch's name for its whole life, made once by the sender's agent before the first try: a UUIDv7 (RFC 9562).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DispatchId(Uuid);

impl DispatchId {
    /// Builds an id from the time and ten random bytes.
    pub fn from_parts(now: Timestamp, random: [u8; 10]) -> Self {
        let ms = u64::try_from(now.unix_ms()).unwrap_or(0);
        Self(uuid::Builder::from_unix_timestamp_millis(ms, &random).into_uuid())
    }

    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id in these 16 bytes, if they are a UUIDv7.
    pub fn from_bytes(bytes: [u8; 16]) -> Result<Self, InvalidName> {
        Self::check(Uuid::from_bytes(bytes), || Uuid::from_bytes(bytes).to_string())
    }

    fn check(uuid: Uuid, found: impl FnOnce() -> String) -> Result<Self, InvalidName> {
        if uuid.get_version_num() == 7 && uuid.get_variant() == uuid::Variant::RFC4122 {
            Ok(Self(uuid))
        } else {
            Err(invalid("dispatch id", &found(), "a UUID of version 7, such as 0192f0c1-2b3c-7d4e-8f50-123456789abc"))
        }
    }
}

impl FromStr for DispatchId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let expected = "a UUID of version 7 in lower case with hyphens";
        let uuid = Uuid::try_parse(text).map_err(|_| invalid("dispatch id", text, expected))?;
        if uuid.to_string() != text {
            return Err(invalid("dispatch id", text, expected));
        }
        Self::check(uuid, || text.to_owned())
    }
}

impl TryFrom<String> for DispatchId {
    type Error = InvalidName;
    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<DispatchId> for String {
    fn from(id: DispatchId) -> String {
        id.0.to_string()
    }
}

impl fmt::Display for DispatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for DispatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A piece of evidence's own id: a UUIDv7 as well.
pub type EvidenceId = DispatchId;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agency_codes_old_and_new_are_taken_and_all_else_is_refused() {
        for (text, old) in
            [("000.00.00.G22", true), ("H37.DN.001", false), ("28.22.H17", false), ("VXP.SAAS.03", false)]
        {
            let code: AgencyCode = text.parse().expect(text);
            assert_eq!((code.as_str(), code.is_old_form()), (text, old));
        }
        for text in ["", "H3", "h37.dn", "H37..DN", ".H37", "H37.", "NULL", "H37 DN", "Đ37.001", &"A".repeat(36)] {
            assert!(text.parse::<AgencyCode>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn lenient_reading_upper_cases_and_says_so_but_refuses_the_word_null() {
        assert_eq!(
            AgencyCode::lenient(" vxp.saas.03 ").map(|(c, changed)| (c.to_string(), changed)),
            Ok(("VXP.SAAS.03".into(), true))
        );
        assert_eq!(AgencyCode::lenient("H37.DN.001").map(|(_, changed)| changed), Ok(false));
        assert!(AgencyCode::lenient("null").is_err());
        assert!(AgencyCode::lenient("").is_err());
    }

    #[test]
    fn a_dispatch_id_is_a_lower_case_uuid_of_version_7() {
        let id = DispatchId::from_parts(Timestamp::from_unix_ms(1_700_000_000_000), [7; 10]);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(DispatchId::from_bytes(*id.as_bytes()), Ok(id));
        for text in ["6ba7b810-9dad-11d1-80b4-00c04fd430c8", &id.to_string().to_uppercase(), "0192"] {
            assert!(text.parse::<DispatchId>().is_err(), "{text:?} was taken");
        }
    }

    #[test]
    fn node_ids_are_dns_labels_and_origins_fit_into_a_uri() {
        for text in ["h37", "g22", "a-1"] {
            assert!(text.parse::<NodeId>().is_ok(), "{text:?}");
        }
        for text in ["", "-a", "a-", "A", "a.b", "a/b", &"a".repeat(64)] {
            assert!(text.parse::<NodeId>().is_err(), "{text:?} was taken");
        }
        for text in ["docaxis.example/vn", "a", "docaxis.example/vn/2"] {
            assert!(text.parse::<Origin>().is_ok(), "{text:?}");
        }
        for text in ["", "/a", "a/", "a b", "a+b", "Ä"] {
            assert!(text.parse::<Origin>().is_err(), "{text:?} was taken");
        }
    }
}
