//! One seed, from the first letter to the last check.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use docaxis_broker::disk::sim::{Cut, Failure};
use docaxis_protocol::{AgencyCode, Digest};

use super::faults::{self, Fault, LATENCY};
use super::identities::NODES;
use super::ledger::Ledger;
use super::random::Random;
use super::world::{BROKER, World};
use super::{agent, broker};

/// Letters and faults come within this time.
const FAULTS: Duration = Duration::from_secs(40);
/// After it everything must have come to its end.
const END: Duration = Duration::from_secs(400);
const TICK: Duration = Duration::from_millis(5);
const LETTERS: usize = 24;

/// What became of a seed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Over every event and datagram.
    pub digest: Digest,
    pub violations: Vec<String>,
    /// When the last letter was done, in simulated time.
    pub ended: Duration,
    pub datagrams: u64,
    pub restarts: usize,
}

struct Run<'a> {
    sim: turmoil::Sim<'a>,
    world: Arc<World>,
    random: Random,
    /// Hosts that are down, and when they come up again.
    down: Vec<(&'static str, Duration)>,
    /// The broker's power goes with this operation of its disk.
    power: Option<(u64, Cut)>,
    restarts: usize,
}

/// Runs a seed. `loud` prints every event.
pub fn run(seed: u64, loud: bool) -> Outcome {
    let shared_memory = Path::new("/dev/shm");
    let folder = if shared_memory.is_dir() { tempfile::tempdir_in(shared_memory) } else { tempfile::tempdir() };
    let folder = folder.unwrap();
    let mut random = Random::of(seed, "run");
    let slow = *random.pick(&["", "", "", BROKER, "g22", "h37", "a53"]);
    let disk_time = |name: &str| Duration::from_millis(if name == slow { 150 } else { 1 });
    let world = World::new(seed, folder.path(), Ledger::of(seed, LETTERS, FAULTS), disk_time, loud);
    let mut builder = turmoil::Builder::new();
    builder
        .rng_seed(seed)
        .epoch(SystemTime::UNIX_EPOCH)
        .simulation_duration(END * 2)
        .tick_duration(TICK)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(LATENCY)
        .udp_capacity(1 << 14);
    let mut sim = builder.build();
    let shared = world.clone();
    sim.host(BROKER, move || broker::run(shared.clone()));
    for (name, _) in NODES {
        let shared = world.clone();
        sim.host(name, move || agent::run(shared.clone(), name));
    }
    let mut run = Run { sim, world, random, down: vec![], power: None, restarts: 0 };
    run.drive(seed);
    run.finish()
}

