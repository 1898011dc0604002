//! Which agency is at which node, as the authority signed it. Versioned: nodes take up what changed since the version
//! that they have.

use std::collections::{BTreeMap, BTreeSet};

use docaxis_protocol::directory::{DirectoryError, SignedEntry, VerifiedEntry};
use docaxis_protocol::key::PublicKey;
use docaxis_protocol::{AgencyCode, NodeId, Origin};

use crate::admission::Standing;

pub struct Directory {
    exchange: Origin,
    key: PublicKey,
    version: u64,
    agencies: BTreeMap<AgencyCode, VerifiedEntry>,
    by_version: BTreeMap<u64, AgencyCode>,
    hosted: BTreeMap<NodeId, BTreeSet<AgencyCode>>,
}

impl Directory {
    /// An empty directory whose entries must be signed by `key`.
    pub fn new(exchange: Origin, key: PublicKey) -> Self {
        Self {
            exchange,
            key,
            version: 0,
            agencies: BTreeMap::new(),
            by_version: BTreeMap::new(),
            hosted: BTreeMap::new(),
        }
    }

    /// Checks entries against the directory's key; returns those that are newer than what is known.
    pub fn verify(&self, entries: Vec<SignedEntry>) -> Result<Vec<VerifiedEntry>, DirectoryError> {
        let mut news = Vec::new();
        for entry in entries {
            let entry = entry.verify(&self.key, &self.exchange)?;
            if self.agencies.get(&entry.agency).is_none_or(|known| known.version < entry.version) {
                news.push(entry);
            }
        }
        Ok(news)
    }

    /// Takes up entries that were verified and are durable.
    pub fn take(&mut self, entries: Vec<VerifiedEntry>) {
        for entry in entries {
            if let Some(old) = self.agencies.remove(&entry.agency) {
                self.by_version.remove(&old.version);
                if let Some(node) = &old.node
                    && let Some(of_node) = self.hosted.get_mut(node)
                {
                    of_node.remove(&old.agency);
                }
            }
            if let Some(node) = &entry.node {
                self.hosted.entry(node.clone()).or_default().insert(entry.agency.clone());
            }
            self.version = self.version.max(entry.version);
            self.by_version.insert(entry.version, entry.agency.clone());
            self.agencies.insert(entry.agency.clone(), entry);
        }
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
        self.agencies.get(agency).and_then(|entry| entry.node.as_ref())
    }

    pub fn hosts(&self, node: &NodeId, agency: &AgencyCode) -> bool {
        self.node_of(agency) == Some(node)
    }

    /// The nodes that act for an agency.
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        self.hosted.iter().filter(|(_, codes)| !codes.is_empty()).map(|(node, _)| node.clone()).collect()
    }

    /// The agencies that `node` acts for, in order.
    pub fn hosted_by(&self, node: &NodeId) -> Vec<AgencyCode> {
        self.hosted.get(node).map(|codes| codes.iter().cloned().collect()).unwrap_or_default()
    }

    /// How an agency stands as a recipient. One that no node hosts cannot be reached yet, and one that was merged is
    /// closed.
    pub fn standing(&self, agency: &AgencyCode) -> Standing {
        match self.agencies.get(agency) {
            Some(entry) if entry.locked || entry.successor.is_some() => Standing::Locked,
            Some(entry) if entry.node.is_some() => Standing::Open,
            _ => Standing::Unknown,
        }
    }

    /// The newest entries of agencies that changed after `version`, in order of change, at most `max_bytes` of them.
    pub fn since(&self, version: u64, max_bytes: usize) -> Vec<&VerifiedEntry> {
        let mut bytes = 0;
        self.by_version
            .range(version.saturating_add(1)..)
            .filter_map(|(_, agency)| self.agencies.get(agency))
            .take_while(|entry| {
                bytes += entry.signed().bytes.len() + 128;
                bytes <= max_bytes
            })
            .collect()
    }
}
