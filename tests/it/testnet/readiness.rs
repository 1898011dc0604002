//! What the broker's console says, asked as a load balancer does.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use serde_json::Value;

use super::TestNet;

impl TestNet {
    /// Status and body of the running broker's `/readyz`.
    pub fn readiness(&self) -> (u16, Value) {
        ask(self.broker().console().expect("tests ask for a port"), "/readyz").unwrap()
    }
}

/// Status and body of a page.
pub fn ask(address: SocketAddr, page: &str) -> std::io::Result<(u16, Value)> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(format!("GET {page} HTTP/1.1\r\nhost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("no status in {head:?}")))?;
    Ok((status, serde_json::from_str(body).map_err(std::io::Error::other)?))
}
