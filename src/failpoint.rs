//! Debug builds can be told to die or to wait at a failpoint; see `docs/reliability.md`. A release build does not know how.

use crate::out::Failure;

/// `NAME:N`: the process dies at the N-th pass of this failpoint; `NAME:N@FIFO`: it waits there for a writer of the FIFO.
const VARIABLE: &str = "DOCAXIS_FAILPOINT";

/// Arms the failpoint that the environment names, if it names one.
pub fn arm() -> Result<(), Failure> {
    match std::env::var(VARIABLE) {
        Ok(text) => docaxis_failpoints::arm(&text).map_err(|error| Failure::usage(format!("{VARIABLE}: {error}"))),
        Err(std::env::VarError::NotPresent) => Ok(()),
        Err(error) => Err(Failure::usage(format!("{VARIABLE}: {error}"))),
    }
}
