//! Which agency is at which node, as the authority signed it, and who answers for those that were merged. Versioned:
//! nodes take up what changed since the version that they have.
//!
//! Of an entry only what is asked for often is kept apart from its signed bytes: a country has 150,000 of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use docaxis_certs::entries::verify_all;
use docaxis_protocol::directory::{DirectoryEntry, DirectoryError, SignedEntry, VerifiedEntry};
use docaxis_protocol::key::PublicKey;
use docaxis_protocol::succession::SealedSuccession;
use docaxis_protocol::{AgencyCode, NodeId, Origin, Timestamp};

use crate::admission::Standing;

/// Under which key entries are good, and for which exchange. Needs no lock on the directory.
#[derive(Clone)]
pub struct EntryCheck {
    exchange: Origin,
    key: PublicKey,
}

impl EntryCheck {
    /// See [`verify_all`].
    pub fn verify(&self, entries: Vec<SignedEntry>) -> Result<Vec<VerifiedEntry>, DirectoryError> {
        verify_all(entries, &self.key, &self.exchange)
    }
}

pub struct Directory {
    check: EntryCheck,
    version: u64,
    agencies: BTreeMap<AgencyCode, Held>,
    by_version: BTreeMap<u64, AgencyCode>,
    hosted: BTreeMap<Arc<NodeId>, BTreeSet<AgencyCode>>,
    /// The merged agencies that each agency answers for.
    merged: BTreeMap<AgencyCode, BTreeSet<AgencyCode>>,
}

/// An agency as the directory has it now.
struct Held {
    version: u64,
    node: Option<Arc<NodeId>>,
    locked: bool,
    /// Merged, before successions were signed: nobody answers for it.
    closed: bool,
    valid: Option<Box<(Option<Timestamp>, Option<Timestamp>)>>,
    /// Everybody who has answered for it, today's last.
    successions: Box<[SealedSuccession]>,
    signed: SignedEntry,
}

impl Held {
    fn is_valid_at(&self, now: Timestamp) -> bool {
        let Some((from, until)) = self.valid.as_deref() else { return true };
        from.is_none_or(|from| from <= now) && until.is_none_or(|until| now < until)
    }

    fn successor(&self) -> Option<&AgencyCode> {
        self.successions.last().map(|last| &last.said().successor)
    }
}

impl Directory {
    /// An empty directory whose entries must be signed by `key`.
    pub fn new(exchange: Origin, key: PublicKey) -> Self {
        Self {
            check: EntryCheck { exchange, key },
            version: 0,
            agencies: BTreeMap::new(),
            by_version: BTreeMap::new(),
            hosted: BTreeMap::new(),
            merged: BTreeMap::new(),
        }
    }

    /// What entries are checked with before they come here.
    pub fn check(&self) -> EntryCheck {
        self.check.clone()
    }

    /// Of these entries, those that are newer than what is known.
    pub fn newer(&self, entries: Vec<VerifiedEntry>) -> Vec<VerifiedEntry> {
        let is_new =
            |entry: &VerifiedEntry| self.agencies.get(&entry.agency).is_none_or(|known| known.version < entry.version);
        entries.into_iter().filter(is_new).collect()
    }

    /// Takes up entries that were verified and are durable.
    pub fn take(&mut self, entries: Vec<VerifiedEntry>) {
        for entry in entries {
            let (entry, signed) = entry.into_parts();
            if let Some(old) = self.agencies.remove(&entry.agency) {
                self.forget(&entry.agency, &old);
            }
            self.put(entry, signed);
        }
    }

    fn forget(&mut self, agency: &AgencyCode, old: &Held) {
        self.by_version.remove(&old.version);
        if let Some(of_node) = old.node.as_ref().and_then(|node| self.hosted.get_mut(node)) {
            of_node.remove(agency);
        }
        if let Some(of_successor) = old.successor().and_then(|successor| self.merged.get_mut(successor)) {
            of_successor.remove(agency);
        }
    }

    fn put(&mut self, entry: DirectoryEntry, signed: SignedEntry) {
        let agency = entry.agency;
        let node = entry.node.map(|node| match self.hosted.get_key_value(&node) {
            Some((known, _)) => known.clone(),
            None => Arc::new(node),
        });
        if let Some(node) = &node {
            self.hosted.entry(node.clone()).or_default().insert(agency.clone());
        }
        let (from, until) = (entry.valid_from, entry.valid_until);
        let held = Held {
            version: entry.version,
            node,
            locked: entry.locked,
            closed: entry.successor.is_some() && entry.successions.is_empty(),
            valid: (from.is_some() || until.is_some()).then(|| Box::new((from, until))),
            successions: entry.successions.into(),
            signed,
        };
        if let Some(successor) = held.successor() {
            self.merged.entry(successor.clone()).or_default().insert(agency.clone());
        }
        self.version = self.version.max(held.version);
        self.by_version.insert(held.version, agency.clone());
        self.agencies.insert(agency, held);
    }

    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many agencies there are.
    pub fn len(&self) -> usize {
        self.agencies.len()
    }

