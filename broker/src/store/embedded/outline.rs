//! What of a record the index is made from: its names, numbers and log entries, without envelopes, certificates and evidence.
//!
//! A rebuild reads every record there ever was, so these are taken from the encoded bytes without copying the rest.

use std::fmt;
use std::marker::PhantomData;
use std::str::FromStr;

use docaxis_protocol::codec::{self, words};
use docaxis_protocol::id::InvalidName;
use docaxis_protocol::key::RawSignature;
use docaxis_protocol::{AgencyCode, Digest, Event, NodeId};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::apply::is_large;
use super::keys::Location;
use super::layout::FrameHeader;
use super::record::{
    BodiesV1, BodyV1, Entry, MAX_META_BYTES, PartV1, Prepared, PrunedV1, RecordV1, bytes_of, check_leaf,
};
use crate::store::DeliveryState;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    pub subject: Subject,
    pub entries: Vec<Entry>,
    /// Length of the encoded record.
    pub meta_bytes: usize,
}

/// An outline and its record's place.
pub struct Outlined {
    pub outline: Outline,
    pub leaf: u64,
    pub at: Location,
    /// Of the record's frame, behind the header.
    pub bytes: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Accepted(AcceptedOutline),
    Rejected {
        sender: AgencyCode,
        id: [u8; 16],
        envelope_sha256: Digest,
    },
    Event(EventOutline),
    /// Their names.
    Notices(Vec<String>),
    Bodies(Vec<BodiesV1>),
    Pruned(Vec<PrunedV1>),
    Settled,
    Lost(Vec<[u8; 32]>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcceptedOutline {
    pub sender: AgencyCode,
    pub id: [u8; 16],
    pub accepted_ms: i64,
    pub expires_ms: i64,
    pub priority: u8,
    pub envelope_sha256: Digest,
    /// The bodies that are files of their own.
    pub large: Vec<PartV1>,
    /// Bytes of the bodies in the tail, if there are bodies.
    pub tail: Option<u64>,
    /// Each recipient, and whether the acceptance says that it was not reached.
    pub recipients: Vec<(AgencyCode, bool)>,
}

impl AcceptedOutline {
    /// Of all its bodies, each once.
    pub fn bytes(&self) -> u64 {
        self.large.iter().map(|part| part.size).fold(self.tail.unwrap_or(0), u64::saturating_add)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventOutline {
    pub seq: u64,
    pub recipient: AgencyCode,
    pub event: Event,
    pub time_ms: i64,
    pub state: DeliveryState,
}

impl Outline {
    pub fn of(prepared: &Prepared) -> Self {
        let subject = match &prepared.record {
            RecordV1::Accepted(accepted) => Subject::Accepted(AcceptedOutline {
                sender: accepted.sender.clone(),
                id: accepted.id,
                accepted_ms: accepted.accepted_ms,
                expires_ms: accepted.expires_ms,
                priority: accepted.priority,
                envelope_sha256: Digest(accepted.envelope_sha256),
                large: large_of(&accepted.parts),
                tail: tail_of(&accepted.bodies),
                recipients: accepted.recipients.iter().map(|(code, failed)| (code.clone(), failed.is_some())).collect(),
            }),
            RecordV1::Rejected(rejected) => Subject::Rejected {
                sender: rejected.sender.clone(),
                id: rejected.id,
                envelope_sha256: rejected.envelope.digest(),
            },
            RecordV1::Event(event) => Subject::Event(EventOutline {
                seq: event.seq,
                recipient: event.recipient.clone(),
                event: event.event,
                time_ms: event.time_ms,
                state: event.state,
            }),
            RecordV1::Notices(list) => Subject::Notices(list.iter().map(|notice| notice.name.clone()).collect()),
            RecordV1::Bodies(list) => Subject::Bodies(list.clone()),
            RecordV1::Pruned(list) => Subject::Pruned(list.clone()),
            RecordV1::Settled(_) => Subject::Settled,
            RecordV1::Lost(entries) => Subject::Lost(entries.clone()),
        };
        Self { subject, entries: prepared.entries.clone(), meta_bytes: prepared.meta_bytes }
    }

    /// Reads a frame's meta, whose CRC was checked.
    pub fn read(frame: &FrameHeader, meta: &[u8]) -> Result<Self, String> {
        let record: RecordRef<'_> = codec::decode_borrowed(meta, MAX_META_BYTES).map_err(|e| e.to_string())?;
        let (subject, entries) = record.outline()?;
        check_leaf(frame, &entries)?;
        Ok(Self { subject, entries, meta_bytes: meta.len() })
    }
}

fn large_of(parts: &[PartV1]) -> Vec<PartV1> {
    parts.iter().filter(|part| is_large(part.size)).copied().collect()
}

fn tail_of(bodies: &[BodyV1]) -> Option<u64> {
    (!bodies.is_empty()).then(|| bytes_of(bodies))
}

/// The bytes of [`RecordV1`], variant for variant and field for field, borrowed.
#[derive(Deserialize)]
enum RecordRef<'a> {
    #[serde(borrow)]
    Accepted(AcceptedRef<'a>),
    Rejected(RejectedRef<'a>),
    Event(EventRef<'a>),
    Notices(Vec<NoticeRef<'a>>),
    Bodies(Vec<BodiesV1>),
    Pruned(Vec<PrunedV1>),
    Settled(#[allow(dead_code, reason = "its bytes are there")] u64),
    Lost(Vec<[u8; 32]>),
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "what lies between the fields that are read")]
struct AcceptedRef<'a> {
    sender: &'a str,
    #[serde(with = "words")]
    id: [u8; 16],
    node: &'a str,
    accepted_ms: i64,
    expires_ms: i64,
    priority: u8,
    #[serde(with = "words")]
    envelope_sha256: [u8; 32],
    #[serde(borrow)]
    envelope: SealedRef<'a>,
    #[serde(deserialize_with = "large_parts")]
    large: Vec<PartV1>,
    #[serde(deserialize_with = "tail")]
    tail: Option<u64>,
    #[serde(borrow)]
    evidence: SignedRef<'a>,
    #[serde(borrow)]
    recipients: Vec<(&'a str, Option<SignedRef<'a>>)>,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "what lies between the fields that are read")]
struct RejectedRef<'a> {
    sender: &'a str,
    #[serde(with = "words")]
    id: [u8; 16],
    #[serde(borrow)]
    envelope: SealedRef<'a>,
    #[serde(borrow)]
    evidence: SignedRef<'a>,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "what lies between the fields that are read")]
struct EventRef<'a> {
    seq: u64,
    recipient: &'a str,
    event: Event,
    time_ms: i64,
    #[serde(with = "words")]
    previous: [u8; 32],
    #[serde(borrow)]
    evidence: SignedRef<'a>,
    #[serde(borrow)]
    statement: Option<SealedRef<'a>>,
    state: DeliveryState,
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "what lies between the fields that are read")]
struct NoticeRef<'a> {
    name: &'a str,
    bytes: &'a [u8],
}

#[derive(Deserialize)]
#[allow(dead_code, reason = "what lies between the fields that are read")]
struct SealedRef<'a> {
    bytes: &'a [u8],
    signature: RawSignature,
    #[serde(deserialize_with = "each")]
    chain: (),
}

/// Gives the elements of a list one after the other to `each`, without keeping them.
fn fold<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D, each: impl FnMut(T)) -> Result<(), D::Error> {
    struct Fold<T, F>(F, PhantomData<T>);
    impl<'de, T: Deserialize<'de>, F: FnMut(T)> Visitor<'de> for Fold<T, F> {
        type Value = ();
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }
        fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<(), A::Error> {
            while let Some(element) = list.next_element()? {
                (self.0)(element);
            }
            Ok(())
        }
    }
    deserializer.deserialize_seq(Fold(each, PhantomData))
}

