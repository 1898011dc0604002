//! What each piece of evidence must say and prove, in the order of its chain.
//!
//! [`Walk`] carries what earlier pieces established: the state of every recipient, the leaves already taken.

use std::collections::BTreeMap;

use super::doc::Doc;
use super::verify::{Bundle, Failure, LogFacts, Record, need};
use crate::chain::CertifiedKey;
use crate::digest::Digest;
use crate::evidence::{self, Event};
use crate::key::Context;
use crate::limits::MAX_CLOCK_SKEW;
use crate::time::Timestamp;
use crate::tlog::proof::TlogProof;
use crate::tlog::{leaf_hash, unbase64};

/// Reasons for which a recipient's node refuses: they need its own signed word.
const NODE_REASONS: [&str; 3] = ["bad-seal", "digest-mismatch", "wrong-addressee"];

/// How far one recipient's chain has come.
#[derive(Clone)]
struct State {
    event: Option<Event>,
    time: Timestamp,
    /// The id of the failure that a late handover must name.
    failure: Option<String>,
}

pub(super) struct Walk<'a> {
    bundle: &'a Bundle<'a>,
    log: Option<&'a LogFacts>,
    states: BTreeMap<String, State>,
    /// Leaves that were claimed, the newest leaf of each chain, and the root of each tree size.
    leaves: BTreeMap<u64, String>,
    heads: BTreeMap<Option<String>, u64>,
    roots: BTreeMap<u64, Digest>,
}

/// What is common to the rules of one piece of evidence.
struct Piece<'a> {
    doc: &'a Doc,
    raw: &'a [u8],
    stem: &'a str,
    event: Event,
    who: Option<&'a str>,
    at: Timestamp,
    reasons: Vec<&'a str>,
}

impl<'a> Walk<'a> {
    pub(super) fn new(bundle: &'a Bundle<'a>, log: Option<&'a LogFacts>) -> Self {
        Self {
            bundle,
            log,
            states: BTreeMap::new(),
            leaves: BTreeMap::new(),
            heads: BTreeMap::new(),
            roots: BTreeMap::new(),
        }
    }

    pub(super) fn states(&self) -> BTreeMap<String, String> {
        let named = |state: &State| state.event.map_or_else(String::new, |event| event.to_string());
        self.states.iter().map(|(who, state)| (who.clone(), named(state))).collect()
    }

    /// Checks one piece; returns where it stands in the log.
    pub(super) fn one(&mut self, name: &str) -> Result<String, Failure> {
        let bundle = self.bundle;
        let record = bundle.records.get(name).ok_or_else(|| Failure::Missing { name: name.to_owned() })?;
        let piece = Piece::of(name, record)?;
        need(piece.doc.text("issuer")? == bundle.issuer, || "it is of another issuer".into())?;
        let signature = self.signature(&piece)?;
        let about = piece.doc.text("envelope_sha256")?;
        need(about == bundle.envelope_digest.to_string(), || "the evidence is about another envelope".into())?;
        need(piece.event.is_negative() != piece.reasons.is_empty(), || {
            "reasons must stand on negative evidence, and only there".into()
        })?;
        if let Some(envelope) = &bundle.envelope {
            self.against_envelope(&piece, envelope)?;
        }
        if piece.doc.get("statement").is_some() || piece.event.is_countersigned() {
            self.statement(&piece)?;
        }
        self.in_log(&piece, name, signature)
    }

