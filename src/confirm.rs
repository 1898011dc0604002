//! Asks a person before something is destroyed.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use crate::out::{Failure, Out};

#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Confirm {
    /// Do it without asking.
    #[arg(long)]
    yes: bool,
}

impl Confirm {
    /// Goes on only after `--yes`, or a "y" on a terminal.
    pub fn ask(self, out: Out, question: &str) -> Result<(), Failure> {
        if self.yes {
            return Ok(());
        }
        if out.json || !std::io::stdin().is_terminal() {
            return Err(
                Failure::usage(format!("{question} Nobody can be asked here.")).hint("Repeat the command with --yes.")
            );
        }
        let mut stderr = std::io::stderr();
        write!(stderr, "{question} [y/N] ")?;
        stderr.flush()?;
        let mut answer = String::new();
        std::io::stdin().lock().read_line(&mut answer)?;
        match answer.trim() {
            "y" | "Y" | "yes" => Ok(()),
            _ => Err(Failure { exit: 1, code: "cancelled".into(), ..Failure::other("nothing was changed") }),
        }
    }
}
