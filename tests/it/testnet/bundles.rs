//! Evidence bundles as an auditor gets them, from the sender's node and from the broker, and the judgement on them.

use std::collections::BTreeMap;

use docaxis_node_agent::BundleMaterial;
use docaxis_protocol::bundle::{self, BundleContents, BundleEvidence, BundleKeys, Question, Verdict};
use docaxis_protocol::envelope::Chain;
use docaxis_protocol::{Digest, DispatchId};

use super::TestNet;

impl TestNet {
    /// A bundle made of nothing but what a node holds. Every piece of evidence must have its proof there.
    pub fn bundle_of_node(&self, node: &str, id: DispatchId) -> Vec<u8> {
        let material = self.block_on(self.agent(node).bundle(id)).unwrap();
        bundle::write(&contents(material)).unwrap()
    }

    /// The broker's bundle, through its control socket.
    pub fn bundle_of_broker(&self, id: DispatchId) -> Vec<u8> {
        let path = format!("/v1/dispatches/{id}/bundle");
        match self.broker_control().bytes(&path) {
            Ok(zip) => zip,
            Err(failure) => panic!("the broker gives no bundle of {id}: {}", failure.message),
        }
    }

    /// Judges a bundle as an auditor does who has the authority's certificate, a copy of the log, and the files.
    pub fn judge(&self, zip: &[u8], parts: &[(String, usize, Digest)]) -> Verdict {
        let log = self.broker_data().join("log");
        let read = |path: &str| std::fs::read(log.join(path));
        let parts: BTreeMap<Digest, u64> = parts.iter().map(|(_, size, sha256)| (*sha256, *size as u64)).collect();
        let question =
            Question { root: self.authority.root(), log: Some(&read), parts: Some(parts), ..Question::default() };
        bundle::verify(zip, &question)
    }
}

fn leaf(chain: &Chain) -> Vec<u8> {
    chain.leaf().unwrap().to_vec()
}

fn contents(material: BundleMaterial) -> BundleContents {
    let mut rows = material.evidence;
    rows.sort_by(|a, b| (&a.recipient, a.leaf).cmp(&(&b.recipient, b.leaf)));
    let piece = |row: docaxis_node_agent::mailbox::EvidenceRow| BundleEvidence {
        signed: row.signed,
        proof: row.proof.expect("the proof has come"),
        seal: row.statement_chain.as_ref().map(leaf),
    };
    let common = material.common;
    BundleContents {
        envelope: material.envelope,
        evidence: rows.into_iter().map(piece).collect(),
        cause: None,
        successions: Vec::new(),
        keys: BundleKeys {
            root: common.root,
            seals_cas: vec![common.seals_ca],
            evidence: material.evidence_chains.iter().map(leaf).collect(),
            log: leaf(&material.log_chain.expect("the broker has shown its log's key")),
            directory: Some(common.directory),
            crls: vec![common.seals_crl],
        },
        witnesses: Vec::new(),
        quorum: 0,
    }
}
