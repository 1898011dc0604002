//! A whole exchange in one process: an authority, a broker, and agents with their agencies, over real links on this
//! machine. Broker and agents can be stopped and started; their folders stay.
//!
//! Nothing here sleeps: everything waits for the change that it is about. A wait that takes a minute is a failure.

mod bundles;
mod copies;
mod letter;
mod processes;
mod readiness;
mod waiting;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use docaxis::control::Control;
use docaxis_broker::config::ConsoleListen;
use docaxis_broker::{Broker, BrokerConfig};
use docaxis_certs::authority::{Agency, JoinReply};
use docaxis_certs::{Authority, AuthorityConfig, PendingJoin};
use docaxis_node_agent::query::Box as Which;
use docaxis_node_agent::{Agent, AgentConfig, AgentHandle, Draft, Env, Identity};
use docaxis_protocol::space::SpaceConfig;
use docaxis_protocol::{AgencyCode, DispatchId, Event, NodeId, Timestamp};

pub use letter::{Letter, Received, Sent, letter};
pub use processes::{AUTHORITY, BROKER, Processes};
pub use readiness::ask;

/// What nothing on one machine may take.
pub const HANG: Duration = Duration::from_secs(60);

/// The longest that an agent waits here before it tries anything again.
pub const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// One piece of evidence without what differs from run to run: the event and its recipient.
pub type EventLine = (Event, Option<AgencyCode>);

pub struct TestNet {
    pub authority: Authority,
    broker: Option<Broker>,
    pub broker_config: BrokerConfig,
    nodes: BTreeMap<String, Node>,
    runtime: tokio::runtime::Runtime,
    folder: tempfile::TempDir,
}

struct Node {
    agencies: Vec<AgencyCode>,
    config: AgentConfig,
    /// How far its clock is ahead of the machine's, in milliseconds.
    ahead_ms: Arc<AtomicI64>,
    running: Option<AgentHandle>,
}

pub fn code(text: &str) -> AgencyCode {
    text.parse().unwrap()
}

pub fn codes(texts: &[&str]) -> Vec<AgencyCode> {
    texts.iter().map(|text| code(text)).collect()
}

/// Tests go on where the machine's own disk is well filled, and leave it alone.
pub fn space() -> SpaceConfig {
    SpaceConfig { enough_free_gib: 1, ballast_mib: 1, ..SpaceConfig::default() }
}

fn now() -> Timestamp {
    Env::real().now()
}

impl TestNet {
    /// Everything runs and is linked when this returns.
    pub fn start(nodes: &[(&str, &[&str])]) -> Self {
        let mut net = Self::prepare(nodes);
        net.start_broker();
        for (name, _) in nodes {
            net.start_node(name);
        }
        net
    }

    /// Identities, configurations and the published directory; the broker's port is known, nothing runs.
    pub fn prepare(nodes: &[(&str, &[&str])]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let origin = "docaxis.example/test".parse().unwrap();
        let config = AuthorityConfig::new(origin, "b1".parse().unwrap(), "127.0.0.1:1", now());
        let mut authority = Authority::init(&folder.path().join("authority"), &config).unwrap();
        let mut broker_config =
            BrokerConfig::new(folder.path().join("broker/data"), folder.path().join("broker/identity"));
        authority.issue_broker(&broker_config.broker.identity, now()).unwrap();
        broker_config.broker.listen = "127.0.0.1:0".parse().unwrap();
        broker_config.console.listen = ConsoleListen::At("127.0.0.1:0".parse().unwrap());
        broker_config.store.segment_mib = 8;
        broker_config.space = space();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let broker = Broker::start(&broker_config).unwrap();
        // The port that this start got is the broker's from now on.
        broker_config.broker.listen = broker.address();
        authority.set_broker_address(&broker.address().to_string()).unwrap();
        let mut net = Self { authority, broker: Some(broker), broker_config, nodes: BTreeMap::new(), runtime, folder };
        for (name, agencies) in nodes {
            net.join(name, &codes(agencies));
        }
        net.publish();
        net.stop_broker();
        net
    }

    /// Changes the configuration of the broker and of every node, none of which may run yet.
    pub fn configure(&mut self, broker: impl FnOnce(&mut BrokerConfig), node: impl Fn(&mut AgentConfig)) {
        broker(&mut self.broker_config);
        self.nodes.values_mut().for_each(|one| node(&mut one.config));
    }

    fn join(&mut self, name: &str, agencies: &[AgencyCode]) {
        for agency in agencies {
            self.authority.add_agency(&Agency::new(agency.clone(), format!("Cơ quan {agency}")), now()).unwrap();
        }
        let node: NodeId = name.parse().unwrap();
        let token = self.authority.invite(&node, agencies, HANG, now()).unwrap();
        let pending = PendingJoin::new(token, "docaxis test").unwrap();
        let JoinReply::Granted(answer) = self.authority.join(pending.request(), &pending.mac(), now()).unwrap() else {
            panic!("{name} asked for no more than it was invited for");
        };
        let folder = self.folder.path().join(name);
        let mut config = AgentConfig::at(folder.join("data"), folder.join("identity"));
        config.link.retry_min = Duration::from_millis(20);
        config.link.retry_max = Duration::from_millis(300);
        config.link.proofs_every = Duration::from_millis(200);
        config.outbox.retry_min = Duration::from_millis(50);
        config.outbox.retry_max = LONGEST_PAUSE;
        config.space = space();
        pending.accept(&answer, now()).unwrap().save(&config.agent.identity).unwrap();
        let node = Node { agencies: agencies.to_vec(), config, ahead_ms: Arc::default(), running: None };
        self.nodes.insert(name.into(), node);
    }

