//! The agent against a broker that says exactly what each test needs.

use docaxis_protocol::evidence::StatementInEvidence;
use docaxis_protocol::frame::{
    Class, Done, EvidenceItem, Frame, Intake, Notices, Refusal, Reported, SignedBytes, Standing,
};
use docaxis_protocol::key::RawSignature;
use docaxis_protocol::{Digest, Event, PartRole, ReasonCode, SealedStatement, Statement};

use crate::link::testing::{Exchange, bodies_in, code, handover, sealed, until};
use crate::mailbox::{DeliveryState, InState, OutState};
use crate::query::Box as Which;
use crate::{AgentHandle, Draft, DraftPart, Env, Source};

fn letter(body: &[u8]) -> Draft {
    let mut draft = Draft::new(code("000.00.00.G22"), vec![code("H37.DN.001")]);
    draft.parts = vec![DraftPart {
        name: "công văn.pdf".into(),
        media_type: "application/pdf".into(),
        role: PartRole::Document,
        source: Source::Bytes(body.to_vec()),
    }];
    draft
}

fn said(statement: &SealedStatement) -> (Event, Vec<String>) {
    let said = Statement::parse(&statement.bytes).unwrap();
    (said.event, said.reasons.into_iter().map(|reason| reason.code).collect())
}

