//! `docaxis agent`: joins, runs, checks and asks one node's agent.

mod join;

use clap::Subcommand;
use docaxis_certs::NodeIdentity;
use docaxis_node_agent::{Agent, AgentConfig, AgentError, Env, Identity};
use docaxis_protocol::ReasonCode;
use serde_json::{Value, json};

use crate::doc::AgentArg;
use crate::out::{Failure, Out, chain};
use crate::serve;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Join an exchange with the token that its authority printed. An interrupted join is repeated by the same command.
    Join(join::Join),
    /// Keep the mailbox and the link to the broker until SIGTERM.
    Run(AgentArg),
    /// Check the configuration and the identity without starting.
    Check(AgentArg),
    /// Ask the running agent how it is.
    Status(AgentArg),
}

pub fn run(command: Command, out: Out) -> Result<(), Failure> {
    match command {
        Command::Join(args) => join::run(&args, out),
        Command::Run(arg) => serve(&arg, out),
        Command::Check(arg) => check(&arg, out),
        Command::Status(arg) => status(&arg, out),
    }
}

fn identity(config: &AgentConfig) -> Result<Identity, Failure> {
    let folder = &config.agent.identity;
    let failure = |message: String| Failure { exit: 7, code: "identity".into(), ..Failure::other(message) };
    if !NodeIdentity::exists(folder) {
        return Err(failure(format!("{} holds no identity", folder.display()))
            .hint("Join an exchange first: docaxis agent join TOKEN."));
    }
    Identity::load(folder).map_err(|error| {
        failure(format!("the identity in {} cannot be used: {}", folder.display(), chain(&error)))
            .hint("Restore the folder from a backup, or ask the authority for a new invitation.")
    })
}

fn serve(arg: &AgentArg, out: Out) -> Result<(), Failure> {
    serve::start_logging(out);
    let config = arg.load()?;
    let identity = identity(&config)?;
    let (node, origin) = (identity.node.clone(), identity.origin.clone());
    let socket = config.agent.data.join("control.sock");
    let agent = Agent::start(config, identity, Env::real()).map_err(|error| start_failure(&error))?;
    let words = format!("agent of node {node} in {origin} is running; control socket {}", socket.display());
    out.data(&json!({"node": node, "origin": origin, "control": socket}), words)?;
    let waited = serve::wait_for_stop(|| None);
    agent.shutdown_blocking().map_err(|error| Failure::other(chain(&error)))?;
    waited
}

fn start_failure(error: &AgentError) -> Failure {
    let message = chain(error);
    match error {
        AgentError::Config(_) => Failure::usage(message),
        AgentError::Locked(_) => {
            Failure::new(ReasonCode::Busy, message).hint("Stop the other agent, or ask it: docaxis agent status.")
        }
        AgentError::Identity { .. } => Failure { exit: 7, code: "identity".into(), ..Failure::other(message) },
        _ => Failure::other(message),
    }
}

fn check(arg: &AgentArg, out: Out) -> Result<(), Failure> {
    let config = arg.load()?;
    let identity = identity(&config)?;
    let agencies: Vec<_> = identity.seals.keys().collect();
    let broker = config.agent.broker.as_ref().unwrap_or(&identity.broker);
    let words = format!(
        "{} is good: node {} of {}, broker {broker}, acts for {}",
        arg.config.display(),
        identity.node,
        identity.origin,
        agencies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    );
    let value = json!({
        "ok": true, "node": identity.node, "origin": identity.origin, "broker": broker, "agencies": agencies,
    });
    out.data(&value, words)
}

fn status(arg: &AgentArg, out: Out) -> Result<(), Failure> {
    let status: Value = arg.control()?.get("/v1/status")?;
    let words = status
        .as_object()
        .map(|fields| fields.iter().map(|(key, value)| format!("{key}: {}\n", plain(value))).collect::<String>())
        .unwrap_or_default();
    out.data(&status, words)
}

/// A JSON value on one line, without the quotes and braces that only a program needs.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "none".into(),
        Value::Array(items) if items.is_empty() => "none".into(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join("; "),
        Value::Object(fields) => {
            fields.iter().map(|(key, value)| format!("{key} {}", plain(value))).collect::<Vec<_>>().join(", ")
        }
        other => other.to_string(),
    }
}
