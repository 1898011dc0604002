//! `docaxis`: every role of the exchange as a subcommand. Parses, runs, and turns the outcome into an exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    docaxis::cli::main()
}
