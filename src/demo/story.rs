//! The story, act by act: sealed, accepted, the broker killed and back, handed over, registered, verified.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use docaxis_broker::BrokerConfig;
use docaxis_broker::config::ConsoleListen;
use docaxis_certs::authority::Agency;
use docaxis_certs::{Authority, AuthorityConfig};
use docaxis_node_agent::gateway::edxml::Mode;
use docaxis_protocol::{AgencyCode, DispatchId};
use serde_json::{Value, json};

use super::audit;
use super::cast::{Cast, NODES};
use super::letters;
use super::process::{Node, Process, free_port, text};
use super::scenarios::Scenario;
use crate::clock::now;
use crate::control::Control;
use crate::doc::{Imported, Report, import_file, report, timeline, wait_until};
use crate::out::{Failure, Out};

const ORIGIN: &str = "docaxis.example/demo";
/// Far more than anything in the demo takes.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// A dispatch of the story.
struct Sent {
    id: DispatchId,
    sender: usize,
    recipients: Vec<AgencyCode>,
    bundle: Option<PathBuf>,
    shown: Value,
}

pub struct Story {
    out: Out,
    pub(super) dir: PathBuf,
    began: Instant,
    cast: Cast,
    pub(super) nodes: Vec<Node>,
    broker: Option<Process>,
    authority: Option<Process>,
    imported: Vec<Imported>,
    sent: Vec<Sent>,
    checks: Vec<Value>,
}

impl Story {
    /// Sets the stage in `dir`: folders, and who plays.
    pub fn begin(dir: PathBuf, files: &[PathBuf], scenario: Option<Scenario>, out: Out) -> Result<Self, Failure> {
        for folder in ["logs", "bundles", "received", "letters"] {
            std::fs::create_dir_all(dir.join(folder))?;
        }
        let cast = if let Some(scenario) = scenario {
            Cast::of_scenario(scenario)?
        } else if files.is_empty() {
            let letter = dir.join("letters").join("cong-van-2211.edxml");
            std::fs::write(&letter, letters::letter()?)?;
            Cast::built_in(letter)?
        } else {
            Cast::of_files(files)
        };
        let node = |id: &&str| Node { id: (*id).to_owned(), folder: dir.join(id), agent: None };
        let nodes = NODES.iter().map(node).collect();
        let began = Instant::now();
        Ok(Self {
            out,
            dir,
            began,
            cast,
            nodes,
            broker: None,
            authority: None,
            imported: Vec::new(),
            sent: Vec::new(),
            checks: Vec::new(),
        })
    }

    /// All acts in order; stops at the first that cannot go on.
    pub fn tell(&mut self) -> Result<(), Failure> {
        self.found()?;
        self.send()?;
        self.kill_the_broker()?;
        self.hand_over()?;
        self.register()?;
        self.receive()?;
        self.follow_up()?;
        self.audit()
    }

    /// Notes a check; its detail or what is wrong.
    pub fn check(&mut self, name: &str, result: Result<String, String>) {
        let (ok, detail) = match result {
            Ok(detail) => (true, detail),
            Err(detail) => (false, detail),
        };
        let mark = if ok { "ok  " } else { "FAIL" };
        self.out.talk(format!("{:>7.2} s  {mark}  {name}: {detail}", self.began.elapsed().as_secs_f64()));
        self.checks.push(json!({"name": name, "ok": ok, "detail": detail}));
    }

    pub(super) fn say(&self, words: &str) {
        self.out.talk(format!("{:>7.2} s  {words}", self.began.elapsed().as_secs_f64()));
    }

    pub(super) fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    pub(super) fn broker_control(&self) -> Control {
        Control::new(&self.dir.join("broker").join("control.sock"), "The demo's broker is not running.")
    }

