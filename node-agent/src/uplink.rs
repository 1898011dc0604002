//! When to connect to the broker, and what a person is told meanwhile. Pure: failures, the time and a random number
//! come in; the next attempt comes out.

use std::time::Duration;

use docaxis_protocol::Timestamp;
use serde::Serialize;

/// Where the link stands: always with why, whose move it is, and when the next automatic attempt comes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum LinkState {
    Connecting {
        since: Timestamp,
    },
    Up {
        since: Timestamp,
        /// The broker's software.
        broker: String,
        /// The broker's time minus ours when it answered, in milliseconds.
        clock_offset_ms: i64,
    },
    Down {
        since: Timestamp,
        why: String,
        whose_move: Whose,
        next_attempt: Timestamp,
    },
    Stopped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Whose {
    /// Nobody has to act: it is tried again.
    Agent,
    /// The broker or the network must come back.
    Broker,
    /// The recipient, by its node or its officer.
    Recipient,
    /// An officer of the sender.
    Sender,
    /// A person must look at certificates, clock or configuration.
    Administrator,
}

/// Why there is no connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The address does not resolve, or nothing answers there.
    Unreachable(String),
    /// The TLS handshake was refused by one of the two sides.
    Identity(String),
    /// The broker answered `Hello` with a refusal.
    Refused(String),
    /// The connection was there and is gone.
    Lost(String),
}

impl Failure {
    fn why(&self) -> &str {
        match self {
            Self::Unreachable(why) | Self::Identity(why) | Self::Refused(why) | Self::Lost(why) => why,
        }
    }

    const fn whose_move(&self) -> Whose {
        match self {
            Self::Unreachable(_) => Whose::Broker,
            Self::Identity(_) | Self::Refused(_) => Whose::Administrator,
            Self::Lost(_) => Whose::Agent,
        }
    }
}

/// The rule of back-off: doubling, bounded, with up to half taken off at random so that a thousand agents do not come
/// back in the same moment.
pub fn back_off(failures: u32, min: Duration, max: Duration, random: u64) -> Duration {
    let doubled = min.saturating_mul(1u32.checked_shl(failures.saturating_sub(1).min(20)).unwrap_or(u32::MAX)).min(max);
    let half = doubled / 2;
    let half_ms = u64::try_from(half.as_millis()).unwrap_or(u64::MAX);
    doubled.saturating_sub(Duration::from_millis(random.checked_rem(half_ms).unwrap_or(0)))
}

/// A link that lived so long was a good one; one that is lost sooner counts on, so that a flapping link backs off.
pub const STEADY_AFTER: Duration = Duration::from_secs(30);

#[derive(Debug, Clone)]
pub struct Uplink {
    min: Duration,
    max: Duration,
    failures: u32,
    state: LinkState,
}

impl Uplink {
    pub fn new(min: Duration, max: Duration, now: Timestamp) -> Self {
        Self { min, max, failures: 0, state: LinkState::Connecting { since: now } }
    }

    pub fn state(&self) -> &LinkState {
        &self.state
    }

    pub fn connecting(&mut self, now: Timestamp) {
        self.state = LinkState::Connecting { since: now };
    }

    pub fn connected(&mut self, now: Timestamp, broker: String, broker_time: Timestamp) {
        let clock_offset_ms = broker_time.unix_ms().saturating_sub(now.unix_ms());
        self.state = LinkState::Up { since: now, broker, clock_offset_ms };
    }

    /// Takes in a failure; returns when to try again.
    pub fn failed(&mut self, now: Timestamp, failure: &Failure, random: u64) -> Timestamp {
        if matches!(&self.state, LinkState::Up { since, .. } if now.since(*since) >= STEADY_AFTER) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        let next_attempt = now.plus(back_off(self.failures, self.min, self.max, random));
        self.state = LinkState::Down {
            since: now,
            why: failure.why().to_owned(),
            whose_move: failure.whose_move(),
            next_attempt,
        };
        next_attempt
    }

    pub fn stopped(&mut self) {
        self.state = LinkState::Stopped;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_unix_ms(ms)
    }

    #[test]
    fn pauses_double_up_to_the_bound_and_lose_at_most_half_at_random() {
        let (min, max) = (Duration::from_millis(100), Duration::from_millis(1000));
        let plain: Vec<u128> = (1..=6).map(|n| back_off(n, min, max, 0).as_millis()).collect();
        assert_eq!(plain, [100, 200, 400, 800, 1000, 1000]);
        assert_eq!(back_off(40, min, max, 499), Duration::from_millis(501));
        assert_eq!(back_off(40, min, max, 500), Duration::from_millis(1000));
        assert_eq!(back_off(u32::MAX, Duration::from_secs(1), Duration::from_secs(30), 0), Duration::from_secs(30));
    }

    #[test]
    fn every_way_of_being_down_says_whose_move_it_is_and_only_a_link_that_lasts_starts_over() {
        let mut uplink = Uplink::new(Duration::from_secs(1), Duration::from_secs(8), at(0));
        for (failure, whose) in [
            (Failure::Unreachable("no answer".into()), Whose::Broker),
            (Failure::Identity("certificate expired".into()), Whose::Administrator),
            (Failure::Refused("clock-skew".into()), Whose::Administrator),
        ] {
            let next = uplink.failed(at(0), &failure, 0);
            assert_eq!(
                *uplink.state(),
                LinkState::Down { since: at(0), why: failure.why().into(), whose_move: whose, next_attempt: next }
            );
        }
        uplink.connected(at(10), "docaxis/0.1".into(), at(12));
        assert_eq!(*uplink.state(), LinkState::Up { since: at(10), broker: "docaxis/0.1".into(), clock_offset_ms: 2 });
        let lost = Failure::Lost("reset".into());
        assert_eq!(uplink.failed(at(20), &lost, 0), at(8020), "a link that flaps backs off");
        uplink.connected(at(30), "docaxis/0.1".into(), at(30));
        assert_eq!(uplink.failed(at(30_030), &lost, 0), at(31_030));
    }
}
