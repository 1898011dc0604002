//! Frames of the link: a `u32` length (big endian), then one bincode value that uses all of it. Bodies follow some
//! frames raw, in an order that the frame gives.
//!
//! One bidirectional stream carries one exchange of frames; the variants say who opens it and what answers. New
//! variants go at the end: the order is part of the format, pinned by `tests/golden/`.

use serde::{Deserialize, Serialize};

use crate::codec::{self, CodecError, blob};
use crate::envelope::{Chain, SealedEnvelope};
use crate::evidence::SignedEvidence;
use crate::id::{AgencyCode, DispatchId, Origin};
use crate::limits::{MAX_CONTROL_FRAME_BYTES, MAX_LARGE_FRAME_BYTES};
use crate::reason::{Reason, ReasonCode};
use crate::statement::SealedStatement;
use crate::time::Timestamp;

/// ALPN of the link between a node (or the authority) and the broker: mutual TLS.
pub const ALPN_LINK: &[u8] = b"docaxis/1";
/// ALPN of enrolment: the server alone is authenticated, and only [`Frame::Join`] is answered.
pub const ALPN_JOIN: &[u8] = b"docaxis-join/1";
/// The newest version that this program speaks.
pub const VERSION: u16 = 3;
/// The version before: the same without [`Frame::Behind`]. A node that offers this one or a later one sends `Holds` behind its
/// `Hello`.
pub const VERSION_WITHOUT_ORDER: u16 = 2;
/// The first version: without [`Frame::Holds`] and what rests on it as well.
pub const VERSION_WITHOUT_HOLDS: u16 = 1;
/// Every version that this program speaks, the newest first.
pub const VERSIONS: [u16; 3] = [VERSION, VERSION_WITHOUT_ORDER, VERSION_WITHOUT_HOLDS];

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Frame {
    /// Node -> broker, first on a connection; answered by `Welcome` or `Refused`.
    Hello(Hello),
    Welcome(Welcome),
    /// A link error, in place of any answer. No evidence stands behind it.
    Refused(Refusal),
    /// Node -> broker. The inline bodies follow raw. Answered by `Need` (then bodies, then `Done`) or `Done`.
    Submit(Submit),
    Need(Need),
    Done(Done),
    /// Broker -> node. The inline bodies follow raw. Answered by `Need` (then bodies, then `Handover`) or `Handover`.
    Offer(Offer),
    /// The recipient's statement: it has the dispatch, or refuses it. Answered by `Recorded`.
    Handover(SealedStatement),
    Recorded(Outcome),
    /// Node -> broker: statements about dispatches that were handed over, or whose `Recorded` was lost.
    Report(Report),
    Reported(Reported),
    /// Node -> broker: evidence about what its agencies sent, from each cursor on; answered by `Evidence` frames
    /// without end.
    Follow(Follow),
    Evidence(Vec<EvidenceItem>),
    /// Node -> broker: inclusion proofs of these leaves.
    FetchProofs(Vec<u64>),
    /// For each leaf asked for, in that order, its tlog-proof, or none if no checkpoint covers it yet.
    Proofs(Vec<(u64, Option<String>)>),
    /// Node -> broker: the directory's changes after this version; answered by `Notices` frames without end.
    Directory(u64),
    /// What the authority signed: to the nodes as it changes, and from the authority to the broker, which answers
    /// `Published`.
    Notices(Notices),
    /// The directory's version after the notices were stored.
    Published(u64),
    Ping,
    Pong,
    /// Joining node -> broker -> authority.
    Join(Join),
    /// The authority's answer, which the joining node verifies against its token.
    Joined(Joined),
    /// Broker -> node: cosign this checkpoint (a signed note), consistent with the last one by this proof.
    Cosign(Cosign),
    /// The cosignature's line.
    Cosigned(String),
    /// Broker -> the sender's node: bodies of a dispatch that was accepted are lost at the exchange. Answered by
    /// `Submit` of the same bytes, which goes on as any submission, or `Refused` if no copy is left.
    Resend(Resend),
    /// Node -> broker, right behind a `Hello` that offers version 2 or a later one, on the same stream.
    Holds(Holds),
    /// Broker -> node: give back the evidence that you hold, from this leaf on; answered by `GivenBack`. Asked only by
    /// a broker whose data was put back from an older copy.
    GiveBack(u64),
    /// The first leaves that the node holds from there on, in order, in frames of as many as fit; an empty one ends them.
    GivenBack(Vec<GivenLeaf>),
    /// Node -> broker: our mailbox was restored from a backup; offer again what was handed over to us at the leaves from
    /// this one on. Answered by a page of offers, on streams of their own, and then `Gone`.
    Restored(u64),
    Gone(Gone),
    /// Node -> broker, from version 3 on, in front of a `Submit` on the same stream: dispatches of the same sender whose
    /// submissions are under way on this connection. This one is to be accepted behind all of them; if one of them ends
    /// without evidence, so does this one.
    Behind(Vec<DispatchId>),
}

