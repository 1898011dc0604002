//! What does the directory of a whole country cost: to import and sign, to load at a broker's start, to take at a fresh
//! agent, to search, and to ask at each admission?
//!
//! The directory is generated here: agencies with names, an old code each, and their nodes. Authority, broker and agents
//! are processes of the program with their defaults, as they run; what admission asks is measured in this process. Run:
//! `cargo bench --bench directory [-- AGENCIES [NODES]]`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on ends")]

#[allow(dead_code, reason = "each benchmark uses its part")]
mod baseline;
#[path = "../tests/it/resident.rs"]
#[allow(dead_code, reason = "each benchmark uses its part")]
mod resident;
#[path = "../tests/it/testnet/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod testnet;

use std::hint::black_box;
use std::time::{Duration, Instant};

use docaxis::control::Control;
use docaxis_broker::BrokerConfig;
use docaxis_broker::directory::Directory;
use docaxis_broker::env::{Env as _, SystemEnv};
use docaxis_certs::Authority;
use docaxis_certs::authority::ImportOptions;
use docaxis_protocol::{AgencyCode, search};
use serde_json::Value;

use crate::baseline::median;
use crate::testnet::{AUTHORITY, BROKER, Processes, code};

const AGENCIES: u64 = 150_000;
const NODES: u64 = 15_000;
const LOOKUPS: usize = 100;
const CHANGES: usize = 5;
const ADMISSIONS: usize = 200_000;
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// A node that is there from the beginning, and one that comes when everything is.
const JOINED: [(&str, &[&str]); 2] = [("early", &["000.00.00.G22"]), ("fresh", &["H37.DN.001"])];

/// The new code of an agency, and its old one.
fn codes_of(n: u64) -> (String, String) {
    (
        format!("H{:02}.{:04}.{n:06}", n % 64, n / 64),
        format!("{:03}.{:02}.{:02}.K{:02}", n % 1000, n / 1000 % 100, n / 100_000, 10),
    )
}

/// The list as an administrator would import it.
fn list(agencies: u64, nodes: u64) -> String {
    let kinds =
        ["Ủy ban nhân dân xã Đồng Tâm", "Phòng Giáo dục và Đào tạo huyện Lương Tài", "Chi cục Thuế khu vực Bến Cầu"];
    let mut text = "organ_id,name,in_charge,node,aliases\n".to_owned();
    for n in 0..agencies {
        let (new, old) = codes_of(n);
        text += &format!("{new},{} số {n},Tỉnh Tây Ninh,n{},{old}\n", kinds[(n % 3) as usize], n % nodes);
    }
    text
}

fn seconds(started: Instant) -> f64 {
    started.elapsed().as_secs_f64()
}

fn report(what: &str, figure: String) {
    println!("{what:66} | {figure}");
}

fn version_at(control: &Control) -> u64 {
    let status: Value = control.get("/v1/status").unwrap();
    status["directory_version"].as_u64().unwrap()
}

/// Waits until a process has this version of the directory; seconds since `started`.
fn has_version(control: &Control, version: u64, started: Instant) -> f64 {
    while version_at(control) < version {
        std::thread::sleep(LOOK_AGAIN);
    }
    seconds(started)
}

fn resident(all: &Processes, name: &str) -> f64 {
    resident::mib(&all.pid(name).to_string(), "VmRSS")
}

fn text<'a>(one: &'a Value, key: &str) -> &'a str {
    one[key].as_str().unwrap()
}

/// Asks for many agencies; `meant` says of each whether the codes and names that were found are what was asked for.
fn lookups(control: &Control, what: &str, query: impl Fn(u64) -> String, meant: impl Fn(u64, &[(&str, &str)]) -> bool) {
    let mut took = Vec::new();
    for n in (0..LOOKUPS as u64).map(|n| n * 997) {
        let started = Instant::now();
        let found: Value = control.get(&format!("/v1/agencies?q={}", query(n).replace(' ', "%20"))).unwrap();
        took.push(seconds(started) * 1e3);
        let found = found["agencies"].as_array().unwrap().iter();
        let found: Vec<(&str, &str)> = found.map(|one| (text(one, "agency"), text(one, "name"))).collect();
        assert!(meant(n, &found), "{what} {:?}: {found:?}", query(n));
    }
    report(&format!("an agent's lookup by {what}, socket included, median"), format!("{:.2} ms", median(took)));
}

