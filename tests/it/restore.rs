//! A broker that is put back from an older copy: its agents give back what it lost, and its log goes on where it was; or
//! it stays closed and says what is missing.

use std::path::Path;

use docaxis_broker::continuity::Report;
use docaxis_broker::dispatch::Intake;
use docaxis_broker::turns::Turn;
use docaxis_protocol::{DispatchId, Envelope, ReasonCode, SignedEvidence};

use crate::testnet::{Letter, Sent, TestNet, code, letter};

const G22: &str = "000.00.00.G22";
const DN: &str = "H37.DN.001";
const TC: &str = "H37.TC.002";
const A53: &str = "000.00.01.A53";
const A54: &str = "000.00.01.A54";
const NODES: &[(&str, &[&str])] = &[("g22", &[G22]), ("h37", &[DN, TC]), ("a53", &[A53, A54])];

/// What was sent around the copy.
struct Story {
    before: Sent,
    /// Accepted, handed over and registered after the copy.
    handed_over: Sent,
    /// Accepted after the copy; its recipient was away.
    waiting: Sent,
}

impl Story {
    fn all(&self) -> [&Sent; 3] {
        [&self.before, &self.handed_over, &self.waiting]
    }
}

/// One dispatch before the copy, and two after it.
fn tell(net: &mut TestNet, copy: impl FnOnce(&mut TestNet)) -> Story {
    let before = net.send(G22, &[DN], letter().about("trước").with_part("truoc.pdf", 90_000));
    net.wait_handed_over(&before);
    net.wait_proven("g22", before.id, 2);
    copy(net);
    let handed_over = net.send(G22, &[DN, TC], letter().about("sau").with_part("sau.pdf", 120_000));
    net.wait_handed_over(&handed_over);
    net.block_on(net.agent("h37").register(handed_over.id, code(DN))).unwrap();
    net.wait_proven("g22", handed_over.id, 4);
    net.stop_node("a53");
    let waiting = net.send(G22, &[A53, DN], letter().about("chờ").with_part("cho.pdf", 300_000));
    net.wait_proven("g22", waiting.id, 2);
    Story { before, handed_over, waiting }
}

fn receipts(net: &TestNet, story: &Story) -> Vec<(u64, SignedEvidence)> {
    let rows = story.all().map(|sent| net.block_on(net.agent("g22").evidence(sent.id)).unwrap());
    rows.into_iter().flatten().map(|row| (row.leaf, row.signed)).collect()
}

/// The receipt that the broker answers to a repetition of the same bytes.
fn retried(net: &TestNet, id: DispatchId) -> (u64, SignedEvidence) {
    let envelope = net.block_on(net.agent("g22").bundle(id)).unwrap().envelope;
    let parsed = Envelope::parse(&envelope.bytes).unwrap();
    match net
        .block_on(net.broker().exchange().look(&"g22".parse().unwrap(), parsed, envelope, vec![], &Turn::default()))
        .unwrap()
    {
        Intake::Answered(done) => (done.leaf, done.evidence),
        Intake::Refused(reason) => panic!("{id} was refused: {reason}"),
        Intake::Admitted(_) => panic!("{id} was not known wholly"),
    }
}

/// Every receipt as it was, every dispatch delivered once, every bundle good against the log as it is now.
fn nothing_was_lost(net: &mut TestNet, story: &Story, receipts_before: &[(u64, SignedEvidence)]) {
    net.wait_handed_over(&story.waiting);
    net.wait_proven("g22", story.waiting.id, 3);
    let now = receipts(net, story);
    for receipt in receipts_before {
        assert!(now.contains(receipt), "the evidence at leaf {} is another one", receipt.0);
    }
    assert_eq!(now.len(), receipts_before.len() + 1, "one handover more");
    for sent in story.all() {
        let receipt = retried(net, sent.id);
        assert!(receipts_before.contains(&receipt), "a retry got another receipt, at leaf {}", receipt.0);
        for zip in [net.bundle_of_node("g22", sent.id), net.bundle_of_broker(sent.id)] {
            let verdict = net.judge(&zip, &sent.received().parts);
            let failures: Vec<String> = verdict.failures().map(|(name, why)| format!("{name}: {why}")).collect();
            assert_eq!(failures, Vec::<String>::new(), "the bundle of {}", sent.id);
        }
    }
    let Story { before, handed_over, waiting } = story;
    let mut at_dn = net.inbox(DN);
    at_dn.sort();
    let mut expected = vec![before.received(), handed_over.received(), waiting.received()];
    expected.sort();
    assert_eq!(at_dn, expected);
    assert_eq!([net.inbox(TC), net.inbox(A53)], [[handed_over.received()], [waiting.received()]]);
    for (node, _) in NODES {
        assert_eq!(net.alarms(node), Vec::<String>::new(), "{node}");
    }
}

