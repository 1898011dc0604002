//! Bad days and large ones, each shown to a person and checked: a recall, a circular, a node that is away, a refusal, an
//! urgent letter behind a full queue.

use std::time::{Duration, Instant};

use clap::ValueEnum;
use docaxis_protocol::{DispatchId, ReasonCode};
use serde_json::{Value, json};

use super::audit;
use super::letters::AGENCIES;
use super::process::{Process, text};
use super::story::{PATIENCE, Story};
use crate::control::Control;
use crate::doc::{Report, report, wait_until};
use crate::out::Failure;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// A dispatch is taken back: withdrawn where it waits, asked for and destroyed where it has arrived.
    Recall,
    /// One letter to two hundred agencies: sealed once, stored once, with evidence for each.
    Circular,
    /// The recipient's node is away and the broker is killed; it arrives once, and meanwhile everybody knows why not.
    Offline,
    /// The recipient returns the document, with a reason.
    Refuse,
    /// An urgent letter behind three hundred ordinary ones.
    Urgent,
}

const SENDER: usize = 0;
const PROVINCE: usize = 1;
const MINISTRY: usize = 2;
/// Recipients of the circular, all of them at the province's node.
pub const COMMUNES: usize = 200;
/// Ordinary dispatches before the urgent one.
const QUEUED: usize = 300;
/// Offers that may be under way to a node at once: so many may be before the urgent one at most.
const UNDER_WAY: u64 = 64;

/// Code and name of a commune of the circular.
pub fn commune(n: usize) -> (String, String) {
    (format!("H37.XA.{:03}", n + 1), format!("Ủy ban nhân dân xã số {}", n + 1))
}

impl Story {
    /// Sets the stage and plays one scenario.
    pub fn play(&mut self, scenario: Scenario) -> Result<(), Failure> {
        self.found()?;
        self.start_node(SENDER)?;
        match scenario {
            Scenario::Recall => self.recall(),
            Scenario::Circular => self.circular(),
            Scenario::Offline => self.offline(),
            Scenario::Refuse => self.refuse(),
            Scenario::Urgent => self.urgent(),
        }
    }

    fn send_letter(&mut self, subject: &str, to: &[&str], priority: u8) -> Result<DispatchId, Failure> {
        let draft = json!({
            "from": AGENCIES[0].0, "to": to, "priority": priority,
            "document": {"Subject": subject, "DocumentType": {"TypeName": "Công văn"}},
            "parts": [{"name": "cong-van.txt", "media_type": "text/plain", "base64": "TuG7mWkgZHVuZyBjw7RuZyB2xINuLgo="}],
        });
        let made: Value = self.nodes[SENDER].control().post("/v1/dispatches", &draft, None)?;
        let id = made["id"].as_str().unwrap_or_default();
        let id = id.parse().map_err(|e| Failure::other(format!("the agent answered without an id: {e}")))?;
        self.keep(id)?;
        Ok(id)
    }

    fn shown(&self, node: usize, id: DispatchId) -> Result<Value, Failure> {
        self.nodes[node].control().get(&format!("/v1/dispatches/{id}"))
    }

