//! One stream of the link: frames and raw bytes, both ways.

use docaxis_protocol::frame::{Class, Frame};
use quinn::{Connection, ReadError, ReadExactError, RecvStream, SendStream};

use super::within;

pub struct Stream {
    pub send: SendStream,
    pub recv: RecvStream,
}

impl Stream {
    pub async fn open(connection: &Connection) -> Self {
        let (send, recv) = within("a stream", connection.open_bi()).await.unwrap();
        Self { send, recv }
    }

    pub async fn write(&mut self, frame: &Frame) {
        self.raw(&frame.encode().unwrap()).await;
    }

    /// Sends bytes as they are. A peer that stopped listening is no failure: its answer is what counts.
    pub async fn raw(&mut self, bytes: &[u8]) {
        let _stopped = within("room to send", self.send.write_all(bytes)).await;
    }

    pub async fn read(&mut self, class: Class) -> Frame {
        self.try_read(class).await.unwrap_or_else(|error| panic!("no frame: {error}"))
    }

    pub async fn try_read(&mut self, class: Class) -> Result<Frame, ReadExactError> {
        let mut header = [0; 4];
        within("a frame", self.recv.read_exact(&mut header)).await?;
        let body = self.read_raw(Frame::length(header, class).unwrap()).await?;
        Ok(Frame::decode(&body).unwrap())
    }

    pub async fn read_raw(&mut self, size: usize) -> Result<Vec<u8>, ReadExactError> {
        let mut bytes = vec![0; size];
        within("bytes", self.recv.read_exact(&mut bytes)).await?;
        Ok(bytes)
    }

    /// Sends one frame and reads the answer.
    pub async fn ask(mut self, frame: &Frame) -> Frame {
        self.write(frame).await;
        let _gone = self.send.finish();
        self.read(Class::Large).await
    }

    /// Everything that the broker still has to say here, and how it ended: in order, or reset with a code.
    pub async fn rest(&mut self) -> Result<Vec<u8>, u64> {
        let mut rest = Vec::new();
        loop {
            match within("the end of a stream", self.recv.read_chunk(64 << 10, true)).await {
                Ok(Some(chunk)) => rest.extend_from_slice(&chunk.bytes),
                Ok(None) => return Ok(rest),
                Err(ReadError::Reset(code)) => return Err(code.into_inner()),
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// The code with which the broker asked us to stop sending; none if it took everything.
    pub async fn stopped(&mut self) -> Option<u64> {
        within("word from the broker", self.send.stopped()).await.unwrap().map(quinn::VarInt::into_inner)
    }
}
