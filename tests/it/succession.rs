//! Agencies that were merged: what is addressed to them reaches their successor, which answers for them under its own
//! seal, and the evidence names both. Nobody else may.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use base64::Engine as _;
use docaxis_broker::dispatch::Way;
use docaxis_protocol::bundle::BundleFiles;
use docaxis_protocol::{Event, ReasonCode, SealedStatement, Statement, statement};
use serde_json::{Value, json};

use crate::testnet::{AUTHORITY, BROKER, HANG, Processes, TestNet, code, letter};

const G22: &str = "000.00.00.G22";
const OLD: &str = "H37.DN.001";
const NEW: &str = "H37.DN.002";
const LAST: &str = "H37.DN.003";
const NODES: &[(&str, &[&str])] = &[("g22", &[G22]), ("old", &[OLD]), ("new", &[NEW]), ("last", &[LAST])];

const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Asks until there is an answer.
fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + HANG;
    loop {
        if let Some(found) = ask() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what} did not come within {HANG:?}");
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// `docaxis agency` at the authority of these processes.
fn agency(processes: &Processes, args: &[&str]) -> Value {
    let output = Command::new(env!("CARGO_BIN_EXE_docaxis"))
        .args(["--json", "agency"])
        .args(args)
        .arg("--authority")
        .arg(processes.folder().join(AUTHORITY))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).unwrap()
}

/// Merges, and waits until the broker goes by it.
fn merge(processes: &Processes, from: &str, into: &str) {
    agency(processes, &["merge", from, "--into", into, "--yes"]);
    // Others may change with it, and stand before it.
    let version = agency(processes, &["show", from])["version"].as_u64().unwrap();
    until("the directory", || {
        let status: Value = processes.control(BROKER).get("/v1/status").unwrap();
        (status["directory_version"].as_u64()? >= version).then_some(())
    });
}

/// Queues a letter of G22.
fn send(processes: &Processes, to: &[&str]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(b"%PDF-1.7 one page");
    let draft = json!({"from": G22, "to": to, "document": {"Subject": "x"},
                       "parts": [{"name": "a.pdf", "media_type": "application/pdf", "base64": body}]});
    let made: Value = processes.control("g22").post("/v1/dispatches", &draft, None).unwrap();
    made["id"].as_str().unwrap().to_owned()
}

fn wait(processes: &Processes, id: &str, state: &str) -> Value {
    let path = format!("/v1/dispatches/{id}/wait?until={state}&timeout_ms={}", HANG.as_millis());
    let waited: Value = processes.control("g22").get(&path).unwrap();
    assert_eq!(waited["outcome"], "reached", "{waited:#}");
    waited["dispatch"].clone()
}

/// Who acted for a recipient in each event, as the sender's node tells.
fn acted(shown: &Value, recipient: &str) -> Vec<(String, Option<String>)> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let timeline = shown["timeline"].as_array().unwrap();
    let of_recipient = timeline.iter().filter(|entry| entry["agency"] == recipient);
    of_recipient.map(|entry| (text(&entry["event"]).unwrap(), text(&entry["acting"]))).collect()
}

fn inbox(processes: &Processes, node: &str) -> Vec<String> {
    let page: Value = processes.control(node).get("/v1/dispatches?box=in").unwrap();
    page["dispatches"].as_array().unwrap().iter().map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

/// Status 03 of a recipient, from the node that speaks for it.
fn register(processes: &Processes, node: &str, id: &str, recipient: &str) {
    let path = format!("/v1/dispatches/{id}/status");
    let _shown: Value = until("the dispatch", || {
        processes.control(node).post(&path, &json!({"code": "03", "recipient": recipient}), None).ok()
    });
}

/// Writes the bundle that a process gives, as soon as its proofs are there.
fn bundle(processes: &Processes, name: &str, id: &str) -> PathBuf {
    let zip = until("the bundle", || processes.control(name).bytes(&format!("/v1/dispatches/{id}/bundle")).ok());
    let path = processes.folder().join(format!("{name}-{id}.zip"));
    std::fs::File::create(&path).unwrap().write_all(&zip).unwrap();
    path
}

/// Both verifiers accept the bundle: ours, and where it is there, the independent one.
fn verifies(processes: &Processes, bundle: &Path) {
    let root = processes.folder().join(AUTHORITY).join("root.pem");
    let mut ours = Command::new(env!("CARGO_BIN_EXE_docaxis"));
    ours.args(["audit", "verify"]);
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/tools/verify_bundle.py");
    let mut judges = vec![ours];
    if script.exists() {
        let mut python = Command::new("python3");
        python.arg(script);
        judges.push(python);
    } else {
        assert!(std::env::var_os("DOCAXIS_REQUIRE_ALL").is_none(), "{} is not there", script.display());
        eprintln!("SKIPPED: {} is not there", script.display());
    }
    for mut judge in judges {
        let output = judge.arg(bundle).arg("--authority").arg(&root).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}: {}", bundle.display(), String::from_utf8_lossy(&said));
    }
}

