//! The joining node's side of enrolment: one connection, one request, one answer.
//!
//! The answer is bytes: whether to believe them is for [`PendingJoin::accept`].

use std::time::Duration;

use docaxis_certs::PendingJoin;
use docaxis_certs::tls::{self, Clock, TlsError};
use docaxis_protocol::frame::{Frame, Join};

use super::endpoint::{ConnectError, Dialled};
use super::frames::{self, FramesError};

/// The broker waits 30 s for the authority; its word that it did not answer must still arrive.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(35);

#[derive(Debug, thiserror::Error)]
pub enum JoinLinkError {
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Frames(#[from] FramesError),
}

/// Sends the request of a pending join, always the same bytes, and returns the authority's answer.
pub async fn ask_to_join(pending: &PendingJoin, clock: Clock) -> Result<Vec<u8>, JoinLinkError> {
    let token = pending.token();
    let tls = tls::join_client(token, clock)?;
    let dialled = Dialled::to(&token.broker_address, &token.broker_dns_name, tls).await?;
    let request = Frame::Join(Join { request: pending.request().to_vec(), mac: pending.mac().to_vec() });
    let answered = frames::ask(&dialled.connection, &request, ANSWER_TIMEOUT).await;
    let refusal = dialled.refusal();
    dialled.close().await;
    match (answered, refusal) {
        (Ok(Frame::Joined(joined)), _) => Ok(joined.answer),
        (Ok(other), _) => Err(FramesError::Unexpected { expected: "Joined", found: other.name() }.into()),
        (Err(_), Some(refusal)) => Err(ConnectError::Refused { address: token.broker_address.clone(), refusal }.into()),
        (Err(error), None) => Err(error.into()),
    }
}
