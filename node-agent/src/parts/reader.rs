//! A body on its way out: compared with its digest as it is read.

use std::fs::File;
use std::io::{Cursor, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use docaxis_protocol::Digest;
use docaxis_protocol::digest::Hasher;

use super::{CHUNK_BYTES, PartsError, failed};

/// A body on its way out.
pub struct PartReader {
    source: PartSource,
    /// Bytes read at once.
    chunk: usize,
    /// None where the reader did not begin at the body's beginning.
    hasher: Option<Hasher>,
    expected: Digest,
    /// Read, and not given out before it is known whether it is the last.
    held: Option<Vec<u8>>,
    ended: bool,
}

pub(super) enum PartSource {
    File { file: File, path: PathBuf },
    Memory(Cursor<Vec<u8>>),
}

impl PartReader {
    pub(super) fn new(source: PartSource, chunk: usize, expected: Digest) -> Self {
        Self { source, chunk, hasher: Some(Hasher::new()), expected, held: None, ended: false }
    }

    /// A body that is in memory, and is compared with its digest as one on disk is.
    pub fn of(bytes: Vec<u8>, expected: Digest) -> Self {
        let chunk = bytes.len().saturating_add(1).min(CHUNK_BYTES);
        Self::new(PartSource::Memory(Cursor::new(bytes)), chunk, expected)
    }

    /// A body of `size` bytes from this byte on, before anything of it was read. Its digest is not compared then, only its
    /// length.
    pub fn from(mut self, offset: u64, size: u64) -> Result<Self, PartsError> {
        if offset == 0 {
            return Ok(self);
        }
        let found = match &self.source {
            PartSource::File { file, path } => file.metadata().map_err(failed("look at", path))?.len(),
            PartSource::Memory(bytes) => bytes.get_ref().len() as u64,
        };
        if found != size {
            let why = format!("it has {found} bytes instead of {size}");
            return Err(PartsError::Unreadable { sha256: self.expected, why });
        }
        match &mut self.source {
            PartSource::File { file, path } => {
                file.seek(SeekFrom::Start(offset)).map_err(failed("read", path))?;
            }
            PartSource::Memory(bytes) => bytes.set_position(offset),
        }
        Ok(Self { hasher: None, ..self })
    }

    /// All of a body that is known to be small.
    pub fn read_all(mut self) -> Result<Vec<u8>, PartsError> {
        let mut all = Vec::new();
        while let Some(chunk) = self.next_chunk()? {
            all.extend_from_slice(&chunk);
        }
        Ok(all)
    }

    /// The next bytes; `None` at the end. The last bytes are given out only if all of it has the right digest, so that
    /// nobody can take a damaged body for a whole one.
    pub fn next_chunk(&mut self) -> Result<Option<Vec<u8>>, PartsError> {
        while !self.ended {
            match self.read_chunk()? {
                Some(chunk) => {
                    if let Some(ready) = self.held.replace(chunk) {
                        return Ok(Some(ready));
                    }
                }
                None => self.ended = true,
            }
        }
        Ok(self.held.take())
    }

    fn read_chunk(&mut self) -> Result<Option<Vec<u8>>, PartsError> {
        let mut chunk = Vec::with_capacity(self.chunk);
        let most = self.chunk as u64;
        match &mut self.source {
            PartSource::File { file, path } => file.take(most).read_to_end(&mut chunk).map_err(failed("read", path))?,
            PartSource::Memory(bytes) => {
                bytes.take(most).read_to_end(&mut chunk).map_err(failed("read", Path::new("")))?
            }
        };
        let Some(hasher) = &mut self.hasher else { return Ok((!chunk.is_empty()).then_some(chunk)) };
        if chunk.is_empty() {
            let found = hasher.clone().finish();
            return if found == self.expected {
                Ok(None)
            } else {
                Err(PartsError::Damaged { expected: self.expected, found })
            };
        }
        hasher.update(&chunk);
        Ok(Some(chunk))
    }
}
