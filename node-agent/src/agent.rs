//! The running agent: what its threads share, how it starts and how it stops.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use docaxis_protocol::space::{Level, Usage};
use docaxis_protocol::{Digest, Timestamp};
use serde::Serialize;
use tokio::sync::{Notify, watch};

use crate::config::{AgentConfig, ConfigError};
use crate::env::Env;
use crate::identity::{EvidenceKeys, Identity};
use crate::mailbox::{Mailbox, MailboxError};
use crate::parts::{Parts, PartsError};
use crate::space::{self, Space};
use crate::transfers::Transfers;
use crate::uplink::LinkState;
use crate::{desk, link};

/// How long running transfers and requests may go on after a stop. Cut after that, they are taken up again later.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(2);
/// Alarms that are kept for `status`.
const MAX_ALARMS: usize = 100;
/// How often the mailbox's database is checked.
const CHECK_EVERY: Duration = Duration::from_secs(24 * 3600);
/// How often room is made for opening the mailbox: as often as the ballast gives some.
const OPEN_TRIES: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("another agent has {} open", .0.display())]
    Locked(PathBuf),
    #[error("a restore to {} was broken off; run the same restore again", .0.display())]
    BrokenOff(PathBuf),
    #[error("the identity in {} cannot be used: {why}", path.display())]
    Identity { path: PathBuf, why: String },
    #[error("the mailbox")]
    Mailbox(#[from] MailboxError),
    #[error("the parts")]
    Parts(#[from] PartsError),
    #[error("the link")]
    Link(#[from] link::LinkError),
    #[error("a thread of the agent had panicked")]
    Panicked,
}

/// Something that a person should look at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alarm {
    pub time: Timestamp,
    pub text: String,
}

/// What all parts of the running agent share.
pub(crate) struct Shared {
    pub config: AgentConfig,
    pub env: Env,
    pub identity: ArcSwap<Identity>,
    pub mailbox: Mailbox,
    pub parts: Arc<Parts>,
    /// Whether there is room for new work.
    pub space: Arc<Space>,
    pub keys: EvidenceKeys,
    pub link: watch::Sender<LinkState>,
    /// Counts changes that someone may wait for.
    pub changes: watch::Sender<u64>,
    /// Something new may be sent.
    pub outbox: Notify,
    /// What was accepted before was queued again: the outbox is to be read from its beginning.
    pub queued_again: AtomicBool,
    /// How far bodies are on their way, by dispatch or by the caller's own name.
    pub transfers: Arc<Transfers>,
    /// A new statement may be reported.
    pub reports: Notify,
    alarms: Mutex<VecDeque<Alarm>>,
}

impl Shared {
    pub fn changed(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    pub fn alarm(&self, text: String) {
        tracing::error!("{text}");
        let mut alarms = self.alarms.lock().unwrap_or_else(PoisonError::into_inner);
        if alarms.back().is_some_and(|last| last.text == text) {
            return;
        }
        if alarms.len() == MAX_ALARMS {
            alarms.pop_front();
        }
        alarms.push_back(Alarm { time: self.env.now(), text });
        drop(alarms);
        self.changed();
    }

    pub fn alarms(&self) -> Vec<Alarm> {
        self.alarms.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// What is kept of broken-off deliveries never stands in the way of what was promised.
    fn sweep_partials(&self) {
        self.parts.sweep_partials(self.env.now(), self.space.level() >= Level::RefuseNew);
    }

    /// Removes those of these bodies that nothing refers to.
    pub async fn clear(&self, candidates: Vec<Digest>) -> Result<Result<(), PartsError>, MailboxError> {
        let parts = self.parts.clone();
        if candidates.is_empty() {
            return Ok(Ok(()));
        }
        self.mailbox.remove_unreferenced(candidates, move |sha256| parts.remove(sha256)).await
    }

    /// Runs file work off the asynchronous threads.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(Arc<Parts>) -> T + Send + 'static) -> T {
        let parts = self.parts.clone();
        if self.env.simulation().is_some() {
            return work(parts);
        }
        match tokio::task::spawn_blocking(move || work(parts)).await {
            Ok(done) => done,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        }
    }
}

impl Shared {
    /// Runs work that reads or writes files and waits for others in between: beside the asynchronous threads, or, in a
    /// simulation, as part of the caller.
    pub async fn aside<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, link::LinkError> {
        if self.env.simulation().is_some() {
            return Ok(work.await);
        }
        let runtime = tokio::runtime::Handle::current();
        tokio::task::spawn_blocking(move || runtime.block_on(work)).await.map_err(|_| link::LinkError::Panicked)
    }
}

/// The opened data folder.
struct Opened {
    lock: File,
    space: Arc<Space>,
    mailbox: Mailbox,
    parts: Arc<Parts>,
}

impl Opened {
    fn open(
        config: &AgentConfig,
        sample: impl Fn(&Path) -> std::io::Result<Usage> + Send + Sync + 'static,
        as_tasks: Option<Duration>,
    ) -> Result<Self, AgentError> {
        config.check()?;
        let data = &config.agent.data;
        let io = |operation| move |source| AgentError::Io { operation, path: data.clone(), source };
        make_private_folder(data).map_err(io("create folder"))?;
        let lock = lock(data)?;
        whole(data)?;
        // Before mailbox and parts: on a full disk they open only with the ballast's room.
        let space = Space::open(data, config.space, sample).map_err(io("look at the disk of"))?;
        let mailbox = open_mailbox(data, &space, as_tasks)?;
        let parts = Arc::new(Parts::open(data.join("parts"), config.partials)?);
        docaxis_failpoints::failpoint!("agent.start.opened");
        Ok(Self { lock, space, mailbox, parts })
    }

    fn share(self, config: AgentConfig, identity: Identity, env: Env) -> (Arc<Shared>, File) {
        let now = env.now();
        // Before the first delivery: what is kept of it bears the time.
        self.parts.sweep_partials(now, false);
        let shared = Shared {
            config,
            env,
            identity: ArcSwap::from_pointee(identity),
            mailbox: self.mailbox,
            parts: self.parts,
            space: self.space,
            keys: EvidenceKeys::default(),
            link: watch::Sender::new(LinkState::Connecting { since: now }),
            changes: watch::Sender::new(0),
            outbox: Notify::new(),
            queued_again: AtomicBool::new(false),
            transfers: Arc::default(),
            reports: Notify::new(),
            alarms: Mutex::default(),
        };
        (Arc::new(shared), self.lock)
    }
}

pub struct Agent;

impl Agent {
    /// Opens the data folder and starts the link and the control socket. Returns at once; the link connects and
    /// reconnects by itself.
    pub fn start(config: AgentConfig, identity: Identity, env: Env) -> Result<AgentHandle, AgentError> {
        Self::start_on(config, identity, env, space::usage)
    }

    /// The same on a disk that is as full as `sample` says.
    pub(crate) fn start_on(
        config: AgentConfig,
        identity: Identity,
        env: Env,
        sample: impl Fn(&Path) -> std::io::Result<Usage> + Send + Sync + 'static,
    ) -> Result<AgentHandle, AgentError> {
        let data = config.agent.data.clone();
        let io = |operation, path: PathBuf| move |source| AgentError::Io { operation, path, source };
        let opened = Opened::open(&config, sample, None)?;
        // On a thread of its own: the caller may be inside a runtime already.
        std::thread::scope(|scope| {
            let clearing = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().build();
                let runtime = runtime.map_err(io("start a runtime for", "parts".into()))?;
                runtime.block_on(clear_orphans(&opened.mailbox, &opened.parts))
            });
            clearing.join().map_err(|_| AgentError::Panicked)?
        })?;
        docaxis_failpoints::failpoint!("agent.start.cleared");
        let (shared, lock) = opened.share(config, identity, env);
        let alarming = Arc::downgrade(&shared);
        shared.mailbox.check_every(CHECK_EVERY, move |findings| {
            if let Some(shared) = alarming.upgrade() {
                shared.alarm(damaged_mailbox(findings));
            }
        })?;
        let (stop, stopping) = watch::channel(false);
        let mut threads = Vec::new();
        let started = link::start(shared.clone(), stopping.clone())
            .map(|thread| threads.push(thread))
            .map_err(AgentError::from)
            .and_then(|()| {
                let thread = desk::start(shared.clone(), data.join("control.sock"), stopping)?;
                threads.push(thread);
                let watching = shared.clone();
                let thread = std::thread::Builder::new().name("space".into());
                threads.push(
                    thread
                        .spawn(move || watching.space.run(space::LOOK_EVERY, || watching.sweep_partials()))
                        .map_err(io("start the thread that looks at", data.clone()))?,
                );
                Ok(())
            });
        let mut handle = AgentHandle { shared, stop, threads, lock: Some(lock) };
        match started {
            Ok(()) => Ok(handle),
            Err(error) => {
                handle.stop_and_join()?;
                Err(error)
            }
        }
    }

    /// The same in a simulation ([`Env::simulated`]): without control socket, and all as tasks of the runtime around the
    /// caller.
    pub async fn simulated(config: AgentConfig, identity: Identity, env: Env) -> Result<AgentHandle, AgentError> {
        let Some(world) = env.simulation().cloned() else {
            return Self::start(config, identity, env);
        };
        let opened = Opened::open(&config, move |_| Ok((world.usage)()), Some(world.disk_time))?;
        clear_orphans(&opened.mailbox, &opened.parts).await?;
        let (shared, lock) = opened.share(config, identity, env);
        let (stop, stopping) = watch::channel(false);
        link::start_as_task(shared.clone(), stopping)?;
        let watching = shared.clone();
        let watch = async move { watching.space.run_as_task(space::LOOK_EVERY, || watching.sweep_partials()).await };
        drop(tokio::spawn(watch));
        Ok(AgentHandle { shared, stop, threads: vec![], lock: Some(lock) })
    }
}

