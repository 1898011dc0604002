//! Arming one failpoint, and dying there.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Signal, getpid, kill_process};

use crate::names::{AGENT, BROKER};

/// What is armed: a name, and how many passes are left.
static ARMED: OnceLock<(&'static str, AtomicU64)> = OnceLock::new();

#[derive(Debug, PartialEq, Eq)]
pub enum ArmError {
    /// Not of the form `name:n` with n from 1 on.
    Malformed(String),
    Unknown(String),
    Twice,
}

impl std::fmt::Display for ArmError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Malformed(text) => write!(f, "{text:?} is no failpoint; expected NAME:N, N counting passes from 1"),
            Self::Unknown(name) => write!(f, "there is no failpoint {name:?}"),
            Self::Twice => write!(f, "a failpoint is armed already; there can be one in a process"),
        }
    }
}

impl std::error::Error for ArmError {}

/// Arms `NAME:N`: the process dies at the N-th pass of that failpoint.
pub fn arm(text: &str) -> Result<(), ArmError> {
    let malformed = || ArmError::Malformed(text.to_owned());
    let (name, passes) = text.split_once(':').ok_or_else(malformed)?;
    let passes = passes.parse().ok().filter(|passes| *passes > 0).ok_or_else(malformed)?;
    let known = BROKER.iter().chain(AGENT).copied().find(|known| *known == name);
    let known = known.ok_or_else(|| ArmError::Unknown(name.to_owned()))?;
    ARMED.set((known, AtomicU64::new(passes))).map_err(|_| ArmError::Twice)
}

/// Counts a pass, and dies if it is the one.
pub fn pass(name: &'static str) {
    let Some((armed, left)) = ARMED.get() else { return };
    if *armed == name && left.fetch_sub(1, Ordering::Relaxed) == 1 {
        die();
    }
}

/// No destructor runs and no buffer is flushed. Does not return: the signal cannot be held up.
fn die() -> ! {
    loop {
        if let Err(error) = kill_process(getpid(), Signal::KILL) {
            eprintln!("SIGKILL could not be sent: {error}");
            std::process::abort();
        }
        std::thread::park();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_armed_must_be_a_known_name_with_a_pass_and_only_one_can_be() {
        let refused = |text: &str| arm(text).unwrap_err();
        assert_eq!(refused("broker.commit.synced"), ArmError::Malformed("broker.commit.synced".into()));
        assert_eq!(refused("broker.commit.synced:0"), ArmError::Malformed("broker.commit.synced:0".into()));
        assert_eq!(refused("broker.commit.sunk:1"), ArmError::Unknown("broker.commit.sunk".into()));
        assert_eq!(arm("broker.commit.synced:2"), Ok(()));
        pass("broker.commit.synced");
        pass("broker.commit.visible");
        assert_eq!(refused("broker.commit.synced:1"), ArmError::Twice);
    }
}
