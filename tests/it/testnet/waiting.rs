//! Waiting for what must come, on the agents' own signals of change.

use docaxis_node_agent::mailbox::{DeliveryState, EvidenceRow};
use docaxis_node_agent::query::{Until, Waited};
use docaxis_node_agent::uplink::LinkState;
use docaxis_node_agent::{AgentHandle, DispatchView};
use docaxis_protocol::DispatchId;

use super::{HANG, Sent, TestNet, code};

impl TestNet {
    pub fn wait_linked(&self, name: &str) {
        let mut link = self.agent(name).link();
        let linked = link.wait_for(|state| matches!(state, LinkState::Up { .. }));
        self.block_on(linked).expect("the agent runs");
    }

    /// Until the exchange has accepted or rejected it.
    pub fn wait_settled(&self, sent: &Sent) -> DispatchView {
        self.wait(sent, Until::Settled)
    }

    /// Until the sender's node has the evidence of every handover, and every recipient sees the dispatch.
    pub fn wait_handed_over(&self, sent: &Sent) -> DispatchView {
        let view = self.wait(sent, Until::Delivered(DeliveryState::HandedOver));
        // The broker tells both sides after its commit; either may hear it first.
        for recipient in &sent.to {
            let agent = self.agent_of(recipient);
            self.until(agent, async || {
                let shown = agent.show(sent.id).await.ok()?;
                shown.incoming.iter().any(|row| row.recipient == code(recipient)).then_some(())
            });
        }
        view
    }

    fn wait(&self, sent: &Sent, until: Until) -> DispatchView {
        match self.block_on(self.agent_of(&sent.from).wait(sent.id, until, HANG)).unwrap() {
            Waited::Reached(view) => view,
            Waited::Never(view) | Waited::TimedOut(view) => panic!("waiting for {until:?}, found {view:#?}"),
        }
    }

    /// Until this many pieces of evidence about a dispatch are at a node, each with its proof.
    pub fn wait_proven(&self, node: &str, id: DispatchId, count: usize) -> Vec<EvidenceRow> {
        let agent = self.agent(node);
        self.until(agent, async || {
            let rows = agent.evidence(id).await.unwrap();
            (rows.len() == count && rows.iter().all(|row| row.proof.is_some())).then_some(rows)
        })
    }

    /// Asks again after each change at an agent until there is an answer.
    pub fn until<T>(&self, agent: &AgentHandle, ask: impl AsyncFn() -> Option<T>) -> T {
        let mut changes = agent.changes();
        self.block_on(async {
            loop {
                changes.mark_unchanged();
                if let Some(found) = ask().await {
                    return found;
                }
                changes.changed().await.expect("the agent runs");
            }
        })
    }
}