fn damaged_mailbox(checked: Result<Vec<String>, MailboxError>) -> String {
    use std::error::Error as _;
    match checked {
        Ok(findings) => format!(
            "the mailbox's database is damaged: {}. Dispatches may be missing from lists, or not be sent. Let what is queued go \
             first (docaxis agent status), then stop the agent, keep a copy of its data folder, and restore the newest backup \
             (docaxis agent restore): the exchange offers again what came since, but what was queued here since then and is \
             not accepted yet is in the copy alone",
            findings.join("; ")
        ),
        Err(error) => {
            let why = error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}"));
            format!(
                "the mailbox's database could not be checked: {why}. It is tried again in a day, and at the next start"
            )
        }
    }
}

/// Opens the mailbox. What stands in its write-ahead log goes into the database first, so on a full disk this takes room of the
/// ballast, a few of its files at a time.
fn open_mailbox(data: &Path, space: &Arc<Space>, as_tasks: Option<Duration>) -> Result<Mailbox, MailboxError> {
    let open = || {
        let full = space.clone();
        Mailbox::open_with(&data.join("mailbox.db"), move || full.ran_out(), as_tasks)
    };
    for _ in 0..OPEN_TRIES {
        match open() {
            Err(MailboxError::Full) => space.look(true),
            done => return done,
        }
    }
    open()
}

