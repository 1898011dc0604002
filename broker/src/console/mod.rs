//! What a supervisor, a load balancer or an administrator may ask over HTTP: `/livez` and `/readyz`, from before the store
//! is opened until after it is closed.
//!
//! No secret is in the answers and nothing can be changed here. Nobody can keep others out: a connection carries one
//! request and lasts some seconds at most, and where there are too many the oldest gives way to the newest.

mod health;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub use self::health::{Condition, Health};

/// Connections at once.
const MAX_CONNECTIONS: usize = 64;
/// How long one may last, whatever its peer does or leaves undone.
const WITHIN: Duration = Duration::from_secs(5);
/// Request line and headers; hyper takes no smaller bound.
const MAX_HEAD_BYTES: usize = 8 << 10;
const MAX_HEADERS: usize = 64;
/// Before accepting is tried again after it failed, as it does while the process has too many files open.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    #[error(
        "console.listen in broker.toml is {address}; give another address, or \"off\" for no /livez and /readyz, as this one \
         cannot be listened on: {source}"
    )]
    Listen { address: SocketAddr, source: io::Error },
    #[error("its thread cannot be started: {0}")]
    Thread(io::Error),
}

/// The running console.
pub struct Console {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Console {
    /// Answers from now on, until it is dropped.
    pub fn start(address: SocketAddr, health: Arc<Health>) -> Result<Self, ConsoleError> {
        let failed = |source| ConsoleError::Listen { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let bound = listener.local_addr().map_err(failed)?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(ConsoleError::Thread)?;
        let (stop, mut stopped) = watch::channel(false);
        let serve = move || {
            runtime.block_on(async move {
                let listener = match TcpListener::from_std(listener) {
                    Ok(listener) => listener,
                    Err(error) => return tracing::error!(%error, "the console cannot listen"),
                };
                tokio::select! {
                    () = serve(listener, router(health)) => {}
                    _ = stopped.wait_for(|stop| *stop) => {}
                }
            });
        };
        let thread = std::thread::Builder::new().name("console".into()).spawn(serve).map_err(ConsoleError::Thread)?;
        tracing::info!("whether the broker is ready is said at http://{bound}/readyz");
        Ok(Self { address: bound, stop, thread: Some(thread) })
    }

    /// Where it listens; the port is known even if 0 was asked for.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _already_ended = self.stop.send(true);
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the console's thread had panicked");
        }
    }
}

async fn serve(listener: TcpListener, router: Router) {
    let mut open = VecDeque::with_capacity(MAX_CONNECTIONS);
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "a connection to the console cannot be taken");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        open.retain(|connection: &tokio::task::JoinHandle<()>| !connection.is_finished());
        if open.len() >= MAX_CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(tokio::spawn(answer(stream, router.clone())));
    }
}

/// One request.
async fn answer(stream: TcpStream, router: Router) {
    let connection = http1::Builder::new()
        .keep_alive(false)
        .max_buf_size(MAX_HEAD_BYTES)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    match tokio::time::timeout(WITHIN, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a request to the console failed"),
        Err(_) => tracing::debug!("a connection to the console lasted too long"),
    }
}

fn router(health: Arc<Health>) -> Router {
    Router::new()
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .with_state(health)
}

/// As the moment has it: nobody may keep an answer.
fn now(status: StatusCode, body: impl serde::Serialize) -> Response {
    (status, [(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

/// The process runs and answers, whatever it does: what is slow is no reason to kill it.
async fn live() -> Response {
    now(StatusCode::OK, json!({ "live": true }))
}

async fn ready(State(health): State<Arc<Health>>) -> Response {
    let readiness = health.readiness();
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    now(status, readiness)
}

async fn unknown() -> Response {
    let text = "there is no such page; there are /livez and /readyz\n";
    (StatusCode::NOT_FOUND, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

async fn wrong_method() -> Response {
    let text = "only GET and HEAD are answered here\n";
    (StatusCode::METHOD_NOT_ALLOWED, [(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

#[cfg(test)]
mod tests;
