//! Evidence bundles as an auditor gets them, from the sender's node and from the broker, and the judgement on them.

use std::collections::BTreeMap;

use docaxis_protocol::bundle::{self, Question, Verdict};
use docaxis_protocol::{Digest, DispatchId};

use super::TestNet;

impl TestNet {
    /// A bundle made of nothing but what a node holds. Every piece of evidence must have its proof there.
    pub fn bundle_of_node(&self, node: &str, id: DispatchId) -> Vec<u8> {
        self.block_on(self.agent(node).bundle(id)).unwrap().zip(None).unwrap()
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
