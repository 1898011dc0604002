//! Dispatches in words.

use docaxis_protocol::Timestamp;
use serde_json::Value;

use super::many::{self, Standing, are_many};

/// How much is shown of a dispatch with many recipients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recipients {
    /// How many there are in each state, and whoever needs attention.
    Brief,
    All,
    /// Those that were [kept](keep), and nothing else.
    Chosen,
}

/// One line of a list.
pub fn line(summary: &Value) -> String {
    let text = |key: &str| summary[key].as_str().unwrap_or_default();
    let way = if text("box") == "in" { "<-" } else { "->" };
    let others = match text("box") {
        "in" => text("sender").to_owned(),
        _ => codes(&summary["recipients"]),
    };
    format!("{}  {:<11} {way} {others}  {}\n", text("id"), text("state"), text("subject"))
}

/// Agency codes; of many only the first few.
fn codes(list: &Value) -> String {
    let all: Vec<&str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    match all.len() {
        0..=3 => all.join(", "),
        n => format!("{} and {} more", all[..3].join(", "), n - 3),
    }
}

/// Keeps those recipients that stand so.
pub fn keep(shown: &mut Value, standing: Standing) {
    // Nobody waits for what the exchange does not have.
    if shown.pointer("/outgoing/state").is_some_and(|state| state != "accepted")
        && let Some(deliveries) = shown.pointer_mut("/outgoing/deliveries")
    {
        *deliveries = Value::Array(vec![]);
    }
    for list in ["/outgoing/deliveries", "/incoming"] {
        if let Some(list) = shown.pointer_mut(list).and_then(Value::as_array_mut) {
            list.retain(|one| standing.is_of(one));
        }
    }
}

/// A dispatch.
pub fn dispatch(shown: &Value, recipients: Recipients) -> String {
    let text = |key: &str| shown[key].as_str().unwrap_or_default();
    let mut words =
        format!("{}  {}\nfrom {} to {}\n", text("id"), text("subject"), text("sender"), codes(&shown["recipients"]));
    for part in shown["parts"].as_array().into_iter().flatten() {
        let (name, size) = (part["name"].as_str().unwrap_or_default(), part["size"].as_u64().unwrap_or_default());
        words += &format!("  {name}  {size} bytes\n");
    }
    for relation in shown["relates"].as_array().into_iter().flatten() {
        let rel = relation["rel"].as_str().unwrap_or_default().replace('-', " ");
        words += &format!("{rel} dispatch {}\n", relation["dispatch"].as_str().unwrap_or_default());
    }
    for other in shown["same_document"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        words += &format!("warning: dispatch {other} bears the same document id or number\n");
    }
    let (outgoing, incoming) = (&shown["outgoing"], &shown["incoming"]);
    let brief = |list: &Value| recipients == Recipients::Brief && are_many(list);
    if outgoing.is_object() {
        words += &format!("sent: {}{}\n", outgoing["state"].as_str().unwrap_or_default(), because(outgoing));
        match recipients {
            _ if brief(&outgoing["deliveries"]) => words += &many::deliveries(outgoing),
            Recipients::Chosen if outgoing["state"] == "accepted" => {
                words += &format!("  in all: {}\n", many::counts(outgoing));
            }
            _ => {}
        }
    }
    let one_by_one = |list: &Value| list.as_array().filter(|_| !brief(list)).cloned().unwrap_or_default();
    for delivery in one_by_one(&outgoing["deliveries"]) {
        words += &format!("  {}\n", recipient(&delivery));
    }
    if brief(incoming) {
        words += &many::receptions(incoming);
    }
    for incoming in one_by_one(incoming) {
        words += &format!("received: {}\n", recipient(&incoming));
    }
    if matches!(recipients, Recipients::Chosen) {
        return words;
    }
    if brief(&outgoing["deliveries"]) || brief(incoming) {
        words += &(many::timeline(&shown["timeline"]) + &many::related(&shown["related"]));
    } else {
        words += &timeline(&shown["timeline"]);
        for related in shown["related"].as_array().into_iter().flatten() {
            words += &format!("{}\n", about(related));
        }
    }
    if let Some(older @ 1..) = shown["related_older"].as_u64() {
        words += &format!("and {older} older ones about it, which are not shown\n");
    }
    words
}

