//! Bodies on streams, in pieces: memory for one transfer is constant, whatever its size. While one piece travels, its
//! neighbour is hashed and on its way to or from the disk, on a blocking thread that is held no longer than that. Pieces
//! of all transfers take turns, so that many large bodies leave processor and disk to the small dispatches beside them,
//! and a slow peer, which only waits for its own network, holds up nobody. A transfer that breaks off goes on at its byte.

use std::path::Path;
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use docaxis_protocol::digest::Hasher;
use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::{AgencyCode, Digest, Reason, ReasonCode};
use quinn::{RecvStream, SendStream};
use tokio::time::Instant;

use super::io::{IoError, in_time, write_all, write_some};
use super::precedence::Sending;
use crate::blobs::{BlobError, BlobStore, BlobWriter, LostTurn};
use crate::disk::{Disk, DiskFile};
use crate::space::Space;
use crate::store::BodySource;

/// Bytes read or written, and hashed, in one turn. A transfer holds two pieces at most.
const PIECE: usize = 256 << 10;

/// How receiving a body ended.
pub enum Received {
    Durable,
    /// It is all there and durable, and gets its name with [`name`] when the others of its dispatch have come.
    Held(Box<BlobWriter>),
    /// The bytes are not what was sealed.
    Refused(Reason),
    /// The same of a body that came in several tries: the fault may lie with what was kept of it, and it has to come again
    /// from its beginning.
    Again,
}

/// Takes bodies in: where they go, and whether there is room.
pub struct Intake<'a> {
    pub blobs: &'a Arc<BlobStore>,
    pub space: &'a Arc<Space>,
}

