//! Starting and stopping: rooms are opened in the order in which they depend on each other, and closed in reverse.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use docaxis_certs::crl::CrlError;
use docaxis_certs::encoding::{crl_from_pem, pem};
use docaxis_certs::identity::{IdentityError, public_key};
use docaxis_certs::seal::SealError;
use docaxis_certs::verifier::TrustError;
use docaxis_certs::{BrokerIdentity, Trust};
use docaxis_protocol::chain::ChainError;
use docaxis_protocol::envelope::Chain;
use docaxis_protocol::space::Level;
use tokio::sync::watch;

use crate::answer::Calendar;
use crate::blobs::BlobStore;
use crate::config::{BrokerConfig, ConsoleListen};
use crate::console::{Condition, Console, ConsoleError, Health};
use crate::continuity::{self, Mark};
use crate::control::{Addresses, Control, ControlError, Copies};
use crate::directory::Directory;
use crate::disk::{Disk, RealDisk};
use crate::dispatch::{Exchange, ExchangeError, Unanswered};
use crate::env::{Env, SystemEnv};
use crate::evidence::log::LogError;
use crate::evidence::{Issuer, LogKeeper};
use crate::link::{Link, LinkConfig, LinkError, Links, Network};
use crate::loops::{Loop, Loops, small_runtime};
use crate::quota::Quotas;
use crate::seals::Seals;
use crate::space::Space;
use crate::store::embedded::{self, EmbeddedConfig, EmbeddedStore, IndexKind, MemoryIndex, Progress, Rebuilt};
use crate::store::{Store, StoreError};
use crate::work::Workers;

