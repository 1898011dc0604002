//! The control socket `DATA/control.sock`: HTTP over a Unix socket that only this user may open (mode 0600, and the
//! peer's user id is checked). The command line reaches a running agent through it. The only place that knows axum.

mod copies;
mod problem;
mod routes;
mod shapes;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

pub use copies::report;

use crate::agent::{AgentError, DRAIN_WITHIN, Shared, told_to_stop};

/// Pause after a failed accept, which most often means that file descriptors have run out.
const AFTER_FAILED_ACCEPT: Duration = Duration::from_millis(100);

/// Starts the socket's thread.
pub(crate) fn start(
    shared: Arc<Shared>,
    path: PathBuf,
    stop: watch::Receiver<bool>,
) -> Result<JoinHandle<()>, AgentError> {
    let failed = |operation| {
        let path = path.clone();
        move |source| AgentError::Io { operation, path, source }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed("serve"))?;
    let listening = {
        let _inside = runtime.enter();
        listen(&path).map_err(failed("listen on"))
    };
    let listener = match listening {
        Ok(listener) => listener,
        Err(error) => {
            // Dropped plainly, it would wait, which it may not where the caller is asynchronous.
            runtime.shutdown_background();
            return Err(error);
        }
    };
    let failed = failed("serve");
    std::thread::Builder::new()
        .name("desk".into())
        .spawn(move || {
            runtime.block_on(serve(shared, SameUser(listener), stop));
            // A request that still runs may not hold up the end.
            runtime.shutdown_timeout(Duration::from_secs(1));
            // A stale socket is replaced at the next start anyway.
            let _gone = std::fs::remove_file(path);
        })
        .map_err(failed)
}

/// The data folder's lock is held: a socket that is there belongs to nobody.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // The folder is 0700, so nobody came in between.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn serve(shared: Arc<Shared>, listener: SameUser, mut stop: watch::Receiver<bool>) {
    let mut stopping = stop.clone();
    let serving = axum::serve(listener, routes::router(shared)).with_graceful_shutdown(async move {
        told_to_stop(&mut stopping).await;
    });
    let late = async {
        told_to_stop(&mut stop).await;
        tokio::time::sleep(DRAIN_WITHIN).await;
    };
    tokio::select! {
        served = serving.into_future() => if let Err(error) = served {
            tracing::error!(%error, "the control socket ended");
        },
        () = late => tracing::warn!("requests on the control socket were cut"),
    }
}

/// Accepts only processes of this same user, or of root.
struct SameUser(UnixListener);

impl axum::serve::Listener for SameUser {
    type Io = UnixStream;
    type Addr = tokio::net::unix::SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.0.accept().await {
                Ok((stream, address)) => match stream.peer_cred() {
                    Ok(peer) if allowed(peer.uid(), rustix::process::getuid().as_raw()) => return (stream, address),
                    Ok(peer) => {
                        tracing::warn!(uid = peer.uid(), "another user was turned away from the control socket")
                    }
                    Err(error) => tracing::warn!(%error, "the control socket's peer has no name"),
                },
                Err(error) => {
                    tracing::warn!(%error, "the control socket could not accept");
                    tokio::time::sleep(AFTER_FAILED_ACCEPT).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

fn allowed(peer: u32, own: u32) -> bool {
    peer == own || peer == 0
}

#[cfg(test)]
mod tests;
