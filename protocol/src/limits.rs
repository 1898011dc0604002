//! Every bound of the protocol, with its reason. A bound that an operator may change is in the configuration instead
//! and starts from the value here.

use std::time::Duration;

/// An envelope: 4,000 recipients of 35 characters are 160 KiB; the rest is room for the edXML header.
pub const MAX_ENVELOPE_BYTES: usize = 1 << 20;
/// A frame that carries an envelope or evidence, with certificates beside it.
pub const MAX_LARGE_FRAME_BYTES: usize = MAX_ENVELOPE_BYTES + (64 << 10);
/// Every other frame.
pub const MAX_CONTROL_FRAME_BYTES: usize = 64 << 10;
/// The highest priority of a dispatch; 0 is the normal one.
pub const MAX_PRIORITY: u8 = 4;
/// Parts of one dispatch: real ones have one to four.
pub const MAX_PARTS: usize = 100;
/// Recipients of one dispatch: a circular to every commune has 3,321.
pub const MAX_RECIPIENTS: usize = 4_096;
/// One part, by default; an exchange may configure up to 16 GiB.
pub const MAX_PART_BYTES: u64 = 2 << 30;
/// A part's name, in bytes of UTF-8: what common file systems take.
pub const MAX_NAME_BYTES: usize = 255;
/// A body up to this size travels with its envelope and lives in the journal.
pub const MAX_INLINE_BODY_BYTES: usize = 64 << 10;
/// All bodies that travel with one envelope.
pub const MAX_INLINE_TOTAL_BYTES: usize = 256 << 10;
/// How far ahead `expires` may lie.
pub const MAX_LIFE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How long `expires` is remembered for duplicates after it has passed.
pub const DEDUP_AFTER_EXPIRY: Duration = Duration::from_secs(24 * 3600);
/// How far a peer's clock may be from ours, and times along a chain may appear to run backwards.
pub const MAX_CLOCK_SKEW: Duration = Duration::from_secs(300);
/// A statement's signed bytes: it names one dispatch, one recipient and a few reasons.
pub const MAX_STATEMENT_BYTES: usize = 16 << 10;
/// Certificates beside a seal: the seal's own and its issuing authority.
pub const MAX_CHAIN_CERTIFICATES: usize = 4;
/// One certificate in DER.
pub const MAX_CERTIFICATE_BYTES: usize = 8 << 10;
/// Statements in one report, items in one fetch.
pub const MAX_BATCH: usize = 256;
/// A reason's sentence.
pub const MAX_REASON_TEXT_BYTES: usize = 2_000;