/// How far the exchange has looked, and what it could not offer again because it no longer has the bodies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// Ask again from this leaf on; the same as was asked for if there is nothing more.
    pub upto: u64,
    pub items: Vec<GoneItem>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GoneItem {
    /// Of the handover.
    pub leaf: u64,
    pub recipient: AgencyCode,
    pub sender: AgencyCode,
    pub dispatch: DispatchId,
    pub time: Timestamp,
}

/// What a node can hold against the exchange.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Holds {
    /// The checkpoint of the largest size that it has verified: a signed note.
    pub checkpoint: Option<String>,
}

/// A piece of evidence as a node holds it, with all that the exchange needs to take it up again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GivenLeaf {
    pub leaf: u64,
    pub evidence: SignedEvidence,
    /// Of a submission: the envelope that it is about.
    pub envelope: Option<SealedEnvelope>,
    /// Certificates of the recipient's seal, where there is a statement.
    pub statement_chain: Option<Chain>,
    /// The leaf's tlog-proof, which shows that it stands at this place.
    pub proof: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Versions of the protocol that the node speaks.
    pub versions: Vec<u16>,
    pub software: String,
    pub time: Timestamp,
    /// Grows when the mailbox was restored from a backup.
    pub mailbox_epoch: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    pub version: u16,
    pub software: String,
    pub time: Timestamp,
    pub origin: Origin,
    /// Agencies that the directory lets this node act for.
    pub agencies: Vec<AgencyCode>,
    /// Bytes.
    pub max_part_bytes: u64,
    /// Certificates of the evidence key and of the log key, each with its issuer.
    pub evidence_chain: Chain,
    pub log_chain: Chain,
    pub crl_number: u64,
    pub directory_version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub reason: Reason,
    /// The refusing side's time, so that a wrong clock can be told from a bad certificate.
    pub time: Timestamp,
}

