//! A small exchange for tests: seals a dispatch, signs evidence, keeps a log, and puts bundles together.

#![allow(clippy::unwrap_used, reason = "a fixture that cannot be built ends the test")]

use std::time::Duration;

use docaxis_protocol::bundle::{BundleContents, BundleEvidence, BundleKeys, SignedSuccession};
use docaxis_protocol::chain::{SEALS_CA_URI, one_certificate};
use docaxis_protocol::envelope::{Chain, Relation, Sender};
use docaxis_protocol::evidence::{Cause, PartDigest, StatementInEvidence};
use docaxis_protocol::key::{Context, SecretKey};
use docaxis_protocol::tlog::merkle::{self, ProofError, Subtree};
use docaxis_protocol::tlog::{Checkpoint, KeyKind, TlogProof, VerifierKey, cosignature, leaf_hash};
use docaxis_protocol::{
    AgencyCode, Digest, DispatchId, Envelope, Event, Evidence, Kind, Origin, Part, PartRole, Reason, SealedEnvelope,
    SealedStatement, SignedEvidence, Statement, Timestamp, envelope, evidence, statement,
};

use crate::authority::{Ca, Seal, Wish, YEAR, at};

pub const SENDER: &str = "000.00.00.G22";
pub const RECEIVER: &str = "H37.DN.001";
pub const SUCCESSOR: &str = "H37.DN.002";
pub const ORIGIN: &str = "docaxis.example/test";

/// One event after the acceptance.
#[derive(Clone)]
pub struct Step {
    pub event: Event,
    pub seconds: i64,
    pub reason: Option<&'static str>,
    /// The recipient's sealed word, where the event does not ask for it anyway.
    pub stated: bool,
    pub late: bool,
    pub acting: bool,
}

impl Step {
    pub fn at(event: Event, seconds: i64) -> Self {
        Self { event, seconds, reason: None, stated: event.is_countersigned(), late: false, acting: false }
    }

    pub fn because(self, code: &'static str) -> Self {
        Self { reason: Some(code), ..self }
    }
}

pub struct Exchange {
    pub root: Ca,
    seals: Ca,
    sender: Seal,
    receiver: Seal,
    successor: Seal,
    evidence: Seal,
    log: Seal,
    directory: Seal,
    witness: SecretKey,
}

impl Exchange {
    pub fn new() -> Self {
        let root = Ca::root("authority");
        let seals = root.issue_ca("seals", &Wish { until: at(5 * YEAR), ..Wish::named(SEALS_CA_URI) });
        let issue = |seed: u8, uri: String| seals.issue(seed, &Wish::named(&uri));
        Self {
            sender: issue(1, format!("docaxis://agency/{SENDER}")),
            receiver: issue(2, format!("docaxis://agency/{RECEIVER}")),
            successor: issue(3, format!("docaxis://agency/{SUCCESSOR}")),
            evidence: issue(4, format!("docaxis://evidence/{ORIGIN}")),
            log: issue(5, format!("docaxis://log/{ORIGIN}")),
            directory: issue(6, format!("docaxis://directory/{ORIGIN}")),
            witness: SecretKey::from_seed(&[7; 32]),
            root,
            seals,
        }
    }

    pub fn witness_key(&self) -> VerifierKey {
        VerifierKey::new("witness.example/h37", KeyKind::Cosignature, self.witness.public()).unwrap()
    }

    pub fn log_key(&self) -> VerifierKey {
        VerifierKey::new(ORIGIN, KeyKind::Ed25519, self.log.secret.public()).unwrap()
    }

    fn letter(&self, kind: Kind, random: u8) -> Envelope {
        let mut document = serde_json::Map::new();
        document.insert("Subject".into(), "V/v <giao nhận> & \"kiểm tra\"".into());
        Envelope {
            kind_of_bytes: envelope::TYPE.into(),
            exchange: origin(),
            id: DispatchId::from_parts(at(10), [random; 10]),
            created: at(10),
            expires: at(9000),
            sender: Sender { agency: code(SENDER), node: "g22".parse().unwrap() },
            recipients: vec![code(RECEIVER)],
            partial: false,
            kind,
            priority: 0,
            not_before: None,
            document,
            relates: vec![],
            status: None,
            parts: vec![Part {
                name: "công văn.pdf".into(),
                media_type: "application/pdf".into(),
                size: 17,
                sha256: Digest::of(b"%PDF-1.4 a letter"),
                role: PartRole::Document,
            }],
            encryption: None,
            salt: "AAAAAAAAAAAAAAAAAAAAAA==".into(),
        }
    }

