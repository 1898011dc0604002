//! `/livez` and `/readyz` of a broker that was started from the command line, from the first moment of its start on.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use docaxis_protocol::space::{Level, SpaceConfig};
use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use crate::load::{Draft, wait_handed_over};
use crate::testnet::{BROKER, HANG, Processes, TestNet, ask, letter, space};

const SENDER: (&str, &str) = ("g22", "000.00.00.G22");
const AWAY: (&str, &str) = ("a53", "000.00.01.A53");
const NODES: &[(&str, &[&str])] = &[(SENDER.0, &[SENDER.1]), (AWAY.0, &[AWAY.1])];
/// Dispatches that wait. Each is at least one record.
const WAITING: usize = 30;
/// Records after which the rebuild stands still.
const HELD_AT: u64 = 20;

/// Where the broker said in its log that it answers; the newest start counts.
fn console(processes: &Processes, starts: usize) -> SocketAddr {
    eventually(|| {
        let log = processes.logged(BROKER);
        let said: Vec<&str> = log.split("is said at http://").skip(1).collect();
        (said.len() == starts).then(|| said[starts - 1].split('/').next().unwrap().parse().unwrap())
    })
}

/// Before something that has not come is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

fn eventually<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + HANG;
    loop {
        if let Some(done) = attempt() {
            return done;
        }
        assert!(Instant::now() < deadline, "it never came to that");
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn status(processes: &Processes) -> Value {
    processes.control(BROKER).get("/v1/status").unwrap_or_else(|failure| panic!("{}", failure.message))
}

fn fifo(path: &Path) {
    use rustix::fs::{CWD, FileType, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}

#[test]
fn while_the_index_is_built_anew_the_broker_lives_says_how_far_it_is_and_is_ready_when_it_serves() {
    let mut processes = Processes::prepare(NODES, |_| {});
    processes.launch(BROKER);
    let first = console(&processes, 1);
    assert_eq!(ask(first, "/livez").unwrap(), (200, json!({ "live": true })));
    let (code, serving) = ask(first, "/readyz").unwrap();
    assert_eq!((code, &serving["ready"], &serving["state"]), (200, &json!(true), &json!("serving")));
    assert_eq!(status(&processes)["console"], format!("http://{first}/readyz"));
    processes.launch(SENDER.0);
    let socket = processes.socket(SENDER.0);
    let sent: Vec<_> = (0..WAITING)
        .map(|n| Draft::new(processes.folder(), &socket, SENDER.1, &[AWAY.1], &format!("waits-{n}"), &[1_000]).submit())
        .collect();
    eventually(|| (status(&processes)["waiting"] == WAITING).then_some(()));
    processes.kill(BROKER);
    assert!(ask(first, "/livez").is_err(), "the process is gone");

    // The index is lost, and building it stands still after some records.
    std::fs::remove_dir_all(processes.net.broker_data().join("index")).unwrap();
    let gate = processes.folder().join("gate");
    fifo(&gate);
    processes.begin_armed(BROKER, &format!("broker.rebuild.applied:{HELD_AT}@{}", gate.display()));
    let address = console(&processes, 2);
    let held = eventually(|| {
        let (code, found) = ask(address, "/readyz").unwrap();
        assert_eq!((code, &found["ready"]), (503, &json!(false)), "{found}");
        (found["records"] == HELD_AT).then_some(found)
    });
    assert_eq!(held["state"], "rebuilding", "{held}");
    assert_eq!(held["why"], "building the index from evidence and journal");
    let number = |key: &str| held[key].as_u64().unwrap_or_else(|| panic!("{key} in {held}"));
    let journal = std::fs::read_dir(processes.net.broker_data().join("journal")).unwrap();
    let files = journal.map(|entry| entry.unwrap()).filter(|file| file.path().extension().unwrap() == "segment");
    assert_eq!(number("bytes_total"), files.map(|file| file.metadata().unwrap().len()).sum::<u64>());
    assert_eq!(number("percent"), number("bytes_read") * 100 / number("bytes_total"));
    // At least the small bodies of what was applied; the authority's own records carry none.
    assert!((8_000..number("bytes_total")).contains(&number("bytes_read")), "{held}");
    assert_eq!(ask(address, "/livez").unwrap(), (200, json!({ "live": true })), "nobody may kill it for that");
    assert!(processes.control(BROKER).get::<Value>("/v1/status").is_err(), "nothing else answers yet");
    assert_eq!(ask(address, "/readyz").unwrap().1["records"], HELD_AT, "it stands still");

    // It waits there for a writer; without it nobody reads, and opening fails.
    eventually(|| rustix::fs::open(&gate, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty()).ok());
    assert!(processes.serves(BROKER), "it ended instead of serving");
    let (code, serving) = ask(address, "/readyz").unwrap();
    let expected = json!({
        "ready": true, "state": "serving", "why": "nodes are served", "takes_new": true, "space": "open",
        "next": "nothing is to be done",
    });
    assert_eq!((code, serving), (200, expected));
    assert_eq!(status(&processes)["waiting"], WAITING);
    processes.launch(AWAY.0);
    sent.iter().for_each(|sent| wait_handed_over(&processes, sent, HANG));
}

#[test]
fn a_console_that_cannot_listen_stops_the_start_and_names_the_key_and_one_that_is_off_does_not() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let with = |listen: &str| {
        let listen = listen.to_owned().try_into().unwrap();
        Processes::prepare(&[], move |config| config.console.listen = listen)
    };
    let mut processes = with(&address);
    let refused = |processes: &Processes| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_docaxis"));
        command.args(["--json", "broker", "run", "--config"]).arg(processes.folder().join("broker.toml"));
        let output = command.output().unwrap();
        let document: Value = serde_json::from_slice(&output.stdout).unwrap();
        (output.status.code(), document["error"]["message"].as_str().unwrap().to_owned())
    };
    let (code, message) = refused(&processes);
    let expected = format!("the console: console.listen in broker.toml is {address}; give another address, or \"off\"");
    assert!(message.starts_with(&expected), "{message}");
    assert_eq!((code, message.matches("in use").count()), (Some(1), 1), "{message}");

    // A second broker over the same data is told that, not of the address that the first one has.
    drop(taken);
    processes.launch(BROKER);
    let (code, message) = refused(&processes);
    assert!(code == Some(4) && !message.contains("console"), "{code:?}: {message}");

    let mut processes = with("off");
    processes.launch(BROKER);
    assert_eq!(status(&processes)["console"], "off");
    assert!(!processes.logged(BROKER).contains("/readyz"));
}

