//! What the hosts of one simulation share: clocks, randomness, the broker's disk, and the ledger that the checks compare with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use docaxis_broker::disk::sim::SimDisk;
use docaxis_broker::dispatch::Exchange;
use docaxis_broker::env::Env as BrokerEnv;
use docaxis_broker::store::embedded::MemoryIndex;
use docaxis_node_agent::Env as AgentEnv;
use docaxis_protocol::digest::Hasher;
use docaxis_protocol::{Digest, Timestamp};

use super::identities::{Identities, NODES};
use super::ledger::Ledger;
use super::network::Network;
use super::random::Random;

pub const BROKER: &str = "broker";

/// A host's own clock and randomness.
pub struct Host {
    pub name: &'static str,
    begin: Timestamp,
    /// How far its clock is off, in milliseconds.
    pub off_ms: AtomicI64,
    random: Mutex<Random>,
    /// The last instant of which it is known that it has come, in milliseconds: as hosts are ended outside of time.
    last_ms: AtomicU64,
    pub disk_time: Duration,
    /// An agent's disk has no room.
    pub full: AtomicBool,
}

impl Host {
    pub fn now(&self) -> Timestamp {
        let ms = turmoil::sim_elapsed().map_or(0, |at| u64::try_from(at.as_millis()).unwrap());
        let ms = self.last_ms.fetch_max(ms, Ordering::Relaxed).max(ms);
        Timestamp::from_unix_ms(self.begin.unix_ms() + i64::try_from(ms).unwrap() + self.off_ms.load(Ordering::Relaxed))
    }

    pub fn fill(&self, buffer: &mut [u8]) {
        self.random.lock().unwrap().fill(buffer);
    }

    pub fn agent_env(self: &Arc<Self>) -> AgentEnv {
        let (clock, random) = (self.clone(), self.clone());
        AgentEnv::new(
            move || clock.now(),
            move |buffer| {
                random.fill(buffer);
                Ok(())
            },
        )
    }
}

impl BrokerEnv for Host {
    fn now(&self) -> Timestamp {
        self.now()
    }

    fn random(&self, buffer: &mut [u8]) {
        self.fill(buffer);
    }
}

/// TLS judges certificates by the host's clock.
#[derive(Clone)]
pub struct TlsClock(pub Arc<Host>);

impl std::fmt::Debug for TlsClock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsClock")
    }
}

impl rustls::time_provider::TimeProvider for TlsClock {
    fn current_time(&self) -> Option<rustls::pki_types::UnixTime> {
        let ms = u64::try_from(self.0.now().unix_ms()).ok()?;
        Some(rustls::pki_types::UnixTime::since_unix_epoch(Duration::from_millis(ms)))
    }
}

/// The broker between and during its runs.
#[derive(Default)]
pub struct BrokerSide {
    pub disk: SimDisk,
    pub index: Arc<MemoryIndex>,
    /// While it runs.
    pub exchange: Option<Arc<Exchange>>,
    /// Its disk has no room.
    pub full: bool,
    /// It cannot go on, and must be started again.
    pub ended: bool,
}

pub struct World {
    pub seed: u64,
    pub network: Arc<Network>,
    pub identities: Identities,
    pub hosts: BTreeMap<&'static str, Arc<Host>>,
    pub folder: PathBuf,
    broker: Mutex<BrokerSide>,
    ledger: Mutex<Ledger>,
    events: Mutex<Hasher>,
    /// Faults are over: everything must come to its end now.
    pub calm: AtomicBool,
    /// How far the broker's clock was off at most, and how far it has gone back at most, in milliseconds.
    pub broker_off_ms: AtomicI64,
    pub broker_back_ms: AtomicI64,
    loud: bool,
}

impl World {
    pub fn new(
        seed: u64,
        folder: &Path,
        ledger: Ledger,
        disk_times: impl Fn(&str) -> Duration,
        loud: bool,
    ) -> Arc<Self> {
        let identities = Identities::load();
        identities.write(folder);
        let begin = identities.begin();
        let host = |name: &'static str| {
            let host = Host {
                name,
                begin,
                off_ms: AtomicI64::new(0),
                random: Mutex::new(Random::of(seed, name)),
                last_ms: AtomicU64::new(0),
                disk_time: disk_times(name),
                full: AtomicBool::new(false),
            };
            (name, Arc::new(host))
        };
        let names = std::iter::once(BROKER).chain(NODES.iter().map(|(name, _)| *name));
        Arc::new(Self {
            seed,
            network: Network::of(seed),
            identities,
            hosts: names.map(host).collect(),
            folder: folder.to_owned(),
            broker: Mutex::default(),
            ledger: Mutex::new(ledger),
            events: Mutex::new(Hasher::new()),
            calm: AtomicBool::new(false),
            broker_off_ms: AtomicI64::new(0),
            broker_back_ms: AtomicI64::new(0),
            loud,
        })
    }

    pub fn broker(&self) -> MutexGuard<'_, BrokerSide> {
        self.broker.lock().unwrap()
    }

    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    /// Something happened that a replay must repeat.
    pub fn event(&self, text: &str) {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        if self.loud {
            println!("{:>10.3} {text}", at.as_secs_f64());
        }
        self.events.lock().unwrap().update(format!("{} {text}\n", at.as_micros()).as_bytes());
    }

    /// Something happened that must never happen.
    pub fn violation(&self, text: String) {
        self.event(&format!("VIOLATION {text}"));
        let at = turmoil::sim_elapsed().unwrap_or_default();
        self.ledger().violations.push(format!("at {:.3} s: {text}", at.as_secs_f64()));
    }

    /// Everything that happened, as a digest: events, and all datagrams.
    pub fn digest(&self) -> Digest {
        let events = std::mem::take(&mut *self.events.lock().unwrap()).finish();
        Digest::of_pieces(&[events.as_bytes(), self.network.sent().as_bytes()])
    }
}