    /// Act 1: an authority, a broker, three nodes; every node joins with an invitation.
    pub(super) fn found(&mut self) -> Result<(), Failure> {
        let failed = |e: &dyn std::error::Error| Failure::other(crate::out::chain(e));
        let address = format!("127.0.0.1:{}", free_port()?);
        let origin = ORIGIN.parse().map_err(|e| failed(&e))?;
        let label = "broker".parse().map_err(|e| failed(&e))?;
        let config = AuthorityConfig::new(origin, label, &address, now());
        let folder = self.dir.join("authority");
        let mut authority = Authority::init(&folder, &config).map_err(|e| failed(&e))?;
        let broker = self.dir.join("broker");
        authority.issue_broker(&broker.join("identity"), now()).map_err(|e| failed(&e))?;
        authority.issue_link(&folder, now()).map_err(|e| failed(&e))?;
        std::fs::copy(folder.join("root.pem"), self.dir.join("authority.pem"))?;
        let mut config = BrokerConfig::new(".".into(), "identity".into());
        config.broker.listen = address.parse().map_err(|e| failed(&e))?;
        // Whichever is free: a broker of this machine may have the usual one.
        config.console.listen = ConsoleListen::At((std::net::Ipv4Addr::LOCALHOST, 0).into());
        config.store.segment_mib = 8;
        config.space.ballast_mib = 8;
        let written = toml::to_string(&config).map_err(|e| failed(&e))?;
        std::fs::write(broker.join("broker.toml"), written)?;
        for (code, (name, _)) in &self.cast.agencies {
            authority.add_agency(&Agency::new(code.clone(), name.clone()), now()).map_err(|e| failed(&e))?;
        }
        self.start_broker()?;
        self.authority = Some(Process::start("authority", &self.logs(), &["ca", "serve", "--dir", &text(&folder)?])?);
        self.say(&format!(
            "an authority, a broker at {address}, {} agencies in the directory",
            self.cast.agencies.len()
        ));
        for (n, node) in self.nodes.iter().enumerate() {
            let agencies = self.cast.of_node(n);
            if agencies.is_empty() {
                continue;
            }
            let id = node.id.parse().map_err(|e| failed(&e))?;
            let token =
                authority.invite(&id, &agencies, Duration::from_secs(3600), now()).map_err(|e| failed(&e))?.to_string();
            self.join(node, &token)?;
            let names: Vec<&str> = agencies.iter().map(AgencyCode::as_str).take(4).collect();
            let more = agencies.len() - names.len();
            let more = if more == 0 { String::new() } else { format!(" and {more} more") };
            self.say(&format!("node {} has joined and acts for {}{more}", node.id, names.join(", ")));
        }
        Ok(())
    }

