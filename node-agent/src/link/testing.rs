//! A broker that says only what a test tells it to, and what else several tests of this crate start from.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use docaxis_certs::authority::{Agency, JoinReply, RevocationReason, Target, Which};
use docaxis_certs::{Authority, AuthorityConfig, BrokerIdentity, NodeIdentity, PendingJoin, Trust, tls};
use docaxis_protocol::envelope::{self, Envelope, Kind, Sender};
use docaxis_protocol::frame::{Class, Frame, Offer, Outcome, Standing, Welcome};
use docaxis_protocol::partial::PartialsConfig;
use docaxis_protocol::{
    AgencyCode, Digest, DispatchId, Event, Evidence, Reason, SealedEnvelope, SealedStatement, SignedEvidence,
    Timestamp, evidence,
};
use tempfile::TempDir;
use tokio::sync::{Mutex, mpsc};

use super::io::Stream;
use crate::{Agent, AgentConfig, AgentHandle, Env, Identity};

const PATIENCE: Duration = Duration::from_secs(20);

/// An envelope without parts.
pub fn envelope(from: &str, to: &[&str]) -> Envelope {
    let created = Timestamp::from_unix_ms(1_795_318_200_123);
    Envelope {
        kind_of_bytes: envelope::TYPE.into(),
        exchange: "docaxis.example/vn".parse().unwrap(),
        id: DispatchId::from_parts(created, [1; 10]),
        created,
        expires: created.plus(std::time::Duration::from_secs(3600)),
        sender: Sender { agency: from.parse().unwrap(), node: "g22".parse().unwrap() },
        recipients: to.iter().map(|code| code.parse().unwrap()).collect(),
        partial: false,
        kind: Kind::New,
        priority: 0,
        not_before: None,
        document: serde_json::Map::new(),
        relates: vec![],
        status: None,
        parts: vec![],
        encryption: None,
        salt: "AAAAAAAAAAAAAAAAAAAAAA==".into(),
    }
}

pub fn code(text: &str) -> AgencyCode {
    text.parse().unwrap()
}

/// An authority, and a broker that says only what a test tells it to.
pub struct Exchange {
    pub folder: TempDir,
    authority: Authority,
    pub broker: BrokerIdentity,
    endpoint: quinn::Endpoint,
}

/// Whatever a test did, the mailboxes hold together after it.
impl Drop for Exchange {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        for entry in std::fs::read_dir(self.folder.path()).unwrap() {
            let mailbox = entry.unwrap().path().join("mailbox.db");
            if mailbox.exists() {
                assert_eq!(crate::mailbox::check(&mailbox).unwrap(), Vec::<String>::new());
            }
        }
    }
}

impl Exchange {
    /// To be called inside a runtime.
    pub fn start() -> Self {
        let now = Env::real().now();
        let folder = tempfile::tempdir().unwrap();
        let origin = "docaxis.example/vn".parse().unwrap();
        let config = AuthorityConfig::new(origin, "b1".parse().unwrap(), "broker.example:7400", now);
        let mut authority = Authority::init(&folder.path().join("authority"), &config).unwrap();
        authority.issue_broker(&folder.path().join("broker"), now).unwrap();
        for agency in ["000.00.00.G22", "H37.DN.001", "H37.DN.002"] {
            authority.add_agency(&Agency::new(code(agency), agency), now).unwrap();
        }
        let broker = BrokerIdentity::load(&folder.path().join("broker")).unwrap();
        let trust = Trust::new(broker.origin.clone(), &broker.common).unwrap();
        let server = tls::broker_link_server(&broker, trust, tls::system_clock()).unwrap();
        let server = quinn::crypto::rustls::QuicServerConfig::try_from(server).unwrap();
        let server = quinn::ServerConfig::with_crypto(Arc::new(server));
        let endpoint = quinn::Endpoint::server(server, "127.0.0.1:0".parse().unwrap()).unwrap();
        Self { folder, authority, broker, endpoint }
    }

    pub fn join(&mut self, node: &str, agencies: &[&str]) -> NodeIdentity {
        let now = Env::real().now();
        let agencies: Vec<AgencyCode> = agencies.iter().map(|text| code(text)).collect();
        let day = Duration::from_secs(86_400);
        let token = self.authority.invite(&node.parse().unwrap(), &agencies, day, now).unwrap();
        let pending = PendingJoin::new(token, "test").unwrap();
        match self.authority.join(pending.request(), &pending.mac(), now).unwrap() {
            JoinReply::Granted(answer) => pending.accept(&answer, now).unwrap(),
            kept => panic!("{kept:?}"),
        }
    }

