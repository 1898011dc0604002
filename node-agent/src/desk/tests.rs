//! The control socket as the command line sees it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use docaxis_protocol::Digest;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::allowed;
use crate::AgentError;
use crate::link::testing::{Exchange, code, until};

async fn call(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> (u16, Vec<u8>) {
    let mut answer = raw_call(socket, method, path, body).await;
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
    let status = std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap();
    (status, answer.split_off(end + 4))
}

/// Everything that comes until the end of the connection.
async fn raw_call(socket: &Path, method: &str, path: &str, body: Option<&Value>) -> Vec<u8> {
    let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    answer
}

fn json_of(answer: (u16, Vec<u8>)) -> (u16, Value) {
    (answer.0, serde_json::from_slice(&answer.1).unwrap())
}

#[test]
fn only_the_same_user_and_root_are_let_in() {
    assert_eq!([(1000, 1000), (0, 1000), (1001, 1000)].map(|(peer, own)| allowed(peer, own)), [true, true, false]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispatch_is_queued_shown_and_its_part_read_back_over_the_socket() {
    let mut exchange = Exchange::start();
    let node = exchange.join("g22", &["000.00.00.G22"]);
    let agent = exchange.agent(&node, "agent");
    let data = exchange.config("agent").agent.data;
    let socket = data.join("control.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let second = crate::Agent::start(exchange.config("agent"), crate::Identity::of(&node).unwrap(), crate::Env::real());
    assert!(matches!(second, Err(AgentError::Locked(_))));

    let file = exchange.folder.path().join("a file.pdf");
    let body = vec![5u8; 600_000];
    std::fs::write(&file, &body).unwrap();
    let draft = json!({
        "from": "000.00.00.G22",
        "to": ["H37.DN.001"],
        "document": {"Subject": "Về việc thử nghiệm"},
        "parts": [{"name": "a.pdf", "media_type": "application/pdf", "path": file}],
    });
    let (status, made) = json_of(call(&socket, "POST", "/v1/dispatches", Some(&draft)).await);
    assert_eq!(status, 202);
    let id = made["id"].as_str().unwrap();

    let (status, listed) = json_of(call(&socket, "GET", "/v1/dispatches?box=out&state=queued", None).await);
    assert_eq!((status, &listed["dispatches"][0]["id"], &listed["next"]), (200, &json!(id), &Value::Null));
    let (status, shown) = json_of(call(&socket, "GET", &format!("/v1/dispatches/{id}"), None).await);
    assert_eq!(status, 200);
    assert_eq!(shown["subject"], "Về việc thử nghiệm");
    assert_eq!(shown["outgoing"]["state"], "queued");
    assert!(shown["outgoing"]["waiting"]["why"].is_string() && shown["outgoing"]["waiting"]["whose_move"].is_string());
    assert_eq!(shown["parts"][0]["sha256"], Digest::of(&body).to_string());
    let (status, part) = call(&socket, "GET", &format!("/v1/dispatches/{id}/parts/0"), None).await;
    assert_eq!((status, part == body), (200, true));
    let (status, waited) =
        json_of(call(&socket, "GET", &format!("/v1/dispatches/{id}/wait?until=accepted&timeout_ms=1"), None).await);
    assert_eq!((status, &waited["outcome"]), (200, &json!("timed-out")));
    let (status, found) = json_of(call(&socket, "GET", "/v1/status", None).await);
    assert_eq!(
        (status, &found["node"], &found["outbox"]),
        (200, &json!("g22"), &json!([{"state": "queued", "count": 1}]))
    );

    let problem = |answer: (u16, Vec<u8>)| {
        let (status, body) = json_of(answer);
        assert!(body["detail"].is_string() && body["hint"].is_string(), "{body}");
        (status, body["code"].as_str().unwrap().to_owned())
    };
    let absent = "/v1/dispatches/0192f0c1-2b3c-7d4e-8f50-123456789abc";
    assert_eq!(problem(call(&socket, "GET", absent, None).await), (404, "not-found".into()));
    assert_eq!(problem(call(&socket, "GET", "/v1/dispatches/x", None).await), (400, "malformed".into()));
    assert_eq!(problem(call(&socket, "GET", "/v2", None).await), (404, "not-found".into()));
    let relative = json!({"from": "000.00.00.G22", "to": ["A53"], "parts": [{"name": "a", "path": "etc/passwd"}]});
    assert_eq!(problem(call(&socket, "POST", "/v1/dispatches", Some(&relative)).await), (400, "malformed".into()));
    let foreign = json!({"from": "H37.DN.001", "to": ["A53"]});
    assert_eq!(problem(call(&socket, "POST", "/v1/dispatches", Some(&foreign)).await), (422, "not-hosted".into()));

    agent.shutdown().await.unwrap();
    assert!(!socket.exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mailbox_that_does_not_hold_together_is_an_alarm_that_says_what_next() {
    let mut exchange = Exchange::start();
    let node = exchange.join("g22", &["000.00.00.G22"]);
    let agent = exchange.agent(&node, "agent");
    agent.compose(crate::Draft::new(code("000.00.00.G22"), vec![code("H37.DN.001")])).await.unwrap();
    agent.shutdown().await.unwrap();
    let mailbox = exchange.config("agent").agent.data.join("mailbox.db");
    crate::mailbox::raw(&mailbox).execute_batch("UPDATE outgoing SET sender = 'H37.DN.002'").unwrap();

    let agent = exchange.agent(&node, "agent");
    let alarm = async || agent.status().await.unwrap().alarms.first().map(|alarm| alarm.text.clone());
    let text = until(&agent, alarm).await;
    for part in ["the mailbox's database is damaged", "sender is \"H37.DN.002\"", "docaxis agent restore"] {
        assert!(text.contains(part), "{text}");
    }
    agent.shutdown().await.unwrap();
    crate::mailbox::raw(&mailbox).execute_batch("UPDATE outgoing SET sender = '000.00.00.G22'").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_whose_name_a_flipped_bit_hides_is_not_cleared_away_by_a_start() {
    use crate::mailbox::{flip_in, small_bodies};
    let mut exchange = Exchange::start();
    let node = exchange.join("g22", &["000.00.00.G22"]);
    let agent = exchange.agent(&node, "agent");
    let mut draft = crate::Draft::new(code("000.00.00.G22"), vec![code("H37.DN.001")]);
    draft.parts = vec![crate::DraftPart {
        name: "a.pdf".into(),
        media_type: "application/pdf".into(),
        role: docaxis_protocol::PartRole::Document,
        source: crate::Source::Bytes(b"body".to_vec()),
    }];
    agent.compose(draft).await.unwrap();
    agent.shutdown().await.unwrap();
    let (mailbox, sha256) = (exchange.config("agent").agent.data.join("mailbox.db"), Digest::of(b"body"));
    flip_in(&mailbox, "part_refs", sha256.as_bytes());
    exchange.agent(&node, "agent").shutdown().await.unwrap();
    assert_eq!(small_bodies(&mailbox), [sha256]);
    let mut other = sha256.0;
    other[0] ^= 1;
    flip_in(&mailbox, "part_refs", &other);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_part_that_is_damaged_on_disk_is_never_given_out_whole_and_is_an_alarm() {
    let mut exchange = Exchange::start();
    let node = exchange.join("g22", &["000.00.00.G22"]);
    let agent = exchange.agent(&node, "agent");
    let data = exchange.config("agent").agent.data;
    let socket = data.join("control.sock");
    // One that the mailbox holds, a file that is read at once, and one in several chunks of which the last is small.
    for size in [1_000, 100_000, 3 * crate::parts::CHUNK_BYTES + 1_000] {
        let body = vec![7u8; size];
        let file = exchange.folder.path().join("a file.pdf");
        std::fs::write(&file, &body).unwrap();
        let draft = json!({
            "from": "000.00.00.G22", "to": ["H37.DN.001"], "document": {"Subject": "x"},
            "parts": [{"name": "a.pdf", "path": file}],
        });
        let (status, made) = json_of(call(&socket, "POST", "/v1/dispatches", Some(&draft)).await);
        assert_eq!(status, 202);
        let path = format!("/v1/dispatches/{}/parts/0", made["id"].as_str().unwrap());
        let mut damaged = body.clone();
        damaged[size - 1] ^= 1;
        let digest = Digest::of(&body);
        let sha256 = digest.to_string();
        if size > crate::mailbox::MAX_SMALL_BODY_BYTES {
            std::fs::write(data.join("parts").join(&sha256[..2]).join(&sha256), &damaged).unwrap();
        } else {
            crate::mailbox::damage(&data.join("mailbox.db"), digest, Some(&damaged));
        }
        let answer = raw_call(&socket, "GET", &path, None).await;
        assert!(!answer.ends_with(&damaged[size - 1_000..]), "the last bytes of {size} came");
        let alarms = agent.status().await.unwrap().alarms;
        assert!(alarms.last().is_some_and(|alarm| alarm.text.contains(&sha256)), "{alarms:?}");
    }
    agent.shutdown().await.unwrap();
}
