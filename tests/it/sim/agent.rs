//! An agent as a host of the simulation, with the officers in front of it: they bring letters, look at what came, and report.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use docaxis_node_agent::mailbox::{DeliveryState, InState, OutState};
use docaxis_node_agent::query::{Box as Which, Summary};
use docaxis_node_agent::{Agent, AgentConfig, AgentHandle, Draft, DraftPart, Identity, Refused, Simulated, Source};
use docaxis_protocol::bundle::{self, Question};
use docaxis_protocol::space::{Amount, SpaceConfig, Usage};
use docaxis_protocol::{AgencyCode, Digest, DispatchId, Kind, PartRole, ReasonCode};
use serde_json::json;

use super::broker::check_recorded;
use super::identities;
use super::ledger::{FAILED, HANDED_OVER, Letter, REJECTED, WITHDRAWN};
use super::network::Ours;
use super::random::Random;
use super::world::{BROKER, Host, TlsClock, World};

/// How often officers come by.
const LOOK: Duration = Duration::from_millis(50);
/// What they sent, they look at less often,
const OUTBOX_ROUNDS: u64 = 8;
/// and still less if nothing seems to have changed.
const QUIET_ROUNDS: u64 = 16 * OUTBOX_ROUNDS;

fn config(world: &World, host: &Host) -> AgentConfig {
    let folder = world.folder.join(host.name);
    let mut config = AgentConfig::at(folder.join("data"), folder);
    config.agent.broker = Some(identities::BROKER.into());
    config.link.idle_timeout = Duration::from_secs(10);
    config.link.keep_alive = Duration::from_secs(3);
    config.link.connect_timeout = Duration::from_secs(3);
    config.link.answer_timeout = Duration::from_secs(15);
    config.link.retry_max = Duration::from_secs(2);
    config.outbox.retry_max = Duration::from_secs(4);
    config.outbox.expires_after = Duration::from_secs(24 * 3600);
    config.space = SpaceConfig { enough_free_gib: 0, ballast_mib: 0, ..SpaceConfig::default() };
    config
}

fn usage(host: &Host) -> Usage {
    let full = host.full.load(Ordering::Relaxed);
    let amount = |unit: u64| {
        let whole = 1000 * unit;
        if full { Amount { used: whole - unit, free: unit } } else { Amount { used: unit, free: whole - unit } }
    };
    Usage { bytes: amount(1 << 30), inodes: amount(1 << 20) }
}

/// Runs until the host is ended.
pub async fn run(world: Arc<World>, name: &'static str) -> turmoil::Result {
    let host = world.hosts[name].clone();
    let config = config(&world, &host);
    let identity = Identity::load_with(&config.agent.identity, Arc::new(TlsClock(host.clone())))?;
    let disk = host.clone();
    let env = host.agent_env().simulated(Simulated {
        network: Arc::new(Ours(world.network.clone())),
        disk_time: host.disk_time,
        usage: Arc::new(move || usage(&disk)),
    });
    let agent = Agent::simulated(config, identity, env).await?;
    world.event(&format!("{name} runs"));
    let office = Office { agent, host, world };
    let mut changes = office.agent.changes();
    changes.mark_changed();
    let mut outbox = changes.clone();
    for round in 0u64.. {
        tokio::time::sleep(LOOK).await;
        office.send_what_is_due().await;
        office.recall_what_is_due().await;
        if changes.has_changed()? {
            changes.mark_unchanged();
            office.look_at_inbox().await;
        }
        let changed = round.is_multiple_of(OUTBOX_ROUNDS) && outbox.has_changed()?;
        if changed || round.is_multiple_of(QUIET_ROUNDS) {
            outbox.mark_unchanged();
            office.look_at_outbox().await;
        }
        if let Some(why) = office.agent.poisoned() {
            office.world.violation(format!("{name} cannot go on: {why}"));
            return std::future::pending().await;
        }
    }
    Ok(())
}

/// The officers of one node.
struct Office {
    agent: AgentHandle,
    host: Arc<Host>,
    world: Arc<World>,
}

