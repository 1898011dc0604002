//! What processes of the program hold in memory: little when idle, and not more for larger bodies.

use std::sync::Arc;

use docaxis_certs::NodeIdentity;
use docaxis_protocol::frame::Intake;

use crate::load::{Draft, every_inbox_holds_exactly_what_was_sent, wait_handed_over, wait_linked};
use crate::raw::{Letter, RawNode};
use crate::resident::{forget_the_peak, mib};
use crate::testnet::{BROKER, HANG, Processes};

const NODES: &[(&str, &[&str])] = &[("g22", &["000.00.00.G22"]), ("h37", &["H37.DN.001"])];
const BODIES: u8 = 2;
const BODY_MIB: usize = 104;
/// Two pieces for each transfer, and what QUIC may hold unread or unsent for each of the two links.
const MOST_MIB: f64 = 40.0;
/// Of each agent: what QUIC may hold unread or unsent for its link, and pieces between the link, the disk and a reader.
const MOST_AGENT_MIB: f64 = 30.0;
/// Of memory that is not the program's own text, in the debug build as well.
const IDLE_AGENT_MIB: f64 = 8.0;

async fn link(processes: &Processes, node: &str) -> Arc<RawNode> {
    let identity = NodeIdentity::load(&processes.net.node_data(node).with_file_name("identity")).unwrap();
    Arc::new(RawNode::dial(Arc::new(identity), processes.net.broker_config.broker.listen).await)
}

#[test]
fn complaint_06_bodies_over_100_mb_pass_through_the_broker_without_being_held() {
    let mut processes = Processes::prepare(NODES, |_| {});
    processes.launch(BROKER);
    let pid = processes.pid(BROKER).to_string();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (before, peak) = runtime.block_on(async {
        let (g22, h37) = (link(&processes, "g22").await, link(&processes, "h37").await);
        let before = mib(&pid, "VmRSS");
        forget_the_peak(&pid);
        let mut under_way = tokio::task::JoinSet::new();
        for number in 0..BODIES {
            let (g22, h37) = (g22.clone(), h37.clone());
            under_way.spawn(async move {
                let body = vec![number; BODY_MIB << 20];
                let letter = Letter::new(("000.00.00.G22", "g22"), &["H37.DN.001"], &[&body]);
                let sealed = letter.but(|envelope| envelope.exchange = g22.welcome.origin.clone()).seal(&g22);
                assert_eq!(g22.submit(&sealed).await.done().intake, Intake::Accepted);
                let (offered, _) = h37.take().await;
                assert!(offered.bytes()[0].len() == BODY_MIB << 20);
            });
        }
        while let Some(passed) = under_way.join_next().await {
            passed.unwrap();
        }
        (before, mib(&pid, "VmHWM"))
    });
    assert!(
        peak - before < MOST_MIB,
        "{before:.0} MiB resident before {BODIES} bodies of {BODY_MIB} MiB, {peak:.0} MiB at the most while they passed"
    );
}

#[test]
fn complaint_06_a_body_over_100_mb_passes_through_both_agents_without_being_held() {
    let processes = Processes::start(NODES);
    NODES.iter().for_each(|(node, _)| wait_linked(&processes, node));
    let folder = tempfile::tempdir().unwrap();
    let (g22, h37) = (&NODES[0], &NODES[1]);
    let draft = Draft::new(folder.path(), &processes.socket(g22.0), g22.1[0], h37.1, "lon", &[BODY_MIB << 20]);
    let pids = [g22.0, h37.0].map(|node| processes.pid(node).to_string());
    let before = pids.each_ref().map(|pid| mib(pid, "VmRSS"));
    pids.iter().for_each(|pid| forget_the_peak(pid));
    let sent = draft.submit();
    wait_handed_over(&processes, &sent, HANG);
    // The recipient's officers read it there.
    every_inbox_holds_exactly_what_was_sent(&processes, NODES, &[sent]);
    for ((node, _), (pid, before)) in NODES.iter().zip(pids.iter().zip(before)) {
        let peak = mib(pid, "VmHWM");
        assert!(
            peak - before < MOST_AGENT_MIB,
            "{node}: {before:.0} MiB resident before a body of {BODY_MIB} MiB, {peak:.0} MiB at the most while it passed"
        );
    }
}

#[test]
fn an_idle_agent_takes_little_memory() {
    let processes = Processes::start(&NODES[..1]);
    wait_linked(&processes, "g22");
    let anonymous = mib(&processes.pid("g22").to_string(), "RssAnon");
    assert!(anonymous < IDLE_AGENT_MIB, "{anonymous:.1} MiB");
}
