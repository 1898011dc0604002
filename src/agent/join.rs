//! `docaxis agent join`: gets this node its certificates, and writes the agent's configuration.

use std::path::{Path, PathBuf};

use clap::Args;
use docaxis_certs::join::{PendingJoinError, TokenError};
use docaxis_certs::refusal::HandshakeRefusal;
use docaxis_certs::{NodeIdentity, PendingJoin, Token, files, layout, tls};
use docaxis_node_agent::link::FramesError;
use docaxis_node_agent::link::endpoint::ConnectError;
use docaxis_node_agent::link::join::{JoinLinkError, ask_to_join};
use docaxis_protocol::limits::MAX_CLOCK_SKEW;
use docaxis_protocol::{AgencyCode, ReasonCode};
use serde::Serialize;
use serde_json::json;

use crate::clock;
use crate::control::block_on;
use crate::out::{Failure, Out, chain};

const SOFTWARE: &str = concat!("docaxis ", env!("CARGO_PKG_VERSION"));

#[derive(Debug, Args)]
pub struct Join {
    /// What `docaxis ca invite` printed; `-` reads it from stdin, where other users of this machine do not see it.
    token: String,
    /// Ask for these agencies instead of the token's; the authority must approve what the token does not name.
    #[arg(long = "agency", value_name = "CODE", value_delimiter = ',')]
    agencies: Vec<AgencyCode>,
    /// Keep configuration, identity and data of the agent in this one folder [default: /etc/docaxis/agent.toml and
    /// /var/lib/docaxis/agent].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Where the agent's files lie, and how `agent.toml` names them.
struct Places {
    config: PathBuf,
    identity: PathBuf,
    section: Section,
}

/// What this command writes of `agent.toml`; every other key has a default.
#[derive(Serialize)]
struct File<'a> {
    agent: &'a Section,
}

#[derive(Serialize)]
struct Section {
    data: PathBuf,
    identity: PathBuf,
}

impl Places {
    fn of(dir: Option<&Path>) -> Self {
        match dir {
            Some(dir) => Self {
                config: dir.join("agent.toml"),
                identity: dir.join("identity"),
                section: Section { data: "data".into(), identity: "identity".into() },
            },
            None => Self {
                config: "/etc/docaxis/agent.toml".into(),
                identity: "/var/lib/docaxis/agent/identity".into(),
                section: Section {
                    data: "/var/lib/docaxis/agent".into(),
                    identity: "/var/lib/docaxis/agent/identity".into(),
                },
            },
        }
    }
}

pub fn run(args: &Join, out: Out) -> Result<(), Failure> {
    let places = Places::of(args.dir.as_deref());
    let token = read_token(&args.token)?;
    if NodeIdentity::exists(&places.identity) {
        return Err(already_joined(&places));
    }
    let pending = begin(&token, &args.agencies, &places)?;
    let answer = block_on(async {
        ask_to_join(&pending, tls::system_clock()).await.map_err(|error| link_failure(&error, &pending, &places))
    })?;
    let identity = pending.accept(&answer, clock::now()).map_err(|error| {
        Failure { exit: 6, code: "not-authentic".into(), ..Failure::other(chain(&error)) }
            .hint("Nothing was kept of the answer. Check this machine's clock, and tell the authority.")
    })?;
    identity.save(&places.identity).map_err(|error| Failure::other(chain(&error)))?;
    let written = write_config(&places)?;
    let link = &identity.link;
    let agencies: Vec<_> = identity.seals.keys().collect();
    let value = json!({
        "node": link.node, "origin": link.origin, "broker_address": link.broker_address, "agencies": agencies,
        "identity": places.identity, "config": places.config, "config_written": written,
    });
    let codes = agencies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    out.data(&value, format_args!("node {} has joined {} and acts for {codes}", link.node, link.origin))?;
    out.talk(format_args!("Next: docaxis agent run --config {}", places.config.display()));
    Ok(())
}

fn read_token(text: &str) -> Result<Token, Failure> {
    let mut line = String::new();
    if text == "-" {
        std::io::stdin().read_line(&mut line)?;
    }
    let text = if text == "-" { line.as_str() } else { text };
    text.parse().map_err(|error: TokenError| Failure::new(ReasonCode::Malformed, error.to_string()))
}

fn already_joined(places: &Places) -> Failure {
    let who = NodeIdentity::load(&places.identity).map_or_else(
        |error| format!("an identity that does not read ({})", chain(&error)),
        |identity| format!("node {} of {}", identity.link.node, identity.link.origin),
    );
    Failure { exit: 5, code: "exists".into(), ..Failure::other(format!("{} holds {who}", places.identity.display())) }
        .hint("This machine has joined already; give --dir another folder for another node.")
}