impl Office {
    async fn send_what_is_due(&self) {
        let now = turmoil::sim_elapsed().unwrap_or_default();
        let due = |letter: &&Letter| letter.node == self.host.name && letter.at <= now && letter.id.is_none();
        let due: Vec<Letter> = self.world.ledger().letters.iter().filter(due).cloned().collect();
        for letter in due {
            match self.agent.compose(self.draft(&letter)).await {
                Ok(id) => {
                    self.world.event(&format!("{} queues letter {} as {id}", self.host.name, letter.number));
                    self.world.ledger().letters[letter.number].id = Some(id);
                }
                // The directory has not come yet, or there is no room: the officer tries again.
                Err(Refused::Rule(reason))
                    if [ReasonCode::UnknownRecipient, ReasonCode::DiskFull].contains(&reason.known()) => {}
                Err(refused) => {
                    self.world.violation(format!("letter {} is not queued: {refused}", letter.number));
                }
            }
        }
    }

    async fn recall_what_is_due(&self) {
        let now = turmoil::sim_elapsed().unwrap_or_default();
        let due = |letter: &&Letter| {
            let at = letter.recalled_after.map(|after| letter.at + after);
            letter.node == self.host.name && letter.id.is_some() && !letter.recalled && at.is_some_and(|at| at <= now)
        };
        let due: Vec<Letter> = self.world.ledger().letters.iter().filter(due).cloned().collect();
        for letter in due {
            let Some(id) = letter.id else { continue };
            match self.agent.recall(id, vec![], "nhầm phụ lục").await {
                Ok(recall) => self.world.event(&format!("{} recalls {id} with {recall}", self.host.name)),
                // Rejected, or expired everywhere: nobody has it or will get it.
                Err(Refused::Rule(reason)) if reason.known() == ReasonCode::NotFound => {}
                Err(Refused::Rule(reason)) if reason.known() == ReasonCode::DiskFull => continue,
                Err(error) => self.world.violation(format!("letter {} is not recalled: {error}", letter.number)),
            }
            self.world.ledger().letters[letter.number].recalled = true;
        }
    }

    fn draft(&self, letter: &Letter) -> Draft {
        let mut draft = Draft::new(letter.from.clone(), letter.to.clone());
        draft.priority = letter.priority;
        draft.document = json!({ "Subject": format!("letter {}", letter.number), "secret": false })
            .as_object()
            .cloned()
            .unwrap_or_default();
        draft.expires = letter.expires_after.map(|after| self.host.now().plus(after));
        draft.not_before = letter.appointed.map(|at| self.world.identities.begin().plus(at));
        draft.idempotency_key = Some(format!("letter {}", letter.number));
        let part = |(n, bytes): (usize, &Vec<u8>)| DraftPart {
            name: format!("part-{n}.pdf"),
            media_type: "application/pdf".into(),
            role: PartRole::Document,
            source: Source::Bytes(bytes.clone()),
        };
        draft.parts = letter.parts.iter().enumerate().map(part).collect();
        draft
    }

    async fn look_at_inbox(&self) {
        let mut seen = BTreeMap::new();
        let mut after = None;
        loop {
            let Ok(page) = self.agent.list(Which::In, None, after).await else { return };
            after = page.last().map(|line| line.cursor);
            // A recall stands beside what it recalls, and is not answered here. Of what was taken back before it was recorded, the
            // officer is told that, and no more.
            let told = |line: &&Summary| line.kind == Kind::New && line.state != InState::Destroyed.as_str();
            for line in page.iter().filter(told) {
                for recipient in &line.recipients {
                    *seen.entry((line.id, recipient.clone())).or_insert(0) += 1;
                }
            }
            if after.is_none() {
                break;
            }
        }
        for ((id, recipient), times) in seen {
            if times > 1 {
                self.world.violation(format!("{id} is in the inbox of {recipient} {times} times"));
            }
            let delivery = (id, recipient.clone());
            if self.world.ledger().visible.insert(delivery.clone()) {
                self.world.event(&format!("{recipient} sees {id}"));
                let exchange = self.world.broker().exchange.clone();
                // If it is down, its store is asked when it starts.
                if let Some(exchange) = exchange {
                    check_recorded(&self.world, &exchange, &delivery);
                }
                self.compare(id, &recipient).await;
            }
            if !self.world.ledger().reported.contains(&delivery) {
                self.report(id, recipient).await;
            }
        }
    }

