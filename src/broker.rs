//! `docaxis broker`: runs, checks and asks the central broker.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use docaxis_broker::{Broker, BrokerConfig};
use docaxis_protocol::ReasonCode;
use serde_json::{Value, json};

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
        let hint = format!("Start the broker: docaxis broker run --config {}", self.config.display());
        Ok(Control::new(&docaxis_broker::control_socket(&config), hint))
    }
}

pub fn run(command: Command, out: Out) -> Result<(), Failure> {
    match command {
        Command::Run(arg) => serve(&arg, out),
        Command::Check(arg) => check(&arg, out),
        Command::Status(arg) => status(&arg, out),
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
        _ => Failure::other(message),
    }
}

fn check(arg: &ConfigArg, out: Out) -> Result<(), Failure> {
    let config = arg.load()?;
    let origin = docaxis_broker::check(&config).map_err(|e| start_failure(&e))?;
    let words = format!("{} is good: exchange {origin}, listening on {}", arg.config.display(), config.broker.listen);
    out.data(&json!({"ok": true, "origin": origin, "listen": config.broker.listen.to_string()}), words)
}

fn status(arg: &ConfigArg, out: Out) -> Result<(), Failure> {
    let status: Value = arg.control()?.get("/v1/status")?;
    let words = status
        .as_object()
        .map(|fields| fields.iter().map(|(key, value)| format!("{key}: {}\n", plain(value))).collect::<String>())
        .unwrap_or_default();
    out.data(&status, words)
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
