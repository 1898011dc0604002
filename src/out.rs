//! What commands print, and how they fail: data on stdout, talk on stderr; `--json` makes both one JSON document.

use std::fmt::Display;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use docaxis_protocol::{Reason, ReasonCode};
use serde::Serialize;
use serde_json::json;

/// The languages that people read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Lang {
    Vi,
    En,
}

impl Lang {
    /// Vietnamese if the locale says so, else English.
    pub fn from_locale() -> Self {
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = set("LC_ALL").or_else(|| set("LC_MESSAGES")).or_else(|| set("LANG")).unwrap_or_default();
        if locale.starts_with("vi") { Self::Vi } else { Self::En }
    }
}

/// Where a command's output goes.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    pub json: bool,
    pub lang: Lang,
}

impl Out {
    /// Prints the command's result: `value` under `--json`, else `words`.
    pub fn data(&self, value: &impl Serialize, words: impl Display) -> Result<(), Failure> {
        let text = if self.json {
            serde_json::to_string_pretty(value)
                .map_err(|e| Failure::other(format!("the result cannot be written: {e}")))?
        } else {
            words.to_string()
        };
        let mut stdout = std::io::stdout().lock();
        let written = if text.is_empty() { Ok(()) } else { writeln!(stdout, "{}", text.trim_end_matches('\n')) };
        match written.and_then(|()| stdout.flush()) {
            // Whoever read our output has seen enough, such as `head`.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
            Err(error) => Err(Failure::other(format!("the result cannot be printed: {error}"))),
            Ok(()) => Ok(()),
        }
    }

    /// Says something beside the result.
    pub fn talk(&self, words: impl Display) {
        if !self.json {
            eprintln!("{words}");
        }
    }

    /// Whether colours may be used on stdout.
    pub fn colours(&self) -> bool {
        !self.json && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) && std::io::stdout().is_terminal()
    }
}

/// Why a command failed: a stable code, what happened, what to do next, and the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub code: String,
    pub message: String,
    pub hint: String,
    pub exit: u8,
}

impl Failure {
    pub fn new(code: ReasonCode, message: impl Into<String>) -> Self {
        let text = code.text();
        Self { code: text.code.into(), message: message.into(), hint: text.hint.into(), exit: text.exit_code }
    }

    pub fn other(message: impl Into<String>) -> Self {
        Self { code: "other".into(), message: message.into(), hint: String::new(), exit: 1 }
    }

    /// A wrong use of the command line, or a file that does not read.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: "usage".into(), message: message.into(), hint: "See `docaxis help`.".into(), exit: 2 }
    }

    /// A failure that the printed result has told already: only the exit code is left to say it.
    pub fn told(exit: u8) -> Self {
        Self { code: String::new(), message: String::new(), hint: String::new(), exit }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// Prints the failure and gives its exit code.
    pub fn report(&self, out: Out) -> ExitCode {
        if self.code.is_empty() {
            return ExitCode::from(self.exit);
        }
        if out.json {
            let error = json!({"error": {"code": self.code, "message": self.message, "hint": self.hint}});
            println!("{error:#}");
        } else {
            let known = self.code.parse::<ReasonCode>().ok().filter(|_| out.lang == Lang::Vi);
            if let Some(code) = known {
                eprintln!("lỗi [{}]: {}", self.code, code.text().vi);
                eprintln!("  {}", self.message);
            } else {
                eprintln!("error [{}]: {}", self.code, self.message);
            }
            if !self.hint.is_empty() {
                eprintln!("  {}", self.hint);
            }
        }
        ExitCode::from(self.exit)
    }
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        let code = reason.known();
        Self { code: reason.code, ..Self::new(code, reason.text) }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::other(error.to_string())
    }
}

/// The whole chain of an error in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