    /// What came is what was sent, to whom it was sent.
    async fn compare(&self, id: DispatchId, recipient: &AgencyCode) {
        let Some(letter) = self.world.ledger().letter(id).cloned() else {
            return self.world.violation(format!("{recipient} sees {id}, which nobody sent"));
        };
        if !letter.to.contains(recipient) {
            self.world.violation(format!("letter {} came to {recipient}", letter.number));
        }
        for (n, expected) in letter.parts.iter().enumerate() {
            let found = match self.agent.part(id, n).await {
                Ok(part) => part.reader.read_all().map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            };
            if found.as_ref() != Ok(expected) {
                let found = found.map(|bytes| Digest::of(&bytes));
                self.world.violation(format!("letter {}, part {n}, reads {found:?} at {recipient}", letter.number));
            }
        }
    }

    /// Some are registered, some are refused, some are left.
    async fn report(&self, id: DispatchId, recipient: AgencyCode) {
        let mut random = Random::of(self.world.seed, &format!("report {id} {recipient}"));
        let done = match random.between(0, 3) {
            0 => self.agent.register(id, recipient.clone()).await,
            1 => self.agent.refuse(id, recipient.clone(), ReasonCode::Other.because("trả lại")).await,
            _ => Ok(()),
        };
        match done {
            Ok(()) => drop(self.world.ledger().reported.insert((id, recipient))),
            Err(Refused::Rule(reason)) if reason.known() == ReasonCode::DiskFull => {}
            // Reported before a crash, of which the officer heard nothing.
            Err(Refused::Rule(_)) => drop(self.world.ledger().reported.insert((id, recipient))),
            Err(error) => self.world.violation(format!("{recipient} cannot report on {id}: {error}")),
        }
    }

    async fn look_at_outbox(&self) {
        let mine = |letter: &&Letter| letter.node == self.host.name && letter.id.is_some() && !letter.done;
        let mine: Vec<Letter> = self.world.ledger().letters.iter().filter(mine).cloned().collect();
        let placed = |letter: &Letter| letter.id.is_some_and(|id| self.world.ledger().places.contains_key(&id));
        if !mine.iter().all(placed) {
            self.note_places().await;
        }
        for letter in mine {
            let Some(id) = letter.id else { continue };
            let view = match self.agent.show(id).await {
                Ok(view) => view,
                Err(error) => {
                    self.world.violation(format!("letter {}, {id}, was queued and is lost: {error}", letter.number));
                    continue;
                }
            };
            let Some(out) = view.outgoing else {
                self.world.violation(format!("letter {}, {id}, is not among what was sent", letter.number));
                continue;
            };
            self.note_evidence(id).await;
            let tries = out.attempts;
            self.world.ledger().tries.entry(id).and_modify(|most| *most = tries.max(*most)).or_insert(tries);
            if out.state == OutState::Rejected {
                let reason = out.reason.map(|reason| reason.known());
                if letter.expires_after.is_none() || reason != Some(ReasonCode::Expired) {
                    self.world.violation(format!("letter {} was rejected: {reason:?}", letter.number));
                }
                letter.to.iter().for_each(|recipient| self.note_outcome(id, recipient, REJECTED));
                self.world.ledger().letters[letter.number].done = true;
                continue;
            }
            let mut ended = 0;
            for delivery in &out.deliveries {
                if delivery.state != DeliveryState::Waiting {
                    ended += 1;
                    let failed = delivery.state == DeliveryState::Failed;
                    if failed && letter.expires_after.is_none() {
                        let reason = delivery.reason.as_ref().map(|reason| reason.known());
                        let (number, recipient) = (letter.number, &delivery.recipient);
                        self.world.violation(format!("letter {number} to {recipient} failed: {reason:?}"));
                    }
                    if delivery.state == DeliveryState::Withdrawn && letter.recalled_after.is_none() {
                        let (number, recipient) = (letter.number, &delivery.recipient);
                        self.world.violation(format!("letter {number} to {recipient} was withdrawn by nobody"));
                    }
                    let outcome = match delivery.state {
                        DeliveryState::Failed => FAILED,
                        DeliveryState::Withdrawn => WITHDRAWN,
                        _ => HANDED_OVER,
                    };
                    self.note_outcome(id, &delivery.recipient, outcome);
                }
            }
            let calm = self.world.calm.load(Ordering::Relaxed);
            let taken_back = letter.recalled || letter.recalled_after.is_none();
            if ended == letter.to.len() && taken_back && calm && self.is_proven(&letter, id).await {
                self.world.ledger().letters[letter.number].done = true;
            }
        }
    }

