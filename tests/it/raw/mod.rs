//! A node that speaks the link itself, frame by frame, so that tests and benchmarks see what is really on the wire.
//!
//! It keeps nothing and decides nothing: what it sends is what the test says, lies included. Every wait has a guard
//! against hanging; none of them is how long something is expected to take.

mod letter;
mod offer;
mod stream;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use docaxis_certs::identity::SealIdentity;
use docaxis_certs::{NodeIdentity, Trust, tls};
use docaxis_protocol::envelope::Chain;
use docaxis_protocol::frame::{
    Class, EvidenceItem, Follow, Frame, Hello, Outcome, Report, Reported, Submit, VERSION_WITHOUT_HOLDS, Welcome,
};
use docaxis_protocol::{Reason, SealedStatement, Timestamp};
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, TransportConfig, VarInt};

pub use letter::{Letter, Sealed};
pub use offer::Offered;
pub use stream::Stream;

use crate::net::{Exchange, code, now};

/// A wait that lasts longer than this hangs.
const HANG: Duration = Duration::from_secs(60);

pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(HANG, work).await {
        Ok(done) => done,
        Err(_) => panic!("{what}: nothing came for {} s", HANG.as_secs()),
    }
}

/// Opens a QUIC connection with this TLS configuration. Both are returned: a dropped endpoint drops its connections.
pub async fn dial(
    tls: rustls::ClientConfig,
    address: SocketAddr,
    name: &str,
) -> Result<(Endpoint, Connection), ConnectionError> {
    let mut config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()));
    let mut transport = TransportConfig::default();
    transport.max_concurrent_bidi_streams(VarInt::from_u32(256)).receive_window(VarInt::from_u32(8 << 20));
    config.transport_config(Arc::new(transport));
    let endpoint = Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
    let connecting = endpoint.connect_with(config, address, name).unwrap();
    let connection = within("a handshake", connecting).await?;
    Ok((endpoint, connection))
}

/// Opens a connection as this node, and says nothing yet.
pub async fn dial_as(identity: &NodeIdentity, address: SocketAddr) -> Result<(Endpoint, Connection), ConnectionError> {
    let trust = Trust::new(identity.link.origin.clone(), &identity.common).unwrap();
    let tls = tls::node_client(identity, trust, tls::system_clock()).unwrap();
    dial(tls, address, &identity.link.broker_dns_name).await
}

pub fn hello(time: Timestamp) -> Frame {
    Frame::Hello(Hello { versions: vec![VERSION_WITHOUT_HOLDS], software: "raw node".into(), time, mailbox_epoch: 0 })
}

/// How a submission went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Submitted {
    /// The parts that the broker asked for, and from which byte on; `None` if it did not ask.
    pub needed: Option<Vec<(u16, u64)>>,
    /// `Done`, or the reason of a link error.
    pub answer: Result<docaxis_protocol::frame::Done, Reason>,
}

impl Submitted {
    pub fn done(self) -> docaxis_protocol::frame::Done {
        self.answer.unwrap_or_else(|reason| panic!("refused: {reason}"))
    }
}

/// A node with an open link.
pub struct RawNode {
    pub identity: Arc<NodeIdentity>,
    pub welcome: Welcome,
    pub connection: Connection,
    _endpoint: Endpoint,
}

impl RawNode {
    pub async fn link(exchange: &Exchange, node: &str) -> Self {
        Self::dial(exchange.identity(node), exchange.address()).await
    }

    /// A link of this node to the broker at `address`.
    pub async fn dial(identity: Arc<NodeIdentity>, address: SocketAddr) -> Self {
        let (endpoint, connection) = dial_as(&identity, address).await.unwrap();
        match Stream::open(&connection).await.ask(&hello(now())).await {
            Frame::Welcome(welcome) => Self { identity, welcome, connection, _endpoint: endpoint },
            other => panic!("{other:?} in answer to Hello"),
        }
    }