    /// The authority may need a moment to link to the broker: until then the answer is "try again".
    fn join(&self, node: &Node, token: &str) -> Result<(), Failure> {
        let name = format!("{}-join", node.id);
        let deadline = Instant::now() + PATIENCE;
        loop {
            match Process::run(&name, &self.logs(), &["agent", "join", token, "--dir", &text(&node.folder)?]) {
                Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(200)),
                ended => return ended,
            }
        }
    }

    pub(super) fn start_node(&mut self, n: usize) -> Result<(), Failure> {
        let logs = self.logs();
        self.nodes[n].start(&logs)?;
        self.say(&format!("node {} is up", self.nodes[n].id));
        Ok(())
    }

    /// Keeps a dispatch that was sent from the first node, for the report.
    pub(super) fn keep(&mut self, id: DispatchId) -> Result<(), Failure> {
        let shown: Value = self.nodes[0].control().get(&format!("/v1/dispatches/{id}"))?;
        let codes = shown["recipients"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let recipients = codes.filter_map(|code| code.parse().ok()).collect();
        self.sent.push(Sent { id, sender: 0, recipients, bundle: None, shown });
        Ok(())
    }

    /// The dispatches of the story.
    pub(super) fn ids(&self) -> Vec<DispatchId> {
        self.sent.iter().map(|sent| sent.id).collect()
    }

    fn start_broker(&mut self) -> Result<(), Failure> {
        let config = text(&self.dir.join("broker").join("broker.toml"))?;
        let mut broker = Process::start("broker", &self.logs(), &["broker", "run", "--config", &config])?;
        broker.ready(&self.broker_control())?;
        self.broker = Some(broker);
        Ok(())
    }

    /// Act 2: the senders' node runs; every file is imported, sealed and accepted. The recipients are still away.
    fn send(&mut self) -> Result<(), Failure> {
        let logs = self.logs();
        self.nodes[0].start(&logs)?;
        let control = self.nodes[0].control();
        for script in self.cast.files.clone().iter().filter(|script| script.first) {
            let imported = import_file(&control, &script.file, Mode::Lenient, false);
            self.note(imported, &control)?;
        }
        for n in 0..self.sent.len() {
            let id = self.sent[n].id;
            wait_until(&control, id, "accepted", PATIENCE)?;
            self.say(&format!("dispatch {id}: accepted, durable, with signed evidence"));
        }
        self.check("sealed and accepted", Ok(format!("{} dispatches", self.sent.len())));
        Ok(())
    }

    /// Keeps what became of a file.
    fn note(&mut self, imported: Imported, control: &Control) -> Result<(), Failure> {
        let name = imported.file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let code = imported.code.as_ref().map_or_else(String::new, |code| format!(" [{code}]"));
        self.say(&format!("{name}: {}{code} {}", imported.result, imported.message));
        if let (Some(id), "queued") = (imported.id, imported.result) {
            let shown: Value = control.get(&format!("/v1/dispatches/{id}"))?;
            let codes = shown["recipients"].as_array().into_iter().flatten().filter_map(Value::as_str);
            let recipients = codes.filter_map(|code| code.parse().ok()).collect();
            self.say(&format!("dispatch {id}: sealed by {}", shown["sender"].as_str().unwrap_or_default()));
            self.sent.push(Sent { id, sender: 0, recipients, bundle: None, shown });
        }
        self.imported.push(imported);
        Ok(())
    }

    /// Act 3: kill -9, and a restart from what is on disk.
    pub(super) fn kill_the_broker(&mut self) -> Result<(), Failure> {
        let Some(broker) = self.broker.take() else { return Ok(()) };
        let pid = broker.id();
        broker.kill()?;
        self.say(&format!("the broker (process {pid}) was killed with SIGKILL"));
        let began = Instant::now();
        self.start_broker()?;
        let back = format!("it recovered and answers again after {:.2} s", began.elapsed().as_secs_f64());
        self.check("the broker was killed and came back", Ok(back));
        Ok(())
    }

    /// Act 4: the recipients' nodes come up and get what waited for them.
    fn hand_over(&mut self) -> Result<(), Failure> {
        let logs = self.logs();
        for n in 1..self.nodes.len() {
            if !self.cast.of_node(n).is_empty() {
                self.nodes[n].start(&logs)?;
                self.say(&format!("node {} is up", self.nodes[n].id));
            }
        }
        let mut handed_over = 0;
        for sent in &self.sent {
            wait_until(&self.nodes[sent.sender].control(), sent.id, "handed-over", PATIENCE)?;
            handed_over += sent.recipients.len();
            for recipient in &sent.recipients {
                self.say(&format!("dispatch {}: handed over to {recipient}, with its seal", sent.id));
            }
        }
        self.check("handed over to every recipient", Ok(format!("{handed_over} deliveries")));
        Ok(())
    }

    /// Act 5: an officer registers the first dispatch.
    fn register(&mut self) -> Result<(), Failure> {
        let Some(first) = self.sent.first() else { return Ok(()) };
        let Some(recipient) = first.recipients.first().cloned() else { return Ok(()) };
        let (id, sender) = (first.id, self.nodes[first.sender].control());
        let node = self.cast.node_of(&recipient).unwrap_or(0);
        report(&self.nodes[node].control(), id, Some(&recipient), &Report::Registered)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shown: Value = sender.get(&format!("/v1/dispatches/{id}"))?;
            let mut deliveries = shown["outgoing"]["deliveries"].as_array().into_iter().flatten();
            if deliveries.any(|d| d["recipient"] == recipient.as_str() && d["state"] == "registered") {
                break;
            }
            if Instant::now() > deadline {
                return Err(Failure::other(format!("the sender did not learn that {recipient} registered {id}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.check("accepted by an officer", Ok(format!("{recipient} entered it in its register (status 03)")));
        Ok(())
    }

    /// Act 6: what each recipient got is what was sealed.
    fn receive(&mut self) -> Result<(), Failure> {
        let mut parts = 0;
        for sent in &self.sent {
            for recipient in &sent.recipients {
                let node = self.cast.node_of(recipient).unwrap_or(0);
                let folder = self.dir.join("received").join(recipient.as_str()).join(sent.id.to_string());
                parts += audit::compare(&self.nodes[node].control(), sent.id, &folder)?;
            }
        }
        self.check("received as sealed", Ok(format!("{parts} files, each with the SHA-256 in its envelope")));
        Ok(())
    }

    /// Act 7: what came as files about documents, recalls and statuses, is sent by those whose it is.
    fn follow_up(&mut self) -> Result<(), Failure> {
        for script in self.cast.files.clone().iter().filter(|script| !script.first) {
            let control = self.nodes[script.node].control();
            let imported = import_file(&control, &script.file, Mode::Lenient, false);
            self.note(imported, &control)?;
        }
        Ok(())
    }

    /// Act 8: bundles are exported, and judged by a process of its own that knows only the root and the log.
    fn audit(&mut self) -> Result<(), Failure> {
        let (broker, folder) = (self.broker_control(), self.dir.join("bundles"));
        for sent in &mut self.sent {
            sent.bundle = Some(audit::export(&broker, sent.id, &folder)?);
            sent.shown = self.nodes[sent.sender].control().get(&format!("/v1/dispatches/{}", sent.id))?;
        }
        let (root, log) = (text(&self.dir.join("authority.pem"))?, text(&self.dir.join("broker").join("log"))?);
        let bundles: Vec<String> =
            self.sent.iter().filter_map(|sent| sent.bundle.as_deref()).map(text).collect::<Result<_, _>>()?;
        if bundles.is_empty() {
            return Ok(());
        }
        let mut args = vec!["audit", "verify", "--authority", &root, "--log", &log];
        args.extend(["--expect", "SubmissionAcceptance", "--expect", "ContentHandover"]);
        args.extend(bundles.iter().map(String::as_str));
        let verified = Process::run("audit", &self.logs(), &args);
        let told = format!("{} bundles, by the authority's root and the log alone", bundles.len());
        self.check("evidence verified", verified.map(|()| told).map_err(|failure| failure.message));
        Ok(())
    }

    /// The whole outcome as data.
    pub fn report(&self) -> Value {
        let dispatches: Vec<Value> = self
            .sent
            .iter()
            .map(|sent| {
                json!({
                    "id": sent.id, "kind": sent.shown["kind"], "sender": sent.shown["sender"],
                    "recipients": sent.recipients, "bundle": sent.bundle, "timeline": sent.shown["timeline"],
                })
            })
            .collect();
        json!({
            "ok": self.checks.iter().all(|check| check["ok"] == true),
            "dispatches": dispatches, "files": self.imported, "checks": self.checks,
            "seconds": self.began.elapsed().as_secs_f64(),
        })
    }

    /// The timelines, as a person reads them; where the bundles are only if they stay there.
    pub fn summary(&self, stays: bool) {
        for sent in &self.sent {
            let subject = sent.shown["subject"].as_str().unwrap_or_default();
            println!("\n{}  {subject}\n{}", sent.id, timeline(&sent.shown["timeline"]).trim_end());
            if let Some(bundle) = sent.bundle.as_ref().filter(|_| stays) {
                println!("evidence: {}", bundle.display());
            }
        }
        let good = self.checks.iter().filter(|check| check["ok"] == true).count();
        println!("\n{good} of {} checks hold, {:.1} s", self.checks.len(), self.began.elapsed().as_secs_f64());
        if !stays {
            println!("nothing of it stays on the disk; with --dir DIR bundles, received files and logs do");
        }
    }

    /// Where everything is, for somebody who wants to go on by hand.
    pub fn whereabouts(&self) -> String {
        let mut words = format!("\neverything is in {} and runs until Ctrl-C\n", self.dir.display());
        words += &format!("  broker: docaxis broker status --config {}\n", path(&self.dir, "broker/broker.toml"));
        if let Ok(status) = self.broker_control().get::<Value>("/v1/status") {
            words += &format!("  whether it is ready: {}\n", status["console"].as_str().unwrap_or_default());
        }
        for node in self.nodes.iter().filter(|node| node.agent.is_some()) {
            words += &format!("  {}: docaxis doc list --config {}\n", node.id, node.config().display());
        }
        words
    }

    /// Stops every process, the broker last.
    pub fn end(self) {
        for node in self.nodes {
            if let Some(agent) = node.agent {
                agent.stop();
            }
        }
        for process in [self.authority, self.broker].into_iter().flatten() {
            process.stop();
        }
    }
}

fn path(dir: &Path, below: &str) -> String {
    dir.join(below).display().to_string()
}