async fn out_state(agent: &AgentHandle, id: docaxis_protocol::DispatchId) -> OutState {
    agent.show(id).await.unwrap().outgoing.unwrap().state
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queued_dispatch_ends_with_the_exchanges_evidence_and_a_large_body_goes_on_demand() {
    let mut exchange = Exchange::start();
    let node = exchange.join("g22", &["000.00.00.G22"]);
    let agent = exchange.agent(&node, "agent");
    let mut draft = letter(b"small");
    let large: Vec<u8> = (0..700_000u32).map(|n| n.to_le_bytes()[0]).collect();
    draft.parts.push(DraftPart { source: Source::Bytes(large.clone()), ..draft.parts[0].clone() });
    draft.idempotency_key = Some("one".into());
    let id = agent.compose(draft.clone()).await.unwrap();
    assert_eq!(agent.compose(draft).await.unwrap(), id, "the same request is the same dispatch");
    assert_eq!(out_state(&agent, id).await, OutState::Queued);

    let link = exchange.accept().await;
    let (Frame::Submit(submit), mut stream) = link.next("Submit").await else { panic!() };
    assert_eq!(submit.inline, [0]);
    assert_eq!(stream.read_small(5).await.unwrap(), b"small");
    stream.write(&Frame::Need(docaxis_protocol::frame::Need { parts: vec![(1, 300_000)] })).await.unwrap();
    assert_eq!(stream.read_small(400_000).await.unwrap(), large[300_000..]);
    let evidence = exchange.evidence(Event::SubmissionAcceptance, &submit.envelope, |_| ());
    let done = Done { intake: Intake::Accepted, leaf: 3, evidence: evidence.clone() };
    stream.write(&Frame::Done(done)).await.unwrap();

    until(&agent, || async { (out_state(&agent, id).await == OutState::Accepted).then_some(()) }).await;
    let stored = agent.evidence(id).await.unwrap();
    assert_eq!(stored.iter().map(|row| (row.leaf, &row.signed)).collect::<Vec<_>>(), [(3, &evidence)]);
    agent.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispatch_whose_answer_was_lost_is_sent_again_in_the_very_same_bytes_also_after_a_restart() {
    let mut exchange = Exchange::start();
    let node = exchange.join("g22", &["000.00.00.G22"]);
    let agent = exchange.agent(&node, "agent");
    let id = agent.compose(letter(b"abc")).await.unwrap();
    let link = exchange.accept().await;
    let (Frame::Submit(first), _stream) = link.next("Submit").await else { panic!() };
    link.cut();
    let link = exchange.accept().await;
    let (Frame::Submit(second), mut stream) = link.next("Submit").await else { panic!() };
    assert_eq!(second, first);
    let busy = Refusal::new(ReasonCode::Busy, "later", Env::real().now());
    stream.write(&Frame::Refused(busy)).await.unwrap();
    stream.finish();
    let (Frame::Submit(third), _stream) = link.next("Submit").await else { panic!() };
    assert_eq!(third, first);
    link.cut();
    agent.shutdown().await.unwrap();

    let agent = exchange.agent(&node, "agent");
    let link = exchange.accept().await;
    let (Frame::Submit(fourth), mut stream) = link.next("Submit").await else { panic!() };
    assert_eq!(fourth, first);
    // Evidence about other bytes ends nothing.
    let foreign = exchange.evidence(Event::SubmissionAcceptance, &fourth.envelope, |evidence| {
        evidence.envelope_sha256 = Digest::of(b"other");
    });
    stream.write(&Frame::Done(Done { intake: Intake::Accepted, leaf: 3, evidence: foreign })).await.unwrap();
    let (Frame::Submit(fifth), mut stream) = link.next("Submit").await else { panic!() };
    assert_eq!((fifth == first, out_state(&agent, id).await), (true, OutState::Queued));
    let evidence = exchange.evidence(Event::SubmissionRejection, &fifth.envelope, |evidence| {
        evidence.reasons = vec![ReasonCode::UnknownRecipient.because("no such agency")];
    });
    stream.write(&Frame::Done(Done { intake: Intake::Rejected, leaf: 3, evidence })).await.unwrap();
    until(&agent, || async { (out_state(&agent, id).await == OutState::Rejected).then_some(()) }).await;
    let reason = agent.show(id).await.unwrap().outgoing.unwrap().reason.unwrap();
    assert_eq!(reason, ReasonCode::UnknownRecipient.because("no such agency"));
    agent.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_is_stored_before_it_is_sent_and_nothing_is_visible_before_it_is_recorded() {
    let mut exchange = Exchange::start();
    let sender = exchange.join("g22", &["000.00.00.G22"]);
    let node = exchange.join("h37", &["H37.DN.001"]);
    let agent = exchange.agent(&node, "agent");
    let large = vec![9u8; 100_000];
    let envelope = sealed(&sender, &["H37.DN.001"], &[b"small", &large], |_| ());
    let offer = exchange.offer("H37.DN.001", &envelope, vec![0]);
    let id = docaxis_protocol::Envelope::parse(&envelope.bytes).unwrap().id;

    let link = exchange.accept().await;
    let mut stream = link.offer(offer.clone(), &[b"small"]).await;
    let Frame::Need(need) = stream.read(Class::Large).await.unwrap() else { panic!() };
    assert_eq!(need.parts, [(1, 0)]);
    stream.write_raw(large.clone().into()).await.unwrap();
    let first = handover(&mut stream).await;
    assert_eq!(said(&first), (Event::ContentHandover, vec![]));
    let stored = agent.statements(id).await.unwrap();
    assert_eq!(stored.iter().map(|row| (&row.sealed, row.answered)).collect::<Vec<_>>(), [(&first, false)]);
    assert!(agent.show(id).await.is_err() && agent.part(id, 0).await.is_err(), "shown before it was recorded");
    assert_eq!(agent.list(Which::In, None, None).await.unwrap(), []);
    link.cut();

    // The broker never heard it: the same words come again, of our own accord and when it is offered again.
    let link = exchange.accept().await;
    let (Frame::Report(report), mut reported) = link.next("Report").await else { panic!() };
    assert_eq!(report.statements, std::slice::from_ref(&first));
    let mut stream = link.offer(offer.clone(), &[b"small"]).await;
    assert_eq!(handover(&mut stream).await, first);
    assert!(agent.show(id).await.is_err());
    // What nobody signed shows nothing: a failure called a handover, and another's words in place of ours.
    let failed = (Event::ContentHandoverFailure, Some(ReasonCode::Expired.because("too late")));
    let lie = exchange.outcome(Standing::HandedOver, 8, failed, &envelope, &first);
    stream.write(&Frame::Recorded(lie)).await.unwrap();
    let alarms = async |n: usize| {
        let status = agent.status().await.unwrap();
        (status.alarms.iter().filter(|alarm| alarm.text.contains("does not bear")).count() == n).then_some(())
    };
    until(&agent, || alarms(1)).await;
    let mut stream = link.offer(offer.clone(), &[b"small"]).await;
    assert_eq!(handover(&mut stream).await, first);
    let mut lie = exchange.outcome(Standing::HandedOver, 8, (Event::ContentHandover, None), &envelope, &first);
    let mut foreign = docaxis_protocol::Evidence::parse(&lie.evidence.bytes).unwrap();
    foreign.statement.as_mut().unwrap().bytes = "e30=".into();
    lie.evidence = docaxis_protocol::SignedEvidence::sign(&foreign, &exchange.broker.evidence_key).unwrap();
    stream.write(&Frame::Recorded(lie)).await.unwrap();
    until(&agent, || alarms(2)).await;
    assert!(agent.show(id).await.is_err());
    let mut stream = link.offer(offer, &[b"small"]).await;
    assert_eq!(handover(&mut stream).await, first);
    let outcome = exchange.outcome(Standing::HandedOver, 8, (Event::ContentHandover, None), &envelope, &first);
    stream.write(&Frame::Recorded(outcome.clone())).await.unwrap();
    reported.write(&Frame::Reported(Reported { answers: vec![Ok(outcome.clone())] })).await.unwrap();

    let seen = until(&agent, || async { agent.show(id).await.ok() }).await;
    assert_eq!(seen.incoming.iter().map(|view| view.state).collect::<Vec<_>>(), [InState::Visible]);
    let mut part = agent.part(id, 1).await.unwrap();
    assert_eq!((part.reader.next_chunk().unwrap().unwrap(), part.part.size), (large, 100_000));
    let evidence: Vec<u64> = agent.evidence(id).await.unwrap().iter().map(|row| row.leaf).collect();
    assert_eq!(evidence, [7, 8]);

    // 03: sealed, reported, recorded; saying it twice is saying it once, and 02 comes too late.
    agent.register(id, code("H37.DN.001")).await.unwrap();
    agent.register(id, code("H37.DN.001")).await.unwrap();
    let late = agent.refuse(id, code("H37.DN.001"), ReasonCode::Other.because("no")).await.unwrap_err();
    assert_eq!(late.code(), ReasonCode::NotYours);
    let (Frame::Report(report), mut reported) = link.next("Report").await else { panic!() };
    let [registered] = &report.statements[..] else { panic!("{report:?}") };
    assert_eq!(said(registered), (Event::Registered, vec![]));
    let outcome = exchange.outcome(Standing::Registered, 9, (Event::Registered, None), &envelope, registered);
    reported.write(&Frame::Reported(Reported { answers: vec![Ok(outcome)] })).await.unwrap();
    until(&agent, || async {
        let view = agent.show(id).await.unwrap();
        (view.incoming[0].state == InState::Registered).then_some(())
    })
    .await;

    // The handover's answer once more takes nothing back.
    let handed_over = agent.statements(id).await.unwrap().remove(0);
    let evidence = agent.evidence(id).await.unwrap().remove(1);
    for state in [InState::Visible, InState::Destroyed] {
        let destroyed = agent.shared.mailbox.recorded(&handed_over, Some(state), evidence.clone(), None).await.unwrap();
        assert_eq!(destroyed.unwrap().unreferenced, []);
        assert_eq!(agent.show(id).await.unwrap().incoming[0].state, InState::Registered);
    }
    agent.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_is_signed_with_its_reason_and_nothing_of_the_dispatch_stays() {
    let mut exchange = Exchange::start();
    let sender = exchange.join("g22", &["000.00.00.G22"]);
    let node = exchange.join("h37", &["H37.DN.001"]);
    let agent = exchange.agent(&node, "agent");
    let link = exchange.accept().await;
    let mut expected = Vec::new();
    let mut refuse = async |offer: docaxis_protocol::frame::Offer, body: &[u8], code: &str| {
        let id = docaxis_protocol::Envelope::parse(&offer.envelope.bytes).unwrap().id;
        let mut stream = link.offer(offer.clone(), &[body]).await;
        let statement = handover(&mut stream).await;
        assert_eq!(said(&statement), (Event::ContentHandoverFailure, vec![code.into()]));
        let reason = Some(ReasonCode::BadSeal.because("x"));
        let event = (Event::ContentHandoverFailure, reason);
        let outcome =
            exchange.outcome(Standing::Failed, 20 + expected.len() as u64, event, &offer.envelope, &statement);
        stream.write(&Frame::Recorded(outcome)).await.unwrap();
        until(&agent, || async { agent.statements(id).await.unwrap()[0].answered.then_some(()) }).await;
        assert!(agent.show(id).await.is_err(), "{code} was shown");
        // Offered again, it is answered in the same bytes.
        let mut again = link.offer(offer, &[body]).await;
        assert_eq!(handover(&mut again).await, statement);
        expected.push(code.to_owned());
    };

    let good = sealed(&sender, &["H37.DN.001"], &[b"abc"], |_| ());
    refuse(exchange.offer("H37.DN.001", &good, vec![0]), b"abd", "digest-mismatch").await;
    let mut altered = sealed(&sender, &["H37.DN.001"], &[b"abc"], |_| ());
    altered.signature.0[5] ^= 1;
    refuse(exchange.offer("H37.DN.001", &altered, vec![0]), b"abc", "bad-seal").await;
    let mut foreign = sealed(&sender, &["H37.DN.001"], &[b"abc"], |_| ());
    foreign.chain = sealed(&node, &["H37.DN.001"], &[], |_| ()).chain;
    refuse(exchange.offer("H37.DN.001", &foreign, vec![0]), b"abc", "bad-seal").await;
    let other = sealed(&sender, &["H37.DN.002"], &[b"abc"], |_| ());
    refuse(exchange.offer("H37.DN.001", &other, vec![0]), b"abc", "wrong-addressee").await;

    // An agency that is not ours cannot be signed for.
    let mut stream = link.offer(exchange.offer("H37.DN.002", &other, vec![0]), &[b"abc"]).await;
    match stream.read(Class::Large).await {
        Err(super::LinkError::Refused(refusal)) => assert_eq!(refusal.reason.code, "not-hosted"),
        other => panic!("{other:?}"),
    }
    let data = exchange.config("agent").agent.data;
    agent.shutdown().await.unwrap();
    assert_eq!(bodies_in(&data), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_dispatch_under_a_known_id_is_refused_and_the_first_stays() {
    let mut exchange = Exchange::start();
    let sender = exchange.join("g22", &["000.00.00.G22"]);
    let node = exchange.join("h37", &["H37.DN.001"]);
    let agent = exchange.agent(&node, "agent");
    let link = exchange.accept().await;
    let first = sealed(&sender, &["H37.DN.001"], &[b"abc"], |_| ());
    let id = docaxis_protocol::Envelope::parse(&first.bytes).unwrap().id;
    let mut stream = link.offer(exchange.offer("H37.DN.001", &first, vec![0]), &[b"abc"]).await;
    let statement = handover(&mut stream).await;
    let outcome = exchange.outcome(Standing::HandedOver, 8, (Event::ContentHandover, None), &first, &statement);
    stream.write(&Frame::Recorded(outcome)).await.unwrap();
    until(&agent, || async { agent.show(id).await.ok() }).await;

    let second = sealed(&sender, &["H37.DN.001"], &[b"xyz"], |envelope| envelope.id = id);
    let mut stream = link.offer(exchange.offer("H37.DN.001", &second, vec![0]), &[b"xyz"]).await;
    let statement = handover(&mut stream).await;
    assert_eq!(said(&statement), (Event::ContentHandoverFailure, vec!["id-conflict".into()]));
    assert_eq!(agent.show(id).await.unwrap().parts[0].part.sha256, Digest::of(b"abc"));
    agent.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispatch_that_was_withdrawn_first_is_destroyed_and_a_body_in_use_elsewhere_stays() {
    let mut exchange = Exchange::start();
    let sender = exchange.join("g22", &["000.00.00.G22"]);
    let node = exchange.join("h37", &["H37.DN.001", "H37.DN.002"]);
    let agent = exchange.agent(&node, "agent");
    let link = exchange.accept().await;
    let keep = sealed(&sender, &["H37.DN.001"], &[b"shared"], |_| ());
    let mut stream = link.offer(exchange.offer("H37.DN.001", &keep, vec![0]), &[b"shared"]).await;
    let statement = handover(&mut stream).await;
    let outcome = exchange.outcome(Standing::HandedOver, 8, (Event::ContentHandover, None), &keep, &statement);
    stream.write(&Frame::Recorded(outcome)).await.unwrap();

    let gone = sealed(&sender, &["H37.DN.001", "H37.DN.002"], &[b"shared", b"secret plan"], |_| ());
    let id = docaxis_protocol::Envelope::parse(&gone.bytes).unwrap().id;
    // The first agency was given "shared" before and is not asked to take it again; the other one never saw it.
    let offer = docaxis_protocol::frame::Offer { acceptance_leaf: 6, ..exchange.offer("H37.DN.001", &gone, vec![]) };
    for (agency, expected) in [("H37.DN.001", vec![(1, 0)]), ("H37.DN.002", vec![(0, 0), (1, 0)])] {
        let offer = docaxis_protocol::frame::Offer { recipient: code(agency), ..offer.clone() };
        let mut stream = link.offer(offer, &[]).await;
        let Frame::Need(need) = stream.read(Class::Large).await.unwrap() else { panic!() };
        let mut asked = need.parts.clone();
        asked.sort();
        assert_eq!(asked, expected, "{agency}");
        for (index, _) in need.parts {
            let body: &[u8] = if index == 0 { b"shared" } else { b"secret plan" };
            stream.write_raw(bytes::Bytes::copy_from_slice(body)).await.unwrap();
        }
        let statement = handover(&mut stream).await;
        let why = (Event::ContentHandoverFailure, Some(ReasonCode::Withdrawn.because("recalled")));
        let leaf = if agency == "H37.DN.001" { 9 } else { 10 };
        let outcome = exchange.outcome(Standing::Withdrawn, leaf, why, &gone, &statement);
        stream.write(&Frame::Recorded(outcome)).await.unwrap();
        let recipient = code(agency);
        until(&agent, || async {
            let view = agent.show(id).await.ok()?;
            view.incoming.iter().any(|v| v.recipient == recipient && v.state == InState::Destroyed).then_some(())
        })
        .await;
    }
    let view = agent.show(id).await.unwrap();
    assert_eq!(view.incoming[0].reason, Some(ReasonCode::Withdrawn.because("recalled")));
    assert_eq!(agent.part(id, 1).await.err().map(|e| e.code()), Some(ReasonCode::Withdrawn));
    let data = exchange.config("agent").agent.data;
    agent.shutdown().await.unwrap();
    assert_eq!(bodies_in(&data), [Digest::of(b"shared")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn evidence_of_deliveries_is_verified_stored_once_and_read_on_from_the_cursor() {
    let mut exchange = Exchange::start();
    let node = exchange.join("g22", &["000.00.00.G22"]);
    let recipient = exchange.join("h37", &["H37.DN.001"]);
    let agent = exchange.agent(&node, "agent");
    let id = agent.compose(letter(b"abc")).await.unwrap();
    let link = exchange.accept().await;
    let (Frame::Follow(follow), mut news) = link.next("Follow").await else { panic!() };
    assert_eq!(follow.cursors, [(code("000.00.00.G22"), 0)]);
    let (Frame::Submit(submit), mut stream) = link.next("Submit").await else { panic!() };
    let acceptance = exchange.evidence(Event::SubmissionAcceptance, &submit.envelope, |_| ());

    let seal = &recipient.seals[&code("H37.DN.001")];
    let statement = Statement {
        kind_of_bytes: docaxis_protocol::statement::TYPE.into(),
        exchange: node.link.origin.clone(),
        event: Event::ContentHandover,
        dispatch: id,
        envelope_sha256: submit.envelope.digest(),
        recipient: code("H37.DN.001"),
        time: Env::real().now(),
        reasons: vec![],
        acting: None,
    };
    let chain =
        docaxis_protocol::envelope::Chain::from_ders([seal.certificate.clone(), recipient.common.seals_ca.clone()]);
    let statement = SealedStatement::seal(&statement, &seal.key, chain.clone()).unwrap();
    let item = |change: &dyn Fn(&mut docaxis_protocol::Evidence)| EvidenceItem {
        sender: code("000.00.00.G22"),
        leaf: 5,
        evidence: exchange.evidence(Event::ContentHandover, &submit.envelope, |evidence| {
            evidence.recipient = Some(code("H37.DN.001"));
            evidence.previous = Some(acceptance.digest());
            evidence.statement = Some(StatementInEvidence::new(&statement, &seal.key.public()));
            change(evidence);
        }),
        statement_chain: Some(chain.clone()),
    };
    let handed_over = item(&|_| ());
    // The handover overtakes our own acceptance: it is not taken before that is here.
    news.write(&Frame::Evidence(vec![handed_over.clone()])).await.unwrap();
    let (Frame::Follow(again), mut news) = link.next("Follow").await else { panic!() };
    assert_eq!(again.cursors, [(code("000.00.00.G22"), 0)]);
    stream.write(&Frame::Done(Done { intake: Intake::Accepted, leaf: 4, evidence: acceptance.clone() })).await.unwrap();
    until(&agent, || async { (out_state(&agent, id).await == OutState::Accepted).then_some(()) }).await;
    news.write(&Frame::Evidence(vec![handed_over.clone()])).await.unwrap();
    until(&agent, || async {
        let deliveries = agent.show(id).await.unwrap().outgoing.unwrap().deliveries;
        (deliveries[0].state == DeliveryState::HandedOver).then_some(())
    })
    .await;

    // Without the recipient's own word it is kept as the exchange's, and moves nothing; what the exchange did not sign
    // is not stored. Neither holds up what came before it, nor anything else over this connection.
    let unsigned = item(&|evidence| {
        evidence.event = Event::Refused;
        evidence.uri = Event::Refused.uri();
        evidence.statement = None;
    });
    let mut altered = EvidenceItem { leaf: 7, ..item(&|_| ()) };
    altered.evidence.signature.0[5] ^= 1;
    let batch = vec![EvidenceItem { leaf: 6, ..unsigned }, altered, EvidenceItem { leaf: 8, ..item(&|_| ()) }];
    for _ in 0..3 {
        news.write(&Frame::Evidence(batch.clone())).await.unwrap();
        let (Frame::Follow(follow), next) = link.next("Follow").await else { panic!() };
        assert_eq!(follow.cursors, [(code("000.00.00.G22"), 7)]);
        news = next;
    }
    let stored: Vec<u64> = agent.evidence(id).await.unwrap().iter().map(|row| row.leaf).collect();
    assert_eq!(stored, [4, 5, 6]);
    let state = agent.show(id).await.unwrap().outgoing.unwrap().deliveries[0].state;
    assert_eq!(state, DeliveryState::HandedOver);
    let alarms: Vec<String> = agent.status().await.unwrap().alarms.into_iter().map(|alarm| alarm.text).collect();
    for leaf in [6, 7] {
        assert!(alarms.iter().any(|alarm| alarm.contains(&format!("leaf {leaf} "))), "{alarms:?}");
    }
    // What comes in many frames is stored in its order, also what was read just before the stream's end.
    for leaf in 7..47 {
        news.write(&Frame::Evidence(vec![EvidenceItem { leaf, ..item(&|_| ()) }])).await.unwrap();
    }
    news.finish();
    let (Frame::Follow(follow), _news) = link.next("Follow").await else { panic!() };
    assert_eq!(follow.cursors, [(code("000.00.00.G22"), 47)]);
    let stored: Vec<u64> = agent.evidence(id).await.unwrap().iter().map(|row| row.leaf).collect();
    assert_eq!(stored, (4..47).collect::<Vec<_>>());

    let second = agent.compose(letter(b"def")).await.unwrap();
    let (Frame::Submit(submit), _stream) = link.next("Submit").await else { panic!() };
    assert_eq!(docaxis_protocol::Envelope::parse(&submit.envelope.bytes).unwrap().id, second);
    agent.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_statement_that_was_refused_for_good_was_never_made() {
    let mut exchange = Exchange::start();
    let sender = exchange.join("g22", &["000.00.00.G22"]);
    let node = exchange.join("h37", &["H37.DN.001"]);
    let agent = exchange.agent(&node, "agent");
    let envelope = sealed(&sender, &["H37.DN.001"], &[b"abc"], |_| ());
    let offer = exchange.offer("H37.DN.001", &envelope, vec![0]);
    let id = docaxis_protocol::Envelope::parse(&envelope.bytes).unwrap().id;
    let bad_seal = ReasonCode::BadSeal.because("revoked");
    let refusal = async || {
        let row = agent.statements(id).await.unwrap().into_iter().find(|row| row.refusal.is_some())?;
        Some((row.event, row.refusal))
    };

    let link = exchange.accept().await;
    let mut stream = link.offer(offer.clone(), &[b"abc"]).await;
    let first = handover(&mut stream).await;
    link.cut();
    let link = exchange.accept().await;
    let (Frame::Report(_), mut reported) = link.next("Report").await else { panic!() };
    reported.write(&Frame::Reported(Reported { answers: vec![Err(bad_seal.clone())] })).await.unwrap();
    assert_eq!(until(&agent, &refusal).await, (Event::ContentHandover, Some(bad_seal.clone())));
    let mut stream = link.offer(offer, &[b"abc"]).await;
    let second = handover(&mut stream).await;
    assert_eq!((said(&second).0, second == first), (Event::ContentHandover, false));
    let outcome = exchange.outcome(Standing::HandedOver, 8, (Event::ContentHandover, None), &envelope, &second);
    stream.write(&Frame::Recorded(outcome)).await.unwrap();
    until(&agent, || async { agent.show(id).await.ok() }).await;

    // An officer's word likewise: the reason is shown, and another word may follow.
    agent.register(id, code("H37.DN.001")).await.unwrap();
    let (Frame::Report(_), mut reported) = link.next("Report").await else { panic!() };
    reported.write(&Frame::Reported(Reported { answers: vec![Err(bad_seal.clone())] })).await.unwrap();
    assert_eq!(until(&agent, &refusal).await, (Event::Registered, Some(bad_seal.clone())));
    let view = agent.show(id).await.unwrap().incoming.remove(0);
    assert_eq!((view.state, view.reason, view.waiting.is_some()), (InState::Visible, Some(bad_seal), true));
    agent.refuse(id, code("H37.DN.001"), ReasonCode::Other.because("not ours")).await.unwrap();
    let (Frame::Report(report), _reported) = link.next("Report").await else { panic!() };
    assert_eq!(report.statements.iter().map(|one| said(one).0).collect::<Vec<_>>(), [Event::Refused]);
    agent.shutdown().await.unwrap();
}

/// Where the agent has this body: what it is made of there may be changed, or taken away.
fn damage(exchange: &Exchange, agent: &AgentHandle, body: &[u8], to: Option<&[u8]>) {
    let (sha256, file) = (Digest::of(body), agent.shared.parts.path(Digest::of(body)));
    match (body.len() > crate::mailbox::MAX_SMALL_BODY_BYTES, to) {
        (true, Some(bytes)) => std::fs::write(file, bytes).unwrap(),
        (true, None) => std::fs::remove_file(file).unwrap(),
        (false, bytes) => {
            assert!(!file.exists(), "a small body is no file");
            crate::mailbox::damage(&exchange.config("agent").agent.data.join("mailbox.db"), sha256, bytes);
        }
    }
}

/// A small body and a large one, and what a damaged disk may make of each.
fn bodies_and_damage() -> Vec<(Vec<u8>, Option<Vec<u8>>)> {
    let large = vec![7; crate::mailbox::MAX_SMALL_BODY_BYTES + 1];
    let with = |body: &[u8], at: usize| {
        let mut changed = body.to_vec();
        changed[at] ^= 8;
        Some(changed)
    };
    let small = b"shared".to_vec();
    vec![(small.clone(), with(&small, 1)), (small, None), (large.clone(), with(&large, 9)), (large, None)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_body_that_the_disk_damaged_is_asked_for_again_before_anything_is_signed() {
    for (body, damaged) in bodies_and_damage() {
        let mut exchange = Exchange::start();
        let sender = exchange.join("g22", &["000.00.00.G22"]);
        let node = exchange.join("h37", &["H37.DN.001"]);
        let agent = exchange.agent(&node, "agent");
        let link = exchange.accept().await;
        let give = async |stream: &mut super::io::Stream| {
            let Frame::Need(need) = stream.read(Class::Large).await.unwrap() else {
                panic!("signed for a damaged body")
            };
            assert_eq!(need.parts, [(0, 0)]);
            stream.write_raw(body.clone().into()).await.unwrap();
        };
        let first = sealed(&sender, &["H37.DN.001"], &[&body], |_| ());
        let mut stream = link.offer(exchange.offer("H37.DN.001", &first, vec![]), &[]).await;
        give(&mut stream).await;
        handover(&mut stream).await;
        damage(&exchange, &agent, &body, damaged.as_deref());

        // The second time it is whole, wherever it is now, and is not asked for.
        for (leaf, whole) in [(9, false), (10, true)] {
            let again = sealed(&sender, &["H37.DN.001"], &[&body], |_| ());
            let offer = docaxis_protocol::frame::Offer {
                acceptance_leaf: leaf,
                ..exchange.offer("H37.DN.001", &again, vec![])
            };
            let mut stream = link.offer(offer, &[]).await;
            if !whole {
                give(&mut stream).await;
            }
            assert_eq!(said(&handover(&mut stream).await), (Event::ContentHandover, vec![]));
            assert!(agent.shared.check_body(Digest::of(&body)).await.unwrap().is_ok());
        }
        let alarms = agent.status().await.unwrap().alarms;
        let told = alarms.iter().filter(|alarm| alarm.text.contains("is asked for again")).count();
        assert_eq!(told, 1, "{alarms:?}");
        agent.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_that_was_lost_before_it_was_sent_is_the_administrators_and_ends_when_it_expires() {
    for (body, damaged) in bodies_and_damage() {
        let mut exchange = Exchange::start();
        let node = exchange.join("g22", &["000.00.00.G22"]);
        let agent = exchange.agent(&node, "agent");
        let id = agent.compose(letter(&body)).await.unwrap();
        damage(&exchange, &agent, &body, damaged.as_deref());
        let link = exchange.accept().await;
        // A large one is sent when it is needed.
        let needed = async {
            while body.len() > crate::mailbox::MAX_SMALL_BODY_BYTES {
                let (Frame::Submit(_), mut stream) = link.next("Submit").await else { panic!() };
                let _gone = stream.write(&Frame::Need(docaxis_protocol::frame::Need { parts: vec![(0, 0)] })).await;
            }
            std::future::pending::<()>().await;
        };
        let whose = until(&agent, || async {
            let waiting = agent.show(id).await.unwrap().outgoing.unwrap().waiting.unwrap();
            waiting.why.contains("digest-mismatch").then_some(waiting.whose_move)
        });
        let whose = tokio::select! { whose = whose => whose, () = needed => unreachable!() };
        assert_eq!(whose, crate::uplink::Whose::Administrator);
        let alarms = agent.status().await.unwrap().alarms;
        let expected = format!("dispatch {id} cannot be sent");
        assert!(alarms.iter().any(|alarm| alarm.text.contains(&expected)), "{alarms:?}");

        // Put back, as a file whatever it was, it goes.
        agent.shared.parts.store(&body).unwrap();
        loop {
            let (Frame::Submit(_), mut stream) = link.next("Submit").await else { panic!() };
            if body.len() <= crate::mailbox::MAX_SMALL_BODY_BYTES {
                break;
            }
            stream.write(&Frame::Need(docaxis_protocol::frame::Need { parts: vec![(0, 0)] })).await.unwrap();
            if stream.read_small(body.len()).await.is_ok_and(|read| read == body) {
                break;
            }
        }
        agent.shutdown().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_entry_of_the_directory_is_asked_for_again_over_the_same_connection() {
    let mut exchange = Exchange::start();
    let node = exchange.join("g22", &["000.00.00.G22"]);
    let agent = exchange.agent(&node, "agent");
    let link = exchange.accept().await;
    for _ in 0..2 {
        let (Frame::Directory(0), mut stream) = link.next("Directory").await else { panic!() };
        let entries = vec![SignedBytes { bytes: b"{}".to_vec(), signature: RawSignature([1; 64]) }];
        stream.write(&Frame::Notices(Notices { version: 5, entries, crls: vec![] })).await.unwrap();
    }
    let (Frame::Directory(0), _stream) = link.next("Directory").await else { panic!() };
    let alarms = agent.status().await.unwrap().alarms;
    assert!(alarms.iter().any(|alarm| alarm.text.contains("an entry of the directory was not taken")), "{alarms:?}");
    agent.shutdown().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drafts_that_break_a_rule_are_refused_by_name_and_leave_nothing() {
    let mut exchange = Exchange::start();
    let node = exchange.join("g22", &["000.00.00.G22"]);
    let agent = exchange.agent(&node, "agent");
    let refused = async |change: fn(&mut Draft)| {
        let mut draft = letter(b"abc");
        change(&mut draft);
        agent.compose(draft).await.unwrap_err().code().as_str()
    };
    assert_eq!(refused(|d| d.from = code("H37.DN.001")).await, "not-hosted");
    assert_eq!(refused(|d| drop(d.document.insert("secret".into(), true.into()))).await, "secret-refused");
    assert_eq!(refused(|d| d.to.push(d.to[0].clone())).await, "duplicate-recipient");
    assert_eq!(refused(|d| d.parts[0].name = "../../etc/passwd".into()).await, "unsafe-name");
    assert_eq!(refused(|d| d.parts = vec![d.parts[0].clone(); 101]).await, "too-many-parts");
    assert_eq!(refused(|d| d.parts[0].source = Source::File("/no/such/file".into())).await, "not-found");
    assert_eq!(agent.list(Which::Out, None, None).await.unwrap(), []);
    let data = exchange.config("agent").agent.data;
    agent.shutdown().await.unwrap();
    assert_eq!(bodies_in(&data), []);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn proofs_are_asked_for_without_a_pause_while_there_are_more() {
    let mut exchange = Exchange::start();
    let node = exchange.join("g22", &["000.00.00.G22"]);
    let mut config = exchange.config("agent");
    config.link.proofs_every = std::time::Duration::from_secs(3600);
    std::fs::create_dir_all(&config.agent.data).unwrap();
    let path = config.agent.data.join("mailbox.db");
    tokio::task::block_in_place(|| crate::mailbox::Mailbox::open(&path).unwrap().close());
    let sql = "WITH RECURSIVE n(leaf) AS (SELECT 0 UNION ALL SELECT leaf + 1 FROM n WHERE leaf < 299) \
               INSERT INTO evidence SELECT leaf, zeroblob(16), NULL, 'SubmissionAcceptance', 0, x'', zeroblob(64), \
               zeroblob(32), NULL, NULL, ?1 FROM n";
    let stored = Env::real().now().unix_ms();
    crate::mailbox::raw(&path).execute(sql, [stored]).unwrap();
    let _agent = crate::Agent::start(config, crate::Identity::of(&node).unwrap(), Env::real()).unwrap();
    let link = exchange.accept().await;
    for count in [256, 44] {
        let (Frame::FetchProofs(leaves), mut stream) = link.next("FetchProofs").await else { panic!("no FetchProofs") };
        assert_eq!(leaves.len(), count);
        stream.write(&Frame::Proofs(vec![])).await.unwrap();
        stream.finish();
    }
    // They are no evidence.
    crate::mailbox::raw(&path).execute("DELETE FROM evidence", []).unwrap();
}
