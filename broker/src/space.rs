//! Whether there is room for new work: looks at the file system under DATA, keeps the ballast, and tells the others.
//!
//! What is decided stands in `docaxis_protocol::space`; this performs it. `DATA/ballast/` is room that is kept filled
//! and given back when nothing else is left, so that evidence, log and index can go on and a start at 100 % succeeds.
//! Losing it loses nothing: it is made anew when there is room.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use docaxis_protocol::space::{Ballast, Level, Report, SpaceConfig, Step, Watch};
use docaxis_protocol::{Reason, ReasonCode};

use crate::disk::Disk;
use crate::loops::{Loop, Loops};

/// How often the file system is looked at, whether or not somebody met its end.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Looks in a row while each leads to a step: make or release the ballast, then see what that gave.
const MAX_STEPS: usize = 3;

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
    disk: Arc<dyn Disk>,
    data: PathBuf,
    watched: Mutex<Watched>,
    /// The level, for those who ask with every request.
    level: AtomicU8,
    /// Bytes of bodies that were let in and have not ended.
    coming: AtomicU64,
    bell: Mutex<Bell>,
    ringing: Condvar,
}

/// Room for a body on its way in, given back when dropped.
pub struct Coming {
    space: Arc<Space>,
    bytes: u64,
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.space.coming.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Space {
    /// Looks for the first time; on a full disk this releases the ballast, so that the rest of DATA can be opened.
    pub fn open(disk: Arc<dyn Disk>, data: &Path, config: SpaceConfig) -> io::Result<Arc<Self>> {
        let mut left = disk.list(&data.join(BALLAST))?.len() as u64;
        if config.ballast_mib == 0 {
            // Turned off since an earlier run.
            disk.list(&data.join(BALLAST))?.iter().try_for_each(|name| disk.remove(&data.join(BALLAST).join(name)))?;
            left = 0;
        }
        let space = Arc::new(Self {
            disk,
            data: data.to_owned(),
            watched: Mutex::new(Watched { watch: Watch::new(config, left), blind: false }),
            level: AtomicU8::new(0),
            coming: AtomicU64::new(0),
            bell: Mutex::default(),
            ringing: Condvar::new(),
        });
        space.look(true);
        Ok(space)
    }

    /// Looks again and again, until [`Space::stop`].
    pub fn start(self: &Arc<Self>, loops: Loops, every: Duration) -> io::Result<Loop> {
        let space = self.clone();
        if loops != Loops::Threads {
            let looking = async move {
                while !space.bell().stop {
                    tokio::time::sleep(every).await;
                    let needed = std::mem::take(&mut space.bell().rung);
                    space.look(needed);
                }
            };
            return Ok(Loops::task("space", looking));
        }
        let thread = std::thread::Builder::new().name("space".into()).spawn(move || {
            while let Some(needed) = space.wait(every) {
                space.look(needed);
            }
        });
        thread.map(Loop::Thread)
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

    pub fn level(&self) -> Level {
        Level::ALL[usize::from(self.level.load(Ordering::Relaxed)).min(Level::ALL.len() - 1)]
    }

    /// Whether something new may be begun; the reason for the peer, if not.
    pub fn may_begin(&self) -> Result<(), Reason> {
        if self.level() < Level::RefuseNew { Ok(()) } else { Err(refusal(&self.watched().watch.why())) }
    }

    /// Whether something that was begun may be finished; the reason for the peer, if not.
    pub fn may_finish(&self) -> Result<(), Reason> {
        if self.level() < Level::DrainOnly { Ok(()) } else { Err(refusal(&self.watched().watch.why())) }
    }

    /// Lets a body of so many bytes in, if it can also end.
    pub fn expect(self: &Arc<Self>, bytes: u64) -> Result<Coming, Reason> {
        let watched = self.watched();
        watched.watch.may_begin(bytes, self.coming.load(Ordering::Relaxed)).map_err(|why| refusal(&why))?;
        self.coming.fetch_add(bytes, Ordering::Relaxed);
        Ok(Coming { space: self.clone(), bytes })
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

    /// For who has found no room where nobody else looks: whether some of the ballast was given back.
    pub fn make_room(&self) -> bool {
        self.look(true)
    }

    /// How full the file system is, for an error.
    pub fn why(&self) -> String {
        self.watched().watch.why()
    }

    /// Looks at the file system, does what follows, and says in the log when the level has changed. `needed` says that
    /// somebody has found no room. Whether some of the ballast was given back.
    pub fn look(&self, mut needed: bool) -> bool {
        let mut watched = self.watched();
        let (before, mut released) = (self.level(), false);
        for _ in 0..MAX_STEPS {
            let usage = match self.disk.usage(&self.data) {
                Ok(usage) => usage,
                Err(error) => {
                    if !std::mem::replace(&mut watched.blind, true) {
                        tracing::warn!(%error, "the file system does not say how full it is; what was known last counts");
                    }
                    return released;
                }
            };
            watched.blind = false;
            match watched.watch.look(usage, std::mem::take(&mut needed)) {
                Step::Nothing => break,
                Step::Release(files) => match self.release(files) {
                    Ok(()) => {
                        watched.watch.released(files);
                        released = true;
                    }
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
        self.level.store(now as u8, Ordering::Relaxed);
        if now != before {
            let disk = watched.watch.report().words;
            if now > before {
                tracing::warn!(%disk, "the disk fills")
            } else {
                tracing::info!(%disk, "the disk has room again")
            }
        }
        released
    }

    fn make(&self, ballast: Ballast) -> io::Result<()> {
        self.release(u64::MAX)?;
        let dir = self.data.join(BALLAST);
        self.disk.create_dir_all(&dir)?;
        let made = (0..ballast.files).try_for_each(|number| {
            // Not synced: what a power cut leaves of it is as good as what it takes.
            self.disk.create(&dir.join(format!("{number:02}")))?.allocate(ballast.file_bytes)
        });
        made.or_else(|error| self.release(u64::MAX).and(Err(error)))
    }

    /// Removes so many files of the ballast.
    fn release(&self, files: u64) -> io::Result<()> {
        let dir = self.data.join(BALLAST);
        let names = self.disk.list(&dir)?;
        let last = names.iter().rev().take(usize::try_from(files).unwrap_or(usize::MAX));
        last.into_iter().try_for_each(|name| self.disk.remove(&dir.join(name)))
    }
}

fn refusal(why: &str) -> Reason {
    ReasonCode::DiskFull.because(why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::SimDisk;

    const MIB: u64 = 1 << 20;
    const DATA: &str = "/data";

    fn disk(mib: u64, inodes: u64) -> SimDisk {
        let disk = SimDisk::new();
        disk.bound(mib * MIB, inodes);
        disk
    }

    fn open(disk: &SimDisk) -> Arc<Space> {
        Space::open(Arc::new(disk.clone()), Path::new(DATA), SpaceConfig::default()).unwrap()
    }

    fn ballast_files(disk: &SimDisk) -> usize {
        disk.list(&Path::new(DATA).join("ballast")).unwrap().len()
    }

    #[test]
    fn the_ballast_is_there_from_the_start_and_goes_when_the_disk_is_full() {
        for (bytes, inodes) in [(Some(0), None), (None, Some(0))] {
            let disk = disk(256, 1024);
            let space = open(&disk);
            assert_eq!((ballast_files(&disk), space.level()), (32, Level::Open));
            disk.leave_free(bytes, inodes);
            space.look(false);
            assert_eq!((ballast_files(&disk), space.level()), (28, Level::Full), "{bytes:?} {inodes:?}");
            assert!(disk.create(Path::new("/data/evidence")).unwrap().write_at(0, &[0; 1 << 20]).is_ok());
            space.look(true);
            assert_eq!((ballast_files(&disk), space.level()), (24, Level::Full), "{bytes:?} {inodes:?}");
            disk.leave_free(None, None);
            space.look(false);
            assert_eq!((ballast_files(&disk), space.level()), (32, Level::Open), "{bytes:?} {inodes:?}");
        }
    }

    #[test]
    fn a_start_on_a_full_disk_releases_some_of_what_an_earlier_run_kept() {
        let disk = disk(256, 0);
        drop(open(&disk));
        disk.leave_free(Some(0), None);
        let space = open(&disk);
        assert_eq!((ballast_files(&disk), space.level()), (60, Level::Full));
        assert!(space.may_begin().is_err() && space.may_finish().is_err());
    }

    #[test]
    fn bodies_on_their_way_in_count_before_they_are_written() {
        let disk = disk(1024, 0);
        let space = open(&disk);
        let first = space.expect(600 * MIB).unwrap();
        let refused = space.expect(600 * MIB).err().unwrap();
        assert_eq!(refused.known(), ReasonCode::DiskFull);
        drop(first);
        assert!(space.expect(600 * MIB).is_ok());
    }

    #[test]
    fn a_writer_that_met_the_end_is_heard_at_once_and_the_room_that_returns_is_seen() {
        let disk = disk(256, 0);
        let space = open(&disk);
        let thread = space.start(Loops::Threads, Duration::from_millis(1)).unwrap();
        for (free, expected) in [(Some(0), Level::Full), (None, Level::Open)] {
            disk.leave_free(free, None);
            space.ran_out();
            let since = std::time::Instant::now();
            while space.level() != expected {
                assert!(since.elapsed() < Duration::from_secs(60), "it stays at {:?}", space.level());
                std::thread::yield_now();
            }
        }
        space.stop();
        assert!(thread.join());
    }
}
