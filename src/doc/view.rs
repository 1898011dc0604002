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
    if let Some(outgoing) = shown["outgoing"].as_object() {
        words += &format!("sent: {}{}\n", outgoing["state"].as_str().unwrap_or_default(), because(&shown["outgoing"]));
        for delivery in outgoing["deliveries"].as_array().into_iter().flatten() {
            words += &format!("  {}\n", standing(delivery));
        }
    }
    for incoming in shown["incoming"].as_array().into_iter().flatten() {
        words += &format!("received: {}\n", standing(incoming));
    }
    words + &timeline(&shown["timeline"])
}

fn standing(delivery: &Value) -> String {
    let text = |key: &str| delivery[key].as_str().unwrap_or_default();
    format!("{}: {}{}", text("recipient"), text("state"), because(delivery))
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
        let time = text("time").parse::<Timestamp>().map_or_else(|_| text("time").into(), Timestamp::to_vietnam);
        let acting = entry["acting"].as_str().map_or_else(String::new, |acting| format!(" by {acting}"));
        words += &format!("{time}  {:<14} {}{acting}{}\n", text("agency"), text("event"), because(entry));
    }
    words
}
