//! What the broker takes from outside: the time and random bytes. A simulation brings its own.

use std::time::{SystemTime, UNIX_EPOCH};

use docaxis_protocol::{DispatchId, Timestamp};

pub trait Env: Send + Sync {
    fn now(&self) -> Timestamp;
    /// Fills `buffer` with bytes that nobody can foresee.
    fn random(&self, buffer: &mut [u8]);
}

/// Makes a UUIDv7 from the environment's time and randomness.
pub fn new_id(env: &dyn Env) -> DispatchId {
    let mut random = [0; 10];
    env.random(&mut random);
    DispatchId::from_parts(env.now(), random)
}

/// The system's clock and random source.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEnv;

impl Env for SystemEnv {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp::from_unix_ms(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
    }

    #[expect(clippy::expect_used, reason = "without the kernel's random source no key, salt or id may be made at all")]
    fn random(&self, buffer: &mut [u8]) {
        getrandom::fill(buffer).expect("the kernel's random source answers");
    }
}