/// What was sent about it since.
pub fn about(related: &Value) -> String {
    let text = |key: &str| related[key].as_str().unwrap_or_default();
    let what = match (text("kind"), text("code")) {
        ("status", "13") => "asks for it back (13)".to_owned(),
        ("status", "15") => "agrees (15)".to_owned(),
        ("status", "16") => "declines (16)".to_owned(),
        ("status", "04") => "assigned (04)".to_owned(),
        ("status", "05") => "in process (05)".to_owned(),
        ("status", "06") => "finished (06)".to_owned(),
        ("recall", _) => "recalls it".to_owned(),
        ("update", _) => "updates it".to_owned(),
        ("replace", _) => "replaces it".to_owned(),
        (kind, _) => kind.to_owned(),
    };
    let words = if text("text").is_empty() { String::new() } else { format!(": {}", text("text")) };
    format!(
        "{}  {:<14} {what}{words}  [{}, {}]",
        vietnam(text("time")),
        text("sender"),
        text("dispatch"),
        text("state")
    )
}

pub fn vietnam(time: &str) -> String {
    time.parse::<Timestamp>().map_or_else(|_| time.to_owned(), Timestamp::to_vietnam)
}

/// Where it stands with one recipient.
pub fn recipient(delivery: &Value) -> String {
    let text = |key: &str| delivery[key].as_str().unwrap_or_default();
    let mut said = String::new();
    if let Some(code) = delivery["progress"].as_str() {
        said += &format!(", {code}");
    }
    match delivery["recall"].as_str() {
        Some("asked") => said += ", asked back",
        Some("agreed") => said += ", given back (15)",
        Some("declined") => said += ", not given back (16)",
        _ => {}
    }
    format!("{}: {}{said}{}", text("recipient"), text("state"), because(delivery))
}

/// The reason; or why something waits, whose move it is, and when it is tried again.
fn because(about: &Value) -> String {
    if let Some(reason) = about["reason"].as_object() {
        let text = |key: &str| reason.get(key).and_then(Value::as_str).unwrap_or_default();
        return format!(" ({}: {})", text("code"), text("text"));
    }
    let waiting = &about["waiting"];
    let Some(why) = waiting["why"].as_str() else { return String::new() };
    let whose = match waiting["whose_move"].as_str() {
        Some("agent") => "nobody's, it goes on by itself",
        Some("broker") => "the exchange's, or the network's",
        Some("recipient") => "the recipient's",
        Some("sender") => "the sender's",
        Some("administrator") => "the administrator's",
        other => other.unwrap_or("unknown"),
    };
    let next = waiting["next_attempt"].as_str().map(|at| format!("; next attempt: {}", vietnam(at)));
    format!(" ({why}; next move: {whose}{})", next.unwrap_or_default())
}

/// A timeline, a line for each event, in Vietnam's time.
pub fn timeline(entries: &Value) -> String {
    entries.as_array().into_iter().flatten().map(event).collect()
}

