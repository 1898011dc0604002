//! Wire and store encodings, pinned: each frame's bytes as hexadecimal text under `golden/`. A change here breaks the
//! link between old and new programs. `DOCAXIS_WRITE_GOLDEN=1` writes the files anew, for a deliberate new version.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;

use docaxis_protocol::digest::hex;
use docaxis_protocol::envelope::Chain;
use docaxis_protocol::frame::*;
use docaxis_protocol::key::RawSignature;
use docaxis_protocol::*;

fn time() -> Timestamp {
    Timestamp::from_unix_ms(1_795_318_200_123)
}

fn agency() -> AgencyCode {
    "H37.DN.001".parse().unwrap()
}

fn chain() -> Chain {
    Chain::from_ders([b"leaf".to_vec(), b"issuer".to_vec()])
}

fn envelope() -> SealedEnvelope {
    SealedEnvelope { bytes: b"{}".to_vec(), signature: RawSignature([1; 64]), chain: chain() }
}

fn evidence() -> SignedEvidence {
    SignedEvidence { bytes: b"{\"type\":1}".to_vec(), signature: RawSignature([2; 64]) }
}

fn statement() -> SealedStatement {
    SealedStatement { bytes: b"{}".to_vec(), signature: RawSignature([3; 64]), chain: chain() }
}

fn outcome(standing: Standing) -> Outcome {
    Outcome { standing, leaf: 7, evidence: evidence() }
}

fn frames() -> Vec<Frame> {
    vec![
        Frame::Hello(Hello { versions: vec![2, 1], software: "docaxis 0.1.0".into(), time: time(), mailbox_epoch: 3 }),
        Frame::Welcome(Welcome {
            version: 2,
            software: "docaxis 0.1.0".into(),
            time: time(),
            origin: "docaxis.example/vn".parse().unwrap(),
            agencies: vec![agency()],
            max_part_bytes: 2 << 30,
            evidence_chain: chain(),
            log_chain: chain(),
            crl_number: 5,
            directory_version: 6,
        }),
        Frame::Refused(Refusal::new(ReasonCode::Busy, "later", time())),
        Frame::Submit(Submit { envelope: envelope(), inline: vec![0, 2] }),
        Frame::Need(Need { parts: vec![(1, 1 << 33)] }),
        Frame::Done(Done { intake: Intake::Already, leaf: 7, evidence: evidence() }),
        Frame::Offer(Offer {
            recipient: agency(),
            envelope: envelope(),
            acceptance: evidence(),
            acceptance_leaf: 7,
            inline: vec![0],
        }),
        Frame::Handover(statement()),
        Frame::Recorded(outcome(Standing::HandedOver)),
        Frame::Report(Report { statements: vec![statement()] }),
        Frame::Reported(Reported {
            answers: vec![Ok(outcome(Standing::Refused)), Err(ReasonCode::NotYours.because("not yours"))],
        }),
        Frame::Follow(Follow { cursors: vec![(agency(), 9)] }),
        Frame::Evidence(vec![EvidenceItem {
            sender: agency(),
            leaf: 9,
            evidence: evidence(),
            statement_chain: Some(chain()),
        }]),
        Frame::FetchProofs(vec![1, 2]),
        Frame::Proofs(vec![(1, Some("proof".into())), (2, None)]),
        Frame::Directory(4),
        Frame::Notices(Notices {
            version: 4,
            entries: vec![SignedBytes { bytes: b"{}".to_vec(), signature: RawSignature([4; 64]) }],
            crls: vec![("nodes".into(), "pem".into())],
        }),
        Frame::Published(4),
        Frame::Ping,
        Frame::Pong,
        Frame::Join(Join { request: b"request".to_vec(), mac: b"mac".to_vec() }),
        Frame::Joined(Joined { answer: b"answer".to_vec() }),
        Frame::Cosign(Cosign { checkpoint: "note".into(), old_size: 1, consistency: vec![Digest([5; 32])] }),
        Frame::Cosigned("line".into()),
        Frame::Resend(Resend {
            sender: agency(),
            dispatch: DispatchId::from_parts(time(), [6; 10]),
            parts: vec![0, 2],
        }),
        Frame::Holds(Holds { checkpoint: Some("note".into()) }),
        Frame::GiveBack(7),
        Frame::GivenBack(vec![GivenLeaf {
            leaf: 7,
            evidence: evidence(),
            envelope: Some(envelope()),
            statement_chain: Some(chain()),
            proof: Some("proof".into()),
        }]),
        Frame::Restored(7),
        Frame::Gone(Gone {
            upto: 9,
            items: vec![GoneItem {
                leaf: 7,
                recipient: agency(),
                sender: agency(),
                dispatch: DispatchId::from_parts(time(), [6; 10]),
                time: time(),
            }],
        }),
        Frame::Behind(vec![DispatchId::from_parts(time(), [7; 10])]),
    ]
}

#[test]
fn every_frame_has_the_bytes_that_it_always_had() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for frame in frames() {
        let bytes = frame.encode().unwrap();
        let file = folder.join(format!("frame-{}.hex", frame.name()));
        if std::env::var_os("DOCAXIS_WRITE_GOLDEN").is_some() {
            std::fs::write(&file, hex(&bytes) + "\n").unwrap();
        }
        let golden = std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
        assert_eq!(hex(&bytes), golden.trim_end(), "{}", frame.name());
        assert_eq!(Frame::length(bytes[..4].try_into().unwrap(), Class::Large).unwrap(), bytes.len() - 4);
        assert_eq!(Frame::decode(&bytes[4..]).unwrap(), frame);
    }
}

#[test]
fn a_frame_over_its_bound_or_with_bytes_left_over_is_refused() {
    let over = u32::try_from(limits::MAX_CONTROL_FRAME_BYTES + 1).unwrap().to_be_bytes();
    assert!(matches!(Frame::length(over, Class::Control), Err(FrameError::TooLarge { .. })));
    assert!(Frame::length(over, Class::Large).is_ok());
    for frame in frames() {
        let mut body = frame.encode().unwrap().split_off(4);
        body.push(0);
        assert!(Frame::decode(&body).is_err(), "{} with a byte left over", frame.name());
        body.truncate(body.len() - 2);
        assert!(Frame::decode(&body).is_err(), "{} cut short", frame.name());
    }
}

proptest::proptest! {
    #[test]
    fn arbitrary_bytes_never_make_the_decoder_panic(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..600)) {
        let _ = Frame::decode(&bytes);
        let _ = Envelope::parse(&bytes);
        let _ = Statement::parse(&bytes);
    }
}
