//! Whether there is room for new work: looks at the file system under the data folder, keeps the ballast, and tells the
//! others.
//!
//! What is decided stands in `docaxis_protocol::space`; this performs it. `DATA/ballast/` is room that is kept filled
//! and given back when nothing else is left, so that statements, evidence and outcomes can still be stored and a start
//! at 100 % succeeds. Losing it loses nothing: it is made anew when there is room.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use docaxis_protocol::space::{Amount, Ballast, Level, Report, SpaceConfig, Step, Usage, Watch};
use docaxis_protocol::{Reason, ReasonCode};
use rustix::fs::FallocateFlags;
use rustix::io::Errno;

/// How often the file system is looked at, whether or not somebody met its end.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks in a row while each leads to a step: make or release the ballast, then see what that gave.
const MAX_STEPS: usize = 3;

type Sample = dyn Fn(&Path) -> io::Result<Usage> + Send + Sync;

const BALLAST: &str = "ballast";

struct Watched {
    watch: Watch,
    /// The last look failed: said once.
    blind: bool,
}

#[derive(Default)]
struct Bell {
    rung: bool,
    stop: bool,
}

pub struct Space {
    data: PathBuf,
    sample: Box<Sample>,
    watched: Mutex<Watched>,
    bell: Mutex<Bell>,
    ringing: Condvar,
}

impl Space {
    /// Looks for the first time; on a full disk this releases the ballast, so that mailbox and parts can be opened.
    /// `sample` says how full the file system of a folder is.
    pub fn open(
        data: &Path,
        config: SpaceConfig,
        sample: impl Fn(&Path) -> io::Result<Usage> + Send + Sync + 'static,
    ) -> io::Result<Arc<Self>> {
        let mut left = ballast_files(data)?;
        if config.ballast_mib == 0 {
            // Turned off since an earlier run.
            left.drain(..).try_for_each(fs::remove_file)?;
        }
        let space = Arc::new(Self {
            data: data.to_owned(),
            sample: Box::new(sample),
            watched: Mutex::new(Watched { watch: Watch::new(config, left.len() as u64), blind: false }),
            bell: Mutex::default(),
            ringing: Condvar::new(),
        });
        space.look(true);
        Ok(space)
    }

    /// Looks again and again, until [`Space::stop`]; after each look `then` may do what follows from it.
    pub fn run(&self, every: Duration, then: impl Fn()) {
        while let Some(needed) = self.wait(every) {
            self.look(needed);
            then();
        }
    }

    /// The same as a task.
    pub async fn run_as_task(&self, every: Duration, then: impl Fn()) {
        while !self.bell().stop {
            tokio::time::sleep(every).await;
            let needed = std::mem::take(&mut self.bell().rung);
            self.look(needed);
            then();
        }
    }

    pub fn stop(&self) {
        self.bell().stop = true;
        self.ringing.notify_all();
    }

