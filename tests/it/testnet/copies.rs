//! Backups of the broker and the agents, and waiting until a restored broker is open.

use std::path::{Path, PathBuf};
use std::time::Duration;

use docaxis::control::Control;
use docaxis_broker::backup;
use docaxis_broker::continuity::Report;
use docaxis_protocol::evidence::PartDigest;
use serde_json::{Value, json};

use super::{HANG, Sent, TestNet, code, now};

impl TestNet {
    /// A folder for a backup or a copy.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Takes a backup of the running broker through its control socket.
    pub fn back_up_broker(&self, dir: &Path) -> Value {
        match self.broker_control().post("/v1/backup", &json!({ "dir": dir }), None) {
            Ok(taken) => taken,
            Err(failure) => panic!("no backup: {}", failure.message),
        }
    }

    /// Puts a backup in the place of the stopped broker's data.
    pub fn restore_broker(&self, dir: &Path) {
        self.try_restore_broker(dir).unwrap();
    }

    pub fn try_restore_broker(&self, dir: &Path) -> Result<backup::Restored, backup::Error> {
        backup::restore(dir, &self.broker_config, now(), true)
    }

    /// Until the broker has let go of a dispatch's bodies, which it does within a second of being idle.
    pub fn until_pruned(&self, sent: &Sent) {
        let part = sent.received().parts.remove(0);
        let part = PartDigest { sha256: part.2, size: part.1 as u64 };
        let store = &self.broker().exchange().store;
        let seq = store.lookup(&code(&sent.from), sent.id).unwrap().unwrap();
        let pruned = || store.body(seq, &part).unwrap().is_none();
        let deadline = std::time::Instant::now() + HANG;
        while !pruned() {
            assert!(std::time::Instant::now() < deadline, "the bodies stay");
            std::thread::yield_now();
        }
    }

    /// How long the broker keeps bodies of finished dispatches, from its next start on.
    pub fn keep_bodies(&mut self, keep: Duration) {
        self.broker_config.store.keep_bodies = keep;
    }

    /// Takes a backup of a running node through its control socket.
    pub fn back_up_node(&self, name: &str, dir: &Path) -> Value {
        let control = Control::new(&self.nodes[name].config.agent.data.join("control.sock"), "");
        match control.post("/v1/backup", &json!({ "dir": dir }), None) {
            Ok(taken) => taken,
            Err(failure) => panic!("no backup: {}", failure.message),
        }
    }

    /// Puts a backup in the place of a stopped node's data.
    pub fn restore_node(&self, name: &str, dir: &Path) -> docaxis_node_agent::backup::Restored {
        let config = &self.nodes[name].config;
        docaxis_node_agent::backup::restore(dir, config, &name.parse().unwrap(), now(), true).unwrap()
    }

    pub fn continuity(&self) -> Report {
        let exchange = self.broker().exchange();
        exchange.continuity.report(exchange)
    }

    /// Until the broker's report is as wanted.
    pub fn until_continuity(&self, wanted: impl Fn(&Report) -> bool) -> Report {
        let mut changed = self.broker().exchange().continuity.changed();
        let waiting = async {
            loop {
                changed.mark_unchanged();
                let report = self.continuity();
                if wanted(&report) {
                    return report;
                }
                changed.changed().await.expect("the broker runs");
            }
        };
        let waited = self.runtime.block_on(async { tokio::time::timeout(HANG, waiting).await });
        waited.unwrap_or_else(|_| panic!("the broker stays as it is: {:#?}", self.continuity()))
    }

    /// What a running node alarms about.
    pub fn alarms(&self, name: &str) -> Vec<String> {
        let status = self.block_on(self.agent(name).status()).unwrap();
        status.alarms.into_iter().map(|alarm| alarm.text).collect()
    }

    /// What the newest checkpoint on the broker's disk covers.
    pub fn signed_size(&self) -> u64 {
        let note = std::fs::read_to_string(self.broker_data().join("log/checkpoint")).unwrap();
        note.lines().nth(1).unwrap().parse().unwrap()
    }
}
