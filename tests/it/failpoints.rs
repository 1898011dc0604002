//! kill -9 at every failpoint of broker and agents: whatever a process was doing when it died, after its restart nothing
//! that was answered is lost or doubled, and broker and sender hold the same evidence, byte for byte.
//!
//! A failpoint that is not reached fails the test. DOCAXIS_FAILPOINT_ROUNDS says how often each is tried, each time at
//! a later pass; DOCAXIS_FAILPOINT_ONLY chooses those whose names contain a text.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use docaxis::control::Control;
use docaxis_certs::authority::{Agency, Authority};
use docaxis_failpoints as failpoints;
use docaxis_node_agent::Env;
use serde_json::{Value, json};

use crate::load::{
    Draft, every_inbox_holds_exactly_what_was_sent, persist, the_evidence_is, the_evidence_is_whole, wait_handed_over,
};
use crate::testnet::{AUTHORITY, BROKER, HANG, Processes, Sent, code};

const SENDER: (&str, &str) = ("g22", "000.00.00.G22");
const RECIPIENT: (&str, &str) = ("h37", "H37.DN.001");
/// It is away until the end, so that something always waits.
const AWAY: (&str, &str) = ("a53", "000.00.01.A53");
const NODES: &[(&str, &[&str])] =
    &[(SENDER.0, &[SENDER.1]), (RECIPIENT.0, &[RECIPIENT.1, "H37.TC.002"]), (AWAY.0, &[AWAY.1])];
/// Exchanges under test at once.
const LANES: usize = 2;
/// Over this, the broker rejects a part.
const MAX_PART_BYTES: u64 = 2_000_000;
/// Some five of these fill a segment.
const FILLER_BYTES: usize = 800_000;

#[test]
fn a_death_at_any_failpoint_loses_nothing_doubles_nothing_and_changes_no_receipt() {
    let rounds = std::env::var("DOCAXIS_FAILPOINT_ROUNDS").map_or(1, |text| text.parse::<u64>().unwrap());
    let only = std::env::var("DOCAXIS_FAILPOINT_ONLY").unwrap_or_default();
    for round in 1..=rounds {
        let cases: Vec<Case> = cases(round).into_iter().filter(|case| case.name.contains(&only)).collect();
        assert!(!cases.is_empty(), "no failpoint's name contains {only:?}");
        std::thread::scope(|scope| {
            for lane in 0..LANES {
                let mine: Vec<Case> = cases.iter().skip(lane).step_by(LANES).copied().collect();
                scope.spawn(move || try_all(&mine));
            }
        });
        println!("round {round}: {} cases, 0 bad", cases.len());
    }
}

/// Who dies where, at which pass.
#[derive(Debug, Clone, Copy)]
struct Case {
    victim: &'static str,
    name: &'static str,
    pass: u64,
}

/// Every failpoint, and those that both sides of a dispatch pass once on either. What happens once in the life of a
/// data folder comes first, and what happens once in a start, or after hundreds of dispatches, is always its first pass.
fn cases(round: u64) -> Vec<Case> {
    let once = |name: &str| {
        let seldom = ["broker.evidence.file-", "broker.index.ids-split"];
        [".start.", ".rebuild."].iter().any(|of| name.contains(of)) || seldom.iter().any(|of| name.starts_with(of))
    };
    let pass = |name: &str| if once(name) { 1 } else { round };
    let mut all: Vec<Case> = Vec::new();
    all.extend(failpoints::BROKER.iter().map(|name| Case { victim: BROKER, name, pass: pass(name) }));
    for name in failpoints::AGENT {
        let part = name.split('.').nth(1).unwrap();
        let victims: &[&'static str] = match part {
            "compose" | "submit" | "follow" | "proofs" => &[SENDER.0],
            "offer" | "officer" | "report" | "partial" => &[RECIPIENT.0],
            _ => &[SENDER.0, RECIPIENT.0],
        };
        all.extend(victims.iter().map(|victim| Case { victim, name, pass: pass(name) }));
    }
    all.sort_by_key(|case| !case.name.starts_with("broker.evidence.file-"));
    all
}

