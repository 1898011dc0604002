//! Handshakes over in-memory TLS: what is agreed on, and the refusals in both directions.

use std::io;
use std::sync::Arc;

use docaxis_protocol::{Origin, Timestamp};
use rustls::{ClientConfig, ClientConnection, NamedGroup, ProtocolVersion, ServerConfig, ServerConnection};

use super::{DAY, Exchange, NOW, code, node, still};
use crate::authority::{RevocationReason, Target, Which};
use crate::name::{Facts, Subject};
use crate::refusal::{HandshakeRefusal, Refusal, RefusedBy};
use crate::tls::{ALPN_JOIN, ALPN_LINK, client_with, server_name, server_with};
use crate::{AuthorityLink, BrokerIdentity, Identity, NodeIdentity, Peer, Trust, tls};

/// Pumps bytes between both sides until neither has anything to say, or one refuses; then lets the other hear why.
fn shake(client: ClientConfig, server: ServerConfig, name: &str) -> (Outcome, ClientConnection, ServerConnection) {
    let mut client = ClientConnection::new(Arc::new(client), server_name(name).unwrap()).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let mut outcome = Outcome::default();
    for _ in 0..8 {
        let mut bytes = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut bytes).unwrap();
        }
        feed(&bytes, |from| server.read_tls(from));
        if outcome.server.is_none() {
            outcome.server = server.process_new_packets().err();
        }
        let mut bytes = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut bytes).unwrap();
        }
        feed(&bytes, |from| client.read_tls(from));
        if outcome.client.is_none() {
            outcome.client = client.process_new_packets().err();
        }
    }
    (outcome, client, server)
}

fn feed(bytes: &[u8], mut read: impl FnMut(&mut dyn io::Read) -> io::Result<usize>) {
    let mut from = bytes;
    while !from.is_empty() {
        read(&mut from).unwrap();
    }
}

#[derive(Debug, Default)]
struct Outcome {
    client: Option<rustls::Error>,
    server: Option<rustls::Error>,
}

fn trust_of(broker: &BrokerIdentity) -> Arc<Trust> {
    Trust::new(broker.origin.clone(), &broker.common).unwrap()
}

fn trust_at(node: &NodeIdentity) -> Arc<Trust> {
    Trust::new(node.link.origin.clone(), &node.common).unwrap()
}

#[test]
fn a_node_and_its_broker_agree_on_tls_1_3_with_the_post_quantum_group_and_know_each_other() {
    let mut exchange = Exchange::new();
    let g22 = exchange.join("g22", &["000.00.00.G22"]);
    let broker = exchange.broker();
    let trust = trust_of(&broker);
    let server = tls::broker_server(&broker, trust.clone(), still(NOW)).unwrap();
    let client = tls::node_client(&g22, trust_at(&g22), still(NOW)).unwrap();
    let (outcome, client, server) = shake(client, server, &g22.link.broker_dns_name);
    assert!(outcome.client.is_none() && outcome.server.is_none(), "{outcome:?}");
    for group in [client.negotiated_key_exchange_group(), server.negotiated_key_exchange_group()] {
        assert_eq!(group.unwrap().name(), NamedGroup::X25519MLKEM768);
    }
    assert_eq!(client.protocol_version(), Some(ProtocolVersion::TLSv1_3));
    assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
    let facts = Facts::of(&g22.certificate).unwrap();
    assert_eq!(
        trust.admit(server.alpn_protocol(), server.peer_certificates()).unwrap(),
        Peer::Linked(crate::verifier::LinkedPeer {
            identity: Identity::Node(node("g22")),
            serial: facts.serial,
            not_after: facts.not_after,
        })
    );
    let origin: Origin = "docaxis.example/vn".parse().unwrap();
    assert_eq!(Identity::of(&client.peer_certificates().unwrap()[0]), Some(Identity::Broker(origin)));
}