    /// Waits until it is time to look; whether somebody found no room, or `None` for the end.
    fn wait(&self, every: Duration) -> Option<bool> {
        let bell = self.bell();
        let waited = self.ringing.wait_timeout_while(bell, every, |bell| !bell.rung && !bell.stop);
        let (mut bell, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let rung = std::mem::take(&mut bell.rung);
        (!bell.stop).then_some(rung)
    }

    /// A write met the disk's end: look now.
    pub fn ran_out(&self) {
        self.bell().rung = true;
        self.ringing.notify_all();
    }

    /// Whether something new of so many bytes may be begun.
    pub fn may_begin(&self, bytes: u64) -> Result<(), Reason> {
        self.watched().watch.may_begin(bytes, 0).map_err(|why| ReasonCode::DiskFull.because(why))
    }

    pub fn level(&self) -> Level {
        self.watched().watch.level()
    }

    /// How it stands, for `status`.
    pub fn report(&self) -> Report {
        self.watched().watch.report()
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bell(&self) -> MutexGuard<'_, Bell> {
        self.bell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the file system, does what follows, and says in the log when the level has changed. `needed` says that
    /// somebody has found no room.
    pub fn look(&self, mut needed: bool) {
        let mut watched = self.watched();
        let before = watched.watch.level();
        for _ in 0..MAX_STEPS {
            let usage = match (self.sample)(&self.data) {
                Ok(usage) => usage,
                Err(error) => {
                    if !std::mem::replace(&mut watched.blind, true) {
                        tracing::warn!(%error, "the file system does not say how full it is; what was known last counts");
                    }
                    return;
                }
            };
            watched.blind = false;
            match watched.watch.look(usage, std::mem::take(&mut needed)) {
                Step::Nothing => break,
                Step::Release(files) => match self.release(files) {
                    Ok(()) => watched.watch.released(files),
                    Err(error) => {
                        tracing::warn!(%error, "the ballast cannot be removed; it is tried again");
                        break;
                    }
                },
                Step::Make(ballast) => {
                    let made = self.make(ballast);
                    if let Err(error) = &made {
                        tracing::warn!(%error, "the ballast cannot be made; it is tried again");
                    }
                    watched.watch.made(made.is_ok().then_some(ballast));
                    if made.is_err() {
                        break;
                    }
                }
            }
        }
        let now = watched.watch.level();
        if now == before {
            return;
        }
        let disk = watched.watch.report().words;
        if now > before {
            tracing::warn!(%disk, "the disk fills");
        } else {
            tracing::info!(%disk, "the disk has room again");
        }
    }

    fn make(&self, ballast: Ballast) -> io::Result<()> {
        self.release(u64::MAX)?;
        let folder = self.data.join(BALLAST);
        fs::create_dir_all(&folder)?;
        let made = (0..ballast.files).try_for_each(|number| {
            // Not synced: what a power cut leaves of it is as good as what it takes.
            fill(&File::create(folder.join(format!("{number:02}")))?, ballast.file_bytes)
        });
        made.or_else(|error| self.release(u64::MAX).and(Err(error)))
    }

    /// Removes so many files of the ballast.
    fn release(&self, files: u64) -> io::Result<()> {
        let there = ballast_files(&self.data)?;
        there.iter().take(usize::try_from(files).unwrap_or(usize::MAX)).try_for_each(fs::remove_file)
    }
}

/// The ballast's files that are there.
fn ballast_files(data: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(data.join(BALLAST)) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        Err(error) => Err(error),
    }
}

/// Takes room for so many bytes.
fn fill(mut file: &File, bytes: u64) -> io::Result<()> {
    match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, bytes) {
        Err(Errno::OPNOTSUPP) => io::copy(&mut io::Read::take(io::repeat(0), bytes), &mut file).map(drop),
        other => Ok(other?),
    }
}

/// How full the file system of a folder is, as `df` counts: what only root may use is neither used nor free.
pub fn usage(folder: &Path) -> io::Result<Usage> {
    let found = rustix::fs::statvfs(folder)?;
    let amount = |total: u64, unused: u64, free: u64, unit: u64| Amount {
        used: total.saturating_sub(unused).saturating_mul(unit),
        free: free.saturating_mul(unit),
    };
    Ok(Usage {
        bytes: amount(found.f_blocks, found.f_bfree, found.f_bavail, found.f_frsize),
        inodes: amount(found.f_files, found.f_ffree, found.f_favail, 1),
    })
}