    fn seal(&self, envelope: &Envelope) -> SealedEnvelope {
        SealedEnvelope::seal(envelope, &self.sender.secret, Chain::from_ders([der(&self.sender.pem)])).unwrap()
    }

    /// A bundle of a dispatch that was accepted, and then these steps.
    pub fn accepted(&self, steps: &[Step]) -> BundleContents {
        self.contents(Event::SubmissionAcceptance, steps)
    }

    pub fn rejected(&self) -> BundleContents {
        self.contents(Event::SubmissionRejection, &[])
    }

    fn contents(&self, first: Event, steps: &[Step]) -> BundleContents {
        let letter = self.letter(Kind::New, 1);
        let sealed = self.seal(&letter);
        let recall = self.recall(letter.id);
        let mut first = Step::at(first, 11);
        if first.event == Event::SubmissionRejection {
            first.reason = Some("unknown-recipient");
        }
        let mut signed: Vec<(SignedEvidence, Option<Vec<u8>>)> = Vec::new();
        let mut failure = None;
        for (n, step) in std::iter::once(&first).chain(steps).enumerate() {
            let mut evidence = self.evidence(step, &letter, &sealed, signed.last().map(|(e, _)| e.digest()), n);
            if step.reason == Some("withdrawn") {
                evidence.cause = Some(Cause { dispatch: recall.0, envelope_sha256: recall.1.digest() });
            }
            if step.late {
                evidence.late = true;
                evidence.outcome = failure;
            }
            if step.event == Event::ContentHandoverFailure {
                failure = Some(evidence.id);
            }
            let seal = step.stated.then(|| der(&self.recipient(step).pem));
            signed.push((SignedEvidence::sign(&evidence, &self.evidence.secret).unwrap(), seal));
        }
        let acting = steps.iter().any(|step| step.acting);
        let withdrawn = steps.iter().any(|step| step.reason == Some("withdrawn"));
        BundleContents {
            envelope: sealed,
            evidence: self.logged(signed),
            cause: withdrawn.then_some(recall.1),
            successions: if acting { vec![self.succession()] } else { vec![] },
            keys: BundleKeys {
                root: der(&self.root.pem),
                seals_cas: vec![der(&self.seals.pem)],
                evidence: vec![der(&self.evidence.pem)],
                log: der(&self.log.pem),
                directory: acting.then(|| der(&self.directory.pem)),
                crls: vec![self.seals.crl(&[(99, at(0))]).into_bytes()],
            },
            witnesses: vec![self.witness_key()],
            quorum: 1,
        }
    }

    fn recall(&self, of: DispatchId) -> (DispatchId, SealedEnvelope) {
        let mut recall = self.letter(Kind::Recall, 2);
        recall.parts.clear();
        recall.relates = vec![Relation { rel: "recalls".into(), dispatch: of, document_id: None }];
        (recall.id, self.seal(&recall))
    }

    fn recipient(&self, step: &Step) -> &Seal {
        if step.acting { &self.successor } else { &self.receiver }
    }

