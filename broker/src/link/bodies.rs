//! Bodies on streams, in chunks: memory for one transfer is constant, whatever its size. File work happens on blocking
//! threads; a bounded channel between makes a slow disk slow the sender down.

use std::fs::File;
use std::io::Read as _;
use std::sync::Arc;

use bytes::Bytes;
use docaxis_protocol::digest::Hasher;
use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::{AgencyCode, Digest, Reason, ReasonCode};
use quinn::{RecvStream, SendStream};
use tokio::sync::mpsc;

use super::io::{IoError, in_time, write_all};
use crate::blobs::{BlobError, BlobStore};
use crate::space::Space;
use crate::store::BodySource;

/// Bytes read or written at once.
const CHUNK: usize = 256 << 10;
/// Chunks that may wait between the network and the disk.
const CHUNKS_AHEAD: usize = 8;

/// How receiving a body ended.
pub enum Received {
    Durable,
    /// The bytes are not what was sealed.
    Refused(Reason),
}

/// Takes bodies in: where they go, and whether there is room.
pub struct Intake<'a> {
    pub blobs: &'a Arc<BlobStore>,
    pub space: &'a Arc<Space>,
}

#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error(transparent)]
    Io(#[from] IoError),
    #[error("the blob store: {0}")]
    Blob(#[from] BlobError),
    #[error("a body could not be read: {0}")]
    File(#[source] std::io::Error),
    #[error("the body {expected} is damaged: its file gives {found}")]
    Damaged { expected: Digest, found: String },
    #[error("the disk thread failed")]
    Thread,
    /// Nothing of it is kept; the peer tries again.
    #[error("no room: {0}")]
    NoRoom(Reason),
}

/// Receives exactly `part.size` bytes into the blob store; durable when this returns.
pub async fn receive(
    stream: &mut RecvStream,
    Intake { blobs, space }: Intake<'_>,
    agency: AgencyCode,
    part: PartDigest,
) -> Result<Received, BodyError> {
    let _room = space.expect(part.size).map_err(BodyError::NoRoom)?;
    let (sender, mut chunks) = mpsc::channel::<Bytes>(CHUNKS_AHEAD);
    let (blobs, expected) = (blobs.clone(), part.clone());
    let writer = tokio::task::spawn_blocking(move || -> Result<(), BlobError> {
        let mut writer = blobs.writer(&agency, expected)?;
        while let Some(chunk) = chunks.blocking_recv() {
            writer.write(&chunk)?;
        }
        writer.finish()
    });
    let mut left = part.size;
    while left > 0 {
        let wanted = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        let chunk =
            in_time(async { stream.read_chunk(wanted, true).await.map_err(|e| IoError::Lost(e.to_string())) }).await?;
        let Some(chunk) = chunk else {
            return Err(IoError::Ended { expected: "the rest of a body" }.into());
        };
        left -= chunk.bytes.len() as u64;
        space.may_finish().map_err(BodyError::NoRoom)?;
        if sender.send(chunk.bytes).await.is_err() {
            break; // The writer gave up; its error says why.
        }
    }
    drop(sender);
    match writer.await.map_err(|_| BodyError::Thread)? {
        Ok(()) => Ok(Received::Durable),
        Err(error @ (BlobError::DigestMismatch { .. } | BlobError::TooLarge { .. } | BlobError::TooShort { .. })) => {
            Ok(Received::Refused(ReasonCode::DigestMismatch.because(error.to_string())))
        }
        Err(error) => {
            if error.is_disk_full() {
                space.ran_out();
            }
            Err(error.into())
        }
    }
}

/// Receives a small body into memory.
pub async fn receive_small(stream: &mut RecvStream, size: usize) -> Result<Vec<u8>, IoError> {
    let mut bytes = vec![0; size];
    in_time(super::io::read_exact(stream, &mut bytes, "a body")).await?;
    Ok(bytes)
}

/// Sends a body from byte `offset` on. A file is hashed as it goes, from its beginning; its last chunk leaves only when
/// the digest is right, so that the peer never has all of a damaged body.
pub async fn send(
    stream: &mut SendStream,
    source: BodySource,
    part: &PartDigest,
    offset: u64,
) -> Result<(), BodyError> {
    match source {
        BodySource::Inline(bytes) => {
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            Ok(write_all(stream, &bytes[from..]).await?)
        }
        BodySource::File(path) => {
            let (sender, mut chunks) = mpsc::channel::<Bytes>(CHUNKS_AHEAD);
            let part = part.clone();
            let reader = tokio::task::spawn_blocking(move || read_file(&path, &part, offset, &sender));
            while let Some(chunk) = chunks.recv().await {
                write_all(stream, &chunk).await?;
            }
            reader.await.map_err(|_| BodyError::Thread)?
        }
    }
}

fn read_file(
    path: &std::path::Path,
    part: &PartDigest,
    offset: u64,
    sender: &mpsc::Sender<Bytes>,
) -> Result<(), BodyError> {
    let damaged = |found: String| BodyError::Damaged { expected: part.sha256, found };
    // A file that is gone, of another length, or on a medium that does not give it back: the body is lost either way.
    let unreadable = |error: std::io::Error| match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::IO.raw_os_error() => damaged(error.to_string()),
        _ if error.kind() == std::io::ErrorKind::NotFound => damaged(error.to_string()),
        _ => BodyError::File(error),
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let len = file.metadata().map_err(unreadable)?.len();
    if len != part.size {
        return Err(damaged(format!("{len} bytes instead of {}", part.size)));
    }
    let (mut hasher, mut skip, mut held) = (Hasher::new(), offset, None::<Bytes>);
    loop {
        let mut chunk = vec![0; CHUNK];
        let read = file.read(&mut chunk).map_err(unreadable)?;
        chunk.truncate(read);
        if read == 0 {
            break;
        }
        hasher.update(&chunk);
        let mut chunk = Bytes::from(chunk);
        let cut = usize::try_from(skip).unwrap_or(usize::MAX).min(chunk.len());
        skip -= cut as u64;
        let chunk = chunk.split_off(cut);
        if !chunk.is_empty()
            && let Some(ready) = held.replace(chunk)
            && sender.blocking_send(ready).is_err()
        {
            return Ok(()); // The stream is gone, and says so itself.
        }
    }
    let found = hasher.finish();
    if found != part.sha256 {
        return Err(damaged(format!("bytes with the digest {found}")));
    }
    if let Some(last) = held {
        let _gone = sender.blocking_send(last);
    }
    Ok(())
}