    /// In which order they were queued, as the mailbox has it: an officer may not have heard of the one before a crash.
    async fn note_places(&self) {
        let mut after = None;
        loop {
            let Ok(page) = self.agent.list(Which::Out, None, after).await else { return };
            after = page.last().map(|line| line.cursor);
            self.world.ledger().places.extend(page.iter().map(|line| (line.id, line.cursor)));
            if after.is_none() {
                return;
            }
        }
    }

    /// An outcome never changes into another.
    fn note_outcome(&self, id: DispatchId, recipient: &AgencyCode, outcome: &str) {
        let before = self.world.ledger().outcomes.insert((id, recipient.clone()), outcome.to_owned());
        match before {
            None => self.world.event(&format!("the sender of {id} hears about {recipient}: {outcome}")),
            Some(before) if before != outcome => {
                self.world.violation(format!("{id} to {recipient} was {before} and is {outcome}"));
            }
            Some(_) => {}
        }
    }

    /// The sender holds this evidence now: it must never be lost.
    async fn note_evidence(&self, id: DispatchId) {
        for row in self.agent.evidence(id).await.unwrap_or_default() {
            let entry = row.signed.log_entry();
            let before = self.world.ledger().leaves.insert(row.leaf, entry);
            if before.is_some_and(|before| before != entry) {
                self.world.violation(format!("leaf {} of {id} is two pieces of evidence", row.leaf));
            }
            let exchange = self.world.broker().exchange.clone();
            if let (None, Some(exchange)) = (before, exchange)
                && exchange.store.log_entries(row.leaf, 1).ok().as_deref() != Some(&[entry])
            {
                self.world.violation(format!("leaf {} of {id} is not the exchange's", row.leaf));
            }
        }
    }

    /// Whether the dispatch's bundle has all of its proofs; then it must verify.
    async fn is_proven(&self, letter: &Letter, id: DispatchId) -> bool {
        let Ok(rows) = self.agent.evidence(id).await else { return false };
        if rows.iter().any(|row| row.proof.is_none()) {
            return false;
        }
        let zip = match self.agent.bundle(id).await.and_then(|bundle| bundle.zip(None)) {
            Ok(zip) => zip,
            Err(_) => return false,
        };
        let root = self.world.identities.root();
        let log = self.world.folder.join(BROKER).join("data/log");
        let read = |path: &str| std::fs::read(log.join(path));
        let parts = letter.parts.iter().map(|bytes| (Digest::of(bytes), bytes.len() as u64)).collect();
        let question = Question { root: &root, log: Some(&read), parts: Some(parts), ..Question::default() };
        let verdict = bundle::verify(&zip, &question);
        if !verdict.holds() {
            let failures: Vec<_> = verdict.failures().map(|(name, failure)| format!("{name}: {failure}")).collect();
            self.world.violation(format!("the bundle of letter {} does not verify: {failures:?}", letter.number));
        }
        true
    }
}
