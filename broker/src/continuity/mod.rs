//! Whether the exchange's history goes on where it was: as a pure state machine (protocol.md, section 4, "After a
//! restore").
//!
//! A broker whose data was put back from an older copy is *closed*: it signs nothing and accepts nothing. Its agents give
//! back the leaves that it lost; they are taken up at their own places, and only when the log leads to the newest
//! checkpoint that anybody holds, and every node was heard, is it opened again. Nothing here knows a socket, a file or
//! the clock: [`Continuity::next`] says what to do, `driver` does it.

pub mod driver;
mod mark;
mod pieces;

use std::collections::{BTreeMap, BTreeSet};

use docaxis_protocol::limits::MAX_BATCH;
use docaxis_protocol::tlog::Checkpoint;
use docaxis_protocol::{Digest, NodeId, Timestamp};
use serde::Serialize;

pub use driver::Keeper;
pub use mark::Mark;
pub use pieces::{Piece, What};

/// Leaves from the log's end on that are kept in memory while those before them are still missing, where no checkpoint
/// covers more of them.
const WINDOW: u64 = 2048;
/// The same up to the newest checkpoint: what no proof shows is taken up with all the rest up to there or not at all. A
/// leaf with its envelope takes some KiB; so many are days of a large exchange, and still fit into its memory.
const MAX_POOL: u64 = 1 << 20;
/// How far beyond the newest checkpoint a leaf may claim to stand. A checkpoint is published four times a second and
/// fetched by agents every few seconds; the rest is for a busy day.
const MAX_BEYOND: u64 = 100_000;

/// Why the exchange is closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// A backup was restored.
    Restored { taken: Option<Timestamp>, leaves: u64 },
    /// A node showed a checkpoint of ours that covers more than our log.
    Behind { node: NodeId, size: u64, own: u64 },
    /// Two histories were signed: no log can lead to both.
    Forked(String),
}

impl Why {
    /// In a sentence, for peers and people.
    pub fn text(&self) -> String {
        match self {
            Self::Restored { taken, leaves } => {
                let taken = taken.map_or_else(String::new, |taken| format!(" of {taken}"));
                format!(
                    "the exchange was put back to an older copy{taken} with {leaves} leaves and takes back what it lost"
                )
            }
            Self::Behind { node, size, own } => format!(
                "node {node} holds a checkpoint over {size} leaves and the exchange has {own}: its data was put back from \
                 an older copy, and it takes back what it lost"
            ),
            Self::Forked(what) => format!("two histories of the exchange were signed: {what}. Nothing more is signed"),
        }
    }
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Take up these leaves, in order.
    Import(Vec<Piece>),
    /// Take up leaves whose places no proof shows: only if they lead to this checkpoint.
    ImportIfRooted(Vec<Piece>, Checkpoint),
    /// Nobody holds the leaves from the log's end up to here, and no checkpoint covers them.
    FillLost { until: u64 },
    /// The log has everything that anybody holds: open, if it leads to the newest checkpoint.
    Open(Option<Checkpoint>),
    /// Somebody else's move.
    Wait,
}

/// Which nodes are there, as the driver sees it at one moment.
#[derive(Debug, Clone, Default)]
pub struct Present {
    /// Nodes that must be heard: those that the directory lets act for an agency.
    pub expected: BTreeSet<NodeId>,
    pub linked: BTreeSet<NodeId>,
    /// Whether the authority has published its directory since the start: only it knows who joined after the backup.
    pub authority: bool,
}

/// How far a node has given what it holds, page by page.
#[derive(Debug)]
struct Heard {
    /// The leaf from which on nothing was left out.
    since: u64,
    /// Where its last answer ended, if that was a full one; none if it has given everything.
    next: Option<u64>,
}

#[derive(Debug, Default)]
pub struct Continuity {
    why: Option<Why>,
    /// The largest checkpoint that was shown.
    newest: Option<Checkpoint>,
    pool: BTreeMap<u64, Piece>,
    heard: BTreeMap<NodeId, Heard>,
    /// The operator said that nodes which are not here are gone for good.
    waived: bool,
    /// What could not be taken up, by leaf.
    unusable: BTreeMap<u64, String>,
}

/// How the exchange stands, in words and numbers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    pub open: bool,
    pub why: String,
    pub leaves: u64,
    /// Size of the newest checkpoint that anybody showed; while the exchange is closed.
    pub checkpoint: Option<u64>,
    /// Nodes that are to give back what they hold and are not linked.
    pub waiting_for: BTreeSet<NodeId>,
    pub waiting_for_authority: bool,
    /// Linked nodes that have not given everything that they hold.
    pub giving: BTreeSet<NodeId>,
    /// Leaves that nobody has given back so far, from and to (inclusive).
    pub missing: Vec<(u64, u64)>,
    pub unusable: BTreeMap<u64, String>,
    pub next: String,
}