#[test]
fn a_broker_restored_from_an_older_backup_breaks_no_receipt_loses_no_dispatch_and_forks_no_log() {
    let mut net = TestNet::start(NODES);
    let dir = net.folder("backup");
    let story = tell(&mut net, |net| drop(net.back_up_broker(&dir)));
    let receipts = receipts(&net, &story);
    let (signed, known) = (net.signed_size(), net.continuity().leaves);
    net.stop_broker();
    net.restore_broker(&dir);
    net.start_broker();
    let restored = net.signed_size();
    assert!(restored < signed, "the backup is older");
    // Two of three nodes are there, and the authority has not been heard.
    let closed = net.until_continuity(|report| report.leaves == known && names(report) == ["a53"]);
    assert_eq!((closed.open, net.signed_size()), (false, restored), "nothing is signed before everybody was heard");
    assert!(closed.waiting_for_authority);
    let (code, not_ready) = net.readiness();
    assert_eq!((code, &not_ready["ready"], &not_ready["state"]), (503, &false.into(), &"closed".into()));
    let why = not_ready["why"].as_str().unwrap();
    assert!(why.starts_with("the exchange was put back to an older copy"), "{why}");
    net.publish();
    net.start_node("a53");
    net.until_continuity(|report| report.open);
    assert_eq!(net.readiness().0, 200);
    nothing_was_lost(&mut net, &story, &receipts);
    assert!(!net.broker_data().join("restored.json").exists());
}

#[test]
fn a_data_folder_put_back_by_hand_is_recognised_by_the_first_node_that_holds_a_newer_checkpoint() {
    let mut net = TestNet::start(NODES);
    let (copy, data) = (net.folder("copy"), net.broker_data().to_owned());
    let story = tell(&mut net, |net| {
        net.stop_broker();
        copy_folder(net.broker_data(), &copy);
        net.start_broker();
    });
    let receipts = receipts(&net, &story);
    net.stop_broker();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&copy, &data).unwrap();
    net.start_broker();
    let closed = net.until_continuity(|report| !report.open);
    assert!(closed.why.contains("was put back from an older copy"), "{}", closed.why);
    // A restart in the middle stays closed.
    net.stop_broker();
    net.start_broker();
    assert!(!net.continuity().open);
    net.publish();
    net.start_node("a53");
    net.until_continuity(|report| report.open);
    nothing_was_lost(&mut net, &story, &receipts);
}

#[test]
fn a_broker_that_signed_a_second_history_on_an_older_copy_closes_for_good() {
    let mut net = TestNet::start(NODES);
    let (copy, data) = (net.folder("copy"), net.broker_data().to_owned());
    let story = tell(&mut net, |net| {
        net.stop_broker();
        copy_folder(net.broker_data(), &copy);
        net.start_broker();
    });
    let sealed = net.block_on(net.agent("g22").bundle(story.before.id)).unwrap().envelope;
    net.stop_node("g22");
    net.stop_node("h37");
    net.stop_broker();
    std::fs::remove_dir_all(&data).unwrap();
    std::fs::rename(&copy, &data).unwrap();
    net.start_broker();
    // Nobody is linked who could tell: this leaf stands where another one stood.
    let (envelope, mut sealed) = (Envelope::parse(&sealed.bytes).unwrap(), sealed);
    sealed.bytes.push(b'\n');
    let (digest, reason) = (sealed.digest(), ReasonCode::Other.because("a second history"));
    net.block_on(net.broker().exchange().reject(&envelope, digest, sealed, reason)).unwrap();
    net.publish();
    net.start_node("g22");
    let closed = net.until_continuity(|report| report.why.contains("two histories"));
    let leaves = closed.leaves;
    net.start_node("h37");
    net.start_node("a53");
    net.broker().exchange().continuity.waive();
    let still = net.continuity();
    assert_eq!((still.open, still.leaves), (false, leaves), "{still:#?}");
}

