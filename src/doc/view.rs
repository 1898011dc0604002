//! Dispatches in words.

use docaxis_protocol::Timestamp;
use serde_json::Value;

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

/// A dispatch whole.
pub fn dispatch(shown: &Value) -> String {
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
    if let Some(outgoing) = shown["outgoing"].as_object() {
        words += &format!("sent: {}{}\n", outgoing["state"].as_str().unwrap_or_default(), because(&shown["outgoing"]));
        for delivery in outgoing["deliveries"].as_array().into_iter().flatten() {
            words += &format!("  {}\n", standing(delivery));
        }
    }
    for incoming in shown["incoming"].as_array().into_iter().flatten() {
        words += &format!("received: {}\n", standing(incoming));
    }
    words += &timeline(&shown["timeline"]);
    for related in shown["related"].as_array().into_iter().flatten() {
        words += &format!("{}\n", about(related));
    }
    words
}

/// What was sent about it since.
fn about(related: &Value) -> String {
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

fn vietnam(time: &str) -> String {
    time.parse::<Timestamp>().map_or_else(|_| time.to_owned(), Timestamp::to_vietnam)
}

fn standing(delivery: &Value) -> String {
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

/// The reason, or why something waits and whose move it is.
fn because(about: &Value) -> String {
    if let Some(reason) = about["reason"].as_object() {
        let text = |key: &str| reason.get(key).and_then(Value::as_str).unwrap_or_default();
        return format!(" ({}: {})", text("code"), text("text"));
    }
    about["waiting"]["why"].as_str().map_or_else(String::new, |why| format!(" ({why})"))
}

/// A timeline, a line for each event, in Vietnam's time.
pub fn timeline(entries: &Value) -> String {
    let mut words = String::new();
    for entry in entries.as_array().into_iter().flatten() {
        let text = |key: &str| entry[key].as_str().unwrap_or_default();
        let acting = entry["acting"].as_str().map_or_else(String::new, |acting| format!(" by {acting}"));
        let why = because(entry);
        words += &format!("{}  {:<14} {}{acting}{why}\n", vietnam(text("time")), text("agency"), text("event"));
    }
    words
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_replacement_names_what_it_replaces_and_what_was_replaced_names_its_replacement() {
        let replacement = json!({
            "id": "new", "kind": "replace", "sender": "000.00.00.G22", "recipients": ["H37.DN.001"], "subject": "Lần hai",
            "relates": [{"rel": "replaces", "dispatch": "old"}, {"rel": "replies-to", "dispatch": "question"}],
        });
        let head = "new  Lần hai\nfrom 000.00.00.G22 to H37.DN.001\n";
        assert_eq!(dispatch(&replacement), format!("{head}replaces dispatch old\nreplies to dispatch question\n"));
        let replaced = json!({
            "id": "old", "kind": "new", "sender": "000.00.00.G22", "recipients": ["H37.DN.001"], "subject": "Lần một",
            "related": [{
                "time": "2026-11-22T03:30:00.123Z", "dispatch": "new", "kind": "replace", "sender": "000.00.00.G22",
                "state": "visible", "text": "Sai phụ lục",
            }],
        });
        let words = dispatch(&replaced);
        assert!(words.ends_with("000.00.00.G22  replaces it: Sai phụ lục  [new, visible]\n"), "{words}");
    }
}
