//! Quotas as an officer meets them: what is over one waits at its own agent, says why, and goes by itself.

use docaxis_broker::quota::Limits;
use docaxis_node_agent::mailbox::OutState;

use crate::testnet::{TestNet, code, letter};

const G22: &str = "000.00.00.G22";
const DN: &str = "H37.DN.001";

#[test]
fn what_is_over_the_quota_says_why_it_waits_and_goes_when_recipients_have_fetched_the_rest() {
    let mut net = TestNet::prepare(&[("g22", &[G22]), ("h37", &[DN])]);
    let agency = Limits { waiting_mib: 1, ..Limits::default() };
    net.configure(|broker| broker.quota.agency = agency, |_| ());
    net.start_broker();
    net.start_node("g22");
    let send = |about: &str| net.send(G22, &[DN], letter().about(about).with_part("phu-luc.pdf", 700 << 10));
    let first = send("first");
    let agent = net.agent("g22");
    let state = async |id| agent.show(id).await.unwrap().outgoing.unwrap();
    net.until(agent, async || (state(first.id).await.state == OutState::Accepted).then_some(()));
    let second = send("second");
    // Whoever asks is told when it goes on, until that moment has come.
    let put_off = async || {
        let waiting = state(second.id).await.waiting?;
        (waiting.why.contains("over-quota") && waiting.next_attempt.is_some()).then_some(waiting)
    };
    let waiting = net.until(agent, put_off);
    assert!(waiting.why.contains("sent by agency 000.00.00.G22 wait for recipients"), "{}", waiting.why);
    assert_eq!(net.block_on(state(second.id)).state, OutState::Queued);
    let waits = || net.broker().exchange().store.unfinished_bytes(&code(G22)).unwrap();
    let waited = waits();
    assert!(waited > 700 << 10, "{waited}");
    net.stop_broker();
    net.start_broker();
    assert_eq!(net.broker().exchange().store.unfinished_bytes(&code(G22)).unwrap(), waited, "also after a restart");
    net.start_node("h37");
    net.wait_handed_over(&first);
    net.wait_handed_over(&second);
    assert_eq!(net.broker().exchange().store.unfinished_bytes(&code(G22)).unwrap(), 0);
}