    fn evidence(
        &self,
        step: &Step,
        letter: &Envelope,
        sealed: &SealedEnvelope,
        previous: Option<Digest>,
        n: usize,
    ) -> Evidence {
        let submission = step.event.is_submission();
        let reasons: Vec<Reason> =
            step.reason.iter().map(|code| Reason { code: (*code).into(), text: "vì vậy".into() }).collect();
        let mut said = None;
        if step.stated {
            let words = Statement {
                kind_of_bytes: statement::TYPE.into(),
                exchange: origin(),
                event: step.event,
                dispatch: letter.id,
                envelope_sha256: sealed.digest(),
                recipient: code(RECEIVER),
                time: at(step.seconds),
                reasons: reasons.clone(),
                acting: step.acting.then(|| code(SUCCESSOR)),
            };
            let secret = &self.recipient(step).secret;
            let sealed = SealedStatement::seal(&words, secret, Chain::default()).unwrap();
            said = Some(StatementInEvidence::new(&sealed, &secret.public()));
        }
        Evidence {
            kind_of_bytes: evidence::TYPE.into(),
            id: DispatchId::from_parts(at(step.seconds), [u8::try_from(n).unwrap(); 10]),
            event: step.event,
            uri: step.event.uri(),
            time: at(step.seconds),
            issuer: origin(),
            key: self.evidence.secret.public().id(),
            policy: "https://docaxis.example/policy".into(),
            dispatch: letter.id,
            envelope_sha256: sealed.digest(),
            sender: code(SENDER),
            recipient: (!submission).then(|| code(RECEIVER)),
            recipients: if submission { letter.recipients.clone() } else { vec![] },
            parts: letter.parts.iter().map(|p| PartDigest { sha256: p.sha256, size: p.size }).collect(),
            submitted: None,
            expires: None,
            reasons,
            statement: said,
            cause: None,
            acting: step.acting.then(|| code(SUCCESSOR)),
            late: false,
            outcome: None,
            previous,
            salt: "AAAAAAAAAAAAAAAAAAAAAA==".into(),
        }
    }

    /// The leaves of the log in which these pieces stand: others before and after them.
    pub fn leaves(&self, entries: impl IntoIterator<Item = Digest>) -> Vec<Digest> {
        let noise = |n: u8| leaf_hash(&Digest::of(&[n]).0);
        let own = entries.into_iter().map(|entry| leaf_hash(&entry.0));
        (0..3).map(noise).chain(own).chain((3..6).map(noise)).collect()
    }

    fn logged(&self, signed: Vec<(SignedEvidence, Option<Vec<u8>>)>) -> Vec<BundleEvidence> {
        let leaves = self.leaves(signed.iter().map(|(evidence, _)| evidence.log_entry()));
        let prove = |(n, (signed, seal)): (usize, _)| {
            let index = u64::try_from(n).unwrap() + 3;
            BundleEvidence { signed, proof: self.proof(index, &leaves), seal }
        };
        signed.into_iter().enumerate().map(prove).collect()
    }

    pub fn checkpoint(&self, leaves: &[Digest]) -> String {
        let size = u64::try_from(leaves.len()).unwrap();
        let checkpoint = Checkpoint { origin: ORIGIN.into(), size, root: merkle::root(leaves) };
        let mut note = checkpoint.sign(&self.log_key(), &self.log.secret);
        let time_s = u64::try_from(at(20_000).unix_s()).unwrap();
        let line = cosignature::cosign(&self.witness_key(), &self.witness, &note.text, time_s);
        note.signatures.push(line);
        note.to_string()
    }

    fn proof(&self, index: u64, leaves: &[Digest]) -> String {
        let read = |s: Subtree| {
            let place = |n: u64| usize::try_from(n << s.level).unwrap();
            Ok::<_, ProofError>(merkle::root(&leaves[place(s.index)..place(s.index + 1)]))
        };
        let path = merkle::inclusion_path(index, u64::try_from(leaves.len()).unwrap(), read).unwrap();
        TlogProof { extra: None, index, path, checkpoint: self.checkpoint(leaves) }.to_string()
    }

    fn succession(&self) -> SignedSuccession {
        let bytes = format!(
            r#"{{"type":"docaxis/succession@1","exchange":"{ORIGIN}","agency":"{RECEIVER}","successor":"{SUCCESSOR}","since":"{}"}}"#,
            Timestamp::minus(at(10), Duration::from_secs(5))
        )
        .into_bytes();
        let signature = self.directory.secret.sign(Context::Succession, &bytes);
        SignedSuccession { agency: code(RECEIVER), bytes, signature }
    }
}

pub fn der(pem: &str) -> Vec<u8> {
    one_certificate("the fixture's", pem.as_bytes()).unwrap().to_vec()
}

fn code(text: &str) -> AgencyCode {
    text.parse().unwrap()
}

fn origin() -> Origin {
    ORIGIN.parse().unwrap()
}