/// What admission asks the directory for one dispatch.
fn admissions(authority: &Authority, agencies: u64) {
    let mut directory = Directory::new(authority.origin().clone(), authority.directory_key());
    let before = resident::mib("self", "VmRSS");
    let entries = authority.entries_since(0).cloned().collect();
    let started = Instant::now();
    let verified = directory.check().verify(entries).unwrap();
    report("signatures of all entries checked", format!("{:.1} s", seconds(started)));
    directory.take(verified);
    report("the broker's directory in memory", format!("{:.0} MiB", resident::mib("self", "VmRSS") - before));
    let asked: Vec<AgencyCode> = (0..agencies).step_by(37).map(|n| code(&codes_of(n).0)).collect();
    let now = SystemEnv.now();
    let started = Instant::now();
    for n in 0..ADMISSIONS {
        let sender = &asked[n % asked.len()];
        let recipient = &asked[(n * 7919) % asked.len()];
        let node = directory.node_of(sender).unwrap();
        black_box((directory.hosts(node, sender), directory.may_not_send(sender, now)));
        black_box((directory.standing(recipient, now), directory.serving_node(recipient)));
    }
    let each = seconds(started) * 1e6 / ADMISSIONS as f64;
    report("what admission asks the directory, a dispatch of one recipient", format!("{each:.2} us"));
}

fn main() {
    let mut numbers = baseline::numbers().into_iter();
    let (agencies, nodes) = (numbers.next().unwrap_or(AGENCIES), numbers.next().unwrap_or(NODES));
    let folder = baseline::data_folder();
    tempfile::env::override_temp_dir(folder.path()).unwrap();
    let mut all = Processes::prepare(&JOINED, |config| config.store = BrokerConfig::new("".into(), "".into()).store);
    all.launch(BROKER);
    all.launch("early");
    has_version(&all.control("early"), version_at(&all.control(BROKER)), Instant::now());
    let (broker_before, agent_before) = (resident(&all, BROKER), resident(&all, "early"));

    let list = list(agencies, nodes);
    println!("{agencies} agencies at {nodes} nodes, a list of {:.1} MiB", list.len() as f64 / f64::from(1 << 20));
    let started = Instant::now();
    let imported =
        all.net.authority.import_agencies(list.as_bytes(), ImportOptions::default(), SystemEnv.now()).unwrap();
    assert_eq!((imported.added as u64, imported.refused.len()), (agencies, 0));
    report("import: read, judged, signed, on disk", format!("{:.1} s", seconds(started)));
    let records = std::fs::metadata(all.folder().join(AUTHORITY).join("records.jsonl")).unwrap().len();
    report("the authority's records", format!("{:.0} MiB", records as f64 / f64::from(1 << 20)));
    let started = Instant::now();
    drop(Authority::open(&all.folder().join(AUTHORITY)).unwrap());
    report("an `agency` command opens the authority", format!("{:.1} s", seconds(started)));

    let version = all.net.authority.directory_version();
    let started = Instant::now();
    all.launch(AUTHORITY);
    report("`ca serve` to the broker", format!("{:.1} s", has_version(&all.control(BROKER), version, started)));
    report("and to an agent that is linked", format!("{:.1} s", has_version(&all.control("early"), version, started)));
    let started = Instant::now();
    all.kill(BROKER);
    all.launch(BROKER);
    report("the broker starts with it, after kill -9", format!("{:.1} s", seconds(started)));
    let grown = resident(&all, BROKER) - broker_before;
    report("the broker's memory, more than with an empty directory", format!("{grown:.0} MiB"));

    all.launch("fresh");
    let started = Instant::now();
    report("a fresh agent takes all", format!("{:.1} s", has_version(&all.control("fresh"), version, started)));
    let grown = resident(&all, "fresh") - agent_before;
    report("its memory, more than an agent's with an empty directory", format!("{grown:.0} MiB"));
    let data = all.socket("fresh").with_file_name("mailbox.db");
    report("its mailbox.db", format!("{:.0} MiB", std::fs::metadata(data).unwrap().len() as f64 / f64::from(1 << 20)));
    let control = all.control("fresh");
    // By any of the three the same agency, and no other. Names of this kind have every third number.
    let asked = |n| n % agencies / 3 * 3;
    let it_alone = |n, found: &[(&str, &str)]| found.len() == 1 && found[0].0 == codes_of(asked(n)).0;
    lookups(&control, "new code", |n| codes_of(asked(n)).0, it_alone);
    lookups(&control, "old code", |n| codes_of(asked(n)).1, it_alone);
    let name = |n| format!("uy ban nhan dan xa dong tam so {}", asked(n));
    lookups(&control, "a whole name without accents", name, it_alone);
    let piece = |n| format!("dong tam so {}", n % 100);
    let all_have_it = |n, found: &[(&str, &str)]| {
        !found.is_empty() && found.iter().all(|(_, name)| search::fold(name).contains(&piece(n)))
    };
    lookups(&control, "a piece of a name", piece, all_have_it);

    let mut took = Vec::new();
    for n in 0..CHANGES {
        let changed = code(&codes_of(n as u64).0);
        all.net.authority.lock_agency(&changed, true, SystemEnv.now()).unwrap();
        took.push(has_version(&control, version + n as u64 + 1, Instant::now()));
    }
    report("a change reaches a linked agent, median", format!("{:.2} s", median(took)));
    admissions(&all.net.authority, agencies);
}
