//! `docaxis broker`: runs, checks and asks the central broker.

mod copies;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use docaxis_broker::config::ConsoleListen;
use docaxis_broker::{Broker, BrokerConfig};
use docaxis_protocol::ReasonCode;
use serde_json::{Value, json};

pub use copies::{of_backup, told};

use crate::control::Control;
use crate::out::{Failure, Out, chain};
use crate::serve;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve until SIGTERM.
    Run(ConfigArg),
    /// Check the configuration and the identity without starting.
    Check(ConfigArg),
    /// Ask the running broker how it is.
    Status(ConfigArg),
    /// Copy what must not be lost to a folder, while the broker runs or is stopped.
    Backup(copies::Backup),
    /// Put a backup in the place of a stopped broker's data.
    Restore(copies::Restore),
    /// Build the index of a stopped broker anew.
    Rebuild(ConfigArg),
}

#[derive(Debug, Args)]
pub struct ConfigArg {
    /// The broker's configuration file.
    #[arg(long, env = "DOCAXIS_BROKER_CONFIG", default_value = "/etc/docaxis/broker.toml")]
    pub config: PathBuf,
}

impl ConfigArg {
    pub fn load(&self) -> Result<BrokerConfig, Failure> {
        BrokerConfig::load(&self.config).map_err(|e| {
            Failure::usage(chain(&e)).hint("`docaxis ca init` writes a broker.toml; --config names another place.")
        })
    }

    /// The control socket of the broker with this configuration.
    pub fn control(&self) -> Result<Control, Failure> {
        let config = self.load()?;
        let mut hint = format!("Start the broker: docaxis broker run --config {}", self.config.display());
        if let ConsoleListen::At(address) = config.console.listen {
            hint += &format!(". If it is just starting, http://{address}/readyz says how far it is.");
        }
        Ok(Control::new(&docaxis_broker::control_socket(&config), hint))
    }
}

pub fn run(command: Command, out: Out) -> Result<(), Failure> {
    match command {
        Command::Run(arg) => serve(&arg, out),
        Command::Check(arg) => check(&arg, out),
        Command::Status(arg) => status(&arg, out),
        Command::Backup(args) => copies::backup(&args, out),
        Command::Restore(args) => copies::restore(&args, out),
        Command::Rebuild(arg) => copies::rebuild(&arg, out),
    }
}

fn serve(arg: &ConfigArg, out: Out) -> Result<(), Failure> {
    serve::start_logging(out);
    let config = arg.load()?;
    let broker = Broker::start(&config).map_err(|e| start_failure(&e))?;
    out.data(&json!({"listening": broker.address().to_string()}), format!("listening on {}", broker.address()))?;
    serve::wait_for_stop(|| broker.poisoned().map(|e| Failure::other(format!("{e}; start the broker again"))))?;
    broker.stop().map_err(|e| Failure::other(format!("the store did not close cleanly: {e}")))
}

fn start_failure(error: &docaxis_broker::StartError) -> Failure {
    use docaxis_broker::StartError as E;
    let message = chain(error);
    match error {
        E::Identity(_) | E::Trust(_) | E::Seal(_) | E::Chain(_) => {
            let failure = Failure { exit: 7, code: "identity".into(), ..Failure::other(message) };
            failure.hint("`docaxis ca init` writes the broker's certificates; see broker.identity in broker.toml.")
        }
        E::Store(docaxis_broker::store::StoreError::DiskFull(_)) => Failure::new(ReasonCode::DiskFull, message),
        E::Log(log) if log.is_disk_full() => Failure::new(ReasonCode::DiskFull, message),
        E::Store(docaxis_broker::store::StoreError::Locked(_)) => {
            Failure { exit: 4, ..Failure::new(ReasonCode::Busy, message) }
                .hint("Stop the other broker, or give this one its own data.")
        }
        _ => Failure::other(message),
    }
}

fn check(arg: &ConfigArg, out: Out) -> Result<(), Failure> {
    let config = arg.load()?;
    let origin = docaxis_broker::check(&config).map_err(|e| start_failure(&e))?;
    let (listen, console) = (config.broker.listen.to_string(), config.console.listen.to_string());
    let words =
        format!("{} is good: exchange {origin}, listening on {listen}, console {console}", arg.config.display());
    out.data(&json!({"ok": true, "origin": origin, "listen": listen, "console": console}), words)
}

fn status(arg: &ConfigArg, out: Out) -> Result<(), Failure> {
    let status: Value = arg.control()?.get("/v1/status")?;
    let words = status
        .as_object()
        .map(|fields| {
            let line = |(key, value): (&String, &Value)| match key.as_str() {
                "continuity" => format!("{key}: {}\n", continuity(value)),
                _ => format!("{key}: {}\n", plain(value)),
            };
            fields.iter().map(line).collect::<String>()
        })
        .unwrap_or_default();
    out.data(&status, words)
}

/// Whether the exchange is open and, if not, why, what is missing and whose move it is.
fn continuity(report: &Value) -> String {
    if report["open"] == true {
        return "open".to_owned();
    }
    let text = |key: &str| report[key].as_str().unwrap_or_default();
    let mut words = format!("CLOSED: {}; {} leaves", text("why"), report["leaves"]);
    if let Some(size) = report["checkpoint"].as_u64() {
        words += &format!(" of {size} that the newest checkpoint covers");
    }
    let missing: Vec<String> = report["missing"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|range| match (&range[0], &range[1]) {
            (from, to) if from == to => from.to_string(),
            (from, to) => format!("{from} to {to}"),
        })
        .collect();
    if !missing.is_empty() {
        words += &format!("; missing: leaf {}", missing.join(", "));
    }
    let waiting = plain(&report["waiting_for"]);
    if !waiting.is_empty() {
        words += &format!("; waiting for {waiting}");
    }
    let giving = plain(&report["giving"]);
    if !giving.is_empty() {
        words += &format!("; not everything has come from {giving}");
    }
    if report["waiting_for_authority"] == true {
        words += "; waiting for the authority (docaxis ca serve)";
    }
    words + ". Next: " + text("next")
}

/// A JSON value without the quotes that only a program needs.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        // What says itself in words needs no numbers beside them.
        Value::Object(fields) if fields.contains_key("words") => plain(&fields["words"]),
        other => other.to_string(),
    }
}
