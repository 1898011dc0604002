//! What tests send and what they find: letters with parts, compared by name, size and the digest of the bytes read.

use docaxis_node_agent::{Draft, DraftPart, Source};
use docaxis_protocol::{Digest, DispatchId, PartRole};
use serde_json::json;

/// A document before it is sent.
#[derive(Debug, Clone)]
pub struct Letter {
    pub subject: String,
    pub priority: u8,
    /// Names and bodies.
    pub parts: Vec<(String, Vec<u8>)>,
}

/// A plain letter of one page.
pub fn letter() -> Letter {
    Letter {
        subject: "Về việc kết nối trục liên thông văn bản".into(),
        priority: 0,
        parts: vec![("cong-van.pdf".into(), b"%PDF-1.7 one page".to_vec())],
    }
}

impl Letter {
    pub fn about(self, subject: impl Into<String>) -> Self {
        Self { subject: subject.into(), ..self }
    }

    /// One more part, whose bytes follow from its name and size alone.
    pub fn with_part(mut self, name: &str, size: usize) -> Self {
        self.parts.push((name.into(), bytes_of(name, size)));
        self
    }

    pub(super) fn fill(&self, draft: &mut Draft) {
        draft.priority = self.priority;
        draft.document = json!({ "Subject": self.subject, "secret": false }).as_object().cloned().unwrap();
        let part = |(name, bytes): &(String, Vec<u8>)| DraftPart {
            name: name.clone(),
            media_type: "application/pdf".into(),
            role: PartRole::Document,
            source: Source::Bytes(bytes.clone()),
        };
        draft.parts = self.parts.iter().map(part).collect();
    }
}

/// Bytes that do not repeat, so that a shifted or doubled chunk shows.
fn bytes_of(name: &str, size: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(size + 32);
    let mut block = Digest::of(name.as_bytes());
    while bytes.len() < size {
        bytes.extend_from_slice(block.as_bytes());
        block = Digest::of(block.as_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// A letter that was queued.
#[derive(Debug, Clone)]
pub struct Sent {
    pub id: DispatchId,
    pub from: String,
    pub to: Vec<String>,
    pub letter: Letter,
}

impl Sent {
    /// What each recipient must find.
    pub fn received(&self) -> Received {
        Received::new(self.id, &self.from, &self.letter.subject, self.letter.parts.iter().cloned())
    }
}

/// A letter as a recipient finds it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Received {
    pub id: DispatchId,
    pub from: String,
    pub subject: String,
    /// Name, size and SHA-256 of the bytes as they were read.
    pub parts: Vec<(String, usize, Digest)>,
}

impl Received {
    pub fn new(id: DispatchId, from: &str, subject: &str, parts: impl IntoIterator<Item = (String, Vec<u8>)>) -> Self {
        let parts = parts.into_iter().map(|(name, bytes)| (name, bytes.len(), Digest::of(&bytes)));
        Self { id, from: from.into(), subject: subject.into(), parts: parts.collect() }
    }
}
