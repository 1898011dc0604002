//! Frames on a stream, each read and write under a time limit: a peer that stalls costs a stream, never the link.

use std::time::Duration;

use bytes::Bytes;
use docaxis_protocol::frame::{Class, Frame, FrameError, Refusal};
use docaxis_protocol::{Reason, Timestamp};
use quinn::{ReadExactError, RecvStream, SendStream, VarInt, WriteError};

/// A peer that sends or takes nothing for this long has stalled.
pub const STALL: Duration = Duration::from_secs(30);

/// Codes with which streams and connections are closed.
pub mod code {
    pub const MALFORMED: u32 = 1;
    pub const STALLED: u32 = 2;
    pub const REFUSED: u32 = 3;
    pub const REPLACED: u32 = 4;
    pub const STOPPING: u32 = 5;
    pub const REVOKED: u32 = 7;
    pub const BODY_LOST: u32 = 8;
}

#[derive(Debug, thiserror::Error)]
pub enum IoError {
    #[error("the peer stalled for {} s", STALL.as_secs())]
    Stalled,
    #[error("the stream ended where {expected} was due")]
    Ended { expected: &'static str },
    #[error("the stream was lost: {0}")]
    Lost(String),
    #[error("a malformed frame: {0}")]
    Frame(#[from] FrameError),
    #[error("{found} came where {expected} was due")]
    Unexpected { expected: &'static str, found: &'static str },
    #[error("the peer refused: {0}")]
    Refused(Reason),
}

impl IoError {
    /// Whether the peer broke the protocol, rather than the network or the peer's machine failing.
    pub const fn is_fault(&self) -> bool {
        matches!(self, Self::Stalled | Self::Ended { .. } | Self::Frame(_) | Self::Unexpected { .. })
    }

    pub const fn code(&self) -> VarInt {
        VarInt::from_u32(match self {
            Self::Stalled => code::STALLED,
            Self::Frame(_) | Self::Unexpected { .. } | Self::Ended { .. } => code::MALFORMED,
            Self::Lost(_) | Self::Refused(_) => code::REFUSED,
        })
    }
}

pub async fn in_time<T>(what: impl Future<Output = Result<T, IoError>>) -> Result<T, IoError> {
    tokio::time::timeout(STALL, what).await.unwrap_or(Err(IoError::Stalled))
}

/// Reads a frame; `expected` says what is due, for the error.
pub async fn read(stream: &mut RecvStream, class: Class, expected: &'static str) -> Result<Frame, IoError> {
    in_time(read_unhurried(stream, class, expected)).await
}

/// Reads a frame that may take as long as it likes to come.
pub async fn read_unhurried(stream: &mut RecvStream, class: Class, expected: &'static str) -> Result<Frame, IoError> {
    let mut header = [0; 4];
    read_exact(stream, &mut header, expected).await?;
    let mut body = vec![0; Frame::length(header, class)?];
    in_time(read_exact(stream, &mut body, expected)).await?;
    Ok(Frame::decode(&body)?)
}

pub async fn read_exact(stream: &mut RecvStream, buffer: &mut [u8], expected: &'static str) -> Result<(), IoError> {
    stream.read_exact(buffer).await.map_err(|error| match error {
        ReadExactError::FinishedEarly(_) => IoError::Ended { expected },
        ReadExactError::ReadError(error) => IoError::Lost(error.to_string()),
    })
}

pub async fn write(stream: &mut SendStream, frame: &Frame) -> Result<(), IoError> {
    let bytes = frame.encode()?;
    write_all(stream, &bytes).await
}

pub async fn write_all(stream: &mut SendStream, bytes: &[u8]) -> Result<(), IoError> {
    in_time(async { stream.write_all(bytes).await.map_err(|error: WriteError| IoError::Lost(error.to_string())) }).await
}

/// Writes as much as there is room for, without copying, and says how much. Until there is some it may be dropped.
pub async fn write_some(stream: &mut SendStream, bytes: Bytes) -> Result<usize, IoError> {
    let written = stream.write_chunks(&mut [bytes]).await;
    written.map(|written| written.bytes).map_err(|error| IoError::Lost(error.to_string()))
}

/// Answers with a link error and ends the stream.
pub async fn refuse(stream: &mut SendStream, reason: Reason, now: Timestamp) -> Result<(), IoError> {
    write(stream, &Frame::Refused(Refusal { reason, time: now })).await?;
    finish(stream);
    Ok(())
}

/// Ends our side of the stream. It may be gone already; then there is nothing to end.
pub fn finish(stream: &mut SendStream) {
    let _already_gone = stream.finish();
}
