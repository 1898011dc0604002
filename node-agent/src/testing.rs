//! What several tests of this crate start from.

use docaxis_protocol::envelope::{self, Envelope, Kind, Sender};
use docaxis_protocol::{DispatchId, Timestamp};

/// An envelope without parts.
pub fn envelope(from: &str, to: &[&str]) -> Envelope {
    let created = Timestamp::from_unix_ms(1_795_318_200_123);
    Envelope {
        kind_of_bytes: envelope::TYPE.into(),
        exchange: "docaxis.example/vn".parse().unwrap(),
        id: DispatchId::from_parts(created, [1; 10]),
        created,
        expires: created.plus(std::time::Duration::from_secs(3600)),
        sender: Sender { agency: from.parse().unwrap(), node: "g22".parse().unwrap() },
        recipients: to.iter().map(|code| code.parse().unwrap()).collect(),
        kind: Kind::New,
        priority: 0,
        not_before: None,
        document: serde_json::Map::new(),
        relates: vec![],
        status: None,
        parts: vec![],
        encryption: None,
        salt: "AAAAAAAAAAAAAAAAAAAAAA==".into(),
    }
}
