//! Arming one failpoint, and dying or waiting there.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::process::{Signal, getpid, kill_process};

use crate::names::{AGENT, BROKER};

/// What is armed.
struct Armed {
    name: &'static str,
    /// Passes that are left.
    left: AtomicU64,
    /// A FIFO: the process waits for its writer instead of dying.
    gate: Option<PathBuf>,
}

static ARMED: OnceLock<Armed> = OnceLock::new();

#[derive(Debug, PartialEq, Eq)]
pub enum ArmError {
    /// Not of the form `name:n` or `name:n@fifo` with n from 1 on.
    Malformed(String),
    Unknown(String),
    Twice,
}

impl std::fmt::Display for ArmError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Malformed(text) => {
                write!(f, "{text:?} is no failpoint; expected NAME:N or NAME:N@FIFO, N counting passes from 1")
            }
            Self::Unknown(name) => write!(f, "there is no failpoint {name:?}"),
            Self::Twice => write!(f, "a failpoint is armed already; there can be one in a process"),
        }
    }
}

impl std::error::Error for ArmError {}

/// Arms `NAME:N`: the process dies at the N-th pass of that failpoint. With `NAME:N@FIFO` the thread waits there instead,
/// until somebody has opened that FIFO for writing and closed it.
pub fn arm(text: &str) -> Result<(), ArmError> {
    let malformed = || ArmError::Malformed(text.to_owned());
    let (name, passes) = text.split_once(':').ok_or_else(malformed)?;
    let (passes, gate) = match passes.split_once('@') {
        Some((passes, gate)) if !gate.is_empty() => (passes, Some(PathBuf::from(gate))),
        Some(_) => return Err(malformed()),
        None => (passes, None),
    };
    let passes = passes.parse().ok().filter(|passes| *passes > 0).ok_or_else(malformed)?;
    let known = BROKER.iter().chain(AGENT).copied().find(|known| *known == name);
    let known = known.ok_or_else(|| ArmError::Unknown(name.to_owned()))?;
    ARMED.set(Armed { name: known, left: AtomicU64::new(passes), gate }).map_err(|_| ArmError::Twice)
}

/// Counts a pass, and dies or waits if it is the one.
pub fn pass(name: &'static str) {
    let Some(armed) = ARMED.get() else { return };
    if armed.name != name || armed.left.fetch_sub(1, Ordering::Relaxed) != 1 {
        return;
    }
    match &armed.gate {
        None => die(),
        // Both the open and the read wait for a writer; the end comes when the last one has closed it.
        Some(gate) => {
            if let Err(error) = std::fs::read(gate) {
                eprintln!("{} cannot be waited for at {name}: {error}", gate.display());
                std::process::abort();
            }
        }
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
        assert_eq!(refused("broker.commit.synced:2@"), ArmError::Malformed("broker.commit.synced:2@".into()));
        assert_eq!(refused("broker.commit.sunk:1"), ArmError::Unknown("broker.commit.sunk".into()));
        assert_eq!(arm("broker.commit.synced:2"), Ok(()));
        pass("broker.commit.synced");
        pass("broker.commit.visible");
        assert_eq!(refused("broker.commit.synced:1"), ArmError::Twice);
    }
}