    /// Revokes the seals of an agency from now on; returns the new list.
    pub fn revoke_seals(&mut self, agency: &str) -> Vec<u8> {
        let now = Env::real().now();
        self.authority.revoke(&Target::Agency(code(agency)), now, RevocationReason::KeyCompromise).unwrap();
        self.authority.crl(Which::Seals, now).unwrap()
    }

    /// Starts an agent over the data folder `name`.
    pub fn agent(&self, node: &NodeIdentity, name: &str) -> AgentHandle {
        Agent::start(self.config(name), Identity::of(node).unwrap(), Env::real()).unwrap()
    }

    pub fn config(&self, name: &str) -> AgentConfig {
        let mut config = AgentConfig::at(self.folder.path().join(name), self.folder.path().join("identity"));
        config.agent.broker = Some(self.endpoint.local_addr().unwrap().to_string());
        config.link.retry_min = Duration::from_millis(20);
        config.link.retry_max = Duration::from_millis(50);
        config.outbox.retry_min = Duration::from_millis(10);
        config.outbox.retry_max = Duration::from_millis(50);
        config.link.proofs_every = Duration::from_millis(50);
        // Tests go on where the machine's own disk is well filled, and leave it alone.
        config.space.enough_free_gib = 1;
        config.space.ballast_mib = 1;
        config
    }

    /// The next agent that connects, greeted.
    pub async fn accept(&self) -> Link {
        let connection = self.endpoint.accept().await.unwrap().await.unwrap();
        let mut stream = Stream::new(connection.accept_bi().await.unwrap(), PATIENCE);
        let Frame::Hello(hello) = stream.read(Class::Control).await.unwrap() else { panic!("no Hello") };
        assert_eq!((hello.versions, hello.mailbox_epoch), (vec![3, 2, 1], 1));
        let Frame::Holds(_) = stream.read(Class::Control).await.unwrap() else { panic!("no Holds") };
        let chain = |der: &Vec<u8>| {
            docaxis_protocol::envelope::Chain::from_ders([der.clone(), self.broker.common.seals_ca.clone()])
        };
        let welcome = Welcome {
            version: 3,
            software: "test".into(),
            time: Env::real().now(),
            origin: self.broker.origin.clone(),
            agencies: vec![code("000.00.00.G22"), code("H37.DN.001"), code("H37.DN.002")],
            max_part_bytes: 1 << 30,
            evidence_chain: chain(&self.broker.evidence),
            log_chain: chain(&self.broker.log),
            crl_number: 1,
            directory_version: 0,
        };
        stream.write(&Frame::Welcome(welcome)).await.unwrap();
        stream.finish();
        Link::new(connection)
    }

    /// Evidence about an envelope.
    pub fn evidence(
        &self,
        event: Event,
        sealed: &SealedEnvelope,
        change: impl FnOnce(&mut Evidence),
    ) -> SignedEvidence {
        let env = Env::real();
        let envelope = Envelope::parse(&sealed.bytes).unwrap();
        let mut evidence = Evidence {
            kind_of_bytes: evidence::TYPE.into(),
            id: env.dispatch_id().unwrap(),
            event,
            uri: event.uri(),
            time: env.now(),
            issuer: self.broker.origin.clone(),
            key: self.broker.evidence_key.public().id(),
            policy: "urn:docaxis:policy:test".into(),
            dispatch: envelope.id,
            envelope_sha256: sealed.digest(),
            sender: envelope.sender.agency,
            recipient: None,
            recipients: if event.is_submission() { envelope.recipients } else { vec![] },
            parts: vec![],
            submitted: None,
            expires: None,
            reasons: vec![],
            statement: None,
            cause: None,
            acting: None,
            late: false,
            outcome: None,
            previous: None,
            salt: String::new(),
        };
        change(&mut evidence);
        SignedEvidence::sign(&evidence, &self.broker.evidence_key).unwrap()
    }

    pub fn offer(&self, to: &str, sealed: &SealedEnvelope, inline: Vec<u16>) -> Offer {
        Offer {
            recipient: code(to),
            envelope: sealed.clone(),
            acceptance: self.evidence(Event::SubmissionAcceptance, sealed, |_| ()),
            acceptance_leaf: 7,
            inline,
        }
    }

    /// The answer to a statement about this envelope.
    pub fn outcome(
        &self,
        standing: Standing,
        leaf: u64,
        (event, reason): (Event, Option<Reason>),
        sealed: &SealedEnvelope,
        statement: &SealedStatement,
    ) -> Outcome {
        let said = docaxis_protocol::Statement::parse(&statement.bytes).unwrap();
        let evidence = self.evidence(event, sealed, |evidence| {
            evidence.recipient = Some(said.recipient);
            if event == said.event {
                let leaf = &statement.chain.leaf().unwrap();
                let key = docaxis_certs::identity::public_key(leaf).unwrap();
                evidence.statement = Some(evidence::StatementInEvidence::new(statement, &key));
            }
            evidence.reasons = reason.into_iter().collect();
            evidence.previous = Some(Digest::of(b"before"));
        });
        Outcome { standing, leaf, evidence }
    }
}

