//! Frames and bodies on one stream, each within its bound and its time.

use std::time::Duration;

use bytes::{Buf as _, Bytes};
use docaxis_protocol::frame::{Class, Frame, Refusal};
use quinn::{RecvStream, SendStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::LinkError;
use super::precedence::Sending;
use crate::agent::Shared;
use crate::parts::{CHUNK_BYTES, PartWriter, PartsError, Stored, Whole};
use crate::transfers::Transfer;
use docaxis_protocol::partial::PartialKey;
use docaxis_protocol::{Digest, Reason};

/// Chunks between a stream and the disk.
const CHUNKS_IN_FLIGHT: usize = 2;

/// How reading a body ended.
pub enum Read {
    Stored(Stored),
    /// It is all there and durable, and gets its name when the others of its dispatch have come.
    Held(Box<Whole>),
    /// It came in one go, and its digest is this one instead.
    Other(Digest),
    /// It came in several tries and is not what was sealed: the fault may lie with what was kept of it. It has to come again
    /// from its beginning.
    Again,
}

/// Begins to take a body for a recipient; [`PartWriter::size`] says from which byte on it is wanted. What its last try left
/// is read again first, a bounded piece at a time.
pub async fn begin_body(shared: &Shared, key: PartialKey, earlier_end_by: Instant) -> Result<PartWriter, LinkError> {
    let claim = shared.parts.take(key, earlier_end_by).await;
    let mut writer = shared.blocking(move |parts| parts.begin_claimed(claim)).await?;
    loop {
        let (next, more) = shared.blocking(move |_| writer.take_up().map(|more| (writer, more))).await?;
        if !more {
            return Ok(next);
        }
        writer = next;
    }
}

/// One exchange of frames.
pub struct Stream {
    pub send: SendStream,
    pub recv: RecvStream,
    /// How long either side may stand still.
    pub patience: Duration,
}

impl Stream {
    pub fn new((send, recv): (SendStream, RecvStream), patience: Duration) -> Self {
        Self { send, recv, patience }
    }

    pub async fn write(&mut self, frame: &Frame) -> Result<(), LinkError> {
        let bytes = frame.encode()?;
        self.write_raw(Bytes::from(bytes)).await
    }

    pub async fn write_raw(&mut self, bytes: Bytes) -> Result<(), LinkError> {
        timed(self.patience, "write to the broker", self.send.write_chunk(bytes)).await
    }

    /// The same of a body, when it is its turn. Each write has its own time: a slow link is none that stands still.
    async fn write_piece(&mut self, sending: &Sending, mut bytes: Bytes) -> Result<(), LinkError> {
        while !bytes.is_empty() {
            let send = &mut self.send;
            let write = async {
                loop {
                    let turn = sending.turn().await;
                    let now = bytes.slice(..turn.most.min(bytes.len()));
                    if let Some(written) = turn.write(send.write_chunks(&mut [now])).await {
                        return written;
                    }
                }
            };
            let written = timed(self.patience, "write to the broker", write).await?;
            bytes.advance(written.bytes);
        }
        Ok(())
    }

    /// Says that nothing more comes from this side.
    pub fn finish(&mut self) {
        // It fails only on a stream that is closed already, which whoever reads next is told.
        let _closed = self.send.finish();
    }

    /// Reads a frame; a refusal becomes an error.
    pub async fn read(&mut self, class: Class) -> Result<Frame, LinkError> {
        self.read_within(class, self.patience).await
    }

    /// The same with more time than usual.
    pub async fn read_within(&mut self, class: Class, patience: Duration) -> Result<Frame, LinkError> {
        match tokio::time::timeout(patience, self.read_unhurried(class)).await {
            Ok(read) => read,
            Err(_) => Err(LinkError::TimedOut { what: "a frame", after: patience }),
        }
    }

    /// Reads a frame that may be a long time coming.
    pub async fn read_unhurried(&mut self, class: Class) -> Result<Frame, LinkError> {
        let mut header = [0; 4];
        self.recv.read_exact(&mut header).await.map_err(LinkError::stream)?;
        let mut body = vec![0; Frame::length(header, class)?];
        self.recv.read_exact(&mut body).await.map_err(LinkError::stream)?;
        match Frame::decode(&body)? {
            Frame::Refused(refusal) => Err(LinkError::Refused(Box::new(refusal))),
            frame => Ok(frame),
        }
    }

    /// Reads a body of at most a few KiB.
    pub async fn read_small(&mut self, size: usize) -> Result<Vec<u8>, LinkError> {
        let mut body = vec![0; size];
        timed(self.patience, "read a body", self.recv.read_exact(&mut body)).await?;
        Ok(body)
    }

    /// Reads the rest of a body of `size` bytes. Kept only if its digest is the one expected. What comes before the stream
    /// breaks off is kept for the next try, to its last byte; and while `more` bodies of the same dispatch are to come, all of
    /// it is only held, so that the next try finds it if they do not.
    pub async fn read_body(
        &mut self,
        shared: &Shared,
        writer: PartWriter,
        (expected, size, more): (Digest, u64, bool),
    ) -> Result<Read, LinkError> {
        let (chunks, mut incoming) = mpsc::channel::<Bytes>(CHUNKS_IN_FLIGHT);
        let left = size.saturating_sub(writer.size());
        let writing = shared.aside(async move {
            let mut writer = writer;
            while let Some(chunk) = incoming.recv().await {
                writer.write(&chunk)?;
            }
            if writer.size() != size {
                writer.break_off();
                return Ok(None);
            }
            let whole = writer.finish()?;
            let (found, resumed) = (whole.sha256, whole.resumed);
            Ok::<_, PartsError>(Some(match (found == expected, resumed) {
                (true, _) if more => Read::Held(Box::new(whole.hold()?)),
                (true, _) => Read::Stored(whole.keep()?),
                (false, true) => {
                    whole.discard();
                    Read::Again
                }
                (false, false) => {
                    whole.discard();
                    Read::Other(found)
                }
            }))
        });
        let (read, written) = tokio::join!(self.pump(left, chunks), writing);
        match (read, written??) {
            (Err(error), _) => Err(error),
            (Ok(()), Some(done)) => Ok(done),
            (Ok(()), None) => Err(LinkError::Stream("the body's writer stopped early".into())),
        }
    }

    async fn pump(&mut self, mut left: u64, chunks: mpsc::Sender<Bytes>) -> Result<(), LinkError> {
        while left > 0 {
            // What arrives is a packet long; the disk gets it in chunks.
            let mut chunk = vec![0; usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES)];
            let mut filled = 0;
            let read = self.fill(&mut chunk, &mut filled).await;
            chunk.truncate(filled);
            left = left.saturating_sub(filled as u64);
            if chunks.send(chunk.into()).await.is_err() {
                // The writer has failed; its own error is the one to report.
                return Ok(());
            }
            read.map_err(|error| match error {
                LinkError::Stream(why) => LinkError::Stream(format!("{why}, {left} bytes before the body's end")),
                other => other,
            })?;
        }
        Ok(())
    }

    /// Fills a chunk; `filled` counts what came, also where it fails.
    async fn fill(&mut self, chunk: &mut [u8], filled: &mut usize) -> Result<(), LinkError> {
        while *filled < chunk.len() {
            let read = timed(self.patience, "read a body", self.recv.read(&mut chunk[*filled..])).await?;
            *filled += read.ok_or_else(|| LinkError::Stream("the stream ended".into()))?;
        }
        Ok(())
    }

    /// Reads bytes only to get to what follows them.
    pub async fn skip(&mut self, mut left: u64) -> Result<(), LinkError> {
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            match timed(self.patience, "read a body", self.recv.read_chunk(most, true)).await? {
                Some(chunk) => left = left.saturating_sub(chunk.bytes.len() as u64),
                None => return Err(LinkError::Stream("the stream ended within a body".into())),
            }
        }
        Ok(())
    }

    /// Sends a body from `offset` on. The reader keeps the last bytes of a damaged one back; then the stream is reset, so
    /// that the other side never has all of it. Of one that goes on, what lies before is not read: that would take longer
    /// than the broker waits. The broker, which has hashed it, asks for all of a body that turns out wrong.
    pub async fn write_body(
        &mut self,
        shared: &Shared,
        (sha256, offset, size): (Digest, u64, u64),
        (sending, transfer): (&Sending, &Transfer),
    ) -> Result<(), LinkError> {
        let (chunks, outgoing) = mpsc::channel::<Bytes>(CHUNKS_IN_FLIGHT);
        let opened = shared.open_body(sha256).await?;
        let reading = shared.aside(async move {
            let mut reader = opened?.from(offset, size)?;
            while let Some(chunk) = reader.next_chunk()? {
                // The stream has failed if nobody listens, and says so itself.
                if chunks.send(chunk.into()).await.is_err() {
                    return Ok(());
                }
            }
            Ok::<_, PartsError>(())
        });
        let writing = async {
            // Dropped at the end: the reader then stops.
            let mut outgoing = outgoing;
            while let Some(chunk) = outgoing.recv().await {
                let bytes = chunk.len() as u64;
                self.write_piece(sending, chunk).await?;
                transfer.add(bytes);
            }
            Ok(())
        };
        let (sent, read) = tokio::join!(writing, reading);
        if let Err(error) = read? {
            // Reset rather than finish: a body that is not whole must not look whole.
            let _closed = self.send.reset(super::CODE_DAMAGED);
            return Err(error.into());
        }
        sent
    }

    /// Answers with a link error and closes the exchange.
    pub async fn refuse(&mut self, shared: &Shared, reason: Reason) -> Result<(), LinkError> {
        self.write(&Frame::Refused(Refusal { reason, time: shared.env.now() })).await?;
        self.finish();
        Ok(())
    }
}

async fn timed<T, E: std::error::Error>(
    patience: Duration,
    what: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, LinkError> {
    match tokio::time::timeout(patience, work).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(LinkError::stream(error)),
        Err(_) => Err(LinkError::TimedOut { what, after: patience }),
    }
}