impl Run<'_> {
    fn drive(&mut self, seed: u64) {
        let mut faults = faults::of(seed, FAULTS).into_iter().peekable();
        while self.sim.elapsed() < END {
            while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= self.sim.elapsed()) {
                self.bring(fault);
            }
            self.look_at_broker();
            self.start_again();
            self.world.calm.store(faults.peek().is_none() && self.down.is_empty(), Ordering::Relaxed);
            if let Err(error) = self.sim.step() {
                self.world.violation(format!("a host ended: {error}"));
                return;
            }
            if faults.peek().is_none() && self.world.ledger().all_done() {
                return;
            }
            // What is wrong once is looked at as it is.
            if !self.world.ledger().violations.is_empty() {
                return;
            }
        }
    }

    fn bring(&mut self, fault: Fault) {
        let at = self.sim.elapsed();
        if let Fault::Kill(who) = fault
            && self.is_down(who)
        {
            return;
        }
        self.world.event(&format!("{} {fault:?}", at.as_millis()));
        let host = |name: &str| self.world.hosts[name].clone();
        match fault {
            Fault::Loss(of_thousand) => self.world.network.loss.store(of_thousand, Ordering::Relaxed),
            Fault::Latency(slowest) => self.sim.set_max_message_latency(slowest),
            Fault::Cut(node) => self.sim.partition(BROKER, node),
            Fault::Mend(node) => self.sim.repair(BROKER, node),
            Fault::Kill(node) => self.end(node),
            Fault::KillBroker => self.end_broker(Cut::Keep),
            Fault::Power { operation, cut } => {
                let broker = self.world.broker();
                if broker.exchange.is_some() && self.power.is_none() {
                    self.power = Some((broker.disk.operations() + operation, cut));
                    broker.disk.fail_at(operation, Failure::PowerLoss);
                }
            }
            Fault::Clock(who, off_ms) => {
                if who == BROKER {
                    let most = self.world.broker_off_ms.fetch_max(off_ms, Ordering::Relaxed);
                    self.world.broker_back_ms.fetch_max(most - off_ms, Ordering::Relaxed);
                }
                host(who).off_ms.store(off_ms, Ordering::Relaxed);
            }
            Fault::Full(node, full) => host(node).full.store(full, Ordering::Relaxed),
            Fault::BrokerFull(full) => {
                let mut broker = self.world.broker();
                broker.full = full;
                broker.disk.bound(1 << 30, 1 << 20);
                broker.disk.leave_free(full.then_some(64 << 10), None);
            }
        }
    }

    fn is_down(&self, who: &str) -> bool {
        self.down.iter().any(|(name, _)| *name == who)
    }

    /// Ends the broker if its power has gone, or if it says that it cannot go on.
    fn look_at_broker(&mut self) {
        if self.is_down(BROKER) {
            return;
        }
        let operations = self.world.broker().disk.operations();
        if let Some((at, cut)) = self.power
            && operations >= at
        {
            self.end_broker(cut);
        } else if self.world.broker().ended {
            self.end_broker(Cut::Keep);
        }
    }

    fn end_broker(&mut self, cut: Cut) {
        if self.is_down(BROKER) {
            return;
        }
        self.power = None;
        {
            // The disk as the next start finds it, before anything is dropped.
            let mut broker = self.world.broker();
            broker.disk = broker.disk.after(cut);
            broker.ended = false;
            let exchange = broker.exchange.take();
            drop(broker);
            drop(exchange);
        }
        self.end(BROKER);
    }

    fn end(&mut self, who: &'static str) {
        self.sim.crash(who);
        self.restarts += 1;
        let away = Duration::from_millis(self.random.between(10, 4000));
        self.down.push((who, self.sim.elapsed() + away));
        self.world.event(&format!("{who} is down for {away:?}"));
    }

    fn start_again(&mut self) {
        let now = self.sim.elapsed();
        let (up, down): (Vec<_>, Vec<_>) = self.down.drain(..).partition(|(_, at)| *at <= now);
        self.down = down;
        for (who, _) in up {
            self.sim.bounce(who);
        }
    }

    fn finish(mut self) -> Outcome {
        let ended = self.sim.elapsed();
        let undone = self.world.ledger().letters.iter().filter(|letter| !letter.done).cloned().collect::<Vec<_>>();
        if self.world.ledger().violations.is_empty() {
            for letter in undone {
                let told: Vec<_> = {
                    let ledger = self.world.ledger();
                    let outcome = |to: &AgencyCode| ledger.outcomes.get(&(letter.id?, to.clone())).cloned();
                    letter.to.iter().map(|to| (to.clone(), outcome(to))).collect()
                };
                let (number, id) = (letter.number, letter.id);
                self.world.violation(format!("letter {number}, {id:?}, did not come to its end: {told:?}"));
            }
            let exchange = self.world.broker().exchange.clone();
            match exchange {
                Some(exchange) => broker::check_end(&self.world, &exchange),
                None => self.world.violation("the broker does not run at the end".into()),
            }
        }
        self.world.broker().exchange = None;
        for name in std::iter::once(BROKER).chain(NODES.iter().map(|(name, _)| *name)) {
            if !self.is_down(name) {
                self.sim.crash(name);
            }
        }
        let violations = self.world.ledger().violations.clone();
        let datagrams = self.world.network.datagrams.load(Ordering::Relaxed);
        self.down.clear();
        Outcome { digest: self.world.digest(), violations, ended, datagrams, restarts: self.restarts }
    }
}
