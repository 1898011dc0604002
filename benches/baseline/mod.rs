//! What the machine gives without an exchange: synced overwrites of a file, and QUIC without anything behind it.

pub mod wire;

use std::fs::{File, OpenOptions};
use std::net::SocketAddr;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use docaxis_certs::{BrokerIdentity, Trust, tls};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{Connection, Endpoint, EndpointConfig, ServerConfig, TransportConfig, VarInt};

/// Where the data lies: a real disk, because a `fdatasync` in memory costs nothing.
pub fn data_folder() -> tempfile::TempDir {
    let below = std::env::var_os("DOCAXIS_BENCH_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target").join("bench-data"), PathBuf::from);
    std::fs::create_dir_all(&below).unwrap();
    tempfile::tempdir_in(below).unwrap()
}

pub fn median(of: Vec<f64>) -> f64 {
    percentile(of, 50)
}

/// The value that so many of a hundred do not exceed.
pub fn percentile(mut of: Vec<f64>, hundredths: usize) -> f64 {
    of.sort_by(f64::total_cmp);
    of[(of.len() * hundredths / 100).min(of.len() - 1)]
}

/// The numbers among this program's arguments, in their order.
pub fn numbers() -> Vec<u64> {
    std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).map(|arg| arg.parse().unwrap()).collect()
}

/// Records written a second when `group` of them, `record` bytes each, share one `fdatasync`: over a file that was
/// written in full before.
pub struct SyncedFile {
    file: File,
    len: u64,
}

impl SyncedFile {
    pub fn create(folder: &Path) -> Self {
        let len = 64u64 << 20;
        let file = OpenOptions::new().create_new(true).write(true).open(folder.join("overwritten")).unwrap();
        let zeros = vec![0; 1 << 20];
        (0..len >> 20).for_each(|at| file.write_all_at(&zeros, at << 20).unwrap());
        file.sync_all().unwrap();
        Self { file, len }
    }

    pub fn records_per_s(&self, record: usize, group: usize, length: Duration) -> f64 {
        let bytes = vec![0x5a; record * group];
        let (started, mut at, mut records) = (Instant::now(), 0, 0);
        while started.elapsed() < length {
            if at + bytes.len() as u64 > self.len {
                at = 0;
            }
            self.file.write_all_at(&bytes, at).unwrap();
            self.file.sync_data().unwrap();
            at += bytes.len() as u64;
            records += group;
        }
        records as f64 / started.elapsed().as_secs_f64()
    }

    /// Milliseconds that each of `count` records took to be written and synced, one by one.
    pub fn latencies_ms(&self, record: usize, count: usize) -> Vec<f64> {
        let bytes = vec![0x5a; record];
        let places = self.len / record as u64;
        let one = |n: usize| {
            let started = Instant::now();
            self.file.write_all_at(&bytes, n as u64 % places * record as u64).unwrap();
            self.file.sync_data().unwrap();
            started.elapsed().as_secs_f64() * 1e3
        };
        (0..count).map(one).collect()
    }
}

/// A server that knows only QUIC, on a thread and a current-thread runtime of its own, as the broker's link has.
pub fn serve<S, F>(identity: &Path, session: S) -> SocketAddr
where
    S: Fn(Connection) -> F + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let identity = BrokerIdentity::load(identity).unwrap();
    let trust = Trust::new(identity.origin.clone(), &identity.common).unwrap();
    let tls = tls::broker_link_server(&identity, trust, tls::system_clock()).unwrap();
    let mut config = ServerConfig::with_crypto(Arc::new(QuicServerConfig::try_from(tls).unwrap()));
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(1024))
        .receive_window(VarInt::from_u32(8 << 20))
        .stream_receive_window(VarInt::from_u32(4 << 20))
        .send_window(8 << 20)
        // A peer may wait for long until a large file is synced.
        .keep_alive_interval(Some(Duration::from_secs(5)));
    config.transport_config(Arc::new(transport));
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let runtime = Arc::new(quinn::TokioRuntime);
            let endpoint = Endpoint::new(EndpointConfig::default(), Some(config), socket, runtime).unwrap();
            while let Some(incoming) = endpoint.accept().await {
                if let Ok(connection) = incoming.await {
                    tokio::spawn(session(connection));
                }
            }
        });
    });
    address
}