#[test]
fn what_is_for_a_merged_agency_reaches_its_successor_and_the_evidence_names_both() {
    let mut processes = Processes::start(NODES);
    processes.launch(AUTHORITY);
    // Waits for a node that is away when the agency is merged.
    processes.kill("old");
    let before = send(&processes, &[OLD, NEW]);
    wait(&processes, &before, "accepted");
    merge(&processes, OLD, NEW);
    let after = send(&processes, &[OLD]);
    for id in [&before, &after] {
        let shown = wait(&processes, id, "handed-over");
        assert_eq!(acted(&shown, OLD), [("ContentHandover".into(), Some(NEW.into()))], "{shown:#}");
        until("the dispatch at the successor", || inbox(&processes, "new").contains(id).then_some(()));
    }
    processes.launch("old");
    register(&processes, "new", &after, OLD);
    let shown = wait(&processes, &after, "registered");
    let by_successor = |event: &str| (event.to_owned(), Some(NEW.to_owned()));
    assert_eq!(acted(&shown, OLD), [by_successor("ContentHandover"), by_successor("Registered")]);

    // A further merge moves what is new; who took a dispatch answers for it to the end.
    merge(&processes, NEW, LAST);
    register(&processes, "new", &before, OLD);
    register(&processes, "new", &before, NEW);
    wait(&processes, &before, "registered");
    let at_last = send(&processes, &[OLD, NEW]);
    let shown = wait(&processes, &at_last, "handed-over");
    for recipient in [OLD, NEW] {
        assert_eq!(acted(&shown, recipient), [("ContentHandover".into(), Some(LAST.into()))], "{recipient}");
    }
    assert_eq!(inbox(&processes, "last"), [at_last.as_str(), at_last.as_str()]);
    assert_eq!(inbox(&processes, "old"), [] as [&str; 0]);

    for (id, by) in [(&before, Some("new")), (&after, Some("new")), (&at_last, Some("last"))] {
        for name in ["g22", BROKER].into_iter().chain(by) {
            let path = bundle(&processes, name, id);
            let files = BundleFiles::read(&std::fs::read(&path).unwrap()).unwrap();
            assert!(files.get(&format!("directory/{OLD}.json")).is_some(), "no succession in {}", path.display());
            verifies(&processes, &path);
        }
    }

    // The agent knows both by every code, and says that the merged one may not send any longer.
    until("the second merge at the agent", || {
        let found: Value = processes.control("old").get(&format!("/v1/agencies?q={OLD}")).unwrap();
        (found["agencies"][0]["successor"] == LAST).then_some(())
    });
    let draft = json!({"from": OLD, "to": [G22], "parts": [{"name": "a.txt", "base64": "YQ=="}]});
    let refused = processes.control("old").post::<Value>("/v1/dispatches", &draft, None).unwrap_err();
    assert_eq!((refused.code.as_str(), refused.message.contains(LAST)), ("sender-locked", true), "{}", refused.message);
}

#[test]
fn only_a_successor_that_the_authority_signed_may_act() {
    let mut net = TestNet::prepare(NODES);
    net.start_broker();
    net.start_node("g22");
    let sent = net.send(G22, &[OLD], letter());
    net.wait_settled(&sent);
    let envelope_sha256 = net.block_on(net.agent("g22").bundle(sent.id)).unwrap().envelope.digest();
    let state = |net: &TestNet, node: &str, acting: Option<&str>, event: Event| {
        let identity = net.identity(node);
        let (_, seal) = identity.seals.first_key_value().unwrap();
        let exchange = net.broker().exchange();
        let said = Statement {
            kind_of_bytes: statement::TYPE.into(),
            exchange: identity.origin.clone(),
            event,
            dispatch: sent.id,
            envelope_sha256,
            recipient: code(OLD),
            time: exchange.now(),
            reasons: vec![],
            acting: acting.map(code),
        };
        let sealed = SealedStatement::seal(&said, &seal.key, seal.chain.clone()).unwrap();
        net.block_on(exchange.state(&node.parse().unwrap(), sealed, Way::Reported))
            .unwrap()
            .map_err(|reason| reason.known())
    };
    let handover = Event::ContentHandover;
    // Nobody was merged yet.
    assert_eq!(state(&net, "new", Some(NEW), handover).unwrap_err(), ReasonCode::NotYours);
    net.authority.merge_agency(&code(OLD), &code(NEW), net.broker().exchange().now()).unwrap();
    net.publish();
    // Another agency than the successor; another node in the successor's name; the successor without saying so.
    assert_eq!(state(&net, "last", Some(LAST), handover).unwrap_err(), ReasonCode::NotYours);
    assert_eq!(state(&net, "last", Some(NEW), handover).unwrap_err(), ReasonCode::NotYours);
    assert_eq!(state(&net, "new", None, handover).unwrap_err(), ReasonCode::NotYours);
    let recorded = state(&net, "new", Some(NEW), handover).unwrap();
    let evidence = docaxis_protocol::Evidence::parse(&recorded.evidence.bytes).unwrap();
    assert_eq!((evidence.recipient, evidence.acting), (Some(code(OLD)), Some(code(NEW))));
    // The merged agency cannot speak about what its successor has taken, nor a later successor.
    assert_eq!(state(&net, "old", None, Event::Registered).unwrap_err(), ReasonCode::NotYours);
    net.authority.merge_agency(&code(NEW), &code(LAST), net.broker().exchange().now()).unwrap();
    net.publish();
    assert_eq!(state(&net, "last", Some(LAST), Event::Registered).unwrap_err(), ReasonCode::NotYours);
    state(&net, "new", Some(NEW), Event::Registered).unwrap();
}
