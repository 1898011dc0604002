//! How much memory has an agent that does nothing, and a broker to which a hundred of them are linked?
//!
//! Agent and broker are processes of the program with their defaults; the other agents run in this process. All are
//! linked, know the directory, and are left alone before they are looked at. Beside it: the broker to which nobody is
//! linked. Run: `cargo bench --bench memory [-- AGENTS [SECONDS]]`.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a benchmark that cannot go on ends")]

#[allow(dead_code, reason = "each benchmark uses its part")]
mod baseline;
#[path = "../tests/it/resident.rs"]
#[allow(dead_code, reason = "each benchmark uses its part")]
mod resident;
#[path = "../tests/it/testnet/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use more of it")]
mod testnet;

use std::time::Duration;

use docaxis_broker::BrokerConfig;

use crate::testnet::{BROKER, Processes};

const AGENTS: u64 = 100;
/// How long everything is left alone.
const SECONDS: u64 = 20;

fn report(what: &str, pid: u32) {
    let pid = pid.to_string();
    let [resident, anon, file, peak] = ["VmRSS", "RssAnon", "RssFile", "VmHWM"].map(|what| resident::mib(&pid, what));
    println!("{what:32} | {resident:8.1} | {anon:8.1} | {file:8.1} | {peak:8.1}");
}

fn main() {
    let mut numbers = baseline::numbers().into_iter();
    let (agents, seconds) = (numbers.next().unwrap_or(AGENTS), numbers.next().unwrap_or(SECONDS));
    let folder = baseline::data_folder();
    tempfile::env::override_temp_dir(folder.path()).unwrap();
    let names: Vec<(String, String)> = (0..agents).map(|n| (format!("n{n}"), format!("H37.DN.{n:03}"))).collect();
    let agencies: Vec<[&str; 1]> = names.iter().map(|(_, agency)| [agency.as_str()]).collect();
    let nodes: Vec<(&str, &[&str])> =
        names.iter().zip(&agencies).map(|((name, _), agencies)| (name.as_str(), agencies.as_slice())).collect();
    let mut all = Processes::prepare(&nodes, |config| config.store = BrokerConfig::new("".into(), "".into()).store);
    let settle = || std::thread::sleep(Duration::from_secs(seconds));
    println!("MiB                              | resident | anonymous|     file |     peak");
    all.launch(BROKER);
    settle();
    report("broker, nobody linked", all.pid(BROKER));
    all.launch("n0");
    for (name, _) in &names[1..] {
        all.net.start_node(name);
    }
    for (name, _) in &names[1..] {
        all.net.wait_linked(name);
    }
    settle();
    report("agent", all.pid("n0"));
    report(&format!("broker, {agents} agents linked"), all.pid(BROKER));
}