/// Begins a join, or goes on with the one that was begun with this token. Its keys and request are on disk before they
/// are first sent: if the answer is lost, the same bytes get it again.
fn begin(token: &Token, agencies: &[AgencyCode], places: &Places) -> Result<PendingJoin, Failure> {
    let failed =
        |error: PendingJoinError| Failure::other(chain(&error)).hint(format!("See {}.", places.identity.display()));
    if let Some(pending) = PendingJoin::load(&places.identity).map_err(failed)? {
        if pending.token() == token {
            return Ok(pending);
        }
        // The authority may have granted it already, and then its keys are worth something.
        if pending.token().expires > clock::now() {
            let other = pending.token();
            let message = format!(
                "{} holds a join begun with invitation {} for {}",
                places.identity.display(),
                other.invitation,
                other.node
            );
            let hint = "Finish it with its own token, or remove pending-join.json there to give it up.";
            return Err(Failure { exit: 5, code: "exists".into(), ..Failure::other(message) }.hint(hint));
        }
    }
    let pending = match agencies {
        [] => PendingJoin::new(token.clone(), SOFTWARE),
        asked => PendingJoin::asking_for(token.clone(), asked, SOFTWARE),
    };
    let pending = pending.map_err(|error| Failure::other(chain(&error)))?;
    pending.save(&places.identity).map_err(failed)?;
    Ok(pending)
}

fn link_failure(error: &JoinLinkError, pending: &PendingJoin, places: &Places) -> Failure {
    let message = chain(error);
    let again = "Repeat the same command; what was begun is kept.";
    match error {
        JoinLinkError::Frames(FramesError::Refused(refusal)) => {
            let failure = Failure::from(refusal.reason.clone());
            let now = clock::now();
            let off = refusal.time.since(now).max(now.since(refusal.time));
            if off > MAX_CLOCK_SKEW {
                let hint = format!("The exchange's time is {}, this machine's is {now}: set the clock.", refusal.time);
                return failure.hint(hint);
            }
            match refusal.reason.known() {
                ReasonCode::Busy => failure.hint(again),
                ReasonCode::TokenUsed | ReasonCode::TokenExpired | ReasonCode::NotFound => {
                    set_aside(pending, places).map_or_else(|error| error, |()| failure)
                }
                _ => failure,
            }
        }
        JoinLinkError::Frames(FramesError::Lost { .. } | FramesError::TimedOut { .. }) => {
            Failure::new(ReasonCode::Busy, message).hint(again)
        }
        JoinLinkError::Connect(ConnectError::Refused { refusal, .. }) => match refusal.reason {
            HandshakeRefusal::NotYetValid | HandshakeRefusal::Expired => Failure::new(ReasonCode::ClockSkew, message)
                .hint("Compare this machine's clock with the exchange's first."),
            _ => Failure { exit: 7, code: "identity".into(), ..Failure::other(message) }
                .hint("The broker is not the one that the token names; ask the authority for a new token."),
        },
        JoinLinkError::Connect(ConnectError::Unreachable { .. } | ConnectError::Resolve { .. }) => {
            Failure { exit: 4, code: "unreachable".into(), ..Failure::other(message) }
                .hint(format!("Check that UDP to the broker is let through. {again}"))
        }
        _ => Failure::other(message),
    }
}

/// This request will never be answered, and must not stand in the way of the next token. Its keys are kept: only the
/// broker's word says that they are worth nothing.
fn set_aside(pending: &PendingJoin, places: &Places) -> Result<(), Failure> {
    let from = places.identity.join(layout::PENDING_JOIN);
    let to = places.identity.join(format!("refused-join-{}.json", pending.token().invitation));
    std::fs::rename(&from, &to).map_err(|error| Failure::other(format!("{} stays: {error}", from.display())))
}

/// Writes `agent.toml` unless there is one; says whether it did.
fn write_config(places: &Places) -> Result<bool, Failure> {
    if places.config.exists() {
        return Ok(false);
    }
    let text = toml::to_string(&File { agent: &places.section })
        .map_err(|error| Failure::other(format!("agent.toml cannot be written: {error}")))?;
    let folder = places.config.parent().unwrap_or(Path::new("."));
    files::create_folder(folder)
        .and_then(|()| files::write(&places.config, text.as_bytes()))
        .map_err(|error| Failure::other(chain(&error)))?;
    Ok(true)
}