impl Continuity {
    pub fn is_open(&self) -> bool {
        self.why.is_none()
    }

    pub fn why(&self) -> Option<&Why> {
        self.why.as_ref()
    }

    /// Closes the exchange. What it was closed for first stays, unless it turns out to be a fork.
    pub fn close(&mut self, why: Why) {
        if self.why.is_none() || matches!(why, Why::Forked(_)) {
            self.why = Some(why);
            self.waived = false;
            self.heard.clear();
        }
    }

    /// A node, or our own folder, showed this checkpoint, signed with our log's key.
    pub fn shown(&mut self, checkpoint: &Checkpoint) {
        if self.newest.as_ref().is_none_or(|newest| newest.size < checkpoint.size) {
            self.newest = Some(checkpoint.clone());
        }
    }

    /// The operator says that whoever is not linked now will not come back.
    pub fn waive(&mut self) {
        self.waived = true;
    }

    /// A node's link is new: it is asked from the beginning.
    pub fn linked(&mut self, node: &NodeId) {
        self.heard.remove(node);
    }

    /// From which leaf on this node should be asked now.
    pub fn to_ask(&self, node: &NodeId, own: u64) -> Option<u64> {
        let from = match self.heard.get(node) {
            Some(Heard { next: Some(next), .. }) => Some(own.max(*next)),
            Some(Heard { since, next: None }) => (*since != own).then_some(own),
            None => Some(own),
        };
        from.filter(|_| matches!(self.why, Some(Why::Restored { .. } | Why::Behind { .. })))
    }

    /// What a node gave, asked from `from` on.
    pub fn given(&mut self, node: &NodeId, from: u64, pieces: Vec<Result<Piece, (u64, String)>>, own: u64) {
        let far = self.newest.as_ref().map_or(own, |newest| newest.size.max(own)).saturating_add(MAX_BEYOND);
        let since = match self.heard.get(node) {
            Some(Heard { since, next: Some(next) }) if *next == from => *since,
            _ => from,
        };
        let last = pieces.iter().map(|piece| piece.as_ref().map_or_else(|(leaf, _)| *leaf, |piece| piece.leaf)).max();
        // Whoever fills an answer without coming further, or goes beyond belief, is not asked for more.
        let next = last.filter(|last| pieces.len() >= MAX_BATCH && (from..far).contains(last)).map(|last| last + 1);
        self.heard.insert(node.clone(), Heard { since, next });
        for piece in pieces {
            match piece {
                Ok(piece) if piece.leaf >= far => {
                    let text = format!("node {node} says that it stands there, far beyond every checkpoint");
                    self.unusable.insert(piece.leaf, text);
                }
                Ok(piece) => self.keep(piece, own),
                Err((leaf, why)) => drop(self.unusable.insert(leaf, format!("from node {node}: {why}"))),
            }
        }
    }

    /// The first piece for a leaf stays, unless a proven one comes.
    fn keep(&mut self, piece: Piece, own: u64) {
        let first_beyond = self.pool.last_key_value().map(|(leaf, _)| *leaf);
        let covered = self.newest.as_ref().map_or(0, |newest| newest.size);
        let window = covered.saturating_sub(own).clamp(WINDOW, MAX_POOL);
        // The nearest leaf beyond the window tells how far a hole goes; the others are asked for again.
        if piece.leaf < own
            || (piece.leaf >= own.saturating_add(window) && first_beyond.is_some_and(|last| last < piece.leaf))
        {
            return;
        }
        if self.pool.get(&piece.leaf).is_none_or(|there| !there.proven && piece.proven) {
            self.unusable.remove(&piece.leaf);
            self.pool.insert(piece.leaf, piece);
        }
    }

    /// A piece turned out not to fit; another node may have a better one.
    pub fn refused(&mut self, leaf: u64, why: String) {
        self.pool.remove(&leaf);
        self.unusable.insert(leaf, why);
    }

    /// Whether everybody who must be heard has given all that he holds from `own` on.
    fn all_heard(&self, own: u64, present: &Present) -> bool {
        let answered =
            |node: &NodeId| self.heard.get(node).is_some_and(|heard| heard.since == own && heard.next.is_none());
        // A node that speaks only the older version of the link cannot answer: it is waited for like one that is away.
        match self.waived {
            // Without anybody to compare with, the operator's word would be all there is.
            true => !present.linked.is_empty() && present.linked.iter().all(answered),
            false => present.authority && present.expected.iter().all(answered),
        }
    }

