//! `docaxis agent run|check|status`.

use docaxis_node_agent::identity::Identity;
use docaxis_node_agent::mailbox::MailboxError;
use docaxis_node_agent::{Agent, AgentConfig, AgentError, Env};
use docaxis_protocol::ReasonCode;
use serde_json::{Value, json};

use crate::doc::AgentArg;
use crate::out::{Failure, Out, chain};
use crate::serve;

/// Serves until SIGTERM.
pub fn run(arg: &AgentArg, out: Out) -> Result<(), Failure> {
    serve::start_logging(out);
    let config = arg.load()?;
    let identity = identity(&config)?;
    let node = identity.node.clone();
    let agent = Agent::start(config, identity, Env::real()).map_err(|e| start_failure(&e))?;
    out.data(&json!({"node": node}), format!("node {node} runs"))?;
    serve::wait_for_stop(|| {
        let failed = |why| format!("the mailbox takes nothing more: {why}; start the agent again");
        agent.poisoned().map(|why| Failure::other(failed(why)))
    })?;
    agent.shutdown_blocking().map_err(|e| Failure::other(chain(&e)))
}

pub(super) fn identity(config: &AgentConfig) -> Result<Identity, Failure> {
    Identity::load(&config.agent.identity).map_err(|e| {
        let failure = Failure { exit: 7, code: "identity".into(), ..Failure::other(chain(&e)) };
        failure.hint("Join an exchange first: docaxis agent join TOKEN, with a token from `docaxis ca invite`.")
    })
}

fn start_failure(error: &AgentError) -> Failure {
    let failure = Failure::other(chain(error));
    match error {
        AgentError::Config(_) => Failure { exit: 2, ..failure },
        AgentError::Mailbox(MailboxError::Full) => Failure::new(ReasonCode::DiskFull, chain(error)),
        AgentError::Parts(parts) if parts.is_disk_full() => Failure::new(ReasonCode::DiskFull, chain(error)),
        AgentError::Identity { .. } => Failure { exit: 7, code: "identity".into(), ..failure },
        AgentError::Locked(_) => {
            Failure { exit: 4, ..failure }.hint("Stop the other agent, or give this one its own data.")
        }
        _ => failure,
    }
}

/// Checks the configuration and the identity without starting.
pub fn check(arg: &AgentArg, out: Out) -> Result<(), Failure> {
    let config = arg.load()?;
    let identity = identity(&config)?;
    let agencies: Vec<&str> = identity.seals.keys().map(|code| code.as_str()).collect();
    let words = format!(
        "{} is good: node {} of {}, broker {}, acting for {}",
        arg.config.display(),
        identity.node,
        identity.origin,
        identity.broker,
        agencies.join(", ")
    );
    let value = json!({
        "ok": true, "node": identity.node, "origin": identity.origin, "broker": identity.broker, "agencies": agencies,
    });
    out.data(&value, words)
}

/// Asks the running agent how it is.
pub fn status(arg: &AgentArg, out: Out) -> Result<(), Failure> {
    let status: Value = arg.control()?.get("/v1/status")?;
    out.data(&status, words(&status))
}

fn words(status: &Value) -> String {
    let text = |key: &str| status[key].as_str().unwrap_or_default();
    let agencies: Vec<&str> = status["agencies"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut words = format!("node {} of {}, acting for {}\n", text("node"), text("origin"), agencies.join(", "));
    words += &format!("link: {}\n", status["link"]);
    for which in ["outbox", "inbox"] {
        let counts: Vec<String> = status[which]
            .as_array()
            .into_iter()
            .flatten()
            .map(|count| format!("{} {}", count["count"], count["state"].as_str().unwrap_or_default()))
            .collect();
        words += &format!("{which}: {}\n", if counts.is_empty() { "empty".into() } else { counts.join(", ") });
    }
    words += &format!("space: {}\n", status["space"]["words"].as_str().unwrap_or_default());
    for gone in status["gone"].as_array().into_iter().flatten() {
        let text = |key: &str| gone[key].as_str().unwrap_or_default();
        words += &format!(
            "LOST with the restore: dispatch {} from {} to {}, received {}; the exchange no longer has its content, ask the \
             sender\n",
            text("dispatch"),
            text("sender"),
            text("recipient"),
            text("handed_over")
        );
    }
    for alarm in status["alarms"].as_array().into_iter().flatten() {
        words += &format!(
            "ALARM {} {}\n",
            alarm["time"].as_str().unwrap_or_default(),
            alarm["text"].as_str().unwrap_or_default()
        );
    }
    words
}
