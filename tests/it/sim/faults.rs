//! Which faults a seed brings, and when.

use std::time::Duration;

use docaxis_broker::disk::sim::Cut;

use super::identities::NODES;
use super::random::Random;
use super::world::BROKER;

/// One thing that goes wrong, or ends going wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Of a thousand datagrams so many are lost.
    Loss(u64),
    /// The slowest datagram takes so long.
    Latency(Duration),
    Cut(&'static str),
    Mend(&'static str),
    /// An agent's process dies.
    Kill(&'static str),
    /// The broker's power goes at the n-th operation of its disk from now on; of what was not synced this remains.
    Power {
        operation: u64,
        cut: Cut,
    },
    /// The broker's process dies at once; what it wrote stays.
    KillBroker,
    /// A host's clock is put off by so many milliseconds.
    Clock(&'static str, i64),
    /// An agent's disk has no room, or has some again.
    Full(&'static str, bool),
    /// The broker's disk has no room left, or has some again.
    BrokerFull(bool),
}

/// All faults of a seed, in order of time. After `until` everything works.
pub fn of(seed: u64, until: Duration) -> Vec<(Duration, Fault)> {
    let mut random = Random::of(seed, "faults");
    let mut faults = Vec::new();
    let last = u64::try_from(until.as_millis()).unwrap();
    for _ in 0..random.between(4, 12) {
        let at = random.between(500, last - 1000);
        let long = (at + random.between(200, 12_000)).min(last);
        let (at, end) = (Duration::from_millis(at), Duration::from_millis(long));
        let node = random.pick(&NODES).0;
        match random.between(0, 13) {
            0 => faults.extend([(at, Fault::Loss(random.between(10, 300))), (end, Fault::Loss(0))]),
            1 => {
                let slow = Duration::from_millis(random.between(100, 1500));
                faults.extend([(at, Fault::Latency(slow)), (end, Fault::Latency(LATENCY))]);
            }
            2 | 3 => faults.extend([(at, Fault::Cut(node)), (end, Fault::Mend(node))]),
            4..=6 => faults.push((at, Fault::Kill(node))),
            7..=9 => {
                let cut = if random.chance(60) { Cut::Drop } else { Cut::Tear(random.next()) };
                faults.push((at, Fault::Power { operation: random.between(1, 12), cut }));
            }
            10 => faults.push((at, Fault::KillBroker)),
            11 => {
                let who = if random.chance(30) { BROKER } else { node };
                let off = i64::try_from(random.between(0, 240_000)).unwrap() - 120_000;
                faults.extend([(at, Fault::Clock(who, off)), (end, Fault::Clock(who, 0))]);
            }
            12 => faults.extend([(at, Fault::Full(node, true)), (end, Fault::Full(node, false))]),
            _ => faults.extend([(at, Fault::BrokerFull(true)), (end, Fault::BrokerFull(false))]),
        }
    }
    faults.push((until, Fault::Loss(0)));
    faults.push((until, Fault::Latency(LATENCY)));
    faults.push((until, Fault::BrokerFull(false)));
    for (node, _) in NODES {
        faults.extend([(until, Fault::Mend(node)), (until, Fault::Full(node, false)), (until, Fault::Clock(node, 0))]);
    }
    faults.push((until, Fault::Clock(BROKER, 0)));
    faults.sort_by_key(|(at, _)| *at);
    faults
}

/// The slowest datagram of a network that works.
pub const LATENCY: Duration = Duration::from_millis(30);
