//! The machine's clock, in the protocol's time.

use docaxis_broker::env::{Env as _, SystemEnv};
use docaxis_protocol::Timestamp;

pub fn now() -> Timestamp {
    SystemEnv.now()
}