impl Refusal {
    pub fn new(code: ReasonCode, text: impl Into<String>, time: Timestamp) -> Self {
        Self { reason: code.because(text), time }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Submit {
    pub envelope: SealedEnvelope,
    /// Indexes into the envelope's parts, in the order in which their bodies follow.
    pub inline: Vec<u16>,
}

/// Bodies that the sender is asked for once more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resend {
    pub sender: AgencyCode,
    pub dispatch: DispatchId,
    /// Indexes into the envelope's parts.
    pub parts: Vec<u16>,
}

/// Parts to send, in this order, each from this byte on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Need {
    pub parts: Vec<(u16, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Intake {
    Accepted,
    /// These bytes were accepted before; the evidence is that of then.
    Already,
    Rejected,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    pub intake: Intake,
    /// Index of the evidence in the log.
    pub leaf: u64,
    pub evidence: SignedEvidence,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offer {
    /// Whom this offer is for; one dispatch may be offered to several agencies of a node.
    pub recipient: AgencyCode,
    pub envelope: SealedEnvelope,
    /// The SubmissionAcceptance.
    pub acceptance: SignedEvidence,
    pub acceptance_leaf: u64,
    pub inline: Vec<u16>,
}

/// How a delivery stands after a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    HandedOver,
    Failed,
    Expired,
    Withdrawn,
    Opened,
    Registered,
    Refused,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub standing: Standing,
    pub leaf: u64,
    pub evidence: SignedEvidence,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub statements: Vec<SealedStatement>,
}

/// One answer for each statement, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reported {
    pub answers: Vec<Result<Outcome, Reason>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    /// For each sending agency the first leaf index that is not yet stored.
    pub cursors: Vec<(AgencyCode, u64)>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EvidenceItem {
    /// The sender whom it is for.
    pub sender: AgencyCode,
    pub leaf: u64,
    pub evidence: SignedEvidence,
    /// Certificates of the recipient's seal, where there is a statement.
    pub statement_chain: Option<Chain>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Notices {
    /// The directory's version with these entries; 0 if unchanged.
    pub version: u64,
    pub entries: Vec<SignedBytes>,
    /// Revocation lists in PEM, by the name of their issuer (`nodes`, `seals`).
    pub crls: Vec<(String, String)>,
}

/// A directory entry: JSON and the directory key's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedBytes {
    #[serde(with = "blob")]
    pub bytes: Vec<u8>,
    pub signature: crate::key::RawSignature,
}

/// A join request, authenticated under the invitation's secret so that the relaying broker can alter nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Join {
    #[serde(with = "blob")]
    pub request: Vec<u8>,
    #[serde(with = "blob")]
    pub mac: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Joined {
    #[serde(with = "blob")]
    pub answer: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cosign {
    pub checkpoint: String,
    pub old_size: u64,
    pub consistency: Vec<crate::digest::Digest>,
}

/// How large a frame may be where it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    Control,
    /// Where an envelope, evidence, certificates or directory entries may come.
    Large,
}

impl Class {
    pub const fn max_bytes(self) -> usize {
        match self {
            Self::Control => MAX_CONTROL_FRAME_BYTES,
            Self::Large => MAX_LARGE_FRAME_BYTES,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {found} bytes was announced; the limit here is {max}")]
    TooLarge { found: usize, max: usize },
    #[error("the frame does not decode")]
    Codec(#[from] CodecError),
}

impl Frame {
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "Hello",
            Self::Welcome(_) => "Welcome",
            Self::Refused(_) => "Refused",
            Self::Submit(_) => "Submit",
            Self::Need(_) => "Need",
            Self::Done(_) => "Done",
            Self::Offer(_) => "Offer",
            Self::Handover(_) => "Handover",
            Self::Recorded(_) => "Recorded",
            Self::Report(_) => "Report",
            Self::Reported(_) => "Reported",
            Self::Follow(_) => "Follow",
            Self::Evidence(_) => "Evidence",
            Self::FetchProofs(_) => "FetchProofs",
            Self::Proofs(_) => "Proofs",
            Self::Directory(_) => "Directory",
            Self::Notices(_) => "Notices",
            Self::Published(_) => "Published",
            Self::Ping => "Ping",
            Self::Pong => "Pong",
            Self::Join(_) => "Join",
            Self::Joined(_) => "Joined",
            Self::Cosign(_) => "Cosign",
            Self::Cosigned(_) => "Cosigned",
            Self::Resend(_) => "Resend",
            Self::Holds(_) => "Holds",
            Self::GiveBack(_) => "GiveBack",
            Self::GivenBack(_) => "GivenBack",
            Self::Restored(_) => "Restored",
            Self::Gone(_) => "Gone",
            Self::Behind(_) => "Behind",
        }
    }

    /// The frame with its length in front, ready to send.
    pub fn encode(&self) -> Result<Vec<u8>, FrameError> {
        let body = codec::encode(self, MAX_LARGE_FRAME_BYTES)?;
        let found = body.len();
        let length = u32::try_from(found).map_err(|_| FrameError::TooLarge { found, max: MAX_LARGE_FRAME_BYTES })?;
        let mut bytes = Vec::with_capacity(4 + found);
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&body);
        Ok(bytes)
    }

    /// The length that a frame's first four bytes announce, if it is allowed here.
    pub fn length(header: [u8; 4], class: Class) -> Result<usize, FrameError> {
        let found = usize::try_from(u32::from_be_bytes(header)).unwrap_or(usize::MAX);
        if found > class.max_bytes() {
            return Err(FrameError::TooLarge { found, max: class.max_bytes() });
        }
        Ok(found)
    }

    /// Reads what follows the length.
    pub fn decode(body: &[u8]) -> Result<Self, FrameError> {
        Ok(codec::decode(body, MAX_LARGE_FRAME_BYTES)?)
    }
}
