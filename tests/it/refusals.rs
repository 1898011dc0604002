//! Who is refused at the door of the link, by whom, and with which reason: handshakes over QUIC in both directions.
//!
//! Certificates are made to be wrong by the authority's own arguments (a time, a revocation) or by presenting them in
//! another's place; the clocks are the machine's.

use std::net::Ipv4Addr;
use std::sync::Arc;

use docaxis_certs::authority::{RevocationReason, Target};
use docaxis_certs::keys::PrivateKey;
use docaxis_certs::name::Facts;
use docaxis_certs::refusal::RefusedBy;
use docaxis_certs::{BrokerIdentity, HandshakeRefusal as Why, NodeIdentity, Refusal, Trust, tls};
use docaxis_protocol::frame::{ALPN_LINK, Frame, Join};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{ConnectionError, Endpoint, ServerConfig};

use crate::net::{DAY, Exchange, TestNet, code, node_id, now};
use crate::raw::{RawNode, Stream, dial, hello, within};

/// The code with which the broker closes the link of a revoked node.
const REVOKED: u64 = 7;

fn net() -> TestNet {
    TestNet::new().node("g22", &["000.00.00.G22"]).node("h37", &["H37.DN.001"])
}

/// What the other side's refusal of our certificate says on the wire: QUIC carries the TLS alert.
fn heard(error: &ConnectionError) -> Why {
    let code = match error {
        ConnectionError::ConnectionClosed(close) => u64::from(close.error_code),
        ConnectionError::TransportError(error) => u64::from(error.code),
        other => panic!("{other}"),
    };
    let alert = code.checked_sub(0x100).and_then(|alert| u8::try_from(alert).ok());
    let alert = alert.unwrap_or_else(|| panic!("{error}"));
    Refusal::from_alert_code(alert, RefusedBy::Peer, "").reason
}

/// How the broker refuses this node.
///
/// In TLS 1.3 the client is done before the server has looked at its certificate, so the refusal may come as the first
/// word after the handshake.
async fn refused_by_broker(exchange: &Exchange, identity: &NodeIdentity) -> Why {
    // The node trusts this exchange's broker all the same: what it presents is what is wrong.
    let trust = Trust::new(exchange.authority.origin().clone(), &exchange.identity("g22").common).unwrap();
    let tls = tls::node_client(identity, trust, tls::system_clock()).unwrap();
    match dial(tls, exchange.address(), &identity.link.broker_dns_name).await {
        Err(error) => heard(&error),
        Ok((_endpoint, connection)) => heard(&within("a refusal", connection.closed()).await),
    }
}