/// Dies at one failpoint after another in an exchange of its own.
fn try_all(cases: &[Case]) {
    let mut processes = Processes::prepare(NODES, |config| {
        config.broker.max_part_bytes = MAX_PART_BYTES;
        // What is finished may go at once, so that pruning and freeing happen here.
        config.store.keep_bodies = Duration::ZERO;
        config.partials.sync_every_mib = 1;
    });
    for name in [BROKER, AUTHORITY, SENDER.0, RECIPIENT.0] {
        processes.launch(name);
    }
    let (mut handed_over, mut waiting) = (Vec::new(), Vec::new());
    for (n, case) in cases.iter().enumerate() {
        let done = die_at(&mut processes, *case, n);
        for sent in &done.handed_over {
            wait_handed_over(&processes, sent, HANG);
        }
        if let Some(sent) = done.handed_over.last() {
            the_evidence_is_whole(&processes, sent);
        }
        done.ended.iter().for_each(|sent| it_ended_with_evidence(&processes, sent));
        done.registered.iter().for_each(|sent| it_is_registered(&processes, sent));
        handed_over.extend(done.handed_over.into_iter().chain(done.registered));
        waiting.extend(done.waiting);
    }
    // Only now comes the node that was away, and finds all of it.
    processes.launch(AWAY.0);
    for sent in &waiting {
        wait_handed_over(&processes, sent, HANG);
        the_evidence_is_whole(&processes, sent);
    }
    handed_over.extend(waiting);
    every_inbox_holds_exactly_what_was_sent(&processes, NODES, &handed_over);
}

/// Starts the victim so that it dies there, keeps it busy until it has, and starts it again.
fn die_at(processes: &mut Processes, case: Case, n: usize) -> Done {
    let Case { victim, name, pass } = case;
    eprintln!("{victim} dies at {name}, pass {pass}");
    processes.kill(victim);
    if name.starts_with("broker.segment.spare-") {
        remove_spares(processes.net.broker_data());
    }
    if name.starts_with("broker.rebuild.") {
        std::fs::remove_dir_all(processes.net.broker_data().join("index")).unwrap();
    }
    processes.launch_armed(victim, &format!("{name}:{pass}"));
    let died = AtomicBool::new(false);
    let mut load = Load::new(processes, name, n);
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            // At least once: what comes after a death in a start is worth as much.
            loop {
                load.turn();
                if died.load(Ordering::Relaxed) {
                    return load.done;
                }
            }
        });
        if ["broker.notices.", "agent.directory."].iter().any(|of| name.starts_with(of)) {
            let authority = processes.folder().join("authority");
            let died = &died;
            scope.spawn(move || publish(&authority, n, died));
        }
        let reached = processes.wait_killed_itself(victim);
        died.store(true, Ordering::Relaxed);
        processes.launch(victim);
        reached.unwrap_or_else(|why| panic!("{name}, pass {pass}: {why}"));
        running.join().unwrap()
    })
}

