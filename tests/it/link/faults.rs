//! What is not the protocol: it costs the stream, with a coded reason, and never the link of anybody else.

use docaxis_protocol::frame::{Class, Frame, Intake, Submit};
use quinn::ConnectionError;

use super::{DN, leaves, letter, net};
use crate::raw::{RawNode, Stream, dial_as, within};

const MALFORMED: u64 = 1;
const STALLED: u64 = 2;

/// The broker says why in a frame, ends its side, and asks us with a code to stop ours.
async fn refused(mut stream: Stream) -> (String, Option<u64>) {
    let reason = match stream.read(Class::Large).await {
        Frame::Refused(refusal) => refusal.reason.code,
        other => panic!("{other:?} where a refusal was due"),
    };
    assert_eq!(stream.rest().await, Ok(Vec::new()));
    (reason, stream.stopped().await)
}

fn framed(body: &[u8]) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).unwrap().to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn malformed_frames_close_their_stream_with_a_reason_and_the_link_stays_up() {
    let exchange = net().start();
    let (g22, h37) = (RawNode::link(&exchange, "g22").await, RawNode::link(&exchange, "h37").await);
    let mut trailing = Frame::Ping.encode().unwrap()[4..].to_vec();
    trailing.push(0);
    let answer_as_request = Frame::Published(7).encode().unwrap();
    for (what, bytes) in [
        ("a length over the bound", u32::MAX.to_be_bytes().to_vec()),
        ("a length just over the bound", (((1u32 << 20) + (64 << 10)) + 1).to_be_bytes().to_vec()),
        ("no frame at all", framed(b"garbage that is no frame")),
        ("an empty frame", framed(b"")),
        ("bytes after the frame", framed(&trailing)),
        ("an answer as a request", answer_as_request),
    ] {
        let mut stream = g22.open().await;
        stream.raw(&bytes).await;
        assert_eq!(refused(stream).await, ("malformed".into(), Some(MALFORMED)), "{what}");
        g22.ping().await;
    }
    h37.ping().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stream_that_ends_where_something_was_due_leaves_nothing_behind() {
    let exchange = net().start();
    let g22 = RawNode::link(&exchange, "g22").await;
    let sealed = letter(&[DN], &[&[7; 1000], &[8; 300_000]]).seal(&g22);
    let submit = Frame::Submit(Submit { envelope: sealed.envelope.clone(), inline: vec![0] }).encode().unwrap();
    let inline = [submit.clone(), sealed.bodies[0].clone()].concat();
    for (what, bytes) in [
        ("nothing", Vec::new()),
        ("half a length", vec![0, 0]),
        ("half a frame", submit[..submit.len() / 2].to_vec()),
        ("half an inline body", inline[..inline.len() - 500].to_vec()),
        ("half a large body", [inline.clone(), vec![8; 150_000]].concat()),
    ] {
        let mut stream = g22.open().await;
        stream.raw(&bytes).await;
        let _ended = stream.send.finish();
        if what == "half a large body" {
            assert!(matches!(stream.read(Class::Large).await, Frame::Need(_)));
        }
        match stream.read(Class::Large).await {
            Frame::Refused(refusal) => assert_eq!(refusal.reason.code, "malformed", "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    assert_eq!(leaves(&exchange), 0);
    assert_eq!(g22.submit(&sealed).await.done().intake, Intake::Accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_stream_that_stalls_is_closed_as_stalled_and_the_link_goes_on() {
    let exchange = net().start();
    let g22 = RawNode::link(&exchange, "g22").await;
    let sealed = letter(&[DN], &[&[7; 1000], &[8; 300_000]]).seal(&g22);
    let submit = Frame::Submit(Submit { envelope: sealed.envelope.clone(), inline: vec![0] }).encode().unwrap();
    let mut in_header = g22.open().await;
    in_header.raw(&submit[..2]).await;
    let mut in_frame = g22.open().await;
    in_frame.raw(&submit[..submit.len() / 2]).await;
    let mut in_body = g22.open().await;
    in_body.raw(&submit).await;
    in_body.raw(&sealed.bodies[0]).await;
    assert!(matches!(in_body.read(Class::Large).await, Frame::Need(_)));
    in_body.raw(&sealed.bodies[1][..1000]).await;
    let stalled = tokio::join!(refused(in_header), refused(in_frame), refused(in_body));
    let expected = ("malformed".to_owned(), Some(STALLED));
    assert_eq!(stalled, (expected.clone(), expected.clone(), expected));
    assert_eq!(leaves(&exchange), 0);
    assert_eq!(g22.submit(&sealed).await.done().intake, Intake::Accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_connection_that_does_not_begin_with_hello_is_closed_with_a_code() {
    let exchange = net().start();
    let h37 = RawNode::link(&exchange, "h37").await;
    for bytes in [framed(b"garbage"), Frame::Ping.encode().unwrap(), u32::MAX.to_be_bytes().to_vec()] {
        let (_endpoint, connection) = dial_as(&exchange.identity("g22"), exchange.address()).await.unwrap();
        Stream::open(&connection).await.raw(&bytes).await;
        match within("the close", connection.closed()).await {
            ConnectionError::ApplicationClosed(close) => assert_eq!(close.error_code.into_inner(), MALFORMED),
            other => panic!("{other}"),
        }
    }
    h37.ping().await;
}
