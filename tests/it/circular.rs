//! A circular as its officer reads it with the program, and the evidence of one recipient alone as an auditor gets it.

use std::path::{Path, PathBuf};
use std::process::Command;

use docaxis_protocol::Evidence;
use docaxis_protocol::bundle::BundleFiles;
use serde_json::{Value, json};

use crate::load::{persist, wait_linked};
use crate::testnet::{AUTHORITY, BROKER, Processes};

const G22: &str = "000.00.00.G22";
/// Agencies of a node that runs; the last one returns the circular.
const HERE: usize = 27;
const RETURNS: &str = "H37.XA.027";
/// Agencies of a node that is away.
const AWAY: usize = 24;

fn succeeds(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    Ok(String::from_utf8(output.stdout).unwrap())
}

/// What a command prints that succeeds.
fn words(command: &mut Command) -> String {
    succeeds(command).unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

struct Circular {
    processes: Processes,
    id: String,
}

impl Circular {
    /// Sent, handed over to those that are here, and returned by one of them; the sender has the evidence.
    fn start() -> Self {
        let agencies = |province: &str, count: usize| -> Vec<String> {
            (1..=count).map(|n| format!("{province}.XA.{n:03}")).collect()
        };
        let (here, away) = (agencies("H37", HERE), agencies("H51", AWAY));
        let (here, away): (Vec<&str>, Vec<&str>) =
            (here.iter().map(String::as_str).collect(), away.iter().map(String::as_str).collect());
        let mut processes = Processes::prepare(&[("g22", &[G22]), ("h37", &here), ("h51", &away)], |_| {});
        for name in [BROKER, "g22", "h37"] {
            processes.launch(name);
        }
        wait_linked(&processes, "g22");
        let file = processes.folder().join("thong-tu.txt");
        std::fs::write(&file, "Về việc tổng kết công tác năm").unwrap();
        let mut circular = Self { processes, id: String::new() };
        let mut send = circular.program(&["doc", "send", "--from", G22, "--subject", "V/v tổng kết"], "g22");
        for to in here.iter().chain(&away) {
            send.args(["--to", to]);
        }
        send.arg(&file);
        // The directory comes after the link.
        circular.id = persist(|| succeeds(&mut send)).trim().to_owned();
        circular.until(json!([{"state": "waiting", "count": AWAY}, {"state": "handed-over", "count": HERE}]));
        // The recipient's side may hear of it last.
        persist(|| {
            let why = ["--reason", "wrong-addressee", "--text", "nhầm"];
            let refuse = ["doc", "refuse", &circular.id, "--as", RETURNS];
            succeeds(circular.program(&refuse, "h37").args(why))
        });
        circular.until(json!([
            {"state": "waiting", "count": AWAY}, {"state": "handed-over", "count": HERE - 1},
            {"state": "refused", "count": 1},
        ]));
        circular
    }

    fn until(&self, counts: Value) {
        persist(|| {
            let shown: Value = serde_json::from_str(&self.show(&["--json"])).unwrap();
            if shown["outgoing"]["counts"] == counts { Ok(()) } else { Err(shown["outgoing"]["counts"].to_string()) }
        });
    }

    fn program(&self, args: &[&str], of: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_docaxis"));
        command.args(args).arg("--config").arg(self.processes.folder().join(format!("{of}.toml")));
        command
    }

    fn show(&self, more: &[&str]) -> String {
        words(self.program(&["doc", "show", &self.id], "g22").args(more))
    }

    /// The bundle that the program writes, of one recipient if one is named.
    fn export(&self, recipient: Option<&str>) -> PathBuf {
        let path = self.processes.folder().join(format!("{}.zip", recipient.unwrap_or("whole")));
        persist(|| {
            let mut export = self.program(&["audit", "export", &self.id], BROKER);
            export.args(recipient.iter().flat_map(|code| ["--recipient", code])).arg("--out").arg(&path);
            // The checkpoint over what is newest comes within a second.
            succeeds(&mut export)
        });
        path
    }

    /// What `audit verify` says of a bundle, by the authority's root and the log: the events, each with its recipient.
    fn verified(&self, bundle: &Path) -> Vec<(String, Option<String>)> {
        let folder = self.processes.folder();
        let mut verify = Command::new(env!("CARGO_BIN_EXE_docaxis"));
        verify
            .args(["audit", "verify", "--json"])
            .arg(bundle)
            .arg("--authority")
            .arg(folder.join(AUTHORITY).join("root.pem"));
        verify.arg("--log").arg(self.processes.net.broker_data().join("log"));
        let told: Value = serde_json::from_str(&words(&mut verify)).unwrap();
        assert_eq!(told["ok"], true, "{told:#}");
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let events = told["bundles"][0]["events"].as_array().unwrap();
        events.iter().map(|one| (text(&one["event"]).unwrap(), text(&one["recipient"]))).collect()
    }
}

#[test]
fn the_officer_of_a_circular_reads_counts_and_whom_to_look_after() {
    let circular = Circular::start();
    let shown = circular.show(&[]);
    let has = |line: &str| assert!(shown.lines().any(|found| found == line), "no line {line:?} in\n{shown}");
    has("  51 recipients: 24 waiting, 26 handed-over, 1 refused");
    has("  refused: 1");
    has("    H37.XA.027: refused (wrong-addressee: nhầm)");
    has("  waiting: 24");
    has("    and 4 others, see --state waiting");
    let of = |text: &str, what: &str| text.lines().filter(|line| line.contains(what)).count();
    let away = ": waiting (the recipient's node has not taken it yet; the exchange tries until ";
    assert_eq!((of(&shown, away), of(&shown, "; next move: the recipient's)")), (20, 20), "{shown}");
    assert_eq!((of(&shown, ": handed-over"), of(&shown, "ContentHandover")), (0, 1), "{shown}");
    assert_eq!(of(&shown, "  27 times       ContentHandover, the last one "), 1, "{shown}");
    let waiting = circular.show(&["--state", "waiting"]);
    assert_eq!((of(&waiting, away), of(&waiting, ": refused")), (AWAY, 0), "{waiting}");
    let all = circular.show(&["--all"]);
    let lines = [": waiting", ": handed-over", ": refused", " ContentHandover"].map(|what| of(&all, what));
    assert_eq!(lines, [AWAY, HERE - 1, 1, HERE], "{all}");
    // Programs get everything, as before.
    let json: Value = serde_json::from_str(&circular.show(&["--json"])).unwrap();
    assert_eq!(json["outgoing"]["deliveries"].as_array().unwrap().len(), HERE + AWAY);
    // Whoever waited in vain reads how far it came.
    let wait = ["doc", "wait", &circular.id, "--until", "handed-over", "--timeout", "1s"];
    let output = circular.program(&wait, "g22").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{error}");
    assert!(error.contains("not handed-over after 1 s: 24 waiting, 26 handed-over, 1 refused"), "{error}");
}

#[test]
fn the_bundle_of_one_recipient_verifies_and_holds_nobody_elses_evidence() {
    let circular = Circular::start();
    let events = |of: &[(&str, Option<&str>)]| -> Vec<(String, Option<String>)> {
        of.iter().map(|(event, who)| ((*event).to_owned(), who.map(str::to_owned))).collect()
    };
    let accepted = ("SubmissionAcceptance", None);
    let returned = [accepted, ("ContentHandover", Some(RETURNS)), ("Refused", Some(RETURNS))];
    for (who, expected) in [(RETURNS, &returned[..]), ("H51.XA.001", &[accepted])] {
        let bundle = circular.export(Some(who));
        assert_eq!(circular.verified(&bundle), events(expected), "{who}");
        let files = BundleFiles::read(&std::fs::read(&bundle).unwrap()).unwrap();
        let named = files.iter().filter(|(name, _)| name.contains(".XA."));
        assert!(named.map(|(name, _)| name).all(|name| name.contains(who)), "another agency's file in {who}'s");
        let pieces: Vec<Evidence> = files
            .iter()
            .filter(|(name, _)| name.starts_with("evidence/") && name.ends_with(".json"))
            .filter_map(|(_, bytes)| Evidence::parse(bytes).ok())
            .collect();
        assert_eq!(pieces.len(), expected.len(), "{who}: the statements beside them are no evidence");
        for piece in pieces {
            assert!(piece.recipient.as_ref().is_none_or(|found| found.as_str() == who), "{} in {who}'s", piece.event);
        }
    }
    let whole = circular.verified(&circular.export(None));
    assert_eq!(whole.len(), 1 + HERE + 1, "the acceptance, the handovers, and what was returned");
    let mut stranger = circular.program(&["audit", "export", &circular.id, "--recipient", "H99.XA.001"], BROKER);
    let output = stranger.output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", String::from_utf8_lossy(&output.stderr));
}
