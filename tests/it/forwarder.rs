//! A stretch of network between one node and the broker that a test holds in its hand: it counts what passes, stops passing
//! anything after so many bytes or anything one way, passes it slowly, and changes the address under which the node appears.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::testnet::HANG;

/// How soon a thread sees that it has to end, or that a socket was replaced.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    ToBroker = 0,
    ToNode = 1,
}

struct Inner {
    broker: SocketAddr,
    /// What the node talks to.
    front: UdpSocket,
    /// What the broker sees.
    back: Mutex<Arc<UdpSocket>>,
    /// Where the node was heard last.
    node: Mutex<Option<SocketAddr>>,
    /// Bytes that passed, each way.
    passed: [AtomicU64; 2],
    /// Over this many each way, it is cut.
    most: [AtomicU64; 2],
    cut: AtomicBool,
    /// Nothing passes this way.
    silent: [AtomicBool; 2],
    /// Bytes that pass in a second, each way; none for as many as come.
    pace: [AtomicU64; 2],
    stop: AtomicBool,
}

pub struct Forwarder {
    inner: Arc<Inner>,
    threads: Vec<JoinHandle<()>>,
}

fn socket() -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(LOOK_AGAIN)).unwrap();
    socket
}

impl Forwarder {
    pub fn to(broker: SocketAddr) -> Self {
        let inner = Arc::new(Inner {
            broker,
            front: socket(),
            back: Mutex::new(Arc::new(socket())),
            node: Mutex::new(None),
            passed: Default::default(),
            most: [AtomicU64::new(u64::MAX), AtomicU64::new(u64::MAX)],
            cut: AtomicBool::new(false),
            silent: Default::default(),
            pace: Default::default(),
            stop: AtomicBool::new(false),
        });
        let (out, back) = (inner.clone(), inner.clone());
        let threads = vec![std::thread::spawn(move || out.run_out()), std::thread::spawn(move || back.run_back())];
        Self { inner, threads }
    }

    /// Where the node finds the broker.
    pub fn address(&self) -> SocketAddr {
        self.inner.front.local_addr().unwrap()
    }

    /// Bytes that have passed this way, with all that QUIC adds.
    pub fn passed(&self, way: Way) -> u64 {
        self.inner.passed[way as usize].load(Ordering::Relaxed)
    }

    /// Passes nothing any more, either way, once so many bytes more have passed this way.
    pub fn cut_after(&self, way: Way, bytes: u64) {
        self.inner.most[way as usize].store(self.passed(way) + bytes, Ordering::Relaxed);
    }

    /// Passes nothing any more this way; the other way goes on.
    pub fn silence(&self, way: Way) {
        self.inner.silent[way as usize].store(true, Ordering::Relaxed);
    }

    /// Passes about so many bytes in a second this way, from now on.
    pub fn slow_down(&self, way: Way, bytes_per_second: u64) {
        self.inner.pace[way as usize].store(bytes_per_second, Ordering::Relaxed);
    }

    pub fn wait_cut(&self) {
        self.wait("a cut", || self.inner.cut.load(Ordering::Relaxed));
    }

    /// Until so many bytes have passed this way.
    pub fn wait_passed(&self, way: Way, bytes: u64) {
        self.wait("bytes", || self.passed(way) >= bytes);
    }

    fn wait(&self, what: &str, until: impl Fn() -> bool) {
        let since = Instant::now();
        while !until() {
            assert!(since.elapsed() < HANG, "{what}: {:?} have passed", self.inner.passed);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Passes everything again, as fast as it comes.
    pub fn mend(&self) {
        self.inner.most.iter().for_each(|most| most.store(u64::MAX, Ordering::Relaxed));
        self.inner.silent.iter().for_each(|silent| silent.store(false, Ordering::Relaxed));
        self.inner.pace.iter().for_each(|pace| pace.store(0, Ordering::Relaxed));
        self.inner.cut.store(false, Ordering::Relaxed);
    }

    /// From now on the broker hears the node from another port, and the old one is gone.
    pub fn move_node(&self) {
        *self.inner.back.lock().unwrap() = Arc::new(socket());
    }
}

impl Inner {
    /// Counts a packet; whether it may pass.
    fn passes(&self, way: Way, len: usize) -> bool {
        let (passed, most) = (&self.passed[way as usize], &self.most[way as usize]);
        if passed.load(Ordering::Relaxed) + len as u64 > most.load(Ordering::Relaxed) {
            self.cut.store(true, Ordering::Relaxed);
        }
        if self.cut.load(Ordering::Relaxed) || self.silent[way as usize].load(Ordering::Relaxed) {
            return false;
        }
        let pace = self.pace[way as usize].load(Ordering::Relaxed);
        let nanos = (len as u64 * 1_000_000_000).checked_div(pace);
        std::thread::sleep(Duration::from_nanos(nanos.unwrap_or(0)));
        passed.fetch_add(len as u64, Ordering::Relaxed);
        true
    }

    fn back(&self) -> Arc<UdpSocket> {
        self.back.lock().unwrap().clone()
    }

    fn run_out(&self) {
        let mut packet = vec![0; 65_536];
        while !self.stop.load(Ordering::Relaxed) {
            let Ok((len, from)) = self.front.recv_from(&mut packet) else { continue };
            *self.node.lock().unwrap() = Some(from);
            if self.passes(Way::ToBroker, len) {
                // Nobody may listen there: that is what a stopped broker looks like.
                let _lost = self.back().send_to(&packet[..len], self.broker);
            }
        }
    }

    fn run_back(&self) {
        let mut packet = vec![0; 65_536];
        while !self.stop.load(Ordering::Relaxed) {
            let Ok((len, _)) = self.back().recv_from(&mut packet) else { continue };
            let node = *self.node.lock().unwrap();
            if let Some(node) = node
                && self.passes(Way::ToNode, len)
            {
                let _lost = self.front.send_to(&packet[..len], node);
            }
        }
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let ended = thread.join();
            assert!(ended.is_ok() || std::thread::panicking(), "a thread of the forwarder had panicked");
        }
    }
}
