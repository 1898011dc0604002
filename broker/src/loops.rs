//! Where the loops run that wait for work: each on a thread of its own, or, in a simulation, all as tasks of the runtime
//! that opened the broker, so that one seed decides their order.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

/// Where loops run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Loops {
    /// Each on a thread.
    #[default]
    Threads,
    /// As tasks of the runtime around the caller. What would block a thread is done at once, where it is asked for.
    Tasks {
        /// How long a commit, or a body's piece, takes on its disk.
        disk: Duration,
    },
}

/// A loop that was started.
pub enum Loop {
    Thread(JoinHandle<()>),
    Task(&'static str, tokio::task::JoinHandle<()>),
}

impl Loops {
    /// Starts a loop that waits asynchronously.
    pub fn start(self, name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> io::Result<Loop> {
        match self {
            Self::Threads => {
                let runtime = small_runtime()?;
                let thread = std::thread::Builder::new().name(name.into()).spawn(move || runtime.block_on(work))?;
                Ok(Loop::Thread(thread))
            }
            Self::Tasks { .. } => Ok(Self::task(name, work)),
        }
    }

    /// Starts a loop on the runtime around the caller.
    pub fn task(name: &'static str, work: impl Future<Output = ()> + Send + 'static) -> Loop {
        Loop::Task(name, tokio::spawn(work))
    }
}

impl Loop {
    pub fn name(&self) -> &str {
        match self {
            Self::Thread(thread) => thread.thread().name().unwrap_or("a thread"),
            Self::Task(name, _) => name,
        }
    }

    pub fn is_ended(&self) -> bool {
        match self {
            Self::Thread(thread) => thread.is_finished(),
            Self::Task(_, task) => task.is_finished(),
        }
    }

    /// Waits for the end of a thread; a task ends here. False if it had panicked.
    pub fn join(self) -> bool {
        match self {
            Self::Thread(thread) => thread.join().is_ok(),
            Self::Task(_, task) => {
                task.abort();
                true
            }
        }
    }
}

/// A runtime for one thread, with timers and no sockets.
pub fn small_runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_time().build()
}
