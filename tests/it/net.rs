//! An exchange in miniature: an authority, a broker on a port of its own, and the identities of its nodes, all in one
//! temporary folder and this process.
//!
//! A [`TestNet`] says what there shall be; [`TestNet::start`] makes it run. The broker can be stopped and started again
//! over the same data and on the same port.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use docaxis_broker::config::ConsoleListen;
use docaxis_broker::{Broker, BrokerConfig};
use docaxis_certs::authority::{Agency, JoinReply};
use docaxis_certs::{Authority, AuthorityConfig, NodeIdentity, PendingJoin, Token};
use docaxis_protocol::chain::{CertifiedKey, SealChains, TrustRoot};
use docaxis_protocol::{AgencyCode, NodeId, Timestamp};
use tempfile::TempDir;

pub const DAY: Duration = Duration::from_secs(86_400);

pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap())
}

pub fn code(text: &str) -> AgencyCode {
    text.parse().unwrap()
}

pub fn node_id(text: &str) -> NodeId {
    text.parse().unwrap()
}

type Edit = Box<dyn FnOnce(&mut BrokerConfig)>;

/// What an exchange shall have.
#[derive(Default)]
pub struct TestNet {
    nodes: Vec<(String, Vec<AgencyCode>)>,
    agencies: Vec<AgencyCode>,
    founded: Option<Timestamp>,
    edits: Vec<Edit>,
}

impl TestNet {
    pub fn new() -> Self {
        Self::default()
    }

    /// A node that acts for these agencies.
    pub fn node(mut self, name: &str, agencies: &[&str]) -> Self {
        self.nodes.push((name.into(), agencies.iter().map(|text| code(text)).collect()));
        self
    }

    /// An agency in the directory that no node acts for yet.
    pub fn agency(mut self, agency: &str) -> Self {
        self.agencies.push(code(agency));
        self
    }

    /// Changes the broker's configuration.
    pub fn with(mut self, edit: impl FnOnce(&mut BrokerConfig) + 'static) -> Self {
        self.edits.push(Box::new(edit));
        self
    }

    /// An authority as old as this, so that it can have issued what has ended since.
    pub fn founded(mut self, at: Timestamp) -> Self {
        self.founded = Some(at);
        self
    }

    pub fn start(self) -> Exchange {
        let folder = tempfile::tempdir().unwrap();
        let origin = "docaxis.example/vn".parse().unwrap();
        // The port is known once the broker runs; invitations come after that.
        let config = AuthorityConfig::new(origin, node_id("b1"), "127.0.0.1:1", self.founded.unwrap_or_else(now));
        let mut authority = Authority::init(&folder.path().join("authority"), &config).unwrap();
        authority.issue_broker(&folder.path().join("broker-identity"), now()).unwrap();
        for agency in self.agencies.iter().chain(self.nodes.iter().flat_map(|(_, agencies)| agencies)) {
            authority.add_agency(&Agency::new(agency.clone(), agency.as_str()), now()).unwrap();
        }
        let mut config = BrokerConfig::new(folder.path().join("broker"), folder.path().join("broker-identity"));
        config.broker.listen = (Ipv4Addr::LOCALHOST, 0).into();
        config.console.listen = ConsoleListen::Off;
        config.store.segment_mib = 8;
        config.store.index_cache_mib = 8;
        // Tests go on where the machine's own disk is well filled, and leave it alone.
        config.space.enough_free_gib = 1;
        config.space.ballast_mib = 1;
        self.edits.into_iter().for_each(|edit| edit(&mut config));
        let mut exchange = Exchange { folder, authority, config, broker: None, nodes: BTreeMap::new() };
        exchange.start_broker();
        for (name, agencies) in &self.nodes {
            exchange.join(name, agencies);
        }
        exchange.publish();
        exchange
    }
}

