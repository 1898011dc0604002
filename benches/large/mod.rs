//! Large bodies that nobody holds: made as they are sent, and their digest taken as they come.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::PathBuf;
use std::time::Instant;

use docaxis_protocol::digest::Hasher;
use docaxis_protocol::frame::{Class, Frame, Intake, Need, Submit};
use docaxis_protocol::{Digest, Part, PartRole};
use quinn::{Connection, RecvStream, SendStream};

use crate::raw::{RawNode, Sealed};

const CHUNK: usize = 256 << 10;

/// A body of this size; no two with different numbers are alike, nor any two chunks of one.
#[derive(Debug, Clone, Copy)]
pub struct Large {
    pub number: u64,
    pub size: u64,
}

impl Large {
    fn chunks(self) -> impl Iterator<Item = Vec<u8>> {
        let Self { number, size } = self;
        (0..size.div_ceil(CHUNK as u64)).map(move |at| {
            let left = size - at * CHUNK as u64;
            let mut chunk = vec![0x5a; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
            let stamp = [number.to_be_bytes(), at.to_be_bytes()].concat();
            let room = chunk.len().min(stamp.len());
            chunk[..room].copy_from_slice(&stamp[..room]);
            chunk
        })
    }

    pub fn digest(self) -> Digest {
        let mut hasher = Hasher::new();
        self.chunks().for_each(|chunk| hasher.update(&chunk));
        hasher.finish()
    }

    pub fn part(self, sha256: Digest) -> Part {
        let (name, media_type) = ("large.zip".into(), "application/zip".into());
        Part { name, media_type, size: self.size, sha256, role: PartRole::Document }
    }

    pub async fn send(self, stream: &mut SendStream) {
        for chunk in self.chunks() {
            stream.write_chunk(chunk.into()).await.unwrap();
        }
    }

    /// Submits a letter whose one part it is, until it is accepted.
    pub async fn submit(self, from: &RawNode, sealed: Sealed) {
        let mut stream = from.open().await;
        stream.write(&Frame::Submit(Submit { envelope: sealed.envelope, inline: Vec::new() })).await;
        match stream.read(Class::Large).await {
            Frame::Need(need) => assert_eq!(need, Need { parts: vec![(0, 0)] }),
            other => panic!("{other:?}"),
        }
        self.send(&mut stream.send).await;
        match stream.read(Class::Large).await {
            Frame::Done(done) => assert_eq!(done.intake, Intake::Accepted),
            other => panic!("{other:?}"),
        }
    }

    /// Seconds until all of it is kept by an end that does nothing else: [`keep`].
    pub async fn over_bare_quic(self, bare: &Connection, sha256: Digest) -> f64 {
        let started = Instant::now();
        let (mut send, mut recv) = bare.open_bi().await.unwrap();
        self.send(&mut send).await;
        send.finish().unwrap();
        let mut answer = [0; 32];
        recv.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, sha256.0);
        started.elapsed().as_secs_f64()
    }
}

/// Reads so many bytes, and says their digest.
pub async fn receive(stream: &mut RecvStream, size: u64) -> Digest {
    let (mut hasher, mut left) = (Hasher::new(), size);
    while left > 0 {
        let wanted = CHUNK.min(usize::try_from(left).unwrap_or(CHUNK));
        let chunk = stream.read_chunk(wanted, true).await.unwrap().expect("more bytes");
        hasher.update(&chunk.bytes);
        left -= chunk.bytes.len() as u64;
    }
    hasher.finish()
}

/// The other end of bare QUIC: digest and file on a thread of their own for each body, and the digest in answer when all
/// of it is durable. The files are in nobody's way afterwards.
pub async fn keep(connection: Connection, folder: PathBuf) {
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        let file = tempfile::tempfile_in(&folder).unwrap();
        tokio::spawn(async move {
            let (chunks, taken) = tokio::sync::mpsc::channel::<bytes::Bytes>(8);
            let writer = std::thread::spawn(move || write(file, taken));
            while let Some(chunk) = recv.read_chunk(CHUNK, true).await.unwrap() {
                chunks.send(chunk.bytes).await.unwrap();
            }
            drop(chunks);
            let digest = tokio::task::spawn_blocking(move || writer.join().unwrap()).await.unwrap();
            send.write_all(&digest.0).await.unwrap();
            send.finish().unwrap();
        });
    }
}

fn write(file: File, mut chunks: tokio::sync::mpsc::Receiver<bytes::Bytes>) -> Digest {
    let (mut file, mut hasher, mut unsynced) = (BufWriter::with_capacity(1 << 20, file), Hasher::new(), 0);
    while let Some(chunk) = chunks.blocking_recv() {
        hasher.update(&chunk);
        file.write_all(&chunk).unwrap();
        unsynced += chunk.len();
        if unsynced >= 16 << 20 {
            file.get_ref().sync_data().unwrap();
            unsynced = 0;
        }
    }
    file.into_inner().unwrap().sync_all().unwrap();
    hasher.finish()
}
