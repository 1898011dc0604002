//! Threads for work that would hold up the link: signatures, digests, and reads of the store.
//!
//! Jobs wait in a bounded queue; whoever brings one waits for a place, so that a flood slows its senders down instead
//! of growing a backlog.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use tokio::sync::{Semaphore, oneshot};

/// Jobs that may wait or run at once.
const MAX_JOBS: usize = 1024;

type Job = Box<dyn FnOnce() + Send>;

/// The worker died, or the broker is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work was given up: the broker is stopping, or a worker failed")]
pub struct GivenUp;

pub struct Workers {
    /// Jobs are done at once, by whoever brings them.
    inline: bool,
    queue: Mutex<Option<SyncSender<Job>>>,
    places: Arc<Semaphore>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Workers {
    pub fn start(threads: usize) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel::<Job>(MAX_JOBS);
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = (0..threads.max(1))
            .map(|n| {
                let receiver = receiver.clone();
                std::thread::Builder::new().name(format!("worker-{n}")).spawn(move || work(&receiver))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            inline: false,
            queue: Mutex::new(Some(sender)),
            places: Arc::new(Semaphore::new(MAX_JOBS)),
            threads: Mutex::new(threads),
        })
    }

    /// Without threads: a job is done when it is brought. For simulations, where it takes no time.
    pub fn inline() -> Self {
        let places = Arc::new(Semaphore::new(MAX_JOBS));
        Self { inline: true, queue: Mutex::default(), places, threads: Mutex::default() }
    }

    /// Runs `job` on a worker and returns what it returns.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, GivenUp> {
        let place = self.places.clone().acquire_owned().await.map_err(|_| GivenUp)?;
        if self.inline {
            return Ok(job());
        }
        let (answer, answered) = oneshot::channel();
        let boxed: Job = Box::new(move || {
            // Whoever asked may have gone away; then nobody needs the answer.
            let _gone = answer.send(job());
            drop(place);
        });
        let sender = self.queue.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(GivenUp)?;
        // A place in the semaphore is a place in the channel: this never waits.
        sender.try_send(boxed).map_err(|_| GivenUp)?;
        answered.await.map_err(|_| GivenUp)
    }

    /// Lets the waiting jobs finish, then ends the threads.
    pub fn stop(&self) {
        self.places.close();
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        for thread in self.threads.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker had panicked");
            }
        }
    }
}

fn work(receiver: &Mutex<Receiver<Job>>) {
    loop {
        let job = receiver.lock().unwrap_or_else(PoisonError::into_inner).recv();
        match job {
            // A job that panics must not take the others' worker with it; its asker sees `GivenUp`.
            Ok(job) => {
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a job panicked; its request was given up");
                }
            }
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_job_that_panics_is_given_up_and_the_next_one_runs() {
        let workers = Workers::start(1).unwrap();
        let failed: Result<(), GivenUp> = workers.run(|| panic!("on purpose")).await;
        assert_eq!(failed, Err(GivenUp));
        assert_eq!(workers.run(|| 7).await, Ok(7));
        workers.stop();
        assert_eq!(workers.run(|| 7).await, Err(GivenUp));
    }
}