    pub fn is_empty(&self) -> bool {
        self.agencies.is_empty()
    }

    pub fn node_of(&self, agency: &AgencyCode) -> Option<&NodeId> {
        self.agencies.get(agency).and_then(|held| held.node.as_deref())
    }

    pub fn hosts(&self, node: &NodeId, agency: &AgencyCode) -> bool {
        self.node_of(agency) == Some(node)
    }

    /// Who answers for an agency: itself, or today's successor if it was merged.
    pub fn answers_for<'a>(&'a self, agency: &'a AgencyCode) -> &'a AgencyCode {
        self.agencies.get(agency).and_then(Held::successor).unwrap_or(agency)
    }

    /// The node that what is addressed to an agency goes to.
    pub fn serving_node(&self, agency: &AgencyCode) -> Option<&NodeId> {
        self.node_of(self.answers_for(agency))
    }

    /// What the authority signed of an agency that answers, or answered, for a merged one.
    pub fn succession(&self, agency: &AgencyCode, acting: &AgencyCode) -> Option<&SealedSuccession> {
        let all = &self.agencies.get(agency)?.successions;
        all.iter().rev().find(|sealed| sealed.said().successor == *acting)
    }

    /// Whether `node` hosts the agency, or one that answers or answered for it.
    pub fn may_have_taken(&self, node: &NodeId, agency: &AgencyCode) -> bool {
        let Some(held) = self.agencies.get(agency) else { return false };
        held.node.as_deref() == Some(node)
            || held.successions.iter().any(|sealed| self.hosts(node, &sealed.said().successor))
    }

    /// The nodes that act for an agency.
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        let acting = self.hosted.iter().filter(|(_, codes)| !codes.is_empty());
        acting.map(|(node, _)| NodeId::clone(node)).collect()
    }

    /// The agencies that `node` acts for, in order.
    pub fn hosted_by(&self, node: &NodeId) -> Vec<AgencyCode> {
        self.hosted.get(node).map(|codes| codes.iter().cloned().collect()).unwrap_or_default()
    }

    /// The agencies whose dispatches go to `node`: those that it hosts and nobody succeeded, and those that they succeed.
    pub fn served_by(&self, node: &NodeId) -> Vec<AgencyCode> {
        let mut served = Vec::new();
        for agency in self.hosted.get(node).into_iter().flatten() {
            if self.answers_for(agency) == agency {
                served.push(agency.clone());
            }
            served.extend(self.merged.get(agency).into_iter().flatten().cloned());
        }
        served
    }

    /// How an agency stands as a recipient. One that was merged stands as its successor does. One that no node hosts
    /// cannot be reached yet.
    pub fn standing(&self, agency: &AgencyCode, now: Timestamp) -> Standing {
        let Some(own) = self.agencies.get(agency) else { return Standing::Unknown };
        if own.locked || own.closed {
            return Standing::Locked;
        }
        let serving = match own.successor() {
            Some(successor) => self.agencies.get(successor),
            None => Some(own),
        };
        match serving {
            Some(held) if held.locked || held.closed || held.successor().is_some() => Standing::Locked,
            Some(held) if !held.is_valid_at(now) => Standing::NotValid,
            Some(held) if held.node.is_some() => Standing::Open,
            _ => Standing::Unknown,
        }
    }

    /// Why an agency may not send, if it may not.
    pub fn may_not_send(&self, agency: &AgencyCode, now: Timestamp) -> Option<String> {
        let held = self.agencies.get(agency)?;
        if let Some(successor) = held.successor() {
            return Some(format!("{agency} was merged into {successor}, which sends in its place"));
        }
        if held.locked || held.closed {
            return Some(format!("{agency} is locked and may not send"));
        }
        (!held.is_valid_at(now)).then(|| format!("{agency} is not valid at {now}, as the directory says"))
    }

    /// The newest entries of agencies that changed after `version`, in order of change and with the version of each, at
    /// most `max_bytes` of them.
    pub fn since(&self, version: u64, max_bytes: usize) -> Vec<(u64, &SignedEntry)> {
        let mut bytes = 0;
        self.by_version
            .range(version.saturating_add(1)..)
            .filter_map(|(version, agency)| Some((*version, &self.agencies.get(agency)?.signed)))
            .take_while(|(_, signed)| {
                bytes += signed.bytes.len() + 128;
                bytes <= max_bytes
            })
            .collect()
    }
}

#[cfg(test)]
mod tests;