#[test]
fn the_authority_links_to_the_broker_under_its_own_name() {
    let mut exchange = Exchange::new();
    let folder = exchange.folder.path().join("link");
    exchange.authority.issue_link(&folder, NOW).unwrap();
    let link = AuthorityLink::load(&folder).unwrap();
    let broker = exchange.broker();
    let trust = trust_of(&broker);
    let server = tls::broker_link_server(&broker, trust.clone(), still(NOW)).unwrap();
    let client_trust = Trust::new(link.origin.clone(), &link.common).unwrap();
    let client = tls::authority_client(&link, client_trust, still(NOW)).unwrap();
    let (outcome, _, server) = shake(client, server, &exchange.authority.broker_dns_name());
    assert!(outcome.client.is_none() && outcome.server.is_none(), "{outcome:?}");
    let Peer::Linked(peer) = trust.admit(server.alpn_protocol(), server.peer_certificates()).unwrap() else {
        panic!("the authority is not linked");
    };
    assert_eq!(peer.identity, Identity::Authority("docaxis.example/vn".parse().unwrap()));
}

#[test]
fn one_endpoint_lets_strangers_join_and_nothing_else() {
    let mut exchange = Exchange::new();
    let token = exchange.authority.invite(&node("h37"), &[code("H37.DN.001")], DAY, NOW).unwrap();
    let broker = exchange.broker();
    let trust = trust_of(&broker);
    let server = || tls::broker_server(&broker, trust.clone(), still(NOW)).unwrap();
    let join = tls::join_client(&token, still(NOW)).unwrap();
    let (outcome, _, joined) = shake(join.clone(), server(), &token.broker_dns_name);
    assert!(outcome.client.is_none() && outcome.server.is_none(), "{outcome:?}");
    assert_eq!(trust.admit(joined.alpn_protocol(), joined.peer_certificates()), Ok(Peer::Joining));

    let mut nameless = join;
    nameless.alpn_protocols = vec![ALPN_LINK.to_vec()];
    let (outcome, _, linked) = shake(nameless, server(), &token.broker_dns_name);
    assert!(outcome.server.is_none(), "{outcome:?}");
    let refusal = trust.admit(linked.alpn_protocol(), linked.peer_certificates()).unwrap_err();
    assert_eq!((refusal.reason, refusal.by), (HandshakeRefusal::WrongRole, RefusedBy::Us));
    assert_eq!(trust.admit(None, None).unwrap_err().reason, HandshakeRefusal::Other);
}