#[test]
fn a_disk_on_which_new_work_is_refused_leaves_the_broker_ready_and_is_told() {
    let mut net = TestNet::prepare(&[]);
    let most = SpaceConfig { refuse_new_percent: 1, drain_only_percent: 99, enough_free_gib: 1 << 20, ..space() };
    net.configure(|config| config.space = most, |_| {});
    net.start_broker();
    let level = net.broker().exchange().space.level();
    let (code, found) = net.readiness();
    assert_eq!((code, &found["ready"], &found["space"]), (200, &json!(true), &json!(level)));
    assert_eq!(found["takes_new"], level == Level::Open, "where a hundredth of the disk is in use, it is refused");
}

#[test]
fn a_broker_that_cannot_go_on_is_not_ready_and_says_why() {
    let net = TestNet::start(NODES);
    assert_eq!(net.readiness().0, 200);
    // The next checkpoint cannot be written, and nothing can be signed any more.
    let log = net.broker_data().join("log");
    std::fs::remove_dir_all(&log).unwrap();
    std::fs::write(&log, b"in the way").unwrap();
    net.send(SENDER.1, &[AWAY.1], letter());
    let failed = eventually(|| Some(net.readiness()).filter(|(code, _)| *code == 503)).1;
    assert_eq!((&failed["ready"], &failed["state"]), (&json!(false), &json!("failed")));
    let why = failed["why"].as_str().unwrap();
    assert!(why.contains("log has ended") && net.broker().poisoned().is_some(), "{why}");
}
