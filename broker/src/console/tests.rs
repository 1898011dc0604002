use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};

use docaxis_protocol::space::Level;
use serde_json::Value;

use super::*;
use crate::store::embedded::{Doing, Progress};

fn console() -> (Arc<Progress>, Arc<Health>, Console) {
    let progress = Arc::<Progress>::default();
    let health = Health::new(progress.clone());
    let console = Console::start((Ipv4Addr::LOCALHOST, 0).into(), health.clone()).unwrap();
    (progress, health, console)
}

/// What comes back for these bytes until the console closes the connection: status, head, body.
fn exchange(console: &Console, request: &[u8]) -> (u16, String, String) {
    let mut stream = TcpStream::connect(console.address()).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), head.to_lowercase(), body.to_owned())
}

fn ask(console: &Console, method: &str, path: &str) -> (u16, String, String) {
    exchange(console, format!("{method} {path} HTTP/1.1\r\nhost: here\r\n\r\n").as_bytes())
}

fn state(console: &Console) -> (u16, Value) {
    let (status, head, body) = ask(console, "GET", "/readyz");
    assert!(head.contains("content-type: application/json") && head.contains("cache-control: no-store"), "{head}");
    let found: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(found["ready"], status == 200, "status and body disagree: {status} {body}");
    (status, found["state"].clone())
}

#[test]
fn from_before_the_store_is_opened_until_the_end_it_lives_and_says_whether_it_is_ready() {
    let (progress, health, console) = console();
    let live = || assert_eq!(ask(&console, "GET", "/livez").0, 200);
    assert_eq!(state(&console), (503, "opening".into()));
    live();
    progress.begin(Doing::Rebuilding);
    assert_eq!(state(&console), (503, "rebuilding".into()));
    live();
    health.store_opened();
    assert_eq!(state(&console), (503, "starting".into()));
    health.serving(|| Some(Condition { space: Level::DrainOnly, ..Condition::default() }));
    assert_eq!(state(&console), (200, "serving".into()));
    health.serving(|| Some(Condition { closed: Some("put back".into()), ..Condition::default() }));
    assert_eq!(state(&console), (503, "closed".into()));
    health.serving(|| Some(Condition { poisoned: Some("EIO".into()), ..Condition::default() }));
    assert_eq!(state(&console), (503, "failed".into()));
    live();
    health.stopping();
    assert_eq!(state(&console), (503, "stopping".into()));
    live();
}

#[test]
fn only_two_pages_are_there_and_they_can_only_be_read() {
    let (_, _, console) = console();
    let (status, head, body) = ask(&console, "HEAD", "/readyz");
    assert_eq!((status, body.as_str()), (503, ""));
    assert!(head.contains("content-length:") && !head.contains("content-length: 0"), "{head}");
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let (status, head, body) = ask(&console, method, "/readyz");
        assert_eq!((status, body.as_str()), (405, "only GET and HEAD are answered here\n"), "{method}");
        assert!(head.contains("allow: get,head"), "{head}");
    }
    for path in ["/", "/readyz/", "/status", "/livez/../v1/status"] {
        let (status, _, body) = ask(&console, "GET", path);
        assert_eq!((status, body.as_str()), (404, "there is no such page; there are /livez and /readyz\n"), "{path}");
    }
}

#[test]
fn a_head_that_does_not_end_and_one_with_too_many_lines_are_refused() {
    let (_, _, console) = console();
    let long = format!("GET /livez HTTP/1.1\r\nhost: here\r\nlong: {}", "x".repeat(2 * MAX_HEAD_BYTES));
    let many = format!("GET /livez HTTP/1.1\r\nhost: here\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS));
    for request in [long, many] {
        let mut stream = TcpStream::connect(console.address()).unwrap();
        // It may be closed before all of it was taken.
        let _closed = stream.write_all(request.as_bytes());
        let mut head = [0; 12];
        match stream.read_exact(&mut head) {
            Ok(()) => assert_eq!(&head, b"HTTP/1.1 431"),
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::ConnectionReset),
        }
    }
    assert_eq!(ask(&console, "GET", "/livez").0, 200);
}

#[test]
fn one_request_is_answered_and_the_connection_closed() {
    let (_, _, console) = console();
    let twice = "GET /livez HTTP/1.1\r\nhost: here\r\n\r\n".repeat(2);
    let (status, _, body) = exchange(&console, twice.as_bytes());
    assert_eq!((status, body.as_str()), (200, "{\"live\":true}"));
}

/// Each of them would have its connection for seconds.
#[test]
fn who_says_nothing_does_not_keep_others_out_and_is_closed() {
    let (_, _, console) = console();
    let mut silent: Vec<TcpStream> = Vec::new();
    for _ in 0..3 * MAX_CONNECTIONS {
        let mut stream = TcpStream::connect(console.address()).unwrap();
        stream.write_all(b"GET /livez HTTP/1.1\r\n").unwrap();
        silent.push(stream);
    }
    // Taken after all of them, as connections are taken in order.
    assert_eq!(ask(&console, "GET", "/livez").0, 200);
    for stream in silent.iter_mut().take(MAX_CONNECTIONS) {
        stream.set_nonblocking(true).unwrap();
        let ended = match stream.read(&mut [0; 1]) {
            Ok(read) => read == 0,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        };
        assert!(ended, "one of the oldest is still open");
    }
    // And the last ones, which nobody pushed out, end by themselves.
    let last = silent.last_mut().unwrap();
    last.set_read_timeout(Some(12 * WITHIN)).unwrap();
    let mut rest = Vec::new();
    last.read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
}

#[test]
fn an_address_in_use_is_an_error_that_names_the_key() {
    let (_, health, console) = console();
    let error = Console::start(console.address(), health).err().unwrap().to_string();
    let expected = format!("console.listen in broker.toml is {}; give another address, or \"off\"", console.address());
    assert!(error.starts_with(&expected) && error.contains("in use"), "{error}");
}
