//! Enrolment: the broker relays a join request to the authority and its answer back. It can neither read the
//! invitation's secret nor change a byte without being noticed.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use docaxis_protocol::frame::{Class, Frame};
use docaxis_protocol::{Reason, ReasonCode};
use quinn::Connection;

use super::io::{self, IoError};
use crate::dispatch::Exchange;

/// A joining node asks one thing; the authority may take a moment.
const JOIN_TIMEOUT: Duration = Duration::from_secs(30);

/// The authority's link, while there is one.
#[derive(Default)]
pub struct AuthorityLink(Mutex<Option<Connection>>);

impl AuthorityLink {
    /// The newest link counts; an older one is closed.
    pub fn set(&self, connection: Connection) {
        let old = self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(connection);
        if let Some(old) = old {
            old.close(io::code::REPLACED.into(), b"replaced by a newer link");
        }
    }

    fn get(&self) -> Option<Connection> {
        let link = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        link.clone().filter(|connection| connection.close_reason().is_none())
    }
}

/// Serves one connection of a node that wants to join.
pub async fn serve(exchange: Arc<Exchange>, connection: Connection, authority: Arc<AuthorityLink>) {
    let served = tokio::time::timeout(JOIN_TIMEOUT, async {
        let (mut send, mut recv) = connection.accept_bi().await.map_err(|e| IoError::Lost(e.to_string()))?;
        let request = match io::read(&mut recv, Class::Large, "Join").await? {
            Frame::Join(request) => request,
            other => return Err(IoError::Unexpected { expected: "Join", found: other.name() }),
        };
        match relay(&authority, Frame::Join(request)).await {
            Ok(answer) => {
                io::write(&mut send, &answer).await?;
                io::finish(&mut send);
            }
            Err(reason) => io::refuse(&mut send, reason, exchange.now()).await?,
        }
        // The peer closes when it has its answer.
        connection.closed().await;
        Ok(())
    });
    match served.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::info!(remote = %connection.remote_address(), %error, "a join ended early");
            connection.close(error.code(), error.to_string().as_bytes());
        }
        Err(_) => connection.close(io::code::STALLED.into(), b"the join took too long"),
    }
}

async fn relay(authority: &AuthorityLink, request: Frame) -> Result<Frame, Reason> {
    let away = || ReasonCode::Busy.because("the authority is not linked at the moment; start `docaxis ca serve`");
    let connection = authority.get().ok_or_else(away)?;
    let asked = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(|e| IoError::Lost(e.to_string()))?;
        io::write(&mut send, &request).await?;
        io::finish(&mut send);
        io::read(&mut recv, Class::Large, "Joined").await
    };
    match asked.await {
        Ok(answer @ (Frame::Joined(_) | Frame::Refused(_))) => Ok(answer),
        Ok(other) => {
            tracing::error!(found = other.name(), "the authority answered a join with another frame");
            Err(away())
        }
        Err(error) => {
            tracing::warn!(%error, "the authority did not answer a join");
            Err(away())
        }
    }
}