/// A running exchange.
pub struct Exchange {
    folder: TempDir,
    pub authority: Authority,
    pub config: BrokerConfig,
    broker: Option<Broker>,
    nodes: BTreeMap<String, Arc<NodeIdentity>>,
}

impl Exchange {
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn broker(&self) -> &Broker {
        self.broker.as_ref().expect("the broker is stopped")
    }

    pub fn address(&self) -> SocketAddr {
        self.broker().address()
    }

    /// A node's identity; it also lies in [`Exchange::node_folder`].
    pub fn identity(&self, node: &str) -> Arc<NodeIdentity> {
        self.nodes.get(node).unwrap_or_else(|| panic!("there is no node {node}")).clone()
    }

    pub fn node_folder(&self, node: &str) -> PathBuf {
        self.folder.path().join("nodes").join(node)
    }

    pub fn invite(&mut self, node: &str, agencies: &[AgencyCode]) -> Token {
        self.authority.invite(&node_id(node), agencies, DAY, now()).unwrap()
    }

    fn join(&mut self, node: &str, agencies: &[AgencyCode]) {
        let identity = self.identity_at(node, agencies, now());
        identity.save(&self.node_folder(node)).unwrap();
        self.nodes.insert(node.into(), Arc::new(identity));
    }

    /// The identity of a node that joins at `at`: its certificates hold from then on.
    pub fn identity_at(&mut self, node: &str, agencies: &[AgencyCode], at: Timestamp) -> NodeIdentity {
        let token = self.authority.invite(&node_id(node), agencies, DAY, at).unwrap();
        let pending = PendingJoin::new(token, "test").unwrap();
        match self.authority.join(pending.request(), &pending.mac(), at).unwrap() {
            JoinReply::Granted(answer) => pending.accept(&answer, at).unwrap(),
            kept => panic!("{kept:?}"),
        }
    }

    /// Tells the broker everything that the authority has signed, as `docaxis ca serve` would.
    pub fn publish(&mut self) {
        let mut version = 0;
        loop {
            let notices = self.authority.notices_since(version, now()).unwrap();
            let last = notices.entries.is_empty();
            let broker = self.broker();
            let taken = apart(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(broker.exchange().publish(notices)).unwrap()
            });
            if last {
                return;
            }
            version = taken;
        }
    }

    pub fn start_broker(&mut self) {
        assert!(self.broker.is_none(), "the broker runs already");
        let config = &self.config;
        let broker = apart(|| Broker::start(config).unwrap());
        // The next start takes the same port.
        self.config.broker.listen = broker.address();
        self.authority.set_broker_address(&broker.address().to_string()).unwrap();
        self.broker = Some(broker);
    }

    pub fn stop_broker(&mut self) {
        let broker = self.broker.take().expect("the broker is stopped");
        apart(|| broker.stop().unwrap());
    }

    /// The key that this exchange's evidence is signed with, certified by its authority now.
    pub fn evidence_key(&self, certificate: &[u8]) -> CertifiedKey {
        self.certified(certificate, "evidence")
    }

    pub fn log_key(&self, certificate: &[u8]) -> CertifiedKey {
        self.certified(certificate, "log")
    }

    fn certified(&self, certificate: &[u8], role: &str) -> CertifiedKey {
        let common = &self.nodes.values().next().expect("an exchange with a node").common;
        let root = TrustRoot::new(self.authority.root()).unwrap();
        let chains = SealChains::new(root, &common.seals_ca, [&common.seals_crl]).unwrap();
        let uri = format!("docaxis://{role}/{}", self.authority.origin());
        chains.certified(certificate, &uri, &[now()]).unwrap()
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if let Some(broker) = self.broker.take() {
            let stopped = apart(|| broker.stop());
            // A test that fails already must not be drowned by a second panic.
            if !std::thread::panicking() {
                stopped.unwrap();
            }
        }
    }
}

/// Runs on a thread of its own: the broker starts and stops runtimes, which a runtime's own thread may not do.
fn apart<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