#[test]
fn where_the_only_node_with_a_leaf_is_gone_the_broker_stays_closed_and_names_the_leaf() {
    let mut net = TestNet::start(NODES);
    let dir = net.folder("backup");
    let before = net.send(G22, &[DN], letter().about("trước"));
    net.wait_handed_over(&before);
    net.wait_proven("g22", before.id, 2);
    net.back_up_broker(&dir);
    // From an agency of the node to another: nobody else holds this evidence.
    let between = net.send(A53, &[A54], letter().about("nội bộ"));
    net.wait_handed_over(&between);
    let lost: Vec<u64> = net.wait_proven("a53", between.id, 2).iter().map(|row| row.leaf).collect();
    let after = net.send(G22, &[DN], letter().about("sau"));
    net.wait_handed_over(&after);
    net.wait_proven("g22", after.id, 2);
    net.stop_node("a53");
    net.stop_broker();
    net.restore_broker(&dir);
    net.start_broker();
    net.publish();
    let range = [(lost[0], lost[1])];
    let closed = net.until_continuity(|report| report.missing == range && names(report) == ["a53"]);
    let (leaves, signed) = (closed.leaves, net.signed_size());
    // The operator's word does not help against a checkpoint that somebody holds.
    let resumed: serde_json::Value =
        net.broker_control().post("/v1/restore/resume", &serde_json::json!({}), None).map_err(|f| f.message).unwrap();
    assert_eq!((&resumed["open"], &resumed["missing"]), (&false.into(), &serde_json::json!(range)));
    let queued = net.send(G22, &[DN], letter().about("phải chờ"));
    let refused = net.until(net.agent("g22"), async || {
        let view = net.agent("g22").show(queued.id).await.unwrap();
        view.outgoing.unwrap().waiting.map(|waiting| waiting.why).filter(|why| why.contains("did not end"))
    });
    assert!(refused.contains("was put back to an older copy"), "{refused}");
    let still = net.continuity();
    assert_eq!((still.open, still.leaves, net.signed_size()), (false, leaves, signed));
    // The node is found again: everything goes on.
    net.start_node("a53");
    net.until_continuity(|report| report.open);
    net.wait_handed_over(&queued);
    assert_eq!(
        [net.inbox(A54), net.inbox(DN)],
        [vec![between.received()], vec![before.received(), after.received(), queued.received()]]
    );
}

#[test]
fn a_restored_agent_gets_again_what_was_handed_over_since_without_new_evidence() {
    let mut net = TestNet::start(NODES);
    let dir = net.folder("backup");
    let first = net.send(G22, &[DN], letter().about("trước"));
    net.wait_handed_over(&first);
    net.back_up_node("h37", &dir);
    let second = net.send(G22, &[DN, TC], letter().about("sau").with_part("sau.pdf", 150_000));
    net.wait_handed_over(&second);
    net.block_on(net.agent("h37").register(second.id, code(DN))).unwrap();
    let evidence = net.wait_proven("g22", second.id, 4);
    net.stop_node("h37");
    assert!(net.restore_node("h37", &dir).epoch > 1);
    net.start_node("h37");
    let agent = net.agent("h37");
    net.until(agent, async || {
        let shown = agent.show(second.id).await.ok()?;
        (shown.incoming.len() == 2).then_some(())
    });
    let mut at_dn = net.inbox(DN);
    at_dn.sort();
    let mut expected = vec![first.received(), second.received()];
    expected.sort();
    assert_eq!((at_dn, net.inbox(TC)), (expected, vec![second.received()]));
    let after = net.send(G22, &[DN], letter().about("tiếp"));
    net.wait_handed_over(&after);
    assert_eq!(net.wait_proven("g22", second.id, 4), evidence, "nothing was recorded anew");
    assert_eq!((net.alarms("h37"), net.alarms("g22")), (vec![], vec![]));
    assert_eq!(net.block_on(agent.status()).unwrap().gone, []);
}

#[test]
fn an_agent_restored_after_a_merge_gets_again_what_it_took_under_the_name_of_before_and_answers_under_it() {
    let mut net = TestNet::start(NODES);
    let dir = net.folder("backup");
    net.back_up_node("h37", &dir);
    let sent = net.send(G22, &[DN], letter().about("trước khi sáp nhập").with_part("sau.pdf", 150_000));
    net.wait_handed_over(&sent);
    let evidence = net.wait_proven("g22", sent.id, 2);
    net.stop_node("h37");
    let at = net.broker().exchange().now();
    net.authority.merge_agency(&code(DN), &code(TC), at).unwrap();
    net.publish();
    net.restore_node("h37", &dir);
    net.start_node("h37");
    let agent = net.agent("h37");
    net.until(agent, async || agent.show(sent.id).await.ok().filter(|shown| !shown.incoming.is_empty()));
    assert_eq!(net.inbox(DN), vec![sent.received()]);
    assert_eq!(net.wait_proven("g22", sent.id, 2), evidence, "nothing was recorded anew");
    // Whoever took it answers for it to the end.
    net.block_on(agent.register(sent.id, code(DN))).unwrap();
    net.wait_proven("g22", sent.id, 3);
    assert_eq!((net.alarms("h37"), net.alarms("g22")), (vec![], vec![]));
}

