//! The control socket: how the command line talks to a running broker. HTTP over a Unix socket that only this user may
//! open; the peer's credentials are checked as well.

mod copies;

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::extract::{Path as UrlPath, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use axum::{Json, Router};
use docaxis_certs::BrokerIdentity;
use docaxis_protocol::{AgencyCode, DispatchId, Evidence, Reason, ReasonCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::unix::SocketAddr as UnixAddr;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::bundle::Keys;
use crate::dispatch::Exchange;
use crate::store::Seq;

pub use self::copies::{Copies, report};

/// How long an export waits for the checkpoint over the newest evidence, which follows within a second.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long a stop waits for a request that works on the disk.
const STOP_WITHIN: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("{} cannot be used: {source}", path.display())]
    Socket { path: PathBuf, source: io::Error },
    #[error("its thread cannot be started: {0}")]
    Thread(io::Error),
}

/// Where the broker listens.
pub struct Addresses {
    pub link: SocketAddr,
    /// None if it is off.
    pub console: Option<SocketAddr>,
}

struct Shared {
    copies: Copies,
    exchange: Arc<Exchange>,
    keys: Keys,
    addresses: Addresses,
}

/// The running control socket.
pub struct Control {
    path: PathBuf,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    pub fn start(
        path: &Path,
        identity: &BrokerIdentity,
        exchange: Arc<Exchange>,
        addresses: Addresses,
        copies: Copies,
    ) -> Result<Self, ControlError> {
        let socket = |source| ControlError::Socket { path: path.to_owned(), source };
        // The store's lock is ours: a socket that is still there was left by a broker that died.
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(socket(error)),
            _ => {}
        }
        let listener = std::os::unix::net::UnixListener::bind(path).map_err(socket)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(socket)?;
        listener.set_nonblocking(true).map_err(socket)?;
        let shared = Arc::new(Shared { exchange, keys: Keys::of(identity), addresses, copies });
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ControlError::Thread)?;
        let (stop, mut stopped) = watch::channel(false);
        let serve = move || {
            runtime.block_on(async move {
                let served = match UnixListener::from_std(listener) {
                    Ok(listener) => {
                        let serving = axum::serve(SameUser(listener), router(shared));
                        tokio::select! {
                            served = serving.into_future() => served,
                            _ = stopped.wait_for(|stop| *stop) => Ok(()),
                        }
                    }
                    Err(error) => Err(error),
                };
                if let Err(error) = served {
                    tracing::error!(%error, "the control socket stopped");
                }
            });
            // A backup that is broken off leaves the one before.
            runtime.shutdown_timeout(STOP_WITHIN);
        };
        let thread = std::thread::Builder::new().name("control".into()).spawn(serve).map_err(ControlError::Thread)?;
        Ok(Self { path: path.to_owned(), stop, thread: Some(thread) })
    }

    pub fn stop(&mut self) {
        let _already_ended = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            if thread.join().is_err() {
                tracing::error!("the control socket's thread had panicked");
            }
            if let Err(error) = std::fs::remove_file(&self.path) {
                tracing::debug!(%error, "the control socket's file is gone already");
            }
        }
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A listener that serves only the user who runs the broker, and root.
struct SameUser(UnixListener);

impl Listener for SameUser {
    type Io = UnixStream;
    type Addr = UnixAddr;