    pub async fn open(&self) -> Stream {
        Stream::open(&self.connection).await
    }

    pub fn seal_of(&self, agency: &str) -> (&SealIdentity, Chain) {
        let seal = &self.identity.seals[&code(agency)];
        (seal, Chain::from_ders([seal.certificate.clone(), self.identity.common.seals_ca.clone()]))
    }

    /// Submits with as many bodies at once as may go, and sends what is asked for.
    pub async fn submit(&self, sealed: &Sealed) -> Submitted {
        self.submit_inline(sealed, &sealed.inline()).await
    }

    /// Submits with exactly these bodies at once, and sends what is asked for.
    pub async fn submit_inline(&self, sealed: &Sealed, inline: &[u16]) -> Submitted {
        let mut stream = self.open().await;
        stream.write(&Frame::Submit(Submit { envelope: sealed.envelope.clone(), inline: inline.to_vec() })).await;
        for index in inline {
            stream.raw(&sealed.bodies[usize::from(*index)]).await;
        }
        let mut needed = None;
        loop {
            match stream.read(Class::Large).await {
                Frame::Need(need) => {
                    for (index, offset) in &need.parts {
                        let from = usize::try_from(*offset).unwrap();
                        stream.raw(&sealed.bodies[usize::from(*index)][from..]).await;
                    }
                    needed = Some(need.parts);
                }
                Frame::Done(done) => return Submitted { needed, answer: Ok(done) },
                Frame::Refused(refusal) => return Submitted { needed, answer: Err(refusal.reason) },
                other => panic!("{other:?} in answer to Submit"),
            }
        }
    }

    /// Waits for the broker's next offer; the bodies that come with it are read.
    pub async fn offered(&self) -> Offered {
        let (send, recv) = within("an offer", self.connection.accept_bi()).await.unwrap();
        Offered::read(Stream { send, recv }).await
    }

    /// Takes an offer for good: all bodies, then a handover under the recipient's seal.
    pub async fn take(&self) -> (Offered, Outcome) {
        let mut offered = self.offered().await;
        offered.fetch_all().await;
        let statement = offered.handover(self);
        let outcome = offered.answer(&statement).await.unwrap_or_else(|reason| panic!("not recorded: {reason}"));
        (offered, outcome)
    }

    pub async fn report(&self, statements: &[SealedStatement]) -> Vec<Result<Outcome, Reason>> {
        let report = Frame::Report(Report { statements: statements.to_vec() });
        match self.open().await.ask(&report).await {
            Frame::Reported(Reported { answers }) => answers,
            other => panic!("{other:?} in answer to Report"),
        }
    }

    /// Reads this agency's evidence from `cursor` on until there are `count` pieces.
    pub async fn follow(&self, agency: &str, cursor: u64, count: usize) -> Vec<EvidenceItem> {
        let mut stream = self.open().await;
        stream.write(&Frame::Follow(Follow { cursors: vec![(code(agency), cursor)] })).await;
        let mut items = Vec::new();
        while items.len() < count {
            match stream.read(Class::Large).await {
                Frame::Evidence(news) => items.extend(news),
                other => panic!("{other:?} in answer to Follow"),
            }
        }
        items
    }

    /// The proofs of these leaves, asked for until the broker's checkpoint covers all of them.
    pub async fn proofs(&self, leaves: &[u64]) -> Vec<(u64, String)> {
        within("proofs", async {
            loop {
                match self.open().await.ask(&Frame::FetchProofs(leaves.to_vec())).await {
                    Frame::Proofs(proofs) => {
                        let found: Vec<_> = proofs.into_iter().filter_map(|(at, proof)| Some((at, proof?))).collect();
                        if found.len() == leaves.len() {
                            return found;
                        }
                    }
                    other => panic!("{other:?} in answer to FetchProofs"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }

    /// Whether the link still answers.
    pub async fn ping(&self) {
        assert_eq!(self.open().await.ask(&Frame::Ping).await, Frame::Pong);
    }
}
