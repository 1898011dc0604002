//! How domain values stand in columns.

use docaxis_protocol::codec;
use docaxis_protocol::envelope::Chain;
use docaxis_protocol::key::RawSignature;
use docaxis_protocol::{Digest, DispatchId, Reason, SealedEnvelope, Timestamp};
use serde::Serialize;

use super::MailboxError;

/// A chain is at most four certificates of 8 KiB.
const MAX_CHAIN_BYTES: usize = 64 << 10;

macro_rules! states {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident $text:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        pub enum $name { $($(#[$vdoc])* #[serde(rename = $text)] $variant,)* }

        impl $name {
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }

            pub fn from_text(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|state| state.as_str() == text)
            }

            pub(super) fn read(text: &str) -> Result<Self, MailboxError> {
                Self::from_text(text)
                    .ok_or_else(|| MailboxError::Damaged { what: stringify!($name), found: text.to_owned() })
            }
        }
    };
}

states! {
    /// Where a dispatch of ours stands as a whole.
    OutState {
        Queued "queued",
        Accepted "accepted",
        Rejected "rejected",
    }
}

states! {
    /// Where one recipient of a dispatch of ours stands, as far as evidence says.
    DeliveryState {
        Waiting "waiting",
        HandedOver "handed-over",
        Opened "opened",
        Registered "registered",
        Refused "refused",
        /// Recalled before it was handed over.
        Withdrawn "withdrawn",
        Failed "failed",
    }
}

states! {
    /// Where a dispatch to one of our agencies stands.
    InState {
        /// Durable and signed for; not to be shown before the exchange has recorded it.
        Taken "taken",
        Visible "handed-over",
        Registered "registered",
        Refused "refused",
        /// Withdrawn or expired before it was recorded: the bodies are gone.
        Destroyed "destroyed",
        /// Taken back by its sender, to which the recipient agreed (status 15): the bodies are gone.
        Recalled "recalled",
    }
}

impl InState {
    /// Whether people and document systems may see it.
    pub const fn is_visible(self) -> bool {
        matches!(self, Self::Visible | Self::Registered | Self::Refused)
    }
}

pub(super) fn damaged(what: &'static str) -> impl Fn(String) -> MailboxError {
    move |found| MailboxError::Damaged { what, found }
}

pub(super) fn digest(bytes: Vec<u8>) -> Result<Digest, MailboxError> {
    bytes.try_into().map(Digest).map_err(|wrong: Vec<u8>| damaged("digest")(format!("{} bytes", wrong.len())))
}

pub(super) fn dispatch(bytes: Vec<u8>) -> Result<DispatchId, MailboxError> {
    let bytes = bytes.try_into().map_err(|wrong: Vec<u8>| damaged("dispatch id")(format!("{} bytes", wrong.len())))?;
    DispatchId::from_bytes(bytes).map_err(|e| damaged("dispatch id")(e.to_string()))
}

pub(super) fn signature(bytes: &[u8]) -> Result<RawSignature, MailboxError> {
    RawSignature::from_slice(bytes).map_err(|e| damaged("signature")(e.to_string()))
}

pub(super) fn name<T: std::str::FromStr>(what: &'static str, text: &str) -> Result<T, MailboxError> {
    text.parse().map_err(|_| damaged(what)(text.to_owned()))
}

pub(super) fn chain_to_bytes(chain: &Chain) -> Result<Vec<u8>, MailboxError> {
    codec::encode(chain, MAX_CHAIN_BYTES).map_err(|e| damaged("certificate chain")(e.to_string()))
}

pub(super) fn chain(bytes: &[u8]) -> Result<Chain, MailboxError> {
    codec::decode(bytes, MAX_CHAIN_BYTES).map_err(|e| damaged("certificate chain")(e.to_string()))
}

pub(super) fn sealed(envelope: Vec<u8>, seal: &[u8], certificates: &[u8]) -> Result<SealedEnvelope, MailboxError> {
    Ok(SealedEnvelope { bytes: envelope, signature: signature(seal)?, chain: chain(certificates)? })
}

pub(super) fn reason_to_text(reason: &Reason) -> String {
    format!("{}\n{}", reason.code, reason.text)
}

pub(super) fn reason(text: Option<String>) -> Option<Reason> {
    text.map(|text| match text.split_once('\n') {
        Some((code, text)) => Reason { code: code.into(), text: text.into() },
        None => Reason { code: "other".into(), text },
    })
}

pub(super) const fn time(ms: i64) -> Timestamp {
    Timestamp::from_unix_ms(ms)
}

/// Leaf indexes and sizes fit: SQLite's integers are signed, and no log reaches 2^63.
pub(super) fn int(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

pub(super) fn uint(value: i64) -> u64 {
    u64::try_from(value).unwrap_or(0)
}
