//! One exchange of frames on a stream, each under a time limit.

use std::time::Duration;

use docaxis_protocol::frame::{Class, Frame, FrameError, Refusal};
use quinn::{Connection, RecvStream, SendStream};

#[derive(Debug, thiserror::Error)]
pub enum FramesError {
    #[error("the connection was lost: {found}")]
    Lost { found: String },
    #[error("the broker did not answer within {} s", after.as_secs())]
    TimedOut { after: Duration },
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the broker sent {found}; expected {expected}")]
    Unexpected { expected: &'static str, found: &'static str },
    #[error("the broker refused: {}", .0.reason)]
    Refused(Box<Refusal>),
}

impl FramesError {
    fn lost(error: impl std::fmt::Display) -> Self {
        Self::Lost { found: error.to_string() }
    }
}

/// Opens a stream, sends one frame, and reads the one that answers it.
pub async fn ask(connection: &Connection, frame: &Frame, within: Duration) -> Result<Frame, FramesError> {
    let asking = async {
        let (mut send, mut recv) = connection.open_bi().await.map_err(FramesError::lost)?;
        write_last(&mut send, frame).await?;
        match read(&mut recv, Class::Large).await? {
            Frame::Refused(refusal) => Err(FramesError::Refused(Box::new(refusal))),
            answer => Ok(answer),
        }
    };
    tokio::time::timeout(within, asking).await.unwrap_or(Err(FramesError::TimedOut { after: within }))
}

/// Writes the last frame of our side.
pub async fn write_last(send: &mut SendStream, frame: &Frame) -> Result<(), FramesError> {
    let bytes = frame.encode()?;
    send.write_all(&bytes).await.map_err(FramesError::lost)?;
    // It fails only on a stream that is closed already, which whoever reads next is told.
    let _closed = send.finish();
    Ok(())
}

pub async fn read(recv: &mut RecvStream, class: Class) -> Result<Frame, FramesError> {
    let mut header = [0; 4];
    recv.read_exact(&mut header).await.map_err(FramesError::lost)?;
    let mut body = vec![0; Frame::length(header, class)?];
    recv.read_exact(&mut body).await.map_err(FramesError::lost)?;
    Ok(Frame::decode(&body)?)
}
