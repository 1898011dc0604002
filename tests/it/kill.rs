//! kill -9 of broker and agents, again and again under load: what was answered is kept, and nothing is doubled.
//!
//! DOCAXIS_KILL_ROUNDS and DOCAXIS_KILL_SEED choose how often and when; the moments follow from the seed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use docaxis::control::Control;
use docaxis::doc::pages;
use docaxis_protocol::{Digest, DispatchId};
use serde_json::{Value, json};

use crate::testnet::{BROKER, HANG, Letter, Processes, Received, Sent, letter};

const NODES: &[(&str, &[&str])] =
    &[("g22", &["000.00.00.G22"]), ("h37", &["H37.DN.001", "H37.TC.002"]), ("a53", &["000.00.01.A53"])];
/// Who submits, each in a thread of its own.
const SENDERS: [&str; 3] = ["000.00.00.G22", "H37.TC.002", "000.00.01.A53"];
/// Dispatches that each sender submits in one round.
const EACH_ROUND: usize = 4;
/// A kill comes at a moment between the start of a round and this.
const LATEST_KILL_MS: u64 = 700;
/// Well under the idle timeout of 45 s, after which a silent link counts as lost.
const LESS_THAN_SILENCE: Duration = Duration::from_secs(30);
/// Before something that does not answer yet is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(20);

#[test]
fn under_kill_9_every_answered_dispatch_is_handed_over_once_with_whole_evidence() {
    let from_env = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let rounds = from_env("DOCAXIS_KILL_ROUNDS").unwrap_or(20);
    let mut dice = Dice(from_env("DOCAXIS_KILL_SEED").unwrap_or(7));
    let mut processes = Processes::start(NODES);
    let mut sent = Vec::new();
    for round in 0..rounds {
        sent.extend(one_round(&mut processes, round, &mut dice));
    }
    assert_eq!(sent.len() as u64, rounds * (SENDERS.len() * EACH_ROUND) as u64);
    for sent in &sent {
        wait_handed_over(&processes, sent, HANG);
    }
    every_inbox_holds_exactly_what_was_sent(&processes, &sent);
    for sent in &sent {
        the_evidence_is_whole(&processes, sent);
    }
}

#[test]
fn agents_hear_from_a_restarted_broker_that_their_links_are_gone_and_need_not_wait_for_silence() {
    let mut processes = Processes::start(NODES);
    for (node, _) in NODES {
        let control = processes.control(node);
        persist(|| match control.get::<Value>("/v1/status") {
            Ok(status) if status["link"]["state"] == "up" => Ok(()),
            Ok(status) => Err(format!("the link of {node}: {}", status["link"])),
            Err(failure) => Err(failure.message),
        });
    }
    processes.kill(BROKER);
    processes.launch(BROKER);
    let sent = Draft::new(&processes, SENDERS[0], "after the restart", &mut Dice(1)).submit();
    wait_handed_over(&processes, &sent, LESS_THAN_SILENCE);
}

/// Some dispatches are submitted; meanwhile one or two processes are killed and started again.
fn one_round(processes: &mut Processes, round: u64, dice: &mut Dice) -> Vec<Sent> {
    let drafts: Vec<Vec<Draft>> = SENDERS
        .iter()
        .map(|from| {
            (0..EACH_ROUND).map(|n| Draft::new(processes, from, &format!("{round}-{from}-{n}"), dice)).collect()
        })
        .collect();
    let mut names = processes.names();
    let mut victims = vec![names.swap_remove(dice.below(names.len()))];
    if dice.below(4) == 0 {
        victims.push(names.swap_remove(dice.below(names.len())));
    }
    let moment = Duration::from_millis(dice.roll() % LATEST_KILL_MS);
    eprintln!("round {round}: kill -9 of {} after {moment:?}", victims.join(" and "));
    std::thread::scope(|scope| {
        let running: Vec<_> = drafts
            .into_iter()
            .map(|drafts| scope.spawn(move || drafts.into_iter().map(Draft::submit).collect::<Vec<_>>()))
            .collect();
        std::thread::sleep(moment);
        victims.iter().for_each(|name| processes.kill(name));
        victims.iter().for_each(|name| processes.launch(name));
        running.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    })
}

/// A dispatch that is going to be submitted.
struct Draft {
    control: Control,
    key: String,
    request: Value,
    from: String,
    to: Vec<String>,
    letter: Letter,
}

impl Draft {
    fn new(processes: &Processes, from: &str, key: &str, dice: &mut Dice) -> Self {
        let mut others: Vec<&str> =
            NODES.iter().flat_map(|(_, agencies)| agencies.iter().copied()).filter(|agency| *agency != from).collect();
        let to: Vec<String> =
            (0..=dice.below(others.len())).map(|_| others.swap_remove(dice.below(others.len())).into()).collect();
        // Most fit into the submission; some are transfers that a kill can hit in the middle.
        let size = [1_000, 1_000, 20_000, 60_000, 150_000, 300_000, 3_000_000][dice.below(7)];
        let letter = Letter { parts: vec![], ..letter() }.about(key).with_part(&format!("{key}.pdf"), size);
        let path = processes.write_part(&letter.parts[0].0, &letter.parts[0].1);
        let request = json!({
            "from": from, "to": to, "document": { "Subject": letter.subject, "secret": false },
            "parts": [{ "name": letter.parts[0].0, "path": path }],
        });
        let control = processes.control(processes.net.node_of(from));
        Self { control, key: key.into(), request, from: from.into(), to, letter }
    }

