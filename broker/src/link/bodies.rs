//! Bodies on streams, in pieces: memory for one transfer is constant, whatever its size. While one piece travels, its
//! neighbour is hashed and on its way to or from the disk, on a blocking thread that is held no longer than that. Pieces
//! of all transfers take turns, so that many large bodies leave processor and disk to the small dispatches beside them,
//! and a slow peer, which only waits for its own network, holds up nobody.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use docaxis_protocol::digest::Hasher;
use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::{AgencyCode, Digest, Reason, ReasonCode};
use quinn::{RecvStream, SendStream};

use super::io::{IoError, in_time, write_all, write_chunk};
use crate::blobs::{BlobError, BlobStore, BlobWriter, LostTurn};
use crate::disk::{Disk, DiskFile};
use crate::space::Space;
use crate::store::BodySource;

/// Bytes read or written, and hashed, in one turn. A transfer holds two pieces at most.
const PIECE: usize = 256 << 10;

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
    #[error(transparent)]
    Thread(#[from] LostTurn),
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
    match write_all_of(stream, blobs, space, agency, part).await {
        Ok(()) => Ok(Received::Durable),
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
    agency: AgencyCode,
    part: PartDigest,
) -> Result<(), BodyError> {
    let mut left = part.size;
    let store = blobs.clone();
    let mut writer = blobs.in_turn(move || store.writer(&agency, part)).await??;
    let (mut full, mut empty) = (Vec::new(), Vec::new());
    loop {
        let wanted = usize::try_from(left).unwrap_or(PIECE).min(PIECE);
        empty.resize(wanted, 0);
        let (written, filled) = tokio::join!(write_piece(blobs, writer, full), fill(stream, &mut empty, space));
        // If both failed, the disk's failure is the one that says what to do.
        (writer, full) = written?;
        filled?;
        left -= wanted as u64;
        std::mem::swap(&mut full, &mut empty);
        if full.is_empty() {
            break;
        }
    }
    Ok(blobs.in_turn(move || writer.finish()).await??)
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

/// Each read has its own time: a slow peer is none that stalled.
async fn fill(stream: &mut RecvStream, piece: &mut [u8], space: &Space) -> Result<(), BodyError> {
    let mut at = 0;
    while at < piece.len() {
        let read = in_time(async { stream.read(&mut piece[at..]).await.map_err(|e| IoError::Lost(e.to_string())) });
        let Some(read) = read.await? else {
            return Err(IoError::Ended { expected: "the rest of a body" }.into());
        };
        at += read;
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

/// Sends a body from byte `offset` on. A file is hashed as it goes, from its beginning; its last piece leaves only when
/// the digest is right, so that the peer never has all of a damaged body.
pub async fn send(
    stream: &mut SendStream,
    blobs: &BlobStore,
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
            let (part, files) = (part.clone(), blobs.files());
            let mut reader = blobs.in_turn(move || BodyReader::open(&*files, &path, part, offset)).await??;
            let mut ready = Bytes::new();
            loop {
                let (read, sent) = tokio::join!(read_piece(blobs, reader), send_piece(stream, ready));
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

async fn send_piece(stream: &mut SendStream, piece: Bytes) -> Result<(), BodyError> {
    if piece.is_empty() { Ok(()) } else { Ok(write_chunk(stream, piece).await?) }
}

/// A body's file, read from its beginning.
struct BodyReader {
    file: Arc<dyn DiskFile>,
    part: PartDigest,
    hasher: Hasher,
    at: u64,
    offset: u64,
}

impl BodyReader {
    fn open(files: &dyn Disk, path: &Path, part: PartDigest, offset: u64) -> Result<Self, BodyError> {
        let opened = files.open(path).and_then(|file| Ok((file.len()?, file)));
        let (len, file) = opened.map_err(|error| unreadable(&part, error))?;
        if len != part.size {
            return Err(damaged(&part, format!("{len} bytes instead of {}", part.size)));
        }
        Ok(Self { file, part, hasher: Hasher::new(), at: 0, offset })
    }

    /// The next piece, of which what lies before the offset is cut off. The last one only if the digest is right.
    fn next(mut self) -> Result<(Self, Bytes), BodyError> {
        let wanted = usize::try_from(self.part.size - self.at).unwrap_or(PIECE).min(PIECE);
        let mut piece = vec![0; wanted];
        let read = self.file.read_at(self.at, &mut piece).map_err(|error| unreadable(&self.part, error))?;
        if read < wanted {
            return Err(damaged(&self.part, format!("{} bytes instead of {}", self.at + read as u64, self.part.size)));
        }
        self.hasher.update(&piece);
        let cut = usize::try_from(self.offset.saturating_sub(self.at)).unwrap_or(wanted).min(wanted);
        self.at += wanted as u64;
        if self.at == self.part.size {
            let found = std::mem::take(&mut self.hasher).finish();
            if found != self.part.sha256 {
                return Err(damaged(&self.part, format!("bytes with the digest {found}")));
            }
        }
        Ok((self, Bytes::from(piece).split_off(cut)))
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
