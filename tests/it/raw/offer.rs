//! The recipient's side: an offer, its bodies, and what the recipient states about it.

use docaxis_protocol::frame::{Class, Frame, Need, Offer, Outcome};
use docaxis_protocol::{Digest, DispatchId, Envelope, Event, Reason, SealedStatement, Statement};

use super::{RawNode, Stream};
use crate::net::{code, now};

pub struct Offered {
    pub stream: Stream,
    pub offer: Offer,
    pub envelope: Envelope,
    /// The bodies that came so far, by their index.
    pub bodies: Vec<Option<Vec<u8>>>,
}

impl Offered {
    pub async fn read(mut stream: Stream) -> Self {
        let offer = match stream.read(Class::Large).await {
            Frame::Offer(offer) => offer,
            other => panic!("{other:?} where an offer was due"),
        };
        let envelope = Envelope::parse(&offer.envelope.bytes).unwrap();
        let mut bodies = vec![None; envelope.parts.len()];
        for index in &offer.inline {
            let at = usize::from(*index);
            let size = usize::try_from(envelope.parts[at].size).unwrap();
            bodies[at] = Some(stream.read_raw(size).await.unwrap());
        }
        Self { stream, offer, envelope, bodies }
    }

    /// Asks for the bodies that did not come with the offer.
    pub async fn fetch_all(&mut self) {
        let missing = (0u16..).zip(&self.bodies).filter(|(_, body)| body.is_none());
        let parts: Vec<(u16, u64)> = missing.map(|(index, _)| (index, 0)).collect();
        if parts.is_empty() {
            return;
        }
        self.stream.write(&Frame::Need(Need { parts: parts.clone() })).await;
        for (index, _) in parts {
            let at = usize::from(index);
            let size = usize::try_from(self.envelope.parts[at].size).unwrap();
            self.bodies[at] = Some(self.stream.read_raw(size).await.unwrap());
        }
    }

    /// The bodies, all of which must have come.
    pub fn bytes(&self) -> Vec<Vec<u8>> {
        self.bodies.iter().map(|body| body.clone().expect("a body that came")).collect()
    }

    pub fn handover(&self, node: &RawNode) -> SealedStatement {
        self.state(node, Event::ContentHandover, &[])
    }

    pub fn state(&self, node: &RawNode, event: Event, reasons: &[Reason]) -> SealedStatement {
        let about = (self.envelope.id, self.offer.envelope.digest());
        node.state(self.offer.recipient.as_str(), about, event, reasons)
    }

    /// Sends the statement and reads what was recorded.
    pub async fn answer(&mut self, statement: &SealedStatement) -> Result<Outcome, Reason> {
        self.stream.write(&Frame::Handover(statement.clone())).await;
        match self.stream.read(Class::Large).await {
            Frame::Recorded(outcome) => Ok(outcome),
            Frame::Refused(refusal) => Err(refusal.reason),
            other => panic!("{other:?} in answer to Handover"),
        }
    }
}

impl RawNode {
    /// A statement under the seal of one of this node's agencies.
    pub fn state(
        &self,
        recipient: &str,
        (dispatch, envelope_sha256): (DispatchId, Digest),
        event: Event,
        reasons: &[Reason],
    ) -> SealedStatement {
        let statement = self.statement(recipient, (dispatch, envelope_sha256), event, reasons);
        self.seal_statement(recipient, &statement)
    }

    pub fn statement(
        &self,
        recipient: &str,
        (dispatch, envelope_sha256): (DispatchId, Digest),
        event: Event,
        reasons: &[Reason],
    ) -> Statement {
        Statement {
            kind_of_bytes: docaxis_protocol::statement::TYPE.into(),
            exchange: self.welcome.origin.clone(),
            event,
            dispatch,
            envelope_sha256,
            recipient: code(recipient),
            time: now(),
            reasons: reasons.to_vec(),
            acting: None,
        }
    }

    /// Seals a statement with the seal of any of this node's agencies.
    pub fn seal_statement(&self, agency: &str, statement: &Statement) -> SealedStatement {
        let (seal, chain) = self.seal_of(agency);
        SealedStatement::seal(statement, &seal.key, chain).unwrap()
    }
}