    /// Asks a node again and again until what it shows of the dispatch is as wanted.
    fn until(
        &self,
        node: usize,
        id: DispatchId,
        what: &str,
        wanted: impl Fn(&Value) -> bool,
    ) -> Result<Value, Failure> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let shown = self.shown(node, id);
            match shown {
                Ok(shown) if wanted(&shown) => return Ok(shown),
                Err(failure) if failure.code != ReasonCode::NotFound.as_str() => return Err(failure),
                _ if Instant::now() > deadline => {
                    return Err(Failure::other(format!("dispatch {id}: {what} did not come about")));
                }
                _ => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// Notes whether something holds, in one sentence either way.
    fn holds(&mut self, name: &str, holds: bool, detail: String) {
        self.check(name, if holds { Ok(detail) } else { Err(detail) });
    }

    /// Exports the dispatch's bundle and has a process of its own judge it by the authority's root and the log.
    fn judged(&mut self, id: DispatchId, expected: &[&str]) -> Result<(), Failure> {
        let bundle = audit::export(&self.broker_control(), id, &self.dir.join("bundles"))?;
        let (root, log) = (text(&self.dir.join("authority.pem"))?, text(&self.dir.join("broker").join("log"))?);
        let bundle = text(&bundle)?;
        let mut args = vec!["audit", "verify", "--authority", &root, "--log", &log, &bundle];
        expected.iter().for_each(|event| args.extend(["--expect", event]));
        let verified = Process::run("audit", &self.logs(), &args);
        let told = format!("the bundle of {id}, by the authority's root and the log alone");
        self.check("evidence verified", verified.map(|()| told).map_err(|failure| failure.message));
        Ok(())
    }

    fn recall(&mut self) -> Result<(), Failure> {
        let (department, ministry) = (AGENCIES[1].0, AGENCIES[3].0);
        self.start_node(PROVINCE)?;
        let id = self.send_letter("V/v kế hoạch kiểm tra (bản nhầm)", &[department, ministry], 0)?;
        self.until(SENDER, id, "the handover", |shown| delivery(shown, department)["state"] == "handed-over")?;
        self.say(&format!("dispatch {id}: {department} has it; {ministry}'s node is away"));
        let why = "Ban hành nhầm phụ lục 2";
        let asked = json!({"reason": why});
        let made: Value = self.nodes[SENDER].control().post(&format!("/v1/dispatches/{id}/recall"), &asked, None)?;
        let recall = made["id"].as_str().unwrap_or_default().to_owned();
        self.say(&format!("the sender recalls it with dispatch {recall}: {why}"));
        let shown =
            self.until(SENDER, id, "the withdrawal", |shown| delivery(shown, ministry)["state"] == "withdrawn")?;
        let reason = delivery(&shown, ministry)["reason"]["text"].as_str().unwrap_or_default().to_owned();
        self.holds("withdrawn where it waited", reason.contains(why), format!("{ministry}: {reason}"));
        let asked = self.until(PROVINCE, id, "the request", |shown| shown["incoming"][0]["recall"] == "asked")?;
        let told = asked["incoming"][0]["waiting"]["why"].as_str().unwrap_or_default().to_owned();
        self.holds("asked for where it had arrived", told.contains(why), told.clone());
        let agreed = Report::Further("15".into(), "Đã hủy văn bản".into());
        report(&self.nodes[PROVINCE].control(), id, None, &agreed)?;
        let shown = self.shown(PROVINCE, id)?;
        let gone = self.nodes[PROVINCE].control().bytes(&format!("/v1/dispatches/{id}/parts/0"));
        let destroyed = gone.is_err() && shown["incoming"][0]["state"] == "recalled" && !shown["subject"].is_null();
        self.holds("destroyed, and what is known of it kept", destroyed, format!("at {department}, by status 15"));
        self.until(SENDER, id, "the answer", |shown| delivery(shown, department)["recall"] == "agreed")?;
        self.holds("the sender knows", true, format!("{department} has agreed"));
        self.start_node(MINISTRY)?;
        let recall: DispatchId = recall.parse().map_err(|e| Failure::other(format!("{e}")))?;
        self.keep(recall)?;
        self.until(MINISTRY, recall, "the recall's arrival", |_| true)?;
        let never = self.shown(MINISTRY, id).is_err_and(|failure| failure.code == ReasonCode::NotFound.as_str());
        self.holds("never shown where it was withdrawn", never, format!("{ministry} sees the recall alone"));
        self.judged(id, &["SubmissionAcceptance", "ContentHandover", "ContentHandoverFailure"])
    }

    fn circular(&mut self) -> Result<(), Failure> {
        let codes: Vec<String> = (0..COMMUNES).map(|n| commune(n).0).collect();
        let to: Vec<&str> = codes.iter().map(String::as_str).collect();
        let began = Instant::now();
        let id = self.send_letter("V/v tổng kết công tác năm", &to, 0)?;
        wait_until(&self.nodes[SENDER].control(), id, "accepted", PATIENCE)?;
        let took = began.elapsed();
        self.say(&format!("dispatch {id} to {COMMUNES} agencies: accepted after {:.0} ms", took.as_secs_f64() * 1e3));
        self.start_node(PROVINCE)?;
        wait_until(&self.nodes[SENDER].control(), id, "handed-over", PATIENCE)?;
        let shown = self.shown(SENDER, id)?;
        let handed_over = deliveries(&shown).filter(|delivery| delivery["state"] == "handed-over").count();
        self.holds("handed over to each", handed_over == COMMUNES, format!("{handed_over} of {COMMUNES}"));
        let evidence: Value = self.nodes[SENDER].control().get(&format!("/v1/dispatches/{id}/evidence"))?;
        let pieces = evidence["evidence"].as_array().map_or(0, Vec::len);
        self.holds("evidence for each", pieces == COMMUNES + 1, format!("{pieces} pieces with the acceptance"));
        let folder = self.dir.join("received").join(&codes[0]);
        let parts = audit::compare(&self.nodes[PROVINCE].control(), id, &folder)?;
        self.holds("received as sealed", parts == 1, format!("{parts} file"));
        self.judged(id, &["SubmissionAcceptance", "ContentHandover"])
    }

    fn offline(&mut self) -> Result<(), Failure> {
        let department = AGENCIES[1].0;
        let id = self.send_letter("V/v báo cáo đột xuất", &[department], 1)?;
        wait_until(&self.nodes[SENDER].control(), id, "accepted", PATIENCE)?;
        let shown = self.shown(SENDER, id)?;
        let waiting = delivery(&shown, department)["waiting"].clone();
        let why = waiting["why"].as_str().unwrap_or_default().to_owned();
        let told = !why.is_empty() && !waiting["whose_move"].is_null();
        self.holds("the sender sees why it waits", told, format!("{why}; the next move is {}", waiting["whose_move"]));
        self.kill_the_broker()?;
        self.start_node(PROVINCE)?;
        wait_until(&self.nodes[SENDER].control(), id, "handed-over", PATIENCE)?;
        let inbox: Value = self.nodes[PROVINCE].control().get("/v1/dispatches?box=in")?;
        let times = inbox["dispatches"].as_array().map_or(0, Vec::len);
        self.holds("handed over once", times == 1, format!("{department} has {times} dispatch"));
        let folder = self.dir.join("received").join(department);
        let parts = audit::compare(&self.nodes[PROVINCE].control(), id, &folder)?;
        self.holds("received as sealed", parts == 1, format!("{parts} file"));
        self.judged(id, &["SubmissionAcceptance", "ContentHandover"])
    }

    fn refuse(&mut self) -> Result<(), Failure> {
        let department = AGENCIES[1].0;
        self.start_node(PROVINCE)?;
        let id = self.send_letter("V/v thẩm định dự án", &[department], 0)?;
        wait_until(&self.nodes[SENDER].control(), id, "handed-over", PATIENCE)?;
        let why = "Không thuộc thẩm quyền của Sở";
        let said = Report::Refused(ReasonCode::WrongAddressee, why.to_owned());
        self.until(PROVINCE, id, "its arrival", |_| true)?;
        report(&self.nodes[PROVINCE].control(), id, None, &said)?;
        let shown = self.until(SENDER, id, "the refusal", |shown| delivery(shown, department)["state"] == "refused")?;
        let reason = delivery(&shown, department)["reason"].clone();
        let right = reason["code"] == "wrong-addressee" && reason["text"] == why;
        self.holds("returned, and the sender knows why", right, format!("{}: {}", reason["code"], reason["text"]));
        let again = report(&self.nodes[PROVINCE].control(), id, None, &Report::Registered);
        let final_ = again.as_ref().is_err_and(|failure| failure.exit == 5);
        let told = again.err().map_or_else(|| "it was registered after all".into(), |failure| failure.message);
        self.holds("an answer is final", final_, told);
        self.judged(id, &["SubmissionAcceptance", "ContentHandover", "Refused"])
    }

    fn urgent(&mut self) -> Result<(), Failure> {
        let ministry = AGENCIES[3].0;
        let mut last = None;
        for n in 1..=QUEUED {
            last = Some(self.send_letter(&format!("Công văn thường số {n}"), &[ministry], 0)?);
        }
        let Some(last) = last else { return Ok(()) };
        wait_until(&self.nodes[SENDER].control(), last, "accepted", PATIENCE)?;
        self.say(&format!("{QUEUED} ordinary dispatches wait for {ministry}, whose node is away"));
        let id = self.send_letter("HỎA TỐC: V/v ứng phó bão số 9", &[ministry], 3)?;
        wait_until(&self.nodes[SENDER].control(), id, "accepted", PATIENCE)?;
        self.start_node(MINISTRY)?;
        for sent in self.ids() {
            wait_until(&self.nodes[SENDER].control(), sent, "handed-over", PATIENCE)?;
        }
        let sender = self.nodes[SENDER].control();
        let urgent = handover_leaf(&sender, id)?;
        let mut before = 0;
        for sent in self.ids() {
            before += u64::from(handover_leaf(&sender, sent)? < urgent);
        }
        let told = format!("it came last; {before} of {QUEUED} were handed over before it");
        self.holds("the urgent one overtook", before < UNDER_WAY, told);
        self.judged(id, &["SubmissionAcceptance", "ContentHandover"])
    }
}

fn deliveries(shown: &Value) -> impl Iterator<Item = &Value> {
    shown["outgoing"]["deliveries"].as_array().into_iter().flatten()
}

fn delivery<'a>(shown: &'a Value, recipient: &str) -> &'a Value {
    deliveries(shown).find(|delivery| delivery["recipient"] == recipient).unwrap_or(&Value::Null)
}

/// Where the handover stands in the exchange's log.
fn handover_leaf(sender: &Control, id: DispatchId) -> Result<u64, Failure> {
    let evidence: Value = sender.get(&format!("/v1/dispatches/{id}/evidence"))?;
    let mut pieces = evidence["evidence"].as_array().into_iter().flatten();
    let leaf = pieces.find(|piece| piece["event"] == "ContentHandover").and_then(|piece| piece["leaf"].as_u64());
    leaf.ok_or_else(|| Failure::other(format!("there is no evidence of the handover of {id}")))
}
