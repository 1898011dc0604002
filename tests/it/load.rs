//! Load for an exchange of real processes, and the questions after it: what was answered is there, once, everywhere,
//! with whole evidence.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use docaxis::control::Control;
use docaxis::doc::pages;
use docaxis_protocol::{Digest, DispatchId, Timestamp};
use serde_json::{Value, json};

use crate::testnet::{BROKER, HANG, Letter, Processes, Received, Sent, letter};

/// Before something that does not answer yet is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(20);

/// A dispatch that is going to be submitted.
pub struct Draft {
    socket: PathBuf,
    key: String,
    request: Value,
    from: String,
    to: Vec<String>,
    letter: Letter,
}

impl Draft {
    /// A letter with parts of these sizes, which lie in `folder` until they are sent. `socket` is the sender's agent.
    pub fn new(folder: &Path, socket: &Path, from: &str, to: &[&str], key: &str, sizes: &[usize]) -> Self {
        let mut letter = Letter { parts: vec![], ..letter() }.about(key);
        for (n, size) in sizes.iter().enumerate() {
            letter = letter.with_part(&format!("{key}-{n}.pdf"), *size);
        }
        let parts: Vec<Value> = letter
            .parts
            .iter()
            .map(|(name, bytes)| {
                let path = folder.join(name);
                std::fs::write(&path, bytes).unwrap();
                json!({ "name": name, "path": path })
            })
            .collect();
        let request = json!({
            "from": from, "to": to, "document": { "Subject": letter.subject, "secret": false }, "parts": parts,
        });
        let to = to.iter().map(|to| (*to).to_owned()).collect();
        Self { socket: socket.into(), key: key.into(), request, from: from.into(), to, letter }
    }

    /// With a header of this many bytes.
    pub fn with_filler(mut self, bytes: usize) -> Self {
        self.request["document"]["Content"] = "x".repeat(bytes).into();
        self
    }

    pub fn expiring(mut self, at: Timestamp) -> Self {
        self.request["expires"] = json!(at);
        self
    }

    /// Asks until it is answered, always under the same key.
    pub fn submit(self) -> Sent {
        let control = Control::new(&self.socket, "");
        let made: Value =
            persist(|| control.post("/v1/dispatches", &self.request, Some(&self.key)).map_err(|f| f.message));
        let id = made["id"].as_str().unwrap().parse().unwrap();
        Sent { id, from: self.from, to: self.to, letter: self.letter }
    }
}

/// Tries again until it succeeds: the other side may just have been killed, or not be there yet.
pub fn persist<T>(mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + HANG;
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(why) => assert!(Instant::now() < deadline, "{why}"),
        }
        std::thread::sleep(ASK_AGAIN);
    }
}

/// Until the agent of this node says that its link is up.
pub fn wait_linked(processes: &Processes, node: &str) {
    let control = processes.control(node);
    persist(|| match control.get::<Value>("/v1/status") {
        Ok(status) if status["link"]["state"] == "up" => Ok(()),
        Ok(status) => Err(format!("the link of {node}: {}", status["link"])),
        Err(failure) => Err(failure.message),
    });
}

pub fn wait_handed_over(processes: &Processes, sent: &Sent, within: Duration) {
    let control = processes.control(processes.net.node_of(&sent.from));
    let path = format!("/v1/dispatches/{}/wait?until=handed-over&timeout_ms={}", sent.id, within.as_millis());
    let waited: Value = control.get(&path).unwrap_or_else(|failure| panic!("{path}: {}", failure.message));
    assert_eq!(waited["outcome"], "reached", "{:#}", waited["dispatch"]);
}

pub type Inbox = Vec<(String, Received)>;

pub fn every_inbox_holds_exactly_what_was_sent(processes: &Processes, nodes: &[(&str, &[&str])], sent: &[Sent]) {
    for (node, agencies) in nodes {
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
pub fn the_evidence_is_whole(processes: &Processes, sent: &Sent) {
    let handed_over = sent.to.iter().map(|to| ("ContentHandover".to_owned(), Some(to.clone())));
    the_evidence_is(processes, sent, handed_over.chain([("SubmissionAcceptance".to_owned(), None)]).collect());
}

/// The broker and the sender hold exactly this evidence, the same bytes of it, and it verifies.
pub fn the_evidence_is(processes: &Processes, sent: &Sent, mut expected: Vec<(String, Option<String>)>) {
    expected.sort();
    let mut held = Vec::new();
    let parts: Vec<(String, usize, Digest)> = sent.received().parts;
    for whose in [BROKER, processes.net.node_of(&sent.from)] {
        let control = processes.control(whose);
        let path = format!("/v1/dispatches/{}/bundle", sent.id);
        // Proofs come a moment after the evidence.
        let zip = persist(|| control.bytes(&path).map_err(|failure| format!("{whose}: {}", failure.message)));
        let verdict = processes.net.judge(&zip, &parts);
        held.push(evidence_in(&zip));
        let failures: BTreeSet<String> = verdict.failures().map(|(name, why)| format!("{name}: {why}")).collect();
        assert_eq!(failures, BTreeSet::new(), "{whose}'s bundle of {}", sent.id);
        let mut events = verdict.events;
        events.sort();
        assert_eq!(events, expected, "{whose}'s evidence about {}", sent.id);
    }
    assert_eq!(held[0], held[1], "the broker's and the sender's evidence about {}", sent.id);
}

/// The signed files of a bundle: all but the proofs, which grow with the log.
fn evidence_in(zip: &[u8]) -> Vec<Vec<u8>> {
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(zip)).unwrap();
    let names: Vec<String> = zip.file_names().map(|name| name.unwrap().into_owned()).collect();
    let mut files = Vec::new();
    for name in names.into_iter().filter(|name| name.starts_with("evidence/")) {
        if name.ends_with(".json") || name.ends_with(".sig") {
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut zip.by_name(&name).unwrap(), &mut bytes).unwrap();
            files.push(bytes);
        }
    }
    files.sort();
    assert!(!files.is_empty(), "a bundle holds evidence");
    files
}

/// Pseudo-random numbers from a seed (SplitMix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.roll() % bound as u64).unwrap()
    }
}