    pub fn next(&mut self, own: u64, present: &Present) -> Step {
        match self.why {
            Some(Why::Restored { .. } | Why::Behind { .. }) => {}
            _ => return Step::Wait,
        }
        self.pool.retain(|leaf, _| *leaf >= own);
        self.unusable.retain(|leaf, _| *leaf >= own);
        let covered = self.newest.as_ref().map_or(0, |newest| newest.size);
        // Counted before anything is copied: it may be long, and is looked at with every answer.
        let run =
            || self.pool.range(own..).zip(own..).take_while(|((leaf, _), at)| *leaf == at).map(|((_, piece), _)| piece);
        let sure = run().take_while(|piece| piece.proven || piece.leaf >= covered).count();
        if sure > 0 {
            return Step::Import(run().take(sure).cloned().collect());
        }
        let end = own + run().count() as u64;
        if let Some(newest) = self.newest.as_ref().filter(|newest| end > own && end >= newest.size) {
            let upto = usize::try_from(newest.size - own).unwrap_or(usize::MAX);
            return Step::ImportIfRooted(run().take(upto).cloned().collect(), newest.clone());
        }
        if !self.all_heard(own, present) || end > own {
            return Step::Wait;
        }
        match self.pool.first_key_value() {
            _ if own < covered => Step::Wait,
            Some((leaf, _)) => Step::FillLost { until: *leaf },
            None => Step::Open(self.newest.clone()),
        }
    }

    /// The log leads to everything that was shown: the exchange goes on.
    pub fn open(&mut self) {
        *self = Self { newest: self.newest.take(), ..Self::default() };
    }

    pub fn report(&self, own: u64, present: &Present) -> Report {
        let open = self.is_open();
        let covered = self.newest.as_ref().map(|newest| newest.size);
        let waiting_for: BTreeSet<NodeId> = present
            .expected
            .iter()
            .filter(|node| !open && !self.waived && !present.linked.contains(*node))
            .cloned()
            .collect();
        let waiting_for_authority = !open && !self.waived && !present.authority;
        let giving: BTreeSet<NodeId> =
            present.linked.iter().filter(|node| self.to_ask(node, own).is_some()).cloned().collect();
        let missing = if open { Vec::new() } else { self.missing(own, covered.unwrap_or(own)) };
        let next = match &self.why {
            None => String::new(),
            Some(Why::Forked(_)) => {
                "stop the broker, keep its data, and restore the newest backup that was taken before".to_owned()
            }
            Some(_) if !waiting_for.is_empty() || waiting_for_authority => {
                "start the agents and the authority that are named here; if they are gone for good, say so with `docaxis \
                 broker restore --resume`"
                    .to_owned()
            }
            Some(_) if !giving.is_empty() => {
                "nothing yet: linked nodes are still giving back; if one stays named here, look at its agent's log".to_owned()
            }
            Some(_) if !missing.is_empty() => {
                "no linked node holds the missing leaves: link the node that does, or restore a newer backup or the \
                 folder of before; otherwise this exchange stays closed and a new one has to be opened under another name"
                    .to_owned()
            }
            Some(_) if present.linked.is_empty() => "link at least one agent, to compare with".to_owned(),
            Some(_) => "nothing: leaves are being taken back".to_owned(),
        };
        let why = self.why.as_ref().map(Why::text).unwrap_or_default();
        let unusable = self.unusable.clone();
        let checkpoint = covered.filter(|_| !open);
        Report {
            open,
            why,
            leaves: own,
            checkpoint,
            waiting_for,
            waiting_for_authority,
            giving,
            missing,
            unusable,
            next,
        }
    }

    /// Runs of leaves that are not here: up to the newest checkpoint, and up to the last leaf that was given.
    fn missing(&self, own: u64, covered: u64) -> Vec<(u64, u64)> {
        let mut missing = Vec::new();
        let mut at = own;
        for leaf in self.pool.keys().copied().filter(|leaf| *leaf >= own) {
            if leaf > at {
                missing.push((at, leaf - 1));
            }
            at = leaf + 1;
        }
        if at < covered {
            missing.push((at, covered - 1));
        }
        missing
    }
}

/// The entry that takes the place of a leaf which nobody holds and no checkpoint covers.
pub fn lost_entry(origin: &str, leaf: u64) -> Digest {
    Digest::of_pieces(&[b"docaxis/lost-leaf@1\n", origin.as_bytes(), format!("\n{leaf}\n").as_bytes()])
}

#[cfg(test)]
mod tests;
