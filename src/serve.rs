//! What the long-running commands have in common: logs, and waiting for the signal to stop.

use tracing_subscriber::EnvFilter;

use crate::control::block_on;
use crate::out::{Failure, Out};

/// Logs go to stderr; `RUST_LOG` chooses, `--json` makes each line a JSON object.
pub fn start_logging(out: Out) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if out.json {
        builder.json().try_init()
    } else {
        builder.with_ansi(std::env::var_os("NO_COLOR").is_none() && is_terminal()).try_init()
    };
    if let Err(error) = started {
        eprintln!("logs were set up before: {error}");
    }
}

fn is_terminal() -> bool {
    use std::io::IsTerminal as _;
    std::io::stderr().is_terminal()
}

/// How often a running command looks whether it must give up by itself.
const LOOK: std::time::Duration = std::time::Duration::from_millis(500);

/// Set to a process id: the command stops when that process is no longer its parent.
pub const STOP_WITH_PARENT: &str = "DOCAXIS_STOP_WITH_PARENT";

/// Whether the process that this one was to live as long as is gone.
fn orphaned() -> bool {
    let parent = std::env::var(STOP_WITH_PARENT).ok().and_then(|text| text.parse::<i32>().ok());
    parent.is_some_and(|pid| rustix::process::getppid().is_none_or(|now| now.as_raw_nonzero().get() != pid))
}

/// Waits for SIGTERM or SIGINT, or until `given_up` says why it cannot go on.
pub fn wait_for_stop(given_up: impl Fn() -> Option<Failure>) -> Result<(), Failure> {
    block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        loop {
            tokio::select! {
                _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
                _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
                () = tokio::time::sleep(LOOK) => match given_up() {
                    Some(failure) => return Err(failure),
                    None if orphaned() => tracing::info!("the parent process is gone: stopping"),
                    None => continue,
                },
            }
            return Ok(());
        }
    })
}