    /// Asks until it is answered, always under the same key.
    fn submit(self) -> Sent {
        let made: Value =
            persist(|| self.control.post("/v1/dispatches", &self.request, Some(&self.key)).map_err(|f| f.message));
        let id = made["id"].as_str().unwrap().parse().unwrap();
        Sent { id, from: self.from, to: self.to, letter: self.letter }
    }
}

/// Tries again until it succeeds: the other side may just have been killed, or not be there yet.
fn persist<T>(mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + HANG;
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(why) => assert!(Instant::now() < deadline, "{why}"),
        }
        std::thread::sleep(ASK_AGAIN);
    }
}

fn wait_handed_over(processes: &Processes, sent: &Sent, within: Duration) {
    let control = processes.control(processes.net.node_of(&sent.from));
    let path = format!("/v1/dispatches/{}/wait?until=handed-over&timeout_ms={}", sent.id, within.as_millis());
    let waited: Value = control.get(&path).unwrap_or_else(|failure| panic!("{path}: {}", failure.message));
    assert_eq!(waited["outcome"], "reached", "{:#}", waited["dispatch"]);
}

type Inbox = Vec<(String, Received)>;

fn every_inbox_holds_exactly_what_was_sent(processes: &Processes, sent: &[Sent]) {
    for (node, agencies) in NODES {
        let received = |sent: &Sent| sent.received();
        let mut expected: Inbox = agencies
            .iter()
            .flat_map(|agency| {
                let to_it = sent.iter().filter(move |sent| sent.to.iter().any(|to| to == agency));
                to_it.map(move |sent| ((*agency).to_owned(), received(sent)))
            })
            .collect();
        expected.sort();
        let control = processes.control(node);
        // The sender's side may hear of a handover before the recipient's.
        let mut found = persist(|| {
            let found = inbox(&control);
            if found.len() >= expected.len() { Ok(found) } else { Err(format!("{node} does not show all it has")) }
        });
        found.sort();
        let ids = |inbox: &Inbox| inbox.iter().map(|(who, got)| (who.clone(), got.id)).collect::<Vec<_>>();
        assert_eq!(ids(&found), ids(&expected), "which dispatches {node} shows");
        assert_eq!(found, expected, "what {node} received");
    }
}

fn inbox(control: &Control) -> Inbox {
    let lines = pages(control, "in", None).unwrap_or_else(|failure| panic!("{}", failure.message));
    let received = |line: &Value| {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let id: DispatchId = line["id"].as_str().unwrap().parse().unwrap();
        let shown: Value = control.get(&format!("/v1/dispatches/{id}")).unwrap_or_else(|f| panic!("{}", f.message));
        let parts = shown["parts"].as_array().unwrap().iter().enumerate().map(|(n, part)| {
            let path = format!("/v1/dispatches/{id}/parts/{n}");
            (text(&part["name"]), control.bytes(&path).unwrap_or_else(|f| panic!("{path}: {}", f.message)))
        });
        let got = Received::new(id, shown["sender"].as_str().unwrap(), shown["subject"].as_str().unwrap(), parts);
        (text(&line["recipients"][0]), got)
    };
    lines.iter().map(received).collect()
}

/// One acceptance and one handover for each recipient, at the broker and at the sender; both bundles hold, and every
/// checkpoint in them, old or new, is a prefix of the log.
fn the_evidence_is_whole(processes: &Processes, sent: &Sent) {
    let handed_over = sent.to.iter().map(|to| ("ContentHandover".to_owned(), Some(to.clone())));
    let mut expected: Vec<_> = handed_over.chain([("SubmissionAcceptance".to_owned(), None)]).collect();
    expected.sort();
    let parts: Vec<(String, usize, Digest)> = sent.received().parts;
    for whose in [BROKER, processes.net.node_of(&sent.from)] {
        let control = processes.control(whose);
        let path = format!("/v1/dispatches/{}/bundle", sent.id);
        // Proofs come a moment after the evidence.
        let zip = persist(|| control.bytes(&path).map_err(|failure| format!("{whose}: {}", failure.message)));
        let verdict = processes.net.judge(&zip, &parts);
        let failures: BTreeSet<String> = verdict.failures().map(|(name, why)| format!("{name}: {why}")).collect();
        assert_eq!(failures, BTreeSet::new(), "{whose}'s bundle of {}", sent.id);
        let mut events = verdict.events;
        events.sort();
        assert_eq!(events, expected, "{whose}'s evidence about {}", sent.id);
    }
}

/// Pseudo-random numbers from a seed (SplitMix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound as u64).unwrap()
    }
}
