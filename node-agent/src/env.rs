//! What the agent takes from outside: the time and random bytes. A test or a simulation brings its own.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use docaxis_protocol::space::Usage;
use docaxis_protocol::{DispatchId, Timestamp};

use crate::link::Network;

/// The machine could not give random bytes: nothing may be sealed without them.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the system gave no random bytes: {0}")]
pub struct EntropyError(String);

type Fill = dyn Fn(&mut [u8]) -> Result<(), EntropyError> + Send + Sync;

/// The seams to the world. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    clock: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    entropy: Arc<Fill>,
    simulated: Option<Simulated>,
}

/// What a simulation puts in the machine's place besides time and randomness. The agent's loops then run as tasks of the
/// runtime that started it, whose end is the agent's crash; its files are the machine's, and what was committed stays.
#[derive(Clone)]
pub struct Simulated {
    pub network: Arc<dyn Network>,
    /// How long the disk takes over a commit.
    pub disk_time: Duration,
    /// How full the disk is.
    pub usage: Arc<dyn Fn() -> Usage + Send + Sync>,
}

impl Env {
    /// The machine's clock and its source of randomness.
    pub fn real() -> Self {
        Self::new(
            || {
                let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
            },
            |bytes| getrandom::fill(bytes).map_err(|e| EntropyError(e.to_string())),
        )
    }

    pub fn new(
        clock: impl Fn() -> Timestamp + Send + Sync + 'static,
        entropy: impl Fn(&mut [u8]) -> Result<(), EntropyError> + Send + Sync + 'static,
    ) -> Self {
        Self { clock: Arc::new(clock), entropy: Arc::new(entropy), simulated: None }
    }

    /// The same in a simulation.
    #[must_use]
    pub fn simulated(self, world: Simulated) -> Self {
        Self { simulated: Some(world), ..self }
    }

    pub(crate) const fn simulation(&self) -> Option<&Simulated> {
        self.simulated.as_ref()
    }

    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    pub fn random<const N: usize>(&self) -> Result<[u8; N], EntropyError> {
        let mut bytes = [0; N];
        (self.entropy)(&mut bytes)?;
        Ok(bytes)
    }

    /// A number for jitter. Without entropy there is no jitter, which is no reason to stop retrying.
    pub fn jitter(&self) -> u64 {
        self.random::<8>().map_or(0, u64::from_le_bytes)
    }

    pub fn dispatch_id(&self) -> Result<DispatchId, EntropyError> {
        Ok(DispatchId::from_parts(self.now(), self.random()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_real_environment_are_new_each_time_and_carry_the_time() {
        let env = Env::real();
        let (a, b) = (env.dispatch_id().unwrap(), env.dispatch_id().unwrap());
        assert_ne!(a, b);
        let fixed = Env::new(
            || Timestamp::from_unix_ms(1_795_318_200_123),
            |bytes| {
                bytes.fill(7);
                Ok(())
            },
        );
        assert_eq!(
            fixed.dispatch_id().unwrap(),
            DispatchId::from_parts(Timestamp::from_unix_ms(1_795_318_200_123), [7; 10])
        );
    }
}