#[test]
fn a_connection_is_never_resumed() {
    let mut exchange = Exchange::new();
    let g22 = exchange.join("g22", &[]);
    let broker = exchange.broker();
    let server = tls::broker_server(&broker, trust_of(&broker), still(NOW)).unwrap();
    let client = tls::node_client(&g22, trust_at(&g22), still(NOW)).unwrap();
    for _ in 0..2 {
        let (outcome, client, _) = shake(client.clone(), server.clone(), &g22.link.broker_dns_name);
        assert!(outcome.client.is_none() && outcome.server.is_none(), "{outcome:?}");
        assert_eq!(client.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

/// One handshake between a client and a server of this exchange, with one thing wrong.
struct Case {
    client_chain: Vec<Vec<u8>>,
    client_key: crate::keys::PrivateKey,
    server_chain: Vec<Vec<u8>>,
    server_key: crate::keys::PrivateKey,
    client_trust: Arc<Trust>,
    server_trust: Arc<Trust>,
    client_time: Timestamp,
    server_time: Timestamp,
    name: String,
}

impl Case {
    fn good(exchange: &mut Exchange) -> Self {
        let g22 = exchange.join("g22", &[]);
        let broker = exchange.broker();
        Self {
            client_chain: g22.chain(),
            client_trust: trust_at(&g22),
            client_key: g22.key,
            server_chain: broker.chain(),
            server_trust: trust_of(&broker),
            server_key: broker.key,
            client_time: NOW,
            server_time: NOW,
            name: g22.link.broker_dns_name,
        }
    }

    fn run(self) -> Outcome {
        let server = server_with(
            &self.server_chain,
            &self.server_key,
            self.server_trust,
            still(self.server_time),
            false,
            &[ALPN_LINK, ALPN_JOIN],
        );
        let identity = Some((self.client_chain.as_slice(), &self.client_key));
        let client = client_with(identity, self.client_trust, still(self.client_time), ALPN_LINK);
        shake(client.unwrap(), server.unwrap(), &self.name).0
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Refuses {
    Broker,
    Node,
}

fn check(what: &str, refuses: Refuses, expected: HandshakeRefusal, edit: impl FnOnce(&mut Exchange, &mut Case)) {
    let mut exchange = Exchange::new();
    let mut case = Case::good(&mut exchange);
    edit(&mut exchange, &mut case);
    let outcome = case.run();
    let (refusing, hearing) = match refuses {
        Refuses::Broker => (outcome.server, outcome.client),
        Refuses::Node => (outcome.client, outcome.server),
    };
    let refusing = Refusal::classify(&refusing.unwrap_or_else(|| panic!("{what}: was let in")));
    let hearing = Refusal::classify(&hearing.unwrap_or_else(|| panic!("{what}: the other side heard nothing")));
    assert_eq!((refusing.reason, refusing.by), (expected, RefusedBy::Us), "{what}: {refusing}");
    assert_eq!((hearing.reason, hearing.by), (expected, RefusedBy::Peer), "{what}: {hearing}");
}

/// What the authority would never issue: a certificate for `subject` and this name, by one of the CAs of `exchange`.
fn forged(
    exchange: &Exchange,
    which: Which,
    subject: &Subject,
    dns: Option<&str>,
) -> (Vec<Vec<u8>>, crate::keys::PrivateKey) {
    let key = crate::keys::PrivateKey::generate(crate::keys::KeyAlgorithm::P256).unwrap();
    let ca = exchange.authority.keys_for_tests().ca_for_tests(which);
    let der = crate::profile::issue(ca, subject, dns, key.pair(), NOW, DAY).unwrap();
    (vec![der, ca.certificate.clone()], key)
}

#[test]
fn the_broker_refuses_each_wrong_client_with_its_own_reason() {
    use HandshakeRefusal as R;
    let by = Refuses::Broker;
    check("a node's certificate that has ended", by, R::Expired, |_, case| case.server_time = NOW.plus(DAY * 91));
    check("a node's certificate before its time", by, R::NotYetValid, |_, case| case.server_time = NOW.minus(DAY));
    check("a revoked node", by, R::Revoked, |exchange, case| {
        exchange.authority.revoke(&Target::Node(node("g22")), NOW, RevocationReason::KeyCompromise).unwrap();
        let list = exchange.authority.crl(Which::Nodes, NOW).unwrap();
        assert_eq!(case.server_trust.reload_crl(&list), Ok(true));
    });
    check("a node of a foreign authority with the same name", by, R::UnknownAuthority, |_, case| {
        let foreign = Exchange::new().join("g22", &[]);
        (case.client_chain, case.client_key) = (foreign.chain(), foreign.key);
    });
    check("a broker's certificate as a client", by, R::WrongRole, |_, case| {
        case.client_chain = case.server_chain.clone();
        case.client_key = crate::keys::PrivateKey::from_pkcs8(case.server_key.pkcs8()).unwrap();
    });
    check("a seal as a client", by, R::WrongRole, |exchange, case| {
        let h37 = exchange.join("h37", &["H37.DN.001"]);
        let seal = &h37.seals[&code("H37.DN.001")];
        case.client_chain = vec![seal.certificate.clone(), h37.common.seals_ca.clone()];
        case.client_key = crate::keys::PrivateKey::from_seed(&seal.key.seed()).unwrap();
    });
    check("a node that the seals' CA vouches for", by, R::WrongRole, |exchange, case| {
        let subject = Subject::Node(node("g22"));
        (case.client_chain, case.client_key) = forged(exchange, Which::Seals, &subject, None);
    });
    check("the authority of another exchange under this root", by, R::WrongName, |exchange, case| {
        let other = Subject::Authority("docaxis.example/other".parse().unwrap());
        (case.client_chain, case.client_key) = forged(exchange, Which::Nodes, &other, None);
    });
}

#[test]
fn a_node_refuses_each_wrong_broker_with_its_own_reason() {
    use HandshakeRefusal as R;
    let by = Refuses::Node;
    check("a broker's certificate that has ended", by, R::Expired, |_, case| case.client_time = NOW.plus(DAY * 91));
    check("a broker's certificate before its time", by, R::NotYetValid, |_, case| case.client_time = NOW.minus(DAY));
    check("a revoked broker", by, R::Revoked, |exchange, case| {
        let serial = Facts::of(&case.server_chain[0]).unwrap().serial;
        exchange.authority.revoke(&Target::Serial(serial), NOW, RevocationReason::KeyCompromise).unwrap();
        let list = exchange.authority.crl(Which::Nodes, NOW).unwrap();
        assert_eq!(case.client_trust.reload_crl(&list), Ok(true));
    });
    check("the broker of a foreign authority with the same name", by, R::UnknownAuthority, |_, case| {
        let foreign = Exchange::new().broker();
        (case.server_chain, case.server_key) = (foreign.chain(), foreign.key);
    });
    check("a node's certificate as a server", by, R::WrongRole, |_, case| {
        case.server_chain = case.client_chain.clone();
        case.server_key = crate::keys::PrivateKey::from_pkcs8(case.client_key.pkcs8()).unwrap();
    });
    check("a broker with another DNS name", by, R::WrongName, |_, case| {
        case.name = "b2.broker.docaxis.invalid".into();
    });
    check("a broker that the seals' CA vouches for", by, R::WrongRole, |exchange, case| {
        let subject = Subject::Broker("docaxis.example/vn".parse().unwrap());
        (case.server_chain, case.server_key) = forged(exchange, Which::Seals, &subject, Some(&case.name));
    });
    check("the broker of another exchange under this root", by, R::WrongName, |exchange, case| {
        let other = Subject::Broker("docaxis.example/other".parse().unwrap());
        (case.server_chain, case.server_key) = forged(exchange, Which::Nodes, &other, Some(&case.name));
    });
}

#[test]
fn a_refusal_for_a_clock_tells_the_verifiers_time() {
    let mut exchange = Exchange::new();
    let mut case = Case::good(&mut exchange);
    case.server_time = NOW.minus(DAY);
    let refusal = Refusal::classify(&case.run().server.unwrap());
    assert!(refusal.sentence.contains(&NOW.minus(DAY).to_string()), "{refusal}");
}

#[test]
fn an_older_a_foreign_or_an_altered_list_does_not_replace_the_one_in_force() {
    let mut exchange = Exchange::new();
    let trust = trust_of(&exchange.broker());
    let first = exchange.authority.crl(Which::Nodes, NOW).unwrap();
    exchange.join("g22", &[]);
    exchange.authority.revoke(&Target::Node(node("g22")), NOW, RevocationReason::Unspecified).unwrap();
    let second = exchange.authority.crl(Which::Nodes, NOW).unwrap();
    assert_eq!(trust.reload_crl(&second), Ok(true));
    assert_eq!(trust.reload_crl(&second), Ok(false));
    let number = trust.crl_number();
    let mut altered = second.clone();
    *altered.last_mut().unwrap() ^= 1;
    let foreign = Exchange::new().authority.crl(Which::Nodes, NOW).unwrap();
    let seals = exchange.authority.crl(Which::Seals, NOW).unwrap();
    for wrong in [&first, &altered, &foreign, &seals, &Vec::new()] {
        assert!(trust.reload_crl(wrong).is_err());
    }
    assert_eq!((trust.crl_number(), trust.crl().unwrap().len()), (number, 1));
}