/// One line of it.
pub fn event(entry: &Value) -> String {
    let text = |key: &str| entry[key].as_str().unwrap_or_default();
    let acting = entry["acting"].as_str().map_or_else(String::new, |acting| format!(" by {acting}"));
    format!("{}  {:<14} {}{acting}{}\n", vietnam(text("time")), text("agency"), text("event"), because(entry))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const QUEUED: &str = "2026-11-22T03:30:00.000Z";
    const LATER: &str = "2026-11-22T04:00:00.000Z";

    fn delivery(n: usize, state: &str) -> Value {
        json!({"recipient": format!("H37.{n:03}"), "state": state, "since": QUEUED})
    }

    fn with(mut value: Value, key: &str, added: Value) -> Value {
        value[key] = added;
        value
    }

    fn event(agency: &str, event: &str, time: &str) -> Value {
        json!({"time": time, "agency": agency, "event": event, "proven": true})
    }

    /// What an agent gives of a dispatch with these deliveries.
    fn shown(deliveries: Vec<Value>, counts: &[(&str, u64)], timeline: Vec<Value>) -> Value {
        let counts: Vec<Value> = counts.iter().map(|(state, count)| json!({"state": state, "count": count})).collect();
        let late = deliveries.iter().filter(|delivery| !delivery["no_answer"].is_null()).count();
        let recipients: Vec<&Value> = deliveries.iter().map(|delivery| &delivery["recipient"]).collect();
        json!({
            "id": "0192f0c1", "sender": "G22", "recipients": recipients, "subject": "V/v", "parts": [], "incoming": [],
            "outgoing": {"state": "accepted", "counts": counts, "no_answer": late, "deliveries": deliveries},
            "timeline": timeline,
        })
    }

    #[test]
    fn few_recipients_are_shown_one_by_one_each_with_whose_move_it_is_and_the_next_attempt() {
        let waiting = |why: &str, whose: &str| json!({"why": why, "whose_move": whose});
        let deliveries = vec![
            with(delivery(1, "waiting"), "waiting", with(waiting("appointed", "agent"), "next_attempt", json!(LATER))),
            with(delivery(2, "handed-over"), "waiting", waiting("not answered", "recipient")),
            with(delivery(3, "refused"), "reason", json!({"code": "wrong-addressee", "text": "nhầm"})),
            delivery(4, "registered"),
        ];
        let counts = [("waiting", 1), ("handed-over", 1), ("registered", 1), ("refused", 1)];
        let shown = shown(deliveries, &counts, vec![event("G22", "Queued", QUEUED)]);
        let words = "0192f0c1  V/v\n\
             from G22 to H37.001, H37.002, H37.003 and 1 more\n\
             sent: accepted\n  \
             H37.001: waiting (appointed; next move: nobody's, it goes on by itself; next attempt: 2026-11-22 11:00:00 \
             +07:00)\n  \
             H37.002: handed-over (not answered; next move: the recipient's)\n  \
             H37.003: refused (wrong-addressee: nhầm)\n  \
             H37.004: registered\n\
             2026-11-22 10:30:00 +07:00  G22            Queued\n";
        assert_eq!(dispatch(&shown, Recipients::Brief), words);
        assert_eq!(dispatch(&shown, Recipients::All), words);
    }

    /// A circular: 30 wait, 25 have it of which 2 did not answer in time, one has failed.
    fn circular() -> Value {
        let late = |n| n == 40 || n == 50;
        let mut deliveries: Vec<Value> = (0..30).map(|n| delivery(n, "waiting")).collect();
        deliveries.extend((30..55).map(|n| match late(n) {
            true => with(delivery(n, "handed-over"), "no_answer", json!(LATER)),
            false => delivery(n, "handed-over"),
        }));
        deliveries.push(with(delivery(55, "failed"), "reason", json!({"code": "expired", "text": "too late"})));
        let mut timeline = vec![event("G22", "Queued", QUEUED), event("G22", "SubmissionAcceptance", QUEUED)];
        timeline.extend((30..54).map(|n| event(&format!("H37.{n:03}"), "ContentHandover", QUEUED)));
        timeline.push(event("H37.055", "ContentHandoverFailure", QUEUED));
        timeline.push(event("H37.054", "ContentHandover", LATER));
        shown(deliveries, &[("waiting", 30), ("handed-over", 25), ("failed", 1)], timeline)
    }

    #[test]
    fn of_many_recipients_there_are_counts_and_those_that_need_attention() {
        let listed: String = (0..20).map(|n| format!("    H37.{n:03}: waiting\n")).collect();
        let expected = format!(
            "0192f0c1  V/v\n\
             from G22 to H37.000, H37.001, H37.002 and 53 more\n\
             sent: accepted\n  \
             56 recipients: 30 waiting, 25 handed-over, 1 failed; 2 of them without an answer in time\n  \
             failed: 1\n    H37.055: failed (expired: too late)\n  \
             no-answer: 2\n    H37.040: handed-over\n    H37.050: handed-over\n  \
             waiting: 30\n{listed}    and 10 others, see --state waiting\n\
             2026-11-22 10:30:00 +07:00  G22            Queued\n\
             2026-11-22 10:30:00 +07:00  G22            SubmissionAcceptance\n\
             2026-11-22 10:30:00 +07:00  25 times       ContentHandover, the last one 2026-11-22 11:00:00 +07:00\n\
             2026-11-22 10:30:00 +07:00  H37.055        ContentHandoverFailure\n"
        );
        assert_eq!(dispatch(&circular(), Recipients::Brief), expected);
    }

    #[test]
    fn all_recipients_and_those_in_one_state_are_shown_to_whoever_asks() {
        let all = dispatch(&circular(), Recipients::All);
        let of = |what: &str| all.lines().filter(|line| line.contains(what)).count();
        assert_eq!((of(": waiting"), of(": handed-over"), of(": failed")), (30, 25, 1));
        assert_eq!((of(" ContentHandover"), of(" times ")), (26, 0), "{all}");
        for (standing, expected) in [(Standing::Waiting, 30), (Standing::NoAnswer, 2), (Standing::Registered, 0)] {
            let mut shown = circular();
            keep(&mut shown, standing);
            let words = dispatch(&shown, Recipients::Chosen);
            assert_eq!(words.lines().filter(|line| line.starts_with("  H37.")).count(), expected, "{words}");
            assert!(words.contains("in all: 30 waiting, 25 handed-over, 1 failed; 2 of them"), "{words}");
            assert!(!words.contains("Queued"), "{words}");
        }
    }

    #[test]
    fn what_the_exchange_does_not_have_yet_has_one_reason_for_all_its_recipients() {
        let mut queued = circular();
        queued["outgoing"]["state"] = "queued".into();
        queued["outgoing"]["waiting"] = json!({"why": "no link", "whose_move": "broker", "next_attempt": LATER});
        let words = dispatch(&queued, Recipients::Brief);
        let why =
            "sent: queued (no link; next move: the exchange's, or the network's; next attempt: 2026-11-22 11:00:00";
        assert!(words.contains(why) && !words.contains("H37.001: "), "{words}");
        keep(&mut queued, Standing::Waiting);
        let words = dispatch(&queued, Recipients::Chosen);
        assert!(words.contains(why) && !words.contains("H37.001: ") && !words.contains("in all"), "{words}");
    }

    #[test]
    fn of_many_agencies_here_that_received_it_those_are_listed_that_have_to_answer() {
        let waits = json!({"why": "an officer", "whose_move": "recipient"});
        let mut incoming: Vec<Value> =
            (0..22).map(|n| with(delivery(n, "handed-over"), "waiting", waits.clone())).collect();
        incoming.push(delivery(22, "registered"));
        let mut shown = circular();
        (shown["outgoing"], shown["incoming"]) = (Value::Null, incoming.into());
        shown["related"] = (0..23)
            .map(|n| json!({"kind": "status", "code": "04", "time": QUEUED, "sender": format!("H37.{n:03}")}))
            .collect();
        shown["related_older"] = 3_000.into();
        let all = dispatch(&shown, Recipients::All);
        assert_eq!(all.lines().filter(|line| line.contains("assigned (04)")).count(), 23, "{all}");
        let older = "and 3000 older ones about it, which are not shown\n";
        assert!(all.ends_with(older), "{all}");
        let words = dispatch(&shown, Recipients::Brief);
        assert!(words.contains("received by 23 agencies here: 22 handed-over, 1 registered\n  to be answered: 22\n"));
        assert!(words.contains(
            "    H37.019: handed-over (an officer; next move: the recipient's)\n    and 2 others, see --all\n"
        ));
        assert!(!words.contains("H37.020: ") && words.contains("  25 times       ContentHandover"), "{words}");
        assert_eq!(words.lines().filter(|line| line.contains("assigned (04)")).count(), 20, "{words}");
        assert!(words.ends_with(&format!("and 3 others of kind status 04, see --all\n{older}")), "{words}");
    }

    #[test]
    fn a_replacement_names_what_it_replaces_and_what_was_replaced_names_its_replacement() {
        let replacement = json!({
            "id": "new", "kind": "replace", "sender": "000.00.00.G22", "recipients": ["H37.DN.001"], "subject": "Lần hai",
            "relates": [{"rel": "replaces", "dispatch": "old"}, {"rel": "replies-to", "dispatch": "question"}],
        });
        let head = "new  Lần hai\nfrom 000.00.00.G22 to H37.DN.001\n";
        assert_eq!(
            dispatch(&replacement, Recipients::Brief),
            format!("{head}replaces dispatch old\nreplies to dispatch question\n")
        );
        let replaced = json!({
            "id": "old", "kind": "new", "sender": "000.00.00.G22", "recipients": ["H37.DN.001"], "subject": "Lần một",
            "related": [{
                "time": "2026-11-22T03:30:00.123Z", "dispatch": "new", "kind": "replace", "sender": "000.00.00.G22",
                "state": "visible", "text": "Sai phụ lục",
            }],
        });
        let words = dispatch(&replaced, Recipients::Brief);
        assert!(words.ends_with("000.00.00.G22  replaces it: Sai phụ lục  [new, visible]\n"), "{words}");
    }
}
