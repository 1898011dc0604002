//! Requests and answers over QUIC, and an end that answers without doing anything.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use docaxis_protocol::frame::{Class, Frame};
use quinn::Connection;

/// Sends one request and reads the whole answer frame.
pub async fn exchange(connection: &Connection, request: &[u8]) -> Vec<u8> {
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    send.write_all(request).await.unwrap();
    send.finish().unwrap();
    let mut header = [0; 4];
    recv.read_exact(&mut header).await.unwrap();
    let mut body = vec![0; Frame::length(header, Class::Large).unwrap()];
    recv.read_exact(&mut body).await.unwrap();
    body
}

/// Exchanges a second with so many in flight. Each answer is looked at after the clock has stopped.
pub async fn rate(connection: &Connection, requests: Arc<Vec<Vec<u8>>>, in_flight: usize) -> (f64, Vec<Vec<u8>>) {
    let next = Arc::new(AtomicUsize::new(0));
    let started = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..in_flight {
        let (connection, requests, next) = (connection.clone(), requests.clone(), next.clone());
        tasks.push(tokio::spawn(async move {
            let mut answers = Vec::new();
            while let Some(request) = requests.get(next.fetch_add(1, Ordering::Relaxed)) {
                answers.push(exchange(&connection, request).await);
            }
            answers
        }));
    }
    let mut answers = Vec::new();
    for task in tasks {
        answers.extend(task.await.unwrap());
    }
    (requests.len() as f64 / started.elapsed().as_secs_f64(), answers)
}

/// A server that takes requests of this size and answers each with a frame of that size, and does nothing else.
pub fn answering(identity: &Path, request_bytes: usize, answer_bytes: usize) -> SocketAddr {
    let mut answer = u32::try_from(answer_bytes).unwrap().to_be_bytes().to_vec();
    answer.resize(4 + answer_bytes, 0x5a);
    let answer = Arc::new(answer);
    super::serve(identity, move |connection| echo(connection, request_bytes, answer.clone()))
}

async fn echo(connection: Connection, request_bytes: usize, answer: Arc<Vec<u8>>) {
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        let answer = answer.clone();
        tokio::spawn(async move {
            let mut request = vec![0; request_bytes];
            recv.read_exact(&mut request).await.unwrap();
            send.write_all(&answer).await.unwrap();
            send.finish().unwrap();
        });
    }
}
