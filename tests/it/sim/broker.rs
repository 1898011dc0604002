//! The broker as a host of the simulation, and what must hold of its store whenever it starts and while it runs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use docaxis_broker::config::ConsoleListen;
use docaxis_broker::dispatch::Exchange;
use docaxis_broker::store::{DeliveryState, Seq, StoredEvidence};
use docaxis_broker::{Broker, BrokerConfig, Simulated};
use docaxis_node_agent::outbox::HOLDS_FOR;
use docaxis_protocol::space::SpaceConfig;
use docaxis_protocol::tlog::checkpoint::Checkpoint;
use docaxis_protocol::{AgencyCode, DispatchId, Event, Evidence};

use super::ledger::{Delivery, Letter, REJECTED};
use super::network::Ours;
use super::world::{BROKER, World};

/// How often the running broker is looked at.
const LOOK: Duration = Duration::from_millis(100);
/// Small, so that the journal goes through several segments.
const SEGMENT_BYTES: u64 = 1 << 20;

fn config(world: &World) -> BrokerConfig {
    let folder = world.folder.join(BROKER);
    let mut config = BrokerConfig::new(folder.join("data"), folder);
    config.broker.identity = world.folder.join(BROKER);
    config.broker.listen = "0.0.0.0:4433".parse().unwrap();
    config.console.listen = ConsoleListen::Off;
    config.space = SpaceConfig { enough_free_gib: 0, ballast_mib: 0, ..SpaceConfig::default() };
    config
}

/// Runs until the host is ended.
pub async fn run(world: Arc<World>) -> turmoil::Result {
    let config = config(&world);
    std::fs::create_dir_all(&config.broker.data)?;
    let host = world.hosts[BROKER].clone();
    let simulated = {
        let side = world.broker();
        Simulated {
            disk: Arc::new(side.disk.clone()),
            index: side.index.clone(),
            network: Arc::new(Ours(world.network.clone())),
            disk_time: host.disk_time,
            env: host,
            segment_bytes: SEGMENT_BYTES,
        }
    };
    let broker = match Broker::simulated(&config, &simulated) {
        Ok(broker) => broker,
        Err(error) => {
            world.event(&format!("the broker does not start: {error}"));
            // On a full disk a start may fail; it is tried again until there is room.
            if !world.broker().full {
                world.violation(format!("the broker does not start: {error}"));
            }
            world.broker().ended = true;
            return std::future::pending().await;
        }
    };
    let exchange = broker.exchange().clone();
    world.event(&format!("the broker serves, {} leaves", exchange.store.counts().leaves));
    check_all(&world, &exchange);
    world.broker().exchange = Some(exchange.clone());
    if let Err(error) = exchange.publish(world.identities.notices()).await {
        world.event(&format!("the directory is not published: {error}"));
    }
    loop {
        tokio::time::sleep(LOOK).await;
        note_checkpoint(&world, &exchange);
        if let Some(why) = broker.poisoned() {
            world.event(&format!("the broker cannot go on: {why}"));
            world.broker().ended = true;
            return std::future::pending().await;
        }
    }
}

/// A checkpoint may have left the broker as soon as it is there.
pub fn note_checkpoint(world: &World, exchange: &Exchange) {
    let (size, note) = exchange.log.checkpoint();
    let Ok(checkpoint) = Checkpoint::parse(note.split("\n\n").next().map(|text| format!("{text}\n")).unwrap().as_str())
    else {
        return world.violation(format!("the checkpoint over {size} leaves does not read"));
    };
    let known = world.ledger().checkpoints.insert(size, checkpoint.root);
    if known.is_some_and(|known| known != checkpoint.root) {
        world.violation(format!("two checkpoints over {size} leaves have different roots"));
    }
}

/// What must hold of the store whenever it is opened: whatever anybody was told is there.
pub fn check_all(world: &World, exchange: &Exchange) {
    let store = &exchange.store;
    let entries = store.log_entries(0, usize::MAX).unwrap_or_default();
    let (leaves, checkpoints, visible) = {
        let ledger = world.ledger();
        (ledger.leaves.clone(), ledger.checkpoints.clone(), ledger.visible.clone())
    };
    for (leaf, entry) in leaves {
        let found = usize::try_from(leaf).ok().and_then(|at| entries.get(at));
        if found != Some(&entry) {
            world.violation(format!("leaf {leaf} was acknowledged and is lost: {entry} expected, {found:?} found"));
        }
    }
    for (size, root) in checkpoints.into_iter().filter(|(size, _)| *size > 0) {
        match exchange.log.root_at(size) {
            Ok(found) if found == root => {}
            other => world.violation(format!("the log does not lead to its checkpoint over {size} leaves: {other:?}")),
        }
    }
    for delivery in visible {
        check_recorded(world, exchange, &delivery);
    }
}