/// A running agent, and the calls that the control socket makes as well.
pub struct AgentHandle {
    pub(crate) shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
    lock: Option<File>,
}

impl AgentHandle {
    /// Takes no new work, lets running streams reach a safe point, closes the mailbox. Everything is joined.
    pub async fn shutdown(mut self) -> Result<(), AgentError> {
        match tokio::task::spawn_blocking(move || self.stop_and_join()).await {
            Ok(done) => done,
            Err(_) => Err(AgentError::Panicked),
        }
    }

    /// The same for a caller without a runtime. Not to be called on an asynchronous thread.
    pub fn shutdown_blocking(mut self) -> Result<(), AgentError> {
        self.stop_and_join()
    }

    /// Why the agent cannot go on, if its disk failed: the process must stop and be started again.
    pub fn poisoned(&self) -> Option<String> {
        self.shared.mailbox.poisoned()
    }

    fn stop_and_join(&mut self) -> Result<(), AgentError> {
        self.stop.send_replace(true);
        self.shared.space.stop();
        let mut panicked = false;
        for thread in self.threads.drain(..) {
            panicked |= thread.join().is_err();
        }
        self.shared.mailbox.close();
        self.lock = None;
        if panicked { Err(AgentError::Panicked) } else { Ok(()) }
    }
}

impl Drop for AgentHandle {
    fn drop(&mut self) {
        // Whoever drops the handle without `shutdown` still gets the threads to end, but does not wait for them.
        self.stop.send_replace(true);
        self.shared.space.stop();
    }
}

/// Removes bodies that nothing refers to: left by a crash between a body and the commit that names it, or between the end
/// of its last name and its own. Before anything else runs, so that no body on its way to being named is taken for one.
async fn clear_orphans(mailbox: &Mailbox, parts: &Parts) -> Result<(), AgentError> {
    let all = parts.list()?;
    // What a damaged table does not show is no reason to remove a body. The check that follows raises the alarm.
    if let Some(found) = mailbox.damage_of_names().await? {
        tracing::error!(found, "the mailbox's table of bodies' names is damaged: no body is cleared away");
        return Ok(());
    }
    let rows = mailbox.unnamed_bodies().await?;
    mailbox.remove_unreferenced(rows.clone(), |_| Ok::<_, PartsError>(())).await??;
    let unreferenced = mailbox.unreferenced(all).await?;
    if !rows.is_empty() {
        tracing::info!(
            count = rows.len(),
            "bodies in the mailbox that nothing refers to are removed, but for damaged ones"
        );
    }
    for sha256 in unreferenced {
        tracing::info!(%sha256, "a body that nothing refers to is removed");
        parts.remove(sha256)?;
    }
    Ok(())
}

fn make_private_folder(path: &std::path::Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Refuses a folder in which a restore was broken off: it is neither the old data nor the new.
pub(crate) fn whole(data: &std::path::Path) -> Result<(), AgentError> {
    match docaxis_backup::is_broken_off(data) {
        true => Err(AgentError::BrokenOff(data.to_owned())),
        false => Ok(()),
    }
}

/// One process at a time: two writers of one mailbox would each believe that they alone state things.
pub(crate) fn lock(data: &std::path::Path) -> Result<File, AgentError> {
    let path = data.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| AgentError::Io { operation: "open", path: path.clone(), source })?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(AgentError::Locked(data.to_owned())),
        Err(error) => Err(AgentError::Io { operation: "lock", path, source: error.into() }),
    }
}

/// Waits until the flag is raised, or nobody is left to raise it.
pub(crate) async fn told_to_stop(flag: &mut watch::Receiver<bool>) {
    // An error means that the other side is gone: that is a stop as well.
    let _gone = flag.wait_for(|stop| *stop).await.is_err();
}