fn each<'de, D: Deserializer<'de>>(deserializer: D) -> Result<(), D::Error> {
    fold(deserializer, |_: &'de [u8]| ())
}

fn large_parts<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PartV1>, D::Error> {
    let mut large = Vec::new();
    fold(deserializer, |part: PartV1| large.extend(is_large(part.size).then_some(part)))?;
    Ok(large)
}

fn tail<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let mut bytes = None;
    fold(deserializer, |body: BodyV1| bytes = Some(bytes.unwrap_or(0) + u64::from(body.size)))?;
    Ok(bytes)
}

#[derive(Deserialize)]
struct SignedRef<'a> {
    bytes: &'a [u8],
    signature: RawSignature,
}

impl SignedRef<'_> {
    fn entry(&self) -> Entry {
        Entry::of_bytes(self.bytes, &self.signature.0)
    }
}

fn name<T: FromStr<Err = InvalidName>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|e: InvalidName| e.to_string())
}

fn code(text: &str) -> Result<AgencyCode, String> {
    name(text)
}

impl RecordRef<'_> {
    fn outline(self) -> Result<(Subject, Vec<Entry>), String> {
        Ok(match self {
            Self::Accepted(accepted) => {
                // Not of the index, but a record that cannot be read must not get into it.
                name::<NodeId>(accepted.node)?;
                let refused = accepted.recipients.iter().filter_map(|(_, failure)| failure.as_ref());
                let entries = std::iter::once(&accepted.evidence).chain(refused).map(SignedRef::entry).collect();
                let recipients = accepted.recipients.iter().map(|(text, failed)| Ok((code(text)?, failed.is_some())));
                let outline = AcceptedOutline {
                    sender: code(accepted.sender)?,
                    id: accepted.id,
                    accepted_ms: accepted.accepted_ms,
                    expires_ms: accepted.expires_ms,
                    priority: accepted.priority,
                    envelope_sha256: Digest(accepted.envelope_sha256),
                    large: accepted.large,
                    tail: accepted.tail,
                    recipients: recipients.collect::<Result<_, String>>()?,
                };
                (Subject::Accepted(outline), entries)
            }
            Self::Rejected(rejected) => {
                let (sender, envelope_sha256) = (code(rejected.sender)?, Digest::of(rejected.envelope.bytes));
                let subject = Subject::Rejected { sender, id: rejected.id, envelope_sha256 };
                (subject, vec![rejected.evidence.entry()])
            }
            Self::Event(event) => {
                let outline = EventOutline {
                    seq: event.seq,
                    recipient: code(event.recipient)?,
                    event: event.event,
                    time_ms: event.time_ms,
                    state: event.state,
                };
                (Subject::Event(outline), vec![event.evidence.entry()])
            }
            Self::Notices(list) => {
                (Subject::Notices(list.iter().map(|notice| notice.name.to_owned()).collect()), vec![])
            }
            Self::Bodies(list) => (Subject::Bodies(list), vec![]),
            Self::Pruned(list) => (Subject::Pruned(list), vec![]),
            Self::Settled(_) => (Subject::Settled, vec![]),
            Self::Lost(entries) => {
                let made = entries.iter().copied().map(Entry::lost).collect();
                (Subject::Lost(entries), made)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::NO_LEAF;
    use super::super::record::{NoticeV1, RejectedV1};
    use super::*;
    use crate::store::claims::{agency, body_of, handover, letter, rejection};
    use crate::store::{Acceptance, Body};
    use docaxis_protocol::evidence::PartDigest;
    use docaxis_protocol::{Digest, SignedEvidence};

    /// One record of each kind, with and without what may be missing.
    fn records() -> Vec<Prepared> {
        let bodies = [body_of(1, 700), body_of(2, 90)];
        let mut parts =
            bodies.each_ref().map(|body| PartDigest { sha256: body.sha256, size: body.bytes.len() as u64 }).to_vec();
        parts.push(PartDigest { sha256: Digest([9; 32]), size: 5 << 20 });
        let plain = letter(1, &["H37.DN.001"]);
        let failure = SignedEvidence { bytes: b"refused".to_vec(), ..plain.evidence.clone() };
        let recipients = vec![(agency("H37.DN.001"), None), (agency("A53.01"), Some(failure))];
        let full = Acceptance { bodies: bodies.to_vec(), parts, recipients, ..letter(2, &[]) };
        let apart = |from: Option<u64>| Prepared::bodies(vec![(7, from, Vec::<Body>::from(bodies.clone()))]).unwrap();
        let plain_record = |record| Prepared::new(record, vec![]).unwrap();
        let handed = handover(3, "H37.DN.001", &plain.evidence);
        let pruned = PrunedV1 {
            seq: 3,
            sender: plain.sender.clone(),
            finished_ms: -5,
            parts: vec![[4; 32]],
            freed: Some((2, 790)),
        };
        let notice = |name: &str| NoticeV1 { name: name.to_owned(), bytes: vec![1, 2, 3] };
        let refused = rejection(4);
        let rejected = RejectedV1 {
            sender: refused.sender.clone(),
            id: *refused.id.as_bytes(),
            envelope: refused.envelope.clone(),
            evidence: refused.evidence.clone(),
        };
        vec![
            Prepared::accepted(plain).unwrap(),
            Prepared::accepted(full).unwrap(),
            plain_record(RecordV1::Rejected(Box::new(rejected))),
            Prepared::event(handed).unwrap(),
            plain_record(RecordV1::Notices(vec![notice("crl/nodes"), notice("agency/H37")])),
            apart(Some(4)),
            apart(None),
            plain_record(RecordV1::Pruned(vec![pruned])),
            plain_record(RecordV1::Settled(9)),
            plain_record(RecordV1::Lost(vec![[5; 32], [6; 32]])),
        ]
    }

    #[test]
    fn an_outline_from_the_bytes_is_the_outline_of_the_record() {
        for prepared in records() {
            let leaf = if prepared.entries.is_empty() { NO_LEAF } else { 3 };
            let frame = FrameHeader::decode(&FrameHeader::encode(&prepared.meta, prepared.tail_bytes, leaf)).unwrap();
            assert_eq!(Outline::read(&frame, &prepared.meta).unwrap(), Outline::of(&prepared));
            let longer = [&prepared.meta[..], &[0]].concat();
            assert!(Outline::read(&frame, &longer).is_err(), "{:?}: a byte is left over", prepared.record);
            let shorter = &prepared.meta[..prepared.meta.len() - 1];
            assert!(Outline::read(&frame, shorter).is_err(), "{:?}: a byte is missing", prepared.record);
        }
    }

    #[test]
    fn whatever_a_byte_is_changed_to_an_outline_reads_if_and_only_if_the_record_does() {
        let mut refused = 0;
        for prepared in records() {
            let leaf = if prepared.entries.is_empty() { NO_LEAF } else { 3 };
            for at in 0..prepared.meta.len() {
                for change in [1, 2, 4, 8, 16, 32, 64, 128, 255] {
                    let mut meta = prepared.meta.clone();
                    meta[at] ^= change;
                    // Whoever wrote it gave it the right checksum.
                    let header = FrameHeader::encode(&meta, prepared.tail_bytes, leaf);
                    let frame = FrameHeader::decode(&header).unwrap();
                    let whole = Prepared::read(&frame, &meta).map(|read| Outline::of(&read));
                    refused += u32::from(whole.is_err());
                    let outline = Outline::read(&frame, &meta);
                    assert_eq!(outline.is_ok(), whole.is_ok(), "byte {at} of {:?}: {whole:?}", prepared.record);
                    assert!(whole.is_err() || outline == whole, "byte {at} of {:?}", prepared.record);
                }
            }
        }
        assert!(refused > 1_000, "only {refused} changes were refused");
    }

    #[test]
    fn an_outline_brings_as_many_entries_as_its_frame_says() {
        for prepared in records() {
            let wrong = if prepared.entries.is_empty() { 3 } else { NO_LEAF };
            let frame = FrameHeader::decode(&FrameHeader::encode(&prepared.meta, 0, wrong)).unwrap();
            assert!(Outline::read(&frame, &prepared.meta).is_err(), "{:?}", prepared.record);
        }
    }
}
