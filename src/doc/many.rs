//! A dispatch with many recipients: whom somebody has to look after, and of all others only how many there are.

use std::collections::BTreeMap;

use clap::ValueEnum;
use serde_json::Value;

use super::view::{self, about, recipient, vietnam};

/// So many recipients, and entries of one kind, are shown one by one.
pub const FEW: usize = 20;
/// The same in a shortened timeline.
const FEW_EVENTS: usize = 3;

/// Where a recipient stands with a dispatch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Standing {
    /// The exchange has it, the recipient's node does not.
    Waiting,
    HandedOver,
    /// An officer of the recipient has opened it.
    Opened,
    /// 03.
    Registered,
    /// 02: returned with a reason.
    Refused,
    /// Recalled before it was handed over.
    Withdrawn,
    Failed,
    /// Handed over, and neither registered nor refused in time.
    NoAnswer,
    /// Recalled, and not answered.
    AskedBack,
    /// 15.
    GivenBack,
    /// 16.
    NotGivenBack,
}

/// Those that the sender has to know by name, the worst first.
const NEEDS_ATTENTION: [Standing; 7] = [
    Standing::Failed,
    Standing::Refused,
    Standing::Withdrawn,
    Standing::NotGivenBack,
    Standing::AskedBack,
    Standing::NoAnswer,
    Standing::Waiting,
];

impl Standing {
    fn word(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether a delivery, or the reception by one agency here, stands so.
    pub fn is_of(self, delivery: &Value) -> bool {
        match self {
            Self::NoAnswer => !delivery["no_answer"].is_null(),
            Self::AskedBack => delivery["recall"] == "asked",
            Self::GivenBack => delivery["recall"] == "agreed",
            Self::NotGivenBack => delivery["recall"] == "declined",
            _ => delivery["state"] == self.word(),
        }
    }
}

/// Whether these are too many to be shown one by one.
pub fn are_many(list: &Value) -> bool {
    list.as_array().is_some_and(|list| list.len() > FEW)
}

/// `3 waiting, 4 refused; 2 of them without an answer in time`
pub fn counts(outgoing: &Value) -> String {
    let count = |count: &Value| format!("{} {}", count["count"], count["state"].as_str().unwrap_or_default());
    let words: Vec<String> = outgoing["counts"].as_array().into_iter().flatten().map(count).collect();
    match outgoing["no_answer"].as_u64() {
        None | Some(0) => words.join(", "),
        Some(late) => format!("{}; {late} of them without an answer in time", words.join(", ")),
    }
}

/// How many there are in each state, and the first of those that need attention.
pub fn deliveries(outgoing: &Value) -> String {
    let all: Vec<&Value> = outgoing["deliveries"].as_array().into_iter().flatten().collect();
    // Of what the exchange does not have, one reason is there for all.
    if outgoing["state"] != "accepted" {
        return format!("  {} recipients\n", all.len());
    }
    let mut words = format!("  {} recipients: {}\n", all.len(), counts(outgoing));
    for standing in NEEDS_ATTENTION {
        let name = standing.word();
        words +=
            &group(&name, all.iter().copied().filter(|delivery| standing.is_of(delivery)), &format!("--state {name}"));
    }
    words
}

/// The same of the agencies here that received it.
pub fn receptions(incoming: &Value) -> String {
    let all: Vec<&Value> = incoming.as_array().into_iter().flatten().collect();
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for one in &all {
        *states.entry(one["state"].as_str().unwrap_or_default()).or_default() += 1;
    }
    let states: Vec<String> = states.into_iter().map(|(state, count)| format!("{count} {state}")).collect();
    let waiting = all.iter().copied().filter(|one| !one["waiting"].is_null());
    format!("received by {} agencies here: {}\n", all.len(), states.join(", "))
        + &group("to be answered", waiting, "--all")
}

fn group<'a>(name: &str, members: impl Iterator<Item = &'a Value>, more: &str) -> String {
    let members: Vec<&Value> = members.collect();
    if members.is_empty() {
        return String::new();
    }
    let mut words = format!("  {name}: {}\n", members.len());
    for member in members.iter().take(FEW) {
        words += &format!("    {}\n", recipient(member));
    }
    if let Some(others @ 1..) = members.len().checked_sub(FEW) {
        words += &format!("    and {others} others, see {more}\n");
    }
    words
}

/// A timeline in which an event that came more than a few times is one line, where it first came.
pub fn timeline(entries: &Value) -> String {
    let mut found: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for entry in entries.as_array().into_iter().flatten() {
        found.entry(entry["event"].as_str().unwrap_or_default()).or_default().push(entry);
    }
    let time = |entry: &Value| vietnam(entry["time"].as_str().unwrap_or_default());
    let mut words = String::new();
    for entry in entries.as_array().into_iter().flatten() {
        let event = entry["event"].as_str().unwrap_or_default();
        let same = found.get(event).map(Vec::as_slice).unwrap_or_default();
        match same {
            [first, .., last] if same.len() > FEW_EVENTS => {
                if std::ptr::eq(*first, entry) {
                    let times = format!("{} times", same.len());
                    words += &format!("{}  {times:<14} {event}, the last one {}\n", time(first), time(last));
                }
            }
            _ => words += &view::event(entry),
        }
    }
    words
}

/// What was sent about it since; of many of one kind the first.
pub fn related(list: &Value) -> String {
    let mut seen: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let mut words = String::new();
    for one in list.as_array().into_iter().flatten() {
        let text = |key: &str| one[key].as_str().unwrap_or_default();
        let count = seen.entry((text("kind"), text("code"))).or_default();
        *count += 1;
        if *count <= FEW {
            words += &format!("{}\n", about(one));
        }
    }
    for ((kind, code), count) in seen {
        if let Some(others @ 1..) = count.checked_sub(FEW) {
            let code = if code.is_empty() { String::new() } else { format!(" {code}") };
            words += &format!("and {others} others of kind {kind}{code}, see --all\n");
        }
    }
    words
}
