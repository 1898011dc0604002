//! What is shown of dispatches and of the agent itself, as callers in the process and readers of the JSON see it.

use docaxis_protocol::envelope::{Part, Relation};
use docaxis_protocol::space::Report;
use docaxis_protocol::{AgencyCode, DispatchId, Kind, NodeId, Origin, Reason, StatusCode, Timestamp};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::agent::Alarm;
use crate::mailbox::{DeliveryState, InState, OutState};
use crate::transfers::TransferView;
use crate::uplink::{LinkState, Whose};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Box {
    In,
    Out,
}

/// Why something waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Waiting {
    pub why: String,
    pub whose_move: Whose,
    /// When this node or the exchange tries again by itself, where this node knows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_attempt: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PartView {
    pub n: usize,
    #[serde(flatten)]
    pub part: Part,
}

/// Where the recall of a document stands with one recipient that had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Recall {
    Asked,
    /// Status 15: the recipient has destroyed the bodies.
    Agreed,
    /// Status 16.
    Declined,
}

/// A dispatch about the one that is shown: a recall, an update, a replacement or a status.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RelatedView {
    pub time: Timestamp,
    pub dispatch: DispatchId,
    pub kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<StatusCode>,
    pub sender: AgencyCode,
    #[serde(rename = "box")]
    pub which: Box,
    /// Our agency that sent it or was sent it.
    pub agency: AgencyCode,
    pub state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeliveryView {
    pub recipient: AgencyCode,
    pub state: DeliveryState,
    pub since: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recall: Option<Recall>,
    /// The newest of 04, 05 and 06.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub progress: Option<StatusCode>,
    /// When the exchange recorded that nobody there had registered or refused it in time. Gone with an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_answer: Option<Timestamp>,
}

/// A dispatch as the sender's side sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OutView {
    pub state: OutState,
    pub since: Timestamp,
    pub attempts: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    /// Bodies on their way to the exchange now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transfer: Option<TransferView>,
    /// How many of the deliveries are in each state; none of a state that none is in.
    pub counts: Vec<Count>,
    /// How many of those handed over or opened were not answered in time.
    pub no_answer: u64,
    pub deliveries: Vec<DeliveryView>,
}

/// A dispatch as one recipient here sees it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InView {
    pub recipient: AgencyCode,
    pub state: InState,
    pub since: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<Waiting>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recall: Option<Recall>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TimelineEntry {
    pub time: Timestamp,
    pub agency: AgencyCode,
    /// Who spoke for the agency, if it was merged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acting: Option<AgencyCode>,
    pub event: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Place in the exchange's log, where there is evidence.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leaf: Option<u64>,
    /// Whether the proof of that place is here.
    pub proven: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DispatchView {
    pub id: DispatchId,
    pub kind: Kind,
    pub sender: AgencyCode,
    pub recipients: Vec<AgencyCode>,
    pub created: Timestamp,
    pub expires: Timestamp,
    pub priority: u8,
    pub subject: String,
    pub document: Map<String, Value>,
    pub parts: Vec<PartView>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outgoing: Option<OutView>,
    pub incoming: Vec<InView>,
    /// Other documents here of the same id, or of the same number, notation, issuer and year: a warning.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub same_document: Vec<DispatchId>,
    /// The earlier ones that it recalls, updates, replaces or replies to, in its sender's words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub relates: Vec<Relation>,
    /// What was sent about it since, oldest first: the newest thousand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub related: Vec<RelatedView>,
    /// How many older ones are not among them.
    pub related_older: u64,
    pub timeline: Vec<TimelineEntry>,
}

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Give this as `after` to get the next page.
    pub cursor: u64,
    pub id: DispatchId,
    #[serde(rename = "box")]
    pub which: Box,
    pub kind: Kind,
    pub state: String,
    pub sender: AgencyCode,
    pub recipients: Vec<AgencyCode>,
    pub priority: u8,
    pub subject: String,
    pub time: Timestamp,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StatusView {
    pub node: NodeId,
    pub origin: Origin,
    pub agencies: Vec<AgencyCode>,
    pub time: Timestamp,
    pub link: LinkState,
    pub outbox: Vec<Count>,
    pub inbox: Vec<Count>,
    pub directory_version: u64,
    pub space: Report,
    pub alarms: Vec<Alarm>,
    /// Received, lost when the mailbox was restored, and no longer at the exchange: its sender has it. The oldest of them.
    pub gone: Vec<GoneView>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GoneView {
    pub dispatch: DispatchId,
    pub recipient: AgencyCode,
    pub sender: AgencyCode,
    pub handed_over: Timestamp,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Count {
    pub state: &'static str,
    pub count: u64,
}