/// What an officer sees was recorded before.
pub fn check_recorded(world: &World, exchange: &Exchange, (id, recipient): &Delivery) {
    let states = exchange.store.find(*id).unwrap_or_default().into_iter();
    let states: Vec<_> =
        states.filter_map(|seq| exchange.store.delivery(seq, recipient).ok()?).map(|delivery| delivery.state).collect();
    let recorded = |state: &DeliveryState| {
        matches!(state, DeliveryState::HandedOver | DeliveryState::Registered | DeliveryState::Refused)
    };
    if !states.iter().any(recorded) {
        world.violation(format!("{id} is visible at {recipient} and not recorded: {states:?}"));
    }
}

/// What one agency sent another in one priority was accepted and handed over in the order in which it was queued. Left out is
/// what was rejected, failed or was withdrawn, what was tried so often in vain that it is passed by, and of the handovers what was
/// appointed for later. No letter here loses a body at the broker.
fn check_order(world: &World, exchange: &Exchange) {
    let queued: Vec<DispatchId> = world.ledger().letters.iter().filter_map(|letter| letter.id).collect();
    for id in queued {
        if !world.ledger().places.contains_key(&id) {
            world.violation(format!("where {id} stood in its outbox is not known: its order was not checked"));
        }
    }
    let pairs = world.ledger().in_order();
    // What was tried in vain so often is passed by.
    let passed_by = |id: &DispatchId| world.ledger().tries.get(id).is_some_and(|tries| *tries >= HOLDS_FOR);
    for ((from, to, priority), ids) in pairs {
        let (mut accepted, mut handed_over) = (Vec::new(), Vec::new());
        for id in ids.iter().filter(|id| !passed_by(id)) {
            let found = exchange.store.find(*id).expect("the store answers");
            for seq in found {
                // A rejection has no delivery.
                if exchange.store.delivery(seq, &to).expect("the store answers").is_none() {
                    continue;
                }
                accepted.push(seq.0);
                if world.ledger().letter(*id).is_some_and(|letter| letter.appointed.is_some()) {
                    continue;
                }
                let first = exchange.store.chain(seq, &to).expect("the store answers").into_iter().next();
                handed_over.extend(first.filter(|piece| piece.event == Event::ContentHandover).map(|piece| piece.leaf));
            }
        }
        for (what, leaves) in [("accepted", accepted), ("handed over", handed_over)] {
            if !leaves.is_sorted() {
                world.violation(format!(
                    "what {from} sent {to} with priority {priority} was {what} at the leaves {leaves:?}: queued were {ids:?}"
                ));
            }
        }
    }
}

/// It was not handed over before its time, by the broker's clock. That may have gone back since the offer.
fn check_appointed(world: &World, (letter, to): (&Letter, &AgencyCode), at: Duration, piece: &StoredEvidence) {
    let time = Evidence::parse(&piece.evidence.bytes).expect("the broker's evidence reads").time;
    let back = Duration::from_millis(u64::try_from(world.broker_back_ms.load(Ordering::Relaxed)).unwrap_or(0));
    let due = world.identities.begin().plus(at);
    if time.plus(back) < due {
        let number = letter.number;
        world.violation(format!("letter {number} to {to} was handed over at {time}, and was appointed for {due}"));
    }
}

/// What must hold at the very end.
pub fn check_end(world: &World, exchange: &Exchange) {
    check_all(world, exchange);
    check_order(world, exchange);
    let letters = world.ledger().letters.clone();
    for letter in letters {
        let Some(id) = letter.id else { continue };
        let found = exchange.store.find(id).expect("the store answers");
        let evidence = |seq: &Seq| exchange.store.evidence(*seq).expect("the store answers");
        // One that expired on its way was rejected, once.
        let seq = match found[..] {
            [seq] => seq,
            _ => {
                let events = |seq| evidence(seq).iter().map(|piece| (piece.leaf, piece.event)).collect::<Vec<_>>();
                let events: Vec<_> = found.iter().map(events).collect();
                world.violation(format!("letter {}, {id}, is at the broker more than once: {events:?}", letter.number));
                continue;
            }
        };
        for recipient in &letter.to {
            let delivery = (id, recipient.clone());
            let seen = world.ledger().visible.contains(&delivery);
            // Its rejection stands alone, and it has no delivery.
            if world.ledger().outcomes.get(&delivery).is_some_and(|outcome| outcome == REJECTED) && !seen {
                continue;
            }
            let chain = exchange.store.chain(seq, recipient).unwrap_or_default();
            let terminal = |event: &Event| matches!(event, Event::ContentHandover | Event::ContentHandoverFailure);
            let handovers = chain.iter().filter(|piece| piece.event == Event::ContentHandover).count();
            if handovers > 1 || !chain.first().is_some_and(|piece| terminal(&piece.event)) {
                let events: Vec<_> = chain.iter().map(|piece| piece.event).collect();
                world.violation(format!("letter {}, {id}, to {recipient} has the evidence {events:?}", letter.number));
            }
            let handed_over = chain.first().is_some_and(|piece| piece.event == Event::ContentHandover);
            if let Some(at) = letter.appointed
                && let Some(piece) = chain.first().filter(|_| handed_over)
            {
                check_appointed(world, (&letter, recipient), at, piece);
            }
            if seen != handed_over {
                world.violation(format!(
                    "letter {}, {id}, to {recipient}: seen {seen}, handed over {handed_over}",
                    letter.number
                ));
            }
        }
    }
}