/// Adds one agency after another to the directory: a failpoint may be reached at a later piece of news only.
fn publish(authority: &Path, case: usize, died: &AtomicBool) {
    let mut authority = Authority::open(authority).unwrap();
    for n in 0.. {
        let agency = Agency::new(code(&format!("H37.NEW.{case:03}.{n}")), "Một cơ quan mới");
        authority.add_agency(&agency, Env::real().now()).unwrap();
        for _ in 0..20 {
            if died.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Without ready spares, the next start must write some.
fn remove_spares(data: &Path) {
    for entry in std::fs::read_dir(data.join("journal")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "spare") {
            std::fs::remove_file(path).unwrap();
        }
    }
}

/// What was queued, by what must become of it.
#[derive(Default)]
struct Done {
    handed_over: Vec<Sent>,
    registered: Vec<Sent>,
    /// Rejected, or accepted and expired: the recipient never sees it.
    ended: Vec<Sent>,
    waiting: Vec<Sent>,
}

/// Turns of everything that leads past one failpoint.
struct Load {
    folder: PathBuf,
    sender: PathBuf,
    recipient: PathBuf,
    name: &'static str,
    case: usize,
    turns: usize,
    done: Done,
}

impl Load {
    fn new(processes: &Processes, name: &'static str, case: usize) -> Self {
        let (sender, recipient) = (processes.socket(SENDER.0), processes.socket(RECIPIENT.0));
        Self { folder: processes.folder().into(), sender, recipient, name, case, turns: 0, done: Done::default() }
    }

    fn about(&self, families: &[&str]) -> bool {
        families.iter().any(|family| self.name.starts_with(family))
    }

    fn turn(&mut self) {
        self.turns += 1;
        let letter = self.draft(SENDER, RECIPIENT.1, "letter", &[1_000]).submit();
        let large = self.draft(SENDER, RECIPIENT.1, "large", &[150_000]).submit();
        let back = self.draft(RECIPIENT, SENDER.1, "back", &[20_000]).submit();
        self.done.handed_over.extend([large, back]);
        self.register(&letter);
        self.done.registered.push(letter);
        if self.about(&["broker.partial.", "agent.partial."]) {
            // Synced once on its way, and named after that.
            let sent = self.draft(SENDER, RECIPIENT.1, "partial", &[1_500_000]).submit();
            self.done.handed_over.push(sent);
        }
        if self.about(&["broker.reject."]) {
            let over = usize::try_from(MAX_PART_BYTES).unwrap() + 1;
            let sent = self.draft(SENDER, RECIPIENT.1, "too-large", &[over]).submit();
            self.done.ended.push(sent);
        }
        if self.about(&["broker.expire."]) {
            let soon = Env::real().now().plus(Duration::from_millis(700));
            let sent = self.draft(SENDER, AWAY.1, "expires", &[1_000]).expiring(soon).submit();
            self.done.ended.push(sent);
        }
        if self.about(&["broker.segment.", "broker.evidence.", "broker.settle."]) {
            for n in 0..5 {
                let kind = format!("bulk{n}");
                let sent = self.draft(SENDER, RECIPIENT.1, &kind, &[60_000]).with_filler(FILLER_BYTES).submit();
                self.done.handed_over.push(sent);
            }
            // Its body is what a settled segment still holds, and has to be copied forward.
            let sent = self.draft(SENDER, AWAY.1, "away", &[30_000]).submit();
            self.done.waiting.push(sent);
        }
    }

    fn draft(&self, from: (&str, &str), to: &str, kind: &str, sizes: &[usize]) -> Draft {
        let socket = if from == SENDER { &self.sender } else { &self.recipient };
        let key = format!("{}-{}-{kind}", self.case, self.turns);
        Draft::new(&self.folder, socket, from.1, &[to], &key, sizes)
    }

    /// The recipient's officer enters it in the register as soon as it is there.
    fn register(&self, sent: &Sent) {
        let control = Control::new(&self.recipient, "");
        let path = format!("/v1/dispatches/{}/status", sent.id);
        let asked = json!({ "code": "03", "recipient": RECIPIENT.1, "description": "" });
        persist(|| control.post::<Value>(&path, &asked, None).map_err(|failure| failure.message));
    }
}

fn it_is_registered(processes: &Processes, sent: &Sent) {
    let path = format!("/v1/dispatches/{}/wait?until=registered&timeout_ms={}", sent.id, HANG.as_millis());
    let waited: Value = persist(|| processes.control(SENDER.0).get(&path).map_err(|failure| failure.message));
    assert_eq!(waited["outcome"], "reached", "{:#}", waited["dispatch"]);
    let to = || Some(RECIPIENT.1.to_owned());
    let expected =
        vec![("SubmissionAcceptance".into(), None), ("ContentHandover".into(), to()), ("Registered".into(), to())];
    the_evidence_is(processes, sent, expected);
}

/// It was rejected, or it was accepted and then expired: one or the other, with evidence of it.
fn it_ended_with_evidence(processes: &Processes, sent: &Sent) {
    let path = format!("/v1/dispatches/{}/wait?until=failed&timeout_ms={}", sent.id, HANG.as_millis());
    let waited: Value = persist(|| processes.control(SENDER.0).get(&path).map_err(|failure| failure.message));
    let shown = &waited["dispatch"];
    let timeline = shown["timeline"].as_array().unwrap();
    let found: BTreeSet<&str> = timeline.iter().filter_map(|entry| entry["event"].as_str()).collect();
    let evidence: Vec<&str> =
        ["SubmissionRejection", "SubmissionAcceptance", "ContentHandoverFailure", "ContentHandover"]
            .into_iter()
            .filter(|event| found.contains(event))
            .collect();
    let expired: &[&str] = &["SubmissionAcceptance", "ContentHandoverFailure"];
    assert!(evidence == ["SubmissionRejection"] || evidence == expired, "{shown:#}");
}

/// The names of all call sites in the code, in any order.
fn call_sites() -> Vec<String> {
    let mut found = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders =
        ["broker/src", "node-agent/src", "protocol/src", "certs/src", "src"].map(|f| root.join(f)).to_vec();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let calls = text.split("failpoint!(\"").skip(1);
                found.extend(calls.map(|rest| rest.split('"').next().unwrap().to_owned()));
            }
        }
    }
    found.sort();
    found
}

#[test]
fn the_list_of_failpoints_and_the_code_name_the_same_each_once() {
    let mut listed: Vec<String> =
        failpoints::BROKER.iter().chain(failpoints::AGENT).map(|name| (*name).to_owned()).collect();
    listed.sort();
    assert_eq!(call_sites(), listed);
}
