//! Letters to send: an envelope that may be changed in any way, sealed as it then is.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use docaxis_protocol::envelope::{Sender, TYPE};
use docaxis_protocol::key::Context;
use docaxis_protocol::limits::{MAX_INLINE_BODY_BYTES, MAX_INLINE_TOTAL_BYTES};
use docaxis_protocol::{Digest, DispatchId, Envelope, Kind, Part, PartRole, SealedEnvelope};

use super::RawNode;
use crate::net::{code, node_id, now};

/// An envelope with its bodies, not sealed yet.
#[derive(Debug, Clone)]
pub struct Letter {
    pub envelope: Envelope,
    pub bodies: Vec<Vec<u8>>,
}

/// A sealed letter, ready to be submitted any number of times.
#[derive(Debug, Clone)]
pub struct Sealed {
    pub id: DispatchId,
    pub envelope: SealedEnvelope,
    pub bodies: Vec<Vec<u8>>,
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).unwrap();
    bytes
}

impl Letter {
    /// A letter with one part for each body.
    pub fn new(from: (&str, &str), to: &[&str], bodies: &[&[u8]]) -> Self {
        let (agency, node) = from;
        let created = now();
        let part = |(number, body): (usize, &&[u8])| Part {
            name: format!("part-{number}.pdf"),
            media_type: "application/pdf".into(),
            size: body.len() as u64,
            sha256: Digest::of(body),
            role: PartRole::Document,
        };
        let envelope = Envelope {
            kind_of_bytes: TYPE.into(),
            exchange: "docaxis.example/vn".parse().unwrap(),
            id: DispatchId::from_parts(created, random()),
            created,
            expires: created.plus(Duration::from_secs(86_400)),
            sender: Sender { agency: code(agency), node: node_id(node) },
            recipients: to.iter().map(|text| code(text)).collect(),
            partial: false,
            kind: Kind::New,
            priority: 0,
            not_before: None,
            document: Default::default(),
            relates: Vec::new(),
            status: None,
            parts: bodies.iter().enumerate().map(part).collect(),
            encryption: None,
            salt: STANDARD.encode(random::<16>()),
        };
        Self { envelope, bodies: bodies.iter().map(|body| body.to_vec()).collect() }
    }

    /// The same letter with something changed.
    pub fn but(mut self, change: impl FnOnce(&mut Envelope)) -> Self {
        change(&mut self.envelope);
        self
    }

    /// Sealed by the sending agency's own seal, which `node` holds.
    pub fn seal(&self, node: &RawNode) -> Sealed {
        let bytes = serde_json::to_vec(&self.envelope).unwrap();
        self.seal_bytes(node, self.envelope.sender.agency.as_str(), bytes)
    }

    /// Seals any bytes in place of the envelope's, with the seal of any agency of `node`.
    pub fn seal_bytes(&self, node: &RawNode, agency: &str, bytes: Vec<u8>) -> Sealed {
        let (seal, chain) = node.seal_of(agency);
        let signature = seal.key.sign(Context::Envelope, &bytes);
        let envelope = SealedEnvelope { bytes, signature, chain };
        Sealed { id: self.envelope.id, envelope, bodies: self.bodies.clone() }
    }
}

impl Sealed {
    /// The bodies that may be sent at once.
    pub fn inline(&self) -> Vec<u16> {
        let mut total = 0;
        let mut inline = Vec::new();
        for (index, body) in (0u16..).zip(&self.bodies) {
            if body.len() <= MAX_INLINE_BODY_BYTES && total + body.len() <= MAX_INLINE_TOTAL_BYTES {
                total += body.len();
                inline.push(index);
            }
        }
        inline
    }
}