/// `g22` of this exchange, presenting another's certificate.
fn disguised(exchange: &Exchange, certificate: &[u8], key: &PrivateKey) -> NodeIdentity {
    let mut identity = NodeIdentity::load(&exchange.node_folder("g22")).unwrap();
    identity.certificate = certificate.to_vec();
    identity.key = PrivateKey::from_pkcs8(key.pkcs8()).unwrap();
    identity
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn the_broker_refuses_each_wrong_node_with_its_own_reason_and_serves_the_right_one() {
    let mut exchange = net().founded(now().minus(DAY * 200)).start();
    let broker = BrokerIdentity::load(&exchange.config.broker.identity).unwrap();
    let foreign = net().start().identity("g22");
    let ended = now().minus(DAY * 100);
    exchange.authority.issue_broker(&exchange.folder().join("old"), ended).unwrap();
    let old = exchange.identity_at("g22", &[], ended);
    let early = exchange.identity_at("g22", &[], now().plus(DAY));
    let seal = &exchange.identity("h37").seals[&code("H37.DN.001")];
    let seal_key = std::fs::read(exchange.node_folder("h37").join("seals/H37.DN.001.key")).unwrap();
    let seal_key = PrivateKey::from_pem(&seal_key).unwrap();
    for (what, expected, identity) in [
        ("a certificate that has ended", Why::Expired, disguised(&exchange, &old.certificate, &old.key)),
        ("one before its time", Why::NotYetValid, disguised(&exchange, &early.certificate, &early.key)),
        ("a broker's", Why::WrongRole, disguised(&exchange, &broker.certificate, &broker.key)),
        ("a seal", Why::WrongRole, {
            let mut identity = disguised(&exchange, &seal.certificate, &seal_key);
            identity.common.nodes_ca = identity.common.seals_ca.clone();
            identity
        }),
        ("the same name by a foreign authority", Why::UnknownAuthority, {
            let mut identity = disguised(&exchange, &foreign.certificate, &foreign.key);
            identity.common.nodes_ca = foreign.common.nodes_ca.clone();
            identity
        }),
    ] {
        assert_eq!(refused_by_broker(&exchange, &identity).await, expected, "{what}");
    }
    RawNode::link(&exchange, "g22").await.ping().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_revocation_closes_the_link_and_the_next_one_is_refused_while_others_stay() {
    let mut exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    exchange.authority.revoke(&Target::Node(node_id("g22")), now(), RevocationReason::KeyCompromise).unwrap();
    exchange.publish();
    match within("the close", g22.connection.closed()).await {
        ConnectionError::ApplicationClosed(close) => assert_eq!(close.error_code.into_inner(), REVOKED),
        other => panic!("{other}"),
    }
    assert_eq!(refused_by_broker(&exchange, &exchange.identity("g22")).await, Why::Revoked);
    h37.ping().await;
    exchange.stop_broker();
    exchange.start_broker();
    assert_eq!(refused_by_broker(&exchange, &exchange.identity("g22")).await, Why::Revoked, "after a restart");
}

/// A broker that presents what it is given, and lets in whoever comes.
fn impostor(identity: &BrokerIdentity) -> Endpoint {
    let trust = Trust::new(identity.origin.clone(), &identity.common).unwrap();
    let tls = tls::broker_server(identity, trust, tls::system_clock()).unwrap();
    let config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    Endpoint::server(config, (Ipv4Addr::LOCALHOST, 0).into()).unwrap()
}

/// How `node` refuses a broker with this identity, and what the broker hears of it.
async fn refused_by_node(broker: &BrokerIdentity, node: &NodeIdentity, name: &str) -> (Why, Why) {
    let endpoint = impostor(broker);
    let address = endpoint.local_addr().unwrap();
    let trust = Trust::new(node.link.origin.clone(), &node.common).unwrap();
    let tls = tls::node_client(node, trust, tls::system_clock()).unwrap();
    let accept = async {
        let incoming = within("a client", endpoint.accept()).await.unwrap();
        within("a handshake", incoming.into_future()).await.map(|_| ()).expect_err("the node let the broker in")
    };
    let (refused, told) = tokio::join!(dial(tls, address, name), accept);
    (heard(&refused.expect_err("the node let the broker in")), heard(&told))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_node_refuses_each_wrong_broker_with_its_own_reason() {
    let mut exchange = net().founded(now().minus(DAY * 200)).start();
    let folder = exchange.folder().to_owned();
    let load = || BrokerIdentity::load(&folder.join("broker-identity")).unwrap();
    let node = exchange.identity("g22");
    let name = node.link.broker_dns_name.clone();
    let mut issue = |at, into: &str| {
        exchange.authority.issue_broker(&folder.join(into), at).unwrap();
        BrokerIdentity::load(&folder.join(into)).unwrap()
    };
    let (old, early) = (issue(now().minus(DAY * 100), "old"), issue(now().plus(DAY), "early"));
    let as_broker = |certificate: &[u8], key: &PrivateKey, nodes_ca: &[u8]| {
        let mut broker = load();
        broker.certificate = certificate.to_vec();
        broker.key = PrivateKey::from_pkcs8(key.pkcs8()).unwrap();
        broker.common.nodes_ca = nodes_ca.to_vec();
        broker
    };
    let other = net().start();
    let foreign = BrokerIdentity::load(&other.config.broker.identity).unwrap();
    for (what, expected, broker, name) in [
        ("a certificate that has ended", Why::Expired, old, name.as_str()),
        ("one before its time", Why::NotYetValid, early, &name),
        ("a node's", Why::WrongRole, as_broker(&node.certificate, &node.key, &node.common.nodes_ca), &name),
        ("the same name by a foreign authority", Why::UnknownAuthority, foreign, &name),
        ("another name than the token's", Why::WrongName, load(), "b2.broker.docaxis.invalid"),
    ] {
        assert_eq!(refused_by_node(&broker, &node, name).await, (expected, expected), "{what}");
    }
    let serial = Facts::of(&load().certificate).unwrap().serial;
    exchange.authority.issue_broker(&folder.join("next"), now()).unwrap();
    exchange.authority.revoke(&Target::Serial(serial), now(), RevocationReason::KeyCompromise).unwrap();
    let warned = exchange.identity_at("g22", &[], now());
    let mut broker = load();
    broker.common.nodes_crl = node.common.nodes_crl.clone();
    assert_eq!(refused_by_node(&broker, &warned, &name).await, (Why::Revoked, Why::Revoked));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn without_a_certificate_there_is_no_link() {
    let mut exchange = net().start();
    let token = exchange.invite("new", &[]);
    let mut nameless = tls::join_client(&token, tls::system_clock()).unwrap();
    nameless.alpn_protocols = vec![ALPN_LINK.to_vec()];
    let (_endpoint, connection) = dial(nameless, exchange.address(), &token.broker_dns_name).await.unwrap();
    match within("the close", connection.closed()).await {
        ConnectionError::ApplicationClosed(close) => {
            assert!(String::from_utf8_lossy(&close.reason).contains("role"), "{close}");
        }
        other => panic!("{other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn who_joins_is_offered_nothing_but_to_join() {
    let mut exchange = net().start();
    let token = exchange.invite("new", &[]);
    let join =
        || dial(tls::join_client(&token, tls::system_clock()).unwrap(), exchange.address(), &token.broker_dns_name);
    for frame in [hello(now()), Frame::Ping, Frame::FetchProofs(vec![0]), Frame::Directory(0)] {
        let (_endpoint, connection) = join().await.unwrap();
        Stream::open(&connection).await.write(&frame).await;
        match within("the close", connection.closed()).await {
            ConnectionError::ApplicationClosed(close) => assert_eq!(close.error_code.into_inner(), 1, "{close}"),
            other => panic!("{other}"),
        }
    }
    // A request to join is relayed; while the authority is away, it is told so.
    let (_endpoint, connection) = join().await.unwrap();
    let request = Frame::Join(Join { request: b"{}".to_vec(), mac: vec![0; 32] });
    match Stream::open(&connection).await.ask(&request).await {
        Frame::Refused(refusal) => assert_eq!(refusal.reason.code, "busy"),
        other => panic!("{other:?} in answer to Join"),
    }
}