/// Begins to take a body from this agency; [`BlobWriter::written`] says from which byte on it is wanted. What its last try
/// left is read again first, piece by piece. It is safe to drop this at any moment.
pub async fn begin(
    blobs: &Arc<BlobStore>,
    agency: &AgencyCode,
    part: PartDigest,
    earlier_end_by: Instant,
) -> Result<BlobWriter, BodyError> {
    let mut writer = blobs.upload(agency, part, earlier_end_by).await??;
    loop {
        let (next, more) = blobs
            .in_turn(move || {
                let more = writer.take_up()?;
                Ok::<_, BlobError>((writer, more))
            })
            .await??;
        writer = next;
        if !more {
            return Ok(writer);
        }
    }
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
    #[error(transparent)]
    Thread(#[from] LostTurn),
    /// Nothing of it is kept; the peer tries again.
    #[error("no room: {0}")]
    NoRoom(Reason),
}

/// Receives the rest of a body of `size` bytes into the blob store; durable when this returns. While `more` bodies of the same
/// dispatch are to come it is held: named by nothing yet, it must be found again if they do not come.
pub async fn receive(
    stream: &mut RecvStream,
    Intake { blobs, space }: Intake<'_>,
    writer: BlobWriter,
    (size, more): (u64, bool),
) -> Result<Received, BodyError> {
    let left = size.saturating_sub(writer.written());
    let _room = space.expect(left).map_err(BodyError::NoRoom)?;
    let received = match write_all_of(stream, blobs, space, writer, left).await {
        Ok(writer) => match more {
            true => blobs.in_turn(move || writer.hold()).await?.map(|held| Received::Held(Box::new(held))),
            false => blobs.in_turn(move || writer.finish()).await?.map(|()| Received::Durable),
        }
        .map_err(BodyError::from),
        Err(error) => Err(error),
    };
    match received {
        Ok(received) => Ok(received),
        Err(BodyError::Blob(BlobError::DigestMismatch { resumed: true, expected, .. })) => {
            tracing::warn!(body = %expected, "a body that came in several tries is not what was sealed; it is asked for anew");
            Ok(Received::Again)
        }
        Err(BodyError::Blob(
            error @ (BlobError::DigestMismatch { .. } | BlobError::TooLarge { .. } | BlobError::TooShort { .. }),
        )) => Ok(Received::Refused(ReasonCode::DigestMismatch.because(error.to_string()))),
        Err(error) => {
            if matches!(&error, BodyError::Blob(own) if own.is_disk_full()) {
                space.ran_out();
            }
            Err(error)
        }
    }
}

async fn write_all_of(
    stream: &mut RecvStream,
    blobs: &Arc<BlobStore>,
    space: &Arc<Space>,
    mut writer: BlobWriter,
    mut left: u64,
) -> Result<BlobWriter, BodyError> {
    let (mut full, mut empty) = (Vec::new(), Vec::new());
    loop {
        let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        empty.resize(wanted, 0);
        let mut came = 0;
        let (written, filled) =
            tokio::join!(write_piece(blobs, writer, full), fill(stream, &mut empty, &mut came, space));
        // If both failed, the disk's failure is the one that says what to do.
        (writer, full) = written?;
        if let Err(error) = filled {
            empty.truncate(came);
            let (writer, _) = write_piece(blobs, writer, empty).await?;
            blobs.in_turn(move || writer.break_off()).await?;
            return Err(error);
        }
        left -= wanted as u64;
        std::mem::swap(&mut full, &mut empty);
        if full.is_empty() {
            return Ok(writer);
        }
    }
}

/// Gives a body that was held its name.
pub async fn name(Intake { blobs, space }: Intake<'_>, held: BlobWriter) -> Result<(), BodyError> {
    let named = blobs.in_turn(move || held.finish()).await?;
    if named.as_ref().is_err_and(BlobError::is_disk_full) {
        space.ran_out();
    }
    Ok(named?)
}

/// Gives both back: the writer goes from thread to thread, and the piece's memory is used again.
async fn write_piece(
    blobs: &BlobStore,
    mut writer: BlobWriter,
    piece: Vec<u8>,
) -> Result<(BlobWriter, Vec<u8>), BodyError> {
    if piece.is_empty() {
        return Ok((writer, piece));
    }
    blobs.in_turn(move || writer.write(&piece).map(|()| (writer, piece))).await?.map_err(BodyError::from)
}

/// Each read has its own time: a slow peer is none that stalled. `at` counts the bytes that came, also where it fails.
async fn fill(stream: &mut RecvStream, piece: &mut [u8], at: &mut usize, space: &Space) -> Result<(), BodyError> {
    while *at < piece.len() {
        let read = in_time(async { stream.read(&mut piece[*at..]).await.map_err(|e| IoError::Lost(e.to_string())) });
        let Some(read) = read.await? else {
            return Err(IoError::Ended { expected: "the rest of a body" }.into());
        };
        *at += read;
        space.may_finish().map_err(BodyError::NoRoom)?;
    }
    Ok(())
}

/// Receives a small body into memory.
pub async fn receive_small(stream: &mut RecvStream, size: usize) -> Result<Vec<u8>, IoError> {
    let mut bytes = vec![0; size];
    in_time(super::io::read_exact(stream, &mut bytes, "a body")).await?;
    Ok(bytes)
}

/// Sends a body from byte `offset` on. A file that is sent from its beginning is hashed as it goes; its last piece leaves
/// only when the digest is right, so that the peer never has all of a damaged body. Of one that goes on, what lies before is
/// not read: that would take longer than a peer waits. The peer, which has hashed it, asks for all of a body that turns out
/// wrong, and then the damage is found here.
pub async fn send(
    (stream, sending): (&mut SendStream, &Sending),
    blobs: &BlobStore,
    source: BodySource,
    (part, offset): (&PartDigest, u64),
) -> Result<(), BodyError> {
    match source {
        BodySource::Inline(bytes) => {
            // Small: it gives way to none.
            let from = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
            Ok(write_all(stream, &bytes[from..]).await?)
        }
        BodySource::File(path) => {
            let (part, files) = (part.clone(), blobs.files());
            let mut reader = blobs.in_turn(move || BodyReader::open(&*files, &path, part, offset)).await??;
            let mut ready = Bytes::new();
            loop {
                let (read, sent) = tokio::join!(read_piece(blobs, reader), send_piece(stream, sending, ready));
                sent?;
                let Some((next, piece)) = read? else { return Ok(()) };
                (reader, ready) = (next, piece);
            }
        }
    }
}

async fn read_piece(blobs: &BlobStore, reader: BodyReader) -> Result<Option<(BodyReader, Bytes)>, BodyError> {
    if reader.at == reader.part.size {
        return Ok(None);
    }
    blobs.in_turn(move || reader.next().map(Some)).await?
}

/// When it is its turn. Each write has its own time, as each read has.
async fn send_piece(stream: &mut SendStream, sending: &Sending, mut piece: Bytes) -> Result<(), BodyError> {
    while !piece.is_empty() {
        let write = async {
            loop {
                let turn = sending.turn().await;
                let now = piece.slice(..turn.most.min(piece.len()));
                if let Some(written) = turn.write(write_some(stream, now)).await {
                    return written;
                }
            }
        };
        let written = in_time(write).await?;
        piece.advance(written);
    }
    Ok(())
}

/// A body's file on its way out.
struct BodyReader {
    file: Arc<dyn DiskFile>,
    part: PartDigest,
    /// None where the reader did not begin at the body's beginning.
    hasher: Option<Hasher>,
    at: u64,
}

impl BodyReader {
    fn open(files: &dyn Disk, path: &Path, part: PartDigest, offset: u64) -> Result<Self, BodyError> {
        let opened = files.open(path).and_then(|file| Ok((file.len()?, file)));
        let (len, file) = opened.map_err(|error| unreadable(&part, error))?;
        if len != part.size {
            return Err(damaged(&part, format!("{len} bytes instead of {}", part.size)));
        }
        Ok(Self { file, part, hasher: (offset == 0).then(Hasher::new), at: offset })
    }

    /// The next piece. The last one only if the digest is right.
    fn next(mut self) -> Result<(Self, Bytes), BodyError> {
        let wanted = usize::try_from(self.part.size - self.at).unwrap_or(PIECE).min(PIECE);
        let mut piece = vec![0; wanted];
        let read = self.file.read_at(self.at, &mut piece).map_err(|error| unreadable(&self.part, error))?;
        if read < wanted {
            return Err(damaged(&self.part, format!("{} bytes instead of {}", self.at + read as u64, self.part.size)));
        }
        self.at += wanted as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&piece);
        }
        if self.at == self.part.size
            && let Some(hasher) = self.hasher.take()
        {
            let found = hasher.finish();
            if found != self.part.sha256 {
                return Err(damaged(&self.part, format!("bytes with the digest {found}")));
            }
        }
        Ok((self, Bytes::from(piece)))
    }
}

fn damaged(part: &PartDigest, found: String) -> BodyError {
    BodyError::Damaged { expected: part.sha256, found }
}

/// A file that is gone, of another length, or on a medium that does not give it back: the body is lost either way.
fn unreadable(part: &PartDigest, error: std::io::Error) -> BodyError {
    let medium = error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error());
    let gone = matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::UnexpectedEof);
    if medium || gone { damaged(part, error.to_string()) } else { BodyError::File(error) }
}