/// How often due expiries are looked for.
const SWEEP: Duration = Duration::from_secs(1);
/// Least time between two checkpoints; the newest leaf is never older than a second when one is signed. Each costs a
/// dozen syncs, which the journal waits behind.
const CHECKPOINT_PAUSE: Duration = Duration::from_millis(500);

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the broker's identity: {0}")]
    Identity(#[from] IdentityError),
    #[error("the broker's identity: {0}")]
    Trust(#[from] TrustError),
    #[error("the broker's identity: {0}")]
    Seal(#[from] SealError),
    #[error("the broker's identity: {0}")]
    Chain(#[from] ChainError),
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    #[error("the evidence log: {0}")]
    Log(#[from] LogError),
    #[error("what was published: {0}")]
    Exchange(#[from] ExchangeError),
    #[error("the link: {0}")]
    Link(#[from] LinkError),
    #[error("the control socket: {0}")]
    Control(#[from] ControlError),
    #[error("the console: {0}")]
    Console(#[from] ConsoleError),
    #[error("a thread cannot be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// A running broker.
pub struct Broker {
    /// First, so that nobody asks any more when the rest is dropped.
    console: Option<Console>,
    health: Arc<Health>,
    running: Arc<Running>,
    link: Link,
    /// None in a simulation.
    control: Option<Control>,
    stop: watch::Sender<bool>,
}

/// What a simulation puts in the machine's place. Console and control socket are not started in it.
#[derive(Clone)]
pub struct Simulated {
    pub env: Arc<dyn Env>,
    pub disk: Arc<dyn Disk>,
    pub index: Arc<MemoryIndex>,
    pub network: Arc<dyn Network>,
    /// How long the disk takes over a commit, or over a body's piece.
    pub disk_time: Duration,
    pub segment_bytes: u64,
}

/// What must go on while the broker serves.
struct Running {
    embedded: Arc<EmbeddedStore>,
    exchange: Arc<Exchange>,
    loops: Mutex<Vec<Loop>>,
}

impl Running {
    /// See [`Broker::poisoned`].
    fn poisoned(&self) -> Option<StoreError> {
        let loops = self.loops.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = loops.iter().find(|one| one.is_ended()).map(|one| one.name().to_owned());
        self.embedded
            .poisoned()
            .or_else(|| ended.map(|name| StoreError::Poisoned(format!("{name} has ended; the log says why"))))
    }

    fn condition(&self) -> Condition {
        Condition {
            poisoned: self.poisoned().map(|error| error.to_string()),
            closed: self.exchange.continuity.refusal().map(|reason| reason.text),
            space: self.exchange.space.level(),
        }
    }
}

impl Broker {
    /// Opens everything and starts to serve. When this returns, the recovery is done and the socket is bound. Meanwhile the
    /// console says how far it is.
    pub fn start(config: &BrokerConfig) -> Result<Self, StartError> {
        let section = &config.broker;
        let identity = BrokerIdentity::load(&section.identity)?;
        let trust = Trust::new(identity.origin.clone(), &identity.common)?;
        let links = Arc::new(Links::default());
        let progress = Arc::<Progress>::default();
        let health = Health::new(progress.clone());
        let console = match config.console.listen {
            ConsoleListen::At(address) => Some(Console::start(address, health.clone()).map_err(|error| {
                // Another broker over the same data has its console's address too, and is the cause.
                match embedded::is_free(&section.data) {
                    Err(locked @ StoreError::Locked(_)) => StartError::Store(locked),
                    _ => error.into(),
                }
            })?),
            ConsoleListen::Off => None,
        };
        let embedded = open(config, progress)?;
        health.store_opened();
        docaxis_failpoints::failpoint!("broker.start.recovered");
        let rooms =
            Rooms { env: Arc::new(SystemEnv), workers: Workers::start(section.workers)?, store: embedded.clone() };
        let (exchange, keeper) = exchange(config, &identity, rooms, trust.clone(), links.clone())?;
        let (stop, stopped) = watch::channel(false);
        let running = go_on(Loops::Threads, keeper, &exchange, &stopped)?;
        let link = Link::start(&link_config(config), &identity, trust, exchange.clone(), links)?;
        let copies = Copies { store: embedded.clone(), data: section.data.clone() };
        let addresses = Addresses { link: link.address(), console: console.as_ref().map(Console::address) };
        let control = Control::start(&control_socket(config), &identity, exchange.clone(), addresses, copies)?;
        let running = Arc::new(Running { embedded, exchange, loops: Mutex::new(running) });
        let asked = Arc::downgrade(&running);
        health.serving(move || asked.upgrade().map(|running| running.condition()));
        tracing::info!(origin = %identity.origin, address = %link.address(), "the broker serves");
        Ok(Self { console, health, running, link, control: Some(control), stop })
    }

    /// The same in a simulation: everything runs as tasks of the runtime around the caller, whose end is the broker's crash.
    /// Only the log's files, the identity and marks are on the machine's disk.
    pub fn simulated(config: &BrokerConfig, world: &Simulated) -> Result<Self, StartError> {
        let section = &config.broker;
        let identity = BrokerIdentity::load(&section.identity)?;
        let trust = Trust::new(identity.origin.clone(), &identity.common)?;
        let links = Arc::new(Links::default());
        let loops = Loops::Tasks { disk: world.disk_time };
        let store = EmbeddedConfig {
            index: IndexKind::Memory(world.index.clone()),
            segment_bytes: world.segment_bytes,
            // Nobody could wait for the writer of the index.
            index_batch_rows: usize::MAX / 4,
            // Real time must decide nothing.
            collect: Duration::MAX,
            loops,
            ..embedded_config(config, Arc::default())
        };
        let embedded = EmbeddedStore::open(&section.data, store, world.disk.clone())?;
        let rooms = Rooms { env: world.env.clone(), workers: Workers::inline(), store: embedded.clone() };
        let (exchange, keeper) = exchange(config, &identity, rooms, trust.clone(), links.clone())?;
        let (stop, stopped) = watch::channel(false);
        let running = go_on(loops, keeper, &exchange, &stopped)?;
        let served = (exchange.clone(), links);
        let link = Link::simulated(&link_config(config), &identity, trust, served.0, served.1, &*world.network)?;
        let running = Arc::new(Running { embedded, exchange, loops: Mutex::new(running) });
        let health = Health::new(Arc::default());
        Ok(Self { console: None, health, running, link, control: None, stop })
    }

    /// The address of the link; the port is known even if 0 was asked for.
    pub fn address(&self) -> std::net::SocketAddr {
        self.link.address()
    }

    /// The address of `/livez` and `/readyz`; none if they are off.
    pub fn console(&self) -> Option<std::net::SocketAddr> {
        self.console.as_ref().map(Console::address)
    }

    /// Why the broker cannot go on, if a write failed or a thread ended: the process must stop and be started again.
    pub fn poisoned(&self) -> Option<StoreError> {
        self.running.poisoned()
    }

    /// The exchange, for tests that look inside.
    pub fn exchange(&self) -> &Arc<Exchange> {
        &self.running.exchange
    }

    /// Stops: no new work, links closed, a last checkpoint, the store closed. What was accepted is durable already.
    pub fn stop(mut self) -> Result<(), StoreError> {
        self.health.stopping();
        if let Some(control) = &mut self.control {
            control.stop();
        }
        self.link.stop();
        let _threads_gone = self.stop.send(true);
        let loops = std::mem::take(&mut *self.running.loops.lock().unwrap_or_else(PoisonError::into_inner));
        for one in loops {
            if !one.join() {
                tracing::error!("a thread had panicked");
            }
        }
        self.exchange().workers.stop();
        let store = self.exchange().store.clone();
        let closed = small_runtime().map_err(|e| StoreError::Io { operation: "close", found: e.to_string() })?;
        closed.block_on(store.close())
    }
}

fn embedded_config(config: &BrokerConfig, progress: Arc<Progress>) -> EmbeddedConfig {
    EmbeddedConfig {
        segment_bytes: config.store.segment_mib << 20,
        index_cache_bytes: config.store.index_cache_mib << 20,
        keep_bodies: config.store.keep_bodies,
        space: config.space,
        partials: config.partials,
        progress,
        ..EmbeddedConfig::default()
    }
}

fn open(config: &BrokerConfig, progress: Arc<Progress>) -> Result<Arc<EmbeddedStore>, StoreError> {
    EmbeddedStore::open(&config.broker.data, embedded_config(config, progress), Arc::new(RealDisk))
}

pub(crate) fn open_store(config: &BrokerConfig) -> Result<Arc<EmbeddedStore>, StoreError> {
    open(config, Arc::default())
}

/// Builds the index of a stopped broker anew.
pub fn rebuild(config: &BrokerConfig) -> Result<Rebuilt, StoreError> {
    embedded::rebuild(&config.broker.data, &embedded_config(config, Arc::default()), Arc::new(RealDisk))
}

fn link_config(config: &BrokerConfig) -> LinkConfig {
    LinkConfig {
        listen: config.broker.listen,
        streams_per_node: config.broker.streams_per_node,
        max_connections: config.broker.max_connections,
    }
}

/// What an exchange stands on.
struct Rooms {
    env: Arc<dyn Env>,
    workers: Workers,
    store: Arc<EmbeddedStore>,
}

/// The log, and the exchange with what was published, in force again.
fn exchange(
    config: &BrokerConfig,
    identity: &BrokerIdentity,
    rooms: Rooms,
    trust: Arc<Trust>,
    links: Arc<Links>,
) -> Result<(Arc<Exchange>, LogKeeper), StartError> {
    let Rooms { env, workers, store } = rooms;
    let (space, blobs, store): (Arc<Space>, Arc<BlobStore>, Arc<dyn Store>) = (store.space(), store.blobs(), store);
    let data = config.broker.data.clone();
    let mark = Mark::read(&data, env.now())?;
    let log = data.join("log");
    let keeper = LogKeeper::open(&log, &identity.origin, identity.log_key.clone(), &*store, mark.is_none())?;
    docaxis_failpoints::failpoint!("broker.start.log-agreed");
    let linked = links.clone();
    let origin = identity.origin.clone();
    let common = &identity.common;
    let issuers = pem("CERTIFICATE", &common.seals_ca).into_bytes();
    let directory_key = public_key(&common.directory)?;
    let nodes_crl = move |text: &str| {
        let der = crl_from_pem(text.as_bytes()).map_err(|e| e.to_string())?;
        match trust.reload_crl(&der) {
            // The list in the identity folder may be newer than the one that was published last.
            Ok(_) | Err(CrlError::Older { .. }) => {}
            Err(error) => return Err(error.to_string()),
        }
        links.close_revoked(&trust);
        Ok(())
    };
    let signed_by_seals_ca = |leaf: &Vec<u8>| Chain::from_ders([leaf.clone(), common.seals_ca.clone()]);
    let own = keeper.checkpoint()?;
    let evidence_key = identity.evidence_key.public();
    let log_key = keeper.verifier_key().clone();
    let continuity = continuity::Keeper::new(data, log_key, evidence_key, mark, own.as_ref(), &*store);
    let exchange = Exchange {
        continuity,
        issuer: Issuer::new(origin.clone(), identity.evidence_key.clone(), env.clone()),
        seals: Seals::new(
            pem("CERTIFICATE", &common.root).as_bytes(),
            issuers,
            std::slice::from_ref(&common.seals_crl),
        )?,
        directory: RwLock::new(Directory::new(origin.clone(), directory_key)),
        log: keeper.reader(),
        bells: Default::default(),
        repairs: Default::default(),
        appointed: Default::default(),
        workers,
        max_part_bytes: config.broker.max_part_bytes,
        quotas: Arc::new(Quotas::new(config.quota.clone())),
        evidence_chain: signed_by_seals_ca(&identity.evidence),
        log_chain: signed_by_seals_ca(&identity.log),
        nodes_crl: Box::new(nodes_crl),
        links: linked,
        calendar: Calendar::new(&config.acceptance),
        unanswered_from: AtomicU64::new(0),
        crls: RwLock::new(BTreeMap::from([
            ("nodes".to_owned(), pem("X509 CRL", &common.nodes_crl)),
            ("seals".to_owned(), pem("X509 CRL", &common.seals_crl)),
        ])),
        env,
        origin,
        store,
        blobs,
        space,
    };
    exchange.restore_notices()?;
    Ok((Arc::new(exchange), keeper))
}

/// Starts what must go on beside the link.
fn go_on(
    loops: Loops,
    keeper: LogKeeper,
    exchange: &Arc<Exchange>,
    stopped: &watch::Receiver<bool>,
) -> std::io::Result<Vec<Loop>> {
    // Before the first upload: what is kept of it bears the time.
    sweep_partials(exchange);
    Ok(vec![
        loops.start("log", keep_log(keeper, exchange.clone(), stopped.clone()))?,
        loops.start("sweeper", sweep(exchange.clone(), stopped.clone()))?,
        loops.start("continuity", continuity::Keeper::run(exchange.clone(), stopped.clone()))?,
    ])
}

/// Publishes a checkpoint soon after leaves were committed, and a last one at the end.
async fn keep_log(mut keeper: LogKeeper, exchange: Arc<Exchange>, mut stopped: watch::Receiver<bool>) {
    let mut committed = exchange.store.committed();
    let mut continuity = exchange.continuity.changed();
    loop {
        committed.mark_unchanged();
        continuity.mark_unchanged();
        // While the exchange is closed nothing is signed.
        let published = if exchange.continuity.is_open() { keeper.publish(&*exchange.store).map(drop) } else { Ok(()) };
        let full = match published {
            Ok(()) => false,
            // Nothing was promised: the checkpoint comes when there is room.
            Err(error) if error.is_disk_full() => {
                exchange.space.ran_out();
                tracing::debug!(%error, "no room for the next checkpoint; it is tried again");
                true
            }
            Err(error) => {
                // After a failed write the tiles on disk and in memory may differ: a restart makes them agree again.
                tracing::error!(%error, "the evidence log stands still: no checkpoint and no proof until a restart");
                return;
            }
        };
        // A broker that is dropped instead of stopped takes the sender with it.
        if *stopped.borrow() || stopped.has_changed().is_err() {
            return;
        }
        tokio::select! {
            biased;
            changed = committed.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(SWEEP), if full => {}
            _ = continuity.changed() => {}
            _ = stopped.wait_for(|stop| *stop) => continue,
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(CHECKPOINT_PAUSE) => {}
            _ = stopped.wait_for(|stop| *stop) => {}
        }
    }
}

/// What is kept of broken-off uploads never stands in the way of what was promised.
fn sweep_partials(exchange: &Exchange) {
    exchange.blobs.sweep_partials(exchange.now(), exchange.space.level() >= Level::RefuseNew);
}

/// Records expiries as they fall due, and removes partial bodies for which nobody came.
async fn sweep(exchange: Arc<Exchange>, mut stopped: watch::Receiver<bool>) {
    let mut walk = Unanswered::default();
    loop {
        sweep_partials(&exchange);
        if let Err(error) = exchange.ring_appointed() {
            tracing::error!(%error, "dispatches whose appointed time has come are offered at the next round, within half a minute");
        }
        let expired = exchange.expire_due().await.map(|count| count > 0);
        let expired = told("expiries", expired);
        let unanswered = told("missing answers", exchange.no_answers_due(&mut walk).await);
        // There may be more that are due: look again at once.
        if (expired || unanswered) && !*stopped.borrow() {
            continue;
        }
        tokio::select! {
            biased;
            () = tokio::time::sleep(SWEEP) => {}
            _ = stopped.wait_for(|stop| *stop) => return,
        }
    }
}

/// Whether there may be more; an error is told, and tried again like anything else.
fn told(what: &str, done: Result<bool, ExchangeError>) -> bool {
    match done {
        Ok(more) => more,
        // Said once, when the disk was found full.
        Err(ExchangeError::Store(StoreError::DiskFull(why))) => {
            tracing::debug!(%why, "no room to record {what}; it is tried again");
            false
        }
        Err(error) => {
            tracing::error!(%error, "{what} cannot be recorded");
            false
        }
    }
}

/// Checks that the identity folder is whole and belongs together; returns the exchange's name. Opens no data.
pub fn check(config: &BrokerConfig) -> Result<docaxis_protocol::Origin, StartError> {
    let identity = BrokerIdentity::load(&config.broker.identity)?;
    Trust::new(identity.origin.clone(), &identity.common)?;
    let issuers = pem("CERTIFICATE", &identity.common.seals_ca).into_bytes();
    let root = pem("CERTIFICATE", &identity.common.root);
    Seals::new(root.as_bytes(), issuers, std::slice::from_ref(&identity.common.seals_crl))?;
    public_key(&identity.common.directory)?;
    Ok(identity.origin)
}

/// Where a broker with this configuration has its control socket.
pub fn control_socket(config: &BrokerConfig) -> PathBuf {
    config.broker.data.join("control.sock")
}