/// Whether an error says that there is no room, and nothing worse.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use docaxis_protocol::frame::{Class, Frame, Offer, Standing};
    use docaxis_protocol::{Envelope, Event, Statement};

    use super::*;
    use crate::link::testing::{Exchange, code, handover, sealed, until};
    use crate::{Agent, Draft, Env, Identity, LinkError};

    const MIB: u64 = 1 << 20;

    /// A disk of 1 GiB of which as many bytes are free as the test says.
    fn sampling(free: &Arc<AtomicU64>) -> impl Fn(&Path) -> io::Result<Usage> + Send + Sync + 'static {
        let free = free.clone();
        move |_| {
            let free = free.load(Ordering::Relaxed);
            let inodes = Amount { used: 10, free: 1_000_000 };
            Ok(Usage { bytes: Amount { used: 1024 * MIB - free, free }, inodes })
        }
    }

    fn open(folder: &Path, free: &Arc<AtomicU64>) -> Arc<Space> {
        Space::open(folder, SpaceConfig::default(), sampling(free)).unwrap()
    }

    fn level(space: &Space) -> Level {
        space.report().state
    }

    fn ballast(folder: &Path) -> (usize, u64) {
        let files: Vec<_> = fs::read_dir(folder.join("ballast")).unwrap().map(|entry| entry.unwrap()).collect();
        (files.len(), files.iter().map(|file| file.metadata().unwrap().len()).sum())
    }

    #[test]
    fn the_ballast_goes_on_a_full_disk_and_comes_back_with_the_room_also_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let free = Arc::new(AtomicU64::new(512 * MIB));
        let space = open(folder.path(), &free);
        assert_eq!((ballast(folder.path()), level(&space)), ((64, 32 * MIB), Level::Open));
        free.store(0, Ordering::Relaxed);
        let space = {
            drop(space);
            open(folder.path(), &free)
        };
        assert_eq!(
            (ballast(folder.path()), level(&space)),
            ((52, 26 * MIB), Level::Full),
            "three looks, four files each"
        );
        assert_eq!(space.may_begin(1).unwrap_err().known(), ReasonCode::DiskFull);
        free.store(512 * MIB, Ordering::Relaxed);
        space.look(false);
        assert_eq!((ballast(folder.path()), space.may_begin(1)), ((64, 32 * MIB), Ok(())));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_nearly_full_node_begins_nothing_new_fails_nothing_and_still_states_what_its_officers_say() {
        let mut exchange = Exchange::start();
        let sender = exchange.join("g22", &["000.00.00.G22"]);
        let node = exchange.join("h37", &["H37.DN.001"]);
        let (free, recipient) = (Arc::new(AtomicU64::new(512 * MIB)), code("H37.DN.001"));
        let sample = sampling(&free);
        let identity = Identity::of(&node).unwrap();
        let agent = Agent::start_on(exchange.config("agent"), identity, Env::real(), sample).unwrap();
        let link = exchange.accept().await;
        let letter = || sealed(&sender, &["H37.DN.001"], &[b"small"], |_| ());
        let (first, second) = (letter(), letter());
        let mut stream = link.offer(exchange.offer("H37.DN.001", &first, vec![0]), &[b"small"]).await;
        let statement = handover(&mut stream).await;
        let outcome = exchange.outcome(Standing::HandedOver, 8, (Event::ContentHandover, None), &first, &statement);
        stream.write(&Frame::Recorded(outcome)).await.unwrap();
        let id = Envelope::parse(&first.bytes).unwrap().id;
        until(&agent, || async { agent.show(id).await.ok() }).await;

        let offer = || Offer { acceptance_leaf: 9, ..exchange.offer("H37.DN.001", &second, vec![0]) };
        for level in [100 * MIB, 50 * MIB, 0] {
            free.store(level, Ordering::Relaxed);
            agent.shared.space.look(false);
            let draft = Draft::new(recipient.clone(), vec![code("000.00.00.G22")]);
            assert_eq!(agent.compose(draft).await.unwrap_err().code(), ReasonCode::DiskFull, "{level} bytes free");
            let mut stream = link.offer(offer(), &[b"small"]).await;
            let Err(LinkError::Refused(refusal)) = stream.read(Class::Large).await else {
                panic!("{level} bytes free")
            };
            assert_eq!(refusal.reason.known(), ReasonCode::DiskFull);
        }
        agent.register(id, recipient).await.unwrap();
        let (Frame::Report(report), _stream) = link.next("Report").await else { panic!() };
        assert_eq!(Statement::parse(&report.statements[0].bytes).unwrap().event, Event::Registered);
        assert_eq!(agent.status().await.unwrap().alarms, []);

        free.store(512 * MIB, Ordering::Relaxed);
        agent.shared.space.look(false);
        let mut stream = link.offer(offer(), &[b"small"]).await;
        assert_eq!(Statement::parse(&handover(&mut stream).await.bytes).unwrap().event, Event::ContentHandover);
        agent.shutdown().await.unwrap();
    }

    #[test]
    fn the_file_system_of_a_folder_says_how_full_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let before = usage(folder.path()).unwrap();
        assert!(before.bytes.used > 0 && before.bytes.free > 0, "{before:?}");
    }
}
