//! Submissions for benchmarks of the store alone, without link, seals or signatures.

use std::time::Duration;

use docaxis_broker::store::{Acceptance, Body};
use docaxis_protocol::envelope::{Chain, SealedEnvelope};
use docaxis_protocol::evidence::PartDigest;
use docaxis_protocol::key::RawSignature;
use docaxis_protocol::{Digest, DispatchId, SignedEvidence, Timestamp};

/// A submission whose record takes about 4 KiB: an envelope, its seal and certificates, evidence, a small body.
pub fn submission(n: u64) -> Acceptance {
    let mut body = vec![0x55; 1_000];
    body[..8].copy_from_slice(&n.to_be_bytes());
    let body = Body { sha256: Digest::of(&body), bytes: body };
    let mut random = [0; 10];
    random[..8].copy_from_slice(&n.to_be_bytes());
    let now = Timestamp::from_unix_ms(1_795_318_200_000 + (n & 0xffff_ffff) as i64);
    let mut envelope = vec![b'e'; 1_000];
    envelope[..8].copy_from_slice(&n.to_be_bytes());
    let chain = Chain::from_ders([vec![1; 600], vec![2; 500]]);
    let envelope = SealedEnvelope { bytes: envelope, signature: RawSignature([7; 64]), chain };
    let mut evidence = vec![b'v'; 800];
    evidence[..8].copy_from_slice(&n.to_be_bytes());
    let recipient = format!("H{:02}.DN.{:03}", n % 63, (n >> 32) % 1000);
    Acceptance {
        sender: "000.00.00.G22".parse().expect("a code"),
        id: DispatchId::from_parts(now, random),
        node: "g22".parse().expect("a node"),
        accepted: now,
        expires: now.plus(Duration::from_secs(30 * 86_400)),
        priority: 0,
        envelope_sha256: envelope.digest(),
        envelope,
        parts: vec![PartDigest { sha256: body.sha256, size: 1_000 }],
        bodies: vec![body],
        evidence: SignedEvidence { bytes: evidence, signature: RawSignature([8; 64]) },
        recipients: vec![(recipient.parse().expect("a code"), None)],
    }
}