    async fn accept(&mut self) -> (UnixStream, UnixAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.0).await;
            match stream.peer_cred() {
                Ok(peer) if peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw() => {
                    return (stream, address);
                }
                Ok(peer) => tracing::warn!(uid = peer.uid(), "another user was turned away from the control socket"),
                Err(error) => {
                    tracing::warn!(%error, "a peer without credentials was turned away from the control socket")
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<UnixAddr> {
        Listener::local_addr(&self.0)
    }
}

fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/v1/status", get(status))
        .route("/v1/evidence", get(find))
        .route("/v1/dispatches/{id}", get(show))
        .route("/v1/dispatches/{id}/bundle", get(bundle))
        .route("/v1/backup", post(copies::backup))
        .route("/v1/restore/resume", post(copies::resume))
        .with_state(shared)
}

/// An error as RFC 9457 has it, with our code and hint.
struct Problem(Reason);

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let text = self.0.known().text();
        let status = match text.exit_code {
            2 => StatusCode::BAD_REQUEST,
            3 => StatusCode::NOT_FOUND,
            4 => StatusCode::SERVICE_UNAVAILABLE,
            5 | 7 => StatusCode::CONFLICT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let body = json!({
            "type": format!("urn:docaxis:problem:{}", self.0.code), "title": text.en, "status": status.as_u16(),
            "detail": self.0.text, "code": self.0.code, "hint": text.hint,
        });
        (status, [(header::CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
    }
}

impl<E: std::error::Error> From<E> for Problem {
    fn from(error: E) -> Self {
        tracing::error!(%error, "a request on the control socket failed");
        Self(ReasonCode::Busy.because(error.to_string()))
    }
}

type Shares = State<Arc<Shared>>;

async fn status(State(shared): Shares) -> Json<Value> {
    let exchange = &shared.exchange;
    let counts = exchange.store.counts();
    let (checkpoint, _) = exchange.log.checkpoint();
    let (version, agencies) = exchange.with_directory(|d| (d.version(), d.len()));
    Json(json!({
        "origin": exchange.origin, "software": concat!("docaxis ", env!("CARGO_PKG_VERSION")),
        "time": exchange.now(), "listening": shared.addresses.link.to_string(),
        "console": shared.addresses.console.map_or_else(|| "off".to_owned(), |address| format!("http://{address}/readyz")),
        "dispatches": counts.dispatches,
        "waiting": counts.waiting, "evidence": counts.leaves, "checkpoint": checkpoint,
        "journal": exchange.store.journal(), "directory_version": version, "agencies": agencies, "linked": exchange.links.nodes(),
        "space": exchange.space.report(),
        "over_quota": exchange.quotas.turned_away(),
        "continuity": exchange.continuity.report(exchange),
    }))
}

#[derive(Deserialize)]
struct FindQuery {
    dispatch: String,
}

/// Evidence of a dispatch, oldest first.
async fn find(State(shared): Shares, Query(query): Query<FindQuery>) -> Result<Json<Value>, Problem> {
    let exchange = &shared.exchange;
    let mut all = Vec::new();
    for seq in known(exchange, &query.dispatch)? {
        for piece in exchange.store.evidence(seq)? {
            let evidence = Evidence::parse(&piece.evidence.bytes)?;
            all.push(json!({
                "leaf": piece.leaf, "id": evidence.id, "event": evidence.event, "time": evidence.time,
                "dispatch": evidence.dispatch, "sender": evidence.sender, "recipient": evidence.recipient,
                "reasons": evidence.reasons,
            }));
        }
    }
    Ok(Json(Value::Array(all)))
}

/// A dispatch and where each delivery stands.
async fn show(State(shared): Shares, UrlPath(id): UrlPath<String>) -> Result<Json<Value>, Problem> {
    let exchange = &shared.exchange;
    let mut all = Vec::new();
    for seq in known(exchange, &id)? {
        let Some(dispatch) = exchange.store.dispatch(seq)? else { continue };
        let deliveries: Vec<Value> = exchange
            .store
            .deliveries(seq)?
            .iter()
            .map(|delivery| {
                let (node, answers) = exchange.with_directory(|d| {
                    let answers = d.answers_for(&delivery.recipient).clone();
                    (d.node_of(&answers).cloned(), Some(answers).filter(|code| *code != delivery.recipient))
                });
                let linked = node.as_ref().is_some_and(|node| exchange.links.nodes().contains(node));
                let why =
                    match (delivery.state.is_waiting(), exchange.why_lost(seq).or_else(|| exchange.why_early(seq))) {
                        (false, _) => String::new(),
                        (true, Some(lost)) => lost,
                        (true, None) if linked => "the recipient's node is linked; it is the recipient's turn".into(),
                        (true, None) => {
                            "the recipient's node is not linked; it is the node's administrator's move".into()
                        }
                    };
                json!({"recipient": delivery.recipient, "state": format!("{:?}", delivery.state),
                       "since": delivery.head_time, "node": node, "successor": answers, "why": why})
            })
            .collect();
        all.push(json!({
            "id": dispatch.id, "sender": dispatch.sender, "accepted": dispatch.accepted, "expires": dispatch.expires,
            "priority": dispatch.priority, "envelope_sha256": dispatch.envelope_sha256, "leaf": seq.0,
            "deliveries": deliveries,
        }));
    }
    Ok(Json(Value::Array(all)))
}

#[derive(Deserialize)]
struct BundleQuery {
    recipient: Option<String>,
}

/// The evidence bundle of a dispatch, or of one recipient's part in it.
async fn bundle(
    State(shared): Shares,
    UrlPath(id): UrlPath<String>,
    Query(query): Query<BundleQuery>,
) -> Result<Response, Problem> {
    let recipient = match query.recipient.as_deref().map(str::parse::<AgencyCode>) {
        Some(Ok(code)) => Some(code),
        Some(Err(error)) => return Err(Problem(ReasonCode::Malformed.because(error.to_string()))),
        None => None,
    };
    // Of an id that two senders drew, or that was also rejected, the accepted dispatch is the one that is asked for.
    let seqs = known(&shared.exchange, &id)?;
    let accepted = seqs.iter().find(|seq| shared.exchange.store.deliveries(**seq).is_ok_and(|d| !d.is_empty()));
    let seq = *accepted.or(seqs.first()).ok_or_else(|| Problem(ReasonCode::NotFound.because(id.clone())))?;
    let deadline = tokio::time::Instant::now() + CHECKPOINT_WITHIN;
    let made = loop {
        let (exporter, recipient) = (shared.clone(), recipient.clone());
        let job = move || crate::bundle::export(&exporter.exchange, &exporter.keys, seq, recipient.as_ref());
        match shared.exchange.workers.run(job).await? {
            Err(reason) if reason.known() == ReasonCode::Busy && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            made => break made,
        }
    };
    let zip = made.map_err(Problem)?;
    Ok(([(header::CONTENT_TYPE, "application/zip")], zip).into_response())
}

fn known(exchange: &Exchange, id: &str) -> Result<Vec<Seq>, Problem> {
    let id: DispatchId = id.parse().map_err(|e| Problem(ReasonCode::Malformed.because(format!("{e}"))))?;
    let found = exchange.store.find(id)?;
    if found.is_empty() {
        return Err(Problem(ReasonCode::NotFound.because(format!("the exchange knows no dispatch {id}"))));
    }
    Ok(found)
}