/// An envelope from this node with these bodies, sealed by the first of its agencies.
pub fn sealed(
    node: &NodeIdentity,
    to: &[&str],
    bodies: &[&[u8]],
    change: impl FnOnce(&mut Envelope),
) -> SealedEnvelope {
    let (agency, seal) = node.seals.first_key_value().unwrap();
    let env = Env::real();
    let mut envelope = envelope(agency.as_str(), to);
    envelope.exchange = node.link.origin.clone();
    envelope.sender.node = node.link.node.clone();
    envelope.created = env.now();
    envelope.expires = envelope.created.plus(Duration::from_secs(3600));
    envelope.id = env.dispatch_id().unwrap();
    envelope.parts = bodies
        .iter()
        .enumerate()
        .map(|(n, body)| docaxis_protocol::Part {
            name: format!("{n}.pdf"),
            media_type: "application/pdf".into(),
            size: body.len() as u64,
            sha256: Digest::of(body),
            role: docaxis_protocol::PartRole::Document,
        })
        .collect();
    change(&mut envelope);
    let chain = docaxis_protocol::envelope::Chain::from_ders([seal.certificate.clone(), node.common.seals_ca.clone()]);
    SealedEnvelope::seal(&envelope, &seal.key, chain).unwrap()
}

type Opened = (Frame, Stream);

/// The broker's end of one connection. Streams that the agent opens are sorted by their first frame.
pub struct Link {
    pub connection: quinn::Connection,
    opened: BTreeMap<&'static str, Mutex<mpsc::UnboundedReceiver<Opened>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Link {
    fn new(connection: quinn::Connection) -> Self {
        let mut senders = BTreeMap::new();
        let mut opened = BTreeMap::new();
        for name in ["Submit", "Report", "Follow", "FetchProofs", "Directory"] {
            let (sender, receiver) = mpsc::unbounded_channel();
            senders.insert(name, sender);
            opened.insert(name, Mutex::new(receiver));
        }
        let accepting = connection.clone();
        let task = tokio::spawn(async move {
            while let Ok(pair) = accepting.accept_bi().await {
                let mut stream = Stream::new(pair, PATIENCE);
                let Ok(mut frame) = stream.read(Class::Large).await else { continue };
                if let Frame::Behind(_) = frame {
                    let Ok(submit) = stream.read(Class::Large).await else { continue };
                    frame = submit;
                }
                let _gone = senders[frame.name()].send((frame, stream));
            }
        });
        Self { connection, opened, task }
    }

    /// The next exchange that the agent opened with this frame.
    pub async fn next(&self, name: &str) -> Opened {
        let mut opened = self.opened[name].lock().await;
        tokio::time::timeout(PATIENCE, opened.recv()).await.expect(name).expect("the link is there")
    }

    pub async fn offer(&self, offer: Offer, inline: &[&[u8]]) -> Stream {
        let mut stream = Stream::new(self.connection.open_bi().await.unwrap(), PATIENCE);
        stream.write(&Frame::Offer(offer)).await.unwrap();
        for body in inline {
            stream.write_raw(bytes::Bytes::copy_from_slice(body)).await.unwrap();
        }
        stream
    }

    /// The connection is gone, as in a crash of the broker.
    pub fn cut(self) {
        self.connection.close(1u32.into(), b"cut");
        self.task.abort();
    }
}

pub async fn handover(stream: &mut Stream) -> SealedStatement {
    match stream.read(Class::Large).await.unwrap() {
        Frame::Handover(statement) => statement,
        other => panic!("{} in place of Handover", other.name()),
    }
}

/// Waits until the agent shows what `seen` looks for.
pub async fn until<T, F: Future<Output = Option<T>>>(agent: &AgentHandle, mut seen: impl FnMut() -> F) -> T {
    let mut changes = agent.changes();
    let looking = async {
        loop {
            changes.mark_unchanged();
            if let Some(found) = seen().await {
                return found;
            }
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, looking).await.expect("it never came to it")
}

/// Every body below a data folder of a stopped agent, in the mailbox or a file.
pub fn bodies_in(data: &Path) -> Vec<Digest> {
    let mut all = crate::parts::Parts::open(data.join("parts"), PartialsConfig::default()).unwrap().list().unwrap();
    all.extend(crate::mailbox::small_bodies(&data.join("mailbox.db")));
    all
}
