//! The simulated network: datagrams of turmoil under quinn, with losses of our own, and a digest over all that was sent.

use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use docaxis_protocol::digest::Hasher;
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, UdpPoller};

use super::random::Random;

/// The largest datagram that anybody sends.
const DATAGRAM_BYTES: usize = 2048;

/// What all hosts of a simulation share of the network.
pub struct Network {
    /// Of a thousand datagrams so many are lost.
    pub loss: AtomicU64,
    random: Mutex<Random>,
    /// Times, lengths and ways of all datagrams, and what is in a Retry.
    sent: Mutex<Hasher>,
    pub datagrams: AtomicU64,
}

impl Network {
    pub fn of(seed: u64) -> Arc<Self> {
        Arc::new(Self {
            loss: AtomicU64::new(0),
            random: Mutex::new(Random::of(seed, "loss")),
            sent: Mutex::new(Hasher::new()),
            datagrams: AtomicU64::new(0),
        })
    }

    /// What was sent so far, as a digest.
    pub fn sent(&self) -> docaxis_protocol::Digest {
        std::mem::take(&mut *self.sent.lock().unwrap()).finish()
    }

    /// Whether this datagram gets on its way.
    fn takes(&self, from: SocketAddr, transmit: &Transmit<'_>) -> bool {
        let at = turmoil::sim_elapsed().unwrap_or_default();
        let line = format!("{} {from} {} {}\n", at.as_micros(), transmit.destination, transmit.contents.len());
        let mut sent = self.sent.lock().unwrap();
        sent.update(line.as_bytes());
        // Nobody encrypts a Retry, and quinn may read one that comes late as frames: its bytes must repeat too.
        if transmit.contents.first().is_some_and(|first| first & 0xf0 == 0xf0) {
            sent.update(transmit.contents);
        }
        drop(sent);
        self.datagrams.fetch_add(1, Ordering::Relaxed);
        self.random.lock().unwrap().between(1, 1000) > self.loss.load(Ordering::Relaxed)
    }

    fn bind(self: &Arc<Self>, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        // It never waits.
        let mut context = Context::from_waker(Waker::noop());
        let bound = pin!(turmoil::net::UdpSocket::bind(address)).poll(&mut context);
        let Poll::Ready(socket) = bound else { return Err(io::ErrorKind::WouldBlock.into()) };
        let socket = socket?;
        let local = socket.local_addr()?;
        let network = self.clone();
        Ok(Arc::new(Socket { socket: Arc::new(socket), local, receiving: Mutex::default(), network }))
    }
}

/// The network as broker and agents ask for it.
pub struct Ours(pub Arc<Network>);

impl docaxis_broker::link::Network for Ours {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        self.0.bind(address)
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(Tasks)
    }
}

impl docaxis_node_agent::link::Network for Ours {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        self.0.bind(address)
    }

    fn runtime(&self) -> Arc<dyn Runtime> {
        Arc::new(Tasks)
    }
}

type Receiving = Pin<Box<dyn Future<Output = (io::Result<(usize, SocketAddr)>, Vec<u8>)> + Send>>;

struct Socket {
    socket: Arc<turmoil::net::UdpSocket>,
    local: SocketAddr,
    receiving: Mutex<Option<Receiving>>,
    network: Arc<Network>,
}

impl std::fmt::Debug for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Socket({})", self.local)
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit<'_>) -> io::Result<()> {
        if self.network.takes(self.local, transmit) {
            // Nobody listens there any more, or the way is cut: as lost as any datagram.
            let _lost = self.socket.try_send_to(transmit.contents, transmit.destination);
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let mut receiving = self.receiving.lock().unwrap();
        let future = receiving.get_or_insert_with(|| {
            let socket = self.socket.clone();
            Box::pin(async move {
                let mut bytes = vec![0; DATAGRAM_BYTES];
                let received = socket.recv_from(&mut bytes).await;
                (received, bytes)
            })
        });
        let Poll::Ready((received, bytes)) = future.as_mut().poll(context) else { return Poll::Pending };
        *receiving = None;
        let (len, from) = received?;
        buffers[0][..len].copy_from_slice(&bytes[..len]);
        meta[0] = RecvMeta { addr: from, len, stride: len, ecn: None, dst_ip: None };
        Poll::Ready(Ok(1))
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

/// QUIC's tasks and timers on the simulated runtime.
#[derive(Debug)]
struct Tasks;

impl Runtime for Tasks {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        Box::pin(tokio::time::sleep_until(at.into()))
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        drop(tokio::spawn(future));
    }

    fn wrap_udp_socket(&self, _: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn now(&self) -> Instant {
        tokio::time::Instant::now().into_std()
    }
}
