//! Who plays: which agencies there are, and at which of the three nodes. The senders of documents are at the first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use docaxis_node_agent::gateway::edxml::{self, Limits, Message, Mode};
use docaxis_protocol::{AgencyCode, Kind};

use super::letters;
use super::scenarios::{COMMUNES, Scenario, commune};
use crate::out::Failure;

/// The three nodes: the Government Office, a province that acts for two of its departments, a ministry.
pub const NODES: [&str; 3] = ["g22", "h37", "g09"];

/// A file of the story.
#[derive(Debug, Clone)]
pub struct Script {
    pub file: PathBuf,
    /// Where it is imported: its sender's node.
    pub node: usize,
    /// Whether it opens the story; recalls, statuses and the like come when documents have arrived.
    pub first: bool,
}

pub struct Cast {
    /// Each agency's name and the index of its node.
    pub agencies: BTreeMap<AgencyCode, (String, usize)>,
    /// The files in order.
    pub files: Vec<Script>,
}

impl Cast {
    /// The built-in letter's cast.
    pub fn built_in(letter: PathBuf) -> Result<Self, Failure> {
        Ok(Self { agencies: built_in()?, files: vec![Script { file: letter, node: 0, first: true }] })
    }

    /// The built-in cast; for the circular, communes at the province's node as well.
    pub fn of_scenario(scenario: Scenario) -> Result<Self, Failure> {
        let mut agencies = built_in()?;
        let communes = if scenario == Scenario::Circular { COMMUNES } else { 0 };
        for (code, name) in (0..communes).map(commune) {
            agencies.insert(code.parse().map_err(|e| Failure::other(format!("{e}")))?, (name, 1));
        }
        Ok(Self { agencies, files: vec![] })
    }

    /// Every agency that the files name. A file that does not read names none, and is imported at the first node, which
    /// will say what is wrong with it.
    pub fn of_files(files: &[PathBuf]) -> Self {
        let read = |file: &PathBuf| {
            let bytes = std::fs::read(file).ok()?;
            edxml::import(&bytes, Mode::Lenient, &Limits::default()).ok()
        };
        let messages: Vec<Option<Message>> = files.iter().map(read).collect();
        let (mut senders, mut others) = (BTreeSet::new(), BTreeSet::new());
        for message in messages.iter().flatten() {
            match message {
                Message::Document(document) => {
                    senders.insert(document.sender.code.clone());
                    others.extend(document.recipients.iter().map(|organ| organ.code.clone()));
                }
                Message::Status(status) => others.extend([status.sender.code.clone(), status.to.clone()]),
            }
        }
        let mut agencies = BTreeMap::new();
        for code in &senders {
            agencies.insert(code.clone(), (format!("agency {code}"), 0));
        }
        for (n, code) in others.difference(&senders).enumerate() {
            agencies.insert(code.clone(), (format!("agency {code}"), 1 + n % (NODES.len() - 1)));
        }
        // Where no file is a document of anybody, the first node still plays, for the agency that it is named after.
        if !agencies.values().any(|(_, node)| *node == 0)
            && let Ok(code) = letters::AGENCIES[0].0.parse()
        {
            agencies.insert(code, (letters::AGENCIES[0].1.to_owned(), 0));
        }
        let node_of = |message: &Option<Message>| {
            let sender = match message {
                Some(Message::Document(document)) => &document.sender.code,
                Some(Message::Status(status)) => &status.sender.code,
                None => return 0,
            };
            agencies.get(sender).map_or(0, |(_, node)| *node)
        };
        let is_about_another = |message: &Option<Message>| match message {
            Some(Message::Document(document)) => document.kind != Kind::New,
            Some(Message::Status(_)) => true,
            None => false,
        };
        let script = |(file, message): (&PathBuf, &Option<Message>)| Script {
            file: file.clone(),
            node: node_of(message),
            first: node_of(message) == 0 && !is_about_another(message),
        };
        let files = files.iter().zip(&messages).map(script).collect();
        Self { agencies, files }
    }

    /// The agencies of one node, in order.
    pub fn of_node(&self, node: usize) -> Vec<AgencyCode> {
        self.agencies.iter().filter(|(_, (_, at))| *at == node).map(|(code, _)| code.clone()).collect()
    }

    pub fn node_of(&self, agency: &AgencyCode) -> Option<usize> {
        self.agencies.get(agency).map(|(_, node)| *node)
    }
}

fn built_in() -> Result<BTreeMap<AgencyCode, (String, usize)>, Failure> {
    let mut agencies = BTreeMap::new();
    for (code, name, node) in letters::AGENCIES {
        agencies.insert(code.parse().map_err(|e| Failure::other(format!("{e}")))?, (name.to_owned(), node));
    }
    Ok(agencies)
}