    /// The evidence key's signature; returns its bytes.
    fn signature(&self, piece: &Piece<'_>) -> Result<&'a [u8], Failure> {
        let bundle = self.bundle;
        let id = piece.doc.text("key")?;
        let certificate = format!("keys/evidence-{id}.pem");
        let key = bundle.certified(&certificate, &format!("docaxis://evidence/{}", bundle.issuer), &[piece.at])?;
        need(key.key().id().to_string() == id, || "the evidence names another key".into())?;
        let beside = format!("keys/evidence-{id}.pub.pem");
        if let Some(pem) = bundle.files.get(&beside) {
            need(public_key_der(pem).as_deref() == Some(key.spki()), || format!("{beside} is another key"))?;
        }
        let name = format!("{}.sig", piece.stem);
        let signature = bundle.file(&name)?;
        bundle.signed(&key, Context::Plain, (&format!("{}.json", piece.stem), piece.raw), (&name, signature))?;
        Ok(signature)
    }

    fn against_envelope(&mut self, piece: &Piece<'_>, envelope: &Doc) -> Result<(), Failure> {
        let Piece { doc, event, at, .. } = piece;
        let (id, sender) = (envelope.text("id")?, envelope.text("sender.agency")?);
        need(doc.text("dispatch")? == id && doc.text("sender")? == sender, || {
            "the evidence is about another dispatch or sender".into()
        })?;
        need(doc.parts()? == envelope.parts()?, || "the evidence lists other parts".into())?;
        let expires = envelope.time("expires")?;
        let Some(who) = piece.who else {
            let sorted = |doc: &Doc| {
                doc.texts("recipients").map(|codes| {
                    let mut codes: Vec<String> = codes.into_iter().map(str::to_owned).collect();
                    codes.sort_unstable();
                    codes
                })
            };
            need(*event == Event::SubmissionAcceptance && sorted(doc)? == sorted(envelope)?, || {
                "the evidence lists other recipients".into()
            })?;
            return need(envelope.time("created")?.minus(MAX_CLOCK_SKEW) <= *at && *at < expires, || {
                "accepted before it was made or after it expired".into()
            });
        };
        need(envelope.texts("recipients")?.contains(&who), || format!("{who} is no recipient of this dispatch"))?;
        let start = State { event: None, time: self.bundle.accepted, failure: None };
        let state = self.states.get(who).cloned().unwrap_or(start);
        need(*at >= state.time.minus(MAX_CLOCK_SKEW), || "time runs backwards along the chain".into())?;
        let next = if doc.given("late").is_some() {
            late(piece, &state)?
        } else {
            self.in_turn(piece, &state, envelope, expires)?
        };
        self.states.insert(who.to_owned(), next);
        Ok(())
    }

    /// An event that is not late: may it follow, and at this time?
    fn in_turn(&self, piece: &Piece<'_>, state: &State, envelope: &Doc, expires: Timestamp) -> Result<State, Failure> {
        let Piece { doc, event, at, reasons, .. } = piece;
        need(may_follow(state.event, *event), || {
            let before = state.event.map_or("the acceptance", Event::as_str);
            format!("{event} cannot follow {before}")
        })?;
        if *event == Event::ContentHandover {
            need(*at <= expires.plus(MAX_CLOCK_SKEW), || "handed over after it expired, and not marked late".into())?;
        }
        if reasons.contains(&"expired") {
            need(*at >= expires, || "expired before its time".into())?;
        }
        let mut failure = state.failure.clone();
        if *event == Event::ContentHandoverFailure {
            let by_node = reasons.iter().any(|code| NODE_REASONS.contains(code));
            need(!by_node || doc.get("statement").is_some(), || "a node's refusal needs the node's statement".into())?;
            if reasons.contains(&"withdrawn") {
                self.cause(doc, envelope)?;
            }
            failure = Some(doc.text("id")?.to_owned());
        }
        // Opening a document after the answer is recorded and changes nothing.
        let answered = matches!(state.event, Some(Event::Registered | Event::NoAnswer));
        if *event == Event::ContentAccessTracking && answered {
            return Ok(state.clone());
        }
        Ok(State { event: Some(*event), time: *at, failure })
    }

    /// The recall for which a dispatch was withdrawn.
    fn cause(&self, doc: &Doc, envelope: &Doc) -> Result<(), Failure> {
        let bundle = self.bundle;
        let raw = bundle.file("cause/envelope.json")?;
        need(doc.text("cause.envelope_sha256")? == Digest::of(raw).to_string(), || {
            "the cause is another envelope".into()
        })?;
        let recall = Doc::parse("cause/envelope.json", raw)?;
        let sender = recall.text("sender.agency")?;
        let id = envelope.text("id")?;
        let recalls = recall.list("relates")?.iter().any(|relation| {
            let is = |field: &str, text: &str| relation.get(field).and_then(|value| value.as_str()) == Some(text);
            is("rel", "recalls") && is("dispatch", id)
        });
        let right = recall.text("kind")? == "recall"
            && sender == envelope.text("sender.agency")?
            && recall.text("exchange")? == envelope.text("exchange")?;
        need(right && recalls, || "the cause is no recall of this dispatch by its sender".into())?;
        let uri = format!("docaxis://agency/{sender}");
        let key = bundle.certified("cause/envelope.pem", &uri, &[recall.time("created")?])?;
        let signature = bundle.file("cause/envelope.sig")?;
        bundle.signed(&key, Context::Envelope, ("cause/envelope.json", raw), ("cause/envelope.sig", signature))
    }

    /// The recipient's own sealed word.
    fn statement(&self, piece: &Piece<'_>) -> Result<(), Failure> {
        let bundle = self.bundle;
        let said = field_bytes(piece.doc, "statement.bytes")?;
        let signature = field_bytes(piece.doc, "statement.signature")?;
        let key = self.key_of_recipient(piece)?;
        need(piece.doc.text("statement.key")? == key.key().id().to_string(), || {
            "the statement names another key".into()
        })?;
        let (bytes_name, signature_name) =
            (format!("{}.statement.json", piece.stem), format!("{}.statement.sig", piece.stem));
        bundle.signed(&key, Context::Statement, (&bytes_name, &said), (&signature_name, &signature))?;
        let statement = Doc::parse(&bytes_name, &said)?;
        let same = |field: &str| Ok::<_, Failure>(statement.text(field)? == piece.doc.text(field)?);
        let right = statement.text("type")? == crate::statement::TYPE
            && statement.text("exchange")? == bundle.issuer
            && same("event")?
            && same("dispatch")?
            && statement.text("envelope_sha256")? == bundle.envelope_digest.to_string()
            && same("recipient")?;
        need(right, || "the statement says something else".into())?;
        need(statement.given("reasons") == piece.doc.given("reasons"), || "the statement gives other reasons".into())?;
        let when = statement.time("time")?;
        need(bundle.accepted.minus(MAX_CLOCK_SKEW) <= when && when <= piece.at.plus(MAX_CLOCK_SKEW), || {
            "the statement's time does not fit".into()
        })?;
        let files_agree = bundle.file(&bytes_name)? == said && bundle.file(&signature_name)? == signature;
        need(files_agree, || "the statement's files differ from the evidence".into())
    }

    /// The recipient's seal, or its successor's where the directory says who succeeded it.
    fn key_of_recipient(&self, piece: &Piece<'_>) -> Result<CertifiedKey, Failure> {
        let bundle = self.bundle;
        let who = piece.doc.text("recipient")?;
        let mut signer = who;
        if piece.doc.given("acting").is_some() {
            let acting = piece.doc.text("acting")?;
            let (name, signature_name) = (format!("directory/{who}.json"), format!("directory/{who}.sig"));
            let (raw, signature) = (bundle.file(&name)?, bundle.file(&signature_name)?);
            let uri = format!("docaxis://directory/{}", bundle.issuer);
            let key = bundle.certified("keys/directory.pem", &uri, &[piece.at])?;
            bundle.signed(&key, Context::Succession, (&name, raw), (&signature_name, signature))?;
            let succession = Doc::parse(&name, raw)?;
            let right = succession.text("agency")? == who
                && succession.text("successor")? == acting
                && succession.time("since")? <= piece.at;
            need(right, || "the succession says something else".into())?;
            signer = acting;
        }
        bundle.certified(&format!("{}.seal.pem", piece.stem), &format!("docaxis://agency/{signer}"), &[piece.at])
    }

    /// The proof that the evidence and its signature are in the log, in the order of their chain.
    fn in_log(&mut self, piece: &Piece<'_>, name: &str, signature: &[u8]) -> Result<String, Failure> {
        let bundle = self.bundle;
        let file = format!("{}.tlog-proof", piece.stem);
        let text = std::str::from_utf8(bundle.file(&file)?).map_err(|_| Failure::Rule(format!("{file} is no text")))?;
        let entry = Digest::of_pieces(&[piece.raw, signature]).0;
        let question = bundle.question;
        let proof = TlogProof::parse(text)?.verify(&entry, &bundle.log, &question.witnesses, question.quorum)?;
        need(!self.leaves.contains_key(&proof.index), || format!("leaf {} is claimed twice", proof.index))?;
        let root = *self.roots.entry(proof.size).or_insert(proof.root);
        need(root == proof.root, || format!("two roots for a tree of {}", proof.size))?;
        let chain = piece.who.map(str::to_owned);
        let before = self.heads.get(&chain).or_else(|| self.heads.get(&None));
        need(before.is_none_or(|before| *before < proof.index), || "leaf indexes do not grow along the chain".into())?;
        self.leaves.insert(proof.index, name.to_owned());
        self.heads.insert(chain, proof.index);
        if let Some(log) = self.log {
            log.agrees(proof.index, leaf_hash(&entry), proof.size, proof.root)?;
        }
        let first = proof.first_cosigned_s.map(|s| i64::try_from(s).unwrap_or(i64::MAX).saturating_mul(1000));
        need(first.is_none_or(|ms| Timestamp::from_unix_ms(ms) >= piece.at.minus(MAX_CLOCK_SKEW)), || {
            "a witness cosigned before the event's time".into()
        })?;
        Ok(format!("leaf {} of {}, cosigned by {}", proof.index, proof.size, proof.cosigned.len()))
    }
}

impl<'a> Piece<'a> {
    fn of(name: &'a str, record: &'a Record) -> Result<Self, Failure> {
        let doc = &record.doc;
        let stem = name.strip_suffix(".json").unwrap_or(name);
        need(doc.text("type")? == evidence::TYPE && record.raw.starts_with(evidence::FIRST_BYTES), || {
            "it is not evidence of version 1".into()
        })?;
        let spelled = doc.text("event")?;
        let event = Event::ALL.into_iter().find(|event| event.as_str() == spelled);
        let known = event.filter(|event| doc.text("uri").is_ok_and(|uri| uri == event.uri()));
        let event = known.ok_or_else(|| Failure::Rule(format!("unknown event {spelled:?}, or its URI is wrong")))?;
        let who = doc.optional_text("recipient")?;
        let tail = who.map_or_else(|| format!("-{event}"), |who| format!("-{event}-{who}"));
        // Names of members are six digits after "evidence/": only what follows them can be wrong.
        need(stem.get("evidence/000000".len()..) == Some(&tail), || {
            "the file's name does not match its content".into()
        })?;
        Ok(Self { doc, raw: &record.raw, stem, event, who, at: doc.time("time")?, reasons: doc.reason_codes()? })
    }
}

/// A handover that arrives after a failure: recorded, and nothing changes.
fn late(piece: &Piece<'_>, state: &State) -> Result<State, Failure> {
    let outcome = piece.doc.optional_text("outcome")?;
    let right = piece.event == Event::ContentHandover
        && state.event == Some(Event::ContentHandoverFailure)
        && outcome == state.failure.as_deref();
    need(right, || "late is only for a handover after a failure, which it must name".into())?;
    Ok(State { time: piece.at, ..state.clone() })
}

/// The order of events of one recipient (`None`: the dispatch was accepted).
fn may_follow(state: Option<Event>, event: Event) -> bool {
    use Event::*;
    match state {
        None => matches!(event, ContentHandover | ContentHandoverFailure),
        Some(ContentHandover) => matches!(event, ContentAccessTracking | Registered | Refused | NoAnswer),
        Some(ContentAccessTracking) => matches!(event, Registered | Refused | NoAnswer),
        Some(Registered) => matches!(event, ContentAccessTracking),
        Some(NoAnswer) => matches!(event, ContentAccessTracking | Registered | Refused),
        Some(_) => false,
    }
}

fn field_bytes(doc: &Doc, path: &str) -> Result<Vec<u8>, Failure> {
    unbase64(doc.text(path)?).ok_or_else(|| Failure::Rule(format!("{path} is not base64")))
}

fn public_key_der(pem: &[u8]) -> Option<Vec<u8>> {
    use rustls_pki_types::SubjectPublicKeyInfoDer;
    use rustls_pki_types::pem::PemObject as _;
    SubjectPublicKeyInfoDer::from_pem_slice(pem).ok().map(|der| der.to_vec())
}