    /// Hands the authority's directory and revocation lists to the running broker.
    pub fn publish(&mut self) {
        let mut version = 0;
        loop {
            let notices = self.authority.notices_since(version, now()).unwrap();
            let last = notices.entries.is_empty();
            version = notices.version.max(version);
            self.runtime.block_on(self.broker().exchange().publish(notices)).unwrap();
            if last {
                return;
            }
        }
    }

    pub fn broker(&self) -> &Broker {
        self.broker.as_ref().expect("the broker was stopped")
    }

    pub fn broker_data(&self) -> &Path {
        &self.broker_config.broker.data
    }

    pub fn node_data(&self, name: &str) -> &Path {
        &self.nodes[name].config.agent.data
    }

    /// The way by which the command line talks to the broker.
    pub fn broker_control(&self) -> Control {
        Control::new(&docaxis_broker::control_socket(&self.broker_config), "")
    }

    pub fn start_broker(&mut self) {
        assert!(self.broker.is_none(), "the broker runs already");
        self.broker = Some(Broker::start(&self.broker_config).unwrap());
    }

    pub fn stop_broker(&mut self) {
        self.broker.take().expect("the broker was stopped already").stop().unwrap();
    }

    /// Starts a node's agent; returns when it is linked, if there is a broker to link to.
    pub fn start_node(&mut self, name: &str) {
        let node = self.nodes.get_mut(name).unwrap();
        assert!(node.running.is_none(), "{name} runs already");
        let ahead_ms = node.ahead_ms.clone();
        let clock = move || Timestamp::from_unix_ms(now().unix_ms() + ahead_ms.load(Ordering::Relaxed));
        let env = Env::new(clock, |bytes| {
            getrandom::fill(bytes).expect("the machine gives random bytes");
            Ok(())
        });
        let identity = Identity::load(&node.config.agent.identity).unwrap();
        node.running = Some(Agent::start(node.config.clone(), identity, env).unwrap());
        if self.broker.is_some() {
            self.wait_linked(name);
        }
    }

    pub fn stop_node(&mut self, name: &str) {
        let node = self.nodes.get_mut(name).unwrap();
        node.running.take().expect("it was stopped already").shutdown_blocking().unwrap();
    }

    /// Puts a running node's clock ahead.
    pub fn put_clock_ahead(&self, name: &str, by: Duration) {
        self.nodes[name].ahead_ms.store(i64::try_from(by.as_millis()).unwrap(), Ordering::Relaxed);
    }

    pub fn agent(&self, name: &str) -> &AgentHandle {
        self.nodes[name].running.as_ref().expect("the node was stopped")
    }

    pub fn identity(&self, name: &str) -> Identity {
        Identity::load(&self.nodes[name].config.agent.identity).unwrap()
    }

    pub fn node_of(&self, agency: &str) -> &str {
        let hosts = |node: &Node| node.agencies.contains(&code(agency));
        self.nodes.iter().find(|(_, node)| hosts(node)).map(|(name, _)| name.as_str()).unwrap()
    }

    pub fn agent_of(&self, agency: &str) -> &AgentHandle {
        self.agent(self.node_of(agency))
    }

    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(HANG, work).await.expect("this takes far too long") })
    }

    /// Queues a letter at the sender's node; it is durable there when this returns.
    pub fn send(&self, from: &str, to: &[&str], letter: Letter) -> Sent {
        let mut draft = Draft::new(code(from), codes(to));
        letter.fill(&mut draft);
        let id = self.block_on(self.agent_of(from).compose(draft)).unwrap();
        Sent { id, from: from.into(), to: to.iter().map(|to| (*to).to_owned()).collect(), letter }
    }

    /// What an agency's officers see of what came in, oldest first, as they get it: parts are read in full.
    pub fn inbox(&self, agency: &str) -> Vec<Received> {
        let agent = self.agent_of(agency);
        let mut found = Vec::new();
        let mut after = None;
        loop {
            let page = self.block_on(agent.list(Which::In, None, after)).unwrap();
            after = page.last().map(|summary| summary.cursor);
            found.extend(page.into_iter().filter(|summary| summary.recipients == [code(agency)]).map(|line| line.id));
            if after.is_none() {
                break;
            }
        }
        found.reverse();
        found.into_iter().map(|id| self.received(agency, id)).collect()
    }

    fn received(&self, agency: &str, id: DispatchId) -> Received {
        let agent = self.agent_of(agency);
        let shown = self.block_on(agent.show(id)).unwrap();
        let part = |n: usize| {
            let mut open = self.block_on(agent.part(id, n)).unwrap();
            let mut bytes = Vec::new();
            while let Some(chunk) = open.reader.next_chunk().unwrap() {
                bytes.extend(chunk);
            }
            (open.part.name, bytes)
        };
        let parts = (0..shown.parts.len()).map(part);
        Received::new(id, shown.sender.as_str(), &shown.subject, parts)
    }

    /// The evidence that a node has about a dispatch, in the log's order.
    pub fn events(&self, node: &str, id: DispatchId) -> Vec<EventLine> {
        let rows = self.block_on(self.agent(node).evidence(id)).unwrap();
        rows.into_iter().map(|row| (row.event, row.recipient)).collect()
    }
}

impl Drop for TestNet {
    fn drop(&mut self) {
        for node in self.nodes.values_mut() {
            // After a failed claim its own message matters more than how this went.
            let _stopped = node.running.take().map(AgentHandle::shutdown_blocking);
        }
        let _closed = self.broker.take().map(Broker::stop);
    }
}