#[test]
fn an_agent_restored_together_with_the_broker_gets_again_what_the_broker_took_back_later() {
    let mut net = TestNet::start(NODES);
    let (broker_dir, node_dir) = (net.folder("broker-backup"), net.folder("node-backup"));
    let large = |about: &str| Letter { parts: vec![], ..letter() }.with_part("lon.pdf", 150_000).about(about);
    let before = net.send(G22, &[A53], large("trước"));
    net.wait_handed_over(&before);
    net.wait_proven("g22", before.id, 2);
    net.back_up_node("h37", &node_dir);
    net.back_up_broker(&broker_dir);
    let after = net.send(G22, &[DN], large("sau"));
    net.wait_handed_over(&after);
    net.wait_proven("g22", after.id, 2);
    for (node, _) in NODES {
        net.stop_node(node);
    }
    net.stop_broker();
    net.restore_broker(&broker_dir);
    net.restore_node("h37", &node_dir);
    net.start_broker();
    // It asks while the broker has nothing of what was lost.
    net.start_node("h37");
    net.wait_linked("h37");
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(!net.continuity().open);
    net.publish();
    net.start_node("g22");
    net.start_node("a53");
    net.until_continuity(|report| report.open);
    // The broker has its body still: it is that of the first.
    let agent = net.agent("h37");
    net.until(agent, async || {
        let shown = agent.show(after.id).await.ok()?;
        (!shown.incoming.is_empty()).then_some(())
    });
    assert_eq!(net.inbox(DN), [after.received()]);
}

#[test]
fn a_restored_agent_lists_what_the_exchange_no_longer_has() {
    let mut net = TestNet::start(NODES);
    let dir = net.folder("backup");
    net.back_up_node("h37", &dir);
    let sent = net.send(G22, &[DN], letter().with_part("lon.pdf", 150_000));
    net.wait_handed_over(&sent);
    net.stop_node("h37");
    net.stop_broker();
    net.keep_bodies(std::time::Duration::ZERO);
    net.start_broker();
    net.until_pruned(&sent);
    net.restore_node("h37", &dir);
    net.start_node("h37");
    let agent = net.agent("h37");
    let gone = net.until(agent, async || {
        let gone = agent.status().await.unwrap().gone;
        (!gone.is_empty()).then_some(gone)
    });
    let found: Vec<_> =
        gone.iter().map(|gone| (gone.dispatch, gone.recipient.as_str(), gone.sender.as_str())).collect();
    assert_eq!((found, net.inbox(DN)), (vec![(sent.id, DN, G22)], vec![]));
}

#[test]
fn a_backup_with_a_flipped_bit_is_refused_before_anything_is_touched() {
    let mut net = TestNet::start(NODES);
    let dir = net.folder("backup");
    let sent = net.send(G22, &[DN], letter().with_part("lon.pdf", 150_000));
    net.wait_handed_over(&sent);
    net.back_up_broker(&dir);
    net.stop_broker();
    let entry = docaxis_backup::open(&dir).unwrap().files.into_iter().find(|file| file.name.starts_with("journal/"));
    let name = entry.unwrap().sha256.to_string();
    let path = dir.join("objects").join(&name[..2]).join(&name);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[5000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let refused = net.try_restore_broker(&dir).unwrap_err().to_string();
    assert!(refused.contains("journal/") && refused.contains("Nothing was changed"), "{refused}");
    net.start_broker();
    assert!(net.continuity().open, "the data is what it was");
    net.wait_linked("g22");
    assert_eq!(net.inbox(DN), [sent.received()]);
}

/// The nodes that a closed broker waits for.
fn names(report: &Report) -> Vec<String> {
    report.waiting_for.iter().map(ToString::to_string).collect()
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_folder(&path, &target);
        } else {
            std::fs::copy(&path, &target).unwrap();
        }
    }
}
